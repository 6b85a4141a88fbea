"""How many raw clips a registered model scores in a second, and what that costs over featurizing.

Two sides go over the same generated clips, in turns, each after a clip that is not counted:

- *score*: what `fuseline score` does of a table once its model is loaded: a process with its
  own code decodes, featurizes, pools, normalises and predicts, a clip at a time, and answers;
- *featurizing alone*: the same words, decoding and features by the same code in this process, all
  clips in one go, and nothing done with them.

Each has one decoding child beside it, and decodes ahead. What `score` says is held against what the
features of the other side give, to the last bit, before any figure is printed. `to_featurizing` is
the speed of scoring over that of featurizing alone: 1 would be scoring for nothing.

    python benchmarks/score.py [--quick]
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from featurizers import catalog
from featurizers.decoder import Decoder
from featurizers.extract import Outcome, extract_all
from featurizers.intake import take_in
from featurizers.stages import Stages
from pipelines import HOME as PACKAGES
from pipelines.demo import make_corpus
from pipelines.model_process import ModelProcess
from pipelines.packaging import example, inputs_of, outputs_of, requirements_of, specs_of
from pipelines.score import TOGETHER
from pipelines.scoring import rows_of_table
from tracking.mlflow_store import initialise, log_model, start_run
from tracking.provenance import git_commit, versions
from training.models import build
from training.normaliser import Normaliser
from training.predict import Predictor
from training.recipe import Task
from training.recipes import named
from training.rows import Access, Asked, checked

HOME = Path(__file__).resolve().parent.parent
FEATURES = {
    "text": catalog.build("hashed-words"),
    "audio": catalog.build("logmel", hop_ms=10),
    "video": catalog.build("face-motion", fps=5),
}
CLIPS, ROUNDS = 200, 5
QUICK_CLIPS, QUICK_ROUNDS = 24, 3


def main() -> None:
    """Print the table, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CLIPS} clips")
    given = parser.parse_args()
    clips, rounds = (QUICK_CLIPS, QUICK_ROUNDS) if given.quick else (CLIPS, ROUNDS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_corpus(folder / "corpus", clips=clips)
        rows = rows_of_table(folder / "corpus" / "clips.csv")
        uri, model = logged(folder)
        began = time.perf_counter()
        with ModelProcess(uri, model) as process:
            process.predict(rows[:1])
            started = time.perf_counter() - began
            figures = raced(process, Predictor.load(folder / "predictor"), rows, rounds)
    figures["seconds_to_first_answer"] = round(started, 2)
    for name, value in figures.items():
        print(f"{name:32} {value:10.3f}")
    used = {**versions(["av", "mlflow", "numpy", "torch"]), "python": platform.python_version()}
    about = {"commit": git_commit(HOME), "versions": used}
    print(json.dumps({"benchmark": "score", "quick": given.quick, "figures": figures, **about}))


def logged(folder: Path) -> tuple[str, str]:
    """A store, and the address of a model of fresh weights in it."""
    recipe = named("mmlatch", Task(kind="regression", label="sentiment"), list(FEATURES))
    specs = {name: featurizer.spec for name, featurizer in FEATURES.items()}
    widths = {name: spec.width for name, spec in specs.items()}
    torch.manual_seed(0)
    Predictor.save(
        folder / "predictor",
        recipe=recipe,
        specs=specs,
        normaliser=Normaliser.identity(widths),
        fallback=0.0,
        weights=build(recipe.model, widths, recipe.task.outputs).state_dict(),
    )
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    initialise(uri, folder / "mlartifacts")
    model = log_model(
        start_run(uri, "benchmark", "score", {}),
        folder / "predictor",
        name="model",
        code=[PACKAGES / "featurizers", PACKAGES / "training"],
        inputs=inputs_of(specs_of(folder / "predictor")),
        outputs=outputs_of(recipe.task),
        requirements=requirements_of(recipe, specs),
        example=example(),
    )
    return uri, model


def raced(
    process: ModelProcess, predictor: Predictor, rows: Sequence[Mapping[str, Any]], rounds: int
) -> dict[str, float]:
    """Both sides in turns; the figures."""
    featurized(rows[:1])
    scoring, featurizing = list[float](), list[float]()
    said: list[dict[str, Any]] = []
    found: list[tuple[Asked, dict[str, Outcome]]] = []
    for _ in range(rounds):
        began = time.perf_counter()
        said = [
            answer
            for first in range(0, len(rows), TOGETHER)
            for answer in process.predict(rows[first : first + TOGETHER])
        ]
        scoring.append(time.perf_counter() - began)
        began = time.perf_counter()
        found = featurized(rows)
        featurizing.append(time.perf_counter() - began)
    compare(predictor, rows, said, found)
    ratios = [alone / whole for whole, alone in zip(scoring, featurizing, strict=True)]
    return {
        "clips_per_s": round(len(rows) / statistics.median(scoring), 2),
        "featurized_clips_per_s": round(len(rows) / statistics.median(featurizing), 2),
        "to_featurizing": round(statistics.median(ratios), 3),
        "overhead_ms_per_clip": round(
            1000
            * statistics.median(
                (whole - alone) / len(rows)
                for whole, alone in zip(scoring, featurizing, strict=True)
            ),
            2,
        ),
    }


def featurized(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Asked, dict[str, Outcome]]]:
    """The features of raw clips, and nothing else."""
    asked = checked(rows, {}, Access(), pooled_to_words=True)
    with tempfile.TemporaryDirectory() as scratch, Decoder() as decoder:
        clips = [
            take_in(row.raw(f"row-{number}", Path(scratch)), decoder, digests=False)
            for number, row in enumerate(asked)
        ]
        found = extract_all(
            clips,
            lambda clip: Path(clip.media),
            list(FEATURES.values()),
            decoder,
            Stages(),
        )
        return [
            (row, dict(zip(FEATURES, outcomes, strict=True)))
            for row, outcomes in zip(asked, found, strict=True)
        ]


def compare(
    predictor: Predictor,
    rows: Sequence[Mapping[str, Any]],
    said: Sequence[Mapping[str, Any]],
    found: Sequence[tuple[Asked, dict[str, Outcome]]],
) -> None:
    """What `score` said must be what the other side's features give, in every bit."""
    told = predictor.explain(rows)
    for answer, whole, (row, outcomes) in zip(said, told, found, strict=True):
        if answer["state"] != "scored":
            continue
        brought: dict[str, Any] = {"id": row.id}
        if whole["words"]:
            brought["times:words"] = [times for _, *times in whole["words"]]
        for name, outcome in outcomes.items():
            if outcome.feature is not None:
                brought[f"features:{name}"] = outcome.feature.values
                brought[f"times:{name}"] = outcome.feature.times
        (again,) = predictor.predict([brought])
        if whole["words"] and again["prediction"] != answer["prediction"]:
            raise SystemExit(f"the sides differ in {row.id}")


if __name__ == "__main__":
    main()
