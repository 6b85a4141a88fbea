"""What a training step costs beside a bare PyTorch loop of the same model, data and batches.

Both sides take turns, round by round, in the same processes: *ours* is the loop's step (data from
shards, DeepSpeed at ZeRO 0, losses weighted over the global batch), *bare* is the model with AdamW,
clipping and, on two ranks, DistributedDataParallel, on batches that lie ready in memory. Both start
from the same weights, and their losses are compared before any figure is printed.

`data_wait_share` is the part of our steps in which the model waits for its batch, in a first epoch
in which every clip is read from its shard, checked, pooled and normalised. From the second one on
samples lie in memory, and batches are only padded: figures that end in `_later`. Batches are made
in line; figures that end in `_worker` have a loader's process for each rank instead, which works on
the next batch while the model has this one, on the same cores.

With `--device cuda` another table is made: `step_on_card.py` says what it holds.

    python benchmarks/step.py [--quick] [--device cuda]
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import step_on_card  # before the folder leaves sys.path: see featurizers.py
import torch
from torch import Tensor, distributed, multiprocessing, nn

from featurizers.clip import Clip, Word
from featurizers.dataset import write_clips
from featurizers.extract import Outcome
from featurizers.manifest import commit
from featurizers.shards import job_id, write_shard
from featurizers.spec import Dim, Feature, FeatureSpec
from featurizers.store import LocalStore
from tracking.provenance import git_commit, versions
from training.batch import FusionBatch
from training.data import Samples, load
from training.engine import Engine
from training.loader import Indexed, Seat, Step
from training.loop import step_seed
from training.losses import clip_losses
from training.models import build
from training.recipe import Recipe, Task
from training.recipes import named

HOME = Path(__file__).resolve().parent.parent
WIDTHS = {"text": 300, "audio": 74, "visual": 35}  # of CMU-MOSEI
WORDS, WORD_S, PER_WORD = 50, 0.4, 4  # steps of sound and pictures in each word
BATCH, SHARD = 32, 64
MODELS = ("mmlatch", "mult")
SETTINGS: Mapping[str, Mapping[str, Any]] = {"mmlatch": {"hidden": 100}, "mult": {}}


@dataclass(slots=True)
class Times:
    """Seconds of each step, of a first epoch or a later one.

    Attributes:
        wait: Of ours, in which the batch was made.
    """

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    wait: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Of our time over the bare loop's."""
        return statistics.median(self.ours) / statistics.median(self.bare)

    @property
    def share(self) -> float:
        """The part of our time that is waiting for data."""
        return sum(self.wait) / sum(self.ours)


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer clips")
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = arguments.parse_args()
    if given.device == "cuda":
        on_card(quick=given.quick)
        return
    quick = given.quick
    figures: dict[str, float] = {}
    print(
        "model    ranks  batches  epoch  ours ms/step  bare ms/step  ours over bare (time)"
        "  waiting for data"
    )
    with tempfile.TemporaryDirectory() as scratch:
        columns = write_dataset(Path(scratch, "data"), 256 if quick else 512)
        cases = itertools.product(MODELS, (1, 2), (0, 1))
        for name, world, workers in cases:
            both = measured(Path(scratch), columns, name, world, workers)
            for epoch, later in zip(both, ("", "_later"), strict=True):
                ours, bare = statistics.median(epoch.ours), statistics.median(epoch.bare)
                print(
                    f"{name:<8} {world:>5}  {'worker ' if workers else 'in line'}"
                    f"  {'later' if later else 'first'}"
                    f"  {ours * 1e3:>12.0f}  {bare * 1e3:>12.0f}"
                    f"  {epoch.ratio:>21.2f}  {epoch.share:>16.1%}"
                )
                end = f"{'_worker' if workers else ''}{later}"
                figures[f"{name}_{world}{end}"] = round(1 / epoch.ratio, 3)
                figures[f"wait_{name}_{world}{end}"] = round(epoch.share, 4)
    for end in ("", "_later", "_worker", "_worker_later"):
        for world, ranks in ((1, "1rank"), (2, "2ranks")):
            slowest = min(figures[f"{name}_{world}{end}"] for name in MODELS)
            figures[f"to_bare_torch_{ranks}{end}"] = slowest
        waits = [figures[f"wait_{name}_{world}{end}"] for name in MODELS for world in (1, 2)]
        figures[f"data_wait_share{end}"] = max(waits)
    print_figures("step", figures)


def on_card(*, quick: bool) -> None:
    """Measure and print what a CUDA device takes."""
    print_figures("step_on_card", step_on_card.table(quick=quick))


def print_figures(name: str, figures: Mapping[str, float]) -> None:
    """All figures in one line."""
    used = {**versions(["torch", "deepspeed"]), "python": platform.python_version()}
    about = {"commit": git_commit(HOME), "versions": used}
    print(json.dumps({"benchmark": name, "figures": figures, **about}))


def write_dataset(
    root: Path, count: int, words: int = WORDS, per_word: int = PER_WORD
) -> dict[str, str]:
    """Clips of so many words with random features in shards; the fingerprint of each column."""
    random = np.random.default_rng(0)
    clips = [_clip(number, count, words) for number in range(count)]
    write_clips(root, clips)
    found = {}
    for name, width in WIDTHS.items():
        steps = words * (1 if name == "text" else per_word)
        edges = np.arange(steps + 1) * (words * WORD_S / steps)
        times = np.stack([edges[:-1], edges[1:]], axis=1)
        spec = FeatureSpec(
            name=name,
            version=1,
            modality="stream",
            reads=("words",),
            dims=tuple(Dim(f"d{index}") for index in range(width)),
            rate_hz=steps / (words * WORD_S),
        )
        records = []
        for shard, first in enumerate(range(0, count, SHARD)):
            part = clips[first : first + SHARD]
            arrays = (random.normal(size=(steps, width)).astype(np.float32) for _ in part)
            outcomes = [Outcome(state="sample", feature=Feature(each, times)) for each in arrays]
            job = job_id(spec, part)
            records.append(
                write_shard(LocalStore(root), shard, job, spec, clips=part, outcomes=outcomes)
            )
        commit(root, spec, "plan", records)
        found[name] = spec.fingerprint
    return found


def _clip(number: int, count: int, length: int) -> Clip:
    words = tuple(
        Word(text=f"w{index}", start=index * WORD_S, end=(index + 1) * WORD_S)
        for index in range(length)
    )
    return Clip(
        key=f"k{number:05d}",
        id=f"{number}",
        media="",
        media_digest="",
        seconds=length * WORD_S,
        words=words,
        split="valid" if number >= count - 2 else "train",
        labels={"score": float(number % 7 - 3)},
    )


def measured(
    scratch: Path, columns: Mapping[str, str], name: str, world: int, workers: int
) -> list[Times]:
    """Rank 0's times of two epochs, each rank a process of its own."""
    place = Path(tempfile.mkdtemp(dir=scratch))
    told = {
        "root": str(scratch / "data"),
        "columns": dict(columns),
        "model": name,
        "workers": workers,
    }
    arguments = (world, told, str(place))
    multiprocessing.spawn(_rank, args=arguments, nprocs=world)  # type: ignore[no-untyped-call]
    return [Times(**each) for each in json.loads((place / "times.json").read_text())]


def _rank(rank: int, world: int, told: Mapping[str, Any], place: str) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))
    store = distributed.FileStore(f"{place}/store", world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    name = told["model"]
    recipe = named(
        name,
        Task(kind="regression", label="score"),
        tuple(WIDTHS),
        SETTINGS[name],
        global_batch=BATCH,
    )
    # Samples that were read once lie in memory: each side has its own.
    ours, bare = (load(told["root"], told["columns"], recipe).train for _ in range(2))
    sides = _Sides(recipe, ours, rank, world)
    seat = Seat(micro=sides.engine.micro, rank=rank, world=world)
    with (
        closing(Indexed(ours, recipe, seat, told["workers"])) as loader,
        closing(Indexed(bare, recipe, seat)) as ready,
    ):
        times = [_rounds(sides, loader.steps(epoch), ready.steps(epoch)) for epoch in (0, 1)]
    if rank == 0:
        Path(place, "times.json").write_text(json.dumps([asdict(each) for each in times]))
    distributed.barrier()
    distributed.destroy_process_group()


class _Sides:
    """Both loops over the same data, from the same weights."""

    def __init__(self, recipe: Recipe, train: Samples, rank: int, world: int) -> None:
        self.recipe, self.rank, self.world = recipe, rank, world
        torch.manual_seed(recipe.seed)
        model = build(recipe.model, train.widths, 1)
        torch.manual_seed(recipe.seed)
        self._bare: nn.Module = build(recipe.model, train.widths, 1)
        if world > 1:
            self._bare = nn.parallel.DistributedDataParallel(self._bare)
        self._optimizer = torch.optim.AdamW(
            self._bare.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.engine = Engine(model, recipe)

    def ours(self, share: Sequence[FusionBatch], weights: float) -> Tensor:
        """One step of the engine; this rank's sum of losses."""
        return self.engine.step(share, weights)

    def bare(self, share: Sequence[FusionBatch], weights: float) -> Tensor:
        """One step as one writes it by hand; this rank's sum of losses."""
        self._bare.train()
        self._optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for batch in share:
            if batch.target is None:
                raise TypeError("clips of the benchmark have targets")
            losses = clip_losses(self._bare(batch), batch.target, self.recipe)
            loss = (losses * batch.weight).sum()
            (loss * (self.world / weights)).backward()
            total += loss.detach()
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._bare.parameters(), self.recipe.clip_norm)
        self._optimizer.step()
        return total


def _rounds(sides: _Sides, own: Iterator[Step], ready: Iterator[Step]) -> Times:
    """One epoch; both sides take each step, and each goes first in every other.

    Args:
        sides: Both loops.
        own: The steps as our loader gives them, asked for within our time.
        ready: The same ones, made before either side begins.
    """
    times = Times()
    for position, there in enumerate(ready):
        seed = step_seed(sides.recipe.seed, position, sides.rank)
        took, losses, wait = {}, {}, 0.0
        names = ("ours", "bare") if position % 2 else ("bare", "ours")
        for name in names:
            distributed.barrier()
            torch.manual_seed(seed)
            began = time.perf_counter()
            step = next(own) if name == "ours" else there
            if name == "ours":
                wait = time.perf_counter() - began
            losses[name] = getattr(sides, name)(step.share, step.weights)
            took[name] = time.perf_counter() - began
        if not torch.allclose(losses["ours"], losses["bare"], rtol=1e-3, atol=1e-3):
            raise SystemExit(f"step {position}: the sides' losses differ: {losses}")
        if position > 1:  # the first steps make buffers
            times.ours.append(took["ours"])
            times.bare.append(took["bare"])
            times.wait.append(wait)
    return times


if __name__ == "__main__":
    main()
