"""Dropout from cheap random numbers.

On a CPU the random numbers of dropout are a large part of a transformer's step. A drop needs no
float: 16 random bits decide it, and one draw of 64 bits decides four. The draws are those of SFC64
(C. Doty-Humphrey's generator, of PractRand), seeded by one number from torch's own generator, so
`torch.manual_seed` decides them all; but they are not the ones that `torch.nn.functional.dropout`
would make. On any other device this is that function.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

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
        dropped = min(round(share * LEVELS), LEVELS - 1)
        # Compared straight into floats: a mask of its own would have to be read and turned first.
        factors = torch.empty(tuple(shape), dtype=dtype)
        torch.ge(bits, dropped - LEVELS // 2, out=factors)
        return factors.mul_(LEVELS / (LEVELS - dropped))
