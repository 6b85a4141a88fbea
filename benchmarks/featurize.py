"""How fast featurizing is beside two bare loops that do the same work without shards or Ray.

Both sides start two processes, import, and compute the same features of the same generated clips,
in turns. The features of both are compared before any figure is printed.

    python benchmarks/featurize.py [--quick]
"""

import argparse
import hashlib
import json
import multiprocessing
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from featurizers.catalog import build
from featurizers.dataset import read_clips
from featurizers.decoder import Decoder
from featurizers.extract import extract
from featurizers.manifest import Column
from featurizers.media import Damage, Limits, NoStream, decode
from featurizers.spec import Featurizer, Want
from pipelines.demo import make_corpus
from pipelines.executors import InProcess, OnRay, start_ray, stop_ray
from pipelines.experiment import Experiment, parse
from pipelines.featurize import featurize
from pipelines.ingest import ingest
from tracking.provenance import git_commit, versions

HOME = Path(__file__).resolve().parent.parent
NAMES = ("logmel", "face-motion", "hashed-words")


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer clips and rounds")
    clips, rounds = (64, 2) if arguments.parse_args().quick else (240, 5)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_corpus(folder, clips=clips)
        start_ray(2)
        pairs = [_round(folder, f"data{number}") for number in range(rounds)]
        share = _decode_share(folder / "data0")
        seconds = sum(clip.seconds for clip in read_clips(folder / "data0"))
    stop_ray()
    print(f"{clips} clips, {seconds:.0f} s of media, {rounds} rounds, 2 workers, medians")
    ours, bare = (statistics.median(times) for times in zip(*pairs, strict=True))
    for name, median in (("ours", ours), ("bare loops", bare)):
        print(f"  {name:<11} {median:7.2f} s  {seconds / median:6.1f} media s/s")
    print(f"  ours over bare loops {bare / ours:.2f} (more is better)")
    print(f"  decoding takes {share:.0%} of a bare loop")
    figures = {"to_bare_loops": round(bare / ours, 3), "decode_share": round(share, 3)}
    used = {**versions(["ray", "av", "numpy"]), "python": platform.python_version()}
    about = {"commit": git_commit(HOME), "versions": used}
    print(json.dumps({"benchmark": "featurize", "figures": figures, **about}))


def _round(folder: Path, dataset: str) -> tuple[float, float]:
    """Seconds of both sides."""
    experiment = _experiment(folder, dataset)
    ingest(experiment, InProcess(), lambda count: None)
    began = time.perf_counter()
    columns = featurize(experiment, OnRay(2), lambda done: None)
    ours = time.perf_counter() - began
    began = time.perf_counter()
    digests = _bare_loops(experiment.root)
    bare = time.perf_counter() - began
    if digests != _digests(columns):
        raise SystemExit("the two sides computed different features")
    return ours, bare


def _experiment(folder: Path, dataset: str) -> Experiment:
    features = {name: {"featurizer": name} for name in NAMES}
    source = {"table": "clips.csv", "label": "sentiment"}
    plain = {"dataset": dataset, "source": source, "features": features, "shards": {"clips": 16}}
    return parse(plain, folder)


def _bare_loops(root: Path) -> dict[str, str]:
    """Two processes, half of the clips each, features kept in memory."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        halves = pool.starmap(_bare_loop, [(str(root), 0), (str(root), 1)])
    return {**halves[0], **halves[1]}


def _bare_loop(root: str, half: int) -> dict[str, str]:
    featurizers = [build(name) for name in NAMES]
    with Decoder() as decoder:
        found = {}
        for clip in read_clips(Path(root))[half::2]:
            for featurizer, outcome in zip(
                featurizers, extract(clip, Path(clip.media), featurizers, decoder), strict=True
            ):
                if outcome.feature is not None:
                    key = f"{clip.key}/{featurizer.spec.name}"
                    found[key] = _digest(outcome.feature.values)
        return found


def _digests(columns: dict[str, Column]) -> dict[str, str]:
    return {
        f"{key}/{name}": _digest(feature.values)
        for name, column in columns.items()
        for key in column.rows
        if (feature := column.read(key))
    }


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def _decode_share(root: Path) -> float:
    """The share of decoding in the time of one bare loop without a child, over whole clips."""
    featurizers: list[Featurizer] = [build("logmel"), build("face-motion")]
    wants: list[Want] = [want for featurizer in featurizers if (want := featurizer.wants)]
    decoding = whole = 0.0
    for clip in [clip for clip in read_clips(root) if clip.seconds][:60]:
        began = time.perf_counter()
        events = list(decode(Path(clip.media), clip.start, clip.end, wants, Limits()))
        decoded = time.perf_counter()
        chunks = [(i, e) for i, e in events if not isinstance(e, NoStream | Damage)]
        if {index for index, _ in chunks} != {0, 1}:
            continue
        extractions = [featurizer.begin(clip) for featurizer in featurizers]
        for index, chunk in chunks:
            extractions[index].add(chunk)
        for extraction in extractions:
            extraction.finish()
        whole += time.perf_counter() - began
        decoding += decoded - began
    return decoding / whole


if __name__ == "__main__":
    main()
