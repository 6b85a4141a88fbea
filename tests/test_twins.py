"""The other sides of benchmarks/models.py compute the same functions as ours, step by step."""

import functools
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name, path):
    """A script of benchmarks/, whose folder must not be searched: one file there is a package's."""
    folder = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


load("twins", BENCHMARKS / "twins" / "__init__.py")
card = load("card", BENCHMARKS / "card.py")
load("models_on_card", BENCHMARKS / "models_on_card.py")
models = load("model_benchmark", BENCHMARKS / "models.py")
ROWS = {row.name: row for row in models.rows(full=False)}


def small(name, **changed):
    """A line of the table, with few clips."""
    row = ROWS[name]
    known = {"clips": 3, "steps": 6, "make": row.make, "same": row.same}
    return models.Row(name=name, title="", **{**known, **changed})


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.same])
def test_both_sides_compute_one_function(name):
    models.compare(small(name))


@pytest.mark.parametrize("name", ["mmlatch", "mult_aligned", "msaf_ravdess_1"])
def test_both_sides_give_the_same_gradients_of_inputs_and_outputs(name):
    pair = small(name).make(3, 6, dropout=False)
    losses = [sum(x.square().sum() for x in side.call()) for side in (pair.ours, pair.twin)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
    squares = [
        sum(weight.grad.square().sum() for weight in side.model.parameters())
        for side in (pair.ours, pair.twin)
    ]
    torch.testing.assert_close(*squares, rtol=1e-3, atol=0)


def test_two_functions_are_not_timed_against_each_other():
    def wrong(*sizes, make, **more):
        pair = make(*sizes, **more)
        with torch.no_grad():
            next(iter(pair.twin.model.classifier.parameters())).add_(0.1)
        return pair

    row = ROWS["mmlatch"]
    with pytest.raises(RuntimeError, match="mmlatch: the twin's outputs differ by"):
        models.compare(small("mmlatch", make=functools.partial(wrong, make=row.make)))


@pytest.mark.parametrize("name", ["mmlatch", "mult_aligned", "msaf_ravdess_1"])
def test_both_sides_drop_when_they_are_timed(name):
    pair = small(name).make(3, 6, dropout=True)
    for side in (pair.ours, pair.twin):
        first, second = side.call(), side.call()
        assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("mmlatch", 2_741_153), ("mult_aligned", 1_073_731), ("msaf_ravdess_1", 5_356)],
)
def test_twins_are_as_large_as_the_released_models(name, wanted):
    twin = small(name).make(1, 2, dropout=True).twin.model
    assert sum(weight.numel() for weight in twin.parameters()) == wanted


def test_the_sides_take_turns_and_every_round_counts():
    pair = small("msaf_ravdess_1").make(2, 2, dropout=True)
    timed = models.interleaved(pair, 3)
    assert len(timed.ours) == len(timed.twin) == 3
    assert all(seconds > 0 for seconds in (*timed.ours, *timed.twin))
    assert timed.ratio == sorted(timed.twin)[1] / sorted(timed.ours)[1]


def test_multiplications_of_recurrences_are_counted():
    counted = card.flops(small("mmlatch").make(2, 3, dropout=True).ours)
    encoders = sum(2 * 2 * 4 * 100 * (width + 100) for width in (300, 74, 35))
    masks = sum(2 * 2 * 4 * width * (100 + width) for width in (300, 74, 35))
    reader = 2 * 2 * 4 * 100 * (700 + 100)
    recurrences = 3 * 2 * 3 * (2 * encoders + masks + reader)
    assert recurrences < counted < 1.4 * recurrences
