"""A registry in memory: what a server's registry does, without the server."""

import threading
from collections.abc import Mapping

from tracking.registry import UnknownModelError, UnknownVersionError


class MemoryRegistry:
    """A registry in memory, for tests and trials; safe between threads."""

    def __init__(self) -> None:
        self._tags: dict[str, dict[int, dict[str, str]]] = {}
        self._texts: dict[tuple[str, str], str] = {}
        self._aliases: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def register(self, name: str) -> int:
        """A new version of a model."""
        with self._lock:
            versions = self._tags.setdefault(name, {})
            made = max(versions, default=0) + 1
            versions[made] = {}
            return made

    def delete(self, name: str, version: int) -> None:
        """Remove a version, and the aliases that point at it."""
        with self._lock:
            del self._tags[name][version]
            gone = [key for key, at in self._aliases.items() if key[0] == name and at == version]
            for key in gone:
                del self._aliases[key]

    def names(self) -> list[str]:
        """As `Registry`."""
        return sorted(self._tags)

    def versions(self, name: str) -> list[int]:
        """As `Registry`."""
        if name not in self._tags:
            raise UnknownModelError(f"no model {name!r}; known: {sorted(self._tags)}")
        return list(self._tags[name])

    def ledger(self, name: str) -> dict[str, str]:
        """As `Registry`."""
        return {key: text for (model, key), text in list(self._texts.items()) if model == name}

    def write_once(self, name: str, key: str, text: str) -> str:
        """As `Registry`; `dict.setdefault` is atomic."""
        return self._texts.setdefault((name, key), text)

    def aliases(self, name: str) -> dict[str, int]:
        """As `Registry`."""
        return {
            key: number for (model, key), number in list(self._aliases.items()) if model == name
        }

    def set_alias(self, name: str, alias: str, version: int | None) -> None:
        """As `Registry`."""
        if version is None:
            self._aliases.pop((name, alias), None)
        else:
            self._check(name, version)
            self._aliases[name, alias] = version

    def set_tags(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """As `Registry`."""
        self._check(name, version)
        self._tags[name][version].update(tags)

    def _check(self, name: str, version: int) -> None:
        known = self.versions(name)
        if version not in known:
            raise UnknownVersionError(name, version, known)
