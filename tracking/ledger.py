"""The ledger of a registered model's champions, which only one promoter at a time can extend.

It rests on one promise of the registry: of all texts that are written under one key of a model, by
however many processes and however they end, the first one stands and can be read back by all.
"""

import json
from dataclasses import asdict, dataclass

from tracking.registry import Registry

CHAMPION, PREVIOUS = "champion", "previous"
LONGEST_ENTRY = 5900  # MLflow holds 6000 characters in a parameter and cuts without a word.
_FIRST, _NOTHING = "gen-000000", "null"


class LostRaceError(RuntimeError):
    """Somebody else promoted first: judge again, against the new champion."""


class LongEntryError(ValueError):
    """More text than a registry keeps of an entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One generation: 1, 2, 3, ... without gaps; of rival attempts (random ids) one stands.

    Generation 0 is the version that the alias pointed at when the ledger began, if it did.

    Attributes:
        previous: The version to go back to; None for the first champion.
        report: sha256 in hex of the report that the decision rests on; "" for generation 0.
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
    plain = [json.loads(texts[key]) for key in sorted(texts) if key.startswith("gen-")]
    return [Entry(**each) for each in plain if each is not None]


def current(registry: Registry, name: str) -> Entry | None:
    """The last generation; None when nothing was ever promoted."""
    entries = history(registry, name)
    return entries[-1] if entries else None


def begin(registry: Registry, name: str, *, who: str, now: str) -> Entry | None:
    """The last generation; where there is no ledger yet, the alias that stands is generation 0."""
    champion = registry.aliases(name).get(CHAMPION)
    if champion is not None and not registry.ledger(name):
        entry = Entry(
            generation=0,
            attempt="",
            version=champion,
            previous=None,
            report="",
            who=who,
            when=now,
            why="the alias stood when the ledger began",
        )
        registry.write_once(name, _FIRST, json.dumps(asdict(entry), sort_keys=True))
    return current(registry, name)


def check_length(*, who: str, why: str) -> None:
    """Whether the ledger can hold an entry with these, before anything else is written.

    Raises:
        LongEntryError: It cannot.
    """
    many, when = 10**6, "2026-01-02T03:04:05+00:00"
    _text(
        Entry(
            generation=many,
            attempt="f" * 32,
            version=many,
            previous=many,
            report="f" * 64,
            who=who,
            when=when,
            why=why,
        )
    )


def _text(entry: Entry) -> str:
    text = json.dumps(asdict(entry), sort_keys=True)
    if len(text) > LONGEST_ENTRY:
        raise LongEntryError(
            f"an entry of the ledger has {LONGEST_ENTRY} characters at most, not {len(text)}: "
            f"say in fewer words why"
        )
    return text


def claim(registry: Registry, name: str, entry: Entry, after: Entry | None) -> Entry:
    """Write the generation that follows `after`; None where no ledger has begun.

    Repeated with the same `attempt` it finds the entry that it has made.

    Raises:
        LongEntryError: It is too long.
        LostRaceError: The ledger ends with another entry.
    """
    text = _text(entry)
    past = history(registry, name)
    standing = next((old for old in past if old.attempt == entry.attempt), None)
    last = past[-1] if past else None
    if standing is None and last == after:
        # A first promotion closes generation 0, so that no alias is taken for it afterwards.
        # Who reads back another attempt has lost, whatever the write itself answered.
        first = _NOTHING if after else registry.write_once(name, _FIRST, _NOTHING)
        if first == _NOTHING:
            first = registry.write_once(name, f"gen-{entry.generation:06d}", text)
        last = standing = Entry(**json.loads(first))
    if standing is None or standing.attempt != entry.attempt:
        there = f"version {last.version}, by {last.who}" if last else "empty"
        raise LostRaceError(
            f"generation {entry.generation} of {name!r} was not won: the ledger has reached "
            f"{last.generation if last else 0} ({there}); judge again"
        )
    return standing
