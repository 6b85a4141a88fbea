"""A picture is as bright as it is seen, however its pixels are kept."""

import numpy as np
import pytest

from featurizers.media import _luma
from featurizers.shrink import centred

pytestmark = pytest.mark.media
FORMATS = ["yuv420p", "yuvj420p", "yuv444p10le", "yuv420p12le", "rgb24", "gbrp", "gray", "nv12"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("level", [0, 40, 200, 255])
def test_a_level_of_gray_comes_back_from_every_form_of_pixels(name, level):
    import av

    picture = np.full((48, 64, 3), level, np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=name)
    found = _luma(frame, centred)
    assert (found.shape, found.dtype) == ((48, 48), np.uint8)
    assert np.abs(found.astype(int) - level).max() <= 2


def test_a_palette_is_looked_up():
    import av

    palette = np.zeros((256, 4), np.uint8)
    palette[7] = (255, 200, 200, 200)
    frame = av.VideoFrame.from_ndarray((np.full((48, 64), 7, np.uint8), palette), format="pal8")
    assert np.abs(_luma(frame, centred).astype(int) - 200).max() <= 2
