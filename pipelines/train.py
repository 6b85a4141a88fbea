"""Columns to trained models: a group of workers trains one run after the other, each resumable."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from featurizers.clip import Clip
from pipelines.claim import taken_over
from pipelines.executors import resources, start_ray, stop_ray
from pipelines.limits import Care, Limits, TrainingFailedError
from pipelines.plans import (
    PROGRESS,
    SETTLED,
    Plan,
    Trained,
    read,
)
from pipelines.ranks import attended, sent, train_each
from pipelines.tracked import bury, mlflow_run, settle, settled, when_back
from tracking.mlflow_store import initialise
from training.recipe import Recipe, fitting_ranks

POLL_S = 0.5
MAX_PREEMPTIONS = 100  # Ray Train's own number is without end
ENDING_S = 60.0  # for ranks that were told to end: a step, and a checkpoint

Told = Callable[[str, int, Mapping[str, float]], None]
"""Told run name, epoch and metrics."""

Say = Callable[[str], None]
"""Tells people a sentence."""


def ranks(recipes: Sequence[Recipe], workers: int, say: Say) -> int:
    """The most ranks up to `workers` that all global batches can be dealt to evenly; says so."""
    fitting = workers
    for recipe in [*recipes, *recipes]:  # what fits the last one may not fit the first one any more
        fitting = fitting_ranks(recipe.global_batch, fitting, recipe.micro_batch)
    if fitting < workers:
        say(
            f"warning: {workers} workers do not divide the global batch of "
            f"{recipes[0].global_batch} clips; {fitting} train"
        )
    return fitting


def train(
    plans: Sequence[Plan],
    clips: Sequence[Clip],
    *,
    uri: str,
    store: Path,
    experiment: str,
    workers: int,
    care: Care,
    told: Told,
    say: Say,
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
        care: How the runs are looked after.
        told: Told of each epoch, for a progress bar.
        say: Told what people should know.
        parent: The id of the run that these are parts of.

    Raises:
        TrainingFailedError: Workers failed more often than permitted.
        InputError: A run stands already at another tracking server.
    """
    initialise(uri, store / "mlartifacts")
    bury(plans)
    runs = [mlflow_run(plan, uri, experiment) for plan in plans]
    for run in runs if parent is not None else ():
        run.set_tags({"mlflow.parentRunId": parent or ""})
    todo = [(plan, run) for plan, run in zip(plans, runs, strict=True) if not plan.finished]
    if todo:
        workers = ranks([plan.recipe for plan, _ in todo], workers, say)
        with settled(todo), Follow([plan for plan, _ in todo], told, say):
            for _, run in todo:
                # A tag, not a setting: a resumed run may have another number.
                run.set_tags({"fuseline.world": str(workers)})
                run.go_on()
            group = plans[0].folder.parent / "ray" / group_name(plans)
            runs_sent = [sent(plan, run.run_id, taken_over(plan.folder)) for plan, run in todo]
            config = {"uri": uri, "runs": runs_sent}
            fit(train_each, config, group=group, workers=workers, care=care, say=say)
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

    Raises:
        TrainingFailedError: Workers failed more often than permitted, were waited for too long, or
            the time that training may take is over.
    """
    # Ray Train (2.60.0) goes on from whatever stands under a name, and never again when a file of
    # its own there was cut short. All that matters is in the runs' folders.
    # Held by test_what_ray_train_left_behind_is_not_in_the_way; may go when it writes whole files.
    shutil.rmtree(group, ignore_errors=True)
    group.mkdir(parents=True)
    stop = group / "stop"
    start_ray(workers)
    told = {"stop": str(stop.resolve()), "keep": care.keep, "hang_s": care.hang_s, "check": {}}
    trainer = partial(_trainer, attended(work, group), {**told, **config}, group, workers, care)
    limits = Limits(group, wanted(workers), care, found=_has, say=say)
    failure: list[Exception] = []

    def follow() -> None:
        try:
            _fit(trainer, care.max_failures, stop, say)
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            failure.append(error)

    # In a thread of its own, Ray Train (2.60.0) leaves SIGINT alone, which it answers by ending the
    # process with code 0, as if all were done; and it never puts back what stood there before.
    # Held by test_ctrl_c_while_ranks_train_is_no_success and
    # test_after_training_ctrl_c_is_answered_as_before; may go when Ray Train raises.
    thread = threading.Thread(target=follow, name="fuseline-train", daemon=True)
    thread.start()
    try:
        _wait(thread, limits)
    except BaseException:
        stop.touch()
        _end(thread, limits, say)
        raise
    if failure:
        raise _told(failure[0], care.max_failures) from failure[0]


def _fit(trainer: Callable[[], Any], max_failures: int, stop: Path, say: Say) -> None:
    """Train; what fails about the group and not in it is tried again, too, as often as ranks are.

    Ray Train (2.60.0) begins a group anew when a rank fails in its work, or in starting. What is
    lost between these, with a machine or on one that is too busy, ends the job.
    Held by test_a_group_that_is_lost_while_it_starts_is_started_again; may go when it is retried.
    """
    from ray.train.v2.api.exceptions import ControllerError

    for failures in count(1):
        try:
            trainer().fit()
        except ControllerError as error:
            if failures > max_failures or stop.exists():
                raise
            say(f"the ranks were lost, and are started again: {last_words(error)}")
        else:
            return


def _wait(thread: threading.Thread, limits: Limits) -> None:
    while thread.is_alive():
        thread.join(POLL_S)
        over = limits.over()
        if over and thread.is_alive():
            raise TrainingFailedError(over)


def _end(thread: threading.Thread, limits: Limits, say: Say) -> None:
    if not limits.waiting:
        say("stopping: the ranks finish their step and save")
        thread.join(ENDING_S)
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
    config: dict[str, Any],
    group: Path,
    workers: int,
    care: Care,
) -> Any:  # noqa: ANN401 - of Ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig

    return TorchTrainer(
        work,
        train_loop_config=config,
        # Ray Train's own time-out of a process group is 30 minutes (2.60.0): a hang costs so much.
        # Held by test_ranks_that_wait_for_each_other_give_up_after_ten_minutes.
        torch_config=TorchConfig(timeout_s=600),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpus(workers)),
        # Checkpoints are our own: Ray Train's are split by ranks, and each report costs seconds.
        run_config=RunConfig(
            name=group.name,
            storage_path=str(group.parent.resolve()),
            failure_config=FailureConfig(
                max_failures=care.max_failures,
                max_preemption_failures=MAX_PREEMPTIONS,
                controller_failure_limit=-1,  # see `limits.Limits`
            ),
        ),
    )


def last_words(error: Exception) -> str:
    """The line that says what ended the workers; above it a failure has its whole traceback."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", None) or {}
    lines = str(next(iter(failures.values()), error)).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def on_gpus(workers: int) -> bool:
    """Whether each rank is given a GPU: when the cluster has enough of them."""
    return resources().get("GPU", 0.0) >= workers


def wanted(workers: int) -> str:
    """What ranks hold of a cluster, as text."""
    each = "1 CPU and 1 GPU" if on_gpus(workers) else "1 CPU"
    return f"{workers} rank(s) with {each} each"


def _has() -> str:
    """What the cluster has, as text."""
    found = resources()
    return f"{found.get('CPU', 0.0):g} CPU and {found.get('GPU', 0.0):g} GPU"


class Follow(AbstractContextManager["Follow"]):
    """Follows the progress files of running plans, while Ray Train blocks this thread."""

    def __init__(self, plans: Sequence[Plan], told: Told, say: Say) -> None:
        self._files = [plan.folder / PROGRESS for plan in plans]
        self._read = {file: file.stat().st_size if file.exists() else 0 for file in self._files}
        self._told, self._say = told, say
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Follow":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _follow(self) -> None:
        while not self._ended.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        for file in self._files:
            if not file.exists():
                continue
            with file.open("rb") as lines:
                lines.seek(self._read[file])
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    self._read[file] += len(line)
                    entry = json.loads(line)
                    if "say" in entry:
                        self._say(entry["say"])
                    else:
                        self._told(entry["name"], entry["epoch"], entry["metrics"])
