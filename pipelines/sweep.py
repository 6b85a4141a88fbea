"""A search for settings: trials drawn from the experiment's space, and what they came to."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from featurizers.clip import Clip
from featurizers.manifest import Column
from featurizers.store import publish
from pipelines.experiment import Experiment, FailedError
from pipelines.family import Family, at_work, end, parent_of
from pipelines.run import care_of, check_usable, planned, store_uri
from pipelines.show import Show
from pipelines.space import Draw, flags
from pipelines.tracked import when_back
from pipelines.trials import Trial, best_of, sweep
from tracking.mlflow_store import initialise
from training.recipe import Recipe
from training.schedule import losses_like


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep came to: its table, the best first, and the best settings for `--set`."""

    metric: str
    rows: Sequence[Mapping[str, object]]
    best: Sequence[str]


def sweep_all(
    experiment: Experiment,
    trials: Sequence[tuple[Draw, Recipe]],
    columns: Mapping[str, Column],
    clips: Sequence[Clip],
    show: Show,
) -> Swept:
    """Try settings that were drawn; what is finished or was stopped is taken as it is."""
    show.head("sweep")
    recipes = [recipe for _, recipe in trials]
    check_usable(recipes[0], clips, columns)
    plans = [
        replace(
            planned(experiment, columns, recipe, clips),
            name=f"trial {number}",
        )
        for number, recipe in enumerate(recipes)
    ]
    uri, monitor = store_uri(experiment), recipes[0].monitor
    metric = (experiment.sweep.metric if experiment.sweep else "") or monitor
    initialise(uri, experiment.folder / "mlartifacts")
    family = parent_of(plans, uri, experiment.name, f"sweep of {len(plans)} trials")
    with at_work(family):
        with show.training(len(plans), max(recipe.epochs for recipe in recipes)) as told:
            found = sweep(
                [drawn for drawn, _ in trials],
                plans,
                clips,
                experiment=experiment,
                uri=uri,
                metric=metric,
                parent=family.run,
                care=care_of(experiment),
                told=told,
                say=show.say,
                within=told.within,
            )
        rows, best = table(found, metric), best_of(found, metric)
        show.rows(f"{len(found)} trials by {metric}, of run {family.run.run_id}", rows)
        chosen = [] if best is None else flags(best.draw)
        content = {"metric": metric, "trials": rows, "best": chosen}
        file = _kept(experiment.work, content, family, show)
    if chosen:
        show.say(f"best: {' '.join(f'--set {each}' for each in chosen)}")
    show.say(f"kept in {file}")
    failed = [trial for trial in found if trial.state == "failed"]
    if failed:
        raise FailedError(
            f"{len(failed)} of {len(found)} trials failed, the first is {failed[0].name}: "
            f"{failed[0].why}; the same command tries them again"
        )
    return Swept(metric=metric, rows=rows, best=chosen)


def table(trials: Sequence[Trial], metric: str) -> list[dict[str, object]]:
    """The table of a sweep, the best value first."""
    ordered = sorted(
        trials,
        key=lambda each: losses_like([float("nan") if each.value is None else each.value], metric),
    )
    return [
        {
            "trial": trial.name,
            **trial.draw,
            metric: trial.value,
            "epochs": trial.epochs,
            "state": trial.state,
            "run": trial.run_id,
        }
        for trial in ordered
    ]


def _kept(folder: Path, content: Mapping[str, object], family: Family, show: Show) -> Path:
    """Write what a sweep came to, beside the runs and with its parent."""
    file = folder / "sweep" / "sweep.json"
    publish(file, json.dumps(content, indent=1).encode())
    when_back(partial(end, family, file), show.say)
    return file
