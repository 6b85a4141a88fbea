"""What every featurizer makes of clips that nobody would think of."""

import importlib.util
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers import landmarks
from featurizers.catalog import NAMES, build
from featurizers.clip import Clip, Word
from featurizers.spec import (
    AudioChunk,
    AudioWant,
    Pending,
    VideoChunk,
    VideoWant,
    check_feature,
)
from tests import checkpoints, tiny_yunet

# Where weights are wanted, "@" stands for the folder of those that are made here.
HEARD = {
    "logmel": {},
    "mfcc": {},
    "prosody": {},
    "waveform": {},
    "speech-encoder": {"model": "@/speech"},
    "egemaps": {},
}
SEEN = {
    "face-motion": {},
    "face-track": {"model": "@/yunet.onnx", "picture": 64},
    "frames": {},
    "appearance": {"crop": "face", "detector": "cascade", "picture": 64},
    "landmarks": {"model": "@/face.task", "picture": 64},
    "image-encoder": {"model": "@/image"},
    "video-encoder": {"model": "@/video", "hop": 2},
}
SAID = {
    "hashed-words": {},
    "text-encoder": {"model": "@/text"},
    "word-vectors": {"file": "@/words.txt"},
    "word-pieces": {"model": "@/text"},
}
MEASURED = {
    "numbers": {"stream": "pose", "dims": 3},
    "track": {"stream": "face", "columns": "a,b"},
    "skeleton": {"stream": "body", "joints": 2, "persons": 2},
}
WINDOWED = {"video-encoder"}  # all others give a step for each picture
# openSMILE is an extra, whose licence not everybody may accept; no other featurizer is left out.
heard = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "egemaps" and importlib.util.find_spec("opensmile") is None,
            reason="openSMILE is not installed: pip install 'fuseline[opensmile]'",
        ),
    )
    for name in HEARD
]
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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes a featurizer, once, by its name."""
    folder = tmp_path_factory.mktemp("weights")
    checkpoints.speech(folder / "speech", "wav2vec2")
    checkpoints.text(folder / "text", "bert")
    checkpoints.image(folder / "image", "vit")
    checkpoints.video(folder / "video")
    tiny_yunet.write(folder / "yunet.onnx", side=24)
    (folder / "words.txt").write_text("so 1 2 3\nit 0.5 -1 2\n")
    (folder / "face.task").write_bytes(b"stands for a model that nobody can make here")
    found = {}
    for name, plain in {**HEARD, **SEEN, **SAID, **MEASURED}.items():
        there = {key: _there(value, folder) for key, value in plain.items()}
        found[name] = build(name, **there)
    return found


def _there(value, folder):
    return value.replace("@", str(folder)) if isinstance(value, str) else value


class Landmarker:
    """Stands for MediaPipe, whose model files cannot be made: a face, or none, of some numbers."""

    def detect(self, picture):
        rng = np.random.default_rng(int(picture.sum()))
        faces = rng.integers(2)
        points = [SimpleNamespace(x=x, y=y, z=z) for x, y, z in rng.random((landmarks.POINTS, 3))]
        shapes = [
            SimpleNamespace(category_name=name, score=rng.random()) for name in landmarks.SHAPES
        ]
        return SimpleNamespace(
            face_landmarks=[points] * faces,
            face_blendshapes=[shapes] * faces,
            facial_transformation_matrixes=[rng.normal(size=(4, 4))] * faces,
        )

    def close(self):
        pass


@pytest.fixture(scope="module", autouse=True)
def _no_mediapipe():
    with pytest.MonkeyPatch.context() as patch:
        find = importlib.util.find_spec
        patch.setattr(importlib.util, "find_spec", lambda name: name == "mediapipe" or find(name))
        patch.setattr(landmarks, "_landmarker", lambda path: Landmarker())
        patch.setattr(landmarks, "_seen", lambda landmarker, frame: landmarker.detect(frame))
        yield


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
            side = -(-want.size // 8)
            blocks = coarse.repeat(side, axis=1).repeat(side, axis=2)
            blocks = blocks[:, : want.size, : want.size]
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
    if isinstance(found, Pending):
        found = found.assemble(featurizer.encoder.encode(found.items))
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


def test_every_name_of_the_catalog_is_tried_here(made):
    assert sorted([*HEARD, *SEEN, *SAID, *MEASURED]) == sorted(NAMES)
    kinds = {name: type(featurizer.wants) for name, featurizer in made.items()}
    for names, kind in ((HEARD, AudioWant), (SEEN, VideoWant), (SAID | MEASURED, type(None))):
        assert {name: kinds[name] for name in names} == dict.fromkeys(names, kind)


@pytest.mark.parametrize("name", heard)
@settings(max_examples=25, deadline=None)
@given(pieces=sounds())
def test_any_sound_gives_what_the_spec_declares(made, name, pieces):
    featurizer = made[name]
    chunks = list(chunks_of_sound(_enough(name, pieces), featurizer.wants.rate_hz))
    end = chunks[-1].start + len(chunks[-1].samples) / featurizer.wants.rate_hz
    check(featurizer, clip(), chunks, chunks[0].start, end)


def _enough(name, pieces):
    """With more of the last piece where openSMILE would otherwise say that it is too little."""
    gap, last = pieces[-1]
    return [*pieces[:-1], (gap, np.resize(last, 3000))] if name == "egemaps" else pieces


@pytest.mark.parametrize("name", heard)
@settings(max_examples=15, deadline=None)
@given(pieces=sounds(), cuts=st.lists(st.integers(0, 9000), max_size=4))
def test_no_sound_shows_how_it_was_cut_into_chunks(made, name, pieces, cuts):
    featurizer = made[name]
    rate_hz = featurizer.wants.rate_hz
    whole = list(chunks_of_sound(_enough(name, pieces), rate_hz))
    parts = []
    for chunk in whole:
        edges = sorted({0, *(cut for cut in cuts if cut < len(chunk.samples)), len(chunk.samples)})
        for low, high in pairwise(edges):
            parts.append(AudioChunk(chunk.start + low / rate_hz, chunk.samples[low:high]))
    one, other = (check(featurizer, clip(), chunks, 0.0, 99.0) for chunks in (whole, parts))
    assert one.values.tobytes() == other.values.tobytes()
    assert one.times.tobytes() == other.times.tobytes()


@pytest.mark.parametrize("name", SEEN)
@settings(max_examples=20, deadline=None)
@given(make=pictures())
def test_any_pictures_give_what_the_spec_declares(made, name, make):
    featurizer = made[name]
    chunks = make(featurizer.wants)
    end = chunks[-1].times[-1, 1]
    found = check(featurizer, clip(), chunks, chunks[0].times[0, 0], end)
    count = sum(len(chunk.frames) for chunk in chunks)
    assert len(found.values) <= count if name in WINDOWED else len(found.values) == count


@pytest.mark.parametrize("name", SAID)
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(max_size=8), min_size=1, max_size=5), length=st.floats(0, 3))
def test_any_words_give_what_the_spec_declares(made, name, texts, length):
    if name in {
        "text-encoder",
        "word-pieces",
    }:  # a clip of which its tokenizer knows nothing is empty
        texts = ["so", *texts]
    edges = np.linspace(0.0, length, len(texts) + 1)
    words = tuple(
        Word(text=text, start=float(start), end=float(end))
        for text, start, end in zip(texts, edges[:-1], edges[1:], strict=True)
    )
    found = check(made[name], clip(words=words), [], 0.0, length)
    assert name == "word-pieces" or len(found.values) == len(words)


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
        featurizer = build("numbers", **MEASURED["numbers"])
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
        featurizer = build("track", **MEASURED["track"], least=least)
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
        featurizer = build("skeleton", **MEASURED["skeleton"])
        found = check(featurizer, moving, [], 0.0, steps / 25.0)
        assert len(found.values) == steps
