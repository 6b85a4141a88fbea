"""Pages for people: one HTML file each that needs nothing else.

A page works from a file, without a network, without scripts, in light and dark and on paper. Equal
values give equal bytes. Everything that is put into a page is escaped, whoever wrote it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pipelines.pages import units

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

Rows: TypeAlias = list[dict[str, object]]
"""Rows of a table by heading, all with the same headings; whole numbers are counts."""

_FOLDER = Path(__file__).parent
# Control characters and halves of surrogate pairs: no HTML may hold them, a file name may.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


# What is written in figures stands on the right, so that it can be compared; what follows in a line
# of its own is its interval.
_FIGURES = re.compile(
    r"(undefined|[<>+\u2212-]?[0-9][0-9.,]*(e[+\u2212-]?[0-9]+)?"
    r"( ?(%|ms|s|min|h|bytes|[kMGTP]B|\([^()]*\)))?)(\n.*)?"
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a page; the first heading names the rows. One without rows is not shown.

    A figure may have its interval in a second line of its text, which is shown small below it.
    """

    caption: str
    rows: Rows
    note: str = ""

    @property
    def headings(self) -> Sequence[str]:
        """The names of its columns."""
        return list(self.rows[0]) if self.rows else []

    @property
    def numeric(self) -> frozenset[str]:
        """The headings below which there are figures alone."""
        return frozenset(
            name
            for name in self.headings
            if any(row[name] != "" for row in self.rows)
            and all(_is_figure(row[name]) for row in self.rows)
        )


def _is_figure(value: object) -> bool:
    return value == "" or isinstance(value, int) or _FIGURES.fullmatch(str(value)) is not None


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing and what it shows."""

    svg: "Markup"
    caption: str


def render(template: str, **values: object) -> str:
    """A page from its template.

    Args:
        template: The name of a file beside this one, such as "ledger.html".
        values: What it shows; text is escaped, None is shown as nothing.

    Raises:
        jinja2.UndefinedError: The template names a value that is not given.
    """
    return _environment().get_template(template).render(**values)


def printable(text: str) -> str:
    """Text without characters that no page may hold; each becomes U+FFFD."""
    return _UNSHOWABLE.sub("\ufffd", text)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for number in (units.amount, units.signed, units.share, units.span, units.size):
        environment.filters[number.__name__] = number
    return environment


def _shown(value: object) -> object:
    """What stands for a value on a page."""
    from markupsafe import Markup

    if value is None:
        return ""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return value
