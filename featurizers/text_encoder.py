"""Text encoders of transformers: BERT and its kin, word pieces pooled to words."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip, Word
from featurizers.pretrained import WORDS, Config, Model, find, load, settings_of
from featurizers.spec import Chunk, Feature, FeatureSpec, Pending, names
from featurizers.speech_encoder import cuts
from featurizers.torch_encoder import (
    ATOL,
    TorchEncoder,
    averaged,
    check_dtype,
    layers_of,
    padded,
)

Tokenizer: TypeAlias = Any
"""Of the library tokenizers, which has no types."""

NAME = "text-encoder"
ARCHITECTURES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "distilbert": "DistilBertModel",
    "electra": "ElectraModel",
    "deberta-v2": "DebertaV2Model",
    "mpnet": "MPNetModel",
    "modernbert": "ModernBertModel",
}
# They number places from behind their padding's number.
OFFSET = ("roberta", "xlm-roberta", "mpnet")
POOLER = ("bert", "roberta", "xlm-roberta", "mpnet")
CONTEXT = 8  # a window's context on either side is this part of it
UNITS = ("words", "pieces")
POOLS = ("mean", "first", "last")


class TextEncoder:
    """The states of a text encoder, a step for each word or for each word piece.

    BERT: Devlin et al. 2019, and models that are used like it. All words of a clip are read as one
    text, with spaces between them, so that each state knows its neighbours. A piece belongs to the
    words that it shares a character with. A longer text than a window is cut into windows that
    overlap by a quarter, and of each the pieces near its inner ends are left out.

    A word that has no piece, such as one of control characters alone, is all 0. A piece's times are
    its word's, shared out by characters.

    The promise is 1e-3 in float32, 5e-2 in float16 and 5e-1 in bfloat16.

    Args:
        model: A name of the hub, with its `revision`; or a folder.
        revision: The commit, 40 hex digits.
        weights: The digest that the weights must have.
        layers: "last" (the encoder's output), "mean" (all its layers), the number of one, or two
            numbers such as "9-12", which are averaged.
        unit: "words", or "pieces" for models that want them.
        pool: How pieces become a word: their "mean", or the "first" or "last" of them.
        window: The most pieces that are read at once; fewer where the model takes fewer.
        dtype: Of weights and arithmetic: float32, float16 or bfloat16.
    """

    takes_gpu: ClassVar[bool] = True
    weights_from: ClassVar[str] = "model"
    wants = None

    def __init__(
        self,
        *,
        model: str = "",
        revision: str = "",
        weights: str = "",
        layers: str | int = "last",
        unit: str = "words",
        pool: str = "mean",
        window: int = 512,
        dtype: str = "float32",
    ) -> None:
        check_dtype(NAME, dtype)
        for setting, value, known in (("unit", unit, UNITS), ("pool", pool, POOLS)):
            if value not in known:
                raise ValueError(f"{NAME}: {setting} is {value!r}; wanted {', '.join(known)}")
        if not 32 <= window <= 8192:
            raise ValueError(f"{NAME}: window is {window}; wanted 32 to 8192")
        checkpoint = find(model, revision, weights, files=WORDS, kinds=tuple(ARCHITECTURES))
        config = settings_of(checkpoint)
        chosen = layers_of(NAME, str(layers), config.num_hidden_layers)
        self.spec = FeatureSpec(
            name=NAME,
            version=1,
            modality="text",
            reads=("words",),
            parameters={
                **checkpoint.identity,
                "layers": str(layers),
                "unit": unit,
                "pool": pool,
                "window": window,
                "dtype": dtype,
            },
            dims=tuple(names("state", config.hidden_size)),
            rate_hz=None,
            weights=checkpoint.digest,
            licence=checkpoint.licence,
            atol=ATOL[dtype],
            source=checkpoint.source,
        )
        self._pieces = Pieces(checkpoint.folder / WORDS[0])
        self._window = min(window, places_of(config))
        self._unit, self._pool = unit, pool
        make = functools.partial(load, checkpoint, ARCHITECTURES[checkpoint.kind], dtype)
        if checkpoint.kind in POOLER:
            make = functools.partial(make, add_pooling_layer=False)
        run = functools.partial(_run, chosen, config.pad_token_id or 0)
        self.encoder = TorchEncoder(make, run, batch=(16, 128), slack=(0.2, 0.5))

    def begin(self, clip: Clip) -> "_Text":
        """Start on a clip."""
        return _Text(clip, self._pieces, self._window, self._unit, self._pool)


def places_of(config: Config) -> int:
    """How many pieces a model takes at once, special ones included."""
    places = int(config.max_position_embeddings)
    return places - int(config.pad_token_id) - 1 if config.model_type in OFFSET else places


@dataclass(frozen=True, slots=True)
class Text:
    """A clip's words as one text, cut into pieces.

    Attributes:
        starts, ends: Characters of the words.
        ids: Numbers of the pieces.
        offsets: Characters of the pieces [P, 2].
    """

    starts: list[int]
    ends: list[int]
    ids: list[int]
    offsets: list[tuple[int, int]]

    def words_of(self, piece: int) -> range:
        """The words that a piece shares a character with."""
        begin, end = self.offsets[piece]
        first = int(np.searchsorted(self.ends, begin, side="right"))
        return range(first, max(first, int(np.searchsorted(self.starts, end, side="left"))))


class Pieces:
    """A checkpoint's tokenizer, read when it is first needed.

    Args:
        file: Where it lies.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @functools.cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """Numbers of the special pieces before and after a text."""
        probe = self._tokenizer.encode("a")
        special = probe.special_tokens_mask
        inner = [at for at, is_special in enumerate(special) if not is_special]
        return probe.ids[: inner[0]], probe.ids[inner[-1] + 1 :]

    def cut(self, words: Sequence[Word]) -> Text:
        """Words, with spaces between them, as pieces."""
        starts, ends, length = [], [], 0
        for word in words:
            starts.append(length)
            ends.append(length + len(word.text))
            length = ends[-1] + 1
        found = self._tokenizer.encode(
            " ".join(word.text for word in words), add_special_tokens=False
        )
        return Text(starts, ends, list(found.ids), list(found.offsets))


class _Text:
    def __init__(self, clip: Clip, pieces: Pieces, window: int, unit: str, pool: str) -> None:
        self._clip, self._pieces, self._window = clip, pieces, window
        self._unit, self._pool = unit, pool

    def add(self, chunk: Chunk) -> None:
        raise TypeError(f"{NAME} reads no media")

    def finish(self) -> Pending:
        words = self._clip.words or ()
        text = self._pieces.cut(words)
        if not text.ids:
            raise BadClipError("empty", "the transcript has no words that the tokenizer knows")
        before, after = self._pieces.around
        window = self._window - len(before) - len(after)
        chosen = cuts(len(text.ids), window, window // CONTEXT)
        items = [
            np.array([*before, *text.ids[cut.first : cut.first + window], *after], dtype=np.int64)
            for cut in chosen
        ]

        def assemble(encoded: Sequence[NDArray[Any]]) -> Feature:
            skipped = len(before)
            states = np.concatenate(
                [
                    e[skipped + c.begin : skipped + c.end]
                    for c, e in zip(chosen, encoded, strict=True)
                ]
            )
            if self._unit == "pieces":
                return Feature(states, piece_times(text, words))
            return Feature(pooled(states, text, self._pool), word_times(words))

        return Pending(items=items, assemble=assemble)


def word_times(words: Sequence[Word]) -> NDArray[np.float64]:
    """Times [W, 2] of words."""
    return np.array([[word.start, word.end] for word in words], dtype=np.float64)


def piece_times(text: Text, words: Sequence[Word]) -> NDArray[np.float64]:
    """Times [P, 2] of pieces: of each the share of its word that its characters take."""
    knots = np.array(
        [[s, e] for s, e in zip(text.starts, text.ends, strict=True)], dtype=np.float64
    )
    offsets = np.array(text.offsets, dtype=np.float64).reshape(-1, 2)
    # Some pieces begin with the space before their word.
    first = np.minimum(np.searchsorted(knots[:, 1], offsets[:, 0], side="right"), len(words) - 1)
    begins = np.maximum(offsets[:, 0], knots[first, 0])
    characters = np.stack([begins, np.maximum(begins, offsets[:, 1])], axis=1)
    times: NDArray[np.float64] = np.interp(characters, knots.ravel(), word_times(words).ravel())
    return times


def pooled(states: NDArray[Any], text: Text, pool: str) -> NDArray[np.float32]:
    """States [W, D] of words from those [P, D] of their pieces."""
    mine: list[list[int]] = [[] for _ in text.starts]
    for piece in range(len(text.ids)):
        for word in text.words_of(piece):
            mine[word].append(piece)
    out = np.zeros((len(mine), states.shape[1]), dtype=np.float32)
    for word, pieces in enumerate(mine):
        if pieces and pool == "mean":
            out[word] = states[pieces].mean(axis=0)
        elif pieces:
            out[word] = states[pieces[0 if pool == "first" else -1]]
    return out


def _run(
    layers: Sequence[int],
    filling: int,
    model: Model,
    items: Sequence[NDArray[Any]],
    device: str,
) -> list[Any]:
    ids, mask = padded(items, filling, device)
    output = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=bool(layers))
    states = averaged(output, layers)
    return [state[: len(item)] for state, item in zip(states, items, strict=True)]
