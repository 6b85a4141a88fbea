"""Encoders take items of several clips at once: full batches, smaller ones for want of memory.

The last bits of an encoder's numbers may depend on how many items it takes at once. So a batch is
only halved where the spec promises its numbers within a tolerance.
"""

import contextlib
import functools
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from featurizers.clip import Clip
from featurizers.spec import Encoder, EncodingFeaturizer, Feature, Featurizer, Pending

Item = TypeVar("Item")
Made = TypeVar("Made")
Result = TypeVar("Result")


class EncoderMemoryError(RuntimeError):
    """An encoder has too little memory: the machine's fault, and no clip's."""


@dataclass(slots=True)
class Encoding:
    """A clip's feature on its way through an encoder.

    Attributes:
        items: How many it consists of.
        seconds, cpu_seconds: Its share of the batches that they were in.
    """

    clip: Clip
    items: int
    assemble: Callable[[Sequence[NDArray[Any]]], Feature]
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    _encoded: list[NDArray[Any]] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether all items are encoded."""
        return len(self._encoded) == self.items

    def take(self, encoded: NDArray[Any], seconds: float, cpu_seconds: float) -> None:
        """Take the next encoded item, and what it cost."""
        self._encoded.append(encoded)
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds

    def feature(self) -> Feature:
        """The feature, once it is whole. Raises BadClipError as `Pending.assemble` does."""
        return self.assemble(self._encoded)


class Batches:
    """Gathers the items of one featurizer's clips until they fill a batch.

    Holds less than a batch, and one clip's items.

    Args:
        featurizer: Whose.
        notes: Is told of each batch that was halved, in a sentence.
    """

    def __init__(self, featurizer: Featurizer, notes: list[str]) -> None:
        self._spec, self._notes = featurizer.spec, notes
        self._encoder = featurizer.encoder if isinstance(featurizer, EncodingFeaturizer) else None
        self._items: deque[tuple[Encoding, NDArray[Any]]] = deque()

    @property
    def full(self) -> bool:
        """Whether there is a batch to be encoded."""
        return bool(self._items) and len(self._items) >= self._need().batch

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._items

    def add(self, clip: Clip, pending: Pending) -> Encoding:
        """Let a clip's items wait for their batch."""
        self._need()
        encoding = Encoding(clip, len(pending.items), pending.assemble)
        self._items.extend((encoding, item) for item in pending.items)
        return encoding

    def encode(self) -> None:
        """Encode the items that came first: a batch of them, or all when they are fewer.

        Raises:
            EncoderMemoryError: Memory ran out, and a smaller batch is not permitted or not
                possible.
        """
        encoder = self._need()
        first = [self._items[i] for i in range(min(max(1, encoder.batch), len(self._items)))]
        began, cpu = time.perf_counter(), time.thread_time()
        encoded = tried(lambda: encoder.encode([item for _, item in first]))
        if encoded is None:
            self._halve(encoder, len(first), first[0][0].clip)
            return
        if len(encoded) != len(first):
            raise ValueError(
                f"{self._spec.name}: its encoder gave {len(encoded)} arrays for {len(first)} items"
            )
        each = (time.perf_counter() - began) / len(first)
        cpu_each = (time.thread_time() - cpu) / len(first)
        for (encoding, _), array in zip(first, encoded, strict=True):
            self._items.popleft()
            encoding.take(array, each, cpu_each)

    def _halve(self, encoder: Encoder, count: int, clip: Clip) -> None:
        name = self._spec.name
        if count == 1:
            raise EncoderMemoryError(
                f"clip {clip.id!r}: {name} ran out of memory with one item at a time; "
                f"give its worker more memory, or choose a smaller setting of {name}"
            )
        if self._spec.atol is None:
            raise EncoderMemoryError(
                f"clip {clip.id!r}: {name} ran out of memory with {count} items at a time, and its "
                f"promise is exact, so that the batch must stay as it is; give its worker more "
                f"memory, or choose a smaller batch"
            )
        encoder.batch = count // 2
        self._notes.append(
            f"{name} ran out of memory with {count} items at a time; "
            f"takes {encoder.batch} from now on"
        )

    def _need(self) -> Encoder:
        if self._encoder is None:
            raise TypeError(f"{self._spec.name} left items to be encoded, but has no encoder")
        return self._encoder


class Halving(Generic[Item, Made]):
    """Works on items in batches, which are halved for good when memory runs out.

    For work whose last bits may depend on the batch, and that gives one thing for each item.

    Args:
        name: Whose work it is, for errors.
        batch: How many items at once, at first.
    """

    def __init__(self, name: str, batch: int) -> None:
        self._name, self.batch = name, batch

    def over(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Made]]
    ) -> list[Made]:
        """What the work makes of all items, in their order.

        Raises:
            EncoderMemoryError: Memory ran out with one item.
        """
        made: list[Made] = []
        while len(made) < len(items):
            some = items[len(made) : len(made) + self.batch]
            found = tried(functools.partial(work, some))
            if found is not None:
                made += found
            elif len(some) > 1:
                self.batch = len(some) // 2
            else:
                raise EncoderMemoryError(
                    f"{self._name} ran out of memory with one piece at a time; give its worker "
                    f"more memory, or choose a smaller model"
                )
        return made


def tried(work: Callable[[], Result]) -> Result | None:
    """What work gives; None when memory ran out, which is given back then."""
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Only here is the error gone, and with it all that its frames held.
    _give_back()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on this machine or on a device of torch."""
    torch = sys.modules.get("torch")
    if torch is None or isinstance(error, MemoryError):
        return isinstance(error, MemoryError)
    # On a CPU torch says it in words alone.
    in_words = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return in_words or isinstance(error, torch.OutOfMemoryError)


def _give_back() -> None:
    """Let torch give cached memory of its devices back, where it was ever used."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
