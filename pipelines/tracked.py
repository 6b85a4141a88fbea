"""What the tracking server is told of runs: who they are, how they end, and what waited for it."""

import hashlib
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from featurizers.clip import Clip
from featurizers.spec import canonical_json
from featurizers.store import publish, shown
from pipelines import HOME
from pipelines.experiment import InputError
from pipelines.gauges import Gauges
from pipelines.jobs.submission import COMMIT
from pipelines.limits import TrainingFailedError
from pipelines.lineage import WEIGHTS_TAG
from pipelines.plans import (
    FINISHED,
    PREDICTIONS,
    RUN,
    SCORECARD,
    SETTLED,
    Plan,
    bundled_code_digest,
    predicted_test,
    read,
    score_test,
)
from tracking.journal import JournaledRun, deliver
from tracking.mlflow_store import MlflowRun, StoreError, connect, find_run, public, start_run
from tracking.provenance import environment, git_commit, versions
from tracking.run import AwayError

WORD = "word"
"""A random word, by which the server tells the run of a folder from those of other folders."""

FOLDER_TAG = "fuseline.folder"
JOURNAL = "journal"
ATTEMPTS = "attempts"
DRIVER = "driver.json"
"""Which process trains this run; gone when it said how the run ended."""

BACK_S = 120.0  # that a server is waited for when nothing else is left to do
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0


class Kept(Protocol):
    """What has a run on the server, and a folder that says so: a plan, or a family of them."""

    @property
    def folder(self) -> Path:
        """Where it lies."""


def mlflow_run(plan: Plan, uri: str, experiment: str) -> MlflowRun:
    """The run that belongs to a plan's folder; see `run_of`."""
    tags = {"fuseline.plan": plan.folder.name, "fuseline.dataset": shown(str(plan.root))}
    return run_of(plan.folder, uri, experiment, plan.name, tags)


def run_of(
    folder: Path, uri: str, experiment: str, name: str, tags: Mapping[str, str]
) -> MlflowRun:
    """The run that belongs to a folder: made once, the same after a failure.

    Args:
        folder: Keeps which run that is, without user and password of the server.
        uri: The tracking server.
        experiment: The experiment's name there.
        name: Of a new run.
        tags: Of a new run, beside those that say what made it.

    Raises:
        InputError: The folder's run stands at another server.
    """
    file = folder / RUN
    if file.is_file():
        standing = json.loads(file.read_bytes())
        if public(standing["uri"]) != public(uri):
            raise InputError(
                f"{name} is logged at {public(standing['uri'])}, not at {public(uri)}; set "
                f"MLFLOW_TRACKING_URI to that, or remove {folder} to train it anew"
            )
        return MlflowRun(uri=uri, run_id=standing["run_id"])
    # A crash between the server and the file leaves a run that no file names. The folder's name is
    # of what decides numbers: another dataset's folder may have the same, and has another run.
    word, made_by = _word(folder), _made_by()
    found = find_run(uri, experiment, FOLDER_TAG, word)
    made = {f"fuseline.{name}": value for name, value in made_by.items()}
    run = found or start_run(uri, experiment, name, {FOLDER_TAG: word, **tags, **made})
    content = {"run_id": run.run_id, "uri": public(uri), "made_by": made_by}
    publish(file, canonical_json(content))
    return run


def _word(folder: Path) -> str:
    """The folder's random word; written down before the server hears of it."""
    file = folder / WORD
    if not file.is_file():
        publish(file, secrets.token_hex(16).encode())
    return file.read_text()


def _made_by() -> dict[str, str]:
    """Code, versions and machine; nothing for what is not known."""
    facts = {
        "code": bundled_code_digest(),
        "commit": git_commit(HOME) or os.environ.get(COMMIT, ""),  # a job's code is a wheel
        **{f"env.{name}": value for name, value in environment().items()},
        **{f"version.{n}": v for n, v in versions(["torch", "ray", "deepspeed"]).items()},
    }
    return {name: value for name, value in facts.items() if value}


def settle(plan: Plan, run: MlflowRun, clips: Sequence[Clip]) -> None:
    """Tell the server how a finished run ended; after a crash in between it is told again."""
    _send_rest(run, plan.folder)
    run.log_file(plan.folder / FINISHED)
    trained = read(plan)
    run.set_tags(_weights_tag(trained.predictor))
    card = score_test(trained, clips, parity=None)
    keep_file(run, PREDICTIONS, predicted_test(trained, clips).to_parquet())
    keep_file(run, SCORECARD, canonical_json(card.to_json()))
    run.log_metrics({f"test_{name}": value for name, value in card.metrics.items()}, step=0)
    run.finish()
    publish(plan.folder / SETTLED, canonical_json({"run_id": run.run_id}))
    let_go(plan.folder)


def _weights_tag(predictor: Path) -> dict[str, str]:
    """By this it is known which run trained what another one begins with a copy of."""
    from training.start import PREDICTOR_WEIGHTS

    with (predictor / PREDICTOR_WEIGHTS).open("rb") as file:
        return {WEIGHTS_TAG: hashlib.file_digest(file, "sha256").hexdigest()}


def let_go(folder: Path) -> None:
    """Note that nobody is at work in a folder: the server knows how its run ended."""
    (folder / DRIVER).unlink(missing_ok=True)


def _finished(folder: Path) -> str:
    return "FINISHED" if (folder / FINISHED).is_file() else ""


def keep_file(run: MlflowRun, name: str, content: bytes, folder: str = "") -> None:
    """Keep bytes as a file of a run."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / name
        file.write_bytes(content)
        run.log_file(file, folder)


@contextmanager
def settled(todo: Sequence[tuple[Kept, MlflowRun]]) -> Iterator[None]:
    """When training stops before its end, tell the server how these runs ended."""
    for kept, _ in todo:
        publish(kept.folder / DRIVER, canonical_json(_this_process()))
    try:
        yield
    except BaseException as error:
        status = "FAILED" if isinstance(error, TrainingFailedError) else "KILLED"
        # The store may be what failed; why training stopped matters more than that.
        with suppress(StoreError):
            for kept, run in todo:
                if _is_trained_here(kept.folder):
                    # One that is finished already has its test scores added by the next command.
                    run.finish(_finished(kept.folder) or status)
                    let_go(kept.folder)
        raise


def journaled(plan: Plan, uri: str, run_id: str, world: int) -> JournaledRun:
    """The run as rank 0 logs to it, in one attempt more than before."""
    with (plan.folder / ATTEMPTS).open("ab") as begun:
        begun.write(b".")
        begun.flush()
        number = begun.tell()
    run = JournaledRun(_there(uri, run_id), plan.folder / JOURNAL, attempt=number)
    # Tags, not settings: a run that goes on may have another number of ranks.
    run.set_tags({"fuseline.attempts": str(number), "fuseline.world": str(world)})
    return run


def attempts(plan: Plan) -> int:
    """How often a run was begun; 0 for one that nobody is told of."""
    file = plan.folder / ATTEMPTS
    return file.stat().st_size if file.is_file() else 0


@contextmanager
def gauged(plan: Plan, uri: str, run_id: str) -> Iterator[None]:
    """Meanwhile this node is watched for a run; through a journal of the node's own."""
    node, made_s = socket.gethostname(), (plan.folder / RUN).stat().st_mtime
    run = JournaledRun(_there(uri, run_id), plan.folder / f"{JOURNAL}-{node}")
    gauges = Gauges(run, lambda: max(0.0, time.time() - made_s), node=node)
    try:
        yield
    finally:
        gauges.end()
        run.close()


def _there(uri: str, run_id: str) -> MlflowRun:
    with suppress(AwayError):
        connect(uri)  # before a thread does: loaders fork this process
    return MlflowRun(uri=uri, run_id=run_id)


def _send_rest(run: MlflowRun, folder: Path) -> None:
    for journal in sorted(folder.glob(f"{JOURNAL}*")):
        deliver(run, journal)


def when_back(call: Callable[[], None], say: Callable[[str], None]) -> None:
    """Do something that needs the server; while that is away try again, within `BACK_S`.

    Raises:
        AwayError: It did not come back.
    """
    until, pause_s = time.monotonic() + BACK_S, FIRST_PAUSE_S
    while True:
        try:
            return call()
        except AwayError as error:
            if time.monotonic() + pause_s > until:
                raise
            if pause_s == FIRST_PAUSE_S:
                say(f"waiting for the tracking server: {error}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def bury(plans: Sequence[Plan], uri: str) -> None:
    """Settle runs beside these that a process on this machine was training when it was killed.

    They would be shown as running for ever. Those of a process that lives, or of another machine,
    are left alone, and so are these: they go on.

    Args:
        plans: The runs that are trained now.
        uri: The tracking server, with the password that it may want.
    """
    own = {plan.folder for plan in plans}
    for file in sorted({each for folder in own for each in folder.parent.glob(f"*/{DRIVER}")}):
        if file.parent in own or not _is_dead(json.loads(file.read_bytes())):
            continue
        standing = json.loads((file.parent / RUN).read_bytes())
        same = public(standing["uri"]) == public(uri)
        run = MlflowRun(uri=uri if same else standing["uri"], run_id=standing["run_id"])
        with suppress(StoreError):
            _send_rest(run, file.parent)
            run.finish(_finished(file.parent) or "KILLED")
            let_go(file.parent)


def is_at_work(folder: Path) -> bool:
    """Whether a command trains here, or on another machine may."""
    file = folder / DRIVER
    return file.is_file() and not _is_dead(json.loads(file.read_bytes()))


def _is_trained_here(folder: Path) -> bool:
    """Whether nobody took the run over who will settle it."""
    file = folder / DRIVER
    return file.is_file() and json.loads(file.read_bytes()) == _this_process()


def _this_process() -> dict[str, str | int]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "began": _began(os.getpid())}


def _is_dead(driver: dict[str, str | int]) -> bool:
    here = driver["host"] == socket.gethostname()
    # A number may have been given to another process since.
    return here and _began(int(driver["pid"])) != driver["began"]


def _began(pid: int) -> str:
    import psutil

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return ""
