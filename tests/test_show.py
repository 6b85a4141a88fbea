"""Progress for whoever looks on: a terminal, a log file, a notebook, a machine."""

import io
import math
import re
from dataclasses import replace

import pytest

from pipelines import show
from pipelines.forecast import ColumnForecast, Forecast
from pipelines.show import Show
from pipelines.worker import Done
from tracking.parts import Part
from tracking.scorecard import Scorecard
from training.pace import Pace


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(show, "LINE_EVERY_S", 0.0)


def counted(shown):
    shown.console.file = io.StringIO()
    with shown.counting("ingest", 3) as done:
        for _ in range(3):
            done(1)
    return shown.console.file.getvalue()


def test_a_log_file_gets_a_line_now_and_then():
    assert counted(Show()).splitlines() == ["ingest: 1/3", "ingest: 2/3", "ingest: 3/3"]


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = Show()
    assert shown.bars
    assert "ingest: 1/3" not in counted(shown)


def test_how_many_there_are_is_not_told_where_it_is_not_known():
    shown = Show()
    shown.console.file = io.StringIO()
    with shown.counting("read", None) as done:
        done(64)
    assert shown.console.file.getvalue() == "read: 64\n"


def test_a_bar_without_a_total_is_drawn(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = Show()
    shown.console.file = io.StringIO()
    with shown.counting("read", None) as done:
        done(64)
    assert re.search(r"━\x1b\[0m 64 ", shown.console.file.getvalue())


def test_a_retry_tells_of_the_clips_that_it_tries():
    shown = Show()
    shown.console.file = io.StringIO()
    with shown.featurizing(None) as done:
        done(job(clips=3))
    assert shown.console.file.getvalue().startswith("featurize: 3 ")


def card(mae, corr=0.5, **more):
    part = {"metrics": {"mae": mae, "corr": corr}}
    draws = {"mae": tuple(mae + i / 1000 for i in range(100)), "corr": (corr,) * 100}
    better = {"mae": "lower", "corr": "higher"}
    return Scorecard(evaluation_set="e", count=9, better=better, replicates=draws, **part, **more)


def test_metrics_are_shown_with_their_intervals_and_what_is_undefined_with_its_reason():
    shown = Show()
    shown.console.file = io.StringIO()
    reason = {"corr": "the truth is the same number for every clip"}
    cards = {"one": card(0.5), "two": card(0.25, math.nan, undefined=reason)}
    shown.scores("test", cards, ["mae"])
    shown.scores("test", {"two": cards["two"]}, ["mae", "corr"])
    lines = shown.console.file.getvalue().splitlines()
    assert any(re.search(r"one .* 0\.500 \(0\.501 to 0\.598\)", line) for line in lines)
    assert any(re.search(r"mae .* 0\.250 \(0\.251 to 0\.348\)", line) for line in lines)
    assert any(re.search(r"corr .* nan +│", line) for line in lines)
    assert lines[-1] == "two: corr is undefined: the truth is the same number for every clip"
    shown.console.file = io.StringIO()
    known = {"leaks": ("source film 7 (in run r, which it starts from)",)}
    start = {"unknown_starts": ("head from kinetics.pth",)}
    shown.scores("test", {"one": card(0.5, **known), "two": card(0.5, **start)}, ["mae"])
    one, two = shown.console.file.getvalue().splitlines()[-2:]
    assert one == "one: shared with training: source film 7 (in run r, which it starts from)"
    assert two.startswith("two: no speaker or source is shared with training; ")
    assert two.endswith("on clips that nobody knows: head from kinetics.pth")


def test_what_a_missing_stream_costs_is_shown_for_each_model():
    def part(mae, *streams):
        return Part(streams=streams, count=4, metrics={"mae": mae}, intervals={"mae": (0, 1)})

    shown = Show()
    shown.console.file = io.StringIO()
    whole = {"as_asked": (part(0.8, "text"),)}
    found = (part(0.4), part(0.6, "audio", "text"))
    shown.missing({"one": card(0.5, as_found=found, **whole), "two": card(0.5, **whole)}, ["mae"])
    text = shown.console.file.getvalue()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert [row for row in rows if row] == [
        ["one", "lacks nothing", "4", "0.400"],
        ["one", "lacks audio, text", "4", "0.600"],
        ["one", "without text", "4", "0.800"],
        ["two", "without text", "4", "0.800"],
    ]
    shown.console.file = io.StringIO()
    shown.missing({"one": card(0.5)}, ["mae"])
    assert shown.console.file.getvalue() == ""


def job(**changes):
    """A finished job."""
    numbers = dict.fromkeys(
        ("media_seconds", "seconds", "pid", "bytes_read", "bytes_written"), 0
    ) | dict.fromkeys(("peak_bytes", "decoder_peak_bytes", "shard", "clips"), 0)
    texts = {"records": (), "columns": (), "host": "", "stages": {}, "slowest": ()}
    return Done(**{**numbers, **texts, **changes})


def test_short_times_of_a_plan_are_no_hours():
    shown = Show()
    shown.console.file = io.StringIO()
    column = ColumnForecast(stream="audio", column="logmel-1")
    column.new.shards, column.new.clips, column.new.hours = 1, 3, 0.001
    shown.forecast(
        Forecast(
            columns=[column], changes=None, jobs=1, media_hours=0.001, seconds=1800.0, basis="so"
        )
    )
    told = shown.console.file.getvalue()
    assert "1 (3, 3.6 s)" in told
    assert "1 jobs, 3.6 s of media to decode; time: 30.0 min (so)" in told


def test_a_machine_gets_nothing_but_its_json():
    assert counted(Show(quiet=True)) == ""


@pytest.mark.parametrize("text", ["a[/red]b", "[bold]x[/bold]", "\x1b[31mred"])
def test_what_users_wrote_is_shown_as_it_is_and_obeyed_by_nobody(text):
    shown = Show()
    shown.console.file = io.StringIO()
    shown.rows(text, [{text: text, "number": 1.5}])
    told = shown.console.file.getvalue()
    assert "\x1b" not in told
    assert told.count(text.replace("\x1b", "")) >= 2 or "\x1b" in text


def test_training_tells_losses_speed_and_the_time_that_is_left(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: clock[0])
    shown = Show()
    shown.console.file = io.StringIO()
    metrics = {"train_loss": 0.5, "valid_loss": 0.25, "samples_per_second": 1234.0}
    with shown.training(2, 10) as told:
        for epoch in range(4):
            clock[0] += 10
            told("late_fusion seed 0", epoch, metrics)
        told("late_fusion seed 1", 0, metrics)
    *_, fourth, other = shown.console.file.getvalue().splitlines()
    assert fourth == (
        "train: 4/20 late_fusion seed 0 (1/2) epoch 4: train 0.500 valid 0.250, 1234 samples/s, "
        "at most 160 s left"
    )
    # The first run ended early: 11 of 20 epochs are behind.
    assert other.endswith("at most 32.7 s left")


def test_training_tells_of_an_epoch_that_is_not_finished(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: clock[0])
    shown = Show()
    shown.console.file = io.StringIO()
    metrics = {"train_loss": 0.5, "valid_loss": 0.25}
    half = Pace(epoch=0, step=3, steps=6, loss=0.75, samples_per_second=99.0)
    with shown.training(1, 2) as told:
        clock[0] += 10
        told.within("it", half)
        clock[0] += 10
        told("it", 0, metrics)
        told.within("it", half)  # late: the epoch is finished
        clock[0] += 10
        told.within("it", replace(half, epoch=1))
    first, _, last = shown.console.file.getvalue().splitlines()
    assert first == (
        "train: 0/2 it (1/1) epoch 1, 50%: train 0.750, 99 samples/s, at most 30 s left"
    )
    assert last.startswith("train: 1/2 it (1/1) epoch 2, 50%: train 0.750")
    assert last.endswith("at most 10 s left")


def test_what_each_stream_did_is_shown_word_by_word(capsys):
    answer = {
        "id": "clip [1]",
        "model": "models:/toy/3",
        "message": "",
        "prediction": 0.5,
        "words": [["quite", 0.0, 0.4], ["good", 0.4, 0.9]],
        "without": {
            "text": {"prediction": 0.25, "scores": "", "change": -0.25},
            "audio": None,
        },
        "masks": {"text": [0.125, None], "audio": [0.75]},
    }
    bad = {**answer, "id": "bad", "prediction": None, "message": "no media"}
    Show().explained([answer, {**bad, "words": [], "without": {}, "masks": {}}])
    out = capsys.readouterr().out
    assert out.split("\n")[1] == "models:/toy/3"
    assert out.count("models:/toy/3") == 1
    assert "clip [1]: 0.5" in out
    assert "bad: no media" in out
    lines = [re.findall(r"[\w.+-]+", line) for line in out.splitlines()]
    for wanted in (
        ["text", "0.25", "-0.2500"],
        ["audio", "nothing", "is", "left"],
        ["1", "quite", "0.125", "0.750"],
        ["2", "good"],
    ):
        assert wanted in lines, out
