"""Numbers of word pieces, for text encoders that are trained together with the fusion model."""

from typing import ClassVar

import numpy as np

from featurizers.clip import BadClipError, Clip
from featurizers.pretrained import digest_of_file, tokenizer_of
from featurizers.spec import Chunk, Dim, Feature, FeatureSpec
from featurizers.text_encoder import ARCHITECTURES, Pieces, piece_times

NAME = "word-pieces"


class WordPieces:
    """A clip's words as a tokenizer cuts them: the number of a piece for each step.

    All words of a clip are one text, with spaces between them; the special pieces that the
    tokenizer puts around a text stand around it here, too, and last no time. A piece's times are
    its word's, shared out by characters. A text is never cut short; the encoder does that.

    The promise is exact. The tokenizer's file decides the numbers, and nothing else of its
    checkpoint.

    Args:
        model: A name of the hub, with its `revision`; or a folder that holds tokenizer.json, or
            such a file.
        revision: The commit, 40 hex digits.
        weights: The sha256 that the tokenizer's file must have.
    """

    weights_from: ClassVar[str] = "model"
    wants = None

    def __init__(self, *, model: str = "", revision: str = "", weights: str = "") -> None:
        file, licence = tokenizer_of(model, revision, weights, kinds=tuple(ARCHITECTURES))
        self.spec = FeatureSpec(
            name=NAME,
            version=1,
            modality="text",
            reads=("words",),
            parameters={},
            dims=(Dim("piece", "number in the vocabulary"),),
            rate_hz=None,
            weights=digest_of_file(file),
            licence=licence,
            source=str(file),
        )
        self._pieces = Pieces(file)

    def begin(self, clip: Clip) -> "_WordPieces":
        """Start on a clip."""
        return _WordPieces(clip, self._pieces)


class _WordPieces:
    def __init__(self, clip: Clip, pieces: Pieces) -> None:
        self._clip, self._pieces = clip, pieces

    def add(self, chunk: Chunk) -> None:
        raise TypeError(f"{NAME} reads no media")

    def finish(self) -> Feature:
        words = self._clip.words or ()
        text = self._pieces.cut(words)
        if not text.ids:
            raise BadClipError("empty", "the transcript has no words that the tokenizer knows")
        before, after = self._pieces.around
        inner = piece_times(text, words)
        first = np.full((len(before), 2), inner[0, 0])
        last = np.full((len(after), 2), inner[:, 1].max())
        ids = np.array([*before, *text.ids, *after], dtype=np.float32)
        return Feature(ids[:, np.newaxis], np.concatenate([first, inner, last]))
