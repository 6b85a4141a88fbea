"""From a model to what it was made of; from a clip or shard to the models that it has reached."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from featurizers.store import store_at
from pipelines.experiment import InputError
from pipelines.lineage import Lineage, read_lineage
from tracking.ledger import Entry, history
from tracking.mlflow_store import (
    MlflowRegistry,
    NoStoreError,
    RunFacts,
    StoreError,
    Version,
    read_run,
    versions_of,
)
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
    """

    name: str
    version: Version
    aliases: Sequence[str]
    entries: Sequence[Entry]
    run: RunFacts | None
    lineage: Lineage | None
    clip: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Plain data; of the clips only their number by role, and the one that was asked for."""
        plain = asdict(self)
        if self.lineage is not None:
            plain["lineage"]["clips"] = dict(Counter(row["role"] for row in self.lineage.clips))
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
        roles = Counter(row["role"] for row in self.lineage.clips)
        media = len({row["media_digest"] for row in self.lineage.clips})
        counts = ", ".join(f"{roles[role]} {role}" for role in ("train", "valid", "test"))
        return [*lines, f"dataset {self.lineage.dataset}: clips {counts}, of {media} media files"]

    @property
    def tables(self) -> Iterator[tuple[str, list[dict[str, object]]]]:
        """Title and rows of each table: the columns, and the clip that was asked for."""
        if self.lineage is not None:
            yield "columns", self.columns
        if self.clip is not None:
            row = {name: value for name, value in self.clip.items() if name != "states"}
            yield f"clip {self.clip['id']}", [row]
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
        return [
            {
                "stream": stream,
                "state": self.clip["states"][stream],
                "tar": f"columns/{column['fingerprint']}/{column['shards'][shard]['tar']}",
                "sha256": column["shards"][shard]["sha256"],
            }
            for stream, column in self.lineage.columns.items()
        ]


def trace(uri: str, model: str, clip: str | None = None) -> Trace:
    """What a model was made of, and where a clip of it lies.

    Args:
        uri: The tracking server.
        model: NAME@ALIAS, NAME/VERSION or NAME (its champion), with or without "models:/".
        clip: A clip's key or id.

    Raises:
        UnknownModelError: No such model, version or alias.
        InputError: The model took no such clip.
    """
    name, version, aliases = _named(uri, model)
    run = read_run(uri, version.run_id) if version.run_id else None
    lineage = read_lineage(uri, version.run_id) if run else None
    return Trace(
        name=name,
        version=version,
        aliases=sorted(alias for alias, number in aliases.items() if number == version.number),
        entries=[e for e in history(MlflowRegistry(uri=uri), name) if e.version == version.number],
        run=run,
        lineage=lineage,
        clip=None if clip is None else _clip(model, lineage, clip),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A version of a registered model that clips have reached.

    Attributes:
        was_champion: Whether it is champion, or was.
        roles: By key of a clip, whether it was trained on, or chose ("valid") or measured ("test").
    """

    name: str
    version: int
    aliases: Sequence[str]
    was_champion: bool
    run_id: str
    roles: Mapping[str, str]

    def __str__(self) -> str:
        named = f" ({', '.join(self.aliases)})" if self.aliases else ""
        counts = Counter(self.roles.values())
        how = [f"{counts[role]} in {role}" for role in ("train", "valid", "test") if counts[role]]
        return f"{self.name} version {self.version}{named}: {', '.join(how)}"


def sentences_of(found: Sequence[Reached]) -> list[str]:
    """A line for each version, for people."""
    return [str(each) for each in found] or ["no registered model was made of it"]


def reached(
    uri: str, clips: Collection[str], shard: str | None, dataset: str | None
) -> list[Reached]:
    """The versions that a shard has reached where one is given, else those that clips have."""
    if shard is not None:
        return reached_by_shard(uri, shard)
    return reached_by_clips(uri, clips, dataset)


def reached_by_clips(uri: str, clips: Collection[str], dataset: str | None = None) -> list[Reached]:
    """The versions of all registered models that some clips have reached, by key or id.

    Args:
        uri: The tracking server.
        clips: Keys or ids.
        dataset: Only models of this dataset; keys are unique within one.
    """
    place = None if dataset is None else store_at(dataset).where()

    def roles(lineage: Lineage) -> dict[str, str]:
        if place not in {None, lineage.dataset}:
            return {}
        return {
            row["key"]: row["role"]
            for row in lineage.clips
            if row["key"] in clips or row["id"] in clips
        }

    return list(_reached(uri, roles))


def reached_if_known(uri: str, clips: Collection[str], dataset: str) -> tuple[list[Reached], str]:
    """As `reached_by_clips`; and why that is not known, where the tracking store cannot tell."""
    try:
        return reached_by_clips(uri, clips, dataset), ""
    except (NoStoreError, StoreError) as error:
        return [], str(error)


def reached_by_shard(uri: str, shard: str) -> list[Reached]:
    """The versions of all registered models that a shard has reached.

    Args:
        uri: The tracking server.
        shard: The sha256 of its tar, or the tar's name, with or without folders.
    """

    def roles(lineage: Lineage) -> dict[str, str]:
        numbers = {
            (stream, int(number))
            for stream, column in lineage.columns.items()
            for number, file in column["shards"].items()
            if shard == file["sha256"]
            or f"/{lineage.dataset}/columns/{column['fingerprint']}/{file['tar']}".endswith(
                f"/{shard.lstrip('/')}"
            )
        }
        return {
            row["key"]: row["role"]
            for row in lineage.clips
            if any(row["states"][s] == "sample" for s, number in numbers if number == row["shard"])
        }

    return list(_reached(uri, roles))


def _reached(uri: str, roles_in: Callable[[Lineage], Mapping[str, str]]) -> Iterator[Reached]:
    registry = MlflowRegistry(uri=uri)
    for name in registry.names():
        aliases, champions = registry.aliases(name), {e.version for e in history(registry, name)}
        for version in versions_of(uri, name):
            lineage = read_lineage(uri, version.run_id) if version.run_id else None
            roles = roles_in(lineage) if lineage else {}
            if roles:
                yield Reached(
                    name=name,
                    version=version.number,
                    aliases=sorted(a for a, n in aliases.items() if n == version.number),
                    was_champion=version.number in champions,
                    run_id=version.run_id,
                    roles=roles,
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


def _clip(model: str, lineage: Lineage | None, clip: str) -> Mapping[str, Any]:
    rows = lineage.clips if lineage else []
    found = next((row for row in rows if clip in {row["key"], row["id"]}), None)
    if found is None:
        near = difflib.get_close_matches(clip, [row["id"] for row in rows], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{model} took no clip {clip!r}{hint}")
    return found
