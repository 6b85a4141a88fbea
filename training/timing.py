"""Where the time of training goes: waiting for data, on the device, and among ranks."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch

T = TypeVar("T")

DATA, STEP = "data", "step"

_CALLS = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "all_gather",
    "all_gather_base",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "broadcast",
)


class Stages:
    """Seconds of this rank by stage.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {DATA: 0.0, STEP: 0.0}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done within counts as this stage."""
        begun = self._clock()
        try:
            yield
        finally:
            self._seconds[name] += self._clock() - begun

    def waited(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time until each comes counts as waiting for data."""
        left = iter(items)
        while True:
            with self.stage(DATA):
                item = next(left, None)
            if item is None:
                return
            yield item

    def shares(self, seconds: float, collectives: float) -> Mapping[str, float]:
        """Shares of a time since this was asked last; what is missing to 1 is all else.

        Args:
            seconds: The whole time.
            collectives: Seconds that steps spent among ranks.
        """
        spent, self._seconds = self._seconds, {DATA: 0.0, STEP: 0.0}
        return {
            "time/data_wait_share": spent[DATA] / seconds,
            "time/device_share": max(0.0, spent[STEP] - collectives) / seconds,
            "time/collectives_share": collectives / seconds,
        }


class Collectives:
    """Times what ranks tell each other, for as long as a step waits for it.

    On a CPU calls block, and are timed by the clock. On CUDA events are put into the stream of the
    step before and after, and are read when somebody asks: nothing waits for the device. What goes
    on beside the step on a stream of its own counts only where the step waits for it.

    Args:
        backend: DeepSpeed's, whose calls are timed from now on, instead of by an earlier one.
        cuda: Whether they are made on CUDA.
    """

    def __init__(self, backend: Any, *, cuda: bool) -> None:  # noqa: ANN401 - of DeepSpeed
        self._cuda, self._depth, self._seconds = cuda, 0, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        for name in _CALLS:
            # Of the class: another engine of this process may have put its own before.
            method = getattr(type(backend), name, None)
            if method is not None:
                setattr(backend, name, self._timed(method.__get__(backend)))

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What is done within is told among ranks."""
        self._depth += 1
        try:
            with self._outermost() if self._depth == 1 else nullcontext():
                yield
        finally:
            self._depth -= 1

    def seconds(self) -> float:
        """Since this was asked last."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(begun.elapsed_time(end) for begun, end in self._events) / 1000
            self._events.clear()
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever DeepSpeed gives
            with self.timed():
                return call(*args, **kwargs)

        return timed

    @contextmanager
    def _outermost(self) -> Iterator[None]:
        if not self._cuda:
            begun = time.perf_counter()
            try:
                yield
            finally:
                self._seconds += time.perf_counter() - begun
            return
        first, last = _event(), _event()
        first.record()
        yield
        last.record()
        self._events.append((first, last))


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch's
    return event
