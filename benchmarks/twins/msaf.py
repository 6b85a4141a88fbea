"""The MSAF module as released: blocks by reshaping, one linear layer for each, full-size products.

Block dropout multiplies the maps by their mask, and again with the attention; the blocks are summed
at full size before the mean.

Source: L. Su, C. Hu, G. Li, D. Cao, "MSAF: Multimodal Split Attention Fusion", arXiv 2012.07175.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.models.msaf import Msaf as OurMsaf
from training.models.msaf import MsafSettings, from_reference
from twins import Pair, Side


class Block(nn.Module):
    """Attention over the blocks of all maps."""

    def __init__(
        self, channels: Sequence[int], width: int, reduction: int, dropout: float, floor: float
    ) -> None:
        super().__init__()
        self.width, self.dropout, self.floor = width, dropout, floor
        self.counts = [math.ceil(each / width) for each in channels]
        inner = width // reduction
        self.joint_features = nn.Sequential(
            nn.Linear(width, inner), nn.BatchNorm1d(inner), nn.ReLU(inplace=True)
        )
        self.dense_group = nn.ModuleList(nn.Linear(inner, width) for _ in range(sum(self.counts)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C, ...], weighted."""
        blocks = [
            torch.reshape(x, (len(x), count, self.width, *x.shape[2:]))
            for x, count in zip(maps, self.counts, strict=True)
        ]
        masks: list[Tensor] | None = None
        if self.dropout > 0 and self.training:
            masks = self.masks(blocks)
            blocks = [x * mask for x, mask in zip(blocks, masks, strict=True)]
        sums = [x.sum(1) for x in blocks]
        means = [functional.adaptive_avg_pool1d(x.view(*x.shape[:2], -1), 1) for x in sums]
        joint = self.joint_features(torch.stack(means).sum(0).squeeze(-1))
        attention = torch.stack([layer(joint) for layer in self.dense_group]).softmax(0)
        attention = self.floor + attention.permute(1, 0, 2) * (1 - self.floor)
        weights = [
            each.reshape(*x.shape[:3], *[1] * (x.dim() - 3))
            for each, x in zip(torch.split(attention, self.counts, 1), blocks, strict=True)
        ]
        if masks is not None:
            weighted = [x * m * w for x, m, w in zip(blocks, masks, weights, strict=True)]
        else:
            weighted = [x * w for x, w in zip(blocks, weights, strict=True)]
        return [x.reshape(whole.shape) for x, whole in zip(weighted, maps, strict=True)]

    def masks(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """0, or 1 / (1 - p), for each clip and block."""
        draw = torch.distributions.Binomial(probs=torch.tensor(1 - self.dropout))
        drawn = draw.sample(torch.Size([len(blocks[0]), sum(self.counts)])) / (1 - self.dropout)
        parts = torch.split(drawn.to(blocks[0].device), self.counts, 1)
        return [
            part.reshape(*x.shape[:2], *[1] * (x.dim() - 2))
            for part, x in zip(parts, blocks, strict=True)
        ]


class Msaf(nn.Module):
    """One block module for each piece of time."""

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        *,
        reduction: int = 4,
        dropout: float = 0.0,
        floor: float = 0.0,
        pieces: int = 1,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(channels, width, reduction, dropout, floor) for _ in range(pieces)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps [B, C, ...], weighted."""
        if len(self.blocks) == 1:
            whole: list[Tensor] = self.blocks[0](maps)
            return whole
        cut = [list(torch.split(x, x.shape[2] // len(self.blocks), 2)) for x in maps]
        for pieces in cut:
            if len(pieces) > len(self.blocks):
                pieces[-2:] = [torch.cat(pieces[-2:], 2)]
        done = [block(pieces) for block, *pieces in zip(self.blocks, *cut, strict=True)]
        return [torch.cat(each, 2) for each in zip(*done, strict=True)]


def ravdess(
    clips: int, steps: int, *, dropout: bool, reference: bool = True, device: str = "cpu"
) -> Pair:
    """Both sides where the RAVDESS network fuses first: video [1024, T, 14, 14], audio [32, 52 T].

    Args:
        clips: B.
        steps: T; 4 in the network.
        dropout: As published, or none at all.
        reference: Ours in the released form, which drops twice; else in the fixed form.
        device: Where both run.
    """
    torch.manual_seed(0)
    share = 0.2 if dropout else 0.0
    twin = Msaf((1024, 32), 16, dropout=share).train()
    settings = MsafSettings(block_width=16, block_dropout=share, reference=reference)
    ours = OurMsaf((1024, 32), settings).train()
    ours.load_state_dict(from_reference(twin.state_dict()))
    shapes = ((clips, 1024, steps, 14, 14), (clips, 32, 52 * steps))
    # In the network the maps come from layers that learn.
    maps = [torch.randn(shape).to(device).requires_grad_() for shape in shapes]
    ours, twin = ours.to(device), twin.to(device)
    return Pair(Side(ours, lambda: ours(maps)), Side(twin, lambda: twin(maps)))
