"""The parent's end of a decoding child: its process, its pipes, and the eye that is kept on it."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from featurizers.clip import Fault
from featurizers.clocks import Clocks, read_clocks
from featurizers.wire import HEADER, Payload, send

WATCH_S = 0.25
HEADER_LIMIT = 1 << 24
PAYLOAD_LIMIT = 1 << 30
PIPE_BYTES = 1 << 20  # the child decodes that far ahead of a parent that is busy

# What a clip ends with; after the first three the child serves on.
LAST = ("end", "fault", "io", "memory", "bug")


class DecoderDiedError(Exception):
    """The child ended in the middle of a clip; `fault` says what that means for the clip."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault: Fault = fault


class GivenUpError(Exception):
    """Nobody wants the rest of a clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a clip cost in the child.

    Attributes:
        seconds: How long it was busy: all but the waiting until its chunks were taken.
        cpu_seconds: Its processor time.
        peak_bytes: The most resident memory that it held.
        clocks: How those of sound and pictures lie to each other; None where that was not measured.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    clocks: Clocks | None = None


def too_much(memory_bytes: int) -> DecoderDiedError:
    """Of a child that took more than this."""
    # Not how much it took: that differs from run to run, and the message is kept in the shard.
    text = f"the decoder took more memory than the {memory_bytes >> 20} MiB that are permitted"
    return DecoderDiedError("crashed", text)


def started() -> "subprocess.Popen[bytes]":
    """A child that waits to be asked."""
    home = str(Path(__file__).resolve().parent.parent)
    # -P keeps the current folder, and whatever is called `featurizers` in it, off the path.
    program = (
        f"import sys; sys.path.insert(0, {home!r}); "
        f"from featurizers.decoder_child import serve; serve({os.getpid()})"
    )
    return subprocess.Popen(  # noqa: S603 - our own program text, no shell
        [sys.executable, "-P", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        # No buffer on our side: bytes that wait in one are not seen by poll().
        bufsize=0,
    )


class Child:
    """The parent's end of a child: its process and its pipes."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.lost_cpu_seconds = 0.0  # of the clip in the middle of which it ended
        self._cpu_seconds = 0.0  # of the clips that it finished
        self._out = _pipe(process.stdout).fileno()
        _widen(self._out)
        os.set_blocking(self._out, False)
        self._poll = select.poll()  # select() itself stops at 1024 files
        self._poll.register(self._out, select.POLLIN)

    def ask(self, request: Mapping[str, Any]) -> None:
        """Hand it a request. Raises BrokenPipeError when it is gone."""
        send(_pipe(self.process.stdin), request)

    def ready(self, seconds: float) -> bool:
        """Whether there is something to read within a time; the child's end is something."""
        return bool(self._poll.poll(seconds * 1000))

    def read(self, into: memoryview) -> int | None:
        """How many bytes came: 0 when the child is gone, None when none are there yet."""
        try:
            return os.readv(self._out, [into])
        except BlockingIOError:
            return None

    def resident_bytes(self) -> int:
        """The memory that it really holds; 0 when it is gone."""
        import psutil

        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def finished(self, last: Mapping[str, Any]) -> Spent | None:
        """What it spent on a clip, by its last message; None when it is to be replaced."""
        if last["kind"] not in LAST[:3]:
            return None
        spent = Spent(
            seconds=float(last["seconds"]),
            cpu_seconds=float(last["cpu_seconds"]),
            peak_bytes=int(last["peak_bytes"]),
            clocks=next(map(read_clocks, last.get("clocks", ())), None),
        )
        self._cpu_seconds += spent.cpu_seconds
        return spent

    def end(self) -> None:
        """Kill it where it lives, and close its pipes."""
        process = self.process
        if process.returncode is None:
            try:
                # One that is ending by itself keeps the code that it ends with.
                os.kill(process.pid, signal.SIGKILL)
                _, status, usage = os.wait4(process.pid, 0)
            except (ProcessLookupError, ChildProcessError):  # somebody else waited for it
                process.returncode = 0
            else:
                process.returncode = os.waitstatus_to_exitcode(status)
                used = usage.ru_utime + usage.ru_stime
                self.lost_cpu_seconds = max(0.0, used - self._cpu_seconds)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def death(self) -> DecoderDiedError:
        """What its end means for the clip."""
        self.end()
        code = self.process.returncode
        if code == -signal.SIGXCPU:
            return DecoderDiedError("timed_out", "the decoder used up its CPU seconds")
        return DecoderDiedError("crashed", f"the decoder ended with code {code}")


class Watch:
    """Takes a clip's messages, and looks after the child while it waits for them.

    A look costs some microseconds.
    """

    def __init__(
        self, child: Child, memory_bytes: int, wall: float, given_up: Callable[[], bool]
    ) -> None:
        self._child, self._memory_bytes, self._wall = child, memory_bytes, wall
        self._given_up = given_up
        self._waited, self._peak_bytes = 0.0, 0
        self._next_look = time.perf_counter() + WATCH_S

    def spent(self) -> Spent:
        """What the clip cost, seen from here: for a child that cannot say it any more."""
        return Spent(
            seconds=self._waited,
            cpu_seconds=self._child.lost_cpu_seconds,
            peak_bytes=self._peak_bytes,
        )

    def receive(self) -> tuple[dict[str, Any], Payload] | None:
        """The next message; None when the child is gone, also in the middle of one.

        Raises:
            DecoderDiedError: It takes too much memory, or gave nothing for too long.
            GivenUpError: Nobody wants the rest of the clip.
            ValueError: What came is no message.
        """
        began = time.perf_counter()
        try:
            if began >= self._next_look:
                self._look()
            return self._message()
        finally:
            self._waited += time.perf_counter() - began

    def _message(self) -> tuple[dict[str, Any], Payload] | None:
        sizes = self._exactly(HEADER.size)
        if sizes is None:
            return None
        text_size, payload_size = HEADER.unpack(sizes.data)
        if text_size > HEADER_LIMIT or payload_size > PAYLOAD_LIMIT:
            raise ValueError(f"a message of {text_size} and {payload_size} bytes")
        body = self._exactly(text_size + payload_size)
        if body is None:
            return None
        header = json.loads(body[:text_size].tobytes())
        body.setflags(write=False)
        return header, body[text_size:]

    def _exactly(self, size: int) -> Payload | None:
        whole = np.empty(size, dtype=np.uint8)
        view, at = whole.data, 0
        while at < size:
            count = self._child.read(view[at:])
            if count is None:
                self._wait()
            elif count:
                at += count
            else:
                return None
        return whole

    def _wait(self) -> None:
        began = time.perf_counter()
        while not self._child.ready(WATCH_S):
            self._look()
            if time.perf_counter() - began > self._wall:
                text = f"the decoder gave nothing for {self._wall:.0f} s"
                raise DecoderDiedError("timed_out", text)

    def _look(self) -> None:
        self._next_look = time.perf_counter() + WATCH_S
        if self._given_up():
            raise GivenUpError
        resident = self._child.resident_bytes()
        self._peak_bytes = max(self._peak_bytes, resident)
        if resident > self._memory_bytes:
            raise too_much(self._memory_bytes)


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the decoder was started without pipes")
    return pipe


def _widen(pipe: int) -> None:
    """Let the child decode some way ahead of a parent that is busy; not where it is refused."""
    import fcntl

    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
