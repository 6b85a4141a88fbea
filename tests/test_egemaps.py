"""eGeMAPS by openSMILE, where somebody installed it; and what is said where nobody did."""

import importlib.util
import sys

import numpy as np
import pytest

from featurizers.clip import BadClipError, Clip
from featurizers.egemaps import Egemaps, MissingPackageError, descriptors, functionals
from featurizers.spec import AudioChunk, check_feature
from tests.media_maker import voice

CLIP = Clip(key="a", id="a", media="a", media_digest="")
needs_opensmile = pytest.mark.skipif(
    importlib.util.find_spec("opensmile") is None,
    reason="openSMILE is not installed: pip install 'fuseline[opensmile]'",
)


def feature(samples, start=0.0, **settings):
    featurizer = Egemaps(**settings)
    extraction = featurizer.begin(CLIP)
    extraction.add(AudioChunk(start, samples))
    found = extraction.finish()
    check_feature(featurizer.spec, found)
    return found


def test_without_opensmile_it_is_said_how_to_install_it_and_under_which_licence(monkeypatch):
    monkeypatch.setitem(sys.modules, "opensmile", None)
    with pytest.raises(MissingPackageError, match="not commercial") as caught:
        Egemaps().begin(CLIP)
    assert "pip install 'fuseline[opensmile]'" in str(caught.value)
    assert "prosody" in str(caught.value)


def test_the_spec_says_the_licence_and_that_its_numbers_are_promised_within_a_tolerance():
    for level, width, rate_hz in (("lld", 25, 100.0), ("functionals", 88, None)):
        spec = Egemaps(level=level).spec
        assert (spec.width, spec.rate_hz) == (width, rate_hz)
        assert "research and personal use, not commercial" in spec.licence
        assert spec.atol == 1e-3
    with pytest.raises(ValueError, match="level is 'both'; wanted lld or functionals"):
        Egemaps(level="both")


@needs_opensmile
def test_the_names_are_opensmiles_in_its_order():
    import opensmile

    levels = opensmile.FeatureLevel
    for level, dims in (
        (levels.LowLevelDescriptors, descriptors()),
        (levels.Functionals, functionals()),
    ):
        smile = opensmile.Smile(feature_set=opensmile.FeatureSet.eGeMAPSv02, feature_level=level)
        assert smile.feature_names == [dim.name for dim in dims]


@needs_opensmile
def test_descriptors_come_each_10_ms_and_functionals_once():
    sound = voice(150, 2.0)
    found = feature(sound, start=0.25)
    assert len(found.values) == 196
    assert found.times[0].tolist() == pytest.approx([0.255, 0.265])
    pitch = [dim.name for dim in descriptors()].index("F0semitoneFrom27.5Hz_sma3nz")
    assert np.median(found.values[:, pitch]) == pytest.approx(12 * np.log2(150 / 27.5), abs=0.1)
    whole = feature(sound, start=0.25, level="functionals")
    assert whole.times.tolist() == [[0.25, 2.25]]
    assert whole.values[0, 0] == pytest.approx(12 * np.log2(150 / 27.5), abs=0.1)


@needs_opensmile
def test_a_clip_that_is_too_short_for_opensmile_is_empty():
    with pytest.raises(BadClipError) as caught:
        feature(voice(150, 1.0)[:1119])
    assert caught.value.fault == "empty"
    assert len(feature(voice(150, 1.0)[:1120]).values) == 3
