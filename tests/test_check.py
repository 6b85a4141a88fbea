"""`check`: a set with one planted fault of each kind, and a clean one that raises none."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from featurizers.clip import Clip, Word
from featurizers.dataset import write_clips
from featurizers.extract import Outcome
from featurizers.likeness import Likeness
from featurizers.manifest import commit
from featurizers.media import encode
from featurizers.shards import job_id, write_shard
from featurizers.spec import Dim, Feature, FeatureSpec
from featurizers.store import LocalStore
from pipelines.__main__ import app
from pipelines.check import check, near

SPEC = FeatureSpec(
    name="faces",
    version=1,
    modality="stream",
    reads=("video",),
    dims=tuple(Dim(f"d{i}") for i in range(4)),
    rate_hz=5.0,
)
SPLITS = ["train"] * 70 + ["valid"] * 60 + ["test"] * 60


def words(number):
    said = f"clip {number} says something else entirely here".split()
    return tuple(
        Word(text=text, start=0.4 * at, end=0.4 * at + 0.4) for at, text in enumerate(said)
    )


def clean():
    return [
        Clip(
            key=f"k{i:03d}",
            id=f"clip-{i}",
            media=f"{i}.mp4",
            media_digest=f"digest{i}",
            seconds=3.0,
            words=words(i),
            source=f"film{i // 2}",
            speaker=f"speaker{i // 10}",
            split=split,
            labels={"score": float(i * 7 % 61 - 30) / 10, "mood": ["calm", "angry"][i % 2]},
        )
        for i, split in enumerate(SPLITS)
    ]


def dataset(root, clips, values=None):
    write_clips(root, clips)
    random = np.random.default_rng(0)
    steps = np.arange(16) / 5
    times = np.stack([steps[:-1], steps[1:]], axis=1)
    outcomes = []
    for _ in clips:
        own = random.normal(size=(15, 4)).astype(np.float32)
        feature = Feature(own if values is None else values(own), times)
        outcomes.append(Outcome(state="sample", feature=feature))
    job = job_id(SPEC, clips)
    shard = write_shard(LocalStore(root), 0, job, SPEC, clips=clips, outcomes=outcomes)
    commit(root, SPEC, "plan", [shard])
    return root


def bad(root):
    return [each for each in check(root) if each.state != "ok"]


def test_a_clean_dataset_raises_nothing(tmp_path):
    assert [str(each) for each in bad(dataset(tmp_path, clean()))] == []
    areas = {each.area for each in check(tmp_path)}
    assert areas == {"leaks", "balance", "labels", "words", "features"}


def changed(at, **what):
    def change(clips):
        clips[at] = replace(clips[at], **what)
        return clips

    return change


def everywhere(of):
    return lambda clips: [of(number, clip) for number, clip in enumerate(clips)]


def mood(clips, at, said):
    return replace(clips[at], labels={**clips[at].labels, "mood": said})


def one_class(number, clip):
    return replace(clip, labels={"mood": "calm" if number % 20 else "angry"})


def shifted(_, clip):
    return replace(clip, labels={"score": clip.labels["score"] + 9 * (clip.split == "test")})


def twice(clips):
    """Clip 1 is clip 0 again, and says the opposite."""
    clips[1] = replace(clips[1], media_digest=clips[0].media_digest)
    return clips


def same_words(clips):
    clips[2] = replace(mood(clips, 2, "calm"), words=clips[5].words)
    clips[5] = mood(clips, 5, "angry")
    return clips


FAULTS = {
    "a speaker in two splits": (
        changed(75, speaker="speaker3"),
        [("leaks", "speakers", "failed", "1 lie in several splits: 'speaker3' (train, valid)")],
    ),
    "a film in two splits": (
        changed(75, source="film3"),
        [("leaks", "recordings", "failed", "1 lie in several splits: 'film3' (train, valid)")],
    ),
    "a group in two splits": (
        lambda clips: changed(0, group="g")(changed(189, group="g")(clips)),
        [("leaks", "groups", "failed", "1 lie in several splits: 'g' (test, train)")],
    ),
    "the same seconds in two splits": (
        changed(140, media_digest="digest4"),
        [("leaks", "equal clips", "failed", "clip-4 = clip-140")],
    ),
    "the same seconds twice, with other labels": (
        twice,
        [
            ("leaks", "equal clips", "warning", "1 times the same seconds"),
            ("labels", "equal media", "failed", "clip-0 = clip-1 (mood: calm and angry)"),
        ],
    ),
    "the same words, another label": (
        same_words,
        [("labels", "equal words", "warning", "clip-2 = clip-5 (mood: calm and angry)")],
    ),
    "nearly all clips of one class": (
        everywhere(one_class),
        [("balance", "mood", "warning", "95% of the clips are 'calm'")],
    ),
    "a class that is tested and never trained": (
        lambda clips: [*clips[:-1], mood(clips, -1, "afraid")],
        [
            ("balance", "mood", "failed", "'afraid' is in test but not in train"),
            ("balance", "mood", "warning", "'afraid' has 1 clips in test"),
        ],
    ),
    "one number for all": (
        everywhere(lambda _, clip: replace(clip, labels={"score": 1.0})),
        [("balance", "score", "failed", "all 190 clips have 1")],
    ),
    "a slip of the label's decimal point": (
        changed(3, labels={"score": 300.0, "mood": "angry"}),
        [("balance", "score", "warning", "clip-3 has 300, where half lie")],
    ),
    "a test split that is another world": (
        everywhere(shifted),
        [("balance", "score", "warning", "test is distributed otherwise than train")],
    ),
    "no labels": (
        everywhere(lambda _, clip: replace(clip, labels={})),
        [("balance", "labels", "warning", "no clip has one")],
    ),
    "a transcript of something longer": (
        changed(8, seconds=0.5),
        [("words", "transcripts", "warning", "clip-8 has 7 words in 0.50 s")],
    ),
    "a transcript of something shorter": (
        changed(8, seconds=60.0),
        [("words", "transcripts", "warning", "clip-8 has 7 words in 60.0 s")],
    ),
    "words beyond the clip": (
        changed(8, seconds=2.0),
        [("words", "transcripts", "warning", "clip-8 has a word that ends 0.80 s after it")],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_no_other(tmp_path, fault):
    plant, expected = FAULTS[fault]
    found = bad(dataset(tmp_path, plant(clean())))
    assert [(each.area, each.what, each.state) for each in found] == [e[:3] for e in expected]
    for each, (*_, said) in zip(found, expected, strict=True):
        assert said in each.found
        assert each.do


def dead(values):
    values[:, 2] = 0.5
    return values


def wild(values):
    values[:, 1] *= 1e6
    return values


@pytest.mark.parametrize(
    ("values", "said"),
    [(dead, "'d2' is always 0.5"), (wild, "'d1' spreads 1e+06 times as far")],
)
def test_dimensions_that_are_dead_or_dwarf_all_others_are_found(tmp_path, values, said):
    (found,) = bad(dataset(tmp_path, clean(), values))
    assert (found.area, found.what, found.state) == ("features", "faces", "warning")
    assert said in found.found


def test_sparse_features_may_have_dimensions_that_stay_zero(tmp_path):
    def hashed(values):
        values[1:, :] = 0.0
        values[:, 2] = 0.0
        return values

    assert bad(dataset(tmp_path, clean(), hashed)) == []


def test_equal_features_in_two_splits_are_found_whatever_media_they_had(tmp_path):
    """As in a published set, which has no media: clip 4 lies in test again, under another id."""
    clips = [replace(clip, media="", media_digest="") for clip in clean()]

    made = []

    def copied(values):
        made.append(values)
        return made[4] if len(made) == 141 else values

    (found,) = bad(dataset(tmp_path / "a", clips, copied))
    assert (found.area, found.what, found.state) == ("leaks", "equal features", "failed")
    assert "clip-4 = clip-140" in found.found
    # Silence is like silence.
    made.clear()

    def silent(values):
        made.append(values)
        return np.zeros_like(values) if len(made) in {5, 141} else values

    assert bad(dataset(tmp_path / "b", clips, silent)) == []


def test_words_of_which_only_the_times_are_known_contradict_nothing(tmp_path):
    clips = clean()
    for at in (2, 5):
        bare = tuple(replace(word, text="") for word in clips[at].words)
        clips[at] = replace(mood(clips, at, ["calm", "angry"][at % 2]), words=bare)
    assert bad(dataset(tmp_path, clips)) == []


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """A set with media: clip 2 is clip 0 in other bytes."""
    root = tmp_path_factory.mktemp("filmed")
    random = np.random.default_rng(0)
    sounds = [random.normal(0, 3000, 32_000) for _ in range(3)]
    sounds[2] = sounds[0] * 0.5  # the same, more quietly
    clips = clean()
    for at, clip in enumerate((0, 75, 140)):
        path = root / f"{at}.mp4"
        samples = np.round(sounds[at]).astype(np.int16)
        encode(path, frames=None, fps=10, samples=samples, rate_hz=16_000)
        clips[clip] = replace(clips[clip], media=str(path), seconds=2.0, end=2.0, words=None)
    some = [replace(c, media="", media_digest="") if not c.end else c for c in clips]
    return dataset(root / "set", some), some


def test_a_clip_that_sounds_like_one_of_another_split_is_found(filmed):
    root, _ = filmed
    done = CliRunner().invoke(app, ["check", str(root), "--json"])
    assert done.exit_code == 1
    found = [each for each in json.loads(done.output) if each["state"] != "ok"]
    assert [(each["area"], each["what"]) for each in found] == [("leaks", "near-duplicates")]
    assert "clip-140 (test) is like clip-0 (train)" in found[0]["found"]
    assert CliRunner().invoke(app, ["check", str(root), "--no-media"]).exit_code == 0


def test_near_duplicates_are_not_denied_where_media_are_away(filmed):
    _, clips = filmed
    apart = {clips[at].key: Likeness(sound=sound) for at, sound in ((0, "00"), (75, "ff"))}
    found = near(clips, apart)
    assert found.state == "warning"
    assert "none of 2 clips" in found.found
    assert "the media of 1 cannot be had here" in found.found
    assert near(clips, {**apart, clips[140].key: Likeness(sound="0f")}).state == "ok"


def test_the_command_prints_all_and_ends_with_1_only_for_failures(tmp_path):
    good = dataset(tmp_path / "good", clean())
    done = CliRunner().invoke(app, ["check", str(good), "--no-media"])
    assert done.exit_code == 0
    assert done.output.splitlines()[0].startswith("ok       leaks     speakers: each of 19")
    torn = dataset(tmp_path / "torn", changed(75, speaker="speaker3")(clean()))
    done = CliRunner().invoke(app, ["check", str(torn), "--no-media", "--json"])
    assert done.exit_code == 1
    assert {each["state"] for each in json.loads(done.output)} == {"ok", "failed"}
    few = dataset(tmp_path / "few", changed(8, seconds=60.0)(clean()))
    assert CliRunner().invoke(app, ["check", str(few), "--no-media"]).exit_code == 0
