"""A scorecard survives JSON, and those that were written by earlier versions are read."""

import json
import math

from tracking.parts import Bin, Calibration, Latency, Part, Subgroup
from tracking.scorecard import Scorecard, interval

NAN = math.nan

CARD = Scorecard(
    evaluation_set="e" * 64,
    count=3,
    metrics={"uar": 0.5, "f1_macro": math.nan},
    better={"uar": "higher", "f1_macro": "higher"},
    replicates={"uar": tuple(i / 100 for i in range(100)), "f1_macro": (math.nan,) * 100},
    leaks=("speaker a",),
    parity=True,
    undefined={"f1_macro": "nobody knows"},
    by_class={"sad": {"support": 2.0, "recall": math.nan}, "glad": {"support": 1.0, "recall": 1.0}},
    confusion=[[0, 2], [0, 1]],
    as_found=(
        Part(streams=(), count=2, metrics={"uar": 0.5}, intervals={"uar": (0.1, 0.9)}),
        Part(streams=("audio",), count=1, metrics={"uar": 1.0}, intervals={"uar": (NAN, NAN)}),
    ),
    as_asked=(Part(streams=("text",), count=3, metrics={"uar": 0.0}, intervals={"uar": (0, 0)}),),
    by_group=(
        Subgroup(
            kind="group",
            name="young",
            count=2,
            metrics={"uar": NAN},
            intervals={"uar": (NAN, NAN)},
            clips="a" * 64,
        ),
    ),
    calibration=Calibration(
        kind="classes",
        count=2,
        bins=(Bin(low=0.8, high=0.9, count=2, predicted=0.85, observed=0.5, error=0.35),),
        numbers={"ece": 0.35, "slope": NAN},
    ),
    latency=Latency(median_s=0.002, p95_s=math.inf, clips=50, machine="a machine"),
    duplicates=("a looks like b",),
    reproducible=True,
)


def plain(card):
    return json.loads(json.dumps(card.to_json(), allow_nan=False))


def test_a_scorecard_survives_strict_json():
    back = Scorecard.from_json(plain(CARD))
    assert plain(back) == plain(CARD)
    assert math.isnan(back.metrics["f1_macro"])
    assert math.isnan(back.by_class["sad"]["recall"])
    assert (back.undefined, back.confusion) == (CARD.undefined, CARD.confusion)
    assert back.as_asked == CARD.as_asked
    assert [part.streams for part in back.as_found] == [(), ("audio",)]
    assert (back.duplicates, back.reproducible) == (("a looks like b",), True)
    assert (back.latency, back.calibration.bins) == (CARD.latency, CARD.calibration.bins)
    assert math.isnan(back.by_group[0].metrics["uar"])
    assert math.isnan(back.as_found[1].intervals["uar"][0])


def test_every_metric_has_its_interval_beside_it():
    assert CARD.intervals["uar"] == interval(CARD.replicates["uar"]) == (0.01, 0.98)
    assert plain(CARD)["intervals"] == {"uar": [0.01, 0.98], "f1_macro": [None, None]}


def test_a_scorecard_of_an_earlier_version_is_read():
    # What there was before intervals, reasons, classes and parts.
    earlier = ("evaluation_set", "count", "metrics", "better", "replicates", "leaks", "parity")
    old = {name: value for name, value in plain(CARD).items() if name in earlier}
    back = Scorecard.from_json(old)
    assert back.metrics["uar"] == 0.5
    assert back.intervals["uar"] == (0.01, 0.98)
    assert (back.undefined, back.by_class, list(back.confusion)) == ({}, {}, [])
    assert (back.as_found, back.as_asked, back.by_group) == ((), (), ())
    assert (back.calibration, back.latency) == (None, None)
    assert (back.duplicates, back.reproducible) == (None, None)
