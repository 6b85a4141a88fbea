"""How many ranks train: what there is room for, fewer after a loss, more when more room comes.

A group of ranks has a number for as long as it stands, one that all global batches can be dealt to
evenly. It changes when the group ends: since ranks were lost, or because there is room for more,
for which they save first. Checkpoints load on any number.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from pipelines.limits import Care
from training.recipe import Recipe, fitting_ranks

MAX_PREEMPTIONS = 100  # Ray Train's own number is without end
MORE_S = 60.0  # from a group's first sign to the next one that is larger: each start costs seconds
RELEASED_S = 3.0  # until Ray counts what a group that ended has given back

Say = Callable[[str], None]
"""Tells people a sentence."""


def numbers(recipes: Sequence[Recipe], least: int, most: int, say: Say) -> tuple[int, ...]:
    """The numbers of ranks that all global batches can be dealt to evenly; says what is left out.

    Args:
        recipes: That are trained, one after the other.
        least: Ranks that there shall be at least.
        most: And at most.
        say: Told when it is rounded down.

    Returns:
        From the smallest to the largest; the next smaller one alone where none fits.
    """
    largest = most
    for recipe in [*recipes, *recipes]:  # what fits the last one may not fit the first one any more
        largest = fitting_ranks(recipe.global_batch, largest, recipe.micro_batch)
    if largest < most:
        say(
            f"warning: {most} workers do not divide the global batch of "
            f"{recipes[0].global_batch} clips; {largest} train"
        )
    fewer = [each for each in range(least, largest) if _fits(recipes, each)]
    return (*fewer, largest)


def _fits(recipes: Sequence[Recipe], ranks: int) -> bool:
    return all(not each.global_batch % (ranks * (each.micro_batch or 1)) for each in recipes)


class Size:
    """The number of ranks of each group in turn.

    Ray Train has elastic groups itself (2.60.0). They count the nodes that there are and not what
    is free of them, take numbers that divide no batch, and end ranks without a word. So a group
    here is of one number, and this says which.
    Held by test_a_number_that_does_not_divide_the_batch_is_rounded_down_to_one_that_does and
    test_room_that_others_hold_is_no_room_for_ranks; may go when Ray Train takes numbers of ours and
    asks before it resizes.

    Args:
        numbers: That will do, from the smallest; of one alone the group waits for its room.
        each: What a rank holds, by Ray's names.
        say: Told when fewer train than could.
        room: How many ranks there is room for now.
        clock: Seconds.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        each: dict[str, float],
        say: Say,
        *,
        room: Callable[[dict[str, float]], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._numbers, self._each, self._say = tuple(numbers), each, say
        self._room, self._clock = room or room_for, clock
        self._below: int | None = None

    @property
    def elastic(self) -> bool:
        """Whether there is anything to choose."""
        return len(self._numbers) > 1

    def now(self) -> int:
        """The largest number that there is room for, or the smallest, whose room is waited for."""
        most, below = self._numbers[-1], self._below
        if not self.elastic:
            return most
        until = self._clock() + RELEASED_S
        while (room := self._room(self._each)) < most and self._clock() < until:
            time.sleep(0.1)
        fitting = [each for each in self._numbers if each <= room and (not below or each < below)]
        found = fitting[-1] if fitting else self._numbers[0]
        if found < most:
            among = ", ".join(map(str, self._numbers))
            self._say(f"there is room for {room} ranks: {found} train, of {among}")
        return found

    def came_up(self, size: int, *, found_room: bool) -> None:
        """Told whether a group of this size got its room; if it did not, a smaller one is next."""
        self._below = None if found_room else size

    def more(self, size: int) -> "More | None":
        """Asks for the room of the next larger number; None where there is none."""
        larger = [each for each in self._numbers if each > size]
        return More(self._each, larger[0] - size, self._clock) if larger else None


class More(AbstractContextManager["More"]):
    """Room for more ranks, asked for while a group trains, so that a cluster which grows knows.

    Args:
        each: What a rank holds.
        count: How many ranks more.
        clock: Seconds.
    """

    def __init__(
        self, each: dict[str, float], count: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._each, self._count, self._clock = each, count, clock
        self._began: float | None = None
        self._asked: Any = None

    def there(self, training: bool) -> bool:
        """Whether they could come now.

        Args:
            training: Whether the group is at work. Before that, it would be asked for room that the
                group itself waits for.
        """
        if not training:
            return False
        if self._began is None:
            self._began = self._clock()
        if self._asked is None:
            from ray.util import placement_group

            self._asked = placement_group([self._each] * self._count)
        return self._clock() - self._began > MORE_S and bool(self._asked.wait(0.001))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._asked is not None:
            from ray.util import remove_placement_group

            remove_placement_group(self._asked)


class Budget:
    """How often a group may be lost until training is given up.

    Ray Train (2.60.0) begins a group anew when a rank fails in its work, or in starting. What is
    lost between these, with a machine or on one that is too busy, ends the job.
    Held by test_a_group_that_is_lost_while_it_starts_is_started_again; may go when it is retried.

    Args:
        care: Says how often.
        ranks_too: Whether ranks that fail are ours to count as well, and not Ray Train's.
    """

    def __init__(self, care: Care, *, ranks_too: bool) -> None:
        self._care, self._ranks_too = care, ranks_too
        self._lost = self._failures = self._preemptions = 0

    def permits(self, error: Exception) -> bool:
        """Whether a new group may be started after this one ended so."""
        from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

        match error:
            case ControllerError() if self._ranks_too and no_room(error):
                return True
            case ControllerError():
                self._lost += 1
            case _ if not self._ranks_too:
                return False
            case PreemptionError():
                self._preemptions += 1
            case WorkerGroupError() if any(map(_preempted, error.worker_failures.values())):
                self._preemptions += 1
            case WorkerGroupError():
                self._failures += 1
            case _:
                return False
        return (
            max(self._lost, self._failures) <= self._care.max_failures
            and self._preemptions <= MAX_PREEMPTIONS
        )


def _preempted(error: Exception) -> bool:
    """Whether a rank died with a node that was taken away."""
    died = getattr(error, "health_check_failure", error)
    return bool(getattr(died, "preempted", False))


def no_room(error: Exception) -> bool:
    """Whether ranks did not come up, as when their node was lost meanwhile."""
    from ray.train.v2._internal.exceptions import (
        WorkerGroupStartupFailedError,
        WorkerGroupStartupTimeoutError,
    )

    starts = (WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError)
    return isinstance(getattr(error, "controller_failure", None), starts)


def room_for(each: dict[str, float]) -> int:
    """How many ranks the cluster has room for that is free now."""
    import ray

    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call] # Ray's
    return int(min(free.get(name, 0.0) // amount for name, amount in each.items()))
