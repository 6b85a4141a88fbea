"""`transcribe`: words with times for clips without any; run again, it goes on where it was."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from featurizers.clip import BadClipError
from featurizers.decoder import Decoder
from featurizers.intake import digest as file_digest
from featurizers.listening import pieces, twice, voice_in
from featurizers.spec import canonical_json
from featurizers.voice import cut
from featurizers.whisper import VOTERS, Recogniser, Spoken
from pipelines.executors import Executor, Need
from pipelines.experiment import Experiment
from pipelines.films import (
    Lost,
    Made,
    Span,
    apart,
    attempted,
    by_sound,
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

WORDS = "words"
VERSION = 1
"""Raised when equal sound, model and settings give other words than before."""

TOGETHER = 32
"""Pieces of sound that are held at once."""

SPANS = 128
"""Spans of a file that are kept together: minutes of speech, of which a kill costs no more."""


@dataclass(frozen=True, slots=True)
class Unheard:
    """A media file, and spans of it that lack words: in order, none of them overlapping.

    Attributes:
        lead: The first ones of the file, which say its language, where these are later ones.
    """

    media: str
    stream: str
    spans: tuple[Span, ...]
    lead: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcribed:
    """What came of transcribing.

    Attributes:
        clips: The rows of the table of clips.
        heard: How many clips were without words.
        lost: The media that are bad; their clips stay without words.
    """

    clips: list[RowDict]
    heard: int
    lost: list[Lost]


def transcribe(
    experiment: Experiment, executor: Executor, done: Callable[[int], None]
) -> Transcribed:
    """Have clips without words transcribed, and write the table of clips.

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
    settings = experiment.recogniser()
    rows = clip_rows(experiment, experiment.cut_table)
    silent = [row for row in rows if not {"transcript", "transcript_file"} & set(row)]
    films = [
        film
        for sound, some in by_sound(silent)
        for spans in apart(sorted({span_of(experiment.given, row) for row in some}, key=order))
        for film in in_pieces(*sound, tuple(spans))
    ]
    worker = partial(_Hearer, stage_of(experiment), settings)
    need = Need(gpus=experiment.workers.gpus)
    kept = make(experiment, executor, worker, films, below=WORDS, need=need, done=done)
    lost = list({each.media: each for _, each in sorted(kept.lost.items())}.values())
    check_lost(experiment, lost, len({film.media for film in films}))
    files = {
        (films[number].media, films[number].stream, span): str(
            (experiment.raw / WORDS / name).resolve()
        )
        for number, name in kept.names.items()
        for span in films[number].spans
    }
    clips = [_with_words(experiment, row, files) for row in rows]
    write_table(experiment.spoken_table, clips)
    return Transcribed(clips=clips, heard=len(silent), lost=lost)


def in_pieces(media: str, stream: str, spans: tuple[Span, ...]) -> Iterator[Unheard]:
    """A file's spans, `SPANS` of them at a time: each piece is heard and kept by itself."""
    yield Unheard(media, stream, spans[:SPANS])
    for first in range(SPANS, len(spans), SPANS):
        yield Unheard(media, stream, spans[first : first + SPANS], lead=spans[:SPANS])


def _with_words(
    experiment: Experiment, row: RowDict, files: dict[tuple[str, str, Span], str]
) -> RowDict:
    if {"transcript", "transcript_file"} & set(row):
        return row
    file = files.get((*heard(row), span_of(experiment.given, row)))
    return row if file is None else {**row, "transcript_file": file}


class _Hearer:
    """Hears files; holds one decoding child, and the model once it is needed."""

    def __init__(self, stage: Stage, settings: dict[str, Any], there: frozenset[str]) -> None:
        self._stage, self._settings, self._there = stage, settings, there
        self._decoder = Decoder()
        self._recogniser: Recogniser | None = None

    def __call__(self, film: Unheard) -> Made:
        """The words of a file's spans, or what is wrong with it."""
        return attempted(film, self._hear)

    def _hear(self, film: Unheard) -> Made:
        path = self._stage.local(film.media)
        media = "" if path is None else file_digest(path)
        if path is None or not media:
            raise BadClipError("missing", "there is no such file")
        # Where the weights lie is no part of what they say.
        decide = {name: self._settings[name] for name in ("weights", "language", "dtype")}
        lead = () if self._settings["language"] else film.lead
        of = [media, film.stream, film.spans, *([lead] if lead else [])]
        about = canonical_json(["transcribe", VERSION, *of, decide])
        name = f"{hashlib.sha256(about).hexdigest()[:32]}.json"
        if name in self._there:
            return Made(name)
        recogniser = self._recogniser = self._recogniser or Recogniser(**self._settings)
        seconds = self._decoder.probe(path).seconds
        hears = partial(self._parts, film.stream, path, recogniser.window_s, seconds)
        parts, voters = list(hears(film.spans)), list(itertools.islice(hears(lead), VOTERS))
        language, segments = twice(lambda: self._segments(film, path, parts, voters, recogniser))
        plain = {"language": language, "model": recogniser.checkpoint.digest, "segments": segments}
        return Made(name, canonical_json(plain))

    def _parts(
        self, stream: str, path: Path, window_s: float, seconds: float, spans: Sequence[Span]
    ) -> Iterator[tuple[float, float]]:
        """What is heard at once: spans, and of those that are too long the voice in them."""
        for start, told in spans:
            end = seconds if told is None else told
            if end - start <= window_s:
                yield from [(start, end)] if end > start else []
                continue
            voiced = voice_in(path, start, told, self._decoder, stream)
            some = cut(
                voiced,
                least_s=0.1,
                most_s=window_s,
                pause_s=2.0,
                margin_s=0.1,
                end_s=max(end - start, float(voiced.max(initial=0.0))),
            )
            yield from ((start + a, start + b) for a, b in some)

    def _segments(
        self,
        film: Unheard,
        path: Path,
        parts: Sequence[tuple[float, float]],
        voters: Sequence[tuple[float, float]],
        recogniser: Recogniser,
    ) -> tuple[str, list[dict[str, Any]]]:
        """The language, and what Whisper's own JSON calls segments.

        Without voters, the first of the parts say which language it is.
        """
        language, segments = "", list[dict[str, Any]]()
        if voters and parts:
            first_ones = list(pieces(path, voters, self._decoder, film.stream))
            language = recogniser.language_of(first_ones)
        for first in range(0, len(parts), TOGETHER):
            some = parts[first : first + TOGETHER]
            sounds = list(pieces(path, some, self._decoder, film.stream))
            if not first and not voters:
                language = recogniser.language_of(sounds)
            said = recogniser.words_of(sounds, language)
            segments += [_segment(part, words) for part, words in zip(some, said, strict=True)]
        return language, segments


def _segment(part: tuple[float, float], words: Sequence[Spoken]) -> dict[str, Any]:
    """A piece of sound and its words, on the clock of the media."""
    begin, end = part
    return {
        "start": round(begin, 3),
        "end": round(end, 3),
        "text": " ".join(word.text for word in words),
        "words": [_word(begin, end, word) for word in words],
    }


def _word(begin: float, end: float, word: Spoken) -> dict[str, Any]:
    plain = {
        "word": word.text,
        "start": round(min(begin + word.start, end), 3),
        "probability": round(word.probability, 4),
    }
    if word.end is not None:
        plain["end"] = round(min(begin + word.end, end), 3)
    return plain
