"""From manifests and clips to samples: columns joined by key, with labels and splits."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featurizers import dataset, manifest
from featurizers.align import How, Pooled, cells, parts, pool, word_times
from featurizers.clip import Clip
from featurizers.node_cache import NodeCache
from featurizers.spec import Feature, FeatureSpec, canonical_json
from featurizers.store import Root, is_remote
from training.batch import FusionBatch, Sample, collate
from training.folds import in_fold
from training.normaliser import Normaliser, measured_once
from training.order import Buckets, Slot, order
from training.recipe import Pooling, Recipe, Target, Task
from training.recipe import micro_batch as micro_batch  # noqa: PLC0414 - importable from here too
from training.stream import whole


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
    """A clip's features as a model takes them: pooled to the recipe's time base, and normalised.

    Training and the registered model both go through here, so they cannot differ.

    Args:
        clip: Gives the words or the duration.
        features: By stream, in the model's order; None where the clip lacks it (absent or
            quarantined).
        pooling: The time base, and how steps are pooled to it.
        normaliser: None only while the normaliser itself is being measured.
        target: See `target_of`.
        spoken: The streams whose steps are words, see `spoken_of`: between two words nothing is
            said, so that the mean of these is by overlap alone.
        encoded: Streams that an encoder within the model reads: they keep their steps with their
            times, in their order, and the model pools what the encoder makes of them.
    """
    base = None if pooling.kind == "own" else _time_base(clip, features, pooling)
    together = None if base is None else Pooled(base)
    values: dict[str, NDArray[np.float32] | None] = {}
    valid: dict[str, NDArray[np.bool_] | None] = {}
    times: dict[str, NDArray[np.float64]] = {}
    for name, feature in features.items():
        values[name], valid[name] = None, None
        if feature is None:
            continue
        if name in encoded:
            if _reaches(feature, base):
                values[name] = feature.values.astype(np.float32)
                times[name] = feature.times
            continue
        how = "overlap" if pooling.how == "mean" and name in spoken else pooling.how
        if together is None:
            pooled, there = _own_steps(feature, pooling.most, how)
        else:
            pooled, there = together.stream(feature, how)
        if there.any():
            scaled = pooled if normaliser is None else normaliser.apply(name, pooled)
            scaled[~there] = 0.0
            values[name], valid[name] = scaled, None if there.all() else there
    return Sample(
        key=clip.key,
        values=values,
        valid=valid,
        target=target,
        times=times,
        base=base if encoded else None,
    )


def _reaches(feature: Feature, base: NDArray[np.float64] | None) -> bool:
    """Whether there are steps, and the time base has any of them."""
    if base is None or not len(feature.times):
        return bool(len(feature.times))
    steps = Feature(np.zeros((len(feature.times), 1), dtype=np.float32), feature.times)
    return bool(pool(steps, base, "overlap")[1].any())


def spoken_of(specs: Mapping[str, FeatureSpec]) -> frozenset[str]:
    """The streams whose steps are words, or what was said at once: they are read from words."""
    return frozenset(name for name, spec in specs.items() if "words" in spec.reads)


def is_empty(sample: Sample) -> bool:
    """Whether no stream has anything at the sample's time base, so that no model can tell."""
    return all(values is None for values in sample.values.values())


def _own_steps(
    feature: Feature, most: int, how: How
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A stream's own steps in order of time, or where they are too many equal parts of its time."""
    if len(feature.times) > most:
        begin, end = feature.times[:, 0].min(), feature.times[:, 1].max()
        return pool(feature, begin + parts(end - begin, most), how)
    order = np.argsort(feature.times[:, 0], kind="stable")
    return feature.values[order].astype(np.float32), np.ones(len(order), dtype=np.bool_)


def _time_base(
    clip: Clip, features: Mapping[str, Feature | None], pooling: Pooling
) -> NDArray[np.float64]:
    if pooling.kind == "words" and clip.words:
        return word_times(clip)
    ends = [f.times[-1, 1] for f in features.values() if f is not None and len(f.times)]
    # A clip that only has a table of numbers has no media that know its duration.
    seconds = clip.seconds or max(ends, default=0.0)
    if pooling.kind == "steps":
        return parts(seconds, pooling.steps)
    return cells(seconds, pooling.cell_s)


def _steps(clip: Clip, stored: Sequence[int], pooling: Pooling) -> int:
    """Steps of the longest stream of a clip's sample, of which so many are stored for each."""
    if pooling.kind == "own":
        return min(max(stored), pooling.most)
    return len(_time_base(clip, {}, pooling))


def target_of(clip: Clip, task: Task) -> Target:
    """What is to be predicted of a labelled clip: a number, an index, or a 0 or 1 for each label.

    Raises:
        ValueError: The label is not of the task's kind.
    """
    label = clip.labels[task.label]
    match task.kind:
        case "regression":
            if isinstance(label, str | tuple) or not np.isfinite(label):
                raise _strange(clip, task, "a regression wants finite numbers")
            return float(label)
        case "classes":
            if label not in task.classes:
                raise _strange(clip, task, f"the task's classes are {', '.join(task.classes)}")
            return task.classes.index(str(label))
        case "labels":
            if not isinstance(label, tuple) or set(label) - set(task.classes):
                raise _strange(clip, task, f"the task wants any of {', '.join(task.classes)}")
            return tuple(float(name in label) for name in task.classes)


def _strange(clip: Clip, task: Task, wanted: str) -> ValueError:
    found = clip.labels[task.label]
    return ValueError(f"clip {clip.id!r}: label {task.label!r} is {found!r}; {wanted}")


def fallback_of(clips: Sequence[Clip], task: Task) -> Target:
    """What to say of a clip that cannot be read.

    The mean; or the index of the commonest class; or those labels that more than half of the clips
    have.

    Args:
        clips: Labelled training clips, at least one.
        task: The task; among equally common classes the first wins.
    """
    targets = [target_of(clip, task) for clip in clips]
    match task.kind:
        case "regression":
            return float(np.mean(targets))
        case "classes":
            counts = Counter(targets)
            return float(max(range(len(task.classes)), key=lambda index: (counts[index], -index)))
        case "labels":
            shares = np.mean(targets, axis=0)
            return tuple(float(share > 0.5) for share in shares)


class Samples:
    """The usable clips of one split: read when asked for, kept in memory up to a limit.

    Attributes:
        clips: All clips of the split that have a label, usable or not, sorted by key.
        keys_by_shard: The usable keys, by the shard that holds them.
        widths: Dimensions of each stream, in the model's order.
        columns: The column of each stream.
        digest: sha256 in hex of the columns, the usable keys and their targets.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        columns: Mapping[str, manifest.Column],
        recipe: Recipe,
        *,
        all_streams: bool,
        normaliser: Normaliser | None,
        cache_bytes: int,
    ) -> None:
        self.clips = [clip for clip in clips if recipe.task.label in clip.labels]
        self.widths = {name: column.spec.width for name, column in columns.items()}
        self.columns = columns
        self._spoken = spoken_of({name: column.spec for name, column in columns.items()})
        self._recipe = recipe
        self._normaliser = normaliser
        self._cache: dict[str, Sample] = {}
        self._room_bytes = cache_bytes
        enough = len(columns) if all_streams else 1
        self._usable = {
            clip.key: clip for clip in self.clips if _streams_of(clip, columns) >= enough
        }
        self.targets = {
            key: target_of(clip, recipe.task) for key, clip in sorted(self._usable.items())
        }
        self.keys_by_shard = _by_shard(list(self.targets), columns)
        self.digest = hashlib.sha256(
            canonical_json([{n: c.digest for n, c in columns.items()}, self.targets])
        ).hexdigest()

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def keys(self) -> list[str]:
        """The usable keys, sorted."""
        return list(self.targets)

    def order(self, epoch: int) -> list[str]:
        """The usable keys in the recipe's order of an epoch."""
        return order(self.keys_by_shard, seed=self._recipe.seed, epoch=epoch, buckets=self._buckets)

    @cached_property
    def _buckets(self) -> Buckets | None:
        if not self._recipe.bucketed:
            return None
        pooling = self._recipe.pooling
        lengths = {
            key: _steps(clip, [column.rows[key].steps for column in self.columns.values()], pooling)
            for key, clip in self._usable.items()
        }
        return Buckets(lengths, self._recipe.global_batch)

    def sample(self, key: str) -> Sample:
        """The sample of a usable clip."""
        if key in self._cache:
            return self._cache[key]
        sample = self.made(key, {name: column.read(key) for name, column in self.columns.items()})
        size = sum(values.nbytes for values in sample.values.values() if values is not None)
        if size <= self._room_bytes:
            self._room_bytes -= size
            self._cache[key] = sample
        return sample

    def made(self, key: str, features: Mapping[str, Feature | None]) -> Sample:
        """The sample of a usable clip, of features that are read already."""
        return to_sample(
            self._usable[key],
            features,
            self._recipe.pooling,
            self._normaliser,
            self.targets[key],
            spoken=self._spoken,
            encoded=self._recipe.model.encoders.keys(),
        )

    def batch(self, slots: Sequence[Slot]) -> FusionBatch:
        """The batch of these keys and weights."""
        return collate([self.sample(key).weighing(weight) for key, weight in slots], self.widths)

    def keep_less(self, parts: int) -> None:
        """Keep this part of what may be kept in memory: so many processes remember samples."""
        self._room_bytes //= parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """All that a run reads.

    Attributes:
        specs: What each stream is, in the model's order.
        fallback: What to say of a clip that cannot be read; see `fallback_of`.
    """

    train: Samples
    valid: Samples
    test: Samples
    specs: Mapping[str, FeatureSpec]
    normaliser: Normaliser
    fallback: Target


def load(
    root: Root,
    columns: Mapping[str, str],
    recipe: Recipe,
    *,
    cache_bytes: int = 1 << 30,
    node_cache: NodeCache | None = None,
    kept: Path | None = None,
) -> Data:
    """Join columns with labels and splits, and measure the normaliser on "train".

    A clip is usable when it has the label and at least one stream; a quarantined stream counts as
    missing, like an absent one. Where the recipe does not take clips that lack a stream, training
    and validation leave them out; "test" has all of them, so that models with other streams stay
    comparable.

    Args:
        root: Where the dataset lies: a folder or the URL of an object store's prefix.
        columns: The fingerprint of each stream that the recipe names.
        recipe: Names the streams, the task and the pooling.
        cache_bytes: Samples of a split that are kept in memory.
        node_cache: Where this machine keeps copies of an object store's shards; None reads clip by
            clip from there.
        kept: A folder, named by all that decides the numbers, that keeps the normaliser; None
            measures it.

    Raises:
        ValueError: A stream has no column, a clip is in no shard of a column, a label is not of the
            task's kind, no training clip is usable, or the dataset has not the recipe's folds.
        CorruptShardError: A shard is not what was written.
        StorageError: The node's cache is too small.
    """
    opened = _open(root, columns, recipe, node_cache)
    splits: dict[str, list[Clip]] = {"train": [], "valid": [], "test": []}
    for clip in in_fold(dataset.read_clips(root), recipe.fold):
        if clip.split in splits:
            splits[clip.split].append(clip)
    strict = not recipe.take_absent
    raw = Samples(
        splits["train"], opened, recipe, all_streams=strict, normaliser=None, cache_bytes=0
    )
    if not len(raw):
        raise ValueError(
            f"{root}: no usable training clip: {len(splits['train'])} clips are in split 'train', "
            f"{len(raw.clips)} of them have label {recipe.task.label!r}; none has "
            f"{'all' if strict else 'any'} of the streams {', '.join(opened)}"
        )
    scaled = {name: width for name, width in raw.widths.items() if name not in recipe.raw}

    def measure() -> Normaliser:
        # Where all streams are raw nothing is read for it: pictures are many.
        keys = raw.keys if scaled else ()
        one_by_one = (raw.sample(key) for key in keys)
        streamed = recipe.loader == "streaming" and scaled
        return Normaliser.measure(whole(raw) if streamed else one_by_one, scaled)

    normaliser = measure() if kept is None else measured_once(kept, measure)
    train, valid, test = (
        Samples(
            splits[split],
            opened,
            recipe,
            all_streams=strict and split != "test",
            normaliser=normaliser,
            cache_bytes=cache_bytes,
        )
        for split in ("train", "valid", "test")
    )
    return Data(
        train=train,
        valid=valid,
        test=test,
        specs={name: column.spec for name, column in opened.items()},
        normaliser=normaliser,
        fallback=fallback_of(train.clips, recipe.task),
    )


def _open(
    root: Root, columns: Mapping[str, str], recipe: Recipe, node_cache: NodeCache | None
) -> dict[str, manifest.Column]:
    if unknown := [name for name in recipe.model.streams if name not in columns]:
        raise ValueError(
            f"recipe {recipe.name!r} wants stream {unknown[0]!r}, which has no column; "
            f"there are {', '.join(columns)}"
        )
    cache = node_cache if is_remote(root) else None
    return {name: manifest.open_column(root, columns[name], cache) for name in recipe.model.streams}


def _streams_of(clip: Clip, columns: Mapping[str, manifest.Column]) -> int:
    count = 0
    for name, column in columns.items():
        if clip.key not in column.rows:
            raise ValueError(
                f"clip {clip.id!r} is in no shard of column {column.spec.fingerprint} (stream "
                f"{name!r}); featurize the dataset again"
            )
        count += column.rows[clip.key].state == "sample"
    return count


def _by_shard(
    keys: Sequence[str], columns: Mapping[str, manifest.Column]
) -> dict[int, tuple[str, ...]]:
    """All columns have the same clips in the same shards, so the first one speaks for all."""
    shard_of = next(iter(columns.values())).shards
    shards: dict[int, list[str]] = {}
    for key in keys:
        shards.setdefault(shard_of[key], []).append(key)
    return {shard: tuple(shards[shard]) for shard in sorted(shards)}
