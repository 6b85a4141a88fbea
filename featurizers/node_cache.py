"""Copies of an object store's shards on this machine: fetched once a node, and verified.

A copy is named by the sha256 of its content, so that what was featurized anew has another name, and
datasets that share a shard share the copy. One process fetches and the others of the node wait for
it. A copy that is open is held by a lock; of the others the least recently opened are removed when
room is needed.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from featurizers.store import LocalFile, Opened, StorageError, Store

_FETCHING = ".fetching-"
PIECE = 1 << 23


class SpoiltCopyError(Exception):
    """What was fetched is not what was recorded, again and again."""


@dataclass(frozen=True, slots=True)
class NodeCache:
    """A folder of copies that processes of this machine share.

    Args:
        folder: Where copies lie; made when it is not there.
        limit_bytes: How much they may take together.
    """

    folder: Path
    limit_bytes: int

    def open(self, store: Store, name: str, size: int, sha256: str) -> Opened:
        """A file of a store, read from its copy, which stays until it is closed.

        Args:
            store: Where the file lies.
            name: Its name there.
            size: Its bytes.
            sha256: Of its content, in hex.

        Raises:
            FileNotFoundError: The store has no such file.
            SpoiltCopyError: It is another file than was asked for.
            StorageError: It could not be fetched or written, or there is no room for it.
        """
        target = self.folder / sha256
        while (copy := _held(target)) is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._fetch(store, name, size, sha256)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise StorageError(
                    f"{store.where(name)} could not be copied to {self.folder} "
                    f"({error.strerror or error}); make room or choose another folder for "
                    f"the cache, then run the same command again"
                ) from None
        return copy

    def drop(self, sha256: str) -> None:
        """Remove a copy whose bytes have changed since it was made."""
        (self.folder / sha256).unlink(missing_ok=True)

    def _fetch(self, store: Store, name: str, size: int, sha256: str) -> None:
        """Make the copy, unless another process has made it meanwhile."""
        draft, target = self.folder / f"{_FETCHING}{sha256}", self.folder / sha256
        with _alone(draft) as handle:
            try:
                if target.exists():
                    return
                self._make_room(store.where(name), size, handle)
                for _ in range(2):  # what was spoilt on the way may come whole the next time
                    if _copied(store, name, size, handle) == sha256:
                        draft.rename(target)
                        return
                raise SpoiltCopyError(f"{store.where(name)} is not what was written")
            finally:
                draft.unlink(missing_ok=True)

    def _make_room(self, where: str, size: int, handle: int) -> None:
        """Remove what was opened longest ago, and claim the room for an open file."""
        with _alone(self.folder / ".making-room"):
            copies = sorted(
                (facts.st_mtime_ns, facts.st_size, path)
                for path in self.folder.iterdir()
                if not path.name.startswith(".making") and (facts := _facts(path)) is not None
            )
            used = sum(bytes_ for _, bytes_, _ in copies)
            for _, bytes_, path in copies:
                abandoned = path.name.startswith(_FETCHING)
                if (abandoned or used + size > self.limit_bytes) and removed(path):
                    used -= bytes_
            if used + size > self.limit_bytes:
                raise StorageError(
                    f"{where} has {size} bytes; the cache {self.folder} takes {self.limit_bytes}, "
                    f"and {used} of them are in use; give the cache more bytes, or stream the "
                    f"shards (train.loader: streaming)"
                )
            os.ftruncate(handle, size)


def _held(target: Path) -> LocalFile | None:
    """A copy, locked against removal; None when there is none."""
    try:
        handle = os.open(target, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(handle, fcntl.LOCK_SH)
    if not os.fstat(handle).st_nlink:  # removed between the two
        os.close(handle)
        return None
    os.utime(handle)
    return LocalFile(handle)


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """The only process that has this file, which is made when it is not there."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # While we waited it may have been removed, or become a copy.
            facts = _facts(path)
            if facts is not None and facts.st_ino == os.fstat(handle).st_ino:
                yield handle
                return
        finally:
            os.close(handle)


def _copied(store: Store, name: str, size: int, handle: int) -> str:
    """The sha256 of what was written to an open file, which has that size already."""
    digest, offset = hashlib.sha256(), 0
    opened = store.open(name)
    try:
        while offset < size and (piece := opened.read_at(offset, min(PIECE, size - offset))):
            digest.update(piece)
            written = 0
            while written < len(piece):
                written += os.pwrite(handle, piece[written:], offset + written)
            offset += len(piece)
    finally:
        opened.close()
    return digest.hexdigest()


def _facts(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process removed it
        return None


def removed(path: Path) -> bool:
    """Whether a file could be removed, since nobody holds it by a lock."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
