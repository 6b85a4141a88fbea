"""The child that decodes for a `Decoder`: it bounds itself, and ends with its parent."""

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from featurizers.clip import BadClipError
from featurizers.damage import Damage
from featurizers.limits import Limits
from featurizers.media import NoStream, decode, probe
from featurizers.memory import forget_peak, peak_bytes
from featurizers.spec import AudioChunk, AudioWant, VideoChunk, Want
from featurizers.store import StorageError
from featurizers.wire import HEADER, pack_event, send, unpack_want

ADDRESS_SPACE = 1 << 30  # and twice the measured limit: the upper net


def serve(parent: int) -> None:
    """Answer requests from standard input until it closes.

    Args:
        parent: The process id of whoever asks; when it is gone, so are we.
    """
    import threading

    requests, answers = sys.stdin.buffer, _Answers(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # whatever prints must not print into the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        while sizes := requests.read(HEADER.size):
            _serve_one(json.loads(requests.read(HEADER.unpack(sizes)[0])), answers)


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


def _serve_one(request: Mapping[str, Any], answers: _Answers) -> None:
    limits = Limits(**request["limits"])
    began, waited, cpu_seconds = time.perf_counter(), answers.seconds, _cpu_seconds()
    forget_peak()
    last = _last(request, limits, answers)
    peak = peak_bytes()
    if peak > limits.memory_bytes and last["kind"] != "bug":
        last = {"kind": "memory"}  # also when it was given back before the parent looked
    busy = time.perf_counter() - began - (answers.seconds - waited)
    spent = {"cpu_seconds": _cpu_seconds() - cpu_seconds, "peak_bytes": peak}
    answers.send({**last, "seconds": max(0.0, busy), **spent})


def _last(request: Mapping[str, Any], limits: Limits, answers: _Answers) -> dict[str, Any]:
    """Answer a request; what is to be said at its end."""
    import traceback

    try:
        _answer(request, limits, answers)
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
    return {"kind": "end"}


def _answer(request: Mapping[str, Any], limits: Limits, answers: _Answers) -> None:
    _bound_memory(limits)
    budget = _Budget(limits, request["cpu_seconds"])
    path = Path(request["path"])
    if request["do"] == "probe":
        answers.send({"kind": "probe", "index": 0, "probe": asdict(probe(path))})
        return
    wants = [unpack_want(want) for want in request["wants"]]
    for index, event in decode(path, request["start"], request["end"], wants, limits):
        header, payload = pack_event(event)
        budget.earn(_reached(event, wants[index]))
        answers.send({"index": index, **header}, payload)


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


def _reached(event: AudioChunk | VideoChunk | NoStream | Damage, want: Want) -> float:
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
