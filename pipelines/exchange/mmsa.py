"""MMSA's pickle: a dictionary of splits, each with arrays of all of its clips, padded with zeros.

    {"train": {"id": [N], "raw_text": [N], "text": [N, L, D], "audio": ..., "vision": ...,
               "audio_lengths": [N], "vision_lengths": [N],      (of the unaligned form alone)
               "regression_labels": [N], "classification_labels": [N], "annotations": [N],
               "regression_labels_T": [N], ...}, "valid": {...}, "test": {...}}

The layout is that which thuiar/MMSA reads (`data_loader.py`) and MMSA-FET writes (`dataset.py`);
the files of Tsai et al.'s MulT, whose labels lie under "labels", are read as well; they tell no
lengths, and are of the unaligned form where their streams have unlike numbers of steps. A file says
nothing of times. In the aligned form all streams share their steps, and each is given a second. In
the unaligned form a clip is given as many seconds as it has steps of text, and the steps of each
stream share them equally.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip, Label, Word, key_of
from featurizers.extract import Outcome
from featurizers.imported import imported_spec
from featurizers.spec import Feature, Modality
from pipelines.exchange.plain_pickle import read_plain_pickle
from pipelines.exchange.published import Published, Stream, sha256_of, split_name, stream_name
from pipelines.experiment import InputError

STREAMS: Mapping[str, Modality] = {"text": "text", "audio": "audio", "vision": "video"}
BETWEEN = "$_$"
"""What stands between the name of a recording and the number of a clip in it."""

TIMES, SECONDS, STEPS = "times", "seconds", "steps"
"""Of our own, which MMSA does not read: arrays [N, L, 2] by stream; each clip's duration; and how
many steps it has in the aligned form."""

LABELS = ("regression_labels", "classification_labels", "annotations", "labels")
EMOTIONS = ("neutral", "happy", "sad", "angry")
"""The questions of MulT's IEMOCAP in the order of its evaluation; the answers, no or yes, are a
score for either: [N, 4, 2]."""

_Part: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a clip lies in a stream: its split, its number there, and its steps."""

    part: str
    number: int
    steps: slice


def read_mmsa(path: Path) -> Published:
    """The clips and streams of an MMSA pickle.

    Steps that are padding are left out: what lies beyond the lengths that the file tells; else what
    is 0 at the beginning and the end: in all streams at once where they share their steps, in each
    by itself where they do not.

    Raises:
        InputError: It is no such pickle, or its parts do not fit each other.
    """
    parts = _parts(path, read_plain_pickle(path))
    widths = _widths(path, parts)
    aligned = _are_aligned(path, parts)
    places: dict[str, dict[str, _Place]] = {name: {} for name in widths}
    beyond = dict.fromkeys(widths, 0)
    clips: list[Clip] = []
    for name, part in parts.items():
        steps = {stream: _steps(part, stream, beyond) for stream in _streams(part)}
        if aligned:
            steps = _shared(part, steps)
        for number, clip in enumerate(_clips(path, name, part, steps, aligned)):
            clips.append(clip)
            for stream, spans in steps.items():
                places[stream][clip.key] = _Place(name, number, spans[number])
    sha256 = sha256_of([path])
    streams = {
        name: Stream(
            spec=imported_spec(
                stream_name(name),
                STREAMS[name],
                width,
                {"format": "mmsa", "file": path.name, "sha256": sha256, "part": name},
                by_word=aligned,
            ),
            read=_reader(parts, name, places[name]),
        )
        for name, width in widths.items()
    }
    return Published(
        clips=clips,
        streams=streams,
        pooling={"kind": "cells", "cell_s": 1.0} if aligned else {"kind": "own"},
        notes=[
            f"{path.name}: {'aligned' if aligned else 'unaligned'}; "
            + ", ".join(f"{name} [{width}]" for name, width in widths.items()),
            *_notes(parts, beyond),
        ],
    )


def _are_aligned(path: Path, parts: Mapping[str, _Part]) -> bool:
    """Whether the streams share their steps: no lengths are told, and the arrays are as long."""
    if any(f"{name}_lengths" in part for part in parts.values() for name in STREAMS):
        return False
    lengths = {
        split: {name: part[name].shape[1] for name in _streams(part)}
        for split, part in parts.items()
    }
    alike = {split: len(set(each.values())) == 1 for split, each in lengths.items()}
    if len(set(alike.values())) > 1:
        raise InputError(
            f"{path}: some splits have streams of as many steps, others of unlike numbers, and no "
            f"lengths (audio_lengths, vision_lengths) are told: neither the aligned form nor the "
            f"unaligned: {lengths}"
        )
    return all(alike.values())


def _widths(path: Path, parts: Mapping[str, _Part]) -> dict[str, int]:
    found: dict[str, set[int]] = {}
    for part in parts.values():
        for name in _streams(part):
            found.setdefault(name, set()).add(part[name].shape[2])
    if unlike := {name: sorted(each) for name, each in found.items() if len(each) > 1}:
        raise InputError(f"{path}: splits have unlike dimensions: {unlike}")
    return {name: each.pop() for name, each in found.items()}


def _notes(parts: Mapping[str, _Part], beyond: Mapping[str, int]) -> Iterator[str]:
    for stream, count in beyond.items():
        if count:
            yield (
                f"{stream}: {count} clips have numbers beyond the length that the file tells; "
                f"these are left out"
            )
    if any("text_bert" in part for part in parts.values()):
        yield "text_bert (numbers of word pieces) is no feature, and is not imported"


def _parts(path: Path, found: object) -> dict[str, _Part]:
    """The splits that hold clips, by our names; arrays [N, L, D] of features."""
    if not isinstance(found, dict):
        raise InputError(f"{path}: wanted a dictionary of splits, found {type(found).__name__}")
    parts: dict[str, _Part] = {}
    for name, part in found.items():
        try:
            ours = split_name(str(name))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        if not isinstance(part, dict):
            raise InputError(f"{path}: split {name!r}: wanted arrays by name")
        arrays = {str(key): _features(path, str(key), each) for key, each in part.items()}
        if any(len(arrays[stream]) for stream in _streams(arrays)):
            _check(path, ours, arrays)
            parts[ours] = arrays
    if not parts:
        raise InputError(f"{path}: no split has clips with {', '.join(STREAMS)}")
    return parts


def _check(path: Path, name: str, part: _Part) -> None:
    """Raise InputError where a split's arrays are not of the same clips."""
    for key in (*_told(part), *_per_clip(part)):
        if not isinstance(part[key], np.ndarray | list | tuple):
            raise InputError(f"{path}: split {name!r}: {key} is a {type(part[key]).__name__}")
    counts = {key: len(part[key]) for key in (*_streams(part), *_told(part), *_per_clip(part))}
    if len(set(counts.values())) > 1:
        raise InputError(f"{path}: split {name!r} has unlike numbers of clips: {counts}")
    _check_own(path, part)


def _check_own(path: Path, part: _Part) -> None:
    """Raise InputError where lengths, durations or times are no such numbers."""
    shapes = {
        name: (len(part[name]),) for name in _per_clip(part) if name not in ("id", "raw_text")
    }
    for name, shape in shapes.items():
        _check_numbers(path, name, part[name], shape)
    times = part.get(TIMES, {})
    if not isinstance(times, dict):
        raise InputError(f"{path}: {TIMES} is no dictionary of arrays by stream")
    for name in times.keys() & set(_streams(part)):
        _check_numbers(path, f"{TIMES} of {name}", times[name], (*part[name].shape[:2], 2))


def _check_numbers(path: Path, name: str, value: object, shape: tuple[int, ...]) -> None:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.shape != shape or not np.isfinite(array).all():
        raise InputError(
            f"{path}: {name} is {array.dtype} {array.shape}; wanted finite numbers {shape}"
        )


def _features(path: Path, name: str, value: object) -> Any:  # noqa: ANN401 - of the pickle
    if name not in STREAMS:
        return value
    array = np.asarray(value)
    array = array[:, np.newaxis] if array.ndim == 2 else array  # one vector a clip
    if array.ndim != 3 or array.dtype.kind not in "fiub":
        raise InputError(
            f"{path}: {name} is {array.dtype} {array.shape}; wanted numbers [clips, steps, dims]"
        )
    return array


def _streams(part: _Part) -> list[str]:
    return [name for name in STREAMS if name in part]


def _told(part: _Part) -> list[str]:
    """The names of a part's labels."""
    return [name for name in part if is_label(name)]


def is_label(name: str) -> bool:
    """Whether something in a pickle is a label of the clips."""
    return name in LABELS or name.startswith("regression_labels_")


def _per_clip(part: _Part) -> list[str]:
    names = ("id", "raw_text", SECONDS, STEPS, *(f"{name}_lengths" for name in STREAMS))
    return [name for name in names if name in part]


def _steps(part: _Part, stream: str, beyond: dict[str, int]) -> list[slice]:
    """The steps of each clip that are no padding."""
    array, lengths = part[stream], _lengths(part, stream)
    there = _there(array)
    if lengths is None:
        return [_span(each) for each in there]
    found = []
    for each, length in zip(there, lengths, strict=True):
        most = min(max(int(length), 0), array.shape[1])
        ends = array.shape[1] - most
        after, before = bool(each[most:].any()), bool(each[:ends].any())
        # Some write the padding in front.
        in_front = after and not before
        beyond[stream] += after and before
        found.append(slice(ends, array.shape[1]) if in_front else slice(0, most))
    return found


def _there(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a step is not 0 in all dimensions: [N, L]."""
    # Clip by clip: the whole array may be many gigabytes.
    return np.stack([(each != 0).any(axis=1) for each in array])


def _span(there: NDArray[np.bool_]) -> slice:
    places = np.flatnonzero(there)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _lengths(part: _Part, stream: str) -> NDArray[Any] | None:
    """How many steps each clip has of a stream, where the file tells."""
    if f"{stream}_lengths" in part:
        return np.asarray(part[f"{stream}_lengths"])
    if stream == "text" and "text_bert" in part:
        pieces = np.asarray(part["text_bert"])  # [N, 3, L]: numbers, mask, segments
        if pieces.ndim == 3 and pieces.shape[1] == 3 and pieces.shape[2] == part[stream].shape[1]:
            counted: NDArray[Any] = pieces[:, 1].sum(axis=1)
            return counted
    return None


def _shared(part: _Part, steps: Mapping[str, Sequence[slice]]) -> dict[str, list[slice]]:
    """The steps that any of the streams has, where these share their steps."""
    if STEPS in part:
        return {name: [slice(0, int(count)) for count in part[STEPS]] for name in steps}
    shared = []
    for spans in zip(*steps.values(), strict=True):
        some = [span for span in spans if span.stop > span.start]
        first = min((span.start for span in some), default=0)
        shared.append(slice(first, max((span.stop for span in some), default=0)))
    return {name: list(shared) for name in steps}


def _clips(
    path: Path, name: str, part: _Part, steps: Mapping[str, Sequence[slice]], aligned: bool
) -> Iterator[Clip]:
    """The clips of a split, in its order."""
    count = len(next(iter(steps.values())))
    ids = _ids(name, part, count)
    texts = [_text(each) for each in part.get("raw_text", [""] * count)]
    labels = {label: _label_of(path, label, part[label]) for label in _told(part)}
    for number in range(count):
        lengths = {each: spans[number].stop - spans[number].start for each, spans in steps.items()}
        usual = max(lengths.values()) if aligned else lengths.get("text") or max(lengths.values())
        seconds = float(part[SECONDS][number]) if SECONDS in part else float(usual)
        told = {label: values[number] for label, values in labels.items()}
        yield Clip(
            key=key_of(ids[number]),
            id=ids[number],
            media="",
            media_digest="",
            seconds=seconds,
            words=_words(texts[number], seconds),
            source=ids[number].partition(BETWEEN)[0] if BETWEEN in ids[number] else "",
            split=name,
            labels={label: value for label, value in told.items() if value is not None},
        )


def _ids(name: str, part: _Part, count: int) -> list[str]:
    if "id" not in part:
        return [f"{name}-{number}" for number in range(count)]
    # Those of MulT's files are a recording, its start and its end.
    rows = [np.asarray(each).reshape(-1) for each in part["id"]]
    return [BETWEEN.join(_text(each) for each in row) for row in rows]


def _text(value: object) -> str:
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0] if value.size else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _words(text: str, seconds: float) -> tuple[Word, ...] | None:
    """The words of a transcript, spread over the clip: the file does not say when they are said."""
    said = text.split()
    if not said:
        return None
    edges = np.linspace(0.0, seconds, len(said) + 1).tolist()
    return tuple(
        Word(text=word, start=start, end=end, estimated=True)
        for word, start, end in zip(said, edges[:-1], edges[1:], strict=True)
    )


def _label_of(path: Path, name: str, values: object) -> list[Label | None]:
    """The labels of a split's clips: numbers of a regression, else texts. None for NaN."""
    array = np.asarray(values)
    if array.shape[1:] == (len(EMOTIONS), 2):
        return [_answered(each) for each in array]
    array = array.reshape(len(array), -1)
    if array.shape[1] != 1:
        raise InputError(f"{path}: {name} is {array.shape}; wanted one label a clip")
    column = array[:, 0]
    if name == "classification_labels":
        return [_class(each) for each in column]
    try:
        numbers = column.astype(np.float64)
    except ValueError:
        return [_text(each) or None for each in column]
    return [float(each) if np.isfinite(each) else None for each in numbers]


def _answered(scores: NDArray[Any]) -> tuple[str, ...]:
    """The emotions whose answer is yes, sorted."""
    yes = scores.argmax(axis=1)
    return tuple(sorted(name for name, said in zip(EMOTIONS, yes, strict=True) if said))


def _class(value: object) -> str | None:
    number: object = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, float):
        told = str(int(number)) if number.is_integer() else str(number)
        return None if math.isnan(number) else told
    return _text(number) or None


def _reader(
    parts: Mapping[str, _Part], stream: str, places: Mapping[str, _Place]
) -> Callable[[Clip], Outcome]:
    def read(clip: Clip) -> Outcome:
        place = places.get(clip.key)
        count = 0 if place is None else place.steps.stop - place.steps.start
        if place is None or not count:
            return Outcome(state="absent")
        part = parts[place.part]
        values = part[stream][place.number][place.steps]
        told = part.get(TIMES, {}).get(stream)
        if told is None:
            edges = np.linspace(0.0, clip.seconds, count + 1)
            times = np.stack([edges[:-1], edges[1:]], axis=1)
        else:
            times = np.array(told[place.number][place.steps], dtype=np.float64)
        return Outcome(state="sample", feature=Feature(values, times))

    return read
