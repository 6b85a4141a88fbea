"""Dropout from cheap random numbers.

On a CPU the random numbers of dropout are a large part of a transformer's step. A drop needs no
float: 16 random bits decide it, and one draw of 64 bits decides four. The draws are those of SFC64
(C. Doty-Humphrey's generator, of PractRand), seeded by one number from torch's own generator, so
`torch.manual_seed` decides them all; but they are not the ones that `torch.nn.functional.dropout`
would make. On any other device this is that function.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LEVELS = 1 << 16
"""A rate is rounded to a multiple of 1 / LEVELS; what is kept is scaled by the rounded rate."""


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """`x` with a share of its elements set to 0 and the others scaled up; `x` in evaluation.

    Args:
        x: Any shape.
        share: Probability of each element to be dropped, in [0, 1).
        training: Whether to drop at all.
    """
    if not training or share == 0.0:
        return x
    if x.device.type != "cpu":
        return nn.functional.dropout(x, share)
    return x * Draws(new_seed()).factors(x.shape, share, x.dtype)


def plus_dropped(x: Tensor, y: Tensor, share: float, training: bool) -> Tensor:
    """The sum of `x` and dropped `y`, in one step."""
    if not training or share == 0.0 or x.device.type != "cpu":
        return x + dropout(y, share, training)
    return torch.addcmul(x, y, Draws(new_seed()).factors(y.shape, share, y.dtype))


def relu_dropped(x: Tensor, share: float, training: bool) -> Tensor:
    """dropout(relu(x)), of which only the result is kept for the backward pass."""
    if not training or share == 0.0 or x.device.type != "cpu":
        return dropout(x.relu(), share, training)
    found: Tensor = _ReluDropped.apply(x, share)  # type: ignore[no-untyped-call]  # PyTorch gives it no type
    return found


class _ReluDropped(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:  # noqa: ANN401 - PyTorch gives it no type
        found = Draws(new_seed()).factors(x.shape, share, x.dtype).mul_(x).relu_()
        ctx.save_for_backward(found)
        ctx.share = share
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - as above
        (found,) = ctx.saved_tensors
        # More than 0 is what was neither cut nor dropped.
        passed = torch.ops.aten.threshold_backward(grad, found, 0)
        return passed.mul_(scale_of(ctx.share)), None


def scale_of(share: float) -> float:
    """What is not dropped is multiplied with this."""
    return LEVELS / (LEVELS - _levels(share))


def _levels(share: float) -> int:
    return min(round(share * LEVELS), LEVELS - 1)


def new_seed() -> int:
    """A seed for `Draws`, from torch's generator."""
    return int(torch.empty((), dtype=torch.int64).random_().item())


class Draws:
    """A row of random bits; the same seed gives the same row."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def factors(self, shape: Sequence[int], share: float, dtype: torch.dtype) -> Tensor:
        """What dropout multiplies with: 0 for a share of the elements, 1 / (1 - share) for others.

        Args:
            shape: Of the result.
            share: In [0, 1), rounded to a multiple of 1 / LEVELS.
            dtype: Of the result, which is in main memory.
        """
        count = int(np.prod(shape, dtype=np.int64))
        most = np.iinfo(np.uint64).max
        words = self._generator.integers(0, most, -(-count // 4), np.uint64, endpoint=True)
        bits = torch.from_numpy(words.view(np.int16)[:count]).view(tuple(shape))
        # Compared straight into floats: a mask of its own would have to be read and turned first.
        factors = torch.empty(tuple(shape), dtype=dtype)
        torch.ge(bits, _levels(share) - LEVELS // 2, out=factors)
        return factors.mul_(scale_of(share))
