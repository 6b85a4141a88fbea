"""A killable child that decodes: a file that crashes, hangs or swallows memory costs only itself.

The child is warm (it serves one clip after another) and speaks JSON headers and raw bytes over
pipes, so that nothing which it sends is ever unpickled.

- *Processor time* is limited by the kernel. What a file says of its length buys none: time is
  earned by the media that were really given.
- *Memory* is measured: the parent looks at what the child really holds a few times a second, and
  the child at its peak after each clip. The kernel's limit of its address space is a net above
  that, for what is allocated between two looks.
- *Outcomes do not depend on the clips before*: a child that took too much is replaced, and the clip
  is tried once more in a fresh one.
- *Nobody is left behind*: a thread of the child sees that the parent is gone and ends it.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

import numpy as np

from featurizers.clip import FAULTS, BadClipError, Fault
from featurizers.clocks import Clocks, read_clocks
from featurizers.limits import Limits
from featurizers.media import Event, Probe
from featurizers.placing import CHUNK_PICTURES
from featurizers.spans import Again, Heard, Span
from featurizers.spec import AudioWant, Want
from featurizers.store import StorageError
from featurizers.wire import HEADER, Payload, pack_want, send, unpack_event

WALL_FACTOR = 20.0  # time is judged by CPU seconds; a child that sleeps longer than this hangs
SKIP_SHARE = 1.0  # CPU seconds for each second that lies before the span: it may have to be decoded
PROBE_BYTES = 4 << 20  # of a file whose header is silent are read in a CPU second at the least
WATCH_S = 0.25
HEADER_LIMIT = 1 << 24
PAYLOAD_LIMIT = 1 << 30
PIPE_BYTES = 1 << 20  # the child decodes that far ahead of a parent that is busy


Parsed = TypeVar("Parsed")


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


def _never() -> bool:
    return False


class Decoder:
    """Owns one decoding child; use as a context manager, or call `close`.

    One thread at a time may use it.

    Attributes:
        limits: What a clip may cost.
        spent: What the last clip cost.
        peak_bytes: The most resident memory that a child of this decoder ever held.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.spent = Spent()
        self.peak_bytes = 0
        self._child: _Child | None = None

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id while there is one."""
        return None if self._child is None else self._child.process.pid

    def close(self) -> None:
        """End the child; the next call starts another."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def probe(self, path: Path) -> Probe:
        """`media.probe` in the child, tried once more in a fresh one when it dies.

        Raises:
            BadClipError: As `media.probe`, and "crashed" or "timed_out".
            StorageError: The file cannot be read now.
        """
        try:
            return self._probe(path)
        except DecoderDiedError:
            try:
                return self._probe(path)
            except DecoderDiedError as died:
                raise BadClipError(died.fault, f"{died}, twice") from None

    def _probe(self, path: Path) -> Probe:
        # The size is no word of the file's header: it cannot lie.
        allowed = self.limits.cpu_seconds + _size(path) / PROBE_BYTES
        request = {"do": "probe", "path": str(path), "cpu_seconds": allowed}
        found = list(self._answers(request, WALL_FACTOR * allowed, _probed, _never))
        if len(found) != 1:
            raise _babble(f"{len(found)} answers")
        return found[0]

    def decode(
        self,
        path: Path,
        start: float,
        end: float | None,
        wants: Sequence[Want],
        *,
        given_up: Callable[[], bool] = _never,
    ) -> Generator[Event, None, None]:
        """`media.decode` in the child. What was given before an exception is to be thrown away.

        Args:
            path: A local file.
            start: Seconds from the file's start.
            end: Seconds; None for the rest of the file.
            wants: What is wanted.
            given_up: Asked a few times a second; the child is ended when it says yes.

        Returns:
            What `media.decode` gives; the arrays are read-only.

        Raises:
            BadClipError: As `media.decode`.
            StorageError: The file cannot be read now.
            DecoderDiedError: The child crashed, hung or took too much; worth one more try.
            GivenUpError: `given_up` said yes.
        """
        spans = [(start, end)]
        with contextlib.closing(
            self._decode(path, spans, wants, given_up, together=False)
        ) as events:
            for index, event in events:
                if isinstance(event, Again):
                    raise _babble("a span that stands alone began again")
                yield index, event

    def decode_first(
        self,
        path: Path,
        spans: Sequence[Span],
        wants: Sequence[Want],
        *,
        given_up: Callable[[], bool] = _never,
    ) -> Generator[Heard, None, None]:
        """As `decode` for the first of some spans.

        The others are those that will be asked for next: where they follow each other, one decoding
        serves them all. After an `Again` all begins anew.
        """
        yield from self._decode(path, spans, wants, given_up, together=True)

    def _decode(
        self,
        path: Path,
        spans: Sequence[Span],
        wants: Sequence[Want],
        given_up: Callable[[], bool],
        *,
        together: bool,
    ) -> Generator[Heard, None, None]:
        start, end = spans[0]
        allowed = self.limits.cpu_seconds + self.limits.cpu_share * _lead(wants)
        request = {
            "do": "decode",
            "path": str(path),
            "start": start,
            "end": end,
            "wants": [pack_want(want) for want in wants],
            "then": spans[1:],
            "together": together,
            "cpu_seconds": allowed + SKIP_SHARE * start,
        }

        def parse(header: Mapping[str, Any], payload: Payload) -> Heard:
            return unpack_event(header, payload, wants)

        yield from self._answers(request, WALL_FACTOR * allowed + start, parse, given_up)

    def _answers(
        self,
        request: Mapping[str, Any],
        wall: float,
        parse: Callable[[Mapping[str, Any], Payload], Parsed],
        given_up: Callable[[], bool],
    ) -> Generator[Parsed, None, None]:
        child = self._start()
        watch = _Watch(child, self.limits.memory_bytes, wall, given_up)
        spent: Spent | None = None
        try:
            child.ask({**request, "limits": asdict(self.limits)})
            for header, payload in iter(watch.receive, None):
                if header["kind"] not in _LAST:
                    yield parse(header, payload)
                    continue
                spent = child.finished(header)
                self._judge(request["path"], header)
                return
            raise child.death()
        except BrokenPipeError:
            raise child.death() from None
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise _babble(error) from None
        finally:
            if spent is None:
                self.close()
                spent = watch.spent()
            self.spent = spent
            self.peak_bytes = max(self.peak_bytes, spent.peak_bytes)

    def _judge(self, path: str, last: Mapping[str, Any]) -> None:
        """Raise what a clip's last message means, unless that is its end."""
        match last["kind"]:
            case "fault":
                raise BadClipError(_fault(last["fault"]), str(last["message"]))
            case "io":
                raise StorageError(str(last["message"]), transient=True)
            case "memory":
                raise _too_much(self.limits.memory_bytes)
            case "bug":
                raise RuntimeError(f"the decoder failed on {path}:\n{last['message']}")
            case _:
                return

    def _start(self) -> "_Child":
        if self._child is not None and self._child.process.poll() is not None:
            self.close()
        if self._child is None:
            self._child = _Child(_started())
        return self._child


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _lead(wants: Sequence[Want]) -> float:
    """Seconds of media that may have to be decoded before a first chunk is full."""
    spans = [1.0 if isinstance(want, AudioWant) else CHUNK_PICTURES / want.fps for want in wants]
    return max(spans, default=1.0)


def _babble(error: object) -> DecoderDiedError:
    return DecoderDiedError("crashed", f"the decoder sent what nobody can read: {error}")


def _too_much(memory_bytes: int) -> DecoderDiedError:
    # Not how much it took: that differs from run to run, and the message is kept in the shard.
    text = f"the decoder took more memory than the {memory_bytes >> 20} MiB that are permitted"
    return DecoderDiedError("crashed", text)


# What a clip ends with; after the first three the child serves on.
_LAST = ("end", "fault", "io", "memory", "bug")


def _started() -> "subprocess.Popen[bytes]":
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


class _Child:
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
        if last["kind"] not in _LAST[:3]:
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


class _Watch:
    """Takes a clip's messages, and looks after the child while it waits for them.

    A look costs some microseconds.
    """

    def __init__(
        self, child: _Child, memory_bytes: int, wall: float, given_up: Callable[[], bool]
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
            raise _too_much(self._memory_bytes)


def _probed(header: Mapping[str, Any], payload: Payload) -> Probe:
    return Probe(**header["probe"])


def _fault(name: str) -> Fault:
    for fault in FAULTS:
        if fault == name:
            return fault
    raise RuntimeError(f"the decoder sent an unknown fault: {name}")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the decoder was started without pipes")
    return pipe


def _widen(pipe: int) -> None:
    """Let the child decode some way ahead of a parent that is busy; not where it is refused."""
    import fcntl

    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
