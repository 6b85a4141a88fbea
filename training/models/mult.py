"""MulT: each stream asks every other one, whatever their rates; then each remembers its answers.

Source: Y.-H. H. Tsai, S. Bai, P. P. Liang, J. Z. Kolter, L.-P. Morency, R. Salakhutdinov,
"Multimodal Transformer for Unaligned Multimodal Language Sequences", ACL 2019, arXiv 1906.00295;
the authors' code is yaohungt/Multimodal-Transformer.

A convolution in time brings each stream m to one width: X_m. For each target t and each other
stream s, a crossmodal transformer with queries from its own sequence and, in every layer, keys and
values from X_s gives Z_(s to t). A memory transformer on [Z_(s to t) for all s] follows, of which
the last step is read; these M vectors beside each other give the outputs.

The fixed form, the default: only valid steps are seen; the last valid step of each stream is read,
and 0 of a stream that the clip lacks; a query that sees nothing gets 0; a step's position is its
number from the clip's start; and a stream is embedded once, so that one dropout on it serves all
networks that read it. The released form repeats the authors' function: a step counts as padding
when its first feature is exactly 0, and all that this changes is its position; nothing else is
masked, the last step is read whatever it is, and queries, keys and values of each network are
dropped apart.

With `feedback` the model is computed twice, as in G. Paraskevopoulos et al., "MMLatch: Bottom-Up
Top-Down Fusion for Multimodal Sentiment Analysis", ICASSP 2022, arXiv 2201.09828: what the memories
of the other streams hold at each step masks a stream's input (`training.models.feedback`).

Shapes: M streams, B clips, T steps (of each stream its own), D width, G networks side by side, K
outputs.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from training.batch import FusionBatch, Stream
from training.models.attention import Sight
from training.models.blocks import check_shares, find_stream, same_steps
from training.models.dropout import dropout
from training.models.feedback import Encode, Explanation, Latch, LatchSettings
from training.models.transformer import (
    Dropouts,
    Source,
    Transformers,
    normalise,
    positions,
)

Pair: TypeAlias = tuple[int, int]
"""Target and source of a crossmodal transformer: who asks, and who is asked."""

LEAST_MEMORY = 3
"""Layers of the memory transformers, where the crossmodal ones have fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MulTSettings:
    """Settings of MulT.

    Attributes:
        width: D, to which every stream is brought.
        heads: Attentions beside each other in each layer; divides the width.
        layers: Of the crossmodal transformers; the memory transformers have 3 at least.
        kernels: Steps that the convolution of each stream spans: one odd number, or one for each
            stream with commas.
        embedding_dropout: On the first stream (text, in the paper), and on what enters each
            transformer.
        attention_dropout: On the attention's weights; with `reference` only where the first stream
            is asked, and in the memory, as released.
        relu_dropout: Inside the feed-forward parts.
        residual_dropout: On what each part of a layer adds.
        output_dropout: In the last block.
        future_mask: Whether query i of T is kept from keys after i + |T - U|, of U: lengths of the
            clip, or with `reference` of the batch.
        reference: The released function instead of the fixed one; all kernels are 1.
        feedback: MMLatch's masks on the inputs, from what the memory transformers of the other
            streams give at each step: "sequence" by an LSTM for each pair of streams, "static" by a
            linear layer. The model is computed twice, and streams must share their time base.
        mask_dropout: On the masks.
        mask_rnn_dropout: On the outputs of the mask LSTMs.
        stage1_grad: Whether gradients flow through the first of the two times.
    """

    width: int = 40
    heads: int = 8
    layers: int = 4
    kernels: int | str = 1
    embedding_dropout: float = 0.25
    attention_dropout: float = 0.1
    relu_dropout: float = 0.1
    residual_dropout: float = 0.1
    output_dropout: float = 0.1
    future_mask: bool = True
    reference: bool = False
    feedback: Literal["none", "sequence", "static"] = "none"
    mask_dropout: float = 0.2
    mask_rnn_dropout: float = 0.1
    stage1_grad: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        for name in ("width", "heads", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise ValueError(
                f"width is {self.width}, which {self.heads} heads do not divide; "
                f"take {self.width // self.heads * self.heads or self.heads}"
            )
        check_shares(
            embedding_dropout=self.embedding_dropout,
            attention_dropout=self.attention_dropout,
            relu_dropout=self.relu_dropout,
            residual_dropout=self.residual_dropout,
            output_dropout=self.output_dropout,
            mask_dropout=self.mask_dropout,
            mask_rnn_dropout=self.mask_rnn_dropout,
        )
        if self.reference and self.feedback != "none":
            raise ValueError(
                f"feedback is {self.feedback!r}; the released form has none: leave out reference"
            )

    def spans(self, streams: int) -> list[int]:
        """The kernel of each stream. Raises ValueError where `kernels` does not give them."""
        parts = str(self.kernels).split(",")
        spans = [int(part) if part.strip().isdecimal() else 0 for part in parts]
        if len(spans) not in (1, streams) or not all(span % 2 for span in spans):
            raise ValueError(
                f"kernels is {self.kernels!r}; wanted one odd number, or one for each of the "
                f"{streams} streams with commas"
            )
        if self.reference and max(spans) > 1:
            raise ValueError(f"kernels is {self.kernels!r}; the released form knows only 1")
        return spans * streams if len(spans) == 1 else spans


@dataclass(frozen=True, slots=True)
class Seen:
    """Which steps of the streams count.

    Attributes:
        masks: By stream, [B, T], True where valid.
        whole: Whether all steps of all clips count, so that nothing need be masked.
    """

    masks: Sequence[Tensor]
    whole: bool

    def ends(self, m: int) -> Tensor:
        """Steps up to the last valid one of each clip, [B]."""
        mask_BT = self.masks[m]
        numbers = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
        return (mask_BT * numbers).amax(1)

    def padding(self, dtype: torch.dtype) -> Tensor:
        """1 after the last valid step of any stream, else 0, [B, T, 1]; streams have one length."""
        any_BT = torch.stack(list(self.masks)).any(0)
        return (any_BT.flip(1).cumsum(1).flip(1) == 0).unsqueeze(2).to(dtype)


class Projection(nn.Conv1d):
    """A convolution in time, without bias, that keeps the number of steps."""

    def __init__(self, width: int, outputs: int, span: int) -> None:
        super().__init__(width, outputs, span, padding=span // 2, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] of a stream's own width to [B, T, D]."""
        if self.kernel_size == (1,):
            return nn.functional.linear(x_BTD, self.weight.squeeze(2))
        return super().forward(x_BTD.mT).mT


class MulT(nn.Module):
    """Convolutions, crossmodal transformers, memory transformers and a last block.

    Args:
        streams: Names in order, two at least; the first has its own dropout (text, in the paper).
        widths: Dimensions by stream.
        outputs: K.
        settings: Sizes and dropout.

    Raises:
        ValueError: There is one stream alone, or `kernels` does not fit the streams.
    """

    def __init__(
        self,
        streams: Sequence[str],
        widths: Mapping[str, int],
        outputs: int,
        settings: MulTSettings,
    ) -> None:
        super().__init__()
        if len(streams) < 2:
            raise ValueError(
                f"'mult' lets streams ask each other; it wants two at least, found {list(streams)}"
            )
        self.streams = tuple(streams)
        self.widths = tuple(widths[name] for name in streams)
        self.settings = settings
        count, width = len(self.streams), settings.width
        every = range(count)
        self.pairs = [(t, s) for t in every for s in every if s != t]
        dropouts = Dropouts(
            attention=settings.attention_dropout,
            relu=settings.relu_dropout,
            residual=settings.residual_dropout,
        )
        spans = settings.spans(count)
        self.projections = nn.ModuleList(
            Projection(own, width, span) for own, span in zip(self.widths, spans, strict=True)
        )
        self.crossing = Transformers(
            len(self.pairs), width, settings.heads, settings.layers, dropouts
        )
        wide, deep = (count - 1) * width, max(settings.layers, LEAST_MEMORY)
        self.memory = Transformers(count, wide, settings.heads, deep, dropouts)
        self.latch = _latch(self.streams, self.widths, wide, settings)
        self.inner = nn.Linear(count * wide, count * wide)
        self.outer = nn.Linear(count * wide, count * wide)
        self.classifier = nn.Linear(count * wide, outputs)

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        values, seen = self._take(batch)
        if self.latch is not None:
            padding_BT1 = seen.padding(values[0].dtype)
            values = self.latch.feed_back(values, padding_BT1, self._encode(seen))
        read_BF = torch.cat(self._read(self._crossed(values, seen), seen), 1)
        inner = dropout(self.inner(read_BF).relu(), self.settings.output_dropout, self.training)
        outputs: Tensor = self.classifier(read_BF + self.outer(inner))
        return outputs

    def explain(self, batch: FusionBatch) -> Explanation:
        """The masks of the feedback before their dropout. Ask in evaluation mode.

        Raises:
            ValueError: The model was built without feedback.
        """
        if self.latch is None:
            raise ValueError(
                "this MulT has no masks (feedback is 'none'); build it with 'sequence' or 'static'"
            )
        values, seen = self._take(batch)
        padding_BT1, valid_MBT = seen.padding(values[0].dtype), torch.stack(list(seen.masks))
        return self.latch.explain(values, padding_BT1, self._encode(seen), valid_MBT)

    def _take(self, batch: FusionBatch) -> tuple[list[Tensor], Seen]:
        """Values [B, T, D] by stream, and which steps count."""
        found = [
            find_stream(batch, name, width)
            for name, width in zip(self.streams, self.widths, strict=True)
        ]
        if self.latch is not None:
            found = same_steps(batch, found, self.streams)
        masks = [stream.mask for stream in found]
        # On another device the answer would have to be waited for.
        whole = self.settings.reference or (
            masks[0].device.type == "cpu" and all(bool(mask.all()) for mask in masks)
        )
        return [_clean(stream, whole) for stream in found], Seen(masks, whole)

    def _crossed(self, values: Sequence[Tensor], seen: Seen) -> list[Tensor]:
        """By target, the answers of all other streams beside each other, [B, T, (M-1)D]."""
        low = [self._project(m, x_BTD) for m, x_BTD in enumerate(values)]
        embedded = self._embeddings(low)
        answers: dict[int, Tensor] = {}
        for rows in self._alike(low):
            pairs = [self.pairs[row] for row in rows]
            asking = torch.stack([embedded(t) for t, _ in pairs])
            found = self.crossing(
                asking,
                sight_of(seen, pairs, asking.dtype, future=self.settings.future_mask),
                rows=rows,
                source=self._source(pairs, embedded),
                attention=self._attention(pairs),
            )
            answers |= zip(rows, found.unbind(0), strict=True)
        ordered = [answers[row] for row in range(len(self.pairs))]
        others = len(self.streams) - 1
        return [torch.cat(ordered[m * others :][:others], 2) for m in range(len(self.streams))]

    def _encode(self, seen: Seen) -> Encode:
        """What the memory transformers give at each step, for streams of one length."""

        def encode(values: Sequence[Tensor]) -> Tensor:
            x_MBTD = torch.stack([self._embed(x_BTD) for x_BTD in self._crossed(values, seen)])
            rows = range(len(x_MBTD))
            future = self.settings.future_mask
            sight = sight_of(seen, [(m, m) for m in rows], x_MBTD.dtype, future=future)
            found: Tensor = self.memory(x_MBTD, sight, rows=rows)
            return found * torch.stack(list(seen.masks)).unsqueeze(3)

        return encode

    def _read(self, answers: Sequence[Tensor], seen: Seen) -> list[Tensor]:
        """What each stream's memory holds at its last step, [B, (M-1)D] by stream."""
        read: dict[int, Tensor] = {}
        for rows in _groups([x_BTD.shape[1] for x_BTD in answers]):
            pairs = [(m, m) for m in rows]
            x_GBTD = torch.stack([self._embed(answers[m]) for m in rows])
            at_GB, there_GB1 = self._last(seen, rows, x_GBTD)
            found = self.memory.at_step(
                x_GBTD,
                sight_of(seen, pairs, x_GBTD.dtype, future=self.settings.future_mask),
                rows=rows,
                at=at_GB,
                # The last step sees all that is before it, and nothing valid comes after it.
                last=sight_of(seen, pairs, x_GBTD.dtype, future=False),
            )
            read |= zip(rows, (found * there_GB1).unbind(0), strict=True)
        return [read[m] for m in range(len(answers))]

    def _last(self, seen: Seen, rows: Sequence[int], x_GBTD: Tensor) -> tuple[Tensor, Tensor]:
        """The step of each clip that is read, [G, B]; and 1, or 0 where there is none."""
        if seen.whole:
            steps = x_GBTD.shape[2]
            at_GB = torch.full(x_GBTD.shape[:2], steps - 1, device=x_GBTD.device)
            return at_GB, x_GBTD.new_ones(1, 1, 1)
        ends_GB = torch.stack([seen.ends(m) for m in rows])
        return (ends_GB - 1).clamp(min=0), (ends_GB > 0).unsqueeze(2).to(x_GBTD.dtype)

    def _project(self, m: int, x_BTD: Tensor) -> Tensor:
        if m == 0:
            x_BTD = dropout(x_BTD, self.settings.embedding_dropout, self.training)
        found: Tensor = self.projections[m](x_BTD)
        return found

    def _embed(self, x_BTD: Tensor) -> Tensor:
        """Scaled, with positions, dropped."""
        _, steps, width = x_BTD.shape
        found = positions(steps, width, x_BTD.dtype, x_BTD.device).expand_as(x_BTD)
        if self.settings.reference:
            found = found * (x_BTD[:, :, :1] != 0)
        embedded = torch.add(found, x_BTD, alpha=math.sqrt(width))
        return dropout(embedded, self.settings.embedding_dropout, self.training)

    def _embeddings(self, low: Sequence[Tensor]) -> Callable[[int], Tensor]:
        """The embedded stream of a number: once and for all, or each time anew, as released."""
        if self.settings.reference:
            return lambda m: self._embed(low[m])
        return [self._embed(x_BTD) for x_BTD in low].__getitem__

    def _source(self, pairs: Sequence[Pair], embedded: Callable[[int], Tensor]) -> Source:
        """What the networks ask."""
        keys = normalise(torch.stack([embedded(s) for _, s in pairs]))
        if not (self.settings.reference and self.training):
            return keys, keys
        return keys, normalise(torch.stack([embedded(s) for _, s in pairs]))

    def _alike(self, low: Sequence[Tensor]) -> list[list[int]]:
        """Crossmodal networks that can run side by side."""
        steps = [x_BTD.shape[1] for x_BTD in low]
        # The released dropout on the weights depends on which stream is asked.
        return _groups(
            [(steps[t], steps[s], self.settings.reference and s == 0) for t, s in self.pairs]
        )

    def _attention(self, pairs: Sequence[Pair]) -> float:
        first = all(s == 0 for _, s in pairs)
        return 0.0 if self.settings.reference and not first else self.settings.attention_dropout


def _latch(
    streams: Sequence[str], widths: Sequence[int], hidden: int, settings: MulTSettings
) -> Latch | None:
    if settings.feedback == "none":
        return None
    chosen = LatchSettings(
        mask=settings.feedback,
        mask_dropout=settings.mask_dropout,
        mask_rnn_dropout=settings.mask_rnn_dropout,
        stage1_grad=settings.stage1_grad,
    )
    return Latch(streams, widths, hidden, chosen)


def _groups(kinds: Sequence[Hashable]) -> list[list[int]]:
    """The numbers of each kind."""
    found: dict[Hashable, list[int]] = {}
    for number, kind in enumerate(kinds):
        found.setdefault(kind, []).append(number)
    return list(found.values())


def _clean(stream: Stream, whole: bool) -> Tensor:
    """Values with 0 where they do not count."""
    if whole:
        return stream.values
    return stream.values.masked_fill(~stream.mask.unsqueeze(2), 0.0)


def sight_of(seen: Seen, pairs: Sequence[Pair], dtype: torch.dtype, *, future: bool) -> Sight:
    """Who sees what in networks of the same lengths, by the target and the source of each.

    Args:
        seen: Which steps count.
        pairs: Target and source of each network.
        dtype: Of the scores.
        future: Whether to keep query i from keys after i + |T - U|.
    """
    target, source = (seen.masks[m] for m in pairs[0])
    steps, asked = target.shape[1], source.shape[1]
    number_T1 = torch.arange(steps, device=target.device).unsqueeze(1)
    number_U = torch.arange(asked, device=target.device)
    if seen.whole:
        if not future or asked - 1 <= abs(steps - asked):
            return Sight(None, None)
        seen_TU = number_U <= number_T1 + abs(steps - asked)
        return Sight(Sight.of(seen_TU.unsqueeze(0), dtype).bias, None)
    seen_GBTU = torch.stack([seen.masks[s] for _, s in pairs]).unsqueeze(2)
    if future:
        ends = {m: seen.ends(m) for pair in pairs for m in pair}
        apart_GB = torch.stack([(ends[t] - ends[s]).abs() for t, s in pairs])
        seen_GBTU = seen_GBTU & (number_U <= number_T1 + apart_GB[:, :, None, None])
    return Sight.of(seen_GBTU.flatten(0, 1), dtype)


_RELEASED = "lav"

_RELEASED_LAYER = {
    "asking": "layer_norms.0.",
    "query_key_value": "self_attn.in_proj_",
    "answer": "self_attn.out_proj.",
    "feeding": "layer_norms.1.",
    "inner": "fc1.",
    "outer": "fc2.",
}

_RELEASED_LAST = {"inner": "proj1", "outer": "proj2", "classifier": "out_layer"}


def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the released MulT by our names and in our shapes.

    It fits a model over the streams (text, audio, visual), in this order. Gradients are renamed
    alike.

    Args:
        state: The state dict of yaohungt/Multimodal-Transformer's `MULTModel`.

    Raises:
        KeyError: A tensor is missing, or has a name that the released model does not have.
    """
    left = {name for name in state if not name.endswith((".version", "._float_tensor"))}

    def one(name: str) -> Tensor:
        left.discard(name)
        return state[name]

    def beside(nets: Sequence[str], name: str) -> Tensor:
        """Vectors as rows, matrices transposed: [G, 1, N] or [G, in, out]."""
        found = torch.stack([one(f"trans_{net}.{name}") for net in nets])
        return found.unsqueeze(1) if found.ndim == 2 else found.mT

    ours = {f"projections.{m}.weight": one(f"proj_{s}.weight") for m, s in enumerate(_RELEASED)}
    for new, old in _RELEASED_LAST.items():
        ours |= {f"{new}.{kind}": one(f"{old}.{kind}") for kind in ("weight", "bias")}
    crossing = [f"{t}_with_{s}" for t in _RELEASED for s in _RELEASED if s != t]
    for ours_name, nets in (("crossing", crossing), ("memory", [f"{s}_mem" for s in _RELEASED])):
        layers = {
            name.split(".")[2] for name in state if name.startswith(f"trans_{nets[0]}.layers")
        }
        for kind in ("weight", "bias"):
            ours[f"{ours_name}.norm.{kind}"] = beside(nets, f"layer_norm.{kind}")
            ours |= {
                f"{ours_name}.layers.{layer}.{new}.{kind}": beside(
                    nets, f"layers.{layer}.{old}{kind}"
                )
                for layer in layers
                for new, old in _RELEASED_LAYER.items()
            }
    if left:
        raise KeyError(f"{min(left)!r} is no tensor of the released MulT")
    return ours
