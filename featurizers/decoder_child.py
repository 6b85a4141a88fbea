"""The child that decodes for a `Decoder`: it bounds itself, and ends with its parent."""

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from featurizers.clip import BadClipError
from featurizers.clocks import Clocks
from featurizers.damage import Damage
from featurizers.limits import Limits
from featurizers.media import Event, NoStream, decode, probe
from featurizers.memory import forget_peak, peak_bytes
from featurizers.spans import Again, ApartError, Heard, Span, decode_all, follow
from featurizers.spec import AudioChunk, AudioWant, VideoChunk, VideoWant, Want
from featurizers.store import StorageError
from featurizers.wire import HEADER, pack_event, send, unpack_want

TRIES = 2  # to decode the clips of a file in one go
ADDRESS_SPACE = 1 << 30  # and twice the measured limit: the upper net


def serve(parent: int) -> None:
    """Answer requests from standard input until it closes.

    Args:
        parent: The process id of whoever asks; when it is gone, so are we.
    """
    import threading

    requests, answers = sys.stdin.buffer, _Answers(os.fdopen(os.dup(1), "wb"))
    clips = _Clips()
    os.dup2(2, 1)  # whatever prints must not print into the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        while sizes := requests.read(HEADER.size):
            _serve_one(json.loads(requests.read(HEADER.unpack(sizes)[0])), answers, clips)


def _follow(parent: int) -> None:
    """End with the parent, in the middle of a decoding too.

    The kernel's signal for this (PR_SET_PDEATHSIG) would come when the *thread* ends that started
    the child; a warm child outlives many of those.
    """
    hung_up = select.poll()
    hung_up.register(0, 0)  # nothing but the end of the other side
    while not hung_up.poll(1000) and os.getppid() == parent:
        pass
    os._exit(1)


class _Answers:
    """The child's end of its pipe; knows how long it was kept waiting there."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe, self.seconds = pipe, 0.0

    def send(self, header: Mapping[str, Any], payload: NDArray[Any] | None = None) -> None:
        began = time.perf_counter()
        send(self._pipe, header, payload)
        self.seconds += time.perf_counter() - began


def _serve_one(request: Mapping[str, Any], answers: _Answers, clips: "_Clips") -> None:
    limits = Limits(**request["limits"])
    began, waited, cpu_seconds = time.perf_counter(), answers.seconds, _cpu_seconds()
    clips.meet(request)
    forget_peak()
    last = _last(request, limits, answers, clips)
    peak = peak_bytes()
    if peak > limits.memory_bytes and last["kind"] != "bug":
        last = {"kind": "memory"}  # also when it was given back before the parent looked
    busy = time.perf_counter() - began - (answers.seconds - waited)
    spent = {"cpu_seconds": _cpu_seconds() - cpu_seconds, "peak_bytes": peak}
    answers.send({**last, "seconds": max(0.0, busy), **spent})


def _last(
    request: Mapping[str, Any], limits: Limits, answers: _Answers, clips: "_Clips"
) -> dict[str, Any]:
    """Answer a request; what is to be said at its end."""
    import traceback

    try:
        clocks = _answer(request, limits, answers, clips)
    except BadClipError as bad:
        return {"kind": "fault", "fault": bad.fault, "message": bad.message}
    except StorageError as error:
        return {"kind": "io", "message": str(error)}
    except MemoryError:
        return {"kind": "memory"}
    except BrokenPipeError:
        raise
    except Exception:  # noqa: BLE001 - whatever it is, the parent raises it with its text
        return {"kind": "bug", "message": traceback.format_exc()}
    return {"kind": "end", "clocks": [each.numbers() for each in clocks]}


def _answer(
    request: Mapping[str, Any], limits: Limits, answers: _Answers, clips: "_Clips"
) -> list[Clocks]:
    """Send what is asked for; gives how the clocks of sound and pictures lie to each other."""
    clocks: list[Clocks] = []
    _bound_memory(limits)
    budget = _Budget(limits, request["cpu_seconds"])
    path = Path(request["path"])
    if request["do"] == "probe":
        answers.send({"kind": "probe", "index": 0, "probe": asdict(probe(path))})
        return clocks
    wants = [unpack_want(want) for want in request["wants"]]
    for index, event in clips.decode(path, _spans(request), wants, limits, clocks=clocks):
        header, payload = pack_event(event)
        budget.earn(_reached(event, wants[index]))
        answers.send({"index": index, **header}, payload)
    return clocks


def _spans(request: Mapping[str, Any]) -> list[Span]:
    """The span that is asked for, and those that will be asked for next."""
    return [(request["start"], request["end"]), *map(tuple, request["then"])]


class _Clips:
    """Decodes clip after clip: one that follows the one before in its file goes on from there."""

    def __init__(self) -> None:
        self._going: _Going | None = None
        self._apart: tuple[object, int] = (None, 0)  # a file, and how often it did not go on well

    def meet(self, request: Mapping[str, Any]) -> None:
        """Let go of what a request does not go on with: a file, its decoder, their memory."""
        if not request.get("together"):
            self._going = None

    def decode(
        self,
        path: Path,
        spans: Sequence[Span],
        wants: Sequence[Want],
        limits: Limits,
        *,
        clocks: list[Clocks] | None = None,
    ) -> Iterator[Heard]:
        """As `media.decode` for the first span; the others are those that will be asked for next.

        After an `Again` all begins anew. Clocks are measured where sound is decoded, if any is.
        """
        pictures = {n: want for n, want in enumerate(wants) if isinstance(want, VideoWant)}
        going = self._going_on(path, spans, list(pictures.values()), limits)
        if going is None:
            yield from decode(path, *spans[0], wants, limits, clocks=clocks)
            return
        numbers = list(pictures)
        sound = [number for number in range(len(wants)) if number not in pictures]
        try:
            yield from ((numbers[index], event) for index, event in going.next())
        except ApartError:
            self._note_apart(path)
            yield 0, Again()
            yield from decode(path, *spans[0], wants, limits, clocks=clocks)
            return
        self._going = going if going.left else None
        if sound:
            heard = [wants[number] for number in sound]
            events = decode(path, *spans[0], heard, limits, clocks=clocks)
            yield from ((sound[index], event) for index, event in events)
        elif clocks is not None:
            clocks += going.clocks

    def _note_apart(self, path: Path) -> None:
        file, count = self._apart
        self._apart = (_identity(path), count + 1 if file == _identity(path) else 1)

    def _going_on(
        self, path: Path, spans: Sequence[Span], wants: Sequence[VideoWant], limits: Limits
    ) -> "_Going | None":
        """What goes on or begins with these spans; None where there is nothing to be gained."""
        going, self._going = self._going, None
        if going is not None and going.goes_on(path, spans[0], wants, limits):
            return going
        together = spans[: follow(spans)] if wants else ()
        file, count = self._apart
        if len(together) < 2 or (count >= TRIES and file == _identity(path)):
            return None
        return _Going(path, together, wants, limits)


class _Going:
    """Clips of one file whose pictures are being decoded in one go."""

    def __init__(
        self, path: Path, spans: Sequence[Span], wants: Sequence[VideoWant], limits: Limits
    ) -> None:
        self.left = deque(spans)
        self._about = (path, list(wants), limits)
        self._file = _identity(path)
        self.clocks: list[Clocks] = []  # of the clip that came last
        self._events = decode_all(path, spans, wants, limits, clocks=self.clocks)

    def goes_on(self, path: Path, span: Span, wants: Sequence[VideoWant], limits: Limits) -> bool:
        """Whether this is the next of them."""
        wanted = (path, list(wants), limits)
        return self.left[0] == span and self._about == wanted and self._file == _identity(path)

    def next(self) -> Iterator[Event]:
        """The events of the next clip. Raises ApartError as `decode_all`."""
        self.clocks.clear()
        for _, event in self._events:
            if event is None:
                self.left.popleft()
                return
            yield event
        raise ApartError("nothing is left")


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells a file from another that took its place; None where nobody can say.

    Not its times, which whoever fetched it may touch. One that is open keeps its number.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size)


class _Budget:
    """Processor seconds that a clip may take; the kernel ends the child that passes them.

    Args:
        cpu_seconds: Granted at the start; the rest is earned.
    """

    def __init__(self, limits: Limits, cpu_seconds: float) -> None:
        self._limits, self._granted = limits, _cpu_seconds() + cpu_seconds
        self._whole = 0
        self.earn(0.0)

    def earn(self, reached: float) -> None:
        """Grant more for having come so far, in seconds from the clip's start."""
        import resource

        earned = self._limits.cpu_share * min(reached, self._limits.seconds)
        whole = int(self._granted + earned) + 1
        if whole > self._whole:
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (whole, hard))
            self._whole = whole


def _reached(event: AudioChunk | VideoChunk | NoStream | Damage | Again, want: Want) -> float:
    """Where on the clip's clock a chunk ends."""
    match event, want:
        case AudioChunk(), AudioWant():
            return event.start + len(event.samples) / want.rate_hz
        case VideoChunk(), _:
            return float(event.times[-1, 1])
        case _:
            return 0.0


def _bound_memory(limits: Limits) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2 * limits.memory_bytes + ADDRESS_SPACE, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _cpu_seconds() -> float:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
