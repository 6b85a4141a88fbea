"""How fast featurizing is, beside bare loops and beside what one would write with Ray Data.

Three sides compute the same features of the same generated clips, in turns, each with two processes
that compute:

- *ours*: `featurize` with two Ray workers: decoding children, digests, committed shards, a log;
- *bare loops*: two plain processes, one thread and half the clips each, which decode in their own
  process and keep the features in memory;
- *Ray Data*: the table as a dataset, a class with the same decoding and featurizers on two actors,
  and `write_webdataset`.

Start-up is excluded: the clock of a side runs from when both of its processes have imported, built
their featurizers and computed one clip. What the sides computed is compared before any figure is
printed.

    python benchmarks/featurize.py [--quick]
"""

import argparse
import hashlib
import io
import json
import logging
import multiprocessing
import os
import pickle
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.catalog import build
from featurizers.clip import BadClipError, Clip
from featurizers.damage import Damage
from featurizers.dataset import read_clips
from featurizers.limits import Limits
from featurizers.manifest import Column
from featurizers.media import NoStream, decode
from featurizers.spec import Chunk, Extraction, Feature, Featurizer, Want
from pipelines.demo import make_corpus
from pipelines.executors import Answer, InProcess, Need, OnRay, one_cpu, start_ray, stop_ray
from pipelines.experiment import Experiment, parse
from pipelines.featurize import featurize
from pipelines.ingest import ingest
from tracking.provenance import git_commit, versions

HOME = Path(__file__).resolve().parent.parent
NAMES = ("logmel", "face-motion", "hashed-words")
WORKERS = 2
CPUS = 4  # logical: beside two actors Ray Data wants some for its reading and writing tasks
SHARD = 16
SIDES = ("ours", "bare loops", "Ray Data")
PATIENCE_S = 120.0


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer clips and rounds")
    clips, rounds = (96, 2) if arguments.parse_args().quick else (480, 5)
    # One thread each, for all: Ray does so by itself, a bare process would take every core.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_corpus(folder, clips=clips)
        start_ray(CPUS)
        seconds_of = [_round(folder, f"data{number}") for number in range(rounds)]
        media = [clip for clip in read_clips(folder / "data0") if clip.seconds]
        shares = _decode_shares(media[:60])
    stop_ray()
    seconds = sum(clip.seconds for clip in media)
    print(f"{clips} clips, {seconds:.0f} s of media, {rounds} rounds, {WORKERS} workers, medians")
    ours, bare, data = (statistics.median(side) for side in zip(*seconds_of, strict=True))
    for name, median in zip(SIDES, (ours, bare, data), strict=True):
        print(f"  {name:<11} {median:7.2f} s  {seconds / median:6.1f} media s/s")
    print(f"  ours over bare loops {bare / ours:.2f}, over Ray Data {data / ours:.2f}")
    print(f"  decoding takes {shares[0]:.0%} of a bare loop; FFmpeg alone {shares[1]:.0%}")
    figures = {
        "to_bare_loops": round(bare / ours, 3),
        "to_ray_data": round(data / ours, 3),
        "decode_share": round(shares[0], 3),
        "ffmpeg_share": round(shares[1], 3),
    }
    used = {**versions(["ray", "av", "numpy", "webdataset"]), "python": platform.python_version()}
    about = {"commit": git_commit(HOME), "versions": used}
    print(json.dumps({"benchmark": "featurize", "figures": figures, **about}))


def _round(folder: Path, dataset: str) -> tuple[float, float, float]:
    """Seconds of the three sides."""
    experiment = _experiment(folder, dataset)
    ingest(experiment, InProcess(), lambda count: None)
    clips = read_clips(experiment.root)
    ours, found = _ours(experiment)
    bare, found_bare = _bare_loops(clips)
    data, found_data = _ray_data(clips, folder / f"{dataset}-ray")
    for side, features in (("bare loops", found_bare), ("Ray Data", found_data)):
        if features != found:
            keys = {key for key in {*features, *found} if features.get(key) != found.get(key)}
            raise SystemExit(f"{side} computed other features than we did: {sorted(keys)[:9]}")
    return ours, bare, data


def _experiment(folder: Path, dataset: str) -> Experiment:
    features = {name: {"featurizer": name} for name in NAMES}
    source = {"table": "clips.csv", "label": "sentiment"}
    plain = {"dataset": dataset, "source": source, "features": features, "shards": {"clips": SHARD}}
    return parse(plain, folder)


class _Line:
    """Where the processes of a side wait until all of them are up.

    Args:
        folder: Empty.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def wait(self, name: str) -> None:
        """Wait for the others."""
        Path(self.folder, name).touch()
        deadline = time.monotonic() + PATIENCE_S
        while len(list(Path(self.folder).iterdir())) < WORKERS:
            if time.monotonic() > deadline:
                raise TimeoutError("the other process did not come up")
            time.sleep(0.001)

    def began(self) -> float:
        """When the last of them came, by `time.time`."""
        return max(path.stat().st_mtime for path in Path(self.folder).iterdir())


# Ours


class _TimedFromTheLine(OnRay):
    """Workers that wait for each other before their first job."""

    def __init__(self, line: _Line, clip: Clip) -> None:
        super().__init__(WORKERS)
        self._line, self._clip = line, clip

    def run(
        self,
        make_worker: Callable[[], Callable[[Any], Any]],
        items: Sequence[Any],
        need: Callable[[Any], Need] = one_cpu,
    ) -> Iterator[Answer[Any]]:
        """See `Executor`: one pool for all jobs, so that two workers are two."""
        return super().run(partial(_lined_up, self._line, make_worker, self._clip), items, _alike)


def _alike(item: object) -> Need:
    return Need()


def _lined_up(
    line: _Line, make_worker: Callable[[], Callable[[Any], Any]], clip: Clip
) -> Callable[[Any], Any]:
    worker = make_worker()
    worker._decoder.probe(Path(clip.media))  # type: ignore[attr-defined] # noqa: SLF001 - its child is up then
    line.wait(str(os.getpid()))
    return worker


def _ours(experiment: Experiment) -> tuple[float, dict[str, str]]:
    with tempfile.TemporaryDirectory() as place:
        line = _Line(place)
        executor = _TimedFromTheLine(line, _first(read_clips(experiment.root)))
        columns = featurize(experiment, executor, lambda done: None)
        return time.time() - line.began(), _of_columns(columns)


def _first(clips: Sequence[Clip]) -> Clip:
    return next(clip for clip in clips if clip.seconds)


def _of_columns(columns: dict[str, Column]) -> dict[str, str]:
    return {
        f"{key}/{name}": _digest(feature.values)
        for name, column in columns.items()
        for key in column.rows
        if (feature := column.read(key))
    }


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


# What both others do with a clip


def _features(clip: Clip, featurizers: Sequence[Featurizer]) -> dict[str, Feature]:
    """Decode a clip once in this process; a featurizer that fails leaves its feature out."""
    media = [featurizer for featurizer in featurizers if featurizer.wants is not None]
    chunks = _chunks(clip, [_want(featurizer) for featurizer in media])
    found = {
        each.spec.name: _finished(each.begin(clip), chunks[index])
        for index, each in enumerate(media)
        if index in chunks
    }
    if clip.words is not None:
        others = [featurizer for featurizer in featurizers if featurizer.wants is None]
        found |= {each.spec.name: _finished(each.begin(clip), []) for each in others}
    return {name: feature for name, feature in found.items() if feature is not None}


def _chunks(clip: Clip, wants: Sequence[Want]) -> dict[int, list[Chunk]]:
    """What decoding gives for each want; nothing for one whose stream the clip lacks."""
    found: dict[int, list[Chunk]] = {}
    try:
        for index, event in decode(Path(clip.media), clip.start, clip.end, wants, Limits()):
            if not isinstance(event, NoStream | Damage):
                found.setdefault(index, []).append(event)
    except BadClipError:
        return {}
    return found


def _finished(extraction: Extraction, chunks: Sequence[Chunk]) -> Feature | None:
    try:
        for chunk in chunks:
            extraction.add(chunk)
        feature = extraction.finish()
    except BadClipError:
        return None
    return feature if isinstance(feature, Feature) else None


def _want(featurizer: Featurizer) -> Want:
    if featurizer.wants is None:
        raise TypeError(f"{featurizer.spec.name} reads no media")
    return featurizer.wants


# Bare loops


def _bare_loops(clips: Sequence[Clip]) -> tuple[float, dict[str, str]]:
    """Two processes, half of the clips each, features kept in memory."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place, context.Pool(WORKERS) as pool:
        line = _Line(place)
        loops = [(line, half, _first(clips), clips[half::WORKERS]) for half in range(WORKERS)]
        halves = pool.starmap(_bare_loop, loops, chunksize=1)
        ended = max(at for at, _ in halves)
        return ended - line.began(), {**halves[0][1], **halves[1][1]}


def _bare_loop(
    line: _Line, half: int, first: Clip, clips: Sequence[Clip]
) -> tuple[float, dict[str, str]]:
    featurizers = [build(name) for name in NAMES]
    _features(first, featurizers)
    line.wait(str(half))
    found = {clip.key: _features(clip, featurizers) for clip in clips}
    ended = time.time()
    return ended, {
        f"{key}/{name}": _digest(feature.values)
        for key, features in found.items()
        for name, feature in features.items()
    }


# Ray Data


class _Extract:
    """What somebody would give to `map_batches`."""

    def __init__(self, line: _Line, first: Clip) -> None:
        self._featurizers = [build(name) for name in NAMES]
        _features(first, self._featurizers)
        line.wait(str(os.getpid()))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows: dict[str, list[Any]] = {"__key__": []}
        for name in NAMES:
            rows |= {f"{name}.npy": [], f"{name}.times.npy": []}
        for pickled in batch["clip"]:
            clip = pickle.loads(pickled)  # noqa: S301 - our own, from a few lines below
            features = _features(clip, self._featurizers)
            rows["__key__"].append(clip.key)
            for name in NAMES:
                feature = features.get(name)
                # Columns of arrays have one number of axes: what a clip lacks has no steps.
                rows[f"{name}.npy"].append(_NONE if feature is None else feature.values)
                rows[f"{name}.times.npy"].append(_NONE if feature is None else feature.times)
        return rows


_NONE = np.zeros((0, 1), dtype=np.float32)


def _ray_data(clips: Sequence[Clip], folder: Path) -> tuple[float, dict[str, str]]:
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        line = _Line(place)
        blocks = -(-len(clips) // SHARD)
        table = ray.data.from_items(
            [{"clip": pickle.dumps(clip)} for clip in clips], override_num_blocks=blocks
        )
        extracted = table.map_batches(
            _Extract,
            batch_size=SHARD,
            compute=ray.data.ActorPoolStrategy(size=WORKERS),
            fn_constructor_args=(line, _first(clips)),
            num_cpus=1,
        )
        extracted.write_webdataset(str(folder))
        return time.time() - line.began(), _of_tars(folder)


def _of_tars(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                name = suffix.removesuffix(".npy")
                content = tar.extractfile(member)
                if name in NAMES and content is not None:
                    values = np.load(io.BytesIO(content.read()), allow_pickle=False)
                    if values.size:
                        found[f"{key}/{name}"] = _digest(values)
    return found


# Where a bare loop's time goes


def _decode_shares(clips: Sequence[Clip]) -> tuple[float, float]:
    """Shares of a bare loop's time, over whole clips: of all decoding, and of FFmpeg in it."""
    featurizers: list[Featurizer] = [build("logmel"), build("face-motion")]
    wants = [_want(featurizer) for featurizer in featurizers]
    decoding = ffmpeg = whole = 0.0
    for clip in clips:
        began = time.perf_counter()
        chunks = _chunks(clip, wants)
        decoded = time.perf_counter()
        if set(chunks) != {0, 1}:
            continue
        for index, featurizer in enumerate(featurizers):
            _finished(featurizer.begin(clip), chunks[index])
        whole += time.perf_counter() - began
        decoding += decoded - began
        ffmpeg += _ffmpeg_alone(clip)
    return decoding / whole, ffmpeg / whole


def _ffmpeg_alone(clip: Clip) -> float:
    """Seconds that PyAV takes to decode and resample, with nothing done to what it gives."""
    import av

    began = time.perf_counter()
    with av.open(clip.media) as container:
        for stream in container.streams:
            stream.thread_count = 1
        resampler = av.AudioResampler(format="s16", layout="mono", rate=16_000)
        for packet in container.demux():
            for frame in packet.decode():
                if isinstance(frame, av.AudioFrame):
                    resampler.resample(frame)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
