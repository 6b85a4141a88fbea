import csv
import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest

from featurizers.catalog import build
from featurizers.clip import BadClipError, Clip
from featurizers.media import probe
from featurizers.shrink import box_mean
from featurizers.spec import AudioChunk, VideoChunk
from featurizers.transcript import read_transcript
from pipelines.demo import (
    COLUMNS,
    FULL_SIZE,
    KIND,
    NEUTRAL,
    ODDITIES,
    UNKIND,
    make_corpus,
    meaning,
    plan_corpus,
    rows,
    write_source,
)
from pipelines.puppet import FPS, RATE_HZ, Cues, frames, sound


@pytest.fixture(scope="module")
def plan():
    return plan_corpus()


def _clips(plan):
    return [(script, clip) for script in plan for clip in script.clips]


def _best_guess(clips, cues):
    """The share of clips whose sign is right when only these cues are known."""
    signs = defaultdict(Counter)
    for _, clip in clips:
        known = tuple(getattr(clip.cues, cue) for cue in cues)
        signs[known][clip.sentiment > 0] += 1
    return sum(max(seen.values()) for seen in signs.values()) / len(clips)


def test_a_plan_depends_on_its_seed_alone(plan):
    assert plan_corpus() == plan
    assert plan_corpus(seed=8) != plan


def test_the_corpus_has_the_stated_size_and_every_kind_of_clip(plan):
    clips = _clips(plan)
    assert len(clips) == FULL_SIZE
    assert len({clip.id for _, clip in clips}) == FULL_SIZE
    assert len({script.name for script in plan}) == len(plan)
    assert sum(len(script.clips) == 4 for script in plan) == 10
    assert Counter(script.oddity for script in plan if script.oddity) == ODDITIES
    assert all(2.0 <= clip.seconds <= 4.0 for _, clip in clips)
    assert all(5 <= len(clip.words) <= 9 for _, clip in clips)


def test_splits_share_no_speaker_and_the_test_split_is_large_enough(plan):
    speakers = defaultdict(set)
    for script in plan:
        speakers[script.split].add(script.speaker.name)
    assert sum(map(len, speakers.values())) == len(set.union(*speakers.values())) == 16
    assert sum(len(script.clips) for script in plan if script.split == "test") >= 120
    odd = {script.split for script in plan if script.oddity}
    assert odd == {"train", "test"}


@pytest.mark.parametrize("interaction", [True, False])
def test_speaker_and_length_tell_nothing_of_the_label(interaction):
    clips = _clips(plan_corpus(interaction=interaction))
    by_speaker = defaultdict(list)
    for script, clip in clips:
        by_speaker[script.speaker.name].append(clip.sentiment)
    assert all(sum(np.array(labels) > 0) == 15 for labels in by_speaker.values())
    means = [np.mean(labels) for labels in by_speaker.values()]
    assert np.ptp(means) < 0.5
    labels = [clip.sentiment for _, clip in clips]
    seconds = [clip.seconds for _, clip in clips]
    assert abs(np.corrcoef(seconds, labels)[0, 1]) < 0.03
    above = Counter(clip.seconds for _, clip in clips if clip.sentiment > 0)
    assert above == Counter(clip.seconds for _, clip in clips if clip.sentiment < 0)


@pytest.mark.parametrize("interaction", [True, False])
def test_labels_lie_on_the_scale_and_are_never_zero(interaction):
    labels = np.array([clip.sentiment for _, clip in _clips(plan_corpus(interaction=interaction))])
    assert np.abs(labels).max() <= 3
    assert np.abs(labels).min() >= 0.2
    assert np.allclose(labels * 5, np.round(labels * 5))
    assert len(np.unique(labels)) > 15


def test_kind_words_with_a_frown_and_a_flat_voice_are_sarcasm():
    assert meaning(Cues(words=+1, face=+1, voice=+1)) == +1
    assert meaning(Cues(words=+1, face=-1, voice=-1)) == -1
    assert meaning(Cues(words=-1, face=-1, voice=-1)) == +1
    assert meaning(Cues(words=-1, face=+1, voice=+1)) == -1


def test_no_single_modality_suffices_and_all_together_do(plan):
    clips = _clips(plan)
    for cue in ("words", "face", "voice"):
        assert 0.55 < _best_guess(clips, [cue]) < 0.66
    assert _best_guess(clips, ["face", "voice"]) < 0.66
    assert 0.8 < _best_guess(clips, ["words", "face"]) < 0.9
    assert 0.8 < _best_guess(clips, ["words", "voice"]) < 0.9
    assert _best_guess(clips, ["words", "face", "voice"]) == 1


def test_in_the_control_corpus_the_words_alone_carry_the_label():
    clips = _clips(plan_corpus(interaction=False))
    assert _best_guess(clips, ["words"]) == 1
    assert _best_guess(clips, ["face", "voice"]) < 0.55


def test_the_words_show_what_the_cues_say(plan):
    assert len({*KIND, *UNKIND, *NEUTRAL}) == len(KIND) + len(UNKIND) + len(NEUTRAL)
    for _, clip in _clips(plan):
        said = {word.text for word in clip.words}
        meant = KIND if clip.cues.words > 0 else UNKIND
        assert len(said & set(meant)) == clip.cues.strength
        assert said <= {*meant, *NEUTRAL}
        edges = [time for word in clip.words for time in (word.start, word.end)]
        assert edges[0] > 0
        assert edges[-1] < clip.seconds
        assert all(a < b for a, b in itertools.pairwise(edges))


def test_the_table_names_each_clip_and_gives_spans_only_within_longer_media(plan):
    table = rows(plan)
    assert all(tuple(row) == COLUMNS for row in table)
    media = Counter(row["media"] for row in table)
    for row in table:
        assert bool(row["start"]) == bool(row["end"]) == (media[row["media"]] > 1)
    assert sum(not row["transcript_file"] for row in table) == ODDITIES["untold"]


@pytest.mark.media
def test_each_odd_file_is_odd_and_the_others_are_films(plan, tmp_path):
    written = {script.oddity: script for script in plan if len(script.clips) == 1}
    found = {}
    for oddity, script in written.items():
        write_source(script, tmp_path)
        path = tmp_path / script.media
        try:
            found[oddity] = (probe(path).audio, probe(path).video)
        except BadClipError as error:
            found[oddity] = error.fault
        if oddity in {None, "silent", "unseen", "untold"}:
            assert probe(path).seconds == pytest.approx(script.seconds, abs=0.15)
    assert found == {
        None: (True, True),
        "untold": (True, True),
        "silent": (False, True),
        "unseen": (True, False),
        "truncated": "unreadable",
        "nothing": "empty",
        "text": "unreadable",
    }
    assert (tmp_path / written["nothing"].media).stat().st_size == 0
    assert (tmp_path / written["truncated"].media).stat().st_size > 1000
    assert written["untold"].transcript is None


@pytest.mark.media
def test_clips_of_a_longer_film_have_their_words_on_its_clock(plan, tmp_path):
    script = next(script for script in plan if len(script.clips) > 1)
    write_source(script, tmp_path)
    assert probe(tmp_path / script.media).seconds == pytest.approx(script.seconds, abs=0.15)
    told = [
        (word.text, pytest.approx(clip.start + word.start), pytest.approx(clip.start + word.end))
        for clip in script.clips
        for word in clip.words
    ]
    read = read_transcript(tmp_path / script.transcript)
    assert [(word.text, word.start, word.end) for word in read] == told
    spans = [(clip.start, clip.start + clip.seconds) for clip in script.clips]
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert spans[-1][1] < script.seconds


@pytest.mark.media
def test_a_corpus_is_written_whole_and_again_is_kept(tmp_path):
    calls = []

    def mapper(write, scripts):
        calls.append(len(scripts))
        return map(write, scripts)

    table = make_corpus(tmp_path, clips=16, mapper=mapper)
    media = sorted(tmp_path.glob("media/*"))
    before = [(path.name, path.stat().st_mtime_ns) for path in media]
    assert calls == [16]
    with table.open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert sorted(row["media"] for row in listed) == [f"media/{path.name}" for path in media]
    assert all((tmp_path / row["transcript_file"]).is_file() for row in listed)
    assert "made up" in (tmp_path / "README.txt").read_text()
    media[0].unlink()
    assert make_corpus(tmp_path, clips=16) == table
    after = [(path.name, path.stat().st_mtime_ns) for path in sorted(tmp_path.glob("media/*"))]
    assert after[1:] == before[1:]
    assert after[0][0] == before[0][0]
    assert not list(tmp_path.rglob(".part-*"))


def test_fewer_clips_than_speakers_is_an_error():
    with pytest.raises(ValueError, match="15 clips are too few for 16 speakers"):
        plan_corpus(15)


def test_a_small_corpus_has_every_odd_kind_once_but_few_broken_files():
    odd = Counter(script.oddity for script in plan_corpus(64) if script.oddity)
    assert odd == dict.fromkeys(ODDITIES, 1)
    assert not any(script.oddity for script in plan_corpus(63))


def _seen(script):
    luma = [
        np.round(picture @ [0.299, 0.587, 0.114]).astype(np.uint8) for picture in frames(script)
    ]
    small = np.stack([box_mean(picture, 48) for picture in luma])
    steps = np.arange(len(small))
    extraction = build("face-motion", fps=FPS).begin(_clip(script))
    extraction.add(VideoChunk(np.stack([steps, steps + 1], axis=1) / FPS, small))
    return extraction.finish().values.mean(axis=0)


def _heard(script):
    extraction = build("logmel").begin(_clip(script))
    extraction.add(AudioChunk(0.0, sound(script)))
    return extraction.finish().values.mean(axis=0)


def _clip(script):
    clip_id = script.clips[0].id
    return Clip(key=clip_id, id=clip_id, media="", media_digest="")


@pytest.mark.parametrize(("cue", "describe"), [("face", _seen), ("voice", _heard)])
def test_faces_and_voices_of_strangers_can_be_told_apart_by_their_features(plan, cue, describe):
    known = [s for s in plan if len(s.clips) == 1 and s.split == "train"][::6]
    strangers = [s for s in plan if len(s.clips) == 1 and s.split == "test"][::7]
    x = np.stack([describe(script) for script in known])
    y = np.array([getattr(script.clips[0].cues, cue) for script in known])
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-6
    x = (x - mean) / std
    # Ridge regression on the sign: the simplest linear classifier.
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ y)
    guesses = [np.sign((describe(script) - mean) / std @ weights) for script in strangers]
    right = [g == getattr(s.clips[0].cues, cue) for g, s in zip(guesses, strangers, strict=True)]
    assert len(strangers) >= 20
    assert np.mean(right) > 0.95


def test_pictures_and_sound_are_the_same_for_the_same_script(plan):
    script = plan[-1]
    again = [*frames(script)]
    assert all(map(np.array_equal, frames(script), again))
    assert len(again) == script.seconds * FPS
    assert again[0].shape == (96, 96, 3)
    assert np.array_equal(sound(script), sound(script))
    assert len(sound(script)) == script.seconds * RATE_HZ
