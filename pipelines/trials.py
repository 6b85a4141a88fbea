"""Hyperparameter search: trials drawn from a space, on Ray Tune, stopped when they fall behind.

Each trial is a run like any other, in a folder named by what decides its numbers, trained in one
process. So a sweep that was killed goes on by running it again: finished trials are told to Tune
from their files, one that was cut short resumes, and `train` with the best settings finds its run
finished. Trials are compared by validation alone.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from featurizers.clip import Clip
from featurizers.spec import canonical_json
from featurizers.store import publish
from pipelines.claim import taken_over
from pipelines.devices import NO_GPU, on_gpus
from pipelines.elastic import Say
from pipelines.executors import start_ray
from pipelines.experiment import Experiment, InputError
from pipelines.follow import Follow, Told, Within
from pipelines.limits import Care, Limits
from pipelines.notice import Notice
from pipelines.origins import keep_origins
from pipelines.plans import CHECKPOINTS, FINISHED, PROGRESS, SETTLED, Plan, read
from pipelines.ranks import attended, received, sent, session_of, train_one
from pipelines.sections import Sweep
from pipelines.space import Draw
from pipelines.tracked import bury, let_go, mlflow_run, settle, settled, when_back
from pipelines.train import care_sent, there_is, until_ended
from pipelines.watch import watched
from tracking.mlflow_store import MlflowRun
from training.schedule import best_epoch, better, losses_like
from training.session import PreemptedError

STOPPED = "stopped.json"
LEAST = 3
"""Trials that a median is taken of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What became of a draw.

    Attributes:
        state: "finished", "stopped" (by the others' median) or "failed".
        epochs: How many it took.
        value: Of the metric in the best epoch; None when there is none.
        why: Of a failed one.
    """

    name: str
    draw: Draw
    run_id: str
    state: str
    epochs: int
    value: float | None
    why: str = ""


def sweep(
    draws: Sequence[Draw],
    plans: Sequence[Plan],
    clips: Sequence[Clip],
    *,
    experiment: Experiment,
    uri: str,
    metric: str,
    parent: MlflowRun,
    care: Care,
    told: Told,
    say: Say,
    within: Within | None = None,
) -> list[Trial]:
    """Try all draws; what is finished or was stopped is taken as it is.

    Args:
        draws: The settings of each trial.
        plans: Its run.
        clips: All clips of the dataset.
        experiment: Says how many at a time and when the median begins to count.
        uri: The tracking server.
        metric: "valid_loss" or "valid_METRIC".
        parent: The run that trials are children of.
        care: How they are looked after.
        told: Told of each epoch.
        say: Told what people should know.
        within: Told now and then where an epoch stands.

    Raises:
        TrainingFailedError: No trial was at work for too long, or the time for it is over.
    """
    bury(plans, uri)
    runs = [mlflow_run(plan, uri, experiment.name) for plan in plans]
    for number, run in enumerate(runs):
        run.set_tags({"mlflow.parentRunId": parent.run_id, "fuseline.trial": str(number)})
    pairs = list(zip(plans, runs, strict=True))
    keep_origins([pair for pair in pairs if not pair[0].finished], clips)
    with settled([pair for pair in pairs if not (pair[0].folder / SETTLED).is_file()]):
        for plan, run in pairs:
            if _history(plan) is None:
                run.go_on()
        with Follow(plans, told, say, within):
            errors = _tuned(
                plans, runs, experiment=experiment, uri=uri, metric=metric, care=care, say=say
            )
        trials = [
            _trial(number, draw, plan, run.run_id, metric=metric, error=errors[number])
            for number, (draw, (plan, run)) in enumerate(zip(draws, pairs, strict=True))
        ]
        for trial, (plan, run) in zip(trials, pairs, strict=True):
            when_back(partial(_tell, trial, plan, run, clips), say)
    return trials


def _tell(trial: Trial, plan: Plan, run: MlflowRun, clips: Sequence[Clip]) -> None:
    """Tell the server how a trial ended."""
    if trial.state != "finished":
        run.set_tags({"fuseline.ended": trial.state})
        run.finish("FAILED" if trial.state == "failed" else "KILLED")
        let_go(plan.folder)
    elif not (plan.folder / SETTLED).is_file():
        run.set_tags({"fuseline.ended": trial.state})  # it may have failed at first
        settle(plan, run, clips)


def best_of(trials: Sequence[Trial], metric: str) -> Trial | None:
    """The finished trial with the best value, the first of several; None when there is none."""
    done = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    return min(done, key=lambda each: losses_like([each.value or 0.0], metric)[0], default=None)


def _tuned(
    plans: Sequence[Plan],
    runs: Sequence[MlflowRun],
    *,
    experiment: Experiment,
    uri: str,
    metric: str,
    care: Care,
    say: Say,
) -> list[str]:
    """Train on Ray Tune; why each trial failed, empty for one that did not."""
    if experiment.sweep is None:
        raise InputError("there is no section sweep")
    start_ray(experiment.sweep.parallel)
    gpu_each = on_gpus(care.device)
    folder = experiment.work / "sweep" / "ray"
    # Nothing of Tune's own is gone on from: all that matters is in the runs' folders.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trials = [
        {
            "plan": sent(plan, run.run_id, taken_over(plan.folder)),
            "uri": uri,
            "metric": metric,
            "gpu": gpu_each,
        }
        for plan, run in zip(plans, runs, strict=True)
    ]
    tuner = _tuner(folder, trials, experiment.sweep, care, metric=metric, gpu_each=gpu_each)
    errors = [""] * len(plans)
    ended: list[Any] = []

    def tried() -> None:
        results = tuner.fit()
        ended.extend(results[at] for at in range(len(results)))

    room = f"1 trial with 1 CPU{' and 1 GPU' if gpu_each else ''}"
    limits = Limits(folder, room, care, found=there_is, say=say)
    failure, _ = until_ended(tried, folder, limits, None, say)
    if failure is not None:
        raise failure
    for result in ended:
        number = (result.config or {})["number"]
        if result.error is not None:
            errors[number] = str(result.error).strip().splitlines()[-1].strip()
        elif not plans[number].finished:
            _note_stopped(plans[number])
    return errors


def _tuner(
    folder: Path,
    trials: Sequence[Mapping[str, Any]],
    settings: Sweep,
    care: Care,
    *,
    metric: str,
    gpu_each: bool,
) -> Any:  # noqa: ANN401 - of Ray
    # Each result would be written three times over, for nobody.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # And it prints a heading and a path between our lines, also with `verbose=0` (2.60.0).
    # Held by test_a_trial_that_falls_behind_is_stopped_and_a_second_sweep_trains_nothing; may go
    # when it does not.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    from ray import tune
    from ray.tune.schedulers import MedianStoppingRule

    way = "min" if better(metric) == "lower" else "max"
    told = care_sent(care, folder)
    work, stop = attended(partial(_try, trials=trials, care=told), folder), Path(told["stop"])

    def tried(config: dict[str, Any]) -> None:
        if not stop.exists():  # those at work save and end; nothing is begun any more
            work(config)

    return tune.Tuner(
        tune.with_resources(tried, {"cpu": 1, "gpu": int(gpu_each)}),
        param_space={"number": tune.grid_search(list(range(len(trials))))},
        tune_config=tune.TuneConfig(
            metric=metric,
            mode=way,
            max_concurrent_trials=settings.parallel,
            scheduler=MedianStoppingRule(
                time_attr="training_iteration",
                grace_period=settings.grace,
                min_samples_required=LEAST,
            ),
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(folder.resolve()),
            failure_config=tune.FailureConfig(max_failures=care.max_failures),
            verbose=0,
        ),
    )


def _note_stopped(plan: Plan) -> None:
    publish(plan.folder / STOPPED, canonical_json({"history": _told(plan)}))


def _told(plan: Plan) -> list[Mapping[str, float]]:
    """The metrics of each epoch that a run told; after a resume the later word holds."""
    file = plan.folder / PROGRESS
    lines = file.read_bytes().splitlines() if file.is_file() else []
    entries = [json.loads(line) for line in lines]
    epochs = {entry["epoch"]: entry["metrics"] for entry in entries if "epoch" in entry}
    return [epochs[number] for number in sorted(epochs)]


def _history(plan: Plan) -> list[Mapping[str, float]] | None:
    """What is known of a trial that ended; None of one that has to be trained."""
    for name in (FINISHED, STOPPED):
        if (plan.folder / name).is_file():
            found: list[Mapping[str, float]] = json.loads((plan.folder / name).read_bytes())[
                "history"
            ]
            return found
    return None


def _try(
    config: dict[str, Any], trials: Sequence[Mapping[str, Any]], care: Mapping[str, Any]
) -> None:
    """What a trial does, in a process of its own: one rank, looked after as others are."""
    trial, stop = trials[config["number"]], Path(care["stop"])
    if not trial["gpu"]:
        os.environ.update(NO_GPU)  # before anything looks for one
    import torch
    from ray import tune

    plan, metric = received(trial["plan"]), trial["metric"]
    ended = _history(plan)
    if ended is not None:
        for epoch in ended:
            tune.report({metric: epoch[metric]})
        return
    torch.set_num_threads(1)
    for epoch in _resumed(plan):
        tune.report({metric: epoch[metric]})
    notice = Notice(lambda: None)  # Ray Tune hears of no machine that is to be taken away
    try:
        with watched(plan.folder, 0, care["hang_s"], care["stall_s"]) as watch:
            train_one(
                plan,
                session_of(trial["plan"], care, 0, 1, watch=watch, notice=notice),
                trial["uri"],
                trial["plan"]["run_id"],
                lambda epoch: tune.report({metric: epoch[metric]}),
            )
    except PreemptedError:
        if not stop.exists():  # its process was told to end; it is started again elsewhere
            raise
    finally:
        notice.end()


def _resumed(plan: Plan) -> list[Mapping[str, float]]:
    """The epochs that a trial which was cut short will not tell again."""
    from training.checkpoint import problem_of, read_marker, standing

    for folder in standing(plan.folder / CHECKPOINTS):
        if not problem_of(folder):
            found: list[Mapping[str, float]] = read_marker(folder)["about"]["state"]["history"]
            return found
    return []


def _trial(number: int, draw: Draw, plan: Plan, run_id: str, *, metric: str, error: str) -> Trial:
    state = "failed" if error else "finished" if plan.finished else "stopped"
    history = list(read(plan).history) if plan.finished else _told(plan)
    monitor = plan.recipe.monitor
    value = None
    if history:
        best = best_epoch([epoch[monitor] for epoch in history], monitor)
        value = float(history[best][metric])
    return Trial(
        name=f"trial {number}",
        draw=draw,
        run_id=run_id,
        state=state,
        epochs=len(history),
        value=value,
        why=error,
    )
