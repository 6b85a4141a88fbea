"""Actions from pictures and skeletons: I3D and HCN, fused twice by MSAF.

Source: L. Su, C. Hu, G. Li, D. Cao, "MSAF: Multimodal Split Attention Fusion", arXiv 2012.07175,
the network for NTU RGB+D; the authors' code is anita-hu/MSAF.

The branches are the models `i3d` and `hcn`, whole: `video` and `skeleton` can start from weights
that these were trained to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.batch import Criterion, FusionBatch
from training.models import hcn, i3d, msaf
from training.models.decision import Objective
from training.models.hcn import Hcn, HcnSettings
from training.models.i3d import I3d, I3dSettings
from training.models.msaf import Msaf, MsafSettings

WIDTHS = (64, 256)
"""Channels of a block, of each of the two modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MsafNtuSettings:
    """Settings of both branches and of the two modules.

    Attributes:
        frames: Pictures of a clip.
        video_width: As `width` of `i3d`.
        video_dropout: As `dropout` of `i3d`.
        steps: As of `hcn`; so are the joints, the axes and the centre.
        joints: See `steps`.
        axes: See `steps`.
        centre: See `steps`.
        skeleton_width: As `width` of `hcn`.
        skeleton_dropout: As `dropout` of `hcn`.
        block_dropout: As of MSAF.
        floor: As of MSAF.
        objective: What training makes less: the loss of the mean of the scores ("fused"), those of
            each branch's own scores ("branches", as released), or "both".
    """

    frames: int = 32
    video_width: float = 1.0
    video_dropout: float = 0.5
    steps: int = 32
    joints: int = 25
    axes: int = 3
    centre: int = 1
    skeleton_width: int = 64
    skeleton_dropout: float = 0.4
    block_dropout: float = 0.0
    floor: float = 0.5
    objective: Objective = "fused"

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        _ = self.video, self.skeleton, self.modules

    @property
    def video(self) -> I3dSettings:
        """Of the branch that sees pictures."""
        return I3dSettings(frames=self.frames, width=self.video_width, dropout=self.video_dropout)

    @property
    def skeleton(self) -> HcnSettings:
        """Of the branch that sees joints."""
        return HcnSettings(
            steps=self.steps,
            joints=self.joints,
            axes=self.axes,
            centre=self.centre,
            width=self.skeleton_width,
            dropout=self.skeleton_dropout,
        )

    @property
    def modules(self) -> list[MsafSettings]:
        """Of the two MSAF modules."""
        return [
            MsafSettings(
                block_width=width,
                reduction=4,
                floor=self.floor,
                block_dropout=self.block_dropout,
            )
            for width in WIDTHS
        ]


class MsafNtu(nn.Module):
    """Two branches; what one says of a channel weighs in the other; the mean of their scores.

    For the first module each person is a modality. A clip that lacks one of the streams has the
    scores of the other alone; one that lacks both scores 0. What I3D is given in place of missing
    pictures is 0, which counts among the clips of a batch in its BatchNorm, so recipes leave such
    clips out of training.

    Args:
        streams: Pixels, then joints.
        widths: Dimensions by stream.
        outputs: K.
        settings: Sizes.

    Raises:
        ValueError: Other than two streams, or one of a width that its branch does not take.
    """

    def __init__(
        self,
        streams: Sequence[str],
        widths: Mapping[str, int],
        outputs: int,
        settings: MsafNtuSettings,
    ) -> None:
        super().__init__()
        video, skeleton = self.streams = tuple(streams)
        self.objective = settings.objective
        self.video = I3d((video,), widths, outputs, settings.video)
        self.skeleton = Hcn((skeleton,), widths, outputs, settings.skeleton)
        persons = self.skeleton.persons
        first, second = settings.modules
        own, body = self.video.channels, self.skeleton.channels
        self.msaf1 = Msaf([own[0], *[body[0]] * persons], first)
        self.msaf2 = Msaf([own[1], body[1]], second)

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        return self._mean(*self._said(batch))

    def losses(self, batch: FusionBatch, criterion: Criterion) -> dict[str, Tensor]:
        """Losses of each clip [B]: "fused", and by stream; 0 where the clip lacks the stream."""
        said, there = self._said(batch)
        found: dict[str, Tensor] = {}
        if self.objective != "branches":
            found["fused"] = criterion(self._mean(said, there))
        if self.objective != "fused":
            for name, said_BK, there_B1 in zip(self.streams, said, there, strict=True):
                found[name] = criterion(said_BK) * there_B1.squeeze(1)
        return found

    def _said(self, batch: FusionBatch) -> tuple[list[Tensor], list[Tensor]]:
        """Each branch's scores [B, K]; and which clips have its stream, bool [B, 1]."""
        seen, seen_B = self.video.see(batch)
        bodies = self.skeleton.see(batch)
        there = [seen_B.unsqueeze(1), bodies.seen.any(1, keepdim=True)]
        seen, *persons = self.msaf1(
            [self.video.early(seen), *self.skeleton.early(bodies)],
            [there[0], *(seen_B.unsqueeze(1) for seen_B in bodies.seen.unbind(1))],
        )
        seen, moved = self.msaf2(
            [self.video.late(seen), self.skeleton.late(persons, bodies.seen)], there
        )
        return [self.video.scores(seen), self.skeleton.scores(moved)], there

    def _mean(self, said: list[Tensor], there: list[Tensor]) -> Tensor:
        scores = said[0] * there[0] + said[1] * there[1]
        mean: Tensor = scores / torch.cat(there, 1).sum(1, keepdim=True).clamp(min=1)
        return mean


def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the released network with I3D and HCN by our names.

    Raises:
        KeyError: A tensor is missing, or has a name that the released network does not have.
    """
    branches = {"visual.": ("video.", i3d), "skeleton.": ("skeleton.", hcn)}
    found: dict[str, Tensor] = {}
    for old, (new, branch) in branches.items():
        own = {n.removeprefix(old): x for n, x in state.items() if n.startswith(old)}
        found |= {f"{new}{name}": x for name, x in branch.from_reference(own).items()}
    for name in ("msaf1.", "msaf2."):
        found |= {f"{name}{own}": x for own, x in msaf.from_reference(state, name).items()}
    if odd := [name for name in state if not name.startswith((*branches, "msaf1.", "msaf2."))]:
        raise KeyError(f"{min(odd)!r} is no tensor of the released network for NTU RGB+D")
    return found
