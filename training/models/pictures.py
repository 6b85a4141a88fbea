"""Pictures for networks that convolve them: [B, 3, N, S, S] out of a stream of pixels.

Shapes: B clips, T steps, N pictures, S pixels of a side, D = S * S * channels.
"""

import math

import torch
from torch import Tensor, nn

from training.batch import FusionBatch
from training.models.blocks import find_stream
from training.models.fixed_length import evenly

# Of ImageNet's pictures, red, green and blue in 0..1: what published weights were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Pictures(nn.Module):
    """Pictures that lie evenly over each clip, normalised; see `fixed_length.evenly`.

    The stream holds pixels 0..255 as the featurizer `frames` gives them: rows from above, pixels
    from the left, and of a pixel red, green and blue, or grey alone. It must not be normalised
    already: recipes name it in `raw`. Grey is taken for all three colours.

    Args:
        stream: Its name.
        width: D.
        count: N.

    Raises:
        ValueError: The width is that of no square picture, or no picture is wanted.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stream: str, width: int, count: int) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"frames is {count}; a network wants 1 picture of a clip at least")
        self.stream, self.width, self.count = stream, width, count
        self.side, self.channels = _shape_of(stream, width)
        for name, values in (("mean", MEAN), ("std", STD)):
            of_pixels = 255 * torch.tensor(values).view(1, 3, 1, 1, 1)
            self.register_buffer(name, of_pixels, persistent=False)

    def forward(self, batch: FusionBatch) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, N, S, S], 0 where a clip has none; and which clips have some, bool [B].

        Raises:
            ValueError: The stream is not there, or has another width.
        """
        stream = find_stream(batch, self.stream, self.width)
        there_B = stream.mask.any(1)
        shape = (-1, self.count, self.side, self.side, self.channels)
        pixels_BNSSC = evenly(stream, self.count).view(shape)
        # Colours first in memory too: on a CPU convolutions are up to a tenth faster so.
        scaled = ((pixels_BNSSC.movedim(4, 1) - self.mean) / self.std).contiguous()
        return scaled.masked_fill(~there_B.view(-1, 1, 1, 1, 1), 0.0), there_B


def _shape_of(stream: str, width: int) -> tuple[int, int]:
    """Side and channels of the pictures in a stream. No width fits both grey and three colours."""
    for channels in (1, 3):
        side = math.isqrt(width // channels)
        if side * side * channels == width:
            return side, channels
    raise ValueError(
        f"stream {stream!r} is {width} wide; wanted the pixels of a square, side x side x 3 or "
        f"side x side: take the featurizer 'frames'"
    )
