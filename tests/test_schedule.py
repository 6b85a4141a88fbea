"""The learning rate of each step, held against PyTorch's own schedulers; and when to stop."""

import math
import warnings

import pytest
import torch
from torch.optim import lr_scheduler as torch_schedules

from training.recipe import Recipe, Schedule, Task
from training.recipes import named
from training.schedule import USUAL, best_epoch, rate_share, waited

STEPS, EPOCHS = 5, 8
TOTAL = STEPS * EPOCHS
NAN = math.nan
SCORE = Task(kind="regression", label="score")
MOOD = Task(kind="classes", label="mood", classes=("sad", "glad"))


def ours(schedule, losses=()):
    """The share of each step of a run; the losses are those of the epochs."""
    return [
        rate_share(
            schedule,
            position,
            steps=STEPS,
            epochs=EPOCHS,
            valid_losses=losses[: position // STEPS],
        )
        for position in range(TOTAL)
    ]


def torchs(make, every=1, losses=None):
    """The same of a scheduler of PyTorch, stepped after every so many steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, rates = make(optimizer), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is optimized here
        for position in range(TOTAL):
            rates.append(optimizer.param_groups[0]["lr"])
            if not (position + 1) % every:
                scheduler.step(*([] if losses is None else [losses[position // every]]))
    return rates


def after_warmup(after, steps):
    def make(optimizer):
        rise = torch_schedules.LinearLR(optimizer, 1 / steps, 1.0, total_iters=steps - 1)
        return torch_schedules.SequentialLR(optimizer, [rise, after(optimizer)], [steps])

    return make


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (USUAL["constant"], lambda o: torch_schedules.ConstantLR(o, 1.0)),
        (USUAL["cosine"], lambda o: torch_schedules.CosineAnnealingLR(o, TOTAL)),
        (
            Schedule(kind="cosine", floor=0.1, warmup=6),
            after_warmup(lambda o: torch_schedules.CosineAnnealingLR(o, TOTAL - 6, 0.1), 6),
        ),
        (
            Schedule(kind="linear", floor=0.2, warmup=0.1),
            after_warmup(lambda o: torch_schedules.LinearLR(o, 1.0, 0.2, TOTAL - 4), 4),
        ),
    ],
)
def test_schedules_by_steps_are_those_of_pytorch(schedule, theirs):
    assert ours(schedule) == pytest.approx(torchs(theirs), abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (
            Schedule(kind="step", every=3, factor=0.1),
            lambda o: torch_schedules.StepLR(o, 3, 0.1),
        ),
        (
            Schedule(kind="step", at=(2, 5), factor=0.3),
            lambda o: torch_schedules.MultiStepLR(o, [2, 5], 0.3),
        ),
    ],
)
def test_stairs_are_those_of_pytorch(schedule, theirs):
    assert ours(schedule) == pytest.approx(torchs(theirs, every=STEPS), abs=1e-12)


@pytest.mark.parametrize(
    "losses",
    [
        [3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 2.5, 2.5],
        [3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0],
        [3.0, NAN, NAN, NAN, 2.0, 2.0, 2.0, 2.0],
    ],
)
@pytest.mark.parametrize(("patience", "cooldown", "floor"), [(2, 0, 0.0), (1, 2, 0.0), (0, 1, 0.3)])
def test_a_plateau_is_that_of_pytorch(losses, patience, cooldown, floor):
    def theirs(optimizer):
        return torch_schedules.ReduceLROnPlateau(
            optimizer,
            factor=0.5,
            patience=patience,
            cooldown=cooldown,
            min_lr=floor,
            threshold=0.0,
        )

    schedule = Schedule(patience=patience, cooldown=cooldown, floor=floor)
    assert ours(schedule, losses) == pytest.approx(torchs(theirs, STEPS, losses), abs=1e-12)


def test_the_usual_plateau_halves_down_to_a_twentieth_and_may_begin_with_a_rise():
    flat = [1.0] * 100
    assert rate_share(USUAL["plateau"], 500, steps=5, epochs=100, valid_losses=flat) == 0.05
    risen = ours(Schedule(warmup=4, floor=0.05), [3.0] * EPOCHS)
    assert risen[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert risen[4 * STEPS] == 0.5


def test_nan_is_never_the_best_epoch():
    assert best_epoch([NAN, 2.0, 1.0, 1.0]) == 2
    assert best_epoch([NAN, NAN]) == 0
    assert best_epoch([NAN, 0.2, 0.9, 0.1], "valid_uar") == 2


def test_patience_begins_anew_when_a_value_is_better_by_enough():
    assert waited([3.0, 2.0, 2.5, 2.5]) == 2
    assert waited([3.0, 2.9, 2.8], min_delta=0.15) == 0
    assert waited([3.0, 2.9, 2.8], min_delta=0.3) == 2
    assert waited([0.5, 0.6, 0.6], "valid_uar") == 1
    assert waited([0.5, 0.6, 0.4], "valid_mae") == 0


def test_a_schedule_is_given_by_its_kind_or_by_what_differs_from_it():
    def made(given, name="late_fusion"):
        return named(name, SCORE, ["text"], schedule=given).schedule

    assert made("cosine") == Schedule(kind="cosine")
    assert made({"kind": "step", "at": [3, 6]}) == Schedule(kind="step", at=(3, 6), factor=0.1)
    assert made({"warmup": 10}) == Schedule(warmup=10, floor=1 / 20)
    assert made({"warmup": 10}, "mult_mosei") == Schedule(warmup=10, factor=0.1, patience=20)
    recipe = named("hcn", MOOD, ["joints"])
    assert recipe.schedule == Schedule(kind="step", at=(5, 20), factor=0.1)
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schedule": "cosin"}, "schedule.kind is 'cosin'"),
        ({"schedule": 3}, "schedule is 3; wanted one of plateau"),
        ({"schedule": {"warmpu": 3}}, "the nearest is 'warmup'"),
        ({"schedule": {"warmup": 2.5}}, "whole number of steps, or a share"),
        ({"schedule": {"kind": "step", "at": 6}}, r"schedule.at is 6; .* such as \[10, 20\]"),
        ({"schedule": {"factor": 2}}, "schedule.factor is 2; wanted a share"),
        ({"monitor": "valid_uar"}, "monitor is 'valid_uar'; the nearest is 'valid_"),
        ({"min_delta": -1}, "min_delta is -1"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as refused:
        named("late_fusion", SCORE, ["text"], **given)
    assert "\n" not in str(refused.value)
