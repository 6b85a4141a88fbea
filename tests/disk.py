"""Every step that this process makes on disk, and what each would leave if it were the last.

A process that is killed leaves what lies on disk at that moment, and nothing that it would have
done after: no `finally` of its own runs. So each state between two steps of one recorded run is
exactly what a kill at that moment leaves.

When the power goes, less is left. Bytes are there for sure after their file was synced, a name
after its folder was; whatever was not synced may be there, or half of it, or not at all.
"""

import builtins
import contextlib
import io
import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

FOLDER = "folder"  # stands for an inode of which only the name counts


@dataclass(frozen=True)
class Tree:
    """What lies below a folder: names of folders, and bytes of files by name."""

    folders: frozenset[str]
    files: Mapping[str, bytes]

    @staticmethod
    def read(root):
        """What lies there now."""
        paths = list(Path(root).rglob("*"))
        return Tree(
            frozenset(path.relative_to(root).as_posix() for path in paths if path.is_dir()),
            {p.relative_to(root).as_posix(): p.read_bytes() for p in paths if p.is_file()},
        )

    def write(self, root):
        """Put it there, instead of all that is there."""
        import shutil

        shutil.rmtree(root, ignore_errors=True)
        Path(root).mkdir(parents=True)
        for folder in sorted(self.folders):
            (root / folder).mkdir(exist_ok=True)
        for name, content in self.files.items():
            (root / name).write_bytes(content)

    def likeness(self):
        """The same for what differs between equal runs: names made up by chance, times in logs."""
        return (
            self.folders,
            {
                plain(name): b"" if name.startswith("logs/") else content
                for name, content in self.files.items()
            },
        )


def plain(name):
    """A name without what was made up by chance in it."""
    name = re.sub(r"(\.[^/]*)\.[a-z0-9_]{8}$", r"\1.*", name)
    return re.sub(r"\d{8}T\d{6}-[0-9a-f]{4}", "RUN", name)


@dataclass(eq=False)
class _Inode:
    data: bytes = b""
    synced: bytes = b""
    loose: bool = False  # its mode was changed since it was synced


@dataclass
class _Change:
    """Names of one folder that change together; None is a name that goes."""

    folder: str
    names: dict[str, object]


@dataclass(frozen=True)
class Step:
    """One step on disk."""

    kind: str
    name: str

    def __str__(self):
        return f"{self.kind} {plain(self.name)}"


@dataclass
class Disk:
    """Records the steps of this process below a folder; use as a context manager.

    Args:
        root: The folder.
        limit: After so many steps `last` is called, in place of the next one; what lies there is
            not recorded then.
        last: Kills or raises.

    Attributes:
        steps: What was done.
        left: What a kill leaves: before the first step, and after each.
        cut: The same for a power cut, as functions of a `random.Random`, or None for the least.
    """

    root: Path
    limit: int | None = None
    last: object = None
    steps: list[Step] = field(default_factory=list)
    left: list[Tree] = field(default_factory=list)
    cut: list[object] = field(default_factory=list)

    def __post_init__(self):
        self.root, self._brief = Path(self.root), self.limit is not None
        tree = Tree.read(self.root)
        self._live = {}
        self._entries = dict.fromkeys(tree.folders, FOLDER)
        for name, content in tree.files.items():
            inode = _Inode(content, content)
            self._live[(self.root / name).stat().st_ino] = self._entries[name] = inode
        self._durable, self._pending = dict(self._entries), []
        self._stack = contextlib.ExitStack()
        self._snapshot()

    def __enter__(self):
        real = {name: getattr(os, name) for name in _STEPS}
        for name, made in _STEPS.items():
            self._stack.enter_context(mock.patch.object(os, name, made(self, real[name])))
        for module in (io, builtins):
            self._stack.enter_context(mock.patch.object(module, "open", _opener(self, io.open)))
        return self

    def __exit__(self, *raised):
        self._stack.close()

    def unsynced(self):
        """Names of which bytes or place may be lost when the power goes now."""
        names = {name for change in self._pending for name in change.names}
        names |= {
            name
            for name, inode in self._entries.items()
            if inode is not FOLDER and (inode.loose or inode.data != inode.synced)
        }
        return sorted(names)

    # What the steps below call.

    def name_of(self, path):
        """A path's name below the folder; None elsewhere."""
        if isinstance(path, int):
            path = str(Path(f"/proc/self/fd/{path}").readlink()).removesuffix(" (deleted)")
        path = os.path.abspath(os.fspath(path))  # noqa: PTH100 - as the calls below take it
        if not isinstance(path, str) or not path.startswith(f"{self.root}/"):
            return None
        return path[len(str(self.root)) + 1 :]

    @contextlib.contextmanager
    def step(self, kind, name):
        """One step; what is done inside happens, and then it is recorded."""
        if self.limit is not None and len(self.steps) == self.limit:
            self.limit = None
            self.last()
        yield
        self.steps.append(Step(kind, name))
        self._snapshot()

    def made(self, name):
        """A file was made under a name."""
        inode = _Inode()
        self._live[(self.root / name).stat().st_ino] = inode
        self.changed({name: inode})

    def changed(self, names):
        """Names were given or taken."""
        parents = {name.rpartition("/")[0] for name in names}
        assert len(parents) == 1, f"a step in several folders: {names}"
        self._pending.append(_Change(parents.pop(), dict(names)))
        _apply(self._entries, names)

    def inode(self, name):
        """What a name stands for now."""
        return self._entries[name]

    def wrote(self, handle):
        """Bytes were written to a file."""
        if self._brief:
            return
        self._live[os.fstat(handle).st_ino].data = Path(f"/proc/self/fd/{handle}").read_bytes()

    def synced(self, handle, name):
        """A file or folder was synced."""
        if Path(f"/proc/self/fd/{handle}").is_dir():
            mine = [change for change in self._pending if change.folder == name]
            for change in mine:
                _apply(self._durable, change.names)
                self._pending.remove(change)
        else:
            inode = self._live[os.fstat(handle).st_ino]
            inode.synced, inode.loose = inode.data, False

    def _snapshot(self):
        if self._brief:
            return
        tree = Tree.read(self.root)
        # No step was passed over: what was recorded explains all that lies there.
        assert tree == _tree(self._entries, lambda inode: inode.data), self.steps[-1]
        self.left.append(tree)
        durable = dict(self._durable)
        pending = [_Change(change.folder, dict(change.names)) for change in self._pending]
        data = {id(inode): inode.data for inode in self._live.values()}
        synced = {id(inode): inode.synced for inode in self._live.values()}

        def cut(chance: random.Random | None) -> Tree:
            entries = dict(durable)
            for change in pending:
                if chance is not None and chance.random() < 0.5:
                    _apply(entries, change.names)

            def bytes_of(inode):
                new, old = data.get(id(inode), inode.data), synced.get(id(inode), inode.synced)
                if chance is None or new == old:
                    return old
                return chance.choice([old, new, new[: (len(old) + len(new)) // 2]])

            return _tree(entries, bytes_of)

        self.cut.append(cut)


def _apply(entries, names):
    for name, inode in names.items():
        if inode is None:
            entries.pop(name, None)
        else:
            entries[name] = inode


def _tree(entries, bytes_of):
    """What can be reached through folders that are there."""
    there = {}
    for name, inode in sorted(entries.items()):
        parent = name.rpartition("/")[0]
        if not parent or there.get(parent) is FOLDER:
            there[name] = inode
    return Tree(
        frozenset(name for name, inode in there.items() if inode is FOLDER),
        {name: bytes_of(inode) for name, inode in there.items() if inode is not FOLDER},
    )


class _File(io.FileIO):
    """A file whose writes are steps; each comes in two halves, as a kill may cut it."""

    disk: Disk

    def write(self, content):
        content = bytes(content)
        half = len(content) // 2
        for piece in (content[:half], content[half:]):
            if piece:
                with self.disk.step("write", self.disk.name_of(self.fileno())):
                    assert super().write(piece) == len(piece)
                    self.disk.wrote(self.fileno())
        return len(content)

    def truncate(self, size=None):
        with self.disk.step("truncate", self.disk.name_of(self.fileno())):
            cut = super().truncate(size)
            self.disk.wrote(self.fileno())
        return cut


def _buffered(disk, file, mode):
    raw = _File(file, mode.replace("b", ""))
    raw.disk = disk
    if "+" in mode:
        return io.BufferedRandom(raw)
    return io.BufferedWriter(raw)


def _opener(disk, real):
    def opened(file, mode="r", *arguments, **named):
        name = disk.name_of(file) if isinstance(file, str | os.PathLike) else None
        if name is None or not set(mode) & set("wax+"):
            return real(file, mode, *arguments, **named)
        assert "b" in mode, f"{name} is written as text, which is not recorded"
        assert "a" in mode or not Path(file).exists(), f"{name} is written over in place"
        if Path(file).exists():
            return _buffered(disk, file, mode)
        with disk.step("create", name):
            made = _buffered(disk, file, mode)
            disk.made(name)
        return made

    return opened


def _open(disk, real):
    def call(path, flags, *arguments, **named):
        name = disk.name_of(path)
        if name is None or not flags & os.O_CREAT or Path(path).exists():
            return real(path, flags, *arguments, **named)
        with disk.step("create", name):
            handle = real(path, flags, *arguments, **named)
            disk.made(name)
        return handle

    return call


def _fdopen(disk, real):
    def call(handle, mode="r", *arguments, **named):
        if disk.name_of(handle) is None or not set(mode) & set("wax+"):
            return real(handle, mode, *arguments, **named)
        return _buffered(disk, handle, mode)

    return call


def _sync(disk, real):
    def call(handle):
        number = handle if isinstance(handle, int) else handle.fileno()
        path = str(Path(f"/proc/self/fd/{number}").readlink())
        name = "" if path == str(disk.root) else disk.name_of(number)
        if name is None:
            return real(handle)
        with disk.step("sync", name):
            real(handle)
            disk.synced(number, name)
        return None

    return call


def _rename(kind):
    def made(disk, real):
        def call(source, target, **named):
            name = disk.name_of(target)
            if name is None:
                return real(source, target, **named)
            with disk.step(kind, name):
                real(source, target, **named)
                old = disk.name_of(source)
                gone = {} if kind == "link" else {old: None}
                disk.changed({**gone, name: disk.inode(old)})
            return None

        return call

    return made


def _one(kind, after):
    def made(disk, real):
        def call(path, *arguments, **named):
            name = disk.name_of(path)
            if name is None or _refused(kind, path):
                return real(path, *arguments, **named)
            with disk.step(kind, name):
                real(path, *arguments, **named)
                after(disk, name)
            return None

        return call

    return made


def _refused(kind, path):
    """Whether a call is going to fail, and so is no step."""
    there = os.path.lexists(path)
    return there if kind == "mkdir" else not there


def _gone(disk, name):
    disk.changed({name: None})


def _folder(disk, name):
    disk.changed({name: FOLDER})


def _mode(disk, name):
    if disk.inode(name) is not FOLDER:
        disk.inode(name).loose = True


def _unknown(disk, real):
    def call(path, *arguments, **named):
        assert disk.name_of(path) is None, f"{path} is changed in a way that is not recorded"
        return real(path, *arguments, **named)

    return call


_STEPS = {
    "open": _open,
    "fdopen": _fdopen,
    "fsync": _sync,
    "fdatasync": _sync,
    "link": _rename("link"),
    "rename": _rename("rename"),
    "replace": _rename("rename"),
    "unlink": _one("unlink", _gone),
    "remove": _one("unlink", _gone),
    "mkdir": _one("mkdir", _folder),
    "rmdir": _one("rmdir", _gone),
    "chmod": _one("chmod", _mode),
    "truncate": _unknown,
    "ftruncate": _unknown,
    "symlink": _unknown,
}
