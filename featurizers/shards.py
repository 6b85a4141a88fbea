"""One shard of a column: a reproducible WebDataset tar, its index and its record, whole or absent.

Order of commit: tar, index, record. A record exists only if the other two do, so its existence
means completeness. None of the three holds a time, host, attempt, path or speed: equal jobs give
equal bytes.
"""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip, Fault
from featurizers.dataset import DatasetError, publish, whole
from featurizers.extract import Outcome
from featurizers.spec import FeatureSpec, canonical_json

FORMAT = 1
State: TypeAlias = Literal["sample", "absent", "quarantined"]
MEMBERS = ("values", "times", "meta")


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's payload lies in the tar, and what it must be."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A clip in the index of a shard; members are there for samples alone."""

    key: str
    state: State
    fault: Fault | None
    message: str
    steps: int
    seconds: float
    members: Mapping[str, Member]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """That a shard of a column is finished, and what it is made of.

    Attributes:
        name: Shard number and the job's first 12 digits; the stem of all three files.
        job: The job's identity (sha256 in hex).
        spec: The spec's digest.
        tar, index: (bytes, sha256 in hex) of the two files.
        counts: Clips by state.
        faults: Quarantined clips by fault.
    """

    name: str
    shard: int
    job: str
    spec: str
    tar: tuple[int, str]
    index: tuple[int, str]
    counts: Mapping[str, int]
    faults: Mapping[str, int]

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(
            {
                "format": FORMAT,
                "name": self.name,
                "shard": self.shard,
                "job": self.job,
                "spec": self.spec,
                "tar": list(self.tar),
                "index": list(self.index),
                "counts": dict(self.counts),
                "faults": dict(self.faults),
            }
        )

    @staticmethod
    def from_bytes(content: bytes) -> "Record":
        """The record that `to_bytes` wrote."""
        plain = json.loads(content)
        if plain.pop("format") != FORMAT:
            raise ValueError(f"record {plain['name']}: this code reads format {FORMAT}")
        return Record(**{**plain, "tar": tuple(plain["tar"]), "index": tuple(plain["index"])})


def job_id(spec: FeatureSpec, clips: Sequence[Clip]) -> str:
    """H(spec, ordered keys, and each clip's span and digests of exactly what the spec reads)."""
    inputs = [[clip.key, clip.start, clip.end, _inputs(spec, clip)] for clip in clips]
    return hashlib.sha256(canonical_json([FORMAT, spec.digest, inputs])).hexdigest()


def _inputs(spec: FeatureSpec, clip: Clip) -> list[Any]:
    found: list[Any] = []
    for name in spec.reads:
        if name in {"audio", "video"}:
            found.append(clip.media_digest)
        elif name == "words":
            words = None if clip.words is None else [[w.text, w.start, w.end] for w in clip.words]
            found.append(words)
        else:
            stream = name.removeprefix("stream:")
            found.append([clip.stream_digests.get(stream), clip.stream_rates.get(stream)])
    return found


def shard_name(shard: int, job: str) -> str:
    """The stem of a shard's files."""
    return f"{shard:05d}-{job[:12]}"


def read_record(column: Path, shard: int, job: str) -> Record | None:
    """The record of a finished job; None when it is not finished.

    A shard whose tar or index was lost or cut since is not finished either: doing the job again
    gives the same bytes.

    Raises:
        DatasetError: The record is damaged.
    """
    path = column / f"{shard_name(shard, job)}.json"
    try:
        record = Record.from_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{path} is damaged ({error}); delete it and featurize again") from None
    if record.job != job:
        raise DatasetError(f"{path} belongs to job {record.job}, not to {job}; delete it")
    for suffix, (size, _) in ((".tar", record.tar), (".parquet", record.index)):
        file = path.with_suffix(suffix)
        if not file.is_file() or file.stat().st_size != size:
            return None
    return record


def write_shard(
    column: Path,
    shard: int,
    job: str,
    spec: FeatureSpec,
    *,
    clips: Sequence[Clip],
    outcomes: Sequence[Outcome],
) -> Record:
    """Write tar, index and record of one shard, in that order.

    Args:
        column: The column's folder.
        shard: The shard's number in the plan.
        job: The job's identity.
        spec: The column's spec.
        clips: The shard's clips in the plan's order.
        outcomes: One for each clip.

    Raises:
        StorageError: Something could not be written; nothing partial is left under a final name.
    """
    name = shard_name(shard, job)
    tar = _write_tar(column / f"{name}.tar", spec, clips, outcomes)
    rows = _rows(column / f"{name}.tar", spec, clips, outcomes)
    index = _index_bytes(rows)
    publish(column / f"{name}.parquet", index)
    states = Counter(row.state for row in rows)
    record = Record(
        name=name,
        shard=shard,
        job=job,
        spec=spec.digest,
        tar=tar,
        index=(len(index), hashlib.sha256(index).hexdigest()),
        counts={state: states[state] for state in ("sample", "absent", "quarantined")},
        faults=dict(sorted(Counter(row.fault for row in rows if row.fault).items())),
    )
    publish(column / f"{name}.json", record.to_bytes())
    return record


def _write_tar(
    path: Path, spec: FeatureSpec, clips: Sequence[Clip], outcomes: Sequence[Outcome]
) -> tuple[int, str]:
    from webdataset import TarWriter

    with whole(path, f"a shard of {len(clips)} clips") as file:
        # TarWriter puts the time of day into headers unless told not to; 0.0 would add a header.
        with TarWriter(file, mtime=0) as writer:
            for clip, outcome in zip(clips, outcomes, strict=True):
                if outcome.feature is not None:
                    writer.write(_members(spec, clip, outcome))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.seek(0, os.SEEK_END)
    return size, digest


def _members(spec: FeatureSpec, clip: Clip, outcome: Outcome) -> dict[str, Any]:
    feature = outcome.feature
    if feature is None:
        raise ValueError(f"{clip.key} has no feature")
    meta = {"id": clip.id, "feature": spec.fingerprint, "steps": len(feature.values)}
    return {
        "__key__": clip.key,
        f"{spec.name}.npy": _npy(feature.values),
        "times.npy": _npy(feature.times),
        "json": canonical_json(meta),
    }


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(
        buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
    )
    return buffer.getvalue()


def _rows(
    path: Path, spec: FeatureSpec, clips: Sequence[Clip], outcomes: Sequence[Outcome]
) -> list[Row]:
    """The index, read back from the tar that was written."""
    places: dict[str, Member] = {}
    with path.open("rb") as file, tarfile.open(fileobj=file) as tar:
        for member in tar:
            file.seek(member.offset_data)
            crc = zlib.crc32(file.read(member.size))
            places[member.name] = Member(member.offset_data, member.size, crc)
            file.seek(member.offset_data)
    suffixes = {"values": f"{spec.name}.npy", "times": "times.npy", "meta": "json"}
    rows: list[Row] = []
    for clip, outcome in zip(clips, outcomes, strict=True):
        steps = 0 if outcome.feature is None else len(outcome.feature.values)
        kept = suffixes if outcome.feature is not None else {}
        members = {n: places[f"{clip.key}.{s}"] for n, s in kept.items()}
        rows.append(
            Row(
                key=clip.key,
                state=outcome.state,
                fault=outcome.fault,
                message=outcome.message,
                steps=steps,
                seconds=clip.seconds,
                members=members,
            )
        )
    return rows


def _index_bytes(rows: Sequence[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [
        ("key", pa.string()),
        ("state", pa.string()),
        ("fault", pa.string()),
        ("message", pa.string()),
        ("steps", pa.int64()),
        ("seconds", pa.float64()),
    ]
    for member in MEMBERS:
        fields += [(f"{member}_{part}", pa.int64()) for part in ("offset", "size", "crc32")]
    plain = [
        {
            "key": row.key,
            "state": row.state,
            "fault": row.fault,
            "message": row.message,
            "steps": row.steps,
            "seconds": row.seconds,
            **{
                f"{name}_{part}": getattr(member, part)
                for name, member in row.members.items()
                for part in ("offset", "size", "crc32")
            },
        }
        for row in rows
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(plain, schema=pa.schema(fields)), buffer)
    return buffer.getvalue()


def read_index(path: Path) -> list[Row]:
    """The rows of an index file."""
    import pyarrow.parquet as pq

    return [_row(plain) for plain in pq.read_table(path).to_pylist()]


def _row(plain: Mapping[str, Any]) -> Row:
    members = {
        name: Member(plain[f"{name}_offset"], plain[f"{name}_size"], plain[f"{name}_crc32"])
        for name in MEMBERS
        if plain[f"{name}_offset"] is not None
    }
    fields = ("key", "state", "fault", "message", "steps", "seconds")
    return Row(members=members, **{name: plain[name] for name in fields})
