"""Early, decision-level, tensor and low-rank fusion: each equals its slow and obvious twin."""

import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.test_mmlatch_twin import D, H, Twin, ragged
from tests.test_models import SMALL, WIDTHS, random_batch
from training.batch import FusionBatch, Stream
from training.models import build
from training.models.tfn import LARGEST
from training.recipe import ModelSettings, Task
from training.recipes import named


def made(kind, names, widths=D, outputs=2, **chosen):
    settings = ModelSettings(kind=kind, streams=names, settings={"hidden": H, **chosen})
    return build(settings, widths, outputs).eval()


def early(model, x, valid):
    """One model reads [x_1; ...; x_M] at each step at which any stream is valid."""
    n = len(x[0])
    x = [x[m] * torch.tensor([[t in valid[m]] for t in range(n)]) for m in range(len(x))]
    return Twin(model.model).clip([torch.cat(x, 1)], [sorted(set().union(*valid))])


def decisions(model, x, valid, rule):
    """What the models of a clip's streams say, combined; those of all, when it has none."""
    there = [m for m in range(len(x)) if valid[m]] or range(len(x))
    said = [Twin(model.models[m]).clip([x[m]], [valid[m]]) for m in there]
    if model.models[0].settings.labels:
        return torch.stack([label(o, rule) for o in zip(*said, strict=True)])
    if len(said[0]) == 1:
        return sum(said) / len(said)
    p = [torch.exp(o) / torch.exp(o).sum() for o in said]
    if rule == "decision_average":
        return torch.log(sum(p) / len(p))
    product = torch.stack(p).prod(0)
    return torch.log(product / product.sum())


def label(logits, rule):
    """The logit of what becomes of the probabilities that one label is there."""
    p = torch.sigmoid(torch.stack(logits))
    if rule == "decision_average":
        return torch.log(p.mean() / (1 - p.mean()))
    return torch.log(p.prod() / (1 - p).prod())


def vector(model, m, x, valid):
    """z_m: 1, and what an LSTM or the mean of the stream becomes; 0 where the clip lacks it."""
    encoder = model.vectors.encoders[m]
    p = dict(encoder.named_parameters())
    size = model.vectors.encoders[m].layers[-2].out_features
    if not valid:
        return torch.eye(1, 1 + size, dtype=torch.float64)[0]
    x = [x[t] if t in valid else 0 * x[t] for t in range(valid[-1] + 1)]
    if "lstm.weight_hh_l0" in p:
        own = {k.removeprefix("lstm."): v for k, v in p.items() if k.startswith("lstm.")}
        h = functional_call(nn.LSTM(len(x[0]), H).double(), own, (torch.stack(x),))[0][-1]
        h = torch.tanh(p["layers.1.weight"] @ h + p["layers.1.bias"])
    else:
        h = torch.relu(p["layers.0.weight"] @ (sum(x) / len(valid)) + p["layers.0.bias"])
        h = torch.tanh(p["layers.3.weight"] @ h + p["layers.3.bias"])
    return torch.cat([torch.ones(1, dtype=torch.float64), h])


def whole_weights(model):
    """W_h[i_1, ..., i_M], flat: of TFN as they are, of LMF the sum of products of its factors."""
    if hasattr(model, "fusion"):
        return model.fusion.weight, model.fusion.bias
    size, rank = model.factors[0].shape[:2]
    weights = [
        sum(
            torch.stack([w[i, r] for w, i in zip(model.factors, entry, strict=True)]).prod(0)
            for r in range(rank)
        )
        for entry in itertools.product(range(size), repeat=len(model.factors))
    ]
    return torch.stack(weights, 1), model.bias


def tensor(model, x, valid):
    """h = W vec(z_1 x ... x z_M) + b, an entry at a time, and two layers."""
    z = [vector(model, m, x[m], valid[m]) for m in range(len(x))]
    entries = itertools.product(*(range(len(each)) for each in z))
    product = [
        torch.stack([v[i] for v, i in zip(z, entry, strict=True)]).prod() for entry in entries
    ]
    weight, bias = whole_weights(model)
    h = torch.relu(sum(weight[:, i] * entry for i, entry in enumerate(product)) + bias)
    for layer in (2, 4):
        p = model.inference[layer]
        h = p.weight @ (h if layer == 2 else torch.relu(h)) + p.bias
    return h


def twin(kind, model, names, batch):
    streams = [batch.streams[name] for name in names]
    found = []
    for b in range(len(batch.keys)):
        x = [s.values[b] for s in streams]
        valid = [s.mask[b].nonzero().flatten().tolist() for s in streams]
        if kind == "early_fusion":
            found.append(early(model, x, valid))
        elif kind in ("tfn", "lmf"):
            found.append(tensor(model, x, valid))
        else:
            found.append(decisions(model, x, valid, kind))
    return torch.stack(found)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("kind", "names", "outputs", "chosen"),
    [
        ("early_fusion", ("text", "audio", "visual"), 2, {}),
        ("early_fusion", ("audio", "text"), 1, {"pooling": "sum"}),
        ("decision_average", ("text", "audio", "visual"), 3, {}),
        ("decision_average", ("visual", "text"), 1, {"pooling": "sum"}),
        ("decision_product", ("text", "audio", "visual"), 3, {}),
        ("decision_average", ("text", "audio"), 2, {"labels": True}),
        ("decision_product", ("text", "audio", "visual"), 1, {"labels": True}),
        ("tfn", ("text", "audio", "visual"), 2, {"vector": 3}),
        ("tfn", ("audio", "text", "visual", "pose"), 1, {"vector": 2, "recurrent": "text, pose"}),
        ("lmf", ("text", "audio", "visual"), 2, {"vector": 3, "rank": 2}),
        ("lmf", ("visual", "text"), 1, {"vector": 4, "rank": 3, "recurrent": "all"}),
        ("lmf", ("visual", "pose", "audio", "text"), 2, {"vector": 2, "recurrent": "none"}),
    ],
)
def test_the_fast_baseline_equals_the_obvious_one(kind, names, outputs, chosen, seed):
    torch.manual_seed(seed)
    fast = made(kind, names, outputs=outputs, **chosen).double()
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(1.5)
    batch = ragged(names, seed)
    outputs, obvious = fast(batch), twin(kind, fast, names, batch)
    torch.testing.assert_close(outputs, obvious, atol=1e-10, rtol=0)
    parameters = list(fast.parameters())
    ours = torch.autograd.grad(outputs.square().sum(), parameters)
    theirs = torch.autograd.grad(obvious.square().sum(), parameters, materialize_grads=True)
    for name, mine, other in zip(dict(fast.named_parameters()), ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=0, msg=name)


def test_low_rank_fusion_is_tensor_fusion_with_factorised_weights():
    names = ("text", "audio", "visual")
    low, full = made("lmf", names, SMALL, vector=3, rank=3), made("tfn", names, SMALL, vector=3)
    state = {k: v for k, v in low.state_dict().items() if not k.startswith(("factors", "bias"))}
    weight, bias = whole_weights(low)
    full.load_state_dict({**state, "fusion.weight": weight, "fusion.bias": bias})
    batch = random_batch(4)
    torch.testing.assert_close(low(batch), full(batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["decision_average", "decision_product"])
def test_a_stream_that_a_clip_lacks_has_no_say_at_all(kind):
    outputs = 3
    three = made(kind, ("text", "audio", "visual"), SMALL, outputs)
    two = made(kind, ("text", "visual"), SMALL, outputs)
    for own, other in ((0, 0), (1, 2)):
        two.models[own].load_state_dict(three.models[other].state_dict())
    batch = random_batch(1, missing=0.0)
    deaf = {
        n: Stream(s.values * (n != "audio"), s.mask & (n != "audio"))
        for n, s in batch.streams.items()
    }
    deaf = FusionBatch(streams=deaf, target=None, weight=batch.weight, keys=batch.keys)
    some = batch.streams["text"].mask.any(1) | batch.streams["visual"].mask.any(1)
    assert some.sum() >= 3
    assert torch.equal(three(deaf)[some], two(batch)[some])
    assert not torch.allclose(three(batch)[some], two(batch)[some], atol=1e-3)
    torch.testing.assert_close(three(batch).exp().sum(1), torch.ones(4))


@pytest.mark.parametrize("kind", ["decision_average", "decision_product"])
def test_branches_that_are_trained_by_their_own_losses_are_trained_as_if_alone(kind):
    names = ("text", "audio", "visual")
    model = made(kind, names, SMALL, 3, objective="branches")
    batch, target = random_batch(2, missing=0.5), torch.tensor([0, 2, 1, 1])

    def criterion(outputs):
        return torch.nn.functional.cross_entropy(outputs, target, reduction="none")

    found = model.losses(batch, criterion)
    assert list(found) == list(names)
    sum(found.values()).sum().backward()
    none = ~torch.stack([batch.streams[name].mask.any(1) for name in names]).any(0)
    for name, branch in zip(names, model.models, strict=True):
        there = batch.streams[name].mask.any(1)
        assert 0 < there.sum() < 4
        mine = [parameter.grad for parameter in branch.parameters()]
        wanted = torch.autograd.grad(
            criterion(branch(batch))[there | none].sum(), list(branch.parameters())
        )
        for ours, theirs in zip(mine, wanted, strict=True):
            torch.testing.assert_close(ours, theirs)
    both = made(kind, names, SMALL, 3, objective="both")
    both.load_state_dict(model.state_dict())
    assert list(both.losses(batch, criterion)) == ["fused", *names]
    torch.testing.assert_close(both.losses(batch, criterion)["fused"], criterion(model(batch)))
    plain = made(kind, names, SMALL, 3)
    assert list(plain.losses(batch, criterion)) == ["fused"]


@pytest.mark.parametrize("kind", ["decision_average", "tfn", "lmf"])
def test_models_that_fuse_no_steps_want_no_common_time_base(kind):
    streams = {}
    for name, steps in (("text", 3), ("audio", 40)):
        mask = torch.ones(2, steps, dtype=torch.bool)
        streams[name] = Stream(torch.randn(2, steps, WIDTHS[name]), mask)
    batch = FusionBatch(streams=streams, target=None, weight=torch.ones(2), keys=("a", "b"))
    assert made(kind, ("text", "audio"), SMALL)(batch).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "names", "outputs", "chosen", "message"),
    [
        ("decision_product", ("text", "audio"), 1, {}, "a regression has none; 'decision_average'"),
        (
            "tfn",
            ("text",),
            2,
            {},
            "'tfn' multiplies streams with each other and wants two at least",
        ),
        ("lmf", ("text",), 2, {}, "'lmf' multiplies streams"),
        (
            "tfn",
            ("text", "audio", "visual"),
            2,
            {"vector": 99},
            "vector 99 has 1,000,000 entries.*to 65",
        ),
        ("tfn", ("text", "audio"), 2, {"vector": 0}, "vector is 0; it must be at least 1"),
        ("lmf", ("text", "audio"), 2, {"rank": 0}, "rank is 0; it must be at least 1"),
        ("lmf", ("text", "audio"), 2, {"encoder_dropout": 1.0}, "encoder_dropout is 1.0"),
        ("tfn", ("text", "audio"), 2, {"rank": 4}, "'tfn' has no setting 'rank'"),
        ("tfn", ("text", "audio"), 2, {"recurrent": "video"}, "recurrent names 'video'"),
    ],
)
def test_baselines_that_cannot_be_built_say_why(kind, names, outputs, chosen, message):
    with pytest.raises(ValueError, match=message):
        made(kind, names, SMALL, outputs, **chosen)


def test_the_largest_vector_that_the_message_names_can_be_built():
    with torch.device("meta"):
        model = made("tfn", ("text", "audio", "visual"), SMALL, vector=65)
    assert model.fusion.in_features == 66**3 <= LARGEST


def told_by_two(clips, seed):
    """Streams of noise with a cue each; the label is the product of the cues of text and audio."""
    draw = torch.Generator().manual_seed(seed)
    cues = torch.randint(0, 2, (clips, 3), generator=draw) * 2.0 - 1
    streams = {}
    for row, (name, width) in enumerate(SMALL.items()):
        values = torch.randn(clips, 5, width, generator=draw)
        values[:, :, 0] += cues[:, row, None]
        streams[name] = Stream(values, torch.ones(clips, 5, dtype=torch.bool))
    keys = tuple(f"{clip}" for clip in range(clips))
    target = cues[:, 0] * cues[:, 1]
    return FusionBatch(streams=streams, target=target, weight=torch.ones(clips), keys=keys)


@pytest.mark.parametrize("name", ["tfn", "lmf"])
def test_tensor_fusions_learn_from_few_clips_what_no_stream_tells_alone(name):
    recipe = named(name, Task(kind="regression", label="score"), tuple(SMALL), {"vector": 6})
    torch.manual_seed(0)
    model, batch, unseen = build(recipe.model, SMALL, 1), told_by_two(160, 0), told_by_two(200, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2 * recipe.learning_rate)
    for _ in range(80):
        loss = (model(batch)[:, 0] - batch.target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = model.eval()(unseen)[:, 0].sign() == unseen.target
    assert right.float().mean() > 0.85
