"""Speech encoders give what transformers gives by hand, whatever stands beside a clip."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurizers import speech_encoder
from featurizers.catalog import build
from featurizers.clip import BadClipError, Clip
from featurizers.spec import AudioChunk, check_feature
from featurizers.speech_encoder import Cut, Grid, cuts
from featurizers.torch_encoder import ATOL
from tests import checkpoints
from tests.checkpoints import SPEECH, hum

CLIP = Clip(key="a", id="a", media="", media_digest="")
CLOSE = 2e-5  # float32 on one machine: far below the promise, which must hold between machines


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("speech")
    for kind in SPEECH:
        checkpoints.speech(root / kind, kind)
    return {kind: root / kind for kind in SPEECH}


def pending(featurizer, *chunks):
    extraction = featurizer.begin(CLIP)
    for chunk in chunks:
        extraction.add(chunk)
    return extraction.finish()


def feature(featurizer, *chunks):
    """A clip's feature, each window encoded alone."""
    waiting = pending(featurizer, *chunks)
    made = waiting.assemble([featurizer.encoder.encode([item])[0] for item in waiting.items])
    check_feature(featurizer.spec, made)
    return made


def by_hand(folder, sound):
    """All states [layers + 1][T, D] of transformers, and its last one."""
    import transformers as hf

    inputs = hf.AutoFeatureExtractor.from_pretrained(folder)(
        sound.astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt"
    )
    model = hf.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        if hasattr(model, "get_encoder") and model.config.model_type == "whisper":
            output = model.get_encoder()(inputs.input_features, output_hidden_states=True)
        else:
            output = model(**inputs, output_hidden_states=True)
    return [each[0].numpy() for each in output.hidden_states], output.last_hidden_state[0].numpy()


@pytest.mark.parametrize("kind", SPEECH)
def test_states_are_those_of_transformers_by_hand(folders, kind):
    sound = hum(1.3)
    states, last = by_hand(folders[kind], sound)
    for layers, wanted in [
        ("last", last),
        (0, states[0]),
        (2, states[2]),
        ("2-3", (states[2] + states[3]) / 2),
        ("mean", (states[1] + states[2] + states[3]) / 3),
    ]:
        made = feature(
            build(
                "speech-encoder",
                model=str(folders[kind]),
                window_s=2.0,
                context_s=0.0,
                layers=layers,
            ),
            AudioChunk(0.0, sound),
        )
        # Whisper's has a state for each 20 ms of its whole window, silence too.
        assert len(made.values) == (65 if kind == "whisper" else len(wanted))
        np.testing.assert_allclose(made.values, wanted[: len(made.values)], atol=CLOSE)


def test_layers_differ(folders):
    """Or the test above would say nothing about their choice."""
    states, last = by_hand(folders["wavlm"], hum(0.5))
    for one, other in [(states[0], states[1]), (states[1], states[2]), (states[2], states[3])]:
        assert np.abs(one - other).max() > 100 * CLOSE
    np.testing.assert_allclose(states[3], last, atol=CLOSE)


@pytest.mark.parametrize("kind", SPEECH)
def test_a_clip_does_not_depend_on_its_neighbours_in_the_batch(folders, kind):
    featurizer = build("speech-encoder", model=str(folders[kind]), window_s=2.0, context_s=0.0)
    lengths = [1.5, 0.7, 1.5, 1.31, 0.02, 1.3]
    items = [
        pending(featurizer, AudioChunk(0.0, hum(seconds, seed))).items[0]
        for seed, seconds in enumerate(lengths)
    ]
    pad_where_it_may(featurizer)
    together = featurizer.encoder.encode(items)
    for item, encoded in zip(items, together, strict=True):
        np.testing.assert_allclose(encoded, featurizer.encoder.encode([item])[0], atol=CLOSE)
    shuffled = featurizer.encoder.encode(items[::-1])[::-1]
    for one, other in zip(together, shuffled, strict=True):
        np.testing.assert_allclose(one, other, atol=CLOSE)


def pad_where_it_may(featurizer):
    """Pad on a CPU, too, any length to any other, if the model takes padding at all."""
    if featurizer.encoder._slack[1]:
        featurizer.encoder._slack = (math.inf, math.inf)


def test_a_model_that_cannot_be_told_of_padding_gets_none(folders):
    for kind in SPEECH:
        featurizer = build("speech-encoder", model=str(folders[kind]), window_s=2.0, context_s=0.0)
        items = [np.sin(np.arange(n, dtype=np.float32) / 9) for n in (16_000, 9_000)]
        alone = featurizer.encoder.encode(items[1:])[0]
        slack = featurizer.encoder._slack
        featurizer.encoder._slack = (math.inf, math.inf)
        away = np.abs(featurizer.encoder.encode(items)[1] - alone).max()
        # Otherwise its neighbour would show.
        assert (away < CLOSE) == (slack[1] > 0) == (kind.endswith(("-layer", "whisper")))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["wav2vec2", "wav2vec2-layer", "whisper"])
def test_half_precision_keeps_its_promise_beside_neighbours(folders, kind, dtype):
    settings = {"model": str(folders[kind]), "window_s": 2.0, "context_s": 0.0}
    half, full = (build("speech-encoder", **settings, dtype=each) for each in (dtype, "float32"))
    items = [pending(full, AudioChunk(0.0, hum(1.5, seed))).items[0] for seed in range(3)]
    items = [item[: len(item) - 1000 * at] for at, item in enumerate(items)]
    pad_where_it_may(half)
    together = half.encoder.encode(items)
    for item, encoded in zip(items, together, strict=True):
        assert encoded.dtype == np.float32
        alone = half.encoder.encode([item])[0]
        np.testing.assert_allclose(encoded, alone, atol=ATOL[dtype])
        # Another type's numbers, but no others' features.
        away = np.abs(encoded - full.encoder.encode([item])[0])
        assert 0 < away.mean() < ATOL[dtype]
    assert half.spec.fingerprint != full.spec.fingerprint
    assert half.spec.atol > full.spec.atol


def test_the_way_in_which_sound_comes_changes_nothing(folders):
    featurizer = build("speech-encoder", model=str(folders["hubert"]))
    sound = hum(2.0)
    whole = feature(featurizer, AudioChunk(0.3, sound))
    parts = [AudioChunk(0.3 + at / 16_000, sound[at : at + 5000]) for at in range(0, 32_000, 5000)]
    again = feature(featurizer, *parts)
    np.testing.assert_array_equal(whole.values, again.values)
    np.testing.assert_array_equal(whole.times, again.times)
    assert whole.times[0].tolist() == [0.3, 0.32]
    np.testing.assert_allclose(np.diff(whole.times, axis=0), 1 / featurizer.spec.rate_hz)


def test_a_gap_is_silence(folders):
    featurizer = build("speech-encoder", model=str(folders["hubert"]))
    sound = hum(1.0)
    silent = np.concatenate([sound[:8000], np.zeros(4000, np.int16), sound[8000:]])
    gap = feature(featurizer, AudioChunk(0.0, sound[:8000]), AudioChunk(0.75, sound[8000:]))
    np.testing.assert_array_equal(gap.values, feature(featurizer, AudioChunk(0.0, silent)).values)


@pytest.mark.parametrize("kind", SPEECH)
def test_long_sound_is_cut_into_windows_that_are_each_as_by_hand(folders, kind):
    settings = {"model": str(folders[kind]), "context_s": 0.2}
    cut, whole = (build("speech-encoder", **settings, window_s=each) for each in (1.0, 2.0))
    sound = hum(1.9)
    waiting = pending(cut, AudioChunk(0.0, sound))
    assert len(waiting.items) == 3
    assert max(map(len, waiting.items)) <= 16_000
    made, (only,) = (
        feature(cut, AudioChunk(0.0, sound)),
        pending(whole, AudioChunk(0.0, sound)).items,
    )
    assert made.times.tolist() == feature(whole, AudioChunk(0.0, sound)).times.tolist()
    # Scaled over the whole clip, then cut, each step 320 samples after the last.
    first = cut.encoder.encode([only[: len(waiting.items[0])]])[0]
    steps = len(first) - 10
    np.testing.assert_allclose(made.values[:steps], first[:steps], atol=CLOSE)
    begin = (len(first) - 20) * 320
    second = cut.encoder.encode([only[begin : begin + len(waiting.items[1])]])[0]
    middle = made.values[steps : steps + len(second) - 20]
    np.testing.assert_allclose(middle, second[10 : 10 + len(middle)], atol=CLOSE)


def test_whisper_reads_no_longer_windows_than_it_was_made_for(folders):
    with pytest.raises(ValueError, match=r"window_s is 3.0; wanted 1 to 2"):
        build("speech-encoder", model=str(folders["whisper"]), window_s=3.0)


@given(steps=st.integers(1, 400), window=st.integers(4, 60), share=st.floats(0, 0.49))
def test_windows_give_each_step_once_with_its_context(steps, window, share):
    context = int(window * share)
    made = cuts(steps, window, context)
    given_steps = [cut.first + at for cut in made for at in range(cut.begin, cut.end)]
    assert given_steps == list(range(steps))
    for cut in made:
        assert cut.end <= min(window, steps - cut.first)
        assert cut.first == 0 or cut.begin == context
        assert cut.first + window >= steps or cut.end == window - context


def test_a_short_sound_is_one_window():
    assert cuts(60, 60, 10) == [Cut(0, 0, 60)]


@given(samples=st.integers(1, 5000))
def test_a_grid_knows_how_many_steps_a_convolution_gives(samples):
    wave = Grid(320, 400)
    steps = max(1, len(range(0, samples - 400 + 1, 320)))
    assert wave.steps(samples) == steps
    assert wave.steps(wave.samples(steps)) == steps
    assert wave.steps(wave.samples(steps) - 1) < steps or steps == 1


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_sound_shorter_than_a_step_gives_one_step(folders, kind):
    featurizer = build("speech-encoder", model=str(folders[kind]), window_s=2.0, context_s=0.0)
    made = feature(featurizer, AudioChunk(0.0, hum(0.01)))
    assert made.values.shape == (1, 32)
    assert np.isfinite(made.values).all()
    if kind == "wav2vec2":  # what fills it up is not scaled with it
        (item,) = pending(featurizer, AudioChunk(0.0, hum(0.01))).items
        np.testing.assert_allclose([item[:160].mean(), item[:160].std()], [0, 1], atol=1e-4)
        assert item[160:].tolist() == [0.0] * 240


def test_digital_silence_gives_finite_numbers(folders):
    for kind in SPEECH:
        featurizer = build("speech-encoder", model=str(folders[kind]), window_s=2.0, context_s=0.0)
        made = feature(featurizer, AudioChunk(0.0, np.zeros(16_000, np.int16)))
        assert np.isfinite(made.values).all()


def test_without_sound_a_clip_is_empty_and_with_too_much_too_long(folders, monkeypatch):
    featurizer = build("speech-encoder", model=str(folders["wav2vec2"]))
    with pytest.raises(BadClipError, match="empty: there is no sound"):
        pending(featurizer)
    monkeypatch.setattr(speech_encoder, "MAX_SECONDS", 1)
    assert len(pending(featurizer, AudioChunk(5.0, hum(1.0))).items) == 1
    with pytest.raises(BadClipError, match="too_long: the sound spans 2 s"):
        pending(featurizer, AudioChunk(5.0, hum(1.0)), AudioChunk(6.0, hum(0.6)))


def test_sound_is_scaled_only_where_the_checkpoint_asks_for_it(folders, tmp_path):
    own = checkpoints.copied(folders["wav2vec2"], tmp_path / "own")
    plain = json.loads((own / "preprocessor_config.json").read_text())
    checkpoints.write(own, "preprocessor_config.json", {**plain, "do_normalize": False})
    sound = hum(0.5)
    (raw,) = pending(build("speech-encoder", model=str(own)), AudioChunk(0.0, sound)).items
    np.testing.assert_array_equal(raw, sound.astype(np.float32) / 32768)
    checkpoints.write(own, "preprocessor_config.json", {**plain, "sampling_rate": 8000})
    with pytest.raises(ValueError, match="wants sound at 8000 Hz"):
        build("speech-encoder", model=str(own))
