"""Attention that keeps no large map: block by block, and once more in the backward pass.

Every map of weights has an entry for each query, key, head, clip and network. Kept for the backward
pass they are what a transformer over long streams needs its memory for, and on a CPU moving them is
most of its time. So a block of the map that fits the cache is made, used and forgotten, and made
again when its gradient is wanted, with the same dropout from the same seed; the gradient needs no
more than the output beside it (T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact
Attention with IO-Awareness", NeurIPS 2022, arXiv 2205.14135). On any other device this is PyTorch's
`scaled_dot_product_attention`, whose heads are made wider by zeros where its kernels want it.

Heads here are narrow (4 to 12). A product of the map with a narrow matrix is up to four times as
fast when the narrow side comes first, so inside all of them lie with their steps last.

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

SHORT = 64 * 64
"""Maps of no more queries times keys are kept after all: they are no larger than what else is."""

KERNEL_WIDTH = 8
"""CUDA's kernels without a map take heads of a multiple of this, in bfloat16."""

Block: TypeAlias = tuple[tuple[slice, slice], slice]
"""Sequences and heads; queries."""


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
        query = query_NHTS * (1.0 / math.sqrt(query_NHTS.shape[3]))
        found = (x_NHTS.mT.contiguous() for x_NHTS in (query, key_NHUS, value_NHUS))
        how = _How(sight.bias, share, new_seed() if share > 0.0 else 0)
        answer_NHST: Tensor = _InBlocks.apply(*found, how)  # type: ignore[no-untyped-call]  # PyTorch gives it no type
        answer = answer_NHST.mT
    else:
        answer = _fused(query_NHTS, key_NHUS, value_NHUS, sight.bias, share)
    return answer if sight.answered is None else answer * sight.answered.unsqueeze(1)


def _fused(
    query_NHTS: Tensor, key_NHUS: Tensor, value_NHUS: Tensor, bias: Tensor | None, share: float
) -> Tensor:
    """PyTorch's attention, with heads as wide as those of its kernels that keep no map."""
    size = query_NHTS.shape[3]
    more = -size % KERNEL_WIDTH
    query, key, value = (
        nn.functional.pad(x, (0, more)) for x in (query_NHTS, key_NHUS, value_NHUS)
    )
    answer = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if bias is None else bias.unsqueeze(1),
        dropout_p=share,
        scale=1.0 / math.sqrt(size),
    )
    return answer[..., :size]


@dataclass(frozen=True, slots=True)
class _How:
    """What both passes are told alike: what is not seen, what is dropped, and by which draws."""

    bias: Tensor | None
    share: float
    seed: int


class _InBlocks(Function):
    """The attention of scaled queries; all are [N, H, S, T] or [N, H, S, U]."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - PyTorch gives it no type
        query: Tensor,
        key: Tensor,
        value: Tensor,
        how: _How,
    ) -> Tensor:
        answer = torch.empty_like(query)
        short = query.shape[3] * key.shape[3] <= SHORT
        draws = Draws(how.seed)
        ctx.kept = []
        for sides, queries in _blocks(query, key):
            block = (sides, queries)
            weights, dropped = _weights(query[sides][..., queries], key[sides], how, block, draws)
            answer[sides][..., queries] = value[sides] @ dropped.mT
            if short:
                ctx.kept.append((weights, dropped))
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
        common = (grad * answer).sum(2).unsqueeze(3)
        draws = Draws(how.seed)
        for number, (sides, queries) in enumerate(_blocks(query, key)):
            asking, own = query[sides][..., queries], grad[sides][..., queries]
            if ctx.kept:
                weights, dropped = ctx.kept[number]
            else:
                block = (sides, queries)
                weights, dropped = _weights(asking, key[sides], how, block, draws)
            to_value[sides] += own @ dropped
            to_scores = (own.mT @ value[sides]).mul_(dropped)
            to_scores.addcmul_(weights, common[sides][..., queries, :], value=-1.0)
            to_query[sides][..., queries] = key[sides] @ to_scores.mT
            to_key[sides] += asking @ to_scores
        return to_query, to_key, to_value, None


def _blocks(query: Tensor, key: Tensor) -> Iterator[Block]:
    """Blocks of at most `HELD` entries, or of one query: as whole as they can be."""
    sequences, heads, _, queries = query.shape
    rows = max(1, HELD // key.shape[3])
    together = min(queries, rows)
    beside = min(heads, rows // together) if together == queries else 1
    most = min(sequences, rows // (together * beside)) if beside == heads else 1
    for n in range(0, sequences, most):
        for h in range(0, heads, beside):
            for t in range(0, queries, together):
                yield (slice(n, n + most), slice(h, h + beside)), slice(t, t + together)


def _weights(
    query: Tensor, key: Tensor, how: _How, block: Block, draws: Draws
) -> tuple[Tensor, Tensor]:
    """The weights of a block before dropout and after it, which may be the same tensor."""
    scores = query.mT @ key
    if how.bias is not None:
        (sequences, _), queries = block
        rows = sequences if len(how.bias) > 1 else slice(None)
        steps = queries if how.bias.shape[1] > 1 else slice(None)
        scores += how.bias[rows, steps].unsqueeze(1)
    weights = scores.softmax(3)
    if how.share == 0.0:
        return weights, weights
    return weights, draws.factors(weights.shape, how.share, weights.dtype).mul_(weights)
