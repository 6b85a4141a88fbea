"""A trained run as a model that others load: what it takes and gives, what it needs, an example."""

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from featurizers import catalog
from featurizers.imported import is_imported
from featurizers.intake import CHOSEN
from featurizers.media import encode
from featurizers.spec import FeatureSpec, canonical_json
from featurizers.store import publish
from pipelines import HOME
from pipelines.plans import Trained
from tracking.mlflow_store import MlflowRun, log_model
from tracking.provenance import versions
from training.recipe import Recipe, Task
from training.rows import BYTES, FEATURES, STREAM, TIMES, WORDS

REQUIREMENTS = (
    "av",
    "charset-normalizer",
    "mlflow",
    "numpy",
    "pandas",
    "psutil",
    "safetensors",
    "torch",
)
ENCODERS = ("huggingface-hub", "pyyaml", "tokenizers", "transformers")
INPUTS = (
    ("media", "string", False),
    (BYTES, "binary", False),
    ("transcript", "string", False),
    ("transcript_file", "string", False),
    ("start", "double", False),
    ("end", "double", False),
    *((name, "string", False) for name in CHOSEN),
    ("id", "string", False),
)
EXAMPLE_S = 1.0


def logged(trained: Trained, run: MlflowRun) -> str:
    """The address of the run's model, logged once."""
    file = trained.plan.folder / "model.json"
    if file.is_file():
        return str(json.loads(file.read_bytes())["model_uri"])
    specs = specs_of(trained.predictor)
    recipe = trained.plan.recipe
    model_uri = log_model(
        run,
        trained.predictor,
        name="model",
        code=[HOME / "featurizers", HOME / "training"],
        inputs=inputs_of(specs),
        outputs=outputs_of(recipe.task),
        requirements=requirements_of(recipe, specs),
        example=example_of(specs),
    )
    publish(file, canonical_json({"model_uri": model_uri}))
    return model_uri


def specs_of(predictor: Path) -> dict[str, FeatureSpec]:
    """The specs of a predictor's streams."""
    about = json.loads((predictor / "predictor.json").read_bytes())
    return {name: FeatureSpec.from_json(plain) for name, plain in about["specs"]}


def requirements_of(recipe: Recipe, specs: dict[str, FeatureSpec]) -> list[str]:
    """What pip must install to load and run the model, in the versions of this machine.

    Neither Ray nor DeepSpeed are of it, nor what features alone need that the model does not read.
    """
    names = list(REQUIREMENTS)
    if recipe.model.encoders or any(catalog.is_encoder(spec.name) for spec in specs.values()):
        names += ENCODERS
    names += [each for spec in specs.values() for each in catalog.packages(spec.name)]
    # A build tag such as +cpu names no release that others could install.
    return [
        f"{name}=={version.split('+')[0]}"
        for name, version in versions(dict.fromkeys(names)).items()
    ]


def inputs_of(specs: dict[str, FeatureSpec]) -> list[tuple[str, str, bool]]:
    """The columns that a model takes: clips as they are, or its features."""
    reads = sorted({name for spec in specs.values() for name in spec.reads})
    streams = [name for name in reads if name.startswith(STREAM)]
    files = [
        each
        for name in streams
        for each in ((name, "string", False), (f"{name}:hz", "double", False))
    ]
    computed = [
        (f"{prefix}{name}", "matrix", False) for name in specs for prefix in (FEATURES, TIMES)
    ]
    return [*INPUTS, *files, *computed, (WORDS, "matrix", False)]


def outputs_of(task: Task) -> Sequence[tuple[str, str]]:
    """The columns that a model gives."""
    kind = "double" if task.kind == "regression" else "string"
    texts = ("scores", "missing", "fault", "message")
    return [
        ("id", "string"),
        ("state", "string"),
        ("prediction", kind),
        *((text, "string") for text in texts),
    ]


def example_of(specs: dict[str, FeatureSpec]) -> dict[str, Any]:
    """A row to begin with: a raw clip, or features where these were imported."""
    if not any(is_imported(spec) for spec in specs.values()):
        return example()
    nothing = {f"{FEATURES}{name}": [[0.0] * spec.width] for name, spec in specs.items()}
    times = {f"{TIMES}{name}": [[0.0, 1.0]] for name in specs}
    return {"id": "example", "end": 1.0, **nothing, **times}


@cache
def example() -> dict[str, Any]:
    """A row to begin with, which any machine can score: a generated second of film, as bytes."""
    times = np.arange(round(EXAMPLE_S * 16_000)) / 16_000
    bars = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "example.mp4"
        encode(
            file,
            frames=[
                np.repeat(np.roll(bars, shift, axis=1)[:, :, None], 3, axis=2)
                for shift in range(10)
            ],
            fps=10,
            samples=(np.sin(times * 2 * np.pi * 220) * 6000).astype(np.int16),
            rate_hz=16_000,
        )
        content = file.read_bytes()
    return {"id": "example", BYTES: content, "transcript": "a generated example"}
