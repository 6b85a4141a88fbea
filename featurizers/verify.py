"""Hold every byte of a dataset against what was written, and clear what is of no use."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from featurizers.clip import Clip
from featurizers.dataset import (
    CLIPS,
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
from featurizers.shards import Part, Record, column_folder, column_of, record_at
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
        rest: Files of the same shard that are of no use without this one, in the order in which
            they are to be removed.
    """

    what: What
    file: str
    where: str
    text: str
    clips: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()

    def __str__(self) -> str:
        clips = f": clips {', '.join(self.clips)}" if self.clips else ""
        return f"{self.where} {self.text}{clips}"


def verify(root: Root) -> list[Problem]:
    """All that is wrong with a dataset: flipped bytes, missing, stray or truncated files.

    Returns:
        Empty when all is well.

    Raises:
        DatasetError: The list of forgotten clips is damaged.
        StorageError: It cannot be read.
    """
    store = store_at(root)
    sizes = store.sizes(COLUMNS)
    problems, shards = _table_problems(root, store)
    problems += [
        Problem(what="stray", file=name, where=store.where(name), text="belongs to no column")
        for name in sorted(sizes)
        if not column_of(name)
    ]
    forgotten = read_forgotten(root)
    for fingerprint in sorted({column_of(name) for name in sizes} - {""}):
        folder = column_folder(fingerprint)
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

    What is removed of a damaged shard is made again by the next featurizing, unless its inputs have
    changed since: then the rest of it is removed as well.

    Returns:
        The names of the files that were removed.
    """
    store = store_at(root)
    removed: list[str] = store.sweep("")
    there = store.sizes(COLUMNS)
    for problem in problems:
        files = (*problem.rest, problem.file) if problem.what in {"stray", "damaged"} else ()
        for name in files:
            if name in there and name not in removed:
                store.delete(name)
                removed.append(name)
    return removed


def _table_problems(root: Root, store: Store) -> tuple[list[Problem], Mapping[int, Sequence[str]]]:
    """What is wrong with the tables of clips and of the plan, and the keys of each shard."""
    if not has_clips(root):
        return [], {}
    try:
        clips = read_clips(root)
    except DatasetError as error:
        place = store.where(CLIPS)
        text = f"cannot be read: {error}"
        return [Problem(what="damaged", file=CLIPS, where=place, text=text)], {}
    return _plan_problems(store, clips)


def _plan_problems(
    store: Store, clips: Sequence[Clip]
) -> tuple[list[Problem], Mapping[int, Sequence[str]]]:
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

    def _say(
        self,
        what: What,
        name: str,
        text: str,
        clips: Sequence[str] = (),
        rest: Sequence[str] = (),
    ) -> None:
        self._found.append(
            Problem(
                what=what,
                file=name,
                where=self._store.where(name),
                text=text,
                clips=tuple(clips),
                rest=tuple(rest),
            )
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
            self._index(record)
            self._tar(digest, manifest, record)

    def _index(self, record: Record) -> None:
        name = f"{self._folder}/{record.index.file}"
        try:
            index_rows(self._store, self._folder, record)
        except (CorruptShardError, DatasetError):
            self._say("damaged", name, self._size_text(record.index), self._keys(name))

    def _tar(self, digest: str, manifest: Manifest, record: Record) -> None:
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
        )
        clips: Sequence[str]
        try:
            clips = column.damaged(record) if size is not None else sorted(column.rows)
            where = "" if clips else ", between the clips"
        except CorruptShardError:  # its index, which was told of
            clips, where = self._keys(name), ""
        column.close()
        self._say("damaged", name, self._size_text(record.tar) + where, clips)

    def _sizes_of(self, record: Record) -> None:
        """A finished shard that the manifest does not count: is it all there?

        If its inputs have changed since, nobody will do it again: without the record, which goes
        first, the rest is no longer spoken of.
        """
        files = [f"{self._folder}/{each.file}" for each in (record, record.tar, record.index)]
        for part in (record.tar, record.index):
            name = f"{self._folder}/{part.file}"
            if self._sizes.get(name) != part.size:
                self._say("damaged", name, self._size_text(part), self._keys(name), files)

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
