"""How an epoch goes while it goes: told now and then, at a cost that no step feels."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from training.batch import FusionBatch

EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Where an unfinished epoch stands, as rank 0 sees it.

    Attributes:
        epoch: Its number, from 0.
        step: How many of its steps were taken.
        steps: How many it has.
        loss: The mean of rank 0's own clips, of the steps that this process took of the epoch.
        samples_per_second: Clips of all ranks in the same steps.
    """

    epoch: int
    step: int
    steps: int
    loss: float
    samples_per_second: float


Within: TypeAlias = Callable[[Pace], None]
"""Told where an epoch stands, at most every `EVERY_S` seconds."""


class Pacer:
    """Tells the pace of one epoch, or of what is left of it.

    Args:
        told: Who is told; None on other ranks, and where nobody wants to know.
        epoch: Its number.
        steps: How many it has.
        first: How many of them were taken before.
        clips: Clips of the steps up to some number, all ranks together.
        clock: Seconds.
    """

    def __init__(
        self,
        told: Within | None,
        *,
        epoch: int,
        steps: int,
        first: int,
        clips: Callable[[int], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._told, self._epoch, self._steps, self._clock = told, epoch, steps, clock
        self._step, self._clips, self._before = first, clips, clips(first)
        self._began = self._last = clock()
        self._losses = self._weights = 0.0

    def stepped(self, share: Sequence[FusionBatch], losses: float) -> None:
        """Told of each step.

        Args:
            share: What this rank took.
            losses: The sum of its weighted losses.
        """
        if self._told is None:
            return
        self._step += 1
        self._losses += losses
        self._weights += sum(float(batch.weight.sum()) for batch in share)
        now = self._clock()
        if now - self._last < EVERY_S:
            return
        self._last = now
        taken = self._clips(self._step) - self._before
        self._told(
            Pace(
                epoch=self._epoch,
                step=self._step,
                steps=self._steps,
                # A share may be nothing but filling.
                loss=self._losses / self._weights if self._weights else 0.0,
                samples_per_second=taken / (now - self._began),
            )
        )
