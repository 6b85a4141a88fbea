"""The networks over pictures, sound and joints against slow twins: a clip at a time, loops and all.

In float64 and in evaluation mode, outputs and the gradients of all weights within 1e-10.
"""

import itertools
import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.test_video_networks import READS, TINY, random_batch, tiny
from training.batch import FusionBatch, Stream
from training.models.i3d import MIXED
from training.models.pictures import MEAN, STD
from training.models.resnext3d import BLOCKS


def convolve(x, weight, bias=None, *, stride=None, before=None, out=None, groups=1):
    """y[o, p] = b[o] + the sum over input channels i and offsets k of w[o, i, k] x[i, s p + k - b].

    `x` is [C, ...]. What lies outside of it is 0; `before` of it come first, the half of the kernel
    unless said. There are `out` places, as many as of x over the stride unless said.
    """
    sizes, kernel = x.shape[1:], weight.shape[2:]
    stride = stride or (1,) * len(sizes)
    before = before or tuple(size // 2 for size in kernel)
    out = out or tuple(math.ceil(n / s) for n, s in zip(sizes, stride, strict=True))
    whole = padded(x, kernel, stride, before, out, value=0.0)
    share = len(weight) // groups
    y = torch.zeros(len(weight), *out, dtype=x.dtype)
    for offset in itertools.product(*map(range, kernel)):
        seen = whole[(slice(None), *places(offset, stride, out))].split(weight.shape[1])
        at = weight[(..., *offset)]
        y = y + torch.cat(
            [
                torch.tensordot(at[g * share : (g + 1) * share], seen[g], dims=1)
                for g in range(groups)
            ]
        )
    return y if bias is None else y + bias.view(-1, *[1] * len(sizes))


def greatest(x, size, stride, *, before=None, out=None):
    """The greatest value of each window; nothing outside of x is in a window."""
    before = before or (0,) * len(size)
    out = out or tuple((n - k) // s + 1 for n, k, s in zip(x.shape[1:], size, stride, strict=True))
    whole = padded(x, size, stride, before, out, value=-math.inf)
    windows = [
        whole[(slice(None), *places(offset, stride, out))]
        for offset in itertools.product(*map(range, size))
    ]
    return torch.stack(windows).amax(0)


def padded(x, size, stride, before, out, *, value):
    pads = []
    for axis in reversed(range(len(size))):
        needed = (out[axis] - 1) * stride[axis] + size[axis]
        after = max(0, needed - before[axis] - x.shape[axis + 1])
        pads += [before[axis], after]
    return torch.nn.functional.pad(x, pads, value=value)


def places(offset, stride, out):
    return [slice(k, k + (n - 1) * s + 1, s) for k, s, n in zip(offset, stride, out, strict=True)]


def same(x, size, stride):
    """TensorFlow's padding: as many windows as of x over the stride, the odd step at the end."""
    out = tuple(math.ceil(n / s) for n, s in zip(x.shape[1:], stride, strict=True))
    pairs = zip(out, stride, size, x.shape[1:], strict=True)
    before = tuple(max(0, (m - 1) * s + k - n) // 2 for m, s, k, n in pairs)
    return {"stride": stride, "before": before, "out": out}


def norm(x, p, name, epsilon=1e-5):
    shape = (-1, *[1] * (x.dim() - 1))
    mean, var = p[f"{name}.running_mean"].view(shape), p[f"{name}.running_var"].view(shape)
    scaled = (x - mean) / torch.sqrt(var + epsilon)
    return scaled * p[f"{name}.weight"].view(shape) + p[f"{name}.bias"].view(shape)


def valid_steps(stream, clip):
    steps = range(stream.mask.shape[1])
    return [stream.values[clip, step] for step in steps if stream.mask[clip, step]]


def spread(steps, count):
    return torch.stack([steps[math.floor((i + 0.5) * len(steps) / count)] for i in range(count)])


def pictures(stream, clip, count, side):
    shown = spread(valid_steps(stream, clip), count).view(count, side, side, 3).permute(3, 0, 1, 2)
    mean, std = ((255 * torch.tensor(each)).view(3, 1, 1, 1).double() for each in (MEAN, STD))
    return (shown - mean) / std


class ResNext:
    def early(self, p, x):
        x = norm(convolve(x, p["conv1.weight"], stride=(1, 2, 2)), p, "bn1").relu()
        out = tuple(math.ceil(n / 2) for n in x.shape[1:])
        x = greatest(x, (3, 3, 3), (2, 2, 2), before=(1, 1, 1), out=out)
        for number in (1, 2, 3):
            x = self.layer(p, x, number)
        return x

    def late(self, p, x):
        return self.layer(p, x, 4)

    def scores(self, p, x):
        return p["fc.weight"] @ x.flatten(1).mean(1) + p["fc.bias"]

    def layer(self, p, x, number):
        for block in range(BLOCKS[number - 1]):
            name = f"layer{number}.{block}"
            step = (2, 2, 2) if block == 0 and number > 1 else (1, 1, 1)
            h = norm(convolve(x, p[f"{name}.conv1.weight"]), p, f"{name}.bn1").relu()
            h = convolve(h, p[f"{name}.conv2.weight"], stride=step, groups=2)
            h = norm(h, p, f"{name}.bn2").relu()
            h = norm(convolve(h, p[f"{name}.conv3.weight"]), p, f"{name}.bn3")
            if block == 0:
                x = convolve(x, p[f"{name}.downsample.0.weight"], stride=step)
                x = norm(x, p, f"{name}.downsample.1")
            x = (h + x).relu()
        return x


class Sound:
    def early(self, p, x):
        for name in ("conv1", "conv2"):
            x = convolve(
                x, p[f"{name}.weight"], p[f"{name}.bias"], before=(2,), out=(x.shape[1] - 2,)
            ).relu()
            x = norm(x, p, "bn1") if name == "conv1" else x
        return x

    def late(self, p, x):
        x = norm(greatest(x, (8,), (8,)), p, "bn2")
        return norm(convolve(x, p["conv3.weight"], p["conv3.bias"]).relu(), p, "bn3")

    def scores(self, p, x):
        return p["fc.weight"] @ x.flatten() + p["fc.bias"]


class I3d:
    def early(self, p, x):
        x = self.unit(p, x, "conv_1a", (2, 2, 2))
        x = self.pool(x, (1, 3, 3), (1, 2, 2))
        x = self.unit(p, self.unit(p, x, "conv_2b"), "conv_2c")
        x = self.pool(x, (1, 3, 3), (1, 2, 2))
        for name in list(MIXED)[:-1]:
            if name == "4b":
                x = self.pool(x, (3, 3, 3), (2, 2, 2))
            if name == "5b":
                x = self.pool(x, (2, 2, 2), (2, 2, 2))
            x = self.mixed(p, x, name)
        return x

    def late(self, p, x):
        return self.mixed(p, x, "5c")

    def scores(self, p, x):
        means = x.mean((2, 3))
        steps = means.shape[1]
        # Windows of two steps, which begin at each step but the last.
        windows = [means[:, t : t + 2].mean(1) for t in range(max(1, steps - 1))]
        logits = [p["logits.weight"] @ window + p["logits.bias"] for window in windows]
        return torch.stack(logits).mean(0)

    def unit(self, p, x, name, stride=(1, 1, 1)):
        weight = p[f"{name}.conv.weight"]
        x = convolve(x, weight, **same(x, weight.shape[2:], stride))
        return norm(x, p, f"{name}.bn", 1e-3).relu()

    def pool(self, x, size, stride):
        return greatest(x, size, **same(x, size, stride))

    def mixed(self, p, x, name):
        name = f"mixed.{name}"
        middle, short = (
            self.unit(p, self.unit(p, x, f"{name}.{path}.0"), f"{name}.{path}.1")
            for path in ("middle", "short")
        )
        around = self.unit(p, self.pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.pooled")
        return torch.cat([self.unit(p, x, f"{name}.alone"), middle, short, around])


class Hcn:
    """Takes the places [A, N, J] of each person who is seen, by number."""

    def early(self, p, places):
        found = {}
        for person, x in places.items():
            steps = [x[:, t + 1] - x[:, t] for t in range(x.shape[1] - 1)]
            paths = [
                self.path(p, each, name)
                for name, each in (("places", x), ("motion", self.resized(steps, x.shape[1])))
            ]
            both = torch.cat(paths)
            found[person] = self.half(convolve(both, p["conv5.weight"], p["conv5.bias"]).relu())
        return found

    def late(self, p, found):
        ends = [
            self.half(convolve(x, p["conv6.weight"], p["conv6.bias"]).relu()).flatten()
            for x in found.values()
        ]
        return (p["fc7.weight"] @ torch.stack(ends).amax(0) + p["fc7.bias"]).relu()

    def scores(self, p, x):
        return p["fc8.weight"] @ x + p["fc8.bias"]

    def resized(self, steps, count):
        """On the line between the two nearest to (i + 1/2) n / count - 1/2, for each place i."""
        resized = []
        for i in range(count):
            place = min(max((i + 0.5) * len(steps) / count - 0.5, 0.0), len(steps) - 1)
            low = math.floor(place)
            high = min(low + 1, len(steps) - 1)
            resized.append(steps[low] + (place - low) * (steps[high] - steps[low]))
        return torch.stack(resized, 1)

    def path(self, p, x, name):
        x = convolve(x, p[f"{name}.conv1.weight"], p[f"{name}.conv1.bias"]).relu()
        x = convolve(x, p[f"{name}.conv2.weight"], p[f"{name}.conv2.bias"])
        x = x.permute(2, 1, 0)  # [J, N, C]: joints become the channels
        for layer in ("conv3", "conv4"):
            x = self.half(convolve(x, p[f"{name}.{layer}.weight"], p[f"{name}.{layer}.bias"]))
        return x

    def half(self, x):
        return greatest(x, (2, 2), (2, 2))


def msaf(p, given, width, floor):
    """The modalities [C, ...] of one clip that are there, by place among all; scaled."""
    blocks, joint = [], 0.0
    sizes = [math.ceil(channels / width) for _, channels in given]
    for x, _ in given:
        if x is None:
            blocks.append(None)
            continue
        means = x.reshape(len(x), -1).mean(1)
        means = torch.cat([means, means.new_zeros(-len(means) % width)]).split(width)
        blocks.append(means)
        joint = joint + sum(means)
    z = p["join.weight"][0].T @ joint + p["join.bias"][0]
    scale = torch.sqrt(p["norm.running_var"][0] + 1e-5)
    z = (z - p["norm.running_mean"][0]) / scale * p["norm.weight"][0] + p["norm.bias"][0]
    asked = (p["attention.weight"][0].T @ z.relu() + p["attention.bias"][0]).split(width)
    there = [
        k
        for m, begin in enumerate(itertools.accumulate([0, *sizes[:-1]]))
        for k in range(begin, begin + sizes[m])
        if blocks[m] is not None
    ]
    total = sum(asked[k].exp() for k in there)
    scaled, begin = [], 0
    for (x, channels), size in zip(given, sizes, strict=True):
        shares = [floor + (1 - floor) * asked[begin + k].exp() / total for k in range(size)]
        begin += size
        if x is None:
            scaled.append(None)
            continue
        factor = torch.cat(shares)[:channels]
        scaled.append(x * factor.view(-1, *[1] * (x.dim() - 1)))
    return scaled


def part(p, name):
    return {key.removeprefix(f"{name}."): x for key, x in p.items() if key.startswith(f"{name}.")}


def seen_by(kind, model, batch, clip):
    """What a branch is given of a clip; None where it has nothing."""
    (name,) = READS[kind]
    stream = batch.streams[name]
    if not stream.mask[clip].any():
        return None
    chosen = model.settings
    if kind in {"resnext3d", "i3d"}:
        return pictures(stream, clip, chosen.frames, 8)
    if kind == "sound_cnn":
        steps = valid_steps(stream, clip)[: chosen.steps]
        silence = [torch.zeros_like(steps[0])] * (chosen.steps - len(steps))
        return torch.stack([*steps, *silence], 1)
    bodies = spread(valid_steps(stream, clip), chosen.steps).view(chosen.steps, 2, 4, 4)
    centre = bodies[:, 0, 1, :3]
    return {
        person: (bodies[:, person, :, :3] - centre[:, None]).permute(2, 0, 1)
        for person in range(2)
        if (bodies[:, person, :, 3] > 0).any()
    }


BRANCHES = {"resnext3d": ResNext(), "sound_cnn": Sound(), "i3d": I3d(), "hcn": Hcn()}
PARTS = {
    "msaf_ravdess": {"video": "resnext3d", "audio": "sound_cnn"},
    "msaf_ntu": {"video": "i3d", "skeleton": "hcn"},
}


def branch_twin(kind, model, p, batch, clip):
    twin, x = BRANCHES[kind], seen_by(kind, model, batch, clip)
    if x is None:
        return torch.zeros(3, dtype=torch.float64)
    return twin.scores(p, twin.late(p, twin.early(p, x)))


def fused_twin(kind, model, p, batch, clip):
    names = list(PARTS[kind])
    twins = [BRANCHES[each] for each in PARTS[kind].values()]
    own = [part(p, name) for name in names]
    inputs = [
        seen_by(each, getattr(model, name), batch, clip) for name, each in PARTS[kind].items()
    ]
    there = [x is not None for x in inputs]
    if not any(there):
        return torch.zeros(3, dtype=torch.float64)
    first = [
        t.early(q, x) if x is not None else None for t, q, x in zip(twins, own, inputs, strict=True)
    ]
    widths, floor = ((16, 32), 0.0) if kind == "msaf_ravdess" else ((64, 256), 0.5)
    given = first
    if kind == "msaf_ntu":
        given = [first[0], *((first[1] or {}).get(person) for person in range(2))]
    channels = list(model.msaf1.channels)
    given = msaf(part(p, "msaf1"), list(zip(given, channels, strict=True)), widths[0], floor)
    if kind == "msaf_ntu":
        persons = {n: x for n, x in enumerate(given[1:]) if x is not None}
        given = [given[0], persons or None]
    second = [
        t.late(q, x) if x is not None else None for t, q, x in zip(twins, own, given, strict=True)
    ]
    channels = list(model.msaf2.channels)
    given = msaf(part(p, "msaf2"), list(zip(second, channels, strict=True)), widths[1], floor)
    scores = [t.scores(q, x) for t, q, x in zip(twins, own, given, strict=True) if x is not None]
    return sum(scores) if kind == "msaf_ravdess" else sum(scores) / len(scores)


def roughened(kind):
    """A model in float64 whose norms and biases are not what they begin as."""
    model = tiny(kind).double().eval()
    draw = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
        elif name.endswith("running_mean") or tensor.dim() == 1:
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=draw))
    return model


@pytest.mark.parametrize("kind", TINY)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=3, deadline=None, phases=[Phase.generate])
def test_a_network_gives_what_its_slow_twin_gives(kind, seed):
    model = roughened(kind)
    batch = random_batch(seed, missing=[("audio", 1), ("skeleton", 1), ("video", 2)])
    streams = dict(batch.streams)
    bodies = streams["skeleton"].values.view(*streams["skeleton"].mask.shape, 2, 4, 4)
    bodies[0, :, 1, :, 3] = 0.0  # the first clip's second person is never seen
    batch = FusionBatch(
        streams={n: Stream(s.values.double(), s.mask) for n, s in streams.items()},
        target=None,
        weight=batch.weight,
        keys=batch.keys,
    )
    twin = fused_twin if kind in PARTS else branch_twin
    tensors = model.state_dict(keep_vars=True)
    slow = torch.stack([twin(kind, model, tensors, batch, clip) for clip in range(3)])
    fast = model(batch)
    torch.testing.assert_close(fast, slow, atol=1e-10, rtol=1e-10)
    weights = dict(model.named_parameters())
    share = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64).view(3, 3)
    gradients = [
        torch.autograd.grad((outputs * share).sum(), list(weights.values()), allow_unused=True)
        for outputs in (fast, slow)
    ]
    for name, ours, theirs in zip(weights, *gradients, strict=True):
        wanted = torch.zeros_like(ours) if theirs is None else theirs
        torch.testing.assert_close(ours, wanted, atol=1e-10, rtol=1e-10, msg=name)
