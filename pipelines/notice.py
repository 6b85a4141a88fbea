"""A machine is about to be taken away: ranks save before it goes."""

import threading
import time
from collections.abc import Callable

ASKED_S = 2.0  # between questions; clouds give half a minute and more
AGAIN_S = 30.0  # between checkpoints, from the notice on


class Notice:
    """Asks for notices of preemption, beside the steps.

    `ray.train.get_preemption_info` (2.60.0) waits until all ranks ask, so that each step would wait
    for a round trip through an actor. Here a thread of each rank asks, and the threads wait for
    each other. Held by test_ranks_hear_that_a_machine_goes_without_waiting_for_each_other; may go
    when Ray tells one rank what it knows.

    Args:
        ask: Gives None, or what is known of machines that go.
        every_s: Seconds between questions.
        clock: Seconds.
    """

    def __init__(
        self,
        ask: Callable[[], object | None],
        *,
        every_s: float = ASKED_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._every_s, self._clock = ask, every_s, clock
        self._given, self._ended = threading.Event(), threading.Event()
        self._saved_at = -AGAIN_S
        threading.Thread(target=self._listen, name="fuseline-notice", daemon=True).start()

    def due(self) -> bool:
        """Whether to save now: at once after a notice, and again every half a minute."""
        if not self._given.is_set() or self._clock() - self._saved_at < AGAIN_S:
            return False
        self._saved_at = self._clock()
        return True

    def end(self) -> None:
        """Ask no more."""
        self._ended.set()

    def _listen(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                found = self._ask()
            except Exception:  # noqa: BLE001 - the group ends, and with it whom to ask
                return
            if found is not None:
                self._given.set()
            else:
                self._given.clear()
