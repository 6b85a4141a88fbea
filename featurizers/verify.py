"""Hold every byte of a dataset against what was written, and clear what is of no use."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from featurizers.clip import Clip
from featurizers.dataset import (
    COLUMNS,
    PLAN,
    DatasetError,
    forgotten_digest,
    has_clips,
    read_clips,
    read_forgotten,
    table_rows,
)
from featurizers.manifest import (
    MANIFESTS,
    POINTER,
    Column,
    CorruptShardError,
    Manifest,
    committed_digest,
    index_rows,
    read_manifest,
)
from featurizers.shards import Part, Record, Row, record_at
from featurizers.store import Root, Store, sha256, store_at

What: TypeAlias = Literal[
    "damaged",  # bytes are not those that were written, or are not there
    "stray",  # no record and no manifest names the file
    "unfinished",  # left by a writer that was killed
    "forgotten",  # it still holds a clip that was to be forgotten
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: Its name in the dataset.
        where: Its whole path or URL.
        text: What was found.
        clips: The keys of the clips that it touches.
    """

    what: What
    file: str
    where: str
    text: str
    clips: tuple[str, ...] = ()

    def __str__(self) -> str:
        clips = f": clips {', '.join(self.clips)}" if self.clips else ""
        return f"{self.where} {self.text}{clips}"


def verify(root: Root) -> list[Problem]:
    """All that is wrong with a dataset: flipped bytes, missing, stray or truncated files.

    Returns:
        Empty when all is well.

    Raises:
        DatasetError: The table of clips is damaged.
        StorageError: It cannot be read.
    """
    store = store_at(root)
    sizes = store.sizes(COLUMNS)
    folders = sorted({"/".join(name.split("/")[:2]) for name in sizes})
    problems: list[Problem] = []
    shards: Mapping[int, Sequence[str]] = {}
    if has_clips(root):
        problems, shards = _plan_problems(store, read_clips(root))
    forgotten = read_forgotten(root)
    for folder in folders:
        mine = {name: size for name, size in sizes.items() if name.startswith(f"{folder}/")}
        check = _ColumnCheck(root, folder, mine, shards=shards, forgotten=forgotten)
        problems += check.problems()
    problems += [
        Problem(what="unfinished", file=name, where=store.where(name), text="was never finished")
        for name in store.unfinished("")
    ]
    return problems


def clean(root: Root, problems: Sequence[Problem]) -> list[str]:
    """Remove files that are of no use: unfinished, stray, and damaged ones.

    What is removed of a damaged shard is made again by the next featurizing.

    Returns:
        The names of the files that were removed.
    """
    store = store_at(root)
    removed: list[str] = store.sweep("")
    there = store.sizes(COLUMNS)
    for problem in problems:
        useless = problem.what in {"stray", "damaged"}
        if useless and problem.file in there and problem.file not in removed:
            store.delete(problem.file)
            removed.append(problem.file)
    return removed


def _plan_problems(
    store: Store, clips: Sequence[Clip]
) -> tuple[list[Problem], dict[int, list[str]]]:
    """What is wrong with the plan, and the keys of each shard."""
    shards: dict[int, list[str]] = defaultdict(list)

    def wrong(text: str, keys: Sequence[str] = ()) -> list[Problem]:
        place = store.where(PLAN)
        return [Problem(what="damaged", file=PLAN, where=place, text=text, clips=tuple(keys))]

    try:
        rows = table_rows(store.read(PLAN), store.where(PLAN))
    except FileNotFoundError:
        return wrong("is missing; ingest again"), shards
    except DatasetError as error:
        return wrong(f"cannot be read: {error}"), shards
    for row in rows:
        shards[row["shard"]].append(row["key"])
    dealt = [row["key"] for row in rows]
    missing = sorted({clip.key for clip in clips} - set(dealt))
    problems = wrong("has no place for some clips; ingest again", missing) if missing else []
    if len(dealt) != len(set(dealt)):
        problems += wrong("has some clips twice", sorted({k for k in dealt if dealt.count(k) > 1}))
    return problems, shards


class _ColumnCheck:
    """The check of one column."""

    def __init__(
        self,
        root: Root,
        folder: str,
        sizes: Mapping[str, int],
        *,
        shards: Mapping[int, Sequence[str]],
        forgotten: frozenset[str],
    ) -> None:
        self._root, self._store, self._folder, self._sizes = root, store_at(root), folder, sizes
        self._shards, self._forgotten = shards, forgotten
        self._known: set[str] = set()
        self._found: list[Problem] = []

    def problems(self) -> list[Problem]:
        current = self._pointed()
        manifests = self._manifests()
        records = self._records()
        standing = () if current is None else manifests[current].records
        if current is not None:
            self._column(current, manifests[current])
        for record in records:
            if record not in standing:
                self._sizes_of(record)
        named = (record for each in manifests.values() for record in each.records)
        everything = list({r.to_bytes(): r for r in (*records, *named)}.values())
        for record in everything:
            self._known |= {f"{self._folder}/{p.file}" for p in (record.tar, record.index)}
        self._holds_forgotten(everything)
        for name in sorted(set(self._sizes) - self._known):
            self._say("stray", name, "belongs to no finished shard")
        return self._found

    def _say(self, what: What, name: str, text: str, clips: Sequence[str] = ()) -> None:
        place = self._store.where(name)
        self._found.append(
            Problem(what=what, file=name, where=place, text=text, clips=tuple(clips))
        )

    def _pointed(self) -> str | None:
        """The digest of the manifest that counts, when it can be read."""
        name = f"{self._folder}/{POINTER}"
        self._known.add(name)
        try:
            digest = committed_digest(self._root, self._folder.split("/")[1])
        except (CorruptShardError, DatasetError) as error:
            self._say("damaged", name, f"cannot be read: {error}")
            return None
        if digest is None and any(f"/{MANIFESTS}/" in each for each in self._sizes):
            self._say("damaged", name, "is missing")
        if digest is not None:
            try:
                read_manifest(self._store, self._folder, digest)
            except (CorruptShardError, DatasetError) as error:
                manifest = f"{self._folder}/{MANIFESTS}/{digest}.json"
                if manifest not in self._sizes:  # the others are looked at in any case
                    self._say("damaged", manifest, f"is missing: {error}")
                return None
        return digest

    def _manifests(self) -> dict[str, Manifest]:
        found: dict[str, Manifest] = {}
        for name in self._sizes:
            if f"/{MANIFESTS}/" not in name or not name.endswith(".json"):
                continue
            self._known.add(name)
            digest = name.rsplit("/", 1)[1].removesuffix(".json")
            try:
                found[digest] = read_manifest(self._store, self._folder, digest)
            except (CorruptShardError, DatasetError, ValueError, KeyError) as error:
                self._say("damaged", name, f"is not what was written: {error}")
        return found

    def _records(self) -> list[Record]:
        """Every record that lies there, also of inputs that have changed since."""
        found: list[Record] = []
        for name in sorted(self._sizes):
            if not name.endswith(".json") or name in self._known:
                continue
            self._known.add(name)
            record = record_at(self._store, name)
            if record is not None and f"{self._folder}/{record.file}" == name:
                found.append(record)
            else:
                self._say("damaged", name, "is not a record that was written", self._keys(name))
        return found

    def _keys(self, name: str) -> Sequence[str]:
        """The clips of the shard that a file's name tells."""
        number = name.rsplit("/", 1)[1].split("-", maxsplit=1)[0]
        return self._shards.get(int(number), ()) if number.isdecimal() else ()

    def _column(self, digest: str, manifest: Manifest) -> None:
        """The files that the manifest names, byte for byte."""
        for record in manifest.records:
            name = f"{self._folder}/{record.file}"
            if name not in self._sizes:
                self._say("damaged", name, "is missing", self._keys(name))
            rows = self._index(record)
            self._tar(digest, manifest, record, rows)

    def _index(self, record: Record) -> list[Row]:
        name = f"{self._folder}/{record.index.file}"
        try:
            return index_rows(self._store, self._folder, record)
        except (CorruptShardError, DatasetError):
            self._say("damaged", name, self._size_text(record.index), self._keys(name))
            return []

    def _tar(self, digest: str, manifest: Manifest, record: Record, rows: Sequence[Row]) -> None:
        name = f"{self._folder}/{record.tar.file}"
        size = self._sizes.get(name)
        if size == record.tar.size and sha256(self._store, name, size) == record.tar.sha256:
            return
        column = Column(
            store=self._store,
            folder=self._folder,
            spec=manifest.spec,
            digest=digest,
            plan=manifest.plan,
            records=(record,),
            rows={row.key: row for row in rows},
            shards={row.key: record.shard for row in rows},
        )
        clips = column.damaged(record) if size is not None else sorted(column.rows)
        column.close()
        where = "" if clips else ", between the clips"
        self._say("damaged", name, self._size_text(record.tar) + where, clips)

    def _sizes_of(self, record: Record) -> None:
        """A finished shard that no manifest counts: is it all there?"""
        for part in (record.tar, record.index):
            name = f"{self._folder}/{part.file}"
            if self._sizes.get(name) != part.size:
                self._say("damaged", name, self._size_text(part), self._keys(name))

    def _size_text(self, part: Part) -> str:
        size = self._sizes.get(f"{self._folder}/{part.file}")
        if size is None:
            return "is missing"
        if size != part.size:
            return f"has {size} bytes, {part.size} were written"
        return "is not what was written"

    def _holds_forgotten(self, records: Sequence[Record]) -> None:
        for record in sorted(records, key=lambda each: each.name) if self._forgotten else ():
            keys = list(self._forgotten_in(record))
            if keys:
                name = f"{self._folder}/{record.tar.file}"
                self._say("forgotten", name, "holds clips that were to be forgotten", keys)

    def _forgotten_in(self, record: Record) -> Iterator[str]:
        name = f"{self._folder}/{record.index.file}"
        if name not in self._sizes:
            return
        try:
            rows = index_rows(self._store, self._folder, record)
        except (CorruptShardError, DatasetError):
            return
        yield from (row.key for row in rows if forgotten_digest(row.key) in self._forgotten)
