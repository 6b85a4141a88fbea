"""A registered model to champion, and back to the one before."""

import datetime as dt
import getpass
import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from featurizers.spec import canonical_json
from pipelines.experiment import InputError
from pipelines.scorecards import kept_card, parsed, predictions_of
from pipelines.tracked import keep_file
from tracking.champion import Drift, promote, reconcile, rollback
from tracking.gate import IncomparableError, NoRulesError, Reason, Verdict, judge
from tracking.ledger import (
    CHAMPION,
    Entry,
    LongEntryError,
    LostRaceError,
    begin,
    check_length,
    current,
)
from tracking.mlflow_store import MlflowRegistry, MlflowRun, run_of, user_of
from tracking.registry import UnknownModelError
from tracking.rules import AnyRule, Rule
from tracking.scorecard import Scorecard
from training.evaluate import regrouped

GENERATION_TAG = "fuseline.generation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What came of a promotion: the verdict, and the ledger's entry when there is a new one.

    Attributes:
        mended: Aliases that were not where the ledger said, and were put back.
    """

    name: str
    version: int
    verdict: Verdict
    champion: int | None
    entry: Entry | None
    mended: Sequence[Drift] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data, for machines."""
        return {
            "name": self.name,
            "version": self.version,
            "champion": self.champion,
            **self.verdict.to_json(),
            "entry": None if self.entry is None else asdict(self.entry),
            "mended": [asdict(drift) for drift in self.mended],
        }


def consider(
    uri: str,
    name: str,
    version: int | None,
    rules: Sequence[AnyRule],
    *,
    why: str,
    dry_run: bool = False,
    now: Callable[[], str] | None = None,
) -> Promotion:
    """Judge a version against the champion, and promote it when it passes.

    Args:
        uri: The tracking server.
        name: The registered model.
        version: The candidate; None for the newest.
        rules: What it must pass.
        why: Kept in the ledger.
        dry_run: Only judge.
        now: The time as ISO 8601 text; the clock where not given.

    Raises:
        InputError: No such model or version, no rules, scorecards that cannot be compared, or a
            `why` that the ledger cannot hold.
        LostRaceError: Somebody else promoted in between; run again to be judged against that one.
    """
    registry = MlflowRegistry(uri=uri)
    try:
        check_length(who=who(uri), why=why)
        known = registry.versions(name)
        if not known:
            raise InputError(f"model {name!r} has no versions; train and register one first")
        candidate = known[-1] if version is None else version
        last = current(registry, name)
        standing = last.version if last else alone(registry, name)
        champion = standing if standing in known else None
        mended = reconcile(registry, name) if champion is not None and not dry_run else []
        kept = [kept_card(uri, name, candidate)]
        if champion not in {None, candidate}:
            kept.append(_champions_card(uri, name, int(champion or 0)))
        card, against = parsed(kept[0]), parsed(kept[1]) if len(kept) > 1 else None
        if against is not None and any(map(_asks_of_subgroups, rules)):
            card, against = _told_apart_alike(
                uri, name, (candidate, card), (int(champion or 0), against)
            )
        verdict = judge(card, against, rules)
    except (UnknownModelError, NoRulesError, IncomparableError, LongEntryError) as error:
        raise InputError(str(error)) from None
    if last is not None and champion is None:
        gone = f"version {last.version} was deleted: judged as if there were no champion"
        verdict = replace(verdict, reasons=(*verdict.reasons, Reason("champion", True, gone)))
    entry = None
    if not dry_run:
        at = (now or clock)()
        report = _report(verdict, rules, version=candidate, champion=champion, cards=kept)
        entry = _act(
            registry,
            name,
            candidate,
            verdict,
            last,
            report=report,
            champion=champion,
            why=why,
            now=at,
        )
    return Promotion(
        name=name,
        version=candidate,
        verdict=verdict,
        champion=champion,
        entry=entry,
        mended=mended,
    )


def _champions_card(uri: str, name: str, champion: int) -> bytes:
    """The champion's scorecard, as its file. Raises as `kept_card`, and says what to do."""
    try:
        return kept_card(uri, name, champion)
    except InputError as error:
        raise InputError(
            f"nothing can be judged against the champion of {name!r}: {error}; delete that version "
            f"(`fuseline ui`), and the next promotion is judged as if there were no champion"
        ) from None


def alone(registry: MlflowRegistry, name: str) -> int | None:
    """The version that is champion by its alias: generation 0, as soon as there is a ledger.

    An alias that was set after a first promotion closed generation 0, and broke off, is none.

    Raises:
        UnknownModelError: No such model.
    """
    return None if registry.ledger(name) else registry.aliases(name).get(CHAMPION)


def _asks_of_subgroups(rule: AnyRule) -> bool:
    return isinstance(rule, Rule) and rule.no_subgroup_worse_by is not None


def _told_apart_alike(
    uri: str, name: str, candidate: tuple[int, Scorecard], champion: tuple[int, Scorecard]
) -> tuple[Scorecard, Scorecard]:
    """Both scorecards with the subgroups of both, so that neither can take one out of sight."""
    (version, card), (standing, against) = candidate, champion
    if card.evaluation_set != against.evaluation_set:
        return card, against  # which is told when they are judged
    both = [predictions_of(uri, name, number) for number in (version, standing)]
    return regrouped(card, both[0], both), regrouped(against, both[1], both)


def _report(
    verdict: Verdict,
    rules: Sequence[AnyRule],
    *,
    version: int,
    champion: int | None,
    cards: Sequence[bytes],
) -> bytes:
    """The verdict, and all that it rests on: what was judged, by which rules, on which numbers."""
    digests = [hashlib.sha256(card).hexdigest() for card in cards]
    plain = {
        **verdict.to_json(),
        "version": version,
        "champion": champion,
        "evaluation_set": parsed(cards[0]).evaluation_set,
        "rules": [asdict(rule) for rule in rules],
        "scorecards": dict(zip(("candidate", "champion"), digests, strict=False)),
    }
    return canonical_json(plain)


def _act(
    registry: MlflowRegistry,
    name: str,
    version: int,
    verdict: Verdict,
    last: Entry | None,
    *,
    report: bytes,
    champion: int | None,
    why: str,
    now: str,
) -> Entry | None:
    """Promote a version that passed, with its traces; None when it did not, or is champion."""
    if last is None and champion is not None:
        last = begin(registry, name, who=who(registry.uri), now=now)
        if last is None or last.version != champion:
            raise LostRaceError(f"the alias of {name!r} was moved meanwhile: judge again")
    if last is not None and last.version == version:
        # Again, in case that the last time ended between the ledger and this.
        registry.set_tags(name, version, {GENERATION_TAG: str(last.generation)})
        return None
    if not verdict.promote:
        return None
    digest = hashlib.sha256(report).hexdigest()
    # Before the claim, so that the ledger never names a report that is nowhere.
    run = MlflowRun(uri=registry.uri, run_id=run_of(registry.uri, name, version))
    keep_file(run, "verdict.json", report, f"promotion/{digest}")
    reasons = {f"fuseline.gate.{i}": r.text[:4000] for i, r in enumerate(verdict.reasons)}
    registry.set_tags(name, version, reasons)
    entry = promote(
        registry,
        name,
        version,
        after=last,
        report=digest,
        who=who(registry.uri),
        why=why,
        now=now,
        attempt=uuid.uuid4().hex,
    )
    registry.set_tags(name, version, {GENERATION_TAG: str(entry.generation)})
    return entry


def go_back(uri: str, name: str, *, why: str) -> Entry:
    """Make the champion before this one champion again: a new generation.

    Raises:
        InputError: No such model, or nothing to go back to.
    """
    registry = MlflowRegistry(uri=uri)
    try:
        entry = rollback(
            registry,
            name,
            after=current(registry, name),
            who=who(registry.uri),
            why=why,
            now=clock(),
            attempt=uuid.uuid4().hex,
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    registry.set_tags(name, entry.version, {GENERATION_TAG: str(entry.generation)})
    return entry


def who(uri: str) -> str:
    """Who promotes: the user of the tracking server, else of this machine."""
    named = user_of(uri)
    try:
        return named or getpass.getuser()
    except (KeyError, OSError):  # containers run as users without a name
        return f"user {os.getuid()}"


def clock() -> str:
    """Now, as ledgers have it: ISO 8601, UTC."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
