"""From manifests and clips to batches: the same global batches on every number of ranks.

Position in the data is one integer, the index of a global batch counted through all epochs. Nothing
about ranks, workers or micro-batches decides which clips are in it.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from featurizers import dataset, manifest
from featurizers.align import How, cells, parts, pool, word_times
from featurizers.clip import Clip
from featurizers.spec import Feature, FeatureSpec, canonical_json
from featurizers.store import Root
from training.batch import FusionBatch, Sample, collate
from training.folds import in_fold
from training.recipe import Pooling, Recipe, Target, Task
from training.recipe import micro_batch as micro_batch  # noqa: PLC0414 - importable from here too

WINDOW = 8
"""Shards whose clips are shuffled together: bounds the files that are open at one time."""

LIMIT = 5.0
"""Normalised values end here, in standard deviations: one broken sensor must not drown a batch."""

Slot: TypeAlias = tuple[str, float]
"""A clip's key and its weight: 1, or 0 where it only pads the last global batch."""

GlobalBatch: TypeAlias = tuple[Slot, ...]

Item = TypeVar("Item")


def order(
    keys_by_shard: Mapping[int, Sequence[str]], *, seed: int, epoch: int, window: int = WINDOW
) -> list[str]:
    """Every key once, in the order of an epoch.

    Shards are permuted; then the keys of `window` shards at a time are shuffled together. Decided
    by the arguments
    alone: not by the order in which shards or keys are given.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    shards = sorted(keys_by_shard)
    permuted = [shards[i] for i in generator.permutation(len(shards))]
    ordered: list[str] = []
    for first in range(0, len(permuted), window):
        together = permuted[first : first + window]
        keys = [key for shard in together for key in sorted(keys_by_shard[shard])]
        ordered += [keys[i] for i in generator.permutation(len(keys))]
    return ordered


def order_digest(keys_by_shard: Mapping[int, Sequence[str]], *, seed: int, epochs: int) -> str:
    """sha256 in hex of the orders of all epochs: equal digests mean equal global batches."""
    digest = hashlib.sha256()
    for epoch in range(epochs):
        digest.update(canonical_json(order(keys_by_shard, seed=seed, epoch=epoch)))
    return digest.hexdigest()


def global_batches(ordered: Sequence[str], size: int) -> list[GlobalBatch]:
    """Cut an order into batches of `size`; repeated keys of weight 0 fill the last one."""
    batches = []
    for first in range(0, len(ordered), size):
        own = [(key, 1.0) for key in ordered[first : first + size]]
        padding = [(ordered[i % len(ordered)], 0.0) for i in range(size - len(own))]
        batches.append(tuple(own + padding))
    return batches


def rank_view(
    batch: tuple[Item, ...], *, rank: int, world: int, micro: int
) -> list[tuple[Item, ...]]:
    """What one rank takes of a global batch: its micro-batches, in order of accumulation.

    The global batch, of slots or of what there is one of for each slot, is seen as
    [accumulation, rank, micro].
    """
    step = world * micro
    starts = range(rank * micro, len(batch), step)
    return [batch[start : start + micro] for start in starts]


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Mean and standard deviation of each dimension of each stream: float32 [D] by stream.

    Streams that a recipe takes raw have none.
    """

    mean: Mapping[str, NDArray[np.float32]]
    std: Mapping[str, NDArray[np.float32]]

    @staticmethod
    def identity(widths: Mapping[str, int]) -> "Normaliser":
        """One that changes nothing within the limit, for data that are normalised already."""
        return Normaliser(
            mean={name: np.zeros(width, np.float32) for name, width in widths.items()},
            std={name: np.ones(width, np.float32) for name, width in widths.items()},
        )

    @staticmethod
    def measure(samples: Iterable[Sample], widths: Mapping[str, int]) -> "Normaliser":
        """Statistics over all valid steps of unnormalised samples.

        Sums are float64 and merged sample by sample (Chan, Golub and LeVeque, "Updating formulae
        and a pairwise algorithm for computing sample variances", 1979), so a large mean costs no
        digits. A dimension that does not vary has standard deviation 1; a stream without any step
        has mean 0. Streams without a width are left out.
        """
        moments = {name: _Moments.empty(width) for name, width in widths.items()}
        for sample in samples:
            for name, values in sample.values.items():
                if values is not None and name in moments:
                    valid = sample.valid.get(name)
                    moments[name] = moments[name].plus(values if valid is None else values[valid])
        return Normaliser(
            mean={name: each.mean.astype(np.float32) for name, each in moments.items()},
            std={name: each.std().astype(np.float32) for name, each in moments.items()},
        )

    def apply(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalise steps [T, D] of a stream, and cut what lies beyond 5 standard deviations.

        A raw stream stays as it is.
        """
        if name not in self.mean:
            return values
        scaled: NDArray[np.float32] = values - self.mean[name]
        scaled /= self.std[name]
        return np.clip(scaled, -LIMIT, LIMIT, out=scaled)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        arrays = {f"{name}.mean": values for name, values in self.mean.items()}
        arrays.update({f"{name}.std": values for name, values in self.std.items()})
        save_file(arrays, path)

    @staticmethod
    def load(path: Path) -> "Normaliser":
        """Read what `save` wrote."""
        arrays = load_file(path)
        return Normaliser(
            mean={n.removesuffix(".mean"): a for n, a in arrays.items() if n.endswith(".mean")},
            std={n.removesuffix(".std"): a for n, a in arrays.items() if n.endswith(".std")},
        )


@dataclass(frozen=True, slots=True)
class _Moments:
    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]  # sum of squared distances from the mean

    @staticmethod
    def empty(width: int) -> "_Moments":
        return _Moments(0, np.zeros(width), np.zeros(width))

    def plus(self, values: NDArray[np.float32]) -> "_Moments":
        if not len(values):
            return self
        steps = values.astype(np.float64)
        mean = steps.mean(axis=0)
        squares = ((steps - mean) ** 2).sum(axis=0)
        total = self.count + len(steps)
        gap = mean - self.mean
        return _Moments(
            total,
            self.mean + gap * (len(steps) / total),
            self.squares + squares + gap**2 * (self.count * len(steps) / total),
        )

    def std(self) -> NDArray[np.float64]:
        std = np.sqrt(self.squares / max(self.count, 1))
        # Below this, what varies is rounding of float32 features.
        still = std <= 1e-6 * np.maximum(1.0, np.abs(self.mean))
        return np.where(still, 1.0, std)


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
        if base is None:
            pooled, there = _own_steps(feature, pooling.most, how)
        else:
            pooled, there = pool(feature, base, how)
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
        self._columns = columns
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

    def sample(self, key: str) -> Sample:
        """The sample of a usable clip."""
        if key in self._cache:
            return self._cache[key]
        features = {name: column.read(key) for name, column in self._columns.items()}
        sample = to_sample(
            self._usable[key],
            features,
            self._recipe.pooling,
            self._normaliser,
            self.targets[key],
            spoken=self._spoken,
            encoded=self._recipe.model.encoders.keys(),
        )
        size = sum(values.nbytes for values in sample.values.values() if values is not None)
        if size <= self._room_bytes:
            self._room_bytes -= size
            self._cache[key] = sample
        return sample

    def batch(self, slots: Sequence[Slot]) -> FusionBatch:
        """The batch of these keys and weights."""
        samples = [replace(self.sample(key), weight=weight) for key, weight in slots]
        return collate(samples, self.widths)


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
    root: Root, columns: Mapping[str, str], recipe: Recipe, *, cache_bytes: int = 1 << 30
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

    Raises:
        ValueError: A stream has no column, a clip is in no shard of a column, a label is not of the
            task's kind, no training clip is usable, or the dataset has not the recipe's folds.
    """
    opened = _open(root, columns, recipe)
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
    # Where all streams are raw nothing is read for it: pictures are many.
    samples = (raw.sample(key) for key in (raw.keys if scaled else ()))
    normaliser = Normaliser.measure(samples, scaled)
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


def _open(root: Root, columns: Mapping[str, str], recipe: Recipe) -> dict[str, manifest.Column]:
    if unknown := [name for name in recipe.model.streams if name not in columns]:
        raise ValueError(
            f"recipe {recipe.name!r} wants stream {unknown[0]!r}, which has no column; "
            f"there are {', '.join(columns)}"
        )
    return {name: manifest.open_column(root, columns[name]) for name in recipe.model.streams}


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
