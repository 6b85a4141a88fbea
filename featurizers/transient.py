"""Faults that pass by themselves: told from those that stay, and waited for.

A server that wants to be left alone for a while says so by `Retry-After` (RFC 9110, 10.2.3): in
seconds, or as a date. It is never asked again before that.
"""

import errno
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar

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
LONGEST_PAUSE_S = 300.0
"""A server that wants to be left alone for longer is given up, not waited for."""

SERVER_ERRORS = 500


def passes(error: BaseException) -> bool:
    """Whether an error may be gone at the next try: I/O, throttling, the network."""
    error = _true(error)
    told = getattr(error, "transient", None)
    if isinstance(told, bool):
        return told
    # Network clients have errors of their own; their libraries are not imported for this.
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status == HTTPStatus.TOO_MANY_REQUESTS or status >= SERVER_ERRORS
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if _client(error) in {"aiohttp", "botocore", "urllib3"}:
        return True
    return isinstance(error, OSError) and error.errno in PASSING


def pause_s(error: BaseException) -> float:
    """For how many seconds the server wants to be left alone; 0 where it does not say."""
    headers = getattr(_true(error), "headers", None) or {}
    asked = str(headers.get("Retry-After", "")).strip()
    if re.fullmatch(r"[0-9]+", asked):
        return float(asked)
    until = _date_s(headers, "Retry-After")
    if until is None:
        return 0.0
    # By the server's clock, which need not be ours.
    now = _date_s(headers, "Date")
    return max(0.0, until - (time.time() if now is None else now))


def reason(error: BaseException) -> str:
    """What went wrong, for people."""
    error = _true(error)
    told = str(error) or type(error).__name__
    if isinstance(status := getattr(error, "status", None), int):
        said = getattr(error, "message", None) or getattr(error, "reason", None) or ""
        told = f"{status} {said}".rstrip()
    asked_s = pause_s(error)
    return f"{told}; it wants to be asked again in {asked_s:.0f} s" if asked_s else told


def patiently(
    call: Callable[[], T],
    *,
    tries: int = TRIES,
    first_wait: float = FIRST_WAIT_S,
    what: str = "a server",
) -> T:
    """Call something; a fault that may pass is tried again, waiting twice as long each time.

    Waits are spread by up to half, so that many workers that were throttled together do not come
    back together. Any other error, and the last one, is raised as it is. A pause that a server asks
    for comes on top and is logged; the error is raised at once where it is over `LONGEST_PAUSE_S`.

    Args:
        call: It must be right to call it again after it failed.
        tries: How often it is called.
        first_wait: Seconds.
        what: What is asked, for the log.
    """
    for number in range(tries - 1):
        try:
            return call()
        except Exception as error:
            asked_s = pause_s(error)
            if not passes(error) or asked_s > LONGEST_PAUSE_S:
                raise
            why = reason(error)
        spread = random.uniform(0.5, 1.5)  # noqa: S311 - no secret, only a wait
        if asked_s:
            logging.getLogger(__name__).warning("waiting for %s: %s", what, why)
        time.sleep(asked_s + first_wait * 2**number * spread)
    return call()


def _true(error: BaseException) -> BaseException:
    """What a client of the web met: fsspec says of whatever it met that there is no such file."""
    cause = error.__cause__
    is_told = isinstance(cause, TimeoutError | ConnectionError) or _client(cause) == "aiohttp"
    return cause if isinstance(error, FileNotFoundError) and cause and is_told else error


def _client(error: BaseException | None) -> str:
    """The library that an error is of."""
    return type(error).__module__.split(".")[0]


def _date_s(headers: Mapping[str, Any], name: str) -> float | None:
    try:
        return parsedate_to_datetime(str(headers[name])).timestamp()
    except (KeyError, ValueError):
        return None
