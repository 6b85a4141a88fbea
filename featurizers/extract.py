"""From raw clips to their features: the one path that shards and registered models share.

    fetch -> decode (a child process) -> chunks -> featurizers -> outcomes

`extract` does this for one clip, step by step. `extract_all` does it for the clips of a job: a
thread fetches and decodes ahead, while the caller's thread computes features. Both take the same
steps in the same order, so that they give the same outcomes.
"""

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeAlias, TypeVar

import numpy as np

from featurizers.clip import BadClipError, Clip, Fault
from featurizers.clocks import Clocks
from featurizers.damage import Damage
from featurizers.decoder import Decoder, DecoderDiedError, Spent
from featurizers.encoding import Batches, Encoding
from featurizers.media import NoStream
from featurizers.spans import Again, Span
from featurizers.spec import (
    AudioChunk,
    AudioWant,
    Chunk,
    Extraction,
    Feature,
    Featurizer,
    Pending,
    VideoChunk,
    Want,
    check_feature,
)
from featurizers.stages import Stages

TOGETHER = 64  # clips after one that are told to whoever decodes it
AHEAD_BYTES = 64 << 20  # of decoded media wait at most to be taken
STEP_BYTES = 1024  # what a step takes beside its media
LEAVE_S = 10.0  # a thread that is still fetching then is left to end by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a clip in one column.

    Attributes:
        state: "sample", "absent" (the clip has no such modality) or "quarantined".
        message: Why it is quarantined; or, of a sample, what damage was passed over.
    """

    state: Literal["sample", "absent", "quarantined"]
    feature: Feature | None = None
    fault: Fault | None = None
    message: str = ""


def extract(
    clip: Clip, path: Path | None, featurizers: Sequence[Featurizer], decoder: Decoder
) -> list[Outcome]:
    """Compute features of a clip, decoding its media once.

    When the joint decoding fails, each featurizer is tried alone: what a column holds must not
    depend on which others were computed beside it.

    Args:
        clip: The clip.
        path: Its media on this machine; None when they cannot be had ("missing").
        featurizers: What to compute.
        decoder: Decodes the media.

    Returns:
        An outcome for each featurizer, in their order.

    Raises:
        StorageError: The media cannot be read now, which says nothing of the clip.
    """
    making, row = _Making(clip, featurizers), _Row(featurizers, Stages(), [], [], [])
    making.without_media()
    wants = _wants(featurizers)
    if wants:
        with contextlib.closing(_read(clip, lambda _: path, wants, decoder, _never)) as steps:
            for step in steps:
                making.take(step)
    row.put(making)
    (outcomes,) = row.rest()
    return outcomes


def extract_all(
    clips: Sequence[Clip],
    fetch: Callable[[Clip], Path | None],
    featurizers: Sequence[Featurizer],
    decoder: Decoder,
    stages: Stages,
    *,
    spans: list[tuple[str, float]] | None = None,
    notes: list[str] | None = None,
    clocks: list[tuple[str, Clocks]] | None = None,
) -> Iterator[list[Outcome]]:
    """Compute features of the clips of a job, fetching and decoding ahead in a thread.

    Args:
        clips: The clips.
        fetch: Gives a clip's media on this machine, None when they cannot be had. Called in the
            thread, in the order of clips and never before the clip before is decoded; not called
            when no featurizer reads media.
        featurizers: What to compute.
        decoder: Decodes the media; nobody else may use it until the iterator is closed.
        stages: Where the seconds are counted, an item a clip: "fetch", "decode", "wait", and each
            featurizer's name.
        spans: Takes the key of each clip and the seconds that were spent on it in all stages but
            "wait".
        notes: Takes sentences about encoders that ran out of memory and went on.
        clocks: Takes the key of each clip whose media have sound and pictures, and how their clocks
            lie to each other.

    Returns:
        For each clip, in order, what `extract` would give.

    Raises:
        EncoderMemoryError: An encoder has too little memory.
        StorageError: Media cannot be read now, which says nothing of their clip.
        Exception: Whatever `fetch` or a bug raises, after the clips before were given.
    """
    row = _Row(
        featurizers,
        stages,
        [] if spans is None else spans,
        [] if notes is None else notes,
        [] if clocks is None else clocks,
    )
    with contextlib.closing(_Steps(clips, fetch, featurizers, decoder)) as steps:
        for clip in clips:
            try:
                row.put(_made(clip, featurizers, steps))
            except Exception:
                yield from row.rest()
                raise
            yield from row.full()
        yield from row.rest()


def _made(clip: Clip, featurizers: Sequence[Featurizer], steps: "_Steps") -> "_Making":
    making = _Making(clip, featurizers)
    making.without_media()  # which waits for no decoder
    waited = _Clock()
    while not making.read and steps.media:
        with waited:
            step = steps.take()
        making.take(step)
    if steps.media:
        making.costs["wait"] = waited
    return making


def _wants(featurizers: Sequence[Featurizer]) -> dict[int, Want]:
    """What those that read media want, by their number."""
    wants = {index: featurizer.wants for index, featurizer in enumerate(featurizers)}
    return {index: want for index, want in wants.items() if want is not None}


def chosen(want: Want, clip: Clip) -> Want:
    """What is wanted, of the stream that was chosen for the clip."""
    stream = clip.audio_stream if isinstance(want, AudioWant) else clip.video_stream
    return replace(want, stream=stream)


def _never() -> bool:
    return False


# The reading side: what is to be known of a clip's media, step by step.


@dataclass(frozen=True, slots=True)
class _Begin:
    """These featurizers begin, or begin anew: what they were given before is to be thrown away."""

    which: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Failed:
    """These featurizers get nothing of this clip."""

    which: tuple[int, ...]
    bad: BadClipError


@dataclass(frozen=True, slots=True)
class _Read:
    """All is said of this clip."""

    costs: Mapping[str, "_Clock"]
    clocks: Sequence[Clocks]


_Found: TypeAlias = tuple[int, Chunk | NoStream | Damage]
_Step: TypeAlias = _Begin | _Found | _Failed | _Read


def _read(
    clip: Clip,
    fetch: Callable[[Clip], Path | None],
    wants: Mapping[int, Want],
    decoder: Decoder,
    given_up: Callable[[], bool],
    *,
    then: Sequence[Span] = (),
) -> Generator[_Step, None, None]:
    every, fetching, decoding = tuple(wants), _Clock(), _Clock()
    clocks: list[Clocks] = []
    costs = {"fetch": fetching}
    with fetching:
        path = _fetched(clip, fetch)
    if isinstance(path, BadClipError):
        yield _Failed(every, path)
    else:
        costs["decode"] = decoding
        attempts = _Attempts(clip, path, wants, decoder, given_up, decoding, clocks)
        bad_together = yield from attempts.twice(every, then)
        if bad_together is not None and len(every) == 1:
            yield _Failed(every, bad_together)
        elif bad_together is not None:
            for index in every:
                bad_alone = yield from attempts.twice((index,))
                if bad_alone is not None:
                    yield _Failed((index,), bad_alone)
    yield _Read(costs, clocks)


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
    cost: "_Clock"
    clocks: list[Clocks]

    def twice(
        self, which: tuple[int, ...], then: Sequence[Span] = ()
    ) -> Generator[_Step, None, BadClipError | None]:
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
    ) -> Generator[_Step, None, None]:
        yield _Begin(which)
        clip, wants = self.clip, [chosen(self.wants[index], self.clip) for index in which]
        spans = [(clip.start, clip.end), *then]
        events = self.decoder.decode_first(self.path, spans, wants, given_up=self.given_up)
        try:
            with contextlib.closing(events):
                for number, event in events:
                    yield _Begin(which) if isinstance(event, Again) else (which[number], event)
        finally:
            self.cost.add(self.decoder.spent)
            if self.decoder.spent.clocks is not None:
                self.clocks.append(self.decoder.spent.clocks)


class _Steps:
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
        wants = _wants(featurizers)

        def made(given_up: Callable[[], bool]) -> Generator[_Step, None, None]:
            for number, clip in enumerate(clips):
                then = _then(clips, number)
                yield from _read(clip, fetch, wants, decoder, given_up, then=then)

        self.media = bool(wants)
        self._ahead = _Ahead(made, _bytes) if wants else None

    def take(self) -> _Step:
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


def in_order_of_media(clips: Sequence[Clip]) -> list[Clip]:
    """Clips of one file together and in order of time, so that one decoding may serve them all."""
    first = {clip.media: number for number, clip in reversed(list(enumerate(clips)))}
    return sorted(clips, key=lambda clip: (first[clip.media], clip.video_stream, clip.start))


def _bytes(step: _Step) -> int:
    match step:
        case (_, AudioChunk() as sound):
            return STEP_BYTES + sound.samples.nbytes
        case (_, VideoChunk() as pictures):
            return STEP_BYTES + pictures.frames.nbytes
        case _:
            return STEP_BYTES


Item = TypeVar("Item")


class _Ahead(Generic[Item]):
    """Runs a generator in a thread, ahead of whoever takes its items.

    Args:
        make: The generator; it is given a function that says whether it was given up.
        size: Bytes of an item. More than AHEAD_BYTES wait only when a single item has more.
    """

    def __init__(
        self,
        make: Callable[[Callable[[], bool]], Generator[Item, None, None]],
        size: Callable[[Item], int],
    ) -> None:
        self._make, self._size = make, size
        self._items: deque[Item] = deque()
        self._waiting_bytes = 0
        self._given_up = self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="reads ahead", daemon=True)
        self._thread.start()

    def take(self) -> Item:
        """The next item. Raises what the generator raised in its place."""
        with self._changed:
            while not self._items and not self._ended:
                self._changed.wait()
            if self._items:
                item = self._items.popleft()
                self._waiting_bytes -= self._size(item)
                self._changed.notify()
                return item
        raise self._error or RuntimeError("nothing is left to be taken")

    def close(self) -> None:
        """Give the rest up; waits for the thread's end, but not long for a slow fetch."""
        with self._changed:
            self._given_up = True
            self._items.clear()
            self._changed.notify()
        self._thread.join(LEAVE_S)

    def _run(self) -> None:
        try:
            # Closed in this thread: a generator that is given up ends its child.
            with contextlib.closing(self._make(lambda: self._given_up)) as items:
                for item in items:
                    if not self._put(item):
                        break
        except BaseException as error:  # noqa: BLE001 - raised again by whoever takes the items
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()

    def _put(self, item: Item) -> bool:
        """Let an item wait to be taken; False when nobody will."""
        size = self._size(item)
        with self._changed:
            while self._items and self._waiting_bytes + size > AHEAD_BYTES and not self._given_up:
                self._changed.wait()
            self._items.append(item)
            self._waiting_bytes += size
            self._changed.notify()
            return not self._given_up


# The computing side.


class _Clock:
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


class _Making:
    """A clip's outcomes in the making.

    A featurizer that gave the clip up is asked no more, and the others go on: each gets what it
    would get alone.

    Attributes:
        costs: What the reading side took, by stage.
        clocks: What each featurizer took.
        measured: How the clocks of sound and pictures lie to each other, of each attempt.
        read: Whether all is said of the clip's media.
    """

    def __init__(self, clip: Clip, featurizers: Sequence[Featurizer]) -> None:
        self.clip = clip
        self.costs: dict[str, _Clock] = {}
        self.clocks = [_Clock() for _ in featurizers]
        self.measured: Sequence[Clocks] = ()
        self.read = False
        self._featurizers = featurizers
        self._extractions: dict[int, Extraction] = {}
        self._lost: dict[int, BadClipError] = {}
        self._absent: set[int] = set()
        self._damage: dict[int, list[str]] = {}

    def without_media(self) -> None:
        """Begin all that reads no media."""
        for index, featurizer in enumerate(self._featurizers):
            if featurizer.wants is not None:
                continue
            if all(_there(self.clip, name) for name in featurizer.spec.reads):
                self._begin(index)
            else:
                self._absent.add(index)

    def take(self, step: _Step) -> None:
        """Take the next step of the reading side."""
        match step:
            case _Begin():
                for index in step.which:
                    self._begin(index)
            case _Failed():
                for index in step.which:
                    self._lost.setdefault(index, step.bad)
            case _Read():
                self.costs |= step.costs
                self.measured = step.clocks
                self.read = True
            case (index, event):
                self._feed(index, event)

    def finish(self) -> list[Outcome | Pending]:
        """For each featurizer its outcome, or what its encoder must do first."""
        return [self._finished(index) for index in range(len(self._featurizers))]

    def damage(self, index: int) -> str:
        """What was passed over in a featurizer's stream."""
        return "; ".join(self._damage.get(index, ()))

    def _begin(self, index: int) -> None:
        self._absent.discard(index)
        self._damage.pop(index, None)
        self._lost.pop(index, None)
        with self._made(index) as featurizer:
            self._extractions[index] = featurizer.begin(self.clip)

    def _feed(self, index: int, event: Chunk | NoStream | Damage) -> None:
        match event:
            case NoStream():
                self._absent.add(index)
            case Damage():
                self._damage.setdefault(index, []).append(event.message)
            case _:
                if index not in self._lost:
                    with self._made(index):
                        self._extractions[index].add(event)

    def _finished(self, index: int) -> Outcome | Pending:
        if index not in self._lost and index not in self._absent:
            with self._made(index) as featurizer:
                feature = self._extractions.pop(index).finish()
                if isinstance(feature, Pending):
                    return feature
                return _checked(featurizer, feature, self.damage(index))
        if index in self._lost:
            return _quarantined(self._lost[index])
        return Outcome(state="absent")

    @contextlib.contextmanager
    def _made(self, index: int) -> Iterator[Featurizer]:
        """Time is a featurizer's inside of it, and a bad clip costs only that featurizer."""
        with self.clocks[index]:
            try:
                yield self._featurizers[index]
            except BadClipError as bad:
                self._lost[index] = bad


def _there(clip: Clip, name: str) -> bool:
    return clip.words is not None if name == "words" else name[len("stream:") :] in clip.streams


def _quarantined(bad: BadClipError) -> Outcome:
    return Outcome(state="quarantined", fault=bad.fault, message=bad.message)


def _checked(featurizer: Featurizer, feature: Feature, damage: str) -> Outcome:
    check_feature(featurizer.spec, feature)
    if featurizer.spec.dtype == "float32" and not np.isfinite(feature.values).all():
        bad_steps = int((~np.isfinite(feature.values)).any(axis=1).sum())
        text = f"{featurizer.spec.name} gave NaN or infinity at {bad_steps} steps"
        return Outcome(state="quarantined", fault="not_finite", message=text)
    return Outcome(state="sample", feature=feature, message=damage)


@dataclass(frozen=True, slots=True)
class _Held:
    """A clip that waits for the clips before it, or for an encoder."""

    making: _Making
    results: Sequence[Outcome | Encoding]

    @property
    def whole(self) -> bool:
        return all(isinstance(result, Outcome) or result.whole for result in self.results)


class _Row:
    """Outcomes in the order of clips, of which some wait until their encoder's batch is full."""

    def __init__(
        self,
        featurizers: Sequence[Featurizer],
        stages: Stages,
        spans: list[tuple[str, float]],
        notes: list[str],
        clocks: list[tuple[str, Clocks]],
    ) -> None:
        self._featurizers, self._stages, self._spans = featurizers, stages, spans
        self._clocks = clocks
        self._batches = [Batches(featurizer, notes) for featurizer in featurizers]
        self._held: deque[_Held] = deque()

    def put(self, making: _Making) -> None:
        """Take a clip of which all is read."""
        finished = making.finish()
        results = [
            batches.add(making.clip, result) if isinstance(result, Pending) else result
            for batches, result in zip(self._batches, finished, strict=True)
        ]
        self._held.append(_Held(making, results))

    def full(self) -> Iterator[list[Outcome]]:
        """Encode what fills a batch; gives the outcomes of clips that are whole."""
        for batches in self._batches:
            while batches.full:
                batches.encode()
                yield from self._whole()
        yield from self._whole()

    def rest(self) -> Iterator[list[Outcome]]:
        """Encode what is left; gives the outcomes of all clips that are left."""
        for batches in self._batches:
            while not batches.empty:
                batches.encode()
                yield from self._whole()
        yield from self._whole()

    def _whole(self) -> Iterator[list[Outcome]]:
        while self._held and self._held[0].whole:
            held = self._held.popleft()
            outcomes = [self._outcome(held, index) for index in range(len(self._featurizers))]
            self._count(held.making)
            yield outcomes

    def _outcome(self, held: _Held, index: int) -> Outcome:
        result, clock = held.results[index], held.making.clocks[index]
        if isinstance(result, Outcome):
            return result
        clock.add(result)
        with clock:
            try:
                feature = result.feature()
            except BadClipError as bad:
                return _quarantined(bad)
            return _checked(self._featurizers[index], feature, held.making.damage(index))

    def _count(self, making: _Making) -> None:
        names = [featurizer.spec.name for featurizer in self._featurizers]
        costs = [*making.costs.items(), *zip(names, making.clocks, strict=True)]
        for name, clock in costs:
            self._stages.add(name, clock.seconds, clock.cpu_seconds)
        seconds = sum(clock.seconds for name, clock in costs if name != "wait")
        self._spans.append((making.clip.key, seconds))
        if making.measured:
            most = max(making.measured, key=lambda each: each.known)
            self._clocks.append((making.clip.key, most))
