"""Models, engine and encoders on a card: what the CPU gives, within the rounding of float32.

Run by `make gpu`. FUSELINE_TEST_DEVICE=cpu runs the models' part on the CPU, to try the tests
themselves where there is no card.
"""

import contextlib
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from featurizers.catalog import build as featurizer
from featurizers.spec import AudioChunk
from featurizers.torch_encoder import ATOL, TorchEncoder
from tests import checkpoints, test_engine, test_insert_msaf, test_models, test_video_networks
from training import checkpoint
from training.engine import Engine
from training.models import build
from training.models.attention import Sight, attend
from training.models.dropout import dropout, plus_dropped, relu_dropped
from training.models.insert_msaf import insert_msaf
from training.models.msaf import MsafSettings
from training.recipe import ModelSettings

DEVICE = os.environ.get("FUSELINE_TEST_DEVICE", "cuda")
# cuBLAS reads it when it starts; without it its sums may change from run to run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"
    ),
]

NAMES = [*test_models.MODELS, *test_video_networks.TINY]
OUTPUTS, GRADIENTS = 2e-5, 2e-4  # of the largest, in float32
BF16 = 5e-2  # of the norm: 8 bits of mantissa, through all layers


@pytest.fixture(autouse=True)
def _exact():
    """No TF32, which rounds the factors of every product to 10 bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def model_of(name, **more):
    if name in test_video_networks.TINY:
        return test_video_networks.tiny(name, **more).eval()
    return test_models.make(name, **more)


def batch_for(name, seed=0, clips=5):
    module = test_video_networks if name in test_video_networks.TINY else test_models
    return module.random_batch(seed, clips=clips)


def altered(name, batch, change):
    module = test_video_networks if name in test_video_networks.TINY else test_models
    return module.changed(batch, change)


def near(found, wanted, tolerance):
    found, wanted = found.detach().cpu(), wanted.detach().cpu()
    assert found.shape == wanted.shape
    assert torch.isfinite(found).all()
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_those_of_the_cpu(name):
    model, batch = model_of(name), batch_for(name)
    outputs, gradients = [], []
    for device in ("cpu", DEVICE):
        model, there = model.to(device), batch.to(device)
        model.zero_grad()
        outputs.append(model(there))
        outputs[-1].square().sum().backward()
        gradients.append(
            # Copies: moving the model moves its gradients, too, those found on the CPU among them.
            {n: p.grad.cpu().clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    near(outputs[1], outputs[0], OUTPUTS)
    assert set(gradients[0]) == set(gradients[1])
    largest = max(float(grad.abs().max()) for grad in gradients[0].values())
    assert largest > 0
    apart = {
        key: float((gradients[1][key] - gradients[0][key]).abs().max()) for key in gradients[0]
    }
    assert max(apart.values()) <= GRADIENTS * largest, {
        key: each / largest for key, each in apart.items() if not each <= GRADIENTS * largest
    }


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing_and_order_is_kept(name):
    model, batch = model_of(name).to(DEVICE), batch_for(name).to(DEVICE)
    with torch.no_grad():
        wanted = model(batch)
        longer = altered(
            name,
            batch,
            lambda x: torch.cat([x, torch.zeros_like(x[:, :1]).repeat_interleave(3, 1)], 1),
        )
        near(model(longer.to(DEVICE)), wanted, OUTPUTS)
        order = torch.tensor([3, 0, 4, 1, 2], device=DEVICE)
        near(model(altered(name, batch, lambda x: x[order]).to(DEVICE)), wanted[order], OUTPUTS)


@pytest.mark.parametrize("name", NAMES)
def test_under_autocast_outputs_are_finite_and_near_and_gradients_finite(name):
    model, batch = model_of(name).to(DEVICE), batch_for(name).to(DEVICE)
    wanted = model(batch).detach()
    with torch.autocast(DEVICE, torch.bfloat16):
        found = model(batch)
    found.float().square().sum().backward()
    assert float((found.detach() - wanted).norm()) <= BF16 * float(wanted.norm())
    if DEVICE == "cpu":
        return  # torch 2.13's strided convolutions leave some of a gradient in bfloat16 unwritten
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", NAMES)
def test_in_training_the_seed_decides(name):
    model, batch = model_of(name).to(DEVICE).train(), batch_for(name).to(DEVICE)
    found = []
    with torch.no_grad():
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            found.append(model(batch))
    near(found[1], found[0], 1e-6)
    if name not in ("lmf", "lmf, all read", "tfn", "resnext3d", "sound_cnn"):
        assert not torch.equal(found[2], found[0])


@pytest.mark.parametrize("name", ["mmlatch", "mmlatch, static", "mult, feedback"])
def test_explained_masks_are_those_of_the_cpu(name):
    model, batch = model_of(name), batch_for(name)
    wanted = model.explain(batch)
    found = model.to(DEVICE).explain(batch.to(DEVICE))
    for stream, mask in wanted.masks.items():
        near(found.masks[stream], mask, OUTPUTS)
        near(found.means[stream], wanted.means[stream], OUTPUTS)


@pytest.mark.parametrize("name", ["mult", "mult, no future mask"])
def test_streams_of_unequal_lengths(name):
    model = model_of(name)
    batch = test_models.random_batch(0)
    streams = {
        key: type(stream)(stream.values.repeat(1, at, 1), stream.mask.repeat(1, at))
        for at, (key, stream) in enumerate(batch.streams.items(), start=1)
    }
    batch = replace(batch, streams=streams)
    wanted = model(batch)
    near(model.to(DEVICE)(batch.to(DEVICE)), wanted, OUTPUTS)


# Compiled


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("mmlatch", "inductor"),
        ("mult, no future mask", "inductor"),
        ("msaf", "inductor"),
        ("late_fusion", "aot_eager"),
        ("early_fusion", "aot_eager"),
        ("decision_average", "aot_eager"),
        ("tfn", "aot_eager"),
        ("lmf", "aot_eager"),
        ("hcn", "aot_eager"),
        ("resnext3d", "aot_eager"),
        ("msaf_ravdess", "aot_eager"),
    ],
)
def test_compiled_models_give_what_they_give_uncompiled(name, backend):
    torch.compiler.reset()
    model, batch = model_of(name).to(DEVICE), batch_for(name).to(DEVICE)
    found = []
    for compiled in (False, True):
        if compiled:
            model.compile(backend=backend)
        model.zero_grad()
        outputs = model(batch)
        outputs.square().sum().backward()
        weight = next(p for p in model.parameters() if p.grad is not None)
        found.append((outputs, weight.grad.clone()))
    near(found[1][0], found[0][0], OUTPUTS)
    near(found[1][1], found[0][1], GRADIENTS)


# Dropout and attention


@pytest.mark.parametrize("kind", ["plain", "plus", "relu", "attention"])
def test_dropout_drops_its_share_anew_each_time_and_repeats_with_the_seed(kind):
    share, ones = 0.3, torch.ones(64, 4, 16, 16, device=DEVICE)

    def made():
        if kind == "plain":
            return dropout(ones, share, training=True)
        if kind == "plus":
            return plus_dropped(torch.zeros_like(ones), ones, share, training=True)
        if kind == "relu":
            return relu_dropped(ones, share, training=True)
        # All keys alike, and values that keep the weights apart.
        unit = torch.eye(16, device=DEVICE).expand_as(ones)
        return 16 * attend(torch.zeros_like(ones), ones, unit, Sight(None, None), share)

    torch.manual_seed(5)
    first, second = made(), made()
    torch.manual_seed(5)
    assert torch.equal(made(), first)
    assert not torch.equal(first, second)
    for found in (first, second):
        dropped = (found == 0).float().mean()
        assert abs(float(dropped) - share) < 0.01
        kept = found[found != 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("size", [1, 6, 8, 10, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_that_of_a_slow_twin(size, dtype):
    draw = torch.Generator().manual_seed(size)
    query, key, value = (
        torch.randn(6, 3, steps, size, generator=draw).to(dtype).to(DEVICE).requires_grad_()
        for steps in (7, 9, 9)
    )
    seen = torch.rand(6, 7, 9, generator=draw) < 0.6
    seen[0, 0] = False
    sight = Sight.of(seen.to(DEVICE), dtype)
    found = attend(query, key, value, sight, 0.0)
    assert not found[0, :, 0].any()
    found.float().square().sum().backward()

    slow = [x.detach().double().cpu().requires_grad_() for x in (query, key, value)]
    scores = slow[0] @ slow[1].mT / size**0.5
    weights = scores.masked_fill(~seen.unsqueeze(1), -1e30).softmax(3)
    wanted = weights @ slow[2] * seen.any(2)[:, None, :, None]
    wanted.square().sum().backward()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    near(found.double(), wanted, tolerance)
    for mine, other in zip((query, key, value), slow, strict=True):
        if size > 1 or mine is value:
            near(mine.grad.double(), other.grad, 5 * tolerance)


# Networks in step


@contextlib.contextmanager
def _aside():
    """Work on a stream of its own, where there are streams."""
    if DEVICE != "cuda":
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.parametrize("on_a_stream", [False, True])
def test_networks_fused_in_step_give_what_they_give_on_the_cpu(on_a_stream):
    settings = MsafSettings(block_dropout=0.0)
    torch.manual_seed(0)
    fused = insert_msaf(test_insert_msaf.two(), test_insert_msaf.AT, settings)
    inputs = test_insert_msaf.some(clips=16)
    found = []
    for device in ("cpu", DEVICE):
        there = {name: x.to(device) for name, x in inputs.items()}
        fused = fused.to(device)
        fused.zero_grad()
        with _aside() if on_a_stream and device != "cpu" else contextlib.nullcontext():
            outputs = fused(there)
            sum(y.square().sum() for y in outputs.values()).backward()
        grads = [p.grad.cpu().clone() for p in fused.parameters() if p.grad is not None]
        found.append((outputs, grads))
    for name in inputs:
        near(found[1][0][name], found[0][0][name], OUTPUTS)
    largest = max(float(grad.abs().max()) for grad in found[0][1])
    for mine, other in zip(found[1][1], found[0][1], strict=True):
        assert float((mine - other).abs().max()) <= GRADIENTS * largest


def test_networks_in_step_run_on_the_stream_and_under_the_autocast_of_the_caller():
    seen = []

    class Nosy(test_insert_msaf.Sounds):
        def forward(self, x):
            stream = torch.cuda.current_stream() if DEVICE == "cuda" else None
            seen.append((stream, self.conv1(x).dtype))
            return super().forward(x)

    branches = {"video": test_insert_msaf.Pictures(), "audio": Nosy()}
    fused = insert_msaf(branches, test_insert_msaf.AT[1:]).eval().to(DEVICE)
    inputs = {name: x.to(DEVICE) for name, x in test_insert_msaf.some().items()}
    with _aside(), torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        stream = torch.cuda.current_stream() if DEVICE == "cuda" else None
        fused(inputs)
    assert seen == [(stream, torch.bfloat16)]


# The engine


@pytest.mark.parametrize("recipe", test_engine.VARIANTS, ids=lambda recipe: f"zero{recipe.zero}")
def test_the_engine_takes_the_steps_of_plain_pytorch_on_the_cpu(recipe):
    engine = Engine(test_engine.model(), recipe)
    test_engine.steps(engine, test_engine.BATCHES)
    plain = test_engine.plain_weights(recipe, test_engine.BATCHES)
    assert test_engine.furthest(engine.weights(), plain) < 2e-5
    engine.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_loaded_checkpoint_goes_on_to_the_same_bits(zero, precision, tmp_path):
    recipe = replace(test_engine.RECIPE, zero=zero, precision=precision)
    engine = Engine(test_engine.model(), recipe)
    before = engine.weights()
    test_engine.steps(engine, test_engine.BATCHES[:2])
    kept = engine.weights()
    assert 0 < test_engine.furthest(kept, before) < 0.1
    engine.save(tmp_path, 2, {"position": 2}, kept)
    test_engine.steps(engine, test_engine.BATCHES[2:])
    last = engine.weights()
    engine.close()
    torch.manual_seed(99)
    again = Engine(build(test_engine.MODEL, test_engine.WIDTHS, 1), recipe)
    state, best = again.load(checkpoint.standing(tmp_path)[0])
    assert state == {"position": 2}
    assert test_engine.furthest(best, kept) == 0
    assert test_engine.furthest(again.weights(), kept) == 0
    test_engine.steps(again, test_engine.BATCHES[2:])
    assert test_engine.furthest(again.weights(), last) == 0
    assert again.predict(test_engine.batch(test_engine.BATCHES[0])).dtype == torch.float32
    again.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mmlatch", {"hidden": 8}),
        ("mult", {"width": 8, "heads": 2, "layers": 1}),
        ("msaf", {"hidden": 8}),
        ("early_fusion", {"hidden": 8}),
    ],
)
def test_the_loss_falls_on_the_engine(kind, settings, precision):
    streams = tuple(test_engine.WIDTHS)
    chosen = ModelSettings(kind=kind, streams=streams, settings=settings)
    recipe = replace(
        test_engine.RECIPE, model=chosen, precision=precision, learning_rate=1e-2, micro_batch=8
    )
    torch.manual_seed(0)
    engine = Engine(build(chosen, test_engine.WIDTHS, 1), recipe)
    batch = test_engine.batch(test_engine.BATCHES[0])
    losses = [float(engine.step([batch], 8.0)) for _ in range(25)]
    engine.close()
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])


# Encoders


def encoded(kind, folder, name, monkeypatch):
    """Items of several lengths through an encoder on a CPU and on the card."""
    from tests import test_image_encoder, test_speech_encoder, test_text_encoder

    if kind == "speech-encoder":
        made = featurizer(kind, model=str(folder), window_s=2.0, context_s=0.0)
        items = [
            test_speech_encoder.pending(made, AudioChunk(0.0, checkpoints.hum(s, seed))).items[0]
            for seed, s in enumerate([1.5, 0.7, 1.31, 1.3])
        ]
    elif kind == "text-encoder":
        made = featurizer(kind, model=str(folder), unit="pieces")
        spoken = ["good day", "so bad", "really unbelievable it 's good", "day"]
        items = [
            item
            for text in spoken
            for item in test_text_encoder.pending(made, test_text_encoder.words_of(text)).items
        ]
    else:
        more = {"hop": 2} if name == "video" else {}
        made = featurizer(kind, model=str(folder), **more)
        items = test_image_encoder.pending(made, test_image_encoder.pictures(9)).items
    found = []
    for device in ("cpu", DEVICE):
        monkeypatch.setattr(TorchEncoder, "device", property(lambda _self, device=device: device))
        made.encoder._model = None
        made.encoder._batch = None
        found.append(made.encoder.encode(items))
    return found


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("speech-encoder", name) for name in checkpoints.SPEECH),
        *(("text-encoder", name) for name in checkpoints.TEXT),
        *(("image-encoder", name) for name in checkpoints.IMAGE),
        ("video-encoder", "video"),
    ],
)
def test_encoders_keep_their_promise_on_the_card(kind, name, tmp_path, monkeypatch):
    folder = tmp_path / name
    if name == "video":
        checkpoints.video(folder)
    else:
        getattr(checkpoints, kind.split("-")[0])(folder, name)
    cpu, there = encoded(kind, folder, name, monkeypatch)
    for mine, other in zip(there, cpu, strict=True):
        np.testing.assert_allclose(mine, other, atol=ATOL["float32"])
