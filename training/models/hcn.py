"""HCN: co-occurrences of joints, found by convolving over them as if they were channels.

Source: C. Li, Q. Zhong, D. Xie, S. Pu, "Co-occurrence Feature Learning from Skeleton Data for
Action Recognition and Detection with Hierarchical Aggregation", IJCAI 2018, arXiv 1804.06055.

Shapes: B clips, T steps, N steps that are looked at, P persons, J joints, A axes of a joint, C
channels, K outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.batch import FusionBatch
from training.models.blocks import check_shares, find_stream
from training.models.fixed_length import evenly
from training.models.released import renamed

SHRINK = 16  # steps, and the 32 channels beside them, are halved four times


@dataclass(frozen=True, slots=True, kw_only=True)
class HcnSettings:
    """Settings of HCN.

    Attributes:
        steps: N, a multiple of 16.
        joints: J of each person.
        axes: A: 3, or 2 in a picture.
        centre: The joint of the first person that all places are relative to, from 0: in NTU RGB+D
            the middle of the spine.
        width: Channels of the first convolution, a multiple of 32.
        dropout: After conv4, conv5, conv6 and fc7.
    """

    steps: int = 32
    joints: int = 25
    axes: int = 3
    centre: int = 1
    width: int = 64
    dropout: float = 0.4

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        check_shares(dropout=self.dropout)
        for name, unit in (("steps", SHRINK), ("width", 2 * SHRINK)):
            value = getattr(self, name)
            if value < unit or value % unit:
                raise ValueError(f"{name} is {value}; it must be a multiple of {unit}")
        if self.joints < 1 or self.axes not in (2, 3):
            raise ValueError(
                f"joints is {self.joints} and axes is {self.axes}; wanted at least 1, and 2 or 3"
            )
        if not 0 <= self.centre < self.joints:
            raise ValueError(f"centre is {self.centre}; wanted a joint, 0 to {self.joints - 1}")


@dataclass(frozen=True, slots=True)
class Bodies:
    """Skeletons of a batch.

    Attributes:
        places: [B * P, A, N, J], relative to the centre; 0 of a person that is never seen.
        seen: Bool [B, P]: who is seen at all.
    """

    places: Tensor
    seen: Tensor


class Hcn(nn.Module):
    """Scores of a clip's skeletons; a clip in which nobody is seen scores 0.

    Each person goes through the same layers up to conv6, and the greatest value of all persons that
    are seen goes on. A network that fuses takes it in parts: `early`, `late`, `scores`.

    Args:
        streams: One name, of joints as the featurizer `skeleton` gives them: of each person and
            joint its coordinates, and how far it is seen. They must not be normalised: recipes name
            the stream in `raw`.
        widths: Dimensions by stream.
        outputs: K.
        settings: Sizes.

    Raises:
        ValueError: The stream's width is not that of whole persons.
    """

    def __init__(
        self,
        streams: Sequence[str],
        widths: Mapping[str, int],
        outputs: int,
        settings: HcnSettings,
    ) -> None:
        super().__init__()
        (self.stream,) = streams
        self.width = widths[self.stream]
        self.settings = settings
        body = settings.joints * (settings.axes + 1)
        self.persons = self.width // body
        if not self.persons or self.width % body:
            raise ValueError(
                f"stream {self.stream!r} is {self.width} wide; wanted {body} for each person: "
                f"{settings.joints} joints of {settings.axes} coordinates, and how far each is "
                f"seen; take the featurizer 'skeleton', or set joints and axes"
            )
        width = settings.width
        self.places, self.motion = Path(settings), Path(settings)
        self.conv5 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.conv6 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.channels = [2 * width, 8 * width]
        left = (settings.steps // SHRINK) * (width // 2 // SHRINK)
        self.fc7 = nn.Linear(4 * width * left, 8 * width)
        self.fc8 = nn.Linear(8 * width, outputs)

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        bodies = self.see(batch)
        found = self.scores(self.late(self.early(bodies), bodies.seen))
        return found * bodies.seen.any(1, keepdim=True)

    def see(self, batch: FusionBatch) -> Bodies:
        """The skeletons at steps that lie evenly over each clip; see `fixed_length.evenly`."""
        chosen, stream = self.settings, find_stream(batch, self.stream, self.width)
        shape = (-1, chosen.steps, self.persons, chosen.joints, chosen.axes + 1)
        bodies_BNPJA = evenly(stream, chosen.steps).view(shape)
        seen_BP = (bodies_BNPJA[..., -1] > 0).any(3).any(1)
        places_BNPJA = bodies_BNPJA[..., :-1]
        centre = places_BNPJA[:, :, :1, chosen.centre : chosen.centre + 1]
        relative = (places_BNPJA - centre) * seen_BP[:, None, :, None, None]
        return Bodies(relative.permute(0, 2, 4, 1, 3).flatten(0, 1), seen_BP)

    def early(self, bodies: Bodies) -> list[Tensor]:
        """What conv5 and its pooling give, of each person: [B, 2C, N/8, C/16]."""
        x = bodies.places
        steps = x[:, :, 1:] - x[:, :, :-1]
        motion = nn.functional.interpolate(steps, x.shape[2:], mode="bilinear")
        x = self._end(self.conv5(torch.cat([self.places(x), self.motion(motion)], 1)))
        return list(x.view(*bodies.seen.shape, *x.shape[1:]).unbind(1))

    def late(self, persons: list[Tensor], seen_BP: Tensor) -> Tensor:
        """What fc7 gives of all persons, [B, 8C]."""
        x = self._end(self.conv6(torch.stack(persons, 1).flatten(0, 1)))
        x = x.reshape(*seen_BP.shape, -1)
        # Nothing behind a ReLU is less than 0, so who is not seen never wins.
        greatest = x.masked_fill(~seen_BP.unsqueeze(2), 0.0).amax(1)
        return self._dropped(self.fc7(greatest).relu())

    def scores(self, x: Tensor) -> Tensor:
        """Scores [B, K]."""
        scores: Tensor = self.fc8(x)
        return scores

    def _end(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(self._dropped(x.relu()), 2)

    def _dropped(self, x: Tensor) -> Tensor:
        """Dropout of whole channels, as everywhere in this network."""
        return _drop(x, self.settings.dropout, training=self.training)


class Path(nn.Module):
    """The first four convolutions, over places or over their motion."""

    def __init__(self, settings: HcnSettings) -> None:
        super().__init__()
        width = settings.width
        self.dropout = settings.dropout
        self.conv1 = nn.Conv2d(settings.axes, width, 1)
        self.conv2 = nn.Conv2d(width, width // 2, (3, 1), padding=(1, 0))
        self.conv3 = nn.Conv2d(settings.joints, width // 2, 3, padding=1)
        self.conv4 = nn.Conv2d(width // 2, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N/4, C/8] of [B, A, N, J]."""
        x = self.conv2(self.conv1(x).relu())
        # From here on joints are the channels, so that each convolution sees all of them.
        x = nn.functional.max_pool2d(self.conv3(x.permute(0, 3, 2, 1)), 2)
        x = _drop(self.conv4(x), self.dropout, training=self.training)
        return nn.functional.max_pool2d(x, 2)


def _drop(x: Tensor, share: float, *, training: bool) -> Tensor:
    if x.dim() == 2:
        return nn.functional.dropout(x, share, training)
    return nn.functional.dropout2d(x, share, training)


_RELEASED = {
    **{
        f"{layer}{mark}.{place}": f"{path}.{layer}."
        for path, mark in (("places", ""), ("motion", "m"))
        for layer, place in (("conv1", "0."), ("conv2", ""), ("conv3", "0."), ("conv4", "0."))
    },
    "conv5.0.": "conv5.",
    "conv6.0.": "conv6.",
    "fc7.0.": "fc7.",
    "fc8.": "fc8.",
}


def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of huguyuehuhu/HCN-pytorch's `HCN`, which MSAF's authors use, by our names.

    Its layers are as wide as ours where as many steps are looked at as half the width: 32 of 64.

    Raises:
        KeyError: A tensor has a name that the released network does not have.
    """
    return renamed(state, _RELEASED, "HCN")
