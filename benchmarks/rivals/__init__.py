"""Both sides of `featurizers.py`: each line's features by us, and the obvious way where one is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip, Word
from featurizers.spec import Chunk, Feature, Featurizer

Device: TypeAlias = Literal["cpu", "cuda"]
Floats: TypeAlias = NDArray[Any]
Side: TypeAlias = Callable[[], Sequence[Floats]]
"""Makes the features of all clips, one array each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """The same features by both sides.

    Attributes:
        name: Of the line.
        featurizer: Its name in the catalog; empty where there is none.
        seconds: Of media in all clips.
        theirs: The obvious way; None where nobody would write one that tells anything.
        compare: Raises when what both made of a clip differs.
        most: Rounds, at most; for sides that take long.
        encoder: Whether it runs on a GPU where there is one.
    """

    name: str
    featurizer: str
    seconds: float
    ours: Side
    theirs: Side | None = None
    compare: Callable[[Floats, Floats], None] | None = None
    most: int = 7
    encoder: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line that cannot be measured here, and why."""

    featurizer: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured, on what, and where files may be written."""

    quick: bool
    device: Device
    folder: Path


def clip_of(number: int = 0, words: tuple[Word, ...] = ()) -> Clip:
    """A clip without media."""
    return Clip(key=f"k{number}", id=str(number), media="", media_digest="", words=words)


def extracted(featurizer: Featurizer, clip: Clip, chunks: Sequence[Chunk]) -> Floats:
    """The values of a clip's feature."""
    extraction = featurizer.begin(clip)
    for chunk in chunks:
        extraction.add(chunk)
    feature = extraction.finish()
    if not isinstance(feature, Feature):
        raise TypeError(f"{featurizer.spec.name} wants an encoder")
    return feature.values


def close(name: str, difference: Floats, within: float, share: float = 1.0) -> None:
    """Raise unless this share of the differences is small enough."""
    good = float((np.abs(difference) <= within).mean())
    if good < share:
        raise SystemExit(f"{name}: {1 - good:.1%} of the values differ by more than {within}")
