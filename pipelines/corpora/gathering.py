"""How the rows of a corpus are gathered: media found, and what is wrong with them noted once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TypeAlias

from pipelines.corpora.reading import Kind, Note, Read, RowDict
from pipelines.corpora.tree import Tree

Choice: TypeAlias = tuple[str, tuple[str, ...]]
"""A name of media without suffix, and the suffixes that it may have, the wanted first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a clip is called, and where it is told of."""

    clip: str
    file: str = ""
    row: int = 0

    def note(self, kind: Kind, message: str = "") -> Note:
        """A note on this clip."""
        return Note(kind=kind, clip=self.clip, file=self.file, row=self.row, message=message)


@dataclass(frozen=True, slots=True)
class Gathering:
    """The rows and notes of a corpus, so far; media are looked for and looked at once.

    Attributes:
        below: Says which places of media count.
    """

    tree: Tree
    below: Callable[[PurePath], bool] = lambda name: True
    read: Read = field(default_factory=Read)
    _media: dict[Choice, PurePath | None] = field(default_factory=dict)
    _unfit: dict[PurePath, Kind | None] = field(default_factory=dict)
    _ids: dict[str, Place] = field(default_factory=dict)

    def note(self, place: Place, kind: Kind, message: str = "") -> None:
        """Add a note on a clip."""
        self.read.notes.append(place.note(kind, message))

    def add(self, place: Place, row: RowDict) -> None:
        """Add a clip's row; another of the same id is noted, and not taken."""
        before = self._ids.setdefault(place.clip, place)
        if before != place:
            self.note(place, "duplicate", f"{place.clip!r} is told in row {before.row} as well")
            return
        self.read.rows.append({"id": place.clip, **row})

    def find(self, place: Place, choices: Iterable[Choice]) -> PurePath | None:
        """The first of some media that is there; notes where it cannot be used."""
        for choice in choices:
            if choice not in self._media:
                stem, suffixes = choice
                self._media[choice], notes = self.tree.media(stem, suffixes, self.below)
                self.read.notes.extend(notes)
            name = self._media[choice]
            if name is not None:
                self.check(place, name)
                return name
        return None

    def media(self, place: Place, choices: Iterable[Choice]) -> str:
        """The whole path of the first of some media; where there is none, of what should be."""
        choices = list(choices)
        name = self.find(place, choices)
        if name is not None:
            return self.tree.where(name)
        stem, suffixes = choices[0]
        self.note(place, "missing", f"there is no {stem}{suffixes[0]}")
        return str(self.tree.root / f"{stem}{suffixes[0]}")

    def check(self, place: Place, name: PurePath) -> bool:
        """Whether a clip's file can be used, as far as its first bytes tell; noted where not."""
        if name not in self._unfit:
            self._unfit[name] = self.tree.state(name)
        kind = self._unfit[name]
        if kind is not None:
            self.read.notes.append(Note(kind=kind, clip=place.clip, file=str(name)))
        return kind is None
