"""Try quarantined clips again, and forget clips."""

import difflib
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurizers.clip import FAULTS, Clip, key_of
from featurizers.dataset import (
    COLUMNS,
    LOGS,
    DatasetError,
    forgotten_digest,
    read_clips,
    read_forgotten,
    write_clips,
    write_forgotten,
)
from featurizers.manifest import (
    MANIFESTS,
    POINTER,
    Column,
    CorruptShardError,
    commit,
    committed,
    committed_digest,
    index_rows,
    open_column,
    read_manifest,
)
from featurizers.shards import (
    Record,
    column_folder,
    column_of,
    job_id,
    read_record,
    record_at,
)
from featurizers.spec import FeatureSpec
from featurizers.store import Root, Store, store_at
from pipelines.executors import Executor
from pipelines.experiment import Experiment, FailedError, InputError
from pipelines.featurize import commit_all, jobs, run_jobs, specs_of
from pipelines.ingest import read_plan, write_plan
from pipelines.plan import by_shard, digest
from pipelines.staging import Stage, clear
from pipelines.worker import MEDIA, Done, Job, Part, ShardWorker

NAMED = 10  # so many clips are told by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """What trying again came to.

    Attributes:
        clips: How many clips were tried, by column.
        left: How many of them are still quarantined, by column.
        left_out: Ids of clips that were not tried: there was nothing to read at ingest.
        columns: The committed columns by stream.
    """

    clips: Mapping[str, int]
    left: Mapping[str, int]
    left_out: Sequence[str]
    columns: Mapping[str, Column]


def retry(
    experiment: Experiment,
    reasons: Sequence[str],
    executor: Executor,
    done: Callable[[Done], None],
    told: Callable[[str], None],
) -> Retried:
    """Compute quarantined clips once more; all others stay as they are, byte for byte.

    A new record takes the place of the old one. When every clip is well the second time, the shard
    is the one that an undisturbed run would have written.

    A clip of which there was nothing to read at ingest is left out: jobs are named by their inputs,
    so that one with a file is another job. It has to be ingested again.

    Args:
        experiment: The settings.
        reasons: Only clips with these faults; empty for all.
        executor: Where jobs run.
        done: Told of each finished job.
        told: Told in sentences how fast it was, and which clips are left out.

    Raises:
        InputError: There is no such reason.
        DatasetError: Nothing was ingested, or a column is not finished.
        TooManyDroppedError: Still more than `max_dropped` are quarantined.
    """
    for reason in reasons:
        if reason not in FAULTS:
            raise InputError(f"--reason {reason}: there is none; there are {', '.join(FAULTS)}")
    root = experiment.root
    specs = {stream: each.spec for stream, each in experiment.featurizers().items()}
    unique = specs_of(experiment)
    work = jobs(root, unique)
    if work.todo:
        raise DatasetError(
            f"{store_at(root).where()}: {len(work.todo)} jobs are left to do; featurize first"
        )
    todo, left_out = _jobs_again(root, unique, work.finished, reasons)
    if left_out:
        told(_without_a_file(left_out))
    fresh = run_jobs(experiment, executor, todo, done, told)
    replaced = {(record.spec, record.shard) for record in fresh}
    standing = [r for r in work.finished if (r.spec, r.shard) not in replaced]
    commit_all(root, unique, [*standing, *fresh], experiment.max_dropped)
    columns = {stream: open_column(root, spec.fingerprint) for stream, spec in specs.items()}
    tried = {spec.fingerprint: _tried(spec, todo) for spec in unique}
    return Retried(
        clips={name: len(keys) for name, keys in tried.items()},
        left={
            column.spec.fingerprint: sum(
                column.rows[key].state == "quarantined" for key in tried[column.spec.fingerprint]
            )
            for column in columns.values()
        },
        left_out=left_out,
        columns=columns,
    )


def _without_a_file(ids: Sequence[str]) -> str:
    named = ", ".join(map(repr, ids[:NAMED])) + (
        f" and {len(ids) - NAMED} more" * (len(ids) > NAMED)
    )
    return (
        f"{len(ids)} clips are left out, of which there was no file when they were ingested: "
        f"{named}; where there is one now, ingest again, then featurize"
    )


def _tried(spec: FeatureSpec, todo: Sequence[Job]) -> set[str]:
    mine = [job for job in todo if any(part.spec.digest == spec.digest for part in job.parts)]
    return {key for job in mine for key in job.redo or ()}


def _jobs_again(
    root: Root, specs: Sequence[FeatureSpec], records: Sequence[Record], reasons: Sequence[str]
) -> tuple[list[Job], list[str]]:
    """A job for each shard with clips to be tried, and the ids of clips that are left out.

    Columns that try the same clips share a job.
    """
    store, clips = store_at(root), {clip.key: clip for clip in read_clips(root)}
    shards = by_shard(read_plan(root), clips)
    left_out: set[str] = set()
    by_digest = {spec.digest: spec for spec in specs}
    groups: dict[tuple[int, frozenset[str], bool], list[Part]] = {}
    for record in records:
        spec = by_digest[record.spec]
        lost = _quarantined(store, spec, record, reasons)
        redo = frozenset(key for key in lost if _was_there(spec, clips[key]))
        left_out |= {clips[key].id for key in lost - redo}
        if redo:
            part = Part(spec=spec, job=record.job, standing=record, instead=True)
            media = bool(MEDIA & set(spec.reads))
            groups.setdefault((record.shard, redo, media), []).append(part)
    jobs_again = [
        Job(shard=shard, clips=tuple(shards[shard]), parts=tuple(parts), redo=redo)
        for (shard, redo, _), parts in sorted(groups.items(), key=lambda each: each[0][0])
    ]
    return jobs_again, sorted(left_out)


def _was_there(spec: FeatureSpec, clip: Clip) -> bool:
    """Whether all files of a clip that a column reads were there when it was ingested."""
    found = {f"stream:{name}": each for name, each in clip.stream_digests.items()}
    found |= dict.fromkeys(MEDIA, clip.media_digest)
    return all(found.get(name, "") for name in spec.reads if name != "words")


def _quarantined(
    store: Store, spec: FeatureSpec, record: Record, reasons: Sequence[str]
) -> frozenset[str]:
    if not record.faults:
        return frozenset()
    rows = index_rows(store, column_folder(spec.fingerprint), record)
    return frozenset(
        row.key
        for row in rows
        if row.state == "quarantined" and (not reasons or row.fault in reasons)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What forgetting came to: shards written anew, and files removed."""

    clips: int
    shards: int
    files: int


def forget(root: Root, names: Sequence[str], told: Callable[[str], None]) -> Forgotten:
    """Remove clips from a dataset: from its table, its plan, all columns, and the logs.

    Each shard that holds one is written anew without it, from its own bytes; nothing is computed.
    Then manifests follow, and last every file that still holds the clips is deleted. A digest of
    the key is kept, so that a later ingest passes the clip over. Broken off anywhere, it is
    finished by calling it again.

    Args:
        root: Where the dataset lies.
        names: Keys or ids of clips.
        told: Told in sentences what is done.

    Raises:
        InputError: No clip has that name, and none of that name was forgotten before.
        DatasetError: There is no dataset.
        StorageError: Something could not be written; call again.
    """
    clips, store = read_clips(root), store_at(root)
    keys = keys_of(root, clips, names)
    write_forgotten(root, read_forgotten(root) | {forgotten_digest(key) for key in keys})
    rest = [clip for clip in clips if clip.key not in keys]
    written = 0
    # Shards before the table: until it says so, nothing has been forgotten, and all can be told.
    for fingerprint in committed(root):
        written += _write_without(root, fingerprint, clips, keys, told)
    write_clips(root, rest)
    write_plan(root, [place for place in read_plan(root) if place.key not in keys])
    for fingerprint in committed(root):
        _commit_without(root, store, fingerprint, rest, told)
    removed = _delete_columns_files(root, store, keys) + _scrub_logs(store, keys)
    clear(Path(store.where("cache")))
    return Forgotten(clips=len(keys), shards=written, files=removed)


def keys_of(root: Root, clips: Sequence[Clip], names: Collection[str]) -> frozenset[str]:
    """The keys of a dataset's clips, also of those that were forgotten there.

    Args:
        root: Where the dataset lies.
        clips: All of its clips.
        names: Keys or ids.

    Raises:
        InputError: No clip has that name, and none of that name was forgotten.
    """
    by_name = {clip.id: clip.key for clip in clips} | {clip.key: clip.key for clip in clips}
    known = read_forgotten(root)
    keys: set[str] = set()
    for name in names:
        key = by_name.get(name, key_of(name))
        if name not in by_name and forgotten_digest(key) not in known:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{store_at(root).where()}: there is no clip {name!r}{hint}")
        keys.add(key)
    return frozenset(keys)


def _write_without(
    root: Root,
    fingerprint: str,
    clips: Sequence[Clip],
    keys: frozenset[str],
    told: Callable[[str], None],
) -> int:
    """Write a committed column's shards that hold some clips anew without them; returns how many.

    A shard that is out of date is passed over: it has to be computed anew in any case.
    """
    store, places = store_at(root), read_plan(root)
    folder = column_folder(fingerprint)
    manifest = read_manifest(store, folder, committed_digest(root, fingerprint) or "")
    shards = by_shard(places, {clip.key: clip for clip in clips})
    worker = ShardWorker(root, Stage(folder=Path(tempfile.gettempdir()), limit_bytes=0))
    written = 0
    for record in manifest.records:
        members = shards.get(record.shard, [])
        rest = tuple(clip for clip in members if clip.key not in keys)
        holds = len(rest) < len(members) and record.job == job_id(manifest.spec, members)
        if not rest or not holds:
            continue
        part = Part(spec=manifest.spec, job=job_id(manifest.spec, rest), standing=record)
        try:
            worker(Job(shard=record.shard, clips=rest, parts=(part,), redo=frozenset()))
        except FailedError as error:
            told(f"{store.where(folder)}: shard {record.shard} has to be computed anew: {error}")
            continue
        written += 1
    worker.close()
    return written


def _commit_without(
    root: Root,
    store: Store,
    fingerprint: str,
    clips: Sequence[Clip],
    told: Callable[[str], None],
) -> None:
    """Commit a column as the clips are now; where it is not finished, it is open again."""
    folder, places = column_folder(fingerprint), read_plan(root)
    manifest = read_manifest(store, folder, committed_digest(root, fingerprint) or "")
    sizes = store.sizes(folder)
    records: list[Record] = []
    for shard, members in by_shard(places, {clip.key: clip for clip in clips}).items():
        record = read_record(store, folder, shard, job_id(manifest.spec, members), sizes)
        if record is None:
            store.delete(f"{folder}/{POINTER}")
            told(f"{store.where(folder)} is not finished any more; featurize again")
            return
        records.append(record)
    commit(root, manifest.spec, digest(places), records)


def _delete_columns_files(root: Root, store: Store, keys: frozenset[str]) -> int:
    """Delete every file of every column that holds some clips, or may hold them."""
    removed = len(store.sweep(""))
    columns: dict[str, list[str]] = defaultdict(list)
    for name in store.sizes(COLUMNS):
        columns[column_of(name)].append(name)
    for fingerprint, mine in sorted(columns.items()):
        keep = _clean_files(root, store, fingerprint, mine, keys) if fingerprint else set()
        # Records go before what they name: one that is there means that its files are.
        for name in sorted(set(mine) - keep, key=lambda each: (not each.endswith(".json"), each)):
            store.delete(name)
            removed += 1
    return removed


def _clean_files(
    root: Root, store: Store, fingerprint: str, names: Sequence[str], keys: frozenset[str]
) -> set[str]:
    """The files of a column that hold none of some clips: those of its manifest, and older ones."""
    folder = column_folder(fingerprint)
    current = committed_digest(root, fingerprint)
    keep: set[str] = set()
    standing: tuple[Record, ...] = ()
    if current is not None:
        keep |= {f"{folder}/{POINTER}", f"{folder}/{MANIFESTS}/{current}.json"}
        standing = read_manifest(store, folder, current).records
    written = [name for name in names if name.endswith(".json") and f"/{MANIFESTS}/" not in name]
    others = (record_at(store, name) for name in written if name not in keep)
    for record in [*standing, *(each for each in others if each is not None)]:
        files = {f"{folder}/{each}" for each in (record.file, record.tar.file, record.index.file)}
        if files <= keep or not _holds(store, folder, record, keys):
            keep |= files
    return keep


def _holds(store: Store, folder: str, record: Record, keys: frozenset[str]) -> bool:
    """Whether a shard holds some clips; one that cannot be told may."""
    try:
        return any(row.key in keys for row in index_rows(store, folder, record))
    except (CorruptShardError, DatasetError):
        return True


def _scrub_logs(store: Store, keys: frozenset[str]) -> int:
    """Take some clips out of the logs; returns how many files changed."""
    changed = 0
    for name in store.sizes(LOGS):
        content = store.read(name)
        if not any(json.dumps(key).encode() in content for key in keys):
            continue
        lines = content.splitlines() if name.endswith(".jsonl") else [content]
        try:
            scrubbed = [json.dumps(_without(json.loads(line), keys)).encode() for line in lines]
        except ValueError:  # cut by a kill
            store.delete(name)
        else:
            store.replace(name, b"\n".join(scrubbed) + b"\n")
        changed += 1
    return changed


def _without(value: Any, keys: frozenset[str]) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {name: _without(each, keys) for name, each in value.items() if name not in keys}
    if isinstance(value, list):
        kept = [
            each
            for each in value
            if not (each in keys if isinstance(each, str) else _tells(each, keys))
        ]
        return [_without(each, keys) for each in kept]
    return value


def _tells(value: Any, keys: frozenset[str]) -> bool:  # noqa: ANN401 - any JSON value
    return isinstance(value, dict) and value.get("key") in keys
