"""The ledger report: every clip is counted from the table, and any log is understood."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers.clip import FAULTS, Clip, key_of
from featurizers.dataset import COLUMNS, LOGS, write_clips
from featurizers.extract import Outcome
from featurizers.manifest import commit
from featurizers.shards import Row, job_id, write_shard
from featurizers.spec import Dim, Feature, FeatureSpec
from featurizers.stages import Stages
from featurizers.store import LocalStore
from pipelines.executors import InProcess
from pipelines.featurize import TooManyDroppedError, featurize
from pipelines.ingest import ingest
from pipelines.logbook import Logbook
from pipelines.pages.ledger import page, sentences, tables
from pipelines.parts import parts_of
from pipelines.report import Unfinished, build_report, file_name, report
from pipelines.throughput import of_run, runs_of, throughput
from tests.test_featurize import experiment, film

MEDIA = "/srv/people/secret"


def spec_of(name):
    return FeatureSpec(
        name=name, version=1, modality="audio", reads=("audio",), dims=(Dim("a"),), rate_hz=2.0
    )


def clip_of(name, **changes):
    usual = {"key": key_of(name), "id": name, "media": f"{MEDIA}/{name}.mp4", "seconds": 2.0}
    return Clip(**{**usual, "media_digest": f"digest of {name}", **changes})


def row_of(key, state="sample", fault=None, message="", steps=4):
    return Row(
        key=key, state=state, fault=fault, message=message, steps=steps, seconds=2.0, members={}
    )


class Told:
    """The counts that a shard's record tells."""

    def __init__(self, **counts):
        self.counts = counts


def column_of(rows, name="level"):
    """A column with one record that agrees with its rows."""
    counts = Counter(row.state for row in rows)
    return Unfinished(
        spec=spec_of(name), records=(Told(**counts),), rows={row.key: row for row in rows}
    )


def made_of(clips, rows, log=(), **changes):
    return build_report("set", clips, {"level": column_of(rows)}, log, **changes)


CLIPS = [
    clip_of("a", split="train", labels={"mood": 1.5, "feeling": "glad"}),
    clip_of("b", split="train", labels={"mood": -0.5, "feeling": "sad"}),
    clip_of("c", split="test", labels={"mood": 0.0, "feeling": "glad"}, seconds=8.0),
    clip_of("d", split="extra", labels={"mood": 2.0}, seconds=0.0),
    clip_of("e.f/g", labels={"feeling": "glad"}, seconds=4.0),
]
ROWS = [
    row_of("a"),
    row_of("b", "absent"),
    row_of("c", message="audio: 1 of 9 packets are damaged", steps=16),
    row_of("d", "quarantined", "missing", f"{MEDIA}/d.mp4 is not there", 0),
    row_of(CLIPS[4].key, "quarantined", "corrupt", "cut short", 0),
]


def line(made, part, value):
    [found] = [each for each in made.of(part) if each.value == value]
    return found.clips, found.sample, found.absent, found.quarantined, dict(found.faults)


# The ledger


def test_the_ledger_counts_all_clips_and_those_of_each_split_and_label():
    made = made_of(CLIPS, ROWS)
    assert line(made, "all", "all") == (5, 2, 1, 2, {"corrupt": 1, "missing": 1})
    assert line(made, "split", "train") == (2, 1, 1, 0, {})
    assert line(made, "split", "(none)") == (1, 0, 0, 1, {"corrupt": 1})
    assert made.values["split"] == ("train", "test", "(none)", "extra")
    assert line(made, "label feeling", "glad") == (3, 2, 0, 1, {"corrupt": 1})
    assert line(made, "label feeling", "(none)") == (1, 0, 0, 1, {"missing": 1})
    assert made.values["label mood"] == ("negative", "zero", "positive", "(none)")
    assert line(made, "label mood", "positive") == (2, 1, 0, 1, {"missing": 1})
    assert made.balanced
    assert (made.clips, made.columns, made.complete) == (5, 1, 2)


def test_a_clip_that_a_column_does_not_know_unbalances_the_ledger_and_is_named():
    made = made_of(CLIPS, ROWS[1:])
    assert not made.balanced
    assert made.problems == ("level: 1 of 5 clips are not in the column: a; featurize again",)
    assert [each.unknown for each in made.of("all")] == [1]
    assert made.to_json()["balanced"] is False
    assert "does not balance" in sentences(made)[0]
    assert "a; featurize again" in page(made)


def test_a_row_without_a_clip_unbalances_the_ledger():
    made = made_of(CLIPS[1:], ROWS)
    [problem] = made.problems
    assert problem.startswith("level: 1 clips of the column are not in the table: a;")


def test_records_that_tell_other_counts_than_the_indexes_unbalance_the_ledger():
    column = replace(column_of(ROWS), records=(Told(sample=3, absent=1, quarantined=1),))
    made = build_report("set", CLIPS, {"level": column}, [])
    [problem] = made.problems
    assert problem == (
        "level: the indexes and the records differ: 2 sample (told 3), 1 absent (told 1), "
        "2 quarantined (told 1); verify the dataset"
    )


def test_a_row_of_no_known_state_unbalances_the_ledger():
    [problem] = made_of(CLIPS, [row_of("a", "lost"), *ROWS[1:]]).problems
    assert problem == "level: 1 clips have an unknown state: a"


def test_many_missing_clips_are_counted_and_some_of_them_named():
    clips = [clip_of(f"c{number}") for number in range(9)]
    [problem] = made_of(clips, []).problems
    assert "9 of 9 clips are not in the column: c0, c1, c2, c3, c4 and 4 more" in problem


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["sample", "absent", "quarantined", None]),
            st.sampled_from(["train", "valid", None]),
            st.one_of(
                st.floats(allow_nan=True, allow_infinity=True),
                st.text(max_size=3),
                st.tuples(st.text(max_size=2), st.text(max_size=2)),
                st.none(),
            ),
        ),
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_labels_every_part_counts_each_state_as_a_plain_count_does(told):
    clips, rows = [], []
    for number, (state, split, label) in enumerate(told):
        labels = {} if label is None else {"mood": label}
        clips.append(clip_of(f"c{number}", split=split, labels=labels))
        if state is not None:
            fault = "corrupt" if state == "quarantined" else None
            rows.append(row_of(f"c{number}", state, fault))
    made = made_of(clips, rows)
    assert made.balanced == all(state is not None for state, _, _ in told)
    states = Counter(state for state, _, _ in told)
    for part in ("all", "split"):
        lines = made.of(part)
        for state in ("sample", "absent", "quarantined"):
            assert sum(getattr(each, state) for each in lines) == states[state]
        assert sum(each.unknown for each in lines) == states[None]
    kinds = {type(label) for _, _, label in told if label is not None}
    if len(kinds) == 1 and tuple not in kinds:
        assert sum(each.clips for each in made.of("label mood")) == len(told)
    json.dumps(made.to_json(), allow_nan=False)


def test_numbers_of_one_sign_are_shown_in_quarters_and_a_few_one_by_one():
    many = [clip_of(f"c{n}", labels={"age": float(n)}) for n in range(100)]
    quarters = parts_of(many)["label age"]
    assert list(quarters) == ["0 to 24.75", "24.75 to 49.5", "49.5 to 74.25", "74.25 to 99"]
    assert [len(keys) for keys in quarters.values()] == [25, 25, 25, 25]
    few = [clip_of(f"c{n}", labels={"stars": float(n % 3 + 1)}) for n in range(9)]
    assert {value: len(keys) for value, keys in parts_of(few)["label stars"].items()} == {
        "1": 3,
        "2": 3,
        "3": 3,
    }


def test_a_clip_with_several_labels_counts_for_each_and_one_with_none_for_none():
    clips = [
        clip_of("a", labels={"seen": ("glad", "loud")}),
        clip_of("b", labels={"seen": ()}),
        clip_of("c", labels={"seen": ("loud",)}),
    ]
    found = parts_of(clips)["label seen"]
    assert found == {"glad": ["a"], "loud": ["a", "c"], "(none)": ["b"]}


# What was lost


def test_quarantined_clips_are_all_there_with_their_reasons_sorted():
    made = made_of(CLIPS, ROWS)
    assert [(each.fault, each.key, each.id) for each in made.quarantined] == [
        ("corrupt", CLIPS[4].key, "e.f/g"),
        ("missing", "d", "d"),
    ]
    assert [each.message for each in made.damaged] == ["audio: 1 of 9 packets are damaged"]


def test_no_folder_of_media_is_told_to_anybody():
    made = made_of(CLIPS, ROWS, log=[job(host="node7.example.org")])
    assert [each.media for each in made.quarantined] == ["g.mp4", "d.mp4"]
    assert made.quarantined[1].message == "d.mp4 is not there"
    for told in (json.dumps(made.to_json()), page(made), str(tables(made))):
        assert MEDIA not in told
        assert "node7" not in told


@pytest.mark.parametrize(
    ("media", "name"),
    [
        ("/a/b.mp4", "b.mp4"),
        ("s3://bucket/raw/b.mp4", "b.mp4"),
        ("https://host/b.mp4?X-Signature=abc#t=1", "b.mp4"),
        ("/a/what?.mp4", "what?.mp4"),
        ("", ""),
    ],
)
def test_media_are_named_without_folders_and_signatures(media, name):
    assert file_name(media) == name


# Durations and steps


def test_durations_leave_out_clips_that_could_not_be_read_and_say_how_many():
    told = made_of(CLIPS, ROWS).durations
    assert told.unknown == 1
    spread = told.spread
    assert (spread.count, spread.minimum, spread.median, spread.maximum) == (4, 2.0, 3.0, 8.0)
    assert spread.total == 16.0
    assert sum(told.counts) == 4
    assert len(told.edges) == len(told.counts) + 1
    assert {split: round(hours * 3600) for split, hours in told.hours.items()} == {
        "train": 4,
        "test": 8,
        "(none)": 4,
    }


def test_one_very_long_film_makes_the_durations_logarithmic():
    clips = [clip_of(f"c{n}", seconds=2.0 + n % 3) for n in range(50)]
    assert not made_of(clips, []).durations.log
    told = made_of([*clips, clip_of("film", seconds=7200.0)], []).durations
    assert told.log
    steps = np.diff(np.log(told.edges))
    assert np.allclose(steps, steps[0])
    assert sum(told.counts) == 51


def test_steps_are_those_of_samples():
    [steps] = made_of(CLIPS, ROWS).steps
    assert (steps.spread.count, steps.spread.minimum, steps.spread.maximum) == (2, 4, 16)
    [none] = made_of(CLIPS[:1], [row_of("a", "absent", steps=0)]).steps
    assert none.spread is None


# Columns that are not committed


def test_an_unfinished_column_is_counted_but_does_not_unbalance_the_ledger():
    columns = {"level": column_of(ROWS), "pitch": column_of(ROWS[:3], "pitch")}
    made = build_report("set", CLIPS, columns, [], unfinished=["pitch", "other"])
    assert made.balanced
    assert made.columns == 1
    assert made.unfinished == (
        "pitch: not finished: 3 of 5 clips are done, 0 quarantined; featurize",
        "other: not finished; featurize",
    )
    assert [each.unknown for each in made.of("all")] == [0, 2]


def test_a_column_that_lost_too_much_is_shown_with_what_it_lost():
    made = made_of(CLIPS, ROWS, unfinished=["level"])
    [sentence] = made.unfinished
    assert sentence == (
        "level: all 5 clips are done, but nothing is committed; 2 are quarantined: mend their "
        "media or raise max_dropped, and featurize again"
    )
    assert len(made.quarantined) == 2
    assert sentence in page(made)


# Throughput


def stages_of(**seconds):
    """Stages with these seconds for each of their items."""
    stages = Stages()
    for name, each in seconds.items():
        for item in each:
            stages.add(name.replace("_", "-"), item, item / 2)
    return stages.to_json()


def job(**changes):
    usual = {
        "kind": "job",
        "time": 1000.0,
        "run": "r1",
        "shard": 0,
        "columns": ["level-0123456789ab"],
        "clips": 2,
        "media_seconds": 6.0,
        "seconds": 4.0,
        "host": "node1",
        "pid": 1,
        "attempts": 1,
        "queued_seconds": 0.5,
        "bytes_read": 1000,
        "bytes_written": 100,
        "peak_bytes": 300,
        "decoder_peak_bytes": 200,
        "stages": stages_of(decode=[1.0, 2.0], wait=[0.5, 3.0], level=[0.25, 0.25]),
        "slowest": [{"key": "b", "seconds": 2.5}, {"key": "a", "seconds": 1.0}],
        "faults": {"missing": 1},
    }
    return {**usual, **changes}


RUN = [
    {"kind": "run", "run": "r1", "time": 995.0, "event": "start", "workers": 2, "jobs": 2},
    job(),
    job(
        time=1003.0,
        shard=1,
        pid=2,
        attempts=3,
        queued_seconds=1.5,
        peak_bytes=500,
        slowest=[{"key": "c", "seconds": 9.0}, {"key": "b", "seconds": 0.1}],
        faults={"missing": 1, "corrupt": 2},
    ),
    {"kind": "run", "run": "r1", "time": 1005.0, "event": "end"},
]


def test_a_run_adds_up():
    speed = throughput(RUN)
    assert (speed.runs, speed.jobs, speed.clips, speed.media_seconds) == (("r1",), 2, 4, 12.0)
    assert (speed.elapsed_seconds, speed.busy_seconds, speed.busy_share) == (10.0, 8.0, 0.4)
    assert (speed.workers, speed.hosts, speed.retries) == (2, 1, 2)
    assert (speed.queued_seconds, speed.longest_queue_seconds) == (2.0, 1.5)
    assert (speed.bytes_read, speed.bytes_written) == (2000, 200)
    assert (speed.peak_bytes, speed.decoder_peak_bytes) == (500, 200)
    assert (speed.clips_per_second, speed.media_per_second) == (0.4, 1.2)
    assert speed.slowest == (("c", 9.0), ("b", 2.5), ("a", 1.0))
    assert speed.faults == {"corrupt": 2, "missing": 2}
    assert speed.unread == 0


def test_a_stage_has_its_items_times_and_speeds():
    decode = next(each for each in throughput(RUN).stages if each.name == "decode")
    assert (decode.items, decode.seconds, decode.cpu_seconds) == (4, 6.0, 3.0)
    assert decode.items_per_second == pytest.approx(4 / 6)
    assert decode.media_per_second == pytest.approx(2.0)
    assert decode.share == pytest.approx(6 / 8)
    assert decode.p50_seconds == pytest.approx(1.0, rel=0.06)
    assert decode.p99_seconds == pytest.approx(2.0, rel=0.06)


def test_the_busiest_stage_is_the_bottleneck_and_waiting_never_is():
    speed = throughput(RUN)
    assert speed.stages[0].name == "wait"
    assert speed.bottleneck == "decode"
    assert speed.why.startswith("decode is the bottleneck: decoding sound and pictures")
    assert "took 6 s (75 % of the jobs' time); the workers waited 7 s for it" in speed.why
    slow = throughput([job(stages=stages_of(decode=[1.0], level=[5.0, 5.0]))])
    assert slow.bottleneck == "level"
    assert "computing this feature took 10 s" in slow.why
    assert "decode" not in slow.why
    assert throughput([job(stages={})]).bottleneck is None


def test_a_stage_that_is_nearly_as_busy_as_the_bottleneck_is_named_with_it():
    speed = throughput([job(stages=stages_of(decode=[4.0], level=[5.0], wait=[4.5]))])
    assert "decode comes close to it with 4 s" in speed.why


def test_a_stage_that_mostly_waits_for_cores_is_said_to():
    stages = Stages()
    stages.add("decode", 10.0, 2.0)
    assert "only 20 % of it was CPU time" in throughput([job(stages=stages.to_json())]).why
    stages = Stages()
    stages.add("decode", 10.0, 9.0)
    assert "CPU time" not in throughput([job(stages=stages.to_json())]).why


def test_clips_of_a_shard_count_once_a_run_in_however_many_jobs():
    text = job(columns=["hashed-words-0123456789ab"], media_seconds=0.0)
    speed = throughput([*RUN, text])
    assert (speed.jobs, speed.clips, speed.media_seconds) == (3, 4, 12.0)
    assert throughput([*RUN, job(run="r2")]).clips == 6


def test_a_stage_without_media_has_no_media_speed():
    stages = stages_of(hashed_words=[0.5])
    [stage] = throughput([job(stages=stages, media_seconds=0.0)]).stages
    assert stage.media_per_second is None
    assert stage.items_per_second == 2.0


def test_the_time_between_two_stretches_of_a_run_is_not_the_runs():
    later = [
        {"kind": "run", "run": "r1", "time": 5000.0, "event": "start", "workers": 2},
        job(time=5004.0),
        {"kind": "run", "run": "r1", "time": 5005.0, "event": "end"},
    ]
    assert throughput([*RUN, *later]).elapsed_seconds == 15.0


def test_a_run_that_was_killed_lasts_from_its_first_job_to_its_last():
    speed = throughput([job(time=1000.0), job(time=1003.0, pid=2)])
    assert speed.elapsed_seconds == 7.0  # the first job began 4 seconds before it was written
    assert (speed.workers, speed.busy_share) == (2, None)


def test_no_workers_are_this_process():
    speed = throughput([{"kind": "run", "run": "r1", "time": 996.0, "workers": 0}, job()])
    assert (speed.workers, speed.busy_share) == (1, 1.0)


def test_runs_are_in_order_of_their_last_job():
    lines = [job(run="b", time=5.0), job(run="a", time=9.0), job(run="b", time=7.0)]
    lines.append({"kind": "run", "run": "idle", "time": 99.0, "event": "start"})
    assert runs_of(lines) == ["b", "a"]
    assert of_run(lines, "a") == [lines[1]]


@pytest.mark.parametrize(
    "strange",
    [
        {"kind": "job"},
        {"kind": "manifest", "column": "x"},
        {"kind": "job", "clips": None, "seconds": "3"},
        {"kind": "job", "clips": -2, "seconds": math.nan},
        job(stages=None),
        job(stages={"decode": None}),
        job(stages={"decode": {"items": 2}}),
        job(stages={"decode": {"items": 2, "seconds": 1, "cpu_seconds": 1, "spread": {}}}),
        job(
            stages={
                "decode": {"items": 1, "seconds": 1, "cpu_seconds": 1, "spread": {"9999999": 1}}
            }
        ),
        job(
            stages={
                "decode": {"items": 1, "seconds": math.nan, "cpu_seconds": 0, "spread": {"0": 1}}
            }
        ),
        job(slowest=None),
        job(slowest=[None, {"seconds": 2}, {"key": 3, "seconds": 2}, {"key": "a"}]),
        job(faults=["missing"]),
        job(faults={"missing": "many"}),
        job(time="yesterday", run=7, host=None, pid=None, shard=None, attempts=0),
        {name: value for name, value in job().items() if name in {"time", "clips", "seconds"}},
    ],
)
def test_no_log_line_breaks_a_report(strange):
    speed = throughput([*RUN, strange])
    json.dumps(speed.to_json(), allow_nan=False)
    assert speed.sentences()
    assert speed.jobs in {2, 3}
    made = made_of(CLIPS, ROWS, [*RUN, strange])
    json.dumps(made.to_json(), allow_nan=False)
    assert page(made)
    assert tables(made)


def test_a_stage_that_cannot_be_read_is_counted_and_costs_no_other():
    broken = {**stages_of(level=[1.0]), "decode": {"items": 1}}
    speed = throughput([job(stages=broken), job(stages=stages_of(decode=[2.0]))])
    assert speed.unread == 1
    assert {each.name: each.seconds for each in speed.stages} == {"decode": 2.0, "level": 1.0}


def test_a_log_without_jobs_has_nothing_to_say():
    speed = throughput([{"kind": "run", "run": "r1", "time": 1.0, "event": "start"}])
    assert (speed.jobs, speed.sentences(), speed.clips_per_second) == (0, [], None)
    assert made_of(CLIPS, ROWS, RUN[:1]).last_run is None


def test_a_report_tells_the_last_run_and_all_of_them():
    made = made_of(CLIPS, ROWS, [*RUN, job(run="r2", time=9000.0, slowest=[])])
    assert made.last_run.runs == ("r2",)
    assert made.all_runs.runs == ("r1", "r2")
    assert made.all_runs.jobs == 3
    slowest = [(each.key, each.id, each.media_seconds) for each in made.slowest]
    assert slowest == [("c", "c", 8.0), ("b", "b", 2.0), ("a", "a", 2.0)]


def test_the_order_of_clips_and_rows_changes_nothing():
    made, turned = made_of(CLIPS, ROWS, RUN), made_of(CLIPS[::-1], ROWS[::-1], RUN)
    assert json.dumps(made.to_json()) == json.dumps(turned.to_json())


# On a terminal


def test_every_table_of_the_terminal_has_rows_of_equal_keys():
    made = made_of(CLIPS, ROWS, RUN)
    titles = [title for title, _ in tables(made)]
    assert titles[0] == "set: clips = sample + absent + quarantined"
    assert {"by split", "by label mood", "quarantined", "stages of the last run"} <= set(titles)
    for _, rows in tables(made):
        assert len({tuple(row) for row in rows}) == 1


def test_a_terminal_shows_the_first_quarantined_clips_and_says_how_many_more_there_are():
    clips = [clip_of(f"c{number:03d}") for number in range(30)]
    rows = [row_of(clip.key, "quarantined", "corrupt", "cut short", 0) for clip in clips]
    found = dict(tables(made_of(clips, rows)))
    assert len(found["quarantined (the first 20; --json has 10 more)"]) == 20


def test_one_file_that_is_broken_for_two_columns_is_one_row():
    columns = {"level": column_of(ROWS), "pitch": column_of(ROWS, "pitch")}
    made = build_report("set", CLIPS, columns, [])
    assert len(made.quarantined) == 4
    assert [row["column"] for row in dict(tables(made))["quarantined"]] == ["level, pitch"] * 2


# As it lies on disk


def write_dataset(root, clips=tuple(CLIPS), name="level"):
    """A dataset of two shards with a committed column; every third clip is quarantined."""
    write_clips(root, clips)
    spec, records = spec_of(name), []
    for shard, members in enumerate((clips[:3], clips[3:])):
        outcomes = [_outcome(clip) for clip in members]
        records.append(
            write_shard(
                LocalStore(root),
                shard,
                job_id(spec, members),
                spec,
                clips=members,
                outcomes=outcomes,
            )
        )
    commit(root, spec, "plan-digest", records)
    return spec


def _outcome(clip):
    if clip.key in {"b", "d"}:
        return Outcome(state="quarantined", fault=FAULTS[1], message="no film")
    values = np.ones((3, 1), dtype=np.float32)
    return Outcome(state="sample", feature=Feature(values, np.arange(6.0).reshape(3, 2)))


def test_a_dataset_is_reported_as_it_lies_there(tmp_path):
    root = tmp_path / "mine"
    write_dataset(root)
    with Logbook(root, "r1") as log:
        log.add("job", **{k: v for k, v in job().items() if k not in {"kind", "time", "run"}})
    with (root / LOGS / "featurize-r1.jsonl").open("ab") as file:
        file.write(b'{"kind": "job", "clips": 3, "sec')  # killed in the middle of a line
    made = report(root)
    assert (made.dataset, made.clips, made.columns, made.balanced) == ("mine", 5, 1, True)
    assert line(made, "all", "all") == (5, 3, 0, 2, {"unreadable": 2})
    assert made.last_run.jobs == 1
    assert report(str(root)) == made


def test_a_column_without_a_manifest_is_named(tmp_path):
    spec = write_dataset(tmp_path)
    (tmp_path / COLUMNS / spec.fingerprint / "manifest.json").unlink()
    made = report(tmp_path)
    assert made.unfinished == (f"{spec.fingerprint}: not finished; featurize",)
    assert (made.lines, made.columns) == ((), 0)
    assert sentences(made)[0] == "no column is finished"


def test_two_columns_of_one_featurizer_go_by_their_fingerprints(tmp_path):
    first = write_dataset(tmp_path)
    other = replace(first, version=2)
    clips = tuple(CLIPS)
    written = write_shard(
        LocalStore(tmp_path),
        0,
        job_id(other, clips),
        other,
        clips=clips,
        outcomes=[_outcome(clip) for clip in clips],
    )
    commit(tmp_path, other, "plan-digest", [written])
    names = {each.stream for each in report(tmp_path).of("all")}
    assert names == {first.fingerprint, other.fingerprint}


@pytest.mark.media
def test_a_dataset_that_lost_too_much_is_reported_with_every_loss_and_its_speed(tmp_path):
    film(tmp_path / "good.mp4", 1)
    (tmp_path / "bad.mp4").write_bytes(b"this is no film " * 40)
    rows = [
        {"id": name, "media": str(tmp_path / f"{name}.mp4"), "transcript": "so so", "mood": mood}
        for name, mood in (("good", 1.0), ("bad", -1.0))
    ]
    features = {
        "text": {"featurizer": "hashed-words"},
        "audio": {"featurizer": "logmel", "hop_ms": 20},
    }
    made = experiment(tmp_path / "made", rows, features=features)
    ingest(made, InProcess(), lambda count: None)
    with pytest.raises(TooManyDroppedError):
        featurize(made, InProcess(), lambda done: None)
    found = report(made.root)
    assert found.balanced
    assert [(each.stream, each.id, each.fault) for each in found.quarantined] == [
        ("logmel", "bad", "unreadable")
    ]
    [sentence] = found.unfinished
    assert sentence.startswith("logmel: all 2 clips are done, but nothing is committed; 1 are")
    assert {each.name for each in found.last_run.stages} >= {"decode", "logmel", "write"}
    assert found.last_run.clips == 2
    assert found.last_run.elapsed_seconds > 0
