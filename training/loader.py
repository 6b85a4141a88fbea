"""What a rank is given at each step: made by worker processes ahead of time, or in line.

Which clips a step has is decided by `training.order` alone, and a loader changes no bit of them.
Workers are forked, so that they share the index of a large dataset with their rank; they read,
check, pool and collate. What comes back of a step is one block of shared memory.
"""

import functools
import io
import itertools
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from featurizers.manifest import CorruptShardError
from featurizers.store import StorageError
from training.batch import FusionBatch
from training.data import Samples
from training.order import GlobalBatch, Item, Slot, global_batches, rank_view
from training.recipe import Recipe
from training.stream import Lane, lanes

AHEAD = 2
"""Steps that each worker has made before they are asked for."""

ALIGNED = 64

View: TypeAlias = Sequence[Sequence[Slot]]
"""A rank's micro-batches of a global batch."""

Weigh: TypeAlias = Callable[[GlobalBatch], GlobalBatch]

Made: TypeAlias = "_Packed | Exception"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Which part of each global batch a rank takes: see `rank_view`."""

    micro: int
    rank: int = 0
    world: int = 1

    def view(self, batch: tuple[Item, ...]) -> list[tuple[Item, ...]]:
        """This rank's micro-batches of a global batch, or of what there is one of for each slot."""
        return rank_view(batch, rank=self.rank, world=self.world, micro=self.micro)


@dataclass(frozen=True, slots=True)
class Step:
    """What a rank is given at one step.

    Attributes:
        share: Its micro-batches.
        weights: The sum of weights of the whole global batch.
    """

    share: Sequence[FusionBatch]
    weights: float


class Loader(Protocol):
    """The steps of each epoch: as many on every rank."""

    def __len__(self) -> int:
        """Steps of an epoch."""

    def steps(self, epoch: int, first: int = 0) -> Iterator[Step]:
        """The steps of an epoch from number `first` on.

        Raises:
            CorruptShardError: At the step that needs a clip whose bytes are not what was written.
            StorageError: At the step that needs what cannot be read.
        """

    def close(self) -> None:
        """End the workers."""


def loader_of(
    samples: Samples,
    recipe: Recipe,
    seat: Seat,
    workers: int = 0,
    weigh: Weigh | None = None,
) -> Loader:
    """The loader that a recipe asks for.

    Args:
        samples: The training clips.
        recipe: Says which, and how large a global batch is.
        seat: The rank's part of it.
        workers: Processes of this rank that work ahead; 0 makes every batch when it is asked for.
        weigh: Gives the clips of a global batch other weights; for an indexed loader alone.
    """
    if recipe.loader == "streaming":
        return Streaming(samples, recipe, seat, workers)
    return Indexed(samples, recipe, seat, workers, weigh)


class Indexed:
    """Random access through the index: equal global batches on any number of ranks and workers.

    Args:
        samples: The clips.
        recipe: Says how large a global batch is.
        seat: The rank's part of it.
        workers: See `loader_of`. Each remembers samples that it has read, in its part of the
            memory that a rank may take for that.
        weigh: See `loader_of`.
    """

    def __init__(
        self,
        samples: Samples,
        recipe: Recipe,
        seat: Seat,
        workers: int = 0,
        weigh: Weigh | None = None,
    ) -> None:
        self._samples, self._seat, self._size = samples, seat, recipe.global_batch
        self._weigh = weigh or (lambda batch: batch)
        self._views = _Views()
        self._ahead: _Ahead | None = None
        self._workers: DataLoader[Made] | None = None
        if workers:
            begin = functools.partial(_begin, samples, workers)
            self._workers = _forked(_Shares(samples), workers, sampler=self._views, begin=begin)

    def __len__(self) -> int:
        return math.ceil(len(self._samples) / self._size)

    def steps(self, epoch: int, first: int = 0) -> Iterator[Step]:
        """See `Loader`."""
        return self.take(self._samples.order(epoch), first)

    def take(self, keys: Sequence[str], first: int = 0) -> Iterator[Step]:
        """The steps that take these keys in this order, from number `first` on. As `steps`."""
        batches = global_batches(keys, self._size)
        weighed = (self._weigh(batches[number]) for number in range(first, len(batches)))
        # Workers ask for what is ahead of the step at hand.
        whole, ahead = itertools.tee(weighed)
        shares = self._shares(map(self._seat.view, ahead))
        for batch, share in zip(whole, shares, strict=True):
            yield Step(share, sum(weight for _, weight in batch))

    def close(self) -> None:
        """See `Loader`."""
        if self._ahead is not None:
            self._ahead.end()
        self._workers = self._ahead = None

    def _shares(self, views: Iterable[View]) -> Iterator[list[FusionBatch]]:
        if self._workers is None:
            return ([self._samples.batch(slots) for slots in view] for view in views)
        self._views.views = views
        self._ahead = _Ahead(self._workers)
        return self._ahead


class Streaming:
    """Shards read from beginning to end, for sets that fit no cache.

    Every clip is taken once an epoch, and every rank has as many steps. But which clips meet in a
    global batch depends on the numbers of ranks and workers, and clips are shuffled with those that
    lie near them only. Resumed with the same numbers, an epoch goes on with the clips that it would
    have had, after reading again what was taken; with others, its rest takes some clips twice and
    some never.

    Args:
        samples: The clips.
        recipe: Says how large a global batch is, and the seed.
        seat: The rank's part of it.
        workers: See `loader_of`.
    """

    def __init__(self, samples: Samples, recipe: Recipe, seat: Seat, workers: int = 0) -> None:
        self._samples, self._recipe, self._seat, self._workers = samples, recipe, seat, workers
        self._ahead: _Ahead | None = None

    def __len__(self) -> int:
        return math.ceil(len(self._samples) / self._recipe.global_batch)

    def steps(self, epoch: int, first: int = 0) -> Iterator[Step]:
        """See `Loader`."""
        count, share = max(1, self._workers), self._recipe.global_batch // self._seat.world
        dealt = lanes(
            self._samples,
            seed=self._recipe.seed,
            epoch=epoch,
            steps=len(self),
            ranks=self._seat.world,
            workers=count,
            share=share,
        )
        mine = dealt[self._seat.rank]
        shares = self._shares([mine[(first + turn) % count] for turn in range(count)], first)
        for number in range(first, len(self)):
            weights = sum(lane[number % count].clips(number // count) for lane in dealt)
            yield Step(next(shares), float(weights))

    def close(self) -> None:
        """See `Loader`; those of an epoch that was taken to its end have ended with it."""
        if self._ahead is not None:
            self._ahead.end()
            self._ahead = None

    def _shares(self, mine: Sequence[Lane], first: int) -> Iterator[Sequence[FusionBatch]]:
        micro, count = self._seat.micro, len(mine)
        # The lane of the next step begins, in whichever of them an epoch is resumed.
        taken = [len(range(lane.number, first, count)) for lane in mine]
        work = [
            functools.partial(lane.batches, micro, done)
            for lane, done in zip(mine, taken, strict=True)
        ]
        if not self._workers:
            return work[0]()
        self.close()
        self._ahead = _Ahead(_forked(_Streams(work), count))
        return self._ahead


class _Ahead(Iterator[list[FusionBatch]]):
    """What worker processes have made, until they are told to end."""

    def __init__(self, workers: "DataLoader[Made]") -> None:
        self._made = iter(workers)

    def __next__(self) -> list[FusionBatch]:
        return _unpacked(next(self._made))

    def end(self) -> None:
        """End the processes, whoever still holds what they made, as the traceback of an error."""
        # PyTorch (2.13) has no public way but to forget the iterator.
        # Held by test_forked_workers_end_with_a_fit_that_fails; may go when there is one.
        self._made._shutdown_workers()  # type: ignore[attr-defined]  # noqa: SLF001 - see above


class _Views(Sampler[View]):
    """The views of the epoch at hand; workers get them one by one."""

    views: Iterable[View] = ()

    def __iter__(self) -> Iterator[View]:
        return iter(self.views)


class _Shares(Dataset[Made]):
    """A rank's part of a global batch, by its view."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, view: View) -> Made:
        try:
            return _packed([self._samples.batch(slots) for slots in view])
        except (CorruptShardError, StorageError) as error:
            return error


class _Streams(IterableDataset[Made]):
    """The steps of lanes, one for each worker."""

    def __init__(self, work: Sequence[Callable[[], Iterator[list[FusionBatch]]]]) -> None:
        self._work = work

    def __iter__(self) -> Iterator[Made]:
        worker = get_worker_info()
        if worker is None:
            raise RuntimeError("lanes are read by worker processes")
        try:
            yield from map(_packed, self._work[worker.id]())
        except (CorruptShardError, StorageError) as error:
            yield error


def _forked(
    dataset: Dataset[Made],
    workers: int,
    *,
    sampler: Sampler[View] | None = None,
    begin: Callable[[int], None] | None = None,
) -> "DataLoader[Made]":
    """Processes that make what a dataset has, each `AHEAD` steps before they are asked for."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=begin,
        multiprocessing_context="fork",
        persistent_workers=sampler is not None,
        # Else it would draw from the generator of dropout.
        generator=torch.Generator(),
    )


def _as_it_is(made: Any) -> Any:  # noqa: ANN401 - as torch has it
    return made


def _begin(samples: Samples, workers: int, number: int) -> None:
    del number
    samples.keep_less(workers)


@dataclass(frozen=True, slots=True)
class _Packed:
    """Batches as one block of bytes, which crosses processes as shared memory.

    Attributes:
        frame: A pickle of all but the tensors.
        places: Type, shape and offset of each tensor.
        block: Their bytes: uint8 [N].
    """

    frame: bytes
    places: Sequence[tuple[torch.dtype, torch.Size, int]]
    block: Tensor


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, thing: object) -> int | None:
        if not isinstance(thing, Tensor):
            return None
        self.tensors.append(thing)
        return len(self.tensors) - 1


class _Unpacker(pickle.Unpickler):
    def __init__(self, packed: _Packed) -> None:
        super().__init__(io.BytesIO(packed.frame))
        self._packed = packed

    def persistent_load(self, number: int) -> Tensor:
        dtype, shape, offset = self._packed.places[number]
        return _piece(self._packed.block, dtype, shape, offset)


def _piece(block: Tensor, dtype: torch.dtype, shape: torch.Size, offset: int) -> Tensor:
    return block[offset : offset + shape.numel() * dtype.itemsize].view(dtype).view(shape)


def _packed(share: list[FusionBatch]) -> _Packed:
    packer = _Packer(frame := io.BytesIO())
    packer.dump(share)
    sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in packer.tensors]
    places = [
        (tensor.dtype, tensor.shape, sum(sizes[:number]))
        for number, tensor in enumerate(packer.tensors)
    ]
    block = torch.empty(sum(sizes), dtype=torch.uint8)
    for tensor, place in zip(packer.tensors, places, strict=True):
        _piece(block, *place).copy_(tensor)
    return _Packed(frame.getvalue(), places, block)


def _unpacked(made: Made) -> list[FusionBatch]:
    if isinstance(made, Exception):
        raise made
    share: list[FusionBatch] = _Unpacker(made).load()
    return share
