"""The learning rate of each step, and when to stop: functions of the past alone.

A resumed run needs no memory of its own for either: what is standing follows from the position and
the numbers of the epochs that are finished.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, assert_never

from training.metrics import DIRECTION
from training.recipe import Schedule, ScheduleKind

LOSS = "valid_loss"

# The plateau of MMLatch's authors: halved after 2 epochs of waiting, down to a twentieth.
USUAL: Mapping[ScheduleKind, Schedule] = {
    "plateau": Schedule(floor=1 / 20),
    "constant": Schedule(kind="constant"),
    "cosine": Schedule(kind="cosine"),
    "linear": Schedule(kind="linear"),
    "step": Schedule(kind="step", factor=0.1),
}
"""What each kind begins with where a recipe does not say otherwise."""


def rate_share(
    schedule: Schedule, position: int, *, steps: int, epochs: int, valid_losses: Sequence[float]
) -> float:
    """The share of the recipe's learning rate that a step takes.

    Args:
        schedule: How it goes.
        position: Steps that were taken before, through all epochs.
        steps: Of an epoch.
        epochs: Of the run, at most.
        valid_losses: Of the epochs that are finished.
    """
    total = steps * epochs
    warmup = schedule.warmup_steps(total)
    rise = (position + 1) / warmup if position < warmup else 1.0
    match schedule.kind:
        case "constant":
            return rise
        case "plateau":
            return rise * _plateau(schedule, valid_losses)
        case "step":
            return rise * _stairs(schedule, position // steps)
        case "linear" | "cosine":
            gone = min(1.0, max(0, position - warmup) / max(1, total - warmup))
            left = 1 - gone if schedule.kind == "linear" else (1 + math.cos(math.pi * gone)) / 2
            return rise * (schedule.floor + (1 - schedule.floor) * left)
        case unknown:
            assert_never(unknown)


def _plateau(schedule: Schedule, valid_losses: Sequence[float]) -> float:
    rate, best, waited, resting = 1.0, math.inf, 0, 0
    for loss in valid_losses:
        if loss < best:
            best, waited = loss, 0
        else:
            waited += 1
        if resting:
            resting, waited = resting - 1, 0
        if waited > schedule.patience:
            rate = max(rate * schedule.factor, schedule.floor)
            waited, resting = 0, schedule.cooldown
    return rate


def _stairs(schedule: Schedule, epoch: int) -> float:
    falls = sum(epoch >= each for each in schedule.at) if schedule.at else epoch // schedule.every
    return max(schedule.factor**falls, schedule.floor)


def losses_like(values: Sequence[float], monitor: str) -> list[float]:
    """A monitored number by epoch, such that less is better; NaN is as bad as infinity."""
    sign = -1.0 if better(monitor) == "higher" else 1.0
    return [math.inf if math.isnan(value) else sign * value for value in values]


def better(monitor: str) -> Literal["lower", "higher"]:
    """Which way a monitored number, "valid_loss" or "valid_METRIC", is better."""
    return "lower" if monitor == LOSS else DIRECTION[monitor.removeprefix("valid_")]


def best_epoch(values: Sequence[float], monitor: str = LOSS) -> int:
    """The first epoch with the best value."""
    comparable = losses_like(values, monitor)
    return comparable.index(min(comparable))


def waited(values: Sequence[float], monitor: str = LOSS, min_delta: float = 0.0) -> int:
    """Epochs since the value was better, by more than `min_delta`, than what stood before."""
    best, since = math.inf, 0
    for number, value in enumerate(losses_like(values, monitor)):
        if number == 0 or value < best - min_delta:
            best, since = value, 0
        else:
            since += 1
    return since
