"""Columns to trained models: one group of workers trains one run after the other, each resumable.

A run's folder is named by all that decides its numbers (recipe, columns, labels, splits, words,
code), so nothing resumes by accident, and a finished run is taken as it is.
"""

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from featurizers.clip import Clip
from featurizers.manifest import Column
from featurizers.spec import canonical_json
from featurizers.store import Root, publish
from pipelines import HOME
from pipelines.executors import start_ray
from pipelines.experiment import FailedError, InputError
from tracking.mlflow_store import MlflowRun, StoreError, find_run, initialise, start_run
from tracking.provenance import code_digest, environment, git_commit, versions
from tracking.scorecard import Scorecard
from training.evaluate import scorecard
from training.recipe import Recipe, Target

FOLDER = "training"
FINISHED = "finished.json"
SETTLED = "settled.json"
PROGRESS = "progress.jsonl"
POLL_S = 0.5

Told = Callable[[str, int, Mapping[str, float]], None]
"""Told run name, epoch and metrics."""


class TrainingFailedError(FailedError):
    """The workers gave up; what they had saved is kept, and running again resumes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run to be trained.

    Attributes:
        name: For people: recipe, streams and seed.
        folder: Where its results go, named by its digest.
        columns: The fingerprint of each stream's column.
    """

    name: str
    recipe: Recipe
    root: Root
    folder: Path
    columns: Mapping[str, str]

    @property
    def finished(self) -> bool:
        """Whether the results are there."""
        return (self.folder / FINISHED).is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished run.

    Attributes:
        history: Metrics by epoch.
        predictions: For each labelled test clip.
        lacking: The streams that each of them lacks.
        without: By stream, the predictions when no clip has it.
    """

    plan: Plan
    run_id: str
    best_epoch: int
    history: Sequence[Mapping[str, float]]
    predictions: Mapping[str, Target]
    lacking: Mapping[str, Sequence[str]]
    without: Mapping[str, Mapping[str, Target]]

    @property
    def predictor(self) -> Path:
        """The folder of the predictor."""
        return self.plan.folder / "predictor"

    @property
    def valid_loss(self) -> float:
        """Of the best epoch."""
        return float(self.history[self.best_epoch]["valid_loss"])


def plan_run(
    root: Root, work: Path, columns: Mapping[str, Column], recipe: Recipe, clips: Sequence[Clip]
) -> Plan:
    """The plan of one run, named by a digest of all that decides its numbers.

    Args:
        root: Where the dataset lies.
        work: The local folder of runs.
        columns: The column of each stream.
        recipe: What is trained.
        clips: All clips of the dataset.
    """
    used = {stream: columns[stream] for stream in recipe.model.streams}
    seen = [
        [
            clip.key,
            clip.split,
            clip.labels.get(recipe.task.label),
            clip.seconds,
            [[word.start, word.end] for word in clip.words or ()],
        ]
        for clip in clips
    ]
    identity = [recipe.digest, {n: c.digest for n, c in used.items()}, seen, bundled_code_digest()]
    digest = hashlib.sha256(canonical_json(identity)).hexdigest()
    streams = "+".join(recipe.model.streams) if recipe.name == "unimodal" else recipe.name
    name = f"{streams} seed {recipe.seed}"
    folder = work / FOLDER / f"{recipe.name}-{digest[:16]}"
    fingerprints = {stream: column.spec.fingerprint for stream, column in used.items()}
    return Plan(name=name, recipe=recipe, root=root, folder=folder, columns=fingerprints)


def bundled_code_digest() -> str:
    """sha256 of the code that a registered model carries."""
    return code_digest([HOME / "featurizers", HOME / "training"])


def train(
    plans: Sequence[Plan],
    clips: Sequence[Clip],
    *,
    uri: str,
    store: Path,
    experiment: str,
    workers: int,
    max_failures: int,
    told: Told,
) -> list[Trained]:
    """Train what is not finished, on Ray Train; one group of workers for all of it.

    Args:
        plans: The runs.
        clips: All clips of the dataset: the labelled test clips are scored after training.
        uri: The tracking server.
        store: Where a local server keeps files.
        experiment: The experiment's name on the server.
        workers: Ranks of each run.
        max_failures: How often a failed group is started again.
        told: Told of each epoch, for a progress bar.

    Raises:
        TrainingFailedError: Workers failed more often than permitted.
        InputError: A run stands already at another tracking server.
    """
    initialise(uri, store / "mlartifacts")
    group = plans[0].folder.parent / "ray" / group_name(plans, workers)
    runs = [_mlflow_run(plan, uri, experiment, group) for plan in plans]
    todo = [(plan, run) for plan, run in zip(plans, runs, strict=True) if not plan.finished]
    if todo:
        with _settled(todo), _Watch([plan for plan, _ in todo], told):
            for _, run in todo:
                # A tag, not a setting: a resumed run may have another number.
                run.set_tags({"fuseline.world": str(workers)})
            _fit(todo, group, uri=uri, workers=workers, max_failures=max_failures)
    for plan, run in zip(plans, runs, strict=True):
        if not (plan.folder / SETTLED).is_file():
            _settle(plan, run, clips)
    return [read(plan) for plan in plans]


def _settle(plan: Plan, run: MlflowRun, clips: Sequence[Clip]) -> None:
    """Tell the server how a finished run ended; after a crash in between it is told again."""
    run.log_file(plan.folder / FINISHED)
    card = score_test(read(plan), clips, parity=None)
    run.log_metrics({f"test_{name}": value for name, value in card.metrics.items()}, step=0)
    run.finish()
    publish(plan.folder / SETTLED, canonical_json({"run_id": run.run_id}))


@contextmanager
def _settled(todo: Sequence[tuple[Plan, MlflowRun]]) -> Iterator[None]:
    """When training stops before its end, tell the server of the runs that are not finished."""
    try:
        yield
    except BaseException as error:
        status = "FAILED" if isinstance(error, TrainingFailedError) else "KILLED"
        # The store may be what failed; why training stopped matters more than that.
        with suppress(StoreError):
            for plan, run in todo:
                if not plan.finished:
                    run.finish(status)
        raise


def group_name(plans: Sequence[Plan], workers: int) -> str:
    """The name of a group of runs for Ray Train, finished ones included.

    A name that stands already is resumed whatever its settings, so it is a digest; and it is the
    same after a crash, when some of the runs are finished. With ZeRO 1 or more it depends on the
    number of workers too: such a checkpoint is split over them and does not load on another
    number, so those runs begin anew.
    """
    names = [plan.folder.name for plan in plans]
    if any(plan.recipe.zero > 0 for plan in plans):
        names.append(f"{workers} workers")
    return hashlib.sha256("".join(names).encode()).hexdigest()[:16]


def read(plan: Plan) -> Trained:
    """A finished run's results."""
    plain = json.loads((plan.folder / FINISHED).read_bytes())
    run = json.loads((plan.folder / "run.json").read_bytes())
    return Trained(plan=plan, run_id=run["run_id"], **plain)


def score_test(trained: Trained, clips: Sequence[Clip], parity: bool | None) -> Scorecard:
    """The scorecard of a finished run on the labelled test clips."""
    task = trained.plan.recipe.task
    labelled = [clip for clip in clips if task.label in clip.labels]
    return scorecard(
        [clip for clip in labelled if clip.split == "test"],
        trained.predictions,
        task,
        [clip for clip in labelled if clip.split == "train"],
        parity=parity,
        missing=trained.lacking,
        without=trained.without,
    )


def _mlflow_run(plan: Plan, uri: str, experiment: str, group: Path) -> MlflowRun:
    """The run that belongs to this folder: made once, the same after a failure."""
    file = plan.folder / "run.json"
    if file.is_file():
        standing = json.loads(file.read_bytes())
        if standing["uri"] != uri:
            raise InputError(
                f"{plan.name} is logged at {standing['uri']}, not at {uri}; set "
                f"MLFLOW_TRACKING_URI to that, or remove {plan.folder} and {group} to train it anew"
            )
        return MlflowRun(uri=uri, run_id=standing["run_id"])
    # A crash between the server and the file leaves a run that no file names.
    run = find_run(uri, experiment, "fuseline.plan", plan.folder.name)
    run = run or _new_run(plan, uri, experiment)
    publish(file, canonical_json({"run_id": run.run_id, "uri": uri}))
    return run


def _new_run(plan: Plan, uri: str, experiment: str) -> MlflowRun:
    tags = {
        "fuseline.plan": plan.folder.name,
        "fuseline.code": bundled_code_digest(),
        "fuseline.commit": git_commit(HOME),
        "fuseline.dataset": str(plan.root),
        **{f"fuseline.env.{name}": value for name, value in environment().items()},
        **{f"fuseline.version.{n}": v for n, v in versions(["torch", "ray", "deepspeed"]).items()},
    }
    return start_run(uri, experiment, plan.name, {name: v for name, v in tags.items() if v})


def _fit(
    todo: Sequence[tuple[Plan, MlflowRun]],
    group: Path,
    *,
    uri: str,
    workers: int,
    max_failures: int,
) -> None:
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig
    from ray.train.v2.api.exceptions import TrainingFailedError as RayTrainingFailedError

    start_ray(workers)
    gpus = _gpus() >= workers
    trainer = TorchTrainer(
        _rank,
        train_loop_config={
            "uri": uri,
            "plans": [_sent(plan, run) for plan, run in todo],
        },
        # Ray Train's own time-out of a process group is 30 minutes (2.60.0): a hang costs so much.
        # Held by test_ranks_that_wait_for_each_other_give_up_after_ten_minutes.
        torch_config=TorchConfig(timeout_s=600),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=RunConfig(
            name=group.name,
            storage_path=str(group.parent.resolve()),
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except RayTrainingFailedError as error:
        raise TrainingFailedError(
            f"training failed more than {max_failures} times; run again to resume. "
            f"{last_words(error)}"
        ) from error
    except SystemExit:
        # Ray Train (2.60.0) answers Ctrl-C by ending the process with code 0, as if all were done.
        # Held by test_ctrl_c_while_ranks_train_is_no_success.
        raise KeyboardInterrupt from None
    finally:
        # And it never puts back what stood there before (2.60.0).
        # Held by test_after_training_ctrl_c_is_answered_as_before.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)


def last_words(error: Exception) -> str:
    """The line that says what ended the workers; above it a failure has its whole traceback."""
    failures: Mapping[int, Exception] = getattr(error, "worker_failures", None) or {}
    lines = str(next(iter(failures.values()), error)).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _gpus() -> float:
    """Of the whole cluster."""
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call] # Ray's
    return found.get("GPU", 0.0)


def _sent(plan: Plan, run: MlflowRun) -> dict[str, Any]:
    """A plan as plain data: what crosses to the workers is small and readable."""
    return {
        "name": plan.name,
        "recipe": plan.recipe.to_json(),
        "root": str(plan.root),
        "folder": str(plan.folder),
        "columns": dict(plan.columns),
        "run_id": run.run_id,
    }


def _rank(config: Mapping[str, Any]) -> None:
    """What each worker does: every plan in turn."""
    import os

    import ray.train
    import torch

    context = ray.train.get_context()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    for plain in config["plans"]:
        plan = Plan(
            name=plain["name"],
            recipe=Recipe.from_json(plain["recipe"]),
            root=plain["root"],
            folder=Path(plain["folder"]),
            columns=plain["columns"],
        )
        session = RaySession(plan.folder.name, context.get_world_rank(), context.get_world_size())
        # Every rank must take the same way here, also when rank 0 finished just before a failure.
        if not session.agreed(plan.finished):
            _train_one(plan, session, MlflowRun(uri=config["uri"], run_id=plain["run_id"]))


def _train_one(plan: Plan, session: "RaySession", run: MlflowRun) -> None:
    from training.data import load
    from training.evaluate import lacking, predictions, without_each
    from training.loop import fit
    from training.predict import Predictor, load_model

    data = load(plan.root, plan.columns, plan.recipe)

    def progress(epoch: int, metrics: Mapping[str, float]) -> None:
        line = json.dumps({"name": plan.name, "epoch": epoch, "metrics": dict(metrics)})
        with (plan.folder / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    outcome = fit(plan.recipe, data, session, run, progress)
    if session.rank:
        return
    Predictor.save(
        plan.folder / "predictor",
        recipe=plan.recipe,
        specs=data.specs,
        normaliser=data.normaliser,
        fallback=data.fallback,
        weights=outcome.weights,
    )
    model = load_model(plan.folder / "predictor")
    finished = {
        "best_epoch": outcome.best_epoch,
        "history": list(outcome.history),
        "predictions": predictions(model, data.test, plan.recipe.task, data.fallback),
        "lacking": lacking(data.test),
        "without": without_each(model, data.test, plan.recipe.task, data.fallback),
    }
    publish(plan.folder / FINISHED, json.dumps(finished, sort_keys=True).encode())


class RaySession:
    """A rank of Ray Train; see `training.session.Session`.

    Args:
        plan: Marks checkpoints, since several runs share one group of workers.
        rank: This process.
        world: How many there are.
    """

    def __init__(self, plan: str, rank: int, world: int) -> None:
        self._plan, self.rank, self.world = plan, rank, world

    def restore(self) -> Path | None:
        """The newest checkpoint, when it is of this plan."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        folder = Path(checkpoint.path)
        return folder if (folder / f"{self._plan}.plan").is_file() else None

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """Hand a checkpoint to Ray Train, which merges the ranks' files into one folder."""
        import ray.train

        if checkpoint is None:
            ray.train.report(dict(metrics))
            return
        (checkpoint / f"{self._plan}.plan").touch()
        kept = ray.train.Checkpoint.from_directory(str(checkpoint))
        ray.train.report(dict(metrics), checkpoint=kept)

    def preempted(self) -> bool:
        """Never: a node that is lost costs the epochs since the last checkpoint."""
        return False

    def agreed(self, finished: bool) -> bool:
        """What rank 0 says."""
        import torch
        from torch import distributed

        answer = torch.tensor([int(finished)])
        if distributed.is_initialized():
            device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
            answer = answer.to(device)
            distributed.broadcast(answer, src=0)
        return bool(answer.item())


class _Watch(AbstractContextManager["_Watch"]):
    """Follows the progress files of running plans, while Ray Train blocks this thread."""

    def __init__(self, plans: Sequence[Plan], told: Told) -> None:
        self._files = [plan.folder / PROGRESS for plan in plans]
        self._read = {file: file.stat().st_size if file.exists() else 0 for file in self._files}
        self._told = told
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "_Watch":
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
                    self._told(entry["name"], entry["epoch"], entry["metrics"])
