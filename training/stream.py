"""Shards read from beginning to end through webdataset, for sets that fit no cache.

The clips of an epoch are those of its shards in a drawn order, dealt clip by clip: every rank and
every worker has a run of them, so that a shard is read by one worker, or by two at the seam.
"""

import io
import random
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from featurizers.manifest import Column, CorruptShardError, array_of
from featurizers.spec import Feature
from featurizers.store import Opened
from training.batch import FusionBatch, Sample, collate

if TYPE_CHECKING:
    from training.data import Samples

NEAR = 512
"""Clips that are held, as bytes, to be shuffled with those that follow."""

PIECE = 1 << 22

Raw: TypeAlias = tuple[str, Mapping[str, tuple[bytes, bytes] | None]]
"""A clip's key, and by stream the bytes of its values and times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """The clips that one worker of one rank takes in an epoch.

    Attributes:
        number: The worker's; it makes every step whose number leaves this remainder.
        steps: How many that are.
        share: Clips that the rank takes at a step.
        runs: Shards with the usable keys to take of each, in the shard's order.
        seed: Of the shuffling.
    """

    samples: "Samples"
    number: int
    steps: int
    share: int
    runs: Sequence[tuple[int, Sequence[str]]]
    seed: Sequence[int]

    def clips(self, step: int) -> int:
        """Clips of weight 1 that the lane has for its own step of this number."""
        count = sum(len(keys) for _, keys in self.runs)
        return max(0, min(self.share, count - step * self.share))

    def batches(self, micro: int, taken: int) -> Iterator[list[FusionBatch]]:
        """The micro-batches of each of its steps but the first `taken`.

        Raises:
            CorruptShardError: A shard is not what was written; names it, and the clip.
        """
        samples = self.samples
        found = islice(self._shuffled(), taken * self.share, None)
        for _ in range(taken, self.steps):
            own = made(samples, list(islice(found, self.share)))
            if len(own) < self.share:
                filler = own[0] if own else samples.sample(samples.keys[0])
                own += [filler.weighing(0.0)] * (self.share - len(own))
            yield [
                collate(own[at : at + micro], samples.widths) for at in range(0, self.share, micro)
            ]

    def _shuffled(self) -> Iterator[Raw]:
        import webdataset

        # Without a generator of its own it would take the time of day.
        rng = random.Random(repr(self.seed))  # noqa: S311 - of an order, not of a secret
        shuffle = webdataset.shuffle(NEAR, initial=NEAR, rng=rng)
        yield from shuffle(raw for run in self.runs for raw in read(self.samples.columns, *run))


def lanes(
    samples: "Samples", *, seed: int, epoch: int, steps: int, ranks: int, workers: int, share: int
) -> list[list[Lane]]:
    """Every usable clip in one lane, by rank and worker.

    Args:
        samples: The clips.
        seed: Of the recipe.
        epoch: Its number.
        steps: Of the epoch, on every rank.
        ranks: How many there are.
        workers: Of each rank.
        share: Clips that a rank takes at a step.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    stored = in_stored_order(samples)
    shards = [list(stored)[i] for i in generator.permutation(len(stored)).tolist()]
    left = [(shard, key) for shard in shards for key in stored[shard]][::-1]
    dealt: list[list[Lane]] = []
    for rank in range(ranks):
        dealt.append([])
        for worker in range(workers):
            mine = len(range(worker, steps, workers))
            runs: dict[int, list[str]] = {}
            for _ in range(min(len(left), mine * share)):
                shard, key = left.pop()
                runs.setdefault(shard, []).append(key)
            lane = Lane(
                samples=samples,
                number=worker,
                steps=mine,
                share=share,
                runs=list(runs.items()),
                seed=(seed, epoch, rank, worker),
            )
            dealt[-1].append(lane)
    return dealt


def in_stored_order(samples: "Samples") -> dict[int, list[str]]:
    """The usable keys of each shard, as they lie in it."""
    stored: dict[int, list[str]] = {}
    for key, shard in next(iter(samples.columns.values())).shards.items():
        if key in samples.targets:
            stored.setdefault(shard, []).append(key)
    return stored


def whole(samples: "Samples") -> Iterator[Sample]:
    """All samples, shard by shard."""
    for shard, keys in sorted(in_stored_order(samples).items()):
        for raw in read(samples.columns, shard, keys):
            yield from made(samples, [raw])


def made(samples: "Samples", raws: Sequence[Raw]) -> list[Sample]:
    """The samples of some clips."""
    features = [
        {
            name: None if pair is None else Feature(*(array_of(memoryview(each)) for each in pair))
            for name, pair in members.items()
        }
        for _, members in raws
    ]
    return samples.made([key for key, _ in raws], features)


def read(columns: Mapping[str, Column], shard: int, keys: Sequence[str]) -> Iterator[Raw]:
    """Clips of a shard, from all columns, which have the same clips in the same order.

    Args:
        columns: By stream.
        shard: The shard's number.
        keys: The clips, in the shard's order.

    Raises:
        CorruptShardError: A clip is not there as it was written.
    """
    readers = {name: _Reader(column, shard) for name, column in columns.items()}
    try:
        for key in keys:
            yield key, {name: reader.take(key) for name, reader in readers.items()}
    finally:
        for reader in readers.values():
            reader.close()


class _Reader:
    """One column's shard, read forwards."""

    def __init__(self, column: Column, shard: int) -> None:
        from webdataset.tariterators import group_by_keys, tar_file_expander

        (self._record,) = (each for each in column.records if each.shard == shard)
        self._column = column
        self._where = column.where(self._record.tar.file)
        self._opened = column.store.open(f"{column.folder}/{self._record.tar.file}")
        tar = io.BufferedReader(_Forwards(self._opened), PIECE)
        files = tar_file_expander([{"url": self._where, "stream": tar}])
        self._samples: Iterator[dict[str, Any]] = group_by_keys(files, lcase=False)

    def take(self, key: str) -> tuple[bytes, bytes] | None:
        """The members of a clip behind those that were taken; None where it has no feature."""
        row = self._column.rows[key]
        if row.state != "sample":
            return None
        try:
            found = next((each for each in self._samples if each["__key__"] == key), {})
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            raise CorruptShardError(
                f"{self._where}: cannot be read as far as clip {key} ({error}); delete the file "
                f"and featurize again"
            ) from None
        members = found.get(f"{self._column.spec.name}.npy", b""), found.get("times.npy", b"")
        for name, content in zip(("values", "times"), members, strict=True):
            # webdataset tells of no sample that is lost to a damaged header.
            if len(content) != row.members[name].size or (
                zlib.crc32(content) != row.members[name].crc32
            ):
                raise CorruptShardError(
                    f"{self._where}: {name} of clip {key} are damaged; delete the file and "
                    f"featurize again"
                )
        return members

    def close(self) -> None:
        self._opened.close()


class _Forwards(io.RawIOBase):
    """A file of a store as Python reads files."""

    def __init__(self, opened: Opened) -> None:
        self._opened, self._at = opened, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - typeshed's Buffer is not to be imported
        content = self._opened.read_at(self._at, len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
