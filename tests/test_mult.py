"""MulT: the authors' numbers, a slow and obvious twin, lengths that differ between streams."""

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call

from tests.golden_numbers import close, golden, part
from training.batch import FusionBatch, Sample, Stream, collate
from training.models import build
from training.models.mult import from_reference
from training.recipe import ModelSettings

PAPER = {"text": 300, "audio": 74, "visual": 35}
D = {"text": 5, "audio": 3, "visual": 2, "pose": 4}
DROPOUTS = ("embedding", "attention", "relu", "residual", "output")
STILL = {f"{name}_dropout": 0.0 for name in DROPOUTS}


def mult(names, widths, outputs, **chosen):
    return build(ModelSettings(kind="mult", streams=names, settings=chosen), widths, outputs)


def asked(arrays):
    streams = {
        name: Stream(values.clone().requires_grad_(), torch.ones(values.shape[:2]).bool())
        for name, values in part(arrays, "in/").items()
    }
    return FusionBatch(streams=streams, target=None, weight=torch.ones(3), keys=tuple("abc"))


def released(arrays):
    model = mult(
        ("text", "audio", "visual"),
        {"text": 11, "audio": 7, "visual": 5},
        1,
        **{"width": 30, "heads": 5, "layers": 2, "reference": True, **STILL},
    )
    model.load_state_dict(from_reference(part(arrays, "state/")))
    return model


@pytest.mark.parametrize("name", ["mult_aligned", "mult_unaligned"])
@pytest.mark.parametrize("inputs", ["", "zero_steps/"])
def test_the_released_form_gives_the_numbers_of_the_authors_code(name, inputs):
    arrays = golden(name)
    wanted = part(arrays, inputs)
    model, batch = released(arrays), asked(wanted)
    outputs = model(batch)
    loss = outputs.square().sum()
    loss.backward()
    close(outputs, wanted["out/pred"])
    close(loss, wanted["loss"])
    for stream in batch.streams:
        close(batch.streams[stream].values.grad, wanted[f"grad_in/{stream}"])
    if inputs == "":
        gradients_are_the_authors(model, arrays)


def gradients_are_the_authors(model, arrays):
    """By 32 elements and one weighted sum of each released tensor, in the order of their names."""
    state = part(arrays, "state/")
    # Where each element of a released tensor went: ours holds its number.
    count, numbers = 0, {}
    for name in sorted(state):
        numbers[name] = torch.arange(count, count + state[name].numel()).view_as(state[name])
        count += state[name].numel()
    flat = torch.empty(count)
    places = from_reference(numbers)
    for name, parameter in model.named_parameters():
        flat[places[name].flatten()] = parameter.grad.flatten()
    for row, name in enumerate(sorted(state)):
        found = flat[numbers[name].flatten()]
        most = arrays["grad_most"][row]
        some = found[torch.linspace(0, len(found) - 1, 32, dtype=torch.float64).long()]
        assert (some - arrays["grad_some"][row]).abs().max() <= 1e-4 * most, name
        assert abs(found.abs().max() - most) <= 1e-4 * most, name
        summed = (found.double() * torch.arange(len(found)).double().cos()).sum()
        # Errors of single elements add up as their root.
        assert abs(summed - arrays["grad_sum"][row]) <= 1e-5 * most * math.sqrt(len(found)), name


def test_the_released_names_are_known_or_refused():
    state = part(golden("mult_aligned"), "state/")
    with pytest.raises(KeyError, match=r"trans_odd\.weight"):
        from_reference({**state, "trans_odd.weight": torch.zeros(1)})
    state.pop("proj_a.weight")
    with pytest.raises(KeyError, match=r"proj_a\.weight"):
        from_reference(state)


def test_buffers_of_the_released_code_are_passed_over():
    state = part(golden("mult_aligned"), "state/")
    more = {"trans_l_mem.version": torch.zeros(1)}
    assert from_reference({**state, **more}).keys() == from_reference(state).keys()


class Twin:
    """MulT (Tsai et al., ACL 2019), a clip at a time, with a fast model's weights.

    x[m] is [n_m, D_m], and valid[m] are the steps at which stream m is valid.
    """

    def __init__(self, model):
        self.p = dict(model.named_parameters())
        self.s = model.settings
        self.names = model.streams
        self.latch = model.latch
        self.M = len(model.streams)

    def norm(self, name, g, x):
        mean = x.mean(1, keepdim=True)
        var = ((x - mean) ** 2).mean(1, keepdim=True)
        scale, shift = self.p[f"{name}.weight"][g], self.p[f"{name}.bias"][g]
        return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift

    def linear(self, name, g, x):
        return x @ self.p[f"{name}.weight"][g] + self.p[f"{name}.bias"][g]

    def embed(self, x):
        """sqrt(d) x plus sin and cos of the step's number, from 1, at d/2 frequencies."""
        n, d = x.shape
        pe = torch.zeros(n, d, dtype=x.dtype)
        half = d // 2
        for i in range(n):
            for k in range(half):
                angle = (i + 1) / 10000 ** (k / max(half - 1, 1))
                pe[i, k], pe[i, half + k] = math.sin(angle), math.cos(angle)
        return math.sqrt(d) * x + pe

    def attention(self, net, y, z, keys, slack):
        """Queries y on z; query i sees the valid keys up to i + slack, and gets 0 without any."""
        (name, g), d = net, y.shape[1]
        w, b = (
            self.p[f"{name}.query_key_value.weight"][g],
            self.p[f"{name}.query_key_value.bias"][g],
        )
        q, k, v = (u @ w[:, i : i + d] + b[:, i : i + d] for u, i in ((y, 0), (z, d), (z, 2 * d)))
        size = d // self.s.heads
        rows = []
        for i in range(len(y)):
            seen = [j for j in keys if not self.s.future_mask or j <= i + slack]
            heads = []
            for h in range(self.s.heads):
                a = slice(h * size, (h + 1) * size)
                if not seen:
                    heads.append(torch.zeros(size, dtype=y.dtype))
                    continue
                e = torch.exp(torch.stack([q[i, a] @ k[j, a] for j in seen]) / math.sqrt(size))
                heads.append((e / e.sum()) @ torch.stack([v[j, a] for j in seen]))
            rows.append(torch.cat(heads))
        return self.linear(f"{name}.answer", g, torch.stack(rows))

    def transformer(self, net, x, source, keys, slack):
        name, g = net
        for i in range(self.depth[name]):
            layer = f"{name}.layers.{i}"
            y = self.norm(f"{layer}.asking", g, x)
            z = y if source is None else self.norm(f"{layer}.asking", g, source)
            x = x + self.attention((layer, g), y, z, keys, slack)
            y = torch.relu(self.linear(f"{layer}.inner", g, self.norm(f"{layer}.feeding", g, x)))
            x = x + self.linear(f"{layer}.outer", g, y)
        return self.norm(f"{name}.norm", g, x)

    @property
    def depth(self):
        return {"crossing": self.s.layers, "memory": max(self.s.layers, 3)}

    def project(self, m, x):
        """A convolution in time with zeros around the clip."""
        w = self.p[f"projections.{m}.weight"]
        n, reach = len(x), w.shape[2] // 2
        rows = []
        for i in range(n):
            around = [(i + j - reach, w[:, :, j]) for j in range(w.shape[2])]
            rows.append(sum(c @ x[i] for i, c in around if 0 <= i < n))
        return torch.stack(rows)

    def remember(self, x, valid, n):
        """What each memory transformer gives at each step."""
        low = [self.embed(self.project(m, x[m])) for m in range(self.M)]
        g, hs = 0, []
        for t in range(self.M):
            answers = []
            for s in range(self.M):
                if s != t:
                    slack = abs(n[t] - n[s])
                    net = ("crossing", g)
                    answers.append(self.transformer(net, low[t], low[s], valid[s], slack))
                    g += 1
            z = self.embed(torch.cat(answers, 1))
            hs.append(self.transformer(("memory", t), z, None, valid[t], 0))
        return hs

    def mask(self, m, h):
        """M_m: the mean over the other streams p of sigma(LSTM_mp(h_p)), or of sigma(W h_p + b)."""
        said = []
        for net, (to, p) in enumerate(self.latch.links):
            if to == m:
                prefix = f"latch.nets.{net}."
                own = {k.split(".", 4)[4]: v for k, v in self.p.items() if k.startswith(prefix)}
                if self.s.feedback == "sequence":
                    layer = torch.nn.LSTM(h[p].shape[1], D[self.names[m]]).double()
                    said.append(torch.sigmoid(functional_call(layer, own, (h[p],))[0]))
                else:
                    said.append(torch.sigmoid(h[p] @ own["weight"].T + own["bias"]))
        return sum(said) / len(said)

    def clip(self, x, valid):
        """The outputs [K] of one clip."""
        n = [max(v, default=-1) + 1 for v in valid]
        valid_ = [
            torch.tensor([[t in v] for t in range(len(y))]) for v, y in zip(valid, x, strict=True)
        ]
        x = [y * there for y, there in zip(x, valid_, strict=True)]
        if self.latch is not None:
            h = [h * there for h, there in zip(self.remember(x, valid, n), valid_, strict=True)]
            x = [x[m] * self.mask(m, h) for m in range(self.M)]
        hs = self.remember(x, valid, n)
        z = torch.cat([h[n[t] - 1] if n[t] else torch.zeros_like(h[0]) for t, h in enumerate(hs)])
        r = torch.relu(self.p["inner.weight"] @ z + self.p["inner.bias"])
        z = z + self.p["outer.weight"] @ r + self.p["outer.bias"]
        return self.p["classifier.weight"] @ z + self.p["classifier.bias"]

    def __call__(self, batch):
        streams = [batch.streams[name] for name in self.names]
        return torch.stack(
            [
                self.clip(
                    [s.values[b] for s in streams],
                    [s.mask[b].nonzero().flatten().tolist() for s in streams],
                )
                for b in range(len(batch.keys))
            ]
        )


def ragged(names, seed, steps):
    """Three clips: whole, shorter with holes, and without some stream or without anything."""
    draw = torch.Generator().manual_seed(seed)
    streams = {}
    for m, name in enumerate(names):
        n = steps[m]
        mask = torch.rand(3, n, generator=draw) < 0.7
        mask[0] = True
        mask[1] &= torch.arange(n) < 1 + int(torch.randint(n, (1,), generator=draw))
        mask[2] &= bool(seed % 2) and m > 0
        values = torch.randn(3, n, D[name], dtype=torch.float64, generator=draw)
        streams[name] = Stream(values * mask[..., None], mask)
    return FusionBatch(streams=streams, target=None, weight=torch.ones(3), keys=tuple("abc"))


THREE = ("text", "audio", "visual")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("names", "steps", "chosen"),
    [
        (THREE, (5, 5, 5), {}),
        (THREE, (3, 7, 5), {"kernels": "1, 3,5", "layers": 1}),
        (THREE, (3, 6, 6), {"future_mask": False, "heads": 1}),
        (THREE, (5, 5, 5), {"feedback": "sequence", "layers": 1}),
        (THREE, (5, 5, 5), {"feedback": "static", "layers": 1, "kernels": 3}),
        (("audio", "text"), (4, 2), {"layers": 4, "width": 6, "heads": 3}),
        (("text", "audio", "visual", "pose"), (3, 4, 3, 4), {"layers": 1, "kernels": 3}),
    ],
)
def test_the_fast_mult_equals_the_obvious_one(names, steps, chosen, seed):
    torch.manual_seed(seed)
    fast = mult(names, D, 2, **{"width": 4, "heads": 2, "layers": 2, **chosen}).double().eval()
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)  # no bias is 0, no scale 1
    batch = ragged(names, seed, steps)
    outputs, obvious = fast(batch), Twin(fast)(batch)
    torch.testing.assert_close(outputs, obvious, atol=1e-10, rtol=0)
    parameters = list(fast.parameters())
    ours = torch.autograd.grad(outputs.square().sum(), parameters)
    theirs = torch.autograd.grad(obvious.square().sum(), parameters, materialize_grads=True)
    for name, mine, other in zip(dict(fast.named_parameters()), ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10, msg=name)


def test_whole_clips_are_seen_as_they_are_without_masks():
    """A batch in which nothing is padded takes a shorter way, and must come to the same."""
    torch.manual_seed(0)
    model = mult(THREE, D, 2, width=4, heads=2, layers=2).double().eval()
    batch = ragged(THREE, 0, (3, 7, 5))
    whole = {n: Stream(s.values[:1], s.mask[:1]) for n, s in batch.streams.items()}
    alone = FusionBatch(streams=whole, target=None, weight=torch.ones(1), keys=("a",))
    torch.testing.assert_close(model(alone), model(batch)[:1], atol=1e-12, rtol=0)


def test_streams_may_each_have_their_own_length_and_padding():
    def sample(key, text, audio):
        draw = np.random.default_rng([text, audio])
        values = {
            "text": draw.normal(size=(text, 5)).astype(np.float32),
            "audio": draw.normal(size=(audio, 3)).astype(np.float32),
        }
        return Sample(key=key, values=values, valid={"text": None, "audio": None})

    samples = [sample("a", 4, 30), sample("b", 7, 12), sample("c", 1, 1)]
    model = mult(("text", "audio"), D, 1, width=4, heads=2).eval()
    widths = {"text": 5, "audio": 3}
    with torch.no_grad():
        together = model(collate(samples, widths))
        apart = torch.cat([model(collate([each], widths)) for each in samples])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", DROPOUTS)
def test_each_dropout_drops_in_training_and_only_there(name, reference):
    torch.manual_seed(0)
    chosen = {**STILL, f"{name}_dropout": 0.5, "reference": reference}
    model = mult(THREE, D, 1, width=4, heads=2, layers=1, **chosen)
    batch = ragged(THREE, 1, (3, 7, 5)).to("cpu", torch.float32)
    torch.manual_seed(3)
    first, second = model(batch), model(batch)
    assert not torch.allclose(first, second)
    torch.manual_seed(3)
    assert torch.equal(model(batch), first)
    model.eval()
    assert torch.equal(model(batch), model(batch))


def test_only_the_released_form_drops_keys_and_values_apart():
    torch.manual_seed(0)
    calls = []
    for reference in (False, True):
        chosen = {**STILL, "embedding_dropout": 0.5, "reference": reference}
        model = mult(THREE, D, 1, width=4, heads=2, layers=1, **chosen)
        model.crossing.layers[0].register_forward_hook(
            lambda _module, _args, kwargs, _out: calls.append(kwargs["source"]), with_kwargs=True
        )
        model(ragged(THREE, 1, (5, 5, 5)).to("cpu", torch.float32))
    assert calls[0][0] is calls[0][1]
    assert all(not torch.equal(keys, values) for keys, values in calls[1:])


def test_released_attention_dropout_is_only_where_the_first_stream_is_asked():
    model = mult(THREE, D, 1, width=4, heads=2, reference=True)
    asked = {s: model._attention([(t, s)]) for t, s in model.pairs}
    assert asked == {0: 0.1, 1: 0.0, 2: 0.0}
    fixed = mult(THREE, D, 1, width=4, heads=2)
    assert {fixed._attention([pair]) for pair in fixed.pairs} == {0.1}


@pytest.mark.parametrize(
    ("chosen", "outputs", "wanted"),
    [
        ({"width": 30, "heads": 5, "layers": 5}, 1, 1_073_731),
        ({"width": 40, "heads": 8, "layers": 4}, 1, 1_540_601),
        ({"width": 30, "heads": 5, "layers": 5}, 8, 1_074_998),
    ],
)
def test_mult_is_as_large_as_the_papers(chosen, outputs, wanted):
    model = mult(tuple(PAPER), PAPER, outputs, **chosen)
    assert sum(parameter.numel() for parameter in model.parameters()) == wanted


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"width": 30, "heads": 8}, "width is 30, which 8 heads do not divide; take 24"),
        ({"width": 4, "heads": 8}, "do not divide; take 8"),
        ({"layers": 0}, "layers is 0"),
        ({"relu_dropout": 1.0}, "relu_dropout is 1.0"),
        ({"kernels": 2}, "kernels is 2; wanted one odd number"),
        ({"kernels": "1,3"}, "kernels is '1,3'; wanted one odd number, or one for each of the 3"),
        ({"kernels": "1,x,3"}, "kernels is '1,x,3'"),
        ({"kernels": 1.5}, "kernels is 1.5; wanted a whole number or a text"),
        ({"kernels": 3, "reference": True}, "released form knows only 1"),
        ({"feedback": "yes"}, "wanted 'none' or 'sequence' or 'static'"),
        ({"feedback": "static", "reference": True}, "the released form has none"),
        ({"mask_dropout": 1.0}, "mask_dropout is 1.0"),
        ({"hidden": 8}, "'mult' has no setting 'hidden'"),
    ],
)
def test_settings_that_mult_does_not_take_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        mult(THREE, D, 1, **chosen)


def test_one_stream_alone_is_refused():
    with pytest.raises(ValueError, match=r"two at least, found \['text'\]"):
        mult(("text",), D, 1)


def fed_back(**chosen):
    torch.manual_seed(0)
    settings = {"width": 4, "heads": 2, "layers": 1, "feedback": "sequence", **chosen}
    return mult(THREE, D, 1, **settings).double()


@pytest.mark.parametrize("feedback", ["sequence", "static"])
def test_the_gates_of_the_feedback_lie_between_0_and_1(feedback):
    batch = ragged(THREE, 0, (5, 5, 5))
    explained = fed_back(feedback=feedback).eval().explain(batch)
    assert list(explained.masks) == list(THREE)
    for name, mask in explained.masks.items():
        valid = batch.streams[name].mask
        assert mask.shape == batch.streams[name].values.shape
        assert ((mask[valid] > 0) & (mask[valid] < 1)).all()
        assert mask[valid].std() > 0
        assert (mask[~valid] == 0).all()
        torch.testing.assert_close(explained.means[name], mask.mean(2))
    with pytest.raises(ValueError, match="no masks"):
        fed_back(feedback="none").explain(batch)


@pytest.mark.parametrize("through", [True, False])
def test_gradients_of_a_mask_reach_the_streams_that_give_it_where_wanted(through):
    model, batch = fed_back(stage1_grad=through), ragged(THREE, 0, (5, 5, 5))
    values = {n: s.values.clone().requires_grad_() for n, s in batch.streams.items()}
    streams = {name: Stream(values[name], s.mask) for name, s in batch.streams.items()}
    explained = model.explain(
        FusionBatch(streams=streams, target=None, weight=batch.weight, keys=batch.keys)
    )
    explained.masks["text"].square().sum().backward()
    for name in THREE:
        assert (values[name].grad is not None) == through
        if through:
            assert values[name].grad.abs().max() > 0
    # The networks that make the masks learn in any case.
    links = [m for m, _ in model.latch.links]
    learnt = [net.lstm.weight_ih_l0.grad is not None for net in model.latch.nets]
    assert learnt == [m == 0 for m in links]


def test_feedback_wants_one_time_base():
    batch = ragged(THREE, 0, (3, 7, 5))
    with pytest.raises(ValueError, match="wants all streams on one time base"):
        fed_back()(batch)


def test_feedback_changes_what_is_said():
    batch = ragged(THREE, 0, (5, 5, 5))
    model = fed_back().eval()
    plain = fed_back(feedback="none").eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("latch.")}
    plain.load_state_dict(state)
    assert not torch.allclose(model(batch), plain(batch))
