"""The networks over whole pictures, sound and joints, alone and fused: sizes and laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.batch import FusionBatch, Stream
from training.missing import dropped, without
from training.models import build
from training.models.fixed_length import evenly, first
from training.models.pictures import MEAN, STD, Pictures
from training.models.resnext3d import Grouped
from training.recipe import ModelSettings, Task
from training.recipes import named

MOOD = Task(kind="classes", label="mood", classes=("sad", "glad"))
READS = {
    "resnext3d": ("video",),
    "sound_cnn": ("audio",),
    "msaf_ravdess": ("video", "audio"),
    "i3d": ("video",),
    "hcn": ("skeleton",),
    "msaf_ntu": ("video", "skeleton"),
}
FUSED = ["msaf_ravdess", "msaf_ntu"]
SCORERS = {"msaf_ravdess": ("video.fc", "audio.fc"), "msaf_ntu": ("video.logits", "skeleton.fc8")}

# Pixels of 224 x 224, 13 MFCC, 25 joints of two persons: what the published networks are given.
PAPER = {"video": 224 * 224 * 3, "audio": 13, "skeleton": 2 * 25 * 4}

# Pictures of 8 x 8, four joints of two persons, and networks as narrow as they can be.
WIDTHS = {"video": 8 * 8 * 3, "audio": 5, "skeleton": 2 * 4 * 4}
TINY = {
    "resnext3d": {"frames": 6, "width": 4, "cardinality": 2},
    "sound_cnn": {"steps": 28, "width": 6},
    "msaf_ravdess": {
        "frames": 6,
        "video_width": 4,
        "cardinality": 2,
        "steps": 28,
        "audio_width": 6,
    },
    "i3d": {"frames": 18, "width": 0.06},
    "hcn": {"steps": 16, "joints": 4, "width": 32},
    "msaf_ntu": {
        "frames": 18,
        "video_width": 0.06,
        "steps": 16,
        "joints": 4,
        "skeleton_width": 32,
    },
}


def tiny(kind, outputs=3, **more):
    torch.manual_seed(0)
    chosen = ModelSettings(kind=kind, streams=READS[kind], settings={**TINY[kind], **more})
    return build(chosen, WIDTHS, outputs)


def published(kind, outputs):
    with torch.device("meta"):
        return build(ModelSettings(kind=kind, streams=READS[kind]), PAPER, outputs)


def random_batch(seed, *, clips=3, missing=(), widths=WIDTHS):
    """Clips of several lengths, with holes in them; `missing` are pairs of stream and clip."""
    draw = torch.Generator().manual_seed(seed)
    streams = {}
    for name, width in widths.items():
        steps = int(torch.randint(3, 40, (), generator=draw))
        lengths = torch.randint(1, steps + 1, (clips,), generator=draw)
        mask = torch.arange(steps) < lengths[:, None]
        mask &= (torch.rand(clips, steps, generator=draw) >= 0.2) | (torch.arange(steps) == 0)
        for stream, clip in missing:
            if stream == name:
                mask[clip] = False
        values = torch.rand(clips, steps, width, generator=draw)
        values = (255 * values).floor() if name == "video" else values
        streams[name] = Stream(values * mask[..., None], mask)
    return batch_of(streams)


def batch_of(streams):
    clips = len(next(iter(streams.values())).mask)
    keys = tuple(f"clip-{row}" for row in range(clips))
    return FusionBatch(streams=streams, target=None, weight=torch.ones(clips), keys=keys)


def changed(batch, change):
    return batch_of({n: Stream(change(s.values), change(s.mask)) for n, s in batch.streams.items()})


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("kind", "classes", "wanted"),
    [
        ("resnext3d", 8, 25_882_056),
        ("sound_cnn", 8, 34_024),
        ("msaf_ravdess", 8, 25_940_724),
        ("i3d", 60, 12_348_764),
        ("hcn", 60, 1_062_652),
        ("msaf_ntu", 60, 13_547_400),
    ],
)
def test_networks_are_as_large_as_the_published_ones(kind, classes, wanted):
    assert count(published(kind, classes)) == wanted


@pytest.mark.parametrize(
    ("kind", "classes", "wanted"),
    [("msaf_ravdess", 8, [5_356, 19_288]), ("msaf_ntu", 60, [19_568, 116_416])],
)
def test_fusion_modules_are_as_large_as_the_published_ones(kind, classes, wanted):
    model = published(kind, classes)
    assert [count(model.msaf1), count(model.msaf2)] == wanted


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("msaf_ravdess", [[(1024, 4, 14, 14), (32, 208)], [(2048, 2, 7, 7), (64, 26)]]),
        (
            "msaf_ntu",
            [[(832, 4, 7, 7), (128, 4, 4), (128, 4, 4)], [(1024, 4, 7, 7), (512,)]],
        ),
    ],
)
def test_what_is_fused_has_the_published_shapes(kind, wanted):
    model = published(kind, 8).eval()
    found = []
    for module in (model.msaf1, model.msaf2):
        module.register_forward_pre_hook(lambda _module, given: found.append(given[0]))
    steps = {"video": 75, "audio": 250, "skeleton": 90}
    with torch.device("meta"):
        streams = {
            name: Stream(torch.zeros(2, steps[name], PAPER[name]), torch.ones(2, steps[name]) > 0)
            for name in READS[kind]
        }
        outputs = model(batch_of(streams))
    assert outputs.shape == (2, 8)
    assert [[tuple(x.shape[1:]) for x in given] for given in found] == wanted


@given(seed=st.integers(0, 10_000), wanted=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_steps_lie_evenly_over_the_valid_ones_of_each_clip(seed, wanted):
    stream = random_batch(seed).streams["audio"]
    found = evenly(stream, wanted)
    for clip in range(3):
        valid = [step for step in range(stream.mask.shape[1]) if stream.mask[clip, step]]
        for i in range(wanted):
            middle = math.floor((i + 0.5) * len(valid) / wanted)
            assert torch.equal(found[clip, i], stream.values[clip, valid[middle]])


@given(seed=st.integers(0, 10_000), wanted=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_the_first_valid_steps_of_each_clip_are_taken_and_nothing_after_them(seed, wanted):
    stream = random_batch(seed).streams["audio"]
    found = first(stream, wanted)
    for clip in range(3):
        valid = stream.values[clip][stream.mask[clip]][:wanted]
        assert torch.equal(found[clip, : len(valid)], valid)
        assert (found[clip, len(valid) :] == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_rows_of_pixels_scaled_by_colour(channels):
    pixels = torch.arange(2 * 4 * 5 * 5 * channels).remainder(256).view(2, 4, 5, 5, channels)
    stream = Stream(pixels.flatten(2).float(), torch.ones(2, 4, dtype=torch.bool))
    found, there = Pictures("video", 25 * channels, 4)(batch_of({"video": stream}))
    assert found.shape == (2, 3, 4, 5, 5)
    assert there.all()
    for colour in range(3):
        own = pixels[..., colour % channels] / 255
        torch.testing.assert_close(found[:, colour], (own - MEAN[colour]) / STD[colour])


@pytest.mark.parametrize("kind", TINY)
@given(seed=st.integers(0, 10_000), more=st.integers(1, 9))
@settings(max_examples=4, deadline=None)
def test_more_padding_changes_no_output(kind, seed, more):
    model, batch = tiny(kind).eval(), random_batch(seed, missing=[("audio", 1), ("skeleton", 2)])

    def longer(x):
        filler = x.new_full((len(x), more, *x.shape[2:]), 0 if x.dtype == torch.bool else 9)
        return torch.cat([x, filler], 1)

    with torch.no_grad():
        torch.testing.assert_close(
            model(changed(batch, longer)), model(batch), atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("kind", TINY)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=4, deadline=None)
def test_batch_order_permutes_outputs_and_does_nothing_else(kind, seed):
    model, batch = tiny(kind).eval(), random_batch(seed, missing=[("video", 1)])
    with torch.no_grad():
        outputs = model(batch)
        permuted = model(changed(batch, lambda x: x[[2, 0, 1]]))
        alone = model(changed(batch, lambda x: x[2:]))
    torch.testing.assert_close(permuted, outputs[[2, 0, 1]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, outputs[2:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("clips", [0, 1, 3])
def test_missing_streams_give_finite_outputs_and_gradients_everywhere(kind, clips):
    model = tiny(kind).train()
    missing = [(name, clip) for name in WIDTHS for clip in range(clips)]
    outputs = model(random_batch(3, missing=missing))
    outputs.square().sum().backward()
    assert outputs.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (outputs[:clips] == 0).all()


@pytest.mark.parametrize("kind", FUSED)
def test_a_stream_that_is_taken_away_or_dropped_is_one_that_was_never_there(kind):
    model, batch = tiny(kind).eval(), random_batch(11)
    for row, name in enumerate(READS[kind]):
        empty = Stream(torch.zeros(3, 1, WIDTHS[name]), torch.zeros(3, 1, dtype=torch.bool))
        own = batch_of({each: batch.streams[each] for each in READS[kind]})
        draws = torch.full((3, 2), 0.9)
        draws[1, row] = 0.1
        with torch.no_grad():
            lacking = model(batch_of({**batch.streams, name: empty}))
            torch.testing.assert_close(model(without(batch, [name])), lacking)
            some = model(dropped(own, 0.5, draws))
            torch.testing.assert_close(some[1], lacking[1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(some[[0, 2]], model(own)[[0, 2]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", TINY)
def test_half_precision_runs(kind):
    model, batch = tiny(kind).eval(), random_batch(12, missing=[("audio", 1)])
    with torch.no_grad():
        wanted = model(batch)
        halved = model.to(torch.bfloat16)(batch.to("cpu", torch.bfloat16))
    assert halved.dtype == torch.bfloat16
    torch.testing.assert_close(halved.float(), wanted, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", FUSED)
def test_a_clip_that_lacks_a_stream_has_the_scores_of_the_other_alone(kind):
    video, other = READS[kind]
    model = tiny(kind).eval()
    batch = random_batch(5, missing=[(video, 0), (other, 1)])
    with torch.no_grad():
        before = model(batch)
        model.get_submodule(SCORERS[kind][1]).bias += 8.0
        after = model(batch)
    share = 1.0 if kind == "msaf_ravdess" else 0.5
    torch.testing.assert_close(after[0], before[0] + 8.0)
    torch.testing.assert_close(after[1], before[1])
    torch.testing.assert_close(after[2], before[2] + share * 8.0)


def test_actions_are_trained_by_the_loss_of_each_branch():
    assert named("msaf_ntu", MOOD, READS["msaf_ntu"]).model.settings["objective"] == "branches"
    model = tiny("msaf_ntu", objective="both").eval()
    batch = random_batch(5, missing=[("video", 0), ("skeleton", 1)])
    asked = []

    def criterion(outputs):
        asked.append(outputs)
        return outputs.square().sum(1)

    found = model.losses(batch, criterion)
    mean, video, skeleton = asked
    torch.testing.assert_close(mean, model(batch))
    torch.testing.assert_close(mean[2], (video[2] + skeleton[2]) / 2)
    torch.testing.assert_close(mean[0], skeleton[0])
    assert list(found) == ["fused", "video", "skeleton"]
    assert [name for name, loss in found.items() if loss[0] == 0] == ["video"]
    assert [name for name, loss in found.items() if loss[1] == 0] == ["skeleton"]
    torch.testing.assert_close(found["video"][2], video[2].square().sum())
    assert list(tiny("msaf_ntu").losses(batch, criterion)) == ["fused"]


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("silenced", [0, 1])
def test_each_branch_weighs_the_other(kind, silenced):
    model, batch = tiny(kind).eval(), random_batch(6)
    for module in (model.msaf1, model.msaf2):
        module.attention.weight.data *= 20
    # What its input still changes, a branch without a say of its own changes through the other.
    torch.nn.init.zeros_(model.get_submodule(SCORERS[kind][silenced]).weight)
    name = READS[kind][silenced]
    stream = batch.streams[name]
    swapped = Stream(stream.values.flip(0), stream.mask.flip(0))
    with torch.no_grad():
        outputs = [model(each) for each in (batch, batch_of({**batch.streams, name: swapped}))]
    assert not torch.allclose(*outputs, atol=1e-6)


def test_a_person_who_is_never_seen_changes_nothing():
    model, batch = tiny("hcn").eval(), random_batch(7)
    stream = batch.streams["skeleton"]
    values = stream.values.view(*stream.mask.shape, 2, 4, 4).clone()
    values[:, :, 1, :, 3] = 0.0
    other = values.clone()
    other[:, :, 1, :, :3] = 5.0
    with torch.no_grad():
        outputs = [
            model(batch_of({"skeleton": Stream(each.flatten(2), stream.mask)}))
            for each in (values, other)
        ]
    torch.testing.assert_close(*outputs)


def test_skeletons_are_seen_from_the_first_persons_middle():
    model, batch = tiny("hcn").eval(), random_batch(8)
    stream = batch.streams["skeleton"]
    values = stream.values.view(*stream.mask.shape, 2, 4, 4).clone()
    values[..., :3] += torch.tensor([1.0, -2.0, 3.0])
    moved = Stream(values.flatten(2), stream.mask)
    with torch.no_grad():
        torch.testing.assert_close(
            model(batch_of({"skeleton": moved})), model(batch), atol=1e-5, rtol=1e-5
        )


def test_a_mirrored_clip_is_mirrored_in_all_its_pictures():
    model = tiny("resnext3d", flip=0.5).train()
    batch = random_batch(9, clips=8)
    plain, _ = model.pictures(batch)
    torch.manual_seed(1)
    shown, _ = model.see(batch)
    mirrored = [torch.equal(a, b.flip(3)) for a, b in zip(shown, plain, strict=True)]
    straight = [torch.equal(a, b) for a, b in zip(shown, plain, strict=True)]
    assert all(a != b for a, b in zip(mirrored, straight, strict=True))
    assert any(mirrored)
    assert any(straight)
    assert torch.equal(model.eval().see(batch)[0], plain)


@pytest.mark.parametrize(("groups", "channels"), [(8, 4), (6, 3), (4, 5), (3, 16), (1, 7)])
def test_groups_that_are_computed_together_give_what_they_give_apart(groups, channels):
    torch.manual_seed(0)
    ours = Grouped(groups * channels, groups * 2, 3, stride=2, padding=1, groups=groups).double()
    x = torch.randn(2, groups * channels, 5, 4, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for outputs in (ours(x), torch.nn.Conv3d.forward(ours, x)):
        weights = [x, *ours.parameters()]
        found.append([outputs, *torch.autograd.grad(outputs.square().sum(), weights)])
    for together, apart in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", TINY)
def test_networks_overfit_eight_clips(kind):
    straight = {"flip": 0.0} if kind in {"resnext3d", "msaf_ravdess"} else {}
    model = tiny(kind, outputs=2, **straight).train()
    batch = random_batch(10, clips=8)
    target = torch.tensor([0, 1] * 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        losses.append(torch.nn.functional.cross_entropy(model(batch), target))
        losses[-1].backward()
        optimizer.step()
    # Dropout goes on, so single steps are uneven.
    assert torch.stack(losses[:5]).mean() > 0.5
    assert torch.stack(losses[-20:]).mean() < 0.1


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", FUSED)
def test_networks_of_the_published_width_overfit_eight_clips(kind):
    recipe = named(kind, Task(kind="classes", label="x", classes=tuple("ab")), READS[kind])
    torch.manual_seed(0)
    widths = {**PAPER, "video": 32 * 32 * 3}
    model = build(recipe.model, widths, 2).train()
    batch = random_batch(10, clips=8, widths=widths)
    target = torch.tensor([0, 1] * 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    halves = [changed(batch, lambda x: x[:4]), changed(batch, lambda x: x[4:])]
    losses = []
    while len(losses) < 200 and (len(losses) < 8 or sum(losses[-8:]) > 8 * 0.05):
        for half, wanted in zip(halves, target.split(4), strict=True):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(half), wanted)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert len(losses) < 200


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("resnext3d", {"cardinality": 3}, "width is 4 and cardinality is 3; the cardinality must"),
        ("resnext3d", {"frames": 0}, "frames is 0"),
        ("msaf_ravdess", {"steps": 11}, "steps is 11.*take at least 12"),
        ("sound_cnn", {"width": 0}, "width is 0"),
        ("sound_cnn", {"dropout": 1.0}, "dropout is 1.0"),
        ("i3d", {"width": 0.0}, "width is 0.0"),
        ("hcn", {"steps": 30}, "steps is 30; it must be a multiple of 16"),
        ("hcn", {"width": 16}, "width is 16; it must be a multiple of 32"),
        ("hcn", {"centre": 4}, "centre is 4; wanted a joint, 0 to 3"),
        ("hcn", {"axes": 4}, "axes is 4"),
        ("hcn", {"joints": 5}, "'skeleton' is 32 wide; wanted 20 for each person"),
        ("msaf_ntu", {"floor": 2.0}, "floor is 2.0"),
    ],
)
def test_settings_that_do_not_fit_say_why(kind, more, message):
    with pytest.raises(ValueError, match=message):
        tiny(kind, **more)


def test_streams_that_do_not_fit_say_why():
    with pytest.raises(ValueError, match="'msaf_ntu' reads pixels and joints, in this order"):
        build(ModelSettings(kind="msaf_ntu", streams=("video",)), WIDTHS, 2)
    with pytest.raises(ValueError, match="'audio' is 5 wide; wanted the pixels of a square"):
        build(ModelSettings(kind="i3d", streams=("audio",)), WIDTHS, 2)
    wide = Stream(torch.zeros(1, 2, 75), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="'video' is 75 wide; the model was built for 192"):
        tiny("i3d")(batch_of({"video": wide}))
