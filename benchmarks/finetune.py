"""Fine-tuning of speech, text and image encoders with a fusion model, by our engine.

The encoders have random weights: wav2vec 2.0, RoBERTa and ViT of the base size, more than 300
million parameters in all, under late fusion. Clips are made in memory: 4 s of sound, 8 pictures and
32 word pieces each. The speed is of whole optimizer steps, the first ones left out. The share of
the card's peak is of floating-point operations that torch's FlopCounterMode counts in one step
without DeepSpeed, recomputed activations left out; the peak is what its maker states for dense
bf16. Losses must be finite and fall, or the benchmark fails.

    python benchmarks/finetune.py --device cuda --size base --zero 0 2 3 --offload
    python benchmarks/finetune.py --device cpu --size toy --ranks 2
"""

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, multiprocessing

from tracking.provenance import git_commit, versions
from training.batch import FusionBatch, Sample, collate
from training.engine import Engine
from training.losses import clip_losses
from training.models import build
from training.recipe import EncoderSettings, ModelSettings, Recipe, Task

HOME = Path(__file__).resolve().parent.parent
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
"""Dense bf16, as NVIDIA's data sheets say; by a part of the card's name."""
FALL = 0.9
"""The mean of the last losses over the first one, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large encoders and clips are."""

    audio: Mapping[str, Any]
    text: Mapping[str, Any]
    video: Mapping[str, Any]
    side: int
    seconds: float
    pictures: int
    pieces: int
    batch: int
    steps: int


_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SIZES = {
    "base": Size(
        audio={},
        text={"vocab_size": 50265, "max_position_embeddings": 514, "pad_token_id": 1},
        video={},
        side=224,
        seconds=4.0,
        pictures=8,
        pieces=32,
        batch=32,
        steps=12,
    ),
    "toy": Size(
        audio={**_SMALL, "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16}
        | {"num_conv_pos_embedding_groups": 2},
        text={**_SMALL, "vocab_size": 100, "max_position_embeddings": 66, "pad_token_id": 1},
        video={**_SMALL, "image_size": 16, "patch_size": 8},
        side=16,
        seconds=0.5,
        pictures=2,
        pieces=6,
        batch=8,
        steps=8,
    ),
}


def main() -> None:
    """Measure and print."""
    told = _told()
    if told["device"] == "cuda" and torch.cuda.device_count() < told["ranks"]:
        raise SystemExit(
            f"{torch.cuda.device_count()} GPUs are seen, {told['ranks']} are wanted; give fewer "
            f"--ranks, or --device cpu"
        )
    variants = [(zero, "none") for zero in told["zero"]]
    if told["offload"]:
        variants.append((max(2, *told["zero"]), "optimizer"))
    with tempfile.TemporaryDirectory() as scratch:
        # Fresh processes for each variant: what one leaves on the card must not count for the next.
        found: list[dict[str, Any]] = []
        for zero, offload in variants:
            known = found[0]["operations"] if found else 0
            told |= {"stage": zero, "offload_to": offload, "operations": known}
            found.append(_variant(Path(scratch), told))
            _print(told, found)
    used = {**versions(["torch", "transformers", "deepspeed"]), "python": platform.python_version()}
    figures: dict[str, Any] = {"parameters_millions": found[0]["parameters"] / 1e6}
    for each in found:
        name = f"zero{each['zero']}" + ("_offload" if each["offload"] != "none" else "")
        for figure in ("samples_per_second", "peak_memory_gb", "peak_share", "first_loss", "loss"):
            if each[figure] is not None:
                figures[f"{name}_{figure}"] = round(each[figure], 4)
    about = {"commit": git_commit(HOME), "versions": used, "device": found[0]["device"]}
    about |= {name: told[name] for name in ("size", "ranks", "checkpointing")}
    print(json.dumps({"benchmark": "finetune", "figures": figures, **about}))
    for each in found:
        _check(each["losses"])


def _told() -> dict[str, Any]:
    """The arguments."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    arguments.add_argument("--size", choices=tuple(SIZES), default="toy")
    arguments.add_argument("--zero", type=int, nargs="+", default=[0, 2, 3], choices=range(4))
    arguments.add_argument("--offload", action="store_true", help="the last stage offloaded, too")
    arguments.add_argument("--ranks", type=int, default=1, help="GPUs, or processes on the CPU")
    arguments.add_argument("--checkpointing", action="store_true", help="recompute activations")
    arguments.add_argument("--steps", type=int, default=0, help="of the optimizer; 0: as the size")
    arguments.add_argument("--batch", type=int, default=0, help="clips of a rank; 0: as the size")
    return vars(arguments.parse_args())


def _print(told: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> None:
    """The line of the last one of `found`, at once: the next may take longer than there is."""
    each = found[-1]
    if len(found) == 1:
        print(
            f"{each['parameters'] / 1e6:.1f} M parameters on {told['ranks']} x "
            f"{each['device']}, {each['clips']} clips a step\n"
            "stage  offload    samples/s  ms/step  TFLOP/s/rank  of peak  memory GB  "
            "loss                seconds to the first step, of all"
        )
    share = "-" if each["peak_share"] is None else f"{each['peak_share']:.1%}"
    memory = "-" if each["peak_memory_gb"] is None else f"{each['peak_memory_gb']:.2f}"
    print(
        f"{each['zero']:>5}  {each['offload']:<9}  {each['samples_per_second']:>9.1f}  "
        f"{each['step_ms']:>7.0f}  {each['tflops']:>12.2f}  {share:>7}  {memory:>9}  "
        f"{each['first_loss']:.3f} -> {each['loss']:.3f}  "
        f"{each['start_s']:.1f}, {each['start_s'] + sum(each['took']):.1f}",
        flush=True,
    )


def _variant(scratch: Path, told: Mapping[str, Any]) -> dict[str, Any]:
    """What rank 0 found with one stage; each rank is a process of its own."""
    place = tempfile.mkdtemp(dir=scratch)
    arguments = (dict(told), place)
    multiprocessing.spawn(_rank, args=arguments, nprocs=told["ranks"])  # type: ignore[no-untyped-call]
    found: dict[str, Any] = json.loads(Path(place, "found.json").read_text())
    return found


def _rank(rank: int, told: Mapping[str, Any], place: str) -> None:
    world, cuda = told["ranks"], told["device"] == "cuda"
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    if cuda:
        torch.cuda.set_device(rank)
    else:
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    store = distributed.FileStore(f"{place}/store", world)
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        store=store,
        rank=rank,
        world_size=world,
        device_id=torch.device("cuda", rank) if cuda else None,
    )
    found = _measured(told, rank)
    if rank == 0:
        Path(place, "found.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def _measured(told: Mapping[str, Any], rank: int) -> dict[str, Any]:
    size, world, cuda = SIZES[told["size"]], told["ranks"], told["device"] == "cuda"
    share = told["batch"] or size.batch
    began = time.perf_counter()
    recipe = _recipe(size, share, told)
    torch.manual_seed(0)
    with torch.device(told["device"]):
        model = build(recipe.model, _widths(size), 1)
    parameters = sum(each.numel() for each in model.parameters())
    batch = collate([_clip(size, rank * share + at) for at in range(share)], _widths(size))
    operations = told["operations"]
    if rank == 0 and not operations:
        operations = _operations(recipe, size, batch, told["device"])
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    engine = Engine(model, recipe)
    parts = [_rows(batch, at, engine.micro) for at in range(0, share, engine.micro)]
    start_s = time.perf_counter() - began
    losses, took = [], []
    for step in range(told["steps"] or size.steps):
        torch.manual_seed(step * world + rank)
        distributed.barrier()
        began = time.perf_counter()
        total = engine.step(parts, float(share * world))
        losses.append(float(total.item()) / share)  # waits for the device
        took.append(time.perf_counter() - began)
    engine.close()
    step_s = statistics.median(took[2:])
    device = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU"
    peak = next((peak for name, peak in PEAK_TFLOPS.items() if name in device), None)
    tflops = operations / step_s / 1e12
    return {
        "zero": recipe.zero,
        "offload": recipe.offload,
        "operations": operations,
        "losses": losses,
        "start_s": start_s,
        "took": took,
        "device": device,
        "parameters": parameters,
        "clips": share * world,
        "step_ms": step_s * 1e3,
        "samples_per_second": share * world / step_s,
        "tflops": tflops,
        "peak_share": tflops / peak if peak else None,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
        "first_loss": losses[0],
        "loss": statistics.mean(losses[-3:]),
    }


def _check(losses: Sequence[float]) -> None:
    """Raise SystemExit where a run did not learn: its speed would say nothing."""
    if not all(map(math.isfinite, losses)):
        raise SystemExit(f"losses are not finite: {losses}")
    if statistics.mean(losses[-3:]) > FALL * losses[0]:
        raise SystemExit(f"losses did not fall: {losses}")


def _recipe(size: Size, share: int, told: Mapping[str, Any]) -> Recipe:
    common = {"width": 64, "learning_rate": 1e-4, "checkpointing": told["checkpointing"]}
    kinds = {"text": "roberta", "audio": "wav2vec2", "video": "vit"}
    settings = {"text": size.text, "audio": size.audio, "video": size.video}
    encoders = {
        stream: EncoderSettings(config=_config(kind, settings[stream]), **common)
        for stream, kind in kinds.items()
    }
    return Recipe(
        name="late_fusion",
        model=ModelSettings(
            kind="late_fusion",
            streams=tuple(encoders),
            settings={"hidden": 64, "encoder_dropout": 0.0, "fusion_dropout": 0.0},
            encoders=encoders,
        ),
        task=Task(kind="regression", label="score"),
        raw=tuple(encoders),
        global_batch=share * told["ranks"],
        micro_batch=min(share, 32),
        learning_rate=1e-3,
        zero=told["stage"],
        offload=told["offload_to"],
        precision="bf16" if told["device"] == "cuda" else "fp32",
    )


def _config(kind: str, settings: Mapping[str, Any]) -> str:
    import transformers

    made = transformers.AutoConfig.for_model(kind, **settings)
    return json.dumps({**made.to_dict(), "model_type": kind})


def _widths(size: Size) -> dict[str, int]:
    return {"text": 1, "audio": 320, "video": size.side * size.side * 3}


def _clip(size: Size, number: int) -> Sample:
    """A clip whose score is heard, seen and read: a tone, a brightness and a word."""
    random = np.random.default_rng(number)
    score = float(random.integers(-3, 4))
    steps = {"text": size.pieces, "audio": round(size.seconds * 50), "video": size.pictures}
    pieces = random.integers(10, 60, size.pieces)
    pieces[:: max(1, size.pieces // 4)] = 70 + int(score)
    tone = np.sin(np.arange(steps["audio"] * 320) * (0.05 + 0.01 * score))
    pictures = random.integers(0, 100, (steps["video"], _widths(size)["video"]))
    values = {
        "text": pieces[:, np.newaxis],
        "audio": 0.1 * tone.reshape(-1, 320) + random.normal(0, 0.01, (steps["audio"], 320)),
        "video": pictures + 70 + 20 * score,
    }
    return Sample(
        key=f"clip{number}",
        values={name: each.astype(np.float32) for name, each in values.items()},
        valid=dict.fromkeys(values),
        target=score,
        times={name: _spans(count, size.seconds) for name, count in steps.items()},
        base=_spans(10, size.seconds),
    )


def _spans(count: int, seconds: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    edges = np.linspace(0.0, seconds, count + 1)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def _rows(batch: FusionBatch, first: int, count: int) -> FusionBatch:
    """Some clips of a batch."""
    rows = slice(first, first + count)
    streams = {
        name: replace(
            each,
            values=each.values[rows],
            mask=each.mask[rows],
            times=None if each.times is None else each.times[rows],
        )
        for name, each in batch.streams.items()
    }
    base = batch.base and replace(
        batch.base, values=batch.base.values[rows], mask=batch.base.mask[rows]
    )
    target = None if batch.target is None else batch.target[rows]
    return replace(
        batch,
        streams=streams,
        base=base,
        target=target,
        weight=batch.weight[rows],
        keys=batch.keys[rows],
    )


def _operations(recipe: Recipe, size: Size, batch: FusionBatch, device: str) -> int:
    """Floating-point operations of a step on one rank: forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    plain = {n: replace(each, checkpointing=False) for n, each in recipe.model.encoders.items()}
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    with torch.device(device):
        model = build(replace(recipe.model, encoders=plain), _widths(size), 1)
    model = model.to(device, dtype).train()
    part = _rows(batch, 0, min(len(batch.keys), 8)).to(device, dtype)
    counter = FlopCounterMode(display=False)
    with counter:
        if part.target is None:
            raise TypeError("clips of the benchmark have targets")
        clip_losses(model(part), part.target, recipe).sum().backward()
    return counter.get_total_flops() * len(batch.keys) // len(part.keys)


if __name__ == "__main__":
    main()
