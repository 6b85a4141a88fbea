"""Features that promise `exact` must not show in which order a machine adds."""

import numpy as np
import pytest

from featurizers.catalog import build
from featurizers.clip import Clip
from featurizers.sound import RATE_HZ
from featurizers.spec import AudioChunk

CLIP = Clip(key="a", id="a", media="a.mp4", media_digest="")


def direct_rfft(signal, n=None, axis=-1, out=None):
    """The transform as its definition says: every product, added by a matrix product."""
    signal = np.asarray(signal)
    length = n or signal.shape[axis]
    used = min(length, signal.shape[axis])
    turns = np.outer(np.arange(used), np.arange(length // 2 + 1)) % length
    return _into(out, signal[..., :used] @ np.exp(-2j * np.pi * turns / length))


def direct_irfft(spectrum, n=None, axis=-1, out=None):
    count = np.shape(spectrum)[axis]
    length = n or 2 * (count - 1)
    turns = np.outer(np.arange(count), np.arange(length)) % length
    weight = np.full(count, 2.0)
    weight[[0, -1]] = 1.0
    signal = (np.asarray(spectrum) * weight @ np.exp(2j * np.pi * turns / length)).real / length
    return _into(out, signal)


def _into(out, found):
    if out is None:
        return found
    out[...] = found
    return out


def voice(seconds):
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / RATE_HZ
    tone = sum(np.sin(k * phase) / k for k in range(1, 20))
    breath = np.random.default_rng(0).normal(0, 1e-3, len(t))
    return 0.15 * tone * (np.sin(2 * np.pi * 2 * t) > -0.5) + breath


SIGNALS = {
    "voice": voice(2.0),
    "tone": 0.9 * np.sin(2 * np.pi * 1000 * np.arange(RATE_HZ) / RATE_HZ),
    "noise": np.random.default_rng(1).normal(0, 0.1, RATE_HZ),
    "silence": np.zeros(RATE_HZ),
}


def values(name, signal):
    extraction = build(name).begin(CLIP)
    extraction.add(AudioChunk(0.0, (signal * 32767).astype(np.int16)))
    return extraction.finish().values


@pytest.mark.parametrize("featurizer", ["logmel", "mfcc", "prosody"])
@pytest.mark.parametrize("name", SIGNALS)
def test_another_way_of_adding_gives_the_same_sound_features(featurizer, name, monkeypatch):
    fast = values(featurizer, SIGNALS[name])
    monkeypatch.setattr(np.fft, "rfft", direct_rfft)
    monkeypatch.setattr(np.fft, "irfft", direct_irfft)
    assert values(featurizer, SIGNALS[name]).tobytes() == fast.tobytes()


def test_the_direct_transforms_of_this_file_are_right():
    signal = np.random.default_rng(2).normal(size=(3, 20))
    assert np.allclose(direct_rfft(signal, n=32, axis=1), np.fft.rfft(signal, n=32, axis=1))
    assert np.allclose(
        direct_irfft(direct_rfft(signal, n=32), axis=1), np.fft.irfft(np.fft.rfft(signal, n=32))
    )
