"""Whole media of a table or a folder: the rows that were given, and what is made of each file."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from featurizers.clip import BadClipError, Fault
from featurizers.encoding import EncoderMemoryError
from featurizers.pretrained import WeightsError
from featurizers.store import StorageError, publish, store_at
from pipelines.executors import Executor, ItemFailedError, Need
from pipelines.experiment import Experiment, FailedError, InputError, load, parse, replaced
from pipelines.sources import RowDict, read_rows, roots_of, rows_in, stream_of
from pipelines.staging import inside
from pipelines.start import media_rows

LEADING = ("id", "media", "start", "end", "group", "transcript_file")


class FilmFailedError(ItemFailedError):
    """A film cannot be read now, which says nothing of it."""


class TooManyLostError(FailedError):
    """More films are bad than may be."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a worker made of a film.

    Attributes:
        name: The file in which that is kept, named by all that decides its content.
        content: Its bytes; None when it is there already.
        fault: What is wrong with the film, if nothing could be made of it.
    """

    name: str
    content: bytes | None = None
    fault: Fault | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A film that is bad, and why."""

    media: str
    fault: Fault
    message: str


class Film(Protocol):
    """An item of work on one media file."""

    @property
    def media(self) -> str:
        """Its path or URL."""


Item = TypeVar("Item", bound=Film)
Worker: TypeAlias = Callable[[frozenset[str]], Callable[[Item], Made]]
"""Makes the function that does the work, from the names of what is there already."""

Heard: TypeAlias = tuple[str, str]
"""Media, and which of their sounds, as `Clip.audio_stream`."""

Span: TypeAlias = tuple[float, float | None]
"""Start and end in seconds; None for the end of the file."""


@dataclass(slots=True)
class Kept:
    """Names of the files that were made of films, by the films' places, and those that are lost."""

    names: dict[int, str] = field(default_factory=dict)
    lost: dict[int, Lost] = field(default_factory=dict)


def load_source(source: Path, overrides: Sequence[str] = (), format_: str = "") -> Experiment:
    """The experiment of a file; of a folder or table of media one with the usual settings.

    Its dataset is runs/NAME in the current folder.

    Args:
        source: A file, folder or table.
        overrides: As in `load`.
        format_: Of which published corpus a folder is; else its media are cut into clips.

    Raises:
        InputError: As `load`.
    """
    if source.suffix.lower() in {".yaml", ".yml"}:
        if format_:
            raise InputError(f"{source}: a format is that of a folder; give it in source.format")
        return load(source, overrides)
    if not source.exists():
        raise InputError(f"{source}: there is no such table or folder")
    kind = "folder" if source.is_dir() else "table"
    how = {"format": format_} if format_ else {"label": "label", "segment": {}}
    plain = {
        "dataset": f"runs/{source.resolve().stem}",
        "source": {kind: str(source.resolve()), **how},
        "features": {"audio": {"featurizer": "logmel"}},
    }
    return parse(replaced(plain, overrides), Path.cwd(), str(source))


def given_rows(experiment: Experiment) -> list[RowDict]:
    """The rows of the table or folder that was given; media and transcripts by whole paths.

    Raises:
        InputError: There is no such table or folder, or a row is wrong.
    """
    given = experiment.given
    if experiment.source.folder:
        if not given.is_dir():
            raise InputError(f"{given}: there is no such folder")
        base, rows = given, media_rows(given)
    else:
        base, rows = given.parent, read_rows(given)
    roots = roots_of(experiment)
    return [_whole(given, base, roots, number, row) for number, row in enumerate(rows, start=1)]


def _whole(given: Path, base: Path, roots: Sequence[str], number: int, row: RowDict) -> RowDict:
    whole = {name: value for name, value in row.items() if value not in (None, "")}
    for needed in ("id", "media"):
        if needed not in whole:
            raise InputError(f"{given}: row {number}, column {needed}: is empty")
    for column in ("media", "transcript_file"):
        name = str(whole.get(column, ""))
        if name and "://" not in name:
            whole[column] = str((base / name).resolve())
    if not inside(whole["media"], roots):
        raise InputError(
            f"{given}: row {number}, column media: {row['media']} lies outside every media root "
            f"({', '.join(roots)}); add its folder to source.media_root"
        )
    return whole


def make(
    experiment: Experiment,
    executor: Executor,
    worker: Worker[Item],
    films: Sequence[Item],
    *,
    below: str,
    need: Need,
    done: Callable[[int], None],
) -> Kept:
    """Have something made of each film that is not made yet; each is kept as soon as it is there.

    Args:
        experiment: Says where it is kept.
        executor: Where the work is done.
        worker: Makes the function that does it.
        films: The items.
        below: The folder of `experiment.raw` in which it is kept.
        need: What a worker holds of its node.
        done: Told how many films are finished.

    Raises:
        ItemFailedError: Some films cannot be read now; all others are finished.
        StorageError: Something cannot be written.
    """
    store = store_at(experiment.raw)
    store.sweep(below)
    there = frozenset(name.rpartition("/")[2] for name in store.sizes(below))
    kept = Kept()
    for answer in executor.run(partial(worker, there), films, lambda film: need):
        made = answer.result
        if made.fault is not None:
            media = films[answer.number].media
            kept.lost[answer.number] = Lost(media=media, fault=made.fault, message=made.message)
        else:
            if made.content is not None:
                store.replace(f"{below}/{made.name}", made.content)
            kept.names[answer.number] = made.name
        done(1)
    return kept


def attempted(film: Item, work: Callable[[Item], Made]) -> Made:
    """What work makes of a film, or what is wrong with that.

    Raises:
        FilmFailedError: The film or the weights cannot be used now, or memory ran out, which says
            nothing of it.
    """
    try:
        return work(film)
    except BadClipError as bad:
        return Made("", fault=bad.fault, message=bad.message)
    except (StorageError, WeightsError, EncoderMemoryError) as error:
        raise FilmFailedError(f"{film.media}: {error}") from None


def check_lost(experiment: Experiment, lost: Sequence[Lost], films: int) -> None:
    """Raise TooManyLostError when more films are bad than `max_dropped` permits."""
    if len(lost) > experiment.max_dropped * films:
        first = lost[0]
        raise TooManyLostError(
            f"{len(lost)} of {films} media files are bad, at most {experiment.max_dropped:.0%} may "
            f"be; the first is {first.media}: {first.fault}: {first.message}; mend or leave out "
            f"those, or raise max_dropped, and run again"
        )


def write_table(table: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table of clips, whole or not at all; equal rows give equal bytes."""
    there = {name for row in rows for name in row}
    names = [name for name in LEADING if name in there]
    names += sorted(there - set(names))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    publish(table, buffer.getvalue().encode())


def by_sound(rows: Sequence[RowDict]) -> Iterator[tuple[Heard, list[RowDict]]]:
    """The rows of each media file and sound, in the order in which they are first named."""
    found: dict[Heard, list[RowDict]] = {}
    for row in rows:
        found.setdefault(heard(row), []).append(row)
    yield from found.items()


def heard(row: RowDict) -> Heard:
    """What a row hears."""
    return str(row["media"]), stream_of(row.get("audio_stream"))


def span_of(given: Path, row: RowDict) -> Span:
    """The span of a row. Raises InputError where there is none."""
    try:
        start, end = float(row.get("start", 0.0)), float(row.get("end", math.inf))
    except ValueError:
        start, end = math.nan, math.nan
    if not 0 <= start < end:
        raise InputError(
            f"{given}: {row['id']!r} goes from {row.get('start')} to {row.get('end')}; "
            f"wanted seconds, start before end"
        )
    return start, None if math.isinf(end) else end


def order(span: Span) -> tuple[float, float]:
    """Start and end, for sorting; the end of a whole file is infinite."""
    return span[0], math.inf if span[1] is None else span[1]


def apart(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans in order, dealt into as many lists as it takes that none in a list overlap."""
    lists: list[list[Span]] = []
    for span in spans:
        for some in lists:
            if order(some[-1])[1] <= span[0]:
                some.append(span)
                break
        else:
            lists.append([span])
    return lists


def clip_rows(experiment: Experiment, table: Path) -> list[RowDict]:
    """The rows of clips of a table that is given, or that was written on the way.

    Raises:
        InputError: It is not written yet, or wrong.
    """
    return given_rows(experiment) if table == experiment.given else rows_in(experiment, table)
