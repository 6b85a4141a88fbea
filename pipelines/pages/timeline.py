"""The page of a timeline: the film, below it the curve of the scores, and each utterance."""

import base64
import math
import mimetypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from pipelines.pages import lanes, plots, render
from pipelines.pages.units import amount, signed, span

EMBEDDED_BYTES = 4 << 20
"""Films up to this size are put into the page; others are looked for beside it."""

HIGH = 200  # of the curve's drawing; its width is 1000
CURVES = len(plots.PALETTE)


class Scored(Protocol):
    """An utterance and its scores; see `pipelines.timeline.Utterance`."""

    @property
    def start(self) -> float:
        """Seconds of the film."""

    @property
    def end(self) -> float:
        """Seconds of the film."""

    @property
    def text(self) -> str:
        """What is said."""

    @property
    def said(self) -> str:
        """What the model says."""

    @property
    def scores(self) -> Mapping[str, float]:
        """Numbers by name."""

    @property
    def answer(self) -> Mapping[str, Any]:
        """All that the model said."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One number over time: a path of steps, broken where there is no utterance."""

    name: str
    colour: str
    path: str


def page(
    film: Path,
    folder: Path,
    model: str,
    found: Sequence[Scored],
    captions: str,
    *,
    seconds: float = 0.0,
) -> str:
    """The page; it has the film itself when that is small, and else its place beside the page.

    Args:
        film: The media file.
        folder: Where the page will lie.
        model: Its name.
        found: The utterances in order of time, at least one.
        captions: WebVTT that is shown over the film.
        seconds: How long the film is; the axis ends there, or with an utterance that ends later.
    """
    seconds = max(seconds, *(each.end for each in found))
    low, high = _range(found)
    names = list(dict.fromkeys(name for each in found for name in each.scores))
    source = _source(film, folder)
    return render(
        "timeline.html",
        film=film.name,
        model=model,
        source=source,
        captions=_data("text/vtt", captions.encode()),
        low=signed(low),
        high=signed(high),
        zero=round(HIGH * high / (high - low), 2) if low < 0 < high else None,
        curves=[
            Curve(name, colour, _steps(found, name, seconds, low, high))
            for name, colour in zip(names[:CURVES], plots.PALETTE, strict=False)
        ],
        left_out=len(names[CURVES:]),
        ticks=lanes.ticks(seconds),
        tiles=[
            ("model", model),
            ("utterances", amount(len(found))),
            ("scored", amount(sum(bool(each.scores) for each in found))),
            ("until", span(seconds)),
        ],
        utterances=[
            {
                "from": f"{each.start:.2f}",
                "to": f"{each.end:.2f}",
                "link": "" if source.startswith("data:") else f"{source}#t={each.start:.2f}",
                "text": each.text,
                "said": _said(each),
                "missing": each.answer["missing"],
                "bad": not each.scores,
            }
            for each in found
        ],
    )


def _said(utterance: Scored) -> str:
    """What a model says, where it is a number with a true minus."""
    is_number = utterance.scores and not utterance.answer["scores"]
    return utterance.said.replace("-", "\u2212") if is_number else utterance.said


def _range(found: Sequence[Scored]) -> tuple[float, float]:
    """The axis of the curve: 0 to 1 for probabilities, else round numbers around all and 0."""
    if any(each.answer["scores"] for each in found):
        return 0.0, 1.0
    values = [value for each in found for value in each.scores.values()] or [0.0]
    most = max(map(abs, values)) or 1.0
    step = 10.0 ** math.floor(math.log10(most)) / 2
    low, high = (step * math.ceil(end / step) for end in (-min(0.0, *values), max(0.0, *values)))
    return 0.0 - low, high or (0.0 if low else step)


def _steps(found: Sequence[Scored], name: str, seconds: float, low: float, high: float) -> str:
    parts = []
    for each in found:
        if name in each.scores:
            y = HIGH * (high - each.scores[name]) / (high - low)
            x, until = (1000 * time / seconds for time in (each.start, each.end))
            parts.append(f"M{x:.2f},{y:.2f}H{until:.2f}")
    return "".join(parts)


def _source(film: Path, folder: Path) -> str:
    if film.stat().st_size <= EMBEDDED_BYTES:
        kind = mimetypes.guess_type(film.name)[0] or "video/mp4"
        return _data(kind, film.read_bytes())
    return quote(os.path.relpath(film.resolve(), folder.resolve()))


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
