"""What is known of a column's finished shards: all that feature extraction tells training.

columns/FINGERPRINT/manifests/DIGEST.json   immutable; the whole spec, and every record in full
columns/FINGERPRINT/manifest.json           a small pointer to the newest, replaced last
"""

import functools
import hashlib
import io
import json
import re
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.dataset import COLUMNS, DatasetError
from featurizers.node_cache import NodeCache, SpoiltCopyError
from featurizers.shards import Member, Part, Record, Row, column_folder, column_of, read_index
from featurizers.spec import Feature, FeatureSpec, canonical_json
from featurizers.store import Opened, Root, Store, store_at

FORMAT = 2
OPEN_FILES = 16
"""Shards that a column holds open: those that are shuffled together, and as many of the next."""

APART = 1 << 12
"""Bytes between two members that are rather read with them than asked for anew."""

MANIFESTS = "manifests"
POINTER = "manifest.json"


class CorruptShardError(Exception):
    """Bytes on disk are not those that were written."""


@dataclass(slots=True, kw_only=True)
class Column:
    """A committed column: its spec, its rows by clip key, and random access to its features.

    Attributes:
        folder: Where it lies in the store.
        digest: sha256 of the manifest.
        plan: sha256 of the plan that it was made by.
        records: Its shards, in order.
        cache: Where copies of its shards are kept on this machine; None reads them where they lie.
    """

    store: Store
    folder: str
    spec: FeatureSpec
    digest: str
    plan: str
    records: tuple[Record, ...]
    cache: NodeCache | None = None
    _found: tuple[dict[str, Row], dict[str, int]] | None = None
    _by_shard: dict[int, Record] = field(default_factory=dict)
    _files: OrderedDict[str, Opened] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._by_shard.update((record.shard, record) for record in self.records)

    @property
    def rows(self) -> Mapping[str, Row]:
        """What became of each clip. Read from all indexes when it is first asked for.

        Raises:
            CorruptShardError: An index is missing or not what was written.
        """
        return self._indexes()[0]

    @property
    def shards(self) -> Mapping[str, int]:
        """The shard of each clip, by key. Raises as `rows`."""
        return self._indexes()[1]

    def read(self, key: str) -> Feature | None:
        """A clip's feature; None when it is absent or quarantined.

        Raises:
            KeyError: The plan has no such clip.
            CorruptShardError: Size or checksum differ; names shard and clip.
        """
        row = self.rows[key]
        if row.state != "sample":
            return None
        record = self._by_shard[self.shards[key]]
        values, times = self._payloads(record, row, ("values", "times"))
        return Feature(array_of(values), array_of(times))

    def close(self) -> None:
        """Close the shards that are open."""
        while self._files:
            self._files.popitem()[1].close()

    def damaged(self, record: Record) -> list[str]:
        """Clips of a shard of which some member is not what was written."""
        found: list[str] = []
        for key in sorted(key for key, shard in self.shards.items() if shard == record.shard):
            try:
                for member in self.rows[key].members:
                    self._payloads(record, self.rows[key], (member,))
            except CorruptShardError:
                found.append(key)
        return found

    def where(self, file: str = "") -> str:
        """The whole path or URL of one of its files, for messages."""
        return self.store.where(f"{self.folder}/{file}" if file else self.folder)

    def _indexes(self) -> tuple[dict[str, Row], dict[str, int]]:
        if self._found is None:
            rows: dict[str, Row] = {}
            shards: dict[str, int] = {}
            for record in self.records:
                for row in index_rows(self.store, self.folder, record):
                    rows[row.key], shards[row.key] = row, record.shard
            self._found = rows, shards
        return self._found

    def _payloads(self, record: Record, row: Row, members: Sequence[str]) -> list[memoryview]:
        """Members of a clip, held against the index; what lies close together is read at once."""
        places = [row.members[member] for member in members]
        pieces = self._pieces(record, places)
        if self.cache is not None and _damaged(places, pieces):
            # Where the shard lies it may be whole: the copy is made anew.
            if (opened := self._files.pop(record.tar.file, None)) is not None:
                opened.close()
            self.cache.drop(record.tar.sha256)
            pieces = self._pieces(record, places)
        if damaged := _damaged(places, pieces):
            raise CorruptShardError(
                f"{self.where(record.tar.file)}: {members[damaged[0]]} of clip {row.key} are "
                f"damaged; delete the file and featurize again"
            )
        return pieces

    def _pieces(self, record: Record, places: Sequence[Member]) -> list[memoryview]:
        first = min([place.offset for place in places])
        last = max([place.offset + place.size for place in places])
        if last - first <= sum([place.size for place in places]) + APART:
            whole = memoryview(self._read(record, first, last - first))
            return [whole[place.offset - first :][: place.size] for place in places]
        return [memoryview(self._read(record, each.offset, each.size)) for each in places]

    def _read(self, record: Record, offset: int, size: int) -> bytes:
        try:
            return self._open(record).read_at(offset, size)
        except FileNotFoundError:
            return b""

    def _open(self, record: Record) -> Opened:
        name = record.tar.file
        if name in self._files:
            self._files.move_to_end(name)
            return self._files[name]
        if len(self._files) >= OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        self._files[name] = self._opened(record.tar)
        return self._files[name]

    def _opened(self, part: Part) -> Opened:
        name = f"{self.folder}/{part.file}"
        if self.cache is None:
            return self.store.open(name)
        try:
            return self.cache.open(self.store, name, part.size, part.sha256)
        except SpoiltCopyError as error:
            raise CorruptShardError(f"{error}; delete the file and featurize again") from None


def _damaged(places: Sequence[Member], pieces: Sequence[memoryview]) -> list[int]:
    """Which of the pieces are not what the index says."""
    return [
        number
        for number, (place, piece) in enumerate(zip(places, pieces, strict=True))
        if len(piece) != place.size or zlib.crc32(piece) != place.crc32
    ]


# What `np.lib.format` writes of plain numbers; its own reader takes ten times as long for it.
_HEADER = 128
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00v\x00\{'descr': '([<|][a-z]\d+)', 'fortran_order': False, "
    rb"'shape': \(((?:\d+, ?)+\d*)\), \} *\n"
)


def array_of(content: memoryview) -> NDArray[Any]:
    """The array of a .npy file, read-only where it is plain: it lies in `content` itself.

    Raises:
        ValueError: It is none, or holds objects.
    """
    plain = _plain_header(bytes(content[:_HEADER]))
    if plain is None:
        array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
        return array
    dtype, shape = plain
    return np.frombuffer(content, dtype, offset=_HEADER).reshape(shape)


@functools.lru_cache(maxsize=1 << 12)  # clips of one column differ in the number of steps alone
def _plain_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    found = _NPY.fullmatch(header)
    if found is None:
        return None
    return np.dtype(found[1].decode()), tuple(map(int, re.findall(rb"\d+", found[2])))


def commit(root: Root, spec: FeatureSpec, plan_digest: str, records: Sequence[Record]) -> str:
    """Write the manifest of a complete column, then the pointer to it; returns its digest.

    Raises:
        StorageError: One of them could not be written; the column is as it was before.
    """
    store, folder = store_at(root), column_folder(spec.fingerprint)
    ordered = sorted(records, key=lambda record: record.shard)
    content = canonical_json(
        {
            "format": FORMAT,
            "spec": spec.to_json(),
            "plan": plan_digest,
            "records": [record.to_json() for record in ordered],
        }
    )
    digest = hashlib.sha256(content).hexdigest()
    name = f"{folder}/{MANIFESTS}/{digest}.json"
    if store.sizes(f"{folder}/{MANIFESTS}").get(name) != len(content):
        # Named by its content: who comes second finds the same; what was cut is mended.
        store.replace(name, content)
    if committed_digest(root, spec.fingerprint) != digest:
        pointer = canonical_json({"format": FORMAT, "digest": digest})
        store.replace(f"{folder}/{POINTER}", pointer)
    return digest


def committed_digest(root: Root, fingerprint: str) -> str | None:
    """The digest that a column's pointer names; None when nothing is committed.

    Raises:
        CorruptShardError: The pointer cannot be read.
        DatasetError: It is of another format.
    """
    store, name = store_at(root), f"{column_folder(fingerprint)}/{POINTER}"
    try:
        pointer = json.loads(store.read(name))
        digest, form = str(pointer["digest"]), pointer["format"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise CorruptShardError(
            f"{store.where(name)} is not what was written; delete it and featurize again"
        ) from None
    if form != FORMAT:
        raise DatasetError(
            f"{store.where(name)} is of format {form}, this code reads {FORMAT}; featurize again "
            f"into another folder"
        )
    return digest


def committed(root: Root) -> list[str]:
    """The names of all columns that have a manifest."""
    names = store_at(root).sizes(COLUMNS)
    return sorted(
        {c for name in names if (c := column_of(name)) and name.endswith(f"{c}/{POINTER}")}
    )


def open_column(root: Root, fingerprint: str, cache: NodeCache | None = None) -> Column:
    """Open the newest manifest of a column; its indexes are read when they are asked for.

    Args:
        root: Where the dataset lies.
        fingerprint: The column's name.
        cache: See `Column`.

    Raises:
        DatasetError: Nothing is committed under that name.
        CorruptShardError: The manifest is not what was written, or a tar or an index has another
            size.
    """
    store, folder = store_at(root), column_folder(fingerprint)
    digest = committed_digest(root, fingerprint)
    if digest is None:
        raise DatasetError(
            f"{store.where(folder)} has no manifest: the column is not finished; featurize first"
        )
    return _opened(store, folder, digest, store.sizes(folder), cache)


def _opened(
    store: Store, folder: str, digest: str, sizes: Mapping[str, int], cache: NodeCache | None
) -> Column:
    manifest = read_manifest(store, folder, digest)
    for record in manifest.records:
        for part in (record.tar, record.index):
            _check_size(store, f"{folder}/{part.file}", part.size, sizes)
    return Column(
        store=store,
        folder=folder,
        spec=manifest.spec,
        digest=digest,
        plan=manifest.plan,
        records=manifest.records,
        cache=cache,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest's content: the spec, the plan's digest, and the records in order of shards."""

    spec: FeatureSpec
    plan: str
    records: tuple[Record, ...]


def read_manifest(store: Store, folder: str, digest: str) -> Manifest:
    """A manifest by its digest.

    Raises:
        CorruptShardError: It is missing or not what was written.
        DatasetError: It is of another format.
    """
    name = f"{folder}/{MANIFESTS}/{digest}.json"
    plain = json.loads(_verified(store, name, digest))
    if plain["format"] != FORMAT:
        raise DatasetError(
            f"{store.where(name)} is of format {plain['format']}, this code reads {FORMAT}"
        )
    try:
        records = tuple(Record.from_json(record) for record in plain["records"])
    except ValueError as error:
        raise CorruptShardError(f"{store.where(name)} is not what was written: {error}") from None
    return Manifest(spec=FeatureSpec.from_json(plain["spec"]), plan=plain["plan"], records=records)


def index_rows(store: Store, folder: str, record: Record) -> list[Row]:
    """The rows of a shard.

    Raises:
        CorruptShardError: Its index is missing or not what was written.
    """
    name = f"{folder}/{record.index.file}"
    return read_index(_verified(store, name, record.index.sha256), store.where(name))


def _verified(store: Store, name: str, digest: str) -> bytes:
    try:
        content = store.read(name)
    except FileNotFoundError:
        raise CorruptShardError(f"{store.where(name)} is missing; featurize again") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise CorruptShardError(
            f"{store.where(name)} is not what was written; delete it and featurize again"
        )
    return content


def _check_size(store: Store, name: str, size: int, sizes: Mapping[str, int]) -> None:
    found = sizes.get(name)
    if found is None:
        raise CorruptShardError(f"{store.where(name)} is missing; featurize again")
    if found != size:
        raise CorruptShardError(
            f"{store.where(name)} has {found} bytes, {size} were written; featurize again"
        )
