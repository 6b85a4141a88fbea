"""Published features to a dataset: clips, a plan, and a committed column for each stream."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip
from featurizers.dataset import (
    LOGS,
    forgotten_digest,
    has_clips,
    read_clips,
    read_forgotten,
    write_clips,
)
from featurizers.extract import Outcome
from featurizers.intake import digest
from featurizers.manifest import Column, open_column
from featurizers.shards import Record, column_folder, job_id, read_record, write_shard
from featurizers.spec import Feature, FeatureSpec, check_feature
from featurizers.store import Root, Store, store_at
from pipelines.experiment import InputError
from pipelines.featurize import commit_all
from pipelines.ingest import read_plan, write_plan
from pipelines.plan import Room, by_shard, deal
from pipelines.sources import SPLITS, split
from pipelines.tasks import task_of_labels

NAMES = {"dev": "valid", "val": "valid", "validation": "valid", "training": "train"}
"""What others call our splits."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(slots=True)
class NotFinite:
    """How many numbers of a stream were NaN or infinite, by the keys of the clips that had some."""

    counts: dict[str, Mapping[str, int]] = field(default_factory=dict)

    def mend(self, key: str, values: NDArray[Any]) -> NDArray[np.float32]:
        """Values of one clip as float32, 0 where they are not finite.

        COVAREP's -inf is the logarithm of silence; MulT, MSAF and MMSA read it as 0, too.
        """
        with np.errstate(over="ignore"):
            found = np.array(values, dtype=np.float32)
        bad = ~np.isfinite(found)
        if bad.any():
            nan, low = np.isnan(found), np.isneginf(found)
            self.counts[key] = {
                "NaN": int(nan.sum()),
                "-inf": int(low.sum()),
                "inf": int((bad & ~nan & ~low).sum()),
            }
            found[bad] = 0.0
        return found

    def sentence(self, stream: str) -> str:
        """What was mended, for people; empty when there was nothing."""
        if not self.counts:
            return ""
        whole = sum(map(Counter, self.counts.values()), Counter[str]())
        told = ", ".join(f"{count} {name}" for name, count in sorted(whole.items()))
        return f"{stream}: {told} in {len(self.counts)} clips; 0 stands in their place"

    def keep(self, store: Store, name: str, clips: Sequence[Clip]) -> None:
        """Write what some clips had, for an import that finds them finished; nothing of none."""
        some = {clip.key: self.counts[clip.key] for clip in clips if clip.key in self.counts}
        if some:
            # A clip a line, by its key: `forget` takes those lines out.
            lines = [json.dumps({key: each}) for key, each in sorted(some.items())]
            store.replace(name, "\n".join([*lines, ""]).encode())

    def recall(self, store: Store, name: str, clips: Sequence[Clip]) -> None:
        """Read what was kept of some clips; lines that cannot be read are passed over."""
        with suppress(FileNotFoundError):
            for line in store.read(name).splitlines():
                with suppress(ValueError):
                    told = json.loads(line)
                    self.counts |= {c.key: told[c.key] for c in clips if c.key in told}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One published feature.

    Attributes:
        read: The feature of a clip, finite; None where it has none. Raises BadClipError where what
            is there is no feature.
        mended: What had to be replaced, now or when a shard was written that is finished.
    """

    spec: FeatureSpec
    read: Callable[[Clip], Outcome]
    mended: NotFinite = field(default_factory=NotFinite)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What a published file, or some of them, hold.

    Attributes:
        clips: With labels; a split where the files give one.
        streams: By name.
        pooling: What training should pool to, as in an experiment file.
        notes: What people should know of them.
    """

    clips: Sequence[Clip]
    streams: Mapping[str, Stream]
    pooling: Mapping[str, str | float]
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import made.

    Attributes:
        columns: By stream.
        counts: Clips by split.
        pooling: What training should pool to.
        label, labels: What is to be predicted, and all that clips have.
        notes: What people should know.
    """

    clips: int
    columns: Mapping[str, Column]
    counts: Mapping[str, int]
    pooling: Mapping[str, str | float]
    label: str
    labels: Sequence[str]
    notes: Sequence[str]


def take(
    root: Root,
    published: Published,
    *,
    label: str,
    room: Room,
    permitted: float = 0.05,
    split_seed: int = 0,
    done: Callable[[int], None] = lambda count: None,
) -> Imported:
    """Make a dataset of published features.

    Broken off anywhere, it goes on where it was when it is called again. Clips that were forgotten
    are passed over.

    Args:
        root: Where it goes: nothing, or what was imported there before.
        published: What is taken.
        label: What clips are dealt to splits by, where the files give none.
        room: The size of a shard.
        permitted: The share of a column's clips that may be of no use.
        split_seed: Deals them otherwise.
        done: Told how many clips of a column were written.

    Raises:
        InputError: Nothing is left, ids are not unique, or the dataset has clips with media.
        TooManyDroppedError: A column has too many clips of no use; the others are committed.
        StorageError: Something could not be written; call again to go on.
    """
    clips, notes = _clips(root, published, label, split_seed)
    places = deal(read_plan(root), clips, room)
    # The plan first: places without a clip do no harm, a clip without a place would be lost.
    write_plan(root, places)
    write_clips(root, clips)
    shards = by_shard(places, {clip.key: clip for clip in clips})
    records = [
        record
        for stream in published.streams.values()
        for record in _written(root, stream, shards, done)
    ]
    commit_all(root, [each.spec for each in published.streams.values()], records, permitted)
    mended = [each.mended.sentence(name) for name, each in published.streams.items()]
    return Imported(
        clips=len(clips),
        columns={
            name: open_column(root, each.spec.fingerprint)
            for name, each in published.streams.items()
        },
        counts={name: sum(clip.split == name for clip in clips) for name in SPLITS},
        pooling=published.pooling,
        label=label,
        labels=sorted({name for clip in clips for name in clip.labels}),
        notes=[*published.notes, *notes, *(each for each in mended if each)],
    )


def _clips(root: Root, published: Published, label: str, seed: int) -> tuple[list[Clip], list[str]]:
    """The clips that are taken, each with a split, and what is to be said of them."""
    where, gone = store_at(root).where(), read_forgotten(root)
    keys = Counter(clip.key for clip in published.clips)
    if twice := [clip.id for clip in published.clips if keys[clip.key] > 1]:
        raise InputError(
            f"{len(twice)} clips share an id with another one, as {twice[0]!r}; ids must differ"
        )
    kept = [clip for clip in published.clips if forgotten_digest(clip.key) not in gone]
    if not kept:
        raise InputError(f"{where}: nothing is left: all {len(keys)} clips were to be forgotten")
    if has_clips(root) and any(clip.media_digest for clip in read_clips(root)):
        raise InputError(
            f"{where} was ingested from media, and an import would take the place of its clips; "
            f"give another folder with --to"
        )
    task = task_of_labels(label, kept)
    if task is None:
        known = sorted({name for clip in kept for name in clip.labels})
        raise InputError(f"no clip has a label {label!r}; there are {', '.join(known)}")
    notes = []
    if len(kept) < len(keys):
        notes.append(f"{len(keys) - len(kept)} clips are passed over: they were to be forgotten")
    dealt, how = split(kept, task, seed)
    return dealt, [*notes, how]


def _written(
    root: Root,
    stream: Stream,
    shards: Mapping[int, Sequence[Clip]],
    done: Callable[[int], None],
) -> Iterable[Record]:
    """The records of a column; shards that are finished stay as they are."""
    store, spec = store_at(root), stream.spec
    folder = column_folder(spec.fingerprint)
    sizes = store.sizes(folder)
    for shard, members in sorted(shards.items()):
        job = job_id(spec, members)
        record = read_record(store, folder, shard, job, sizes)
        kept = f"{LOGS}/mended-{spec.fingerprint}/{shard:05d}.jsonl"
        if record is not None:
            stream.mended.recall(store, kept, members)
        else:
            outcomes = [_outcome(stream, clip) for clip in members]
            # Before the shard: where that is, nobody reads its clips again.
            stream.mended.keep(store, kept, members)
            record = write_shard(store, shard, job, spec, clips=members, outcomes=outcomes)
        done(len(members))
        yield record


def _outcome(stream: Stream, clip: Clip) -> Outcome:
    found = stream.read(clip)
    if found.feature is None:
        return found
    values = stream.mended.mend(clip.key, found.feature.values)
    mended = replace(found, feature=Feature(values, found.feature.times))
    check_feature(stream.spec, mended.feature or found.feature)
    return mended


def split_name(name: str) -> str:
    """What we call a split. Raises ValueError where it is none."""
    found = NAMES.get(name, name)
    if found not in SPLITS:
        raise ValueError(f"found a split {name!r}, wanted one of {', '.join(SPLITS)}")
    return found


def stream_name(name: str) -> str:
    """A name that a column can have: other characters become "-"."""
    made = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
    if not _NAME.fullmatch(made):
        raise InputError(f"a stream is called {name!r}; wanted letters or digits in its name")
    return made


def sha256_of(paths: Sequence[Path]) -> str:
    """sha256 in hex of a file; of several, of their names and digests.

    Raises:
        InputError: One cannot be read.
    """
    found = [(path.name, digest(path)) for path in sorted(paths)]
    if missing := [name for name, of in found if not of]:
        raise InputError(f"{missing[0]}: there is no such file")
    if len(found) == 1:
        return found[0][1]
    return hashlib.sha256("".join(f"{name} {of}\n" for name, of in found).encode()).hexdigest()
