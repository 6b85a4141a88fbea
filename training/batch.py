"""One calling convention: what every fusion model is given.

Shapes: B clips, T steps (differs between streams unless pooled), D dimensions of a feature, K
    outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.recipe import Target

Criterion: TypeAlias = Callable[[Tensor], Tensor]
"""The recipe's loss of each clip [B] for outputs [B, K], with the targets of a batch."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One padded feature of all clips: values [B, T, D] float, mask [B, T] bool, True where valid.

    A clip that lacks the feature has a mask that is False everywhere; values are 0 where the mask
    is False.

    What an encoder within the model reads has the times of its steps as well: float32 [B, T, 2],
    in seconds from the clip's start.
    """

    values: Tensor
    mask: Tensor
    times: Tensor | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Stream":
        """The same on a device, and in a floating-point type where given.

        What an encoder reads stays float32: numbers of word pieces do not survive another type.
        """
        if self.times is None:
            return Stream(self.values.to(device=device, dtype=dtype), self.mask.to(device))
        return Stream(self.values.to(device), self.mask.to(device), self.times.to(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionBatch:
    """All streams of some clips, by name, with targets and weights.

    Attributes:
        streams: The padded features. When pooled to a common time base, all have the same T and
            row t means the same time.
        target: Regression: float [B]. Classes: int64 [B]. Several labels: float [B, K] of 0 and 1.
            None when only predictions are wanted.
        weight: float [B]; 0 for the rows that pad the last global batch.
        keys: The clips.
        base: The time base that states of encoders are to be pooled to, values [B, T, 2] in
            seconds; None where every stream keeps its own steps, or no encoder reads one.
    """

    streams: Mapping[str, Stream]
    target: Tensor | None
    weight: Tensor
    keys: tuple[str, ...]
    base: Stream | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "FusionBatch":
        """The same on a device; features in `dtype` where given, targets and weights as before."""
        return FusionBatch(
            streams={name: stream.to(device, dtype) for name, stream in self.streams.items()},
            target=None if self.target is None else self.target.to(device),
            weight=self.weight.to(device),
            keys=self.keys,
            base=None if self.base is None else self.base.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One clip's features as a model takes them: pooled and normalised.

    Attributes:
        values: float32 [T, D] by stream; None when the clip lacks it.
        valid: bool [T] by stream, for example False at words during which there is no picture;
            None when all are.
        target: None when unknown.
        times: float64 [T, 2] of the streams that an encoder within the model reads, which are
            neither pooled nor normalised.
        base: What the encoders' states are to be pooled to, float64 [T, 2].
    """

    key: str
    values: Mapping[str, NDArray[np.float32] | None]
    valid: Mapping[str, NDArray[np.bool_] | None]
    target: Target | None = None
    weight: float = 1.0
    times: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    base: NDArray[np.float64] | None = None

    def weighing(self, weight: float) -> "Sample":
        """The same with another weight."""
        return self if weight == self.weight else replace(self, weight=weight)


class FusionModel(Protocol):
    """What the loop and the predictor ask of a model: an `nn.Module` with this `forward`.

    Law, in evaluation mode: more padding changes no output; permuting the batch permutes the
        outputs and does no more.
    """

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]: K = 1 for a regression, logits for classes and for labels."""


@runtime_checkable
class OwnLosses(FusionModel, Protocol):
    """A model that is trained by losses of its own, besides or instead of that of its outputs."""

    def losses(self, batch: FusionBatch, criterion: Criterion) -> Mapping[str, Tensor]:
        """Losses of each clip [B] by name; their sum is what training makes less.

        Called in training instead of `forward`; validation looks at the outputs alone. A clip that
        a loss says nothing of has 0 there, and every parameter has a gradient all the same.
        """


def collate(samples: Sequence[Sample], widths: Mapping[str, int]) -> FusionBatch:
    """Pad samples to the longest of each stream.

    Args:
        samples: At least one.
        widths: Dimensions of each stream, in the models' order; a stream that no sample has
            becomes one masked step.

    Returns:
        The batch; `target` is None as soon as one sample has none.
    """
    streams = {name: _pad(samples, name, width) for name, width in widths.items()}
    targets = [sample.target for sample in samples if sample.target is not None]
    target = None
    if len(targets) == len(samples):
        whole = all(isinstance(value, int) for value in targets)
        target = torch.tensor(targets, dtype=torch.int64 if whole else torch.float32)
    return FusionBatch(
        streams=streams,
        target=target,
        weight=torch.tensor([sample.weight for sample in samples], dtype=torch.float32),
        keys=tuple(sample.key for sample in samples),
        base=_base(samples),
    )


def _pad(samples: Sequence[Sample], name: str, width: int) -> Stream:
    arrays = [sample.values[name] for sample in samples]
    timed = any(name in sample.times for sample in samples)
    longest = max((len(array) for array in arrays if array is not None), default=0)
    values = np.zeros((len(samples), max(longest, 1), width), dtype=np.float32)
    mask = np.zeros(values.shape[:2], dtype=bool)
    for row, (sample, array) in enumerate(zip(samples, arrays, strict=True)):
        if array is None:
            continue
        valid = sample.valid.get(name)
        mask[row, : len(array)] = True if valid is None else valid
        values[row, : len(array)] = array
        if valid is not None:
            values[row, : len(array)][~valid] = 0.0
    times = _times(samples, name, values.shape[1]) if timed else None
    return Stream(torch.from_numpy(values), torch.from_numpy(mask), times)


def _times(samples: Sequence[Sample], name: str, longest: int) -> Tensor:
    times = np.zeros((len(samples), longest, 2), dtype=np.float32)
    for row, sample in enumerate(samples):
        own = sample.times.get(name, ())
        times[row, : len(own)] = own if len(own) else 0.0
    return torch.from_numpy(times)


def _base(samples: Sequence[Sample]) -> Stream | None:
    bases = [sample.base for sample in samples if sample.base is not None]
    if not bases:
        return None
    longest = max(len(base) for base in bases)
    values = np.zeros((len(samples), max(longest, 1), 2), dtype=np.float32)
    mask = np.zeros(values.shape[:2], dtype=bool)
    for row, sample in enumerate(samples):
        if sample.base is not None:
            values[row, : len(sample.base)] = sample.base
            mask[row, : len(sample.base)] = True
    return Stream(torch.from_numpy(values), torch.from_numpy(mask))
