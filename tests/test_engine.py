"""Steps, weights and checkpoints of the engine, on one rank in process and on two in children."""

import errno
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from training import checkpoint
from training.batch import Sample, collate
from training.checkpoint import CheckpointError, DamagedCheckpointError
from training.deepspeed_json import ds_config
from training.engine import BEST, Engine, check_settings
from training.losses import clip_losses
from training.models import build
from training.order import global_batches, rank_view
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
    replace(RECIPE, zero=2, offload="optimizer"),
    replace(RECIPE, zero=3, clip_norm=0.05),
    replace(RECIPE, zero=3, offload="all"),
]
ROUNDED = [replace(RECIPE, zero=zero, precision="bf16") for zero in (0, 1, 2, 3)]


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


@pytest.mark.parametrize("recipe", VARIANTS, ids=lambda each: f"zero{each.zero}-{each.offload}")
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
    engine.save(tmp_path, len(BATCHES), {}, {})
    again = Engine(after, recipe)
    again.load(checkpoint.standing(tmp_path)[0])
    assert furthest(again.weights(), engine.weights()) == 0
    engine.close()
    again.close()


@pytest.mark.parametrize("kind", ["mmlatch", "mult", "msaf"])
def test_models_take_the_same_steps_with_their_weights_split(kind):
    found = []
    for zero in (0, 3):
        torch.manual_seed(0)
        recipe = replace(RECIPE, model=ModelSettings(kind=kind, streams=tuple(WIDTHS)), zero=zero)
        engine = Engine(build(recipe.model, WIDTHS, 1), recipe)
        steps(engine, BATCHES[:1])
        found.append(engine.weights())
        engine.close()
    assert furthest(*found) < 1e-6


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


def test_clipping_is_always_said():
    for recipe in VARIANTS:
        settings = ds_config(recipe, world=2, micro=2)
        assert settings["gradient_clipping"] == (recipe.clip_norm or 0.0)
        check_settings(settings)


@pytest.mark.parametrize(
    ("place", "key", "found"),
    [
        ((), "gradient_cliping", "no setting 'gradient_cliping'.*did you mean 'gradient_clipping'"),
        (("zero_optimization",), "stages", "refuses 'zero_optimization'.*stages"),
        (("zero_optimization", "offload_optimizer"), "pinned", "offload_optimizer.pinned"),
        (("bf16",), "on", "refuses 'bf16'"),
    ],
)
def test_a_misspelt_key_is_an_error_at_any_depth(place, key, found):
    settings = ds_config(VARIANTS[2], world=2, micro=2)
    inner = settings
    for name in place:
        inner = inner[name]
    inner[key] = 1
    with pytest.raises(ValueError, match=found):
        check_settings(settings)


def test_bf16_begins_as_the_other_stages_do():
    found = []
    for recipe in (ROUNDED[0], ROUNDED[1]):
        engine = Engine(model(), replace(recipe, weight_decay=0.5, learning_rate=0.1))
        found.append(engine.weights())
        steps(engine, BATCHES[:1])
        found.append(engine.weights())
        engine.close()
    assert furthest(found[0], found[2]) == 0
    assert furthest(found[1], found[3]) < 1e-3


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
    folder = tmp_path_factory.mktemp("checkpoints")
    engine = Engine(model(), RECIPE)
    steps(engine, BATCHES[:2])
    engine.save(folder, 2, {"position": 2}, engine.weights())
    steps(engine, BATCHES[2:])
    last = engine.weights()
    engine.close()
    [only] = checkpoint.standing(folder)
    return only, last


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


def test_a_checkpoint_holds_nothing_that_is_unpickled(saved):
    names = {path.name for path in saved[0].iterdir()}
    assert names == {"tensors-00000.safetensors", BEST, checkpoint.MARKER}


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
    before = engine.weights()
    with pytest.raises(DamagedCheckpointError, match=victim.name):
        engine.load(folder)
    assert furthest(engine.weights(), before) == 0
    engine.close()


def test_a_checkpoint_of_another_recipe_is_refused(saved):
    engine = Engine(model(), replace(RECIPE, learning_rate=1e-4))
    with pytest.raises(CheckpointError, match="another recipe"):
        engine.load(saved[0])
    engine.close()


def test_a_full_disk_is_one_sentence_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
    engine = Engine(model(), RECIPE)
    steps(engine, BATCHES[:1])
    engine.save(tmp_path, 1, {"position": 1}, {})
    good = checkpoint.digests(tmp_path)

    def full(tensors, path):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match=r"step 2: .*No space left.*make room") as raised:
        engine.save(tmp_path, 2, {"position": 2}, {})
    assert "\n" not in str(raised.value)
    assert f"the last good one is {tmp_path / 'step-000000001'}" in str(raised.value)
    assert checkpoint.digests(tmp_path) == good
    engine.close()


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_real_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=256k", "none", small], check=True)
    try:
        engine = Engine(model(), RECIPE)
        steps(engine, BATCHES[:1])
        engine.save(small, 1, {"position": 1}, {})
        filler = small / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        with pytest.raises(
            CheckpointError, match=r"step 2: .*the last good one is .*step-000000001"
        ):
            engine.save(small, 2, {"position": 2}, {})
        assert {path.name for path in small.iterdir()} == {"step-000000001", "filler"}
        filler.unlink()
        engine.save(small, 2, {"position": 2}, {})
        assert engine.load(small / "step-000000002")[0] == {"position": 2}
        engine.close()
    finally:
        subprocess.run(["/bin/umount", small], check=True)


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_goes_on_on_any_number(tmp_path):
    """Of two ranks that accumulate: as plain PyTorch, to the same bits on two, close on one."""
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in (0, 1)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    for index, recipe in enumerate([*VARIANTS, *ROUNDED]):
        found = torch.load(tmp_path / f"{index}.pt", weights_only=True)
        if recipe.precision == "fp32":
            assert furthest(found["whole"], plain_weights(recipe, BATCHES)) < 1e-6
        assert furthest(found["resumed"], found["whole"]) == 0, recipe
        alone = Engine(model(), recipe)
        [folder] = checkpoint.standing(tmp_path / f"run-{index}")
        assert alone.load(folder)[0] == {"position": 2}
        steps(alone, BATCHES[2:])
        near = 1e-6 if recipe.precision == "fp32" else 5e-3
        assert furthest(alone.weights(), found["whole"]) < near, recipe
        alone.close()


def _as_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for index, recipe in enumerate([*VARIANTS, *ROUNDED]):
        runs = folder / f"run-{index}"
        engine = Engine(model(), recipe)
        steps(engine, BATCHES[:2], rank, 2)
        engine.save(runs, 2, {"position": 2}, {})
        steps(engine, BATCHES[2:], rank, 2)
        whole = engine.weights()
        engine.close()
        again = Engine(model(), recipe)
        # Rank 1 sees another folder: rank 0 alone reads.
        again.load(checkpoint.standing(runs)[0] if rank == 0 else folder / "elsewhere")
        steps(again, BATCHES[2:], rank, 2)
        resumed = again.weights()
        again.close()
        assert rank == 0 or whole == resumed == {}  # no copy of the whole where nobody asks for it
        if rank == 0:
            torch.save({"whole": whole, "resumed": resumed}, folder / f"{index}.pt")
    # A rank that leaves first breaks the connections under the other, which then aborts.
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    _as_rank(int(sys.argv[1]), Path(sys.argv[2]))
