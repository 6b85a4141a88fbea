"""The tables of a dataset: clips and plan."""

import io
import json

import pyarrow.parquet as pq
import pytest

from featurizers.clip import Clip, Word
from featurizers.dataset import CLIPS, PLAN, DatasetError, read_clips, write_clips
from featurizers.verify import clean, verify
from pipelines.ingest import read_plan, write_plan
from pipelines.plan import Place

TABLES = {CLIPS: read_clips, PLAN: read_plan}


def clip(number):
    return Clip(
        key=f"c{number}",
        id=f"c{number}",
        media=f"/films/{number}.mp4",
        media_digest="0" * 64,  # what the table's own digest is computed over has the same digits
        start=0.25,
        seconds=2.0,
        words=(Word(text="so", start=0.0, end=0.5), Word(text="what", start=0.5, end=1.0)),
        split="train",
        labels={"mood": 1.5, "kind": ("a", "b")},
    )


@pytest.fixture
def tables(tmp_path):
    write_clips(tmp_path, [clip(number) for number in range(3)])
    write_plan(tmp_path, [Place(0, number, f"c{number}", 0) for number in range(3)])
    return tmp_path


def test_clips_and_plan_are_read_as_they_were_written(tables):
    assert list(read_clips(tables)) == [clip(number) for number in range(3)]
    assert read_plan(tables) == [Place(0, number, f"c{number}", 0) for number in range(3)]
    assert verify(tables) == []


def test_the_order_in_which_clips_are_told_does_not_show(tables):
    before = (tables / CLIPS).read_bytes()
    write_clips(tables, [clip(number) for number in (2, 0, 1)])
    assert (tables / CLIPS).read_bytes() == before


def test_any_reader_of_parquet_reads_them(tables):
    rows = pq.read_table(io.BytesIO((tables / CLIPS).read_bytes())).to_pylist()
    assert [json.loads(row["labels"])["mood"] for row in rows] == [1.5] * 3


PLACES = [Place(0, number, f"c{number}", 0) for number in range(3)]


@pytest.mark.parametrize(
    ("places", "said", "keys"),
    [
        (None, "is missing; ingest again", ()),
        (PLACES[:2], "has no place for some clips; ingest again", ("c2",)),
        ([*PLACES, Place(1, 0, "c1", 1)], "has some clips twice", ("c1",)),
    ],
)
def test_verify_tells_what_is_wrong_with_a_plan_and_clean_leaves_it_alone(
    tables, places, said, keys
):
    if places is None:
        (tables / PLAN).unlink()
    else:
        write_plan(tables, places)
    (problem,) = verify(tables)
    assert (problem.what, problem.file, problem.text) == ("damaged", PLAN, said)
    assert problem.clips == keys
    assert clean(tables, [problem]) == []
    assert (tables / PLAN).exists() == (places is not None)


@pytest.mark.parametrize("name", TABLES)
def test_any_flipped_byte_is_found_and_is_no_other_row(tables, name):
    path = tables / name
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DatasetError, match=f"{name} is damaged"):
            TABLES[name](tables)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("content", [b"", b"PAR1", b"fuseline.sha256", None])
def test_a_table_that_was_cut_or_is_none_is_damage_that_verify_names(tables, name, content):
    path = tables / name
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(DatasetError, match=f"{name} is damaged"):
        TABLES[name](tables)
    (problem,) = verify(tables)
    assert (problem.what, problem.file) == ("damaged", name)


def test_a_file_where_the_folder_is_wanted_is_said_to_be_one(tmp_path):
    (tmp_path / "experiment.yaml").write_text("dataset: runs/mine\n")
    with pytest.raises(DatasetError, match=r"experiment\.yaml is a file; wanted the folder of"):
        read_clips(tmp_path / "experiment.yaml")
