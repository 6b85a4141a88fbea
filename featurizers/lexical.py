"""Words without weights: hashed words and letter groups."""

import functools
import hashlib
import unicodedata

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.spec import Chunk, Feature, FeatureSpec, names

DECIMALS = 4


class HashedWords:
    """One step a word: its spelling and its groups of three letters, hashed with signs.

    The signed hashing is that of Weinberger et al. 2009.
    Words are compared by their casefolded letters and digits. The promise is exact.

    Args:
        dims: Width; more dims mean fewer collisions.
    """

    wants = None

    def __init__(self, *, dims: int = 64) -> None:
        if not 8 <= dims <= 4096:
            raise ValueError(f"hashed-words: dims is {dims}; wanted 8 to 4096")
        self.spec = FeatureSpec(
            name="hashed-words",
            version=1,
            modality="text",
            reads=("words",),
            parameters={"dims": dims},
            dims=tuple(names("hash", dims)),
            rate_hz=None,
        )

    def begin(self, clip: Clip) -> "_HashedWords":
        """Start on a clip."""
        return _HashedWords(clip, self.spec.width)


class _HashedWords:
    def __init__(self, clip: Clip, dims: int) -> None:
        self._clip, self._dims = clip, dims

    def add(self, chunk: Chunk) -> None:
        raise TypeError("hashed-words reads no media")

    def finish(self) -> Feature:
        words = self._clip.words or ()
        if not words:
            raise BadClipError("empty", "the transcript has no words")
        values = np.stack([_hashed(word.text, self._dims) for word in words])
        times = np.array([[word.start, word.end] for word in words], dtype=np.float64)
        return Feature((np.round(values, DECIMALS) + 0.0).astype(np.float32), times)


@functools.lru_cache(maxsize=65536)
def _hashed(text: str, dims: int) -> NDArray[np.float64]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    letters = "".join(char for char in folded if char.isalnum())
    marked = f"<{letters}>"
    groups = [marked[i : i + 3] for i in range(len(marked) - 2)]
    vector = np.zeros(dims)
    for feature, weight in [(f"word:{letters}", 2.0), *((f"part:{g}", 0.5) for g in groups)]:
        number = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
        vector[(number >> 1) % dims] += weight if number & 1 else -weight
    return vector
