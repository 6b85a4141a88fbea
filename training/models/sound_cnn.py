"""A small convolutional network over the cepstral coefficients of a clip.

Source: the sound branch of L. Su, C. Hu, G. Li, D. Cao, "MSAF: Multimodal Split Attention Fusion",
arXiv 2012.07175, for emotions on RAVDESS.

Shapes: B clips, N steps, D coefficients, C channels, K outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from training.batch import FusionBatch
from training.models.blocks import check_shares, find_stream
from training.models.fixed_length import first
from training.models.released import renamed

POOL = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundCnnSettings:
    """Settings of the network over sound.

    Attributes:
        steps: N: a clip's first valid steps; a shorter one is 0 after its end.
        width: Channels of the first two convolutions; the third has twice as many.
        dropout: After the pooling.
        head_dropout: Before the classifier.
    """

    steps: int = 212
    width: int = 32
    dropout: float = 0.2
    head_dropout: float = 0.4

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        check_shares(dropout=self.dropout, head_dropout=self.head_dropout)
        if self.width < 1:
            raise ValueError(f"width is {self.width}; it must be at least 1")
        if self.pooled < 1:
            raise ValueError(
                f"steps is {self.steps}; after two convolutions and pooling nothing would be "
                f"left: take at least {POOL + 4}"
            )

    @property
    def pooled(self) -> int:
        """Steps after the pooling: each of the two convolutions before it costs 2."""
        return (self.steps - 4) // POOL


class SoundCnn(nn.Module):
    """Scores of a clip's sound; a clip without sound scores 0.

    A network that fuses takes it in parts: `early`, `late`, `scores`.

    Args:
        streams: One name, of coefficients (13 MFCC in the paper).
        widths: Dimensions by stream.
        outputs: K.
        settings: Sizes.
    """

    def __init__(
        self,
        streams: Sequence[str],
        widths: Mapping[str, int],
        outputs: int,
        settings: SoundCnnSettings,
    ) -> None:
        super().__init__()
        (self.stream,) = streams
        self.width = widths[self.stream]
        self.settings = settings
        width = settings.width
        self.channels = [width, 2 * width]
        self.conv1 = nn.Conv1d(self.width, width, 7, padding=2)
        self.bn1 = nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, width, 7, padding=2)
        self.bn2 = nn.BatchNorm1d(width)
        self.conv3 = nn.Conv1d(width, 2 * width, 5, padding=2)
        self.bn3 = nn.BatchNorm1d(2 * width)
        self.fc = nn.Linear(2 * width * settings.pooled, outputs)

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        x, there_B = self.hear(batch)
        return self.scores(self.late(self.early(x))) * there_B.unsqueeze(1)

    def hear(self, batch: FusionBatch) -> tuple[Tensor, Tensor]:
        """Coefficients [B, D, N], and who has some, bool [B]."""
        stream = find_stream(batch, self.stream, self.width)
        return first(stream, self.settings.steps).mT, stream.mask.any(1)

    def early(self, x: Tensor) -> Tensor:
        """What the second convolution gives, before its pooling, [B, C, N - 4]."""
        x = self.bn1(self.conv1(x).relu())
        heard: Tensor = self.conv2(x).relu()
        return heard

    def late(self, x: Tensor) -> Tensor:
        """What the last normalisation gives, [B, 2C, (N - 4) / 8]."""
        x = self.bn2(nn.functional.max_pool1d(x, POOL))
        x = nn.functional.dropout(x, self.settings.dropout, self.training)
        heard: Tensor = self.bn3(self.conv3(x).relu())
        return heard

    def scores(self, x: Tensor) -> Tensor:
        """Scores [B, K] of all steps side by side."""
        x = nn.functional.dropout(x.flatten(1), self.settings.head_dropout, self.training)
        scores: Tensor = self.fc(x)
        return scores


_RELEASED = {
    **{f"{name}.": f"{name}." for name in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")},
    "fc1.": "fc.",
}


def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the released network over MFCC by our names: its layer `fc1` is `fc` here.

    Raises:
        KeyError: A tensor has a name that the released network does not have.
    """
    return renamed(state, _RELEASED, "network over MFCC")
