"""What a decoder and its child say to each other: JSON headers and raw bytes, nothing unpickled."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.damage import Damage
from featurizers.media import NoStream
from featurizers.spans import Again, Heard
from featurizers.spec import AudioChunk, AudioWant, VideoChunk, VideoWant, Want

HEADER = struct.Struct("<II")  # bytes of JSON, bytes of payload
_ALIGNED = 8  # JSON is filled up with spaces, so that numbers behind it lie where numpy likes them

Payload: TypeAlias = NDArray[np.uint8]


def send(pipe: IO[bytes], header: Mapping[str, Any], payload: NDArray[Any] | None = None) -> None:
    """Write a message: the sizes of both, a header, a payload."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNED)
    size = 0 if payload is None else payload.nbytes
    pipe.write(HEADER.pack(len(text), size) + text)
    if payload is not None and size:
        pipe.write(np.ascontiguousarray(payload).data)
    pipe.flush()


def pack_want(want: Want) -> dict[str, Any]:
    """A want as plain data; `unpack_want` gives it back."""
    return {"kind": type(want).__name__, **asdict(want)}


def unpack_want(plain: Mapping[str, Any]) -> Want:
    """The want that `pack_want` packed."""
    fields = {name: value for name, value in plain.items() if name != "kind"}
    return AudioWant(**fields) if plain["kind"] == "AudioWant" else VideoWant(**fields)


def pack_event(
    event: AudioChunk | VideoChunk | NoStream | Damage | Again,
) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """Header and payload of what answers a want, without its number."""
    match event:
        case AudioChunk():
            return {"kind": "audio", "start": event.start}, event.samples
        case VideoChunk():
            shape, times = list(event.frames.shape), event.times.tolist()
            return {"kind": "video", "shape": shape, "times": times}, event.frames
        case NoStream():
            return {"kind": "none", "stream": event.kind}, None
        case Damage():
            return {"kind": "damage", "message": event.message}, None
        case Again():
            return {"kind": "again"}, None


def unpack_event(header: Mapping[str, Any], payload: Payload, wants: Sequence[Want]) -> Heard:
    """An event from a message; LookupError, TypeError or ValueError when it is none."""
    index = int(header["index"])
    if not 0 <= index < len(wants):
        raise ValueError(f"an answer to want {index} of {len(wants)}")
    match header["kind"], wants[index]:
        case "audio", AudioWant():
            return index, AudioChunk(float(header["start"]), payload.view(np.int16))
        case "video", VideoWant() as want:
            frames = payload.reshape(header["shape"])
            times = np.array(header["times"], dtype=np.float64).reshape(len(frames), 2)
            if frames.shape[1:] != _picture(want):
                raise ValueError(f"pictures {frames.shape[1:]} for {want}")
            return index, VideoChunk(times, frames)
        case kind, want:
            return index, _said(kind, header, want)


def _said(kind: object, header: Mapping[str, Any], want: Want) -> NoStream | Damage | Again:
    """What is said without any media."""
    match kind:
        case "none":
            return NoStream(str(header["stream"]))
        case "damage":
            return Damage(str(header["message"]))
        case "again":
            return Again()
        case _:
            raise ValueError(f"{kind!r} for {want}")


def _picture(want: VideoWant) -> tuple[int, ...]:
    return (want.size, want.size) if want.colour == "gray" else (want.size, want.size, 3)
