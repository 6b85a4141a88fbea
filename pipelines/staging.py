"""Media on this machine: local files as they are, remote ones through a cache of limited size."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featurizers.dataset import StorageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A node's cache of remote media; the least recently used are removed when it is full.

    Args:
        folder: Where copies lie.
        limit_bytes: How much of them.
    """

    folder: Path
    limit_bytes: int

    def local(self, media: str) -> Path | None:
        """The path of media on this machine, fetched when remote; None when there are none.

        Raises:
            StorageError: The copy could not be written, or is larger than the whole cache.
        """
        if "://" not in media:
            path = Path(media)
            return path if path.exists() else None
        return self._fetched(media)

    def _fetched(self, url: str) -> Path | None:
        import fsspec

        try:
            system, name = fsspec.core.url_to_fs(url)
            facts = system.info(name)
        except FileNotFoundError:
            return None
        except ImportError as error:
            raise StorageError(f"{url}: {error}") from None
        # Size and etag in the name: a file that changed under its URL is fetched anew.
        identity = f"{url}|{facts.get('size')}|{facts.get('ETag') or facts.get('mtime') or ''}"
        suffix = Path(name).suffix[:10]
        target = self.folder / (hashlib.sha256(identity.encode()).hexdigest()[:32] + suffix)
        if target.exists():
            os.utime(target)
            return target
        size = int(facts.get("size") or 0)
        if size > self.limit_bytes:
            raise StorageError(
                f"{url} has {size} bytes, the cache {self.folder} takes {self.limit_bytes}; "
                f"raise cache.gigabytes"
            )
        self._make_room(size)
        self._copy(system, name, target)
        return target

    def _copy(self, system: object, name: str, target: Path) -> None:
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".fetch.")
        os.close(handle)
        try:
            system.get_file(name, temporary)  # type: ignore[attr-defined] # fsspec is not typed
            Path(temporary).replace(target)
        except OSError as error:
            Path(temporary).unlink(missing_ok=True)
            raise StorageError(f"{name} could not be copied to {target}: {error}") from None

    def _make_room(self, size: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [path for path in self.folder.iterdir() if not path.name.startswith(".")]
        used = sum(path.stat().st_size for path in kept)
        for path in sorted(kept, key=lambda path: path.stat().st_mtime):
            if used + size <= self.limit_bytes:
                break
            used -= path.stat().st_size
            path.unlink(missing_ok=True)


def inside(media: str, roots: Sequence[str]) -> bool:
    """Whether an absolute path or URL lies under one of the roots."""
    if "://" in media:
        if ".." in media.split("/"):
            return False
        return any(media.startswith(root.rstrip("/") + "/") for root in roots if "://" in root)
    resolved = Path(media).resolve()
    return any(resolved.is_relative_to(Path(root).resolve()) for root in roots if "://" not in root)
