"""Fine-tuning: encoders of raw streams and a fusion model of their states, trained as one.

A clip's states are pooled to the recipe's time base as `featurizers.align.pool` pools by "overlap",
but here, behind the encoder, so that gradients reach it. Where every stream keeps its own steps,
the fusion model reads the sequences with their masks.

Shapes: B clips, N steps of the time base, S steps of states, D their width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from training.batch import Criterion, FusionBatch, Stream
from training.models.encoders import Encoder

# What float32 leaves of a second within a clip; see `featurizers.align`.
ROUNDING = 1e-4


class EndToEnd(nn.Module):
    """Encoders, a projection behind each that has a width of its own, and a fusion model.

    Args:
        encoders: By stream.
        fusion: Reads the states of these streams, and the other streams as they are.
    """

    def __init__(self, encoders: Mapping[str, Encoder], fusion: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.projections = nn.ModuleDict(
            {
                name: nn.Linear(encoder.width, encoder.settings.width)
                for name, encoder in encoders.items()
                if encoder.settings.width
            }
        )
        self.fusion = fusion

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        outputs: Tensor = self.fusion(self.encoded(batch))
        return outputs

    def trained(self) -> Iterator[tuple[str, Encoder]]:
        """The encoders by stream."""
        for name, encoder in self.encoders.items():
            if isinstance(encoder, Encoder):
                yield name, encoder

    def encoded(self, batch: FusionBatch) -> FusionBatch:
        """The batch that the fusion model reads: states in the place of raw streams."""
        streams = dict(batch.streams)
        for name, encoder in self.trained():
            if name not in streams:
                raise ValueError(f"the batch has no stream {name!r}, only {sorted(streams)}")
            raw = streams[name]
            states = Stream(*encoder(raw.values, raw.mask, raw.times))
            if name in self.projections:
                values = self.projections[name](states.values)
                states = replace(states, values=values * states.mask.unsqueeze(2))
            streams[name] = Stream(states.values, states.mask)
            if batch.base is not None:
                streams[name] = pooled(states, batch.base)
        return replace(batch, streams=streams, base=None)


class EndToEndByOwnLosses(EndToEnd):
    """The same with a fusion model that is trained by losses of its own."""

    def losses(self, batch: FusionBatch, criterion: Criterion) -> Mapping[str, Tensor]:
        """The fusion model's losses of each clip [B] by name."""
        losses: Mapping[str, Tensor] = self.fusion.losses(  # type: ignore[operator] # untyped
            self.encoded(batch), criterion
        )
        return losses


def pooled(states: Stream, base: Stream) -> Stream:
    """States [B, S, D] as values of a time base [B, N, D], as `featurizers.align.pool` pools.

    Args:
        states: With times.
        base: The spans, in seconds.
    """
    if states.times is None:
        raise ValueError("states without times cannot be pooled to a time base")
    weights_BNS = _overlaps(states.times, states.mask, base)
    total_BN1 = weights_BNS.sum(2, keepdim=True)
    mask_BN = total_BN1.squeeze(2) > 0
    shares_BNS = weights_BNS / torch.where(total_BN1 > 0, total_BN1, 1.0)
    return Stream(torch.bmm(shares_BNS.to(states.values.dtype), states.values), mask_BN)


def _overlaps(times_BS2: Tensor, mask_BS: Tensor, base: Stream) -> Tensor:
    """How much each span overlaps each step; points count where nothing else does. [B, N, S]."""
    begin, end = (each.unsqueeze(1) for each in times_BS2.unbind(2))
    low, high = (each.unsqueeze(2) for each in base.values.unbind(2))
    both_BNS = mask_BS.unsqueeze(1) & base.mask.unsqueeze(2)
    overlap_BNS = torch.minimum(high, end) - torch.maximum(low, begin)
    shorter_BNS = torch.minimum(high - low, end - begin)
    real_BNS = both_BNS & (overlap_BNS > ROUNDING * shorter_BNS)
    inside_BNS = (low == high) & (begin <= low) & (low < end)
    points_BNS = (begin == end) & (low <= begin) & ((begin < high) | (begin == low))
    alone_BN1 = ~real_BNS.any(2, keepdim=True)
    touched_BNS = both_BNS & alone_BN1 & (inside_BNS | points_BNS)
    return torch.where(real_BNS, overlap_BNS, touched_BNS.float())
