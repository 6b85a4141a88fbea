"""Transformers of one shape side by side, on a sequence itself or on another one.

Source: Y.-H. H. Tsai, S. Bai, P. P. Liang, J. Z. Kolter, L.-P. Morency, R. Salakhutdinov,
"Multimodal Transformer for Unaligned Multimodal Language Sequences", ACL 2019, arXiv 1906.00295;
the sinusoidal positions are those of A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017,
arXiv 1706.03762, in the layout of tensor2tensor.

Shapes: G networks side by side, B clips, T steps of the sequence that asks, U of the one that is
asked, D width, H heads, S = D / H.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from training.models.attention import Sight, attend
from training.models.blocks import pick
from training.models.dropout import plus_dropped, relu_dropped

Source: TypeAlias = tuple[Tensor, Tensor]
"""What keys and what values are made from, [G, B, U, D] each, normalised; often the same tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropouts:
    """Shares that are dropped in a layer.

    Attributes:
        attention: Of the attention's weights.
        relu: Inside the feed-forward part.
        residual: Of what attention and feed-forward part add to the sequence.
    """

    attention: float
    relu: float
    residual: float


@functools.lru_cache(maxsize=64)
def positions(steps: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sines, then cosines, of the steps 1 to T at falling frequencies, [T, D]; 0 in an odd last."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float64, device=device) / max(half - 1, 1)
    steps_T1 = torch.arange(1, steps + 1, dtype=torch.float64, device=device).unsqueeze(1)
    angles = steps_T1 * torch.exp(-math.log(10_000.0) * exponents)
    found = torch.cat([angles.sin(), angles.cos()], 1)
    return nn.functional.pad(found, (0, width - 2 * half)).to(dtype)


def normalise(x: Tensor) -> Tensor:
    """Each step with mean 0 and variance 1."""
    return nn.functional.layer_norm(x, x.shape[-1:])


def take_step(x_GBTD: Tensor, at_GB: Tensor) -> Tensor:
    """One step of each sequence, [G, B, 1, D]."""
    index = at_GB[:, :, None, None].expand(-1, -1, 1, x_GBTD.shape[3])
    return x_GBTD.gather(2, index)


class Transformers(nn.Module):
    """G transformers: layers with the norm first, and a last norm.

    Args:
        count: G.
        width: D.
        heads: H, which divides D.
        layers: How many, each with a feed-forward part of 4D.
        dropouts: Shares that are dropped.
    """

    def __init__(self, count: int, width: int, heads: int, layers: int, dropouts: Dropouts) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(count, width, heads, dropouts) for _ in range(layers))
        self.norm = Norm(count, width)

    def forward(
        self,
        x_GBTD: Tensor,
        sight: Sight,
        *,
        rows: Sequence[int],
        source: Source | None = None,
        attention: float | None = None,
    ) -> Tensor:
        """The sequences after all layers, [G, B, T, D].

        Args:
            x_GBTD: The sequences that ask, for some of the networks.
            sight: Who sees what.
            rows: Which networks these are.
            source: What is asked, in every layer alike; None where each asks itself.
            attention: Dropout on the attention's weights, where it is not the layers' own.
        """
        for layer in self.layers:
            x_GBTD = layer(x_GBTD, sight, rows=rows, source=source, attention=attention)
        normed: Tensor = self.norm(x_GBTD, rows)
        return normed

    def at_step(
        self, x_GBTD: Tensor, sight: Sight, *, rows: Sequence[int], at: Tensor, last: Sight
    ) -> Tensor:
        """What `forward` gives of sequences that ask themselves at one step of each, [G, B, D].

        The last layer is computed for this step alone.

        Args:
            x_GBTD: As in `forward`.
            sight: As in `forward`.
            rows: As in `forward`.
            at: The steps, int64 [G, B].
            last: What these steps see.
        """
        *before, end = self.layers
        for layer in before:
            x_GBTD = layer(x_GBTD, sight, rows=rows)
        normed: Tensor = self.norm(end(x_GBTD, last, rows=rows, at=at), rows)
        return normed.squeeze(2)


class Norm(nn.Module):
    """Scale and shift after normalising, of G networks."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(count, 1, width))
        self.bias = nn.Parameter(torch.zeros(count, 1, width))

    def forward(self, x_GBTD: Tensor, rows: Sequence[int]) -> Tensor:
        """Normalised sequences."""
        weight, bias = chosen(self.weight, rows), chosen(self.bias, rows)
        return torch.addcmul(bias.unsqueeze(1), normalise(x_GBTD), weight.unsqueeze(1))

    def into(self, linear: "Linear", rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Weight and bias of this norm's scale and shift with a linear layer after them.

        They are applied to what is normalised, so that several layers can share it.
        """
        weight, bias = chosen(linear.weight, rows), chosen(linear.bias, rows)
        shifted = torch.baddbmm(bias, chosen(self.bias, rows), weight)
        return chosen(self.weight, rows).mT * weight, shifted


class Linear(nn.Module):
    """G linear layers; weights [G, in, out] drawn Xavier-uniform, biases 0."""

    def __init__(self, count: int, width: int, outputs: int) -> None:
        super().__init__()
        bound = math.sqrt(6.0 / (width + outputs))
        self.weight = nn.Parameter(torch.empty(count, width, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(count, 1, outputs))

    def forward(self, x_GND: Tensor, rows: Sequence[int]) -> Tensor:
        """Outputs [G, N, out]."""
        return torch.baddbmm(chosen(self.bias, rows), x_GND, chosen(self.weight, rows))


def chosen(parameter: Tensor, rows: Sequence[int]) -> Tensor:
    """The rows of a parameter; itself where they are all."""
    return parameter if list(rows) == list(range(len(parameter))) else pick(parameter, rows)


class Layer(nn.Module):
    """x + attention(norm x, norm of what is asked), then x + W2 ReLU(W1 norm x), G times.

    What is asked is normalised by the norm of the sequence that asks.
    """

    def __init__(self, count: int, width: int, heads: int, dropouts: Dropouts) -> None:
        super().__init__()
        self.heads, self.dropouts = heads, dropouts
        self.asking = Norm(count, width)
        self.query_key_value = Linear(count, width, 3 * width)
        self.answer = Linear(count, width, width)
        self.feeding = Norm(count, width)
        self.inner = Linear(count, width, 4 * width)
        self.outer = Linear(count, 4 * width, width)

    def forward(
        self,
        x_GBTD: Tensor,
        sight: Sight,
        *,
        rows: Sequence[int],
        source: Source | None = None,
        at: Tensor | None = None,
        attention: float | None = None,
    ) -> Tensor:
        """The sequences after this layer; with `at`, this step of each alone."""
        normed = normalise(x_GBTD)
        keys, values = (normed, normed) if source is None else source
        if at is not None:
            x_GBTD, normed = take_step(x_GBTD, at), take_step(normed, at)
        weight, bias = self.asking.into(self.query_key_value, rows)
        width = x_GBTD.shape[3]
        query = _apply(normed, weight[..., :width], bias[..., :width])
        if keys is values:
            both = _apply(keys, weight[..., width:], bias[..., width:])
            key, value = both.chunk(2, 3)
        else:
            key = _apply(keys, weight[..., width : 2 * width], bias[..., width : 2 * width])
            value = _apply(values, weight[..., 2 * width :], bias[..., 2 * width :])
        share = self.dropouts.attention if attention is None else attention
        answer_NHTS = attend(
            self._split(query),
            self._split(key),
            self._split(value),
            sight,
            share if self.training else 0.0,
        )
        answer = answer_NHTS.transpose(1, 2).reshape(len(rows), -1, width)
        x_GBTD = self._plus(x_GBTD, self.answer(answer, rows))
        return self._plus(x_GBTD, self._fed(x_GBTD, rows))

    def _fed(self, x_GBTD: Tensor, rows: Sequence[int]) -> Tensor:
        weight, bias = self.feeding.into(self.inner, rows)
        inner = _apply(normalise(x_GBTD), weight, bias).flatten(1, 2)
        inner = relu_dropped(inner, self.dropouts.relu, self.training)
        fed: Tensor = self.outer(inner, rows)
        return fed

    def _plus(self, x_GBTD: Tensor, more_GND: Tensor) -> Tensor:
        more = more_GND.view_as(x_GBTD)
        return plus_dropped(x_GBTD, more, self.dropouts.residual, self.training)

    def _split(self, x_GBTD: Tensor) -> Tensor:
        """The heads of all clips and networks, [G*B, H, T, S]."""
        _, _, steps, width = x_GBTD.shape
        return x_GBTD.reshape(-1, steps, self.heads, width // self.heads).transpose(1, 2)


def _apply(x_GBTD: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer of each network at every step."""
    found = torch.baddbmm(bias, x_GBTD.flatten(1, 2), weight)
    return found.view(*x_GBTD.shape[:3], -1)
