"""Steps, weights and checkpoints of the engine, on one rank in process and on two in children."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from training import checkpoint
from training.batch import Sample, collate
from training.checkpoint import CheckpointError
from training.data import global_batches, rank_view
from training.engine import BEST, Engine, clip_losses, ds_config
from training.models import build
from training.recipe import ModelSettings, Recipe, Task

WIDTHS = {"text": 5, "audio": 3}
KEYS = [f"clip{i:02d}" for i in range(22)]
TASK = Task(kind="regression", label="score")
MODEL = ModelSettings(
    kind="late_fusion",
    streams=tuple(WIDTHS),
    settings={"hidden": 8, "encoder_dropout": 0.0, "fusion_dropout": 0.0},
)
RECIPE = Recipe(
    name="late_fusion", model=MODEL, task=TASK, global_batch=8, micro_batch=2, learning_rate=1e-3
)
VARIANTS = [
    replace(RECIPE, zero=0, clip_norm=None),
    replace(RECIPE, zero=1, clip_norm=0.05),
    replace(RECIPE, zero=2),
    replace(RECIPE, zero=3, clip_norm=0.05),
]


def sample(key, weight=1.0):
    random = np.random.default_rng(int(key[4:]))
    steps = int(random.integers(2, 6))
    values = {name: random.normal(size=(steps, width)) for name, width in WIDTHS.items()}
    return Sample(
        key=key,
        values={name: each.astype(np.float32) for name, each in values.items()},
        valid=dict.fromkeys(WIDTHS),
        target=float(values["text"].sum() + random.normal()),
        weight=weight,
    )


def batch(slots):
    return collate([sample(key, weight) for key, weight in slots], WIDTHS)


def model():
    torch.manual_seed(3)
    return build(MODEL, WIDTHS, 1)


def steps(engine, batches, rank=0, world=1):
    for each in batches:
        view = rank_view(each, rank=rank, world=world, micro=engine.micro)
        engine.step([batch(slots) for slots in view], sum(weight for _, weight in each))


def plain_weights(recipe, batches):
    """The slow, obvious twin: the whole global batch at once, in plain PyTorch."""
    twin = model()
    optimizer = torch.optim.AdamW(
        twin.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    for each in batches:
        whole = batch(each)
        losses = clip_losses(twin(whole), whole.target, recipe)
        loss = (losses * whole.weight).sum() / whole.weight.sum()
        optimizer.zero_grad()
        loss.backward()
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), recipe.clip_norm)
        optimizer.step()
    return twin.state_dict()


def furthest(ours, theirs):
    assert set(ours) == set(theirs)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


BATCHES = global_batches(KEYS, RECIPE.global_batch)


@pytest.mark.parametrize("recipe", VARIANTS, ids=lambda recipe: f"zero{recipe.zero}")
def test_the_loss_is_the_weighted_sum_over_the_global_batch_as_in_plain_pytorch(recipe):
    engine = Engine(model(), recipe)
    steps(engine, BATCHES)
    assert furthest(engine.weights(), plain_weights(recipe, BATCHES)) < 1e-6
    engine.close()


@pytest.mark.parametrize("zero", [0, 3])
def test_a_model_with_losses_of_its_own_is_trained_by_their_sum(tmp_path, zero):
    chosen = {**MODEL.settings, "objective": "both"}
    deciding = replace(MODEL, kind="decision_average", settings=chosen)
    recipe = replace(RECIPE, model=deciding, zero=zero, clip_norm=None)
    fresh = [build(deciding, WIDTHS, 1) for _ in range(3)]
    for each in fresh[1:]:
        each.load_state_dict(fresh[0].state_dict())
    engine, twin, after = Engine(fresh[0], recipe), fresh[1], fresh[2]
    steps(engine, BATCHES)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=recipe.weight_decay)
    for each in BATCHES:
        whole = batch(each)
        outputs = [twin(whole), *(model(whole) for model in twin.models)]
        losses = sum(clip_losses(output, whole.target, recipe) for output in outputs)
        optimizer.zero_grad()
        ((losses * whole.weight).sum() / whole.weight.sum()).backward()
        optimizer.step()
    assert furthest(engine.weights(), twin.state_dict()) < 1e-6
    whole = batch(BATCHES[0])
    torch.testing.assert_close(engine.predict(whole), twin(whole).detach())
    engine.save(tmp_path, {}, {})
    again = Engine(after, recipe)
    again.load(tmp_path)
    assert furthest(again.weights(), engine.weights()) == 0
    engine.close()
    again.close()


def test_the_loss_of_several_labels_is_their_mean_cross_entropy():
    outputs = torch.tensor([[0.0, 2.0], [-1.0, 3.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    found = clip_losses(outputs, target, replace(RECIPE, loss="bce"))
    sure = torch.sigmoid(outputs)
    slow = -(target * sure.log() + (1 - target) * (1 - sure).log()).mean(dim=1)
    torch.testing.assert_close(found, slow)
    assert clip_losses(outputs.bfloat16(), target, replace(RECIPE, loss="bce")).dtype == (
        torch.float32
    )


def test_clipping_is_always_said_and_every_setting_is_known_to_deepspeed():
    from deepspeed.runtime import constants, precision_config
    from deepspeed.runtime.zero import config as zero

    known = {
        value
        for module in (constants, precision_config, zero)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    for recipe in VARIANTS:
        settings = ds_config(recipe, world=2, micro=2)
        assert settings["gradient_clipping"] == (recipe.clip_norm or 0.0)
        assert set(settings) <= known


def test_bf16_trains_and_gives_float32_weights():
    engine = Engine(model(), replace(RECIPE, precision="bf16"))
    before = engine.weights()
    steps(engine, BATCHES)
    after = engine.weights()
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    assert 0 < furthest(after, before) < 1
    assert engine.predict(batch(BATCHES[0])).dtype == torch.float32
    engine.close()


def test_starting_an_engine_compiles_nothing():
    Engine(model(), RECIPE).close()
    from deepspeed.comm import comm

    assert comm.cdb.shm_comm_op is None


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    engine = Engine(model(), RECIPE)
    steps(engine, BATCHES[:2])
    engine.save(folder, {"position": 2}, engine.weights())
    steps(engine, BATCHES[2:])
    last = engine.weights()
    engine.close()
    return folder, last


def test_a_loaded_checkpoint_goes_on_to_the_same_bits(saved):
    folder, last = saved
    torch.manual_seed(99)
    engine = Engine(build(MODEL, WIDTHS, 1), RECIPE)
    state, best = engine.load(folder)
    assert state == {"position": 2}
    assert furthest(engine.weights(), best) == 0
    steps(engine, BATCHES[2:])
    assert furthest(engine.weights(), last) == 0
    engine.close()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted", "no marker", "bad marker"])
def test_a_damaged_checkpoint_is_refused_by_name(saved, tmp_path, damage):
    folder = tmp_path / "copy"
    for path in saved[0].rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(saved[0])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    assert checkpoint.problem_of(folder) == ""
    victim = folder / (checkpoint.MARKER if "marker" in damage else BEST)
    content = bytearray(victim.read_bytes())
    match damage:
        case "truncated" | "bad marker":
            victim.write_bytes(content[:-9])
        case "flipped":
            content[-1] ^= 1
            victim.write_bytes(content)
        case _:
            victim.unlink()
    engine = Engine(model(), RECIPE)
    with pytest.raises(CheckpointError, match=victim.name):
        engine.load(folder)
    engine.close()


def test_a_checkpoint_of_another_recipe_is_refused(saved):
    engine = Engine(model(), replace(RECIPE, learning_rate=1e-4))
    with pytest.raises(CheckpointError, match="another recipe"):
        engine.load(saved[0])
    engine.close()


@pytest.mark.slow
def test_two_ranks_with_accumulation_equal_plain_pytorch(tmp_path):
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in (0, 1)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    for index, recipe in enumerate(VARIANTS):
        found = torch.load(tmp_path / f"{index}.pt", weights_only=True)
        assert furthest(found, plain_weights(recipe, BATCHES)) < 1e-6
    alone = Engine(model(), VARIANTS[1])
    with pytest.raises(CheckpointError, match="split over 2 ranks"):
        alone.load(tmp_path / "split")
    alone.close()


def _as_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for index, recipe in enumerate(VARIANTS):
        engine = Engine(model(), recipe)
        steps(engine, BATCHES, rank, 2)
        weights = engine.weights()
        if rank == 0:
            torch.save(weights, folder / f"{index}.pt")
        if recipe.zero == 1:
            engine.save(folder / "split", {}, weights)
        engine.close()
    # A rank that leaves first breaks the connections under the other, which then aborts.
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    _as_rank(int(sys.argv[1]), Path(sys.argv[2]))
