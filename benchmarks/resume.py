"""What another number of ranks does to the losses of 40 steps, and resuming on another number.

One table for dropout 0 and frozen batch norms, where only the order of sums differs, and one for
both switched on. Each cell is the largest difference to the losses of 2 ranks that were left alone,
over the steps that both took.

    python benchmarks/resume.py [--quick] [--models mmlatch mult msaf]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import distributed, nn

from tracking.provenance import git_commit, versions
from training import checkpoint
from training.batch import FusionBatch, Sample, collate
from training.engine import Engine
from training.loop import step_seed
from training.models import KINDS, build
from training.order import GlobalBatch, global_batches, rank_view
from training.recipe import ModelSettings, Recipe, Scalar, Task

HOME = Path(__file__).resolve().parent.parent
WIDTHS = {"text": 12, "audio": 7, "video": 5}
SETTINGS: dict[str, dict[str, Scalar]] = {
    "mmlatch": {"hidden": 16},
    "mult": {"width": 20, "heads": 5, "layers": 2},
    "msaf": {"hidden": 16},
}
STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
WORLDS = (2, 1, 4)  # 2 first: the others go on from its checkpoints
GLOBAL_BATCH, CLIPS = 8, 160


def recipe_of(kind: str, zero: Literal[0, 1, 2, 3], *, exact: bool) -> Recipe:
    """A small model of a kind; exact: without dropout."""
    settings = dict(SETTINGS[kind])
    if exact:
        settings |= dict.fromkeys(dropouts(kind), 0.0)
    model = ModelSettings(kind=kind, streams=tuple(WIDTHS), settings=settings)
    task = Task(kind="regression", label="score")
    return Recipe(
        name=kind,
        model=model,
        task=task,
        global_batch=GLOBAL_BATCH,
        micro_batch=2,
        learning_rate=1e-3,
        zero=zero,
    )


def dropouts(kind: str) -> list[str]:
    """The names of a model's settings that are dropout probabilities."""
    return [each.name for each in fields(KINDS[kind].settings) if "dropout" in each.name]


def frozen(model: nn.Module) -> nn.Module:
    """The model with its batch norms in evaluation mode for good, PyTorch's and our own."""
    for module in model.modules():
        if "running_mean" in dict(module.named_buffers(recurse=False)):
            module.eval()
            module.train = lambda mode=True, norm=module: norm  # type: ignore[method-assign, misc]
    return model


def sample(key: str, weight: float) -> Sample:
    """A made-up clip, the same on every rank."""
    random = np.random.default_rng(int(key[4:]))
    steps = int(random.integers(3, 9))
    values = {name: random.normal(size=(steps, width)) for name, width in WIDTHS.items()}
    return Sample(
        key=key,
        values={name: each.astype(np.float32) for name, each in values.items()},
        valid=dict.fromkeys(WIDTHS),
        target=float(values["text"].mean() * 3 + random.normal() * 0.1),
        weight=weight,
    )


def batch_of(slots: GlobalBatch) -> FusionBatch:
    """Some clips as a batch."""
    return collate([sample(key, weight) for key, weight in slots], WIDTHS)


def losses(engine: Engine, first: int, last: int, rank: int, world: int) -> list[float]:
    """Take steps; the mean loss of each global batch."""
    batches = global_batches([f"clip{i:03d}" for i in range(CLIPS)], GLOBAL_BATCH)
    found = []
    for position in range(first, last):
        batch = batches[position % len(batches)]
        torch.manual_seed(step_seed(0, position, rank))
        view = rank_view(batch, rank=rank, world=world, micro=engine.micro)
        own = engine.step([batch_of(slots) for slots in view], GLOBAL_BATCH)
        found.append(sum(float(each) for each in engine.gather(own)) / GLOBAL_BATCH)
    return found


def as_rank(rank: int, world: int, folder: Path, kinds: list[str], steps: int) -> None:
    """Be a rank: all models at all stages from the beginning, and from 2 ranks' checkpoints."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{world}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    half, found = steps // 2, {}
    for exact in (True, False):
        for kind in kinds:
            for zero in STAGES:
                name = f"{kind}-{zero}-{'exact' if exact else 'on'}"
                recipe = recipe_of(kind, zero, exact=exact)
                case = Case(recipe, folder / name, exact, rank, world)
                found[name] = case.whole(half, steps)
                found[f"{name}-resumed"] = case.resumed(half, steps)
    if rank == 0:
        (folder / f"{world}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


@dataclass(frozen=True)
class Case:
    """A recipe on this rank, and where its checkpoints lie."""

    recipe: Recipe
    shelf: Path
    exact: bool
    rank: int
    world: int

    def engine(self, seed: int) -> Engine:
        """An engine with fresh weights."""
        torch.manual_seed(seed)
        model = build(self.recipe.model, WIDTHS, 1)
        return Engine(frozen(model) if self.exact else model, self.recipe)

    def whole(self, half: int, steps: int) -> list[float]:
        """All steps; 2 ranks leave a checkpoint half way."""
        engine = self.engine(seed=0)
        found = losses(engine, 0, half, self.rank, self.world)
        if self.world == WORLDS[0]:
            engine.save(self.shelf, half, {}, {})
        found += losses(engine, half, steps, self.rank, self.world)
        engine.close()
        return found

    def resumed(self, half: int, steps: int) -> list[float]:
        """The second half, from the checkpoint of 2 ranks, into other fresh weights."""
        engine = self.engine(seed=1)
        engine.load(checkpoint.standing(self.shelf)[0])
        found = losses(engine, half, steps, self.rank, self.world)
        engine.close()
        return found


def measured(kinds: list[str], steps: int) -> dict[int, dict[str, list[float]]]:
    """Losses by number of ranks and name."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for world in WORLDS:
            command = [sys.executable, __file__, "--steps", str(steps), "--models", *kinds]
            ranks = [
                subprocess.Popen([*command, "--rank", str(rank), str(world), folder])  # noqa: S603 - ourselves
                for rank in range(world)
            ]
            if any(rank.wait() for rank in ranks):
                raise RuntimeError(f"a rank of {world} failed")
            found[world] = json.loads((Path(folder) / f"{world}.json").read_text())
    return found


def table(found: dict[int, dict[str, list[float]]], kinds: list[str], way: str) -> dict[str, float]:
    """Print the differences of one way; returns the largest of each column."""
    print(f"\n{WAYS[way]}")
    heads = ["1 rank", "4 ranks", "2, then 2", "2, then 1", "2, then 4"]
    print("model     ZeRO  " + "".join(f"{head:>11}" for head in heads) + "   last loss")
    largest = dict.fromkeys(heads, 0.0)
    for kind in kinds:
        for zero in STAGES:
            name = f"{kind}-{zero}-{way}"
            whole = found[2][name]
            half = whole[len(whole) // 2 :]
            cells = [furthest(found[world][name], whole) for world in (1, 4)]
            cells += [furthest(found[world][f"{name}-resumed"], half) for world in (2, 1, 4)]
            for head, cell in zip(heads, cells, strict=True):
                largest[head] = max(largest[head], cell)
            print(
                f"{kind:<10}{zero:<6}"
                + "".join(f"{c:>11.1e}" for c in cells)
                + f"{whole[-1]:>12.4f}"
            )
    return largest


WAYS = {
    "exact": "dropout 0, batch norms frozen: largest difference of losses to 2 ranks",
    "on": "dropout and batch norms on: the same",
}


def furthest(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of two lists."""
    return max(abs(one - other) for one, other in zip(ours, theirs, strict=True))


def main() -> None:
    """Print both tables and the line for machines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="8 steps instead of 40")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--models", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--rank", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank:
        rank, world, folder = asked.rank
        as_rank(int(rank), int(world), Path(folder), asked.models, asked.steps)
        return
    steps = 8 if asked.quick else asked.steps
    found = measured(asked.models, steps)
    exact = table(found, asked.models, "exact")
    other = table(found, asked.models, "on")
    figures: dict[str, Any] = {
        "steps": steps,
        "exact_other_ranks": max(exact["1 rank"], exact["4 ranks"]),
        "exact_resumed": max(exact["2, then 1"], exact["2, then 4"]),
        "same_ranks": max(exact["2, then 2"], other["2, then 2"]),
        "on_other_ranks": max(other["1 rank"], other["4 ranks"]),
        "on_resumed": max(other["2, then 1"], other["2, then 4"]),
    }
    told = {
        "benchmark": "resume",
        "figures": figures,
        "commit": git_commit(HOME),
        "versions": versions(["torch", "deepspeed"]),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
