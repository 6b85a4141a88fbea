"""Features of clips as a model takes them: pooled to the recipe's time base, and normalised."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featurizers.align import How, Pooled, cells, parts, pool, word_times
from featurizers.clip import Clip
from featurizers.spec import Feature
from training.batch import Sample
from training.normaliser import Normaliser
from training.recipe import Pooling, Target


def to_sample(
    clip: Clip,
    features: Mapping[str, Feature | None],
    pooling: Pooling,
    normaliser: Normaliser | None,
    target: Target | None = None,
    *,
    spoken: Collection[str] = (),
    encoded: Collection[str] = (),
) -> Sample:
    """A clip's features as a model takes them. See `to_samples`."""
    (sample,) = to_samples(
        [clip], [features], pooling, normaliser, [target], spoken=spoken, encoded=encoded
    )
    return sample


def to_samples(
    clips: Sequence[Clip],
    features: Sequence[Mapping[str, Feature | None]],
    pooling: Pooling,
    normaliser: Normaliser | None,
    targets: Sequence[Target | None],
    *,
    spoken: Collection[str] = (),
    encoded: Collection[str] = (),
) -> list[Sample]:
    """Clips' features as a model takes them: pooled to the recipe's time base, and normalised.

    Training and the registered model both go through here, so they cannot differ. A clip's numbers
    are the same, in every bit, whatever clips are beside it; many together cost less than each by
    itself.

    Args:
        clips: Give the words or the duration.
        features: Of each clip by stream, in the model's order; None where the clip lacks it (absent
            or quarantined).
        pooling: The time base, and how steps are pooled to it.
        normaliser: None only while the normaliser itself is being measured.
        targets: Of each clip, see `data.target_of`.
        spoken: The streams whose steps are words, see `imported.spoken_of`: between two words
            nothing is said, so that the mean of these is by overlap alone.
        encoded: Streams that an encoder within the model reads: they keep their steps with their
            times, in their order, and the model pools what the encoder makes of them.
    """
    drafts = [
        _Draft(
            base=None if pooling.kind == "own" else time_base(clip, found, pooling),
            values=dict.fromkeys(found),
            valid=dict.fromkeys(found),
            times={},
        )
        for clip, found in zip(clips, features, strict=True)
    ]
    together = Pooled([draft.base for draft in drafts if draft.base is not None])
    for name in features[0] if features else ():
        stream = [found[name] for found in features]
        how = "overlap" if pooling.how == "mean" and name in spoken else pooling.how
        if name in encoded:
            _keep_steps(drafts, name, stream)
            continue
        own = pooling.kind == "own"
        runs = _own_runs(stream, pooling.most, how) if own else together.stream(stream, how)
        for some, steps, there in runs:
            scaled = steps if normaliser is None else normaliser.apply(name, steps)
            _fill(drafts[some], name, scaled, there)
    return [
        Sample(
            key=clip.key,
            values=draft.values,
            valid=draft.valid,
            target=target,
            times=draft.times,
            base=draft.base if encoded else None,
        )
        for clip, draft, target in zip(clips, drafts, targets, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """What becomes a sample, see there, stream by stream; `base` is what is pooled to [T, 2]."""

    base: NDArray[np.float64] | None
    values: dict[str, NDArray[np.float32] | None]
    valid: dict[str, NDArray[np.bool_] | None]
    times: dict[str, NDArray[np.float64]]


def _fill(
    drafts: Sequence[_Draft],
    name: str,
    values: NDArray[np.float32],
    there: NDArray[np.bool_],
) -> None:
    """Give clips their steps of a stream, which lie one after the other; some may have none."""
    whole = bool(there.all())
    if not whole:
        values[~there] = 0.0
    end = 0
    for draft in drafts:
        own = slice(end, end := len(there) if draft.base is None else end + len(draft.base))
        if there[own].any():
            draft.values[name] = values[own]
            draft.valid[name] = None if whole or there[own].all() else there[own]


def _keep_steps(drafts: Sequence[_Draft], name: str, stream: Sequence[Feature | None]) -> None:
    """Give clips a stream as it is, for an encoder."""
    for draft, feature in zip(drafts, stream, strict=True):
        if feature is not None and _reaches(feature, draft.base):
            draft.values[name] = feature.values.astype(np.float32)
            draft.times[name] = feature.times


def _reaches(feature: Feature, base: NDArray[np.float64] | None) -> bool:
    """Whether there are steps, and the time base has any of them."""
    if base is None or not len(feature.times):
        return bool(len(feature.times))
    steps = Feature(np.zeros((len(feature.times), 1), dtype=np.float32), feature.times)
    return bool(pool(steps, base, "overlap")[1].any())


def _own_runs(
    stream: Sequence[Feature | None], most: int, how: How
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.bool_]]]:
    """Each clip's own steps in order of time, or if too many equal parts of their time."""
    for at, feature in enumerate(stream):
        if feature is None:
            continue
        some = slice(at, at + 1)
        if len(feature.times) > most:
            begin, end = feature.times[:, 0].min(), feature.times[:, 1].max()
            yield some, *pool(feature, begin + parts(end - begin, most), how)
        else:
            order = np.argsort(feature.times[:, 0], kind="stable")
            steps = feature.values[order].astype(np.float32)
            yield some, steps, np.ones(len(order), dtype=np.bool_)


def is_empty(sample: Sample) -> bool:
    """Whether no stream has anything at the sample's time base, so that no model can tell."""
    return all(values is None for values in sample.values.values())


def time_base(
    clip: Clip, features: Mapping[str, Feature | None], pooling: Pooling
) -> NDArray[np.float64]:
    """What a clip's streams are pooled to, seconds [T, 2]; where steps are not their own base."""
    if pooling.kind == "words" and clip.words:
        return word_times(clip)
    ends = [f.times[-1, 1] for f in features.values() if f is not None and len(f.times)]
    # A clip that only has a table of numbers has no media that know its duration.
    seconds = clip.seconds or max(ends, default=0.0)
    if pooling.kind == "steps":
        return parts(seconds, pooling.steps)
    return cells(seconds, pooling.cell_s)


def stored_steps(clip: Clip, stored: Sequence[int], pooling: Pooling) -> int:
    """Steps of the longest stream of a clip's sample, of which so many are stored for each."""
    if pooling.kind == "own":
        return min(max(stored), pooling.most)
    return len(time_base(clip, {}, pooling))
