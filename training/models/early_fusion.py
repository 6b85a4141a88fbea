"""Early fusion: all streams beside each other at each step, read by one encoder (EF-LSTM).

The encoder and the head are those of a single stream (`training.models.late_fusion`), so that only
the place of the fusion differs. A stream that is not valid at a step is 0 there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from training.batch import FusionBatch, Stream
from training.models.blocks import FusionSettings, take_streams
from training.models.late_fusion import LateFusion

_TOGETHER = "together"


class EarlyFusion(nn.Module):
    """One model of one stream, which is all streams concatenated on their common time base.

    Args:
        streams: Names in order.
        widths: Dimensions by stream.
        outputs: K.
        settings: Sizes and dropout.
    """

    def __init__(
        self,
        streams: Sequence[str],
        widths: Mapping[str, int],
        outputs: int,
        settings: FusionSettings,
    ) -> None:
        super().__init__()
        self.streams = tuple(streams)
        self.widths = tuple(widths[name] for name in streams)
        self.settings = settings
        self.model = LateFusion((_TOGETHER,), {_TOGETHER: sum(self.widths)}, outputs, settings)

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        values, steps = take_streams(batch, self.streams, self.widths, self.settings)
        together = Stream(torch.cat(values, 2), steps.valid.any(0))
        outputs: Tensor = self.model(replace(batch, streams={_TOGETHER: together}))
        return outputs
