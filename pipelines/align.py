"""Forced alignment of clips whose words have no times; one item a file, run again it goes on."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.aligner import MOST_S, Aligned, Aligner
from featurizers.clip import BadClipError, Word
from featurizers.decoder import Decoder
from featurizers.intake import digest as file_digest
from featurizers.listening import pieces, twice
from featurizers.spec import canonical_json
from featurizers.store import store_at
from featurizers.transcript import read_transcript, within
from pipelines.executors import Executor, Need
from pipelines.experiment import Experiment
from pipelines.films import (
    Heard,
    Lost,
    Made,
    Span,
    apart,
    attempted,
    check_lost,
    clip_rows,
    heard,
    make,
    order,
    span_of,
    write_table,
)
from pipelines.sources import RowDict, stage_of
from pipelines.staging import Stage

ALIGNED = "aligned"
VERSION = 1
"""Raised when equal sound, words, model and settings give other times than before."""

TOGETHER = 16
"""Clips whose sound is held at once."""


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A media file, and spans of it whose words have no times: in order, none overlapping."""

    media: str
    stream: str
    spans: tuple[Span, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What came of aligning.

    Attributes:
        clips: The rows of the table of clips.
        tried: How many clips had words without times.
        sure: How many of them have aligned words now; the others keep estimated times.
        lost: The media that are bad.
    """

    clips: list[RowDict]
    tried: int
    sure: int
    lost: list[Lost]


def align(experiment: Experiment, executor: Executor, done: Callable[[int], None]) -> Placed:
    """Have words without measured times aligned to the sound, and write the table of clips.

    Clips whose confidence is below `source.align.least`, that are longer than two minutes, or whose
    words do not fit into their sound, are left as they are: ingest estimates their times.

    Args:
        experiment: The settings.
        executor: Where media are heard.
        done: Told how many items are finished.

    Raises:
        InputError: The source or the model is wrong.
        FailedError: Too many files are bad.
        ItemFailedError: Some files cannot be read now.
        StorageError: What was made cannot be written.
    """
    settings = experiment.aligner()
    least = 0.0 if experiment.source.align is None else experiment.source.align.least
    rows = clip_rows(experiment, experiment.spoken_table)
    texts = _texts(experiment, rows)
    films = _films(texts)
    worker = partial(_Placer, stage_of(experiment), settings, least)
    need = Need(gpus=experiment.workers.gpus)
    kept = make(experiment, executor, worker, films, below=ALIGNED, need=need, done=done)
    lost = list({each.media: each for _, each in sorted(kept.lost.items())}.values())
    check_lost(experiment, lost, len({film.media for film in films}))
    store, files = store_at(experiment.raw), dict[About, str]()
    for number, name in kept.names.items():
        film, file = films[number], experiment.raw / ALIGNED / name
        sure = json.loads(store.read(f"{ALIGNED}/{name}"))["sure"]
        about = zip(film.spans, film.texts, sure, strict=True)
        found = ((film.media, film.stream, span, text) for span, text, is_sure in about if is_sure)
        files |= dict.fromkeys(found, str(file.resolve()))
    clips = [_with_times(row, texts.get(number), files) for number, row in enumerate(rows)]
    write_table(experiment.table, clips)
    sure = sum(about in files for about in texts.values())
    return Placed(clips=clips, tried=len(texts), sure=sure, lost=lost)


About = tuple[str, str, Span, str]
"""The media, sound, span and words of a clip."""


def _texts(experiment: Experiment, rows: list[RowDict]) -> dict[int, About]:
    """What is said in the rows, by their numbers, whose words have no measured times."""
    read = cache(_read)
    found: dict[int, About] = {}
    for number, row in enumerate(rows):
        span = span_of(experiment.given, row)
        words = row.get("transcript", "")
        if "transcript_file" in row:
            words = read(Path(row["transcript_file"]))
        if not isinstance(words, str):
            inside = within(words, *span)
            measured = not all(word.estimated for word in inside)
            words = "" if measured else " ".join(word.text for word in inside)
        if words.split():
            found[number] = (*heard(row), span, " ".join(words.split()))
    return found


def _read(file: Path) -> tuple[Word, ...] | str:
    try:
        return read_transcript(file)
    except BadClipError:  # ingest tells it, by row and column
        return ""


def _films(texts: Mapping[int, About]) -> list[Unplaced]:
    """Items of work: the clips of a file, dealt so that none of an item overlap."""
    films: list[Unplaced] = []
    said: dict[Heard, dict[Span, set[str]]] = {}
    for media, stream, span, text in texts.values():
        said.setdefault((media, stream), {}).setdefault(span, set()).add(text)
    for sound, some in said.items():
        spans = sorted((span for span, each in some.items() for _ in each), key=order)
        left = {span: sorted(each) for span, each in some.items()}
        films += [
            Unplaced(*sound, tuple(each), tuple(left[span].pop(0) for span in each))
            for each in apart(spans)
        ]
    return films


def _with_times(row: RowDict, about: About | None, files: Mapping[About, str]) -> RowDict:
    if about not in files or about is None:
        return row
    rest = {name: value for name, value in row.items() if name != "transcript"}
    return {**rest, "transcript_file": files[about]}


class _Placer:
    """Places words; holds one decoding child, and the model once it is needed."""

    def __init__(
        self, stage: Stage, settings: dict[str, Any], least: float, there: frozenset[str]
    ) -> None:
        self._stage, self._settings, self._least = stage, settings, least
        self._there, self._decoder = there, Decoder()
        self._aligner: Aligner | None = None

    def __call__(self, film: Unplaced) -> Made:
        """The words of a file's spans, or what is wrong with it."""
        return attempted(film, self._place)

    def _place(self, film: Unplaced) -> Made:
        path = self._stage.local(film.media)
        media = "" if path is None else file_digest(path)
        if path is None or not media:
            raise BadClipError("missing", "there is no such file")
        about = [
            "align",
            VERSION,
            media,
            film.stream,
            film.spans,
            film.texts,
            self._settings["weights"],
        ]
        name = f"{hashlib.sha256(canonical_json([*about, self._least])).hexdigest()[:32]}.json"
        if name in self._there:
            return Made(name)
        aligner = self._aligner = self._aligner or Aligner(**self._settings)
        seconds = self._decoder.probe(path).seconds
        spans = [(start, seconds if end is None else end) for start, end in film.spans]
        short = [at for at, (start, end) in enumerate(spans) if 0 < end - start <= MOST_S]
        segments: dict[int, dict[str, Any]] = {}
        for first in range(0, len(short), TOGETHER):
            some = short[first : first + TOGETHER]
            sounds = self._sounds(path, [spans[at] for at in some], film.stream)
            for at, sound in zip(some, sounds, strict=True):
                words = aligner.words_of(sound, film.texts[at].split())
                if words is not None and _confidence(words) >= self._least:
                    segments[at] = _segment(spans[at], words)
        plain = {
            "model": aligner.checkpoint.digest,
            "segments": [segments[at] for at in sorted(segments)],
            "sure": [at in segments for at in range(len(spans))],
        }
        return Made(name, canonical_json(plain))

    def _sounds(
        self, path: Path, spans: list[tuple[float, float]], stream: str
    ) -> list[NDArray[np.int16]]:
        return twice(lambda: list(pieces(path, spans, self._decoder, stream)))


def _confidence(words: list[Aligned]) -> float:
    """Of a clip: the mean of those words that have any of the head's characters."""
    known = [word.confidence for word in words if word.confidence is not None]
    return float(np.mean(known)) if known else -math.inf


def _segment(span: tuple[float, float], words: list[Aligned]) -> dict[str, Any]:
    """A clip and its words on the clock of the media, as WhisperX writes them."""
    begin, end = span
    plain: list[dict[str, Any]] = []
    for word in words:
        if word.start is None or word.end is None or word.confidence is None:
            plain.append({"word": word.text})  # it lies between its neighbours
            continue
        times = {"start": begin + word.start, "end": min(begin + word.end, end)}
        rounded = {name: round(time, 3) for name, time in times.items()}
        plain.append({"word": word.text, **rounded, "score": round(word.confidence, 4)})
    return {"start": begin, "end": end, "words": plain}
