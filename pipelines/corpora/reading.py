"""What is read of a corpus: rows of clips as a table of clips has them, and notes on the rest."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from pipelines.findings import Finding, State, finding

RowDict: TypeAlias = dict[str, Any]

Kind: TypeAlias = Literal[
    "missing",
    "pointer",
    "empty",
    "no_span",
    "broken",
    "beyond",
    "duplicate",
    "listed",
    "no_split",
    "no_label",
    "no_transcript",
    "moved",
    "suspect",
    "incomplete",
    "unlisted",
]
"""What may be wrong with a clip or a file of a corpus."""

KINDS: tuple[Kind, ...] = get_args(Kind)

LOST: frozenset[Kind] = frozenset({"missing", "pointer", "empty", "no_span", "broken"})
"""Of these kinds each costs a clip that the corpus has; `max_dropped` says how many may be."""

_SAID: dict[Kind, tuple[State, str, str]] = {
    "missing": ("failed", "files that are not there", "get them, or the clips are quarantined"),
    "pointer": ("failed", "Git LFS pointers in place of files", "run `git lfs pull` there"),
    "empty": ("failed", "files of 0 bytes", "get them again"),
    "no_span": ("failed", "segments that end where they begin, or before", "they are left out"),
    "broken": ("failed", "files that cannot be read", "get them again"),
    "beyond": ("warning", "labels beyond the end of the media", "the span ends where the media do"),
    "duplicate": ("warning", "clips that are there twice", "the first is taken"),
    "listed": ("warning", "clips that the corpus's own list calls faulty", "they are left out"),
    "no_split": ("warning", "clips that no official list has", "they are left out"),
    "no_label": ("warning", "clips without a label", "they are kept, and not trained on"),
    "no_transcript": ("warning", "clips without a transcript", "they have no words"),
    "moved": ("warning", "spans that were put right", "look at them"),
    "suspect": ("warning", "clips that others found wrong", "look at them, or leave them out"),
    "incomplete": ("warning", "parts of the corpus that are not there", "as you wish"),
    "unlisted": ("warning", "files that no clip is made of", "as a rule nothing is to be done"),
}

_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing that is wrong, or that somebody should know.

    Attributes:
        clip: The clip's id; empty where it belongs to none.
        file: Where it is told: a path below the corpus's folder.
        row: The row or line of that file, from 1; 0 for the file as a whole.
    """

    kind: Kind
    clip: str = ""
    file: str = ""
    row: int = 0
    message: str = ""

    def __str__(self) -> str:
        """File, row and message, also of a file whose name is no text."""
        place = f"{self.file}, row {self.row}" if self.row else self.file
        told = ": ".join(each for each in (place, self.message) if each)
        return told.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class Read:
    """What was read of a corpus.

    Attributes:
        rows: A row a clip, as a table of clips has it; media and files by whole paths.
        notes: What is wrong. A clip that is "listed", or has no span or no split, has no row.
        files: What makes the files that go with the rows, by their names below the folder of the
            table: numbers of sensors, which have another form in the corpus.
    """

    rows: list[RowDict] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    files: dict[str, Callable[[], bytes]] = field(default_factory=dict)

    @property
    def lost(self) -> list[Note]:
        """The notes that each cost a clip."""
        return [note for note in self.notes if note.kind in LOST]

    @property
    def clips(self) -> int:
        """How many clips there should be: the rows, and those that are lost and have none."""
        there = {row["id"] for row in self.rows}
        return len(there) + len({each.clip for each in self.lost} - there)


def findings(notes: Iterable[Note]) -> Iterator[Finding]:
    """A finding for each kind of notes, with the first of them; all stand in the file of notes."""
    by_kind: dict[Kind, list[Note]] = {kind: [] for kind in KINDS}
    for note in notes:
        by_kind[note.kind].append(note)
    for kind, some in by_kind.items():
        if some:
            state, what, do = _SAID[kind]
            more = f" and {len(some) - _NAMED} more" if len(some) > _NAMED else ""
            said = "; ".join(str(each) for each in some[:_NAMED])
            yield finding("corpus", what, state, f"{len(some)}: {said}{more}", do)
