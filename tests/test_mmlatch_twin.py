"""MMLatch once more, slow and obvious, in the paper's notation: the fast one must equal it."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from training.batch import FusionBatch, Stream
from training.models import build
from training.recipe import ModelSettings

H = 4
D = {"text": 5, "audio": 3, "visual": 2, "pose": 4}


class Twin:
    """MMLatch (Paraskevopoulos et al., ICASSP 2022), a clip at a time, with a fast model's weights.

    Streams are numbered; x[m] is [n, D_m], and valid[m] are the steps at which stream m is valid.
    """

    def __init__(self, model):
        self.p = dict(model.named_parameters())
        self.model = model
        self.M = len(model.streams)

    def lstm(self, name, x):
        own = {k.rsplit(".", 1)[1]: v for k, v in self.p.items() if k.startswith(name + ".")}
        hidden = own["weight_hh_l0"].shape[1]
        layer = nn.LSTM(x.shape[1], hidden, bidirectional="weight_hh_l0_reverse" in own).double()
        return functional_call(layer, own, (x,))[0]

    def attention(self, q, k, v, asking, asked):
        """Row i is softmax_j(q_i k_j / sqrt(size)) v_j over the valid j, for valid i; else 0."""
        rows = []
        for i in range(len(q)):
            if i in asking and asked:
                score = torch.stack([q[i] @ k[j] for j in asked]) / math.sqrt(q.shape[1])
                weight = torch.exp(score) / torch.exp(score).sum()
                rows.append(sum(w * v[j] for w, j in zip(weight, asked, strict=True)))
            else:
                rows.append(torch.zeros(v.shape[1], dtype=v.dtype))
        return torch.stack(rows)

    def encode(self, m, x, valid):
        """E_m: bidirectional LSTM, the sum of its directions, self-attention."""
        h = self.lstm(f"encoders.lstms.{m}", x)
        h = h[:, :H] + h[:, H:]
        q, k, v = (h @ w for w in self.p["encoders.attention.weight"][m].split(H, 1))
        return self.attention(q, k, v, valid, valid)

    def mask(self, m, h):
        """M_m: the mean over the other streams p of sigma(LSTM_mp(h_p)), or of sigma(W h_p + b)."""
        said = []
        for net, (to, p) in enumerate(self.model.latch.links):
            if to == m:
                name = f"latch.nets.{net}"
                if self.model.settings.mask == "sequence":
                    said.append(torch.sigmoid(self.lstm(f"{name}.lstm", h[p])))
                else:
                    w, b = self.p[f"{name}.linear.weight"], self.p[f"{name}.linear.bias"]
                    said.append(torch.sigmoid(h[p] @ w.T + b))
        return sum(said) / len(said) if said else 1.0

    def fuse(self, h, valid):
        """[h_0 ... h_M, a feature for each pair, with three streams the trimodal one]."""
        features, pairs, number = list(h), {}, self.M * (self.M - 1) // 2
        for x in range(self.M):
            for y in range(x + 1, self.M):
                i, j = len(pairs), len(pairs) + number
                q_y, q_x = (h[s] @ self.p["head.crossing.query"][r] for s, r in ((y, i), (x, j)))
                k_x, v_x = (h[x] @ w for w in self.p["head.crossing.key_value"][i].split(H, 1))
                k_y, v_y = (h[y] @ w for w in self.p["head.crossing.key_value"][j].split(H, 1))
                o1 = self.attention(q_y, k_x, v_x, valid[y], valid[x]) + h[y]
                o2 = self.attention(q_x, k_y, v_y, valid[x], valid[y]) + h[x]
                pairs[x, y] = o1 + o2
        features += pairs.values()
        if self.M == 3:
            q = pairs[1, 2] @ self.p["head.crossing.third_query"]
            k, v = (h[0] @ w for w in self.p["head.crossing.third_key_value"].split(H, 1))
            features.append(self.attention(q, k, v, {*valid[1], *valid[2]}, valid[0]))
        return torch.cat(features, 1)

    def clip(self, x, valid):
        """The outputs [K] of one clip."""
        w, b = self.p["head.classifier.weight"], self.p["head.classifier.bias"]
        union = sorted(set().union(*valid))
        if not union:
            return b
        n = union[-1] + 1
        x = [x[m][:n] * torch.tensor([[t in valid[m]] for t in range(n)]) for m in range(self.M)]
        h = [self.encode(m, x[m], valid[m]) for m in range(self.M)]
        if getattr(self.model, "latch", None) is not None:
            x = [x[m] * self.mask(m, h) for m in range(self.M)]
            h = [self.encode(m, x[m], valid[m]) for m in range(self.M)]
        z = self.lstm("head.reader.lstm", self.fuse(h, valid))
        q, k, v = (z @ a for a in self.p["head.reader.attention.weight"][0].split(2 * H, 1))
        z = self.attention(q, k, v, union, union)
        pooled = sum(z[t] for t in union)
        if self.model.settings.pooling == "mean":
            pooled = pooled / len(union)
        return w @ pooled + b

    def __call__(self, batch):
        streams = [batch.streams[name] for name in self.model.streams]
        return torch.stack(
            [
                self.clip(
                    [s.values[b] for s in streams],
                    [s.mask[b].nonzero().flatten().tolist() for s in streams],
                )
                for b in range(len(batch.keys))
            ]
        )


def ragged(names, seed):
    """Four clips of up to six steps: whole, with holes, without a stream, and without anything."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(len(names), 4, 6, generator=draw) < 0.7
    lengths = torch.randint(1, 7, (4,), generator=draw)
    mask &= torch.arange(6) < lengths[:, None]
    mask[:, 0] = True
    mask[int(torch.randint(len(names), (1,), generator=draw)), 2] = False
    mask[:, 3] &= bool(seed % 2)
    streams = {
        name: Stream(
            torch.randn(4, 6, D[name], dtype=torch.float64, generator=draw) * mask[m][..., None],
            mask[m],
        )
        for m, name in enumerate(names)
    }
    return FusionBatch(streams=streams, target=None, weight=torch.ones(4), keys=tuple("abcd"))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("text", "audio", "visual"), {}),
        (("text", "audio", "visual"), {"mask": "static", "pooling": "sum"}),
        (("text", "audio", "visual"), {"gives": "text,audio", "receives": "text, visual"}),
        (("audio", "text"), {}),
        (("text", "audio", "visual", "pose"), {"pooling": "sum"}),
        (("text", "audio", "visual"), {"mask": "none"}),
        (("text",), {"mask": "none"}),
    ],
)
def test_the_fast_mmlatch_equals_the_obvious_one(names, chosen, seed):
    torch.manual_seed(seed)
    wanted = {"hidden": H, **chosen}
    fast = build(ModelSettings(kind="mmlatch", streams=names, settings=wanted), D, 2)
    fast = fast.double().eval()
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.mul_(2.0)  # attention that is not flat, gates that are not all alike
    batch = ragged(names, seed)
    outputs, obvious = fast(batch), Twin(fast)(batch)
    torch.testing.assert_close(outputs, obvious, atol=1e-10, rtol=0)
    parameters = list(fast.parameters())
    ours = torch.autograd.grad(outputs.square().sum(), parameters)
    theirs = torch.autograd.grad(obvious.square().sum(), parameters, materialize_grads=True)
    for name, mine, other in zip(dict(fast.named_parameters()), ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=0, msg=name)
