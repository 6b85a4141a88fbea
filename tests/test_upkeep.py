"""Growing, mending, retrying and forgetting: only what a change touches is touched."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from featurizers import catalog
from featurizers.clip import BadClipError, Clip
from featurizers.dataset import COLUMNS, LOGS, DatasetError, read_clips, read_forgotten
from featurizers.lexical import HashedWords
from featurizers.manifest import open_column
from featurizers.verify import verify
from pipelines.executors import InProcess
from pipelines.experiment import InputError
from pipelines.featurize import TooManyDroppedError, featurize, finished
from pipelines.forecast import estimate, forecast
from pipelines.ingest import ingest, read_plan
from pipelines.upkeep import _without_a_file, forget, retry
from pipelines.worker import Job, Part
from tests import undisturbed
from tests.test_featurize import again, digests, experiment, film, make, rows_of_words

TEXT = {"text": {"featurizer": "hashed-words"}}
BOTH = {**TEXT, "audio": {"featurizer": "logmel", "hop_ms": 20}}


def quiet(sentence):
    """Tell nobody."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Seven films of one second, with words."""
    return rows_of_words(tmp_path_factory.mktemp("media"), 7)


class Faulty:
    """Makes a featurizer refuse some clips, as a decoder does on a bad day."""

    def __init__(self, monkeypatch):
        self.refused, self.computed = {}, []
        begin = HashedWords.begin

        def sometimes(featurizer, clip):
            self.computed.append(clip.id)
            if clip.id in self.refused:
                raise BadClipError(self.refused[clip.id], "on a bad day")
            return begin(featurizer, clip)

        monkeypatch.setattr(HashedWords, "begin", sometimes)


@pytest.fixture
def faulty(monkeypatch):
    return Faulty(monkeypatch)


# Retry


def test_retry_computes_quarantined_clips_alone_and_ends_in_the_undisturbed_bytes(
    tmp_path, rows, faulty
):
    clean, _ = make(tmp_path / "clean", rows, features=TEXT)
    faulty.refused = {"who1": "timed_out", "who5": "crashed"}
    made, columns = make(tmp_path / "made", rows, features=TEXT, max_dropped=0.5)
    assert {k for k, row in columns["text"].rows.items() if row.fault} == {"who1", "who5"}
    faulty.refused, faulty.computed = {}, []
    found = retry(made, [], InProcess(), lambda done: None, quiet)
    assert sorted(faulty.computed) == ["who1", "who5"]
    assert found.clips == {columns["text"].spec.fingerprint: 2}
    assert found.left == {columns["text"].spec.fingerprint: 0}
    now, wanted = digests(made.root), digests(clean.root)
    assert {name: now[name] for name in wanted} == wanted
    assert verify(made.root) == []
    assert finished(made)["text"].digest == found.columns["text"].digest


def test_retry_of_a_reason_leaves_other_quarantined_clips_alone(tmp_path, rows, faulty):
    faulty.refused = {"who1": "timed_out", "who5": "crashed"}
    made, _ = make(tmp_path, rows, features=TEXT, max_dropped=0.5)
    faulty.refused, faulty.computed = {}, []
    found = retry(made, ["crashed"], InProcess(), lambda done: None, quiet)
    assert faulty.computed == ["who5"]
    rows_now = found.columns["text"].rows
    assert (rows_now["who1"].fault, rows_now["who5"].state) == ("timed_out", "sample")


def test_retry_that_fails_again_counts_what_is_left_and_changes_no_byte(tmp_path, rows, faulty):
    faulty.refused = {"who1": "timed_out"}
    made, _ = make(tmp_path, rows, features=TEXT, max_dropped=0.5)
    before = digests(made.root)
    found = retry(made, [], InProcess(), lambda done: None, quiet)
    assert list(found.left.values()) == [1]
    assert digests(made.root) == before


def test_retry_leaves_out_clips_that_had_no_file_and_tries_the_others(tmp_path, rows, faulty):
    late = [tmp_path / f"late{number}.mp4" for number in range(2)]
    table = [*rows[:5], *({**rows[5], "id": path.stem, "media": str(path)} for path in late)]
    media = {"source": {"table": "clips.jsonl", "label": "mood", "media_root": ["/"]}}
    clean, _ = make(tmp_path / "clean", table, features=BOTH, max_dropped=0.5, **media)
    faulty.refused = {"who1": "timed_out"}
    made, columns = make(tmp_path / "made", table, features=BOTH, max_dropped=0.5, **media)
    audio, text = (columns[name].spec.fingerprint for name in ("audio", "text"))
    assert {columns["audio"].rows[path.stem].fault for path in late} == {"missing"}
    late[0].write_bytes(Path(rows[5]["media"]).read_bytes())
    faulty.refused, told, done = {}, [], []
    found = retry(made, [], InProcess(), done.append, told.append)
    assert (found.clips, found.left) == ({text: 1, audio: 0}, {text: 0, audio: 0})
    assert found.left_out == ["late0", "late1"]
    assert told[0] == (
        "2 clips are left out, of which there was no file when they were ingested: 'late0', "
        "'late1'; where there is one now, ingest again, then featurize"
    )
    assert [each.clips for each in done] == [1]
    now, wanted = digests(made.root), digests(clean.root)
    assert {name: now[name] for name in wanted} == wanted
    columns, _ = again(tmp_path / "made", table, features=BOTH, max_dropped=0.5, **media)
    assert columns["audio"].rows["late0"].state == "sample"


def test_only_some_of_many_clips_that_are_left_out_are_named():
    assert ": 'a', 'b'; where" in _without_a_file(["a", "b"])
    assert "'8', '9' and 15 more; where" in _without_a_file([str(n) for n in range(25)])


def test_after_a_retry_a_column_that_lost_too_much_is_committed(tmp_path, rows, faulty):
    made = experiment(tmp_path, rows, features=TEXT, max_dropped=0.05)
    ingest(made, InProcess(), lambda count: None)
    faulty.refused = {"who1": "timed_out"}
    with pytest.raises(TooManyDroppedError):
        featurize(made, InProcess(), lambda done: None)
    faulty.refused = {}
    assert retry(made, [], InProcess(), lambda done: None, quiet).columns["text"].rows["who1"].steps


def test_one_column_that_lost_too_much_does_not_keep_the_others_from_being_committed(
    tmp_path, rows, faulty
):
    features = {"1st": BOTH["audio"], "2nd": BOTH["text"], "3rd": {"featurizer": "face-motion"}}
    made = experiment(tmp_path, rows, features=features, max_dropped=0.05)
    ingest(made, InProcess(), lambda count: None)
    faulty.refused = {"who1": "timed_out"}
    with pytest.raises(TooManyDroppedError, match="1 of 7 clips"):
        featurize(made, InProcess(), lambda done: None)
    for stream in ("1st", "3rd"):
        fingerprint = made.featurizers()[stream].spec.fingerprint
        assert len(open_column(made.root, fingerprint).rows) == 7


def test_retry_of_what_was_never_finished_says_what_to_do(tmp_path, rows):
    made = experiment(tmp_path, rows[:2], features=TEXT)
    ingest(made, InProcess(), lambda count: None)
    with pytest.raises(DatasetError, match="1 jobs are left to do; featurize first"):
        retry(made, [], InProcess(), lambda done: None, quiet)


def flip(path, at):
    """Turn a bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def flip_clip(column, key):
    """Turn a bit of a clip's numbers."""
    (record,) = (each for each in column.records if each.shard == column.shards[key])
    place = column.rows[key].members["values"]
    flip(Path(column.where(record.tar.file)), place.offset + place.size - 1)
    return record


def test_what_retry_cannot_read_of_the_other_clips_it_computes_anew(tmp_path, rows, faulty):
    clean, _ = make(tmp_path / "clean", rows, features=TEXT)
    faulty.refused = {"who1": "timed_out"}
    made, columns = make(tmp_path / "made", rows, features=TEXT, max_dropped=0.5)
    shard = columns["text"].shards["who1"]
    beside = next(k for k, s in columns["text"].shards.items() if s == shard and k != "who1")
    flip_clip(columns["text"], beside)
    faulty.refused, faulty.computed = {}, []
    retry(made, [], InProcess(), lambda done: None, quiet)
    assert set(faulty.computed) == {"who1", beside}
    now, wanted = digests(made.root), digests(clean.root)
    assert {name: now[name] for name in wanted} == wanted


def test_an_unknown_reason_is_refused(tmp_path, rows):
    made, _ = make(tmp_path, rows[:2], features=TEXT)
    with pytest.raises(InputError, match="--reason gremlins: there is none; there are missing"):
        retry(made, ["gremlins"], InProcess(), lambda done: None, quiet)


# Forget


def holds(root, text):
    """The files below a folder in which a text occurs."""
    return [path for path in root.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_a_forgotten_clip_is_in_no_file_and_the_others_are_as_if_it_had_never_been_there(
    tmp_path, rows, faulty
):
    made, columns = make(tmp_path / "made", rows, features=BOTH)
    kept = {key: columns["audio"].read(key) for key in columns["audio"].rows if key != "who3"}
    cached = made.root / "cache" / "a-copy.mp4"
    cached.parent.mkdir()
    cached.write_bytes(b"who3 in person")
    faulty.computed = []
    found = forget(made.root, ["who3"], quiet)
    assert (found.clips, found.shards) == (1, 2)
    assert faulty.computed == []
    assert holds(made.root, b"who3") == []
    assert "who3" not in {place.key for place in read_plan(made.root)}  # whose file is compressed
    assert [clip.key for clip in read_clips(made.root)] == [
        "who0",
        "who1",
        "who2",
        "who4",
        "who5",
        "who6",
    ]
    assert verify(made.root) == []
    after = finished(made)
    assert set(after["audio"].rows) == set(kept)
    for key, feature in kept.items():
        assert after["audio"].read(key).values.tobytes() == feature.values.tobytes()
    without = [row for row in rows if row["id"] != "who3"]
    _, log = again(tmp_path / "made", without, features=BOTH)
    assert log == []


def test_a_later_ingest_passes_forgotten_clips_over(tmp_path, rows):
    made, _ = make(tmp_path, rows, features=TEXT)
    forget(made.root, ["who3"], quiet)
    found = ingest(made, InProcess(), lambda count: None)
    assert found.forgotten == 1
    forget(made.root, ["who5"], quiet)
    found = ingest(made, InProcess(), lambda count: None)
    assert found.forgotten == 2
    assert "who3" not in {clip.key for clip in found.clips}
    assert featurize(made, InProcess(), lambda done: None)["text"].rows.keys() == {
        clip.key for clip in found.clips
    }


def test_forgetting_reaches_shards_of_older_inputs_and_what_was_never_committed(tmp_path, rows):
    make(tmp_path, rows, features=TEXT)
    other = [{**row, "transcript": "mended"} if row["id"] == "who3" else row for row in rows]
    made, _ = make(tmp_path, other, features=TEXT)
    column = made.root / COLUMNS / made.featurizers()["text"].spec.fingerprint
    (column / "00000-0123456789ab-01234567.tar").write_bytes(b"who3.hashed-words.npy")
    (column / ".00000-0123456789ab.tar.x7y8z9a0").write_bytes(b"who3.hashed")
    assert holds(column, b"who3")
    forget(made.root, ["who3"], quiet)
    assert holds(made.root, b"who3") == []
    assert verify(made.root) == []


def test_a_shard_of_which_nobody_can_tell_whom_it_holds_is_removed_too(tmp_path, rows):
    make(tmp_path, rows, features=TEXT)
    other = [{**row, "transcript": "mended"} if row["id"] == "who3" else row for row in rows]
    _, before = make(tmp_path, rows, features=TEXT)
    made, after = make(tmp_path, other, features=TEXT)
    names = {record.index.file for record in after["text"].records}
    (older,) = (r for r in before["text"].records if r.index.file not in names)
    index = Path(before["text"].where(older.index.file))
    flip(index, index.stat().st_size // 2)
    forget(made.root, ["who3"], quiet)
    assert not index.exists()
    assert holds(made.root, b"who3") == []
    assert verify(made.root) == []


def test_what_forgetting_cannot_read_of_the_other_clips_it_computes_anew(tmp_path, rows, faulty):
    made, columns = make(tmp_path, rows, features=TEXT)
    column, shard = columns["text"], columns["text"].shards["who3"]
    beside = {key for key, other in column.shards.items() if other == shard} - {"who3"}
    kept = {key: column.read(key).values.tobytes() for key in beside}
    (record,) = (each for each in column.records if each.shard == shard)
    index = Path(column.where(record.index.file))
    flip(index, index.stat().st_size // 2)
    faulty.computed = []
    forget(made.root, ["who3"], quiet)
    assert set(faulty.computed) == beside
    after = finished(made)["text"]
    assert {key: after.read(key).values.tobytes() for key in beside} == kept
    assert verify(made.root) == []


def test_forgetting_takes_no_old_feature_for_a_clip_that_changed_since(tmp_path, rows):
    _, columns = make(tmp_path / "made", rows, features=TEXT)
    shard = columns["text"].shards["who3"]
    beside = next(k for k, s in columns["text"].shards.items() if s == shard and k != "who3")
    other = [{**r, "transcript": "mended words"} if r["id"] == beside else r for r in rows]
    made = experiment(tmp_path / "made", other, features=TEXT)
    ingest(made, InProcess(), lambda count: None)
    told = []
    forget(made.root, ["who3"], told.append)
    assert "is not finished any more; featurize again" in told[-1]
    with pytest.raises(DatasetError, match="featurize first"):
        open_column(made.root, columns["text"].spec.fingerprint)
    assert holds(made.root, b"who3") == []
    _, fresh = make(tmp_path / "fresh", other, features=TEXT)
    after = featurize(made, InProcess(), lambda done: None)["text"]
    assert after.read(beside).values.tobytes() == fresh["text"].read(beside).values.tobytes()


def test_a_shard_that_cannot_be_written_without_a_clip_is_told_and_left_to_featurize(
    tmp_path, rows
):
    films = [tmp_path / f"film{number}.mp4" for number in range(3)]
    for film_, row in zip(films, rows, strict=False):
        film_.write_bytes(Path(row["media"]).read_bytes())
    mine = [{**row, "media": str(path)} for row, path in zip(rows, films, strict=False)]
    made, columns = make(tmp_path / "made", mine, features={"audio": BOTH["audio"]})
    flip_clip(columns["audio"], "who1")
    away, told = films[1].rename(tmp_path / "away.mp4"), []
    forget(made.root, ["who0"], told.append)
    assert "shard 0 has to be computed anew: clip 'who1'" in told[0]
    assert "is not finished any more" in told[1]
    assert holds(made.root, b"who0") == []
    away.rename(films[1])
    assert set(featurize(made, InProcess(), lambda done: None)["audio"].rows) == {"who1", "who2"}


@pytest.mark.parametrize("step", range(1, 24))
def test_forgetting_that_breaks_off_is_finished_by_calling_it_again(
    tmp_path, rows, monkeypatch, step
):
    from featurizers.store import LocalStore

    made, _ = make(tmp_path, rows[:4], features=TEXT)

    class BrokenOffError(BaseException):
        """The machine went away."""

    left = [step]

    def counted(real):
        def wrapped(store, *arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                raise BrokenOffError
            return real(store, *arguments, **named)

        return wrapped

    with monkeypatch.context() as broken:
        for name in ("replace", "create", "draft", "delete", "append"):
            broken.setattr(LocalStore, name, counted(getattr(LocalStore, name)))
        try:
            forget(made.root, ["who1"], quiet)
        except BrokenOffError:
            undisturbed.hold_standing(undisturbed.files(made.root))
        else:
            pytest.skip("it has fewer steps")
    forget(made.root, ["who1"], quiet)
    assert holds(made.root, b"who1") == []
    assert verify(made.root) == []
    assert set(finished(made)["text"].rows) == {"who0", "who2", "who3"}


def test_logs_forget_too_and_stay_readable(tmp_path, rows):
    made, _ = make(tmp_path, rows, features=BOTH)
    logs = made.root / LOGS
    assert holds(logs, b'"who3"')
    (logs / "featurize-20260101T000000-0000.jsonl").write_bytes(b'{"slowest": [{"key": "who3", "se')
    forget(made.root, ["who3"], quiet)
    lines = [
        json.loads(line) for path in logs.glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    slowest = {each["key"] for line in lines for each in line.get("slowest", ())}
    assert slowest
    assert "who3" not in slowest


def test_an_unknown_clip_is_refused_with_the_nearest_name_and_nothing_is_lost(tmp_path, rows):
    made, _ = make(tmp_path, rows[:3], features=TEXT)
    before = digests(made.root)
    with pytest.raises(InputError, match="there is no clip 'who11'; did you mean 'who1'"):
        forget(made.root, ["who0", "who11"], quiet)
    assert digests(made.root) == before
    assert read_forgotten(made.root) == frozenset()


def test_a_shard_that_a_late_worker_wrote_with_a_forgotten_clip_is_told(tmp_path, rows):
    made, _ = make(tmp_path / "made", rows[:3], features=TEXT)
    late, _ = make(tmp_path / "late", rows[:3], features=TEXT)
    forget(made.root, ["who1"], quiet)
    fingerprint = made.featurizers()["text"].spec.fingerprint
    for path in (late.root / COLUMNS / fingerprint).glob("0*"):
        (made.root / COLUMNS / fingerprint / path.name).write_bytes(path.read_bytes())
    (problem,) = verify(made.root)
    assert (problem.what, problem.clips) == ("forgotten", ("who1",))
    forget(made.root, ["who1"], quiet)
    assert verify(made.root) == []


def test_forgetting_takes_files_that_lie_beside_the_columns_as_well(tmp_path, rows):
    made, _ = make(tmp_path, rows[:3], features=TEXT)
    stray = made.root / COLUMNS / "copy-of-a.tar"
    stray.write_bytes(b"who1")
    forget(made.root, ["who1"], quiet)
    assert not stray.exists()
    assert verify(made.root) == []


# What is going to be done


def told(made, **how):
    return forecast(made, InProcess(), lambda count: None, **{"read_table": True, **how})


def counts(found, stream):
    column = next(each for each in found.columns if each.stream == stream)
    return [(share.shards, share.clips) for share in column.shares()]


def test_the_plan_says_what_is_new_redone_and_kept_before_anything_is_done(tmp_path, rows):
    made = experiment(tmp_path, rows[:3], features=BOTH)
    first = told(made)
    assert first.changes == {"new": 3, "changed": 0, "gone": 0, "as before": 0}
    assert counts(first, "audio") == [(1, 3), (0, 0), (0, 0)]
    assert first.seconds is None
    assert not (made.root / "clips.parquet").exists()
    make(tmp_path, rows[:3], features=BOTH)
    mended = [{**rows[0], "transcript": "other words"}, *rows[1:6]]
    made = experiment(tmp_path, mended, features=BOTH)
    second = told(made)
    assert second.changes == {"new": 3, "changed": 1, "gone": 0, "as before": 2}
    assert counts(second, "text") == [(1, 3), (1, 3), (0, 0)]
    assert counts(second, "audio") == [(1, 3), (0, 0), (1, 3)]
    assert second.seconds > 0
    assert second.media_hours == pytest.approx(3 / 3600, rel=0.1)
    _, log = again(tmp_path, mended, features=BOTH)
    assert len(log) == second.jobs
    third = told(made)
    assert (third.jobs, third.seconds) == (0, 0.0)
    assert counts(third, "text") == [(0, 0), (0, 0), (2, 6)]


def job_of(spec, number):
    clips = tuple(Clip(key=f"{number}-{n}", id="", media="", media_digest="") for n in range(10))
    return Job(shard=number, clips=clips, parts=(Part(spec=spec, job=""),))


@pytest.mark.parametrize(
    ("jobs", "workers", "seconds"),
    [(1, 8, 10.0), (8, 8, 10.0), (9, 8, 20.0), (16, 1, 160.0), (7, 2, 40.0), (0, 2, 0.0)],
)
def test_more_workers_than_jobs_make_nothing_faster(jobs, workers, seconds):
    spec = HashedWords().spec
    todo = [job_of(spec, number) for number in range(jobs)]
    line = {"kind": "job", "columns": [spec.fingerprint], "seconds": 10}
    found, _ = estimate(todo, [{**line, "media_seconds": 0, "clips": 10}], workers)
    assert found == pytest.approx(seconds)


def test_the_plan_of_changed_splits_and_labels_is_to_keep_everything(tmp_path, rows):
    make(tmp_path, rows, features=TEXT)
    other = [{**row, "mood": -row["mood"], "split": "test"} for row in rows]
    found = told(experiment(tmp_path, other, features=TEXT))
    assert found.changes["as before"] == 7
    assert found.jobs == 0


def test_the_plan_of_what_was_ingested_reads_no_table(tmp_path, rows):
    made, _ = make(tmp_path, rows[:3], features=TEXT)
    made.table.unlink()
    found = told(made, read_table=False)
    assert found.changes is None
    assert counts(found, "text") == [(0, 0), (0, 0), (1, 3)]


def test_a_raised_version_of_a_featurizer_redoes_its_own_column_alone(tmp_path, rows, monkeypatch):
    make(tmp_path, rows[:3], features=BOTH)
    init = HashedWords.__init__

    def raised(self, *, dims: int = 64):
        init(self, dims=dims)
        self.spec = replace(self.spec, version=99)

    monkeypatch.setattr(HashedWords, "__init__", raised)
    assert catalog.build("hashed-words").spec.version == 99
    found = told(experiment(tmp_path, rows[:3], features=BOTH))
    assert counts(found, "text") == [(1, 3), (0, 0), (0, 0)]
    assert counts(found, "audio") == [(0, 0), (0, 0), (1, 3)]


def test_clips_that_grow_and_change_again_and_again_end_where_a_fresh_start_does(tmp_path, rows):
    """Ingests in any steps: no clip is lost or doubled, and columns hold the same features."""
    for step in (2, 3, 7):
        made, columns = make(tmp_path / "grown", rows[:step], features=TEXT)
    _, fresh = make(tmp_path / "fresh", rows, features=TEXT)
    places = [place.key for place in read_plan(made.root)]
    assert sorted(places) == sorted(set(places)) == sorted(row["id"] for row in rows)
    for key in places:
        one, other = columns["text"].read(key), fresh["text"].read(key)
        assert one.values.tobytes() == other.values.tobytes()


def test_a_film_whose_bytes_changed_redoes_what_reads_it_and_not_the_words(tmp_path, rows):
    copy = tmp_path / "copy.mp4"
    film(copy, 50)
    mine = [*rows[:2], {**rows[2], "media": str(copy)}]
    changes = {
        "features": BOTH,
        "source": {
            "table": "clips.jsonl",
            "label": "mood",
            "media_root": [str(tmp_path), str(copy.parent), rows[0]["media"].rsplit("/", 1)[0]],
        },
    }
    make(tmp_path / "made", mine, **changes)
    film(copy, 51)
    columns, log = again(tmp_path / "made", mine, **changes)
    assert set(log.columns) == {columns["audio"].spec.digest}
