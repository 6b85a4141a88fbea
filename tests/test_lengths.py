"""Computing clips of like length together changes no number but the time it takes."""

import pytest
import torch

from training.batch import FusionBatch, Stream
from training.models import build, lengths
from training.models.blocks import exchange, project, turned_rows
from training.recipe import ModelSettings

WIDTHS = {"text": 6, "audio": 4, "visual": 3}


def ragged(clips, *, longest=12, seed=0):
    """Clips of 0 to 12 steps with holes, few of them long."""
    draw = torch.Generator().manual_seed(seed)
    whole = (torch.rand(clips, generator=draw) ** 2 * longest).long()
    whole[clips // 2] = longest
    inside = torch.arange(longest) < whole[:, None]
    streams = {}
    for name, width in WIDTHS.items():
        mask = inside & (torch.rand(clips, longest, generator=draw) < 0.8)
        values = torch.randn(clips, longest, width, generator=draw, dtype=torch.float64)
        streams[name] = Stream(values * mask[..., None], mask)
    keys = tuple(str(row) for row in range(clips))
    return FusionBatch(streams=streams, target=None, weight=torch.ones(clips), keys=keys)


def made(kind, **chosen):
    torch.manual_seed(0)
    settings = ModelSettings(kind=kind, streams=tuple(WIDTHS), settings={"hidden": 5, **chosen})
    return build(settings, WIDTHS, 2).double().eval()


@pytest.mark.parametrize("kind", ["mmlatch", "late_fusion"])
def test_groups_give_the_outputs_and_gradients_of_the_whole_batch(kind, monkeypatch):
    model, batch = made(kind), ragged(40)
    grouped = model(batch)
    parts = torch.autograd.grad(grouped.square().sum(), list(model.parameters()))
    monkeypatch.setattr(lengths, "GROUP", 40)
    whole = model(batch)
    wanted = torch.autograd.grad(whole.square().sum(), list(model.parameters()))
    torch.testing.assert_close(grouped, whole, atol=1e-12, rtol=1e-12)
    for one, other in zip(parts, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_each_clip_is_in_one_group_that_is_long_enough():
    valid = torch.stack([stream.mask for stream in ragged(40).streams.values()])
    groups = lengths.length_groups(valid)
    assert [len(rows) for rows, _ in groups] == [16, 16, 8]
    assert sorted(torch.cat([rows for rows, _ in groups]).tolist()) == list(range(40))
    assert [longest for _, longest in groups] == sorted((n for _, n in groups), reverse=True)
    for rows, longest in groups:
        assert not valid[:, rows, longest:].any()


def test_there_are_no_groups_where_they_would_save_nothing():
    assert lengths.length_groups(torch.ones(1, 40, 12, dtype=torch.bool)) == []
    assert lengths.length_groups(torch.rand(3, lengths.GROUP, 12) < 0.5) == []
    assert lengths.length_groups(torch.zeros(2, 40, 12, dtype=torch.bool)) != []


def test_the_released_form_is_never_cut_into_groups(monkeypatch):
    batch = ragged(40)
    monkeypatch.setattr(lengths, "length_groups", lambda valid: pytest.fail("cut into groups"))
    assert made("late_fusion", reference=True)(batch).shape == (40, 2)


def test_a_clip_is_turned_round_within_its_length_and_back():
    x = torch.arange(8.0).reshape(2, 4, 1)
    padding = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]]).unsqueeze(2).float()
    rows = turned_rows(padding)
    turned = exchange(x, rows)
    assert turned.flatten().tolist() == [2, 1, 0, 3, 4, 5, 6, 7]
    assert torch.equal(exchange(turned, rows), x)
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda leaf: exchange(leaf, rows), x)


@pytest.mark.parametrize("clips", [1, 3, 20])
def test_products_on_a_cpu_are_those_of_matrices(clips):
    x = torch.randn(2, clips, 30, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 5, 9, dtype=torch.float64, requires_grad=True)
    ours, wanted = project(x, weight), torch.einsum("gbts,gsn->gbtn", x, weight)
    torch.testing.assert_close(ours, wanted, atol=1e-12, rtol=1e-12)
    grads = [torch.autograd.grad(each.square().sum(), (x, weight)) for each in (ours, wanted)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_a_compiled_model_computes_and_learns_the_same():
    model, batch = made("late_fusion"), ragged(3)
    wanted = model(batch)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(wanted.square().sum(), parameters)
    model.compile(backend="aot_eager")
    outputs = model(batch)
    torch.testing.assert_close(outputs, wanted, atol=1e-12, rtol=1e-12)
    found = torch.autograd.grad(outputs.square().sum(), parameters)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
