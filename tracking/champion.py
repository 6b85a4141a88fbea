"""Which version of a model is champion: the last one of its ledger, which the aliases mirror.

On a registry the last writer of an alias wins, so the aliases "champion" and "previous" prove
nothing. They follow the ledger (see `reconcile`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tracking.ledger import CHAMPION, PREVIOUS, Entry, claim, history
from tracking.registry import Registry, UnknownVersionError


class NothingToRollBackError(ValueError):
    """There is no version before the champion."""


@dataclass(frozen=True, slots=True)
class Drift:
    """An alias that is not where the ledger says, and whether a promotion that broke off left it.

    Otherwise it was moved by hand.
    """

    alias: str
    standing: int | None
    wanted: int | None
    left_behind: bool

    def __str__(self) -> str:
        why = "a promotion broke off before it" if self.left_behind else "it was moved by hand"
        return f"{self.alias}: {self.standing or 'none'} -> {self.wanted or 'none'} ({why})"


def promote(
    registry: Registry,
    name: str,
    version: int,
    *,
    after: Entry | None,
    report: str,
    who: str,
    why: str,
    now: str,
    attempt: str,
) -> Entry:
    """Make a version champion, if the ledger still ends with the entry it was judged against.

    `after` is None where there was no champion. Repeated with the same `attempt` it finds the entry
    it has made.

    Raises:
        UnknownVersionError: The version does not exist.
        LostRaceError: The ledger ends with another entry.
    """
    _check_version(name, version, registry.versions(name))
    # A champion that is promoted again keeps the version before it: one can still go back.
    previous = after.version if after else None
    if after and after.version == version:
        previous = after.previous
    entry = Entry(
        generation=after.generation + 1 if after else 1,
        attempt=attempt,
        version=version,
        previous=previous,
        report=report,
        who=who,
        when=now,
        why=why,
    )
    standing = claim(registry, name, entry, after)
    reconcile(registry, name)
    return standing


def rollback(
    registry: Registry,
    name: str,
    *,
    after: Entry | None,
    who: str,
    why: str,
    now: str,
    attempt: str,
) -> Entry:
    """A new generation with the version before the champion; repeated, it goes further back.

    Versions that were deleted are passed over.

    Raises:
        NothingToRollBackError: No other version that exists was champion before that entry.
        LostRaceError: The ledger ends with another entry.
    """
    past = history(registry, name)
    past = past[: past.index(after) + 1] if after in past else []
    known = registry.versions(name)
    # The entry that made a version champion says on which report, and what came before it.
    before = past[-1].previous if past else None
    base = None
    for entry in reversed(past):
        if base is None and entry.version == before:
            if before in known and before != past[-1].version:
                base = entry
            before = entry.previous
    if base is None or after is None:
        raise NothingToRollBackError(f"model {name!r} has no champion to go back to")
    generation = after.generation + 1
    entry = replace(base, generation=generation, attempt=attempt, who=who, when=now, why=why)
    standing = claim(registry, name, entry, after)
    reconcile(registry, name)
    return standing


def drifts(registry: Registry, name: str) -> list[Drift]:
    """The aliases that are not where the ledger says; none where no ledger has begun.

    Raises:
        UnknownVersionError: The champion's version was deleted: roll back, or promote another.
    """
    past = history(registry, name)
    if not past:
        return []
    known, standing = registry.versions(name), registry.aliases(name)
    _check_version(name, past[-1].version, known)
    (champion, previous), before = _mirrored(past, known), _mirrored(past[:-1], known)
    wanted = ((CHAMPION, champion, before[0]), (PREVIOUS, previous, before[1]))
    return [
        Drift(alias, standing.get(alias), version, left_behind=standing.get(alias) == old)
        for alias, version, old in wanted
        if standing.get(alias) != version
    ]


def reconcile(registry: Registry, name: str) -> list[Drift]:
    """Make the aliases equal to the ledger's last entry; tells what was changed.

    Mends a crash between ledger and alias, and edits by hand.

    Raises:
        UnknownVersionError: The champion's version was deleted: roll back, or promote another.
    """
    changed: list[Drift] = []
    # Two promoters may mirror at once; each looks again after it wrote, so the later one stays.
    while found := drifts(registry, name):
        for drift in found:
            registry.set_alias(name, drift.alias, drift.wanted)
        changed += found
    return changed


def _mirrored(past: Sequence[Entry], known: Sequence[int]) -> tuple[int | None, int | None]:
    """The champion and the version before it, as aliases mirror a ledger."""
    if not past:
        return None, None
    previous = past[-1].previous
    return past[-1].version, previous if previous in known else None


def _check_version(name: str, version: int, known: list[int]) -> None:
    if version not in known:
        raise UnknownVersionError(name, version, known)
