"""What every featurizer without weights makes of clips that nobody would think of."""

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers.catalog import NAMES, build
from featurizers.clip import Clip, Word
from featurizers.spec import AudioChunk, AudioWant, VideoChunk, VideoWant, check_feature

SETTINGS = {
    "hashed-words": {},
    "logmel": {},
    "mfcc": {},
    "prosody": {},
    "waveform": {},
    "face-motion": {},
    "face-track": {"detector": "cascade", "picture": 64},
    "frames": {},
    "appearance": {"crop": "face", "detector": "cascade", "picture": 64},
    "numbers": {"stream": "pose", "dims": 3},
    "track": {"stream": "face", "columns": "a,b"},
    "skeleton": {"stream": "body", "joints": 2, "persons": 2},
}
# Their numbers are made by weights, or by others' programs.
OTHERS = {
    "egemaps",
    "landmarks",
    "speech-encoder",
    "text-encoder",
    "image-encoder",
    "video-encoder",
    "word-vectors",
}
SOUNDS = {
    "silence": lambda rng, count: np.zeros(count),
    "noise": lambda rng, count: rng.normal(0, 3000, count),
    "clipping": lambda rng, count: 40_000 * np.sign(np.sin(np.arange(count) / rng.uniform(1, 60))),
    "tone": lambda rng, count: 20_000 * np.sin(np.arange(count) * rng.uniform(0.001, 3.0)),
    "constant": lambda rng, count: np.full(count, rng.integers(-32768, 32768)),
    "clicks": lambda rng, count: 32_767 * (rng.random(count) < 0.01),
    "last bit": lambda rng, count: rng.integers(-1, 2, count),
}
seeds = st.integers(0, 2**32 - 1)


@st.composite
def sounds(draw):
    """Pieces in order of time: how many samples after the last one's end, and int16."""
    kinds = draw(st.lists(st.sampled_from(sorted(SOUNDS)), min_size=1, max_size=3))
    pieces = []
    for kind in kinds:
        rng = np.random.default_rng(draw(seeds))
        wave = SOUNDS[kind](rng, draw(st.integers(1, 3000)))
        gap = draw(st.sampled_from([0, 0, 1, 777, 16_000]))
        pieces.append((gap, np.clip(wave, -32768, 32767).astype(np.int16)))
    return pieces


def chunks_of_sound(pieces, rate_hz):
    at = 0
    for gap, samples in pieces:
        at += gap
        yield AudioChunk(at / rate_hz, samples)
        at += len(samples)


@st.composite
def pictures(draw):
    """Makes chunks of what is wanted, whose times rise, now evenly and now not."""
    rng = np.random.default_rng(draw(seeds))
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    kind = draw(st.sampled_from(["noise", "black", "white", "blocks"]))
    starts = np.cumsum(rng.uniform(0.001, 0.5, sum(counts) + 1))
    edges = np.stack([starts[:-1], starts[1:]], axis=1)

    def made(want):
        shape = (want.size, want.size) if want.colour == "gray" else (want.size, want.size, 3)
        found, times = [], edges
        for count in counts:
            coarse = rng.integers(0, 256, (count, 8, 8, *shape[2:]))
            blocks = coarse.repeat(want.size // 8, axis=1).repeat(want.size // 8, axis=2)
            frames = {
                "noise": rng.integers(0, 256, (count, *shape)),
                "black": np.zeros((count, *shape)),
                "white": np.full((count, *shape), 255),
                "blocks": blocks,
            }[kind]
            found.append(VideoChunk(times[:count], frames.astype(np.uint8)))
            times = times[count:]
        return found

    return made


def check(featurizer, clip, chunks, first, last):
    """Width, type, finite numbers, and times that rise and lie between first and last."""
    extraction = featurizer.begin(clip)
    for chunk in chunks:
        extraction.add(chunk)
    found = extraction.finish()
    check_feature(featurizer.spec, found)
    assert len(found.values) >= 1
    assert np.isfinite(found.values.astype(np.float64)).all()
    starts, ends = found.times.T
    assert (ends >= starts).all()
    assert (np.diff(starts) >= 0).all()
    # A clip that is shorter than a step has one that ends after it.
    step = 1 / featurizer.spec.rate_hz if featurizer.spec.rate_hz else 0.0
    assert starts[0] >= first - 1e-9
    assert ends[-1] <= max(last, first + step) + 1e-9
    return found


def clip(**known):
    return Clip(key="a", id="a", media="a", media_digest="", **known)


def named(kind):
    found = []
    for name, given_ in SETTINGS.items():
        wants = build(name, **given_).wants
        if wants is not None and isinstance(wants, kind):
            found.append(name)
    return found


def test_every_featurizer_is_here_or_known_to_have_others_numbers():
    assert set(SETTINGS) | OTHERS == set(NAMES)
    assert not set(SETTINGS) & OTHERS


@pytest.mark.parametrize("name", named(AudioWant))
@settings(max_examples=40, deadline=None)
@given(pieces=sounds())
def test_any_sound_gives_what_the_spec_declares(name, pieces):
    featurizer = build(name)
    chunks = list(chunks_of_sound(pieces, featurizer.wants.rate_hz))
    end = chunks[-1].start + len(chunks[-1].samples) / featurizer.wants.rate_hz
    check(featurizer, clip(), chunks, chunks[0].start, end)


@pytest.mark.parametrize("name", named(AudioWant))
@settings(max_examples=20, deadline=None)
@given(pieces=sounds(), cuts=st.lists(st.integers(0, 9000), max_size=4))
def test_no_sound_shows_how_it_was_cut_into_chunks(name, pieces, cuts):
    featurizer = build(name)
    rate_hz = featurizer.wants.rate_hz
    whole = list(chunks_of_sound(pieces, rate_hz))
    parts = []
    for chunk in whole:
        edges = sorted({0, *(cut for cut in cuts if cut < len(chunk.samples)), len(chunk.samples)})
        for low, high in pairwise(edges):
            parts.append(AudioChunk(chunk.start + low / rate_hz, chunk.samples[low:high]))
    one, other = (check(featurizer, clip(), chunks, 0.0, 99.0) for chunks in (whole, parts))
    assert one.values.tobytes() == other.values.tobytes()
    assert one.times.tobytes() == other.times.tobytes()


@pytest.mark.parametrize("name", named(VideoWant))
@settings(max_examples=30, deadline=None)
@given(make=pictures())
def test_any_pictures_give_what_the_spec_declares(name, make):
    featurizer = build(name, **SETTINGS[name])
    chunks = make(featurizer.wants)
    end = chunks[-1].times[-1, 1]
    found = check(featurizer, clip(), chunks, chunks[0].times[0, 0], end)
    assert len(found.values) == sum(len(chunk.frames) for chunk in chunks)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(max_size=8), min_size=1, max_size=5), length=st.floats(0, 3))
def test_any_words_give_what_the_spec_declares(texts, length):
    edges = np.linspace(0.0, length, len(texts) + 1)
    words = tuple(
        Word(text=text, start=float(start), end=float(end))
        for text, start, end in zip(texts, edges[:-1], edges[1:], strict=True)
    )
    check(build("hashed-words"), clip(words=words), [], 0.0, length)


@settings(max_examples=30, deadline=None)
@given(
    steps=st.integers(1, 50),
    rate_hz=st.floats(0.5, 500),
    scale=st.floats(1e-30, 1e30),
    seed=seeds,
)
def test_any_numbers_give_what_the_spec_declares(steps, rate_hz, scale, seed):
    with TemporaryDirectory() as folder:
        path = Path(folder, "pose.npy")
        np.save(path, scale * np.random.default_rng(seed).normal(size=(steps, 3)))
        measured = clip(streams={"pose": str(path)}, stream_rates={"pose": rate_hz})
        featurizer = build("numbers", **SETTINGS["numbers"])
        check(featurizer, measured, [], 0.0, steps / rate_hz)


@settings(max_examples=30, deadline=None)
@given(
    cells=st.lists(
        st.tuples(*[st.sampled_from(["", "nan", "inf", "0", "-1.5", "1e9"])] * 2, st.floats(0, 1)),
        min_size=1,
        max_size=20,
    ),
    least=st.floats(0, 1),
)
def test_any_track_gives_what_the_spec_declares(cells, least):
    lines = [f"{0.1 * number},{a},{b},{c}" for number, (a, b, c) in enumerate(cells)]
    with TemporaryDirectory() as folder:
        path = Path(folder, "face.csv")
        path.write_text("\n".join(["time,a,b,confidence", *lines]))
        featurizer = build("track", **SETTINGS["track"], least=least)
        tracked = clip(streams={"face": str(path)})
        found = check(featurizer, tracked, [], 0.0, 0.1 * len(cells))
        assert len(found.values) == len(cells)


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 20), persons=st.integers(1, 3), holes=st.floats(0, 1), seed=seeds)
def test_any_joints_give_what_the_spec_declares(steps, persons, holes, seed):
    rng = np.random.default_rng(seed)
    joints = rng.normal(size=(steps, persons, 2, 3))
    joints[rng.random(joints.shape) < holes] = np.nan
    with TemporaryDirectory() as folder:
        path = Path(folder, "body.npy")
        np.save(path, joints)
        moving = clip(streams={"body": str(path)}, stream_rates={"body": 25.0})
        featurizer = build("skeleton", **SETTINGS["skeleton"])
        found = check(featurizer, moving, [], 0.0, steps / 25.0)
        assert len(found.values) == steps
