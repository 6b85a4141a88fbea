"""From clips or a shard to the runs and models that they have reached: what to train anew.

A clip is known by its key or id, and wherever it went by what it is: the bytes of its media and its
span. So it is found too in runs of a dataset that was moved since, ingested anew, or cut otherwise,
and in runs that began with the weights of one that has seen it.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from featurizers.clip import Clip
from featurizers.dataset import DatasetError, read_clips
from featurizers.store import Root, store_at
from pipelines.lineage import ROLES, TAG, Lineage, Row, read_lineage, words_digest
from pipelines.upkeep import keys_of
from tracking.ledger import history
from tracking.mlflow_store import (
    MlflowRegistry,
    NoStoreError,
    StoreError,
    runs_tagged,
    versions_of,
)

OVERLAP_S = 0.001
"""Spans of one file that have more than this in common are of the same recording."""

Wanted: TypeAlias = Callable[[Lineage], Mapping[str, str]]
"""By key, what a lineage took some clips for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A version of a registered model that clips have reached.

    Attributes:
        was_champion: Whether it is champion, or was.
        roles: By key of a clip, whether it was trained on, or chose ("valid") or measured ("test").
        through: The runs whose weights its run began with, where these have seen the clips.
    """

    name: str
    version: int
    aliases: Sequence[str]
    was_champion: bool
    run_id: str
    roles: Mapping[str, str]
    through: Sequence[str]

    def __str__(self) -> str:
        named = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.name} version {self.version}{named}: {_how(self.roles, self.through)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachedRun:
    """A run that clips have reached; the attributes as of `Reached`.

    Attributes:
        versions: Of registered models that are this run's: "NAME/VERSION".
    """

    run_id: str
    name: str
    experiment: str
    status: str
    versions: Sequence[str]
    roles: Mapping[str, str]
    through: Sequence[str]

    def __str__(self) -> str:
        what = f"run {self.run_id} ({self.name}) of experiment {self.experiment}"
        return f"{what}, not registered: {_how(self.roles, self.through)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What clips have reached."""

    models: Sequence[Reached] = ()
    runs: Sequence[ReachedRun] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @property
    def sentences(self) -> list[str]:
        """A line for each version, and for each run that is none."""
        bare = [run for run in self.runs if not run.versions]
        said = [*map(str, self.models), *map(str, bare)]
        return said or ["no run and no registered model was made of it"]


def reached(uri: str, clips: Collection[str], shard: str | None, dataset: str | None) -> Reach:
    """What a shard has reached where one is given, else what clips have."""
    if shard is not None:
        return reached_by_shard(uri, shard)
    return reached_by_clips(uri, sought(clips, dataset))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """Clips that are looked for.

    Attributes:
        names: Keys and ids.
        place: The dataset that these are of; None for any.
        known: What is known of them.
    """

    names: Collection[str]
    place: str | None = None
    known: Sequence[Row] = ()

    def has(self, row: Row, lineage: Lineage) -> bool:
        """Whether a row of a lineage is of one of them: by its name there, or by what it is."""
        named = row["key"] in self.names or row["id"] in self.names
        if named and self.place in {None, lineage.dataset}:
            return True
        return any(_is_same(row, one) for one in self.known)

    def with_known(self, rows: Iterable[Row]) -> "Sought":
        """The same, and more that is known of them."""
        return Sought(names=self.names, place=self.place, known=[*self.known, *rows])


def sought(names: Collection[str], dataset: Root | None = None) -> Sought:
    """Clips by key or id, with what the dataset's table says of them, where it is there.

    Args:
        names: Keys or ids.
        dataset: Where they lie; any dataset where it is not given.

    Raises:
        InputError: The dataset is there and has no such clip, nor was it forgotten there.
    """
    if dataset is None:
        return Sought(names=names)
    known: list[Row] = []
    with suppress(DatasetError):
        clips = read_clips(dataset)
        keys_of(dataset, clips, names)
        known = [_row(clip) for clip in clips if clip.key in names or clip.id in names]
    return Sought(names=names, place=store_at(dataset).where(), known=known)


def reached_by_clips(uri: str, clips: Sought) -> Reach:
    """The runs and the versions of all registered models that some clips have reached."""
    lineages = _Lineages(uri)
    # By name first: a lineage says what the clips are, also where no dataset does any more.
    named = [
        row
        for run_id in lineages.runs
        for _, each in lineages.layers(run_id)
        for row in each.clips
        if clips.has(row, each)
    ]
    whole = clips.with_known(named)

    def roles(lineage: Lineage) -> dict[str, str]:
        return _strongest(
            {row["key"]: row["role"]} for row in lineage.clips if whole.has(row, lineage)
        )

    return _reach(lineages, roles)


def reached_if_known(uri: str, clips: Sought) -> tuple[Reach, str]:
    """As `reached_by_clips`; and why that is not known, where the tracking store cannot tell."""
    try:
        return reached_by_clips(uri, clips), ""
    except (NoStoreError, StoreError) as error:
        return Reach(), str(error)


def reached_by_shard(uri: str, shard: str) -> Reach:
    """The runs and the versions of all registered models that a shard has reached.

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
        return _strongest(
            {row["key"]: row["role"]}
            for row in lineage.clips
            if any(row["states"][s] == "sample" for s, number in numbers if number == row["shard"])
        )

    return _reach(_Lineages(uri), roles)


class _Lineages:
    """What is known of the lineage of all runs of a tracking server."""

    HELD = 8  # lineages at a time; runs of one dataset and recipe often share one

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._registry = MlflowRegistry(uri=uri)
        self.runs = {run.run_id: run for run in runs_tagged(uri, TAG)}
        # The first run that has a lineage, by which that is held.
        self._firsts: dict[str, str] = {}
        for run_id, run in self.runs.items():
            self._firsts.setdefault(run.tags[TAG], run_id)
        self.versions: dict[str, list[tuple[str, int]]] = {}
        for name in self._registry.names():
            for version in versions_of(uri, name):
                self.versions.setdefault(version.run_id, []).append((name, version.number))
        self._read = lru_cache(self.HELD)(self._layers)

    def layers(self, run_id: str) -> list[tuple[str, Lineage]]:
        """What a run took, then what each run before took, by its id; "" is the run itself."""
        digest = self.runs[run_id].tags[TAG]
        return self._read(self._firsts[digest])

    def of_versions(self, run_id: str) -> Iterator[tuple[str, int, list[str], bool]]:
        """Name, number, aliases of each version of a run, and whether it is or was champion."""
        for name, number in self.versions.get(run_id, ()):
            aliases = self._registry.aliases(name)
            named = sorted(alias for alias, version in aliases.items() if version == number)
            past = {entry.version for entry in history(self._registry, name)}
            yield name, number, named, number in past

    def _layers(self, run_id: str) -> list[tuple[str, Lineage]]:
        found = read_lineage(self._uri, run_id)
        return [] if found is None else [("", found), *found.before.items()]


def _reach(lineages: _Lineages, roles_in: Wanted) -> Reach:
    models: list[Reached] = []
    runs: list[ReachedRun] = []
    for run_id, run in lineages.runs.items():
        found = [(each, roles_in(lineage)) for each, lineage in lineages.layers(run_id)]
        roles = _strongest([taken for _, taken in found])
        if not roles:
            continue
        through = [before for before, taken in found if before and taken]
        versions = list(lineages.of_versions(run_id))
        models += [
            Reached(
                name=name,
                version=number,
                aliases=aliases,
                was_champion=was_champion,
                run_id=run_id,
                roles=roles,
                through=through,
            )
            for name, number, aliases, was_champion in versions
        ]
        runs.append(
            ReachedRun(
                run_id=run_id,
                name=run.name,
                experiment=run.experiment,
                status=run.status,
                versions=[f"{name}/{number}" for name, number, *_ in versions],
                roles=roles,
                through=through,
            )
        )
    models.sort(key=lambda each: (each.name, each.version))
    return Reach(models=models, runs=runs)


def _strongest(found: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What each clip was taken for at the most: to train on is more than to choose or to measure.

    Within a run too: a fold may choose its epoch on the clips that it measures. A clip of a run
    before counts by itself: it may have another key than the one of this dataset.
    """
    roles: dict[str, str] = {}
    for taken in found:
        for key, role in taken.items():
            roles[key] = min(role, roles.get(key, role), key=ROLES.index)
    return roles


def _is_same(row: Row, known: Row) -> bool:
    """Whether two rows are of one recording; without media, whether all their numbers are equal."""
    if row["media_digest"] != known["media_digest"]:
        return False
    if row["media_digest"]:
        return _common_s(row, known) > OVERLAP_S
    inputs = ("key", "words", "streams")
    return any(row[name] for name in inputs[1:]) and all(
        row[name] == known[name] for name in inputs
    )


def _common_s(one: Row, other: Row) -> float:
    """Seconds that two spans have in common; without an end, a span goes to that of the file."""
    ends = [math.inf if row["end"] is None else row["end"] for row in (one, other)]
    return float(min(ends) - max(one["start"], other["start"]))


def _row(clip: Clip) -> Row:
    """What is known of a clip, as a lineage has it."""
    return {
        "key": clip.key,
        "media_digest": clip.media_digest,
        "start": clip.start,
        "end": clip.end,
        "words": words_digest(clip),
        "streams": dict(clip.stream_digests),
    }


def _how(roles: Mapping[str, str], through: Sequence[str]) -> str:
    counts = Counter(roles.values())
    how = ", ".join(f"{counts[role]} in {role}" for role in ROLES if counts[role])
    return f"{how}, through run {', '.join(through)}, which it starts from" if through else how
