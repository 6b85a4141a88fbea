"""Speech encoders of transformers: wav2vec2, HuBERT, WavLM, and Whisper's encoder."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.pretrained import SOUND, Checkpoint, Config, Model, find, load, settings_of
from featurizers.spec import AudioChunk, AudioWant, Chunk, Feature, FeatureSpec, Pending, names
from featurizers.torch_encoder import (
    ATOL,
    TorchEncoder,
    averaged,
    check_dtype,
    layers_of,
    padded,
)

Mel: TypeAlias = Any
"""Whisper's feature extractor of transformers."""

NAME = "speech-encoder"
RATE_HZ = 16_000
MAX_SECONDS = 4 * 3600
ARCHITECTURES = {
    "wav2vec2": "Wav2Vec2Model",
    "hubert": "HubertModel",
    "wavlm": "WavLMModel",
    "whisper": "WhisperModel",
}
MOST_S = 600
# What masked training alone uses.
SPARE = ("masked_spec_embed",)


@dataclass(frozen=True, slots=True)
class Grid:
    """Which samples the steps of an encoder see.

    Attributes:
        hop: Samples from a step to the next.
        reach: Samples that a step sees before the encoder's layers mix them.
    """

    hop: int
    reach: int

    def steps(self, samples: int) -> int:
        """How many steps so many samples give; fewer samples than `reach` give one."""
        if self.reach == self.hop:
            return max(1, math.ceil(samples / self.hop))
        return max(1, (samples - self.reach) // self.hop + 1)

    def samples(self, steps: int) -> int:
        """How many samples give so many steps."""
        return (steps - 1) * self.hop + self.reach


@dataclass(frozen=True, slots=True)
class Cut:
    """A window of a long sound: its first step, and which of its own steps are taken."""

    first: int
    begin: int
    end: int


def cuts(steps: int, window: int, context: int) -> list[Cut]:
    """Windows that together give all steps, each step once and with context on both sides.

    Args:
        steps: Of the whole sound.
        window: The most steps of a window.
        context: Steps at the inner ends of windows that are not taken; less than window / 2.
    """
    if steps <= window:
        return [Cut(0, 0, steps)]
    found = [Cut(0, 0, window - context)]
    while found[-1].first + window < steps:
        first = found[-1].first + window - 2 * context
        last = first + window >= steps
        found.append(Cut(first, context, steps - first if last else window - context))
    return found


class SpeechEncoder:
    """The states of a speech encoder over time, 50 steps a second for the usual models.

    wav2vec 2.0: Baevski et al. 2020; HuBERT: Hsu et al. 2021; WavLM: Chen et al. 2022; Whisper:
    Radford et al. 2023. The sound is scaled as the checkpoint's preprocessor does, over the whole
    clip. Longer sound than a window is cut into windows that overlap, and of each window the steps
    near its inner ends are left out. Whisper reads windows of 30 s, filled up with silence.

    The promise is 1e-3 in float32, 5e-2 in float16 and 5e-1 in bfloat16.

    Args:
        model: A name of the hub, with its `revision`; or a folder.
        revision: The commit, 40 hex digits.
        weights: The digest that the weights must have.
        layers: "last" (the encoder's output), "mean" (all its layers), the number of one, or two
            numbers such as "9-12", which are averaged.
        window_s: The longest piece that is read at once, at most 30 s for Whisper.
        context_s: What windows overlap on either side.
        dtype: Of weights and arithmetic: float32, float16 or bfloat16.
    """

    takes_gpu: ClassVar[bool] = True
    weights_from: ClassVar[str] = "model"

    def __init__(
        self,
        *,
        model: str = "",
        revision: str = "",
        weights: str = "",
        layers: str | int = "last",
        window_s: float = 20.0,
        context_s: float = 1.0,
        dtype: str = "float32",
    ) -> None:
        check_dtype(NAME, dtype)
        checkpoint = find(model, revision, weights, files=SOUND, kinds=tuple(ARCHITECTURES))
        config, sound = settings_of(checkpoint), checkpoint.read(SOUND[0])
        _check_sound(checkpoint, sound)
        grid = grid_of(config)
        most = sound.get("chunk_length", 30) if checkpoint.kind == "whisper" else MOST_S
        window, context = _windows(grid, most, window_s, context_s)
        count = config.encoder_layers if checkpoint.kind == "whisper" else config.num_hidden_layers
        chosen = layers_of(NAME, str(layers), count)
        self.spec = FeatureSpec(
            name=NAME,
            version=1,
            modality="audio",
            reads=("audio",),
            parameters={
                **checkpoint.identity,
                "layers": str(layers),
                "window_s": float(window_s),
                "context_s": float(context_s),
                "dtype": dtype,
            },
            dims=tuple(names("state", _width(config))),
            rate_hz=RATE_HZ / grid.hop,
            weights=checkpoint.digest,
            licence=checkpoint.licence,
            atol=ATOL[dtype],
            source=checkpoint.source,
        )
        self.wants = AudioWant(rate_hz=RATE_HZ)
        scaled = checkpoint.kind != "whisper" and bool(sound.get("do_normalize", True))
        self._begin = functools.partial(_Speech, grid, window, context, scaled)
        self.encoder = _encoder(checkpoint, config, grid, chosen, dtype)

    def begin(self, clip: Clip) -> "_Speech":
        """Start on a clip."""
        return self._begin()


def grid_of(config: Config) -> Grid:
    """Which samples the steps of a model see."""
    if config.model_type == "whisper":
        # A mel frame each 10 ms, and a convolution that takes every second one.
        return Grid(320, 320)
    hop = reach = 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        reach += (kernel - 1) * hop
        hop *= stride
    return Grid(hop, reach)


def _width(config: Config) -> int:
    return int(config.d_model if config.model_type == "whisper" else config.hidden_size)


def _check_sound(checkpoint: Checkpoint, sound: dict[str, Any]) -> None:
    rate = sound.get("sampling_rate", RATE_HZ)
    if rate != RATE_HZ:
        raise ValueError(
            f"{NAME}: {checkpoint.folder / SOUND[0]} wants sound at {rate} Hz; only models of "
            f"{RATE_HZ} Hz are read"
        )


def _windows(grid: Grid, most_s: int, window_s: float, context_s: float) -> tuple[int, int]:
    """Steps of a window, and of its context."""
    if not 1 <= window_s <= most_s:
        raise ValueError(f"{NAME}: window_s is {window_s}; wanted 1 to {most_s} for this model")
    if not 0 <= context_s <= window_s / 4:
        raise ValueError(
            f"{NAME}: context_s is {context_s}; wanted 0 to {window_s / 4:g}, a quarter of window_s"
        )
    return grid.steps(round(window_s * RATE_HZ)), round(context_s * RATE_HZ / grid.hop)


class _Speech:
    """One clip's sound, until it is whole."""

    def __init__(self, grid: Grid, window: int, context: int, scaled: bool) -> None:
        self._grid, self._window, self._context, self._scaled = grid, window, context, scaled
        self._pieces: list[tuple[int, NDArray[np.int16]]] = []
        self._stop = 0

    def add(self, chunk: Chunk) -> None:
        if isinstance(chunk, AudioChunk):
            at = round(chunk.start * RATE_HZ)
            self._stop = max(self._stop, at + len(chunk.samples))
            if self._stop - self._first(at) <= MAX_SECONDS * RATE_HZ:
                self._pieces.append((at, chunk.samples))

    def _first(self, otherwise: int) -> int:
        return self._pieces[0][0] if self._pieces else otherwise

    def finish(self) -> Pending:
        if not self._pieces:
            raise BadClipError("empty", "there is no sound in the clip's span")
        first = self._pieces[0][0]
        if self._stop - first > MAX_SECONDS * RATE_HZ:
            raise BadClipError(
                "too_long", f"the sound spans {(self._stop - first) / RATE_HZ:.0f} s"
            )
        grid, sound = self._grid, self._sound(first)
        steps = grid.steps(self._stop - first)
        chosen = cuts(steps, self._window, self._context)
        begins = [cut.first * grid.hop for cut in chosen]
        ends = [begin + grid.samples(self._window) for begin in begins[:-1]]
        items = [sound[a:b] for a, b in zip(begins, [*ends, len(sound)], strict=True)]

        def assemble(encoded: Sequence[NDArray[Any]]) -> Feature:
            taken = [each[c.begin : c.end] for c, each in zip(chosen, encoded, strict=True)]
            edges = np.arange(steps, dtype=np.float64)[:, np.newaxis] + np.array([0.0, 1.0])
            return Feature(np.concatenate(taken), (first + edges * grid.hop) / RATE_HZ)

        return Pending(items=items, assemble=assemble)

    def _sound(self, first: int) -> NDArray[np.float32]:
        """All sound from its first sample, silence where there is a gap, scaled."""
        whole = np.zeros(max(self._stop - first, self._grid.reach), dtype=np.int16)
        for at, samples in self._pieces:
            whole[at - first : at - first + len(samples)] = samples
        self._pieces = []
        sound = whole.astype(np.float32)
        sound /= 32768
        if self._scaled:
            real = sound[: self._stop - first]
            real -= real.mean(dtype=np.float64)
            real /= np.sqrt(np.square(real).mean(dtype=np.float64) + 1e-7)
        return sound


# The models.


def _encoder(
    checkpoint: Checkpoint,
    config: Config,
    grid: Grid,
    layers: Sequence[int],
    dtype: str,
) -> TorchEncoder:
    architecture = ARCHITECTURES[checkpoint.kind]
    make = functools.partial(load, checkpoint, architecture, dtype, spare=SPARE)
    if checkpoint.kind == "whisper":
        return TorchEncoder(
            lambda: make().get_encoder(),
            functools.partial(_run_whisper, grid, layers, mel=_mel_of(checkpoint)),
            batch=(2, 16),
            slack=(math.inf, math.inf),
        )
    # A group norm reads all of a row, its padding too, and nothing tells it what that is.
    # On a CPU a batch of long rows is no faster, and padding costs.
    slack = (0.0, 0.0) if config.feat_extract_norm == "group" else (0.0, 0.25)
    run = functools.partial(_run_waves, grid, layers)
    return TorchEncoder(make, run, batch=(4, 16), slack=slack)


def _run_waves(
    grid: Grid,
    layers: Sequence[int],
    model: Model,
    items: Sequence[NDArray[Any]],
    device: str,
) -> list[Any]:
    values, mask = padded(items, 0.0, device)
    even = bool(mask.all())
    output = model(
        values.to(model.dtype),
        attention_mask=None if even else mask.long(),
        output_hidden_states=bool(layers),
    )
    states = averaged(output, layers)
    return [state[: grid.steps(len(item))] for state, item in zip(states, items, strict=True)]


def _mel_of(checkpoint: Checkpoint) -> Mel:
    import transformers

    return transformers.WhisperFeatureExtractor.from_pretrained(
        checkpoint.folder, local_files_only=True
    )


def _run_whisper(
    grid: Grid,
    layers: Sequence[int],
    model: Model,
    items: Sequence[NDArray[Any]],
    device: str,
    *,
    mel: Mel,
) -> list[Any]:
    inputs = mel(list(items), sampling_rate=RATE_HZ, return_tensors="pt").input_features
    output = model(inputs.to(device, model.dtype), output_hidden_states=bool(layers))
    states = averaged(output, layers)
    return [state[: grid.steps(len(item))] for state, item in zip(states, items, strict=True)]
