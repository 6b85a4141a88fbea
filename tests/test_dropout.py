"""Cheap dropout drops what it says, and attention in blocks is attention."""

import math

import pytest
import torch

from training.models import attention
from training.models.attention import Sight, attend
from training.models.dropout import LEVELS, Draws, dropout, plus_dropped, relu_dropped


@pytest.mark.parametrize("share", [0.1, 0.25, 0.9])
def test_the_share_is_dropped_and_the_rest_scaled(share):
    torch.manual_seed(0)
    dropped = dropout(torch.ones(1000, 1001), share, training=True)
    kept = 1.0 - round(share * LEVELS) / LEVELS
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1.0 / kept).item()}
    # 5 standard deviations of a share of a million draws.
    found = float((dropped == 0).double().mean())
    assert abs(found - share) < 5 * math.sqrt(share * (1 - share) / 1_001_000)


def test_drops_of_neighbours_are_independent():
    """Four drops come of one word of random bits: none of its parts may be skewed, or alike."""
    factors = Draws(7).factors((250_000, 4), 0.25, torch.float64)
    dropped = (factors == 0).double()
    assert (dropped.mean(0) - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 250_000)
    assert (torch.corrcoef(dropped.mT) - torch.eye(4)).abs().max() < 5 / math.sqrt(250_000)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3, 5)])
def test_any_shape_is_dropped(shape):
    assert dropout(torch.ones(shape), 0.5, training=True).shape == shape


def test_the_seed_decides_the_drops():
    x = torch.ones(1000)

    def drawn(seed):
        torch.manual_seed(seed)
        return [dropout(x, 0.5, training=True) for _ in range(2)]

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert not torch.equal(*first)
    assert not torch.equal(first[0], other[0])


def test_nothing_is_dropped_in_evaluation_or_at_share_0():
    x = torch.randn(9)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x


def test_what_is_dropped_has_no_gradient():
    x = torch.ones(1000, requires_grad=True)
    dropped = dropout(x, 0.5, training=True)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())


def drops(x, share):
    """What dropout multiplies with from here on."""
    torch.manual_seed(6)
    factors = dropout(torch.ones_like(x), share, training=True)
    torch.manual_seed(6)
    return factors


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_what_is_done_in_one_step_is_what_two_steps_do(share):
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(40, 5, generator=draw).double().requires_grad_() for _ in range(2))
    factors = drops(x, share)
    pairs = [(relu_dropped(x, share, training=True), x.relu() * factors)]
    factors = drops(y, share)
    pairs.append((plus_dropped(x, y, share, training=True), x + y * factors))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
        wanted = [
            torch.autograd.grad(out.pow(3).sum(), (x, y), allow_unused=True)
            for out in (ours, theirs)
        ]
        for mine, other in zip(*wanted, strict=True):
            assert (mine is None) == (other is None)
            if mine is not None:
                torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)
    assert torch.equal(relu_dropped(x, share, training=False), x.relu())
    assert torch.equal(plus_dropped(x, y, share, training=False), x + y)


def inputs(queries, keys):
    torch.manual_seed(0)
    shapes = [(3, 2, queries, 4), (3, 2, keys, 4), (3, 2, keys, 4)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def obvious(query, key, value, seen, factors):
    """Attention by the whole map; `seen` is [N, T, U]."""
    scores = query @ key.mT / math.sqrt(query.shape[3])
    scores = scores.masked_fill(~seen[:, None], -math.inf)
    weights = scores.softmax(3).nan_to_num(0.0)  # where nothing is seen
    return (weights * factors) @ value


@pytest.mark.parametrize(("held", "short"), [(1, 0), (7, 99), (40, 0), (150, 99), (10_000, 0)])
@pytest.mark.parametrize("shape", ["all", "one for all", "keys", "each"])
def test_attention_in_blocks_is_attention_by_the_whole_map(held, short, shape, monkeypatch):
    monkeypatch.setattr(attention, "HELD", held)
    monkeypatch.setattr(attention, "SHORT", short)
    found = inputs(5, 6)
    draw = torch.rand(3, 5, 6) < 0.5
    draw[0, 0] = False
    seen = {
        "all": torch.ones(3, 5, 6, dtype=torch.bool),
        "one for all": draw[1:2].expand(3, 5, 6),
        "keys": draw[:, :1].expand(3, 5, 6),
        "each": draw,
    }[shape]
    given = {"all": None, "one for all": draw[1:2], "keys": draw[:, :1], "each": draw}[shape]
    sight = Sight(None, None) if given is None else Sight.of(given, torch.float64)
    ours = attend(*found, sight, 0.0)
    theirs = obvious(*found, seen, 1.0)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    for mine, other in zip(
        torch.autograd.grad(ours.square().sum(), found),
        torch.autograd.grad(theirs.square().sum(), found),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("short", [0, 99])
def test_attention_drops_the_same_weights_in_both_passes(short, monkeypatch):
    """With values that are unit vectors the answers are the dropped weights themselves."""
    monkeypatch.setattr(attention, "HELD", 20)
    monkeypatch.setattr(attention, "SHORT", short)
    query, key, _ = inputs(5, 4)
    value = torch.eye(4, dtype=torch.float64).repeat(3, 2, 1, 1).requires_grad_()
    torch.manual_seed(5)
    answer = attend(query, key, value, Sight(None, None), 0.5)
    weights = (query @ key.mT / 2.0).softmax(3)
    factors = (answer / weights).detach()
    torch.testing.assert_close(factors, (factors > 1.0).double() * 2.0)
    assert 0.3 < float((factors == 0).double().mean()) < 0.7
    theirs = obvious(query, key, value, torch.ones(3, 5, 4, dtype=torch.bool), factors)
    given = (query, key, value)
    mine = torch.autograd.grad(answer.square().sum(), given)
    for own, other in zip(mine, torch.autograd.grad(theirs.square().sum(), given), strict=True):
        torch.testing.assert_close(own, other, atol=1e-12, rtol=0)
