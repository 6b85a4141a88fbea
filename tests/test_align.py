"""Pooling in time, against a loop that says what is meant."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers import align
from featurizers.align import HOWS, Pooled, cells, gaps, parts, pool, word_times
from featurizers.clip import Clip, Word
from featurizers.spec import Feature

GRID = st.integers(0, 24).map(lambda tick: tick / 8)  # exact in binary: no luck with edges
SPAN = st.tuples(GRID, GRID).map(sorted)
SPANS = st.lists(SPAN, min_size=1, max_size=8).map(lambda spans: np.array(spans, dtype=np.float64))


def steps(times, seed=0, width=3):
    values = np.random.default_rng(seed).normal(size=(len(times), width)).astype(np.float32)
    return Feature(values, np.asarray(times, dtype=np.float64).reshape(-1, 2))


def regular(count, step=0.5, width=1):
    edges = np.arange(count + 1) * step
    values = np.repeat(np.arange(count, dtype=np.float32)[:, np.newaxis], width, axis=1)
    return Feature(values, np.stack([edges[:-1], edges[1:]], axis=1))


def slow_pool(feature, targets, how="mean"):
    """One target, one step at a time."""
    found = [slow_value(feature, low, high, how) for low, high in targets]
    nothing = np.zeros(feature.values.shape[1])
    rows = [nothing if value is None else value for value in found]
    return np.array(rows, dtype=np.float32), np.array([value is not None for value in found])


def slow_value(feature, low, high, how):
    steps = list(zip(feature.times.tolist(), feature.values.astype(np.float64), strict=True))
    if how == "mean" and (value := slow_line(steps, low, high)) is not None:
        return value
    steps.sort(key=lambda step: step[0][0])
    touched = [(min(high, end) - max(low, begin), value) for (begin, end), value in steps]
    touched = [(overlap, value) for overlap, value in touched if overlap > 0] or [
        (1.0, value) for (begin, end), value in steps if touches(low, high, begin, end)
    ]
    values = [value for _, value in touched]
    if not values:
        return None
    match how:
        case "first":
            return values[0]
        case "last":
            return values[-1]
        case "max":
            return np.max(values, axis=0)
        case _:
            return sum(w * value for w, value in touched) / sum(w for w, _ in touched)


def slow_line(steps, low, high):
    """The value at the target's middle, where it is shorter than the hop that it lies in."""
    middle = (low + high) / 2
    by_middle = sorted(steps, key=lambda step: sum(step[0]))
    for ((begin, end), value), ((begin_2, end_2), value_2) in itertools.pairwise(by_middle):
        here, there = (begin + end) / 2, (begin_2 + end_2) / 2
        shorter, longer = sorted([end - begin, end_2 - begin_2])
        joined = begin_2 <= end and longer <= 2 * shorter
        if here <= middle < there and high - low < there - here and joined:
            return value + (value_2 - value) * (middle - here) / (there - here)
    return None


def touches(low, high, begin, end):
    """Whether one of them, having no length, lies in the other (which ends before its end)."""
    if low == high and begin == end:
        return low == begin
    if low == high:
        return begin <= low < end
    return begin == end and low <= begin < high


@settings(deadline=None)  # how long it takes is the affair of whoever else uses the machine
@given(SPANS, SPANS, st.integers(0, 5), st.sampled_from(HOWS))
def test_pooling_equals_the_slow_loop(times, targets, seed, how):
    feature = steps(times, seed)
    values, valid = pool(feature, targets, how)
    expected, expected_valid = slow_pool(feature, targets, how)
    assert valid.tolist() == expected_valid.tolist()
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert values.dtype == np.float32
    assert valid.dtype == np.bool_


FREE = st.floats(0, 1e4, allow_subnormal=True)


@settings(deadline=None)  # how long it takes is the affair of whoever else uses the machine
@given(
    st.lists(st.tuples(FREE, FREE).map(sorted), min_size=1, max_size=6),
    st.lists(st.tuples(FREE, FREE).map(sorted), min_size=1, max_size=6),
    st.sampled_from(HOWS),
)
def test_pooling_is_never_nan_and_never_leaves_the_range_of_its_steps(times, targets, how):
    feature = steps(times)
    values, valid = pool(feature, np.array(targets, dtype=np.float64), how)
    assert np.isfinite(values).all()
    assert (values[~valid] == 0).all()
    low, high = feature.values.min(axis=0), feature.values.max(axis=0)
    assert (values[valid] >= low - 1e-5).all()
    assert (values[valid] <= high + 1e-5).all()


def test_a_word_takes_its_steps_by_their_share():
    values, valid = pool(regular(4), np.array([[0.25, 1.0]]))
    assert values.tolist() == [[pytest.approx((0.25 * 0 + 0.5 * 1) / 0.75)]]
    assert valid.tolist() == [True]


@pytest.mark.parametrize("how", [how for how in HOWS if how != "mean"])
def test_all_but_the_mean_give_a_word_shorter_than_a_step_that_steps_value(how):
    words = np.array([[0.6, 0.61], [0.5, 0.5], [0.7, 0.7], [0.0, 0.0]])
    values, valid = pool(regular(4), words, how)
    assert (values[:, 0].tolist(), valid.all()) == ([1.0, 1.0, 1.0, 0.0], True)


def test_short_words_in_one_step_differ_as_smoothly_as_the_stream_does():
    middles = np.linspace(0.25, 1.75, 31)
    words = middles[:, np.newaxis] + np.array([-0.02, 0.02])
    values, valid = pool(regular(4), words)
    np.testing.assert_allclose(values[:, 0], (middles - 0.25) / 0.5, atol=1e-6)
    assert valid.all()


@pytest.mark.parametrize("middle", [0.25, 0.4, 0.5, 0.75, 1.1, 1.6])
def test_nothing_jumps_when_a_word_grows_beyond_a_hop(middle):
    words = middle + np.array([[-0.2499999, 0.2499999], [-0.25, 0.25], [-0.2500001, 0.2500001]])
    feature = steps(regular(4).times, seed=3, width=1)
    values, _ = pool(feature, words)
    assert np.ptp(values) < 1e-5


def test_pixels_are_never_blended_between_two_pictures():
    pictures = Feature(np.array([[0], [200]], np.uint8), regular(2).times)
    assert pool(pictures, np.array([[0.4, 0.45], [0.5, 0.5]]))[0].tolist() == [[0.0], [200.0]]


def test_words_pooled_to_themselves_keep_their_values_also_without_length():
    times = np.array([[0.0, 0.5], [0.5, 0.5], [0.5, 0.9]])
    feature = steps(times)
    values, valid = pool(feature, times[[0, 2]])
    assert valid.all()
    np.testing.assert_array_equal(values, feature.values[[0, 2]])
    only = Feature(feature.values[1:2], times[1:2])
    np.testing.assert_array_equal(pool(only, times[1:2])[0], only.values)


@pytest.mark.parametrize("target", [[2.0, 3.0], [-1.0, 0.0], [2.0, 2.0], [5.0, 5.0]])
def test_outside_of_the_stream_is_zero_and_not_valid(target):
    values, valid = pool(regular(4), np.array([target]))
    assert (values.tolist(), valid.tolist()) == ([[0.0]], [False])


def test_no_targets_and_no_steps_are_no_trouble():
    values, valid = pool(regular(4, width=3), np.zeros((0, 2)))
    assert (values.shape, valid.shape) == ((0, 3), (0,))
    empty = Feature(np.zeros((0, 3), np.float32), np.zeros((0, 2)))
    values, valid = pool(empty, np.array([[0.0, 1.0]]))
    assert (values.tolist(), valid.tolist()) == ([[0.0, 0.0, 0.0]], [False])


@settings(deadline=None)  # how long it takes is the affair of whoever else uses the machine
@given(SPANS, SPANS, st.sampled_from(HOWS), st.integers(1, 9))
def test_a_target_has_the_same_bits_whatever_is_pooled_beside_it(times, targets, how, most):
    feature, held = steps(times), align.HELD
    values, valid = pool(feature, targets, how)
    alone = [pool(feature, target[np.newaxis], how) for target in targets]
    assert values.tobytes() == b"".join(each.tobytes() for each, _ in alone)
    assert valid.tolist() == [there[0] for _, there in alone]
    try:  # held in pieces, the sum's last bits alone may differ
        align.HELD = most
        pieces, there = pool(feature, targets, how)
    finally:
        align.HELD = held
    assert valid.tolist() == there.tolist()
    np.testing.assert_allclose(values, pieces, atol=1e-6)


CLIPS = st.lists(st.tuples(SPANS, SPANS, st.booleans(), st.booleans()), min_size=1, max_size=4)


@settings(deadline=None)  # how long it takes is the affair of whoever else uses the machine
@given(CLIPS, st.sampled_from(HOWS), st.sampled_from([0, 40, 1 << 17]))
def test_clips_are_pooled_together_as_each_target_alone(clips, how, room):
    targets = [times.copy() if same else targets for times, targets, same, _ in clips]
    together, most = Pooled(targets), align.TOGETHER
    align.TOGETHER = room  # with 0 each clip by itself
    try:
        for seed, width, later in ((0, 3, 0), (1, 5, 0), (0, 3, 0.25), (0, 3, 0)):
            features = [
                steps(times + later, seed + at, width) if there else None
                for at, (times, _, _, there) in enumerate(clips)
            ]
            left = [at for at, feature in enumerate(features) if feature is not None]
            for some, values, valid in together.stream(features, how):
                numbers, left = left[: some.stop - some.start], left[some.stop - some.start :]
                assert numbers == list(range(len(clips)))[some]
                alone = [
                    pool(features[at], target[np.newaxis], how)
                    for at in numbers
                    for target in targets[at]
                ]
                assert values.tobytes() == b"".join(each.tobytes() for each, _ in alone)
                assert valid.tolist() == [bool(there[0]) for _, there in alone]
            assert not left
    finally:
        align.TOGETHER = most


@pytest.mark.parametrize("how", HOWS)
def test_long_and_short_targets_beside_each_other_have_the_bits_of_each_alone(how):
    """Targets of many steps are summed by another rule than those of few."""
    feature = steps(cells(3.0, 0.01), width=3)
    targets = np.array([[0.0, 2.5], [0.1, 0.15], [0.2, 0.52], [0.2, 0.53], [2.0, 3.0], [0.3, 0.3]])
    ((_, values, valid),) = Pooled([targets]).stream([feature], how)
    alone = [pool(feature, target[np.newaxis], how) for target in targets]
    assert values.tobytes() == b"".join(each.tobytes() for each, _ in alone)
    assert valid.all()
    if how == "overlap":
        wanted = [feature.values[:250].mean(axis=0), feature.values[200:].mean(axis=0)]
        np.testing.assert_allclose(values[[0, 4]], wanted, atol=1e-6)


@pytest.mark.parametrize("how", HOWS)
def test_targets_of_equally_many_steps_have_the_bits_that_they_have_beside_others(how):
    """They are taken as views of the values; the order of a sum shows where values cancel."""
    values = np.tile(np.array([[1e17], [1.0], [-1e17], [3.0]], np.float32), (4, 3))
    feature = Feature(values, cells(4.0, 0.25))
    targets = cells(4.0, 1.0)
    alone, _ = pool(feature, targets, how)
    beside, _ = pool(feature, np.concatenate([targets, [[0.0, 0.75]]]), how)
    assert alone.tobytes() == beside[:4].tobytes()


@given(st.lists(GRID, min_size=3, max_size=3, unique=True).map(sorted), st.integers(0, 5))
def test_the_parts_of_a_word_average_to_the_word(cuts, seed):
    values = np.random.default_rng(seed).normal(size=(12, 2)).astype(np.float32)
    feature = Feature(values, cells(3.0, 0.25))
    low, middle, high = cuts
    words = np.array([[low, middle], [middle, high], [low, high]])
    (one, other, whole), _ = pool(feature, words, "overlap")
    together = (one * (middle - low) + other * (high - middle)) / (high - low)
    np.testing.assert_allclose(together, whole, atol=1e-6)


@pytest.mark.parametrize("how", HOWS)
def test_times_that_differ_by_rounding_make_neighbours_and_no_overlap(how):
    feature = Feature(regular(30).values, cells(3.0, 0.1))  # its third step begins after 0.3
    assert feature.times[3, 0] > 0.3
    values, valid = pool(feature, np.array([[0.3, 0.4], [2.9999999999, 4.0], [3.0, 4.0]]), how)
    assert values[0].tolist() == [3.0]
    assert valid.tolist() == [True, False, False]


def test_the_largest_the_first_and_the_last_are_those_of_the_steps_that_a_word_overlaps():
    feature = Feature(np.array([[1.0], [9.0], [2.0], [5.0]], np.float32), regular(4).times)
    word = np.array([[0.4, 1.2]])
    assert [pool(feature, word, how)[0].item() for how in ("max", "first", "last")] == [9, 1, 2]
    turned = Feature(feature.values[::-1], feature.times[::-1])
    assert [pool(turned, word, how)[0].item() for how in ("max", "first", "last")] == [9, 1, 2]


def test_a_word_shorter_than_a_hop_lies_on_the_line_between_two_steps_but_over_no_gap():
    stream = regular(3)  # middles 0.25, 0.75, 1.25
    words = np.array([[0.4, 0.5], [0.5, 0.5], [0.0, 0.1], [1.4, 1.5], [0.0, 0.5]])
    values, valid = pool(stream, words)
    assert values[:, 0].tolist() == [pytest.approx(0.4), 0.5, 0.0, 2.0, 0.0]
    assert valid.all()
    torn = Feature(stream.values, stream.times + np.array([[0.0], [0.1], [0.2]]))
    values, valid = pool(torn, np.array([[0.4, 0.5], [0.52, 0.58], [0.6, 0.7]]))
    assert (values[:, 0].tolist(), valid.tolist()) == ([0.0, 0.0, 1.0], [True, False, True])


def test_no_line_leads_into_a_step_that_lasts_far_longer():
    """A picture that is held for seconds is that picture, and not one half way to it."""
    held = Feature(np.array([[0.0], [1.0], [2.0]]), np.array([[0, 0.2], [0.2, 0.4], [0.4, 4.0]]))
    values, _ = pool(held, np.array([[0.5, 1.0], [1.0, 1.0], [0.2, 0.2]]))
    assert values[:, 0].tolist() == [2.0, 2.0, pytest.approx(0.5)]


@pytest.mark.parametrize("how", HOWS)
def test_two_hours_are_pooled_to_twenty_thousand_words_in_little_memory(how):
    import tracemalloc

    count, width = 720_000, 4
    times = np.arange(count + 1) / 100
    values = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    feature = Feature(values, np.stack([times[:-1], times[1:]], axis=1))
    ends = np.arange(1, 20_001) * 36
    targets = np.stack([times[ends - 7], times[ends]], axis=1)
    tracemalloc.start()
    found, valid = pool(feature, targets, how)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert valid.all()
    assert peak < 128 << 20  # dense weights would take 115 GB
    under = values[ends[:, np.newaxis] + np.arange(-7, 0)].astype(np.float64)
    expected = {"max": under.max(axis=1), "first": under[:, 0], "last": under[:, -1]}
    np.testing.assert_allclose(found, expected.get(how, under.mean(axis=1)), atol=1e-6)


def test_one_target_over_a_long_stream_is_pooled_in_pieces():
    values = np.random.default_rng(0).normal(size=(70_000, 32)).astype(np.float32)
    feature = Feature(values, cells(700.0, 0.01))
    whole, _ = pool(feature, np.array([[0.0, 700.0]]))
    np.testing.assert_allclose(whole[0], values.mean(axis=0, dtype=np.float64), atol=1e-6)
    assert pool(feature, np.array([[0.0, 700.0]]), "max")[0][0].tolist() == values.max(0).tolist()


@settings(deadline=None)  # how long it takes is the affair of whoever else uses the machine
@given(st.floats(0, 100), st.sampled_from([0.1, 0.2, 0.25, 0.5, 1.0, 3.0]))
def test_cells_cover_the_duration_and_no_cell_lies_beyond_it(seconds, cell_s):
    found = cells(seconds, cell_s)
    assert found[0, 0] == 0
    assert found[-1, 1] >= seconds - 1e-6
    assert len(found) == 1 or found[-1, 0] < seconds
    np.testing.assert_allclose(np.diff(found, axis=1), cell_s)
    np.testing.assert_array_equal(found[1:, 0], found[:-1, 1])


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 1), (0.3, 3), (0.31, 4), (1.0, 10)])
def test_rounding_makes_no_cell_too_many(seconds, count):
    assert len(cells(seconds, 0.1)) == count


@settings(deadline=None)  # how long it takes is the affair of whoever else uses the machine
@given(st.floats(0, 1e4), st.integers(1, 300))
def test_parts_are_as_many_as_were_asked_for_and_cover_the_duration(seconds, count):
    found = parts(seconds, count)
    assert (len(found), found[0, 0], found[-1, 1]) == (count, 0.0, seconds)
    np.testing.assert_array_equal(found[1:, 0], found[:-1, 1])
    np.testing.assert_allclose(np.diff(found, axis=1), seconds / count, atol=1e-9)


@settings(deadline=None)  # how long it takes is the affair of whoever else uses the machine
@given(SPANS, GRID)
def test_gaps_and_steps_share_no_time_and_leave_none_out(times, seconds):
    found = gaps(times, seconds)
    assert found[:, 0].tolist() == sorted(found[:, 0].tolist())
    ticks = (np.arange(int(seconds * 8)) + 0.5) / 8  # the middle of each eighth of a second
    silent = [bool(((low < t) & (t < high)).any()) for t in ticks for low, high in [found.T]]
    said = [bool(((begin < t) & (t < end)).any()) for t in ticks for begin, end in [times.T]]
    assert silent == [not each for each in said]
    assert (found >= 0).all()
    assert (found <= seconds).all()


def test_a_stream_without_steps_is_one_gap_and_rounding_is_none():
    assert gaps(np.zeros((0, 2)), 2.0).tolist() == [[0.0, 2.0]]
    assert gaps(cells(3.0, 0.1), 3.0).tolist() == []
    assert gaps(np.array([[1.0, 2.0], [-1.0, 0.5]]), 2.0).tolist() == [[0.5, 1.0]]


def clip(words):
    return Clip(key="a", id="a", media="a.mp4", media_digest="", words=words)


def test_the_times_of_words_are_an_array_also_without_words():
    words = (Word(text="a", start=0.0, end=0.5), Word(text="b", start=0.5, end=1.0))
    assert word_times(clip(words)).tolist() == [[0.0, 0.5], [0.5, 1.0]]
    assert word_times(clip(None)).shape == (0, 2)
    assert word_times(clip(())).shape == (0, 2)
