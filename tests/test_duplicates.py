"""Near-duplicates of a dataset: decoded once, kept in its logs, and forgotten with their clips."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from featurizers.clip import Clip
from featurizers.likeness import Likeness
from featurizers.media import encode
from pipelines import duplicates
from pipelines.duplicates import FILE, like, likenesses, near_duplicates, unknown
from pipelines.executors import InProcess
from pipelines.lineage import write_lineage
from pipelines.show import Show
from pipelines.staging import Stage
from pipelines.upkeep import _scrub_logs
from tests.made_of import made_of, plan_of


@pytest.fixture
def world(tmp_path):
    random = np.random.default_rng(0)
    clips = []
    for name in ("a", "b"):
        samples = np.round(random.normal(0, 3000, 32_000)).astype(np.int16)
        path = tmp_path / f"{name}.mp4"
        encode(path, frames=None, fps=10, samples=samples, rate_hz=16_000)
        clips.append(clip(name, media=str(path)))
    clips.append(clip("gone", media=str(tmp_path / "gone.mp4")))
    return tmp_path, clips


def clip(name, **more):
    given = {"media": f"/{name}.mp4", "media_digest": name * 64, "end": 2.0, "seconds": 2.0}
    return Clip(key=name, id=f"clip {name}", **{**given, **more})


def looked(folder, clips):
    counts = []
    stage = Stage(folder=folder / "cache", limit_bytes=1 << 20)
    return likenesses(folder, clips, stage, InProcess(), counts.append), sum(counts)


def test_a_clip_is_decoded_for_its_likeness_once(world):
    folder, clips = world
    found, count = looked(folder, clips)
    assert (set(found), count) == ({"a", "b"}, 3)
    assert all(each.sound for each in found.values())
    before = (folder / FILE).read_bytes()
    assert looked(folder, clips[:2]) == (found, 0)
    assert (folder / FILE).read_bytes() == before
    # Another span is another clip; what is known of others stays.
    moved = clip("b", media=clips[1].media, start=0.5, seconds=1.5)
    again, count = looked(folder, [moved])
    assert count == 1
    assert again["b"] != found["b"]
    assert looked(folder, clips[:1]) == ({"a": found["a"]}, 0)


def test_what_a_kill_cut_short_is_computed_anew(world):
    folder, clips = world
    found, _ = looked(folder, clips[:2])
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[:-20] + b"\n[1, 2]\n")
    again, count = looked(folder, clips[:2])
    assert (again, count) == (found, 1)
    assert (folder / FILE).read_bytes() == content


def test_a_forgotten_clip_is_taken_out_of_what_is_kept(world):
    from featurizers.store import store_at

    folder, clips = world
    looked(folder, clips[:2])
    assert _scrub_logs(store_at(folder), frozenset({"a"})) == 1
    kept = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    assert [list(line) for line in kept] == [[], ["b"]]


def test_pairs_are_told_by_the_names_that_people_gave():
    one, other = Likeness(sound="00ff"), Likeness(sound="ff00")
    test, training = [clip("a"), clip("b")], [clip("c"), clip("d")]
    found = {"a": one, "b": other, "c": one}
    assert like(test, training, found) == ["clip a is like clip c"]
    assert like(test, training, {**found, "c": other}) == ["clip b is like clip c"]


def test_where_some_media_cannot_be_had_nothing_is_said():
    one, other = Likeness(sound="00ff"), Likeness(sound="ff00")
    ours, theirs = [clip("a"), clip("b")], [clip("c"), clip("d")]
    found = {"a": one, "b": one, "c": other, "d": other}
    assert like(ours, theirs, found) == []
    for away in found:
        assert like(ours, theirs, {key: found[key] for key in found if key != away}) is None
    # One that is alike is told, whatever else cannot be had.
    assert like(ours, theirs, {"a": one, "c": one}) == ["clip a is like clip c"]
    never = clip("e", media_digest="")
    assert like([*ours, never], [*theirs, never], found) == []


def test_equal_bytes_under_another_name_are_found_whatever_they_show():
    ours, theirs = [clip("a", media_digest="f" * 64)], [clip("b", media_digest="f" * 64)]
    blank = {"a": Likeness(), "b": Likeness()}
    assert like(ours, theirs, blank) == ["clip a is like clip b"]
    assert like(ours, theirs, {}) == ["clip a is like clip b"]
    later = [clip("b", media_digest="f" * 64, start=2.0, end=4.0)]
    assert like(ours, later, blank) == []
    whole = [clip("b", media_digest="f" * 64, end=None)]
    assert like(ours, whole, blank) == ["clip a is like clip b"]


def test_training_clips_of_a_run_that_it_starts_from_count_and_are_not_kept(world, monkeypatch):
    folder, clips = world
    dealt = [
        replace(clips[0], split="test", labels={"mood": 1.0}),
        replace(clips[1], split="train", labels={"mood": 1.0}),
    ]
    experiment = SimpleNamespace(root=folder, workers=SimpleNamespace(featurize=0))
    monkeypatch.setattr(duplicates, "executor", lambda _: InProcess())
    stage = Stage(folder=folder / "cache", limit_bytes=1 << 20)
    monkeypatch.setattr(duplicates, "stage_of", lambda _: stage)
    plan = plan_of(folder)
    plan.folder = folder / "run"

    def found():
        return near_duplicates(experiment, plan, dealt, Show(quiet=True))

    assert found() == []
    before = replace(made_of("/gone"), clips=[row_of(clips[0])])
    write_lineage(plan.folder, replace(made_of(folder), before={"r1": before}))
    assert found() == ["clip a is like clip a of run r1"]
    lines = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    assert [list(line) for line in lines] == [["a"], ["b"]]
    away = {**row_of(clips[0]), "media": "/gone.mp4", "media_digest": "9" * 64}
    write_lineage(
        plan.folder, replace(made_of(folder), before={"r1": replace(before, clips=[away])})
    )
    assert found() is None


def row_of(clip):
    """The row of a training clip of a run before."""
    row = next(row for row in made_of("/any").clips if row["role"] == "train")
    told = ("key", "id", "media", "media_digest", "start", "end", "seconds")
    return {**row, **{name: getattr(clip, name) for name in told}}


def test_it_is_said_how_many_clips_could_not_be_looked_at():
    clips = [clip("a"), clip("b"), clip("c"), clip("d", media_digest="")]
    assert unknown(clips[:1], {"a": Likeness(sound="00ff")}) == []
    said = unknown(clips, {"a": Likeness(sound="00ff"), "b": Likeness()})
    assert [line.split("clips")[0] for line in said] == ["near-duplicates: 1 of 4 "] * 3
    assert ["cannot be had" in line for line in said] == [True, False, False]
    assert ["equal bytes alone" in line for line in said] == [False, True, False]
