"""What the models are measured against: the operations of the authors' code, one by one.

Each module here was written from a description of what the released code does, wasteful steps
included; none of that code is in it. Parameters have the released names, so `from_reference` of our
models reads them, and both sides compute one function: `pair` makes them with equal weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.batch import FusionBatch, Stream


@dataclass(frozen=True, slots=True)
class Side:
    """One model and what it reads.

    Attributes:
        model: In training mode.
        call: Its outputs, all in one sequence.
    """

    model: nn.Module
    call: Callable[[], Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class Pair:
    """Both sides, with equal weights and inputs."""

    ours: Side
    twin: Side


def no_dropout(model: nn.Module) -> None:
    """Let every dropout layer pass all of its input, in training as well."""
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0


def batch_of(values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> FusionBatch:
    """Our batch of streams [B, T, D] with masks [B, T]."""
    clips = len(next(iter(values.values())))
    return FusionBatch(
        streams={name: Stream(values[name], masks[name]) for name in values},
        target=None,
        weight=torch.ones(clips),
        keys=tuple(f"clip-{row}" for row in range(clips)),
    )
