"""Sweeps: draws that do not change, trials that fall behind, and going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from featurizers.dataset import read_clips
from pipelines import trials
from pipelines.__main__ import _called, app
from pipelines.claim import taken_over
from pipelines.executors import stop_ray
from pipelines.experiment import Experiment, InputError
from pipelines.family import parent_of
from pipelines.limits import Care, TrainingFailedError
from pipelines.plans import CHECKPOINTS, FINISHED, PROGRESS, Plan
from pipelines.ranks import sent, train_one
from pipelines.space import check, draw, drawn, flags, recipes
from pipelines.stopping import stoppable
from pipelines.sweep import table
from pipelines.tracked import attempts
from pipelines.train import care_sent
from pipelines.trials import Trial, _try, best_of, sweep
from pipelines.watch import STACKS
from tests.test_loop import RECIPE, make_dataset
from tracking import mlflow_store
from training.recipe import Task
from training.session import LocalSession, PreemptedError, Wish

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
    found = recipes(drawn(given(tmp_path), []), SCORE)
    assert [recipe.learning_rate for _, recipe in found] == [
        values["train.learning_rate"] for values, _ in found
    ]
    with pytest.raises(InputError, match="no section sweep"):
        drawn(given(tmp_path, sweep=None), [])
    with pytest.raises(InputError, match=r"unknown key 'train\.rate'"):
        drawn(given(tmp_path), ["sweep.space={train.rate: {choice: [1]}}"])
    with pytest.raises(InputError, match=r"sweep\.metric is 'valid_ear'; wanted one of valid_loss"):
        drawn(given(tmp_path), ["sweep.metric=valid_ear"])
    # Of some task, and not of the one that the dataset turns out to have.
    draws = drawn(given(tmp_path), ["sweep.metric=valid_uar"])
    with pytest.raises(InputError, match=r"sweep\.metric is 'valid_uar'; wanted one of valid_loss"):
        recipes(draws, SCORE)
    with pytest.raises(InputError, match=r"sweep\.metric is 'valid_uar'; wanted one of valid_loss"):
        drawn(given(tmp_path), ["sweep.metric=valid_uar", "source.task=regression"])


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("{train.learning_rate: {uniform: [1, 0]}}", "sweep.space.train.learning_rate: uniform is"),
        ("{train.learning_rat: {choice: [1]}}", "did you mean 'learning_rate'?"),
        ("{model.hidden: {choice: [many]}}", "hidden is 'many'; wanted a whole number"),
    ],
)
def test_a_wrong_space_is_told_before_anything_else(tmp_path, capsys, space, said):
    """There is neither a dataset nor a table to make one of."""
    command = ["sweep", str(given(tmp_path)), "--set", f"sweep.space={space}"]
    code = stoppable(partial(_called, partial(app, command)), lambda: None)
    told = capsys.readouterr()
    assert (code, told.out, len(told.err.splitlines())) == (2, "", 1)
    assert said in told.err


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


class Fit:
    """What `Tuner.fit` does about signals, and then something of ours."""

    then = staticmethod(lambda: None)
    trainable = config = None

    def __init__(self, trainable, *, run_config, **_):
        Fit.trainable, Fit.config = staticmethod(trainable), run_config

    def fit(self):
        from ray.tune.tune import _setup_signal_catching

        _setup_signal_catching()
        Fit.then()
        return []


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """Sweeps nothing, on a `Tuner` that only waits."""
    from ray import tune

    monkeypatch.setattr("pipelines.trials.start_ray", lambda _: None)
    monkeypatch.setattr("pipelines.trials.on_gpus", lambda _: False)
    monkeypatch.setattr(tune, "with_resources", lambda work, _: work)
    monkeypatch.setattr(tune, "Tuner", Fit)
    plain = yaml.safe_load(given(tmp_path).read_text())
    experiment = Experiment.model_validate({**plain, "folder": tmp_path})

    def swept(then, care):
        monkeypatch.setattr(Fit, "then", staticmethod(then))
        return sweep(
            [],
            [],
            [],
            experiment=experiment,
            uri="",
            metric="valid_loss",
            parent=None,
            care=care,
            told=lambda *_: None,
            say=lambda _: None,
        )

    return swept


def test_ctrl_c_during_a_sweep_is_ours_to_answer(swept):
    """Ray Tune (2.60.0) would answer it itself, and `fit` return as if all were done."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGUSR1)}
    # Whoever runs the tests in the background may have had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            swept(lambda: signal.raise_signal(signal.SIGINT), Care())
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_a_sweep_has_the_care_of_training_trials_save_and_end_when_its_time_is_over(
    swept, tmp_path
):
    stops = []

    def until_told():
        [folder] = tmp_path.rglob("sweep/ray")
        while not (folder / "stop").exists():
            time.sleep(0.01)
        stops.append("told to end")

    with pytest.raises(TrainingFailedError, match=r"train\.deadline_minutes"):
        swept(until_told, Care(max_failures=5, deadline_minutes=1e-3))
    assert stops == ["told to end"]
    assert Fit.config.failure_config.max_failures == 5
    Fit.trainable({"number": 0})  # one that Tune would begin now; there is none of that number


def test_what_tune_fails_of_is_told(swept):
    def fails():
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        swept(fails, Care())


def told_of(plan):
    plain = sent(plan, "", taken_over(plan.folder))
    return {"plan": plain, "uri": "", "metric": "valid_loss", "gpu": True}


@pytest.fixture
def one(tmp_path):
    """A trial that `_try` is given, and what it is told of care."""
    folder = tmp_path / "training" / "a"
    folder.mkdir(parents=True)
    plan = Plan(name="a", recipe=RECIPE, root=tmp_path, folder=folder, columns={})
    trial = told_of(plan)
    group = tmp_path / "ray"
    group.mkdir()
    return trial, care_sent(Care(keep=7), group)


def test_a_trial_saves_and_ends_when_it_is_told_to_and_is_no_failure_then(one, monkeypatch):
    trial, care = one
    seen = []

    def trains(plan, session, *_):
        before = session.wish(1)
        Path(care["stop"]).touch()
        time.sleep(0.3)  # a session looks every now and then
        seen.append((session.keep, session.rank, session.world, before, session.wish(2)))
        raise PreemptedError(plan.name)

    monkeypatch.setattr(trials, "train_one", trains)
    _try({"number": 0}, [trial], care)
    assert seen == [(7, 0, 1, Wish.GO_ON, Wish.END)]


def test_a_trial_whose_process_is_told_to_end_is_started_again(one, monkeypatch):
    trial, care = one
    wishes = []

    def trains(plan, session, *_):
        signal.raise_signal(signal.SIGTERM)
        wishes.append(session.wish(1))
        raise PreemptedError(plan.name)

    monkeypatch.setattr(trials, "train_one", trains)
    with pytest.raises(PreemptedError):
        _try({"number": 0}, [trial], care)
    assert wishes == [Wish.END]


class KilledError(BaseException):
    """Ends a trial in the middle, as a kill does: nothing is told and nothing saved after it."""


def planned(root, columns, rates, beside="training"):
    """A plan of six epochs for each learning rate."""
    plans = []
    for number, rate in enumerate(rates):
        recipe = replace(RECIPE, epochs=6, learning_rate=rate, patience=6)
        folder = root / beside / f"rate-{number}"
        folder.mkdir(parents=True)
        plan = Plan(name=f"rate {rate}", recipe=recipe, root=root, folder=folder, columns=columns)
        plans.append(plan)
    return plans


def results(plans):
    return [json.loads((plan.folder / FINISHED).read_text()) for plan in plans]


def test_a_trial_that_is_killed_goes_on_and_tells_every_epoch(tmp_path, monkeypatch):
    from ray import tune

    root, told = tmp_path / "data", []
    columns = make_dataset(root)
    (killed,), (whole,) = (planned(root, columns, [1e-2], name) for name in ("killed", "whole"))

    def tried(plan, ends=None):
        def report(metrics):
            told.append(metrics["valid_loss"])
            if len(told) == ends:
                raise KilledError

        told.clear()
        monkeypatch.setattr(tune, "report", report)
        _try({"number": 0}, [told_of(plan)], care_sent(Care(), tmp_path))

    tried(whole)
    with pytest.raises(KilledError):
        tried(killed, ends=4)  # the checkpoint is that of epoch 2
    assert not killed.finished
    tried(killed)
    ours, theirs = results([killed, whole])
    assert ours == theirs
    assert told == [epoch["valid_loss"] for epoch in theirs["history"]]


# Sweeps over the plans that a file tells, on Ray Tune.
SWEEP = """
import json, sys
from pathlib import Path
from featurizers.dataset import read_clips
from pipelines.experiment import Experiment
from pipelines.family import parent_of
from pipelines.limits import Care
from pipelines.ranks import received
from pipelines.trials import sweep

job = json.loads(Path(sys.argv[1]).read_text())
plans = [received(each) for each in job["plans"]]
experiment = Experiment.model_validate({**job["experiment"], "folder": Path(job["folder"])})
found = sweep(
    [{"train.learning_rate": plan.recipe.learning_rate} for plan in plans],
    plans,
    read_clips(plans[0].root),
    experiment=experiment,
    uri=job["uri"],
    metric="valid_loss",
    parent=parent_of(plans, job["uri"], "toys", "sweep").run,
    care=Care(),
    told=lambda *_: None,
    say=print,
)
print([trial.state for trial in found])
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.soak
def test_a_sweep_that_is_killed_in_a_trial_goes_on_where_it_was(tmp_path):
    root = tmp_path / "data"
    columns, uri = make_dataset(root), f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow_store.initialise(uri, tmp_path / "mlartifacts")
    rates = (1e-2, 2e-2, 3e-2)
    plans = planned(root, columns, rates)
    settings = {"trials": 3, "grace": 6, "space": {"train.learning_rate": {"choice": [1]}}}
    job = {
        "plans": [sent(plan, "", "") for plan in plans],
        "experiment": yaml.safe_load(given(tmp_path, sweep=settings).read_text()),
        "folder": str(tmp_path),
        "uri": uri,
    }
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job))
    command = [sys.executable, "-W", "ignore", "-c", SWEEP, str(file)]
    first = subprocess.Popen(command)
    # In the second trial, once it has a checkpoint.
    saved, until = plans[1].folder / CHECKPOINTS, time.monotonic() + 200
    while not list(saved.glob("step-*")) and first.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    first.kill()
    first.wait()
    assert plans[0].finished
    assert not plans[2].finished
    before = (plans[0].folder / PROGRESS).read_bytes()
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=250)
    assert done.stdout == "['finished', 'finished', 'finished']\n"
    assert (plans[0].folder / PROGRESS).read_bytes() == before
    undisturbed = planned(root, columns, rates, "undisturbed")
    for plan in undisturbed:
        train_one(plan, LocalSession(plan.folder / CHECKPOINTS), "", "")
    assert results(plans) == results(undisturbed)


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
    plans = planned(root, columns, rates)
    parent = parent_of(plans, uri, "toys", "sweep")

    def swept():
        return sweep(
            [{"train.learning_rate": rate} for rate in rates],
            plans,
            read_clips(root),
            experiment=experiment,
            uri=uri,
            metric="valid_loss",
            parent=parent.run,
            care=Care(),
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


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.soak
def test_a_trial_that_is_killed_is_started_again_and_goes_on(tmp_path):
    root = tmp_path / "data"
    columns = make_dataset(root)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow_store.initialise(uri, tmp_path / "mlartifacts")
    plain = yaml.safe_load(given(tmp_path).read_text())
    experiment = Experiment.model_validate({**plain, "folder": tmp_path})
    plan = Plan(
        name="a",
        recipe=replace(RECIPE, epochs=60, patience=60, checkpoint_every=1),
        root=root,
        folder=root / "training" / "a",
        columns=columns,
    )
    plan.folder.mkdir(parents=True)

    def kill():
        while not (plan.folder / PROGRESS).exists():
            time.sleep(0.01)
        [file] = (plan.folder / STACKS).glob("rank-0-sigterm-*.txt")
        os.kill(int(file.stem.rpartition("-")[2]), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        [found] = sweep(
            [{}],
            [plan],
            read_clips(root),
            experiment=experiment,
            uri=uri,
            metric="valid_loss",
            parent=parent_of([plan], uri, "toys", "sweep").run,
            care=Care(),
            told=lambda *_: None,
            say=print,
        )
    finally:
        stop_ray()
    killer.join(10)
    assert (found.state, found.epochs, attempts(plan)) == ("finished", 60, 2)
