"""docs/adding-a-model.md is run as it stands, and its model keeps the laws and learns."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import test_loop, test_models
from tracking.run import MemoryRun
from training import models
from training.data import load
from training.loop import fit
from training.recipe import ModelSettings
from training.session import LocalSession

PAGE = Path(__file__).resolve().parent.parent / "docs" / "adding-a-model.md"
LINES = 40


@pytest.fixture(scope="module")
def blocks():
    """The model, and its line of the table."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@pytest.fixture
def added(blocks, tmp_path, monkeypatch):
    """The page's module, written into the table by the page's line."""
    path = tmp_path / "gated.py"
    path.write_text(blocks[0])
    spec = importlib.util.spec_from_file_location("training.models.gated", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "training.models.gated", module)
    spec.loader.exec_module(module)
    line = eval(f"{{{blocks[1]}}}", {**vars(module), "Kind": models.Kind})  # noqa: S307 - the page's own line
    [(name, kind)] = line.items()
    monkeypatch.setitem(models.KINDS, name, kind)
    chosen = ModelSettings(kind=name, streams=("text", "audio", "visual"))
    monkeypatch.setitem(test_models.MODELS, name, chosen)
    return name


def test_the_model_has_fewer_than_forty_lines_of_code(blocks):
    lines = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(lines) < LINES


def test_the_pages_model_keeps_the_laws_of_all_models(added):
    test_models.test_more_padding_changes_no_output(added)
    test_models.test_batch_order_permutes_outputs_and_does_nothing_else(added)
    for missing in (0.0, 0.6, 1.0):
        test_models.test_missing_streams_give_finite_outputs_and_gradients_everywhere(
            added, missing
        )
    test_models.test_half_precision_runs(added)


def test_a_wrong_setting_of_the_pages_model_is_named(added):
    with pytest.raises(ValueError, match="no setting 'hiden'; the nearest known one is 'hidden'"):
        test_models.make(added, hiden=3)


def test_fit_trains_the_pages_model(added, tmp_path):
    chosen = ModelSettings(kind=added, streams=tuple(test_loop.WIDTHS), settings={"hidden": 8})
    recipe = replace(test_loop.RECIPE, name=added, model=chosen, epochs=5, learning_rate=2e-2)
    columns = test_loop.make_dataset(tmp_path / "dataset")
    data = load(tmp_path / "dataset", columns, recipe)
    found = fit(recipe, data, LocalSession(tmp_path / "run"), MemoryRun())
    losses = [epoch["train_loss"] for epoch in found.history]
    assert losses[-1] < 0.8 * losses[0]
    torch.manual_seed(recipe.seed)
    fresh = models.build(recipe.model, test_loop.WIDTHS, 1).state_dict()
    assert any(not torch.equal(found.weights[name], fresh[name]) for name in fresh)
