"""Tables of clips: every mistake is told by row and column before anything is decoded."""

import json
import os
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from featurizers.clip import Clip
from featurizers.dataset import read_clips
from featurizers.media import encode
from featurizers.store import StorageError
from pipelines.executors import InProcess
from pipelines.experiment import InputError, parse
from pipelines.featurize import featurize
from pipelines.ingest import ingest
from pipelines.sources import SPLITS, ask, group_of, read_rows, split, task_of
from pipelines.staging import Stage, inside
from training.recipe import Task

FEATURES = {"audio": {"featurizer": "logmel"}}


def settings(folder, table="clips.csv", label="mood", cache=None, **source):
    """An experiment whose table lies in a folder, which is its media root too."""
    plain = {
        "dataset": "dataset",
        "source": {"table": table, "label": label, **source},
        "features": FEATURES,
        "cache": cache or {},
    }
    return parse(plain, Path(folder))


def asked(folder, text, table="clips.csv", **source):
    """The checked rows of a table with this text, and the task."""
    file = Path(folder) / table
    file.write_text(text, encoding="utf-8")
    return ask(settings(folder, table, **source), read_rows(file))


def refusal(folder, text, table="clips.csv", **source):
    with pytest.raises(InputError) as refused:
        asked(folder, text, table, **source)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Forms of tables


def test_csv_jsonl_and_parquet_tables_say_the_same(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"id": "a", "media": "a.mp4", "start": 0.5, "end": 1.5, "speaker": "p", "mood": 1.0},
        {"id": "b", "media": "b.mp4", "start": None, "end": None, "speaker": None, "mood": -2.5},
    ]
    header = ",".join(rows[0])
    lines = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
    (tmp_path / "t.csv").write_text("\n".join([header, *lines]) + "\n")
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = [
        ask(settings(tmp_path, name), read_rows(tmp_path / name))
        for name in ("t.csv", "t.jsonl", "t.parquet")
    ]
    assert found[0] == found[1] == found[2]
    (first, second), task = found[0]
    assert task == Task(kind="regression", label="mood")
    assert (first.raw.start, first.raw.end, first.raw.columns["speaker"]) == (0.5, 1.5, "p")
    assert (second.raw.start, second.raw.end, second.raw.columns["speaker"]) == (0.0, None, None)
    assert second.raw.columns["labels"] == {"mood": -2.5}


@pytest.mark.parametrize("table", ["clips.csv", "clips.jsonl"])
def test_a_byte_order_mark_and_foreign_letters_are_read(tmp_path, table):
    text = {
        "clips.csv": '\ufeffid,media,mood,transcript\nzoë,a.mp4,1,"söt, \u2028 ja"\n',
        "clips.jsonl": '\ufeff{"id": "zoë", "media": "a.mp4", "mood": 1, '
        '"transcript": "söt, \u2028 ja"}\n',
    }[table]
    (only,), _ = asked(tmp_path, text, table)
    assert only.raw.id == "zoë"
    assert only.raw.key == "zo_xc3_xab"
    assert only.raw.transcript == "söt, \u2028 ja"


@pytest.mark.parametrize(
    ("table", "content", "said"),
    [
        ("clips.csv", b"id,media,mood\na,a.mp4\n", "row 1 has another number of cells"),
        ("clips.csv", b"id,media,mood\na,a.mp4,1\nb,b.mp4,2,3\n", "row 2 has another number"),
        ("clips.csv", b'id,media,mood\na,"a.mp4,1\n', "unexpected end of data"),
        ("clips.csv", b"id,media,mood,mood\na,a.mp4,1,2\n", "two columns are called 'mood'"),
        ("clips.csv", b"id,media,mood\n", "no rows"),
        ("clips.csv", b"", "no rows"),
        ("clips.csv", b"id,media,mood\n\xff\xfe,a,1\n", "decode"),
        ("clips.jsonl", b'{"id": "a"}\n{"id": \n', "line 2: Expecting value"),
        ("clips.jsonl", b'{"id": "a"}\n["b"]\n', "line 2: wanted an object"),
        ("clips.jsonl", b"\xff\xfe\n", "decode"),
        ("clips.jsonl", b"\n \n", "no rows"),
        ("clips.parquet", b"PAR0 this is none", "Parquet"),
        ("clips.xlsx", b"PK", "wanted a .csv, .jsonl or .parquet table, found '.xlsx'"),
    ],
)
def test_a_table_that_cannot_be_read_is_told_with_its_name(tmp_path, table, content, said):
    (tmp_path / table).write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_rows(tmp_path / table)
    assert said in str(refused.value)
    assert table in str(refused.value)


def test_a_missing_table_is_told(tmp_path):
    with pytest.raises(InputError, match="there is no such table"):
        read_rows(tmp_path / "clips.csv")


# Rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("media,mood\na.mp4,1\n", "there is no column 'id'"),
        ("id,file,mood\na,a.mp4,1\n", "there is no column 'media'"),
        ("id,media,temper\na,a.mp4,1\n", "no column 'mood', or all of it is empty; there are id,"),
        ("id,media,mood\na,a.mp4,\n", "no column 'mood', or all of it is empty"),
        ("id,media,mood\na,a.mp4,1\n,b.mp4,2\n", "row 2, column id: is empty"),
        ("id,media,mood\na,,1\nb,b.mp4,2\n", "row 1, column media: is empty"),
        ("id,media,mood\na,a.mp4,1\nb,b.mp4,1\na,c.mp4,2\n", "rows 1 and 3, column id: both"),
        ("id,media,mood\na,../a.mp4,1\n", "row 1, column media: ../a.mp4 lies outside"),
        ("id,media,mood\na,/etc/passwd,1\n", "row 1, column media: /etc/passwd lies outside"),
        ("id,media,mood\na,sub/../../a.mp4,1\n", "lies outside every media root"),
        ("id,media,mood\na,s3://other/a.mp4,1\n", "lies outside every media root"),
        ("id,media,mood\na,file:///etc/passwd,1\n", "lies outside every media root"),
        (f"id,media,mood\na,{'x' * 300}.mp4,1\n", "row 1, column media: 'xxx"),
        ("id,media,mood,start\na,a.mp4,1,soon\n", "row 1, column start: found 'soon', wanted"),
        ("id,media,mood,start\na,a.mp4,1,-1\n", "row 1, column start: found '-1', wanted"),
        ("id,media,mood,end\na,a.mp4,1,nan\n", "row 1, column end: found 'nan', wanted seconds"),
        ("id,media,mood,end\na,a.mp4,1,inf\n", "row 1, column end: found 'inf', wanted seconds"),
        ("id,media,mood\na,a.mp4,1\nb,b.mp4,nan\n", "row 2, column mood: found 'nan', wanted a"),
        ("id,media,mood\na,a.mp4,inf\nb,b.mp4,2\n", "row 1, column mood: found 'inf', wanted a"),
        ("id,media,mood,split\na,a.mp4,1,dev\n", "row 1, column split: found 'dev', wanted one of"),
        ("id,media,mood,transcript_file\na,a.mp4,1,a.vtt\n", "column transcript_file: there is no"),
        ("id,media,mood,transcript_file\na,a.mp4,1,/etc/passwd\n", "lies outside every media root"),
        ("id,media,mood\na,a.mp4,calm\n", "'mood': found 1 class; at least 2"),
    ],
)
def test_a_wrong_row_is_told_by_number_and_column(tmp_path, text, said):
    assert said in refusal(tmp_path, text)


def test_a_zero_byte_in_a_path_is_told(tmp_path):
    row = json.dumps({"id": "a", "media": "a\0.mp4", "mood": 1})
    assert "is no path" in refusal(tmp_path, row, "clips.jsonl")


def test_a_label_of_the_wrong_kind_is_told_where_the_task_is_given(tmp_path):
    text = "id,media,mood\na,a.mp4,1\nb,b.mp4,calm\n"
    assert "row 2, column mood: found 'calm'" in refusal(tmp_path, text, task="regression")


def test_media_behind_a_link_that_leads_outside_are_refused(tmp_path):
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.mkdir()
    outer.mkdir()
    (outer / "a.mp4").write_bytes(b"")
    (inner / "link").symlink_to(outer)
    (inner / "a.mp4").symlink_to(outer / "a.mp4")
    (inner / "loop").symlink_to(inner / "loop")
    for media in ("link/a.mp4", "a.mp4"):
        assert "lies outside" in refusal(inner, f"id,media,mood\na,{media},1\n")
    assert "loop" in refusal(inner, "id,media,mood\na,loop,1\n")
    (only,), _ = asked(inner, "id,media,mood\na,a.mp4,1\n", media_root=[".", str(outer)])
    assert only.raw.media == str(outer / "a.mp4")


def test_media_are_relative_to_the_table_and_roots_to_the_experiment_file(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "t.csv").write_text("id,media,mood\na,../films/a.mp4,1\n")
    made = settings(tmp_path, "tables/t.csv", media_root="films")
    (only,), _ = ask(made, read_rows(made.table))
    assert only.raw.media == str(tmp_path / "films" / "a.mp4")


@pytest.mark.parametrize(
    ("media", "within"),
    [
        ("s3://bucket/raw/a.mp4", True),
        ("s3://bucket/raw/deep/a..b.mp4", True),
        ("s3://bucket/raw/../secret/a.mp4", False),
        ("s3://bucket/rawer/a.mp4", False),
        ("s3://bucket/raw", False),
        ("s3://bucket/raw/a.mp4::file:///etc/passwd", False),
        ("s3://bucket/raw/a.mp4%3a%3afile:///etc/passwd", False),
        ("s3://bucket/raw/100%25 of it.mp4", True),
        ("s3://bucket/raw/%2e%2e/secret.mp4", False),
        ("s3://bucket/raw/.%2E%2fsecret.mp4", False),
        ("s3://bucket/raw/%25252e%25252e/secret.mp4", False),
        ("s3://bucket/raw/..?versionId=1", False),
        ("s3://bucket/raw/..\\secret.mp4", False),
        ("s3://bucket/raw/%5c../secret.mp4", False),
        ("s3://bucket/raw/.\t./secret.mp4", False),
        ("s3://bucket/raw/%" + 5000 * "25" + "41/a.mp4", False),
        ("https://bucket/raw/a.mp4", False),
        ("/data/a.mp4", True),
        ("/database/a.mp4", False),
        ("/data/../etc/passwd", False),
    ],
)
def test_only_what_lies_below_a_root_is_taken(media, within):
    assert inside(media, ["/data", "s3://bucket/raw"]) == within
    assert inside(media, ["/data/", "s3://bucket/raw/"]) == within


def test_an_address_that_climbs_by_percent_signs_is_refused_by_row(tmp_path):
    text = "id,media,mood\na,https://h/raw/%2e%2e/secret.mp4,1\n"
    said = refusal(tmp_path, text, media_root="https://h/raw")
    assert "row 1, column media: https://h/raw/%2e%2e/secret.mp4 lies outside" in said


def test_the_tables_own_folder_is_a_media_root_wherever_it_lies(tmp_path):
    made, other = tmp_path / "made", tmp_path / "films"
    made.mkdir()
    other.mkdir()
    (other / "t.csv").write_text("id,media,mood\na,sub/a.mp4,1\n")
    experiment = settings(made, "../films/t.csv", media_root="elsewhere")
    (only,), _ = ask(experiment, read_rows(experiment.table))
    assert only.raw.media == str(other / "sub" / "a.mp4")
    (other / "t.csv").write_text("id,media,mood\na,../made/a.mp4,1\n")
    with pytest.raises(InputError, match="lies outside every media root"):
        ask(experiment, read_rows(experiment.table))


# The task


@pytest.mark.parametrize(
    ("labels", "task", "kind", "classes"),
    [
        (["1", "-2.5", ""], None, "regression", ()),
        (["glad", "sad", "glad"], None, "classes", ("glad", "sad")),
        (["1", "2", "sad"], None, "classes", ("1", "2", "sad")),
        (["1", "2", "1"], "classes", "classes", ("1", "2")),
        (["1", "2", "1"], "regression", "regression", ()),
        (["sad, loud", "sad", ""], None, "labels", ("loud", "sad")),
        (["so, so", "well"], "classes", "classes", ("so, so", "well")),
        (["glad", "sad"], "labels", "labels", ("glad", "sad")),
        (["1,2,4", "12"], None, "labels", ("1", "12", "2", "4")),
        (["1,2", "4"], "labels", "labels", ("1", "2", "4")),
    ],
)
def test_numbers_are_a_regression_text_is_classes_and_the_setting_wins(
    tmp_path, labels, task, kind, classes
):
    rows = "".join(f'c{i},a.mp4,"{label}"\n' for i, label in enumerate(labels))
    found, guessed = asked(tmp_path, f"id,media,mood\n{rows}", task=task)
    assert guessed == Task(kind=kind, label="mood", classes=classes)
    values = [each.raw.columns["labels"].get("mood") for each in found]
    wanted = {"regression": float, "classes": str, "labels": listed}[kind]
    assert values == [wanted(label) if label else None for label in labels]


def listed(text):
    return tuple(sorted(name.strip() for name in text.split(",")))


def test_a_list_of_labels_may_be_a_list_and_may_be_empty(tmp_path):
    lists = [["sad", "loud", "sad"], [], None, ["sad"]]
    rows = [{"id": str(i), "media": "a.mp4", "mood": each} for i, each in enumerate(lists)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    found, task = asked(tmp_path, text, table="clips.jsonl")
    assert task == Task(kind="labels", label="mood", classes=("loud", "sad"))
    labels = [each.raw.columns["labels"] for each in found]
    assert labels == [{"mood": ("loud", "sad")}, {"mood": ()}, {}, {"mood": ("sad",)}]
    plain = 'id,media,mood\na,a.mp4,"sad,"\nb,b.mp4,","\n'
    found, _ = asked(tmp_path, plain)
    assert [each.raw.columns["labels"]["mood"] for each in found] == [("sad",), ()]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["1,5", "2"], "found '1,5', which is a number with a decimal comma or two labels"),
        ([["a,b"], ["c"]], "found a label 'a,b' in a list, wanted a name without commas"),
        ([["a", " "], ["c"]], "found a label '' in a list"),
        ([[], []], "found 0 labels; at least 1 are needed"),
        (["glad", "glad"], "found 1 class; at least 2 are needed"),
    ],
)
def test_labels_that_cannot_be_are_told(tmp_path, cells, said):
    rows = [{"id": str(i), "media": "a.mp4", "mood": each} for i, each in enumerate(cells)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    assert f"column 'mood': {said}" in refusal(tmp_path, text, table="clips.jsonl")


def test_a_dataset_of_another_task_asks_for_a_new_ingest(tmp_path):
    clips = [replace(clip, labels={"mood": ("sad",)}) for clip in clips_of(2)]
    assert task_of(settings(tmp_path), clips).kind == "labels"
    with pytest.raises(InputError, match=r"for labels, and source\.task is classes; ingest"):
        task_of(settings(tmp_path, task="classes"), clips)


# Splits


def clips_of(groups, per_group=2, label=lambda number: float(number % 5 - 2)):
    return [
        Clip(
            key=f"c{number:03d}-{part}",
            id=f"c{number:03d}-{part}",
            media="",
            media_digest="",
            source=f"film{number}",
            group=f"g{number:03d}",
            labels={"mood": label(number)},
        )
        for number in range(groups)
        for part in range(per_group)
    ]


REGRESSION = Task(kind="regression", label="mood")
CLASSES = Task(kind="classes", label="mood", classes=("glad", "sad"))


def test_groups_stay_whole_and_go_about_seventy_fifteen_fifteen():
    clips, how = split(clips_of(200), REGRESSION, 0)
    assert "groups" in how
    assert "70/15/15" in how
    groups = defaultdict(set)
    for clip in clips:
        groups[group_of(clip)].add(clip.split)
    assert all(len(found) == 1 for found in groups.values())
    shares = Counter(clip.split for clip in clips)
    assert {name: round(shares[name] / len(clips), 2) for name in SPLITS} == {
        "train": 0.7,
        "valid": 0.15,
        "test": 0.15,
    }


def test_every_class_has_its_share_in_every_split():
    clips, _ = split(clips_of(200, label=lambda n: "glad" if n % 4 else "sad"), CLASSES, 0)
    for name in SPLITS:
        found = Counter(clip.labels["mood"] for clip in clips if clip.split == name)
        assert found["sad"] / found.total() == pytest.approx(0.25, abs=0.04)


def test_the_commonest_labels_have_their_share_in_every_split():
    tags = Task(kind="labels", label="mood", classes=("loud", "sad"))
    clips, _ = split(clips_of(200, label=lambda n: ("sad",) if n % 4 else ("loud", "sad")), tags, 0)
    assert {clip.split for clip in clips if "loud" in clip.labels["mood"]} == set(SPLITS)
    clips, _ = split(clips_of(40, label=lambda n: () if n % 2 else ("sad",)), tags, 0)
    assert {clip.split for clip in clips if not clip.labels["mood"]} == set(SPLITS)


def test_every_combination_of_labels_has_its_share_in_every_split():
    tags = Task(kind="labels", label="mood", classes=("calm", "loud", "sad"))
    sets = [("calm",), ("calm", "loud"), ("calm", "sad"), (), ("sad",)]
    clips, _ = split(clips_of(100, 1, label=lambda n: sets[n % 5]), tags, 0)
    for each in sets:
        found = Counter(clip.split for clip in clips if clip.labels["mood"] == each)
        assert (found["train"], found["valid"], found["test"]) == (14, 3, 3)


def test_high_and_low_numbers_have_their_share_in_every_split():
    clips, _ = split(clips_of(300), REGRESSION, 0)
    means = [np.mean([c.labels["mood"] for c in clips if c.split == name]) for name in SPLITS]
    assert np.ptp(means) < 0.2


def test_the_deal_follows_from_names_and_seed_and_not_from_order():
    clips = clips_of(40)
    shuffled = list(clips)
    Random(1).shuffle(shuffled)  # noqa: S311 - an order that can be repeated, no secret
    once = {clip.key: clip.split for clip in split(clips, REGRESSION, 5)[0]}
    again = {clip.key: clip.split for clip in split(shuffled, REGRESSION, 5)[0]}
    other = {clip.key: clip.split for clip in split(clips, REGRESSION, 6)[0]}
    assert once == again
    assert once != other


def test_speakers_are_groups_where_none_are_given_and_films_where_nobody_is_known():
    from dataclasses import replace

    clips = [replace(clip, group=None, speaker=f"p{i % 7}") for i, clip in enumerate(clips_of(30))]
    assert {group_of(clip) for clip in clips} == {f"p{i}" for i in range(7)}
    assert {group_of(replace(clip, speaker=None)) for clip in clips} == {
        f"film{i}" for i in range(30)
    }


@pytest.mark.parametrize("groups", [3, 4, 5, 6])
def test_three_groups_are_enough_for_three_splits(groups):
    clips, how = split(clips_of(groups), REGRESSION, 0)
    assert {clip.split for clip in clips} == set(SPLITS)
    assert "warning" not in how


def test_fewer_than_three_groups_are_torn_with_a_warning():
    clips, how = split(clips_of(2, per_group=20), REGRESSION, 0)
    assert "warning: fewer than 3 groups" in how
    assert Counter(clip.split for clip in clips) == {"train": 28, "valid": 6, "test": 6}


def test_splits_that_are_given_are_kept_and_their_groups_follow():
    from dataclasses import replace

    clips = clips_of(30)
    given = [replace(c, split="test") if c.key in {"c003-0", "c004-1"} else c for c in clips]
    found = {clip.key: clip.split for clip in split(given, REGRESSION, 0)[0]}
    assert {found[f"c00{g}-{p}"] for g in (3, 4) for p in (0, 1)} == {"test"}
    whole = [replace(clip, split="valid") for clip in clips]
    assert split(whole, REGRESSION, 0) == (whole, "splits as given")


# Splits of a dataset that grows


def placed(clips, standing=(), seed=0):
    """The splits by key, where some clips stand already."""
    return {c.key: c.split for c in split(clips, REGRESSION, seed, standing=standing)[0]}


def test_a_row_that_is_added_moves_no_other_clip():
    standing, _ = split(clips_of(40), REGRESSION, 0)
    before = {clip.key: clip.split for clip in standing}
    more = [*clips_of(41)[-2:], *clips_of(40, per_group=3)]
    for seed in (0, 9):
        after = placed(more, standing, seed)
        assert {key: after[key] for key in before} == before
        assert all(after[f"c{g:03d}-2"] == before[f"c{g:03d}-0"] for g in range(40))
        assert after["c040-0"] == after["c040-1"]
    _, how = split(more, REGRESSION, 0, standing=standing)
    assert "; 120 clips follow their group or stay where they stood" in how
    assert placed(more[::-1], standing) == placed(more, standing)


def test_a_row_that_is_mended_or_taken_out_moves_no_other_clip():
    from dataclasses import replace

    clips = clips_of(40)
    standing, _ = split(clips, REGRESSION, 0)
    before = {clip.key: clip.split for clip in standing}
    for changed in (
        replace(clips[7], labels={"mood": -3.0}),
        replace(clips[7], media="mended.mp4", source="mended.mp4"),
        replace(clips[7], group="nobody"),
        replace(clips[7], labels={}),
    ):
        after = placed([*clips[:7], changed, *clips[8:]], standing)
        assert after == before
    joined = next(c for c in standing if c.split != standing[7].split)
    after = placed([*clips[:7], replace(clips[7], group=joined.group), *clips[8:]], standing)
    assert after == {**before, clips[7].key: joined.split}
    assert placed(clips[:7], standing) == {clip.key: before[clip.key] for clip in clips[:7]}


def test_new_groups_fill_what_is_wanting_of_the_shares():
    from dataclasses import replace

    standing = [replace(clip, split="train") for clip in clips_of(70)]
    shares = Counter(placed(clips_of(100), standing).values())
    assert shares == {"train": 140, "valid": 30, "test": 30}


def test_the_table_wins_over_what_stands_and_its_group_follows():
    from dataclasses import replace

    clips = clips_of(30)
    standing, _ = split(clips, REGRESSION, 0)
    mover = next(c for c in standing if c.split == "train")
    group = {clip.key for clip in clips if clip.group == mover.group}
    given = [replace(c, split="test") if c.key == mover.key else c for c in clips]
    before = {clip.key: clip.split for clip in standing}
    assert placed(given, standing) == {**before, **dict.fromkeys(group, "test")}


def test_groups_that_were_torn_stay_as_they_are_when_a_third_comes():
    standing, _ = split(clips_of(2, per_group=20), REGRESSION, 0)
    before = {clip.key: clip.split for clip in standing}
    clips, how = split(clips_of(3, per_group=20), REGRESSION, 0, standing=standing)
    after = {clip.key: clip.split for clip in clips}
    assert {key: after[key] for key in before} == before
    assert len({after[key] for key in after.keys() - before.keys()}) == 1
    assert "warning: 2 groups lie in several splits" in how
    assert placed(clips_of(2, per_group=21), standing).items() >= before.items()


# Ingest


def film(path, seed=0):
    samples = (8000 * np.sin(np.arange(8000) * (0.05 + 0.01 * seed))).astype(np.int16)
    encode(path, frames=None, fps=5, samples=samples, rate_hz=16_000)


def test_an_ingest_of_which_nothing_is_left_is_an_error(tmp_path):
    (tmp_path / "bad.mp4").write_text("no film")
    (tmp_path / "clips.csv").write_text("id,media,mood\na,gone.mp4,1\nb,bad.mp4,2\n")
    with pytest.raises(InputError, match=r"nothing is left: none of 2 media files can be read"):
        ingest(settings(tmp_path), InProcess(), lambda count: None)
    assert not (tmp_path / "dataset" / "clips.parquet").exists()


GRID = """File type = "ooTextFile"
Object class = "TextGrid"
0 1 <exists> 2
"IntervalTier" "words" 0 1 1 0 0.2 "so"
"IntervalTier" "Ann #2" 0 1 1 0.2 0.4 "it"
"""


@pytest.mark.media
def test_a_table_may_name_the_tier_of_a_transcript(tmp_path):
    film(tmp_path / "a.mp4")
    (tmp_path / "a.TextGrid").write_text(GRID)
    lines = ["id,media,mood,transcript_file", "a,a.mp4,1,a.TextGrid", "b,a.mp4,2,a.TextGrid#Ann #2"]
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    ingest(settings(tmp_path), InProcess(), lambda count: None)
    clips = read_clips(tmp_path / "dataset")
    assert [[word.text for word in clip.words] for clip in clips] == [["so"], ["it"]]


def test_a_link_out_of_the_media_roots_is_no_transcript_with_a_tier_or_without(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.mp4").touch()
    (tmp_path / "secret.TextGrid").write_text(GRID)
    (root / "a.TextGrid").symlink_to(tmp_path / "secret.TextGrid")
    for cell in ("a.TextGrid", "a.TextGrid#words"):
        (root / "clips.csv").write_text(f"id,media,mood,transcript_file\na,a.mp4,1,{cell}\n")
        with pytest.raises(InputError, match=r"transcript_file: .*secret.* lies outside every"):
            ask(settings(root), read_rows(root / "clips.csv"))


@pytest.mark.media
@pytest.mark.parametrize(
    ("columns", "cells", "said"),
    [
        (
            "start,end",
            "0.4,0.2",
            r"row 1, column end: bad_span: end 0\.2 does not lie after start 0\.4",
        ),
        ("transcript_file", "a.vtt", r"row 1, column transcript_file: bad_transcript: a\.vtt: "),
        (
            "transcript_file",
            "a.doc",
            r"row 1, column transcript_file: bad_transcript: a\.doc: wanted one of",
        ),
    ],
)
def test_a_wrong_span_or_transcript_is_told_by_row_and_column(tmp_path, columns, cells, said):
    film(tmp_path / "a.mp4")
    (tmp_path / "a.vtt").write_text("no times here\n")
    (tmp_path / "a.doc").write_text("words")
    (tmp_path / "clips.csv").write_text(f"id,media,mood,{columns}\na,a.mp4,1,{cells}\n")
    with pytest.raises(InputError, match=said):
        ingest(settings(tmp_path), InProcess(), lambda count: None)


# Remote media


@pytest.mark.media
def test_remote_media_are_staged_and_give_the_bytes_of_local_ones(tmp_path):
    remote, here = tmp_path / "remote", tmp_path / "here"
    remote.mkdir()
    here.mkdir()
    for number in range(3):
        film(remote / f"{number}.mp4", number)
    urls = [f"file://{remote}/{number}.mp4" for number in range(3)]
    rows = "".join(f"c{i},{url},{i}\n" for i, url in enumerate([*urls, f"file://{remote}/x.mp4"]))
    (here / "clips.csv").write_text(f"id,media,mood\n{rows}")
    size = sum(path.stat().st_size for path in remote.iterdir())
    made = settings(
        here,
        media_root=f"file://{remote}",
        cache={"folder": "cache", "gigabytes": 0.7 * size / (1 << 30)},
    )
    made = made.model_copy(update={"max_dropped": 0.25})
    ingest(made, InProcess(), lambda count: None)
    column = featurize(made, InProcess(), lambda done: None)["audio"]
    assert [row.fault for row in column.rows.values()] == [None, None, None, "missing"]
    assert sum(path.stat().st_size for path in (here / "cache").iterdir()) <= 0.7 * size
    local = tmp_path / "local"
    local.mkdir()
    paths = "".join(f"c{i},{remote}/{i}.mp4,{i}\n" for i in range(3))
    (local / "clips.csv").write_text(f"id,media,mood\n{paths}")
    made = settings(local, media_root=str(remote))
    ingest(made, InProcess(), lambda count: None)
    direct = featurize(made, InProcess(), lambda done: None)["audio"]
    for key in ("c0", "c1", "c2"):
        assert column.read(key).values.tobytes() == direct.read(key).values.tobytes()


@pytest.fixture
def remote(tmp_path):
    """Five remote files of 100 bytes each, by number."""
    folder = tmp_path / "remote"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.mp4").write_bytes(bytes([number]) * 100)
    return [f"file://{folder}/{number}.mp4" for number in range(5)]


def cached(stage):
    return {path.read_bytes()[0] for path in stage.folder.iterdir()}


def test_the_least_recently_used_copies_are_removed(tmp_path, remote):
    stage = Stage(folder=tmp_path / "cache", limit_bytes=300)
    paths = [stage.local(url) for url in remote[:3]]
    assert [path.read_bytes()[0] for path in paths] == [0, 1, 2]
    for age, path in enumerate(paths):
        os.utime(path, (1000 + age, 1000 + age))
    assert stage.local(remote[0]) == paths[0]
    assert stage.local(remote[3]).read_bytes() == b"\3" * 100
    assert cached(stage) == {0, 2, 3}
    assert stage.local(remote[1]).read_bytes()[0] == 1
    assert cached(stage) == {0, 1, 3}


def test_a_copy_that_another_worker_uses_is_not_removed(tmp_path, remote):
    one = Stage(folder=tmp_path / "cache", limit_bytes=200)
    two = Stage(folder=tmp_path / "cache", limit_bytes=200)
    used = one.local(remote[0])
    os.utime(used, (1000, 1000))
    two.local(remote[1])
    two.local(remote[2])
    assert cached(two) == {0, 2}
    one.local(remote[3])
    assert used.exists() or cached(one) == {2, 3}


def test_what_a_killed_worker_was_fetching_is_removed_but_not_what_a_living_one_fetches(
    tmp_path, remote
):
    import fcntl

    stage = Stage(folder=tmp_path / "cache", limit_bytes=300)
    stage.folder.mkdir()
    (stage.folder / ".fetch.dead").write_bytes(b"x")
    living = stage.folder / ".fetch.living"
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        stage.local(remote[0])
    assert sorted(path.name for path in stage.folder.glob(".*")) == [".fetch.living"]


def test_media_larger_than_the_cache_are_told(tmp_path, remote):
    stage = Stage(folder=tmp_path / "cache", limit_bytes=99)
    with pytest.raises(StorageError, match=r"has 100 bytes, the cache .* takes 99; raise"):
        stage.local(remote[0])


def test_a_file_that_changed_under_its_url_is_fetched_anew(tmp_path, remote):
    stage = Stage(folder=tmp_path / "cache", limit_bytes=1000)
    before = stage.local(remote[0])
    assert stage.local(remote[0]) == before
    original = Path(remote[0].removeprefix("file://"))
    original.write_bytes(b"z" * 100)
    os.utime(original, (5000, 5000))
    after = stage.local(remote[0])
    assert after != before
    assert after.read_bytes() == b"z" * 100


def test_media_that_are_nowhere_are_none(tmp_path, remote):
    stage = Stage(folder=tmp_path / "cache", limit_bytes=1000)
    assert stage.local(remote[0].replace("0.mp4", "9.mp4")) is None
    assert stage.local(str(tmp_path / "9.mp4")) is None
    assert stage.local("x" * 300) is None


def test_an_address_of_an_unknown_kind_is_told(tmp_path):
    stage = Stage(folder=tmp_path / "cache", limit_bytes=1000)
    with pytest.raises(StorageError, match=r"xyz://a/b\.mp4 cannot be fetched"):
        stage.local("xyz://a/b.mp4")


@pytest.mark.parametrize("step", ["info", "get_file"])
def test_a_fault_of_the_network_that_passes_is_waited_for(tmp_path, remote, monkeypatch, step):
    import errno

    from fsspec.implementations.local import LocalFileSystem

    from featurizers import transient

    waits, faults = [], [OSError(errno.EBUSY, "SlowDown"), TimeoutError()]
    real = getattr(LocalFileSystem, step)

    def flaky(system, *arguments, **named):
        if faults:
            raise faults.pop()
        return real(system, *arguments, **named)

    monkeypatch.setattr(LocalFileSystem, step, flaky)
    monkeypatch.setattr(transient.time, "sleep", waits.append)
    stage = Stage(folder=tmp_path / "cache", limit_bytes=1000)
    assert stage.local(remote[0]).read_bytes() == b"\0" * 100
    assert len(waits) == 2
    assert list(stage.folder.glob(".*")) == []
