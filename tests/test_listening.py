"""Sound heard through the decoding child, and words that are placed by it."""

import numpy as np
import pytest

from featurizers.clip import BadClipError
from featurizers.decoder import Decoder
from featurizers.intake import RawClip, take_in
from featurizers.limits import Limits
from featurizers.listening import pieces, twice, voice_in
from tests.media_maker import stairs, tone, voice, wav, write
from tests.test_voice import SPOKEN, noisy, speech


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as made:
        yield made


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A file in which somebody speaks four times."""
    file = tmp_path_factory.mktemp("spoken") / "a.wav"
    file.write_bytes(wav(noisy(speech(), 30)))
    return file


def test_voice_in_a_span_lies_on_the_clock_of_the_span(spoken, decoder):
    whole = voice_in(spoken, 0.0, None, decoder)
    assert np.abs(whole - np.array(SPOKEN)).max() <= 0.05
    part = voice_in(spoken, 3.4, 6.0, decoder)
    assert part[0] == pytest.approx(np.array(SPOKEN[1]) - 3.4, abs=0.05)


def test_a_file_without_sound_has_no_voice(tmp_path, decoder):
    pictures = [(n / 10, picture) for n, picture in enumerate(stairs(5))]
    write(tmp_path / "a.mp4", pictures=pictures)
    assert voice_in(tmp_path / "a.mp4", 0.0, None, decoder).shape == (0, 2)


def test_pieces_are_the_samples_of_their_spans(tmp_path, decoder):
    samples = np.random.default_rng(0).integers(-9000, 9000, 5 * 16_000).astype(np.int16)
    (tmp_path / "a.wav").write_bytes(wav(samples))
    spans = [(0.5, 1.0), (1.0, 1.25), (3.0, 4.5), (4.75, 6.0)]
    found = list(pieces(tmp_path / "a.wav", spans, decoder))
    for (begin, end), piece in zip(spans, found, strict=True):
        wanted = np.zeros(round((end - begin) * 16_000), dtype=np.int16)
        there = samples[round(begin * 16_000) : round(end * 16_000)]
        wanted[: len(there)] = there
        assert np.array_equal(piece, wanted)


def test_a_decoder_that_dies_twice_costs_the_clip_and_nothing_else(spoken, tmp_path):
    (tmp_path / "long.wav").write_bytes(wav(tone(300, 60.0)))
    with Decoder(Limits(memory_bytes=1 << 20)) as small:
        with pytest.raises(BadClipError, match="twice"):
            voice_in(spoken, 0.0, None, small)
        with pytest.raises(BadClipError, match="twice"):
            twice(lambda: list(pieces(tmp_path / "long.wav", [(0.0, 60.0)], small)))


# Words without times


def raw(path, text="so it goes on and on", **more):
    given = {"start": 0.0, "end": None, "columns": {}, "transcript": text, **more}
    return RawClip(key="a", id="a", media=str(path), path=path, **given)


def test_bare_words_lie_where_somebody_speaks_and_are_marked(spoken, decoder):
    words = take_in(raw(spoken), decoder).words
    assert [word.text for word in words] == ["so", "it", "goes", "on", "and", "on"]
    for word in words:
        assert word.estimated
        assert any(a - 0.05 <= word.start < word.end <= b + 0.05 for a, b in SPOKEN)


def test_words_of_a_plain_file_lie_in_the_span_of_their_clip(spoken, tmp_path, decoder):
    (tmp_path / "a.txt").write_text("never mind")
    clip = raw(spoken, None, transcript_file=tmp_path / "a.txt", start=3.4, end=7.0)
    first, second = take_in(clip, decoder).words
    assert 0.35 <= first.start < first.end <= second.start < second.end <= 1.95


@pytest.mark.parametrize("what", ["cut", "no sound", "steady"])
def test_words_are_spread_over_all_of_a_clip_where_nobody_can_tell(tmp_path, decoder, what):
    file = tmp_path / "a.mp4"
    pictures = [(n / 10, picture) for n, picture in enumerate(stairs(20))]
    sound = [] if what == "no sound" else [(0.0, tone(300, 2.0))]
    write(file, pictures=pictures, sound=sound)
    if what == "cut":
        file.write_bytes(file.read_bytes()[:400])
    words = take_in(raw(file, "one two"), decoder).words
    assert all(word.estimated for word in words)
    assert [words[0].start, words[0].end] == pytest.approx([0.0, words[-1].end / 2])
    assert words[-1].end == pytest.approx(0.8 if what == "cut" else 2.0, abs=0.11)


def test_a_voice_is_found_under_pictures_and_lossy_sound(tmp_path, decoder):
    sound = np.concatenate(
        [np.zeros(16_000, np.int16), voice(150, 1.0), np.zeros(16_000, np.int16)]
    )
    pictures = [(n / 10, picture) for n, picture in enumerate(stairs(30))]
    write(tmp_path / "a.mp4", pictures=pictures, sound=[(0.0, sound)])
    (span,) = voice_in(tmp_path / "a.mp4", 0.0, None, decoder)
    assert span == pytest.approx([1.0, 2.0], abs=0.1)


def test_the_sound_that_was_chosen_is_the_one_that_is_heard(tmp_path, decoder):
    import av

    silent = np.zeros(3 * 16_000, np.int16)
    talk = silent.copy()
    talk[16_000:32_000] = voice(150, 1.0)
    with av.open(str(tmp_path / "two.mkv"), "w") as out:
        streams = [out.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2)]
        for stream, samples in zip(streams, (silent, talk), strict=True):
            frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 0
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    file = tmp_path / "two.mkv"
    assert not len(voice_in(file, 0.0, None, decoder, "0"))
    (span,) = voice_in(file, 0.0, None, decoder, "1")
    assert span == pytest.approx([1.0, 2.0], abs=0.06)
    assert not np.any(next(pieces(file, [(1.0, 2.0)], decoder, "0")))
    assert np.any(next(pieces(file, [(1.0, 2.0)], decoder, "1")))
    (word,) = take_in(raw(file, "so", columns={"audio_stream": "1"}), decoder).words
    assert word.start == pytest.approx(1.0, abs=0.06)
