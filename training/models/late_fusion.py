"""Late fusion: each stream encoded by itself, then attention between the streams.

The strong baseline of G. Paraskevopoulos, E. Georgiou, A. Potamianos, "MMLatch: Bottom-Up Top-Down
Fusion for Multimodal Sentiment Analysis", ICASSP 2022, arXiv 2201.09828: MMLatch without its
feedback. With one stream it is that stream's encoder with the same head: the unimodal model to
compare with.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from training.batch import FusionBatch
from training.models.blocks import Encoders, FusionSettings, Head, Steps, take_streams
from training.models.lengths import by_length


class LateFusion(nn.Module):
    """Encoders of all streams, and a head on what they give.

    Args:
        streams: Names in order; with exactly three, the pair of the last two asks the first (text,
            in the paper).
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
        self.encoders = Encoders(self.widths, settings.hidden, settings.encoder_dropout)
        self.head = Head(len(self.streams), outputs, settings)

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        values, steps = take_streams(batch, self.streams, self.widths, self.settings)
        return by_length(values, steps, self.settings, self._outputs)

    def _outputs(self, values: Sequence[Tensor], steps: Steps) -> Tensor:
        outputs: Tensor = self.head(self.encoders(values, steps), steps)
        return outputs
