"""Folders of .npy and .npz files: a table of clips, and arrays [T, D] by stream and clip.

    FOLDER/clips.csv             id, split, labels ...; or .jsonl or .parquet, or labels.*
    FOLDER/STREAM/ID.npy         [T, D]; beside it, where it has times, ID.times.npy [T, 2] or [T]
    FOLDER/STREAM.npz            the same, all clips in one file: arrays called ID and ID.times
    FOLDER/ID.npz                the same, all streams of a clip in one: STREAM and STREAM.times

Nothing is unpickled.
"""

import contextlib
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers import rows
from featurizers.clip import BadClipError, Clip, Label, Word, key_of
from featurizers.extract import Outcome
from featurizers.imported import imported_spec
from featurizers.spec import Feature, Modality, Scalar
from pipelines.exchange.published import Published, Stream, sha256_of, split_name, stream_name
from pipelines.experiment import InputError
from pipelines.sources import RowDict, read_rows
from pipelines.tasks import float_of

TABLES = ("clips", "labels")
SUFFIXES = (".csv", ".jsonl", ".parquet")
TIMES = "times"
SECONDS = "seconds"

_KNOWN = {"id", "split", "speaker", "group", "source", "transcript", SECONDS}
_MODALITIES: Mapping[str, Modality] = {
    "text": "text",
    "audio": "audio",
    "video": "video",
    "vision": "video",
}
_BROKEN = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)

Find: TypeAlias = Callable[[str], NDArray[Any] | None]
"""An array by its name; None where there is none."""


@dataclass(frozen=True, slots=True)
class _Arrays:
    """The arrays of one stream: of a clip's values, and of its times."""

    files: Sequence[Path]
    values: Find
    times: Find


def read_arrays(folder: Path, rates: Mapping[str, float], held: ExitStack) -> Published:
    """The clips and streams of a folder.

    Args:
        folder: See the module.
        rates: Steps a second of streams that have no times; a step of others lasts a second.
        held: Closes the files.

    Raises:
        InputError: There is no table or no stream, or a row of the table is wrong.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: wanted a folder of arrays")
    table = _table(folder)
    rows_ = read_rows(table)
    ids = [_id(table, number, row) for number, row in enumerate(rows_, start=1)]
    found = _streams(folder, ids, held)
    if not found:
        raise InputError(f"{folder}: there are no arrays: wanted STREAM/ID.npy, or .npz files")
    if strange := sorted(set(rates) - set(found)):
        raise InputError(f"--rate {strange[0]}: there is no such stream; there are {_names(found)}")
    streams = {
        stream_name(name): _stream(folder, name, each, ids, rates) for name, each in found.items()
    }
    clips = [
        _clip(table, row, clip_id, streams, number)
        for number, (row, clip_id) in enumerate(zip(rows_, ids, strict=True), start=1)
    ]
    untimed = sorted(
        name for name in found if name not in rates and not _has_times(found[name], ids)
    )
    said = f"{', '.join(untimed)}: no times and no --rate: a step lasts a second"
    return Published(
        clips=clips,
        streams=streams,
        pooling={"kind": "own"} if untimed else {"kind": "words"},
        notes=[said] if untimed else [],
    )


def _names(found: Mapping[str, object]) -> str:
    return ", ".join(found)


def _table(folder: Path) -> Path:
    names = [f"{name}{suffix}" for name in TABLES for suffix in SUFFIXES]
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise InputError(f"{folder}: there is no table of clips ({', '.join(names)})")
    return found[0]


def _id(table: Path, number: int, row: RowDict) -> str:
    found = str(row.get("id") or "")
    # It names files: nothing may lead out of the folder.
    if not found or Path(found).is_absolute() or ".." in Path(found).parts or "\0" in found:
        raise InputError(f"{table}: row {number}, column id: found {found!r}, wanted a name")
    return found


def _streams(folder: Path, ids: Sequence[str], held: ExitStack) -> dict[str, _Arrays]:
    """The arrays of each stream that there is."""
    found: dict[str, _Arrays] = {}
    known = set(ids)
    for below in sorted(path for path in folder.iterdir() if path.is_dir()):
        if files := sorted(below.rglob("*.npy")):
            found[below.name] = _Arrays(
                files, _in_folder(below, ""), _in_folder(below, f".{TIMES}")
            )
    archives = {path.stem: path for path in sorted(folder.glob("*.npz"))}
    for name in sorted(archives.keys() - known):
        opened = held.enter_context(_opened(archives[name]))
        found[name] = _Arrays([archives[name]], _in_file(opened, ""), _in_file(opened, f".{TIMES}"))
    by_clip = {name: archives[name] for name in archives.keys() & known}
    names = {each for path in by_clip.values() for each in _members(path)}
    for name in sorted(each for each in names if not each.endswith(f".{TIMES}")):
        files = sorted(by_clip.values())
        found[name] = _Arrays(
            files, _in_clips(by_clip, name), _in_clips(by_clip, f"{name}.{TIMES}")
        )
    return found


def _opened(path: Path) -> Any:  # noqa: ANN401 - numpy's NpzFile
    try:
        return np.load(path, allow_pickle=False)
    except _BROKEN as error:
        raise InputError(f"{path}: no .npz file: {error}") from None


def _members(path: Path) -> list[str]:
    with _opened(path) as opened:
        return list(opened.files)


def _in_folder(folder: Path, suffix: str) -> Find:
    def find(name: str) -> NDArray[Any] | None:
        path = folder / f"{name}{suffix}.npy"
        return np.load(path, allow_pickle=False) if path.is_file() else None

    return find


def _in_file(opened: Any, suffix: str) -> Find:  # noqa: ANN401 - numpy's NpzFile
    names = set(opened.files)

    def find(name: str) -> NDArray[Any] | None:
        return opened[f"{name}{suffix}"] if f"{name}{suffix}" in names else None

    return find


def _in_clips(files: Mapping[str, Path], array: str) -> Find:
    def find(name: str) -> NDArray[Any] | None:
        if name not in files:
            return None
        with np.load(files[name], allow_pickle=False) as opened:
            return opened[array] if array in opened.files else None

    return find


def _has_times(arrays: _Arrays, ids: Sequence[str]) -> bool:
    return any(arrays.times(name) is not None for name in ids[:NAMED])


NAMED = 8
"""Clips that are looked at to tell how wide a stream is, and whether it has times."""


def _width(folder: Path, name: str, arrays: _Arrays, ids: Sequence[str]) -> int:
    """The dimensions of a stream: those of most of the first arrays that can be read."""
    widths: Counter[int] = Counter()
    for each in ids:
        with contextlib.suppress(*_BROKEN):
            if (found := arrays.values(each)) is not None:
                widths[1 if found.ndim < 2 else int(found.shape[-1])] += 1
        if widths.total() == NAMED:
            break
    if not widths:
        raise InputError(f"{folder}: no clip has an array of {name!r} that can be read")
    return widths.most_common(1)[0][0]


def _stream(
    folder: Path, name: str, arrays: _Arrays, ids: Sequence[str], rates: Mapping[str, float]
) -> Stream:
    width = _width(folder, name, arrays, ids)
    origin: dict[str, Scalar] = {
        "format": "arrays",
        "file": f"{folder.resolve().name}/{name}",
        "sha256": sha256_of(arrays.files),
        **({"rate_hz": rates[name]} if name in rates else {}),
    }
    modality = _MODALITIES.get(name, "stream")
    return Stream(
        spec=imported_spec(stream_name(name), modality, width, origin),
        read=_reader(arrays, width, rates.get(name, 1.0)),
    )


def _reader(arrays: _Arrays, width: int, rate_hz: float) -> Callable[[Clip], Outcome]:
    def read(clip: Clip) -> Outcome:
        try:
            values = arrays.values(clip.id)
            if values is None:
                return Outcome(state="absent")
            return Outcome(
                state="sample", feature=_feature(arrays, clip.id, values, width, rate_hz)
            )
        except BadClipError as bad:
            return Outcome(state="quarantined", fault=bad.fault, message=bad.message)
        except _BROKEN as error:
            message = " ".join(str(error).split())
            return Outcome(state="quarantined", fault="bad_stream", message=message)

    return read


def _feature(
    arrays: _Arrays, name: str, values: NDArray[Any], width: int, rate_hz: float
) -> Feature:
    if values.ndim == 1:
        values = values[:, np.newaxis] if width == 1 else values[np.newaxis]
    if values.ndim != 2 or values.shape[1] != width or values.dtype.kind not in "fiub":
        raise BadClipError(
            "bad_stream", f"{values.dtype} {values.shape}; wanted numbers [T, {width}]"
        )
    if not len(values):
        raise BadClipError("empty", "there is no step")
    told = arrays.times(name)
    if told is None:
        return Feature(values, rows.paced(len(values), rate_hz))
    if told.dtype.kind not in "fiu" or len(told) != len(values) or not np.isfinite(told).all():
        raise BadClipError(
            "bad_stream", f"times are {told.dtype} {told.shape}; wanted [T, 2] or [T]"
        )
    times = told.astype(np.float64)
    return Feature(values, rows.lasting(times) if times.ndim == 1 else times.reshape(-1, 2))


def _clip(
    table: Path, row: RowDict, clip_id: str, streams: Mapping[str, Stream], number: int
) -> Clip:
    try:
        split = split_name(str(row["split"])) if "split" in row else None
    except ValueError as error:
        raise InputError(f"{table}: row {number}, column split: {error}") from None
    bare = Clip(key=key_of(clip_id), id=clip_id, media="", media_digest="")
    seconds = float_of(row.get(SECONDS)) if SECONDS in row else _ends(bare, streams)
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        found = row.get(SECONDS)
        raise InputError(
            f"{table}: row {number}, column {SECONDS}: found {found!r}, wanted seconds"
        )
    return Clip(
        key=bare.key,
        id=clip_id,
        media="",
        media_digest="",
        seconds=seconds,
        words=_words(str(row.get("transcript", "")), seconds),
        source=str(row.get("source", "")),
        speaker=None if "speaker" not in row else str(row["speaker"]),
        group=None if "group" not in row else str(row["group"]),
        split=split,
        labels={name: _label(value) for name, value in row.items() if name not in _KNOWN},
    )


def _label(value: object) -> Label:
    number = float_of(value)
    return str(value) if number is None or not math.isfinite(number) else number


def _ends(clip: Clip, streams: Mapping[str, Stream]) -> float:
    """Where the last step of any stream ends."""
    found = (stream.read(clip).feature for stream in streams.values())
    return max((float(f.times[:, 1].max()) for f in found if f is not None), default=0.0)


def _words(text: str, seconds: float) -> tuple[Word, ...] | None:
    said = text.split()
    edges = np.linspace(0.0, seconds, len(said) + 1).tolist()
    words = tuple(
        Word(text=word, start=start, end=end, estimated=True)
        for word, start, end in zip(said, edges[:-1], edges[1:], strict=True)
    )
    return words or None
