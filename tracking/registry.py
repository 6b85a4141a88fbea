"""Which version of a model is champion: a ledger that only one promoter at a time can extend.

On a registry the last writer of an alias wins. So the truth is a ledger of generations, each an
entry written once; the aliases "champion" and "previous" mirror its last one (see `reconcile`).
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Protocol

LONGEST_ENTRY = 5900  # MLflow holds 6000 characters in a parameter and cuts without a word.


class UnknownModelError(ValueError):
    """No registered model, version or alias of that name."""


class UnknownVersionError(UnknownModelError):
    """The model has no such version."""

    def __init__(self, name: str, version: int, known: list[int]) -> None:
        there = ", ".join(map(str, known)) or "none"
        super().__init__(f"model {name!r} has no version {version}; those that exist: {there}")


class NothingToRollBackError(ValueError):
    """There is no version before the champion."""


class LostRaceError(RuntimeError):
    """Somebody else promoted first: judge again, against the new champion."""


class Registry(Protocol):
    """What promotion asks of a registry; `UnknownModelError` when the model is not registered."""

    def versions(self, name: str) -> list[int]:
        """Versions that exist, ascending."""

    def ledger(self, name: str) -> dict[str, str]:
        """All texts that were written once, by key."""

    def write_once(self, name: str, key: str, text: str) -> str:
        """Write unless something stands there; what stands there now is returned."""

    def aliases(self, name: str) -> dict[str, int]:
        """The version behind each alias."""

    def set_alias(self, name: str, alias: str, version: int | None) -> None:
        """Point an alias at a version that exists, or remove it."""

    def set_tags(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Tags of a version that exists; later values replace earlier ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One generation: 1, 2, 3, ... without gaps; of rival attempts (random ids) one stands.

    Attributes:
        previous: The version to go back to; None for the first champion.
        report: sha256 in hex of the report that the decision rests on.
        when: ISO 8601, UTC.
    """

    generation: int
    attempt: str
    version: int
    previous: int | None
    report: str
    who: str
    when: str
    why: str


def history(registry: Registry, name: str) -> list[Entry]:
    """All generations, oldest first."""
    texts = registry.ledger(name)
    return [Entry(**json.loads(texts[key])) for key in sorted(texts) if key.startswith("gen-")]


def current(registry: Registry, name: str) -> Entry | None:
    """The last generation; None when nothing was ever promoted."""
    entries = history(registry, name)
    return entries[-1] if entries else None


def promote(
    registry: Registry,
    name: str,
    version: int,
    *,
    expected_generation: int,
    report: str,
    who: str,
    why: str,
    now: str,
    attempt: str,
) -> Entry:
    """Make a version champion, if the ledger still ends at the generation it was judged against.

    Generation 0 is no champion. Repeated with the same `attempt` it finds the entry it has made.

    Raises:
        UnknownVersionError: The version does not exist.
        LostRaceError: The ledger ends at another generation.
    """
    _check_version(registry, name, version)
    last = current(registry, name)
    # A champion that is promoted again keeps the version before it: one can still go back.
    previous = last.version if last else None
    if last and last.version == version:
        previous = last.previous
    entry = Entry(
        generation=expected_generation + 1,
        attempt=attempt,
        version=version,
        previous=previous,
        report=report,
        who=who,
        when=now,
        why=why,
    )
    return _claim(registry, name, entry)


def rollback(
    registry: Registry,
    name: str,
    *,
    expected_generation: int,
    who: str,
    why: str,
    now: str,
    attempt: str,
) -> Entry:
    """A new generation with the version before the champion; repeated, it goes further back.

    Raises:
        NothingToRollBackError: No other version was champion before that generation.
        UnknownVersionError: The version before was deleted.
        LostRaceError: The ledger ends at another generation.
    """
    past = history(registry, name)[:expected_generation]
    if not past or past[-1].previous is None:
        raise NothingToRollBackError(f"model {name!r} has no champion to go back to")
    # The entry that made that version champion says on which report, and what came before it.
    base = next(entry for entry in reversed(past) if entry.version == past[-1].previous)
    _check_version(registry, name, base.version)
    generation = expected_generation + 1
    entry = replace(base, generation=generation, attempt=attempt, who=who, when=now, why=why)
    return _claim(registry, name, entry)


def reconcile(registry: Registry, name: str) -> list[str]:
    """Make the aliases equal to the ledger's last entry; says what was changed.

    Mends a crash between ledger and alias, and edits by hand.

    Raises:
        UnknownVersionError: The champion's version was deleted: roll back, or promote another.
    """
    changed: list[str] = []
    last, settled = current(registry, name), None
    # Two promoters may mirror at once; each looks again after it wrote, so the later one stays.
    while last is not None and last != settled:
        _check_version(registry, name, last.version)
        kept = last.previous if last.previous in registry.versions(name) else None
        standing = registry.aliases(name)
        for alias, version in (("champion", last.version), ("previous", kept)):
            if standing.get(alias) != version:
                registry.set_alias(name, alias, version)
                changed.append(f"{alias}: {standing.get(alias, 'none')} -> {version or 'none'}")
        last, settled = current(registry, name), last
    return changed


def _claim(registry: Registry, name: str, entry: Entry) -> Entry:
    text = json.dumps(asdict(entry), sort_keys=True)
    if len(text) > LONGEST_ENTRY:
        raise ValueError(f"a ledger entry has {LONGEST_ENTRY} characters at most, not {len(text)}")
    past = history(registry, name)
    standing = next((old for old in past if old.attempt == entry.attempt), None)
    if standing is None and len(past) == entry.generation - 1:
        # Who reads back another attempt has lost, whatever the write itself answered.
        text = registry.write_once(name, f"gen-{entry.generation:06d}", text)
        standing = Entry(**json.loads(text))
    last = standing or (past[-1] if past else None)
    if last is None or last.attempt != entry.attempt:
        there = f"version {last.version}, by {last.who}" if last else "empty"
        raise LostRaceError(
            f"generation {entry.generation} of {name!r} was not won: the ledger has reached "
            f"{last.generation if last else 0} ({there}); judge again"
        )
    reconcile(registry, name)
    return last


def _check_version(registry: Registry, name: str, version: int) -> None:
    known = registry.versions(name)
    if version not in known:
        raise UnknownVersionError(name, version, known)


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
            versions[len(versions) + 1] = {}
            return len(versions)

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
            _check_version(self, name, version)
            self._aliases[name, alias] = version

    def set_tags(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """As `Registry`."""
        _check_version(self, name, version)
        self._tags[name][version].update(tags)
