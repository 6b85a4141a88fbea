"""Whether every clip is accounted for: the lines of the ledger, and why one does not balance."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from featurizers.clip import Clip
from featurizers.shards import Record, Row
from featurizers.spec import FeatureSpec
from pipelines.parts import NONE, Values

STATES = ("sample", "absent", "quarantined")

_NAMED = 5  # keys in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the ledger: some clips of the dataset in one column.

    Attributes:
        stream: The name under which the column was asked for.
        column: Its fingerprint.
        part: "all", "split", or "label " and the label's name.
        value: Which clips of that part, such as "train".
        clips: Of the table of clips.
        faults: Quarantined clips by fault.
    """

    stream: str
    column: str
    part: str
    value: str
    clips: int
    sample: int
    absent: int
    quarantined: int
    faults: Mapping[str, int]

    @property
    def unknown(self) -> int:
        """Clips that the column knows nothing of: not 0 means that the line does not balance."""
        return self.clips - self.sample - self.absent - self.quarantined

    @property
    def lost(self) -> float:
        """The share of its clips that is quarantined."""
        return self.quarantined / self.clips if self.clips else 0.0


class Counted(Protocol):
    """What is counted of a column; a committed one is a `Column`."""

    @property
    def spec(self) -> FeatureSpec:
        """What it computes."""

    @property
    def records(self) -> Sequence[Record]:
        """Its finished shards."""

    @property
    def rows(self) -> Mapping[str, Row]:
        """What became of each clip, by key."""


def lines_of(stream: str, column: Counted, part: str, values: Values) -> list[Line]:
    """A line for each value of a part.

    Args:
        stream: The name that the column goes by.
        column: Its rows.
        part: What the values are of.
        values: Keys by value.
    """
    found: list[Line] = []
    for value, keys in values.items():
        rows = [column.rows[key] for key in keys if key in column.rows]
        states = Counter(row.state for row in rows)
        found.append(
            Line(
                stream=stream,
                column=column.spec.fingerprint,
                part=part,
                value=value,
                clips=len(keys),
                sample=states["sample"],
                absent=states["absent"],
                quarantined=states["quarantined"],
                faults=_by_count(row.fault or NONE for row in rows if row.state == "quarantined"),
            )
        )
    return found


def _by_count(names: Iterable[str]) -> dict[str, int]:
    """How often each name comes, the most frequent first."""
    counts = Counter(names)
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def problems_of(
    stream: str, column: Counted, clips: Mapping[str, Clip], *, done: bool
) -> list[str]:
    """Why a column's ledger does not balance, or does not agree with its own records.

    Args:
        stream: The column's name.
        column: Its rows and records.
        clips: All clips by key.
        done: Whether it should know all of them.
    """
    found: list[str] = []
    rows = column.rows
    missing, strange = sorted(clips.keys() - rows.keys()), sorted(rows.keys() - clips.keys())
    if missing and done:
        found.append(
            f"{stream}: {len(missing)} of {len(clips)} clips are not in the column: "
            f"{_few(missing)}; featurize again"
        )
    if strange:
        found.append(
            f"{stream}: {len(strange)} clips of the column are not in the table: {_few(strange)}; "
            f"ingest and featurize again"
        )
    odd = sorted(row.key for row in rows.values() if row.state not in STATES)
    if odd:
        found.append(f"{stream}: {len(odd)} clips have an unknown state: {_few(odd)}")
    told, counted = _told(column), Counter[str](row.state for row in rows.values())
    if any(told[state] != counted[state] for state in STATES):
        counts = ", ".join(f"{counted[state]} {state} (told {told[state]})" for state in STATES)
        found.append(f"{stream}: the indexes and the records differ: {counts}; verify the dataset")
    return found


def left_of(name: str, column: Counted | None, clips: Mapping[str, Clip]) -> str:
    """A sentence about a column that has no manifest."""
    known = [] if column is None else [row for key, row in column.rows.items() if key in clips]
    lost = sum(row.state == "quarantined" for row in known)
    if known and len(known) == len(clips):
        return (
            f"{name}: all {len(clips)} clips are done, but nothing is committed; {lost} are "
            f"quarantined: mend their media or raise max_dropped, and featurize again"
        )
    done = f": {len(known)} of {len(clips)} clips are done, {lost} quarantined" if known else ""
    return f"{name}: not finished{done}; featurize"


def _told(column: Counted) -> Counter[str]:
    told: Counter[str] = Counter()
    for record in column.records:
        told.update(record.counts)
    return told


def _few(keys: Sequence[str]) -> str:
    more = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {more} more" if more > 0 else "")
