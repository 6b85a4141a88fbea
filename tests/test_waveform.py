"""The samples themselves: nothing is lost, nothing is moved."""

import tracemalloc

import numpy as np
import pytest

from featurizers.clip import Clip
from featurizers.spec import AudioChunk
from featurizers.waveform import Waveform

CLIP = Clip(key="a", id="a", media="a", media_digest="")
NOISE = np.random.default_rng(0).integers(-32768, 32768, 50_000).astype(np.int16)


def feature(*chunks, **settings):
    featurizer = Waveform(**settings)
    extraction = featurizer.begin(CLIP)
    for start, samples in chunks:
        extraction.add(AudioChunk(start, samples))
    return extraction.finish()


@pytest.mark.parametrize(("hop", "rate_hz"), [(320, 16_000), (1, 8_000), (441, 44_100)])
def test_the_steps_in_a_row_are_the_sound(hop, rate_hz):
    found = feature((0.0, NOISE), hop=hop, rate_hz=rate_hz)
    steps = len(NOISE) // hop
    assert found.values.shape == (steps, hop)
    assert found.values.dtype == np.float32
    np.testing.assert_array_equal(found.values.reshape(-1) * 32768, NOISE[: steps * hop])
    np.testing.assert_allclose(np.diff(found.times), hop / rate_hz)
    assert found.times[-1, 1] == pytest.approx(steps * hop / rate_hz)


def test_chunks_of_any_size_give_equal_values_and_a_gap_is_silence(monkeypatch):
    monkeypatch.setattr("featurizers.sound.BLOCK", 3)
    pieces = [(0.5 + at / 16_000, NOISE[at : at + 777]) for at in range(0, 32_000, 777)]
    found = feature(*pieces, (4.0, NOISE[:3200]))
    np.testing.assert_array_equal(
        found.values.reshape(-1)[:32_000] * 32768, NOISE[:32_000].astype(np.float32)
    )
    assert not found.values[103:175].any()
    np.testing.assert_array_equal(found.values[175:].reshape(-1) * 32768, NOISE[:3200])
    assert found.times[0, 0] == 0.5


def test_a_clip_shorter_than_a_step_is_filled_up_with_silence():
    found = feature((0.0, NOISE[:7]))
    assert found.values.shape == (1, 320)
    np.testing.assert_array_equal(found.values[0, :7] * 32768, NOISE[:7])
    assert not found.values[0, 7:].any()


def test_a_long_sound_takes_little_more_memory_than_its_feature():
    extraction, second = Waveform().begin(CLIP), NOISE[:16_000]
    tracemalloc.start()
    try:
        for number in range(300):
            extraction.add(AudioChunk(float(number), second.copy()))
        found = extraction.finish()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The feature, and the same in 16 bits before it is made.
    assert peak_bytes < 1.7 * found.values.nbytes


@pytest.mark.parametrize("settings", [{"hop": 0}, {"hop": 4097}, {"rate_hz": 12_345}])
def test_settings_out_of_range_are_refused_with_the_range(settings):
    with pytest.raises(ValueError, match="wanted 1 to 4096, and one of 8000, 16000, "):
        Waveform(**settings)
