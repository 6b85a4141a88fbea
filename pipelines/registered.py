"""What stands in a registry: models, their versions and champions, and the ledger of each."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.promote import GENERATION_TAG, alone, clock, who
from tracking.champion import Drift, drifts, reconcile
from tracking.ledger import CHAMPION, Entry, begin, history
from tracking.mlflow_store import MlflowRegistry, Version, versions_of
from tracking.registry import UnknownVersionError

TEST_TAG = "fuseline.test."


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A registered model.

    Attributes:
        aliases: The version behind each alias.
        alone: The version that is champion by its alias alone: no ledger has begun.
        drifts: The aliases that are not where the ledger says.
        gone: The version that the ledger has as champion, where that was deleted; else "".
        history: All generations, oldest first.
    """

    name: str
    versions: Sequence[Version]
    aliases: dict[str, int]
    alone: int | None
    drifts: Sequence[Drift]
    gone: str
    history: Sequence[Entry]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @property
    def rows(self) -> list[dict[str, object]]:
        """A row for each version."""
        return [
            {
                "version": each.number,
                "aliases": ", ".join(
                    a for a, n in sorted(self.aliases.items()) if n == each.number
                ),
                "registered": each.when,
                "run": each.run_id,
                "parity": each.tags.get("fuseline.parity", ""),
                "test": ", ".join(
                    f"{tag.removeprefix(TEST_TAG)} {value}"
                    for tag, value in sorted(each.tags.items())
                    if tag.startswith(TEST_TAG)
                ),
            }
            for each in self.versions
        ]

    @property
    def sentences(self) -> list[str]:
        """Who is champion and why, and what is not as the ledger says."""
        lines = []
        if self.history:
            last = self.history[-1]
            before = f"; before it version {last.previous}" if last.previous else ""
            lines.append(
                f"champion: version {last.version}, generation {last.generation}, by {last.who} at "
                f"{last.when}: {last.why}{before}"
            )
        elif self.alone is not None:
            lines.append(
                f"champion: version {self.alone}, by its alias alone: there is no "
                "ledger; --reconcile makes it generation 0, and so does the next promotion"
            )
        elif CHAMPION in self.aliases:
            lines.append(
                f"champion: none; its alias was set to version {self.aliases[CHAMPION]} by hand "
                "after a first promotion broke off, and the next promotion moves it"
            )
        else:
            lines.append("champion: none")
        lines += [f"alias {drift}: --reconcile puts it back" for drift in self.drifts]
        return [*lines, self.gone] if self.gone else lines


def standing(uri: str, name: str) -> Standing:
    """What stands of one model; nothing is changed.

    Raises:
        UnknownModelError: No such model.
    """
    registry, gone = MlflowRegistry(uri=uri), ""
    aliases = registry.aliases(name)
    found: Sequence[Drift] = ()
    try:
        found = drifts(registry, name)
    except UnknownVersionError as error:
        gone = f"{error}; the ledger has it as champion: promote another one, or roll back"
    return Standing(
        name=name,
        versions=versions_of(uri, name),
        aliases=aliases,
        alone=alone(registry, name),
        drifts=found,
        gone=gone,
        history=history(registry, name),
    )


def overview(uri: str) -> list[dict[str, object]]:
    """A row for each registered model."""
    rows: list[dict[str, object]] = []
    for name in MlflowRegistry(uri=uri).names():
        found = standing(uri, name)
        last = found.history[-1] if found.history else None
        rows.append(
            {
                "model": name,
                "versions": len(found.versions),
                "champion": last.version if last else found.alone,
                "generation": last.generation if last else None,
                "since": last.when if last else "",
                "who": last.who if last else "",
                "aliases": "moved" if found.drifts or found.gone else "as in the ledger",
            }
        )
    return rows


def mend(uri: str, name: str) -> list[str]:
    """Put aliases back to where the ledger says, and begin it where there is none; says what.

    Raises:
        UnknownModelError: No such model; or its champion was deleted: promote another one.
    """
    registry = MlflowRegistry(uri=uri)
    begun = bool(registry.ledger(name))
    last = begin(registry, name, who=who(uri), now=clock())
    said = [f"alias {drift}" for drift in reconcile(registry, name)]
    if last is not None:
        registry.set_tags(name, last.version, {GENERATION_TAG: str(last.generation)})
    if last is not None and not begun:
        said.append(f"version {last.version} is generation 0 of the ledger: its alias stood")
    return said
