"""The files below a corpus's folder, looked at once."""

import filecmp
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath

from pipelines.corpora.reading import Kind, Note
from pipelines.experiment import InputError

VIDEO = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".flv")
SOUND = (".wav", ".flac", ".m4a", ".mp3", ".ogg")

_POINTERS = (b"version https://git-lfs.github.com/spec/", b"/annex/objects/")
_POINTER_BYTES = 1024  # Git LFS writes at most so many


@dataclass(frozen=True, slots=True)
class Tree:
    """Paths of files below a folder; hidden ones, and what macOS adds to archives, are left out.

    Attributes:
        root: The folder, links followed.
        names: Paths from there, sorted.
        stems: The files by their own names without suffix, and by these after FOLDER/.
    """

    root: Path
    names: tuple[PurePath, ...]
    stems: Mapping[str, Sequence[PurePath]]

    def where(self, name: PurePath) -> str:
        """The whole path of a file."""
        return str(self.root / name)

    def like(self, pattern: str) -> list[PurePath]:
        """The files whose own name is like a pattern, in capitals or not."""
        wanted = pattern.casefold()
        return [name for name in self.names if fnmatch(name.name.casefold(), wanted)]

    def only(self, pattern: str) -> PurePath | None:
        """The one file whose name is like a pattern; None where there is none.

        Raises:
            InputError: There are several that differ.
        """
        found = self.like(pattern)
        for other in found[1:]:
            if not self.same(found[0], other):
                raise InputError(
                    f"{self.root}: {found[0]} and {other} differ, and which one counts is not "
                    f"known; keep one of them"
                )
        return found[0] if found else None

    def same(self, one: PurePath, other: PurePath) -> bool:
        """Whether two files have equal bytes."""
        return filecmp.cmp(self.root / one, self.root / other, shallow=False)

    def media(
        self,
        stem: str,
        suffixes: Sequence[str] = (*VIDEO, *SOUND),
        below: Callable[[PurePath], bool] = lambda name: True,
    ) -> tuple[PurePath | None, list[Note]]:
        """The media file of a name without suffix, and notes on others that are equal to it.

        Args:
            stem: The name; or FOLDER/NAME, with the folder that it lies in.
            suffixes: Those that may be, the wanted first.
            below: Says which places count.

        Raises:
            InputError: Two files of one name and suffix differ.
        """
        named = [name for name in self.stems.get(stem, ()) if below(name)]
        for suffix in suffixes:
            some = [name for name in named if name.suffix.lower() == suffix]
            if some:
                first, *others = some
                return first, [self._twice(stem, first, other) for other in others]
        return None, []

    def _twice(self, stem: str, first: PurePath, other: PurePath) -> Note:
        if not self.same(first, other):
            raise InputError(
                f"{self.root}: {first} and {other} have one name and differ; which one is the "
                f"corpus's is not known: keep one of them"
            )
        return Note(kind="duplicate", file=str(other), message=f"is equal to {first}")

    def state(self, name: PurePath) -> Kind | None:
        """What is wrong with a file, as `state`."""
        return state(self.root / name)


def tree(root: Path) -> Tree:
    """The files below a folder.

    Raises:
        InputError: There is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder")
    root = root.resolve()
    names = tuple(sorted(_below(root)))
    stems: dict[str, list[PurePath]] = defaultdict(list)
    for name in names:
        stems[name.stem].append(name)
        stems[f"{name.parent.name}/{name.stem}"].append(name)
    return Tree(root, names, stems)


def _below(root: Path) -> Iterator[PurePath]:
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(each for each in folders if not _is_hidden(each))
        inside = PurePath(os.path.relpath(folder, root))
        yield from (inside / each for each in files if not _is_hidden(each))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def state(path: Path) -> Kind | None:
    """What is wrong with a file, as far as its first bytes tell; None where nothing is."""
    try:
        size = path.stat().st_size
    except OSError:  # a link to nothing
        return "missing"
    if size == 0:
        return "empty"
    if size <= _POINTER_BYTES:
        with path.open("rb") as file:
            if file.read(_POINTER_BYTES).startswith(_POINTERS):
                return "pointer"
    return None


def text_of(path: Path) -> str:
    """The text of a file of which old editors may have written some characters as cp1252.

    Bytes that are not UTF-8, and control characters that stand where cp1252 has quotes and dashes,
    are taken as cp1252; line ends are left as they are.

    Raises:
        InputError: It cannot be read, or is a pointer to a file that was not fetched.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if content.startswith(_POINTERS):
        raise InputError(f"{path}: is a Git LFS pointer, not the file; run `git lfs pull` there")
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    return text.translate(_CP1252)


def _as_cp1252(byte: int) -> str:
    return bytes([byte]).decode("cp1252", "replace")


# Bytes that were no UTF-8, which Python hides as lone surrogates, and control characters.
_CP1252 = {0xDC00 + byte: _as_cp1252(byte) for byte in range(0x80, 0x100)}
_CP1252 |= {byte: _as_cp1252(byte) for byte in range(0x80, 0xA0)}
