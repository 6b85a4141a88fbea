"""Figures of a page: small SVG with text as text, the same bytes for the same numbers.

Colours are those of Okabe and Ito, which colour-blind people can tell apart; parts of one bar have
hatches beside them, for paper. What is drawn in ink takes the colour of the page's text, so that
figures are readable in light and dark.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pipelines.pages import printable, units

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), "Color Universal Design".
BLUE, ORANGE, GREEN = "#0072b2", "#e69f00", "#009e73"
RED, SKY, PURPLE, YELLOW = "#d55e00", "#56b4e9", "#cc79a7", "#f0e442"
GREY = "#8c8c8c"
GRID = "#8c8c8c66"
PALETTE = (BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW, GREY)
DASHES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (5, 6)))
HATCHES = ("", "///", "\\\\\\", "xxx", "---", "|||", "+++", "//")  # lines alone: dots are large

# What matplotlib writes, and what does in its place inside a page.
_TIDY = (
    (r"<defs>\s*<style.*?</style>\s*</defs>\s*", ""),  # rules that would hold for the whole page
    (r" font-family: [^;\"]*;", ""),  # the page's own font
    (r' transform="rotate\(-0 [^"]*\)"', ""),
    (r"xlink:href=", "href="),
    (r' xmlns:xlink="[^"]*"', ""),
    (r" ?\n", "\n"),
    (r"\n +<", "\n<"),
)

# Stand-ins that become the page's own colours; no figure draws with them.
_INK, _FAINT = "#010203", "#040506"
_WIDTH_IN = 4.5
_FEW = 50  # points that may be large
_LONGEST = 28  # letters of a bar's name
_LEGEND = 60  # letters in a row


def bars(
    name: str,
    title: str,
    unit: str,
    values: Mapping[str, float],
    *,
    inner: Mapping[str, float] | None = None,
    legend: tuple[str, str] = ("", ""),
    notes: Mapping[str, str] | None = None,
) -> "Markup":
    """Lying bars, one for each name, the first on top.

    Args:
        name: Unique on the page, letters and dashes: the prefix of all ids in the figure.
        title: What it shows, for those who cannot see it.
        unit: What the axis counts, with its unit.
        values: Length by name.
        inner: A thinner bar inside each.
        legend: Of the outer and of the inner bars.
        notes: Text at the end of a bar.
    """
    with _drawing(name, len(values) + (inner is not None)) as (figure, axes):
        places = range(len(values))
        axes.barh(places, list(values.values()), height=0.72, color=SKY, label=legend[0])
        if inner is not None:
            lengths = [inner.get(each, 0.0) for each in values]
            axes.barh(places, lengths, height=0.3, color=BLUE, label=legend[1])
            _legend(figure, axes)
        _named(axes, list(values), unit)
        if all(isinstance(value, int) for value in values.values()):
            _whole_ticks(axes.xaxis)
        _ends(axes, list(values.values()), [(notes or {}).get(each, "") for each in values])
        return _svg(figure, name, title)


def stacks(
    name: str,
    title: str,
    unit: str,
    parts: Mapping[str, Sequence[int]],
    *,
    names: Sequence[str],
    colours: Sequence[str] = PALETTE,
) -> "Markup":
    """Lying bars of several parts, the first on top; `name`, `title` and `unit` as for `bars`.

    `parts` has counts by part, one for each of `names`, and `colours` one for each part.
    """
    with _drawing(name, len(names) + 1) as (figure, axes):
        begin = [0] * len(names)
        for number, (part, counts) in enumerate(parts.items()):
            axes.barh(
                range(len(names)),
                counts,
                left=begin,
                height=0.66,
                label=part,
                color=colours[number],
                hatch=HATCHES[number],
                edgecolor=_INK,
                linewidth=0.4,
            )
            begin = [a + b for a, b in zip(begin, counts, strict=True)]
        _legend(figure, axes)
        _named(axes, names, unit)
        _whole_ticks(axes.xaxis)
        _ends(axes, begin, [units.amount(each) for each in begin])
        return _svg(figure, name, title)


def histogram(
    name: str, title: str, unit: str, edges: Sequence[float], counts: Sequence[int], *, log: bool
) -> "Markup":
    """How many clips lie between two edges; `name`, `title` and `unit` as for `bars`.

    `edges` rise and are one more than `counts`; `log` makes their axis logarithmic.
    """
    with _drawing(name, 6) as (figure, axes):
        if log:
            axes.set_xscale("log")
        widths = [high - low for low, high in pairwise(edges)]
        axes.bar(edges[:-1], counts, widths, align="edge", color=SKY, edgecolor=_INK, linewidth=0.4)
        axes.set_xlabel(unit)
        axes.set_ylabel("clips")
        axes.grid(visible=True, axis="y")
        _plain_ticks(axes.xaxis, log=log)
        _whole_ticks(axes.yaxis)
        return _svg(figure, name, title)


def ranges(
    name: str, title: str, unit: str, spreads: Mapping[str, tuple[float, float, float, float]]
) -> "Markup":
    """For each name a line from least to most, thick up to 95 %, with a dot at the median.

    `name`, `title` and `unit` are as for `bars`; `spreads` has minimum, median, 95th percentile and
    maximum by name, all above 0.
    """
    with _drawing(name, len(spreads)) as (figure, axes):
        values = [value for spread in spreads.values() for value in spread]
        log = max(values) > 20 * min(values)
        if log:
            axes.set_xscale("log")
        for place, (low, middle, most, high) in enumerate(spreads.values()):
            axes.plot([low, high], [place, place], color=_INK, linewidth=1)
            axes.plot([low, most], [place, place], color=SKY, linewidth=6, solid_capstyle="butt")
            axes.plot([middle], [place], "o", color=BLUE, markersize=6)
        if not log:
            axes.set_xlim(0, 1.05 * max(values))
        _named(axes, list(spreads), unit)
        _plain_ticks(axes.xaxis, log=log)
        return _svg(figure, name, title)


def curves(
    name: str,
    title: str,
    unit: str,
    series: Mapping[str, Sequence[float]],
    *,
    best: int | None = None,
    marks: Sequence[int] = (),
    log: bool = False,
) -> "Markup":
    """Lines over epochs, told apart by colour and by dashes.

    Args:
        name: As for `bars`.
        title: As there.
        unit: What the axis of values shows, with its unit.
        series: Values by epoch, the first of epoch 1, by name; NaN leaves a gap.
        best: An epoch with a line through it, from 0.
        marks: Epochs before which there is a mark: the run was resumed.
        log: Makes the axis of values logarithmic.
    """
    with _drawing(name, 9) as (figure, axes):
        if log:
            axes.set_yscale("log")
        for number, (label, values) in enumerate(series.items()):
            axes.plot(
                range(1, len(values) + 1),
                values,
                label=label,
                color=PALETTE[number % len(PALETTE)],
                linestyle=DASHES[number % len(DASHES)],
                marker="o" if len(values) < 3 else "",
                linewidth=1.6,
            )
        for number, mark in enumerate(marks):
            axes.axvline(
                mark + 0.5, color=RED, linestyle=":", label="" if number else "resumed here"
            )
        if best is not None:
            axes.axvline(best + 1, color=GREY, linewidth=1, label="best epoch")
        _legend(figure, axes)
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.grid(visible=True)
        _whole_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis, log=log)
        return _svg(figure, name, title)


def scatter(
    name: str, title: str, across: str, down: str, points: Sequence[tuple[float, float]]
) -> "Markup":
    """Points on equal axes with the line on which both are equal.

    `name` and `title` are as for `bars`; `across` and `down` name the axes with their units, and
    `points` has both values of each.
    """
    with _drawing(name, 12) as (figure, axes):
        x, y = zip(*points, strict=True)
        low, high = min(*x, *y), max(*x, *y)
        room = 0.05 * (high - low or 1.0)
        ends = (low - room, high + room)
        axes.plot(ends, ends, color=GREY, linewidth=1)
        axes.scatter(x, y, s=14 if len(points) > _FEW else 40, color=BLUE, alpha=0.6, linewidths=0)
        axes.set(xlim=ends, ylim=ends, xlabel=across, ylabel=down)
        axes.grid(visible=True)
        for axis in (axes.xaxis, axes.yaxis):
            _plain_ticks(axis, log=False)
        return _svg(figure, name, title)


def whiskers(
    name: str, title: str, unit: str, values: Mapping[str, tuple[float, float, float]]
) -> "Markup":
    """For each name a value with its interval, the first on top.

    `name`, `title` and `unit` are as for `bars`; `values` has value, low and high end by name, the
    ends NaN where there is no interval.
    """
    with _drawing(name, len(values)) as (figure, axes):
        for place, (value, low, high) in enumerate(values.values()):
            axes.plot([low, high], [place, place], color=SKY, linewidth=5, solid_capstyle="butt")
            axes.plot([value], [place], "o", color=BLUE, markersize=6)
        _named(axes, list(values), unit)
        return _svg(figure, name, title)


@contextmanager
def _drawing(name: str, rows: int) -> Iterator[tuple["Figure", "Axes"]]:
    """An empty figure of so many rows, under settings that no file of the user's can change."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(), warnings.catch_warnings():
        # Browsers have letters that the font used for measuring has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        mpl.rcdefaults()
        settings: Any = {**_SETTINGS, "svg.hashsalt": name}  # matplotlib lists 300 literals
        mpl.rcParams.update(settings)
        figure = Figure(figsize=(_WIDTH_IN, 0.85 + 0.27 * max(rows, 2)), layout="constrained")
        yield figure, figure.add_subplot()


_SETTINGS: Mapping[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _FAINT,
    "axes.facecolor": "none",
    "axes.labelcolor": _INK,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "hatch.color": _INK,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": _INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "xtick.color": _INK,
    "xtick.labelsize": 8.5,
    "ytick.color": _INK,
    "ytick.labelsize": 8.5,
}


def _named(axes: "Axes", names: Sequence[str], unit: str) -> None:
    axes.set_yticks(range(len(names)), [_cut(name) for name in names])
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit)
    axes.grid(visible=True, axis="x")
    axes.spines["left"].set_visible(False)
    if axes.get_xscale() == "linear":
        _plain_ticks(axes.xaxis, log=False)


def _cut(name: str) -> str:
    """A long name without its middle: ends tell names apart."""
    if len(name) <= _LONGEST:
        return printable(name)
    return printable(f"{name[: _LONGEST // 2]}\u2026{name[1 - _LONGEST // 2 :]}")


def _ends(axes: "Axes", lengths: Sequence[float], notes: Sequence[str]) -> None:
    """Text behind the end of each bar, with room for the longest."""
    longest = max([*lengths, 1e-12])
    letters = max((len(note) for note in notes), default=0)
    axes.set_xlim(0, longest * (1.04 + 0.022 * letters))
    for place, (length, note) in enumerate(zip(lengths, notes, strict=True)):
        axes.text(length + 0.01 * longest, place, note, va="center", fontsize=8)


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    # As many beside each other as there is room for, each as wide as the longest.
    most = max(1, _LEGEND // (4 + max(map(len, labels))))
    figure.legend(handles, labels, loc="outside upper left", ncols=most, handlelength=1.4)


def _plain_ticks(axis: Any, *, log: bool) -> None:  # noqa: ANN401 - matplotlib's axes are not typed
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    steps = (1, 2, 5) if log and high < 300 * low else (1,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=12) if log else MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    """A tick's number, with a true minus."""
    return f"{value:,.10g}".replace("-", "\u2212")


def _whole_ticks(axis: Any) -> None:  # noqa: ANN401 - matplotlib's axes are not typed
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _svg(figure: "Figure", name: str, title: str) -> "Markup":
    """The figure as an element of a page."""
    from markupsafe import Markup, escape
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    text = io.StringIO()
    # None leaves each out: no date, no addresses of vocabularies.
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", metadata=nothing)
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(_INK, "currentColor").replace(_FAINT, GRID)
    for pattern, instead in _TIDY:
        drawn = re.sub(pattern, instead, drawn, flags=re.DOTALL)
    # Several figures share a page, and ids must be unique there.
    drawn = re.sub(r'(\bid="|url\(#|\bhref="#)', rf"\g<1>{name}-", drawn)
    label = f'<svg role="img" aria-label="{escape(printable(title))}" stroke-linejoin="round"'
    # Everything in it was escaped by matplotlib's own writer.
    return Markup(drawn.replace("<svg", label, 1))  # noqa: S704 - made of numbers and escaped names
