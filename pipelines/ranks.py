"""What each worker of Ray Train does: one run after the other, told when to save, to end, to die.

A rank is told to end by SIGTERM, and all of them by a file that the driver writes. It then finishes
its step, all of them save, and nothing is lost.
"""

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurizers.node_cache import NodeCache
from featurizers.store import publish
from pipelines.claim import claim
from pipelines.follow import note, note_pace, settings_of
from pipelines.limits import PRESENT
from pipelines.notice import Notice
from pipelines.plans import CHECKPOINTS, FINISHED, LATENCY, PREDICTOR, Loading, Plan
from pipelines.tracked import attempts, gauged, journaled
from pipelines.watch import Watch, watched
from tracking.run import MemoryRun, Run
from training.recipe import Recipe
from training.session import PreemptedError, Session, Wish, unclaimed

if TYPE_CHECKING:
    from training.data import Data
    from training.loop import Outcome

STATISTICS = "statistics"
LOOK_S = 0.2  # the driver's file may lie on a network
SIGN_S = 2.0
SHARED = "shared"
SHARED_S = 30.0  # network disks may show a new file late


class UnsharedFolderError(Exception):
    """A node does not see the folder that the ranks share."""


def train_each(config: Mapping[str, Any]) -> None:
    """What a worker does: every run in turn.

    Args:
        config: "runs", each as `sent` gives it; "uri" of the tracking server; "stop", the file that
            tells all ranks to end; "keep", how many checkpoints stay; "save_s", seconds
            between checkpoints; "hang_s", after how many seconds without a step a rank is given up,
            and "stall_s", where it takes none; "check", empty or as `pipelines.resume` wants it.
    """
    import ray.train
    import torch

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    stop = Path(config["stop"])
    notice = Notice(ray.train.get_preemption_info)
    for plain in config["runs"]:
        plan = received(plain)
        # Every rank must take the same way here, also when rank 0 finished just before a failure.
        if agreed(plan.finished or stop.is_file()):
            continue
        with watched(plan.folder, rank, config["hang_s"], config["stall_s"]) as watch:
            session = session_of(plain, config, rank, world, watch=watch, notice=notice)
            looks = context.get_local_rank() == 0 and plain["run_id"]
            try:
                with gauges(plan, config["uri"], plain["run_id"] if looks else ""):
                    train_one(
                        plan, _checked(session, config["check"]), config["uri"], plain["run_id"]
                    )
            except PreemptedError:
                # Ray begins a group anew when one of its ranks fails, and not when all return.
                if not agreed(stop.is_file() or bool(config["check"])):
                    raise
    notice.end()


def session_of(
    plain: Mapping[str, Any],
    config: Mapping[str, Any],
    rank: int,
    world: int,
    *,
    watch: Watch,
    notice: Notice,
) -> "RaySession":
    """A rank's session, which has the run's folder from here on.

    Args:
        plain: The run, as `sent` gives it.
        config: What ranks are told of how they are looked after; see `train_each`.
        rank: This process.
        world: How many there are.
        watch: Of this process.
        notice: Of machines that go.
    """
    folder = Path(plain["folder"])
    return RaySession(
        folder,
        rank,
        world,
        keep=config["keep"],
        watch=watch,
        stop=Path(config["stop"]),
        notice=notice,
        save_s=config["save_s"],
        hold=unclaimed if rank else claim(folder, plain["start"]),
    )


def attended(
    work: Callable[[dict[str, Any]], None], group: Path
) -> Callable[[dict[str, Any]], None]:
    """The same work, with a sign in the group's folder that ranks are at it; see `limits.Limits`.

    A rank on whose node the folder is another one, or none, says so at once: neither its sign nor
    what it saves would be found.

    Args:
        work: What each rank does.
        group: The folder, which is there.

    Returns:
        What raises UnsharedFolderError on a node that does not see the folder.
    """
    folder, word = group.resolve(), secrets.token_hex(8)
    publish(folder / SHARED, word.encode())
    sign = folder / PRESENT

    def attend(config: dict[str, Any]) -> None:
        _share(folder, word)
        ended = threading.Event()

        def touch() -> None:
            sign.touch()
            while not ended.wait(SIGN_S):
                sign.touch()

        threading.Thread(target=touch, daemon=True).start()
        try:
            work(config)
        finally:
            ended.set()

    return attend


def _share(folder: Path, word: str) -> None:
    until = time.monotonic() + SHARED_S
    while not _reads(folder / SHARED, word):
        if time.monotonic() > until:
            raise UnsharedFolderError(
                f"the node {socket.gethostname()} does not see {folder} as the machine does where "
                f"the command runs; put the experiment on a disk that all nodes share, at one path"
            )
        time.sleep(LOOK_S)


def _reads(file: Path, word: str) -> bool:
    try:
        return file.read_text() == word
    except OSError:  # no such folder, or a network disk that still has the one before
        return False


def sent(plan: Plan, run_id: str, start: str) -> dict[str, Any]:
    """A plan as plain data: what crosses to the workers is small and readable.

    Args:
        plan: The run.
        run_id: Its id at the tracking server; empty for one that nobody is told of.
        start: By which ranks claim its folder; see `claim`.
    """
    cache = plan.loading.node_cache
    return {
        "name": plan.name,
        "recipe": plan.recipe.to_json(),
        "root": str(plan.root),
        "folder": str(plan.folder),
        "columns": dict(plan.columns),
        "run_id": run_id,
        "start": start,
        "loader": plan.loading.workers,
        "node_cache": None if cache is None else [str(cache.folder), cache.limit_bytes],
    }


def received(plain: Mapping[str, Any]) -> Plan:
    """The plan that `sent` was given."""
    cache = plain["node_cache"]
    return Plan(
        name=plain["name"],
        recipe=Recipe.from_json(plain["recipe"]),
        root=plain["root"],
        folder=Path(plain["folder"]),
        columns=plain["columns"],
        loading=Loading(
            workers=plain["loader"],
            node_cache=None if cache is None else NodeCache(Path(cache[0]), cache[1]),
        ),
    )


def agreed(answer: bool) -> bool:
    """What rank 0 says."""
    import torch
    from torch import distributed

    shared = torch.tensor([int(answer)])
    if distributed.is_initialized():
        shared = shared.to("cuda" if distributed.get_backend() == "nccl" else "cpu")
        distributed.broadcast(shared, src=0)
    return bool(shared.item())


def train_one(
    plan: Plan,
    session: Session,
    uri: str,
    run_id: str,
    told: Callable[[Mapping[str, float]], None] | None = None,
) -> None:
    """Train one run, and leave its results in its folder.

    Args:
        plan: The run.
        session: Of this rank.
        uri: The tracking server.
        run_id: The run's id there; empty for one that nobody is told of.
        told: Given the metrics of each epoch, on rank 0.
    """
    from training.data import load
    from training.loop import fit

    loading = plan.loading
    data = load(
        plan.root,
        plan.columns,
        plan.recipe,
        node_cache=loading.node_cache,
        kept=plan.folder / STATISTICS,
    )

    def progress(epoch: int, metrics: Mapping[str, float]) -> None:
        entry = {"name": plan.name, "epoch": epoch, "attempt": attempts(plan)}
        note(plan.folder, {**entry, **measured_by(plan, session.world), "metrics": dict(metrics)})
        if told is not None:
            told(metrics)

    # A check of resuming has no run of its own.
    with tracked(plan, uri, run_id if session.rank == 0 else "", session.world) as run:
        outcome = fit(
            plan.recipe,
            data,
            session,
            run,
            progress,
            within=partial(note_pace, plan.folder, plan.name),
            loader_workers=loading.workers,
        )
    alive = partial(session.alive, stepping=False)
    alive()
    if session.rank:
        _await_test(plan, alive)
    else:
        _test(plan, session, data, outcome, alive)


def measured_by(plan: Plan, ranks: int) -> dict[str, Any]:
    """What the pace of an epoch depends on, for `cluster.paces`."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "ranks": ranks,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "host": socket.gethostname(),
        "settings": settings_of(plan.recipe),
    }


def _await_test(plan: Plan, alive: Callable[[], None]) -> None:
    """Wait in no collective, since a test may take longer. Should rank 0 die, so does the group."""
    while not plan.finished:
        alive()
        time.sleep(LOOK_S)


def _test(
    plan: Plan, session: Session, data: "Data", outcome: "Outcome", alive: Callable[[], None]
) -> None:
    """Put the model together, and keep what it says of the test split."""
    from training.evaluate import answers, lacking, without_each
    from training.latency import latency
    from training.predict import Predictor, load_model
    from training.pretrained import tokenizers

    session.hold()
    Predictor.save(
        plan.folder / PREDICTOR,
        recipe=plan.recipe,
        specs=data.specs,
        normaliser=data.normaliser,
        fallback=data.fallback,
        weights=outcome.weights,
        tokenizers=tokenizers(plan.recipe, data.specs),
    )
    model = load_model(plan.folder / PREDICTOR)
    if (took := latency(model, data.test)) is not None:
        publish(plan.folder / LATENCY, json.dumps(took.to_json()).encode())
    model.register_forward_pre_hook(lambda *_: alive())
    given = answers(model, data.test, plan.recipe.task, data.fallback)
    finished = {
        "best_epoch": outcome.best_epoch,
        "history": list(outcome.history),
        "predictions": given.said,
        "scores": given.scores,
        "lacking": lacking(data.test),
        "without": without_each(model, data.test, plan.recipe.task, data.fallback),
    }
    session.hold()
    publish(plan.folder / FINISHED, json.dumps(finished, sort_keys=True).encode())


@contextmanager
def gauges(plan: Plan, uri: str, run_id: str) -> Iterator[None]:
    """Meanwhile this node is watched for a run, where there is one."""
    with gauged(plan, uri, run_id) if run_id else nullcontext():
        yield


@contextmanager
def tracked(plan: Plan, uri: str, run_id: str, world: int) -> Iterator[Run]:
    """The run on the server, which may be away; one in memory where there is none."""
    if not run_id:
        yield MemoryRun()
        return
    run = journaled(plan, uri, run_id, world)
    try:
        yield run
    finally:
        run.close()


class RaySession:
    """A rank of Ray Train; see `training.session.Session`.

    Args:
        folder: The run's.
        rank: This process.
        world: How many there are.
        keep: How many checkpoints stay.
        watch: Of this process.
        stop: The file that tells all ranks to end.
        notice: Of machines that go.
        save_s: Seconds from one checkpoint to the next, at most by a step.
        hold: Raises where somebody else trains the run by now.
        clock: Seconds.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world: int,
        *,
        keep: int,
        watch: Watch,
        stop: Path,
        notice: Notice,
        save_s: float,
        hold: Callable[[], None] = unclaimed,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rank, self.world, self.keep = rank, world, keep
        self.folder = folder / CHECKPOINTS
        self._run, self._watch, self._stop, self._notice = folder, watch, stop, notice
        self._hold, self._save_s, self._clock = hold, save_s, clock
        self._looked, self._saved_at = 0.0, clock()

    def wish(self, position: int) -> Wish:
        """To end when SIGTERM came or rank 0 saw the driver's file.

        To save when a machine goes, or when rank 0 finds that the last checkpoint is long ago.
        """
        del position
        self._watch.beat()
        if self._watch.warned():
            return Wish.END
        if self._notice.due():
            return Wish.SAVE
        return Wish.GO_ON if self.rank else self._first_wish(self._clock())

    def _first_wish(self, now: float) -> Wish:
        """Of rank 0."""
        if now - self._looked >= LOOK_S:
            self._looked = now
            if self._stop.exists():
                return Wish.END
        if now - self._saved_at >= self._save_s:
            self._saved_at = now
            return Wish.SAVE
        return Wish.GO_ON

    def alive(self, *, stepping: bool = True) -> None:
        """See `training.session.Session`."""
        self._watch.beat(stepping=stepping)

    def hold(self) -> None:
        """See `training.session.Session`; also the sign that a checkpoint was written."""
        self._hold()
        self._saved_at = self._clock()

    def say(self, sentence: str) -> None:
        """See `training.session.Session`."""
        note(self._run, {"say": sentence})


class CheckedSession(RaySession):
    """Saves after one step, is killed after the next, and ends after some more; for a check.

    Args:
        session: The usual one.
        ends: Steps after which it ends.
        killed: Steps after which its process is killed, once; 0 for never.
    """

    def __init__(self, session: RaySession, ends: int, killed: int) -> None:
        vars(self).update(vars(session))
        self._ends, self._killed = ends, killed

    def wish(self, position: int) -> Wish:
        """See `RaySession`."""
        if position == self._ends:
            return Wish.END
        if self._killed and position == self._killed - 1:
            return Wish.SAVE
        if self._killed and position == self._killed:
            self._die_once()
        return super().wish(position)

    def _die_once(self) -> None:
        died = self._run / f"killed-{self.rank}"
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def _checked(session: RaySession, check: Mapping[str, int]) -> RaySession:
    return CheckedSession(session, check["ends"], check["killed"]) if check else session
