"""Raw clips to predictions, by a registered model with the code that it carries."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from featurizers.intake import CHOSEN
from featurizers.manifest import Column
from featurizers.spec import Feature
from featurizers.store import StorageError
from pipelines.executors import Executor, InProcess
from pipelines.model_process import ModelProcess, ProcessEndedError, saved
from pipelines.sources import Asked
from pipelines.staging import Stage
from tracking.mlflow_store import version_behind

Row: TypeAlias = Mapping[str, Any]
Do: TypeAlias = Literal["predict", "explain"]

TOGETHER = 16  # clips that are handed to a worker at once
DEATHS = 4  # clips that end a worker's process each, when it has not scored any yet
CRASHED = "crashed"


def score(
    uri: str,
    model: str,
    rows: Sequence[Row],
    executor: Executor | None = None,
    *,
    stage: Stage | None = None,
    do: Do = "predict",
    done: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """Score raw clips with a registered model, which each worker loads once.

    Args:
        uri: The tracking server.
        model: "models:/NAME@ALIAS", "models:/NAME/VERSION" or "models:/m-...".
        rows: As `training.predict.Predictor.predict` takes them; media may be addresses where a
            stage is given.
        executor: Where workers run; one in a process beside this where not given.
        stage: Where remote media are fetched to.
        do: "explain" says what each stream did as well.
        done: Told how many clips are finished.

    Returns:
        An answer for each row, in order, with `model`: the version that gave it, which is that
        which an alias meant at the beginning. A row that ends the model's process is "failed", with
        the fault "crashed", and costs no other row.

    Raises:
        InputError: No such store or model, or rows that no clip can be made of.
        ScoringFailedError: The model is damaged, its store cannot be reached, or its process ends
            whatever it is asked.
    """
    model = version_behind(uri, model)  # an alias may move before the last worker asks
    some = _together(rows)
    items = [[rows[number] for number in numbers] for numbers in some]
    answers: dict[int, dict[str, Any]] = {}
    worker = partial(_Worker, uri, model, stage, do)
    for answer in (executor or InProcess()).run(worker, items):
        numbers = some[answer.number]
        said = [{**each, "model": model} for each in answer.result]
        answers |= dict(zip(numbers, said, strict=True))
        done(len(numbers))
    return [answers[number] for number in range(len(rows))]


def _together(rows: Sequence[Row]) -> list[list[int]]:
    """The numbers of rows, dealt to be scored at once; clips of one file follow each other."""
    first: dict[str, int] = {}
    for number, row in enumerate(rows):
        first.setdefault(_media(row), number)
    order = sorted(range(len(rows)), key=lambda number: (first[_media(rows[number])], number))
    return [order[first : first + TOGETHER] for first in range(0, len(order), TOGETHER)]


def _media(row: Row) -> str:
    return str(row.get("media", ""))


class _Worker:
    """Scores clips; holds the model's process, which is started with the first."""

    def __init__(self, uri: str, model: str, stage: Stage | None, do: Do) -> None:
        self._uri, self._model, self._stage, self._do = uri, model, stage, do
        self._process: ModelProcess | None = None
        self._answered, self._deaths = False, 0

    def __call__(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """An answer for each row."""
        return [answer for some in self._fetched(rows) for answer in self._asked(some)]

    def _asked(self, some: list[Row] | tuple[list[Row], str]) -> list[dict[str, Any]]:
        if isinstance(some, list):
            return self._ask(some)
        rows, why = some
        return [self._failed(row, "", why) for row in rows]

    def _ask(self, rows: list[Row]) -> list[dict[str, Any]]:
        """An answer for each row; when the process ends on some, each is asked by itself."""
        self._up()  # one that does not come up has met no row yet
        try:
            answers = self._answers(rows)
        except ProcessEndedError as error:
            self.close()
            if len(rows) > 1:
                return [answer for row in rows for answer in self._ask([row])]
            self._deaths += 1
            if self._deaths >= DEATHS and not self._answered:
                raise
            return [self._failed(rows[0], CRASHED, f"on this clip {error.short}")]
        self._answered = True
        return answers

    def _answers(self, rows: list[Row]) -> list[dict[str, Any]]:
        process = self._up()
        return process.explain(rows) if self._do == "explain" else process.predict(rows)

    def _up(self) -> ModelProcess:
        if self._process is None:
            self._process = ModelProcess(self._uri, self._model)
        return self._process

    def _failed(self, row: Row, fault: str, why: str) -> dict[str, Any]:
        # Of what an answer has, all that a row without media gets; then why there are none.
        (answer,) = self._answers([{"id": row.get("id") or row.get("media")}])
        return {**answer, "state": "failed", "fault": fault, "message": why}

    def close(self) -> None:
        """End the model's process."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _fetched(self, rows: Sequence[Row]) -> Iterator[list[Row] | tuple[list[Row], str]]:
        """Rows whose media are here; or that they cannot be fetched now, and why.

        A stage holds the copy alone that was asked for last, so that the clips of one remote file
        are scored before the next is fetched.
        """
        for media, of_one in itertools.groupby(rows, key=_media_if_remote):
            some = list(of_one)
            if media is None:
                yield some
                continue
            try:
                path = None if self._stage is None else self._stage.local(media)
            except StorageError as error:
                yield some, str(error)
                continue
            here = "" if path is None else str(path)
            yield [{**row, "id": row.get("id") or media, "media": here} for row in some]


def _media_if_remote(row: Row) -> str | None:
    media = _media(row)
    return media if "://" in media else None


def parity(
    uri: str,
    model: str,
    clips: Sequence[Asked],
    columns: Mapping[str, Column],
    weights: Sequence[str] = (),
    *,
    said: list[Any] | None = None,
) -> list[str]:
    """Compute features of raw clips through a model, and hold them against the shards.

    Args:
        uri: The tracking server.
        model: As `score` takes it.
        clips: The raw clips.
        columns: The columns that the model was trained on, by stream.
        weights: Where encoders' weights lie: a model names them by their digests alone.
        said: Takes what the model says of each clip.

    Returns:
        What differs, a line for each clip and stream; empty when each spec's promise is kept.
    """
    rows = [row_of(each) for each in clips]
    with tempfile.TemporaryDirectory() as scratch:
        stem = Path(scratch) / "computed"
        with ModelProcess(uri, model, weights) as process:
            states = process.features(rows, stem)
            if said is not None:
                said += process.predict(rows)
        return [
            f"clip {clips[number].raw.id}, stream {stream}: {difference}"
            for number, found in enumerate(states)
            for stream, column in columns.items()
            if (
                difference := _difference(
                    column,
                    column.read(clips[number].raw.key),
                    _computed(stem, number, stream, found[stream]),
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


def _computed(stem: Path, number: int, stream: str, state: str) -> Feature | None:
    if state != "sample":
        return None
    values, times = saved(stem, number, stream)
    return Feature(np.load(values), np.load(times))


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
