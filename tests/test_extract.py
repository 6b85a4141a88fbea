"""From one raw clip to its outcomes, in each column as if no other column were there."""

import numpy as np
import pytest

from featurizers import catalog
from featurizers.clip import BadClipError, Clip, Word
from featurizers.decoder import Decoder
from featurizers.extract import extract
from featurizers.media import Limits, encode
from featurizers.spec import AudioWant, Dim, Feature, FeatureSpec
from tests.media_maker import stairs, voice, write

pytestmark = pytest.mark.media
LOGMEL, FACE = catalog.build("logmel", mels=8), catalog.build("face-motion")
WORDS = catalog.build("hashed-words", dims=8)
ALL = (WORDS, LOGMEL, FACE)
SAID = (Word(text="so", start=0.0, end=0.4), Word(text="it", start=0.4, end=0.8))


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as shared:
        yield shared


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("media")
    sound = voice(150, 1.0)
    encode(made / "both.mp4", frames=stairs(25), fps=25, samples=sound, rate_hz=16_000)
    encode(made / "mute.mp4", frames=stairs(25), fps=25, samples=None, rate_hz=16_000)
    encode(made / "blind.mp4", frames=None, fps=25, samples=sound, rate_hz=16_000)
    (made / "bad.mp4").write_text("hello")
    pictures = [(i / 25, picture) for i, picture in enumerate(stairs(100))]
    write(made / "hurt.mkv", pictures=pictures, sound=[(0.0, voice(150, 4.0))], audio="flac")
    hurt(made / "hurt.mkv")
    return made


def hurt(path):
    """Spoil every second sound packet and no picture."""
    content = bytearray(path.read_bytes())
    frames = [at for at in range(len(content) - 1) if content[at : at + 2] == b"\xff\xf8"]
    for at in frames[::2]:
        content[at : at + 4] = b"\0\0\0\0"
    path.write_bytes(content)


def clip(words=SAID, **changes):
    return Clip(
        key="a", id="a", media="/a.mp4", media_digest="", words=words, seconds=1.0, **changes
    )


class Constant:
    """One step of a number that is told; `error` is raised when it is finished."""

    wants = AudioWant()

    def __init__(self, number=1.0, error=None, shape=(1, 1), dtype="float32"):
        self.number, self.error, self.shape, self.dtype = number, error, shape, dtype
        self.spec = FeatureSpec(
            name="constant",
            version=1,
            modality="audio",
            reads=("audio",),
            dims=(Dim("n"),),
            rate_hz=None,
        )

    def begin(self, clip):
        return self

    def add(self, chunk):
        pass

    def finish(self):
        if self.error:
            raise self.error
        values = np.full(self.shape, self.number, dtype=self.dtype)
        return Feature(values, np.zeros((len(values), 2)))


def states(outcomes):
    return [outcome.state for outcome in outcomes]


def same(one, other):
    assert (one.state, one.fault, one.message) == (other.state, other.fault, other.message)
    assert (one.feature is None) == (other.feature is None)
    if one.feature is not None:
        np.testing.assert_array_equal(one.feature.values, other.feature.values)
        np.testing.assert_array_equal(one.feature.times, other.feature.times)


def test_a_whole_clip_is_a_sample_in_every_column(folder, decoder):
    outcomes = extract(clip(), folder / "both.mp4", ALL, decoder)
    assert states(outcomes) == ["sample"] * 3
    assert [outcome.message for outcome in outcomes] == [""] * 3
    said, heard, seen = (len(outcome.feature.values) for outcome in outcomes)
    assert (said, seen) == (2, 5)
    assert 100 <= heard <= 106  # AAC ends with its last whole frame


def test_outcomes_come_in_the_order_of_the_featurizers(folder, decoder):
    forward = extract(clip(), folder / "both.mp4", ALL, decoder)
    backward = extract(clip(), folder / "both.mp4", ALL[::-1], decoder)
    for one, other in zip(forward, backward[::-1], strict=True):
        same(one, other)


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("mute.mp4", SAID, ["sample", "absent", "sample"]),
        ("blind.mp4", SAID, ["sample", "sample", "absent"]),
        ("both.mp4", None, ["absent", "sample", "sample"]),
        ("both.mp4", (), ["quarantined", "sample", "sample"]),
        ("bad.mp4", SAID, ["sample", "quarantined", "quarantined"]),
        ("nothing.mp4", SAID, ["sample", "quarantined", "quarantined"]),
    ],
)
def test_what_a_clip_lacks_is_absent_and_what_is_bad_is_quarantined(
    folder, decoder, name, words, expected
):
    assert states(extract(clip(words), folder / name, ALL, decoder)) == expected


def test_a_quarantined_clip_says_why(folder, decoder):
    words, sound, _ = extract(clip(()), folder / "bad.mp4", ALL, decoder)
    assert (words.fault, words.message) == ("empty", "the transcript has no words")
    assert sound.fault == "unreadable"
    # No name: what a shard holds must not depend on what its media are called.
    assert "bad.mp4" not in sound.message
    assert sound.message


def test_media_that_cannot_be_had_are_missing_and_words_are_not(decoder):
    outcomes = extract(clip(), None, ALL, decoder)
    assert states(outcomes) == ["sample", "quarantined", "quarantined"]
    assert [outcome.fault for outcome in outcomes] == [None, "missing", "missing"]
    assert outcomes[1].message == "no such file"


def test_words_alone_need_no_decoder(folder):
    with Decoder() as unused:
        assert states(extract(clip(), folder / "bad.mp4", [WORDS], unused)) == ["sample"]
        assert unused.pid is None


def test_a_bad_stream_costs_only_its_own_column(folder, decoder):
    words, sound, pictures = extract(clip(), folder / "hurt.mkv", ALL, decoder)
    assert (words.state, pictures.state) == ("sample", "sample")
    assert (sound.state, sound.fault) == ("quarantined", "corrupt")
    assert "audio packets are damaged" in sound.message


@pytest.mark.parametrize("name", ["both.mp4", "mute.mp4", "blind.mp4", "hurt.mkv", "bad.mp4"])
@pytest.mark.parametrize("span", [(0.0, None), (0.2, 0.7)])
def test_a_column_does_not_depend_on_its_neighbours(folder, decoder, name, span):
    made = clip(start=span[0], end=span[1])
    together = extract(made, folder / name, [*ALL, Constant()], decoder)
    for featurizer, beside in zip([*ALL, Constant()], together, strict=True):
        (alone,) = extract(made, folder / name, [featurizer], decoder)
        same(alone, beside)


def test_a_limit_that_only_pictures_pass_does_not_cost_the_sound(folder):
    with Decoder(Limits(pixels=100)) as strict:
        words, sound, pictures = extract(clip(), folder / "both.mp4", ALL, strict)
    assert (words.state, sound.state) == ("sample", "sample")
    assert (pictures.state, pictures.fault) == ("quarantined", "too_large")


def test_a_sample_with_some_damage_says_so(tmp_path, decoder):
    path = tmp_path / "scratched.mkv"
    write(path, sound=[(0.0, voice(150, 4.0))], audio="flac")
    content = bytearray(path.read_bytes())
    at = [at for at in range(len(content) - 1) if content[at : at + 2] == b"\xff\xf8"][6]
    content[at : at + 4] = b"\0\0\0\0"
    path.write_bytes(content)
    (outcome,) = extract(clip(), path, [LOGMEL], decoder)
    assert (outcome.state, outcome.fault) == ("sample", None)
    assert "packets are damaged and passed over" in outcome.message


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_quarantined(folder, decoder, number):
    odd, sound = extract(clip(), folder / "both.mp4", [Constant(number), LOGMEL], decoder)
    assert (odd.state, odd.fault, odd.feature) == ("quarantined", "not_finite", None)
    assert odd.message == "constant gave NaN or infinity at 1 steps"
    assert sound.state == "sample"


def test_a_featurizer_that_gives_a_clip_up_costs_no_other(folder, decoder):
    giving_up = Constant(error=BadClipError("empty", "too little to see"))
    odd, sound = extract(clip(), folder / "both.mp4", [giving_up, LOGMEL], decoder)
    assert (odd.state, odd.fault, odd.message) == ("quarantined", "empty", "too little to see")
    assert sound.state == "sample"


@pytest.mark.parametrize(
    "featurizer", [Constant(error=ZeroDivisionError()), Constant(shape=(1, 2)), Constant(dtype=int)]
)
def test_a_bug_stops_the_job_and_quarantines_nobody(folder, decoder, featurizer):
    with pytest.raises((ZeroDivisionError, ValueError)):
        extract(clip(), folder / "both.mp4", [featurizer], decoder)
    assert states(extract(clip(), folder / "both.mp4", [LOGMEL], decoder)) == ["sample"]


def test_steps_without_their_times_are_a_bug(folder, decoder):
    class Timeless(Constant):
        def finish(self):
            return Feature(np.zeros((2, 1), np.float32), np.zeros((1, 2)))

    with pytest.raises(ValueError, match=r"constant gave times .*wanted float64 \[2, 2\]"):
        extract(clip(), folder / "both.mp4", [Timeless()], decoder)
