"""How the clocks of a file's sound and pictures lie to each other.

They are measured and told, and nothing is mended by them: every sample and picture keeps its own
presentation time. What is told is for whoever made the media: streams that lie apart were often
joined wrongly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

APART_S = 0.2  # what is told as a remark
MIN_STEADY = 0.9  # share of intervals that must be whole multiples of the rate's
STEADY_S, STEADY_SHARE = 0.0015, 0.05  # times are rounded to a thousandth in some forms
_FAR_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """What was measured of a file with sound and pictures; seconds, None where nobody can tell.

    Attributes:
        start_s: How much later the sound begins than the pictures.
        end_s: How much later the sound ends.
        sound_s: How far the sound's times ran ahead of its number of samples, gaps left out.
        pictures_s: How far the pictures' times ran ahead of their number at the stated rate,
            pictures that were dropped left out. Both of what was read for the clip, which may begin
            and end up to some seconds outside of its span.
    """

    start_s: float | None = None
    end_s: float | None = None
    sound_s: float | None = None
    pictures_s: float | None = None

    @property
    def known(self) -> int:
        """How many of the numbers are known."""
        return sum(value is not None for value in self.numbers().values())

    def numbers(self) -> dict[str, float | None]:
        """The numbers by name, to a tenth of a millisecond; what is no time of a file is None."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: _told(value) for name, value in found.items()}

    def remarks(self, least: float = APART_S) -> list[str]:
        """A sentence about each number that is as large as `least` seconds."""
        told = {
            "start_s": ("the sound begins {} s {} the pictures", "after", "before"),
            "end_s": ("the sound ends {} s {} the pictures", "after", "before"),
            "sound_s": ("the sound's clock ran {} s {} its samples", "ahead of", "behind"),
            "pictures_s": ("the pictures' clock ran {} s {} their number", "ahead of", "behind"),
        }
        return [
            text.format(f"{abs(value):.2f}", more if value > 0 else less)
            for name, value in self.numbers().items()
            if value is not None and abs(value) >= least
            for text, more, less in [told[name]]
        ]


def _told(seconds: float | None) -> float | None:
    return None if seconds is None or not abs(seconds) < _FAR_S else round(seconds, 4) + 0.0


def read_clocks(plain: Mapping[str, object]) -> Clocks:
    """What `Clocks.numbers` gave, from wherever it was kept; other names are passed over.

    Raises:
        ValueError: A number is none.
    """
    found: dict[str, float] = {}
    for each in fields(Clocks):
        value = plain.get(each.name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _FAR_S:
            raise ValueError(f"{each.name}: {value!r} is no time in seconds")
        found[each.name] = float(value)
    return Clocks(**found)


def drift_of_pictures(times: Sequence[float] | NDArray[np.float64], rate: float) -> float | None:
    """How far times ran ahead of the number of pictures.

    Each interval is held against the nearest whole number of pictures at the rate: one that was
    dropped is no drift.

    Args:
        times: Of the pictures, in seconds, in any order.
        rate: Of pictures a second, as the file states it.

    Returns:
        Seconds; None where the pictures do not keep to the rate, as at a varying one, or the rate
        is of something else, such as a clock's ticks.
    """
    if len(times) < 2 or rate <= 0:
        return None
    apart = np.diff(np.sort(np.asarray(times, dtype=np.float64)))
    count = np.maximum(1.0, np.round(apart * rate))
    ahead = apart - count / rate
    steady = np.abs(ahead) <= np.maximum(STEADY_S, STEADY_SHARE * apart)
    keeps = steady.mean() >= MIN_STEADY and np.median(count) == 1
    return float(ahead.sum()) if keeps else None
