"""What equal batches cost: our loader on column shards, and webdataset on the joined export.

Both sides give batches of 32 clips in three streams, pooled to words, normalised and padded, with
the same functions and numbers of worker processes. Ours reads each clip through the index and holds
it against its crc32, in the global order; the other reads joined tars in their order, decodes and
shuffles, and checks nothing. Before any figure is printed, clips of both sides are compared.

`common_share` is the part of our time, without workers, that goes into pooling, normalising and
padding: the other side does the same with the same functions, so it bounds what reading can win.

`resume_ms` is from a loaded dataset to the first batch, in the middle of an epoch of 100,000
samples (order of the epoch, reading, pooling, collating); opening is shown beside it.

    python benchmarks/loader.py [--quick]
"""

import argparse
import io
import json
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import step  # before the folder leaves sys.path: see featurizers.py
import torch
import webdataset as wds
from torch.utils.data import DataLoader

from featurizers.spec import Feature
from tracking.provenance import git_commit, versions
from training.batch import FusionBatch, collate
from training.data import Data, load
from training.loader import Indexed, Seat
from training.recipe import Recipe, Task
from training.recipes import named

HOME = Path(__file__).resolve().parent.parent
LONG = 100_000


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer clips and rounds")
    quick = arguments.parse_args().quick
    torch.set_num_threads(1)
    count, rounds = (256, 1) if quick else (2048, 3)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "data")
        columns = step.write_dataset(root, count)
        recipe = named(
            "mmlatch",
            Task(kind="regression", label="score"),
            tuple(step.WIDTHS),
            {"hidden": 100},
            global_batch=step.BATCH,
        )
        data = load(root, columns, recipe, cache_bytes=0)
        tars = joined(data, Path(scratch))
        compare(data, tars)
        figures: dict[str, float] = {}
        print("workers  ours samples/s  webdataset samples/s  ours over webdataset")
        for workers in (0, 2):
            ours, theirs = [], []
            for _ in range(rounds):
                ours.append(speed(ours_epoch(data, recipe, workers)))
                theirs.append(speed(their_epoch(data, tars, workers)))
            ratio = max(ours) / max(theirs)
            print(f"{workers:>7}  {max(ours):>14.0f}  {max(theirs):>20.0f}  {ratio:>20.2f}")
            figures[f"to_webdataset_{workers}"] = round(ratio, 3)
        figures["to_webdataset"] = min(figures.values())
        figures["common_share"] = common_share(data, recipe, rounds)
    opened, figures["resume_ms"] = resumed(recipe, 10_000 if quick else LONG)
    print(f"opening {opened:.1f} s; first batch after resuming {figures['resume_ms']} ms")
    used = {**versions(["torch", "webdataset", "numpy"]), "python": platform.python_version()}
    about = {"commit": git_commit(HOME), "versions": used}
    print(json.dumps({"benchmark": "loader", "figures": figures, **about}))


def speed(epoch: Iterator[FusionBatch]) -> float:
    """Samples a second of one epoch, workers started in it."""
    began, count = time.perf_counter(), 0
    for batch in epoch:
        count += int(batch.weight.sum())
    return count / (time.perf_counter() - began)


def common_share(data: Data, recipe: Recipe, rounds: int) -> float:
    """The part of our time without workers that is work which both sides do alike."""
    alike = max(aligning(data) for _ in range(rounds))
    share = max(speed(ours_epoch(data, recipe, 0)) for _ in range(rounds)) / alike
    print(f"{share:.0%} of our time without workers is work that both sides do alike")
    return round(share, 3)


def aligning(data: Data) -> float:
    """Samples a second where features lie in memory: the work that both sides do alike."""
    train, keys = data.train, data.train.keys[: 8 * step.BATCH]
    features = [{name: each.read(key) for name, each in train.columns.items()} for key in keys]
    began = time.perf_counter()
    for at in range(0, len(keys), step.BATCH):
        some = slice(at, at + step.BATCH)
        collate(train.made(keys[some], features[some]), train.widths)
    return len(keys) / (time.perf_counter() - began)


def ours_epoch(data: Data, recipe: Recipe, workers: int) -> Iterator[FusionBatch]:
    """One epoch of ours; nothing is kept in memory from one to the next."""
    loader = Indexed(data.train, recipe, Seat(micro=step.BATCH), workers)
    for each in loader.steps(0):
        yield from each.share
    loader.close()


def joined(data: Data, folder: Path) -> list[str]:
    """The export: one tar for each shard, with all streams of a clip beside each other."""
    tars = []
    for shard, keys in data.train.keys_by_shard.items():
        tars.append(str(folder / f"{shard:05d}.tar"))
        with wds.TarWriter(tars[-1], mtime=0) as writer:
            for key in keys:
                sample: dict[str, Any] = {"__key__": key}
                for name, column in data.train.columns.items():
                    feature = column.read(key)
                    if feature is None:
                        raise TypeError("clips of the benchmark have all streams")
                    sample |= {
                        f"{name}.npy": npy(feature.values),
                        f"{name}_times.npy": npy(feature.times),
                    }
                writer.write(sample)
    return tars


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """An array as a file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def their_epoch(data: Data, tars: list[str], workers: int) -> Iterator[FusionBatch]:
    """One epoch of webdataset's."""

    def batch(samples: list[Mapping[str, Any]]) -> FusionBatch:
        made = data.train.made(
            [sample["__key__"] for sample in samples],
            [
                {
                    name: Feature(sample[f"{name}.npy"], sample[f"{name}_times.npy"])
                    for name in data.train.widths
                }
                for sample in samples
            ],
        )
        return collate(made, data.train.widths)

    source = wds.WebDataset(tars, shardshuffle=100, seed=0, empty_check=False)
    shuffled = source.shuffle(512).decode()
    dataset = shuffled.batched(step.BATCH, collation_fn=batch)
    context = "fork" if workers else None
    yield from DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=context
    )


def compare(data: Data, tars: list[str]) -> None:
    """Every clip of theirs must be ours, in every bit."""
    seen: list[str] = []
    for batch in their_epoch(data, tars, 0):
        own = data.train.batch([(key, 1.0) for key in batch.keys])
        for name, stream in batch.streams.items():
            if not torch.equal(stream.values, own.streams[name].values):
                raise SystemExit(f"the sides differ in stream {name!r} of {batch.keys}")
        seen += batch.keys
    if sorted(seen) != data.train.keys:
        raise SystemExit("webdataset lost clips")


def resumed(recipe: Recipe, count: int) -> tuple[float, float]:
    """Seconds to open a dataset of small clips, and ms to the first batch in mid-epoch."""
    with tempfile.TemporaryDirectory() as scratch:
        columns = step.write_dataset(Path(scratch, "data"), count, words=4, per_word=1)
        kept = Path(scratch, "run")
        load(scratch + "/data", columns, recipe, cache_bytes=0, kept=kept)
        began = time.perf_counter()
        data = load(scratch + "/data", columns, recipe, cache_bytes=0, kept=kept)
        opened = time.perf_counter() - began
        began = time.perf_counter()
        loader = Indexed(data.train, recipe, Seat(micro=step.BATCH))
        next(loader.steps(1, len(loader) // 2))
        return opened, round((time.perf_counter() - began) * 1e3, 1)


if __name__ == "__main__":
    main()
