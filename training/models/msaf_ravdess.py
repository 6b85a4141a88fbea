"""Emotions from faces and voices: 3D ResNeXt and a network over sound, fused twice by MSAF.

Source: L. Su, C. Hu, G. Li, D. Cao, "MSAF: Multimodal Split Attention Fusion", arXiv 2012.07175,
the network for RAVDESS; the authors' code is anita-hu/MSAF.

The branches are the models `resnext3d` and `sound_cnn`, whole: `video` and `audio` can start from
weights that these were trained to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from training.batch import FusionBatch
from training.models import msaf
from training.models.msaf import Msaf, MsafSettings
from training.models.released import renamed
from training.models.resnext3d import ResNext3d, ResNext3dSettings
from training.models.sound_cnn import SoundCnn, SoundCnnSettings

WIDTHS = (16, 32)
"""Channels of a block, of each of the two modules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MsafRavdessSettings:
    """Settings of both branches and of the two modules.

    Attributes:
        frames: Pictures of a clip.
        video_width: As `width` of `resnext3d`.
        cardinality: As of `resnext3d`.
        flip: As of `resnext3d`.
        steps: As of `sound_cnn`.
        audio_width: As `width` of `sound_cnn`.
        dropout: As of `sound_cnn`.
        head_dropout: As of `sound_cnn`.
        block_dropout: As of MSAF.
        floor: As of MSAF.
    """

    frames: int = 30
    video_width: int = 64
    cardinality: int = 32
    flip: float = 0.5
    steps: int = 212
    audio_width: int = 32
    dropout: float = 0.2
    head_dropout: float = 0.4
    block_dropout: float = 0.2
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        _ = self.video, self.audio, self.modules

    @property
    def video(self) -> ResNext3dSettings:
        """Of the branch that sees."""
        return ResNext3dSettings(
            frames=self.frames,
            width=self.video_width,
            cardinality=self.cardinality,
            flip=self.flip,
        )

    @property
    def audio(self) -> SoundCnnSettings:
        """Of the branch that hears."""
        return SoundCnnSettings(
            steps=self.steps,
            width=self.audio_width,
            dropout=self.dropout,
            head_dropout=self.head_dropout,
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


class MsafRavdess(nn.Module):
    """Two branches; what one says of a channel weighs in the other; their scores are added.

    A clip that lacks one of the streams has the scores of the other alone; one that lacks both
    scores 0. What a branch is given in place of a missing stream is 0, which counts among the
    clips of a batch in its BatchNorm, so recipes leave such clips out of training.

    Args:
        streams: Pixels, then MFCC.
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
        settings: MsafRavdessSettings,
    ) -> None:
        super().__init__()
        video, audio = streams
        self.video = ResNext3d((video,), widths, outputs, settings.video)
        self.audio = SoundCnn((audio,), widths, outputs, settings.audio)
        channels = zip(self.video.channels[2:], self.audio.channels, strict=True)
        self.msaf1, self.msaf2 = (
            Msaf(own, each) for own, each in zip(channels, settings.modules, strict=True)
        )

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        seen, seen_B = self.video.see(batch)
        heard, heard_B = self.audio.hear(batch)
        there = [seen_B.unsqueeze(1), heard_B.unsqueeze(1)]
        seen, heard = self.msaf1([self.video.early(seen), self.audio.early(heard)], there)
        seen, heard = self.msaf2([self.video.late(seen), self.audio.late(heard)], there)
        return self.video.scores(seen) * there[0] + self.audio.scores(heard) * there[1]


# The release cuts each branch into three parts, of which each is numbered from 0.
_RELEASED = {
    "video_model_blocks.0.0.": "video.conv1.",
    "video_model_blocks.0.1.": "video.bn1.",
    **{f"video_model_blocks.0.{n + 2}.": f"video.layer{n}." for n in (1, 2, 3)},
    "video_model_blocks.1.0.": "video.layer4.",
    "video_model_blocks.2.2.": "video.fc.",
    "audio_model_blocks.0.0.": "audio.conv1.",
    "audio_model_blocks.0.2.": "audio.bn1.",
    "audio_model_blocks.0.3.": "audio.conv2.",
    "audio_model_blocks.1.1.": "audio.bn2.",
    "audio_model_blocks.1.3.": "audio.conv3.",
    "audio_model_blocks.1.5.": "audio.bn3.",
    "audio_model_blocks.2.2.": "audio.fc.",
}


def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the released network by our names.

    It leaves out a ReLU behind the first normalisation of the pictures, which is kept here; so it
    computes something else until it is trained a little.

    Raises:
        KeyError: A tensor is missing, or has a name that the released network does not have.
    """
    branches = {name: x for name, x in state.items() if not name.startswith("msaf.")}
    found = renamed(branches, _RELEASED, "network for RAVDESS")
    for n in (0, 1):
        module = msaf.from_reference(state, f"msaf.{n}.")
        found |= {f"msaf{n + 1}.{name}": x for name, x in module.items()}
    return found
