"""Sweeps: draws that do not change, trials that fall behind, and going on after a kill."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from featurizers.dataset import read_clips
from pipelines.executors import stop_ray
from pipelines.experiment import Experiment, InputError
from pipelines.family import parent_of
from pipelines.plans import PROGRESS, Plan
from pipelines.space import check, draw, drawn, flags
from pipelines.sweep import table
from pipelines.trials import Trial, best_of, sweep
from tests.test_loop import RECIPE, make_dataset
from tracking import mlflow_store
from training.recipe import Task

SCORE = Task(kind="regression", label="score")
SPACE = {
    "train.learning_rate": {"log_uniform": [1e-5, 1e-2]},
    "train.weight_decay": {"uniform": [0, 0.1]},
    "model.hidden": {"choice": [16, 32]},
    "train.patience": {"integer": [2, 4]},
}


def test_draws_follow_from_the_seed_and_their_number_and_lie_in_the_space():
    check(SPACE)
    found = draw(SPACE, 40, seed=3)
    assert found[:10] == draw(SPACE, 10, seed=3)
    assert found[:10] != draw(SPACE, 10, seed=4)
    rates = [each["train.learning_rate"] for each in found]
    assert 1e-5 <= min(rates) < 1e-4
    assert 1e-3 < max(rates) <= 1e-2
    assert {each["model.hidden"] for each in found} == {16, 32}
    assert {each["train.patience"] for each in found} == {2, 3, 4}
    assert len({str(each) for each in found}) == 40


def test_a_small_space_is_drawn_once_over():
    assert len(draw({"model.hidden": {"choice": [1, 2, 3]}}, 10, seed=0)) == 3


def test_what_is_printed_is_what_was_tried():
    for each in draw(SPACE, 20, seed=0):
        read = {
            name: yaml.safe_load(text) for name, _, text in (f.partition("=") for f in flags(each))
        }
        assert read == each
    assert flags({"train.learning_rate": 1e-05, "model.mask": "static", "model.x": True}) == [
        "train.learning_rate=1.000e-05",
        "model.mask=static",
        "model.x=true",
    ]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "nothing is to be varied"),
        ({"learning_rate": {"choice": [1]}}, r"varies settings of train\. and model\."),
        ({"train.epochs": {"loguniform": [1, 2]}}, "did you mean 'log_uniform'"),
        ({"train.epochs": {"choice": []}}, "wanted a list of values"),
        ({"train.epochs": {"uniform": [2, 1]}}, "the lowest and the highest"),
        ({"train.epochs": {"uniform": ["1e-4", 1]}}, "a dot in 1.0e-4"),
        ({"train.epochs": {"log_uniform": [0, 1]}}, "wanted more than 0"),
        ({"train.epochs": {"integer": [0.5, 2]}}, "wanted whole numbers"),
    ],
)
def test_a_wrong_space_is_told(space, message):
    with pytest.raises(InputError, match=message):
        check(space)


def given(tmp_path, **changes):
    plain = {
        "dataset": "data",
        "source": {"table": "clips.csv", "label": "score"},
        "features": {"text": {"featurizer": "hashed-words"}},
        "model": {"recipe": "unimodal"},
        "sweep": {"trials": 2, "space": {"train.learning_rate": {"uniform": [0.1, 0.2]}}},
        **changes,
    }
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(plain))
    return file


def test_each_draw_makes_a_recipe_of_the_experiment(tmp_path):
    found = drawn(given(tmp_path), [], SCORE)
    assert [recipe.learning_rate for _, recipe in found] == [
        values["train.learning_rate"] for values, _ in found
    ]
    with pytest.raises(InputError, match="no section sweep"):
        drawn(given(tmp_path, sweep=None), [], SCORE)
    with pytest.raises(InputError, match=r"sweep\.metric is 'valid_uar'; wanted one of valid_loss"):
        drawn(given(tmp_path), ["sweep.metric=valid_uar"], SCORE)
    with pytest.raises(InputError, match=r"unknown key 'train\.rate'"):
        drawn(given(tmp_path), ["sweep.space={train.rate: {choice: [1]}}"], SCORE)


def trial(number, value, state="finished"):
    draws = {"train.learning_rate": number / 10}
    return Trial(name=f"trial {number}", draw=draws, run_id="r", state=state, epochs=2, value=value)


def test_the_best_is_a_finished_trial_and_stands_first_in_the_table():
    found = [trial(0, 0.5), trial(1, 0.1, "stopped"), trial(2, 0.4), trial(3, None, "failed")]
    assert best_of(found, "valid_loss").name == "trial 2"
    assert best_of(found, "valid_corr").name == "trial 0"
    assert best_of(found[1:2], "valid_loss") is None
    order = [row["trial"] for row in table(found, "valid_loss")]
    assert order == ["trial 1", "trial 2", "trial 0", "trial 3"]
    assert table(found, "valid_loss")[0]["train.learning_rate"] == 0.1


@pytest.mark.ray
def test_ctrl_c_during_a_sweep_is_ours_to_answer(tmp_path, monkeypatch):
    """Ray Tune (2.60.0) would answer it itself, and `fit` return as if all were done."""
    from ray import tune
    from ray.tune.tune import _setup_signal_catching

    class Fit:
        """What `Tuner.fit` does about signals, and Ctrl-C while it waits for trials."""

        def __init__(self, *_, **__):
            pass

        def fit(self):
            _setup_signal_catching()
            signal.raise_signal(signal.SIGINT)
            return []

    monkeypatch.delenv("TUNE_DISABLE_SIGINT_HANDLER", raising=False)
    monkeypatch.setattr("pipelines.trials.start_ray", lambda _: None)
    monkeypatch.setattr("pipelines.trials.on_gpus", lambda _: False)
    monkeypatch.setattr(tune, "with_parameters", lambda work, **_: work)
    monkeypatch.setattr(tune, "Tuner", Fit)
    plain = yaml.safe_load(given(tmp_path).read_text())
    experiment = Experiment.model_validate({**plain, "folder": tmp_path})
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGUSR1)}
    # Whoever runs the tests in the background may have had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep(
                [],
                [],
                [],
                experiment=experiment,
                uri="",
                metric="valid_loss",
                parent=None,
                told=lambda *_: None,
                say=print,
            )
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.soak
def test_a_trial_that_falls_behind_is_stopped_and_a_second_sweep_trains_nothing(tmp_path, capfd):
    root = tmp_path / "data"
    columns = make_dataset(root)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow_store.initialise(uri, tmp_path / "mlartifacts")
    settings = {"trials": 4, "grace": 2, "space": {"train.learning_rate": {"choice": [1]}}}
    plain = yaml.safe_load(given(tmp_path, sweep=settings).read_text())
    experiment = Experiment.model_validate({**plain, "folder": tmp_path})
    rates = (2e-2, 2.1e-2, 2.2e-2, 0.0)
    plans = [
        Plan(
            name=f"rate {rate}",
            recipe=replace(RECIPE, epochs=6, learning_rate=rate, patience=6),
            root=root,
            folder=Path(root / "training" / f"rate-{number}"),
            columns=columns,
        )
        for number, rate in enumerate(rates)
    ]
    for plan in plans:
        plan.folder.mkdir(parents=True)
    parent = parent_of(plans, uri, "toys", "sweep")

    def swept():
        return sweep(
            [{"train.learning_rate": rate} for rate in rates],
            plans,
            read_clips(root),
            experiment=experiment,
            uri=uri,
            metric="valid_loss",
            parent=parent,
            told=lambda *_: None,
            say=print,
        )

    try:
        found = swept()
        lines = [(plan.folder / PROGRESS).read_bytes() for plan in plans]
        again = swept()
    finally:
        stop_ray()
    assert capfd.readouterr().out == ""
    assert [each.state for each in found] == ["finished", "finished", "finished", "stopped"]
    assert 2 <= found[3].epochs < 6
    assert again == found
    assert [(plan.folder / PROGRESS).read_bytes() for plan in plans] == lines
    assert best_of(found, "valid_loss") in found[:3]
