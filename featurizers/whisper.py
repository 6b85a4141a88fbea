"""Speech to words with times: Whisper checkpoints of transformers."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.encoding import Halving
from featurizers.pretrained import SOUND, WORDS, Checkpoint, Model, find, load, quiet
from featurizers.sound import RATE_HZ
from featurizers.torch_encoder import check_dtype

NAME = "transcribe"
GENERATION = "generation_config.json"
FILES = (*SOUND, *WORDS, GENERATION)
UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages that are written without spaces: each of their characters is taken for a word."""
VOTERS = 8
BATCH = (4, 16)  # pieces at once, on a CPU and on a GPU

Decode: TypeAlias = Callable[[Sequence[int]], str]
"""The text of tokens, with U+FFFD where a character is not whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """A recognised word.

    Attributes:
        text: Without spaces around it.
        start: In seconds from the beginning of its piece.
        end: The same; None where the model does not say.
        probability: The mean of its tokens' probabilities.
    """

    text: str
    start: float
    end: float | None
    probability: float


class Recogniser:
    """A Whisper checkpoint (Radford et al. 2023) that tells words with their times.

    Decoding is greedy. The times of tokens are those of transformers: dynamic time warping over the
    cross attention of the heads that the checkpoint's generation_config.json names. They are good
    to some tenths of a second, and numbers may differ between machines and batches.

    Args:
        model: A name of the hub, with its `revision`; or a folder.
        revision: The commit, 40 hex digits.
        weights: The digest that the weights must have.
        language: Its code, such as "en"; empty to have it detected.
        dtype: Of weights and arithmetic: float32, float16 or bfloat16.

    Raises:
        MissingWeightsError: The checkpoint is not there; see `pretrained.find`.
        ValueError: It is no such model, gives no word times, or does not know the language.
    """

    def __init__(
        self,
        *,
        model: str,
        revision: str = "",
        weights: str = "",
        language: str = "",
        dtype: str = "float32",
    ) -> None:
        check_dtype(NAME, dtype)
        self.checkpoint = find(model, revision, weights, files=FILES, kinds=("whisper",))
        generation = self.checkpoint.read(GENERATION)
        self.window_s = float(self.checkpoint.read(SOUND[0]).get("chunk_length", 30))
        self._languages = _languages(generation)
        self._language, self._dtype = language, dtype
        _check(self.checkpoint, generation, self._languages, language)
        self._model: Model = None
        self._pieces: Halving[NDArray[np.int16], Any] | None = None

    def language_of(self, sounds: Sequence[NDArray[np.int16]]) -> str:
        """The language that was given, or that most of the first pieces seem to be in.

        Empty when the model knows one language only.
        """
        if self._language or not self._languages:
            return self._language
        codes = {token: code for code, token in self._languages.items()}
        found = self._in_batches(sounds[:VOTERS], self._detected)
        return elected([codes[token] for token in found])

    def words_of(self, sounds: Sequence[NDArray[np.int16]], language: str) -> list[list[Spoken]]:
        """The words of each piece of sound at 16 kHz, none of them longer than `window_s`.

        Where memory runs out, fewer are heard at once from then on.

        Args:
            sounds: int16 [N] each, N more than 0.
            language: As `language_of` says.

        Raises:
            EncoderMemoryError: It runs out with a single piece.
        """
        return self._in_batches(sounds, functools.partial(self._some, language=language))

    def _in_batches(
        self,
        sounds: Sequence[NDArray[np.int16]],
        work: Callable[[Sequence[NDArray[np.int16]]], Sequence[Any]],
    ) -> list[Any]:
        import torch

        if self._pieces is None:
            self._pieces = Halving(NAME, BATCH[torch.cuda.is_available()])
        return self._pieces.over(sounds, work)

    def _detected(self, sounds: Sequence[NDArray[np.int16]]) -> list[int]:
        """The tokens of languages."""
        mel, model = self._mel(sounds), self._loaded()
        found: list[int] = model.detect_language(input_features=mel["input_features"]).tolist()
        return found

    def _some(self, sounds: Sequence[NDArray[np.int16]], language: str) -> list[list[Spoken]]:
        import torch

        model, about = self._loaded(), {}
        if self._languages:
            about = {"language": f"<|{language}|>", "task": "transcribe"}
        with torch.inference_mode(), quiet():
            output = model.generate(
                **self._mel(sounds),
                **about,
                return_timestamps=False,
                return_token_timestamps=True,
                return_dict_in_generate=True,
                do_sample=False,
                num_beams=1,
            )
        end = model.generation_config.eos_token_id
        begin = output["sequences"].shape[1] - len(output["scores"])
        shares = torch.stack(list(output["scores"]), dim=1).float().softmax(dim=-1)
        found: list[list[Spoken]] = []
        for row, sound in enumerate(sounds):
            tokens = output["sequences"][row, begin:].tolist()
            count = next((at for at, token in enumerate(tokens) if token >= end), len(tokens))
            times = [*output["token_timestamps"][row, begin:].tolist(), len(sound) / RATE_HZ]
            chosen = [float(shares[row, at, tokens[at]]) for at in range(count)]
            spoken = told(tokens[:count], times, chosen, self._decode, language not in UNSPACED)
            found.append(spoken)
        return found

    def _loaded(self) -> Model:
        if self._model is None:
            import torch
            from tokenizers import Tokenizer
            from transformers import WhisperFeatureExtractor

            self._extractor = WhisperFeatureExtractor.from_pretrained(
                self.checkpoint.folder, local_files_only=True
            )
            model = load(
                self.checkpoint,
                "WhisperForConditionalGeneration",
                self._dtype,
                attn_implementation="eager",  # others do not tell where they look
            )
            self._model = model.to("cuda" if torch.cuda.is_available() else "cpu")
            tokenizer = Tokenizer.from_file(str(self.checkpoint.folder / WORDS[0]))
            self._decode: Decode = lambda tokens: tokenizer.decode(
                list(tokens), skip_special_tokens=False
            )
        return self._model

    def _mel(self, sounds: Sequence[NDArray[np.int16]]) -> dict[str, Any]:
        model = self._loaded()
        waves = [sound.astype(np.float32) / 32768 for sound in sounds]
        mel = self._extractor(
            waves, sampling_rate=RATE_HZ, return_tensors="pt", return_attention_mask=True
        )
        return {
            "input_features": mel.input_features.to(model.device, model.dtype),
            "attention_mask": mel.attention_mask.to(model.device),
        }


def elected(codes: Sequence[str]) -> str:
    """The code that is there most often; of several the first by alphabet."""
    votes = Counter(codes)
    return min(votes, key=lambda code: (-votes[code], code))


def _languages(generation: dict[str, Any]) -> dict[str, int]:
    """Token numbers by code of the languages that a checkpoint knows; none of English-only ones."""
    if not generation.get("is_multilingual", True):
        return {}
    return {name.strip("<|>"): token for name, token in generation.get("lang_to_id", {}).items()}


def _check(
    checkpoint: Checkpoint, generation: dict[str, Any], languages: dict[str, int], language: str
) -> None:
    where = checkpoint.name or checkpoint.folder
    if not generation.get("alignment_heads"):
        raise ValueError(
            f"{where}: its {GENERATION} names no alignment_heads, without which Whisper tells no "
            f"times of words; the generation configs of openai/whisper-* have them"
        )
    if language and language not in (languages or {"en"}):
        known = ", ".join(sorted(languages or {"en"}))
        raise ValueError(f"{where}: it does not know the language {language!r}; it knows {known}")


def told(
    tokens: Sequence[int],
    times: Sequence[float],
    chosen: Sequence[float],
    decode: Decode,
    spaced: bool,
) -> list[Spoken]:
    """Words of tokens.

    A word begins where a text begins with a space, or with each character in languages without
    spaces; what is neither letter nor digit belongs to the word before it.

    Args:
        tokens: Of text alone.
        times: When each token begins, and one more.
        chosen: The probability of each token.
        decode: Gives the text of tokens.
        spaced: Whether the language is written with spaces.
    """
    starts: list[int] = []
    units = _units(tokens, decode)
    for first, text in units:
        begins = text.startswith(" ") or not spaced
        if not starts or (begins and any(each.isalnum() for each in text)):
            starts.append(first)
    words: list[Spoken] = []
    for first, last in zip(starts, [*starts[1:], len(tokens)], strict=True):
        text = decode(tokens[first:last]).replace("\ufffd", "").strip()
        if text:
            start, end = times[first], times[last]
            words.append(
                Spoken(
                    text=text,
                    start=start,
                    end=end if end > start else None,
                    probability=float(np.mean(chosen[first:last])),
                )
            )
    return words


def _units(tokens: Sequence[int], decode: Decode) -> list[tuple[int, str]]:
    """Runs of tokens that give whole characters: the first one's place, and the text."""
    units: list[tuple[int, str]] = []
    first = 0
    for last in range(1, len(tokens) + 1):
        text = decode(tokens[first:last])
        if "\ufffd" not in text or last == len(tokens):
            units.append((first, text))
            first = last
    return units
