"""A thread that works ahead of whoever takes what it makes, and holds no more than some bytes."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

AHEAD_BYTES = 64 << 20  # of what was made wait at most to be taken
LEAVE_S = 10.0  # a thread that is still at work then is left to end by itself

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Runs a generator in a thread, ahead of whoever takes its items.

    Args:
        make: The generator; it is given a function that says whether it was given up.
        size: Bytes of an item. More than AHEAD_BYTES wait only when a single item has more.
    """

    def __init__(
        self,
        make: Callable[[Callable[[], bool]], Generator[Item, None, None]],
        size: Callable[[Item], int],
    ) -> None:
        self._make, self._size = make, size
        self._items: deque[Item] = deque()
        self._waiting_bytes = 0
        self._given_up = self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="reads ahead", daemon=True)
        self._thread.start()

    def take(self) -> Item:
        """The next item. Raises what the generator raised in its place."""
        with self._changed:
            while not self._items and not self._ended:
                self._changed.wait()
            if self._items:
                item = self._items.popleft()
                self._waiting_bytes -= self._size(item)
                self._changed.notify()
                return item
        raise self._error or RuntimeError("nothing is left to be taken")

    def close(self) -> None:
        """Give the rest up; waits for the thread's end, but not long for a slow fetch."""
        with self._changed:
            self._given_up = True
            self._items.clear()
            self._changed.notify()
        self._thread.join(LEAVE_S)

    def _run(self) -> None:
        try:
            # Closed in this thread: a generator that is given up ends its child.
            with contextlib.closing(self._make(lambda: self._given_up)) as items:
                for item in items:
                    if not self._put(item):
                        break
        except BaseException as error:  # noqa: BLE001 - raised again by whoever takes the items
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _put(self, item: Item) -> bool:
        """Let an item wait to be taken; False when nobody will."""
        size = self._size(item)
        with self._changed:
            while self._items and self._waiting_bytes + size > AHEAD_BYTES and not self._given_up:
                self._changed.wait()
            self._items.append(item)
            self._waiting_bytes += size
            self._changed.notify()
            return not self._given_up
