"""Columns, labels and splits become batches: the same ones on every number of ranks."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurizers.catalog import build
from featurizers.clip import Clip, Word
from featurizers.dataset import write_clips
from featurizers.extract import Outcome
from featurizers.imported import spoken_of
from featurizers.manifest import commit
from featurizers.shards import job_id, write_shard
from featurizers.spec import Dim, Feature, FeatureSpec
from featurizers.store import LocalStore
from training.data import (
    fallback_of,
    load,
    micro_batch,
    target_of,
)
from training.normaliser import LIMIT, Normaliser
from training.order import global_batches, order, order_digest, rank_view
from training.recipe import ModelSettings, Pooling, Recipe, Task
from training.samples import is_empty, to_sample

SCORE = Task(kind="regression", label="score")
MOOD = Task(kind="classes", label="mood", classes=("sad", "glad"))
TAGS = Task(kind="labels", label="tags", classes=("even", "third"))
WIDTHS = {"text": 3, "audio": 2}
SHARDS = {shard: [f"s{shard}k{i}" for i in range(3 + shard % 5)] for shard in range(20)}


def recipe(task=SCORE, **changes):
    model = ModelSettings(kind="late_fusion", streams=tuple(WIDTHS))
    return Recipe(name="late_fusion", model=model, task=task, **changes)


def spec(name, width):
    return FeatureSpec(
        name=name,
        version=1,
        modality="stream",
        reads=("words",),
        dims=tuple(Dim(f"d{i}") for i in range(width)),
        rate_hz=None,
    )


def feature(seed, width, steps=4):
    values = np.random.default_rng(seed).normal(3.0, 2.0, size=(steps, width))
    edges = np.arange(steps + 1, dtype=np.float64) * 0.5
    return Feature(values.astype(np.float32), np.stack([edges[:-1], edges[1:]], axis=1))


def dataset(root, clips, outcomes):
    """A real dataset of two shards; gives the columns' fingerprints by stream."""
    write_clips(root, clips)
    fingerprints = {}
    for name, width in WIDTHS.items():
        what = spec(name, width)
        records = []
        for shard in (0, 1):
            dealt = clips[shard::2]
            found = [outcomes[name][clip.key] for clip in dealt]
            job = job_id(what, dealt)
            records.append(
                write_shard(LocalStore(root), shard, job, what, clips=dealt, outcomes=found)
            )
        commit(root, what, "plan", records)
        fingerprints[name] = what.fingerprint
    return fingerprints


def tags(i):
    return tuple(name for name, each in (("even", 2), ("third", 3)) if i % each == 0)


@pytest.fixture
def made(tmp_path):
    splits = ["train"] * 8 + ["valid"] * 3 + ["test"] * 3
    clips = [
        Clip(
            key=f"k{i:02d}",
            id=f"clip {i}",
            media=f"{i}.mp4",
            media_digest=f"{i:064d}",
            seconds=2.0,
            split=split,
            labels={"score": i / 10, "mood": "glad" if i % 3 else "sad", "tags": tags(i)},
        )
        for i, split in enumerate(splits)
    ]
    clips[7] = replace(clips[7], labels={})
    outcomes = {
        name: {
            clip.key: Outcome(state="sample", feature=feature(i, width))
            for i, clip in enumerate(clips)
        }
        for name, width in WIDTHS.items()
    }
    broken = Outcome(state="quarantined", fault="corrupt", message="torn")
    outcomes["audio"]["k01"] = Outcome(state="absent")
    outcomes["audio"]["k02"] = broken
    outcomes["audio"]["k13"] = broken
    for name in WIDTHS:
        outcomes[name]["k03"] = broken
    return tmp_path, dataset(tmp_path, clips, outcomes)


@pytest.mark.parametrize("global_batch", [8, 16, 64])
def test_global_batches_are_the_same_for_every_number_of_ranks_and_micro_size(global_batch):
    batches = global_batches(order(SHARDS, seed=7, epoch=3), global_batch)
    for world in (1, 2, 4, 8):
        for micro in (m for m in (1, 2, 4, 8, 16) if global_batch % (world * m) == 0):
            for batch in batches:
                views = [
                    rank_view(batch, rank=rank, world=world, micro=micro) for rank in range(world)
                ]
                assert {len(view) for view in views} == {global_batch // (world * micro)}
                together = [
                    slot for turn in zip(*views, strict=True) for part in turn for slot in part
                ]
                assert tuple(together) == batch


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=25).filter(any),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    window=st.integers(1, 10),
)
def test_no_key_is_lost_or_twice_in_an_epoch(sizes, size, seed, window):
    shards = {shard: [f"{shard}-{i}" for i in range(n)] for shard, n in enumerate(sizes)}
    ordered = order(shards, seed=seed, epoch=1, window=window)
    batches = global_batches(ordered, size)
    real = [key for batch in batches for key, weight in batch if weight == 1.0]
    assert sorted(real) == sorted(key for keys in shards.values() for key in keys)
    assert {len(batch) for batch in batches} == {size}
    assert all(weight == 1.0 for batch in batches[:-1] for _, weight in batch)


def test_the_order_depends_on_seed_and_epoch_and_not_on_the_order_of_the_input():
    backwards = {shard: SHARDS[shard][::-1] for shard in reversed(SHARDS)}
    assert order(backwards, seed=1, epoch=0) == order(SHARDS, seed=1, epoch=0)
    assert order(SHARDS, seed=1, epoch=1) != order(SHARDS, seed=1, epoch=0)
    same, other = (order_digest(order(SHARDS, seed=s, epoch=e) for e in (0, 1)) for s in (1, 2))
    assert same != other


def test_a_window_bounds_the_shards_that_are_open_together():
    shard_of = {key: shard for shard, keys in SHARDS.items() for key in keys}
    ordered = [shard_of[key] for key in order(SHARDS, seed=5, epoch=0, window=4)]
    last = {shard: place for place, shard in enumerate(ordered)}
    first = {shard: ordered.index(shard) for shard in SHARDS}
    for place in range(len(ordered)):
        assert sum(first[shard] <= place <= last[shard] for shard in SHARDS) <= 4


@pytest.mark.parametrize(
    ("global_batch", "world", "asked", "micro"),
    [(32, 1, None, 32), (32, 2, None, 16), (256, 1, None, 64), (66, 1, None, 33), (32, 2, 4, 4)],
)
def test_the_micro_batch_is_the_largest_that_fits(global_batch, world, asked, micro):
    assert micro_batch(global_batch, world, asked) == micro


def test_a_global_batch_that_does_not_fit_names_one_that_does():
    with pytest.raises(ValueError, match="smaller one that fits is 30"):
        micro_batch(32, 3, None)
    with pytest.raises(ValueError, match="take 8"):
        micro_batch(4, 2, 4)


def test_usable_clips_have_a_label_and_a_stream(made):
    root, columns = made
    data = load(root, columns, recipe())
    assert data.train.keys == ["k00", "k01", "k02", "k04", "k05", "k06"]
    assert [clip.key for clip in data.train.clips] == [f"k0{i}" for i in range(7)]
    assert data.valid.keys == ["k08", "k09", "k10"]
    assert {len(keys) for keys in data.train.keys_by_shard.values()} == {2, 4}
    assert data.fallback == pytest.approx(np.mean([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))


def test_training_may_leave_out_clips_that_lack_a_stream_but_the_test_set_keeps_them(made):
    root, columns = made
    data = load(root, columns, recipe(take_absent=False))
    assert data.train.keys == ["k00", "k04", "k05", "k06"]
    assert data.test.keys == ["k11", "k12", "k13"]


def test_a_missing_stream_is_masked_and_zero(made):
    root, columns = made
    batch = load(root, columns, recipe()).train.batch([("k00", 1.0), ("k01", 0.0)])
    assert batch.streams["audio"].mask.tolist() == [[True] * 4, [False] * 4]
    assert batch.streams["audio"].values[1].abs().sum() == 0
    assert batch.weight.tolist() == [1.0, 0.0]
    assert batch.target.tolist() == pytest.approx([0.0, 0.1])


def test_training_samples_are_normalised_and_a_small_cache_changes_nothing(made):
    root, columns = made
    data = load(root, columns, recipe())
    steps = np.concatenate(
        [data.train.sample(key).values["text"] for key in data.train.keys], dtype=np.float64
    )
    assert steps.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-6)
    assert steps.std(axis=0) == pytest.approx(np.ones(3), abs=1e-6)
    again = load(root, columns, recipe(), cache_bytes=10).train
    for key in data.train.keys:
        assert np.array_equal(
            again.sample(key).values["text"], data.train.sample(key).values["text"]
        )


def test_class_targets_are_indexes_and_the_fallback_is_the_commonest(made):
    root, columns = made
    data = load(root, columns, recipe(MOOD, loss="cross_entropy"))
    assert data.train.targets["k00"] == 0
    assert data.train.targets["k01"] == 1
    assert data.fallback == 1.0


def test_targets_of_several_labels_are_a_number_for_each(made):
    root, columns = made
    data = load(root, columns, recipe(TAGS, loss="bce"))
    assert data.train.targets["k00"] == (1.0, 1.0)
    assert data.train.targets["k02"] == (1.0, 0.0)
    batch = data.train.batch([("k00", 1.0), ("k01", 1.0), ("k06", 0.0)])
    assert batch.target.tolist() == [[1, 1], [0, 0], [1, 1]]
    assert batch.target.dtype == batch.weight.dtype
    # Of k00 to k06 four are even, and three can be divided by three.
    assert data.fallback == (1.0, 0.0)


def test_labels_of_the_wrong_kind_are_named(made):
    clip = Clip(key="a", id="the clip", media="", media_digest="", labels={"score": "high"})
    with pytest.raises(ValueError, match=r"'the clip'.*'high'.*finite numbers"):
        target_of(clip, SCORE)
    with pytest.raises(ValueError, match=r"'the clip'.*are sad, glad"):
        target_of(replace(clip, labels={"mood": "angry"}), MOOD)
    for wrong in (("even", "odd"), "even", 2.0):
        with pytest.raises(ValueError, match=r"'the clip'.*wants any of even, third"):
            target_of(replace(clip, labels={"tags": wrong}), TAGS)
    assert (
        fallback_of([replace(clip, labels={"mood": mood}) for mood in ("glad", "sad")], MOOD) == 0
    )


def test_a_clip_that_no_shard_holds_asks_for_featurizing(made):
    root, columns = made
    late = Clip(
        key="new", id="new", media="", media_digest="", split="train", labels={"score": 0.5}
    )
    write_clips(root, [late])
    with pytest.raises(ValueError, match=r"'new' is in no shard of column text-\w+.*featurize"):
        load(root, columns, recipe())
    with pytest.raises(ValueError, match="wants stream 'audio', which has no column"):
        load(root, {"text": columns["text"]}, recipe())


def test_a_flipped_label_changes_the_digest_of_the_data(made):
    root, columns = made
    before = load(root, columns, recipe())
    assert load(root, columns, recipe()).train.digest == before.train.digest
    changed = [
        replace(clip, labels={"score": 9.0}) if clip.key == "k00" else clip
        for clip in [*before.train.clips, *before.valid.clips]
    ]
    write_clips(root, changed)
    after = load(root, columns, recipe())
    assert after.train.digest != before.train.digest
    assert after.valid.digest == before.valid.digest


def test_statistics_equal_the_slow_twin_even_far_from_zero(tmp_path):
    random = np.random.default_rng(0)
    arrays = [random.normal(1e4, 1e-1, size=(n, 2)).astype(np.float32) for n in (1, 5, 9)]
    for array in arrays:
        array[:, 1] = 7.0
    clip = Clip(key="a", id="a", media="", media_digest="", seconds=1.0)
    samples = [
        to_sample(clip, {"x": Feature(array, _times(len(array)))}, Pooling(kind="cells"), None)
        for array in arrays
    ]
    pooled = np.concatenate([sample.values["x"] for sample in samples]).astype(np.float64)
    found = Normaliser.measure(samples, {"x": 2, "y": 4})
    assert found.mean["x"] == pytest.approx(pooled.mean(axis=0))
    assert found.std["x"] == pytest.approx([pooled[:, 0].std(), 1.0], rel=1e-6)
    assert found.mean["y"].tolist() == [0.0] * 4
    found.save(tmp_path / "normaliser.safetensors")
    back = Normaliser.load(tmp_path / "normaliser.safetensors")
    assert all(np.array_equal(back.std[name], found.std[name]) for name in ("x", "y"))


def _times(steps):
    edges = np.linspace(0.0, 1.0, steps + 1)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def test_a_sample_has_the_words_as_its_time_base_and_cells_without_words():
    words = (Word(text="a", start=0.0, end=0.5), Word(text="b", start=4.0, end=4.5))
    clip = Clip(key="a", id="a", media="", media_digest="", seconds=2.0, words=words)
    features = {"audio": feature(0, 2), "video": None}
    same = Normaliser.identity({"audio": 2, "video": 2})
    spoken = to_sample(clip, features, Pooling(), same)
    assert spoken.values["audio"].shape == (2, 2)
    assert spoken.valid["audio"].tolist() == [True, False]
    assert spoken.values["audio"][1].tolist() == [0.0, 0.0]
    assert spoken.values["video"] is None
    assert np.abs(spoken.values["audio"]).max() <= LIMIT
    silent = to_sample(replace(clip, words=None), features, Pooling(cell_s=1.0), same)
    assert silent.values["audio"].shape == (2, 2)
    assert silent.valid["audio"] is None
    tables_only = replace(clip, words=(), seconds=0.0)
    assert to_sample(tables_only, features, Pooling(), same).values["audio"].shape == (4, 2)


def test_the_recipe_chooses_the_time_base_and_how_steps_are_pooled_to_it():
    clip = Clip(key="a", id="a", media="", media_digest="", seconds=2.0)
    features, same = {"audio": feature(0, 2)}, Normaliser.identity({"audio": 2})
    steps = features["audio"].values.clip(-LIMIT, LIMIT)  # half a second each
    two = to_sample(clip, features, Pooling(kind="steps", steps=2, how="max"), same)
    assert two.values["audio"].tolist() == [steps[:2].max(0).tolist(), steps[2:].max(0).tolist()]
    whole = to_sample(clip, features, Pooling(kind="cells", cell_s=2.0, how="last"), same)
    assert whole.values["audio"].tolist() == [steps[3].tolist()]


def test_short_words_lie_between_the_steps_of_sound_but_between_no_other_words():
    words = (Word(text="a", start=0.4, end=0.5), Word(text="b", start=0.5, end=0.6))
    clip = Clip(key="a", id="a", media="", media_digest="", seconds=2.0, words=words)
    halves = np.array([[0.0, 0.5], [0.5, 1.0]])  # their middles are 0.25 and 0.75
    steps = Feature(np.array([[0.0], [1.0]], np.float32), halves)
    sample = to_sample(
        clip, {"audio": steps, "text": steps}, Pooling(), None, spoken=frozenset({"text"})
    )
    assert sample.values["audio"][:, 0].tolist() == [pytest.approx(0.4), pytest.approx(0.6)]
    assert sample.values["text"].tolist() == [[0.0], [1.0]]
    specs = {name: build(name).spec for name in ("hashed-words", "logmel", "face-motion")}
    assert spoken_of(specs) == {"hashed-words"}


def test_a_stream_keeps_its_own_steps_up_to_a_number_of_them():
    clip = Clip(key="a", id="a", media="", media_digest="", seconds=9.0)
    audio = feature(0, 2)  # four steps of half a second
    backwards = Feature(audio.values[::-1], audio.times[::-1])
    features = {"audio": backwards, "text": feature(1, 3, steps=7), "none": None}
    own = to_sample(clip, features, Pooling(kind="own", most=4, how="max"), None)
    assert np.array_equal(own.values["audio"], audio.values)
    assert own.values["audio"].dtype == np.float32
    assert own.values["text"].shape == (4, 3)
    assert own.values["none"] is None
    assert own.valid == {"audio": None, "text": None, "none": None}
    two = to_sample(clip, features, Pooling(kind="own", most=2, how="max"), None)
    halves = [audio.values[:2].max(0).tolist(), audio.values[2:].max(0).tolist()]
    assert two.values["audio"].tolist() == halves


def test_a_stream_of_its_own_steps_that_begins_late_is_pooled_over_its_own_time():
    clip = Clip(key="a", id="a", media="", media_digest="", seconds=90.0)
    audio = feature(0, 2)
    late = Feature(audio.values, audio.times + 60.0)
    own = to_sample(clip, {"audio": late}, Pooling(kind="own", most=2), None)
    assert own.valid["audio"] is None
    assert own.values["audio"].shape == (2, 2)


def test_a_stream_without_steps_is_missing():
    clip = Clip(key="a", id="a", media="", media_digest="", seconds=1.0)
    empty = Feature(np.zeros((0, 2), np.float32), np.zeros((0, 2)))
    assert is_empty(to_sample(clip, {"audio": empty}, Pooling(kind="own"), None))
