"""`segment`: whole media to clips, by voice; one item a file, run again it goes on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from featurizers.clip import BadClipError
from featurizers.decoder import Decoder
from featurizers.intake import digest as file_digest
from featurizers.listening import voice_in
from featurizers.spec import canonical_json
from featurizers.store import store_at
from featurizers.transcript import file_and_tier
from featurizers.voice import cut
from pipelines.executors import Executor, Need
from pipelines.experiment import Experiment, FailedError, InputError
from pipelines.films import (
    Heard,
    Lost,
    Made,
    attempted,
    by_sound,
    check_lost,
    given_rows,
    heard,
    make,
    write_table,
)
from pipelines.sections import Segment
from pipelines.sources import RowDict, stage_of
from pipelines.staging import Stage

SPANS = "spans"
VERSION = 1
"""Raised when equal sound and settings give other clips than before."""


@dataclass(frozen=True, slots=True)
class Uncut:
    """A media file that is to be cut, by one of its sounds."""

    media: str
    stream: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmented:
    """What came of cutting.

    Attributes:
        clips: The rows of the table of clips.
        films: How many media files were to be cut.
        lost: Those that are bad.
        silent: How many have no voice.
        seconds: Of all clips that were cut.
    """

    clips: list[RowDict]
    films: int
    lost: list[Lost]
    silent: int
    seconds: float


def segment(experiment: Experiment, executor: Executor, done: Callable[[int], None]) -> Segmented:
    """Cut the whole media of a table or folder into clips, and write the table of clips.

    Rows with a start or an end are clips already and stay as they are. A clip has all columns of
    its media's row, an id with its start in milliseconds, and the media's id as its group where
    there is neither group nor speaker.

    Args:
        experiment: The settings.
        executor: Where media are heard.
        done: Told how many files are finished.

    Raises:
        InputError: The source is wrong.
        FailedError: Too many files are bad, or none has any voice.
        ItemFailedError: Some files cannot be read now.
        StorageError: What was made cannot be written.
    """
    settings = experiment.segment
    if settings is None:
        raise InputError(
            f"{experiment.given} is a table of clips; to cut whole media, give `source.segment` "
            f"(may be {{}}) or a `source.folder`"
        )
    rows = given_rows(experiment)
    whole = [row for row in rows if "start" not in row and "end" not in row]
    for row in whole:
        _check(experiment.given, row)
    films = [Uncut(*sound) for sound, _ in by_sound(whole)]
    worker = partial(_Cutter, stage_of(experiment), settings)
    kept = make(experiment, executor, worker, films, below=SPANS, need=Need(), done=done)
    lost = [kept.lost[number] for number in sorted(kept.lost)]
    check_lost(experiment, lost, len(films))
    store = store_at(experiment.raw)
    spans = {
        (films[number].media, films[number].stream): json.loads(store.read(f"{SPANS}/{name}"))[
            "clips"
        ]
        for number, name in kept.names.items()
    }
    clips = [each for row in rows for each in _clips_of(row, spans)]
    if not clips:
        raise FailedError(f"{experiment.given}: no voice is in any of {len(films)} media files")
    write_table(experiment.cut_table, clips)
    return Segmented(
        clips=clips,
        films=len(films),
        lost=lost,
        silent=sum(not each for each in spans.values()),
        seconds=sum(end - start for each in spans.values() for start, end in each),
    )


def _check(given: Path, row: RowDict) -> None:
    """Refuse what belongs to whole media and cannot be divided among clips."""
    file, _ = file_and_tier(Path(str(row.get("transcript_file", ""))))
    if "transcript" in row or file.suffix.lower() == ".txt":
        raise InputError(
            f"{given}: {row['id']!r} is to be cut, and has a transcript without times: which clip "
            f"says what is not known; give a file with times, or none and `source.transcribe`"
        )
    streams = [name for name in row if name.startswith("stream:")]
    if streams:
        raise InputError(
            f"{given}: {row['id']!r} is to be cut, but its column {streams[0]} cannot be; give "
            f"the clips' start and end"
        )


def _clips_of(row: RowDict, spans: Mapping[Heard, list[tuple[float, float]]]) -> list[RowDict]:
    """The clips of a row: itself, where it has a span of its own; none of a film that is lost."""
    if "start" in row or "end" in row:
        return [row]
    group = {} if "speaker" in row or "group" in row else {"group": row["id"]}
    return [
        {**row, **group, "id": f"{row['id']}-{round(start * 1000):08d}", "start": start, "end": end}
        for start, end in spans.get(heard(row), [])
    ]


class _Cutter:
    """Cuts files; holds one decoding child."""

    def __init__(self, stage: Stage, settings: Segment, there: frozenset[str]) -> None:
        self._stage, self._settings, self._there = stage, settings, there
        self._decoder = Decoder()

    def __call__(self, film: Uncut) -> Made:
        """The spans of a file's clips, or what is wrong with it."""
        return attempted(film, self._cut)

    def _cut(self, film: Uncut) -> Made:
        path = self._stage.local(film.media)
        media = "" if path is None else file_digest(path)
        if path is None or not media:
            raise BadClipError("missing", "there is no such file")
        settings = self._settings.model_dump()
        about = canonical_json(["segment", VERSION, media, film.stream, settings])
        name = f"{hashlib.sha256(about).hexdigest()[:32]}.json"
        if name in self._there:
            return Made(name)
        seconds = self._decoder.probe(path).seconds
        voiced = voice_in(path, 0.0, None, self._decoder, film.stream)
        end = max(seconds, float(voiced.max(initial=0.0)))
        clips = cut(voiced, **settings, end_s=end)
        return Made(name, canonical_json({"media": media, "clips": clips}))
