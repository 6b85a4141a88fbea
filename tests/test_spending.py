"""Estimates: what is like the work that is to come, and what nothing is known of."""

import json
import socket
from dataclasses import replace

import pytest

from featurizers.clip import Clip
from pipelines.cluster import spending
from pipelines.cluster.paces import nearest, paces
from pipelines.cluster.room import NodeKind, Room, Step
from pipelines.executors import Need
from pipelines.experiment import outline
from pipelines.follow import settings_of
from pipelines.forecast import estimate
from pipelines.plans import Plan
from pipelines.ranks import measured_by
from pipelines.sections import Prices
from pipelines.worker import Job, Part
from tests.test_command_line import settings
from training import recipes
from training.recipe import Task

CPU = NodeKind(name="cpu", resources={"CPU": 4.0}, most=4)
GPU = NodeKind(name="gpu", resources={"CPU": 4.0, "GPU": 1.0}, most=2)
ROOM = Room(kinds=[GPU, CPU], most=6, source="it")


def measured(work, *entries):
    folder = work / "training" / "mult-0123"
    folder.mkdir(parents=True)
    lines = [{**entry, "metrics": {"samples_per_second": entry["speed"]}} for entry in entries]
    (folder / "progress.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return paces(work, "mult")


def test_the_pace_of_the_most_alike_runs_is_taken_and_in_what_they_differ_is_told(tmp_path):
    here = {"device": "cpu", "settings": "a", "host": "laptop"}
    there = {"device": "A100", "settings": "a", "host": "node-1"}
    found = measured(
        tmp_path,
        {"speed": 10.0, "ranks": 2, **here},
        {"speed": 15.0, "ranks": 2, **here, "settings": "smaller"},
        {"speed": 900.0, "ranks": 1, **there},
        {"speed": 3000.0, "ranks": 4, **there},
        {"speed": 5.0, "ranks": 2},
    )
    pace = nearest(found, "a", 4, on_gpus=True)
    assert str(pace) == "3e+03 clips/s, measured on 4 rank(s) of A100 (node-1)"
    assert pace.unlike("a", 4, on_gpus=True) == []
    assert nearest(found, "a", 2, on_gpus=False).clips_per_s == 10.0
    assert nearest(found, "smaller", 2, on_gpus=False).clips_per_s == 15.0
    alone = nearest(found[:1], "b", 4, on_gpus=True)
    assert alone.unlike("b", 4, on_gpus=True) == [
        "GPUs are to train",
        "other settings of model or training were measured",
        "4 rank(s) are to train",
    ]
    assert nearest([], "a", 1, on_gpus=True) is None


@pytest.mark.parametrize("speed", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_speed_that_is_none_is_passed_over(tmp_path, speed):
    assert measured(tmp_path, {"speed": speed}) == []
    other = {"speed": 2.0}
    assert measured(tmp_path / "other", {"speed": speed}, other)[0].clips_per_s == 2.0


def test_runs_of_other_seeds_folds_and_epochs_are_alike_and_of_another_width_are_not():
    one = recipes.named("mult", Task(kind="regression", label="mood"), ("text", "audio"), {})
    assert settings_of(replace(one, seed=3, fold="1/5", epochs=7)) == settings_of(one)
    assert settings_of(replace(one, global_batch=2)) != settings_of(one)


def test_epochs_are_written_down_with_what_their_pace_depends_on(tmp_path):
    one = recipes.named("mult", Task(kind="regression", label="mood"), ("text", "audio"), {})
    plan = Plan(name="it", recipe=one, root=tmp_path, folder=tmp_path, columns={})
    told = measured_by(plan, 2)
    assert (told["ranks"], told["host"]) == (2, socket.gethostname())
    (pace,) = measured(tmp_path, {"speed": 1.0, **told})
    assert pace.unlike(settings_of(one), 2, on_gpus=told["device"] != "cpu") == []


class Named:
    """Of a spec, its name."""

    def __init__(self, name):
        self.name = name


def line(seconds, device, host):
    devices = {"text-encoder": device}
    common = {"kind": "job", "columns": ["text-encoder-012345"], "clips": 10, "media_seconds": 0}
    return {**common, "seconds": seconds, "devices": devices, "host": host}


def test_jobs_on_the_same_kind_of_device_tell_how_long_others_take():
    clips = tuple(Clip(key=str(n), id="", media="", media_digest="") for n in range(10))
    todo = [Job(shard=0, clips=clips, parts=(Part(spec=Named("text-encoder"), job=""),))]
    lines = [line(100, "cpu", "laptop"), line(1, "cuda:0", "node-1"), line(float("nan"), "cpu", "")]
    assert estimate(todo, lines, 1, on_gpus=True) == (
        1.0,
        "by the speed of earlier jobs here, on 1 workers, measured on node-1",
    )
    assert estimate(todo, lines, 1, on_gpus=False)[0] == 100.0
    hours, why = estimate(todo, lines[:1], 1, on_gpus=True)
    assert hours == 100.0
    assert why.endswith("measured on laptop; encoders were measured on processors alone")


def step(name, **need):
    return Step(name=name, need=Need(**need), most=2)


def test_models_that_hear_are_told_as_not_known(tmp_path):
    experiment = outline(settings(), tmp_path)
    told = spending.spells(experiment, [], [step("transcribe", gpus=1.0), step("align")], ROOM)
    assert [(each.step.name, each.hours) for each in told] == [
        ("transcribe", None),
        ("align", None),
    ]
    prices = Prices(currency="EUR", cpu=1.0, gpu=2.0)
    found = [each.found for each in spending.check(told, ROOM, prices, None)]
    assert found[0].startswith("hours are not known: how fast models hear is kept nowhere")
    assert found[-1] == "not known; without transcribe (hours), align (hours), which is not known"


def cost(spells, driver):
    prices = Prices(currency="EUR", cpu=1.0, gpu=2.0)
    return list(spending.check(spells, ROOM, prices, None, driver))[-1].found


def test_the_node_of_the_driver_is_paid_for_also_while_gpus_train():
    train = spending.Spell(step=step("train", gpus=1.0), workers=2, hours=3.0, basis="")
    assert cost([train], None) == "about 12.00 EUR: train 3.00 h x 2 gpu at 2"
    assert cost([train], Need()).startswith("about 15.00 EUR")
    assert "driver of a job 3.00 h x 1 cpu at 1" in cost([train], Need())
    # Beside 4 workers on a node of 4 cores there is no room for it.
    room = replace(ROOM, kinds=[CPU])
    featurize = spending.Spell(step=step("featurize x"), workers=4, hours=1.0, basis="")
    prices = Prices(currency="EUR", cpu=1.0)
    (_, found) = spending.check([featurize], room, prices, None, Need())
    assert found.found == "about 2.00 EUR: featurize 1.00 h x 2 cpu at 1"
