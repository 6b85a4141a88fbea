"""From manifests and clips to samples: columns joined by key, with labels and splits."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from featurizers import dataset, manifest
from featurizers.align import word_times
from featurizers.clip import Clip
from featurizers.imported import spoken_of
from featurizers.node_cache import NodeCache
from featurizers.spec import Feature, FeatureSpec, canonical_json
from featurizers.store import Root, is_remote
from training.batch import FusionBatch, Sample, collate
from training.folds import in_fold
from training.normaliser import Normaliser, measured_once
from training.order import Buckets, Slot, order
from training.recipe import Recipe, Target, Task
from training.recipe import micro_batch as micro_batch  # noqa: PLC0414 - importable from here too
from training.samples import stored_steps, to_samples
from training.stream import whole


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
        usable: Those of which there is enough to learn from, by key.
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
        self.usable = {
            clip.key: clip for clip in self.clips if _streams_of(clip, columns) >= enough
        }
        self.targets = {
            key: target_of(clip, recipe.task) for key, clip in sorted(self.usable.items())
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
            key: stored_steps(
                clip, [column.rows[key].steps for column in self.columns.values()], pooling
            )
            for key, clip in self.usable.items()
        }
        return Buckets(lengths, self._recipe.global_batch)

    def sample(self, key: str) -> Sample:
        """The sample of a usable clip."""
        (sample,) = self.some([key])
        return sample

    def some(self, keys: Sequence[str]) -> list[Sample]:
        """The samples of usable clips; those that are not in memory are made together."""
        found = {key: self._cache[key] for key in keys if key in self._cache}
        absent = [key for key in dict.fromkeys(keys) if key not in found]
        made = self.made(
            absent,
            [{name: each.read(key) for name, each in self.columns.items()} for key in absent],
        )
        for sample in made:
            found[sample.key] = sample
            size = sum(values.nbytes for values in sample.values.values() if values is not None)
            if size <= self._room_bytes:
                self._room_bytes -= size
                self._cache[sample.key] = sample
        return [found[key] for key in keys]

    def made(
        self, keys: Sequence[str], features: Sequence[Mapping[str, Feature | None]]
    ) -> list[Sample]:
        """The samples of usable clips, of features that are read already."""
        return to_samples(
            [self.usable[key] for key in keys],
            features,
            self._recipe.pooling,
            self._normaliser,
            [self.targets[key] for key in keys],
            spoken=self._spoken,
            encoded=self._recipe.model.encoders.keys(),
        )

    def batch(self, slots: Sequence[Slot]) -> FusionBatch:
        """The batch of these keys and weights."""
        samples = self.some([key for key, _ in slots])
        weighed = [each.weighing(weight) for each, (_, weight) in zip(samples, slots, strict=True)]
        return collate(weighed, self.widths)

    def keep_less(self, parts: int) -> None:
        """Keep this part of what may be kept in memory: so many processes remember samples."""
        self._room_bytes //= parts


@dataclass(frozen=True, kw_only=True)
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

    @cached_property
    def digest(self) -> str:
        """sha256 in hex of all that decides what is learned and which epoch is the best.

        Those are the training and validation clips with their targets and columns, and the times
        that their streams are pooled to.
        """
        found = hashlib.sha256(canonical_json([self.train.digest, self.valid.digest]))
        for samples in (self.train, self.valid):
            for key, clip in samples.usable.items():
                found.update(f"{key} {clip.seconds!r} ".encode())
                found.update(word_times(clip).tobytes())
        return found.hexdigest()


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
