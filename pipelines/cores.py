"""A processor core for each worker and its decoding child, where they fill a machine of their own.

A worker that asks for one CPU and the child that decodes for it wake each other several times a
clip. The kernel then moves both from core to core, and what they had in a core's cache is lost: on
two cores an eighth of the speed. So a worker takes a core, and its child inherits it.

Only workers that fill a machine do so: beside free cores they are better off unbound, and on a
cluster that was joined others count on these cores as well.
"""

import contextlib
import os
import tempfile
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")


def filled_by(workers: int) -> bool:
    """Whether so many workers take every core that this process may run on, and may take it whole.

    Where a container has a quota its cores are not its own: it may see all those of the machine.
    """
    if not hasattr(os, "sched_setaffinity") or _has_quota():
        return False
    return workers >= len(os.sched_getaffinity(0)) > 1


def _has_quota() -> bool:
    try:
        return not QUOTA.read_text().startswith("max")
    except OSError:
        return False


def place() -> Path:
    """Where the workers of one user on this machine see which cores are taken."""
    return Path(tempfile.gettempdir(), f"fuseline-cores-{os.getuid()}")


def take(folder: Path) -> int | None:
    """Bind this thread, and all that it starts from now on, to a core that no other worker took.

    It is given back when the process ends, however it ends.

    Args:
        folder: `place()`.

    Returns:
        The core's number; None when all are taken, or none can be told to be free.
    """
    import fcntl

    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        for core in sorted(os.sched_getaffinity(0)):
            # A child that outlives its worker by a moment must not hold it: not inherited.
            lock = os.open(folder / str(core), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            os.sched_setaffinity(0, [core])
            return core  # the lock stays open as long as this process lives
    return None
