"""What ranks are given: the same clips and bits from any number of ranks and of workers."""

import multiprocessing
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurizers.clip import Clip
from featurizers.dataset import write_clips
from featurizers.extract import Outcome
from featurizers.manifest import CorruptShardError, commit
from featurizers.shards import job_id, write_shard
from featurizers.store import LocalStore
from tests.test_data import SCORE, WIDTHS, feature, recipe, spec
from training.data import load
from training.loader import Seat, loader_of
from training.normaliser import Normaliser, measured_once
from training.order import Buckets, global_batches, order
from training.recipe import Pooling
from training.recipe_checks import check

CLIPS, SHARD, GLOBAL = 45, 7, 8
OWN = Pooling(kind="own", most=20)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dataset of seven shards, with the columns' fingerprints by stream."""
    root = tmp_path_factory.mktemp("data")
    clips = [
        Clip(
            key=f"k{i:02d}",
            id=f"{i}",
            media="",
            media_digest="",
            seconds=2.0,
            split="valid" if i % 11 == 10 else "train",
            labels={"score": float(i)},
        )
        for i in range(CLIPS)
    ]
    write_clips(root, clips)
    fingerprints = {}
    for name, width in WIDTHS.items():
        what, records = spec(name, width), []
        for shard, first in enumerate(range(0, CLIPS, SHARD)):
            # Not in the order of keys: the plan has an order of its own.
            dealt = clips[first : first + SHARD][::-1]
            outcomes = [
                Outcome(state="absent")
                if name == "audio" and int(clip.id) % 9 == 4
                else Outcome(
                    state="sample",
                    feature=feature(int(clip.id), width, 4 + ord(name[0]) % 3 + int(clip.id) % 5),
                )
                for clip in dealt
            ]
            job = job_id(what, dealt)
            records.append(
                write_shard(LocalStore(root), shard, job, what, clips=dealt, outcomes=outcomes)
            )
        commit(root, what, "plan", records)
        fingerprints[name] = what.fingerprint
    return root, fingerprints


def train(place, **changes):
    made = recipe(SCORE, global_batch=GLOBAL, pooling=OWN, **changes)
    return load(*place, made).train, made


def taken(place, epoch, *, first=0, world=1, micro=8, workers=0, **changes):
    """All ranks' steps: for each rank, for each step its micro-batches and the sum of weights."""
    samples, made = train(place, **changes)
    found = []
    for rank in range(world):
        loader = loader_of(samples, made, Seat(rank=rank, world=world, micro=micro), workers)
        found.append(list(loader.steps(epoch, first)))
        loader.close()
    return found


def global_keys(ranks):
    """The keys and weights of each global batch, in its order."""
    return [
        [
            (key, weight)
            for turn in zip(*(step.share for step in together), strict=True)
            for batch in turn
            for key, weight in zip(batch.keys, batch.weight.tolist(), strict=True)
        ]
        for together in zip(*ranks, strict=True)
    ]


def equal(one, other):
    assert one.keys == other.keys
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.target, other.target)
    assert list(one.streams) == list(other.streams)
    for name, stream in one.streams.items():
        assert torch.equal(stream.values, other.streams[name].values)
        assert torch.equal(stream.mask, other.streams[name].mask)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_global_batches_are_equal_for_any_number_of_ranks_workers_and_micro_size(
    place, world, workers
):
    samples, _ = train(place)
    wanted = [list(batch) for batch in global_batches(samples.order(3), GLOBAL)]
    sizes = [micro for micro in (1, 2, 4, 8) if GLOBAL % (world * micro) == 0]
    for micro in sizes if not workers else sizes[-1:]:
        ranks = taken(place, 3, world=world, micro=micro, workers=workers)
        assert {len(steps) for steps in ranks} == {len(wanted)}
        assert global_keys(ranks) == wanted
        for step, batch in zip(ranks[-1], wanted, strict=True):
            assert step.weights == sum(weight for _, weight in batch)


def test_workers_change_no_bit_and_draw_nothing_from_the_generator_of_dropout(place):
    torch.manual_seed(5)
    (inline,) = taken(place, 1, micro=4)
    (ahead,) = taken(place, 1, micro=4, workers=2)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.rand(1) == drawn
    for one, other in zip(inline, ahead, strict=True):
        for mine, yours in zip(one.share, other.share, strict=True):
            equal(mine, yours)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", ["indexed", "streaming"])
def test_an_epoch_goes_on_at_every_step_as_if_it_had_not_been_left(place, loader, workers):
    samples, made = train(place, loader=loader)
    at = loader_of(samples, made, Seat(micro=4), workers)
    whole = list(at.steps(2))
    for first in range(len(at) + 1):
        rest = list(at.steps(2, first))
        assert len(rest) == len(at) - first
        for one, other in zip(whole[first:], rest, strict=True):
            assert one.weights == other.weights
            for mine, yours in zip(one.share, other.share, strict=True):
                equal(mine, yours)
    at.close()


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_streaming_takes_every_clip_once_and_every_rank_has_as_many_steps(place, world, workers):
    samples, _ = train(place)
    for epoch in (0, 1):
        ranks = taken(place, epoch, world=world, micro=2, workers=workers, loader="streaming")
        batches = global_keys(ranks)
        assert len(batches) == len(global_batches(samples.keys, GLOBAL))
        real = [key for batch in batches for key, weight in batch if weight]
        assert sorted(real) == samples.keys
        for steps in ranks:
            for step, batch in zip(steps, batches, strict=True):
                assert step.weights == sum(weight for _, weight in batch)
    assert real != samples.keys


def test_streamed_samples_are_the_indexed_ones(place):
    samples, _ = train(place)
    (steps,) = taken(place, 0, micro=1, loader="streaming")
    for step in steps:
        for batch in step.share:
            if batch.weight.item():
                found = samples.batch([(batch.keys[0], 1.0)])
                for name, stream in batch.streams.items():
                    assert torch.allclose(
                        stream.values, found.streams[name].values, rtol=0, atol=1e-6
                    )
                    assert torch.equal(stream.mask, found.streams[name].mask)


def flipped(place, root, member):
    """A copy of the dataset with one byte of a clip's audio changed; the key of the clip."""
    for name in LocalStore(place[0]).sizes():
        LocalStore(root).replace(name, (place[0] / name).read_bytes())
    samples, _ = train((root, place[1]))
    column = samples.columns["audio"]
    key = samples.order(0)[GLOBAL + 2]
    record = next(each for each in column.records if each.shard == column.shards[key])
    tar = root / column.folder / record.tar.file
    content = bytearray(tar.read_bytes())
    content[column.rows[key].members[member].offset + 130] ^= 4
    tar.write_bytes(content)
    return samples, key, record.tar.file


@pytest.mark.parametrize("loader", ["indexed", "streaming"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_flipped_byte_is_named_with_shard_and_clip_before_the_step_that_needs_it(
    place, tmp_path, workers, loader
):
    samples, key, tar = flipped(place, tmp_path, "times")
    at = loader_of(
        samples, recipe(SCORE, global_batch=GLOBAL, loader=loader), Seat(micro=8), workers
    )
    seen = []
    with pytest.raises(CorruptShardError, match=rf"^.*{tar}: times of clip {key} are damaged"):
        seen.extend(each for step in at.steps(0) for batch in step.share for each in batch.keys)
    assert key not in seen
    if loader == "indexed":
        assert len(seen) == GLOBAL
    at.close()


def test_workers_end_with_the_loader_and_with_an_epoch_that_is_left(place):
    samples, made = train(place)
    at = loader_of(samples, made, Seat(micro=8), 2)
    next(at.steps(0))
    children = multiprocessing.active_children()
    assert len(children) == 2
    first, again = next(at.steps(1)), next(at.steps(1))
    equal(first.share[0], again.share[0])
    assert multiprocessing.active_children() == children
    at.close()
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert multiprocessing.active_children() == []


def test_buckets_leave_less_padding_and_lose_no_clip(place):
    plain, bucketed = train(place)[0], train(place, bucketed=True)[0]
    assert sorted(bucketed.order(0)) == plain.keys
    assert bucketed.order(0) != bucketed.order(1)

    def padding(samples):
        batches = global_batches(samples.order(0), GLOBAL)
        masks = [samples.batch(batch).streams["text"].mask for batch in batches]
        return sum(float((~mask).sum()) for mask in masks)

    assert padding(bucketed) < padding(plain) / 2


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=20).filter(any),
    size=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    window=st.integers(1, 6),
)
def test_bucketed_orders_have_every_key_once_whatever_the_order_of_the_input(
    sizes, size, seed, window
):
    shards = {shard: [f"{shard}-{i}" for i in range(n)] for shard, n in enumerate(sizes)}
    lengths = {key: len(key) * 7 % 5 for keys in shards.values() for key in keys}
    backwards = {shard: shards[shard][::-1] for shard in reversed(shards)}
    made = [
        order(given_, seed=seed, epoch=1, window=window, buckets=Buckets(lengths, size))
        for given_ in (shards, backwards)
    ]
    assert made[0] == made[1]
    assert sorted(made[0]) == sorted(lengths)


def test_buckets_are_of_the_global_order_alone():
    with pytest.raises(ValueError, match="take loader: indexed, or bucketed: false"):
        check(recipe(SCORE, bucketed=True, loader="streaming"))
    with pytest.raises(ValueError, match="loader"):
        check(recipe(SCORE, loader="both"))


def test_the_normaliser_is_measured_once_and_a_damaged_file_of_it_anew(place, tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return Normaliser.identity({"text": 3})

    first = measured_once(tmp_path / "run", measure)
    assert np.array_equal(measured_once(tmp_path / "run", measure).std["text"], first.std["text"])
    assert len(calls) == 1
    (file,) = (tmp_path / "run").glob("normaliser-*")
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    measured_once(tmp_path / "run", measure)
    assert len(calls) == 2
    made = recipe(SCORE, global_batch=GLOBAL)
    kept = [load(*place, made, kept=tmp_path / "kept").normaliser for _ in range(2)]
    plain = load(*place, made).normaliser
    for name in WIDTHS:
        assert np.array_equal(kept[1].mean[name], plain.mean[name])
        assert np.array_equal(kept[1].std[name], plain.std[name])


def test_samples_that_are_kept_in_memory_share_their_room(place):
    samples, _ = train(place)
    (least,) = {replace(samples.sample(key)).key for key in samples.keys[:1]}
    samples.keep_less(1 << 40)
    assert samples.sample(least) is samples.sample(least)
    other = samples.keys[1]
    assert samples.sample(other) is not samples.sample(other)
