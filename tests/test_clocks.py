"""How sound and pictures of a file lie to each other is measured, logged and told."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurizers import catalog
from featurizers.clip import Clip
from featurizers.clocks import Clocks, drift_of_pictures, read_clocks
from featurizers.dataset import read_clips
from featurizers.decoder import Decoder
from featurizers.extract import extract_all
from featurizers.limits import Limits
from featurizers.media import decode
from featurizers.spec import AudioWant, VideoWant
from featurizers.stages import Stages
from pipelines.clocks import measured
from pipelines.executors import InProcess
from pipelines.featurize import featurize
from pipelines.ingest import ingest
from pipelines.logbook import read_logs
from pipelines.pages import ledger
from pipelines.pages import peek as clip_page
from pipelines.peek import peek
from pipelines.report import build_report, report
from tests.media_maker import flat, tone, write
from tests.test_featurize import experiment

pytestmark = pytest.mark.media

PICTURES, SOUND = VideoWant(fps=5, size=16), AudioWant()
FEATURES = {
    "audio": {"featurizer": "logmel"},
    "video": {"featurizer": "face-motion", "fps": 5},
    "text": {"featurizer": "hashed-words"},
}


def film(path, *, late=0.0, seconds=4.0, sound_step=1.0, picture_step=1.0, length=4):
    """A film of `length` seconds; steps are seconds of its clock for each that is true."""
    pictures = [
        (0.04 * picture_step * number, flat(20 + number % 200)) for number in range(25 * length)
    ]
    pieces = round(seconds * 10)
    sound = [(late + 0.1 * sound_step * number, tone(300, 0.1)) for number in range(pieces)]
    audio = "aac" if path.suffix == ".mp4" else "pcm_s16le"
    write(path, pictures=pictures, sound=sound, audio=audio)
    return path


def clocks_of(path, span=(0.0, None), wants=(PICTURES, SOUND)):
    found = []
    for _ in decode(path, *span, wants, Limits(), clocks=found):
        pass
    return found


FILMS = {
    "even": ({}, (0.0, 0.0, 0.0, 0.0)),
    "late": ({"late": 0.5, "seconds": 3.5}, (0.5, 0.0, 0.0, 0.0)),
    "short": ({"seconds": 2.0}, (0.0, -2.0, 0.0, 0.0)),
    "sound drifts": ({"length": 20, "seconds": 20.0, "sound_step": 1.001}, (0, 0.02, 0.02, 0)),
    "sound lags": ({"length": 20, "seconds": 20.0, "sound_step": 0.99}, (0, -0.2, -0.2, 0)),
    "pictures drift": ({"length": 20, "seconds": 20.0, "picture_step": 1.001}, (0, -0.02, 0, 0.02)),
}


@pytest.mark.parametrize("name", FILMS)
def test_offsets_ends_and_drifts_are_those_that_were_made(tmp_path, name):
    changes, wanted = FILMS[name]
    [found] = clocks_of(film(tmp_path / "a.mkv", **changes))
    assert tuple(found.numbers().values()) == pytest.approx(wanted, abs=0.003)


@pytest.mark.parametrize("form", ["a.mov", "a.mp4"])
def test_an_edit_list_that_delays_the_sound_is_an_offset(tmp_path, form):
    [found] = clocks_of(film(tmp_path / form, late=0.5, seconds=2.0))
    encoder = 0.07 if form == "a.mp4" else 0.003  # AAC begins with some silence of its own
    assert found.start_s == pytest.approx(0.5, abs=encoder)
    assert found.end_s == pytest.approx(-1.5, abs=0.07)


def test_the_sound_of_a_gap_is_missing_and_no_drift(tmp_path):
    pictures = [(number / 25, flat(90)) for number in range(100)]
    sound = [(number / 10, tone(300, 0.1)) for number in range(40) if not 10 <= number < 20]
    write(tmp_path / "a.mkv", pictures=pictures, sound=sound, audio="pcm_s16le")
    [found] = clocks_of(tmp_path / "a.mkv")
    assert found.sound_s == pytest.approx(0.0, abs=0.003)


def test_a_drift_that_is_followed_is_measured_to_its_end(tmp_path):
    path = film(tmp_path / "a.mkv", length=20, seconds=20.0, sound_step=1.02)
    [found] = clocks_of(path)
    assert found.sound_s == pytest.approx(0.4, abs=0.005)


def test_a_span_has_its_own_drift_and_the_offset_of_its_file(tmp_path):
    path = film(tmp_path / "a.mkv", late=0.5, length=20, seconds=18.0, sound_step=1.01)
    [found] = clocks_of(path, (2.0, 7.0))
    assert found.start_s == pytest.approx(0.5, abs=0.003)
    assert 0.045 <= found.sound_s <= 0.065  # up to a second of it is read behind the span


def test_sound_that_is_not_decoded_has_no_known_drift(tmp_path):
    [found] = clocks_of(film(tmp_path / "a.mkv", late=0.5), wants=[PICTURES])
    assert (found.start_s, found.sound_s) == (pytest.approx(0.5, abs=0.003), None)


def test_a_file_with_one_stream_has_nothing_to_be_measured(tmp_path):
    write(tmp_path / "a.mkv", sound=[(0, tone(300, 1))], audio="pcm_s16le")
    assert clocks_of(tmp_path / "a.mkv") == []
    with Decoder() as decoder:
        assert list(decoder.decode(tmp_path / "a.mkv", 0.0, None, [SOUND]))
        assert decoder.spent.clocks is None


def test_the_child_measures_what_is_measured_without_it(tmp_path):
    path = film(tmp_path / "a.mkv", late=0.5, sound_step=1.01)
    with Decoder() as decoder:
        assert list(decoder.decode(path, 0.0, None, [PICTURES, SOUND]))
        told = decoder.spent.clocks
    assert [told.numbers()] == [each.numbers() for each in clocks_of(path)]


def test_every_clip_of_a_film_is_measured_also_where_they_are_decoded_in_one_go(tmp_path):
    path = film(tmp_path / "a.mkv", late=0.5)
    clips = [
        Clip(key=f"c{n}", id="", media=str(path), media_digest="", start=n, end=n + 1, seconds=1)
        for n in range(4)
    ]
    built = [catalog.build("logmel"), catalog.build("face-motion", fps=5)]
    found = []
    with Decoder() as decoder:
        assert list(extract_all(clips, lambda _: path, built, decoder, Stages(), clocks=found))
    assert [key for key, _ in found] == ["c0", "c1", "c2", "c3"]
    assert [each.start_s for _, each in found] == pytest.approx([0.5] * 4, abs=0.003)


def test_clips_whose_pictures_alone_are_decoded_in_one_go_have_their_own_drift(tmp_path):
    path = film(tmp_path / "a.mkv", late=0.5, length=20, seconds=20.0, picture_step=1.01)
    spans = [(0.0, 4.0), (4.0, 8.0), (12.0, 16.0), (16.0, None)]
    clips = [
        Clip(key=f"c{n}", id="", media=str(path), media_digest="", start=a, end=b, seconds=4)
        for n, (a, b) in enumerate(spans)
    ]
    found, built = [], [catalog.build("face-motion", fps=5)]
    with Decoder() as decoder:
        assert list(extract_all(clips, lambda _: path, built, decoder, Stages(), clocks=found))
    assert [key for key, _ in found] == ["c0", "c1", "c2", "c3"]
    for clip, (_, one) in zip(clips, found, strict=True):
        [alone] = clocks_of(path, (clip.start, clip.end), [PICTURES])
        assert one.sound_s is None
        assert one.start_s == alone.start_s == pytest.approx(0.5, abs=0.003)
        # A hundredth of the four seconds, and of up to two that are read around them.
        assert 0.035 <= one.pictures_s <= 0.065


# Pictures against their rate.


@given(
    rate=st.sampled_from([10.0, 24.0, 25.0, 30_000 / 1001, 30.0, 50.0, 60.0]),
    dropped=st.sets(st.integers(1, 398), max_size=20),
    faster=st.floats(-0.002, 0.002),
)
def test_drift_is_that_of_the_clock_whatever_was_rounded_or_dropped(rate, dropped, faster):
    kept = np.array([number for number in range(400) if number not in dropped])
    times = np.round(kept / rate * (1 + faster), 3)
    wanted = 399 / rate * faster
    assert drift_of_pictures(times[::-1], rate) == pytest.approx(wanted, abs=0.0011)


@pytest.mark.parametrize(
    ("times", "rate"),
    [
        (np.cumsum([0.03, 0.05] * 50), 25.0),  # at a varying rate
        (np.arange(100) / 25, 90_000.0),  # a clock's ticks
        (np.arange(100) / 50, 25.0),  # twice as many as it says
        ([1.0], 25.0),
        ([1.0, 1.04], 0.0),
    ],
)
def test_pictures_that_keep_to_no_stated_rate_have_no_known_drift(times, rate):
    assert drift_of_pictures(times, rate) is None


# What is told.


def test_each_number_that_is_large_is_a_sentence_with_its_side():
    assert Clocks(start_s=0.5, end_s=-2.0, sound_s=0.3, pictures_s=-0.25).remarks() == [
        "the sound begins 0.50 s after the pictures",
        "the sound ends 2.00 s before the pictures",
        "the sound's clock ran 0.30 s ahead of its samples",
        "the pictures' clock ran 0.25 s behind their number",
    ]
    assert Clocks(start_s=0.19, end_s=-0.19).remarks() == []


def test_time_stamps_that_are_no_times_of_a_file_are_not_told_and_cost_nothing():
    wild = Clocks(start_s=1e12, end_s=-math.inf, sound_s=math.nan, pictures_s=0.25)
    assert list(wild.numbers().values()) == [None, None, None, 0.25]
    assert read_clocks(wild.numbers()) == Clocks(pictures_s=0.25)


@pytest.mark.parametrize("value", ["0.5", True, math.nan, math.inf, 10**400, [0.5]])
def test_what_is_no_time_is_not_read(value):
    with pytest.raises(ValueError, match="start_s"):
        read_clocks({"start_s": value})


def test_the_log_is_read_as_far_as_it_can_be_and_what_knows_less_replaces_nothing():
    whole = Clocks(start_s=0.5, end_s=0.0, sound_s=0.1, pictures_s=0.0)
    log = [
        {"clocks": [{"key": "a", **Clocks(start_s=9.0).numbers()}, {"key": 3}, "b", None]},
        {"clocks": [{"key": "a", **whole.numbers()}, {"key": "c", "start_s": math.nan}]},
        {"clocks": [{"key": "a", **Clocks(start_s=8.0).numbers()}, {"key": "d"}]},
        {"clocks": 7},
        {},
    ]
    assert measured(log) == {"a": whole}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of a film whose sound is late, an even one, and one of sound alone."""
    folder = tmp_path_factory.mktemp("films")
    film(folder / "late.mkv", late=0.5)
    film(folder / "even.mkv")
    write(folder / "heard.mkv", sound=[(0, tone(300, 1))], audio="pcm_s16le")
    names = ("late", "even", "heard")
    rows = [
        {"id": n, "media": str(folder / f"{n}.mkv"), "transcript": "so", "mood": 1.0} for n in names
    ]
    made = experiment(folder, rows, features=FEATURES)
    ingest(made, InProcess(), lambda count: None)
    featurize(made, InProcess(), lambda done: None)
    return made


def test_numbers_of_every_film_are_in_the_log_and_nowhere_else(made):
    found = measured(read_logs(made.root))
    keys = {clip.id: clip.key for clip in read_clips(made.root)}
    assert set(found) == {keys["late"], keys["even"]}
    assert found[keys["late"]].start_s == pytest.approx(0.5, abs=0.003)
    files = [path for path in made.root.rglob("*") if path.is_file()]
    holding = {path.parent.name for path in files if b"start_s" in path.read_bytes()}
    assert holding == {"logs"}


def test_a_report_names_the_clips_that_lie_apart(made):
    told = report(made.root)
    assert (told.measured, [each.id for each in told.apart]) == (2, ["late"])
    assert told.apart[0].told[0] == "the sound begins 0.50 s after the pictures"
    [said] = [line for line in ledger.sentences(told) if "lie apart" in line]
    assert "in 1 of 2 clips" in said
    assert "the sound begins 0.50 s after the pictures" in ledger.page(told)
    assert "clocks that lie apart" in [title for title, _ in ledger.tables(told)]
    assert json.loads(json.dumps(told.to_json()))["apart"][0]["start_s"] == 0.5
    assert str(made.root.parent) not in str(told.apart)


def test_a_report_without_such_clips_says_nothing_of_clocks(made):
    log = [{"clocks": [{"key": "nobody's", "start_s": 9.0}]}]
    told = build_report("set", read_clips(made.root), {}, log)
    assert (told.measured, told.apart) == (0, ())
    assert "lie apart" not in ledger.page(told) + str(ledger.sentences(told))


def test_a_look_at_a_clip_shows_its_clocks_and_what_is_wrong_with_them(made):
    late, even, heard = (peek(made.root, name) for name in ("late", "even", "heard"))
    assert late.to_json()["clocks"]["start_s"] == 0.5
    assert "the sound begins 0.50 s after the pictures" in clip_page.sentences(late)
    assert ">0.500 s<" in re.sub("</?bdi>", "", clip_page.page(late))
    assert not [line for line in clip_page.sentences(even) if "the sound begins" in line]
    assert "Clocks of sound and pictures" in clip_page.page(even)
    assert heard.to_json()["clocks"] is None
    assert "Clocks of sound and pictures" not in clip_page.page(heard)
