"""Ctrl-C and SIGTERM: work ends cleanly, one line says how to go on, the exit code tells which."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 128 + signal.SIGINT  # also what Typer makes of a KeyboardInterrupt
ECHO_S = 0.5  # a terminal and a program between us may both pass one Ctrl-C on
GO_ON = "fuseline: stopped; the same command goes on where it was"


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM came.

    A KeyboardInterrupt because of Ray (2.60.0): of what a handler raises inside its calls it passes
    on only that, as a new one; anything else is lost.
    Held by test_a_signal_inside_a_call_of_ray_is_not_lost.
    """


class Ear:
    """The handler of both signals: the first ends the work, a second the process, at once.

    Attributes:
        heard: The first signal.
        ending: The work is over, and what is left to do must not be interrupted.
    """

    def __init__(self) -> None:
        self.heard: int | None = None
        self.ending = False
        self._heard_at = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Answer to a signal."""
        if self.heard is not None:
            if time.monotonic() - self._heard_at > ECHO_S:
                os._exit(128 + number)
            return
        self.heard, self._heard_at = number, time.monotonic()
        if not self.ending:
            raise Stopped


def check() -> None:
    """Raise Stopped when a signal came, and whoever was interrupted by it let it drop."""
    ear = signal.getsignal(signal.SIGTERM)
    if isinstance(ear, Ear) and ear.heard is not None and not ear.ending:
        raise Stopped


@contextmanager
def listen() -> Iterator[Ear]:
    """Answer to SIGINT and SIGTERM, except where they are ignored, as with nohup."""
    ear = Ear()
    if threading.current_thread() is not threading.main_thread():
        yield ear
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, ear)
    try:
        yield ear
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stoppable(work: Callable[[], int], end: Callable[[], None]) -> int:
    """Do some work and end it, whether it finished or was stopped.

    Args:
        work: Gives the exit code.
        end: Called after it in any case, for example to leave a cluster; a second signal cuts it
            short.

    Returns:
        The exit code: 130 after SIGINT, 143 after SIGTERM, and one line on standard error then.
    """
    with listen() as ear:
        try:
            code = _code(work, ear)
        finally:
            ear.ending = True
            end()
        return code


def _code(work: Callable[[], int], ear: Ear) -> int:
    try:
        code = work()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (Exception, SystemExit):
        # What a signal interrupts may say so by an exception of its own; Ray Train (2.60.0) exits.
        # Held by test_whatever_a_stopped_library_raises_the_exit_code_tells_the_signal.
        if ear.heard is None:
            raise
        code = INTERRUPTED
    if code == INTERRUPTED or (code and ear.heard is not None):
        print(GO_ON, file=sys.stderr, flush=True)  # noqa: T201 - the command line's last word
        code = 128 + (ear.heard or signal.SIGINT)
    return code
