"""Trained runs to registered models, and a registered model to champion."""

import contextlib
import datetime as dt
import getpass
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from featurizers.clip import Clip
from featurizers.manifest import Column
from featurizers.spec import canonical_json
from featurizers.store import publish
from pipelines.experiment import FailedError, InputError
from pipelines.lineage import keep_lineage, lineage_of
from pipelines.model_card import FILE as MODEL_CARD
from pipelines.model_card import model_card
from pipelines.model_process import ModelProcess
from pipelines.packaging import logged
from pipelines.plans import PREDICTIONS, SCORECARD, Trained, score_test
from pipelines.score import parity, row_of
from pipelines.sources import Asked
from pipelines.staging import Stage
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
from tracking.mlflow_store import (
    MlflowRegistry,
    MlflowRun,
    describe,
    read_file,
    register,
    run_of,
    versions_of,
)
from tracking.registry import UnknownModelError
from tracking.rules import AnyRule, Rule
from tracking.scorecard import Scorecard
from training.evaluate import regrouped
from training.predicted import Predicted

PARITY_CLIPS = 4
GENERATION_TAG = "fuseline.generation"


class ParityError(FailedError):
    """The model computes other features from raw clips than those it was trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A version of a registered model, with what is known of it.

    Attributes:
        compared: How many clips' features were computed through it and equal those of the shards.
    """

    name: str
    version: int
    model_uri: str
    card: Scorecard
    compared: int

    @property
    def checked(self) -> str:
        """What was compared, for people."""
        if not self.compared and self.card.parity:
            return "its features were compared with the shards when it was registered"
        if self.compared:
            return f"features of {self.compared} raw clips equal those of the shards"
        return (
            "no training clip could be had to compare features with the shards, so it cannot "
            "be promoted; make the media of some training clips readable here and run again"
        )


def register_model(
    trained: Trained,
    clips: Sequence[Clip],
    asked: Sequence[Asked],
    columns: Mapping[str, Column],
    *,
    uri: str,
    name: str,
    stage: Stage | None = None,
    weights: Sequence[str] = (),
    duplicates: Sequence[str] | None = None,
) -> Registered:
    """Log a trained run as a model, hold it against the shards, and register it.

    Args:
        trained: The run.
        clips: All clips of the dataset.
        asked: The rows that they came from: the raw input of the comparison.
        columns: The columns that it was trained on.
        uri: The tracking server.
        name: The registered model's name.
        stage: Where remote clips are fetched to; where not given, local clips alone are compared.
        weights: Where the weights of encoders lie that are not of the hub.
        duplicates: Test clips that are like training clips; None when nobody looked.

    A version of this run that stands is left as it is where less could be looked at now than when
    it was registered: what was seen then is not forgotten because media are away.

    Raises:
        StorageError: A remote clip cannot be fetched.
        ParityError: Features through the model differ from the shards; nothing is registered.
    """
    run = MlflowRun(uri=uri, run_id=trained.run_id)
    model_uri = logged(trained, run)
    used = {stream: columns[stream] for stream in trained.plan.recipe.model.streams}
    some = _some(asked, clips, used, remote=stage is not None)
    said: list[Any] = []
    differences, compared = _compare(uri, model_uri, some, used, stage, weights=weights, said=said)
    if differences:
        raise ParityError(
            f"{model_uri} is not registered: features of raw clips differ from the shards: "
            f"{'; '.join(differences[:3])} ({len(differences)} in all)"
        )
    card = score_test(
        trained,
        clips,
        parity=True if compared else None,
        duplicates=duplicates,
        reproducible=_is_reproducible(uri, model_uri, some, said, stage, weights=weights),
    )
    if (stands := _standing(uri, name, trained.run_id)) and _says_less(card, stands[1]):
        number, before = stands
        publish(trained.plan.folder / SCORECARD, canonical_json(before.to_json()))
        return Registered(
            name=name, version=number, model_uri=model_uri, card=before, compared=compared
        )
    publish(trained.plan.folder / SCORECARD, canonical_json(card.to_json()))
    keep_file(run, SCORECARD, canonical_json(card.to_json()))
    tags = {
        "fuseline.evaluation_set": card.evaluation_set,
        "fuseline.parity": "checked" if compared else "not compared",
        **{f"fuseline.test.{metric}": f"{value:.6g}" for metric, value in card.metrics.items()},
    }
    told = model_card(name, trained, clips, used, card, compared=compared)
    keep_file(run, MODEL_CARD, told.encode())
    describe(uri, model_uri, told)
    # Before the version, so that there is none of which nobody knows what it was made of.
    keep_lineage(run, lineage_of(trained, clips, used))
    version = register(uri, name, model_uri, trained.run_id, tags)
    return Registered(name=name, version=version, model_uri=model_uri, card=card, compared=compared)


def _standing(uri: str, name: str, run_id: str) -> tuple[int, Scorecard] | None:
    """The version of a model that is of this run, and its scorecard; None where there is none."""
    numbers = [each.number for each in versions_of(uri, name) if each.run_id == run_id]
    try:
        return (numbers[0], card_of(uri, name, numbers[0])) if numbers else None
    except InputError:  # without a scorecard, there is nothing to keep
        return None


def _says_less(card: Scorecard, before: Scorecard) -> bool:
    """Whether something was looked at before, of the same clips, that nobody could look at now."""
    seen = ("parity", "reproducible", "duplicates")
    return card.evaluation_set == before.evaluation_set and any(
        getattr(card, name) is None and getattr(before, name) is not None for name in seen
    )


def _some(
    asked: Sequence[Asked], clips: Sequence[Clip], columns: Mapping[str, Column], *, remote: bool
) -> list[Asked]:
    """A few training clips with a feature: the first of each pattern of streams, then others."""
    training = {clip.key for clip in clips if clip.split == "train"}
    patterns: dict[tuple[str, ...], Asked] = {}
    usable: list[Asked] = []
    for each in asked:
        if each.raw.key not in training or (_is_remote(each) and not remote):
            continue
        states = tuple(column.rows[each.raw.key].state for column in columns.values())
        # Of a clip without any feature, nothing can be compared.
        if "sample" in states:
            patterns.setdefault(states, each)
            usable.append(each)
    others = [each for each in usable if each not in patterns.values()]
    return [*patterns.values(), *others][: max(PARITY_CLIPS, len(patterns))]


def _is_remote(asked: Asked) -> bool:
    return "://" in asked.raw.media


def _compare(
    uri: str,
    model_uri: str,
    some: Sequence[Asked],
    columns: Mapping[str, Column],
    stage: Stage | None,
    *,
    weights: Sequence[str],
    said: list[Any],
) -> tuple[list[str], int]:
    """What differs from the shards, and how many clips were compared.

    `said` takes what the model says of each of these: those that lie here, then the others.
    """
    differences: list[str] = []
    compared = 0
    for here in _at_hand(some, stage):
        differences += parity(uri, model_uri, here, columns, weights, said=said)
        compared += len(here)
    return differences, compared


def _is_reproducible(
    uri: str,
    model_uri: str,
    some: Sequence[Asked],
    said: Sequence[Any],
    stage: Stage | None,
    *,
    weights: Sequence[str],
) -> bool | None:
    """Whether a model says in another process what it said of clips; None without any."""
    again: list[Any] = []
    with contextlib.ExitStack() as stack:
        process: ModelProcess | None = None
        for rows in _at_hand(some, stage):
            process = process or stack.enter_context(ModelProcess(uri, model_uri, weights))
            again += process.predict([row_of(each) for each in rows])
    return again == list(said) if again else None


def _at_hand(some: Sequence[Asked], stage: Stage | None) -> Iterator[list[Asked]]:
    """The clips that can be had: those that lie here at once, then the others one by one.

    One by one, since a stage keeps the copy alone that was asked for last.
    """
    if local := [each for each in some if not _is_remote(each)]:
        yield local
    for each in some:
        path = stage.local(each.raw.media) if stage and _is_remote(each) else None
        if path is not None:
            yield [replace(each, raw=replace(each.raw, media=str(path)))]


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
        check_length(who=who(), why=why)
        known = registry.versions(name)
        if not known:
            raise InputError(f"model {name!r} has no versions; train and register one first")
        candidate = known[-1] if version is None else version
        last = current(registry, name)
        standing = last.version if last else alone(registry, name)
        champion = standing if standing in known else None
        mended = reconcile(registry, name) if champion is not None and not dry_run else []
        kept = [_kept(uri, name, candidate)]
        if champion not in {None, candidate}:
            kept.append(_kept(uri, name, int(champion or 0)))
        card, against = _card(kept[0]), _card(kept[1]) if len(kept) > 1 else None
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


def predictions_of(uri: str, name: str, version: int) -> Predicted:
    """What was said of each clip by a version.

    Raises:
        UnknownModelError: No such model or version.
        InputError: It was registered without that.
    """
    whose = f"version {version} of {name!r}"
    try:
        content = read_file(uri, run_of(uri, name, version), PREDICTIONS)
        return Predicted.from_parquet(content, whose)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{whose} cannot be compared clip by clip: {error}") from None


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
        "evaluation_set": _card(cards[0]).evaluation_set,
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
        last = begin(registry, name, who=who(), now=now)
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
        who=who(),
        why=why,
        now=now,
        attempt=uuid.uuid4().hex,
    )
    registry.set_tags(name, version, {GENERATION_TAG: str(entry.generation)})
    return entry


def card_of(uri: str, name: str, version: int) -> Scorecard:
    """The scorecard that a version was registered with.

    Raises:
        UnknownModelError: No such model or version.
        InputError: It was registered without a scorecard.
    """
    return _card(_kept(uri, name, version))


def _kept(uri: str, name: str, version: int) -> bytes:
    """The file of that scorecard; raises as `card_of`."""
    try:
        return read_file(uri, run_of(uri, name, version), SCORECARD)
    except FileNotFoundError:
        raise InputError(
            f"version {version} of {name!r} has no scorecard: it was registered by other means"
        ) from None


def _card(kept: bytes) -> Scorecard:
    return Scorecard.from_json(json.loads(kept))


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
            who=who(),
            why=why,
            now=clock(),
            attempt=uuid.uuid4().hex,
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    registry.set_tags(name, entry.version, {GENERATION_TAG: str(entry.generation)})
    return entry


def who() -> str:
    """Who promotes: the user of the tracking server, else of this machine."""
    named = os.environ.get("MLFLOW_TRACKING_USERNAME")
    try:
        return named or getpass.getuser()
    except (KeyError, OSError):  # containers run as users without a name
        return f"user {os.getuid()}"


def clock() -> str:
    """Now, as ledgers have it: ISO 8601, UTC."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
