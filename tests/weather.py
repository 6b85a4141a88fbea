"""A file that cannot be read for a while, or by nobody any more, though it is there."""

import errno
import math
import os
from pathlib import Path

READ, OPEN = os.read, os.open


class Weather:
    """Stands in the place of `os.read`: some reads of one file fail.

    Args:
        path: Of the file.
        first: Number of the first read that fails, from 1 on.
        times: How many fail.
        error: What they fail with.
    """

    def __init__(self, path, first, times=math.inf, error=errno.EIO):
        self.path, self.first, self.times, self.error = os.path.realpath(path), first, times, error
        self.reads = 0

    def __call__(self, handle, size):
        if str(Path(f"/proc/self/fd/{handle}").readlink()) == self.path:
            self.reads += 1
            if self.first <= self.reads < self.first + self.times:
                raise OSError(self.error, os.strerror(self.error))
        return READ(handle, size)


class Refusal:
    """Stands in the place of `os.open`: one file may not be opened."""

    def __init__(self, path):
        self.path = path

    def __call__(self, path, *arguments, **how):
        if str(path) == self.path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return OPEN(path, *arguments, **how)
