"""What a worker does with a job: one shard, and the columns that are computed from one decoding."""

import os
import socket
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurizers import catalog
from featurizers.clip import BadClipError, Clip
from featurizers.clocks import Clocks
from featurizers.decoder import Decoder
from featurizers.egemaps import MissingPackageError
from featurizers.extract import Outcome, extract_all, in_order_of_media
from featurizers.imported import ComputedElsewhereError
from featurizers.intake import digest as file_digest
from featurizers.manifest import Column, CorruptShardError
from featurizers.memory import peak_bytes
from featurizers.pretrained import WeightsError
from featurizers.shards import Record, column_folder, write_shard
from featurizers.spec import EncodingFeaturizer, FeatureSpec, Featurizer
from featurizers.stages import Stages
from featurizers.store import Root, Store, read_input, store_at
from featurizers.transient import patiently
from pipelines.executors import ItemFailedError, Need
from pipelines.staging import Stage

SLOWEST = 5
MEDIA = {"audio", "video"}


class ChangedInputError(ItemFailedError):
    """An input is not, or no longer, what was ingested."""


class MissingEncoderError(ItemFailedError):
    """A node has not what an encoder needs, or it cannot be used: no clip is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A column's part of a job.

    Attributes:
        job: Its identity.
        standing: A finished shard whose rows are taken for all clips that are not computed anew.
        instead: The new record takes the place of the one that is there.
    """

    spec: FeatureSpec
    job: str
    standing: Record | None = None
    instead: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A shard, and the columns to be computed from one decoding of it.

    Attributes:
        redo: The keys of the clips to be computed; None for all of them.
    """

    shard: int
    clips: Sequence[Clip]
    parts: tuple[Part, ...]
    redo: frozenset[str] | None = None

    def __str__(self) -> str:
        columns = ", ".join(part.spec.fingerprint for part in self.parts)
        return f"shard {self.shard} of {columns}"

    @property
    def reads(self) -> set[str]:
        """All inputs that its columns read."""
        return {name for part in self.parts for name in part.spec.reads}

    @property
    def fresh(self) -> int:
        """How many clips are computed."""
        return len(self.clips if self.redo is None else self.redo)

    @property
    def media_seconds(self) -> float:
        """Seconds of media that are decoded."""
        if not MEDIA & self.reads:
            return 0.0
        redo = self.redo
        return sum(c.seconds for c in self.clips if redo is None or c.key in redo)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a job: small, and nothing that a shard's bytes depend on.

    Attributes:
        clips: How many were to be computed.
        seconds: From its beginning to its last record.
        bytes_read: Of media files.
        peak_bytes, decoder_peak_bytes: The most resident memory that the worker and its decoding
            child ever took.
        slowest: Keys and seconds of the clips that took longest.
        notes: What an encoder that ran out of memory did about it.
        devices: Where encoders computed, by their featurizers' names.
        clocks: Keys of the clips whose media have sound and pictures, and how their clocks lie to
            each other.
    """

    shard: int
    records: tuple[Record, ...]
    columns: tuple[str, ...]
    clips: int
    media_seconds: float
    seconds: float
    host: str
    pid: int
    bytes_read: int
    bytes_written: int
    peak_bytes: int
    decoder_peak_bytes: int
    stages: Mapping[str, Mapping[str, Any]]
    slowest: tuple[tuple[str, float], ...]
    notes: tuple[str, ...] = ()
    devices: Mapping[str, str] = field(default_factory=dict)
    clocks: tuple[tuple[str, Clocks], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A line of the log."""
        faults: dict[str, int] = {}
        for record in self.records:
            for fault, count in record.faults.items():
                faults[fault] = faults.get(fault, 0) + count
        return {
            "shard": self.shard,
            "columns": list(self.columns),
            "clips": self.clips,
            "media_seconds": round(self.media_seconds, 3),
            "seconds": round(self.seconds, 4),
            "host": self.host,
            "pid": self.pid,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "peak_bytes": self.peak_bytes,
            "decoder_peak_bytes": self.decoder_peak_bytes,
            "stages": dict(self.stages),
            "slowest": [{"key": key, "seconds": round(s, 4)} for key, s in self.slowest],
            "faults": faults,
            "notes": list(self.notes),
            "devices": dict(self.devices),
            "clocks": [{"key": key, **found.numbers()} for key, found in self.clocks],
        }


def need_of(job: Job, memory_bytes: int = 0, gpus: float = 0.0) -> Need:
    """What a worker for this job takes: decoding asks for memory, an encoder perhaps for a GPU."""
    encodes = any(catalog.is_encoder(part.spec.name) for part in job.parts)
    return Need(
        cpus=1.0,
        gpus=gpus if encodes else 0.0,
        memory_bytes=memory_bytes if MEDIA & job.reads else 0,
    )


class ShardWorker:
    """Does jobs; holds one decoding child and the featurizers that it has made."""

    def __init__(self, root: Root, stage: Stage) -> None:
        # Imported here, a second and 200 MB (WebDataset loads torch): no job is billed for it.
        import pyarrow.parquet  # noqa: F401 - loaded ahead of use
        import webdataset  # noqa: F401 - loaded ahead of use

        self._store, self._stage, self._decoder = store_at(root), stage, Decoder()
        self._featurizers: dict[str, Featurizer] = {}

    def close(self) -> None:
        """End the decoding child."""
        self._decoder.close()

    def __call__(self, job: Job) -> Done:
        """Compute and write the shard's columns, each whole or absent by itself."""
        began = time.perf_counter()
        stages, inputs = Stages(), Inputs(self._stage, job.reads)
        spans: list[tuple[str, float]] = []
        notes: list[str] = []
        clocks: list[tuple[str, Clocks]] = []
        outcomes = self._outcomes(job, inputs, stages, spans=spans, notes=notes, clocks=clocks)
        records = tuple(
            self._write(job, part, [each[number] for each in outcomes], stages)
            for number, part in enumerate(job.parts)
        )
        return Done(
            shard=job.shard,
            records=records,
            columns=tuple(part.spec.fingerprint for part in job.parts),
            clips=job.fresh,
            media_seconds=job.media_seconds,
            seconds=time.perf_counter() - began,
            host=socket.gethostname(),
            pid=os.getpid(),
            bytes_read=inputs.bytes_read,
            bytes_written=sum(record.tar.size + record.index.size for record in records),
            peak_bytes=peak_bytes(),
            decoder_peak_bytes=self._decoder.peak_bytes,
            stages=stages.to_json(),
            slowest=tuple(sorted(spans, key=lambda each: (-each[1], each[0]))[:SLOWEST]),
            notes=tuple(notes),
            devices=_devices([self._featurizer(part.spec) for part in job.parts]),
            clocks=tuple(clocks),
        )

    def _outcomes(
        self,
        job: Job,
        inputs: "Inputs",
        stages: Stages,
        *,
        spans: list[tuple[str, float]],
        notes: list[str],
        clocks: list[tuple[str, Clocks]],
    ) -> list[list[Outcome]]:
        """For each clip an outcome of each part: taken from a standing shard, or computed."""
        taken = [taken_from(self._store, part, job) for part in job.parts]
        todo = in_order_of_media(
            [clip for clip in job.clips if any(clip.key not in rows for rows in taken)]
        )
        for clip in todo:
            inputs.check_streams(clip)
        featurizers = [self._featurizer(part.spec) for part in job.parts]
        computed = extract_all(
            todo,
            inputs.fetch,
            featurizers,
            self._decoder,
            stages,
            spans=spans,
            notes=notes,
            clocks=clocks,
        )
        try:
            fresh = dict(zip((clip.key for clip in todo), computed, strict=True))
        except (WeightsError, MissingPackageError) as error:
            raise MissingEncoderError(f"on {socket.gethostname()}: {error}") from None
        except ComputedElsewhereError as error:
            raise ItemFailedError(str(error)) from None
        return [
            [
                rows[clip.key] if clip.key in rows else fresh[clip.key][number]
                for number, rows in enumerate(taken)
            ]
            for clip in job.clips
        ]

    def _featurizer(self, spec: FeatureSpec) -> Featurizer:
        if spec.digest not in self._featurizers:
            try:
                self._featurizers[spec.digest] = catalog.from_spec(spec)
            except (WeightsError, MissingPackageError) as error:
                raise MissingEncoderError(f"on {socket.gethostname()}: {error}") from None
        return self._featurizers[spec.digest]

    def _write(self, job: Job, part: Part, outcomes: Sequence[Outcome], stages: Stages) -> Record:
        began, cpu = time.perf_counter(), time.thread_time()
        record = patiently(
            lambda: write_shard(
                self._store,
                job.shard,
                part.job,
                part.spec,
                clips=job.clips,
                outcomes=outcomes,
                instead=part.instead,
            )
        )
        stages.add("write", time.perf_counter() - began, time.thread_time() - cpu)
        return record


def _devices(featurizers: Sequence[Featurizer]) -> dict[str, str]:
    return {
        featurizer.spec.name: str(getattr(featurizer.encoder, "device", "cpu"))
        for featurizer in featurizers
        if isinstance(featurizer, EncodingFeaturizer)
    }


def taken_from(store: Store, part: Part, job: Job) -> dict[str, Outcome]:
    """Outcomes by key of the clips that are not to be computed anew, as they stand in a shard.

    What cannot be read there is left out, and so computed.
    """
    record, redo = part.standing, job.redo
    if record is None or redo is None:
        return {}
    column = Column(
        store=store,
        folder=column_folder(part.spec.fingerprint),
        spec=part.spec,
        digest="",
        plan="",
        records=(record,),
    )
    try:
        rows = column.rows
    except CorruptShardError:
        return {}
    taken: dict[str, Outcome] = {}
    for clip in job.clips:
        if clip.key in redo or clip.key not in rows:
            continue
        row = rows[clip.key]
        try:
            feature = column.read(clip.key)
        except CorruptShardError:
            continue
        taken[clip.key] = Outcome(
            state=row.state, feature=feature, fault=row.fault, message=row.message
        )
    column.close()
    return taken


@dataclass(slots=True)
class Inputs:
    """Gets inputs onto this machine and holds them against the digests that name their jobs.

    Without the check, a file that changed after ingest would be committed under its old digest, and
    one that cannot be reached for a while would count as missing for good. Each file is read once.
    """

    stage: Stage
    reads: Set[str]
    bytes_read: int = 0
    _digests: dict[Path, str] = field(default_factory=dict)

    def fetch(self, clip: Clip) -> Path | None:
        """The clip's media; None where there were none at ingest either.

        Raises:
            ChangedInputError: They are not what was ingested.
            StorageError: They could not be fetched, or cannot be read now.
        """
        path = self.stage.local(clip.media)
        is_new = path not in self._digests
        self._hold(clip, clip.media, path, clip.media_digest)
        if path is not None and is_new and self._digests[path]:
            self.bytes_read += read_input(path, path.stat).st_size
        return path

    def check_streams(self, clip: Clip) -> None:
        """Raise ChangedInputError when a stream that is read is not what was ingested."""
        for name, path in clip.streams.items():
            if f"stream:{name}" in self.reads:
                self._hold(clip, path, Path(path), clip.stream_digests[name])

    def _hold(self, clip: Clip, name: str, path: Path | None, wanted: str) -> None:
        found = "" if path is None else self._digests.get(path) or _found(clip, path, wanted)
        if path is not None:
            self._digests[path] = found
        if found != wanted:
            what = "cannot be reached" if not found else "changed since it was ingested"
            advice = "run again when it is there, or ingest" if not found else "ingest"
            raise ChangedInputError(f"clip {clip.id!r}: {name} {what}; {advice} again")


def _found(clip: Clip, path: Path, wanted: str) -> str:
    """A file's digest; empty where nobody may read it and nobody might at ingest."""
    try:
        return file_digest(path)
    except BadClipError as bad:
        if not wanted:
            return ""
        raise ChangedInputError(
            f"clip {clip.id!r}: {path} cannot be read ({bad.message}); run again when it can be, "
            f"or ingest again"
        ) from None
