"""The whole way of a published experiment: clips, features, every model on every fold and seed.

All of its steps are those of any experiment, so that what was finished is taken as it is, and a
command that was killed goes on where it was.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from featurizers.clip import Clip
from featurizers.spec import canonical_json
from featurizers.store import publish
from pipelines.corpus import read_notes
from pipelines.experiment import Experiment, InputError, outline, parse, replaced
from pipelines.plans import Trained, score_test
from pipelines.reproduce.corpora import Data, Prepare, dataset_of, name_of, prepare
from pipelines.reproduce.differences import differences, lost
from pipelines.reproduce.outcome import Measured, Outcome, markdown, summed, to_json, value_of
from pipelines.reproduce.protocol import ChosenOn, Model, Protocol, wanted
from pipelines.results import made_by_of
from pipelines.run import featurize_all, ingest_all, store_uri, train_all
from pipelines.show import Show
from pipelines.sources import task_of
from pipelines.tracked import run_of, when_back
from tracking.mlflow_store import initialise
from training.folds import ON_TEST
from training.recipe import Recipe, Task

TABLE_MD, TABLE_JSON = "table.md", "table.json"
FOLDER = "reproduced"

_SECTIONS = ("features", "model", "train", "workers", "shards", "cache", "max_dropped")
_OPTIONS = "source.options."
_NOT_HERE = ("model.recipe", "train.seeds", "train.folds", "train.fold")
_NO_NUMBERS = ("workers.", "cache.")
"""Settings that decide no number; of ranks the last digits."""

_Learned: TypeAlias = dict[tuple[str, str, int], Path]
"""By recipe, fold and seed: the folder of the weights that a run learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be done of a protocol, and how.

    Attributes:
        data: The folder of the corpus, or of its published features.
        folder: Below which the dataset and the tables go; also where the tracking store is.
        seeds: How many; None for the protocol's.
        models: Names of recipes; all of the protocol where there is none.
        settings: key=value as with `--set`; a key may begin with the recipe that it is for.
    """

    data: Path
    folder: Path
    seeds: int | None = None
    models: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


def reproduce(
    protocol: Protocol, wish: Wish, show: Show, prepared: Prepare = prepare
) -> tuple[Outcome, Path]:
    """Do all that is not done yet, and keep the table beside the published figures.

    Returns:
        What it came to, and the folder of the tables.

    Raises:
        InputError: A setting, a model or the data are wrong.
    """
    models = wanted(protocol, wish.models)
    settings = _settings(protocol, models, wish.settings)
    data = prepared(protocol, wish.data, wish.folder, show)
    if data.itself and protocol.own_split:
        protocol = replace(protocol, split=protocol.own_split, folds=protocol.own_folds)
    models, left_out = _possible(models, data, wish.models)
    data = replace(data, features=_needed(data, models))
    base = _experiment(protocol, data, wish.folder, settings[""], None)
    # Before hours of featurizing: a wrong setting shows here.
    experiments = {
        model.recipe: _experiment(protocol, data, wish.folder, settings[model.recipe], model)
        for model in models
    }
    clips = ingest_all(base, show)
    _check_folds(protocol, clips)
    task = task_of(base, clips)
    columns = featurize_all(base, show)
    runs: list[Measured] = []
    for chosen_on in _choices(protocol):
        learned: _Learned = {}
        for model in models:
            experiment = experiments[model.recipe]
            seeds = range(protocol.seeds if wish.seeds is None else wish.seeds)
            recipes = [
                _begun(each, model, learned, experiment.folder)
                for each in _recipes(experiment, protocol, task, seeds, chosen_on)
            ]
            trained = train_all(experiment, recipes, columns, clips, show)
            for each in trained:
                recipe = each.plan.recipe
                learned[model.recipe, recipe.fold, recipe.seed] = each.predictor
                runs.append(_measured(protocol, model, chosen_on, each, clips))
    counts = _counts(protocol, task.label, clips)
    outcome = Outcome(
        protocol=protocol,
        changes=(
            *_changes(protocol, wish, data),
            *differences(protocol, models, data.widths, counts, clips),
            *lost(read_notes(base), clips, columns.values()),
        ),
        clips=counts,
        data=(*data.notes, *left_out, *_wrong(base)),
        runs=tuple(runs),
    )
    return outcome, _keep(base, outcome, name_of(protocol, data.mark), show)


def _choices(protocol: Protocol) -> tuple[ChosenOn, ...]:
    return ("valid", "test") if protocol.best_on_test else ("valid",)


def _settings(
    protocol: Protocol, models: Sequence[Model], settings: Sequence[str]
) -> dict[str, list[str]]:
    """By recipe, and "" for the features of all, the settings that were asked for.

    Raises:
        InputError: One of them is not to be set here.
    """
    names = [model.recipe for model in protocol.models]
    found: dict[str, list[str]] = {"": [], **{model.recipe: [] for model in models}}
    for setting in settings:
        first, _, rest = setting.partition(".")
        own = first in names
        key = (rest if own else setting).partition("=")[0]
        section = key.partition(".")[0]
        known = section in _SECTIONS or key.startswith(_OPTIONS)
        if not known or key in _NOT_HERE:
            raise InputError(
                f"--set {setting}: {protocol.name} has its own {key or 'settings'}; settings of "
                f"{', '.join(_SECTIONS)} and {_OPTIONS[:-1]} can be replaced, for one model with "
                f"its recipe before them, as in {names[-1]}.train.epochs=2"
            )
        if own and section not in ("model", "train"):
            raise InputError(f"--set {setting}: {section} is that of all models; leave out {first}")
        for name, those in found.items():
            of_all = not own and (name or section not in ("model", "train"))
            if of_all or (own and name == first):
                those.append(rest if own else setting)
    return found


def _possible(
    models: Sequence[Model], data: Data, asked: Sequence[str]
) -> tuple[list[Model], list[str]]:
    """The models that can be trained on the data, and why the others cannot."""
    why = {model.recipe: _lacking(model, data) for model in models}
    if refused := [name for name in asked if why[name]]:
        raise InputError(f"{refused[0]} wants {why[refused[0]]}")
    possible = [model for model in models if not why[model.recipe]]
    if not possible:
        has = ", ".join(data.features)
        raise InputError(f"the data have {has}; no model of this experiment can do with that")
    return possible, [f"{name} is left out: it wants {each}" for name, each in why.items() if each]


def _lacking(model: Model, data: Data) -> str:
    """What the data do not have for a model; empty where it can be trained."""
    if lacks := [stream for stream in model.streams if stream not in data.features]:
        return f"{', '.join(lacks)}, and the data have {', '.join(data.features)}"
    if model.time_base == "one" and data.pooling.get("kind") == "own":
        return "streams that share their steps, and those of the data are not aligned"
    return ""


def _needed(data: Data, models: Sequence[Model]) -> dict[str, Mapping[str, Any]]:
    """The features that some model reads: others may take days."""
    streams = {stream for model in models for stream in model.streams}
    return {stream: section for stream, section in data.features.items() if stream in streams}


def _experiment(
    protocol: Protocol, data: Data, folder: Path, settings: Sequence[str], model: Model | None
) -> Experiment:
    """The experiment of one model; without one, of the features of all."""
    plain: dict[str, Any] = {
        "dataset": dataset_of(protocol, data.mark),
        "source": {**data.source, "task": protocol.task},
        "features": {stream: dict(section) for stream, section in data.features.items()},
        "train": {"folds": protocol.folds},
    }
    if model is None:
        plain["model"] = {"recipe": protocol.models[-1].recipe}
    else:
        plain["model"] = {"recipe": model.recipe, **model.settings}
        if data.pooling and model.time_base != "recipe":
            plain["train"]["pooling"] = dict(data.pooling)
        plain["train"] |= model.train
    plain = replaced(plain, settings)
    streams = data.features if model is None else model.streams
    plain["features"] = {stream: plain["features"][stream] for stream in streams}
    if model is None:
        return outline(plain, folder, protocol.name)
    return parse(plain, folder, f"{protocol.name}, {model.recipe}")


def _check_folds(protocol: Protocol, clips: Sequence[Clip]) -> None:
    found = {clip.fold for clip in clips if clip.fold is not None}
    if protocol.folds and found != set(range(1, protocol.folds + 1)):
        raise InputError(
            f"the data have clips of folds {', '.join(map(str, sorted(found))) or 'none'}, and "
            f"{protocol.name} wants {protocol.folds}: {protocol.split}; is all of the corpus there?"
        )


def _recipes(
    experiment: Experiment,
    protocol: Protocol,
    task: Task,
    seeds: Sequence[int],
    chosen_on: ChosenOn,
) -> list[Recipe]:
    """One for each fold and seed, without weights to start from."""
    folds = [f"{i + 1}/{protocol.folds}" for i in range(protocol.folds)] or [""]
    recipes = [
        replace(experiment.recipe(task, seed), fold=fold) for fold in folds for seed in seeds
    ]
    if chosen_on == "test":
        return [
            replace(recipe, fold=f"{recipe.fold}{ON_TEST}", monitor=protocol.monitor)
            for recipe in recipes
        ]
    return recipes


def _begun(recipe: Recipe, model: Model, learned: _Learned, folder: Path) -> Recipe:
    """A recipe that starts from what earlier models learned on its fold with its seed."""
    from training.start import pinned

    files = {
        part: str(learned[name, recipe.fold, recipe.seed].resolve())
        for part, name in model.start.items()
    }
    return replace(recipe, start=pinned(files, folder)) if files else recipe


def _measured(
    protocol: Protocol, model: Model, chosen_on: ChosenOn, trained: Trained, clips: Sequence[Clip]
) -> Measured:
    card = score_test(trained, clips, parity=None)
    recipe = trained.plan.recipe
    return Measured(
        recipe=model.recipe,
        chosen_on=chosen_on,
        seed=recipe.seed,
        fold=recipe.fold.removesuffix(ON_TEST),
        run_id=trained.run_id,
        digest=trained.plan.folder.name,
        best_epoch=trained.best_epoch + 1,
        epochs=len(trained.history),
        clips=card.count,
        evaluation_set=card.evaluation_set,
        values={metric.title: value_of(metric, card) for metric in protocol.metrics},
        made_by=_made_by(trained),
    )


def _made_by(trained: Trained) -> dict[str, str]:
    latency = trained.latency
    hardware = {} if latency is None else {"hardware": latency.machine}
    return {**made_by_of(trained.plan.folder), **hardware}


def _changes(protocol: Protocol, wish: Wish, data: Data) -> list[str]:
    """What is not as the protocol says."""
    said = ["the features"] if data.itself and protocol.not_theirs else []
    if wish.seeds is not None and wish.seeds != protocol.seeds:
        said.append(f"{wish.seeds} seed(s), not {protocol.seeds}")
    said += [each for each in wish.settings if not each.startswith(_NO_NUMBERS)]
    asked = wanted(protocol, wish.models)
    if others := [each.recipe for each in protocol.models if each not in asked]:
        said.append(f"without {', '.join(others)}")
    return said


def _wrong(experiment: Experiment) -> list[str]:
    """How much of a corpus is wrong, by what that is; reading it wrote down each."""
    found = Counter(note.kind for note in read_notes(experiment))
    return [f"{count} notes of the kind {kind!r} on the corpus" for kind, count in found.items()]


def _counts(protocol: Protocol, label: str, clips: Sequence[Clip]) -> dict[str, int]:
    labelled = [clip for clip in clips if label in clip.labels]
    if protocol.folds:
        count = Counter(f"fold {clip.fold}" for clip in labelled if clip.fold is not None)
        return dict(sorted(count.items()))
    splits = Counter(clip.split for clip in labelled)
    return {name: splits[name] for name in ("train", "valid", "test")}


def _keep(experiment: Experiment, outcome: Outcome, name: str, show: Show) -> Path:
    """Write the tables, and keep them with a run of the tracking server.

    A result that differs from the protocol has a folder and a run of its own.
    """
    own = hashlib.sha256(canonical_json(list(outcome.changes))).hexdigest()[:8]
    name += f"-{own}" if outcome.changes else ""
    folder = experiment.work.parent / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    publish(folder / TABLE_MD, markdown(outcome).encode())
    publish(folder / TABLE_JSON, json.dumps(to_json(outcome), indent=1).encode())
    when_back(partial(_log, experiment, outcome, folder, name), show.say)
    return folder


def _log(experiment: Experiment, outcome: Outcome, folder: Path, name: str) -> None:
    uri = store_uri(experiment)
    initialise(uri, experiment.folder / "mlartifacts")
    tags = {
        "fuseline.reproduces": outcome.protocol.name,
        "fuseline.differs": "; ".join(outcome.changes),
    }
    run = run_of(folder, uri, experiment.name, f"reproduce {name}", tags)
    run.log_metrics(_numbers(outcome), step=0)
    for file in (TABLE_MD, TABLE_JSON):
        run.log_file(folder / file)
    run.finish()


def _numbers(outcome: Outcome) -> dict[str, float]:
    """The means, by the model and the metric, for the tracking server."""
    numbers = {}
    for recipe, chosen_on in dict.fromkeys((run.recipe, run.chosen_on) for run in outcome.runs):
        runs = [r for r in outcome.runs if (r.recipe, r.chosen_on) == (recipe, chosen_on)]
        marked = "_best_on_test" if chosen_on == "test" else ""
        for metric in outcome.protocol.metrics:
            name = "_".join(each for each in (metric.label, metric.name) if each)
            numbers[f"{recipe}{marked}_{name}"] = summed(metric, runs).mean
    return numbers
