"""Seconds by stage: added up exactly, and spread within 5 %."""

import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurizers.stages import Stages

SECONDS = st.floats(min_value=1e-5, max_value=1e5)


def stages_of(spans, name="decode"):
    made = Stages()
    for seconds in spans:
        made.add(name, seconds, seconds / 2)
    return made


@given(st.lists(SECONDS, min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_within_five_percent_of_the_sorted_items(spans, share):
    true = sorted(spans)[max(1, math.ceil(share * len(spans))) - 1]
    assert stages_of(spans).quantile("decode", share) == pytest.approx(true, rel=0.05)


@given(st.lists(SECONDS, max_size=50), st.lists(SECONDS, max_size=50))
def test_parts_that_are_merged_equal_the_whole(one, other):
    merged, whole = stages_of(one), stages_of([*one, *other])
    merged.merge(stages_of(other))
    left, right = merged.to_json(), whole.to_json()
    assert list(left) == list(right)
    for name in left:
        assert (left[name]["items"], left[name]["spread"]) == (
            right[name]["items"],
            right[name]["spread"],
        )
        assert left[name]["seconds"] == pytest.approx(right[name]["seconds"], abs=1e-5)


def test_merging_leaves_the_other_as_it_was():
    one, other = stages_of([1.0]), stages_of([2.0])
    one.merge(other)
    one.add("decode", 3.0)
    assert (one.items("decode"), other.items("decode")) == (3, 1)
    assert other.quantile("decode", 1.0) == pytest.approx(2.0, rel=0.05)


def test_stages_survive_json_and_pickle():
    made = stages_of([0.25, 0.26, 3.0])
    made.add("write", 0.5)
    for copy in (
        Stages.from_json(json.loads(json.dumps(made.to_json()))),
        pickle.loads(pickle.dumps(made)),  # noqa: S301 - of our own making
    ):
        assert copy.to_json() == made.to_json()
        assert copy.names == ["decode", "write"]
        assert copy.quantile("decode", 0.5) == made.quantile("decode", 0.5)


def test_json_says_items_seconds_and_their_spread():
    assert stages_of([0.27, 0.27, 1.05]).to_json() == {
        "decode": {"items": 3, "seconds": 1.59, "cpu_seconds": 0.795, "spread": {"-14": 2, "0": 1}}
    }


def test_a_stage_without_items_is_empty_and_not_an_error():
    made = Stages()
    assert (made.names, made.items("fetch"), made.seconds("fetch")) == ([], 0, 0.0)
    assert made.cpu_seconds("fetch") == 0.0
    assert math.isnan(made.quantile("fetch", 0.5))
    assert made.to_json() == {}


def test_an_item_that_took_no_time_counts():
    made = stages_of([0.0, 0.0, 5.0])
    assert made.items("decode") == 3
    assert made.quantile("decode", 0.5) < 1e-5


def test_a_share_above_one_is_refused():
    with pytest.raises(ValueError, match=r"share is 1\.5; wanted 0 to 1"):
        stages_of([1.0]).quantile("decode", 1.5)


def test_a_histogram_of_many_items_stays_small():
    made = stages_of([0.001 * (1 + i % 1000) for i in range(20_000)])
    assert len(json.dumps(made.to_json())) < 2000
