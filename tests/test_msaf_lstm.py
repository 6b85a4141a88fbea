"""Sequences fused by MSAF: the authors' numbers, a slow twin, streams on several time bases."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.golden_numbers import close, golden, part
from tests.test_models import random_batch
from tests.test_msaf import Twin
from training.batch import FusionBatch, Stream
from training.models import build
from training.models.msaf_lstm import MsafLstmSettings, from_reference
from training.recipe import ModelSettings

PAPER = {"visual": 35, "audio": 74, "text": 768}
D = {"text": 5, "audio": 3, "visual": 2}


def paper(**more):
    settings = {"channels": "32, 64, 128", **more}
    return build(ModelSettings(kind="msaf", streams=tuple(PAPER), settings=settings), PAPER, 1)


def test_the_model_is_as_large_as_the_papers():
    assert sum(parameter.numel() for parameter in paper().parameters()) == 689_337


@pytest.mark.parametrize("training", [True, False])
def test_the_released_form_gives_the_numbers_of_the_authors_code(training):
    arrays = golden("msaf_mosei_net")
    model = paper(reference=True, block_dropout=0.0).train(training)
    model.load_state_dict(from_reference(part(arrays, "state/")))
    streams = {
        name: Stream(arrays[f"in/{name}"].requires_grad_(), torch.zeros(6, 10, dtype=torch.bool))
        for name in PAPER
    }
    batch = FusionBatch(streams=streams, target=None, weight=torch.ones(6), keys=tuple("abcdef"))
    outputs = model(batch)
    outputs.square().sum().backward()
    wanted = arrays if training else part(arrays, "eval/")
    close(outputs, wanted["out/pred"], 1e-5)
    for name, stream in streams.items():
        close(stream.values.grad, wanted[f"grad_in/{name}"], 1e-4)
    if not training:
        return
    stored = part(arrays, "grad/")
    # Of the larger tensors every sixteenth row is stored.
    released = {
        name: restored(grad, arrays[f"state/{name}"].shape) for name, grad in stored.items()
    }
    gradients = from_reference(released)
    for name, parameter in model.named_parameters():
        kept = ~gradients[name].isnan()
        mine, theirs = parameter.grad[kept], gradients[name][kept]
        if name == "msaf.join.bias":
            # Zero in exact arithmetic: the norm takes every constant away.
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
        else:
            close(mine, theirs, 1e-4)


def restored(rows, shape):
    if rows.shape == shape:
        return rows
    whole = rows.new_full(shape, float("nan"))
    whole[::16] = rows
    return whole


class NetTwin:
    """The network a clip at a time; MSAF's own twin is between the recurrences."""

    def __init__(self, model):
        self.model, self.p = model, dict(model.named_parameters())

    def lstm(self, name, x):
        own = {k.removeprefix(f"{name}."): v for k, v in self.p.items() if k.startswith(f"{name}.")}
        layer = nn.LSTM(x.shape[1], own["weight_hh_l0"].shape[1]).double()
        return functional_call(layer, own, (x,))[0]

    def each(self, name, m, rows, lengths):
        outputs = []
        for x, n in zip(rows, lengths, strict=True):
            hidden = self.p[f"{name}.{m}.weight_hh_l0"].shape[1]
            empty = x.new_zeros(len(x) - n, hidden)
            outputs.append(torch.cat([self.lstm(f"{name}.{m}", x[:n]), empty]) if n else empty)
        return torch.stack(outputs)

    def __call__(self, batch):
        streams = [batch.streams[name] for name in self.model.streams]
        lengths = [
            [max([t + 1 for t in range(len(v)) if v[t]], default=0) for v in s.mask]
            for s in streams
        ]
        h = [self.each("first", m, s.values, lengths[m]) for m, s in enumerate(streams)]
        fused = Twin(self.model.msaf)([x.mT for x in h], [s.mask for s in streams])
        h = [self.each("second", m, x.mT, lengths[m]) for m, x in enumerate(fused)]
        last = [
            torch.stack(
                [x[n - 1] if n else torch.zeros_like(x[0]) for x, n in zip(rows, ns, strict=True)]
            )
            for rows, ns in zip(h, lengths, strict=True)
        ]
        return torch.cat(last, 1) @ self.p["classifier.weight"].T + self.p["classifier.bias"]


def unpooled(seed):
    """Streams that each have steps of their own."""
    steps = {"text": 3, "audio": 9, "visual": 5}
    streams = {}
    for name, width in D.items():
        found = random_batch(seed + width, steps=steps[name], widths={name: width}).streams[name]
        streams[name] = Stream(found.values.double(), found.mask)
    return FusionBatch(streams=streams, target=None, weight=torch.ones(4), keys=tuple("abcd"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("channels", ["hidden", "4, 6, 3"])
def test_the_fast_network_equals_the_obvious_one_on_several_time_bases(channels, seed, training):
    torch.manual_seed(seed)
    chosen = {"hidden": 4, "channels": channels, "block_width": 4, "segments": 2}
    settings = ModelSettings(kind="msaf", streams=tuple(D), settings={**chosen, "block_dropout": 0})
    fast = build(settings, D, 2).double().train(training)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(2.0)
    batch = unpooled(seed)
    outputs, obvious = fast(batch), NetTwin(fast)(batch)
    torch.testing.assert_close(outputs, obvious, atol=1e-10, rtol=0)
    parameters = list(fast.parameters())
    ours = torch.autograd.grad(outputs.square().sum(), parameters)
    theirs = torch.autograd.grad(obvious.square().sum(), parameters, materialize_grads=True)
    for name, mine, other in zip(dict(fast.named_parameters()), ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"hidden": 0}, "hidden is 0"),
        ({"segments": 0}, "segments is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        (
            {"channels": "32, 64"},
            r"a number of at least 1 for each of \['visual', 'audio', 'text'\]",
        ),
        ({"channels": "32, 0, 64"}, "channels is '32, 0, 64'"),
        ({"channels": "32, x, 64"}, "channels is '32, x, 64'"),
    ],
)
def test_settings_that_cannot_be_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        paper(**chosen)


def test_dropout_is_drawn_in_training_alone():
    batch = unpooled(0)
    settings = {"hidden": 4, "dropout": 0.5, "block_dropout": 0.0}
    model = build(ModelSettings(kind="msaf", streams=tuple(D), settings=settings), D, 2).double()
    assert torch.equal(model.eval()(batch), model(batch))
    assert not torch.equal(model.train()(batch), model(batch))


def test_sizes_are_one_for_all_or_one_for_each():
    assert MsafLstmSettings().sizes(("a", "b")) == [64, 64]
    assert MsafLstmSettings(channels="3,4").sizes(("a", "b")) == [3, 4]
