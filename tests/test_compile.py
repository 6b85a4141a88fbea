"""torch.compile as a setting: the same names of weights, and the same numbers nearly."""

from dataclasses import replace

import pytest
import torch

from tests.test_loop import RECIPE, make_dataset, without_dropout
from tracking.run import MemoryRun
from training import engine
from training.data import load
from training.loop import fit
from training.recipe_checks import check
from training.session import LocalSession


def test_a_compiled_run_is_that_of_the_model_as_it_is(tmp_path, monkeypatch):
    # "inductor" would want a C++ compiler here.
    monkeypatch.setattr(engine, "COMPILER", "aot_eager")
    columns = make_dataset(tmp_path)
    recipe = replace(without_dropout(RECIPE), epochs=1)
    data = load(tmp_path, columns, recipe)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    plain = fit(recipe, data, LocalSession(tmp_path / "plain"), MemoryRun())
    assert not torch._dynamo.utils.counters["frames"]["ok"]
    compiled = fit(
        replace(recipe, compile=True), data, LocalSession(tmp_path / "compiled"), MemoryRun()
    )
    assert torch._dynamo.utils.counters["frames"]["ok"]
    assert compiled.weights.keys() == plain.weights.keys()
    for name, weights in plain.weights.items():
        torch.testing.assert_close(compiled.weights[name], weights, atol=1e-5, rtol=1e-5)


def test_what_does_not_go_with_it_is_told():
    with pytest.raises(ValueError, match="compile is on at zero: 3"):
        check(replace(RECIPE, compile=True, zero=3))
    with pytest.raises(ValueError, match="compile is 'yes'"):
        check(replace(RECIPE, compile="yes"))
