"""How an epoch goes while it goes: told now and then, and passed on to whoever looks on."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pipelines.follow import Follow, note, note_pace
from pipelines.plans import NOW, Plan
from tests.test_loop import RECIPE, STEPS, StopsAt, make_dataset
from tracking.run import MemoryRun
from training import loop, pace
from training.data import load
from training.loop import fit
from training.pace import Pace, Pacer
from training.session import LocalSession, PreemptedError

SHORT = replace(RECIPE, epochs=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return load(root, make_dataset(root), SHORT)


def test_it_is_told_at_most_twice_a_second_and_of_what_was_taken_now():
    clock, told = [10.0], []
    share = [SimpleNamespace(weight=torch.tensor([1.0, 0.5, 0.0]))]
    pacer = Pacer(
        told.append,
        epoch=1,
        steps=6,
        first=2,
        clips=lambda step: min(8 * step, 42),
        clock=lambda: clock[0],
    )
    for _ in range(4):
        clock[0] += 0.25
        pacer.stepped(share, 3.0)
    assert told == [
        Pace(epoch=1, step=4, steps=6, loss=2.0, samples_per_second=16 / 0.5),
        Pace(epoch=1, step=6, steps=6, loss=2.0, samples_per_second=26 / 1.0),
    ]


def test_every_step_of_an_epoch_may_be_told_and_the_last_has_the_epochs_loss(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr(pace, "EVERY_S", 0.0)
    told = []
    found = fit(SHORT, data, LocalSession(tmp_path), MemoryRun(), within=told.append)
    assert [(each.epoch, each.step) for each in told] == [
        (epoch, step) for epoch in range(2) for step in range(1, STEPS + 1)
    ]
    assert {each.steps for each in told} == {STEPS}
    for epoch, last in enumerate(told[STEPS - 1 :: STEPS]):
        assert last.loss == pytest.approx(found.history[epoch]["train_loss"])


def test_the_speed_of_an_epoch_that_was_gone_on_with_is_that_of_its_rest(
    data, tmp_path, monkeypatch
):
    seconds = iter(range(100))
    run, ticking = MemoryRun(), SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    with pytest.raises(PreemptedError):
        fit(SHORT, data, StopsAt(tmp_path, 3), MemoryRun())
    monkeypatch.setattr(loop, "time", ticking)
    fit(SHORT, data, LocalSession(tmp_path), run)
    # Three steps of eight clips were taken before; each epoch lasts a second.
    assert [points["samples_per_second"] for _, points in run.metrics] == [42 - 24, 42]


def test_the_driver_is_told_where_an_epoch_stands_and_not_of_an_attempt_before(tmp_path):
    plan = Plan(name="it", recipe=RECIPE, root=tmp_path, folder=tmp_path, columns={})
    one, two = (
        Pace(epoch=3, step=step, steps=6, loss=0.5, samples_per_second=10.0) for step in (2, 4)
    )
    note_pace(tmp_path, "it", one)
    seen, said = [], []
    with Follow([plan], lambda *each: None, said.append, lambda *each: seen.append(each)):
        time.sleep(0.7)
        assert seen == []
        note_pace(tmp_path, "it", two)
        until = time.monotonic() + 10
        while not seen and time.monotonic() < until:
            time.sleep(0.01)
        note(tmp_path, {"say": "a sentence"})
    assert seen == [("it", two)]
    assert said == ["a sentence"]
    assert [path.name for path in tmp_path.iterdir() if "now" in path.name] == [NOW]


def test_a_full_disk_keeps_nobody_from_training(tmp_path):
    pace_now = Pace(epoch=0, step=1, steps=2, loss=0.5, samples_per_second=1.0)
    note_pace(tmp_path / "gone", "it", pace_now)
