"""The log of a run: what is there of it when the run was killed, and what is read of it."""

import pytest

from featurizers.dataset import LOGS
from featurizers.store import LocalStore, store_at
from pipelines import logbook
from pipelines.logbook import Logbook, read_logs


@pytest.fixture
def bucket(tmp_path):
    return f"memory://{tmp_path.name}/dataset"


def numbers(root, run=""):
    return [line["number"] for line in read_logs(root, run)]


def test_on_a_disk_each_line_is_there_at_once(tmp_path):
    log = Logbook(tmp_path, "r1")
    for number in range(3):
        log.add("job", number=number)
        assert numbers(tmp_path) == list(range(number + 1))


def test_on_an_object_store_lines_are_kept_and_the_last_are_written_at_the_end(bucket):
    with Logbook(bucket, "r1") as log:
        log.add("job", number=0)
        assert numbers(bucket) == []
    assert numbers(bucket) == [0]


def test_on_an_object_store_a_killed_run_loses_no_more_than_some_lines(bucket, monkeypatch):
    monkeypatch.setattr(logbook, "FLUSH_LINES", 3)
    log = Logbook(bucket, "r1")
    for number in range(8):
        log.add("job", number=number)
    assert numbers(bucket) == list(range(6))
    assert len(store_at(bucket).sizes(LOGS)) == 2


def test_on_an_object_store_a_killed_run_loses_no_more_than_some_seconds(bucket, monkeypatch):
    monkeypatch.setattr(logbook, "FLUSH_S", 0.0)
    log = Logbook(bucket, "r1")
    for number in range(2):
        log.add("job", number=number)
        assert numbers(bucket) == list(range(number + 1))


@pytest.mark.parametrize("odd", [b'{"kind": "job", "numb', b"7\n", b"[1]\n", b"\xff\n", b"\n"])
def test_a_line_that_was_cut_or_is_none_costs_no_other(tmp_path, odd):
    with Logbook(tmp_path, "r1") as log:
        log.add("job", number=0)
    LocalStore(tmp_path).append(log.name, 0, odd)
    with Logbook(tmp_path, "r2") as log:
        log.add("job", number=1)
    assert numbers(tmp_path) == [0, 1]


def test_lines_of_one_run_are_told_from_those_of_others(tmp_path):
    for number in range(2):
        with Logbook(tmp_path, f"r{number}") as log:
            log.add("job", number=number)
    (tmp_path / LOGS / "throughput-r1.json").write_text('{"number": 9}')
    assert numbers(tmp_path, "r1") == [1]
    assert numbers(tmp_path) == [0, 1]


def test_two_runs_of_one_second_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(logbook.time, "strftime", lambda *how: "20260101T000000")
    assert Logbook(tmp_path).name != Logbook(tmp_path).name
