"""The parts that the recurrent fusion models share.

Sources: G. Paraskevopoulos, E. Georgiou, A. Potamianos, "MMLatch: Bottom-Up Top-Down Fusion for
Multimodal Sentiment Analysis", ICASSP 2022, arXiv 2201.09828, for the encoders and the attentions;
S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 1997, for the
recurrence.

Shapes: M streams, B clips, T steps, D width of a stream, H hidden size, G attentions side by side,
S their size, F features that are read together, K outputs.

Each model exists in two forms. The *fixed* one, the default: a clip lasts until the last step at
which any stream is valid; only valid steps ask, are looked at and are pooled. The *released* one
repeats the function of the authors' code, faults included, so that it can be held against numbers
which that code computed.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, NestedIOFunction

from training.batch import FusionBatch, Stream
from training.models.dropout import dropout

PoolingKind: TypeAlias = Literal["mean", "sum"]
LengthsKind: TypeAlias = Literal["batch", "true"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionSettings:
    """Settings of encoders and fusion.

    Attributes:
        hidden: H, for each direction of each recurrence.
        encoder_dropout: In the encoders, after the recurrence and on the attention weights.
        fusion_dropout: The same in everything after the encoders.
        pooling: How the steps of a clip become one vector.
        reference: The released function instead of the fixed one: nothing masked but the keys of
            the encoders and of the last attention, and the sum over all steps, whatever `pooling`
            says.
        reference_lengths: With `reference`: a clip lasts as long as its batch, as released, or its
            true length.
    """

    hidden: int = 100
    encoder_dropout: float = 0.2
    fusion_dropout: float = 0.1
    pooling: PoolingKind = "mean"
    reference: bool = False
    reference_lengths: LengthsKind = "batch"

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        if self.hidden < 1:
            raise ValueError(f"hidden is {self.hidden}; it must be at least 1")
        check_shares(encoder_dropout=self.encoder_dropout, fusion_dropout=self.fusion_dropout)
        if self.reference_lengths == "true" and not self.reference:
            raise ValueError(
                "reference_lengths is 'true' without reference; the fixed form always uses true "
                "lengths: leave it out"
            )


def check_shares(**shares: float) -> None:
    """Raise ValueError where a dropout probability is not in [0, 1)."""
    for name, share in shares.items():
        if not 0.0 <= share < 1.0:
            raise ValueError(f"{name} is {share}; it must be at least 0 and less than 1")


@dataclass(frozen=True, slots=True)
class View:
    """Who may be looked at in an attention, and who gets an answer.

    Attributes:
        bias: [G*B, 1, T], added to the scores: 0, or far below any score at keys that nobody may
            see.
        rows: [G*B, T, 1]: 1, or 0 at queries that get no answer.
    """

    bias: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Steps:
    """What each step of a batch counts for.

    Attributes:
        valid: [M, B, T]: the streams' masks.
        padding: [B, T, 1]: 1 after the clip's end, else 0.
        encoders: M views side by side, each stream on itself.
        pairs: Directed pairs side by side; None with fewer than two streams.
        third: The pair (1, 2) on stream 0; None unless there are three streams.
        whole: All features together on themselves.
        share: [B, T, 1]: the weight of each step in the pooled vector.
    """

    valid: Tensor
    padding: Tensor
    encoders: View
    pairs: View | None
    third: View | None
    whole: View
    share: Tensor


def view(keys_GBT: Tensor, queries_GBT: Tensor, dtype: torch.dtype) -> View:
    """A view from two boolean masks.

    A query with nothing to look at sees all keys alike. That is 0 too: streams are 0 where they are
    not valid, and so are their values, as no projection has a bias.
    """
    # Half of the lowest number: finite with a score added, and so is a softmax of these alone.
    unseen = torch.finfo(dtype).min / 2
    bias = torch.zeros_like(keys_GBT, dtype=dtype).masked_fill(~keys_GBT, unseen)
    rows = queries_GBT.to(dtype)
    return View(bias.flatten(0, 1).unsqueeze(1), rows.flatten(0, 1).unsqueeze(2))


def directed_pairs(streams: int) -> tuple[list[int], list[int]]:
    """The streams that are asked and those that ask: all pairs (x, y), then all (y, x)."""
    pairs = list(itertools.combinations(range(streams), 2))
    first, second = [x for x, _ in pairs], [y for _, y in pairs]
    return first + second, second + first


def pick(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of `x` along its first axis, without an index that would have to go to the device."""
    parts = x.unbind(0)
    return torch.stack([parts[row] for row in rows])


def fixed_steps(valid_MBT: Tensor, pooling: PoolingKind, dtype: torch.dtype) -> Steps:
    """What each step counts for in the fixed form."""
    any_BT = valid_MBT.any(0)
    # A step belongs to the clip when it, or any step after it, is valid in some stream.
    padding_BT = any_BT.flip(1).cumsum(1).flip(1) == 0
    share_BT1 = any_BT.unsqueeze(2).to(dtype)
    if pooling == "mean":
        share_BT1 = share_BT1 / share_BT1.sum(1, keepdim=True).clamp(min=1)
    return _steps(valid_MBT, (valid_MBT, valid_MBT), padding_BT, share_BT1)


def released_steps(valid_MBT: Tensor, lengths: LengthsKind, dtype: torch.dtype) -> Steps:
    """What each step counts for in the released code.

    Padding asks, is asked in the fusion, and is summed. With batch lengths there is none.
    """
    padding_BT = valid_MBT.any(0).flip(1).cumsum(1).flip(1) == 0
    if lengths == "batch":
        padding_BT = torch.zeros_like(padding_BT)
    share_BT1 = torch.ones_like(padding_BT, dtype=dtype).unsqueeze(2)
    inside_MBT = (~padding_BT).expand_as(valid_MBT)
    return _steps(valid_MBT, (inside_MBT, torch.ones_like(valid_MBT)), padding_BT, share_BT1)


def _steps(
    valid_MBT: Tensor, masks: tuple[Tensor, Tensor], padding_BT: Tensor, share_BT1: Tensor
) -> Steps:
    """The views of a batch.

    Args:
        valid_MBT: The streams' masks.
        masks: The keys of each stream on itself, [M, B, T], of which the union are the keys of the
            whole; all queries, and the keys between streams, [M, B, T].
        padding_BT: True after the clip's end.
        share_BT1: The weight of each step when pooled.
    """
    inside_MBT, seen_MBT = masks
    dtype, count = share_BT1.dtype, len(seen_MBT)
    keys, queries = directed_pairs(count)
    whole_keys, whole_queries = inside_MBT.any(0, keepdim=True), seen_MBT.any(0, keepdim=True)
    return Steps(
        valid=valid_MBT,
        padding=padding_BT.unsqueeze(2).to(dtype),
        encoders=view(inside_MBT, seen_MBT, dtype),
        pairs=view(pick(seen_MBT, keys), pick(seen_MBT, queries), dtype) if keys else None,
        third=view(seen_MBT[:1], seen_MBT[1:].any(0, keepdim=True), dtype) if count == 3 else None,
        whole=view(whole_keys, whole_queries, dtype),
        share=share_BT1,
    )


def take_streams(
    batch: FusionBatch, names: Sequence[str], widths: Sequence[int], settings: FusionSettings
) -> tuple[list[Tensor], Steps]:
    """Values [B, T, D] by stream, and what each step counts for.

    Raises:
        ValueError: A stream is not there, has another width, or does not share the clip's steps.
    """
    found = [find_stream(batch, name, width) for name, width in zip(names, widths, strict=True)]
    streams = same_steps(batch, found, names)
    valid_MBT = torch.stack([stream.mask for stream in streams])
    values = [stream.values for stream in streams]
    dtype = values[0].dtype
    if settings.reference:
        return values, released_steps(valid_MBT, settings.reference_lengths, dtype)
    clean = [stream.values.masked_fill(~stream.mask.unsqueeze(2), 0.0) for stream in streams]
    return clean, fixed_steps(valid_MBT, settings.pooling, dtype)


def find_stream(batch: FusionBatch, name: str, width: int) -> Stream:
    """A stream of a batch. Raises ValueError where it is not there, or has another width."""
    if name not in batch.streams:
        raise ValueError(
            f"the batch has no stream {name!r}, only {sorted(batch.streams)}; "
            f"the model was built with {name!r}"
        )
    stream = batch.streams[name]
    if stream.values.shape[2] != width:
        raise ValueError(
            f"stream {name!r} is {stream.values.shape[2]} wide; the model was built for {width}"
        )
    return stream


def same_steps(batch: FusionBatch, streams: list[Stream], names: Sequence[str]) -> list[Stream]:
    """Streams as long as the longest.

    A stream is shorter when the longest clips of the batch lack it: what is missing is padding. But
    a clip that has a stream, and goes on after the stream's last row, is not on one time base: a
    ValueError.
    """
    longest = max(stream.mask.shape[1] for stream in streams)
    if all(stream.mask.shape[1] == longest for stream in streams):
        return streams
    padded = [_longer(stream, longest) for stream in streams]
    any_BT = torch.stack([stream.mask for stream in padded]).any(0)
    for name, stream in zip(names, streams, strict=True):
        length = stream.mask.shape[1]
        torn_B = stream.mask.any(1) & any_BT[:, length:].any(1)
        if torn_B.any():
            key = batch.keys[int(torn_B.nonzero()[0])]
            raise ValueError(
                f"stream {name!r} has {length} steps, and clip {key!r} goes on after them in a "
                f"stream of {longest} steps; this model wants all streams on one time base: "
                'choose a pooling ("words" or "cells")'
            )
    return padded


def _longer(stream: Stream, steps: int) -> Stream:
    missing = steps - stream.mask.shape[1]
    return Stream(
        nn.functional.pad(stream.values, (0, 0, 0, missing)),
        nn.functional.pad(stream.mask, (0, missing)),
    )


class Lstm(nn.Module):
    """One layer of LSTM over padded sequences: what a packed sequence gives, without packing.

    Outputs are 0 in the padding, and nothing comes from there: padding lies after a clip's steps,
    and the second direction reads each clip turned round within its own length, so that it begins
    at the clip's last step.

    Parameters are named and drawn as in `torch.nn.LSTM`.
    """

    def __init__(self, width: int, hidden: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.hidden = hidden
        self.suffixes = ("_l0", "_l0_reverse") if bidirectional else ("_l0",)
        bound = 1.0 / math.sqrt(hidden)
        for suffix in self.suffixes:
            for name, shape in (
                ("weight_ih", (4 * hidden, width)),
                ("weight_hh", (4 * hidden, hidden)),
                ("bias_ih", (4 * hidden,)),
                ("bias_hh", (4 * hidden,)),
            ):
                start = torch.empty(shape).uniform_(-bound, bound)
                self.register_parameter(name + suffix, nn.Parameter(start))

    def forward(self, x_BTD: Tensor, padding_BT1: Tensor) -> Tensor:
        """Outputs [B, T, H], or [B, T, 2H] for two directions; 0 where `padding` is 1."""
        outputs: Tensor = self._read(x_BTD, "_l0")
        if len(self.suffixes) == 2:
            rows = turned_rows(padding_BT1)
            back = self._read(exchange(x_BTD, rows), "_l0_reverse")
            outputs = torch.cat([outputs, exchange(back, rows)], 2)
        return outputs * (1.0 - padding_BT1)

    # Compiled, torch.lstm cannot be differentiated on a CPU: it keeps None among its tensors.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _read(self, x_BTD: Tensor, suffix: str) -> Tensor:
        """From the first step to the last; padding is read as well, after all that counts."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        start = x_BTD.new_zeros(1, len(x_BTD), self.hidden)
        # Two calls of one direction are faster on a CPU than one call of two.
        outputs, _, _ = torch.lstm(
            x_BTD,
            (start, start),
            _beside([self.get_parameter(name + suffix) for name in names]),
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            # One layer computes the same in training, but only then is kept what gradients need.
            train=torch.is_grad_enabled(),
            bidirectional=False,
            batch_first=True,
        )
        return outputs


def _beside(weights: list[Tensor]) -> list[Tensor]:
    """The weights of a recurrence in one piece of memory, where cuDNN wants them so."""
    if weights[0].device.type == "cpu":
        return weights
    # Left to itself, it gathers them with a warning, one by one.
    flat = torch.cat([weight.flatten() for weight in weights])
    parts = torch.split(flat, [weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]


def turned_rows(padding_BT1: Tensor) -> Tensor:
    """For each of B*T rows, the row it changes places with when each clip is turned round."""
    clips, steps, _ = padding_BT1.shape
    step_T = torch.arange(steps, device=padding_BT1.device)
    last_B1 = (padding_BT1.squeeze(2) == 0).sum(1, keepdim=True) - 1
    there_BT = torch.where(step_T <= last_B1, last_B1 - step_T, step_T)
    first_B1 = torch.arange(clips, device=padding_BT1.device).unsqueeze(1) * steps
    return (first_B1 + there_BT).flatten()


class _Exchange(torch.autograd.Function):
    """Rows that change places: the gradient's do the same, which `index_select` cannot know."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_BTD: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return x_BTD.flatten(0, 1).index_select(0, rows).view_as(x_BTD)

    @staticmethod
    def backward(ctx: NestedIOFunction, *grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        (grad_BTD,) = grad
        return grad_BTD.flatten(0, 1).index_select(0, rows).view_as(grad_BTD), None


def exchange(x_BTD: Tensor, rows: Tensor) -> Tensor:
    """`x` with its B*T rows in other places; `rows` must undo itself."""
    exchanged: Tensor = _Exchange.apply(x_BTD, rows)  # type: ignore[no-untyped-call] # torch's
    return exchanged


def project(x_GBTS: Tensor, weight_GSN: Tensor) -> Tensor:
    """One product for each of G groups, [G, B, T, N]."""
    groups, clips, steps, size = x_GBTS.shape
    if x_GBTS.device.type != "cpu" or clips < _MANY_CLIPS or clips * steps < _MANY_ROWS:
        product = torch.bmm(x_GBTS.reshape(groups, clips * steps, size), weight_GSN)
        return product.view(groups, clips, steps, -1)
    pairs = zip(x_GBTS.unbind(0), weight_GSN.unbind(0), strict=True)
    return torch.stack([convolved(x_BTS, weight_SN) for x_BTS, weight_SN in pairs])


# With fewer, the convolution of one thread is another one, or its preparing takes longer.
_MANY_CLIPS, _MANY_ROWS = 16, 512


def convolved(x_BTS: Tensor, weight_SN: Tensor) -> Tensor:
    """The product x @ weight, [B, T, N], as a convolution with a window of one step.

    Convolutions are computed by oneDNN, products by MKL, which does without AVX-512 on AMD's
    processors: there this is twice as fast, forward and backward.
    """
    picture_BST1 = x_BTS.unsqueeze(2).permute(0, 3, 1, 2)
    product_BNT1 = nn.functional.conv2d(picture_BST1, weight_SN.mT[:, :, None, None])
    return product_BNT1.squeeze(3).mT


def xavier(*shape: int) -> nn.Parameter:
    """Square matrices [..., S, nS] side by side, each drawn Xavier-uniform by itself."""
    bound = math.sqrt(3.0 / shape[-2])
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


def attend(
    query_NTS: Tensor, key_NTS: Tensor, value_NTS: Tensor, seen: View, share: float
) -> Tensor:
    """Scaled dot-product attention, [N, T, S]; 0 for queries that get no answer.

    A share of the weights is dropped.
    """
    scale = 1.0 / math.sqrt(query_NTS.shape[2])
    scores_NTT = torch.baddbmm(seen.bias, query_NTS, key_NTS.mT, alpha=scale)
    weights_NTT = scores_NTT.softmax(2)
    weights_NTT = dropout(weights_NTT, share, training=True)
    return torch.bmm(weights_NTT, value_NTS) * seen.rows


class SelfAttention(nn.Module):
    """G one-headed attentions side by side, each of a sequence on itself.

    There is no bias, no residual and no output projection.
    """

    def __init__(self, groups: int, size: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.weight = xavier(groups, size, 3 * size)  # queries, keys, values

    def forward(self, x_GBTS: Tensor, seen: View) -> Tensor:
        """Outputs [G, B, T, S]."""
        groups, clips, steps, size = x_GBTS.shape
        projected = project(x_GBTS, self.weight)
        query, key, value = projected.view(groups * clips, steps, 3 * size).chunk(3, 2)
        share = self.dropout if self.training else 0.0
        return attend(query, key, value, seen, share).view_as(x_GBTS)


class Encoders(nn.Module):
    """One encoder for each stream: LSTM in both directions, their sum, self-attention."""

    def __init__(self, widths: Sequence[int], hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.lstms = nn.ModuleList(Lstm(width, hidden, bidirectional=True) for width in widths)
        self.attention = SelfAttention(len(widths), hidden, dropout)

    def forward(self, values: Sequence[Tensor], steps: Steps) -> Tensor:
        """Encoded streams [M, B, T, H] of values [B, T, D] by stream."""
        both = torch.stack(
            [lstm(x_BTD, steps.padding) for lstm, x_BTD in zip(self.lstms, values, strict=True)]
        )
        there, back = dropout(both, self.dropout, self.training).chunk(2, 3)
        encoded: Tensor = self.attention(there + back, steps.encoders)
        return encoded


class Crossing(nn.Module):
    """Symmetric attention between all pairs of streams; with three streams, the third term as well.

    For a pair (x, y), o_x = softmax(Q_y K_x^T / sqrt(H)) V_x + y and o_y the other way round; the
    feature is o_x + o_y. With three streams, the pair of streams 1 and 2 asks stream 0 in a last
    attention without residual. `features` counts the streams, the pairs and this term.
    """

    def __init__(self, streams: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.keys, self.queries = directed_pairs(streams)
        pairs = len(self.keys) // 2
        self.features = streams + pairs + (streams == 3)
        if pairs:
            self.query = xavier(2 * pairs, hidden, hidden)
            self.key_value = xavier(2 * pairs, hidden, 2 * hidden)
        if streams == 3:
            self.third_query = xavier(hidden, hidden)
            self.third_key_value = xavier(hidden, 2 * hidden)

    def forward(self, encoded_MBTH: Tensor, steps: Steps) -> Tensor:
        """Streams, pairs (01, 02, 12 for three) and third term beside each other, [B, T, F*H]."""
        features = list(encoded_MBTH.unbind(0))
        if steps.pairs is not None:
            pairs = self._pairs(encoded_MBTH, steps.pairs)
            features += pairs.unbind(0)
            if steps.third is not None:
                features.append(self._third(encoded_MBTH[0], pairs[2], steps.third))
        return torch.cat(features, 2)

    def _pairs(self, encoded_MBTH: Tensor, seen: View) -> Tensor:
        steps, hidden = encoded_MBTH.shape[2:]
        asked, asking = pick(encoded_MBTH, self.keys), pick(encoded_MBTH, self.queries)
        query = project(asking, self.query).view(-1, steps, hidden)
        key, value = project(asked, self.key_value).view(-1, steps, 2 * hidden).chunk(2, 2)
        answers = attend(query, key, value, seen, self._dropout()).view_as(asking)
        there, back = (answers + asking).chunk(2, 0)
        return there + back

    def _third(self, first_BTH: Tensor, pair_BTH: Tensor, seen: View) -> Tensor:
        (both_BTV,) = project(first_BTH.unsqueeze(0), self.third_key_value.unsqueeze(0))
        (query,) = project(pair_BTH.unsqueeze(0), self.third_query.unsqueeze(0))
        key, value = both_BTV.chunk(2, 2)
        return attend(query, key, value, seen, self._dropout())

    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0


class Reader(nn.Module):
    """Reads the fused steps and pools them.

    LSTM in both directions side by side, self-attention, mean or sum over time.
    """

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.lstm = Lstm(width, hidden, bidirectional=True)
        self.attention = SelfAttention(1, 2 * hidden, dropout)

    def forward(self, fused_BTF: Tensor, steps: Steps) -> Tensor:
        """One vector for each clip, [B, 2H]; 0 for a clip without a valid step."""
        read = dropout(self.lstm(fused_BTF, steps.padding), self.dropout, self.training)
        attended: Tensor = self.attention(read.unsqueeze(0), steps.whole).squeeze(0)
        return (attended * steps.share).sum(1)


class Head(nn.Module):
    """From encoded streams to outputs: crossing, reader, one linear layer."""

    def __init__(self, streams: int, outputs: int, settings: FusionSettings) -> None:
        super().__init__()
        hidden, dropout = settings.hidden, settings.fusion_dropout
        self.crossing = Crossing(streams, hidden, dropout)
        self.reader = Reader(self.crossing.features * hidden, hidden, dropout)
        self.classifier = nn.Linear(2 * hidden, outputs)

    def forward(self, encoded_MBTH: Tensor, steps: Steps) -> Tensor:
        """Outputs [B, K]."""
        fused = self.crossing(encoded_MBTH, steps)
        outputs: Tensor = self.classifier(self.reader(fused, steps))
        return outputs
