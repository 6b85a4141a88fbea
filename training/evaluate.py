"""What a model says of an evaluation set, and the scorecard made of it.

Every clip of a set is scored: one that lacks a stream with that stream masked, one of which nothing
can be read with the training mean, the commonest class, or the labels that most have.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypedDict

import numpy as np
from torch import Tensor, nn

from featurizers.clip import Clip
from featurizers.spec import canonical_json
from tracking.scorecard import Part, Scorecard, interval
from training.batch import FusionBatch, Sample
from training.bootstrap import REPLICATES, replicate, resamples
from training.data import Samples, target_of
from training.metrics import DIRECTION, Floats, by_class, confusion, metrics, undefined
from training.missing import without
from training.predict import decide, outputs
from training.recipe import Target, Task


class _ByClass(TypedDict, total=False):
    by_class: dict[str, dict[str, float]]
    confusion: list[Any]


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


def predictions(
    model: nn.Module,
    samples: Samples,
    task: Task,
    fallback: Target,
    *,
    lost: Collection[str] = (),
) -> dict[str, Target]:
    """A prediction for every labelled clip of a split, by key; see `training.predict.decide`.

    Args:
        model: In main memory; is put into evaluation mode.
        samples: The split.
        task: What is predicted.
        fallback: For clips of which nothing can be read; see `training.data.fallback_of`.
        lost: Streams that are taken away from every clip.
    """
    found = dict.fromkeys((clip.key for clip in samples.clips), fallback)
    gone = set(lost)
    readable = [
        sample for key in samples.keys if set(_streams_of(sample := samples.sample(key))) - gone
    ]
    if readable:
        asked = _Without(model, gone) if gone else model
        decided = decide(task, outputs(asked, readable, samples.widths)).tolist()
        found.update(zip((sample.key for sample in readable), decided, strict=True))
    return found


def without_each(
    model: nn.Module, samples: Samples, task: Task, fallback: Target
) -> dict[str, dict[str, Target]]:
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
    return Scorecard(
        evaluation_set=name,
        count=len(ordered),
        metrics=found,
        better={metric: DIRECTION[metric] for metric in found},
        replicates=replicate(task, truth, said, resamples(name, len(ordered), replicates)),
        leaks=leaks(ordered, train_clips),
        parity=parity,
        undefined=undefined(task, truth, said),
        as_found=tuple(
            part(streams, truth[places], said[places])
            for streams, places in _patterns(ordered, missing or {})
        ),
        as_asked=tuple(
            part([stream], truth, _said(predicted, ordered))
            for stream, predicted in sorted((without or {}).items())
        ),
        **_by_class(task, truth, said),
    )


def _said(predicted: Mapping[str, Target], clips: Sequence[Clip]) -> Floats:
    return np.array([predicted[clip.key] for clip in clips], dtype=np.float64)


def _patterns(
    clips: Sequence[Clip], missing: Mapping[str, Sequence[str]]
) -> list[tuple[tuple[str, ...], list[int]]]:
    """The places of the clips that lack the same streams; those that lack less come first."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, clip in enumerate(clips):
        if clip.key in missing:
            found.setdefault(tuple(sorted(missing[clip.key])), []).append(place)
    return sorted(found.items(), key=lambda each: (len(each[0]), each[0]))


def _part(
    task: Task,
    streams: Sequence[str],
    truth: Floats,
    said: Floats,
    *,
    set_name: str,
    replicates: int,
) -> Part:
    draws = replicate(task, truth, said, resamples(set_name, len(truth), replicates))
    return Part(
        streams=tuple(streams),
        count=len(truth),
        metrics=metrics(task, truth, said),
        intervals={metric: interval(values) for metric, values in draws.items()},
    )


def leaks(clips: Sequence[Clip], train_clips: Sequence[Clip]) -> tuple[str, ...]:
    """Speakers and sources that are on both sides, sorted."""
    here, there = _origins(clips), _origins(train_clips)
    return tuple(sorted(here & there))


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
