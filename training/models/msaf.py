"""MSAF: the channels of all modalities in blocks, which share attention out among themselves.

Source: L. Su, C. Hu, G. Li, D. Cao, "MSAF: Multimodal Split Attention Fusion", arXiv 2012.07175;
the authors' code is anita-hu/MSAF.

Shapes: B clips, C channels of a modality, T steps (its axis 2), S its other axes, Q segments, W
width of a block, R = W / reduction, K blocks of all modalities together.

Each modality F_m [B, C_m, ...] is cut into ceil(C_m / W) blocks of W channels; where W does not
divide C_m, the last block ends in channels that are 0. g is the sum of all blocks of all
modalities, each averaged over all axes but its channels: so modalities of any rank mix.
z = ReLU(BatchNorm(W_z g + b_z)). Block k asks for W_k z + b_k; the softmax over the K blocks,
channel by channel, is its share; and the block is multiplied by floor + (1 - floor) * share. In
time, Q segments each have weights of their own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.models.pooled import Scale, pool


@dataclass(frozen=True, slots=True, kw_only=True)
class MsafSettings:
    """Settings of one MSAF module.

    Attributes:
        block_width: W, the channels of a block.
        reduction: By how much the joint vector is narrower than a block.
        floor: The least attention that a block gets, 0 to 1; with 1 the module changes nothing.
        block_dropout: In training, the share of blocks, by clip and segment, that are 0; the others
            are scaled up.
        segments: Q. A clip's segments have floor(n / Q) of its n steps each, and the last one the
            rest.
        reference: The released function instead of the fixed one: a clip is as long as its tensor,
            whatever the masks say, and the block dropout multiplies twice.
    """

    block_width: int = 16
    reduction: int = 4
    floor: float = 0.0
    block_dropout: float = 0.2
    segments: int = 1
    reference: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        for name, least in (("block_width", 1), ("reduction", 1), ("segments", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.reduction > self.block_width:
            raise ValueError(
                f"reduction is {self.reduction}, more than the block width {self.block_width}: "
                f"nothing would be left; take at most {self.block_width}"
            )
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"floor is {self.floor}; it must be at least 0 and at most 1")
        if not 0.0 <= self.block_dropout < 1.0:
            raise ValueError(
                f"block_dropout is {self.block_dropout}; it must be at least 0 and less than 1"
            )


@dataclass(frozen=True, slots=True)
class Part:
    """One modality on its way through the module.

    Attributes:
        means_BQC: Over the valid steps of each segment; 0 where there are none.
        there_BQ: 1, or 0 where there are none; its first axis is 1 where all clips are alike. None
            when nothing is masked and there is one segment.
        scale: Multiplies the modality by a factor [B, Q, C].
    """

    means_BQC: Tensor
    there_BQ: Tensor | None
    scale: Scale


class Msaf(nn.Module):
    """Scales the channels of each modality by what all of them say together.

    Args:
        channels: C of each modality.
        settings: Sizes, floor, dropout and segments.
    """

    def __init__(self, channels: Sequence[int], settings: MsafSettings) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(
                f"MSAF got channels {list(channels)}; give a number of at least 1 for each modality"
            )
        self.channels = tuple(channels)
        self.settings = settings
        width, segments = settings.block_width, settings.segments
        self.blocks = tuple(math.ceil(each / width) for each in channels)
        self.join = Linears(segments, width, width // settings.reduction)
        self.norm = ClipNorm(segments, width // settings.reduction)
        self.attention = Linears(segments, width // settings.reduction, sum(self.blocks) * width)

    def forward(
        self, values: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """The modalities, scaled; shapes and types are those of the input.

        Args:
            values: For each modality [B, C, ...]: no further axis, or any number. With more than
                one segment axis 2 is time; modalities may have different numbers of steps.
            masks: For each modality, True where it is valid: [B, T] for the steps of axis 2; [B, 1]
                for whole clips; None when all of it is valid. A clip ends with its last valid step.
                Steps that are not valid are scaled as well, and count for nothing. A modality
                without a valid step takes no part in the sum and in the softmax of its clip.

        Raises:
            ValueError: Values or masks have other shapes than the module was built for.
        """
        parts = self._parts(values, masks)
        sizes = self.blocks
        blocks_BQKW = torch.cat(
            [self._split(part.means_BQC, size) for part, size in zip(parts, sizes, strict=True)], 2
        )
        kept_BQK1 = self._kept(blocks_BQKW)
        if kept_BQK1 is not None:
            blocks_BQKW = blocks_BQKW * kept_BQK1
        attention_BQKW = self._attention(blocks_BQKW, _there(parts, sizes))
        if kept_BQK1 is not None:
            # The released code multiplies by the mask before the sum, and once more at the end.
            again = kept_BQK1.square() if self.settings.reference else kept_BQK1
            attention_BQKW = attention_BQKW * again
        factors = torch.split(attention_BQKW, list(sizes), 2)
        return [
            part.scale(factor_BQKW.flatten(2)[..., :channels])
            for part, factor_BQKW, channels in zip(parts, factors, self.channels, strict=True)
        ]

    def _attention(self, blocks_BQKW: Tensor, there_BQK: Tensor | None) -> Tensor:
        """What each block is multiplied by, without dropout, [B, Q, K, W]."""
        present = None if there_BQK is None else there_BQK.amax(2)
        narrow_BQR: Tensor = self.norm(self.join(blocks_BQKW.sum(2)), present).relu()
        scores_BQKW: Tensor = self.attention(narrow_BQR).view_as(blocks_BQKW)
        if there_BQK is None:
            shares_BQKW = scores_BQKW.softmax(2)
        else:
            there_BQK1 = there_BQK.unsqueeze(3)
            # Half of the lowest number: finite with a score added, and so is a softmax of these.
            unseen = torch.finfo(scores_BQKW.dtype).min / 2
            shares_BQKW = scores_BQKW.masked_fill(there_BQK1 == 0, unseen).softmax(2) * there_BQK1
        floor = self.settings.floor
        return floor + (1.0 - floor) * shares_BQKW

    def _kept(self, blocks_BQKW: Tensor) -> Tensor | None:
        """What block dropout multiplies by; None when there is none."""
        share = self.settings.block_dropout
        if not self.training or share == 0.0:
            return None
        return torch.empty_like(blocks_BQKW[..., :1]).bernoulli_(1.0 - share).div_(1.0 - share)

    def _split(self, means_BQC: Tensor, blocks: int) -> Tensor:
        width = self.settings.block_width
        missing = blocks * width - means_BQC.shape[2]
        padded = nn.functional.pad(means_BQC, (0, missing))
        return padded.view(*padded.shape[:2], blocks, width)

    def _parts(self, values: Sequence[Tensor], masks: Sequence[Tensor | None] | None) -> list[Part]:
        counts = (len(values), len(values) if masks is None else len(masks))
        if counts != (len(self.channels), len(self.channels)):
            raise ValueError(
                f"MSAF got {counts[0]} modalities and {counts[1]} masks; it was built for "
                f"{len(self.channels)}"
            )
        given = [None] * counts[0] if masks is None or self.settings.reference else masks
        parts = []
        for m, (x, mask) in enumerate(zip(values, given, strict=True)):
            self._check(m, x, mask)
            if len(x) != len(values[0]):
                raise ValueError(
                    f"MSAF got {len(values[0])} clips in modality 0, and {len(x)} in modality {m}"
                )
            parts.append(_part(x, mask, self.settings.segments))
        return parts

    def _check(self, m: int, x: Tensor, mask: Tensor | None) -> None:
        if x.dim() < 2 or x.shape[1] != self.channels[m]:
            raise ValueError(
                f"modality {m} is {list(x.shape)}; MSAF was built for {self.channels[m]} channels "
                f"in axis 1"
            )
        if self.settings.segments > 1 and x.dim() == 2:
            raise ValueError(
                f"modality {m} is {list(x.shape)} and has no time that could be cut into "
                f"{self.settings.segments} segments; set segments to 1"
            )
        if mask is None:
            return
        wanted = [(len(x), 1), (len(x), *x.shape[2:3])]
        if mask.dtype != torch.bool or tuple(mask.shape) not in wanted:
            raise ValueError(
                f"the mask of modality {m} is {list(mask.shape)} of {mask.dtype}; wanted bool, "
                f"{' or '.join(str(list(shape)) for shape in wanted)}"
            )


class Linears(nn.Module):
    """One linear layer for each segment, side by side; drawn as `torch.nn.Linear` is."""

    def __init__(self, segments: int, width: int, outputs: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(width)
        start = torch.empty(segments, width, outputs).uniform_(-bound, bound)
        self.weight = nn.Parameter(start)
        self.bias = nn.Parameter(torch.empty(segments, outputs).uniform_(-bound, bound))

    def forward(self, x_BQI: Tensor) -> Tensor:
        """Outputs [B, Q, O]."""
        outputs_QBO = torch.baddbmm(self.bias.unsqueeze(1), x_BQI.transpose(0, 1), self.weight)
        return outputs_QBO.transpose(0, 1)


class ClipNorm(nn.Module):
    """BatchNorm by segment, over the clips that have something in it.

    In training, values are normed by the mean and the variance of the batch, which also move the
    running ones. One clip has no variance: with fewer than two, a segment is normed by the running
    ones, as in evaluation, and leaves them as they are.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, segments: int, width: int, momentum: float = 0.1, epsilon: float = 1e-5
    ) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.weight = nn.Parameter(torch.ones(segments, width))
        self.bias = nn.Parameter(torch.zeros(segments, width))
        self.register_buffer("running_mean", torch.zeros(segments, width))
        self.register_buffer("running_var", torch.ones(segments, width))

    def forward(self, x_BQR: Tensor, there_BQ: Tensor | None = None) -> Tensor:
        """Normed values [B, Q, R].

        Args:
            x_BQR: One row for each clip and segment.
            there_BQ: 1 where it counts in the batch, else 0; None when all do.
        """
        mean_QR, var_QR = self.running_mean, self.running_var
        if self.training:
            mean_QR, var_QR = self._batch(x_BQR, there_BQ)
        return (x_BQR - mean_QR) * (torch.rsqrt(var_QR + self.epsilon) * self.weight) + self.bias

    def _batch(self, x_BQR: Tensor, there_BQ: Tensor | None) -> tuple[Tensor, Tensor]:
        weight_BQ1 = torch.ones_like(x_BQR[..., :1])
        if there_BQ is not None:
            weight_BQ1 = weight_BQ1 * there_BQ.unsqueeze(2)
        number_Q1 = weight_BQ1.sum(0)
        enough_Q1 = number_Q1 > 1
        weight_BQ1 = weight_BQ1 / number_Q1.clamp(min=1)
        mean_QR = (x_BQR * weight_BQ1).sum(0)
        var_QR = ((x_BQR - mean_QR).square() * weight_BQ1).sum(0)
        mean_QR = torch.where(enough_Q1, mean_QR, self.running_mean)
        with torch.no_grad():
            unbiased_QR = var_QR * number_Q1 / (number_Q1 - 1).clamp(min=1)
            unbiased_QR = torch.where(enough_Q1, unbiased_QR, self.running_var)
            self.running_mean.lerp_(mean_QR, self.momentum)
            self.running_var.lerp_(unbiased_QR, self.momentum)
        return mean_QR, torch.where(enough_Q1, var_QR, self.running_var)


def until(lengths_B: Tensor, steps: int) -> Tensor:
    """The mask [B, T] of clips whose valid steps are their first ones."""
    return torch.arange(steps, device=lengths_B.device) < lengths_B.unsqueeze(1)


def segment_of_steps(mask_BT: Tensor, segments: int) -> Tensor:
    """The segment of each step, [B, T], by the true length of each clip.

    A clip of n steps, counted up to its last valid one, has floor(n / Q) in each segment; the last
    one takes the rest, and all of a clip of fewer than Q steps.
    """
    step_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    length_B1 = (mask_BT * (step_T + 1)).amax(1, keepdim=True)
    size_B1 = length_B1 // segments
    segment_BT = (step_T // size_B1.clamp(min=1)).clamp(max=segments - 1)
    return torch.where(size_B1 > 0, segment_BT, segments - 1)


def _part(x: Tensor, mask: Tensor | None, segments: int) -> Part:
    if mask is None and segments > 1:
        mask = torch.ones(1, x.shape[2], dtype=torch.bool, device=x.device)
    if mask is None or x.dim() == 2 or (segments == 1 and mask.shape[1] == 1):
        return _whole(x, mask)
    mask_BT = mask.expand(-1, x.shape[2])
    segment_B1T = segment_of_steps(mask_BT, segments).unsqueeze(1)
    places_BQT = segment_B1T == torch.arange(segments, device=x.device).unsqueeze(1)
    valid_BQT = (places_BQT & mask_BT.unsqueeze(1)).to(x.dtype)
    number_BQ = valid_BQT.sum(2)
    means_BCT, scale = pool(x, 3)
    return Part(
        means_BQC=torch.matmul(valid_BQT / number_BQ.clamp(min=1).unsqueeze(2), means_BCT.mT),
        there_BQ=(number_BQ > 0).to(x.dtype),
        # Each step's factor is that of its segment: a product with one 1 in each column.
        scale=lambda factor_BQC: scale(
            torch.matmul(factor_BQC.mT, places_BQT.to(factor_BQC.dtype))
        ),
    )


def _whole(x: Tensor, mask_B1: Tensor | None) -> Part:
    """A modality of which nothing tells steps apart: one mean over all axes."""
    means_BC, scale = pool(x, 2)
    there_B1 = None if mask_B1 is None else mask_B1.to(x.dtype)
    return Part(
        means_BQC=(means_BC if there_B1 is None else means_BC * there_B1).unsqueeze(1),
        there_BQ=there_B1,
        scale=lambda factor_BQC: scale(factor_BQC.squeeze(1)),
    )


def _there(parts: Sequence[Part], blocks: Sequence[int]) -> Tensor | None:
    """1 for each block whose modality is there, [B, Q, K]; None when nothing is masked."""
    if all(part.there_BQ is None for part in parts):
        return None
    shape = parts[0].means_BQC.shape[:2]
    there = []
    for part, size in zip(parts, blocks, strict=True):
        one = part.means_BQC.new_ones(1, 1) if part.there_BQ is None else part.there_BQ
        there.append(one.unsqueeze(2).expand(*shape, size))
    return torch.cat(there, 2)


def from_reference(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The state of a released MSAF module by our names and in our shapes; gradients alike.

    Args:
        state: The state dict of anita-hu/MSAF's `MSAF`; other names are passed over.
        prefix: What its names begin with, for example "msaf.0.".

    Raises:
        KeyError: There is no such module, or a tensor of it is missing.
    """
    released = {
        name.removeprefix(f"{prefix}blocks."): tensor
        for name, tensor in state.items()
        if name.startswith(f"{prefix}blocks.")
    }
    segments = sorted({int(name.split(".")[0]) for name in released})
    if not segments:
        raise KeyError(
            f"no released MSAF module in {prefix!r}; its tensors are {prefix}blocks.0..."
        )
    numbers = sorted({int(name.split(".")[2]) for name in released if ".dense_group." in name})

    def each(name: str) -> list[Tensor]:
        return [released[f"{segment}.{name}"] for segment in segments]

    def beside(kind: str) -> list[Tensor]:
        return [
            torch.cat([released[f"{segment}.dense_group.{k}.{kind}"] for k in numbers])
            for segment in segments
        ]

    ours = {
        "join.weight": [weight.mT for weight in each("joint_features.0.weight")],
        "join.bias": each("joint_features.0.bias"),
        "norm.weight": each("joint_features.1.weight"),
        "norm.bias": each("joint_features.1.bias"),
        "attention.weight": [weight.mT for weight in beside("weight")],
        "attention.bias": beside("bias"),
    }
    # Gradients have the names of parameters alone.
    if "0.joint_features.1.running_mean" in released:
        ours["norm.running_mean"] = each("joint_features.1.running_mean")
        ours["norm.running_var"] = each("joint_features.1.running_var")
    return {name: torch.stack(tensors) for name, tensors in ours.items()}
