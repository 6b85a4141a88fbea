"""Where a dataset lies: a local folder or an object store, with the same few promises.

- `replace` gives a file its name whole or not at all, over what had that name.
- `create` does so only where nothing has that name: of several writers one wins and the others are
  told, so that a slow worker which was given up cannot publish over its successor.
- A `Draft` is written first and named after: a file that is named by its own content may be
  published by anybody, any number of times.
"""

import errno
import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedRandom
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeAlias, TypeVar

from featurizers.transient import TRIES, passes, patiently

T = TypeVar("T")

Root: TypeAlias = Path | str
"""A local folder, or the URL of an object store's prefix."""


class StorageError(Exception):
    """Something could not be read or written; nothing partial is left under its final name.

    Its message goes into logs: it is without passwords, wherever it got its addresses from.

    Attributes:
        transient: The next try may succeed.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(shown(message))
        self.transient = transient


class Draft(Protocol):
    """A file in the making."""

    file: BufferedRandom

    def publish(self, name: str) -> None:
        """Give it its name, whole and synced; what had that name before is replaced."""


class Opened(Protocol):
    """A finished file, open for reading anywhere in it."""

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, or fewer where the file was cut. Raises FileNotFoundError."""

    def close(self) -> None:
        """Let it go."""


class Store(Protocol):
    """Files by name; names are relative, with slashes."""

    def where(self, name: str = "") -> str:
        """The whole path or URL, for messages."""

    def read(self, name: str) -> bytes:
        """A whole file. Raises FileNotFoundError."""

    def open(self, name: str) -> Opened:
        """A file to read pieces of. Raises FileNotFoundError, here or when it is read."""

    def sizes(self, below: str = "") -> dict[str, int]:
        """Bytes by name of all finished files below a folder."""

    def replace(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all. Raises StorageError."""

    def create(self, name: str, content: bytes) -> bool:
        """The same where there is none yet; False when there is. Raises StorageError."""

    def draft(self, name: str, what: str) -> AbstractContextManager[Draft]:
        """A file to write beside `name`; gone when the block ends, unless it was published."""

    def append(self, name: str, part: int, content: bytes) -> None:
        """Add lines to a log; where nothing can be added to, they become a file of their own."""

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""

    def sweep(self, below: str) -> list[str]:
        """Remove what killed writers left unfinished below a folder; returns what it was."""

    def unfinished(self, below: str) -> list[str]:
        """What killed writers left below a folder."""


def store_at(root: Root) -> Store:
    """The store of a dataset: an object store for a URL, else a local folder."""
    return ObjectStore(root) if isinstance(root, str) and "://" in root else LocalStore(Path(root))


def is_remote(root: Root) -> bool:
    """Whether a root is the URL of an object store."""
    return isinstance(root, str) and "://" in root


def shown(text: str) -> str:
    """A text for people, without the users, passwords and signatures that addresses in it hold."""
    return _SECRETS.sub(r"\1***", re.sub(r"://[^/\s?#]*@", "://", text))


# Parameters by which stores know who asks; others tell which file it is.
_SECRETS = re.compile(
    r"([?&](?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|"
    r"googleaccessid|key-pair-id|policy|sig|signature|(?:\w+_)?(?:token|key|secret|password))=)"
    r"[^&\s'\"]+",
    re.IGNORECASE,
)


def read_input(path: Path, read: Callable[[], T]) -> T:
    """Read from an input on this machine; a fault that may pass is tried again.

    Args:
        path: Of the input, for the message.
        read: Reads; it must be right to call it again after it failed.

    Raises:
        StorageError: It fails again and again with what may pass: nothing is known of the input.
        OSError: It fails with anything else: no such file, no permission and the like.
    """
    try:
        return patiently(read)
    except OSError as error:
        if not passes(error):
            raise
        raise StorageError(
            f"{path} could not be read, {TRIES} times ({error.strerror or error}); run the same "
            f"command again when it can be, or leave out the clips that need it",
            transient=True,
        ) from None


def sha256(store: Store, name: str, size: int, piece: int = 1 << 22) -> str:
    """sha256 in hex of a file of so many bytes, read in pieces."""
    digest, offset = hashlib.sha256(), 0
    opened = store.open(name)
    try:
        while offset < size and (content := opened.read_at(offset, min(piece, size - offset))):
            digest.update(content)
            offset += len(content)
    finally:
        opened.close()
    return digest.hexdigest()


def publish(path: Path, content: bytes) -> None:
    """Write a local file whole or not at all.

    Raises:
        StorageError: Disk full, no permission and the like; names the path and the bytes.
    """
    LocalStore(path.parent).replace(path.name, content)


# What `mkstemp` is told to make: other hidden files are not ours to remove.
_DRAFT = re.compile(r"\..+\.[a-z0-9_]{8}")


class LocalStore:
    """A folder of this machine, or one that is mounted like one.

    Each file is written under a temporary name beside its own, synced, and renamed; the folder is
    synced after it. A temporary file is locked while it is written, so that `sweep` can tell it
    from what a killed process left.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def where(self, name: str = "") -> str:
        """See `Store`."""
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        """See `Store`."""
        return patiently((self.folder / name).read_bytes)

    def open(self, name: str) -> "LocalFile":
        """See `Store`."""
        return LocalFile(os.open(self.folder / name, os.O_RDONLY))

    def sizes(self, below: str = "") -> dict[str, int]:
        """See `Store`."""
        found: dict[str, int] = {}
        for path in (self.folder / below).rglob("*"):
            if not path.name.startswith("."):
                try:
                    facts = path.stat()
                except FileNotFoundError:  # removed meanwhile
                    continue
                if path.is_file():
                    found[path.relative_to(self.folder).as_posix()] = facts.st_size
        return found

    def replace(self, name: str, content: bytes) -> None:
        """See `Store`."""
        with self._draft(name, len(content)) as draft:
            draft.file.write(content)
            draft.publish(name)

    def create(self, name: str, content: bytes) -> bool:
        """See `Store`."""
        with self._draft(name, len(content)) as draft:
            draft.file.write(content)
            return draft.claim(name)

    def draft(self, name: str, what: str) -> AbstractContextManager[Draft]:
        """See `Store`."""
        return self._draft(name, what)

    @contextmanager
    def _draft(self, name: str, what: str | int) -> Iterator["_LocalDraft"]:
        path = self.folder / name
        temporary: Path | None = None
        written = 0
        try:
            _make_folder(path.parent)
            temporary, handle = _locked(path)
            with os.fdopen(handle, "w+b") as file:
                try:
                    yield _LocalDraft(self.folder, temporary, file)
                finally:
                    written = file.tell()
        except OSError as error:
            raise _unwritten(str(path), what, error, written=written) from None
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def append(self, name: str, part: int, content: bytes) -> None:
        """See `Store`."""
        path = self.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(content)
        except OSError as error:
            raise _unwritten(str(path), len(content), error) from None

    def delete(self, name: str) -> None:
        """See `Store`."""
        (self.folder / name).unlink(missing_ok=True)

    def sweep(self, below: str) -> list[str]:
        """See `Store`."""
        swept: list[str] = []
        for leftover in self._drafts(below):
            try:
                with leftover.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    leftover.unlink(missing_ok=True)
            except OSError:
                continue  # somebody is writing it, or has just finished
            swept.append(leftover.relative_to(self.folder).as_posix())
        return swept

    def unfinished(self, below: str) -> list[str]:
        """See `Store`."""
        found: list[str] = []
        for leftover in self._drafts(below):
            try:
                with leftover.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                continue
            found.append(leftover.relative_to(self.folder).as_posix())
        return found

    def _drafts(self, below: str) -> list[Path]:
        hidden = (self.folder / below).rglob(".*.*")
        return sorted(path for path in hidden if _DRAFT.fullmatch(path.name))


def _locked(path: Path) -> tuple[Path, int]:
    """A temporary file beside a path, open and locked.

    Between its making and its locking a sweep may take it for one that a killed process left.
    """
    while True:
        handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return Path(made), handle
        os.close(handle)


class _LocalDraft:
    def __init__(self, folder: Path, temporary: Path, file: BufferedRandom) -> None:
        self._folder, self._temporary, self.file = folder, temporary, file

    def publish(self, name: str) -> None:
        self._sync()
        self._temporary.replace(self._folder / name)
        _sync_folder(self._temporary.parent)

    def claim(self, name: str) -> bool:
        """Give it its name unless something has it."""
        self._sync()
        try:
            os.link(self._temporary, self._folder / name)
        except FileExistsError:
            return False
        _sync_folder(self._temporary.parent)
        return True

    def _sync(self) -> None:
        self.file.flush()
        self._temporary.chmod(0o644)
        os.fsync(self.file.fileno())


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, and sync their names."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        _sync_folder(each.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class LocalFile:
    """An open local file; see `Opened`.

    Args:
        handle: Open for reading; closed with it.
    """

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    def read_at(self, offset: int, size: int) -> bytes:
        """See `Opened`."""
        handle = self._handle
        if handle is None:
            raise ValueError("the file was closed")
        return patiently(lambda: os.pread(handle, size, offset))

    def close(self) -> None:
        """See `Opened`."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        # Nobody else closes plain file numbers, and a process may open many columns.
        self.close()


_OBJECT, _PIECE, _REMOVAL = "the object", "a piece of the object", "the removal"
_READ = {_OBJECT, _PIECE, _REMOVAL}
"""Where nothing may be there; elsewhere it is the bucket that is missing."""


class ObjectStore:
    """A prefix of an object store, through fsspec: s3://, gs://, memory:// and the like.

    An object appears whole when its upload ends. `create` asks the store itself to refuse a second
    writer (S3: If-None-Match); there is no rename and no lock.

    Args:
        url: The prefix.

    Raises:
        StorageError: No such kind of store, or the library for it is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            # Listings are asked for anew each time: others write here too.
            self._system, self._prefix = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StorageError(f"{url}: {error}; for S3 install fuseline[s3]") from None

    def where(self, name: str = "") -> str:
        """See `Store`."""
        return shown(f"{self.url}/{name}" if name else self.url)

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if name else str(self._prefix)

    def _ask(self, what: str | int, name: str, call: Any) -> Any:  # noqa: ANN401 - fsspec is not typed
        try:
            return patiently(call)
        except Exception as error:
            if isinstance(error, FileNotFoundError) and what in _READ and not passes(error):
                raise
            if isinstance(error, OSError) or passes(error):
                raise _unwritten(self.where(name), what, error, "read or written") from None
            raise

    def read(self, name: str) -> bytes:
        """See `Store`."""
        content: bytes = self._ask(_OBJECT, name, lambda: self._system.cat_file(self._path(name)))
        return content

    def open(self, name: str) -> "_Object":
        """See `Store`."""
        return _Object(self, name)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes of an object."""

        def call() -> Any:  # noqa: ANN401 - fsspec is not typed
            return self._system.cat_file(self._path(name), start=offset, end=offset + size)

        content: bytes = self._ask(_PIECE, name, call) if size else b""
        return content

    def sizes(self, below: str = "") -> dict[str, int]:
        """See `Store`."""

        def call() -> Any:  # noqa: ANN401 - fsspec is not typed
            self._system.invalidate_cache()
            return self._system.find(self._path(below), detail=True)

        found = self._ask("the listing", below, call)
        whole = str(self._prefix).strip("/") + "/"
        return {
            path.strip("/").removeprefix(whole): int(facts["size"] or 0)
            for path, facts in found.items()
        }

    def replace(self, name: str, content: bytes) -> None:
        """See `Store`."""
        path = self._path(name)
        self._ask(len(content), name, lambda: self._system.pipe_file(path, content))

    def create(self, name: str, content: bytes) -> bool:
        """See `Store`.

        A try whose answer was lost is refused when it is repeated: whoever is told False has to
        look at what is there.
        """
        path = self._path(name)
        try:
            self._ask(
                len(content),
                name,
                lambda: _created(self._system, path, content),
            )
        except _TakenError:
            return False
        return True

    @contextmanager
    def draft(self, name: str, what: str) -> Iterator[Draft]:
        """See `Store`; the draft lies in this machine's temporary folder."""
        written = 0
        try:
            with tempfile.NamedTemporaryFile(suffix=PurePosixPath(name).suffix) as file:
                try:
                    # The wrapper's `file` is the real one: annotated, seekable, named on disk.
                    yield _RemoteDraft(self, Path(file.name), file.file, what)  # type: ignore[arg-type] # a BufferedRandom
                finally:
                    written = file.tell()
        except OSError as error:
            where = f"{tempfile.gettempdir()} (for {self.where(name)})"
            raise _unwritten(where, what, error, written=written) from None

    def upload(self, path: Path, name: str, what: str) -> None:
        """Put a local file there; it appears whole when the upload ends, and its size is asked for.

        Raises:
            StorageError: Also when the object there has another size, again and again.
        """
        size, target = path.stat().st_size, self._path(name)

        def call() -> None:
            self._system.put_file(str(path), target)
            self._system.invalidate_cache()
            found = self._system.info(target)["size"]
            if found != size:
                raise OSError(errno.EIO, f"the object there has {found} bytes")

        self._ask(f"{what}, {size} bytes,", name, call)

    def append(self, name: str, part: int, content: bytes) -> None:
        """See `Store`."""
        place = PurePosixPath(name)
        self.replace(str(place.with_name(f"{place.stem}-{part:05d}{place.suffix}")), content)

    def delete(self, name: str) -> None:
        """See `Store`."""
        try:
            self._ask(_REMOVAL, name, lambda: self._system.rm_file(self._path(name)))
        except FileNotFoundError:
            return

    def sweep(self, below: str) -> list[str]:
        """See `Store`; an upload that was broken off leaves no object."""
        return self.unfinished(below)

    def unfinished(self, below: str) -> list[str]:
        """See `Store`."""
        del below
        return []


class _TakenError(Exception):
    """Something has that name; not an OSError, since those may be tried again."""


def _created(system: Any, path: str, content: bytes) -> None:  # noqa: ANN401 - fsspec is not typed
    try:
        system.pipe_file(path, content, mode="create")
    except FileExistsError:
        raise _TakenError(path) from None


class _RemoteDraft:
    def __init__(self, store: ObjectStore, path: Path, file: BufferedRandom, what: str) -> None:
        self._store, self._path, self.file, self._what = store, path, file, what

    def publish(self, name: str) -> None:
        self.file.flush()
        self._store.upload(self._path, name, self._what)


class _Object:
    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store, self._name = store, name

    def read_at(self, offset: int, size: int) -> bytes:
        return self._store.read_at(self._name, offset, size)

    def close(self) -> None:
        """Nothing is held."""


def _unwritten(
    where: str, what: str | int, error: Exception, verb: str = "written", *, written: int = 0
) -> StorageError:
    """The error for something, or for so many bytes, of which some may have been written."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    thing = f"{what} ({written} bytes so far)" if written else str(what)
    if isinstance(what, int):
        thing = f"{what} bytes"
    advice = _ADVICE.get(getattr(error, "errno", None), "choose another place")
    return StorageError(
        f"{where}: {thing} could not be {verb} ({reason}); {advice}, "
        f"then run the same command again",
        transient=passes(error),
    )


_FULL, _REFUSED = "make room or choose another place", "permit it or choose another place"
_ADVICE: dict[int | None, str] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _REFUSED),
}
