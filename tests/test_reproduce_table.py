"""The table of a published experiment, to the letter; and what is told of the published figures."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.experiment import InputError, check_model, parse
from pipelines.reproduce.outcome import Measured, Outcome, markdown, summed, to_json, value_of
from pipelines.reproduce.protocol import Metric, Model, Protocol, Published, wanted
from pipelines.reproduce.protocols import PROTOCOLS, RAVDESS, find
from tracking.scorecard import Scorecard
from training.recipe import Task

ACC = Metric(title="Acc-2 non0", name="acc2_non0")
MAE = Metric(title="MAE", name="mae", percent=False)
SMALL = Protocol(
    name="small",
    corpus="a corpus (A. Author, 2020)",
    split="2 folds of speakers",
    label="sentiment",
    task="regression",
    metrics=(ACC, MAE),
    features={},
    seeds=2,
    folds=2,
    best_on_test=True,
    notes=("non0 leaves zeros out.",),
    models=(
        Model(
            recipe="mult_mosi",
            title="MulT",
            streams=("text",),
            published=(
                Published(
                    what="MulT",
                    values={"Acc-2 non0": 83.0, "MAE": 0.871},
                    source="B. Author, Table 1",
                    chosen_on="valid",
                ),
                Published(
                    what="MulT by others",
                    values={"MAE": 0.9},
                    source="C. Author, Table 2",
                    chosen_on="test",
                    note="text is BERT",
                ),
            ),
        ),
        Model(recipe="tfn", title="TFN", streams=("text",)),
    ),
)


def run(seed, fold, acc, mae, chosen_on="valid"):
    return Measured(
        recipe="mult_mosi",
        chosen_on=chosen_on,
        seed=seed,
        fold=fold,
        run_id=f"run{seed}{fold[0]}",
        digest=f"mult_mosi-{seed}{fold[0]}",
        best_epoch=3,
        epochs=9,
        clips=10,
        evaluation_set=f"set{fold[0]}",
        values={"Acc-2 non0": acc, "MAE": mae},
        made_by={"commit": "abc", "hardware": "a machine" if seed == 0 else "another"},
    )


OUTCOME = Outcome(
    protocol=SMALL,
    changes=("train.epochs=9",),
    clips={"fold 1": 10, "fold 2": 10},
    data=("2 clips are missing",),
    runs=(
        run(0, "1/2", 0.8, 0.9),
        run(0, "2/2", 0.6, 1.1),
        run(1, "1/2", 0.9, 0.8),
        run(1, "2/2", 0.7, 1.0),
        run(0, "1/2", 0.95, math.nan, "test"),
    ),
)

TABLE = """\
# small: a corpus (A. Author, 2020)

- Split: 2 folds of speakers.
- Clips: fold 1: 10, fold 2: 10.
- Data: 2 clips are missing.
- non0 leaves zeros out.
- **Not the protocol's: train.epochs=9.**

| model |  | Acc-2 non0 | MAE | epoch chosen on |
| --- | --- | --- | --- | --- |
| MulT (`mult_mosi`) | here, 2 seeds x 2 folds | 75.00 ± 7.07 | 0.9500 ± 0.0707 | validation |
|  | here, **best on test**, 1 seed x 1 fold | 95.00 | undefined | **the test clips** |
|  | published, MulT [1] | 83.00 | 0.8710 | validation |
|  | published, MulT by others (text is BERT) [2] | - | 0.9000 | **the test clips** |
| TFN (`tfn`) | here, not run | - | - | - |
|  | published | - | - | - |

Of the metrics all but MAE and Corr are in percent. Behind ± stands the standard deviation over \
seeds (n - 1) of the mean over folds. A dash: no figure with a source that could be checked. Rows \
whose epoch was chosen on the test clips are optimistic, and comparable with such rows alone.

[1] B. Author, Table 1

[2] C. Author, Table 2

## Runs

| model | seed | fold | epoch | clips | Acc-2 non0 | MAE | run | digest |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| `mult_mosi` | 0 | 1/2 | 3 of 9 | 10 | 80.00 | 0.9000 | run01 | `mult_mosi-01` |
| `mult_mosi` | 0 | 2/2 | 3 of 9 | 10 | 60.00 | 1.1000 | run02 | `mult_mosi-02` |
| `mult_mosi` | 1 | 1/2 | 3 of 9 | 10 | 90.00 | 0.8000 | run11 | `mult_mosi-11` |
| `mult_mosi` | 1 | 2/2 | 3 of 9 | 10 | 70.00 | 1.0000 | run12 | `mult_mosi-12` |
| `mult_mosi`, best on test | 0 | 1/2 | 3 of 9 | 10 | 95.00 | undefined | run01 | `mult_mosi-01` |

Made by commit abc, hardware a machine and another
"""


def test_the_table_is_this_one():
    assert markdown(OUTCOME) == TABLE


def test_a_run_whose_metric_is_not_defined_costs_no_table():
    runs = (*OUTCOME.runs[:3], run(1, "2/2", 0.7, math.nan))
    found = summed(MAE, runs)
    assert math.isnan(found.mean)
    assert math.isnan(found.deviation)
    assert math.isnan(found.between_folds)
    told = markdown(replace(OUTCOME, runs=runs))
    assert "| here, 2 seeds x 2 folds | 75.00 ± 7.07 | undefined | validation |" in told
    json.dumps(to_json(replace(OUTCOME, runs=runs)), allow_nan=False)


def test_with_the_protocols_own_settings_and_one_split_it_says_so():
    one = replace(SMALL, folds=0, best_on_test=False, models=SMALL.models[1:])
    told = markdown(replace(OUTCOME, protocol=one, changes=(), runs=()))
    assert "- All settings are the protocol's.\n" in told
    assert "over folds" not in told
    assert "optimistic" not in told


def test_the_plain_data_hold_every_run_and_both_deviations():
    told = json.loads(json.dumps(to_json(OUTCOME), allow_nan=False))
    (valid, test), _ = (model["measured"] for model in told["models"]), None
    assert valid[0]["metrics"]["Acc-2 non0"] == pytest.approx(
        {"mean": 0.75, "deviation": 0.0707107, "between_folds": 0.1414214}
    )
    assert valid[0]["seeds"] == [0, 1]
    assert valid[0]["folds"] == ["1/2", "2/2"]
    assert valid[1]["epoch_chosen_on"] == "test"
    assert valid[1]["metrics"]["MAE"]["mean"] is None
    assert test == []
    assert told["models"][0]["published"][0]["values"] == {"Acc-2 non0": 83.0, "MAE": 0.871}
    assert [each["run_id"] for each in told["runs"]] == [
        "run01",
        "run02",
        "run11",
        "run12",
        "run01",
    ]
    assert told["differs_from_protocol"] == ["train.epochs=9"]


def test_one_seed_has_no_deviation():
    assert summed(MAE, OUTCOME.runs[:1]).deviation is None
    assert summed(MAE, OUTCOME.runs[:1]).between_folds is None


def test_a_question_of_one_label_is_looked_up_by_that_label():
    card = Scorecard(
        evaluation_set="s",
        count=3,
        metrics={"label_accuracy": 0.5},
        better={"label_accuracy": "higher"},
        by_class={"sad": {"accuracy": 0.25}},
    )
    assert value_of(Metric(title="sad Acc", name="accuracy", label="sad"), card) == 0.25
    assert math.isnan(value_of(Metric(title="glad Acc", name="accuracy", label="glad"), card))


WIDTHS = {"text": 300, "audio": 74, "visual": 35, "bert": 768}
CLASSES = {"regression": (), "labels": ("angry", "happy", "neutral", "sad"), "classes": ("a", "b")}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_whole(name):
    protocol = find(name)
    assert protocol.name == name
    titles = [metric.title for metric in protocol.metrics]
    assert len(set(titles)) == len(titles)
    recipes = [model.recipe for model in protocol.models]
    assert len(set(recipes)) == len(recipes)
    for place, model in enumerate(protocol.models):
        assert set(model.start.values()) <= set(recipes[:place])
        assert set(model.start) <= set(model.streams)
        for published in model.published:
            assert set(published.values) <= set(titles)
            assert published.source
            for metric in protocol.metrics:
                if metric.percent and metric.title in published.values:
                    assert 1 < published.values[metric.title] <= 100


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, i) for name, each in PROTOCOLS.items() for i in range(len(each.models))],
)
def test_a_model_of_a_protocol_can_be_built_and_tells_its_metrics(name, place, tmp_path):
    protocol = PROTOCOLS[name]
    model = protocol.models[place]
    features = {
        stream: dict(protocol.features.get(stream, {}))
        or {"featurizer": "numbers", "stream": stream, "dims": WIDTHS[stream]}
        for stream in model.streams
    }
    for section in features.values():
        if section.get("crop") == "face":
            section |= {"detector": "cascade"}
    plain = {
        "dataset": "d",
        "source": {"table": "t.csv", "label": protocol.label, "task": protocol.task},
        "features": features,
        "model": {"recipe": model.recipe, **model.settings},
        "train": model.train,
    }
    experiment = parse(plain, tmp_path)
    task = Task(kind=protocol.task, label=protocol.label, classes=CLASSES[protocol.task])
    check_model(experiment, task)
    replace(experiment.recipe(task), monitor=protocol.monitor)


def test_a_model_brings_those_that_it_starts_from():
    assert [each.recipe for each in wanted(RAVDESS, ["msaf_ravdess"])] == [
        "resnext3d",
        "sound_cnn",
        "msaf_ravdess",
    ]
    assert [each.recipe for each in wanted(RAVDESS, ["sound_cnn"])] == ["sound_cnn"]
    assert len(wanted(RAVDESS, [])) == 3
    with pytest.raises(InputError, match="ravdess has no model 'mult'; it has resnext3d"):
        wanted(RAVDESS, ["mult"])
    with pytest.raises(InputError, match=r"no published experiment 'ravdes' .did you mean"):
        find("ravdes")


def test_the_page_of_results_has_every_model_with_its_runs_or_says_that_it_was_not_run():
    page = (Path(__file__).parent.parent / "docs" / "results.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \|(.*)\|$", page, re.M)
    told = {(name, recipe): cells.split("|") for name, recipe, cells in rows}
    assert list(told) == [
        (name, model.recipe) for name, each in PROTOCOLS.items() for model in each.models
    ]
    for result, *facts in told.values():
        known = [bool(fact.strip()) for fact in facts]
        assert not any(known) if result.strip() == "not yet run" else all(known)
