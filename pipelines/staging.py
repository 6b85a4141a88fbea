"""Media on this machine: local files as they are, remote ones through a cache of limited size."""

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from featurizers.node_cache import removed
from featurizers.store import StorageError, read_input
from featurizers.transient import passes, patiently, reason

_FETCHING = ".fetch."
# An address that was quoted this often hides something.
_QUOTED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A node's cache of remote media; the least recently used are removed when it is full.

    The copy that was asked for last is held by a lock until the next is asked for: another worker
    that needs room must not remove it while it is being decoded.

    Args:
        folder: Where copies lie.
        limit_bytes: How much of them.
    """

    folder: Path
    limit_bytes: int
    _held: list[int] = field(default_factory=list, init=False, repr=False, compare=False)

    def local(self, media: str) -> Path | None:
        """The path of media on this machine, fetched when remote; None when there are none.

        Raises:
            StorageError: Nobody can say now whether there are any; or the copy could not be fetched
                or written, or is larger than the whole cache.
        """
        if "://" in media:
            return self._fetched(media)
        path = Path(media)
        try:
            read_input(path, path.stat)
        except (OSError, ValueError):  # none, no permission to look, a name that no file can have
            return None
        return path

    def _fetched(self, url: str) -> Path | None:
        import fsspec

        server = urlsplit(url).hostname or "a server"
        try:
            system, name = fsspec.core.url_to_fs(url)
            facts = patiently(lambda: system.info(name), what=server)
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not passes(error):
                return None
            if not _is_of_storage(error):
                raise
            raise StorageError(
                f"{url} cannot be fetched: {reason(error)}", transient=passes(error)
            ) from None
        # Size and etag in the name: a file that changed under its URL is fetched anew.
        identity = f"{url}|{facts.get('size')}|{facts.get('ETag') or facts.get('mtime') or ''}"
        suffix = Path(name).suffix[:10]
        target = self.folder / (hashlib.sha256(identity.encode()).hexdigest()[:32] + suffix)
        self._release()
        if self._hold(target):
            return target
        size = int(facts.get("size") or 0)
        if size > self.limit_bytes:
            raise StorageError(
                f"{url} has {size} bytes, the cache {self.folder} takes {self.limit_bytes}; "
                f"raise cache.gigabytes"
            )
        try:
            self._make_room(size)
            patiently(lambda: self._copy(system, name, target), what=server)
        except Exception as error:
            if not _is_of_storage(error):
                raise
            raise StorageError(
                f"{url} could not be copied to {target}: {reason(error)}", transient=passes(error)
            ) from None
        return target

    def _copy(self, system: object, name: str, target: Path) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=_FETCHING)
        self._held.append(handle)
        fcntl.flock(handle, fcntl.LOCK_SH)
        try:
            system.get_file(name, temporary)  # type: ignore[attr-defined] # fsspec is not typed
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _hold(self, target: Path) -> bool:
        """Lock a copy against removal; False when there is none."""
        try:
            handle = os.open(target, os.O_RDONLY)
        except FileNotFoundError:
            return False
        self._held.append(handle)
        fcntl.flock(handle, fcntl.LOCK_SH)
        os.utime(handle)
        return target.exists()

    def _release(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def _make_room(self, size: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        copies: list[tuple[int, int, Path]] = []
        for path in self.folder.iterdir():
            if path.name.startswith(_FETCHING):
                removed(path)  # left by a worker that was killed; others are locked
                continue
            try:
                facts = path.stat()
            except FileNotFoundError:  # another worker made room
                continue
            copies.append((facts.st_mtime_ns, facts.st_size, path))
        used = sum(bytes_ for _, bytes_, _ in copies)
        for _, bytes_, path in sorted(copies):
            if used + size <= self.limit_bytes:
                break
            if removed(path):
                used -= bytes_


def _is_of_storage(error: Exception) -> bool:
    """Whether an error is the disk's, the network's or a server's answer, and no bug."""
    known = isinstance(error, ImportError | ValueError | OSError)
    return known or passes(error) or isinstance(getattr(error, "status", None), int)


def clear(folder: Path) -> None:
    """Remove all copies of a cache that nobody holds."""
    for path in folder.iterdir() if folder.is_dir() else ():
        removed(path)


def inside(media: str, roots: Sequence[str]) -> bool:
    """Whether an absolute path or URL lies under one of the roots."""
    if "://" in media:
        if _strays(media):
            return False
        return any(media.startswith(root.rstrip("/") + "/") for root in roots if "://" in root)
    resolved = Path(media).resolve()
    return any(resolved.is_relative_to(Path(root).resolve()) for root in roots if "://" not in root)


def _strays(url: str) -> bool:
    """Whether a URL may lead elsewhere than its beginning says, however often it is unquoted."""
    for _ in range(_QUOTED):
        # "::" would chain another address; clients drop tabs and line ends, and turn backslashes.
        if ".." in re.split("[/?#]", url) or "::" in url or set(url) & set("\\\t\r\n"):
            return True
        before, url = url, unquote(url)
        if url == before:
            return False
    return True
