"""What each fusion model makes of the generated corpus, and what a missing modality costs it.

The corpus is made up (`pipelines.demo`): the sign of its label follows from words, face and voice
together. All models that start from raw clips are trained on the same features by their recipes, as
`fuseline train` does it, once for each seed, and scored on the test clips: as they are, and with
one modality taken away from all of them. `decision_product` is for classes, and learns the sign.
Run again in the same folder, what is finished is taken as it is.

    python benchmarks/corpus.py [--quick] [--folder FOLDER] [--seeds 3] [--epochs 40]
"""

import argparse
import json
import platform
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from featurizers.clip import Clip
from featurizers.dataset import write_clips
from featurizers.manifest import Column
from pipelines.demo import FULL_SIZE
from pipelines.executors import executor
from pipelines.experiment import Experiment, parse, recipe_of
from pipelines.plans import Trained, score_test
from pipelines.run import demo_settings, featurize_all, ingest_all, train_all, write_corpus
from pipelines.show import Show
from tracking.provenance import git_commit, versions
from training.recipe import Recipe, Task

HOME = Path(__file__).resolve().parent.parent
FUSED = (
    "mmlatch",
    "mult",
    "msaf",
    "late_fusion",
    "early_fusion",
    "decision_average",
    "tfn",
    "lmf",
)
SCORE = Task(kind="regression", label="sentiment")
SIGN = Task(kind="classes", label="sign", classes=("negative", "positive"))
METRIC = "acc2_non0"  # no label of the corpus is 0, so it is the accuracy of the sign as well
MORE = ("mae", "corr")
QUICK = {"clips": 64, "seeds": 1, "epochs": 2}


def main() -> None:
    """Print the table, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="64 clips, 1 seed, 2 epochs")
    parser.add_argument("--folder", type=Path, default=HOME / "runs" / "corpus")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    given = parser.parse_args()
    clips, seeds, epochs = QUICK.values() if given.quick else (FULL_SIZE, given.seeds, given.epochs)
    folder = given.folder.resolve() / str(clips)
    folder.mkdir(parents=True, exist_ok=True)
    rows = measured(folder, clips, seeds, epochs)
    figures = {name: _over_seeds(found) for name, found in rows.items()}
    for line in _table(figures):
        print(line)
    used = {**versions(["torch", "deepspeed"]), "python": platform.python_version()}
    about = {"commit": git_commit(HOME), "versions": used}
    print(json.dumps({"benchmark": "corpus", "quick": given.quick, "figures": figures, **about}))


def measured(
    folder: Path, clips: int, seeds: int, epochs: int
) -> dict[str, list[Mapping[str, float]]]:
    """For each model, what was found with each seed."""
    show = Show()
    experiment = parse(demo_settings("corpus", "corpus"), folder, "corpus")
    write_corpus(folder / "corpus", executor(experiment.workers.featurize), clips, True, show)
    table = ingest_all(experiment, show)
    columns = featurize_all(experiment, show)
    recipes = list(_recipes(SCORE, (*FUSED, *columns), columns, seeds, epochs))
    trained = train_all(experiment, recipes, columns, table, show)
    rows = _scored(trained, table)
    signs, signed = _with_signs(experiment, table)
    recipes = list(_recipes(SIGN, ("decision_product",), columns, seeds, epochs))
    trained = train_all(signs, recipes, columns, signed, show)
    return rows | _scored(trained, signed)


def _recipes(
    task: Task, names: Sequence[str], streams: Mapping[str, Column], seeds: int, epochs: int
) -> Iterator[Recipe]:
    """A recipe for each name and seed; the name of a stream is that stream alone."""
    for name in names:
        alone = name in streams
        for seed in range(seeds):
            yield recipe_of(
                "unimodal" if alone else name,
                task,
                (name,) if alone else tuple(streams),
                seed=seed,
                model={},
                train={"epochs": epochs},
            )


def _with_signs(experiment: Experiment, table: Sequence[Clip]) -> tuple[Experiment, list[Clip]]:
    """The same dataset once more, with the label's sign as a label of two classes."""
    signs = experiment.model_copy(update={"dataset": f"{experiment.dataset}-signs"})
    signed = [
        replace(clip, labels={**clip.labels, SIGN.label: SIGN.classes[score > 0]})
        if (score := clip.labels.get(SCORE.label)) is not None
        else clip
        for clip in table
    ]
    shutil.copytree(str(experiment.root), str(signs.root), dirs_exist_ok=True)
    write_clips(signs.root, signed)
    return signs, signed


def _scored(
    trained: Sequence[Trained], table: Sequence[Clip]
) -> dict[str, list[Mapping[str, float]]]:
    """Metrics on the test clips, whole and with each stream missing, by model and then by seed."""
    rows: dict[str, list[Mapping[str, float]]] = {}
    for each in trained:
        recipe, card = each.plan.recipe, score_test(each, table, parity=None)
        right = "accuracy" if recipe.task == SIGN else METRIC
        found = {METRIC: card.metrics[right]}
        found |= {name: card.metrics[name] for name in MORE if name in card.metrics}
        found |= {f"without {part.streams[0]}": part.metrics[right] for part in card.as_asked}
        name = recipe.model.streams[0] if recipe.name == "unimodal" else recipe.name
        rows.setdefault(name, []).append(found)
    return rows


def _over_seeds(found: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Mean and standard deviation of each figure over the seeds."""
    return {
        name: [statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0]
        for name in found[0]
        if (values := [each[name] for each in found])
    }


def _table(figures: Mapping[str, Mapping[str, Sequence[float]]]) -> Iterator[str]:
    shown = [METRIC, *MORE]
    shown += sorted({name for each in figures.values() for name in each if "without" in name})
    yield "".join(f"{name:>18}" for name in ["", *shown])
    for model, found in figures.items():
        cells = [
            f"{found[name][0]:.3f} +- {found[name][1]:.3f}" if name in found else ""
            for name in shown
        ]
        yield "".join(f"{cell:>18}" for cell in [model, *cells])
    alone = {model: found for model, found in figures.items() if "without text" not in found}
    best = max(alone, key=lambda model: alone[model][METRIC][0])
    bar = alone[best][METRIC][0]
    more = [f"{m} {f[METRIC][0] - bar:+.3f}" for m, f in figures.items() if m not in alone]
    yield f"{METRIC} over {best} alone ({bar:.3f}): {', '.join(more)}"


if __name__ == "__main__":
    main()
