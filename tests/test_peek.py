"""One clip as a page: everything lies where its own time puts it, and nothing of it is hidden."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from featurizers.clip import Word
from featurizers.dataset import read_clips
from featurizers.spec import Axis, Dim, Feature, FeatureSpec, Grid
from pipelines import peek as peeking
from pipelines.executors import InProcess
from pipelines.experiment import InputError
from pipelines.featurize import TooManyDroppedError, featurize
from pipelines.ingest import ingest
from pipelines.pages import lanes, printable
from pipelines.pages.peek import page, sentences
from pipelines.peek import PICTURES, SEEK_FROM_S, Shown, find_clip, gaps, peek
from tests import test_command_line
from tests.media_maker import number_of, stairs, tone, write
from tests.object_store import BUCKET, s3_server
from tests.test_featurize import experiment, film
from tests.test_pages import EVIL, Page

FEATURES = {
    "text": {"featurizer": "hashed-words"},
    "audio": {"featurizer": "logmel", "hop_ms": 20},
    "video": {"featurizer": "face-motion", "fps": 5},
    "joints": {"featurizer": "numbers", "stream": "joints", "dims": 2},
}
CUES = "WEBVTT\n\n00:00.500 --> 00:01.000\nwell\n\n00:02.250 --> 00:02.750\nyes\n"
EVIL_ID = "who/<script>alert(1)</script>"


refused = test_command_line.refused


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of six clips; the first one has a hole in its sound and in its joints."""
    folder = tmp_path_factory.mktemp("clips")
    steps = stairs(15)
    pictures = [(at / 25, steps[at // 5]) for at in range(75)]
    sound = [(0, tone(300, 1)), (2, tone(300, 1))]
    write(folder / "holed.mkv", pictures=pictures, sound=sound, audio="pcm_s16le")
    (folder / "holed.vtt").write_text(CUES)
    times = [0.0, 0.1, 0.2, 1.2, 1.3]
    (folder / "joints.csv").write_text(
        "time,x,y\n" + "".join(f"{time},{at},{-at}\n" for at, time in enumerate(times))
    )
    film(folder / "silent.mp4", 1, sound=False)
    film(folder / "plain.mp4", 2)
    film(folder / "other.mp4", 3)
    (folder / "broken.mp4").write_bytes(b"this is no film " * 40)
    rows = [
        {
            "id": EVIL_ID,
            "media": "holed.mkv",
            "transcript_file": str(folder / "holed.vtt"),
            "stream:joints": str(folder / "joints.csv"),
            "speaker": "<b>s</b>",
        },
        {"id": "silent", "media": "silent.mp4", "transcript": "<script>alert(2)</script> hush"},
        {"id": "plain", "media": "plain.mp4", "transcript": "so so", "start": 0.2, "end": 0.8},
        {"id": "other.one", "media": "other.mp4"},
        {"id": "broken", "media": "broken.mp4", "transcript": "gone"},
    ]
    for number, row in enumerate(rows):
        row |= {"mood": number - 1.5, "media": str(folder / row["media"])}
    made = experiment(folder, rows, features=FEATURES, max_dropped=0.3)
    ingest(made, InProcess(), lambda count: None)
    featurize(made, InProcess(), lambda done: None)
    return made


@pytest.fixture
def copy(made, tmp_path):
    """The dataset alone in another place: its media lie where they lay."""
    return shutil.copytree(made.root, tmp_path / "copy")


@pytest.fixture(scope="module")
def holed(made):
    return peek(made.root, EVIL_ID)


def column(made, name):
    [found] = [each for each in made.columns if each.stream == name]
    return found


def pixels(uri):
    return imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


# What is seen and heard


def test_pictures_are_evenly_spaced_and_each_is_what_was_shown_then(holed):
    assert len(holed.pictures.frames) == PICTURES
    middles = holed.pictures.times.mean(axis=1)
    np.testing.assert_allclose(np.diff(middles), holed.clip.seconds / PICTURES, atol=1e-9)
    shown = [number_of(frame) for frame in holed.pictures.frames]
    assert shown == [int(at * 5) for at in middles]
    drawn = Page(page(holed)).all("img")
    assert [each["alt"] for each in drawn[:2]] == ["picture at 0.12 s", "picture at 0.38 s"]
    first = (pixels(drawn[0]["src"])[..., :3] * 255).round()
    np.testing.assert_array_equal(first, holed.pictures.frames[0])


def test_pictures_are_whole_and_have_no_margins():
    square = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    square[:, 2:6] = 9  # a wide picture in the middle of a black square
    square[1] = 0
    np.testing.assert_array_equal(peeking._without_margins(square), square[:, 2:6])
    dark = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    assert peeking._without_margins(dark).shape == dark.shape


def test_pictures_of_a_long_clip_are_sought_and_are_the_same(made, holed, monkeypatch):
    assert holed.clip.seconds < SEEK_FROM_S
    monkeypatch.setattr(peeking, "SEEK_FROM_S", 1.0)
    sought = peek(made.root, EVIL_ID).pictures
    np.testing.assert_allclose(sought.times, holed.pictures.times, atol=1e-9)
    assert list(map(number_of, sought.frames)) == list(map(number_of, holed.pictures.frames))


def test_the_waveform_is_as_loud_as_the_sound_and_silent_where_there_is_none(holed):
    sound = holed.sound
    assert sound.highs[20:80].min() == pytest.approx(0.5 * 32767, rel=0.1)
    assert sound.lows[20:80].max() == pytest.approx(-0.5 * 32767, rel=0.1)
    assert not sound.highs[110:190].any()
    [(begin, end)] = sound.gaps
    assert (begin, end) == (pytest.approx(1.0, abs=0.07), pytest.approx(2.0, abs=0.07))
    assert lanes.wave(sound.lows, sound.highs, 100, 3.0).peak == pytest.approx(0.5, rel=0.1)


def test_the_outline_of_the_sound_stops_at_a_gap(holed):
    sound = holed.sound
    path = lanes.wave(sound.lows, sound.highs, 100, 3.0, sound.gaps).path
    columns = [int(each) for each in re.findall(r"[ML](\d+),", path)]
    assert path.count("M") == 2
    assert not [each for each in columns if 1.05 < each / lanes.WAVE * 3 < 1.95]


def test_a_gap_is_hatched_where_it_lies(holed):
    drawn = re.findall(r'class="gap" style="left:([\d.]+)%;width:([\d.]+)%"', page(holed))
    places = [(float(left) / 100 * 3, float(width) / 100 * 3) for left, width in drawn]
    assert (pytest.approx(1.0, abs=0.1), pytest.approx(1.0, abs=0.1)) in places


def test_a_clip_that_is_a_span_of_its_media_shows_that_span(made):
    found = peek(made.root, "plain")
    assert found.sound.seconds == pytest.approx(0.6, abs=0.001)
    assert found.pictures.times[-1, 1] == pytest.approx(0.6, abs=0.001)
    assert "0.2 s to 0.8 s" in page(found)


# Words


def test_words_lie_at_their_times_and_estimated_ones_are_marked(made, holed):
    text = page(holed)
    assert 'style="left:16.667%;width:16.667%" title="well (0.50 to 1.00 s)"' in text
    assert "time estimated, not measured" not in "".join(Page(text).texts)
    guessed = "".join(Page(page(peek(made.root, "silent"))).texts)
    assert "time estimated, not measured" in guessed


def test_texts_of_words_in_one_row_do_not_overlap_and_none_leaves_the_axis():
    words = [Word(text="word" * (1 + n % 3), start=n / 9, end=n / 9 + 0.1) for n in range(90)]
    placed = lanes.spoken(words, 10.0)
    for row in range(lanes.WORD_ROWS):
        mine = [each for each in placed if each.row == row]
        ends = [each.at + 100 * 0.0085 * len(each.word.text) for each in mine]
        assert all(end <= after.at for end, after in zip(ends, mine[1:], strict=False))
        assert max(ends) <= 100
    crowded = lanes.spoken([Word(text="same", start=1, end=1)] * 9, 10.0)
    assert [each.row for each in crowded] == [0, 1, 2, 3, None, None, None, None, None]


# Columns


def test_every_column_is_there_with_its_state_fault_and_message(made):
    found = peek(made.root, "broken")
    states = {each.stream: (each.state, each.fault) for each in found.columns}
    assert states == {
        "face-motion": ("quarantined", "unreadable"),
        "logmel": ("quarantined", "unreadable"),
        "hashed-words": ("sample", None),
        "numbers": ("absent", None),
    }
    told = "".join(Page(page(found)).texts)
    assert "quarantined: unreadable: no media, or cut in the header" in told
    assert "absent: the clip has no such modality" in told
    assert found.sound.fault == found.pictures.fault == "unreadable"
    assert "logmel: quarantined: unreadable" in "\n".join(sentences(found))


def test_a_clip_without_sound_is_absent_there_and_nothing_is_wrong_with_it(made):
    found = peek(made.root, "silent")
    assert (found.sound.state, found.pictures.state) == ("absent", "sample")
    assert column(found, "logmel").state == "absent"
    assert "What is wrong" not in page(found)


def test_features_are_those_of_the_column_and_their_gaps_are_found(holed):
    joints = column(holed, "numbers")
    np.testing.assert_array_equal(joints.feature.values[:, 1], [0, -1, -2, -3, -4])
    assert joints.gaps == ()  # rows are events: nobody says how often they come
    holes = replace(joints.spec, rate_hz=10.0)
    shown = peeking._with_gaps(replace(joints, spec=holes), 3.0)
    assert [tuple(np.round(gap, 6)) for gap in shown.gaps] == [(1.4, 3.0)]


def test_media_that_are_gone_or_changed_are_told_and_features_are_shown_all_the_same(made, copy):
    film_of = made.root.parent / "other.mp4"
    content = film_of.read_bytes()
    try:
        film_of.unlink()
        gone = peek(copy, "other.one")
        film(film_of, 9)
        changed = peek(copy, "other.one")
    finally:
        film_of.write_bytes(content)
    assert (gone.sound.fault, gone.pictures.fault) == ("missing", "missing")
    assert column(gone, "logmel").state == "sample"
    assert len(Page(page(gone)).all("img")) > 5
    assert "not what was ingested" in page(changed)
    assert peek(copy, "other.one").notes == ()


def test_a_column_that_was_not_committed_is_shown_too(made, tmp_path):
    rows = [json.loads(line) for line in made.table.read_text().splitlines()]
    strict = experiment(tmp_path, rows, features=FEATURES, max_dropped=0.1)
    ingest(strict, InProcess(), lambda count: None)
    with pytest.raises(TooManyDroppedError):
        featurize(strict, InProcess(), lambda done: None)
    assert column(peek(strict.root, "broken"), "logmel").fault == "unreadable"
    assert column(peek(strict.root, "plain"), "logmel").state == "sample"


def test_a_damaged_shard_is_told_and_fails_the_command_with_the_page_written(copy, called):
    [tar, *_] = sorted((copy / "columns").glob("logmel-*/*.tar"))
    tar.write_bytes(bytes(len(tar.read_bytes())))
    hurt = [c for c in read_clips(copy) if column(peek(copy, c.key), "logmel").state == "damaged"]
    assert hurt
    output = copy / "page.html"
    code, out, _ = called("peek", copy, hurt[0].key, "--output", output)
    assert code == 1
    assert "logmel: damaged: " in out
    assert str(copy) not in output.read_text()


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.tuples(st.floats(0, 9), st.floats(0.01, 3)), min_size=1, max_size=12),
    width=st.integers(1, 3),
)
def test_a_heat_map_shows_the_mean_of_the_steps_that_touch_each_column(steps, width):
    times = np.array(sorted((start, start + length) for start, length in steps))
    times[:, 1] = np.maximum.accumulate(times[:, 1])
    values = np.random.default_rng(len(steps)).normal(size=(len(steps), width))
    feature = Feature(values.astype(np.float32), times)
    binned, there = lanes._binned(feature, 12.0)
    edges = np.linspace(0, 12, lanes.COLUMNS + 1)
    for at in range(0, lanes.COLUMNS, 7):
        touches = (times[:, 0] < edges[at + 1]) & (times[:, 1] > edges[at])
        assert there[at] == touches.any()
        if touches.any():
            wanted = feature.values[touches].astype(np.float64).mean(axis=0)
            np.testing.assert_allclose(binned[:, at], wanted, atol=1e-6)


def test_heat_maps_are_of_dimensions_of_one_kind_with_their_names_units_and_range():
    dims = [*(Dim(f"mel_{n}", "dB") for n in range(3)), Dim("pitch", "Hz"), Dim("v1"), Dim("v2")]
    values = np.array([[-60, -50, -40, 200, -1, 2], [-60, -50, -40, 400, 1, 1]], dtype=np.float32)
    found = lanes.blocks(Feature(values, np.array([[0, 1], [1, 2.0]])), dims, 4.0)
    assert [(each.first, each.last, each.count, each.unit) for each in found] == [
        ("mel_0", "mel_2", 3, "dB"),
        ("pitch", "pitch", 1, "Hz"),
        ("v1", "v2", 2, "1"),
    ]
    assert [(each.low, each.high, each.signed) for each in found] == [
        (-60, -40, False),
        (200, 400, False),
        (-2, 2, True),
    ]
    mel = pixels(found[0].uri)
    assert mel.shape[:2] == (3, lanes.COLUMNS)
    low, high = mel[2, 0, :3], mel[0, 0, :3]  # the first dimension is at the bottom
    assert high.sum() > low.sum() + 1
    assert mel[0, 299, 3] == 1
    assert mel[0, 300, 3] == 0  # nothing is there after two of four seconds


def test_dimensions_of_one_kind_share_a_heat_map_wherever_they_stand():
    dims = [Dim(f"{name}_{at}", unit) for at in range(9) for name, unit in (("x", "m"), ("y", "m"))]
    [x, y] = lanes.blocks(
        Feature(np.zeros((1, 18), dtype=np.float32), np.array([[0, 1.0]])), dims, 1
    )
    assert [(x.first, x.last), (y.first, y.last)] == [("x_0", "x_8"), ("y_0", "y_8")]
    many = [
        Dim(f"{chr(97 + at % 26)}{chr(97 + at // 26)}", "m" if at % 2 else "s") for at in range(150)
    ]
    assert [len(group) for group in lanes._groups(many)] == [75, 75]


def test_pixels_have_a_heat_map_for_each_colour():
    colours = Axis(name="channel", size=2, places=("red", "green"))
    grid = Grid(axes=(Axis(name="row", size=12), Axis(name="column", size=9), colours), unit="1")
    values = np.random.default_rng(0).integers(0, 256, (3, 12 * 9 * 2), dtype=np.uint8)
    feature = Feature(values, np.array([[0, 1], [1, 2], [2, 3.0]]))
    found = lanes.blocks(feature, grid, 3.0)
    assert [(each.first, each.last) for each in found] == [
        ("row00_column0_red", "row11_column8_red"),
        ("row00_column0_green", "row11_column8_green"),
    ]
    assert [each.count for each in found] == [108, 108]
    assert found == lanes.blocks(feature, tuple(grid), 3.0)  # as if each had been listed
    pairs = values[:, 1::2].reshape(3, 54, 2).mean(axis=2)  # 108 pixels do not fit 96 rows
    assert (found[1].averaged, found[1].low, found[1].high) == (2, pairs.min(), pairs.max())


def test_rows_that_would_look_even_beside_each_other_have_their_own_colours():
    wave = np.sin(np.arange(60))
    values = np.stack([wave, 500 + wave, wave - 300], axis=1).astype(np.float32)
    edges = np.arange(61) / 60
    feature = Feature(values, np.stack([edges[:-1], edges[1:]], axis=1))
    [uneven] = lanes.blocks(feature, [Dim(f"c_{at}") for at in range(3)], 1.0)
    assert uneven.own
    rows = pixels(uneven.uri)
    np.testing.assert_array_equal(rows[0], rows[2])
    [common] = lanes.blocks(replace(feature, values=values[:, :1]), [Dim("c_0")], 1.0)
    assert not common.own


def test_very_wide_features_are_averaged_and_the_page_of_a_long_clip_stays_small(holed):
    count, width = 10_000, 768
    edges = np.linspace(0, 3600, count + 1)
    values = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    spec = FeatureSpec(
        name="wide",
        version=1,
        modality="audio",
        reads=("audio",),
        dims=tuple(Dim(f"h_{n}") for n in range(width)),
        rate_hz=count / 3600,
    )
    feature = Feature(values, np.stack([edges[:-1], edges[1:]], axis=1))
    shown = Shown(stream="wide", spec=spec, state="sample", feature=feature)
    words = tuple(Word(text=f"word{n}", start=n / 3, end=n / 3 + 0.3) for n in range(10_000))
    clip = replace(holed.clip, words=words, seconds=3600.0)
    text = page(replace(holed, clip=clip, seconds=3600.0, columns=(shown,) * 3))
    assert len(text) < 1_000_000
    assert "a row is the mean of 8" in text
    assert "8,000 more are left out" in text or "9,500 more are left out" in text


# Time


@settings(max_examples=100, deadline=None)
@given(
    spans=st.lists(st.tuples(st.floats(0, 9), st.floats(0, 3)), min_size=1, max_size=8),
    least=st.sampled_from([0.05, 0.5]),
)
def test_gaps_are_where_no_span_lies(spans, least):
    times = np.array([(start, start + length) for start, length in spans])
    found = gaps(times, 10.0, least)
    for begin, end in found:
        assert end - begin > least
        inside = np.linspace(begin + 1e-6, end - 1e-6, 5)[:, np.newaxis]
        assert not ((times[:, 0] < inside) & (inside < times[:, 1])).any()
    covered = sum(end - begin for begin, end in found)
    grid = np.linspace(0, 10, 4001)[:, np.newaxis]
    free = ~((times[:, 0] <= grid) & (grid <= times[:, 1])).any(axis=1)
    assert covered <= free.mean() * 10 + 0.05
    assert covered >= free.mean() * 10 - least * (len(spans) + 1) - 0.05


@given(st.floats(0.001, 50_000))
def test_ticks_are_few_round_and_on_the_axis(seconds):
    found = lanes.ticks(seconds)
    assert 2 <= len(found) <= lanes.TICKS + 1
    assert found[0] == lanes.Tick(0.0, f"{0:.{len(found[0].text.partition('.')[2])}f}")
    assert found[-1].left <= 100.001
    for tick in found:
        assert float(tick.text.replace(",", "")) / seconds * 100 == pytest.approx(
            tick.left, abs=0.01
        )


# The page and the command


def test_what_others_wrote_is_text_on_the_page(holed):
    words = tuple(Word(text=text, start=n / 4, end=n / 4 + 0.2) for n, text in enumerate(EVIL))
    labels = {text: text for text in EVIL}
    spec = replace(column(holed, "numbers").spec, dims=(Dim(EVIL[0], EVIL[1]), Dim(EVIL[4])))
    columns = [
        Shown(stream=text, spec=spec, state="quarantined", fault="corrupt", message=text)
        for text in EVIL
    ]
    columns += [replace(column(holed, "numbers"), spec=spec, message=EVIL[1])]
    clip = replace(holed.clip, id=EVIL[0], media=EVIL[1], words=words, labels=labels)
    evil = Page(page(replace(holed, dataset=EVIL[1], clip=clip, columns=tuple(columns))))
    told = "".join(evil.texts)
    for text in EVIL:
        assert printable(text) in told
    assert {tag for tag, _ in evil.elements} <= {tag for tag, _ in Page(page(holed)).elements}
    names = {name for _, attributes in evil.elements for name in attributes}
    assert not [name for name in names if name.startswith("on")]


def test_the_page_fetches_nothing_and_holds_all_its_pictures(holed):
    text = page(holed)
    found = Page(text)
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in found.elements)
    assert all(each["src"].startswith("data:image/png;base64,") for each in found.all("img"))
    assert all(each["alt"] for each in found.all("img"))
    assert "url(" not in text
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_equal_clips_give_equal_bytes_and_no_page_names_a_folder(made, holed):
    assert page(peek(made.root, EVIL_ID)) == page(holed)
    assert str(made.root.parent) not in page(holed)
    assert str(made.root.parent) not in json.dumps(holed.to_json())


def test_a_clip_is_found_by_key_and_by_id(made):
    key = find_clip(made.root, "other.one").key
    assert key == "other_x2eone"
    assert find_clip(made.root, key).id == "other.one"
    with pytest.raises(
        InputError, match=r"no clip 'other\.two' among 5; did you mean 'other\.one'"
    ):
        find_clip(made.root, "other.two")


def test_the_command_writes_the_page_or_facts_for_machines(made, called, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = called("peek", made.root, "other.one")
    assert (code, out.splitlines()[-1]) == (0, "wrote other_x2eone.html")
    assert (tmp_path / "other_x2eone.html").read_text().startswith("<!DOCTYPE html>")
    code, out, _ = called("peek", made.root, EVIL_ID, "--json")
    facts = json.loads(out)
    assert code == 0
    assert [each["text"] for each in facts["clip"]["words"]] == ["well", "yes"]
    assert facts["sound"]["gaps"][0] == pytest.approx([1.0, 2.0], abs=0.07)
    columns = {each["stream"]: each for each in facts["columns"]}
    assert columns["logmel"]["dims"][0] == {"name": "mel_00", "unit": "dB"}
    assert columns["numbers"]["span"] == pytest.approx([0.0, 1.4])
    assert [path.name for path in tmp_path.iterdir()] == ["other_x2eone.html"]


def test_an_unknown_clip_or_dataset_is_wrong_input(made, refused, tmp_path):
    assert "did you mean 'silent'" in refused("peek", made.root, "silnt")
    assert "ingest a table first" in refused("peek", tmp_path, "any")


def test_a_clip_in_an_object_store_has_the_same_page(made, tmp_path):
    rows = [json.loads(line) for line in made.table.read_text().splitlines()]
    with s3_server():
        remote = experiment(
            tmp_path, rows, features=FEATURES, max_dropped=0.3, dataset=f"s3://{BUCKET}/dataset"
        )
        ingest(remote, InProcess(), lambda count: None)
        featurize(remote, InProcess(), lambda done: None)
        assert page(peek(remote.root, EVIL_ID)) == page(peek(made.root, EVIL_ID))
