"""Tables of labels that come with a corpus."""

import csv
import io
from collections.abc import Collection, Iterator
from pathlib import Path

from pipelines.corpora.tree import text_of
from pipelines.experiment import InputError


def read_table(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with a heading, counted from 1, their cells without spaces around them.

    Raises:
        InputError: It is no CSV, a wanted column is not there, or a row has too few cells.
    """
    reader = csv.DictReader(io.StringIO(text_of(path), newline=""), strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        lacks = sorted(set(wanted) - set(names))
        if lacks:
            raise InputError(
                f"{path}: there is no column {lacks[0]!r}; there are {', '.join(names) or 'none'}"
            )
        for number, row in enumerate(reader, start=1):
            cells = {str(name).strip(): cell for name, cell in row.items() if name is not None}
            if any(cells.get(name) is None for name in wanted):
                raise InputError(f"{path}: row {number} has fewer cells than the heading")
            yield number, {name: (cell or "").strip() for name, cell in cells.items()}
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}") from None
