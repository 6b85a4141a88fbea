"""Progress for whoever looks on: a terminal, a log file, a notebook, a machine."""

import io
import re

import pytest

from pipelines import show
from pipelines.forecast import ColumnForecast, Forecast
from pipelines.show import Show
from pipelines.worker import Done


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
