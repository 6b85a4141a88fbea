"""One shard of a column: a reproducible WebDataset tar, its index and its record, whole or absent.

Order of commit: tar, index, record. A record exists only if the other two do, so its existence
means completeness. Before the tar gets its name it is read back and held against what was to be
written. None of the three holds a time, host, attempt, path or speed: equal jobs give
equal bytes.

Tar and index are named by the job and by their own content, the record by the job alone, and it is
created only where there is none. So two workers that do the same job at once, one of them given up
long ago, cannot spoil each other's files: the first record says which files count, and who comes
second takes what it names.
"""

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BufferedRandom
from typing import IO, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip, Fault
from featurizers.dataset import COLUMNS, DatasetError, table_bytes, table_rows
from featurizers.extract import Outcome
from featurizers.spec import FeatureSpec, canonical_json
from featurizers.store import StorageError, Store

FORMAT = 2
State: TypeAlias = Literal["sample", "absent", "quarantined"]
MEMBERS = ("values", "times", "meta")
PIECE = 1 << 22


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


# Of a tar or an index: never one that leads out of the column's folder, or is a command.
_FILE = re.compile(r"[A-Za-z0-9_-]+\.[a-z]+")


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a shard: its name in the column's folder, bytes, and sha256 in hex."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """That a shard of a column is finished, and what it is made of.

    Attributes:
        name: Shard number and the job's first 12 digits; the stem of the record's own file.
        job: The job's identity (sha256 in hex).
        spec: The spec's digest.
        tar, index: The two files that count.
        counts: Clips by state.
        faults: Quarantined clips by fault.
    """

    name: str
    shard: int
    job: str
    spec: str
    tar: Part
    index: Part
    counts: Mapping[str, int]
    faults: Mapping[str, int]

    @property
    def file(self) -> str:
        """The record's own file, in the column's folder."""
        return f"{self.name}.json"

    def to_json(self) -> dict[str, Any]:
        """Plain data with a digest of itself; `from_json` gives the record back."""
        plain = {"format": FORMAT, **asdict(self)}
        return {**plain, "digest": hashlib.sha256(canonical_json(plain)).hexdigest()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Record":
        """The record that `to_json` wrote. Raises ValueError for anything else."""
        plain = dict(data)
        digest = plain.pop("digest", None)
        form = plain.get("format")
        if form != FORMAT:
            raise ValueError(f"record of format {form}, this code reads {FORMAT}")
        if hashlib.sha256(canonical_json(plain)).hexdigest() != digest:
            raise ValueError("its digest is of another record")
        del plain["format"]
        parts = {name: Part(**plain[name]) for name in ("tar", "index")}
        for part in parts.values():
            # Whoever writes a record with a fitting digest still leads no reader elsewhere.
            if _FILE.fullmatch(part.file) is None:
                raise ValueError(f"{part.file!r} is no name of a shard's file")
        return Record(**{**plain, **parts})

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(self.to_json())


def job_id(spec: FeatureSpec, clips: Sequence[Clip]) -> str:
    """H(spec, ordered keys, and each clip's span and digests of exactly what the spec reads)."""
    inputs = [[clip.key, clip.start, clip.end, _inputs(spec, clip)] for clip in clips]
    return hashlib.sha256(canonical_json([FORMAT, spec.digest, inputs])).hexdigest()


def _inputs(spec: FeatureSpec, clip: Clip) -> list[Any]:
    found: list[Any] = []
    for name in spec.reads:
        if name in {"audio", "video"}:
            stream = clip.audio_stream if name == "audio" else clip.video_stream
            found.append([clip.media_digest, stream] if stream else clip.media_digest)
        elif name == "words":
            words = None if clip.words is None else [[w.text, w.start, w.end] for w in clip.words]
            found.append(words)
        else:
            numbers = name.removeprefix("stream:")
            found.append([clip.stream_digests.get(numbers), clip.stream_rates.get(numbers)])
    return found


def shard_name(shard: int, job: str) -> str:
    """The stem of a record's file."""
    return f"{shard:05d}-{job[:12]}"


def column_folder(fingerprint: str) -> str:
    """Where the files of a column lie in a dataset."""
    return f"{COLUMNS}/{fingerprint}"


def column_of(name: str) -> str:
    """The fingerprint of the column that a file of a dataset belongs to; empty for a stray."""
    parts = name.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == COLUMNS else ""


def read_record(
    store: Store, folder: str, shard: int, job: str, sizes: Mapping[str, int]
) -> Record | None:
    """The record of a finished job; None when it is not finished.

    A shard whose tar or index was lost or cut since is not finished either: doing the job again
    gives the same bytes.

    Args:
        store: The dataset's store.
        folder: The column's folder in it.
        shard: The shard's number.
        job: The job's identity.
        sizes: Bytes by name of the files in that folder: `store.sizes(folder)`, asked for once.

    Raises:
        DatasetError: The record is damaged.
    """
    record = None
    if f"{folder}/{shard_name(shard, job)}.json" in sizes:
        record = _recorded(store, folder, shard, job)
    return record if record is not None and _whole(folder, record, sizes) else None


def _recorded(store: Store, folder: str, shard: int, job: str) -> Record | None:
    name = f"{folder}/{shard_name(shard, job)}.json"
    where = store.where(name)
    try:
        record = Record.from_json(json.loads(store.read(name)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{where} is damaged ({error}); delete it and featurize again") from None
    if record.job != job:
        raise DatasetError(f"{where} belongs to job {record.job}, not to {job}; delete it")
    return record


def record_at(store: Store, name: str) -> Record | None:
    """The record in a file; None when it holds none."""
    try:
        return Record.from_json(json.loads(store.read(name)))
    except (ValueError, TypeError, KeyError, AttributeError, FileNotFoundError):
        return None


def _whole(folder: str, record: Record, sizes: Mapping[str, int]) -> bool:
    parts = (record.tar, record.index)
    return all(sizes.get(f"{folder}/{part.file}") == part.size for part in parts)


def write_shard(
    store: Store,
    shard: int,
    job: str,
    spec: FeatureSpec,
    *,
    clips: Sequence[Clip],
    outcomes: Sequence[Outcome],
    instead: bool = False,
) -> Record:
    """Write tar, index and record of one shard of a column, in that order.

    When another worker has finished the same job meanwhile, its record is taken.

    Args:
        store: The dataset's store.
        shard: The shard's number in the plan.
        job: The job's identity.
        spec: The column's spec.
        clips: The shard's clips in the plan's order.
        outcomes: One for each clip.
        instead: Take the place of a record that is there: the job is done anew on purpose.

    Returns:
        The record that counts: ours, or the one that was there first.

    Raises:
        StorageError: Something could not be written, or is not read back as it was written; nothing
            partial is left under a final name.
    """
    folder, name = column_folder(spec.fingerprint), shard_name(shard, job)
    stem = f"{folder}/{name}"
    where = store.where(f"{stem}.tar")
    with store.draft(f"{stem}.tar", f"a shard of {len(clips)} clips") as draft:
        summing = _Summing(draft.file)
        meant = _write_tar(summing, spec, clips, outcomes)
        there = _read_back(draft.file, meant, where)
        rows = _rows(there, spec, clips, outcomes)
        tar = _part(name, ".tar", *_digest(draft.file, summing.crc32, where))
        draft.publish(f"{folder}/{tar.file}")
    index_content = _index_bytes(rows)
    index = _part(name, ".parquet", len(index_content), hashlib.sha256(index_content).hexdigest())
    store.replace(f"{folder}/{index.file}", index_content)
    states = Counter(row.state for row in rows)
    record = Record(
        name=name,
        shard=shard,
        job=job,
        spec=spec.digest,
        tar=tar,
        index=index,
        counts={state: states[state] for state in ("sample", "absent", "quarantined")},
        faults=dict(sorted(Counter(row.fault for row in rows if row.fault).items())),
    )
    return _commit(store, folder, record, instead=instead)


def _part(name: str, suffix: str, size: int, digest: str) -> Part:
    return Part(f"{name}-{digest[:8]}{suffix}", size, digest)


def _commit(store: Store, folder: str, record: Record, *, instead: bool) -> Record:
    """Create the record; the one that is there already wins, unless its files are gone."""
    name, content = f"{folder}/{record.file}", record.to_bytes()
    if instead:
        store.replace(name, content)
        return record
    if store.create(name, content):
        return record
    try:
        winner = _recorded(store, folder, record.shard, record.job)
    except DatasetError:
        winner = None
    if winner is not None and _whole(folder, winner, store.sizes(folder)):
        return winner
    store.replace(name, content)
    return record


@dataclass(frozen=True, slots=True)
class _Content:
    """What identifies a member's payload, wherever it lies."""

    size: int
    crc32: int


class _Summing:
    """Writes to a file, and sums up what is written."""

    def __init__(self, file: BufferedRandom) -> None:
        self._file, self.crc32 = file, 0

    def write(self, content: bytes) -> int:
        self.crc32 = zlib.crc32(content, self.crc32)
        return self._file.write(content)


def _write_tar(
    file: _Summing, spec: FeatureSpec, clips: Sequence[Clip], outcomes: Sequence[Outcome]
) -> dict[str, _Content]:
    """Write the members; gives, by name, what each is to be."""
    from webdataset import TarWriter

    meant: dict[str, _Content] = {}
    # TarWriter puts the time of day into headers unless told not to; 0.0 would add a header.
    with TarWriter(file, mtime=0) as writer:
        for clip, outcome in zip(clips, outcomes, strict=True):
            if outcome.feature is None:
                continue
            members = _members(spec, clip, outcome)
            for suffix, content in members.items():
                meant[f"{clip.key}.{suffix}"] = _Content(len(content), zlib.crc32(content))
            writer.write({"__key__": clip.key, **members})
    return meant


def _members(spec: FeatureSpec, clip: Clip, outcome: Outcome) -> dict[str, bytes]:
    """The payloads of a sample by the suffixes of their names."""
    feature = outcome.feature
    if feature is None:
        raise ValueError(f"{clip.key} has no feature")
    meta = {"id": clip.id, "feature": spec.fingerprint, "steps": len(feature.values)}
    return {
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


def _read_back(
    file: BufferedRandom, meant: Mapping[str, _Content], where: str
) -> dict[str, Member]:
    """Where each member lies in the tar that was written, by name.

    A disk, a network or a memory that errs without a word gives other bytes back than it was given;
    their digest must not be made the shard's.

    Raises:
        StorageError: They are not what was to be written; the next try may succeed.
    """
    try:
        found = _found(file)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise _spoilt(where, f"no tar ({error})") from None
    for name in {**meant, **found}:
        key, _, suffix = name.partition(".")
        member, content = found.get(name), meant.get(name)
        if member is None or content is None:
            what = "is not there" if member is None else "was never written"
            raise _spoilt(where, f"clip {key!r}: the member {suffix} {what}")
        if (member.size, member.crc32) != (content.size, content.crc32):
            got, wanted = (
                f"{each.size} bytes of crc32 {each.crc32:08x}" for each in (member, content)
            )
            raise _spoilt(where, f"clip {key!r}: the member {suffix} has {got}, not {wanted}")
    return found


def _found(file: BufferedRandom) -> dict[str, Member]:
    places: dict[str, Member] = {}
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        for member in tar:
            file.seek(member.offset_data)
            places[member.name] = Member(member.offset_data, member.size, _crc32(file, member.size))
    return places


def _digest(file: BufferedRandom, meant: int, where: str) -> tuple[int, str]:
    """Size and sha256 in hex of a whole file, what lies between its members too.

    Raises:
        StorageError: Its crc32 is not what was meant.
    """
    file.seek(0)
    sha256, size, crc = hashlib.sha256(), 0, 0
    while piece := file.read(PIECE):
        sha256.update(piece)
        size, crc = size + len(piece), zlib.crc32(piece, crc)
    if crc != meant:
        raise _spoilt(where, f"crc32 {crc:08x}, not {meant:08x}, outside of all members")
    return size, sha256.hexdigest()


def _crc32(file: IO[bytes], size: int) -> int:
    """Of the next bytes, read in pieces: a member may be as large as two hours of features."""
    crc = 0
    while size and (piece := file.read(min(PIECE, size))):
        crc, size = zlib.crc32(piece, crc), size - len(piece)
    return crc


def _spoilt(where: str, what: str) -> StorageError:
    text = f"{where}: what was written is not what is read back: {what}; run the same command again"
    return StorageError(text, transient=True)


def _rows(
    places: Mapping[str, Member],
    spec: FeatureSpec,
    clips: Sequence[Clip],
    outcomes: Sequence[Outcome],
) -> list[Row]:
    """The index of members that lie at these places."""
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
    return table_bytes(pa.Table.from_pylist(plain, schema=pa.schema(fields)))


def read_index(content: bytes, where: str) -> list[Row]:
    """The rows of an index. Raises DatasetError when it is damaged."""
    return [_row(plain) for plain in table_rows(content, where)]


def _row(plain: Mapping[str, Any]) -> Row:
    members = {
        name: Member(plain[f"{name}_offset"], plain[f"{name}_size"], plain[f"{name}_crc32"])
        for name in MEMBERS
        if plain[f"{name}_offset"] is not None
    }
    fields = ("key", "state", "fault", "message", "steps", "seconds")
    return Row(members=members, **{name: plain[name] for name in fields})
