"""Progress for whoever looks on: a terminal, a log file, a notebook, a machine."""

import io

import pytest

from pipelines import show
from pipelines.show import Show


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


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_gets_bars_where_it_can_draw_them_and_else_lines(monkeypatch, widgets):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(show, "find_spec", lambda name: object() if widgets else None)
    assert Show().bars is widgets


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
