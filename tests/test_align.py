"""Pooling in time, against a loop that says what is meant."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers.align import cells, pool, word_times
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


def slow_pool(feature, targets):
    """One target, one step at a time."""
    rows, valid = [], []
    for low, high in targets:
        parts = []
        for value, (begin, end) in zip(feature.values, feature.times, strict=True):
            overlap = min(high, end) - max(low, begin)
            if overlap > 0:
                parts.append((overlap, value.astype(np.float64)))
        if not parts:
            parts = [
                (1.0, value.astype(np.float64))
                for value, (begin, end) in zip(feature.values, feature.times, strict=True)
                if touches(low, high, begin, end)
            ]
        total = sum(weight for weight, _ in parts)
        valid.append(bool(parts))
        rows.append(
            sum(weight * value for weight, value in parts) / total
            if parts
            else np.zeros(feature.values.shape[1])
        )
    return np.array(rows, dtype=np.float32), np.array(valid)


def touches(low, high, begin, end):
    """Whether one of them, having no length, lies in the other (which ends before its end)."""
    if low == high and begin == end:
        return low == begin
    if low == high:
        return begin <= low < end
    return begin == end and low <= begin < high


@settings(deadline=None)  # how long it takes is the affair of whoever else uses the machine
@given(SPANS, SPANS, st.integers(0, 5))
def test_pooling_equals_the_slow_loop(times, targets, seed):
    feature = steps(times, seed)
    values, valid = pool(feature, targets)
    expected, expected_valid = slow_pool(feature, targets)
    assert valid.tolist() == expected_valid.tolist()
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert values.dtype == np.float32
    assert valid.dtype == np.bool_


FREE = st.floats(0, 1e4, allow_subnormal=True)


@settings(deadline=None)  # how long it takes is the affair of whoever else uses the machine
@given(
    st.lists(st.tuples(FREE, FREE).map(sorted), min_size=1, max_size=6),
    st.lists(st.tuples(FREE, FREE).map(sorted), min_size=1, max_size=6),
)
def test_pooling_is_never_nan_and_never_leaves_the_range_of_its_steps(times, targets):
    feature = steps(times)
    values, valid = pool(feature, np.array(targets, dtype=np.float64))
    assert np.isfinite(values).all()
    assert (values[~valid] == 0).all()
    low, high = feature.values.min(axis=0), feature.values.max(axis=0)
    assert (values[valid] >= low - 1e-5).all()
    assert (values[valid] <= high + 1e-5).all()


def test_a_word_takes_its_steps_by_their_share():
    values, valid = pool(regular(4), np.array([[0.25, 1.0]]))
    assert values.tolist() == [[pytest.approx((0.25 * 0 + 0.5 * 1) / 0.75)]]
    assert valid.tolist() == [True]


def test_a_word_shorter_than_a_step_has_that_steps_value():
    values, valid = pool(regular(4), np.array([[0.6, 0.61]]))
    assert (values.tolist(), valid.tolist()) == ([[1.0]], [True])


def test_a_word_without_length_has_the_value_of_the_step_it_lies_in():
    values, valid = pool(regular(4), np.array([[0.5, 0.5], [0.7, 0.7], [0.0, 0.0]]))
    assert (values[:, 0].tolist(), valid.all()) == ([1.0, 1.0, 0.0], True)


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


def test_a_long_stream_is_pooled_in_little_memory_and_to_the_same_values():
    import tracemalloc

    count, wanted = 300_000, 101
    times = np.arange(count + 1) / 100
    values = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    feature = Feature(values, np.stack([times[:-1], times[1:]], axis=1))
    ends = np.arange(1, wanted + 1) * 2900
    targets = np.stack([times[ends - 37], times[ends]], axis=1)
    tracemalloc.start()
    found, valid = pool(feature, targets)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert valid.all()
    assert peak < 1.3 * wanted * count * 8  # one dense array, of the five that would be needed
    expected = [values[end - 37 : end].astype(np.float64).mean(axis=0) for end in ends]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    again = [pool(feature, targets[first : first + 8])[0] for first in range(0, wanted, 8)]
    assert found.tobytes() == np.concatenate(again).tobytes()


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


def clip(words):
    return Clip(key="a", id="a", media="a.mp4", media_digest="", words=words)


def test_the_times_of_words_are_an_array_also_without_words():
    words = (Word(text="a", start=0.0, end=0.5), Word(text="b", start=0.5, end=1.0))
    assert word_times(clip(words)).tolist() == [[0.0, 0.5], [0.5, 1.0]]
    assert word_times(clip(None)).shape == (0, 2)
    assert word_times(clip(())).shape == (0, 2)
