"""Files with several streams of a kind: which one is taken, and how another is chosen."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from featurizers import catalog
from featurizers.clip import BadClipError, Clip
from featurizers.dataset import read_clips, write_clips
from featurizers.decoder import Decoder
from featurizers.extract import extract_all
from featurizers.intake import RawClip
from featurizers.limits import Limits
from featurizers.media import decode
from featurizers.shards import job_id
from featurizers.spec import AudioWant, VideoWant
from featurizers.stages import Stages
from pipelines.score import row_of
from pipelines.sources import Asked, stream_of
from tests.media_maker import flat, tone
from training.evaluate import evaluation_set
from training.rows import Access, checked

pytestmark = pytest.mark.media

RATE, SECONDS = 16_000, 16
TONES = {"eng": 300, "fra": 900, "deu": 2000}
LEVELS = (60, 200)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Three tones with languages, and two levels of gray."""
    import av

    path = tmp_path_factory.mktemp("streams") / "a.mkv"
    with av.open(str(path), "w") as out:
        videos = [out.add_stream("libx264", rate=10, options={"threads": "1"}) for _ in LEVELS]
        for stream in videos:
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
        sounds = [out.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in TONES]
        for stream, language in zip(sounds, TONES, strict=True):
            stream.metadata["language"] = language
        for stream, level in zip(videos, LEVELS, strict=True):
            for number in range(10 * SECONDS):
                frame = av.VideoFrame.from_ndarray(flat(level), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        for stream, hz in zip(sounds, TONES.values(), strict=True):
            samples = tone(hz, SECONDS)[np.newaxis]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return path


def hertz(path, stream):
    events = decode(path, 0.0, None, [AudioWant(stream=stream)], Limits())
    sound = np.concatenate([chunk.samples for _, chunk in events])
    return np.abs(np.fft.rfft(sound[:RATE])).argmax()


@pytest.mark.parametrize(
    ("stream", "hz"), [("0", 300), ("1", 900), ("2", 2000), ("fra", 900), ("deu", 2000)]
)
def test_a_stream_of_sound_is_chosen_by_number_or_language(path, stream, hz):
    assert abs(hertz(path, stream) - hz) <= 2


@pytest.mark.parametrize(("stream", "level"), [("", LEVELS[0]), ("0", LEVELS[0]), ("1", LEVELS[1])])
def test_a_stream_of_pictures_is_chosen_by_number(path, stream, level):
    want = VideoWant(fps=2, size=8, stream=stream)
    frames = [chunk.frames for _, chunk in decode(path, 0.0, None, [want], Limits())]
    assert abs(float(np.concatenate(frames).mean()) - level) < 4


def test_a_stream_that_is_not_there_is_an_error_that_names_those_that_are(path):
    with pytest.raises(BadClipError, match=r"'spa', there are 0 \(eng\), 1 \(fra\), 2 \(deu\)"):
        list(decode(path, 0.0, None, [AudioWant(stream="spa")], Limits()))


def clip(path, key="a", **chosen):
    return Clip(key=key, id=key, media=str(path), media_digest="d", seconds=SECONDS, **chosen)


def outcomes(path, clips):
    featurizers = [catalog.build("logmel"), catalog.build("face-motion")]
    with Decoder() as decoder:
        return list(extract_all(clips, lambda each: path, featurizers, decoder, Stages()))


def test_each_clip_is_computed_from_the_streams_that_were_chosen_for_it(path):
    chosen = [("", ""), ("eng", "0"), ("fra", "1"), ("spa", "0")]
    clips = [
        clip(path, f"c{number}", audio_stream=sound, video_stream=pictures)
        for number, (sound, pictures) in enumerate(chosen)
    ]
    best, first, second, wrong = outcomes(path, clips)
    np.testing.assert_array_equal(best[1].feature.values, first[1].feature.values)
    assert (first[0].feature.values != second[0].feature.values).any()
    assert (wrong[0].state, wrong[0].fault) == ("quarantined", "bad_stream")
    assert wrong[1].state == "sample", "its pictures are there"


def test_a_chosen_stream_makes_another_job_of_the_columns_that_read_it():
    before = [clip("a.mkv")]
    after = [replace(before[0], audio_stream="fra")]
    sound, pictures = (catalog.build(name).spec for name in ("logmel", "face-motion"))
    assert job_id(sound, before) != job_id(sound, after)
    assert job_id(pictures, before) == job_id(pictures, after)


def test_chosen_streams_are_kept_with_the_clips(tmp_path):
    clips = [clip("a.mkv", "a", audio_stream="fra"), clip("a.mkv", "b", video_stream="1")]
    write_clips(tmp_path, clips)
    assert list(read_clips(tmp_path)) == clips


@pytest.mark.parametrize("start", [3.0, 11.0, 13.5])
def test_a_chosen_stream_of_pictures_is_whole_also_where_the_other_one_is_sought(path, start):
    want = VideoWant(fps=10, size=8, stream="1")
    part = np.concatenate([c.frames for _, c in decode(path, start, start + 1, [want], Limits())])
    whole = np.concatenate([c.frames for _, c in decode(path, 0.0, None, [want], Limits())])
    first = round(start * 10)
    np.testing.assert_array_equal(part, whole[first : first + 10])


def test_a_registered_model_is_told_which_streams_were_chosen(path):
    raw = RawClip(
        key="a",
        id="a",
        media=str(path),
        path=path,
        columns={"audio_stream": "fra", "split": "test"},
    )
    row = row_of(Asked(number=1, raw=raw))
    assert row["audio_stream"] == "fra"
    assert "video_stream" not in row
    (asked,) = checked([row], {}, Access(), pooled_to_words=False)
    columns = asked.raw("k", path.parent).columns
    assert columns == {"audio_stream": "fra", "video_stream": ""}


@pytest.mark.parametrize(("cell", "stream"), [("1", "1"), ("1.0", "1"), (1.0, "1"), ("eng", "eng")])
def test_a_stream_in_a_column_of_numbers_is_that_number(cell, stream):
    assert stream_of(cell) == stream


def test_other_streams_make_another_evaluation_set():
    before = [clip("a.mkv", labels={"mood": 1.0})]
    after = [replace(before[0], audio_stream="fra")]
    assert evaluation_set(before, "mood") != evaluation_set(after, "mood")
