"""Features of the reference video: numbers change with a spec's version, and never without.

`python -m tests.test_golden_features`, in the root of the project, makes the golden files anew.
"""

from pathlib import Path

import numpy as np
import pytest

from featurizers.catalog import build
from featurizers.clip import Clip, Word
from featurizers.decoder import Decoder
from featurizers.extract import extract
from tests.media_maker import voice, write

pytestmark = pytest.mark.media
GOLDEN = Path(__file__).parent / "golden"
VIDEO, NUMBERS = GOLDEN / "reference.mp4", GOLDEN / "reference_features.npz"
NAMES = ("hashed-words", "logmel", "mfcc", "prosody", "face-motion", "appearance")
SECONDS, FPS, SIDE, RATE = 2.0, 25, 96, 16_000
ATOL = 1e-5
WORDS = (
    Word(text="Well,", start=0.1, end=0.5),
    Word(text="naïve", start=0.5, end=1.1),
    Word(text="don't", start=1.1, end=1.1),
    Word(text="STRASSE", start=1.2, end=1.9),
)


def make_video(path):
    """A disc wanders over a slope, a bar opens and shuts, a voice rises and rests."""
    frames = [_picture(number / FPS) for number in range(round(SECONDS * FPS))]
    time = np.arange(round(SECONDS * RATE)) / RATE
    loudness = np.clip(np.sin(2 * np.pi * 1.5 * time) + 0.4, 0, 1)
    sound = voice(120 * 2 ** (time / 2), SECONDS) * loudness
    pictures = [(number / FPS, frame) for number, frame in enumerate(frames)]
    # Lossless sound: decoders of AAC calculate in floats, whose last bits are each CPU's own.
    write(path, pictures=pictures, sound=[(0.0, np.round(sound).astype(np.int16))], audio="flac")


def _picture(time):
    y, x = np.mgrid[:SIDE, :SIDE]
    grey = 40 + x + y // 2
    centre = SIDE / 2 + 24 * np.cos(3 * time), SIDE / 2 + 16 * np.sin(4 * time)
    grey = np.where((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 18**2, 220, grey)
    opened = 2 + 8 * abs(np.sin(6 * time))
    grey = np.where((abs(x - 48) < 20) & (abs(y - 70) < opened), 15, grey)
    return np.repeat(grey.astype(np.uint8)[:, :, np.newaxis], 3, axis=2)


def compute():
    """Name -> version, values and times, as the shipped settings make them."""
    clip = Clip(
        key="reference",
        id="reference",
        media=str(VIDEO),
        media_digest="",
        words=WORDS,
        seconds=SECONDS,
    )
    featurizers = [build(name) for name in NAMES]
    with Decoder() as decoder:
        outcomes = extract(clip, VIDEO, featurizers, decoder)
    return {
        featurizer.spec.name: (
            featurizer.spec.version,
            outcome.feature.values,
            outcome.feature.times,
        )
        for featurizer, outcome in zip(featurizers, outcomes, strict=True)
    }


def stored():
    with np.load(NUMBERS, allow_pickle=False) as found:
        names = {key.split("/")[0] for key in found.files}
        return {
            name: (int(found[f"{name}/version"]), found[f"{name}/values"], found[f"{name}/times"])
            for name in names
        }


def equal(one, other):
    return all(
        left.shape == right.shape and np.allclose(left, right, rtol=0, atol=ATOL)
        for left, right in zip(one[1:], other[1:], strict=True)
    )


def renew():
    """Make the golden files anew; refuses to change a number whose version was not raised."""
    if not VIDEO.exists():
        make_video(VIDEO)
    computed = compute()
    for name, before in (stored() if NUMBERS.exists() else {}).items():
        if before[0] == computed[name][0] and not equal(before, computed[name]):
            raise SystemExit(f"{name}: the numbers changed; raise the version of its spec")
    arrays = {
        f"{name}/{part}": value
        for name, parts in computed.items()
        for part, value in zip(("version", "values", "times"), parts, strict=True)
    }
    np.savez_compressed(NUMBERS, **arrays)


@pytest.fixture(scope="module")
def computed():
    return compute()


@pytest.mark.parametrize("name", NAMES)
def test_features_of_the_reference_video_are_the_golden_ones(computed, name):
    version, values, times = stored()[name]
    assert computed[name][0] == version, "run: python -m tests.test_golden_features"
    assert computed[name][1].dtype == values.dtype == np.float32
    np.testing.assert_allclose(computed[name][1], values, rtol=0, atol=ATOL)
    np.testing.assert_allclose(computed[name][2], times, rtol=0, atol=ATOL)


def test_the_golden_features_are_not_trivial():
    for _, values, _ in stored().values():
        assert len(values) >= 4
        assert (values.std(axis=0) > 0).mean() > 0.25


def test_the_golden_files_are_small():
    assert VIDEO.stat().st_size < 60_000
    assert NUMBERS.stat().st_size < 90_000


def test_the_reference_video_can_still_be_made(tmp_path, computed):
    """The encoder's next release may choose other bits; what is seen and heard stays the same."""
    from featurizers.media import probe

    made = tmp_path / "reference.mp4"
    make_video(made)
    assert probe(made) == probe(VIDEO)
    assert made.stat().st_size == pytest.approx(VIDEO.stat().st_size, rel=0.2)


def test_numbers_that_changed_without_their_version_are_not_written(monkeypatch, tmp_path):
    changed = {
        name: (version, values + 0.1, times) for name, (version, values, times) in stored().items()
    }
    before = NUMBERS.read_bytes()
    monkeypatch.setitem(globals(), "compute", lambda: changed)
    with pytest.raises(SystemExit, match="raise the version"):
        renew()
    assert NUMBERS.read_bytes() == before


if __name__ == "__main__":
    renew()
