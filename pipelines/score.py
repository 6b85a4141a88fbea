"""Raw clips to predictions, by a registered model in a fresh process with the code it carries."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurizers.intake import CHOSEN
from featurizers.manifest import Column
from featurizers.pretrained import FOLDERS
from featurizers.spec import Feature
from pipelines.experiment import FailedError, InputError
from pipelines.sources import Asked

# The process imports no package of ours but tracking: featurizers and training come with the model.
_PROGRAM = """
import json, sys
from tracking.mlflow_store import NoStoreError, StoreError, load
from tracking.registry import UnknownModelError
asked = json.load(open(sys.argv[1]))
try:
    model = load(asked["uri"], asked["model"])
except (NoStoreError, UnknownModelError) as error:
    json.dump({"wrong": str(error)}, open(sys.argv[2], "w"))
    sys.exit(0)
except (StoreError, OSError, ImportError) as error:
    json.dump({"failed": str(error)}, open(sys.argv[2], "w"))
    sys.exit(0)
predictor = model.unwrap_python_model().predictor
if asked["do"] == "predict":
    answer = predictor.predict(asked["rows"])
else:
    import numpy
    answer = []
    for number, row in enumerate(asked["rows"]):
        found = {}
        for stream, outcome in predictor.features(row).items():
            found[stream] = outcome.state
            if outcome.feature is not None:
                numpy.save(f"{sys.argv[2]}.{number}.{stream}.values.npy", outcome.feature.values)
                numpy.save(f"{sys.argv[2]}.{number}.{stream}.times.npy", outcome.feature.times)
        answer.append(found)
json.dump({"answer": answer}, open(sys.argv[2], "w"))
"""


class ScoringFailedError(FailedError):
    """No answer: a damaged model, a store that is out of reach, a bug, or too little memory."""


def score(uri: str, model: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Score raw clips with a registered model.

    Args:
        uri: The tracking server.
        model: "models:/NAME@ALIAS", "models:/NAME/VERSION" or "models:/m-...".
        rows: As `training.predict.Predictor.predict` takes them.

    Returns:
        A row for each row.

    Raises:
        InputError: No such store or model.
        ScoringFailedError: The model is damaged, its store cannot be reached, or its process
            failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer: list[dict[str, Any]] = _ask(
            Path(scratch), {"do": "predict", "uri": uri, "model": model, "rows": list(rows)}
        )
    return answer


def parity(
    uri: str,
    model: str,
    clips: Sequence[Asked],
    columns: Mapping[str, Column],
    weights: Sequence[str] = (),
) -> list[str]:
    """Compute features of raw clips through a model, and hold them against the shards.

    Args:
        uri: The tracking server.
        model: As `score` takes it.
        clips: The raw clips.
        columns: The columns that the model was trained on, by stream.
        weights: Where encoders' weights lie: a model names them by their digests alone.

    Returns:
        What differs, a line for each clip and stream; empty when each spec's promise is kept.
    """
    rows = [row_of(each) for each in clips]
    with tempfile.TemporaryDirectory() as scratch:
        states = _ask(
            Path(scratch),
            {"do": "features", "uri": uri, "model": model, "rows": rows},
            weights,
        )
        return [
            f"clip {clips[number].raw.id}, stream {stream}: {difference}"
            for number, found in enumerate(states)
            for stream, column in columns.items()
            if (
                difference := _difference(
                    column,
                    column.read(clips[number].raw.key),
                    _computed(Path(scratch), number, stream, found[stream]),
                )
                if stream in found
                else "the model does not give it"
            )
        ]


def row_of(asked: Asked) -> dict[str, Any]:
    """A checked row of a table as a model takes it."""
    raw = asked.raw
    row = {"id": raw.id, "media": raw.media, "start": raw.start, "end": raw.end}
    row |= {"transcript": raw.transcript}
    row |= {} if raw.transcript_file is None else {"transcript_file": str(raw.transcript_file)}
    chosen = {name: raw.columns.get(name) or None for name in CHOSEN}
    row |= chosen | {f"stream:{name}": str(path) for name, path in raw.streams.items()}
    row |= {f"stream:{name}:hz": rate for name, rate in raw.stream_rates.items()}
    return {name: value for name, value in row.items() if value is not None}


def _computed(scratch: Path, number: int, stream: str, state: str) -> Feature | None:
    if state != "sample":
        return None
    stem = scratch / f"answer.json.{number}.{stream}"
    return Feature(np.load(f"{stem}.values.npy"), np.load(f"{stem}.times.npy"))


def _difference(column: Column, stored: Feature | None, computed: Feature | None) -> str:
    if stored is None or computed is None:
        return "" if stored is computed else "one has the feature, the other has not"
    if stored.values.shape != computed.values.shape:
        return f"shapes {stored.values.shape} and {computed.values.shape}"
    if not np.array_equal(stored.times, computed.times):
        return "times differ"
    gap = float(np.abs(stored.values.astype(np.float64) - computed.values).max(initial=0.0))
    atol = column.spec.atol
    if atol is None:
        same = stored.values.tobytes() == computed.values.tobytes()
        return "" if same else f"bits differ, by up to {gap:g}, where equal bits are promised"
    return "" if gap <= atol else f"differs by {gap:g}, promised is {atol:g}"


def listing(weights: Sequence[str]) -> dict[str, str]:
    """What tells a process where weights lie, beside the places that it is told of anyway."""
    listed = [*weights, *filter(None, [os.environ.get(FOLDERS)])]
    return {FOLDERS: os.pathsep.join(listed)} if listed else {}


def _ask(scratch: Path, request: Mapping[str, Any], weights: Sequence[str] = ()) -> Any:  # noqa: ANN401 - any JSON
    question, answer = scratch / "question.json", scratch / "answer.json"
    question.write_text(json.dumps(request))
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"} | listing(weights)
    # -P keeps the current folder, and a training/ that may lie there, off the path.
    result = subprocess.run(  # noqa: S603 - our own program text, no shell
        [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM, str(question), str(answer)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if result.returncode or not answer.exists():
        raise ScoringFailedError(
            f"the process of {request['model']} ended with code {result.returncode}:\n"
            f"{result.stderr.strip()[-4000:]}"
        )
    found = json.loads(answer.read_text())
    if "wrong" in found:
        raise InputError(found["wrong"])
    if "failed" in found:
        raise ScoringFailedError(found["failed"])
    return found["answer"]
