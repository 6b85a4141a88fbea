"""The laws of featurizing, on a handful of real one-second films."""

import hashlib
import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from featurizers.clip import Clip
from featurizers.dataset import COLUMNS, LOGS, DatasetError, read_clips
from featurizers.manifest import open_column
from featurizers.media import encode
from featurizers.shards import Record
from featurizers.store import LocalStore, StorageError
from featurizers.verify import verify
from pipelines.executors import Answer, InProcess, one_cpu
from pipelines.experiment import load
from pipelines.featurize import TooManyDroppedError, featurize, finished, jobs, ledger, run_jobs
from pipelines.ingest import ingest, read_plan
from pipelines.logbook import read_logs
from pipelines.staging import Stage
from pipelines.worker import ChangedInputError, Inputs, ShardWorker

pytestmark = pytest.mark.media

FEATURES = {
    "text": {"featurizer": "hashed-words"},
    "audio": {"featurizer": "logmel", "hop_ms": 20},
    "video": {"featurizer": "face-motion", "fps": 5},
}
WORDS = ["what a day", "no thanks", "quite good", "so so", "never again", "a fine thing"]

# Featurizes in this process, and dies by kill -9 just before the given number of steps on disk.
DIES = """
import os, signal, sys
from pathlib import Path
from pipelines.executors import InProcess
from pipelines.experiment import load
from pipelines.featurize import featurize

experiment, left = load(Path(sys.argv[1])), int(sys.argv[2])
columns = str(experiment.root / "columns")

def step(event, arguments):
    global left
    if event in {"open", "os.rename"} and str(arguments[0]).startswith(columns):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(step)
featurize(experiment, InProcess(), lambda done: None)
"""

# The command line with a limit on the size of files, as if the disk were full.
CRAMPED = """
import resource, sys
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop()), hard))
from pipelines.__main__ import main
main()
"""


def film(path, seed, seconds=1.0, *, sound=True, pictures=True):
    random_numbers = np.random.default_rng(seed)
    frames = [
        random_numbers.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        for _ in range(round(5 * seconds))
    ]
    times = np.arange(round(16_000 * seconds)) / 16_000
    samples = (9000 * np.sin(2 * np.pi * (150 + 20 * seed) * times)).astype(np.int16)
    encode(
        path,
        frames=frames if pictures else None,
        fps=5,
        samples=samples if sound else None,
        rate_hz=16_000,
    )


def rows_of_words(folder, count):
    """A table of films of one second, called who0, who1 and so on."""
    for number in range(count):
        film(folder / f"{number}.mp4", number)
    return [
        {
            "id": f"who{number}",
            "media": str(folder / f"{number}.mp4"),
            "transcript": f"{WORDS[number % len(WORDS)]} number {number}",
            "mood": number % 4 - 1.5,
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Six whole films, a longer one, one without sound, one without pictures, one that is none."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(6):
        film(folder / f"whole{number}.mp4", number)
    film(folder / "long.mp4", 6, 2.2)
    film(folder / "silent.mp4", 7, sound=False)
    film(folder / "unseen.mp4", 8, pictures=False)
    (folder / "broken.mp4").write_bytes(b"this is no film " * 40)
    return folder


@pytest.fixture(scope="module")
def rows(media):
    """A table of eleven clips; the broken film has words, one whole film has none."""
    table = [
        {"id": f"whole{i}", "media": str(media / f"whole{i}.mp4"), "transcript": words}
        for i, words in enumerate(WORDS)
    ]
    del table[3]["transcript"]
    table += [
        {"id": "first", "media": str(media / "long.mp4"), "start": 0, "end": 1},
        {"id": "second", "media": str(media / "long.mp4"), "start": 1.1, "end": 2.1},
        {"id": "silent", "media": str(media / "silent.mp4"), "transcript": "hush"},
        {"id": "unseen", "media": str(media / "unseen.mp4"), "transcript": "dark"},
        {"id": "broken", "media": str(media / "broken.mp4"), "transcript": "gone"},
    ]
    return [{**row, "mood": number % 4 - 1.5} for number, row in enumerate(table)]


def experiment(folder, rows, **changes):
    """An experiment file with its table, loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "clips.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "experiment.yaml"
    settings = {
        "dataset": "dataset",
        "source": {
            "table": table.name,
            "label": "mood",
            "media_root": [str(Path(rows[0]["media"]).parent)],
        },
        "features": FEATURES,
        "shards": {"clips": 3},
        "workers": {"featurize": 0},
        "max_dropped": 0.2,
        **changes,
    }
    file.write_text(yaml.safe_dump(settings))
    return load(file)


class Log(list):
    """The jobs that were done."""

    def __call__(self, done):
        self.append(done)

    @property
    def columns(self):
        return Counter(record.spec for done in self for record in done.records)


def make(folder, rows, **changes):
    """Ingest and featurize; returns the experiment and its columns."""
    made = experiment(folder, rows, **changes)
    ingest(made, InProcess(), lambda count: None)
    return made, featurize(made, InProcess(), lambda done: None)


def again(folder, rows, **changes):
    """Ingest and featurize; returns the columns and the log of what was done."""
    made, log = experiment(folder, rows, **changes), Log()
    ingest(made, InProcess(), lambda count: None)
    return featurize(made, InProcess(), log), log


def digests(root):
    """sha256 by name of every file below the columns."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / COLUMNS).rglob("*"))
        if path.is_file()
    }


def times(root):
    return {path: path.stat().st_mtime_ns for path in (root / COLUMNS).rglob("*")}


def records(root):
    """Every record that is there, its tar and index held against it."""
    found = []
    for path in (root / COLUMNS).glob("*/*-*.json"):
        record = Record.from_json(json.loads(path.read_bytes()))
        for part in (record.tar, record.index):
            content = (path.parent / part.file).read_bytes()
            assert len(content) == part.size
            assert hashlib.sha256(content).hexdigest() == part.sha256
        found.append(record)
    return found


def manifests(root):
    return sorted((root / COLUMNS).rglob("manifest.json"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, rows):
    """The bytes of a run in which nothing happened."""
    made, _ = make(tmp_path_factory.mktemp("undisturbed"), rows)
    return digests(made.root)


# Law 2


def test_equal_inputs_give_equal_bytes_whatever_the_order_of_the_rows(tmp_path, rows, undisturbed):
    one, _ = make(tmp_path / "one", rows)
    two, _ = make(tmp_path / "two", rows[::-1])
    assert digests(one.root) == digests(two.root) == undisturbed
    for name in ("clips.parquet", "plan.parquet"):
        assert (one.root / name).read_bytes() == (two.root / name).read_bytes()
    assert len([name for name in undisturbed if name.endswith(".tar")]) == 4 * len(FEATURES)


def test_a_second_run_computes_nothing_and_touches_no_file(tmp_path, rows):
    made, _ = make(tmp_path, rows)
    before = times(made.root)
    columns, log = again(tmp_path, rows)
    assert log == []
    assert times(made.root) == before
    assert {stream: len(column.rows) for stream, column in columns.items()} == dict.fromkeys(
        FEATURES, len(rows)
    )


def test_two_streams_with_the_same_featurizer_share_one_column(tmp_path, rows):
    made, columns = make(
        tmp_path, rows[:3], features={"a": FEATURES["text"], "b": FEATURES["text"]}
    )
    assert columns["a"].digest == columns["b"].digest
    assert len(list((made.root / COLUMNS).iterdir())) == 1
    lines = [line for line in read_logs(made.root) if line["kind"] == "job"]
    assert [len(line["columns"]) for line in lines] == [1]


# Law 3


class Dies:
    """An executor whose worker fails at one of its items."""

    def __init__(self, at):
        self.at = at

    def run(self, make_worker, items, need=one_cpu):
        worker = make_worker()
        for number, item in enumerate(items):
            if number == self.at:
                raise RuntimeError("the worker failed")
            yield Answer(number, worker(item))


def test_a_job_that_dies_leaves_no_record_and_only_what_is_missing_is_done_again(
    tmp_path, rows, undisturbed
):
    made = experiment(tmp_path, rows)
    ingest(made, InProcess(), lambda count: None)
    first, second = Log(), Log()
    with pytest.raises(RuntimeError, match="the worker failed"):
        featurize(made, Dies(3), first)
    done = sum(first.columns.values())
    assert len(records(made.root)) == done
    assert 0 < done < 12
    assert manifests(made.root) == []
    featurize(made, InProcess(), second)
    assert sum(second.columns.values()) == 12 - done
    assert digests(made.root) == undisturbed


def killed_and_run_again(tmp_path, rows, seed, kills, most):
    """Featurize with kill -9 at random steps on disk, then once in peace."""
    made = experiment(tmp_path, rows)
    ingest(made, InProcess(), lambda count: None)
    chance = random.Random(seed)  # noqa: S311 - a schedule that can be repeated, no secret
    died = 0
    for _ in range(kills):
        command = [sys.executable, "-c", DIES, tmp_path / "experiment.yaml"]
        ended = subprocess.run(
            [*command, str(chance.randint(1, most))], capture_output=True, text=True, check=False
        )
        assert ended.returncode in {0, -signal.SIGKILL}, ended.stderr
        died += ended.returncode != 0
        finished = {record.name: record for record in records(made.root)}
        for pointer in manifests(made.root):
            open_column(made.root, pointer.parent.name)
        assert len(finished) <= 12
    assert died
    featurize(made, InProcess(), lambda done: None)
    assert verify(made.root) == []
    return digests(made.root)


@pytest.mark.slow
def test_killed_at_any_moment_the_bytes_are_those_of_an_undisturbed_run(
    tmp_path, rows, undisturbed
):
    assert killed_and_run_again(tmp_path, rows, 3, 3, most=40) == undisturbed


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12])
def test_killed_fifteen_times_the_bytes_are_those_of_an_undisturbed_run(
    tmp_path, rows, undisturbed, seed
):
    assert killed_and_run_again(tmp_path, rows, seed, 15, most=12) == undisturbed


def test_temporary_files_of_a_killed_worker_are_gone_after_the_next_run(
    tmp_path, rows, undisturbed
):
    made = experiment(tmp_path, rows)
    ingest(made, InProcess(), lambda count: None)
    with pytest.raises(RuntimeError):
        featurize(made, Dies(3), lambda done: None)
    column = next((made.root / COLUMNS).iterdir())
    (column / ".00001-abc.tar.x7y8z9a0").write_bytes(b"half a tar")
    featurize(made, InProcess(), lambda done: None)
    assert verify(made.root) == []
    assert digests(made.root) == undisturbed


@pytest.mark.parametrize("which", ["tar", "index", "record"])
def test_a_shard_that_lost_a_file_is_made_again(tmp_path, rows, which):
    made, columns = make(tmp_path, rows[:3], features={"text": FEATURES["text"]})
    before, column = digests(made.root), columns["text"]
    record = column.records[0]
    names = {"tar": record.tar.file, "index": record.index.file, "record": record.file}
    Path(column.where(names[which])).unlink()
    assert verify(made.root) != []
    featurize(made, InProcess(), lambda done: None)
    assert digests(made.root) == before


# Law 4


def test_there_is_no_manifest_while_a_shard_is_missing(tmp_path, rows):
    made = experiment(tmp_path, rows)
    ingest(made, InProcess(), lambda count: None)
    seen = []
    featurize(made, InProcess(), lambda done: seen.append(manifests(made.root)))
    assert seen == [[]] * 8  # 4 of sound and pictures together, 4 of words
    assert len(manifests(made.root)) == 3
    for pointer in manifests(made.root):
        column = open_column(made.root, pointer.parent.name)
        assert len(column.records) == len({place.shard for place in read_plan(made.root)})


def test_a_column_that_was_never_finished_cannot_be_opened(tmp_path, rows):
    made = experiment(tmp_path, rows)
    ingest(made, InProcess(), lambda count: None)
    with pytest.raises(RuntimeError):
        featurize(made, Dies(3), lambda done: None)
    fingerprint = made.featurizers()["text"].spec.fingerprint
    with pytest.raises(DatasetError, match="no manifest"):
        open_column(made.root, fingerprint)


# Law 5


def test_too_many_dropped_clips_leave_records_but_no_manifest(tmp_path, rows):
    made = experiment(tmp_path, rows, max_dropped=0.05)
    ingest(made, InProcess(), lambda count: None)
    with pytest.raises(TooManyDroppedError, match=r"1 of 11 clips are quarantined .*unreadable"):
        featurize(made, InProcess(), lambda done: None)
    assert len(records(made.root)) == 12
    dropped = {record.spec for record in records(made.root) if record.faults}
    committed = {open_column(made.root, p.parent.name).spec.digest for p in manifests(made.root)}
    assert len(dropped) == 2
    assert not committed & dropped
    log = Log()
    featurize(experiment(tmp_path, rows), InProcess(), log)
    assert log == []
    assert len(manifests(made.root)) == 3


# Law 14


def test_the_ledger_balances(tmp_path, rows):
    made, columns = make(tmp_path, rows)
    for line in ledger(columns):
        assert line.clips == line.sample + line.absent + line.quarantined == len(rows)
    states = {
        stream: {row.key: row.fault or row.state for row in column.rows.values()}
        for stream, column in columns.items()
    }
    odd = {
        "text": {"whole3": "absent", "first": "absent", "second": "absent"},
        "audio": {"silent": "absent", "broken": "unreadable"},
        "video": {"unseen": "absent", "broken": "unreadable"},
    }
    for stream, found in states.items():
        assert found == {
            clip.key: odd[stream].get(clip.key, "sample") for clip in read_clips(made.root)
        }
    for stream, column in columns.items():
        for key, row in column.rows.items():
            feature = column.read(key)
            assert (feature is not None) == (row.state == "sample")
            assert feature is None or len(feature.values) == row.steps > 0
        assert {record.counts["sample"] for record in column.records} <= {0, 1, 2, 3}, stream


# Law 15, and what else recomputes nothing


def test_changing_every_split_and_label_recomputes_nothing_and_changes_no_byte(tmp_path, rows):
    made, _ = make(tmp_path, rows)
    before = times(made.root), digests(made.root)
    splits = ["test", "train", "valid"]
    other = [
        {**row, "mood": -row["mood"], "split": splits[i % 3], "speaker": f"p{i}"}
        for i, row in enumerate(rows)
    ]
    _, log = again(tmp_path, other)
    assert log == []
    assert (times(made.root), digests(made.root)) == before
    assert {clip.labels["mood"] for clip in read_clips(made.root)} == {r["mood"] for r in other}
    assert {clip.split for clip in read_clips(made.root)} == set(splits)


def test_a_changed_transcript_redoes_only_the_shard_of_words_that_holds_it(tmp_path, rows):
    made, columns = make(tmp_path, rows)
    before = digests(made.root)
    other = [{**row, "transcript": "mended now"} if row["id"] == "whole1" else row for row in rows]
    after, log = again(tmp_path, other)
    assert [(done.shard, len(done.records)) for done in log] == [
        (columns["text"].shards["whole1"], 1)
    ]
    assert log.columns == {columns["text"].spec.digest: 1}
    assert not np.array_equal(
        after["text"].read("whole1").values, columns["text"].read("whole1").values
    )
    pointer = f"columns/{columns['text'].spec.fingerprint}/manifest.json"
    now = digests(made.root)
    assert {name for name in before if now[name] != before[name]} == {pointer}
    assert verify(made.root) == []


def test_a_changed_setting_makes_a_new_column_and_leaves_others_alone(tmp_path, rows):
    made, columns = make(tmp_path, rows)
    before = times(made.root)
    features = {**FEATURES, "audio": {"featurizer": "logmel", "hop_ms": 40}}
    after, log = again(tmp_path, rows, features=features)
    assert set(log.columns) == {after["audio"].spec.digest}
    assert after["audio"].folder != columns["audio"].folder
    now = times(made.root)
    assert {path: now[path] for path in before if path.is_file()} == {
        path: time for path, time in before.items() if path.is_file()
    }


def test_new_clips_leave_finished_shards_alone(tmp_path, rows):
    made, _ = make(tmp_path, rows[:7])
    before, plan = times(made.root), read_plan(made.root)
    columns, log = again(tmp_path, rows)
    assert set(plan) < set(read_plan(made.root))
    assert not {done.shard for done in log} & {place.shard for place in plan}
    assert all(len(column.rows) == len(rows) for column in columns.values())
    now = times(made.root)
    shards = {path for path in before if path.suffix in {".tar", ".parquet"}}
    assert shards
    assert all(now[path] == before[path] for path in shards)


# Disk full


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "verb"), [(12_000, "featurize"), (60, "featurize"), (60, "ingest")]
)
def test_a_full_disk_is_one_line_and_running_again_finishes(
    tmp_path, rows, undisturbed, limit, verb
):
    made = experiment(tmp_path, rows)
    if verb == "featurize":
        ingest(made, InProcess(), lambda count: None)
    command = [sys.executable, "-c", CRAMPED, verb, tmp_path / "experiment.yaml", str(limit)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("fuseline: ")
    assert "could not be written" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert manifests(made.root) == []
    assert [path for path in made.root.rglob(".*") if path.is_file()] == []
    records(made.root)
    again(tmp_path, rows)
    assert digests(made.root) == undisturbed


def test_ingest_says_how_many_clips_cannot_be_read_and_keeps_them(tmp_path, rows):
    made = experiment(tmp_path, rows)
    told = []
    found = ingest(made, InProcess(), told.append)
    assert sum(told) == found.counts["clips"] == len(rows)
    assert found.counts["unreadable"] == 1
    assert found.task.kind == "regression"
    assert load(made.root / "experiment.resolved.yaml").features == made.features
    assert Path(made.root / "plan.parquet").is_file()


def test_media_that_changed_or_cannot_be_reached_stop_the_job_and_are_not_committed(
    tmp_path, media, rows
):
    copies = tmp_path / "copies"
    copies.mkdir()
    mine = []
    for row in rows[:4]:
        target = copies / Path(row["media"]).name
        target.write_bytes(Path(row["media"]).read_bytes())
        mine.append({**row, "media": str(target)})
    settings = experiment(tmp_path / "work", mine)
    ingest(settings, InProcess(), lambda count: None)
    away = (copies / "whole1.mp4").rename(copies / "elsewhere.mp4")
    with pytest.raises(ChangedInputError, match=r"whole1.*cannot be reached"):
        featurize(settings, InProcess(), lambda done: None)
    film(copies / "whole1.mp4", 99)
    with pytest.raises(ChangedInputError, match=r"whole1.*changed since it was ingested"):
        featurize(settings, InProcess(), lambda done: None)
    away.replace(copies / "whole1.mp4")
    log = Log()
    columns = featurize(settings, InProcess(), log)
    assert len(log) == 1  # the one job that reads it; all others were finished before
    assert all(row.state == "sample" for row in columns["video"].rows.values())


class Stops(Log):
    """Is interrupted when some jobs are done, as by Ctrl-C."""

    def __call__(self, done):
        super().__call__(done)
        if len(self) == 3:
            raise KeyboardInterrupt


def summaries(root):
    return [json.loads(path.read_bytes()) for path in (root / LOGS).glob("throughput-*.json")]


def test_a_run_that_was_stopped_tells_how_fast_its_finished_jobs_were(tmp_path, rows):
    settings = experiment(tmp_path, rows[:6])
    ingest(settings, InProcess(), lambda count: None)
    told, stopping = [], Stops()
    with pytest.raises(KeyboardInterrupt):
        featurize(settings, InProcess(), stopping, told.append)
    (found,) = summaries(settings.root)
    assert (found["jobs"], found["clips"] > 0) == (3, True)
    assert "in 3 jobs" in told[0]


def test_how_a_run_was_stopped_is_told_also_where_no_log_can_be_written(tmp_path, rows):
    settings = experiment(tmp_path, rows[:6])
    ingest(settings, InProcess(), lambda count: None)

    def worse(sentence):
        raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt):
        featurize(settings, InProcess(), Stops(), worse)


def test_a_run_that_finished_no_job_tells_no_speed(tmp_path, rows, monkeypatch):
    settings = experiment(tmp_path, rows[:3])
    ingest(settings, InProcess(), lambda count: None)
    monkeypatch.setattr(ShardWorker, "__call__", lambda worker, job: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        featurize(settings, InProcess(), Log())
    assert summaries(settings.root) == []


def test_training_is_refused_a_column_that_is_older_than_its_clips(tmp_path, rows):
    settings = experiment(tmp_path, rows[:3])
    ingest(settings, InProcess(), lambda count: None)
    with pytest.raises(DatasetError, match="featurize first"):
        finished(settings)
    featurize(settings, InProcess(), lambda done: None)
    assert set(finished(settings)) == set(FEATURES)
    settings = experiment(tmp_path, [{**rows[0], "transcript": "mended words"}, *rows[1:3]])
    ingest(settings, InProcess(), lambda count: None)
    with pytest.raises(DatasetError, match="featurize first"):
        finished(settings)
    settings = experiment(tmp_path, rows[:6])
    ingest(settings, InProcess(), lambda count: None)
    with pytest.raises(DatasetError, match="featurize first"):
        finished(settings)


@pytest.mark.parametrize("change", ["mended", "grown"])
def test_shards_that_are_finished_but_not_committed_are_out_of_date(tmp_path, rows, change):
    text = {"features": {"text": FEATURES["text"]}}
    before, after = rows[:3], rows[:6]
    if change == "mended":
        before, after = after, [{**rows[0], "transcript": "mended words"}, *rows[1:6]]
    make(tmp_path, before, **text)
    settings = experiment(tmp_path, after, **text)
    ingest(settings, InProcess(), lambda count: None)
    specs = [each.spec for each in settings.featurizers().values()]
    todo = jobs(settings.root, specs).todo
    run_jobs(settings, InProcess(), todo, lambda done: None, lambda sentence: None)
    assert not jobs(settings.root, specs).todo
    with pytest.raises(DatasetError, match="0 jobs are left to do and 1 columns are out of date"):
        finished(settings)
    _, log = again(tmp_path, after, **text)
    assert log == []
    assert set(finished(settings)) == {"text"}


@pytest.mark.parametrize("faults", [2, 99])
def test_a_shard_that_cannot_be_written_just_now_is_written_a_little_later(
    tmp_path, rows, monkeypatch, faults
):
    made = experiment(tmp_path, rows[:3], features={"text": FEATURES["text"]})
    ingest(made, InProcess(), lambda count: None)
    create, waits, left = LocalStore.create, [], [StorageError("busy", transient=True)] * faults

    def sometimes(store, name, content):
        if left:
            raise left.pop()
        return create(store, name, content)

    monkeypatch.setattr(LocalStore, "create", sometimes)
    monkeypatch.setattr("featurizers.transient.time.sleep", waits.append)
    if faults > 2:
        with pytest.raises(StorageError, match="busy"):
            featurize(made, InProcess(), lambda done: None)
        assert manifests(made.root) == []
    else:
        assert len(featurize(made, InProcess(), lambda done: None)["text"].rows) == 3
        assert len(waits) == 2


# The log


class Unlogged(LocalStore):
    """A disk on which there is no room for some lines of a log."""

    def append(self, name, part, content):
        if b'"event": "start"' not in content and b'"event"' in content:
            raise StorageError("no room for the log")
        super().append(name, part, content)


def test_a_log_that_cannot_be_written_hides_no_other_error_and_is_one(tmp_path, rows, monkeypatch):
    made = experiment(tmp_path, rows[:4], features={"text": FEATURES["text"]})
    ingest(made, InProcess(), lambda count: None)
    monkeypatch.setattr("pipelines.logbook.store_at", Unlogged)
    with pytest.raises(RuntimeError, match="the worker failed"):
        featurize(made, Dies(1), lambda done: None)
    with pytest.raises(StorageError, match="no room for the log"):
        featurize(made, InProcess(), lambda done: None)


def test_the_log_tells_how_a_run_ended(tmp_path, rows):
    made = experiment(tmp_path, rows[:4], features={"text": FEATURES["text"]})
    ingest(made, InProcess(), lambda count: None)
    with pytest.raises(RuntimeError):
        featurize(made, Dies(1), lambda done: None)
    featurize(made, InProcess(), lambda done: None)
    events = [line["event"] for line in read_logs(made.root) if line["kind"] == "run"]
    assert sorted(events) == ["end", "start", "start", "stopped"]


def inputs(folder, *reads):
    return Inputs(Stage(folder=folder, limit_bytes=0), set(reads))


def test_streams_are_held_against_what_was_ingested_where_they_are_read(tmp_path):
    path = tmp_path / "pose.npy"
    path.write_bytes(b"one")
    digest = hashlib.sha256(b"one").hexdigest()
    made = Clip(
        key="a",
        id="a",
        media="/a.mp4",
        media_digest="",
        streams={"pose": str(path)},
        stream_digests={"pose": digest},
    )
    inputs(tmp_path, "stream:pose").check_streams(made)
    path.write_bytes(b"two")
    with pytest.raises(ChangedInputError, match=r"clip 'a': .*pose\.npy changed since"):
        inputs(tmp_path, "stream:pose").check_streams(made)
    inputs(tmp_path, "audio", "stream:gaze").check_streams(made)


def test_a_film_of_many_clips_is_read_once(tmp_path, media, monkeypatch):
    film_ = media / "long.mp4"
    digest = hashlib.sha256(film_.read_bytes()).hexdigest()
    read = []
    monkeypatch.setattr("pipelines.worker.file_digest", lambda path: read.append(path) or digest)
    found = inputs(tmp_path, "audio")
    for key in ("a", "b", "c"):
        made = Clip(key=key, id=key, media=str(film_), media_digest=digest)
        assert found.fetch(made) == film_
    assert read == [film_]
    assert found.bytes_read == film_.stat().st_size


def test_a_plan_that_lacks_clips_is_refused(tmp_path, rows):
    settings = experiment(tmp_path, rows[:2])
    ingest(settings, InProcess(), lambda count: None)
    old = (tmp_path / "dataset" / "plan.parquet").read_bytes()
    settings = experiment(tmp_path, rows[:5])
    ingest(settings, InProcess(), lambda count: None)
    (tmp_path / "dataset" / "plan.parquet").write_bytes(old)
    with pytest.raises(DatasetError, match="ingest again"):
        featurize(settings, InProcess(), lambda done: None)


def test_the_bytes_do_not_depend_on_where_media_lie_or_what_they_are_called(tmp_path, rows):
    """Quarantined clips too: their messages name no file."""
    found = []
    for place in ("here", "there"):
        folder = tmp_path / place
        folder.mkdir()
        mine = []
        for row in rows:
            target = folder / f"{place}-{Path(row['media']).name}"
            target.write_bytes(Path(row["media"]).read_bytes())
            mine.append({**row, "media": str(target)})
        settings = experiment(tmp_path / f"{place}-work", mine)
        ingest(settings, InProcess(), lambda count: None)
        featurize(settings, InProcess(), lambda done: None)
        columns = settings.root / COLUMNS
        found.append(
            {
                str(path.relative_to(columns)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in columns.rglob("*")
                if path.is_file()
            }
        )
    assert found[0] == found[1]
