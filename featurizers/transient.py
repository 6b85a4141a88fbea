"""Faults that pass by themselves: told from those that stay, and waited for."""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# What a network file system, an object store or a busy disk says when the next try may succeed.
# No room, no permission and no such file are not among them.
PASSING = {
    errno.EIO,
    errno.EREMOTEIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
}
TRIES = 5
FIRST_WAIT_S = 0.25
TOO_MANY_REQUESTS = 429
SERVER_ERRORS = 500


def passes(error: BaseException) -> bool:
    """Whether an error may be gone at the next try: I/O, throttling, the network."""
    told = getattr(error, "transient", None)
    if isinstance(told, bool):
        return told
    # Network clients have errors of their own; their libraries are not imported for this.
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status == TOO_MANY_REQUESTS or status >= SERVER_ERRORS
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if type(error).__module__.split(".")[0] in {"aiohttp", "botocore", "urllib3"}:
        return True
    return isinstance(error, OSError) and error.errno in PASSING


def patiently(call: Callable[[], T], *, tries: int = TRIES, first_wait: float = FIRST_WAIT_S) -> T:
    """Call something; a fault that may pass is tried again, waiting twice as long each time.

    Waits are spread by up to half, so that many workers that were throttled together do not come
    back together. Any other error, and the last one, is raised as it is.
    """
    for number in range(tries - 1):
        try:
            return call()
        except Exception as error:
            if not passes(error):
                raise
        spread = random.uniform(0.5, 1.5)  # noqa: S311 - no secret, only a wait
        time.sleep(first_wait * 2**number * spread)
    return call()
