"""Which version of a model is champion: a ledger that only one promoter at a time can extend.

On a registry the last writer of an alias wins. So the truth is a ledger of generations, each an
entry written once; the aliases "champion" and "previous" mirror its last one (see `reconcile`).
"""

import json
from dataclasses import asdict, dataclass, replace

from tracking.registry import Registry, UnknownVersionError

LONGEST_ENTRY = 5900  # MLflow holds 6000 characters in a parameter and cuts without a word.


class NothingToRollBackError(ValueError):
    """There is no version before the champion."""


class LostRaceError(RuntimeError):
    """Somebody else promoted first: judge again, against the new champion."""


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

    Versions that were deleted are passed over.

    Raises:
        NothingToRollBackError: No other version that exists was champion before that generation.
        LostRaceError: The ledger ends at another generation.
    """
    past = history(registry, name)[:expected_generation]
    known = registry.versions(name)
    # The entry that made a version champion says on which report, and what came before it.
    before = past[-1].previous if past else None
    base = None
    for entry in reversed(past):
        if base is None and entry.version == before:
            if before in known and before != past[-1].version:
                base = entry
            before = entry.previous
    if base is None:
        raise NothingToRollBackError(f"model {name!r} has no champion to go back to")
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
