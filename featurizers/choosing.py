"""Which stream of a file is meant: by its kind, and where one is chosen by number or language."""

from typing import Any, TypeAlias

from featurizers.clip import BadClipError
from featurizers.placing import AvStream, Kind
from featurizers.spec import AudioWant, Want

AvContainer: TypeAlias = Any  # as the others in `placing`


def kind_of(want: Want) -> Kind:
    """The kind of stream that a want is of."""
    return "audio" if isinstance(want, AudioWant) else "video"


def best_stream(container: AvContainer, kind: Kind) -> AvStream | None:
    """The stream of this kind that FFmpeg finds best; cover pictures are no video."""
    best = container.streams.best(kind)
    if best is None or not _is_cover(best):
        return best
    others = (stream for stream in container.streams if stream.type == kind)
    return next((stream for stream in others if not _is_cover(stream)), None)


def chosen_stream(container: AvContainer, kind: Kind, chosen: str) -> AvStream | None:
    """The stream of this kind with this number or language; the best one where none was chosen.

    Raises:
        BadClipError: "bad_stream": the file has others of this kind, but not that one.
    """
    best = best_stream(container, kind)
    if not chosen or best is None:
        return best
    all_streams = (stream for stream in container.streams if stream.type == kind)
    streams = [stream for stream in all_streams if not _is_cover(stream)]
    languages = [stream.metadata.get("language", "") for stream in streams]
    names = [str(number) for number in range(len(streams))]
    for known in (names, languages):
        if chosen in known:
            return streams[known.index(chosen)]
    there = ", ".join(
        f"{name} ({language})" if language else name
        for name, language in zip(names, languages, strict=True)
    )
    raise BadClipError("bad_stream", f"{kind}: there is no stream {chosen!r}, there are {there}")


def _is_cover(stream: AvStream) -> bool:
    return bool(stream.disposition & stream.disposition.attached_pic)
