"""What a model says of an evaluation set, and the scorecard made of it.

Every clip of a set is scored: one that lacks a stream with that stream masked, one of which nothing
can be read with the training mean, the commonest class, or the labels that most have.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypedDict

import numpy as np
from torch import Tensor, nn

from featurizers.clip import Clip
from featurizers.spec import canonical_json
from tracking.parts import Calibration, Latency, Part, Subgroup
from tracking.scorecard import Scorecard, interval
from training.batch import FusionBatch, Sample
from training.bootstrap import REPLICATES, draws_name, replicate, resamples
from training.calibration import calibration
from training.data import Samples, target_of
from training.metrics import DIRECTION, Floats, by_class, confusion, metrics, undefined
from training.missing import without
from training.predict import decide, outputs, probabilities
from training.predicted import Predicted
from training.recipe import Target, Task


class _ByClass(TypedDict, total=False):
    by_class: dict[str, dict[str, float]]
    confusion: list[Any]


class _Measured(TypedDict):
    count: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    clips: str


def evaluation_set(clips: Sequence[Clip], label: str) -> str:
    """The name of a set of clips: sha256 in hex of what is scored and of the truth.

    Features are not in it: models that read other features are compared on the same set.
    """
    content = [
        [clip.key, clip.media_digest, *_chosen(clip), clip.start, clip.end, clip.labels[label]]
        for clip in _sorted(clips)
    ]
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _chosen(clip: Clip) -> list[list[str]]:
    """The streams that were chosen, if any was."""
    chosen = [clip.audio_stream, clip.video_stream]
    return [chosen] if any(chosen) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a model says of a split.

    Attributes:
        said: For every labelled clip, by key; see `training.predict.decide`.
        scores: For each clip of which something can be read, the probability of each class or
            label; of a regression nothing. NaN where the model gave NaN or infinity.
    """

    said: Mapping[str, Target]
    scores: Mapping[str, Sequence[float]]


def answers(
    model: nn.Module,
    samples: Samples,
    task: Task,
    fallback: Target,
    *,
    lost: Collection[str] = (),
) -> Answers:
    """A prediction for every labelled clip of a split.

    Args:
        model: In main memory; is put into evaluation mode.
        samples: The split.
        task: What is predicted.
        fallback: For clips of which nothing can be read; see `training.data.fallback_of`.
        lost: Streams that are taken away from every clip.
    """
    said = dict.fromkeys((clip.key for clip in samples.clips), fallback)
    gone = set(lost)
    readable = [
        sample for key in samples.keys if set(_streams_of(sample := samples.sample(key))) - gone
    ]
    if not readable:
        return Answers(said=said, scores={})
    asked = _Without(model, gone) if gone else model
    given, keys = outputs(asked, readable, samples.widths), [sample.key for sample in readable]
    said.update(zip(keys, decide(task, given).tolist(), strict=True))
    scores = dict(zip(keys, probabilities(task, given).tolist(), strict=True))
    return Answers(said=said, scores=scores)


def predictions(
    model: nn.Module,
    samples: Samples,
    task: Task,
    fallback: Target,
    *,
    lost: Collection[str] = (),
) -> Mapping[str, Target]:
    """What is said in `answers`, whose arguments these are."""
    return answers(model, samples, task, fallback, lost=lost).said


def without_each(
    model: nn.Module, samples: Samples, task: Task, fallback: Target
) -> dict[str, Mapping[str, Target]]:
    """By stream, the predictions when no clip has it; the arguments are those of `predictions`.

    Of a single stream nothing, since nothing would be left.
    """
    streams = list(samples.widths) if len(samples.widths) > 1 else []
    return {name: predictions(model, samples, task, fallback, lost=[name]) for name in streams}


def lacking(samples: Samples) -> dict[str, tuple[str, ...]]:
    """By key, the streams that each labelled clip of a split lacks.

    They are absent or quarantined, or have nothing at any of the clip's steps.
    """
    found = dict.fromkeys((clip.key for clip in samples.clips), tuple(samples.widths))
    for key in samples.keys:
        there = _streams_of(samples.sample(key))
        found[key] = tuple(name for name in samples.widths if name not in there)
    return found


def _streams_of(sample: Sample) -> list[str]:
    return [name for name, values in sample.values.items() if values is not None]


class _Without(nn.Module):
    """A model that is never shown some streams."""

    def __init__(self, model: nn.Module, lost: Collection[str]) -> None:
        super().__init__()
        self.model, self.lost = model, lost

    def forward(self, batch: FusionBatch) -> Tensor:
        outputs: Tensor = self.model(without(batch, self.lost))
        return outputs


def scorecard(
    clips: Sequence[Clip],
    predicted: Mapping[str, Target],
    task: Task,
    train_clips: Sequence[Clip],
    *,
    parity: bool | None,
    replicates: int = REPLICATES,
    missing: Mapping[str, Sequence[str]] | None = None,
    without: Mapping[str, Mapping[str, Target]] | None = None,
    scores: Mapping[str, Sequence[float]] | None = None,
    duplicates: Sequence[str] | None = None,
    reproducible: bool | None = None,
    latency: Latency | None = None,
    before: Mapping[str, Sequence[Clip]] | None = None,
    unknown: Sequence[str] = (),
) -> Scorecard:
    """All that training tells promotion about one model.

    Args:
        clips: The evaluation set, labelled; their order does not matter.
        predicted: For each of their keys what `predictions` gives.
        task: What is predicted.
        train_clips: Speakers and sources that are here too are reported as leaks.
        parity: Whether the registered model computes the features that training read; None when
            nobody looked.
        replicates: Draws of the bootstrap.
        missing: What `lacking` says, where the clips are to be told apart by that.
        without: What `without_each` says, where that is to be measured.
        scores: Those of `answers`, where calibration is to be measured.
        duplicates: Clips that look or sound like one of training; None when nobody looked.
        reproducible: Whether the registered model says the same twice; None when nobody looked.
        latency: How long the model takes for a clip, where that was measured.
        before: By the id of each run that weights come from which the model began with, its
            training clips: they count as `train_clips` do.
        unknown: Weights that it began with, of which nobody knows the training clips.

    Raises:
        ValueError: There are no clips, or a clip has no prediction.
    """
    ordered = _sorted(clips)
    if not ordered:
        raise ValueError("a scorecard of no clips says nothing; give a test split with labels")
    if unsaid := [clip.id for clip in ordered if clip.key not in predicted]:
        raise ValueError(f"{len(unsaid)} clips have no prediction, the first is {unsaid[0]!r}")
    truth = np.array([target_of(clip, task) for clip in ordered], dtype=np.float64)
    said = _said(predicted, ordered)
    name = evaluation_set(ordered, task.label)
    found = metrics(task, truth, said)
    part = partial(_part, task, set_name=name, replicates=replicates)
    keys, every = [clip.key for clip in ordered], range(len(ordered))
    return Scorecard(
        evaluation_set=name,
        count=len(ordered),
        metrics=found,
        better={metric: DIRECTION[metric] for metric in found},
        replicates=replicate(task, truth, said, resamples(name, len(ordered), replicates)),
        draws=draws_name(name, len(ordered)),
        leaks=leaks(ordered, train_clips, before),
        unknown_starts=tuple(unknown),
        duplicates=None if duplicates is None else tuple(duplicates),
        parity=parity,
        reproducible=reproducible,
        undefined=undefined(task, truth, said),
        as_found=tuple(
            Part(streams=streams, **part(keys, truth, said, places))
            for streams, places in _patterns([(missing or {}).get(key) for key in keys])
        ),
        as_asked=tuple(
            Part(streams=(stream,), **part(keys, truth, _said(predicted, ordered), every))
            for stream, predicted in sorted((without or {}).items())
        ),
        by_group=tuple(
            Subgroup(kind=kind, name=group, **part(keys, truth, said, places))
            for (kind, group), places in _groups([(clip.group, clip.speaker) for clip in ordered])
        ),
        calibration=_calibration(task, ordered, truth, said, scores or {}),
        latency=latency,
        **_by_class(task, truth, said),
    )


def _said(predicted: Mapping[str, Target], clips: Sequence[Clip]) -> Floats:
    return np.array([predicted[clip.key] for clip in clips], dtype=np.float64)


def regrouped(card: Scorecard, own: Predicted, others: Sequence[Predicted]) -> Scorecard:
    """A scorecard with the subgroups of all these models: the same clips, told apart alike.

    Which streams a clip lacks depends on what a model reads, and the table of clips may have been
    given groups since, or they were taken out: only what was said of each clip can be told apart
    anew.

    Args:
        card: Of a model.
        own: What that said.
        others: What each said by whose subgroups they are told apart, on the same evaluation set.
    """
    draws = max((len(values) for values in card.replicates.values()), default=0)
    part = partial(_part, own.task, set_name=card.evaluation_set, replicates=draws)
    given = own.keys, own.truth, own.said
    found: dict[str, Part] = {}
    groups: dict[str, Subgroup] = {}
    for other in others:
        patterns = _patterns(other.lacks)
        # A single one is the whole set.
        for streams, places in patterns if len(patterns) > 1 else ():
            one = Part(streams=streams, **part(*given, places))
            found.setdefault(one.clips, one)
        for (kind, name), places in _groups(list(zip(other.groups, other.speakers, strict=True))):
            group = Subgroup(kind=kind, name=name, **part(*given, places))
            groups.setdefault(group.clips, group)
    return replace(card, as_found=tuple(found.values()), by_group=tuple(groups.values()))


def _patterns(
    lacks: Sequence[Sequence[str] | None],
) -> list[tuple[tuple[str, ...], list[int]]]:
    """The places of the clips that lack the same streams; those that lack less come first."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, streams in enumerate(lacks):
        if streams is not None:
            found.setdefault(tuple(sorted(streams)), []).append(place)
    return sorted(found.items(), key=lambda each: (len(each[0]), each[0]))


def _groups(
    clips: Sequence[tuple[str | None, str | None]],
) -> list[tuple[tuple[Literal["group", "speaker"], str], list[int]]]:
    """The places of the clips of each group, and of each speaker who is in none."""
    found: dict[tuple[Literal["group", "speaker"], str], list[int]] = {}
    for place, (group, speaker) in enumerate(clips):
        if group:
            found.setdefault(("group", group), []).append(place)
        elif speaker:
            found.setdefault(("speaker", speaker), []).append(place)
    return sorted(found.items())


def _part(
    task: Task,
    keys: Sequence[str],
    truth: Floats,
    said: Floats,
    places: Sequence[int],
    *,
    set_name: str,
    replicates: int,
) -> _Measured:
    """Metrics of the clips in these places."""
    some = truth[list(places)], said[list(places)]
    draws = replicate(task, *some, resamples(set_name, len(places), replicates))
    return {
        "count": len(places),
        "metrics": metrics(task, *some),
        "intervals": {metric: interval(values) for metric, values in draws.items()},
        "clips": members(keys[place] for place in places),
    }


def members(keys: Iterable[str]) -> str:
    """sha256 in hex of some clips' keys, in any order: which part of a set is spoken of."""
    return hashlib.sha256(canonical_json(sorted(keys))).hexdigest()


def _calibration(
    task: Task,
    clips: Sequence[Clip],
    truth: Floats,
    said: Floats,
    scores: Mapping[str, Sequence[float]],
) -> Calibration | None:
    """Of the clips that the model itself spoke of, where all that it says are numbers."""
    places = [place for place, clip in enumerate(clips) if clip.key in scores]
    own = np.array([scores[clips[place].key] for place in places], dtype=np.float64)
    own = own.reshape(len(places), len(task.classes))
    if not (np.isfinite(said[places]).all() and np.isfinite(own).all()):
        return None
    return calibration(task, truth[places], said[places], own)


def leaks(
    clips: Sequence[Clip],
    train_clips: Sequence[Clip],
    before: Mapping[str, Sequence[Clip]] | None = None,
) -> tuple[str, ...]:
    """Speakers and sources that are on both sides, sorted.

    A source is known by its name and by its bytes.

    Args:
        clips: Of an evaluation set.
        train_clips: What the model was trained on.
        before: What was trained on by each run, by its id, whose weights the model began with.
    """
    found = _shared(clips, train_clips)
    for run_id, seen in (before or {}).items():
        found |= {
            f"{name} (in run {run_id}, which it starts from)" for name in _shared(clips, seen)
        }
    return tuple(sorted(found))


def _shared(clips: Sequence[Clip], others: Sequence[Clip]) -> set[str]:
    media = {clip.media_digest for clip in others} - {""}
    same = {f"source {clip.source}" for clip in clips if clip.media_digest in media and clip.source}
    return same | (_origins(clips) & _origins(others))


def _by_class(task: Task, truth: Floats, said: Floats) -> _ByClass:
    """Fields of a scorecard that only classes have, and only where all predictions are numbers."""
    if task.kind == "regression" or not np.isfinite(said).all():
        return {}
    return {
        "by_class": by_class(task, truth, said),
        "confusion": confusion(task, truth, said).tolist(),
    }


def _origins(clips: Sequence[Clip]) -> set[str]:
    speakers = {f"speaker {clip.speaker}" for clip in clips if clip.speaker}
    return speakers | {f"source {clip.source}" for clip in clips if clip.source}


def _sorted(clips: Sequence[Clip]) -> list[Clip]:
    return sorted(clips, key=lambda clip: clip.key)
