"""Where the program begins: it answers to signals before the rest of it is imported.

Importing the command line takes a second, on a busy machine several. Nothing is begun by then, so
that a signal ends the process on the spot.
"""

import os
import signal
from types import FrameType

from pipelines.stopping import GO_ON, SIGNALS

STDERR = 2


def main() -> None:
    """Run a command of the command line."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as with nohup
            signal.signal(number, _end)
    from pipelines.__main__ import main as command_line

    command_line()


def _end(number: int, frame: FrameType | None) -> None:
    # Not raised: what is half imported may catch any exception, and go on.
    os.write(STDERR, f"{GO_ON}\n".encode())
    os._exit(128 + number)
