"""Branches that were trained alone begin a fused network; afterwards their files are not needed."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from featurizers.clip import Clip
from featurizers.dataset import write_clips
from featurizers.extract import Outcome
from featurizers.manifest import commit
from featurizers.shards import job_id, write_shard
from featurizers.spec import Dim, Feature, FeatureSpec
from featurizers.store import LocalStore
from tracking.run import MemoryRun
from training.data import load
from training.loop import fit
from training.models import build
from training.predict import Predictor, load_model
from training.recipe import Task
from training.recipes import named
from training.samples import to_sample
from training.session import LocalSession
from training.start import begin, check, pinned

MOOD = Task(kind="classes", label="mood", classes=("sad", "glad"))
WIDTHS = {"video": 8 * 8 * 3, "audio": 5}
BRANCH = {"frames": 4, "width": 4, "cardinality": 2, "flip": 0.0}
FUSED = {
    "frames": 4,
    "video_width": 4,
    "cardinality": 2,
    "flip": 0.0,
    "steps": 20,
    "audio_width": 4,
}


def feature(random, name):
    steps = 6 if name == "video" else 30
    values = random.integers(0, 256, size=(steps, WIDTHS[name]))
    edges = np.linspace(0.0, 2.0, steps + 1)
    dtype = np.uint8 if name == "video" else np.float32
    return Feature(values.astype(dtype), np.stack([edges[:-1], edges[1:]], axis=1))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Twelve clips of pixels and sound; the columns' fingerprints by stream, and the features."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    clips = [
        Clip(
            key=f"k{i:02d}",
            id=f"{i}",
            media="",
            media_digest="",
            seconds=2.0,
            split=split,
            labels={"mood": "glad" if i % 2 else "sad"},
        )
        for i, split in enumerate(["train"] * 8 + ["valid"] * 2 + ["test"] * 2)
    ]
    write_clips(root, clips)
    columns, features = {}, {}
    for name, width in WIDTHS.items():
        spec = FeatureSpec(
            name=name,
            version=1,
            modality="stream",
            reads=("words",),
            dims=tuple(Dim(f"d{i}") for i in range(width)),
            rate_hz=None,
            dtype="uint8" if name == "video" else "float32",
        )
        features[name] = [feature(random, name) for _ in clips]
        found = [Outcome(state="sample", feature=each) for each in features[name]]
        job = job_id(spec, clips)
        record = write_shard(LocalStore(root), 0, job, spec, clips=clips, outcomes=found)
        commit(root, spec, "plan", [record])
        columns[name] = spec.fingerprint
    return root, columns, features


def trained(made, folder, name, streams, settings, **overrides):
    """A predictor of one epoch."""
    root, columns, _ = made
    recipe = named(name, MOOD, streams, settings, epochs=1, zero=0, **overrides)
    data = load(root, columns, recipe)
    outcome = fit(recipe, data, LocalSession(folder / "checkpoints"), MemoryRun())
    Predictor.save(
        folder / "predictor",
        recipe=recipe,
        specs=data.specs,
        normaliser=data.normaliser,
        fallback=data.fallback,
        weights=outcome.weights,
    )
    return folder / "predictor"


def fused(**more):
    torch.manual_seed(0)
    recipe = named("msaf_ravdess", MOOD, list(WIDTHS), {**FUSED, **more})
    return build(recipe.model, WIDTHS, 2)


def branch(path, outputs=2, **more):
    """A file of fresh weights of the video branch."""
    torch.manual_seed(1)
    recipe = named("resnext3d", MOOD, ["video"], {**BRANCH, **more})
    save_file(build(recipe.model, WIDTHS, outputs).state_dict(), path)
    return path


def test_raw_streams_reach_the_model_as_they_are_and_unpooled(made):
    root, columns, features = made
    recipe = named("msaf_ravdess", MOOD, list(WIDTHS), FUSED)
    data = load(root, columns, recipe)
    keys = data.train.keys
    batch = data.train.batch([(key, 1.0) for key in keys])
    pixels = np.stack([features["video"][int(key[1:])].values for key in keys])
    assert np.array_equal(batch.streams["video"].values.numpy(), pixels.astype(np.float32))
    assert batch.streams["video"].values.max() > 250
    assert batch.streams["audio"].values.shape == (8, 30, 5)
    assert batch.streams["audio"].values.abs().max() <= 5
    assert list(data.normaliser.mean) == ["audio"]


def test_steps_that_are_not_pooled_lie_in_order_of_time(made):
    _, _, features = made
    found = features["audio"][0]
    shuffled = Feature(found.values[::-1], found.times[::-1])
    recipe = named("sound_cnn", MOOD, ["audio"])
    clip = Clip(key="a", id="a", media="", media_digest="")
    sample = to_sample(clip, {"audio": shuffled}, recipe.pooling, None)
    assert np.array_equal(sample.values["audio"], found.values)
    assert sample.valid["audio"] is None


def test_a_branch_begins_with_the_weights_of_its_file_and_nothing_else_does(tmp_path):
    path = branch(tmp_path / "face.safetensors")
    start = pinned({"video": "face.safetensors"}, tmp_path)
    model, fresh = fused(), fused()
    begin(model, start)
    file = load_file(path)
    assert set(file) == set(model.video.state_dict())
    for name, tensor in model.video.state_dict().items():
        assert torch.equal(tensor, file[name])
    assert not torch.equal(model.video.conv1.weight, fresh.video.conv1.weight)
    for name, tensor in fresh.state_dict().items():
        if not name.startswith("video."):
            assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.slow
def test_a_fused_network_is_trained_from_its_branches_and_then_needs_no_file_of_them(
    made, tmp_path
):
    face = trained(made, tmp_path / "face", "resnext3d", ["video"], BRANCH)
    voice = trained(made, tmp_path / "voice", "sound_cnn", ["audio"], {"steps": 20, "width": 4})
    start = pinned({"video": "face/predictor", "audio": "voice/predictor"}, tmp_path)
    # At a rate of 0 the weights stay those that it began with.
    both = trained(
        made, tmp_path / "both", "msaf_ravdess", list(WIDTHS), FUSED, start=start, learning_rate=0.0
    )
    weights = load_file(both / "weights.safetensors")
    for part, folder in (("video", face), ("audio", voice)):
        alone = load_file(folder / "weights.safetensors")
        learned = dict(getattr(fused(), part).named_parameters())
        assert learned
        for name in learned:
            assert torch.equal(weights[f"{part}.{name}"], alone[name])
    shutil.rmtree(tmp_path / "face")
    shutil.rmtree(tmp_path / "voice")
    model = load_model(both)
    assert torch.equal(model.state_dict()["video.fc.weight"], weights["video.fc.weight"])


@pytest.mark.parametrize("load_them", [begin, check])
def test_weights_that_do_not_fit_are_refused_with_the_reason(tmp_path, load_them):
    path = branch(tmp_path / "face.safetensors")
    good = pinned({"video": str(path)}, tmp_path)["video"]
    other = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, other)
    (tmp_path / "text.safetensors").write_text("not a file of tensors")

    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "numbers.pth").read_bytes()[:200])
    torch.save({"run": Harmful(tmp_path / "ran")}, tmp_path / "code.pth")

    def pin(name):
        return pinned({"video": name}, tmp_path)["video"]

    for start, message in [
        ({"vidoe": good}, "no part 'vidoe'; its parts are video, audio, msaf1, msaf2"),
        ({"": good}, "no part ''"),
        ({"video": str(path)}, "stands without its digest; write FILE#SHA256"),
        ({"video": f"{tmp_path}/none#{'0' * 64}"}, "there is no file .*none"),
        ({"video": f"{path}#{'0' * 64}"}, "not the file that the recipe names.*000000000000 is"),
        (
            {"video": pin("text.safetensors")},
            "neither a safetensors file nor a checkpoint of PyTorch",
        ),
        ({"video": pin("other.safetensors")}, r"it lacks \d\d\d tensors of the part \(bn1.bias, "),
        (
            {"video without fcc": good},
            "start.video without fcc: there is no 'fcc' in it, only pict",
        ),
        ({"video": pin("code.pth")}, "neither a safetensors file nor a checkpoint"),
        ({"video": pin("cut.pth")}, "neither a safetensors file nor a checkpoint"),
        ({"video": pin("numbers.pth")}, "holds no tensors by name"),
        ({"audio": good}, r"has 3\d\d that the part does not know"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_them(fused(), start)
    branch(path, outputs=5)
    start = pinned({"video": "face.safetensors"}, tmp_path)
    with pytest.raises(
        ValueError, match=r"fc.weight is \[5, 128\] in .*face.safetensors and \[2, 128\]"
    ):
        load_them(fused(), start)
    load_them(fused(), {"video without fc": start["video"]})
    assert not (tmp_path / "ran").exists()


class Harmful:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_all_but_the_classifier_begins_with_a_file_of_other_classes(tmp_path):
    path = branch(tmp_path / "face.safetensors", outputs=5)
    start = pinned({"video without fc, layer4": str(path)}, tmp_path)
    model, fresh, file = fused(), fused().state_dict(), load_file(path)
    begin(model, start)
    left = ("video.fc.", "video.layer4.")
    for name, tensor in model.state_dict().items():
        began = name.startswith("video.") and not name.startswith(left)
        wanted = file[name.removeprefix("video.")] if began else fresh[name]
        assert torch.equal(tensor, wanted), name


def test_checkpoints_as_people_have_them_are_read(tmp_path):
    torch.manual_seed(1)
    recipe = named("resnext3d", MOOD, ["video"], BRANCH)
    trained = build(recipe.model, WIDTHS, 2)
    state = {
        f"module.{name}": tensor
        for name, tensor in trained.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save({"epoch": 3, "arch": "resnext", "state_dict": state}, tmp_path / "kinetics.pth")
    model = build(recipe.model, WIDTHS, 2)
    start = pinned({"model": "kinetics.pth"}, tmp_path)
    check(model, start)
    begin(model, start)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_file_that_changed_is_another_recipe(tmp_path):
    recipes = []
    for outputs in (2, 3):
        path = branch(tmp_path / "face.safetensors", outputs)
        start = pinned({"video": "face.safetensors"}, tmp_path)
        assert pinned(start, tmp_path) == start
        assert start["video"].startswith(f"{path}#")
        recipes.append(named("msaf_ravdess", MOOD, list(WIDTHS), FUSED, start=start))
    assert recipes[0].digest != recipes[1].digest
    assert replace(recipes[0], start={}).digest != recipes[0].digest
    with pytest.raises(ValueError, match=r"start.video: there is no file .*missing; give"):
        pinned({"video": "missing"}, tmp_path)
