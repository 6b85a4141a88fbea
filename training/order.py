"""The global order: which clips each step takes, decided by keys, seed and epoch alone.

Position in the data is one integer, the index of a global batch counted through all epochs. Nothing
about ranks, workers or micro-batches decides which clips are in it.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, overload

import numpy as np

from featurizers.spec import canonical_json

WINDOW = 8
"""Shards whose clips are shuffled together: bounds the files that are open at one time."""

Slot: TypeAlias = tuple[str, float]
"""A clip's key and its weight: 1, or 0 where it only pads the last global batch."""

GlobalBatch: TypeAlias = tuple[Slot, ...]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Buckets:
    """Global batches of clips of near lengths, so that less of a batch is padding.

    Attributes:
        lengths: Steps of each clip, by key.
        size: Clips in a global batch.
    """

    lengths: Mapping[str, int]
    size: int


def order(
    keys_by_shard: Mapping[int, Sequence[str]],
    *,
    seed: int,
    epoch: int,
    window: int = WINDOW,
    buckets: Buckets | None = None,
) -> list[str]:
    """Every key once, in the order of an epoch.

    Shards are permuted; then the keys of `window` shards at a time are shuffled together. With
    buckets these are sorted by length and cut into global batches, whose order is drawn too; what
    makes no whole batch waits for the next window, and is drawn without regard to length. Decided
    by the arguments alone: not by the order in which shards or keys are given.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    shards = sorted(keys_by_shard)
    permuted = [shards[i] for i in generator.permutation(len(shards)).tolist()]
    ordered: list[str] = []
    waiting: list[str] = []
    for first in range(0, len(permuted), window):
        together = permuted[first : first + window]
        keys = [key for shard in together for key in sorted(keys_by_shard[shard])]
        waiting += [keys[i] for i in generator.permutation(len(keys)).tolist()]
        chosen, waiting = (waiting, []) if buckets is None else _cut(waiting, buckets, generator)
        ordered += chosen
    return ordered + waiting


def _cut(
    keys: list[str], buckets: Buckets, generator: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Whole global batches, and the keys that make none."""
    size = buckets.size
    whole = len(keys) // size * size
    rising = sorted(keys[:whole], key=buckets.lengths.__getitem__)
    starts = (generator.permutation(whole // size) * size).tolist()
    return [key for start in starts for key in rising[start : start + size]], keys[whole:]


def order_digest(orders: Iterable[Sequence[str]]) -> str:
    """sha256 in hex of the orders of all epochs: equal digests mean equal global batches."""
    digest = hashlib.sha256()
    for ordered in orders:
        digest.update(canonical_json(ordered))
    return digest.hexdigest()


def global_batches(ordered: Sequence[str], size: int) -> Sequence[GlobalBatch]:
    """An order cut into batches of `size`; repeated keys of weight 0 fill the last one.

    Each is made when it is asked for: a run may resume near the end of a long epoch.
    """
    return _GlobalBatches(ordered, size)


class _GlobalBatches(Sequence[GlobalBatch]):
    def __init__(self, ordered: Sequence[str], size: int) -> None:
        self._ordered, self._size = ordered, size

    def __len__(self) -> int:
        return math.ceil(len(self._ordered) / self._size)

    @overload
    def __getitem__(self, at: int) -> GlobalBatch: ...
    @overload
    def __getitem__(self, at: slice) -> list[GlobalBatch]: ...
    def __getitem__(self, at: int | slice) -> GlobalBatch | list[GlobalBatch]:
        numbers = range(len(self))[at]
        return self._batch(numbers) if isinstance(numbers, int) else [*map(self._batch, numbers)]

    def _batch(self, number: int) -> GlobalBatch:
        first = number * self._size
        own = [(key, 1.0) for key in self._ordered[first : first + self._size]]
        missing = range(self._size - len(own))
        return (*own, *((self._ordered[i % len(self._ordered)], 0.0) for i in missing))


def rank_view(
    batch: tuple[Item, ...], *, rank: int, world: int, micro: int
) -> list[tuple[Item, ...]]:
    """What one rank takes of a global batch: its micro-batches, in order of accumulation.

    The global batch, of slots or of what there is one of for each slot, is seen as
    [accumulation, rank, micro].
    """
    step = world * micro
    starts = range(rank * micro, len(batch), step)
    return [batch[start : start + micro] for start in starts]
