"""Columns to trained models: a group of workers trains one run after the other, each resumable."""

import hashlib
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from featurizers.clip import Clip
from pipelines.claim import taken_over
from pipelines.devices import NO_GPU, affordable, gpus, on_gpus
from pipelines.elastic import MAX_PREEMPTIONS, Budget, More, Say, Size, no_room, numbers
from pipelines.executors import coordinate_on_head, resources, start_ray, stop_ray
from pipelines.follow import Follow, Told, Within
from pipelines.limits import ENDING_S, MINUTE_S, Care, Limits, TrainingFailedError
from pipelines.origins import keep_origins
from pipelines.plans import (
    SETTLED,
    Plan,
    Trained,
    read,
)
from pipelines.ranks import attended, sent, train_each
from pipelines.tracked import bury, mlflow_run, settle, settled, when_back
from tracking.mlflow_store import initialise

POLL_S = 0.5
STOP = "stop"
"""The file of a group that tells its ranks to save and end."""


def train(
    plans: Sequence[Plan],
    clips: Sequence[Clip],
    *,
    uri: str,
    store: Path,
    experiment: str,
    workers: int,
    least: int | None = None,
    care: Care,
    told: Told,
    say: Say,
    within: Within | None = None,
    parent: str | None = None,
) -> list[Trained]:
    """Train what is not finished, on Ray Train; one group of workers for all of it.

    Args:
        plans: The runs.
        clips: All clips of the dataset: the labelled test clips are scored after training.
        uri: The tracking server.
        store: Where a local server keeps files.
        experiment: The experiment's name on the server.
        workers: Ranks of each run; rounded down where they do not divide a global batch.
        least: How many of them will do as well where there is no room for all; None for no fewer.
        care: How the runs are looked after.
        told: Told of each epoch, for a progress bar.
        say: Told what people should know.
        within: Told now and then where an epoch stands.
        parent: The id of the run that these are parts of.

    Raises:
        TrainingFailedError: Workers failed more often than permitted.
        InputError: A run stands already at another tracking server.
    """
    initialise(uri, store / "mlartifacts")
    bury(plans, uri)
    runs = [mlflow_run(plan, uri, experiment) for plan in plans]
    for run in runs if parent is not None else ():
        run.set_tags({"mlflow.parentRunId": parent or ""})
    todo = [(plan, run) for plan, run in zip(plans, runs, strict=True) if not plan.finished]
    if todo:
        keep_origins(todo, clips)
        start_ray(least or workers)  # it tells how many GPUs there are
        span = affordable(least or workers, workers, care.device, say)
        *fewer, most = numbers([plan.recipe for plan, _ in todo], *span, say)
        with settled(todo), Follow([p for p, _ in todo], told, say, within):
            for _, run in todo:
                run.go_on()
            group = plans[0].folder.parent / "ray" / group_name(plans)
            runs_sent = [sent(plan, run.run_id, taken_over(plan.folder)) for plan, run in todo]
            config = {"uri": uri, "runs": runs_sent}
            fit(train_each, config, group=group, workers=most, fewer=fewer, care=care, say=say)
    for plan, run in zip(plans, runs, strict=True):
        if not (plan.folder / SETTLED).is_file():
            when_back(partial(settle, plan, run, clips), say)
    return [read(plan) for plan in plans]


def group_name(plans: Sequence[Plan]) -> str:
    """The name of a group of runs for Ray Train, finished ones included: a digest of their names.

    It does not depend on the number of workers: checkpoints load on any.
    """
    return hashlib.sha256("".join(plan.folder.name for plan in plans).encode()).hexdigest()[:16]


def fit(
    work: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    *,
    group: Path,
    workers: int,
    care: Care,
    say: Say,
    fewer: Sequence[int] = (),
) -> None:
    """Run something on a group of Ray Train's workers, until it is done or stopped.

    When this process is told to end (SIGINT, SIGTERM), the ranks are: they finish their step and
    save; then what told it goes on.

    Args:
        work: What each rank does, given the config.
        config: As `ranks.train_each` wants it; what it says of care and of stopping is added here.
        group: Ray Train's own folder; emptied.
        workers: The number of ranks.
        care: How they are looked after.
        say: Told what people should know.
        fewer: Numbers of ranks that will do as well; see `elastic.Size`.

    Raises:
        TrainingFailedError: Workers failed more often than permitted, were waited for too long, or
            the time that training may take is over.
    """
    least = min((workers, *fewer))
    start_ray(least)
    coordinate_on_head()
    gpu_each = on_gpus(care.device)
    limits = Limits(group, wanted(least, gpu_each), care, found=there_is, say=say)
    size = Size([*fewer, workers], {"GPU" if gpu_each else "CPU": 1.0}, say)
    budget = Budget(care, ranks_too=size.elastic)
    while True:
        now = size.now()
        _emptied(group)
        trainer = _trainer(
            work, config, group, now, care, gpu_each=gpu_each, again=not size.elastic
        )
        failure, grows = until_ended(trainer.fit, group, limits, size.more(now), say)
        if failure is None and not grows:
            return
        if failure is not None:
            if not budget.permits(failure):
                raise _told(failure, care.max_failures) from failure
            say(f"the ranks were lost, and are started again: {last_words(failure)}")
        size.came_up(now, found_room=failure is None or not no_room(failure))


def _emptied(group: Path) -> None:
    """Ray Train's own folder, with nothing in it.

    Ray Train (2.60.0) goes on from whatever stands under a name, and never again when a file of its
    own there was cut short. All that matters is in the runs' folders.
    Held by test_what_ray_train_left_behind_is_not_in_the_way; may go when it writes whole files.
    """
    shutil.rmtree(group, ignore_errors=True)
    group.mkdir(parents=True)


def until_ended(
    work: Callable[[], object], group: Path, limits: Limits, more: More | None, say: Say
) -> tuple[Exception | None, bool]:
    """Train on one group of ranks, or one trial after the other, until it ends.

    When this process is told to end, or the limits are, those at work finish their step and save.

    Args:
        work: What Ray does: the call returns at the end.
        group: The folder of the sign that those at work end by, and of theirs.
        limits: How long that may take.
        more: Says when there is room for more ranks.
        say: Told what people should know.

    Returns:
        Why it failed, if it did, and whether it ended for a larger one.
    """
    stop = group / STOP
    failure: list[Exception] = []

    def follow() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            failure.append(error)

    # In a thread of its own, Ray Train (2.60.0) leaves SIGINT alone, which it answers by ending the
    # process with code 0, as if all were done; and it never puts back what stood there before. Ray
    # Tune returns as if all were done. Held by test_ctrl_c_while_ranks_train_is_no_success,
    # test_after_training_ctrl_c_is_answered_as_before and
    # test_ctrl_c_during_a_sweep_is_ours_to_answer; may go when both raise.
    thread = _Beside(target=follow, name="fuseline-train", daemon=True)
    thread.start()
    try:
        with more or nullcontext():
            grows = _wait(thread, limits, more)
            if grows:
                say("there is room for more ranks: these save, and more go on")
                stop.touch()
                _wait(thread, limits, None)
    except BaseException:
        stop.touch()
        _end(thread, limits, say)
        raise
    return (failure[0] if failure else None), grows


class _Beside(threading.Thread):
    """A thread that can be waited for again after the wait for it was interrupted.

    What the handler of a signal raises within `Thread.join` makes CPython (3.11) take the thread
    for ended, so that ranks which were told to save were not waited for.
    Held by test_ranks_are_waited_for_after_ctrl_c; may go when `join` leaves a thread alive.
    """

    def __init__(self, **given: Any) -> None:  # noqa: ANN401 - of threading
        super().__init__(**given)
        self._done = threading.Event()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._done.set()

    def is_alive(self) -> bool:
        return not self._done.is_set()

    def join(self, timeout: float | None = None) -> None:
        self._done.wait(timeout)


def _wait(thread: threading.Thread, limits: Limits, more: More | None) -> bool:
    """Wait for the end; True when more ranks could come before that."""
    while thread.is_alive():
        thread.join(POLL_S)
        over = limits.over()
        if over and thread.is_alive():
            raise TrainingFailedError(over)
        if more is not None and thread.is_alive() and more.there(limits.training):
            return True
    return False


def _end(thread: threading.Thread, limits: Limits, say: Say) -> None:
    if not limits.waiting:
        say("stopping: the ranks finish their step and save")
        while thread.is_alive() and limits.ending():
            thread.join(POLL_S)
    if thread.is_alive():
        # Who still waits for room must not train beside a group that is started later.
        stop_ray()
        thread.join(ENDING_S)


def _told(error: Exception, max_failures: int) -> Exception:
    from ray.train.v2.api.exceptions import TrainingFailedError as RayTrainingFailedError

    if not isinstance(error, RayTrainingFailedError):
        return error
    return TrainingFailedError(
        f"training failed more than {max_failures} times; run again to resume. {last_words(error)}"
    )


def _trainer(
    work: Callable[[dict[str, Any]], None],
    config: Mapping[str, Any],
    group: Path,
    workers: int,
    care: Care,
    *,
    gpu_each: bool,
    again: bool,
) -> Any:  # noqa: ANN401 - of Ray
    """A trainer; it starts a group that was lost anew by itself, or leaves that to us."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig  # the public one's type lacks a field

    hide = gpus() and not gpu_each
    hidden: dict[str, Any] = {"worker_runtime_env": {"env_vars": NO_GPU}} if hide else {}
    told = {"check": {}, **care_sent(care, group), **config}
    return TorchTrainer(
        # Told by the function: Ray Train (2.60.0) shows `train_loop_config` on the dashboard, and
        # the tracking server's address may hold a password.
        # Held by test_what_ray_train_shows_of_a_run_holds_no_password.
        attended(partial(_told_so, work, told), group),
        train_loop_config={},
        # Ray Train's own time-out of a process group is 30 minutes (2.60.0): a hang costs so much.
        # Held by test_ranks_that_wait_for_each_other_give_up_after_ten_minutes.
        torch_config=TorchConfig(timeout_s=600),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu_each),
        # Checkpoints are our own: Ray Train's are split by ranks, and each report costs seconds.
        run_config=RunConfig(
            name=group.name,
            storage_path=str(group.parent.resolve()),
            **hidden,
            failure_config=FailureConfig(
                max_failures=care.max_failures if again else 0,
                max_preemption_failures=MAX_PREEMPTIONS if again else 0,
                controller_failure_limit=-1 if again else 0,  # see `limits.Limits`
            ),
        ),
    )


def _told_so(
    work: Callable[[dict[str, Any]], None], told: dict[str, Any], config: dict[str, Any]
) -> None:
    """A rank's work, with what it is told beside what Ray Train tells it: nothing."""
    work({**told, **config})


def care_sent(care: Care, group: Path) -> dict[str, Any]:
    """What ranks are told of how they are looked after, as plain data; see `ranks.train_each`."""
    return {
        "stop": str((group / STOP).resolve()),
        "keep": care.keep,
        "save_s": care.checkpoint_minutes * MINUTE_S,
        "hang_s": care.hang_s,
        "stall_s": care.stall_minutes * MINUTE_S,
    }


def last_words(error: Exception) -> str:
    """The line that says what ended the workers; above it a failure has its whole traceback."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", None) or {}
    lines = str(next(iter(failures.values()), error)).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def wanted(workers: int, gpu_each: bool) -> str:
    """What ranks hold of a cluster, as text."""
    each = "1 CPU and 1 GPU" if gpu_each else "1 CPU"
    return f"{workers} rank(s) with {each} each"


def there_is() -> str:
    """What the cluster has, as text."""
    found = resources()
    return f"{found.get('CPU', 0.0):g} CPU and {found.get('GPU', 0.0):g} GPU"
