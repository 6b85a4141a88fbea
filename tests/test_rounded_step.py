"""The optimizer's step in bfloat16 at stage 0: DeepSpeed's own numbers, without its waiting."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import test_engine
from training.engine import Engine

RECIPE = replace(test_engine.RECIPE, zero=0, precision="bf16")


class Waits(TorchDispatchMode):
    """Counts how often a number is asked for, which on a card waits for all that was begun."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def weights_after(recipe, *, own):
    """Of three batches; `own` is whether DeepSpeed's step is left where it was."""
    engine = Engine(test_engine.model(), recipe)
    if own:
        del engine._engine.optimizer.step
    test_engine.steps(engine, test_engine.BATCHES)
    found = engine.weights()
    engine.close()
    return found


@pytest.mark.parametrize(("clip_norm", "within"), [(None, 0.0), (0.05, 1e-7)])
def test_weights_are_those_of_deepspeeds_own_step(clip_norm, within):
    recipe = replace(RECIPE, clip_norm=clip_norm, weight_decay=0.1, learning_rate=1e-2)
    mine, theirs = (weights_after(recipe, own=own) for own in (False, True))
    assert test_engine.furthest(mine, theirs) <= within
    unclipped = weights_after(replace(recipe, clip_norm=None), own=True)
    assert (test_engine.furthest(theirs, unclipped) > 1e-4) == bool(clip_norm)


@pytest.fixture
def ready():
    """DeepSpeed's optimizer when there are gradients."""
    engine = Engine(test_engine.model(), RECIPE)
    losses = engine._losses(test_engine.batch(test_engine.BATCHES[0]).to("cpu", torch.bfloat16))
    engine._engine.backward(losses.sum(), scale_wrt_gas=False)
    yield engine, engine._engine.optimizer
    engine.close()


def test_a_bf16_step_waits_once_however_many_weights_there_are(ready):
    engine, optimizer = ready
    optimizer.optimizer.step = lambda: None  # AdamW's counts of steps lie in main memory
    assert len(list(engine._model.parameters())) > 5
    with Waits() as waits:
        assert not optimizer.step()
    assert waits.count == 1


def test_weights_that_no_clip_reaches_decay_as_others_do(ready):
    engine, optimizer = ready
    name, weight = next(iter(engine._model.named_parameters()))
    weight.grad = None
    before = engine.weights()[name]
    optimizer.param_groups[0]["weight_decay"] = 0.5
    optimizer.step()
    rate = optimizer.param_groups[0]["lr"]
    torch.testing.assert_close(engine.weights()[name], before * (1 - 0.5 * rate))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_whose_gradients_are_not_finite_is_left_out(ready, bad):
    engine, optimizer = ready
    before = engine.weights()
    next(engine._model.parameters()).grad.view(-1)[0] = bad
    assert optimizer.step()
    assert optimizer.overflow
    assert test_engine.furthest(engine.weights(), before) == 0
