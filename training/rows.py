"""The rows that a predictor is asked about: checked, and what they bring put where it is read.

A row is a clip: the path of its media or their bytes, or features that were computed elsewhere.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip, Word
from featurizers.imported import is_imported, origin_of
from featurizers.intake import CHOSEN, RawClip
from featurizers.spec import Feature, FeatureSpec
from featurizers.transcript import file_and_tier

STREAM, FEATURES, TIMES = "stream:", "features:", "times:"
WORDS = f"{TIMES}words"
BYTES = "media_bytes"
"""Media as they are, in place of a path."""

CAPTIONS = "WEBVTT"
"""What a transcript begins with that has times, as in the file of this name."""

_BASE = ("media", BYTES)


class WrongRowsError(ValueError):
    """Rows that no clip can be made of: which row, which column, what was wanted."""


@dataclass(frozen=True, slots=True)
class Access:
    """Which files rows may name.

    Attributes:
        paths: Whether they may name any.
        root: The folder that these must lie in; None for any on this machine.
    """

    paths: bool = True
    root: Path | None = None

    def file(self, name: str, wrong: "_Wrong") -> Path:
        """The file that a cell names, links followed where there is a root.

        Raises:
            WrongRowsError: It may not be read.
        """
        if "://" in name:
            raise wrong(f"found the address {name!r}; wanted a file on this machine, or {BYTES}")
        if not _can_be_named(name):
            raise wrong(f"{name[:80]!r} is no path")
        if not self.paths:
            raise wrong(
                f"names a file, and none may be read here; give {BYTES} and the words, or have the "
                f"server started with FUSELINE_MEDIA_ROOT set to the folder of media"
            )
        if self.root is None:
            return Path(name)
        if ".." in PurePath(name).parts:
            raise wrong(f"{name!r} has a '..'; wanted a path below the folder of media")
        try:
            whole = (self.root / name).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise wrong(f"{name[:80]!r} is no path: {error}") from None
        if not whole.is_relative_to(self.root.resolve()):
            raise wrong(f"{name!r} lies outside the folder of media")
        return whole

    def transcript(self, name: str, wrong: "_Wrong") -> Path:
        """As `file`, of a file with a tier after a "#" where one is named.

        Raises:
            WrongRowsError: It may not be read.
        """
        whole = self.file(name, wrong)
        # Only the file without its tier is one whose links can be followed.
        path, tier = file_and_tier(Path(name) if self.root is None else self.root.absolute() / name)
        return whole if tier is None else Path(f"{self.file(str(path), wrong)}#{tier}")


@dataclass(frozen=True, slots=True)
class _Wrong:
    """Makes the error of a cell."""

    row: int
    column: str

    def __call__(self, text: str) -> WrongRowsError:
        return WrongRowsError(f"row {self.row + 1}, column {self.column}: {text}")


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked row.

    Attributes:
        id: As given, or else the media.
        cells: Those of the row that are not empty.
        media: The file of media that it names.
        transcript_file: The file of words, with a tier after a "#" where one is named.
        streams: The files of numbers by name.
        features: By stream, what was computed elsewhere; where there are any, nothing else is
            computed.
    """

    id: str
    cells: Mapping[str, Any]
    media: Path | None = None
    transcript_file: Path | None = None
    streams: Mapping[str, Path] = field(default_factory=dict)
    features: Mapping[str, Feature] = field(default_factory=dict)

    def raw(self, key: str, scratch: Path) -> RawClip:
        """What is taken in; bytes are written to the folder `scratch`.

        Raises:
            BadClipError: "bad_span": a start or an end is no number.
        """
        path, text, file = self.media, self.cells.get("transcript"), self.transcript_file
        content = self.cells.get(BYTES)
        if content is not None:
            path = scratch / f"{key}{_suffix(self.cells.get('media'))}"
            path.write_bytes(content)
        if file is None and text is not None and str(text).startswith(CAPTIONS):
            file, text = scratch / f"{key}.vtt", None
            file.write_text(str(self.cells["transcript"]), encoding="utf-8")
        rates = {name: self._seconds(f"{STREAM}{name}:hz") for name in self.streams}
        return RawClip(
            key=key,
            id=self.id,
            media="" if path is None else str(path),
            path=path,
            transcript=None if file is not None or text is None else str(text),
            transcript_file=file,
            start=self._seconds("start") or 0.0,
            end=self._seconds("end"),
            streams=self.streams,
            stream_rates={name: rate for name, rate in rates.items() if rate},
            columns={name: str(self.cells.get(name) or "") for name in CHOSEN},
        )

    def clip(self, key: str) -> Clip:
        """The clip of a row that brings its features."""
        ends = [float(each.times[:, 1].max(initial=0.0)) for each in self.features.values()]
        times_W2 = self.cells.get(WORDS)
        texts = str(self.cells.get("transcript") or "").split()
        words = None
        if times_W2 is not None:
            names = texts if len(texts) == len(times_W2) else [""] * len(times_W2)
            words = tuple(
                Word(text=text, start=float(start), end=float(end))
                for text, (start, end) in zip(names, times_W2, strict=True)
            )
            ends.append(float(times_W2[:, 1].max(initial=0.0)))
        told = self.cells.get("end")
        if told is not None:
            ends = [float(told) - float(self.cells.get("start") or 0.0)]
        return Clip(
            key=key,
            id=self.id,
            media="",
            media_digest="",
            start=0.0,
            end=None,
            seconds=max(ends, default=0.0),
            words=words or None,
        )

    def _seconds(self, name: str) -> float | None:
        value = self.cells.get(name)
        try:
            return None if value is None else float(value)
        except (TypeError, ValueError):
            raise BadClipError("bad_span", f"{name} is {value!r}; wanted seconds") from None


def checked(
    rows: Sequence[Mapping[str, Any]],
    specs: Mapping[str, FeatureSpec],
    access: Access,
    *,
    pooled_to_words: bool,
) -> list[Asked]:
    """Check all rows before anything is read.

    Args:
        rows: As `Predictor.predict` takes them.
        specs: The feature of each stream of the model.
        access: Which files they may name.
        pooled_to_words: Whether the model sees a clip word by word.

    Raises:
        WrongRowsError: Names the row and the column.
    """
    return [
        _checked(number, row, specs, access, pooled_to_words) for number, row in enumerate(rows)
    ]


def _checked(
    number: int,
    row: Mapping[str, Any],
    specs: Mapping[str, FeatureSpec],
    access: Access,
    pooled_to_words: bool,
) -> Asked:
    cells = {name: value for name, value in row.items() if not _is_empty(value)}
    features = _features(number, cells, specs)
    if not features:
        _check_computable(number, specs)
    if WORDS in cells:
        cells[WORDS] = _times(cells[WORDS], _Wrong(number, WORDS))
    if features:
        if both := sorted(set(cells) & set(_BASE)):
            text = "a row has media or features, not both"
            raise _Wrong(number, both[0])(text)
        if pooled_to_words and "transcript" in cells and WORDS not in cells:
            text = "is missing: where the words of `transcript` lie, of the sound that is not here"
            raise _Wrong(number, WORDS)(text)
    if BYTES in cells and not isinstance(cells[BYTES], bytes):
        kind = type(cells[BYTES]).__name__
        raise _Wrong(number, BYTES)(f"found {kind}; wanted bytes (in JSON, in base64)")
    named = BYTES in cells  # then `media` only names them
    files = {
        column: read(str(cells[column]), _Wrong(number, column))
        for column, read in (("media", access.file), ("transcript_file", access.transcript))
        if column in cells and not (named and column == "media")
    }
    if named and not _can_be_named(_suffix(cells.get("media"))):
        raise _Wrong(number, "media")("its ending cannot be that of a file; wanted one as .mp4 is")
    streams = {
        column.removeprefix(STREAM): access.file(str(value), _Wrong(number, column))
        for column, value in cells.items()
        if column.startswith(STREAM) and column.count(":") == 1
    }
    return Asked(
        id=str(cells.get("id") or cells.get("media") or f"row {number + 1}"),
        cells=cells,
        media=files.get("media"),
        transcript_file=files.get("transcript_file"),
        streams=streams,
        features=features,
    )


def _check_computable(number: int, specs: Mapping[str, FeatureSpec]) -> None:
    """Raise WrongRowsError where a stream of the model is none that can be made of a raw clip."""
    for name, spec in specs.items():
        if is_imported(spec):
            raise _Wrong(number, f"{FEATURES}{name}")(
                f"is missing: the model was trained on features that were imported from "
                f"{origin_of(spec)}, and nothing here computes them from a raw clip; give "
                f"{FEATURES}{name} and {TIMES}{name}, or train on features that fuseline computes"
            )


def _can_be_named(name: str) -> bool:
    """Whether an operating system takes the name: JSON can hold some that none does."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _is_empty(value: object) -> bool:
    # MLflow takes an empty list in place of a feature that a row lacks, and no NaN.
    is_nothing = isinstance(value, list | np.ndarray) and not len(value)
    return value is None or is_nothing or (isinstance(value, float) and math.isnan(value))


def _suffix(name: object) -> str:
    return PurePath(str(name or "")).suffix[:10]


def _features(
    number: int, cells: Mapping[str, Any], specs: Mapping[str, FeatureSpec]
) -> dict[str, Feature]:
    found: dict[str, Feature] = {}
    for column, value in cells.items():
        kind, _, stream = column.partition(":")
        if f"{kind}:" not in (FEATURES, TIMES) or column == WORDS:
            continue
        wrong = _Wrong(number, column)
        if stream not in specs:
            raise wrong(f"the model has no stream {stream!r}; it has {', '.join(specs)}")
        other = f"{FEATURES if kind == 'times' else TIMES}{stream}"
        if other not in cells:
            raise _Wrong(number, other)(f"is missing, and {column} is given")
        if kind == "features":
            values_TD = _values(value, specs[stream], wrong)
            times_T2 = _times(cells[other], _Wrong(number, other))
            if len(values_TD) != len(times_T2):
                raise _Wrong(number, other)(
                    f"found {len(times_T2)} steps; wanted {len(values_TD)}, as {column} has"
                )
            found[stream] = Feature(values_TD, times_T2)
    return {name: found[name] for name in specs if name in found}


def _values(value: object, spec: FeatureSpec, wrong: _Wrong) -> NDArray[Any]:
    wanted = f"wanted [steps, {spec.width}], as {spec.name} gives it"
    array = _array(value, wrong, wanted)
    if array.ndim != 2 or array.shape[1] != spec.width:
        raise wrong(f"found the shape {list(array.shape)}; {wanted}")
    if not np.isfinite(array).all():
        raise wrong("there is NaN or infinity in it; wanted finite numbers")
    return array.astype(spec.dtype)


def _times(value: object, wrong: _Wrong) -> NDArray[np.float64]:
    wanted = "wanted [steps, 2]: start and end of each in seconds from the clip's start, in order"
    array = _array(value, wrong, wanted)
    if array.ndim != 2 or array.shape[1] != 2:
        raise wrong(f"found the shape {list(array.shape)}; {wanted}")
    if not (np.isfinite(array).all() and (array[:, 0] <= array[:, 1]).all()):
        raise wrong(f"a step ends before it begins, or is not finite; {wanted}")
    return array


def _array(value: object, wrong: _Wrong, wanted: str) -> NDArray[np.float64]:
    """Numbers from nested lists or arrays of arrays, as MLflow hands them on."""
    try:
        steps = [np.asarray(step, dtype=np.float64) for step in value]  # type: ignore[attr-defined]
        return np.stack(steps) if steps else np.zeros((0, 0))
    except (TypeError, ValueError):
        raise wrong(f"found rows of different lengths, or no numbers; {wanted}") from None
