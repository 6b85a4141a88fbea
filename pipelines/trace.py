"""From a registered model to what it was made of; `reached` is the other way round."""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.experiment import InputError
from pipelines.lineage import Lineage, Row, read_lineage
from pipelines.reached import Sought, sought
from tracking.ledger import Entry, history
from tracking.mlflow_store import MlflowRegistry, RunFacts, Version, read_run, versions_of
from tracking.registry import UnknownModelError

RUN_FACTS = ("code", "commit", "dataset", "plan", "attempts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a version of a registered model was made of.

    Attributes:
        entries: The generations in which it was champion.
        run: Of the run that trained it; None where it was registered without one, or that is gone.
        lineage: None where nothing was kept with the run.
        clip: The row of the clip that was asked for.
        through: The run before, by its id, which took that clip; "" for the model's own run.
    """

    name: str
    version: Version
    aliases: Sequence[str]
    entries: Sequence[Entry]
    run: RunFacts | None
    lineage: Lineage | None
    clip: Mapping[str, Any] | None
    through: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data; of the clips only their number by role, and the one that was asked for."""
        plain = asdict(self)
        if self.lineage is not None:
            told = plain["lineage"]
            told["clips"] = _roles(self.lineage)
            for run_id, before in self.lineage.before.items():
                told["before"][run_id]["clips"] = _roles(before)
            plain["files"] = self.files
        return plain

    @property
    def sentences(self) -> list[str]:
        """Version, ledger, run, dataset; one line each."""
        named = f" ({', '.join(self.aliases)})" if self.aliases else ""
        lines = [f"{self.name} version {self.version.number}{named}, of {self.version.when}"]
        lines += [
            f"generation {each.generation}, by {each.who} at {each.when}: {each.why}; report "
            f"{each.report or 'none'}"
            for each in self.entries
        ]
        if self.run is None:
            return [*lines, "there is no run of it"]
        lines.append(f"run {self.run.run_id} ({self.run.name}) of experiment {self.run.experiment}")
        settings = self.run.settings
        if "recipe_digest" in settings:
            lines.append(f"recipe {settings.get('name', '')} {settings['recipe_digest']}")
        tags = {name: self.run.tags.get(f"fuseline.{name}", "") for name in RUN_FACTS}
        lines += [f"{name} {value}" for name, value in tags.items() if value and name != "dataset"]
        if self.lineage is None:
            return [*lines, "nothing was kept of the clips that it was made of"]
        media = len({row["media_digest"] for row in self.lineage.clips} - {""})
        return [
            *lines,
            f"dataset {self.lineage.dataset}: clips {self.lineage.counts}, of {media} media files",
            *self.lineage.beginnings,
        ]

    @property
    def tables(self) -> Iterator[tuple[str, list[dict[str, object]]]]:
        """Title and rows of each table: the columns, and the clip that was asked for."""
        if self.lineage is not None:
            yield "columns", self.columns
        if self.clip is not None:
            known: list[dict[str, object]] = [
                {"fact": name, "value": str(value)}
                for name, value in self.clip.items()
                if name != "states" and value not in ("", None, {})
            ]
            whose = f", of run {self.through}" if self.through else ""
            yield f"clip {self.clip['id']}{whose}", known
            yield "its shards", self.files

    @property
    def columns(self) -> list[dict[str, object]]:
        """A row for each stream."""
        return [
            {
                "stream": stream,
                "spec": f"{column['spec']['name']} {column['spec']['version']}",
                "fingerprint": column["fingerprint"],
                "shards": len(column["shards"]),
                "manifest": column["manifest"],
                "weights": column["spec"].get("weights", ""),
            }
            for stream, column in (self.lineage.columns if self.lineage else {}).items()
        ]

    @property
    def files(self) -> list[dict[str, object]]:
        """A row for each stream of the clip that was asked for: state, and the file it lies in."""
        if self.lineage is None or self.clip is None:
            return []
        shard = str(self.clip["shard"])
        taken = self.lineage.before[self.through] if self.through else self.lineage
        return [
            {
                "stream": stream,
                "state": self.clip["states"][stream],
                "tar": f"columns/{column['fingerprint']}/{column['shards'][shard]['tar']}",
                "sha256": column["shards"][shard]["sha256"],
            }
            for stream, column in taken.columns.items()
        ]


def _roles(lineage: Lineage) -> dict[str, int]:
    return dict(Counter(row["role"] for row in lineage.clips))


def trace(uri: str, model: str, clip: str | None = None, dataset: str | None = None) -> Trace:
    """What a model was made of, and where a clip of it lies.

    Args:
        uri: The tracking server.
        model: NAME@ALIAS, NAME/VERSION or NAME (its champion), with or without "models:/".
        clip: A clip's key or id.
        dataset: The dataset that it is of, where that was moved or ingested anew: the clip is known
            there, and found by the bytes of its media and its span.

    Raises:
        UnknownModelError: No such model, version or alias.
        InputError: The model took no such clip, nor did a run that it starts from.
    """
    name, version, aliases = _named(uri, model)
    run = read_run(uri, version.run_id) if version.run_id else None
    lineage = read_lineage(uri, version.run_id) if run else None
    through, row = ("", None) if clip is None else _clip(model, lineage, sought([clip], dataset))
    return Trace(
        name=name,
        version=version,
        aliases=sorted(alias for alias, number in aliases.items() if number == version.number),
        entries=[e for e in history(MlflowRegistry(uri=uri), name) if e.version == version.number],
        run=run,
        lineage=lineage,
        clip=row,
        through=through,
    )


def _named(uri: str, model: str) -> tuple[str, Version, Mapping[str, int]]:
    form = re.fullmatch(r"(?:models:/)?([^/@]+?)(?:@([\w-]+)|/(\d+))?", model)
    if form is None:
        raise UnknownModelError(f"{model!r} names no model; wanted NAME@ALIAS or NAME/VERSION")
    name, alias, number = form.groups()
    aliases = MlflowRegistry(uri=uri).aliases(name)
    wanted = int(number) if number else aliases.get(alias or "champion")
    versions = {version.number: version for version in versions_of(uri, name)}
    if wanted not in versions:
        there = ", ".join(map(str, versions)) or "none"
        named = ", ".join(f"@{alias}" for alias in sorted(aliases)) or "no aliases"
        raise UnknownModelError(f"there is no {model}; there are versions {there} and {named}")
    return name, versions[wanted], aliases


def _clip(model: str, lineage: Lineage | None, clip: Sought) -> tuple[str, Row]:
    """The row of a clip, and the run before that took it; the model's own run comes first."""
    layers = {"": lineage, **lineage.before} if lineage else {}
    ids: list[str] = []
    for run_id, each in layers.items():
        for row in each.clips:
            if clip.has(row, each):
                return run_id, row
            ids.append(row["id"])
    (name,) = clip.names
    near = difflib.get_close_matches(name, ids, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{model} took no clip {name!r}{hint}")
