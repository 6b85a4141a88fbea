"""Attention that keeps no map of it: block by block, and once more in the backward pass.

Every map of weights has an entry for each query, key, head, clip and network. Kept for the backward
pass they are what a transformer over long streams needs its memory for, and on a CPU moving them is
most of its time. So a block of the map that fits the cache is made, used and forgotten, and made
again when its gradient is wanted, with the same dropout from the same seed; the gradient needs no
more than the output beside it (T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact
Attention with IO-Awareness", NeurIPS 2022, arXiv 2205.14135). On any other device this is PyTorch's
`scaled_dot_product_attention`.

Shapes: N sequences side by side, H heads, T queries, U keys, S size of a head.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from training.models.dropout import Draws, new_seed

HELD = 1 << 18
"""Entries of a block: 1 MiB of float32."""

Block: TypeAlias = tuple[slice, slice, slice]
"""Sequences, heads and queries."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Which keys a query sees, and which queries get an answer.

    Attributes:
        bias: [N or 1, T or 1, U], added to the scores: 0, or far below any score at keys that are
            not seen; None when all are.
        answered: [N, T or 1, 1]: 1, or 0 at queries that see no key; None when all see one.
    """

    bias: Tensor | None
    answered: Tensor | None

    @staticmethod
    def of(seen: Tensor, dtype: torch.dtype) -> "Sight":
        """From a mask [N, T or 1, U], True where the query sees the key."""
        # Half of the lowest number: finite with a score added, and so is a softmax of these alone.
        bias = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min / 2)
        return Sight(bias, seen.any(2, keepdim=True).to(dtype))


def attend(
    query_NHTS: Tensor, key_NHUS: Tensor, value_NHUS: Tensor, sight: Sight, share: float
) -> Tensor:
    """Scaled dot-product attention [N, H, T, S]; 0 for queries that see no key.

    Args:
        query_NHTS: Queries.
        key_NHUS: Keys.
        value_NHUS: Values.
        sight: Who sees what.
        share: Dropout on the weights.
    """
    if query_NHTS.device.type == "cpu":
        scaled = query_NHTS * (1.0 / math.sqrt(query_NHTS.shape[3]))
        how = _How(sight.bias, share, new_seed() if share > 0.0 else 0)
        answer: Tensor = _InBlocks.apply(  # type: ignore[no-untyped-call]  # PyTorch gives it no type
            scaled, key_NHUS.contiguous(), value_NHUS.contiguous(), how
        )
    else:
        bias = None if sight.bias is None else sight.bias.unsqueeze(1)
        answer = nn.functional.scaled_dot_product_attention(
            query_NHTS, key_NHUS, value_NHUS, attn_mask=bias, dropout_p=share
        )
    return answer if sight.answered is None else answer * sight.answered.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class _How:
    """What both passes are told alike: what is not seen, what is dropped, and by which draws."""

    bias: Tensor | None
    share: float
    seed: int


class _InBlocks(Function):
    """The attention of scaled queries."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - PyTorch gives it no type
        query: Tensor,
        key: Tensor,
        value: Tensor,
        how: _How,
    ) -> Tensor:
        answer = torch.empty_like(query)
        draws = Draws(how.seed)
        for block in _blocks(query, key):
            weights = _weights(query, key, how.bias, block)
            if how.share > 0.0:
                weights *= draws.factors(weights.shape, how.share, weights.dtype)
            found = torch.bmm(weights, _rows(value, block))
            answer[block] = found.view_as(answer[block])
        ctx.save_for_backward(query, key, value, answer)
        ctx.how = how
        return answer

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        grad: Tensor,
    ) -> tuple[Tensor | None, ...]:
        query, key, value, answer = ctx.saved_tensors
        how: _How = ctx.how
        to_query = torch.empty_like(query)
        to_key, to_value = torch.zeros_like(key), torch.zeros_like(value)
        grad = grad.contiguous()
        # For each query, the sum over keys of weight times the weight's gradient.
        common = (grad * answer).sum(3, keepdim=True)
        draws = Draws(how.seed)
        for block in _blocks(query, key):
            asked = block[:2]
            weights = _weights(query, key, how.bias, block)
            own = grad[block].flatten(0, 1)
            to_weights = torch.bmm(own, _rows(value, block).mT)
            if how.share > 0.0:
                factors = draws.factors(weights.shape, how.share, weights.dtype)
                to_weights *= factors
                factors *= weights
            else:
                factors = weights
            to_value[asked] += torch.bmm(factors.mT, own).view_as(value[asked])
            to_scores = to_weights.sub_(common[block].flatten(0, 1)).mul_(weights)
            to_query[block] = torch.bmm(to_scores, _rows(key, block)).view_as(query[block])
            to_key[asked] += torch.bmm(to_scores.mT, query[block].flatten(0, 1)).view_as(key[asked])
        return to_query, to_key, to_value, None


def _blocks(query: Tensor, key: Tensor) -> Iterator[Block]:
    """Blocks of at most `HELD` entries, or of one query: as whole as they can be."""
    sequences, heads, queries, _ = query.shape
    rows = max(1, HELD // key.shape[2])
    together = min(queries, rows)
    side = min(heads, rows // together) if together == queries else 1
    most = min(sequences, rows // (together * side)) if side == heads else 1
    for n in range(0, sequences, most):
        for h in range(0, heads, side):
            for t in range(0, queries, together):
                yield slice(n, n + most), slice(h, h + side), slice(t, t + together)


def _rows(x_NHUS: Tensor, block: Block) -> Tensor:
    """The keys or values of a block, heads beside each other."""
    return x_NHUS[block[:2]].flatten(0, 1)


def _weights(query: Tensor, key: Tensor, bias: Tensor | None, block: Block) -> Tensor:
    """The weights of a block before dropout, heads beside each other."""
    scores = torch.bmm(query[block].flatten(0, 1), _rows(key, block).mT)
    if bias is not None:
        sequences = block[0] if len(bias) > 1 else slice(None)
        queries = block[2] if bias.shape[1] > 1 else slice(None)
        count = query[block].shape[:2]
        scores.view(*count, *scores.shape[1:]).add_(bias[sequences, queries].unsqueeze(1))
    return scores.softmax(2)
