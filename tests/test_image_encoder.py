"""Image and video encoders give what transformers gives by hand, picture by picture."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featurizers import image_encoder
from featurizers.catalog import build
from featurizers.clip import BadClipError, Clip
from featurizers.decoder import Decoder
from featurizers.extract import extract
from featurizers.media import encode
from featurizers.spec import VideoChunk, check_feature
from featurizers.torch_encoder import ATOL
from featurizers.video_encoder import windows_of
from tests import checkpoints
from tests.checkpoints import IMAGE

CLIP = Clip(key="a", id="a", media="", media_digest="")
CLOSE = 2e-5  # float32 on one machine


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("image")
    for kind in IMAGE:
        checkpoints.image(root / kind, kind)
    checkpoints.video(root / "video")
    return {kind: root / kind for kind in (*IMAGE, "video")}


def pictures(count, seed=0):
    frames = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    edges = np.arange(count, dtype=np.float64)[:, np.newaxis] + np.array([0.0, 1.0])
    return VideoChunk(times=edges / 5, frames=frames)


def pending(featurizer, *chunks):
    extraction = featurizer.begin(CLIP)
    for chunk in chunks:
        extraction.add(chunk)
    return extraction.finish()


def feature(featurizer, *chunks):
    waiting = pending(featurizer, *chunks)
    made = waiting.assemble(featurizer.encoder.encode(waiting.items))
    check_feature(featurizer.spec, made)
    return made


def by_hand(folder, frames):
    """What transformers' own preprocessor and whole model give; pictures have the right size."""
    import transformers as hf

    plain = json.loads((folder / "preprocessor_config.json").read_text())
    plain |= {"do_resize": False, "do_center_crop": False}
    processor = hf.CLIPImageProcessorPil(**plain)
    inputs = processor(images=list(frames), return_tensors="pt")
    model = hf.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        if model.config.model_type in {"clip", "siglip"}:
            seen = model.vision_model(**inputs)
            projected = getattr(model, "visual_projection", lambda pooled: pooled)
            return seen, projected(seen.pooler_output).numpy()
        return model(**inputs), None


@pytest.mark.parametrize("kind", IMAGE)
def test_vectors_are_those_of_transformers_by_hand(folders, kind):
    shown = pictures(5)
    seen, projected = by_hand(folders[kind], shown.frames)
    first = seen.last_hidden_state[:, 0] if kind == "vit" else seen.pooler_output
    patches = seen.last_hidden_state[:, 0 if kind == "siglip" else 1 :]
    assert patches.shape[1] == 4
    wanted = {"model": first.numpy(), "mean": patches.mean(dim=1).numpy()}
    wanted |= {"projected": projected} if kind == "clip" else {}
    for pool, vectors in wanted.items():
        made = feature(build("image-encoder", model=str(folders[kind]), pool=pool), shown)
        np.testing.assert_allclose(made.values, vectors, atol=CLOSE)
        assert made.times.tolist() == shown.times.tolist()


@pytest.mark.parametrize("kind", [*IMAGE, "video"])
def test_a_clip_does_not_depend_on_its_neighbours_in_the_batch(folders, kind):
    name = "video-encoder" if kind == "video" else "image-encoder"
    featurizer = build(name, model=str(folders[kind]), **({"hop": 2} if kind == "video" else {}))
    items = pending(featurizer, pictures(12)).items
    for item, encoded in zip(items, featurizer.encoder.encode(items), strict=True):
        np.testing.assert_allclose(encoded, featurizer.encoder.encode([item])[0], atol=CLOSE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_its_promise_beside_neighbours(folders, dtype):
    featurizer = build("image-encoder", model=str(folders["dinov2"]), dtype=dtype)
    items = pending(featurizer, pictures(6)).items
    for item, encoded in zip(items, featurizer.encoder.encode(items), strict=True):
        alone = featurizer.encoder.encode([item])[0]
        np.testing.assert_allclose(encoded, alone, atol=ATOL[dtype])


@pytest.mark.media
def test_pictures_of_a_film_reach_the_model_in_their_colours(folders, tmp_path):
    """A red and a blue film: by hand from flat pictures, within what a codec changes."""
    featurizer = build("image-encoder", model=str(folders["vit"]), fps=5)
    for colour in ((200, 30, 30), (30, 30, 200)):
        frames = [np.full((32, 48, 3), colour, dtype=np.uint8)] * 10
        path = tmp_path / f"{colour[0]}.mp4"
        encode(path, frames=frames, fps=10, samples=None, rate_hz=16_000)
        clip = Clip(key="a", id="a", media=str(path), media_digest="")
        with Decoder() as decoder:
            (outcome,) = extract(clip, path, [featurizer], decoder)
        assert len(outcome.feature.values) == 5
        right = np.broadcast_to(np.array(colour, np.uint8), (1, 16, 16, 3))
        here, there = (by_hand(folders["vit"], each)[0] for each in (right, right[..., ::-1]))
        away = [
            np.abs(outcome.feature.values[0] - each.last_hidden_state[0, 0].numpy()).max()
            for each in (here, there)
        ]
        assert away[0] < 0.05 < 5 * away[0] + 0.05 < away[1]


def test_the_size_of_pictures_is_the_preprocessors(folders, tmp_path):
    assert build("image-encoder", model=str(folders["dinov2"])).wants.size == 16
    own = checkpoints.copied(folders["dinov2"], tmp_path / "own")
    plain = json.loads((own / "preprocessor_config.json").read_text())
    for more, size in [
        ({"crop_size": 24}, 24),
        ({"do_center_crop": False}, 18),
        ({"do_center_crop": False, "size": {"height": 8, "width": 8}}, 8),
    ]:
        checkpoints.write(own, "preprocessor_config.json", {**plain, **more})
        assert build("image-encoder", model=str(own)).wants.size == size
    for wrong in (
        {"crop_size": {"height": 8, "width": 16}},
        {"do_center_crop": False, "size": None},
    ):
        checkpoints.write(own, "preprocessor_config.json", {**plain, **wrong})
        with pytest.raises(ValueError, match="wanted one whole number, a square's"):
            build("image-encoder", model=str(own))


@pytest.mark.parametrize("kind", ["clip", "siglip", "vit", "video"])
def test_pictures_of_another_size_than_the_model_takes_are_refused(folders, tmp_path, kind):
    own = checkpoints.copied(folders[kind], tmp_path / "own")
    plain = json.loads((own / "preprocessor_config.json").read_text())
    plain |= {"do_center_crop": False, "size": 24}
    checkpoints.write(own, "preprocessor_config.json", plain)
    name, more = ("video-encoder", {"hop": 4}) if kind == "video" else ("image-encoder", {})
    with pytest.raises(ValueError, match=r"makes pictures of 24 pixels, and config.json wants 16"):
        build(name, model=str(own), **more)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("vit", {"pool": "projected"}, "pool is 'projected', which CLIP alone has, not vit"),
        ("vit", {"pool": "max"}, "pool is 'max'; wanted model, mean, projected"),
        ("vit", {"fps": 0}, "fps is 0; wanted"),
        ("video", {}, "model_type is 'videomae'; wanted is one of clip"),
    ],
)
def test_a_wrong_setting_is_refused(folders, kind, settings, said):
    with pytest.raises(ValueError, match=said):
        build("image-encoder", model=str(folders[kind]), **settings)


def test_without_pictures_a_clip_is_empty_and_with_too_many_too_long(folders, monkeypatch):
    monkeypatch.setattr(image_encoder, "MAX_BYTES", 5 * 16 * 16 * 3)
    for featurizer in (
        build("image-encoder", model=str(folders["vit"])),
        build("video-encoder", model=str(folders["video"]), hop=4),
    ):
        with pytest.raises(BadClipError, match="empty: there is no picture"):
            pending(featurizer)
        assert pending(featurizer, pictures(5)).items
        with pytest.raises(BadClipError, match=r"too_long: 8 pictures take .* lower fps"):
            pending(featurizer, pictures(4), pictures(4))


# Video.


def test_windows_are_those_of_transformers_by_hand(folders):
    import transformers as hf

    folder, shown = folders["video"], pictures(9)
    made = feature(build("video-encoder", model=str(folder), hop=3), shown)
    plain = json.loads((folder / "preprocessor_config.json").read_text())
    mean, deviation = (np.array(plain[each]) for each in ("image_mean", "image_std"))
    model = hf.VideoMAEModel.from_pretrained(folder).eval()
    wanted = []
    for begin in (0, 3, 5):  # the last one ends with the clip
        window = (shown.frames[begin : begin + 4] / 255 - mean) / deviation
        pixels = torch.from_numpy(window.transpose(0, 3, 1, 2)).float().unsqueeze(0)
        with torch.inference_mode():
            wanted.append(model(pixels).last_hidden_state[0].mean(dim=0).numpy())
    np.testing.assert_allclose(made.values, wanted, atol=CLOSE)
    np.testing.assert_allclose(made.times, [[0, 0.8], [0.6, 1.4], [1.0, 1.8]])


def test_a_short_film_is_filled_up_with_its_last_picture(folders):
    featurizer = build("video-encoder", model=str(folders["video"]), hop=4)
    short = pictures(2)
    made = feature(featurizer, short)
    full = VideoChunk(times=pictures(4).times, frames=short.frames[[0, 1, 1, 1]])
    np.testing.assert_allclose(made.values, feature(featurizer, full).values, atol=CLOSE)
    assert made.times.tolist() == [[0.0, 0.4]]


@given(pictures=st.integers(1, 200), window=st.integers(1, 20), share=st.floats(0.05, 1))
def test_windows_leave_no_picture_out_and_end_with_the_clip(pictures, window, share):
    hop = max(1, int(window * share))
    made = windows_of(pictures, window, hop)
    assert {at for each in made for at in each} >= set(range(pictures))
    assert made[-1].stop == max(window, pictures)
    begins = [each.start for each in made]
    assert all(0 < b - a <= hop for a, b in itertools.pairwise(begins))
    assert len(made) == 1 + max(0, -(-(pictures - window) // hop))


def test_a_hop_that_leaves_pictures_out_is_refused(folders):
    with pytest.raises(ValueError, match="hop is 5; wanted 1 to 4, its window"):
        build("video-encoder", model=str(folders["video"]), hop=5)
