"""How long a group of ranks may take: to come up, and in all."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.experiment import FailedError
from pipelines.sections import Device

MINUTE_S = 60.0
ENDING_S = 60.0  # for ranks that were told to end, at least
TOLD_S = 30.0  # without ranks, before people are told
PRESENT = "present"
"""The file of a group that its ranks touch for as long as they are at work."""


class TrainingFailedError(FailedError):
    """The workers gave up; what they had saved is kept, and running again resumes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Care:
    """How a run is looked after; none of it decides a number.

    Attributes:
        max_failures: How often a failed group of workers is started again.
        keep: How many checkpoints of a run stay.
        checkpoint_minutes: Minutes from one checkpoint to the next, whatever the epochs.
        hang_s: Seconds without a step after which a rank is given up.
        stall_minutes: Minutes without a sign before the first step and after the last, while data
            are read, the model is built or tested, after which a rank is given up.
        wait_minutes: Minutes without any rank at work after which training is given up.
        deadline_minutes: Minutes after which training is ended, saved; 0 for as long as it takes.
        device: What ranks train on; "auto" for GPUs where there are any.
    """

    max_failures: int = 2
    keep: int = 2
    checkpoint_minutes: float = 10.0
    hang_s: float = 300.0
    stall_minutes: float = 30.0
    wait_minutes: float = 15.0
    deadline_minutes: float = 0.0
    device: Device = "auto"


class Limits:
    """Says when a group of ranks took too long; asked every now and then.

    Ray Train (2.60.0) asks for workers for ever: each minute without them is a failure of its
    controller, which it permits without end. A limit of such failures is no time: it counts those
    of the whole job, and an elastic group that finds too little room has none at all.
    Held by test_a_group_that_finds_no_room_is_given_up; may go when Ray Train has a deadline.

    Args:
        group: Where the ranks leave a sign of being at work.
        wanted: What is waited for, as text.
        care: The limits.
        found: What there is, as text.
        say: Told what is waited for.
        clock: Seconds.
    """

    def __init__(
        self,
        group: Path,
        wanted: str,
        care: Care,
        *,
        found: Callable[[], str],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sign, self._wanted, self._care = group / PRESENT, wanted, care
        self._found, self._say, self._clock = found, say, clock
        self._begun = self._seen_at = clock()
        self._seen, self._told = 0, False
        self._asked_at: float | None = None

    @property
    def waiting(self) -> bool:
        """Whether no rank was at work for a while."""
        while_s = min(TOLD_S, self._care.wait_minutes * MINUTE_S)
        return self._clock() - self._seen_at > while_s

    @property
    def training(self) -> bool:
        """Whether ranks of this group are at work."""
        return self._sign.exists()

    def over(self) -> str:
        """Why training shall end; empty where it shall go on."""
        now, care = self._clock(), self._care
        self._look(now)
        if now - self._seen_at > care.wait_minutes * MINUTE_S:
            return (
                f"for {care.wait_minutes:g} minutes (train.wait_minutes) no rank was at work: "
                f"wanted {self._wanted}, the cluster has {self._found()}; set workers.train to "
                f"fewer or give the cluster more, and run again to resume"
            )
        if care.deadline_minutes and now - self._begun > care.deadline_minutes * MINUTE_S:
            return (
                f"training was ended after {care.deadline_minutes:g} minutes "
                f"(train.deadline_minutes); run again to go on from there"
            )
        return ""

    def ending(self) -> bool:
        """Whether ranks may still be at what they were told to end; asked until they are not.

        A step and a checkpoint of it may take long, but no longer than a step may.
        """
        now = self._clock()
        self._asked_at = now if self._asked_at is None else self._asked_at
        self._look(now)
        return not self.waiting and now - self._asked_at < max(ENDING_S, self._care.hang_s)

    def _look(self, now: float) -> None:
        sign = self._sign.stat().st_mtime_ns if self._sign.exists() else 0
        if sign != self._seen:
            self._seen, self._seen_at, self._told = sign, now, False
        elif self.waiting and not self._told and self._asked_at is None:
            self._told = True
            self._say(f"waiting for {self._wanted}; the cluster has {self._found()}")
