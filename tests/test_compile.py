"""torch.compile as a setting: the same names of weights, and the same numbers nearly."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed

from tests.test_loop import RECIPE, InGroup, make_dataset, without_dropout
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


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("c++") is None, reason="PyTorch's compiler wants one of C++")
def test_two_compiled_ranks_follow_one_that_is_not(tmp_path):
    columns = make_dataset(tmp_path / "data")
    command = [sys.executable, __file__, str(tmp_path), json.dumps(columns)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
    assert [rank.wait(timeout=500) for rank in ranks] == [0, 0]
    recipe = replace(without_dropout(RECIPE), epochs=1)
    data = load(tmp_path / "data", columns, recipe)
    plain = fit(recipe, data, LocalSession(tmp_path / "plain"), MemoryRun())
    compiled = torch.load(tmp_path / "compiled.pt", weights_only=True)
    assert compiled.pop("frames") > 0
    assert compiled.keys() == plain.weights.keys()
    for name, weights in plain.weights.items():
        torch.testing.assert_close(compiled[name], weights, atol=1e-5, rtol=1e-5)


def test_what_does_not_go_with_it_is_told():
    with pytest.raises(ValueError, match="compile is on at zero: 3"):
        check(replace(RECIPE, compile=True, zero=3))
    with pytest.raises(ValueError, match="compile is 'yes'"):
        check(replace(RECIPE, compile="yes"))


def _as_rank(folder, columns, rank):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    recipe = replace(without_dropout(RECIPE), epochs=1, compile=True)
    data = load(folder / "data", columns, recipe)
    found = fit(recipe, data, InGroup(folder / "compiled", rank, 1000), MemoryRun())
    if rank == 0:
        frames = torch._dynamo.utils.counters["frames"]["ok"]
        torch.save({**found.weights, "frames": frames}, folder / "compiled.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    _as_rank(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
