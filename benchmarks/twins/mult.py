"""MulT as released: keys and values apart, positions and masks made anew, maps averaged for nobody.

In every call positions are computed and scattered for queries, keys and values; in every layer
keys and values are normed and projected each by itself, the future mask is built on the CPU, all
scores are materialised, and their mean over heads is computed and thrown away; the states of all
layers are kept; the last memory layer is computed at all steps, of which one is read.

Source: Y.-H. H. Tsai, S. Bai, P. P. Liang, J. Z. Kolter, L.-P. Morency, R. Salakhutdinov,
"Multimodal Transformer for Unaligned Multimodal Language Sequences", ACL 2019, arXiv 1906.00295.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models import build
from training.models.mult import from_reference
from training.recipe import ModelSettings, Scalar
from twins import Pair, Side, batch_of

WIDTHS = {"text": 300, "audio": 74, "visual": 35}
WIDTH, LAYERS, HEADS = 30, 5, 5
DROPOUT = {"embedding": 0.25, "attention": 0.1, "audio": 0.0, "visual": 0.0, "rest": 0.1}


class Positions(nn.Module):
    """Sine and cosine of the steps from 1 on; a step of which the first number is 0 gets zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.table = torch.empty(0)
        self.register_buffer("_float_tensor", torch.zeros(1))

    def forward(self, first: Tensor) -> Tensor:
        """Positions [B, T, D] of what the first feature is, [B, T]."""
        clips, steps = first.shape
        if len(self.table) <= steps:
            self.table = self.made(steps + 1)
        self.table = self.table.to(first)
        there = first.ne(0)
        numbers = torch.arange(1, steps + 1, device=first.device).to(first)
        numbers = numbers.expand_as(first)[there]
        at = first.contiguous().clone().masked_scatter_(there, numbers).long()
        return self.table.index_select(0, at.view(-1)).view(clips, steps, -1).detach()

    def made(self, steps: int) -> Tensor:
        """The table [T, D]; its first row is of zeros."""
        half = self.width // 2
        rates = torch.exp(torch.arange(half).float() * -(math.log(10_000) / (half - 1)))
        angles = torch.arange(steps).float()[:, None] * rates
        table = torch.cat([angles.sin(), angles.cos()], 1)
        table[0] = 0
        return table


class Attention(nn.Module):
    """Heads side by side; time comes first."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.size, self.dropout = heads, width // heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, key: Tensor | None, value: Tensor | None, mask: Tensor) -> Tensor:
        """Answers [T, B, D] to queries x; without keys, x is asked."""
        steps, clips, width = x.shape
        if key is None or value is None:
            q, k, v = self.projected(x, 0, 3 * width).chunk(3, 2)
        else:
            q = self.projected(x, 0, width)
            k = self.projected(key, width, 2 * width)
            v = self.projected(value, 2 * width, 3 * width)
        q = q * self.size**-0.5
        q, k, v = (self.by_head(each) for each in (q, k, v))
        scores = torch.bmm(q, k.transpose(1, 2))
        scores += mask.unsqueeze(0)
        weights = functional.softmax(scores.float(), 2).type_as(scores)
        weights = functional.dropout(weights, self.dropout, self.training)
        answers = torch.bmm(weights, v).transpose(0, 1).contiguous().view(steps, clips, width)
        weights.view(clips, self.heads, steps, -1).sum(1) / self.heads
        projected: Tensor = self.out_proj(answers)
        return projected

    def projected(self, x: Tensor, start: int, end: int) -> Tensor:
        """By some rows of the weights."""
        return functional.linear(x, self.in_proj_weight[start:end], self.in_proj_bias[start:end])

    def by_head(self, x: Tensor) -> Tensor:
        """[B * heads, T, S] of [T, B, D]."""
        return x.contiguous().view(len(x), -1, self.size).transpose(0, 1)


class Layer(nn.Module):
    """Attention, then two linear layers; both after a norm, both added to what came in."""

    def __init__(self, width: int, heads: int, attention: float, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, attention)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.layer_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = dropout

    def forward(self, x: Tensor, key: Tensor | None, value: Tensor | None) -> Tensor:
        """States [T, B, D]."""
        normed = self.layer_norms[0](x)
        mask = future(normed, x if key is None else key)
        if key is not None:
            key, value = self.layer_norms[0](key), self.layer_norms[0](value)
        x = x + self.dropped(self.self_attn(normed, key, value, mask))
        inner = self.dropped(functional.relu(self.fc1(self.layer_norms[1](x))))
        return x + self.dropped(self.fc2(inner))

    def dropped(self, x: Tensor) -> Tensor:
        """After dropout."""
        return functional.dropout(x, self.dropout, self.training)


class Transformer(nn.Module):
    """Layers that ask one sequence, which they never change; or themselves."""

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        *,
        attention: float,
        rest: float,
        embedding: float,
    ) -> None:
        super().__init__()
        self.scale, self.dropout = math.sqrt(width), embedding
        self.embed_positions = Positions(width)
        self.layers = nn.ModuleList(Layer(width, heads, attention, rest) for _ in range(layers))
        self.register_buffer("version", torch.Tensor([2]))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, asked: Tensor | None = None) -> Tensor:
        """States [T, B, D]."""
        key = value = None
        if asked is not None:
            x, key, value = self.embedded(x), self.embedded(asked), self.embedded(asked)
        else:
            x = self.embedded(x)
        states = [x]
        for layer in self.layers:
            x = layer(x, key, value)
            states.append(x)
        normed: Tensor = self.layer_norm(x)
        return normed

    def embedded(self, x: Tensor) -> Tensor:
        """Scaled, with positions, after dropout."""
        placed = self.scale * x
        placed += self.embed_positions(x.transpose(0, 1)[:, :, 0]).transpose(0, 1)
        return functional.dropout(placed, self.dropout, self.training)


def future(x: Tensor, asked: Tensor) -> Tensor:
    """Minus infinity where the key lies later than the query, by more than lengths differ."""
    shape = (len(x), len(asked))
    mask = torch.ones(shape).float().fill_(float("-inf")).type_as(x.new_empty(0).cpu())
    return torch.triu(mask, 1 + abs(shape[0] - shape[1])).to(x.device)


class MulT(nn.Module):
    """The whole model over text, audio and visual."""

    def __init__(
        self,
        widths: Sequence[int] = tuple(WIDTHS.values()),
        *,
        width: int = WIDTH,
        layers: int = LAYERS,
        heads: int = HEADS,
        dropout: bool = True,
    ) -> None:
        super().__init__()
        p = DROPOUT if dropout else dict.fromkeys(DROPOUT, 0.0)
        self.text_dropout = p["embedding"]
        self.proj_l, self.proj_a, self.proj_v = (
            nn.Conv1d(each, width, kernel_size=1, bias=False) for each in widths
        )

        def made(wide: int, deep: int, attention: str) -> Transformer:
            shares = {"attention": p[attention], "rest": p["rest"], "embedding": p["embedding"]}
            return Transformer(wide, heads, deep, **shares)

        def crossing(attention: str) -> Transformer:
            return made(width, layers, attention)

        def memory() -> Transformer:
            return made(2 * width, max(layers, 3), "attention")

        # Which dropout a network gets goes by the second letter of its name, in the released code.
        self.trans_l_with_a, self.trans_l_with_v = crossing("audio"), crossing("visual")
        self.trans_a_with_l, self.trans_a_with_v = crossing("attention"), crossing("visual")
        self.trans_v_with_l, self.trans_v_with_a = crossing("attention"), crossing("audio")
        self.trans_l_mem, self.trans_a_mem, self.trans_v_mem = memory(), memory(), memory()
        self.proj1, self.proj2 = nn.Linear(6 * width, 6 * width), nn.Linear(6 * width, 6 * width)
        self.out_layer = nn.Linear(6 * width, 1)

    def forward(self, text: Tensor, audio: Tensor, visual: Tensor) -> Tensor:
        """Outputs [B, 1] of streams [B, T, D], each with its own T."""
        text = functional.dropout(text.transpose(1, 2), self.text_dropout, self.training)
        l = self.proj_l(text).permute(2, 0, 1)  # noqa: E741 - the paper's letter
        a = self.proj_a(audio.transpose(1, 2)).permute(2, 0, 1)
        v = self.proj_v(visual.transpose(1, 2)).permute(2, 0, 1)
        last = [
            memory(torch.cat([first(x, y), second(x, z)], 2))[-1]
            for memory, first, second, x, y, z in (
                (self.trans_l_mem, self.trans_l_with_a, self.trans_l_with_v, l, a, v),
                (self.trans_a_mem, self.trans_a_with_l, self.trans_a_with_v, a, l, v),
                (self.trans_v_mem, self.trans_v_with_l, self.trans_v_with_a, v, l, a),
            )
        ]
        joined = torch.cat(last, 1)
        outputs: Tensor = self.out_layer(self.proj2(functional.relu(self.proj1(joined))) + joined)
        return outputs


def pair(
    clips: int,
    steps: int,
    *,
    dropout: bool,
    unaligned: bool = False,
    reference: bool = True,
    device: str = "cpu",
) -> Pair:
    """Both sides with the released settings on MOSEI.

    Args:
        clips: B.
        steps: T of all streams; of text alone where `unaligned`: audio and visual are ten times as
            long.
        dropout: As published, or none at all.
        unaligned: Whether streams differ in length.
        reference: Ours in the released form, whose dropouts are as in the release; else in the
            fixed form, which embeds each stream once.
        device: Where both run.
    """
    torch.manual_seed(0)
    twin = MulT(dropout=dropout).train().to(device)
    settings: dict[str, Scalar] = {"width": WIDTH, "layers": LAYERS, "heads": HEADS}
    settings |= {"reference": reference, "output_dropout": 0.0}
    if not dropout:
        names = ("embedding", "attention", "relu", "residual")
        settings |= {f"{name}_dropout": 0.0 for name in names}
    kind = ModelSettings(kind="mult", streams=tuple(WIDTHS), settings=settings)
    ours = build(kind, WIDTHS, 1).train().to(device)
    ours.load_state_dict(from_reference(twin.state_dict()))
    longer = {"text": 1, "audio": 10, "visual": 10} if unaligned else dict.fromkeys(WIDTHS, 1)
    values = {n: torch.randn(clips, steps * longer[n], width) for n, width in WIDTHS.items()}
    masks = {n: torch.ones(x.shape[:2], dtype=torch.bool) for n, x in values.items()}
    batch = batch_of(values, masks).to(device)
    inputs = [batch.streams[name].values for name in WIDTHS]
    return Pair(Side(ours, lambda: [ours(batch)]), Side(twin, lambda: [twin(*inputs)]))
