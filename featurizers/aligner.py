"""Times of words whose sound and text are there: forced alignment by a wav2vec2 CTC head."""

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.ctc import best_path, fits
from featurizers.encoding import EncoderMemoryError, tried
from featurizers.pretrained import SOUND, Model, find, load, settings_of
from featurizers.sound import RATE_HZ
from featurizers.speech_encoder import SPARE, grid_of

NAME = "align"
VOCABULARY = "vocab.json"
FILES = (*SOUND, VOCABULARY)
BETWEEN = "|"
"""What the heads of wav2vec2 say between words."""
MOST_S = 120.0
"""Longer sound is not aligned at once: an encoder's memory grows with its square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned:
    """A word and when it is said.

    Attributes:
        text: As it was given.
        start: In seconds from the beginning of the sound; None where no character of it is known.
        end: The same.
        confidence: The mean probability of its characters while they are said; None as above.
    """

    text: str
    start: float | None = None
    end: float | None = None
    confidence: float | None = None


class Aligner:
    """A Wav2Vec2ForCTC checkpoint (Baevski et al. 2020) that places the words of a text.

    Characters are looked up as they are, then in the other case, then without accents; what is not
    in the vocabulary after that is left out. Where the vocabulary has a "|", one is said between
    words. The path is Viterbi's (`ctc.best_path`); a word lasts from the first step of its first
    character to the last of its last. Heads tend to say a character shortly and late, so that
    words end early. Numbers may differ a little between machines.

    Args:
        model: A name of the hub, with its `revision`; or a folder.
        revision: The commit, 40 hex digits.
        weights: The digest that the weights must have.

    Raises:
        MissingWeightsError: The checkpoint is not there; see `pretrained.find`.
        ValueError: It is no such model, or its vocabulary has no blank.
    """

    def __init__(self, *, model: str, revision: str = "", weights: str = "") -> None:
        self.checkpoint = find(model, revision, weights, files=FILES, kinds=("wav2vec2",))
        config, sound = settings_of(self.checkpoint), self.checkpoint.read(SOUND[0])
        self._vocabulary: dict[str, int] = self.checkpoint.read(VOCABULARY)
        self._blank, self._grid = config.pad_token_id, grid_of(config)
        self._scaled = bool(sound.get("do_normalize", True))
        rate, where = sound.get("sampling_rate", RATE_HZ), self.checkpoint.folder
        if rate != RATE_HZ:
            raise ValueError(f"{where / SOUND[0]} wants sound at {rate} Hz; wanted {RATE_HZ}")
        if self._blank not in self._vocabulary.values():
            raise ValueError(
                f"{where / VOCABULARY} has no character with the number {self._blank}, which is "
                f"the blank by config.json (pad_token_id)"
            )
        outputs = set(range(config.vocab_size))
        if not set(self._vocabulary.values()) <= outputs:
            raise ValueError(
                f"{where / VOCABULARY} numbers characters up to "
                f"{max(self._vocabulary.values())}, but the head has {config.vocab_size} outputs"
            )

    def words_of(self, samples: NDArray[np.int16], spoken: Sequence[str]) -> list[Aligned] | None:
        """The words of a text with their times; None where they do not fit into the sound.

        Args:
            samples: int16 [N] at 16 kHz, at most MOST_S of it.
            spoken: The words.

        Raises:
            EncoderMemoryError: Memory runs out.
        """
        spelt = spell(spoken, self._vocabulary, self._blank)
        labels = [label for label, _ in spelt]
        if len(samples) < self._grid.reach or len(samples) > MOST_S * RATE_HZ:
            return None
        log_probs = tried(lambda: self._outputs(samples))
        if log_probs is None:
            raise EncoderMemoryError(
                f"{NAME} ran out of memory with {len(samples) / RATE_HZ:.0f} s of sound; give its "
                f"worker more memory, or choose a smaller model"
            )
        if not fits(len(log_probs), labels):
            return None
        path = best_path(log_probs, labels, self._blank)
        owners = np.array([-1 if owner is None else owner for _, owner in spelt])
        shares = [
            np.exp(log_probs[begin:end, label]).mean()
            for label, (begin, end) in zip(labels, path.spans.tolist(), strict=True)
        ]
        return [
            self._word(text, path.spans[owners == number], np.array(shares)[owners == number])
            for number, text in enumerate(spoken)
        ]

    def _word(self, text: str, spans: NDArray[np.int64], shares: NDArray[np.float64]) -> Aligned:
        if not len(spans):
            return Aligned(text=text)
        # A step stands for the samples around the middle of what it sees.
        early = (self._grid.reach - self._grid.hop) / 2
        start, end = (spans[[0, -1], [0, 1]] * self._grid.hop + early) / RATE_HZ
        return Aligned(
            text=text, start=float(start), end=float(end), confidence=float(shares.mean())
        )

    def _outputs(self, samples: NDArray[np.int16]) -> NDArray[np.float64]:
        """The logarithms of the head's probabilities: [T, V]."""
        import torch

        sound = samples.astype(np.float32) / 32768
        if self._scaled:
            sound -= sound.mean(dtype=np.float64)
            sound /= np.sqrt(np.square(sound).mean(dtype=np.float64) + 1e-7)
        model = self._model
        with torch.inference_mode():
            logits = model(torch.from_numpy(sound)[None].to(model.device)).logits[0]
            found: NDArray[np.float64] = logits.double().log_softmax(dim=-1).cpu().numpy()
        return found

    @functools.cached_property
    def _model(self) -> Model:
        import torch

        model = load(self.checkpoint, "Wav2Vec2ForCTC", "float32", spare=SPARE)
        return model.to("cuda" if torch.cuda.is_available() else "cpu")


def spell(
    spoken: Sequence[str], vocabulary: Mapping[str, int], blank: int
) -> list[tuple[int, int | None]]:
    """The labels of words, each with the number of its word; None of those between words."""
    found: list[tuple[int, int | None]] = []
    for number, word in enumerate(spoken):
        labels = [label for char in word for label in _labels(char, vocabulary) if label != blank]
        if found and labels and BETWEEN in vocabulary:
            found.append((vocabulary[BETWEEN], None))
        found += [(label, number) for label in labels]
    return found


def _labels(char: str, vocabulary: Mapping[str, Any]) -> list[int]:
    """The numbers of a character, as it is, in the other case, or without its accents."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", char) if not unicodedata.combining(c))
    for text in (char, char.upper(), char.lower(), bare, bare.upper(), bare.lower()):
        if text and BETWEEN not in text and all(each in vocabulary for each in text):
            return [int(vocabulary[each]) for each in text]
    return []
