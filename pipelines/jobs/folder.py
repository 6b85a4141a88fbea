"""The working directory of a job: what goes along, whether it fits, and what is missing of it.

What goes along is decided as by `ray job submit`: everything but what .gitignore and .rayignore
name. Ray leaves it at that; here a file that the command needs and that would stay behind is an
error, and so is a folder that is too large, before anything is sent.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pipelines.experiment import InputError
from pipelines.jobs.submission import INSIDE, check_open
from pipelines.jobs.wheel import Archive, archive

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# The dashboard refuses what is larger (Ray 2.60.0), by an answer that names no number.
# Held by test_a_folder_that_is_too_large_is_refused_before_it_is_read.
MOST_BYTES = 100 << 20
MOST_FILES = 20_000
IGNORE_FILES = (".gitignore", ".rayignore")
NEVER = (".git", ".venv", "venv", "__pycache__")


@dataclass(frozen=True, slots=True)
class Rules:
    """The lines of one ignore file, which hold for what lies in its folder and below."""

    file: str
    lines: Sequence[str]
    spec: "GitIgnoreSpec"

    def verdict(self, name: str) -> bool | None:
        """Whether a name, relative to their folder, is ignored; None where no line speaks of it."""
        return self.spec.check_file(name).include

    def line(self, name: str) -> str:
        """The line that decides about a name."""
        return self.lines[self.spec.check_file(name).index or 0]


@dataclass(slots=True)
class Survey:
    """What lies in a folder and goes along.

    Attributes:
        folder: Where.
        files: Size in bytes by name.
        ignored: What stays behind, by name, a folder with its slash: the rule that says so.
    """

    folder: Path
    files: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)

    def why_not(self, name: str) -> str:
        """The rule by which a file or folder stays behind; nothing where it goes along."""
        for part in (name, f"{name}/", *(f"{each}/" for each in PurePosixPath(name).parents)):
            if part in self.ignored:
                return self.ignored[part]
        return ""


def survey(folder: Path) -> Survey:
    """Look through a folder.

    Raises:
        InputError: No such folder, or far too many files.
    """
    if not folder.is_dir():
        raise InputError(f"--working-dir {folder}: no such folder")
    found = Survey(folder)
    for name, path in _walk(folder, "", (_never(),), found, frozenset({folder.resolve()})):
        check_open(name, "--working-dir", "name it in .rayignore")
        found.files[name] = path.stat().st_size
        if len(found.files) > MOST_FILES:
            ones = dict.fromkeys(found.files, 1)
            raise InputError(
                f"{folder} has more than {MOST_FILES} files, {_largest(ones, str)}; name "
                f"what is not needed in .rayignore, give a smaller --working-dir, or --shared "
                f"where all nodes reach this one"
            )
    return found


def packed(found: Survey) -> Archive:
    """A folder as the archive that Ray unpacks on each node.

    Raises:
        InputError: It is larger than Ray takes.
    """
    total = sum(found.files.values())
    if total < MOST_BYTES:
        paths = {f"{INSIDE}/{name}": found.folder / name for name in found.files}
        executable = frozenset(name for name, path in paths.items() if os.access(path, os.X_OK))
        content = archive({name: path.read_bytes() for name, path in paths.items()}, executable)
        total = len(content)
        if total < MOST_BYTES:
            digest = hashlib.sha256(content).hexdigest()
            return Archive(f"_ray_pkg_{digest[:32]}.zip", content, digest)
    raise InputError(
        f"{found.folder} has {_size(total)} in {len(found.files)} files, and Ray takes less than "
        f"{_size(MOST_BYTES)}; {_largest(found.files, _size)}: name what is not needed in "
        f".rayignore, give a smaller --working-dir, or --shared where all nodes reach this one"
    )


def _never() -> tuple[str, Rules]:
    return "", _rules("a rule of Ray", NEVER)


def _rules(file: str, lines: Sequence[str]) -> Rules:
    from pathspec import GitIgnoreSpec

    return Rules(file, lines, GitIgnoreSpec.from_lines(lines))


def _walk(
    folder: Path,
    below: str,
    rules: tuple[tuple[str, Rules], ...],
    found: Survey,
    above: frozenset[Path],
) -> Iterator[tuple[str, Path]]:
    """Files by name; links are followed, except to a folder that holds them."""
    here = folder / below
    for name in IGNORE_FILES:
        if (here / name).is_file():
            lines = (here / name).read_text(encoding="utf-8", errors="replace").splitlines()
            rules = (*rules, (below, _rules(f"{below}{name}", lines)))
    for entry in sorted(here.iterdir()):
        name = f"{below}{entry.name}" + ("/" if entry.is_dir() else "")
        if rule := _ignoring(name, rules):
            found.ignored[name] = rule
        elif entry.is_file():
            yield name, entry
        elif entry.is_dir() and entry.resolve() not in above:
            yield from _walk(folder, name, rules, found, above | {entry.resolve()})


def _ignoring(name: str, rules: Sequence[tuple[str, Rules]]) -> str:
    """The line that leaves a name out; the file nearest to it is heard first, as by git."""
    for below, each in reversed(rules):
        verdict = each.verdict(name.removeprefix(below))
        if verdict is not None:
            return f"{each.line(name.removeprefix(below))!r} in {each.file}" if verdict else ""
    return ""


def _largest(held_by: Mapping[str, int], told: Callable[[int], str]) -> str:
    """Which entries of the folder itself hold most."""
    held: Counter[str] = Counter()
    for name, count in held_by.items():
        top, slash, _ = name.partition("/")
        held[top + slash] += count
    return ", ".join(f"{name} has {told(count)}" for name, count in held.most_common(3))


def _size(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"
