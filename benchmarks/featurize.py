"""How fast featurizing is, beside bare loops and beside what one would write with Ray Data.

Three sides compute the same features of the same generated clips, in turns, on the same two cores:

- *ours*: `featurize` with two Ray workers, each with its decoding child; digests, committed shards,
  a log;
- *bare loops*: two plain processes, one thread and half the clips each, which decode in their own
  process and keep the features in memory;
- *Ray Data*: the table as a dataset, a class with the same decoding and featurizers on two actors,
  and `write_webdataset`.

Start-up is excluded: the clock of a side runs from when both of its processes have imported, built
their featurizers and computed one clip. What the sides computed is compared before any figure is
printed.

It is done for two corpora of the same made-up speech: *ordinary* clips, as large as those of the
GRID corpus (360 x 288, 25 pictures a second, 44.1 kHz), and the *small* ones of the demo (96 x 96,
12 pictures a second, 16 kHz), of which a second takes so little that the cost of a clip and of a
job weighs the most. Figures without a prefix are those of ordinary clips.

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
from dataclasses import replace
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
from featurizers.media import NoStream, decode, encode
from featurizers.spec import Chunk, Extraction, Feature, Featurizer, Want
from featurizers.store import LocalStore
from pipelines.demo import make_corpus
from pipelines.executors import Answer, InProcess, Need, OnRay, one_cpu, start_ray, stop_ray
from pipelines.experiment import Experiment, parse
from pipelines.featurize import featurize, jobs, specs_of
from pipelines.ingest import ingest
from pipelines.worker import Job, ShardWorker
from tracking.provenance import git_commit, versions

HOME = Path(__file__).resolve().parent.parent
NAMES = ("logmel", "face-motion", "hashed-words")
WORKERS = 2
CPUS = 4  # logical: beside two actors Ray Data wants some for its reading and writing tasks
SHARD = 16
SIDES = ("ours", "bare loops", "Ray Data")
PATIENCE_S = 120.0
WIDTH, HEIGHT, FPS, RATE_HZ, ENLARGED = 360, 288, 25, 44_100, 3
GRAIN = 6  # of a camera, in steps of brightness


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer clips and rounds")
    quick = arguments.parse_args().quick
    # One thread each, for all: Ray does so by itself, a bare process would take every core.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:WORKERS])  # and of all that are started from here
    print(f"on {WORKERS} of {len(cores)} cores; other work on them makes the figures wrong")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        start_ray(CPUS)
        for corpus, clips in (("ordinary", 64 if quick else 320), ("small", 128 if quick else 480)):
            folder = Path(scratch, corpus)
            folder.mkdir()
            make_corpus(folder, clips=clips)
            if corpus == "ordinary":
                _enlarge(folder)
            prefix = "" if corpus == "ordinary" else f"{corpus}_"
            found = _measured(folder, corpus, 2 if quick else 5)
            figures |= {prefix + name: value for name, value in found.items()}
        stop_ray()
    used = {**versions(["ray", "av", "numpy", "webdataset"]), "python": platform.python_version()}
    about = {"commit": git_commit(HOME), "versions": used}
    print(json.dumps({"benchmark": "featurize", "figures": figures, **about}))


def _measured(folder: Path, corpus: str, rounds: int) -> dict[str, float]:
    """All sides on one corpus, printed."""
    seconds_of = [_round(folder, number) for number in range(rounds)]
    clips = read_clips(folder / "data0")
    media = [clip for clip in clips if clip.seconds]
    shares = _decode_shares(media[:60])
    seconds = sum(clip.seconds for clip in media)
    print(f"{len(clips)} {corpus} clips, {seconds:.0f} s of media, {rounds} rounds, medians")
    ours, bare, data = (statistics.median(side) for side in zip(*seconds_of, strict=True))
    for name, median in zip(SIDES, (ours, bare, data), strict=True):
        print(f"  {name:<11} {median:7.2f} s  {seconds / median:6.1f} media s/s")
    print(f"  ours over bare loops {bare / ours:.2f}, over Ray Data {data / ours:.2f}")
    print(f"  decoding takes {shares[0]:.0%} of a bare loop; FFmpeg alone {shares[1]:.0%}")
    return {
        "to_bare_loops": round(bare / ours, 3),
        "to_ray_data": round(data / ours, 3),
        "decode_share": round(shares[0], 3),
        "ffmpeg_share": round(shares[1], 3),
    }


def _enlarge(folder: Path) -> None:
    """Make the media of a corpus as large as ordinary ones; what nobody can decode stays."""
    import av

    grain = np.random.default_rng(0).integers(-GRAIN, GRAIN + 1, (8, HEIGHT, WIDTH, 1))
    for path in sorted((folder / "media").iterdir()):
        try:
            with av.open(str(path)) as container:
                frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
                rate = container.streams.video[0].average_rate
            with av.open(str(path)) as container:
                sound = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
                rate_hz = container.streams.audio[0].rate
        except (av.FFmpegError, IndexError):
            continue
        seconds = len(frames) / float(rate)
        shown = (frames[int(number / FPS * rate)] for number in range(int(seconds * FPS)))
        times = np.arange(round(seconds * RATE_HZ)) * rate_hz / RATE_HZ
        samples = np.concatenate(sound)
        encode(
            path,
            frames=(
                _large(frame, grain[number % len(grain)]) for number, frame in enumerate(shown)
            ),
            fps=FPS,
            samples=(np.interp(times, np.arange(len(samples)), samples) * 32767).astype(np.int16),
            rate_hz=RATE_HZ,
        )


def _large(frame: NDArray[np.uint8], grain: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A picture of WIDTH x HEIGHT: each pixel repeated, the margins filled up, with a grain."""
    large = frame.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    margin = (WIDTH - large.shape[1]) // 2
    wide = np.pad(large, ((0, 0), (margin, margin), (0, 0)), mode="edge")
    return np.clip(wide + grain, 0, 255).astype(np.uint8)


def _round(folder: Path, number: int) -> tuple[float, float, float]:
    """Seconds of the three sides."""
    dataset = f"data{number}"
    experiment = _experiment(folder, dataset)
    ingest(experiment, InProcess(), lambda count: None)
    clips = read_clips(experiment.root)
    sides: dict[str, Callable[[], tuple[float, dict[str, str]]]] = {
        "ours": lambda: _ours(experiment),
        "bare loops": lambda: _bare_loops(clips),
        "Ray Data": lambda: _ray_data(clips, folder / f"{dataset}-ray"),
    }
    first = number % len(SIDES)  # each of them comes first in turn
    found = {side: sides[side]() for side in (*SIDES[first:], *SIDES[:first])}
    (ours, found_ours), (bare, found_bare), (data, found_data) = (found[side] for side in SIDES)
    for side, features in (("bare loops", found_bare), ("Ray Data", found_data)):
        if features != found_ours:
            names = {*features, *found_ours}
            keys = {name for name in names if features.get(name) != found_ours.get(name)}
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
    """Workers that do some jobs beforehand, and wait for each other before their first real one."""

    def __init__(self, line: _Line, before: Sequence[Job]) -> None:
        super().__init__(WORKERS)
        self._line, self._before = line, before

    def run(
        self,
        make_worker: Callable[[], Callable[[Any], Any]],
        items: Sequence[Any],
        need: Callable[[Any], Need] = one_cpu,
    ) -> Iterator[Answer[Any]]:
        """See `Executor`: one pool for all jobs, so that two workers are two."""
        make = partial(_lined_up, self._line, make_worker, self._before)
        return super().run(make, items, _alike)


def _alike(item: object) -> Need:
    return Need()


def _lined_up(
    line: _Line, make_worker: Callable[[], Callable[[Any], Any]], before: Sequence[Job]
) -> Callable[[Any], Any]:
    made = make_worker()
    if not isinstance(made, ShardWorker):
        raise TypeError(f"{made} is no worker of ours")
    with tempfile.TemporaryDirectory() as place:
        kept, made._store = made._store, LocalStore(Path(place))  # noqa: SLF001 - not into the dataset
        for job in before:
            made(job)
        made._store = kept  # noqa: SLF001
    line.wait(str(os.getpid()))
    return made


def _ours(experiment: Experiment) -> tuple[float, dict[str, str]]:
    todo = jobs(experiment.root, specs_of(experiment)).todo
    clip = _first(read_clips(experiment.root))
    with tempfile.TemporaryDirectory() as place:
        line = _Line(place)
        # Of one clip, one for each kind of job: the first and the last are of different kinds.
        before = [replace(job, clips=(clip,)) for job in (todo[0], todo[-1])]
        columns = featurize(experiment, _TimedFromTheLine(line, before), lambda done: None)
        seconds = time.time() - line.began()
        return seconds, _of_columns(columns)


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
