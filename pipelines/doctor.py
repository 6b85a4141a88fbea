"""What this machine, its stores and the chosen parts can do: each check is a line that says so.

Nothing here is needed to work; it says beforehand, and in one place, what would fail later. Checks
do what the work itself does: media are really made and decoded, files written, linked and synced in
the dataset's folder, a Ray cluster started, and the tracking store is asked.
"""

import importlib.metadata
import importlib.util
import inspect
import os
import platform
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from featurizers import catalog
from featurizers.clip import BadClipError
from featurizers.decoder import Decoder
from featurizers.decoder_process import DecoderDiedError
from featurizers.media import codecs, encode
from featurizers.pretrained import Checkpoint, MissingWeightsError
from featurizers.spec import AudioChunk, AudioWant, Featurizer, VideoChunk, VideoWant
from featurizers.store import LocalStore, Root, StorageError, is_remote, store_at
from pipelines import HOME
from pipelines.cluster.live import ended_within
from pipelines.executors import joins
from pipelines.experiment import Experiment, InputError
from pipelines.findings import Finding, State, finding
from pipelines.licences import CALLED, OURS, imported
from tracking.mlflow_store import (
    MlflowRegistry,
    NoStoreError,
    StoreError,
    public,
    tracking_uri,
)
from tracking.registry import UnknownModelError

PACKAGES = ("torch", "ray", "deepspeed", "mlflow", "webdataset", "pyarrow", "transformers", "numpy")
DECODERS = {
    "H.264": ("h264",),
    "HEVC": ("hevc",),
    "AV1": ("libdav1d", "libaom-av1"),
    "VP8": ("vp8", "libvpx"),
    "VP9": ("vp9", "libvpx-vp9"),
    "MPEG-4": ("mpeg4",),
    "MPEG-1": ("mpeg1video",),
    "AAC": ("aac", "libfdk_aac"),
    "Opus": ("opus", "libopus"),
    "MP3": ("mp3float", "mp3"),
    "Vorbis": ("vorbis",),
    "FLAC": ("flac",),
    "AC-3": ("ac3",),
    "PCM": ("pcm_s16le",),
}
ENCODERS = ("libx264", "aac")  # of the demo
RAY_S = 90.0
LITTLE_DISK, NO_DISK = 10e9, 1e9
LITTLE_MEMORY = 4e9
LITTLE_SHARED = 1e9
_GPU = ", computes on a GPU where a worker has one"

# Starts or joins the cluster that work would run on, in a process that can be given up.
_ASK_RAY = "from pipelines.executors import resources, start_ray; start_ray(1); print(resources())"


def doctor(experiment: Experiment | None, folder: Path, *, quick: bool) -> Iterator[Finding]:
    """Look at everything, one finding after the other.

    Args:
        experiment: Whose dataset and parts; None for what there is in general.
        folder: Where the store of runs would lie without an experiment.
        quick: Leave out what takes seconds: decoding, Ray and the tracking store.
    """
    root: Root = folder if experiment is None else experiment.root
    yield from _versions()
    yield _codecs()
    if not quick:
        yield _decoding()
    yield from _disk(root)
    yield from _devices(0.0 if experiment is None else experiment.workers.gpus)
    if not quick:
        yield _ray()
        yield _store(tracking_uri(folder if experiment is None else experiment.folder))
    if experiment is not None:
        yield from check_features(experiment)
    else:
        yield from (_possible(name) for name in catalog.NAMES)


# Versions


def _versions() -> Iterator[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    known = system == "Linux x86_64"
    yield finding(
        "versions",
        "python",
        "ok" if known else "warning",
        f"{platform.python_version()} on {system}",
        "" if known else "this has only been run on Linux x86_64",
    )
    wanted = _least()
    for name in PACKAGES:
        yield _version(name, wanted.get(name, ""))


def _version(name: str, least: str) -> Finding:
    try:
        there = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return finding("versions", name, "failed", "not installed", "install the project anew")
    if _numbers(there) < _numbers(least):
        do = f"at least {least} is wanted; install with constraints.txt"
        return finding("versions", name, "failed", there, do)
    return finding("versions", name, "ok", there)


def _least() -> dict[str, str]:
    """The least version of each package that the project asks for."""
    try:
        asked = importlib.metadata.requires(OURS) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = [re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\d.]+)", each) for each in asked]
    return {each[1]: each[2] for each in found if each}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in re.findall(r"\d+", version.partition("+")[0])[:3])


# Media


def _codecs() -> Finding:
    there = codecs({*ENCODERS, *(name for names in DECODERS.values() for name in names)})
    missing = [each for each, names in DECODERS.items() if not there.decoders & set(names)]
    missing += [f"to write {each}" for each in ENCODERS if each not in there.encoders]
    known = ", ".join(each for each in DECODERS if each not in missing)
    return finding(
        "codecs",
        "av",
        "warning" if missing else "ok",
        f"PyAV {there.pyav} with FFmpeg {there.ffmpeg} reads {known}",
        f"not there: {', '.join(missing)}; PyAV's own wheel has them" if missing else "",
    )


def _decoding() -> Finding:
    """Make a second of media, and decode it in a child as for featurizers."""
    wants = (AudioWant(), VideoWant(fps=5, size=32))
    pictures = [np.full((64, 64, 3), 40 * number, dtype=np.uint8) for number in range(5)]
    sound = (9000 * np.sin(np.arange(16_000) * 0.1)).astype(np.int16)
    try:
        with tempfile.TemporaryDirectory() as folder, Decoder() as decoder:
            path = Path(folder) / "a.mp4"
            encode(path, frames=pictures, fps=5, samples=sound, rate_hz=16_000)
            events = [event for _, event in decoder.decode(path, 0.0, None, wants)]
    except (BadClipError, DecoderDiedError, StorageError, OSError, ValueError) as error:
        do = "look whether processes may be started and the temporary folder be written"
        return finding("codecs", "decoding", "failed", str(error), do)
    there = [any(isinstance(each, kind) for each in events) for kind in (AudioChunk, VideoChunk)]
    if not all(there):
        do = "install PyAV's own wheel"
        return finding("codecs", "decoding", "failed", "sound or pictures were lost", do)
    return finding("codecs", "decoding", "ok", "H.264 and AAC, made and decoded in a child")


# Disk


def _disk(root: Root) -> Iterator[Finding]:
    if is_remote(root):
        yield _bucket(root)
        return
    place = Path(root).resolve()
    there = next(each for each in (place, *place.parents) if each.is_dir())
    free = shutil.disk_usage(there).free
    yield finding(
        "disk",
        "room",
        "failed" if free < NO_DISK else "warning" if free < LITTLE_DISK else "ok",
        f"{free / 1e9:.1f} GB free in {there}",
        "make room" if free < LITTLE_DISK else "",
    )
    yield _writes(there)


def _writes(folder: Path) -> Finding:
    """Write, sync, rename and link as shards, records and manifests are."""
    what, do = "writes", "choose a folder that may be written, on a file system with hard links"
    try:
        with tempfile.TemporaryDirectory(prefix=".fuseline-doctor-", dir=folder) as place:
            store = LocalStore(Path(place))
            store.replace("pointer", b"one")
            store.replace("pointer", b"two")
            first, second = store.create("record", b"first"), store.create("record", b"second")
            kept = (store.read("pointer"), store.read("record"))
    except (StorageError, OSError) as error:
        return finding("disk", what, "failed", f"{folder}: {error}", do)
    if (first, second) != (True, False) or kept != (b"two", b"first"):
        return finding("disk", what, "failed", f"{folder}: a second writer wins", do)
    return finding("disk", what, "ok", "fsync, rename and hard links do what they promise")


def _bucket(root: Root) -> Finding:
    name = f".doctor/{uuid.uuid4().hex}"
    do = "look at the address, the credentials (those of the AWS tools) and the endpoint"
    try:
        store = store_at(root)
        won = (store.create(name, b"first"), store.create(name, b"second"))
        kept = store.read(name)
        store.delete(name)
    except (StorageError, OSError, ImportError, ValueError) as error:
        return finding("disk", "object store", "failed", str(error), do)
    if won != (True, False) or kept != b"first":
        do = "choose a store with conditional writes (If-None-Match)"
        return finding("disk", "object store", "failed", "a second writer wins", do)
    return finding("disk", "object store", "ok", f"{store.where()}: conditional writes hold")


# Devices


def _devices(gpus: float) -> Iterator[Finding]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    yield finding(
        "devices",
        "CPU",
        "ok" if memory.available > LITTLE_MEMORY else "warning",
        f"{len(os.sched_getaffinity(0))} cores, {memory.available / 1e9:.1f} of "
        f"{memory.total / 1e9:.1f} GB of memory free",
        "" if memory.available > LITTLE_MEMORY else "a worker with a decoder may take 2 GB",
    )
    shared = Path("/dev/shm")  # noqa: S108 - looked at, not written
    if shared.is_dir():
        room = shutil.disk_usage(shared).free
        little = "Ray puts objects there, or on disk when it is small: give it more"
        state: State = "ok" if room > LITTLE_SHARED else "warning"
        do = "" if room > LITTLE_SHARED else little
        yield finding("devices", "shared memory", state, f"{room / 1e9:.1f} GB free", do)
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if names:
        yield finding("devices", "CUDA", "ok", f"{len(names)}: {', '.join(names)}")
    elif gpus and not joins():
        do = "set workers.gpus to 0, or set RAY_ADDRESS to a cluster with GPUs"
        yield finding("devices", "CUDA", "failed", f"none, and workers.gpus is {gpus:g}", do)
    else:
        yield finding("devices", "CUDA", "ok", "none; everything runs on the CPU")


# Ray and MLflow


def _ray() -> Finding:
    what = f"cluster at {os.environ['RAY_ADDRESS']}" if joins() else "local cluster"
    ended = ended_within([sys.executable, "-c", _ASK_RAY], RAY_S, folder=HOME)
    if ended is None:
        do = "look at RAY_ADDRESS and the cluster's head" if joins() else "look at /tmp/ray"
        return finding("ray", what, "failed", f"does not answer within {RAY_S:g} s", do)
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or ["nothing"])[-1]
        return finding("ray", what, "failed", f"cannot be had: {said}", "look at /tmp/ray")
    told = re.findall(r"'(CPU|GPU)': ([\d.]+)", ended.stdout)
    return finding("ray", what, "ok", ", ".join(f"{float(n):g} {kind}" for kind, n in told))


def _store(uri: str) -> Finding:
    shown = public(uri)
    try:
        MlflowRegistry(uri=uri).versions("fuseline-doctor")
    except UnknownModelError:
        pass
    except NoStoreError as error:
        if uri.startswith("sqlite:"):
            return finding("mlflow", shown, "ok", "not there yet; the first training makes it")
        return finding("mlflow", shown, "failed", str(error), "look at MLFLOW_TRACKING_URI")
    except StoreError as error:
        return finding("mlflow", shown, "failed", str(error), "look at MLFLOW_TRACKING_URI")
    return finding("mlflow", shown, "ok", "answers")


# Features


def check_features(experiment: Experiment) -> Iterator[Finding]:
    """Whether each chosen featurizer, and what hears and places words, can be built here."""
    yield from (_chosen(experiment, stream) for stream in experiment.features)
    yield from (_listens(name, make) for name, make in experiment.listeners().items())


def _chosen(experiment: Experiment, stream: str) -> Finding:
    """Whether a stream's featurizer can be built with its settings, here and now."""
    try:
        featurizer = experiment.featurizer(stream)
    except InputError as error:
        return finding("features", stream, "failed", str(error))
    if missing := _missing(type(featurizer)):
        return finding("features", stream, "failed", *_lacking(featurizer.spec.name, missing))
    return finding("features", stream, "ok", _about(featurizer))


def _listens(name: str, make: Callable[[], Checkpoint]) -> Finding:
    """Whether the model that says or places words is there, of the kind that is wanted."""
    try:
        found = make()
    except InputError as error:
        return finding("features", name, "failed", str(error))
    about = f"{found.kind}, weights {found.digest[:12]}; licence {found.licence}"
    return finding("features", name, "ok", about)


def _possible(name: str) -> Finding:
    """What a featurizer of the catalog would need."""
    kind = catalog.kind(name)
    if missing := _missing(kind):
        return finding("features", name, "warning", *_lacking(name, missing))
    known = inspect.signature(kind.__init__).parameters.values()
    wanted = [each.name for each in known if each.default is each.empty and each.name != "self"]
    if wanted:
        return finding("features", name, "ok", f"wants {', '.join(wanted)}")
    try:
        return finding("features", name, "ok", _about(catalog.build(name)))
    except (MissingWeightsError, ValueError) as error:
        gpu = _GPU if getattr(kind, "takes_gpu", False) else ""
        return finding("features", name, "ok", f"wants weights{gpu}: {error}")


def _about(featurizer: Featurizer) -> str:
    spec = featurizer.spec
    weights = f", weights {spec.weights[:12]}" if spec.weights else ""
    takes = _GPU if getattr(featurizer, "takes_gpu", False) else ""
    return f"{spec.name}, {spec.width} dims{weights}{takes}; licence {spec.licence}"


def _missing(kind: type[Featurizer]) -> list[str]:
    """Packages that a featurizer's code imports and that are not installed."""
    names = imported(kind.__module__)
    return sorted(name for name in names if importlib.util.find_spec(name) is None)


def _lacking(name: str, missing: Sequence[str]) -> tuple[str, str]:
    packages = [CALLED.get(each, each) for each in missing]
    extra = next(filter(None, map(_extra_with, packages)), "")
    how = f"pip install '{OURS}[{extra}]'" if extra else f"pip install {' '.join(packages)}"
    return f"{name} needs {', '.join(packages)}, not installed", how


def _extra_with(package: str) -> str:
    """The project's first extra that brings a package; empty when none does, or none for users."""
    for asked in importlib.metadata.requires(OURS) or ():
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", asked)
        named = re.match(r"[\w.-]+", asked)
        if extra and named and named[0] == package and extra[1] != "dev":
            return extra[1]
    return ""
