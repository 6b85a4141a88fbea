"""The identity of a feature, and what a featurizer is."""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip

Modality: TypeAlias = Literal["audio", "video", "text", "stream"]
Scalar: TypeAlias = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension of a feature: its name and its unit ("1" for a plain number)."""

    name: str
    unit: str = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a grid.

    Attributes:
        name: What it counts, such as "row"; its places are row000, row001 ... of equal length.
        size: How many places it has.
        places: Their names where they have names, such as red, green and blue; else empty.
    """

    name: str
    size: int
    places: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ValueError where an axis has no place, or names for other than all of them."""
        if self.size < 1 or (self.places and len(self.places) != self.size):
            raise ValueError(
                f"axis {self.name!r} has {self.size} places and {len(self.places)} names; "
                f"wanted a place at least, and a name for all of them or for none"
            )

    def place(self, at: int) -> str:
        """The name of one of its places."""
        return self.places[at] if self.places else f"{self.name}{at:0{len(str(self.size - 1))}d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Dimensions of one unit on a regular grid, the last axis running fastest.

    The name of a dimension is that of its places, joined by "_". It is made when it is asked for:
    the pixels of a picture of 224 x 224 are 150,528 dimensions, told here in four lines.

    Attributes:
        axes: From the slowest to the fastest.
        unit: Of all dimensions.
    """

    axes: tuple[Axis, ...]
    unit: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Places by axis: `values.reshape(T, *shape)` is the feature as it lies on the grid."""
        return tuple(axis.size for axis in self.axes)

    def __len__(self) -> int:
        """How many dimensions."""
        return math.prod(self.shape)

    def __getitem__(self, at: int) -> Dim:
        """The dimension of this number. Raises IndexError when there is none."""
        if not -len(self) <= at < len(self):
            raise IndexError(f"dimension {at} of {len(self)}")
        rest, named = at % len(self), list[str]()
        for axis in reversed(self.axes):
            rest, place = divmod(rest, axis.size)
            named.append(axis.place(place))
        return Dim("_".join(reversed(named)), self.unit)

    def __iter__(self) -> Iterator[Dim]:
        """All dimensions, in order."""
        return (self[at] for at in range(len(self)))


Dims: TypeAlias = tuple[Dim, ...] | Grid


def dims_from_json(plain: Sequence[Mapping[str, str]] | Mapping[str, Any]) -> Dims:
    """The dimensions of a spec as they were written: a list of them, or a grid."""
    if not isinstance(plain, Mapping):
        return tuple(Dim(**dim) for dim in plain)
    axes = (Axis(**{**axis, "places": tuple(axis["places"])}) for axis in plain["axes"])
    return Grid(axes=tuple(axes), unit=plain["unit"])


@dataclass(frozen=True, kw_only=True)  # without slots: its digest is asked for again and again
class FeatureSpec:
    """All that decides a feature's numbers, and how far they are promised.

    Attributes:
        name: The featurizer's name in the catalog.
        version: Raised whenever the numbers change.
        reads: The inputs: "audio", "video", "words" or "stream:NAME".
        parameters: The featurizer's settings, all of them, defaults included.
        dims: One by one, or a grid that tells each dimension's name by its place.
        rate_hz: Steps per second; None where steps are events, such as words.
        weights: sha256 of the pretrained weights; empty when there are none.
        licence: Of the code and, where there are weights, of them.
        atol: None promises equal bits everywhere ("exact"); a number promises that much ("within").
        source: Where weights of the user's own lay. No part of the identity, and never written: it
            goes with a job to a worker, which looks there first.
    """

    name: str
    version: int
    modality: Modality
    reads: tuple[str, ...]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    dims: Dims
    rate_hz: float | None
    dtype: Literal["float32", "uint8"] = "float32"
    weights: str = ""
    licence: str = "Apache-2.0"
    atol: float | None = None
    source: str = field(default="", compare=False)

    @property
    def width(self) -> int:
        """The number of dimensions."""
        return len(self.dims)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 in hex of the whole spec; without the licence where weights are named by theirs.

        A model card that is added to a checkpoint later changes no number.
        """
        plain = self.to_json()
        if self.weights:
            del plain["licence"]
        return hashlib.sha256(canonical_json(plain)).hexdigest()

    @property
    def fingerprint(self) -> str:
        """The name of the feature's folder: name and the digest's first 12 digits."""
        return f"{self.name}-{self.digest[:12]}"

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` gives the spec back, but for its source."""
        plain = asdict(self)
        del plain["source"]
        return plain

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "FeatureSpec":
        """The spec that `to_json` wrote."""
        plain = dict(data)
        dims = dims_from_json(plain.pop("dims"))
        return FeatureSpec(**{**plain, "dims": dims, "reads": tuple(plain["reads"])})


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of one clip.

    Attributes:
        values: [T, D] of the spec's dtype.
        times: float64 [T, 2]: start and end of each step in seconds from the clip's start.
    """

    values: NDArray[Any]
    times: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioWant:
    """Sound at this rate, mixed to one channel.

    Attributes:
        stream: Which, as `Clip.audio_stream`; whoever decodes a clip fills it in.
    """

    rate_hz: int = 16_000
    stream: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoWant:
    """Pictures at this rate, size x size pixels.

    Attributes:
        fit: "centre" is the largest centred square; "whole" is all of the picture, its longer side
            scaled to `size`, in the middle of a black square.
        stream: Which, as `Clip.video_stream`; whoever decodes a clip fills it in.
    """

    fps: float
    size: int
    colour: Literal["gray", "rgb"] = "gray"
    fit: Literal["centre", "whole"] = "centre"
    stream: str = ""


Want: TypeAlias = AudioWant | VideoWant


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """Sound: int16 [N] at the wanted rate; start in seconds from the clip's start."""

    start: float
    samples: NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class VideoChunk:
    """Pictures: uint8 [N, H, W] or [N, H, W, 3].

    Their times are float64 [N, 2] in seconds from the clip's start.
    """

    times: NDArray[np.float64]
    frames: NDArray[np.uint8]


Chunk: TypeAlias = AudioChunk | VideoChunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A feature that waits for its featurizer's encoder.

    Attributes:
        items: What is to be encoded, of one dtype; the encoder may see them in several batches.
        assemble: Makes the feature of the encoded items, in their order. Raises BadClipError as
            `Extraction.finish` does.
    """

    items: Sequence[NDArray[Any]]
    assemble: Callable[[Sequence[NDArray[Any]]], Feature]


class Extraction(Protocol):
    """One clip's feature in the making; fed in order of time."""

    def add(self, chunk: Chunk) -> None:
        """Take the next piece of media."""

    def finish(self) -> Feature | Pending:
        """The feature, or what its encoder must do first.

        Raises BadClipError "empty" when too little was given.
        """


class Featurizer(Protocol):
    """Computes one feature.

    A modality that a clip does not have is the caller's affair: `begin` is only called when all
    that `spec.reads` names is there.
    """

    @property
    def spec(self) -> FeatureSpec:
        """What it computes."""

    @property
    def wants(self) -> Want | None:
        """The media that it is fed with; None when it reads words or a stream of numbers alone."""

    def begin(self, clip: Clip) -> Extraction:
        """Start on a clip."""


class Encoder(Protocol):
    """A model that takes many items at once.

    Attributes:
        batch: How many; halved for good when memory runs out.
    """

    batch: int

    def encode(self, items: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """An array for each item, at most `batch` of them.

        The items may be of several clips, so it raises no BadClipError; for want of memory it
        raises MemoryError or torch's own error.
        """


@runtime_checkable
class EncodingFeaturizer(Featurizer, Protocol):
    """A featurizer whose extractions may end in `Pending`."""

    @property
    def encoder(self) -> Encoder:
        """What encodes their items."""


def check_feature(spec: FeatureSpec, feature: Feature) -> None:
    """Raise ValueError when a feature is not what its spec says (a bug of the featurizer)."""
    values, times = feature.values, feature.times
    if values.ndim != 2 or values.shape[1] != spec.width or str(values.dtype) != spec.dtype:
        raise ValueError(
            f"{spec.name} gave {values.dtype} {values.shape}; "
            f"its spec says {spec.dtype} [T, {spec.width}]"
        )
    if times.shape != (len(values), 2) or times.dtype != np.float64:
        raise ValueError(
            f"{spec.name} gave times {times.dtype} {times.shape}; wanted float64 [{len(values)}, 2]"
        )


def names(prefix: str, count: int, unit: str = "1") -> Sequence[Dim]:
    """Numbered dimensions, such as mel_00 ... mel_39."""
    digits = len(str(count - 1))
    return [Dim(f"{prefix}_{i:0{digits}d}", unit) for i in range(count)]
