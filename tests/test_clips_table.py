"""Clips that are held as a table, and jobs that are made when they are asked for."""

import pickle

import pyarrow as pa
import pytest

from featurizers import catalog, dataset
from featurizers.clip import Clip, Word
from featurizers.dataset import CLIPS, Clips, read_clips, write_clips
from pipelines import featurize
from pipelines.featurize import jobs_of
from pipelines.plan import Room, by_shard, deal

SPECS = [catalog.build(name).spec for name in ("logmel", "hashed-words")]


def clip(number):
    """One of a kind: with and without words, labels of each type, a stream now and then."""
    words = tuple(
        Word(text=f"wört{n}", start=n / 3, end=(n + 1) / 3, confidence=0.5 if n % 2 else None)
        for n in range(number % 4)
    )
    labels = [{"mood": number / 7}, {"act": "läuft"}, {"tags": ("a", "b")}, {}][number % 4]
    odd = bool(number % 2)
    return Clip(
        key=f"clip{number:05d}",
        id=f"clip.{number}",
        media=f"film{number // 3}.mp4",
        media_digest=f"{number // 3:064x}",
        start=float(number % 3),
        end=None if odd else number % 3 + 1.0,
        seconds=1.0 + number % 5,
        words=None if number % 5 == 0 else words,
        streams={"pose": f"pose{number}.csv"} if odd else {},
        stream_digests={"pose": f"{number:064x}"} if odd else {},
        stream_rates={"pose": 25.0} if odd else {},
        source=f"film{number // 3}",
        fold=number % 5 if odd else None,
        labels=labels,
    )


MADE = [clip(number) for number in range(50)]


@pytest.fixture
def clips(tmp_path):
    """Those that were made, as a table in several pieces."""
    write_clips(tmp_path, MADE)
    whole = read_clips(tmp_path).rows(range(len(MADE)))
    return Clips(pa.concat_tables([whole.slice(0, 7), whole.slice(7, 30), whole.slice(37)]))


def test_clips_are_read_as_they_were_written(tmp_path):
    write_clips(tmp_path, MADE[::-1])
    assert list(read_clips(tmp_path)) == MADE
    assert len(read_clips(tmp_path)) == len(MADE)


def test_each_clip_is_found_at_its_place_from_either_end(clips):
    assert [clips[number] for number in range(50)] == MADE
    assert clips[-1] == MADE[-1]
    assert list(clips[3:45:6]) == MADE[3:45:6]
    with pytest.raises(IndexError):
        clips[50]


def test_keys_are_those_of_the_clips_in_order(clips):
    assert clips.keys() == [each.key for each in MADE]


def test_some_clips_come_in_the_order_that_was_asked_for(clips):
    numbers = [40, 3, 8, 7, 6, 49, 0, 36, 37]
    assert list(clips.some(numbers)) == [MADE[number] for number in numbers]
    assert len(clips.some(numbers)) == len(numbers)
    assert list(clips.some([])) == []


def test_some_clips_arrive_in_another_process_as_they_were(clips):
    numbers = [12, 44, 5]
    arrived = pickle.loads(pickle.dumps(clips.some(numbers)))  # noqa: S301 - our own, from here
    assert arrived == tuple(MADE[number] for number in numbers)


def test_a_table_that_is_written_in_pieces_has_the_bytes_of_one_written_at_once(
    tmp_path, monkeypatch
):
    write_clips(tmp_path / "once", MADE)
    monkeypatch.setattr(dataset, "AT_ONCE", 7)
    write_clips(tmp_path / "pieces", MADE)
    assert list(read_clips(tmp_path / "pieces")) == MADE
    once, pieces = (tmp_path / name / CLIPS for name in ("once", "pieces"))
    assert once.read_bytes() == pieces.read_bytes()


def test_a_dataset_of_no_clips_is_an_empty_table(tmp_path):
    write_clips(tmp_path, [])
    assert list(read_clips(tmp_path)) == []


def test_jobs_of_a_table_are_those_of_the_clips_themselves(tmp_path, clips):
    places = deal([], MADE, Room(clips=8))
    of_table = jobs_of(tmp_path, SPECS, clips, places).todo
    of_clips = jobs_of(tmp_path, SPECS, MADE, places).todo
    shards = by_shard(places, {each.key: each for each in MADE})
    assert len(of_table) == len(of_clips) == 2 * len(shards)
    for mine, other in zip(of_table, of_clips, strict=True):
        assert (mine.shard, mine.parts) == (other.shard, other.parts)
        assert list(mine.clips) == list(other.clips) == shards[mine.shard]
        assert mine.media_seconds == other.media_seconds
    assert [job.shard for job in of_table[1:4]] == [job.shard for job in of_clips][1:4]


def test_a_job_of_a_table_arrives_with_the_clips_themselves(tmp_path, clips):
    job = jobs_of(tmp_path, SPECS, clips, deal([], MADE, Room(clips=8))).todo[3]
    arrived = pickle.loads(pickle.dumps(job))  # noqa: S301 - our own, from here
    assert type(arrived.clips) is tuple
    assert arrived.clips == tuple(job.clips)
    assert (arrived.shard, arrived.parts) == (job.shard, job.parts)


def test_jobs_that_decode_come_some_places_before_those_that_do_not(tmp_path, monkeypatch):
    monkeypatch.setattr(featurize, "BEHIND", 6)
    jobs = jobs_of(tmp_path, SPECS, MADE, deal([], MADE, Room(clips=5))).todo
    shards = len(jobs) // 2
    long, short = (
        [(at, job.shard) for at, job in enumerate(jobs) if job.parts[0].spec.name == name]
        for name in ("logmel", "hashed-words")
    )
    assert [shard for _, shard in long] == [shard for _, shard in short] == list(range(shards))
    assert [at for at, _ in short[-3:]] == list(range(len(jobs) - 3, len(jobs))), "at the end"
    assert short[0][0] < long[-1][0], "but not all of them"
