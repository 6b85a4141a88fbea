"""Every fusion model: its laws, the authors' numbers, its settings."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import test_video_networks
from tests.golden_numbers import close, golden, part
from training.batch import FusionBatch, Sample, Stream, collate
from training.models import KINDS, build
from training.models.mmlatch import MMLatch, from_reference
from training.recipe import ModelSettings

PAPER = {"text": 300, "audio": 74, "visual": 35}
SMALL = {"text": 6, "audio": 4, "visual": 3}

# One of each kind, of each mask and of each number of streams: what the laws are tried on.
MODELS = {
    "mmlatch": ModelSettings(kind="mmlatch", streams=("text", "audio", "visual")),
    "mmlatch, static": ModelSettings(
        kind="mmlatch", streams=("visual", "text", "audio"), settings={"mask": "static"}
    ),
    "mmlatch, no mask": ModelSettings(
        kind="mmlatch", streams=("text", "audio"), settings={"mask": "none"}
    ),
    "mmlatch, two": ModelSettings(
        kind="mmlatch", streams=("audio", "text"), settings={"pooling": "sum"}
    ),
    "mmlatch, four": ModelSettings(kind="mmlatch", streams=("text", "audio", "visual", "pose")),
    "mmlatch, some": ModelSettings(
        kind="mmlatch",
        streams=("text", "audio", "visual"),
        settings={"gives": "text", "receives": "audio, visual", "stage1_grad": False},
    ),
    "late_fusion": ModelSettings(kind="late_fusion", streams=("text", "audio", "visual")),
    "late_fusion, sum": ModelSettings(
        kind="late_fusion", streams=("text", "visual"), settings={"pooling": "sum"}
    ),
    "unimodal": ModelSettings(kind="unimodal", streams=("audio",)),
    "msaf": ModelSettings(
        kind="msaf", streams=("visual", "audio", "text"), settings={"floor": 0.2}
    ),
    "msaf, wide": ModelSettings(
        kind="msaf", streams=("text", "pose"), settings={"channels": "20, 3", "segments": 1}
    ),
    "mult": ModelSettings(
        kind="mult",
        streams=("text", "audio", "visual"),
        settings={"width": 6, "heads": 2, "layers": 2, "kernels": "1,3,5"},
    ),
    "mult, no future mask": ModelSettings(
        kind="mult",
        streams=("visual", "text"),
        settings={"width": 6, "heads": 3, "layers": 1, "future_mask": False},
    ),
    "mult, feedback": ModelSettings(
        kind="mult",
        streams=("text", "audio", "visual"),
        settings={"width": 4, "heads": 2, "layers": 1, "feedback": "sequence"},
    ),
    "mult, four": ModelSettings(
        kind="mult",
        streams=("text", "audio", "visual", "pose"),
        settings={"width": 4, "heads": 2, "layers": 1},
    ),
    "early_fusion": ModelSettings(kind="early_fusion", streams=("text", "audio", "visual")),
    "decision_average": ModelSettings(kind="decision_average", streams=("text", "audio", "pose")),
    "decision_product": ModelSettings(kind="decision_product", streams=("visual", "text")),
    "tfn": ModelSettings(kind="tfn", streams=("text", "audio", "visual"), settings={"vector": 3}),
    "lmf": ModelSettings(kind="lmf", streams=("text", "audio", "visual", "pose")),
    "lmf, all read": ModelSettings(
        kind="lmf", streams=("audio", "text"), settings={"recurrent": "all"}
    ),
}
WIDTHS = {**SMALL, "pose": 5}


def make(name, *, outputs=2, **more):
    torch.manual_seed(0)
    chosen = MODELS[name]
    size = {} if chosen.kind == "mult" else {"hidden": 5}
    wanted = {**size, **chosen.settings, **more}
    model = build(
        ModelSettings(kind=chosen.kind, streams=chosen.streams, settings=wanted), WIDTHS, outputs
    )
    return model.eval()


def random_batch(seed, *, clips=4, steps=7, widths=WIDTHS, missing=0.2):
    """Clips of several lengths, with holes, and some without a stream or without any."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, steps + 1, (clips,), generator=draw)
    lengths[0] = steps
    inside = torch.arange(steps) < lengths[:, None]
    streams = {}
    for name, width in widths.items():
        there = torch.rand(clips, 1, generator=draw) >= missing
        mask = inside & there & (torch.rand(clips, steps, generator=draw) >= 0.2)
        values = torch.randn(clips, steps, width, generator=draw) * mask[..., None]
        streams[name] = Stream(values, mask)
    keys = tuple(f"clip-{row}" for row in range(clips))
    return FusionBatch(streams=streams, target=None, weight=torch.ones(clips), keys=keys)


def changed(batch, change, keys=None):
    streams = {n: Stream(change(s.values), change(s.mask)) for n, s in batch.streams.items()}
    kept = keys or batch.keys
    return FusionBatch(streams=streams, target=None, weight=torch.ones(len(kept)), keys=kept)


def released_model(name, arrays, lengths):
    chosen = {
        "hidden": 8,
        "encoder_dropout": 0.0,
        "fusion_dropout": 0.0,
        "reference": True,
        "reference_lengths": lengths,
    }
    if name != "late_fusion":
        chosen |= {"mask": name.removeprefix("mmlatch_")}
        chosen |= {"mask_dropout": 0.0, "mask_rnn_dropout": 0.0}
    model = build(
        ModelSettings(
            kind=name.split("_s")[0], streams=("text", "audio", "visual"), settings=chosen
        ),
        {"text": 12, "audio": 7, "visual": 5},
        1,
    )
    model.load_state_dict(from_reference(part(arrays, "state/")))
    return model


def golden_batch(arrays):
    lengths = arrays["true_lengths/in/lengths"]
    mask = torch.arange(9) < lengths[:, None]
    streams = {
        name: Stream(arrays[f"in/{name}"].clone().requires_grad_(), mask)
        for name in ("text", "audio", "visual")
    }
    return FusionBatch(streams=streams, target=None, weight=torch.ones(4), keys=tuple("abcd"))


def listen(model):
    """What passes through a model: encoded streams by pass, masks, features, the pooled vector."""
    heard = {"encoded": [], "masks": {}}
    model.encoders.register_forward_hook(lambda _m, _i, out: heard["encoded"].append(out))
    model.head.crossing.register_forward_hook(lambda _m, _i, out: heard.update(att_fuser=out))
    model.head.reader.register_forward_hook(lambda _m, _i, out: heard.update(pooled=out))
    if isinstance(model, MMLatch):
        model.latch.register_forward_hook(lambda _m, _i, out: heard["masks"].update(out))
    return heard


@pytest.mark.parametrize("lengths", ["batch", "true"])
@pytest.mark.parametrize("name", ["mmlatch_sequence", "mmlatch_static", "late_fusion"])
def test_the_released_form_gives_the_numbers_of_the_authors_code(name, lengths):
    arrays = golden(name)
    model, batch = released_model(name, arrays, lengths), golden_batch(arrays)
    heard = listen(model)
    outputs = model(batch)
    loss = outputs.square().sum()
    loss.backward()

    wanted = part(arrays, "true_lengths/") if lengths == "true" else arrays
    close(outputs, wanted["out/pred"])
    close(loss, wanted["loss"])
    stages = ["h_"] if name == "late_fusion" else ["stage1_h_", "stage2_h_"]
    for stage, encoded in zip(stages, heard["encoded"], strict=True):
        for row, stream in enumerate(("text", "audio", "visual")):
            close(encoded[row], wanted[f"mid/{stage}{stream}"])
            if name != "late_fusion":
                close(heard["masks"][stream], wanted[f"mid/mask_{stream}"])
    close(heard["att_fuser"], wanted["mid/att_fuser"])
    close(heard["pooled"], wanted["mid/pooled"])
    for stream in batch.streams:
        close(batch.streams[stream].values.grad, wanted[f"grad_in/{stream}"])
    gradients = from_reference(part(wanted, "grad/"))
    for parameter, tensor in model.named_parameters():
        close(tensor.grad, gradients[parameter])


def test_the_released_names_are_known_or_refused():
    state = part(golden("late_fusion"), "state/")
    with pytest.raises(KeyError, match=r"encoder\.odd\.weight"):
        from_reference({**state, "encoder.odd.weight": torch.zeros(1)})


def test_the_released_form_drops_masks_even_in_evaluation():
    model = make("mmlatch", reference=True)
    batch = random_batch(0)
    assert not torch.equal(model(batch), model(batch))


@pytest.mark.parametrize("name", MODELS)
@given(seed=st.integers(0, 10_000), more=st.integers(1, 9))
@settings(max_examples=8, deadline=None)
def test_more_padding_changes_no_output(name, seed, more):
    model, batch = make(name), random_batch(seed)

    def longer(x):
        # What lies in the padding must not matter, so it is not 0 here.
        filler = x.new_full((len(x), more, *x.shape[2:]), 0 if x.dtype == torch.bool else 9)
        return torch.cat([x, filler], 1)

    with torch.no_grad():
        torch.testing.assert_close(
            model(changed(batch, longer)), model(batch), atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("name", MODELS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_batch_order_permutes_outputs_and_does_nothing_else(name, seed):
    model, batch = make(name), random_batch(seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        outputs = model(batch)
        permuted = model(changed(batch, lambda x: x[order]))
        alone = model(changed(batch, lambda x: x[order[:1]], batch.keys[:1]))
    torch.testing.assert_close(permuted, outputs[order], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(alone, outputs[order[:1]], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_clip_among_many_scores_as_alone(name):
    # With so many clips and rows other products, and groups of clips of like length, are computed.
    model, batch = make(name).double(), random_batch(7, clips=20, steps=40)
    batch = batch.to("cpu", torch.float64)
    with torch.no_grad():
        outputs = model(batch)
        for row in (0, 11, 19):
            alone = model(changed(batch, lambda x, at=row: x[at : at + 1], batch.keys[:1]))
            torch.testing.assert_close(alone, outputs[row : row + 1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("missing", [0.0, 0.6, 1.0])
def test_missing_streams_give_finite_outputs_and_gradients_everywhere(name, missing):
    model = make(name).train()
    batch = random_batch(3, missing=missing)
    outputs = model(batch)
    outputs.square().sum().backward()
    assert outputs.shape == (4, 2)
    assert outputs.isfinite().all()
    # DeepSpeed waits for the gradient of every parameter on every rank.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_clip_without_any_step_gets_the_bias():
    model = make("late_fusion")
    batch = changed(random_batch(0), torch.zeros_like)
    torch.testing.assert_close(model(batch), model.head.classifier.bias.expand(4, 2))


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_runs(name):
    model, batch = make(name), random_batch(1)
    wanted = model(batch)
    halved = model.to(torch.bfloat16)(batch.to("cpu", torch.bfloat16))
    assert halved.dtype == torch.bfloat16
    torch.testing.assert_close(halved.float(), wanted, atol=0.05, rtol=0.1)


def test_without_masks_mmlatch_is_late_fusion():
    state = make("late_fusion").state_dict()
    plain = make("mmlatch", mask="none")
    plain.load_state_dict(state)
    late = make("late_fusion")
    late.load_state_dict(state)
    batch = random_batch(2)
    assert torch.equal(plain(batch), late(batch))


def test_stage_one_can_be_left_out_of_the_gradient():
    batch = random_batch(4, missing=0.0)
    with_it, without = make("mmlatch"), make("mmlatch", stage1_grad=False)
    outputs = [model(batch) for model in (with_it, without)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.sum().backward()
    pairs = zip(with_it.encoders.parameters(), without.encoders.parameters(), strict=True)
    assert not all(torch.allclose(a.grad, b.grad) for a, b in pairs)
    pairs = zip(with_it.latch.parameters(), without.latch.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in pairs)


def test_only_chosen_streams_mask_and_are_masked():
    model, batch = make("mmlatch, some"), random_batch(5, missing=0.0)
    assert set(model.explain(batch).masks) == {"audio", "visual"}
    mute = dict(batch.streams)
    mute["visual"] = Stream(-mute["visual"].values, mute["visual"].mask)
    other = FusionBatch(streams=mute, target=None, weight=batch.weight, keys=batch.keys)
    assert torch.equal(model.explain(other).masks["audio"], model.explain(batch).masks["audio"])


def test_the_explanation_has_a_mask_for_each_feature_and_a_mean_for_each_word():
    model, batch = make("mmlatch"), random_batch(6)
    explained = model.explain(batch)
    assert list(explained.masks) == ["text", "audio", "visual"]
    for name, mask in explained.masks.items():
        stream = batch.streams[name]
        assert mask.shape == stream.values.shape
        assert ((mask[stream.mask] > 0.26) & (mask[stream.mask] < 0.74)).all()
        assert (mask[~stream.mask] == 0).all()
        torch.testing.assert_close(explained.means[name], mask.mean(2))
    with pytest.raises(ValueError, match="no masks"):
        make("mmlatch, no mask").explain(batch)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("kind", "chosen", "wanted"),
    [
        ("mmlatch", {}, 2_741_153),
        ("mmlatch", {"mask": "static"}, 1_716_419),
        ("mmlatch", {"mask": "none"}, 1_633_801),
        ("late_fusion", {}, 1_633_801),
    ],
)
def test_models_are_as_large_as_the_papers(kind, chosen, wanted):
    model = build(ModelSettings(kind=kind, streams=tuple(PAPER), settings=chosen), PAPER, 1)
    assert count(model) == wanted


def test_encoders_are_as_large_as_the_papers():
    model = build(ModelSettings(kind="late_fusion", streams=tuple(PAPER)), PAPER, 1)
    attention = model.encoders.attention.weight[0].numel()
    sizes = [count(lstm) + attention for lstm in model.encoders.lstms]
    assert sizes == [351_600, 170_800, 139_600]


def test_a_stream_that_the_longest_clips_lack_may_be_shorter():
    long = Sample(
        key="long",
        values={"text": np.ones((6, 6), np.float32), "audio": None, "visual": None},
        valid={},
    )
    short = Sample(
        key="short",
        values={name: np.ones((3, width), np.float32) for name, width in SMALL.items()},
        valid={},
    )
    model = make("mmlatch")
    with torch.no_grad():
        together = model(collate([long, short], SMALL))
        apart = [model(collate([sample], SMALL)) for sample in (long, short)]
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-6, rtol=1e-6)


def test_streams_on_several_time_bases_are_refused():
    sample = Sample(
        key="unpooled",
        values={"text": np.ones((3, 6), np.float32), "audio": np.ones((40, 4), np.float32)},
        valid={},
    )
    batch = collate([sample], {"text": 6, "audio": 4})
    with pytest.raises(ValueError, match=r"'text' has 3 steps, and clip 'unpooled'.*pooling"):
        make("mmlatch, two")(batch)


def test_a_batch_of_other_streams_is_refused():
    batch = random_batch(0)
    with pytest.raises(ValueError, match="no stream 'audio', only \\['text'\\]"):
        make("late_fusion")(
            FusionBatch(
                streams={"text": batch.streams["text"]},
                target=None,
                weight=batch.weight,
                keys=batch.keys,
            )
        )
    wide = {"audio": Stream(torch.zeros(4, 7, 40), torch.ones(4, 7, dtype=torch.bool))}
    with pytest.raises(ValueError, match="'audio' is 40 wide; the model was built for 4"):
        make("unimodal")(
            FusionBatch(streams=wide, target=None, weight=batch.weight, keys=batch.keys)
        )


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"hiden": 8}, "no setting 'hiden'; the nearest known one is 'hidden'"),
        ({"hidden": 0}, "hidden is 0"),
        ({"hidden": 8.5}, "hidden is 8.5; wanted a whole number"),
        ({"hidden": True}, "hidden is True; wanted a whole number"),
        ({"encoder_dropout": 1.0}, "encoder_dropout is 1.0"),
        ({"mask_dropout": -0.1}, "mask_dropout is -0.1"),
        ({"mask_dropout": "much"}, "wanted a number"),
        ({"mask": "sequential"}, "wanted 'sequence' or 'static' or 'none'"),
        ({"reference": 1}, "reference is 1; wanted true or false"),
        ({"reference_lengths": "true"}, "the fixed form always uses true lengths"),
        ({"gives": "text, video"}, "gives names 'video'"),
        ({"gives": 3}, "wanted a text"),
        ({"gives": "text", "receives": "text"}, "masks another"),
    ],
)
def test_settings_that_mmlatch_does_not_take_are_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        make("mmlatch", **chosen)


@pytest.mark.parametrize(
    ("settings_", "outputs", "message"),
    [
        (ModelSettings(kind="mmlach", streams=("text",)), 1, "nearest known one is 'mmlatch'"),
        (ModelSettings(kind="late_fusion", streams=("texts",)), 1, "nearest known one is 'text'"),
        (ModelSettings(kind="late_fusion", streams=()), 1, "one stream at least"),
        (ModelSettings(kind="late_fusion", streams=("text", "text")), 1, "each once"),
        (ModelSettings(kind="unimodal", streams=("text", "audio")), 1, "exactly one stream"),
        (ModelSettings(kind="mmlatch", streams=("text",)), 1, "two streams at least"),
        (ModelSettings(kind="unimodal", streams=("text",)), 0, "0 outputs"),
        (
            ModelSettings(kind="unimodal", streams=("text",), settings={"mask": "none"}),
            1,
            "'unimodal' has no setting 'mask'",
        ),
    ],
)
def test_models_that_cannot_be_built_say_why(settings_, outputs, message):
    with pytest.raises(ValueError, match=message):
        build(settings_, SMALL, outputs)


def test_the_laws_are_tried_on_every_kind():
    tried = {chosen.kind for chosen in MODELS.values()}
    assert tried | set(test_video_networks.TINY) == set(KINDS)
    assert not tried & set(test_video_networks.TINY)


def test_every_kind_can_be_built():
    # Those that read certain streams are built by their own tests.
    for kind in (name for name, each in KINDS.items() if not each.reads):
        streams = ("text",) if kind == "unimodal" else ("text", "audio")
        model = build(ModelSettings(kind=kind, streams=streams), SMALL, 3)
        assert model(random_batch(0)).shape == (4, 3)
