"""A killable child that decodes: a file that crashes, hangs or swallows memory costs only itself.

The child is warm (it serves one clip after another) and speaks JSON headers and raw bytes over
pipes, so that nothing which it sends is ever unpickled. It sets its own limits before each clip:
the kernel ends it when they are passed.
"""

import json
import os
import selectors
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from featurizers.clip import FAULTS, BadClipError, Fault
from featurizers.media import Damage, Event, Limits, NoStream, Probe, decode, probe
from featurizers.spec import AudioChunk, AudioWant, VideoChunk, VideoWant, Want

_HEADER = struct.Struct("<II")  # bytes of JSON, bytes of payload
WALL_FACTOR = 20.0  # time is judged by CPU seconds; a child that sleeps longer than this hangs
HEADER_LIMIT = 1 << 24
PAYLOAD_LIMIT = 1 << 30


class DecoderDiedError(Exception):
    """The child ended in the middle of a clip; `fault` says what that means for the clip."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault: Fault = fault


class Decoder:
    """Owns one decoding child; use as a context manager, or call `close`."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._child: subprocess.Popen[bytes] | None = None

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
        return None if self._child is None else self._child.pid

    def close(self) -> None:
        """End the child; the next call starts another."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()
            self._child = None

    def probe(self, path: Path) -> Probe:
        """`media.probe` in the child, tried once more in a fresh one when it dies.

        Raises:
            BadClipError: As `media.probe`, and "crashed" or "timed_out".
        """
        try:
            return self._probe(path)
        except DecoderDiedError:
            try:
                return self._probe(path)
            except DecoderDiedError as died:
                raise BadClipError(died.fault, f"{died}, twice") from None

    def _probe(self, path: Path) -> Probe:
        answers = list(self._answers({"do": "probe", "path": str(path)}, 0.0))
        return Probe(**answers[0][1]["probe"])

    def decode(
        self,
        path: Path,
        start: float,
        end: float | None,
        wants: Sequence[Want],
        *,
        seconds: float = 0.0,
    ) -> Iterator[Event]:
        """`media.decode` in the child. What was given before an exception is to be thrown away.

        Args:
            path: A local file.
            start: Seconds from the file's start.
            end: Seconds; None for the rest of the file.
            wants: What is wanted.
            seconds: The span's known duration, from which the CPU seconds that it may take follow.

        Raises:
            BadClipError: As `media.decode`.
            DecoderDiedError: The child crashed, hung or took too much; worth one more try.
        """
        request = {
            "do": "decode",
            "path": str(path),
            "start": start,
            "end": end,
            "wants": [{"kind": type(want).__name__, **asdict(want)} for want in wants],
        }
        for index, header, payload in self._answers(request, seconds):
            yield index, _event(header, payload)

    def _answers(
        self, request: Mapping[str, Any], seconds: float
    ) -> Iterator[tuple[int, dict[str, Any], bytes]]:
        child = self._start()
        limits = asdict(self.limits)
        whole = False
        try:
            allowed = self.limits.cpu_seconds + self.limits.cpu_share * seconds
            _send(_pipe(child.stdin), {**request, "limits": limits, "cpu_seconds": allowed}, b"")
            while True:
                header, payload = self._receive(child, allowed * WALL_FACTOR)
                if header["kind"] == "end":
                    whole = True
                    return
                if header["kind"] == "fault":
                    whole = True
                    raise BadClipError(_fault(header["fault"]), str(header["message"]))
                if header["kind"] == "bug":
                    raise RuntimeError(
                        f"the decoder failed on {request['path']}:\n{header['message']}"
                    )
                yield int(header["index"]), header, payload
        except BrokenPipeError:
            raise self._death(child) from None
        finally:
            if not whole:
                self.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None:
            home = str(Path(__file__).resolve().parent.parent)
            # -P keeps the current folder, and whatever is called `featurizers` in it, off the path.
            program = (
                f"import sys; sys.path.insert(0, {home!r}); "
                "import featurizers.decoder as d; d.serve()"
            )
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            self._child = subprocess.Popen(  # noqa: S603 - our own program text, no shell
                [sys.executable, "-P", "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                # No buffer on our side: bytes that wait in one are not seen by a selector.
                bufsize=0,
            )
        return self._child

    def _receive(
        self, child: "subprocess.Popen[bytes]", wall: float
    ) -> tuple[dict[str, Any], bytes]:
        try:
            message = _read(_pipe(child.stdout), wall)
            if message is not None and "kind" not in message[0]:
                raise ValueError("a message of no kind")  # noqa: TRY301 - told like the others
        except TimeoutError:
            reason = f"the decoder gave nothing for {wall:.0f} s"
            raise DecoderDiedError("timed_out", reason) from None
        except ValueError as error:  # a broken child, and JSON's errors are of this kind
            reason = f"the decoder sent what nobody can read: {error}"
            raise DecoderDiedError("crashed", reason) from None
        if message is None:
            raise self._death(child)
        return message

    def _death(self, child: "subprocess.Popen[bytes]") -> DecoderDiedError:
        code = child.wait()
        if code == -signal.SIGXCPU:
            return DecoderDiedError("timed_out", "the decoder used up its CPU seconds")
        return DecoderDiedError("crashed", f"the decoder ended with code {code}")


def _event(
    header: Mapping[str, Any], payload: bytes
) -> AudioChunk | VideoChunk | NoStream | Damage:
    match header["kind"]:
        case "audio":
            return AudioChunk(float(header["start"]), np.frombuffer(payload, dtype=np.int16))
        case "video":
            frames = np.frombuffer(payload, dtype=np.uint8).reshape(header["shape"])
            return VideoChunk(np.array(header["times"], dtype=np.float64), frames)
        case "none":
            return NoStream(str(header["stream"]))
        case _:
            return Damage(str(header["message"]))


def _fault(name: str) -> Fault:
    for fault in FAULTS:
        if fault == name:
            return fault
    raise RuntimeError(f"the decoder sent an unknown fault: {name}")


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the decoder was started without pipes")
    return pipe


def _send(pipe: IO[bytes], header: Mapping[str, Any], payload: bytes) -> None:
    text = json.dumps(header).encode()
    pipe.write(b"".join([_HEADER.pack(len(text), len(payload)), text, payload]))
    pipe.flush()


def _read(pipe: IO[bytes], wall: float | None = None) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None when the other side is gone, also in the middle of one.

    Raises:
        TimeoutError: Nothing came for `wall` seconds.
        ValueError: What came is no message.
    """
    sizes = _exactly(pipe, _HEADER.size, wall)
    if sizes is None:
        return None
    text_size, payload_size = _HEADER.unpack(sizes)
    if text_size > HEADER_LIMIT or payload_size > PAYLOAD_LIMIT:
        raise ValueError(f"a message of {text_size} and {payload_size} bytes")
    text, payload = _exactly(pipe, text_size, wall), _exactly(pipe, payload_size, wall)
    if text is None or payload is None:
        return None
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("a message without a header")  # noqa: TRY004 - it is the input's fault
    return header, payload


def _exactly(pipe: IO[bytes], size: int, wall: float | None) -> bytes | None:
    pieces: list[bytes] = []
    while size:
        if wall is not None and not _ready(pipe, wall):
            raise TimeoutError
        piece = pipe.read(size)
        if not piece:
            return None
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _ready(pipe: IO[bytes], wall: float) -> bool:
    """Whether there is something to read within a time. select() itself stops at 1024 files."""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        return bool(selector.select(wall))


# From here on: the child's side.


def serve() -> None:
    """Answer requests from standard input until it closes."""
    import traceback

    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not print into the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    while (message := _read(requests)) is not None:
        request = message[0]
        limits = Limits(**request["limits"])
        try:
            _confine(limits, request["cpu_seconds"])
            _answer(request, limits, answers)
            _send(answers, {"kind": "end"}, b"")
        except BadClipError as bad:
            _send(answers, {"kind": "fault", "fault": bad.fault, "message": bad.message}, b"")
        except MemoryError:
            message_text = f"the decoder needs more than {limits.memory_bytes >> 20} MiB"
            _send(answers, {"kind": "fault", "fault": "crashed", "message": message_text}, b"")
        except BrokenPipeError:
            return
        except Exception:  # noqa: BLE001 - whatever it is, the parent raises it with its text
            _send(answers, {"kind": "bug", "message": traceback.format_exc()}, b"")


def _confine(limits: Limits, cpu_seconds: float) -> None:
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime + cpu_seconds) + 1
    _, hard_cpu = resource.getrlimit(resource.RLIMIT_CPU)
    _, hard_memory = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, hard_cpu))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, hard_memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(request: Mapping[str, Any], limits: Limits, answers: IO[bytes]) -> None:
    path = Path(request["path"])
    if request["do"] == "probe":
        _send(answers, {"kind": "probe", "index": 0, "probe": asdict(probe(path))}, b"")
        return
    wants = [_want(dict(want)) for want in request["wants"]]
    for index, event in decode(path, request["start"], request["end"], wants, limits):
        header, payload = _packed(event)
        _send(answers, {"index": index, **header}, payload)


def _want(plain: dict[str, Any]) -> Want:
    kind = plain.pop("kind")
    return AudioWant(**plain) if kind == "AudioWant" else VideoWant(**plain)


def _packed(
    event: AudioChunk | VideoChunk | NoStream | Damage,
) -> tuple[dict[str, Any], bytes]:
    match event:
        case AudioChunk():
            return {"kind": "audio", "start": event.start}, event.samples.tobytes()
        case VideoChunk():
            shape, times = list(event.frames.shape), event.times.tolist()
            return {"kind": "video", "shape": shape, "times": times}, event.frames.tobytes()
        case NoStream():
            return {"kind": "none", "stream": event.kind}, b""
        case Damage():
            return {"kind": "damage", "message": event.message}, b""
