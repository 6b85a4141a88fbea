"""One clip of a dataset as it lies there: what is seen, heard and said, and every column.

Media are decoded as they are for featurizers, in a killable child, sound and pictures each by
itself: what is wrong with the one must not hide the other. A clip whose media are gone still shows
its words and its features.

As in reports, media are named without the folders above them.
"""

import contextlib
import difflib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip, Fault
from featurizers.clocks import Clocks
from featurizers.damage import Damage
from featurizers.dataset import COLUMNS, read_clips
from featurizers.decoder import Decoder
from featurizers.decoder_process import DecoderDiedError
from featurizers.intake import digest
from featurizers.manifest import (
    Column,
    CorruptShardError,
    committed,
    committed_digest,
    read_manifest,
)
from featurizers.media import NoStream
from featurizers.reading import chosen
from featurizers.shards import Record, column_folder, column_of
from featurizers.spec import (
    AudioChunk,
    AudioWant,
    Chunk,
    Feature,
    FeatureSpec,
    VideoChunk,
    VideoWant,
    Want,
)
from featurizers.store import Root, StorageError, is_remote, store_at
from pipelines.experiment import InputError
from pipelines.featurize import jobs
from pipelines.ingest import read_plan
from pipelines.report import asked_for, file_name
from pipelines.staging import Stage

FORMAT = 1
PICTURES = 12
PIXELS = 128  # of a picture's longer side
ENVELOPE_HZ = 100
HOLE_S = 0.1  # less is no gap
SEEK_FROM_S = 120.0  # a longer clip is not decoded from end to end for a few pictures
GIGABYTES = 20.0  # of media that are fetched to be looked at

State: TypeAlias = Literal["sample", "absent", "quarantined", "not done", "damaged"]
Gap: TypeAlias = tuple[float, float]
"""Seconds from the clip's start, between which there is nothing."""

_ORDER = ("video", "audio", "text", "stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """The lowest and the highest sample of each 1/ENVELOPE_HZ seconds.

    Of what cannot be used, that part is there which came before it broke off.

    Attributes:
        state: "sample", "absent" or "quarantined", as it would be in a column; "not done" when the
            media cannot be read just now.
        message: Why it is quarantined, or what damage was passed over.
        lows, highs: int16 [N]; 0 where nothing was heard.
        seconds: Where the sound ends.
        gaps: Where there is none.
    """

    state: State
    fault: Fault | None = None
    message: str = ""
    lows: NDArray[np.int16]
    highs: NDArray[np.int16]
    seconds: float = 0.0
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """A few pictures, evenly spaced in time.

    Attributes:
        state, message, gaps: As of `Sound`.
        times: float64 [N, 2]: for what span each stands, in seconds from the clip's start.
        frames: uint8 [N, H, W, 3], whole; the longer side has PIXELS pixels at most.
    """

    state: State
    fault: Fault | None = None
    message: str = ""
    times: NDArray[np.float64]
    frames: NDArray[np.uint8]
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a column has of the clip.

    Attributes:
        stream: The name that it goes by: its featurizer's, or its fingerprint where several share
            that name.
        state: That of its row; "not done" when the clip has none yet, "damaged" when its bytes are
            not what was written.
        gaps: Longer spans without a step; none where steps are events, such as words.
    """

    stream: str
    spec: FeatureSpec
    state: State
    fault: Fault | None = None
    message: str = ""
    feature: Feature | None = None
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Peek:
    """One clip, and all that is known of it.

    Attributes:
        dataset: Its name.
        clip: As in the table; its `media` is a file name alone.
        seconds: How long the axis of time is.
        notes: What is wrong with its media as a whole.
        clocks: How those of sound and pictures lie to each other; None where it has not both.
        columns: Of pictures, of sound, of words, of streams; by name.
    """

    dataset: str
    clip: Clip
    seconds: float
    notes: tuple[str, ...]
    clocks: Clocks | None
    sound: Sound
    pictures: Pictures
    columns: tuple[Shown, ...]

    @property
    def whole(self) -> bool:
        """Whether all that was written can be read."""
        return all(column.state != "damaged" for column in self.columns)

    def to_json(self) -> dict[str, Any]:
        """The facts for machines: spans, faults, gaps and columns; no media and no features."""
        clip = asdict(self.clip)
        for name in ("media", "source", "streams", "stream_digests", "stream_rates"):
            del clip[name]
        return {
            "format": FORMAT,
            "dataset": self.dataset,
            "clip": {**clip, "media": self.clip.media},
            "seconds": self.seconds,
            "notes": list(self.notes),
            "clocks": None if self.clocks is None else self.clocks.numbers(),
            "sound": {**_told(self.sound), "seconds": self.sound.seconds},
            "pictures": {**_told(self.pictures), "times": self.pictures.times.tolist()},
            "columns": [_column_facts(column) for column in self.columns],
        }


def _told(track: Sound | Pictures | Shown) -> dict[str, Any]:
    return {
        "state": track.state,
        "fault": track.fault,
        "message": track.message,
        "gaps": [list(gap) for gap in track.gaps],
    }


def _column_facts(column: Shown) -> dict[str, Any]:
    spec, feature = column.spec, column.feature
    return {
        "stream": column.stream,
        "column": spec.fingerprint,
        "modality": spec.modality,
        "rate_hz": spec.rate_hz,
        "dims": spec.to_json()["dims"],
        **_told(column),
        "steps": 0 if feature is None else len(feature.values),
        "span": None if feature is None or not len(feature.times) else _span(feature.times),
    }


def _span(times: NDArray[np.float64]) -> list[float]:
    return [float(times[:, 0].min()), float(times[:, 1].max())]


def peek(root: Root, name: str) -> Peek:
    """Look at one clip of a dataset.

    Args:
        root: Where the dataset lies.
        name: The clip's key or id.

    Raises:
        InputError: There is no such clip; names the nearest.
        DatasetError: There is no dataset, or a record is damaged.
        CorruptShardError: A manifest is not what was written.
    """
    clip = find_clip(root, name)
    columns = _columns(root, clip)
    with (
        tempfile.TemporaryDirectory(prefix="fuseline-peek-") as folder,
        Decoder() as decoder,
    ):
        # The cache is its own: that of the workers may lie on another machine.
        stage = Stage(folder=Path(folder), limit_bytes=int(GIGABYTES * 1e9))
        path, notes = _media(clip, stage)
        sound = _sound(clip, path, decoder)
        clocks = decoder.spent.clocks
        pictures = _pictures(clip, path, decoder)
    seconds = _seconds(clip, sound, pictures, columns)
    return Peek(
        dataset=file_name(str(root)) if is_remote(root) else Path(root).resolve().name,
        clip=replace(clip, media=file_name(clip.media)),
        seconds=seconds,
        notes=tuple(notes),
        clocks=clocks,
        sound=sound,
        pictures=pictures,
        columns=tuple(_with_gaps(column, clip.seconds or seconds) for column in columns),
    )


def find_clip(root: Root, name: str) -> Clip:
    """The clip of this key or id.

    Raises:
        InputError: There is none.
        DatasetError: There is no dataset.
    """
    clips = read_clips(root)
    keys, ids = clips.keys(), clips.ids()
    for names in (keys, ids):
        if name in names:
            return clips[names.index(name)]
    near = difflib.get_close_matches(name, {*keys, *ids}, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise InputError(
        f"{store_at(root).where()}: there is no clip {name!r} among {len(clips)}{hint}"
    )


# Media


def _media(clip: Clip, stage: Stage) -> tuple[Path | Exception, list[str]]:
    """The media on this machine, or why there are none; and whether they changed."""
    try:
        path = stage.local(clip.media)
        found = "" if path is None else digest(path)
    except (StorageError, BadClipError) as error:
        return error, []
    if path is None or not found:
        return BadClipError("missing", "no such file"), []
    if found != clip.media_digest:
        return path, ["The media are not what was ingested; features may be of other media."]
    return path, []


class _Track:
    """What came of one stream of the media, and what is wrong with it."""

    def __init__(self, clip: Clip) -> None:
        self.state: State = "sample"
        self.fault: Fault | None = None
        self.message = ""
        self._clip = clip

    def read(
        self,
        path: Path | Exception,
        decoder: Decoder,
        want: Want,
        span: tuple[float, float | None],
    ) -> Iterator[Chunk]:
        """Chunks of a span of the media; says of nothing else but by its state and message."""
        try:
            if isinstance(path, Exception):
                raise path
            wants = [chosen(want, self._clip)]
            with contextlib.closing(decoder.decode(path, *span, wants)) as events:
                for _, event in events:
                    if isinstance(event, NoStream):
                        self.state = "absent"
                    elif isinstance(event, Damage):
                        self.message = event.message
                    else:
                        yield event
        except (BadClipError, DecoderDiedError) as bad:
            message = bad.message if isinstance(bad, BadClipError) else str(bad)
            self.state, self.fault = "quarantined", bad.fault
            self.message = _without_folders(message, self._clip)
        except StorageError as error:
            self.state, self.message = "not done", _without_folders(str(error), self._clip)


def _without_folders(message: str, clip: Clip) -> str:
    return message.replace(clip.media, file_name(clip.media)) if clip.media else message


def _sound(clip: Clip, path: Path | Exception, decoder: Decoder) -> Sound:
    want, track, spans = AudioWant(), _Track(clip), []
    each = want.rate_hz // ENVELOPE_HZ
    lows = highs = np.zeros(0, dtype=np.int16)
    for chunk in track.read(path, decoder, want, (clip.start, clip.end)):
        if not isinstance(chunk, AudioChunk) or not len(chunk.samples):
            continue
        at = round(chunk.start * want.rate_hz)
        spans.append((chunk.start, chunk.start + len(chunk.samples) / want.rate_hz))
        first, last = at // each, (at + len(chunk.samples) - 1) // each
        edges = np.maximum(np.arange(first, last + 1) * each - at, 0)
        lows, highs = _room(lows, last + 1), _room(highs, last + 1)
        here = slice(first, last + 1)
        lows[here] = np.minimum(lows[here], np.minimum.reduceat(chunk.samples, edges))
        highs[here] = np.maximum(highs[here], np.maximum.reduceat(chunk.samples, edges))
    end = max((stop for _, stop in spans), default=0.0)
    count = round(np.ceil(end * ENVELOPE_HZ))
    return Sound(
        state=track.state,
        fault=track.fault,
        message=track.message,
        lows=lows[:count],
        highs=highs[:count],
        seconds=end,
        gaps=gaps(np.array(spans), clip.seconds or end, HOLE_S) if spans else (),
    )


def _room(values: NDArray[np.int16], count: int) -> NDArray[np.int16]:
    """The same values with room for so many; twice as much, so that it is seldom asked for."""
    if count <= len(values):
        return values
    return np.concatenate([values, np.zeros(2 * count - len(values), dtype=np.int16)])


def _pictures(clip: Clip, path: Path | Exception, decoder: Decoder) -> Pictures:
    track = _Track(clip)
    cell = max(clip.seconds, 0.1) / PICTURES
    if clip.seconds > SEEK_FROM_S:
        found = list(_sought(clip, path, decoder, track, cell))
    else:
        want = VideoWant(fps=1 / cell, size=PIXELS, colour="rgb", fit="whole")
        found = list(_whole(track.read(path, decoder, want, (clip.start, clip.end))))
    times = np.array([time for time, _ in found]).reshape(-1, 2)
    empty = np.zeros((0, PIXELS, PIXELS, 3), dtype=np.uint8)
    return Pictures(
        state=track.state,
        fault=track.fault,
        message=track.message,
        times=times,
        frames=_without_margins(np.stack([frame for _, frame in found])) if found else empty,
        gaps=gaps(times, clip.seconds or times.max(), max(HOLE_S, cell / 2)) if found else (),
    )


def _without_margins(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Without the rows and columns at the edges that are black in all pictures."""
    lit = frames.max(axis=(0, 3)) > 0
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    if not len(rows):
        return frames
    return frames[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


_Picture: TypeAlias = tuple[NDArray[np.float64], NDArray[np.uint8]]


def _whole(chunks: Iterator[Chunk]) -> Iterator[_Picture]:
    """The first pictures: media may be longer than is known of the clip."""
    left = PICTURES
    for chunk in chunks:
        if isinstance(chunk, VideoChunk):
            yield from zip(chunk.times[:left], chunk.frames[:left], strict=True)
            left -= min(left, len(chunk.frames))


def _sought(
    clip: Clip, path: Path | Exception, decoder: Decoder, track: _Track, cell: float
) -> Iterator[_Picture]:
    """One picture from the middle of each cell; what cannot be found there is left out."""
    want = VideoWant(fps=1 / HOLE_S, size=PIXELS, colour="rgb", fit="whole")
    for number in range(PICTURES):
        at = clip.start + (number + 0.5) * cell - HOLE_S / 2
        chunks = list(track.read(path, decoder, want, (at, at + HOLE_S)))
        pictures = [each for each in chunks if isinstance(each, VideoChunk)]
        if pictures:
            yield np.array([number * cell, (number + 1) * cell]), pictures[0].frames[0]
        if track.state == "absent" or isinstance(path, Exception):
            return


# Columns


def _columns(root: Root, clip: Clip) -> list[Shown]:
    """What each column has of a clip, unfinished ones too; only its own shards are read."""
    shards = {place.shard for place in read_plan(root) if place.key == clip.key}
    found = [_shown(root, clip, *each) for each in _records(root, shards)]
    count = Counter(column.stream for column in found)
    named = [
        column if count[column.stream] == 1 else replace(column, stream=column.spec.fingerprint)
        for column in found
    ]
    return sorted(named, key=lambda each: (_ORDER.index(each.spec.modality), each.stream))


def _records(root: Root, shards: set[int]) -> Iterator[tuple[FeatureSpec, tuple[Record, ...]]]:
    """The records of some shards in every column."""
    store, done = store_at(root), committed(root)
    for name in done:
        manifest = read_manifest(store, column_folder(name), committed_digest(root, name) or "")
        yield manifest.spec, tuple(each for each in manifest.records if each.shard in shards)
    started = {column_of(name) for name in store.sizes(COLUMNS)}
    left = started.difference(done, {""})
    for name, spec in sorted(asked_for(root).items()) if left else ():
        if name in left:
            finished = jobs(root, [spec]).finished
            yield spec, tuple(each for each in finished if each.shard in shards)


def _shown(root: Root, clip: Clip, spec: FeatureSpec, records: tuple[Record, ...]) -> Shown:
    column = Column(
        store=store_at(root),
        folder=column_folder(spec.fingerprint),
        spec=spec,
        digest="",
        plan="",
        records=records,
    )
    with contextlib.closing(column):
        try:
            row = column.rows.get(clip.key)
            feature = None if row is None else column.read(clip.key)
        except CorruptShardError as error:
            message = str(error).removeprefix(f"{column.where()}/")
            return Shown(stream=spec.name, spec=spec, state="damaged", message=message)
    if row is None:
        return Shown(stream=spec.name, spec=spec, state="not done")
    return Shown(
        stream=spec.name,
        spec=spec,
        state=row.state,
        fault=row.fault,
        message=_without_folders(row.message, clip),
        feature=feature,
    )


# Time


def _seconds(clip: Clip, sound: Sound, pictures: Pictures, columns: Sequence[Shown]) -> float:
    """The end of all that is shown."""
    features = [column.feature.times for column in columns if column.feature is not None]
    ends = [
        clip.seconds,
        sound.seconds,
        *(float(times.max()) for times in (*features, pictures.times) if times.size),
        *(word.end for word in clip.words or ()),
    ]
    return max((end for end in ends if np.isfinite(end) and end > 0), default=1.0)


def _with_gaps(column: Shown, seconds: float) -> Shown:
    feature, rate = column.feature, column.spec.rate_hz
    if feature is None or not rate:
        return column
    return replace(column, gaps=gaps(feature.times, seconds, max(HOLE_S, 1.5 / rate)))


def gaps(spans: NDArray[np.float64], seconds: float, least: float) -> tuple[Gap, ...]:
    """Where none of some spans lies, from 0 to `seconds`, and longer than `least` seconds.

    Args:
        spans: Start and end of each: [N, 2].
        seconds: Where the last gap may end.
        least: Shorter gaps are none.
    """
    ordered = spans[np.argsort(spans[:, 0], kind="stable")]
    starts = np.append(ordered[:, 0], seconds)
    reached = np.concatenate([[0.0], np.maximum.accumulate(ordered[:, 1])])
    wide = np.flatnonzero(starts - reached > least)
    return tuple((float(reached[at]), float(starts[at])) for at in wide)
