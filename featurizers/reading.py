"""What is to be known of clips' media, step by step: fetched and decoded ahead, in a thread."""

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from featurizers.ahead import Ahead
from featurizers.clip import BadClipError, Clip
from featurizers.clocks import Clocks
from featurizers.damage import Damage
from featurizers.decoder import Decoder
from featurizers.decoder_process import DecoderDiedError, Spent
from featurizers.encoding import Encoding
from featurizers.media import NoStream
from featurizers.spans import Again, Span
from featurizers.spec import AudioChunk, AudioWant, Chunk, Featurizer, VideoChunk, Want

TOGETHER = 64  # clips after one that are told to whoever decodes it
STEP_BYTES = 1024  # what a step takes beside its media


def wants_of(featurizers: Sequence[Featurizer]) -> dict[int, Want]:
    """What those that read media want, by their number."""
    wants = {index: featurizer.wants for index, featurizer in enumerate(featurizers)}
    return {index: want for index, want in wants.items() if want is not None}


def chosen(want: Want, clip: Clip) -> Want:
    """What is wanted, of the stream that was chosen for the clip."""
    stream = clip.audio_stream if isinstance(want, AudioWant) else clip.video_stream
    return replace(want, stream=stream)


def never() -> bool:
    """Of a clip that nobody gives up."""
    return False


class Clock:
    """Adds up the seconds that are spent inside of it."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._began, self._cpu_began = time.perf_counter(), time.thread_time()

    def __exit__(self, *exc: object) -> None:
        self.seconds += time.perf_counter() - self._began
        self.cpu_seconds += time.thread_time() - self._cpu_began

    def add(self, spent: Spent | Encoding) -> None:
        """Add what was spent elsewhere."""
        self.seconds += spent.seconds
        self.cpu_seconds += spent.cpu_seconds


@dataclass(frozen=True, slots=True)
class Begin:
    """These featurizers begin, or begin anew: what they were given before is to be thrown away."""

    which: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """These featurizers get nothing of this clip."""

    which: tuple[int, ...]
    bad: BadClipError


@dataclass(frozen=True, slots=True)
class Read:
    """All is said of this clip."""

    costs: Mapping[str, Clock]
    clocks: Sequence[Clocks]


_Found: TypeAlias = tuple[int, Chunk | NoStream | Damage]
Step: TypeAlias = Begin | _Found | Failed | Read


def read(
    clip: Clip,
    fetch: Callable[[Clip], Path | None],
    wants: Mapping[int, Want],
    decoder: Decoder,
    given_up: Callable[[], bool],
    *,
    then: Sequence[Span] = (),
) -> Generator[Step, None, None]:
    """The steps of one clip; the last is `Read`.

    Args:
        clip: The clip.
        fetch: Gives its media on this machine.
        wants: What is wanted of them, by the number of the featurizer.
        decoder: Decodes them.
        given_up: Says whether nobody wants the rest.
        then: Spans of the same media that will be wanted next.
    """
    every, fetching, decoding = tuple(wants), Clock(), Clock()
    clocks: list[Clocks] = []
    costs = {"fetch": fetching}
    with fetching:
        path = _fetched(clip, fetch)
    if isinstance(path, BadClipError):
        yield Failed(every, path)
    else:
        costs["decode"] = decoding
        attempts = _Attempts(clip, path, wants, decoder, given_up, decoding, clocks)
        bad_together = yield from attempts.twice(every, then)
        if bad_together is not None and len(every) == 1:
            yield Failed(every, bad_together)
        elif bad_together is not None:
            for index in every:
                bad_alone = yield from attempts.twice((index,))
                if bad_alone is not None:
                    yield Failed((index,), bad_alone)
    yield Read(costs, clocks)


def _fetched(clip: Clip, fetch: Callable[[Clip], Path | None]) -> Path | BadClipError:
    try:
        return fetch(clip) or BadClipError("missing", "no such file")
    except BadClipError as bad:
        return bad


@dataclass(frozen=True, slots=True)
class _Attempts:
    """Attempts to decode a clip for some of its featurizers."""

    clip: Clip
    path: Path
    wants: Mapping[int, Want]
    decoder: Decoder
    given_up: Callable[[], bool]
    cost: Clock
    clocks: list[Clocks]

    def twice(
        self, which: tuple[int, ...], then: Sequence[Span] = ()
    ) -> Generator[Step, None, BadClipError | None]:
        """Decode, and once more when the child died; gives the error in the end."""
        try:
            yield from self._once(which, then)
        except DecoderDiedError:
            try:
                yield from self._once(which)
            except DecoderDiedError as died:
                return BadClipError(died.fault, f"{died}, twice")
            except BadClipError as bad:
                return bad
        except BadClipError as bad:
            return bad
        return None

    def _once(
        self, which: tuple[int, ...], then: Sequence[Span] = ()
    ) -> Generator[Step, None, None]:
        yield Begin(which)
        clip, wants = self.clip, [chosen(self.wants[index], self.clip) for index in which]
        spans = [(clip.start, clip.end), *then]
        events = self.decoder.decode_first(self.path, spans, wants, given_up=self.given_up)
        try:
            with contextlib.closing(events):
                for number, event in events:
                    yield Begin(which) if isinstance(event, Again) else (which[number], event)
        finally:
            self.cost.add(self.decoder.spent)
            if self.decoder.spent.clocks is not None:
                self.clocks.append(self.decoder.spent.clocks)


class Steps:
    """The steps of all clips, made ahead in a thread.

    Attributes:
        media: Whether any featurizer reads media; without, there are no steps and no thread.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        fetch: Callable[[Clip], Path | None],
        featurizers: Sequence[Featurizer],
        decoder: Decoder,
    ) -> None:
        wants = wants_of(featurizers)

        def made(given_up: Callable[[], bool]) -> Generator[Step, None, None]:
            for number, clip in enumerate(clips):
                then = _then(clips, number)
                yield from read(clip, fetch, wants, decoder, given_up, then=then)

        self.media = bool(wants)
        self._ahead = Ahead(made, _bytes) if wants else None

    def take(self) -> Step:
        """The next step. Raises what was raised in the thread in its place."""
        if self._ahead is None:
            raise RuntimeError("no featurizer reads media")
        return self._ahead.take()

    def close(self) -> None:
        """End the thread, and the child too when it is in the middle of a clip."""
        if self._ahead is not None:
            self._ahead.close()


def _then(clips: Sequence[Clip], number: int) -> list[Span]:
    """The spans of the clips right after one that are cut from the same media."""
    after = itertools.takewhile(
        lambda each: _pictures_of(each) == _pictures_of(clips[number]),
        itertools.islice(clips, number + 1, number + 1 + TOGETHER),
    )
    return [(each.start, each.end) for each in after]


def _pictures_of(clip: Clip) -> tuple[str, str]:
    return clip.media, clip.video_stream


def _bytes(step: Step) -> int:
    match step:
        case (_, AudioChunk() as sound):
            return STEP_BYTES + sound.samples.nbytes
        case (_, VideoChunk() as pictures):
            return STEP_BYTES + pictures.frames.nbytes
        case _:
            return STEP_BYTES
