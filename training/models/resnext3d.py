"""3D ResNeXt: a residual network over pictures and time, with grouped convolutions.

Source: K. Hara, H. Kataoka, Y. Satoh, "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs
and ImageNet?", CVPR 2018, arXiv 1711.09577: ResNeXt-50, shortcuts of type B, cardinality 32.
Layers are named as in the weights that its authors published.

Shapes: B clips, N pictures, S pixels of a side, C channels, K outputs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.batch import FusionBatch
from training.models.blocks import check_shares
from training.models.pictures import Pictures

BLOCKS = (3, 4, 6, 3)
WIDE = 16
"""Channels of a group whose gradient is fast on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNext3dSettings:
    """Settings of a 3D ResNeXt-50.

    Attributes:
        frames: N.
        width: Channels of the first convolution; layer 4 has 32 times as many.
        cardinality: Groups of the grouped convolutions.
        flip: In training, the probability that a clip is mirrored, all its pictures alike.
    """

    frames: int = 30
    width: int = 64
    cardinality: int = 32
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        check_shares(flip=self.flip)
        if self.width < 1 or self.cardinality < 1 or 2 * self.width % self.cardinality:
            raise ValueError(
                f"width is {self.width} and cardinality is {self.cardinality}; the cardinality "
                f"must divide twice the width"
            )


class ResNext3d(nn.Module):
    """Scores of a clip's pictures; a clip without pictures scores 0.

    A network that fuses takes it in parts: `early`, `late`, `scores`.

    Args:
        streams: One name, of pixels; see `Pictures`.
        widths: Dimensions by stream.
        outputs: K.
        settings: Sizes.
    """

    def __init__(
        self,
        streams: Sequence[str],
        widths: Mapping[str, int],
        outputs: int,
        settings: ResNext3dSettings,
    ) -> None:
        super().__init__()
        (stream,) = streams
        self.settings = settings
        self.pictures = Pictures(stream, widths[stream], settings.frames)
        width = settings.width
        self.conv1 = nn.Conv3d(3, width, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.channels = [4 * width * 2**number for number in range(4)]
        before = [width, *self.channels[:3]]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _layer(before[n], self.channels[n], BLOCKS[n], 1 if n == 0 else 2, settings.cardinality)
            for n in range(4)
        )
        self.fc = nn.Linear(self.channels[3], outputs)
        for part in self.modules():
            if isinstance(part, nn.Conv3d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        x, there_B = self.see(batch)
        return self.scores(self.late(self.early(x))) * there_B.unsqueeze(1)

    def see(self, batch: FusionBatch) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, N, S, S], in training some clips mirrored; and who has some, [B]."""
        x, there_B = self.pictures(batch)
        if self.training and self.settings.flip > 0.0:
            mirrored = torch.rand(len(x), 1, 1, 1, 1, device=x.device) < self.settings.flip
            x = torch.where(mirrored, x.flip(4), x)
        return x, there_B

    def early(self, x: Tensor) -> Tensor:
        """What layer 3 gives, [B, 16 width, N/8, S/16, S/16]."""
        x = self.bn1(self.conv1(x)).relu()
        x = nn.functional.max_pool3d(x, 3, stride=2, padding=1)
        shown: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return shown

    def late(self, x: Tensor) -> Tensor:
        """What layer 4 gives, [B, 32 width, N/16, S/32, S/32]."""
        shown: Tensor = self.layer4(x)
        return shown

    def scores(self, x: Tensor) -> Tensor:
        """Scores [B, K] of the mean over time and place."""
        scores: Tensor = self.fc(x.mean((2, 3, 4)))
        return scores


class Grouped(nn.Conv3d):
    """A convolution in groups; on a CPU narrow groups are computed some at a time.

    There torch 2.13 has no fast gradient for groups of less than 16 channels: that of 32 groups of
    4 took 36 times as long as that of 8 groups of 16, whose weights are 0 between the former groups
    and which compute the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N, S, S], each axis behind the channels divided by the stride."""
        channels = self.weight.shape[1]
        together = math.gcd(self.groups, -(-WIDE // channels))
        if together == 1 or x.device.type != "cpu":
            return super().forward(x)
        count, size = self.groups // together, self.weight.shape[2:]
        own = self.weight.view(count, together, -1, 1, channels, *size)
        apart = torch.eye(together, dtype=own.dtype).view(1, together, 1, together, 1, 1, 1, 1)
        weight = (own * apart).reshape(len(self.weight), together * channels, *size)
        return nn.functional.conv3d(
            x, weight, self.bias, self.stride, self.padding, self.dilation, count
        )


class Bottleneck(nn.Module):
    """Narrow, convolve in groups, widen; added to the input, or to its projection."""

    def __init__(self, before: int, channels: int, stride: int, groups: int) -> None:
        super().__init__()
        middle = channels // 2
        self.conv1 = nn.Conv3d(before, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(middle)
        self.conv2 = Grouped(middle, middle, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm3d(middle)
        self.conv3 = nn.Conv3d(middle, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or before != channels:
            self.downsample = nn.Sequential(
                nn.Conv3d(before, channels, 1, stride=stride, bias=False),
                nn.BatchNorm3d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N, S, S], each axis behind the channels divided by the stride."""
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        added: Tensor = self.bn3(self.conv3(out)) + self.downsample(x)
        return added.relu()


def _layer(before: int, channels: int, blocks: int, stride: int, groups: int) -> nn.Sequential:
    rest = [Bottleneck(channels, channels, 1, groups) for _ in range(blocks - 1)]
    return nn.Sequential(Bottleneck(before, channels, stride, groups), *rest)
