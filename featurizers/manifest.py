"""What is known of a column's finished shards: all that feature extraction tells training.

columns/FINGERPRINT/manifests/DIGEST.json   immutable; the whole spec, every record with its digest
columns/FINGERPRINT/manifest.json           a small pointer to the newest, replaced last
"""

import hashlib
import io
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.dataset import COLUMNS, DatasetError, publish
from featurizers.shards import Member, Record, Row, read_index
from featurizers.spec import Feature, FeatureSpec, canonical_json

FORMAT = 1
OPEN_FILES = 32


class CorruptShardError(Exception):
    """Bytes on disk are not those that were written."""


@dataclass(slots=True, kw_only=True)
class Column:
    """A committed column: its spec, its rows by clip key, and random access to its features.

    Attributes:
        digest: sha256 of the manifest.
        records: Its shards, in order.
        rows: What became of each clip.
        shards: The shard of each clip, by key.
    """

    folder: Path
    spec: FeatureSpec
    digest: str
    records: tuple[Record, ...]
    rows: Mapping[str, Row]
    shards: Mapping[str, int]
    _files: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def read(self, key: str) -> Feature | None:
        """A clip's feature; None when it is absent or quarantined.

        Raises:
            KeyError: The plan has no such clip.
            CorruptShardError: Size or checksum differ; names shard and clip.
        """
        row = self.rows[key]
        if row.state != "sample":
            return None
        name = next(r.name for r in self.records if r.shard == self.shards[key])
        values = self._member(name, row, "values")
        return Feature(values, self._member(name, row, "times"))

    def close(self) -> None:
        """Close the shards that are open."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        # Nobody else closes plain file numbers, and a process may open many columns.
        self.close()

    def _member(self, name: str, row: Row, member: str) -> NDArray[Any]:
        content = self._bytes(name, row, member)
        array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
        return array

    def _bytes(self, name: str, row: Row, member: str) -> bytes:
        place: Member = row.members[member]
        content = os.pread(self._open(name), place.size, place.offset)
        if len(content) != place.size or zlib.crc32(content) != place.crc32:
            raise CorruptShardError(
                f"{self.folder / name}.tar: {member} of clip {row.key} are damaged; "
                f"delete the shard's .json and featurize again"
            )
        return content

    def damaged(self, record: Record) -> list[str]:
        """Clips of a shard of which some member is not what was written."""
        found: list[str] = []
        for key in sorted(key for key, shard in self.shards.items() if shard == record.shard):
            try:
                for member in self.rows[key].members:
                    self._bytes(record.name, self.rows[key], member)
            except CorruptShardError:
                found.append(key)
        return found

    def _open(self, name: str) -> int:
        if name in self._files:
            self._files.move_to_end(name)
            return self._files[name]
        if len(self._files) >= OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        self._files[name] = os.open(self.folder / f"{name}.tar", os.O_RDONLY)
        return self._files[name]


def commit(root: Path, spec: FeatureSpec, plan_digest: str, records: Sequence[Record]) -> str:
    """Write the manifest of a complete column, then the pointer to it; returns its digest."""
    folder = root / COLUMNS / spec.fingerprint
    ordered = sorted(records, key=lambda record: record.shard)
    content = canonical_json(
        {
            "format": FORMAT,
            "spec": spec.to_json(),
            "plan": plan_digest,
            "records": [
                {"name": record.name, "sha256": hashlib.sha256(record.to_bytes()).hexdigest()}
                for record in ordered
            ],
        }
    )
    digest = hashlib.sha256(content).hexdigest()
    if not (folder / "manifests" / f"{digest}.json").exists():
        publish(folder / "manifests" / f"{digest}.json", content)
    if committed_digest(root, spec.fingerprint) != digest:
        publish(folder / "manifest.json", canonical_json({"format": FORMAT, "digest": digest}))
    return digest


def committed_digest(root: Path, fingerprint: str) -> str | None:
    """The digest that a column's pointer names; None when nothing is committed.

    Raises:
        CorruptShardError: The pointer cannot be read.
        DatasetError: It is of another format.
    """
    path = root / COLUMNS / fingerprint / "manifest.json"
    try:
        pointer = json.loads(path.read_bytes())
        digest, form = str(pointer["digest"]), pointer["format"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise CorruptShardError(
            f"{path} is not what was written; delete it and featurize again"
        ) from None
    if form != FORMAT:
        raise DatasetError(f"{path} is of format {form}, this code reads {FORMAT}")
    return digest


def open_column(root: Path, fingerprint: str) -> Column:
    """Open the newest manifest of a column, checking every digest down to the indexes.

    Raises:
        DatasetError: Nothing is committed under that name.
        CorruptShardError: A manifest, record or index is not what was written, or a tar has another
            size.
    """
    folder = root / COLUMNS / fingerprint
    digest = committed_digest(root, fingerprint)
    if digest is None:
        raise DatasetError(f"{folder} has no manifest: the column is not finished; featurize first")
    manifest = json.loads(_verified(folder / "manifests" / f"{digest}.json", digest))
    if manifest["format"] != FORMAT:
        raise DatasetError(
            f"{folder}: manifest format {manifest['format']}, this code reads {FORMAT}"
        )
    records: list[Record] = []
    rows: dict[str, Row] = {}
    shards: dict[str, int] = {}
    for entry in manifest["records"]:
        record = Record.from_bytes(_verified(folder / f"{entry['name']}.json", entry["sha256"]))
        index = folder / f"{record.name}.parquet"
        _verified(index, record.index[1])
        _check_size(folder / f"{record.name}.tar", record.tar[0])
        records.append(record)
        for row in read_index(index):
            rows[row.key], shards[row.key] = row, record.shard
    return Column(
        folder=folder,
        spec=FeatureSpec.from_json(manifest["spec"]),
        digest=digest,
        records=tuple(records),
        rows=rows,
        shards=shards,
    )


def _verified(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CorruptShardError(f"{path} is missing; featurize again") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CorruptShardError(f"{path} is not what was written; delete it and featurize again")
    return content


def _check_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.exists() else None
    if found != size:
        raise CorruptShardError(f"{path} has {found} bytes, {size} were written; featurize again")


def verify(root: Path) -> list[str]:
    """All that is wrong with a dataset's columns: flipped bytes, missing, stray or truncated files.

    Returns:
        One line for each problem; empty when all is well.
    """
    problems: list[str] = []
    for folder in sorted((root / COLUMNS).glob("*/")):
        problems += _verify_column(root, folder)
    return problems


def _verify_column(root: Path, folder: Path) -> list[str]:
    try:
        column = open_column(root, folder.name)
    except (CorruptShardError, DatasetError) as error:
        return [str(error)]
    problems: list[str] = []
    for record in column.records:
        content = (folder / f"{record.name}.tar").read_bytes()
        if hashlib.sha256(content).hexdigest() != record.tar[1]:
            keys = column.damaged(record)
            where = f"clips {', '.join(keys)}" if keys else "between the clips"
            problems.append(f"{folder / record.name}.tar is not what was written: {where}")
    column.close()
    found = {path.name for path in folder.iterdir()}
    strays = sorted(found - _known(folder) - {"manifest.json", "manifests"})
    return problems + [f"{folder / stray} belongs to no finished shard" for stray in strays]


def _known(folder: Path) -> set[str]:
    """The files of all finished shards, also of those whose inputs have changed since."""
    known: set[str] = set()
    for path in folder.glob("[!.]*-*.json"):
        try:
            name = Record.from_bytes(path.read_bytes()).name
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if name == path.stem:
            known |= {f"{name}{suffix}" for suffix in (".tar", ".parquet", ".json")}
    return known
