"""What one clip may cost, and what is refused for costing more."""

import math
from dataclasses import dataclass
from typing import Any

from featurizers.clip import BadClipError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one clip may cost.

    Attributes:
        seconds: Longest span; longer is "too_long".
        pixels: Largest picture; larger is "too_large".
        streams: Most streams in a file; more is "too_large".
        cpu_seconds: Processor time for a clip of which nothing came yet ...
        cpu_share: ... and for each second of it that came.
        memory_bytes: What the decoder may hold, as measured; with it a worker stays below 2 GiB.
    """

    seconds: float = 4 * 3600.0
    pixels: int = 8192 * 8192
    streams: int = 64
    cpu_seconds: float = 30.0
    cpu_share: float = 8.0
    memory_bytes: int = 1792 << 20


def check_span(start: float, end: float | None) -> None:
    """Refuse a span that cannot be: BadClipError "bad_span"."""
    told = [start] if end is None else [start, end]
    if not all(math.isfinite(time) for time in told) or start < 0 or told[-1] < start:
        raise BadClipError("bad_span", f"from {start} s to {end} s")


def check_streams(count: int, limits: Limits) -> None:
    """Refuse a file of too many streams: BadClipError "too_large"."""
    if count > limits.streams:
        raise BadClipError("too_large", f"{count} streams, at most {limits.streams} are taken")


def check_seconds(seconds: float, limits: Limits) -> None:
    """Refuse a span that is too long: BadClipError "too_long"."""
    if seconds > limits.seconds:
        raise BadClipError("too_long", f"{seconds:.0f} s, at most {limits.seconds:g} s are taken")


def check_pixels(picture: Any, limits: Limits) -> None:  # noqa: ANN401 - a codec or a frame
    """Refuse pictures that are too large: BadClipError "too_large"."""
    if picture.width * picture.height > limits.pixels:
        raise BadClipError(
            "too_large",
            f"pictures of {picture.width} x {picture.height}, at most {limits.pixels} pixels "
            "are taken",
        )
