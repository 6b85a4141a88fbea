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
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from featurizers.clip import FAULTS, BadClipError, Fault
from featurizers.decoder_process import (
    LAST,
    Child,
    DecoderDiedError,
    Spent,
    Watch,
    started,
    too_much,
)
from featurizers.limits import Limits
from featurizers.media import Event, Probe
from featurizers.placing import CHUNK_PICTURES
from featurizers.spans import Again, Heard, Span
from featurizers.spec import AudioWant, Want
from featurizers.store import StorageError
from featurizers.wire import Payload, pack_want, unpack_event

WALL_FACTOR = 20.0  # time is judged by CPU seconds; a child that sleeps longer than this hangs
SKIP_SHARE = 1.0  # CPU seconds for each second that lies before the span: it may have to be decoded
PROBE_BYTES = 4 << 20  # of a file whose header is silent are read in a CPU second at the least


Parsed = TypeVar("Parsed")


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
        self._child: Child | None = None

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
        watch = Watch(child, self.limits.memory_bytes, wall, given_up)
        spent: Spent | None = None
        try:
            child.ask({**request, "limits": asdict(self.limits)})
            for header, payload in iter(watch.receive, None):
                if header["kind"] not in LAST:
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
                raise too_much(self.limits.memory_bytes)
            case "bug":
                raise RuntimeError(f"the decoder failed on {path}:\n{last['message']}")
            case _:
                return

    def _start(self) -> "Child":
        if self._child is not None and self._child.process.poll() is not None:
            self.close()
        if self._child is None:
            self._child = Child(started())
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


def _probed(header: Mapping[str, Any], payload: Payload) -> Probe:
    return Probe(**header["probe"])


def _fault(name: str) -> Fault:
    for fault in FAULTS:
        if fault == name:
            return fault
    raise RuntimeError(f"the decoder sent an unknown fault: {name}")
