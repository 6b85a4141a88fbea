"""The tables of `fuseline evaluate`."""

from pipelines.evaluate import tables
from tracking.parts import Bin, Calibration, Latency, Part, Subgroup
from tracking.scorecard import Scorecard

PART = Part(streams=(), count=2, metrics={"uar": 0.5}, intervals={"uar": (0.25, 0.75)})


def card(**more):
    numbers = {"count": 3, "metrics": {"uar": 0.5}, "better": {"uar": "higher"}}
    return Scorecard(evaluation_set="e", **numbers, **more)


def test_classes_and_their_confusion_are_told_by_name():
    each = {name: {"support": 1.0, "recall": 0.5} for name in ("glad", "sad")}
    made = dict(tables(card(by_class=each, confusion=[[3, 1], [0, 2]])))
    assert made["by class"][1] == {"class": "sad", "support": 1.0, "recall": 0.5}
    assert made["confusion"] == [
        {"truth": "glad", "said glad": 3, "said sad": 1},
        {"truth": "sad", "said glad": 0, "said sad": 2},
    ]


def test_the_confusion_of_several_labels_is_one_row_for_each():
    made = dict(tables(card(by_class={"loud": {"support": 3.0}}, confusion=[[[5, 1], [2, 4]]])))
    assert made["confusion"] == [
        {
            "label": "loud",
            "has it, said": 4,
            "has it, not said": 2,
            "not, said": 1,
            "not, not said": 5,
        }
    ]


def test_patterns_of_missing_streams_are_told_where_there_are_several():
    gone = Part(streams=("a", "b"), count=1, metrics={"uar": 1.0}, intervals=PART.intervals)
    draws = {"uar": (0.125, 0.875)}
    made = dict(tables(card(as_found=(PART, gone), as_asked=(gone,), replicates=draws)))
    assert made["clips by the streams that they lack"] == [
        {"missing": "clips", "nothing": "2", "a, b": "1"},
        {"missing": "uar", "nothing": "0.500 (0.250 to 0.750)", "a, b": "1.000 (0.250 to 0.750)"},
    ]
    assert made["all clips, with streams taken away"] == [
        {"missing": "clips", "nothing": "3", "a, b": "1"},
        {"missing": "uar", "nothing": "0.500 (0.125 to 0.875)", "a, b": "1.000 (0.250 to 0.750)"},
    ]
    assert dict(tables(card(as_found=(PART,)))) == {}


def test_groups_calibration_and_latency_are_told_where_they_are_known():
    groups = [
        Subgroup(kind=kind, name=name, count=2, metrics={"uar": 0.5}, intervals=PART.intervals)
        for kind, name in (("group", "young"), ("speaker", "anna"))
    ]
    bins = (Bin(low=0.8, high=0.9, count=2, predicted=0.85, observed=0.5, error=0.35),)
    known = Calibration(kind="classes", count=2, bins=bins, numbers={"ece": 0.35})
    took = Latency(median_s=0.25, p95_s=0.5, clips=3, machine="a machine")
    made = dict(tables(card(by_group=tuple(groups), calibration=known, latency=took)))
    assert made["by group of speakers"][1] == {
        "speakers": "anna",
        "clips": 2,
        "uar": "0.500 (0.250 to 0.750)",
    }
    assert made["calibration"] == [{"ece": 0.35}]
    (row,) = made["calibration by what was said"]
    assert (row["from"], row["mean probability"], row["share right"]) == (0.8, 0.85, 0.5)
    (row,) = made["seconds of the model alone for one clip"]
    assert row == {"median": 0.25, "95th percentile": 0.5, "clips": 3, "machine": "a machine"}
    numbers = Calibration(kind="regression", count=2, bins=bins, numbers={"bias": 0.5})
    (row,) = dict(tables(card(calibration=numbers)))["calibration by what was said"]
    assert (row["mean prediction"], row["mean absolute error"]) == (0.85, 0.35)
