"""The watch of a rank: it hears SIGTERM, and ends a process that hangs, its stacks written."""

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pipelines.follow import note

STACKS = "stacks"
GRACE_S = 10.0  # between the stacks of one rank and its end: the others save theirs meanwhile


class Watch(Protocol):
    """What a rank's watch tells its session."""

    def beat(self, *, stepping: bool = True) -> None:
        """Something was done; see `training.session.Session.alive`."""

    def warned(self) -> bool:
        """Whether SIGTERM came."""


@contextmanager
def watched(folder: Path, rank: int, hang_s: float, stall_s: float) -> Iterator[Watch]:
    """Save what all threads of this process are doing, at SIGTERM and when it hangs; then end it.

    Training runs beside the main thread of a worker of Ray Train (2.60.0), which answers to SIGTERM
    by dying, seconds later. Only `faulthandler` can answer from here: what it writes is the sign.
    Held by test_sigterm_leaves_the_stacks_and_is_a_wish_and_no_death; may go when Ray
    tells its workers of the signal.

    Args:
        folder: The run's; stacks go into a folder of it.
        rank: Of this process.
        hang_s: Seconds without a step after which it is given up.
        stall_s: Seconds without a sign before the first step and after the last, where there is
            data to be read, all to be built, and a model to be tested; at least `hang_s`.
    """
    stacks = folder / STACKS
    stacks.mkdir(parents=True, exist_ok=True)
    ending, hanging = (
        stacks / f"rank-{rank}-{why}-{os.getpid()}.txt" for why in ("sigterm", "hang")
    )
    with ending.open("wb", buffering=0) as signs:
        faulthandler.register(signal.SIGTERM, file=signs, all_threads=True, chain=False)
        watch = _Watch(
            signs.fileno(), hanging, folder, rank, hang_s=hang_s, stall_s=max(hang_s, stall_s)
        )
        try:
            yield watch
        finally:
            watch.end()
            faulthandler.unregister(signal.SIGTERM)
    if not ending.stat().st_size:
        ending.unlink()


class _Watch:
    def __init__(
        self,
        signs: int,
        hanging: Path,
        folder: Path,
        rank: int,
        *,
        hang_s: float,
        stall_s: float,
    ) -> None:
        self._signs, self._hanging, self._folder, self._rank = signs, hanging, folder, rank
        self._hang_s, self._stall_s = hang_s, stall_s
        self.beat(stepping=False)
        self._ended = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()

    def beat(self, *, stepping: bool = True) -> None:
        self._last = time.monotonic(), stepping

    def warned(self) -> bool:
        return os.fstat(self._signs).st_size > 0

    def end(self) -> None:
        self._ended.set()

    def _wait(self) -> None:
        while not self._ended.wait(min(1.0, self._hang_s / 4)):
            last, stepping = self._last
            still = time.monotonic() - last
            if still > (self._hang_s if stepping else self._stall_s):
                self._give_up(still, stepping)

    def _give_up(self, still: float, stepping: bool) -> None:
        with self._hanging.open("wb", buffering=0) as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
        what = "taken no step" if stepping else "read, built or tested nothing"
        setting = "hang_s" if stepping else "stall_minutes"
        sentence = (
            f"rank {self._rank} has {what} for {still:.0f} s (train.{setting}) and is ended; what "
            f"it was doing is in {self._hanging}; training goes on from the last checkpoint"
        )
        note(self._folder, {"say": sentence})
        if not self._ended.wait(GRACE_S):
            os._exit(1)
