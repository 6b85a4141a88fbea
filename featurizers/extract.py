"""From raw clips to their features: the one path that shards and registered models share.

    fetch -> decode (a child process) -> chunks -> featurizers -> outcomes

`extract` does this for one clip, step by step. `extract_all` does it for the clips of a job: a
thread fetches and decodes ahead, while the caller's thread computes features. Both take the same
steps in the same order, so that they give the same outcomes.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from featurizers.clip import BadClipError, Clip, Fault
from featurizers.clocks import Clocks
from featurizers.damage import Damage
from featurizers.decoder import Decoder
from featurizers.encoding import Batches, Encoding
from featurizers.media import NoStream
from featurizers.reading import Begin, Clock, Failed, Read, Step, Steps, never, read, wants_of
from featurizers.spec import (
    Chunk,
    Extraction,
    Feature,
    Featurizer,
    Pending,
    check_feature,
)
from featurizers.stages import Stages


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
    wants = wants_of(featurizers)
    if wants:
        with contextlib.closing(read(clip, lambda _: path, wants, decoder, never)) as steps:
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
    with contextlib.closing(Steps(clips, fetch, featurizers, decoder)) as steps:
        for clip in clips:
            try:
                row.put(_made(clip, featurizers, steps))
            except Exception:
                yield from row.rest()
                raise
            yield from row.full()
        yield from row.rest()


def _made(clip: Clip, featurizers: Sequence[Featurizer], steps: "Steps") -> "_Making":
    making = _Making(clip, featurizers)
    making.without_media()  # which waits for no decoder
    waited = Clock()
    while not making.read and steps.media:
        with waited:
            step = steps.take()
        making.take(step)
    if steps.media:
        making.costs["wait"] = waited
    return making


def in_order_of_media(clips: Sequence[Clip]) -> list[Clip]:
    """Clips of one file together and in order of time, so that one decoding may serve them all."""
    first = {clip.media: number for number, clip in reversed(list(enumerate(clips)))}
    return sorted(clips, key=lambda clip: (first[clip.media], clip.video_stream, clip.start))


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
        self.costs: dict[str, Clock] = {}
        self.clocks = [Clock() for _ in featurizers]
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

    def take(self, step: Step) -> None:
        """Take the next step of the reading side."""
        match step:
            case Begin():
                for index in step.which:
                    self._begin(index)
            case Failed():
                for index in step.which:
                    self._lost.setdefault(index, step.bad)
            case Read():
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
