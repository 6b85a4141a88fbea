"""How fast featurizing is, beside bare loops and beside what one would write with Ray Data.

Four sides compute the same features of the same generated clips, in turns, on the same two cores:

- *ours*: `featurize` with two Ray workers, each with its decoding child; digests, committed shards,
  a log;
- *bare loops*: two plain processes, one thread and half the clips each, which decode in their own
  process and keep the features in memory;
- *Ray Data*: what one would write today: the table as a dataset, a class on two actors that reads
  a clip with PyAV (all pictures to RGB, those wanted cut and resized by Pillow; sound resampled)
  and calls the same featurizers, and `write_webdataset`;
- *Ray Data with our decoder*: the same with our `decode`, which nobody has who does not have us.

Start-up is excluded: the clock of a side runs from when both of its processes have imported, built
their featurizers and computed one clip. What the sides computed is compared before any figure is
printed: to the last bit where our decoder was used, else within what Pillow's rounding changes.

It is done for two corpora of the same made-up speech: *ordinary* clips, as large as those of the
GRID corpus (360 x 288, 25 pictures a second, 44.1 kHz), and the *small* ones of the demo (96 x 96,
12 pictures a second, 16 kHz), of which a second takes so little that the cost of a clip and of a
job weighs the most. Figures without a prefix are those of ordinary clips.

    python benchmarks/featurize.py [--quick]
"""

import argparse
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
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.catalog import build
from featurizers.clip import BadClipError, Clip
from featurizers.damage import Damage
from featurizers.dataset import read_clips
from featurizers.limits import Limits
from featurizers.manifest import Column
from featurizers.media import NoStream, decode, encode
from featurizers.spec import (
    AudioChunk,
    AudioWant,
    Chunk,
    Extraction,
    Feature,
    Featurizer,
    VideoChunk,
    VideoWant,
    Want,
)
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
SIDES = ("ours", "bare loops", "Ray Data", "Ray Data with our decoder")
PATIENCE_S = 120.0
Features: TypeAlias = dict[str, NDArray[Any]]
"""By clip and name, with a stroke between them."""
PLAIN_HZ = 16_000
APART_S = 2.0  # streams of a file lie that far apart at most
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
    medians = [statistics.median(side) for side in zip(*seconds_of, strict=True)]
    for name, median in zip(SIDES, medians, strict=True):
        print(f"  {name:<26} {median:7.2f} s  {seconds / median:6.1f} media s/s")
    ours, bare, data, data_ours = medians
    print(f"  ours over bare loops {bare / ours:.2f}, over Ray Data {data / ours:.2f},", end=" ")
    print(f"over Ray Data with our decoder {data_ours / ours:.2f}")
    print(f"  decoding takes {shares[0]:.0%} of a bare loop; FFmpeg alone {shares[1]:.0%}")
    return {
        "to_bare_loops": round(bare / ours, 3),
        "to_ray_data": round(data / ours, 3),
        "to_ray_data_with_our_decoder": round(data_ours / ours, 3),
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


def _round(folder: Path, number: int) -> list[float]:
    """Seconds of each side."""
    dataset = f"data{number}"
    experiment = _experiment(folder, dataset)
    ingest(experiment, InProcess(), lambda count: None)
    clips = read_clips(experiment.root)
    sides: dict[str, Callable[[], tuple[float, Features]]] = {
        "ours": lambda: _ours(experiment),
        "bare loops": lambda: _bare_loops(clips),
        "Ray Data": lambda: _ray_data(clips, folder / f"{dataset}-plain", _plain_chunks),
        "Ray Data with our decoder": lambda: _ray_data(clips, folder / f"{dataset}-ray", _chunks),
    }
    first = number % len(SIDES)  # each of them comes first in turn
    found = {side: sides[side]() for side in (*SIDES[first:], *SIDES[:first])}
    seconds, (ours, *others) = zip(*(found[side] for side in SIDES), strict=True)
    for side, features in zip(SIDES[1:], others, strict=True):
        _compare(side, ours, features, 0.02 if side == "Ray Data" else 0.0)
    return list(seconds)


def _compare(side: str, ours: Features, theirs: Features, share: float) -> None:
    """End where the other side computed something else.

    Args:
        side: Its name.
        ours: Features by clip and name.
        theirs: The same of the other side.
        share: How far they may be apart in the mean, of a feature's spread.
    """
    apart = sorted(
        name
        for name in {*ours, *theirs}
        if name not in ours or name not in theirs or not _alike(ours[name], theirs[name], share)
    )
    if apart:
        raise SystemExit(f"{side} computed other features than we did: {apart[:9]}")


def _alike(ours: NDArray[Any], theirs: NDArray[Any], share: float) -> bool:
    if not share:
        return np.array_equal(ours, theirs)
    # Where a stream begins late we keep its time; the plain way begins at its first sample.
    steps = min(len(ours), len(theirs))
    if abs(len(ours) - len(theirs)) > 1 or not steps:
        return len(ours) == len(theirs)
    spread = float(ours.std()) or 1.0
    return float(np.abs(ours[:steps] - theirs[:steps]).mean()) <= share * spread


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
        return super().run(make, items, _one_need)


def _one_need(item: object) -> Need:
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


def _ours(experiment: Experiment) -> tuple[float, Features]:
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


def _of_columns(columns: dict[str, Column]) -> Features:
    return {
        f"{key}/{name}": feature.values
        for name, column in columns.items()
        for key in column.rows
        if (feature := column.read(key))
    }


# What both others do with a clip


def _features(
    clip: Clip, featurizers: Sequence[Featurizer], decoded: "Decoded | None" = None
) -> dict[str, Feature]:
    """Decode a clip once in this process; a featurizer that fails leaves its feature out."""
    media = [featurizer for featurizer in featurizers if featurizer.wants is not None]
    chunks = (decoded or _chunks)(clip, [_want(featurizer) for featurizer in media])
    found = {
        each.spec.name: _finished(each.begin(clip), chunks[index])
        for index, each in enumerate(media)
        if index in chunks
    }
    if clip.words is not None:
        others = [featurizer for featurizer in featurizers if featurizer.wants is None]
        found |= {each.spec.name: _finished(each.begin(clip), []) for each in others}
    return {name: feature for name, feature in found.items() if feature is not None}


Decoded: TypeAlias = Callable[[Clip, Sequence[Want]], dict[int, list[Chunk]]]


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


def _bare_loops(clips: Sequence[Clip]) -> tuple[float, Features]:
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
) -> tuple[float, Features]:
    featurizers = [build(name) for name in NAMES]
    _features(first, featurizers)
    line.wait(str(half))
    found = {clip.key: _features(clip, featurizers) for clip in clips}
    ended = time.time()
    return ended, {
        f"{key}/{name}": feature.values
        for key, features in found.items()
        for name, feature in features.items()
    }


# Ray Data


class _Extract:
    """What somebody would give to `map_batches`."""

    def __init__(self, line: _Line, first: Clip, decoded: Decoded) -> None:
        self._featurizers = [build(name) for name in NAMES]
        self._decoded = decoded
        _features(first, self._featurizers, decoded)
        line.wait(str(os.getpid()))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows: dict[str, list[Any]] = {"__key__": []}
        for name in NAMES:
            rows |= {f"{name}.npy": [], f"{name}.times.npy": []}
        for pickled in batch["clip"]:
            clip = pickle.loads(pickled)  # noqa: S301 - our own, from a few lines below
            features = _features(clip, self._featurizers, self._decoded)
            rows["__key__"].append(clip.key)
            for name in NAMES:
                feature = features.get(name)
                # Columns of arrays have one number of axes: what a clip lacks has no steps.
                rows[f"{name}.npy"].append(_NONE if feature is None else feature.values)
                rows[f"{name}.times.npy"].append(_NONE if feature is None else feature.times)
        return rows


_NONE = np.zeros((0, 1), dtype=np.float32)


def _plain_chunks(clip: Clip, wants: Sequence[Want]) -> dict[int, list[Chunk]]:
    """What one reads with PyAV: all of the clip, and then of its pictures those that are wanted."""
    from av import FFmpegError

    pieces: list[tuple[float, NDArray[np.int16]]] = []
    pictures: list[tuple[float, NDArray[np.uint8]]] = []
    try:
        for time_s, array in _plain_frames(clip):
            (pieces if array.ndim == 1 else pictures).append((time_s, array))
    except FFmpegError:
        return {}
    found: dict[int, list[Chunk]] = {}
    for index, want in enumerate(wants):
        if isinstance(want, AudioWant) and pieces:
            found[index] = [_plain_sound(clip, pieces)]
        elif isinstance(want, VideoWant) and pictures:
            found[index] = [_plain_pictures(clip, pictures, want)]
    return found


def _plain_frames(clip: Clip) -> Iterator[tuple[float, NDArray[Any]]]:
    """Time and samples [N] of each piece of sound, time and RGB [H, W, 3] of each picture."""
    import av

    with av.open(clip.media) as container:
        for stream in container.streams:
            stream.thread_count = 1
        if clip.start:
            container.seek(int(clip.start * av.time_base))
        resampler = av.AudioResampler(format="s16", layout="mono", rate=PLAIN_HZ)
        for frame in container.decode():
            if clip.end is not None and frame.time >= clip.end + APART_S:
                return
            if isinstance(frame, av.VideoFrame):
                yield float(frame.time), frame.to_ndarray(format="rgb24")
                continue
            for piece in resampler.resample(frame):
                yield float(piece.time), piece.to_ndarray()[0]


def _plain_sound(clip: Clip, pieces: Sequence[tuple[float, NDArray[np.int16]]]) -> AudioChunk:
    samples = np.concatenate([piece for _, piece in pieces])
    first = round((pieces[0][0] - clip.start) * PLAIN_HZ)
    last = len(samples) if clip.end is None else round((clip.end - clip.start) * PLAIN_HZ) - first
    return AudioChunk(max(0.0, first / PLAIN_HZ), samples[max(0, -first) : last])


def _plain_pictures(
    clip: Clip, pictures: Sequence[tuple[float, NDArray[np.uint8]]], want: VideoWant
) -> VideoChunk:
    """The picture that is shown in the middle of each cell: cut to a square, small, grey."""
    from PIL import Image

    times = np.array([time for time, _ in pictures]) - clip.start
    seconds = times[-1] + (times[-1] - times[0]) / max(1, len(times) - 1)
    if clip.end is not None:
        seconds = min(seconds, clip.end - clip.start)
    cells = np.arange(round(seconds * want.fps))
    shown = np.searchsorted(times, (cells + 0.5) / want.fps, side="right") - 1
    small = []
    for at in shown:
        rgb = pictures[at][1]
        side = min(rgb.shape[:2])
        top, left = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
        square = Image.fromarray(rgb).crop((left, top, left + side, top + side))
        picture = square.resize((want.size, want.size), Image.Resampling.BOX)
        small.append(np.asarray(picture.convert("L")))
    return VideoChunk(np.stack([cells, cells + 1], axis=1) / want.fps, np.stack(small))


def _ray_data(clips: Sequence[Clip], folder: Path, decoded: Decoded) -> tuple[float, Features]:
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
            fn_constructor_args=(line, _first(clips), decoded),
            num_cpus=1,
        )
        extracted.write_webdataset(str(folder))
        return time.time() - line.began(), _of_tars(folder)


def _of_tars(folder: Path) -> Features:
    found: Features = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                name = suffix.removesuffix(".npy")
                content = tar.extractfile(member)
                if name in NAMES and content is not None:
                    values = np.load(io.BytesIO(content.read()), allow_pickle=False)
                    if values.size:
                        found[f"{key}/{name}"] = values
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
