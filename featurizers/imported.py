"""Features that somebody else computed and published; their specs say from which file they came.

Such a column is trained on, checked and looked at as any other. It cannot be computed: what made
it is not here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from featurizers.clip import Clip
from featurizers.spec import Chunk, Dim, Extraction, Feature, FeatureSpec, Modality, Scalar, names

PREFIX = "imported-"
"""What the names of their specs begin with; the stream's own name follows."""

LICENCE = "unknown: as whoever published the features says"

_WORDS = "words"


class ComputedElsewhereError(ValueError):
    """A column was imported, and is to be computed."""


def imported_spec(
    stream: str,
    modality: Modality,
    dims: int | Sequence[Dim],
    origin: Mapping[str, Scalar],
    *,
    by_word: bool = False,
) -> FeatureSpec:
    """The spec of an imported column.

    Args:
        stream: Of letters, digits, "_" and "-".
        modality: What it was made of.
        dims: Each of them, or how many.
        origin: Whence it comes: `file` (its name alone), `sha256`, and what else decides or
            describes the numbers. No path of a machine.
        by_word: Whether a step is a word.
    """
    return FeatureSpec(
        name=f"{PREFIX}{stream}",
        version=1,
        modality=modality,
        reads=(),
        parameters={**origin, **({"steps": _WORDS} if by_word else {})},
        dims=tuple(names(stream, dims)) if isinstance(dims, int) else tuple(dims),
        rate_hz=None,
        licence=LICENCE,
    )


def is_imported(spec: FeatureSpec) -> bool:
    """Whether a column was made elsewhere."""
    return spec.name.startswith(PREFIX)


def stream_of(spec: FeatureSpec) -> str:
    """The name that an imported stream has in its file."""
    return spec.name.removeprefix(PREFIX)


def is_by_word(spec: FeatureSpec) -> bool:
    """Whether each step of an imported column is a word."""
    return is_imported(spec) and spec.parameters.get("steps") == _WORDS


def spoken_of(specs: Mapping[str, FeatureSpec]) -> frozenset[str]:
    """The streams whose steps are words, or what was said at once: they are read from words."""
    return frozenset(
        name for name, spec in specs.items() if "words" in spec.reads or is_by_word(spec)
    )


def origin_of(spec: FeatureSpec) -> str:
    """Whence an imported column comes, for people."""
    return str(spec.parameters.get("file", "another dataset"))


@dataclass(frozen=True, slots=True)
class Imported:
    """Stands where a featurizer is wanted, and computes nothing."""

    spec: FeatureSpec
    wants: ClassVar[None] = None

    def begin(self, clip: Clip) -> Extraction:
        """Raises ComputedElsewhereError when it is to finish."""
        return _Elsewhere(self.spec, clip)


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    spec: FeatureSpec
    clip: Clip

    def add(self, chunk: Chunk) -> None:
        raise TypeError(f"{self.spec.name} reads no media")

    def finish(self) -> Feature:
        raise ComputedElsewhereError(
            f"clip {self.clip.id!r}: {self.spec.fingerprint} was imported from "
            f"{origin_of(self.spec)} and cannot be computed; import that file again"
        )
