"""How fast each featurizer is, beside the obvious way, on one core.

A line for each name of the catalog. Both sides compute features of the same clips, in turns, in one
process with one thread. Seconds are CPU seconds, so that other work on the machine does not count;
what is printed are seconds of media for each of them, at the median of the rounds. What both sides
computed is compared where it can be, before any figure is printed. Where nobody would write another
way, or one that tells anything, there is a dash; what cannot be measured on this machine is named
with the reason.

The other side is, and `rivals/` has it in full:

- `logmel`: librosa's `melspectrogram`, `power_to_db`, `yin` and `rms`, clip by clip, since pitch
  and loudness are in it, by its functions' defaults but for our hop, window and range of pitch;
- `mel energies`: the first two alone, and ours without the rest. It is no featurizer; it tells how
  much of the ratio above is due to pitch;
- `mfcc`: `melspectrogram`, `power_to_db`, `mfcc` and two times `delta`;
- `prosody`: `yin`, `rms`, `spectral_centroid`, `spectral_bandwidth`, `spectral_rolloff` and
  `spectral_flatness`. librosa has no jitter, shimmer, harmonics-to-noise ratio and the like; ours
  are counted all the same;
- `egemaps`: openSMILE's own package, where it is installed: it computes for us too;
- `video`, which is `face-motion`, and `frames`, from the file on: PyAV makes each picture RGB,
  Pillow cuts and resizes it, and those that are wanted are taken;
- `face track`, from the file on: OpenCV's cascade on each picture at full size;
- encoders: transformers, a clip at a time, with random weights of base size. On a GPU (`--device
  cuda`, or wherever there is one) their seconds are those of the clock, when the GPU is done.

    python benchmarks/featurizers.py [--quick] [--only sound pictures words streams encoders]
        [--device cpu]
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
# Python looks for imports beside a script first, and would take this file for the package.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HOME / "benchmarks"]
if __name__ == "featurizers":  # a script beside this one imported the package
    del sys.modules[__name__]
    importlib.import_module(__name__)
if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import featurizers.catalog
from tracking.provenance import git_commit, versions

sys.path += [str(HOME / "benchmarks"), str(HOME)]
from rivals import Device, Race, Size, Skipped

GROUPS = {
    "sound": ("rivals.sound", "races"),
    "pictures": ("rivals.pictures", "races"),
    "words": ("rivals.plain", "said"),
    "streams": ("rivals.plain", "measured"),
    "encoders": ("rivals.encoders", "races"),
}
PACKAGES = ["av", "librosa", "numpy", "opencv-python-headless", "opensmile", "pillow"]


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of media by second, of both sides; None where there is no other side."""

    name: str
    ours: float
    theirs: float | None


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--quick", action="store_true", help="fewer clips, small encoders")
    arguments.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    arguments.add_argument(
        "--device", choices=("cpu", "cuda"), help="for encoders; by itself a GPU where there is one"
    )
    given = arguments.parse_args()
    device = device_of(given.device) if "encoders" in given.only else "cpu"
    print(f"{'':18}{'ours':>10}{'obvious':>10}{'times':>8}")
    lines, skipped = list[Line](), list[Skipped]()
    for found in measured(given.only, quick=given.quick, device=device):
        if isinstance(found, Skipped):
            skipped.append(found)
            print(f"  {found.featurizer:<16}{'-':>10}  {found.reason}")
        else:
            lines.append(found)
            print(row(found), flush=True)
    where = f"; encoders on {named(device)}" if "encoders" in given.only else ""
    print(f"  seconds of media by CPU second{where}")
    used = {**versions([*PACKAGES, "torch", "transformers"]), "python": platform.python_version()}
    about = {"commit": git_commit(HOME), "versions": used, "device": named(device)}
    about |= {"skipped": {each.featurizer: each.reason for each in skipped}}
    print(json.dumps({"benchmark": "featurizers", "figures": figures(lines), **about}))


def device_of(wanted: Device | None) -> Device:
    """Where encoders run; without another wish on a GPU, if there is one."""
    if wanted == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for it
    import torch

    torch.set_num_threads(1)
    there: Device = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and there == "cpu":
        raise SystemExit("--device cuda: torch finds no GPU; leave it out to measure on the CPU")
    return there


def named(device: Device) -> str:
    """The device in words."""
    if device == "cpu":
        return "one thread of the CPU"
    import torch

    return str(torch.cuda.get_device_name())


def row(line: Line) -> str:
    """Of the table."""
    if line.theirs is None:
        return f"  {line.name:<16}{line.ours:10.1f}{'-':>10}{'-':>8}"
    return f"  {line.name:<16}{line.ours:10.1f}{line.theirs:10.1f}{line.ours / line.theirs:8.2f}"


def figures(lines: list[Line]) -> dict[str, float]:
    """For machines: how many times the other side's speed, and seconds of media by second."""
    found: dict[str, float] = {}
    for line in lines:
        key = line.name.replace(" ", "_")
        if line.theirs is not None:
            found[key] = round(line.ours / line.theirs, 3)
        found[f"{key}_media_s_per_s"] = round(line.ours, 1)
    return found


def measured(groups: list[str], *, quick: bool, device: Device) -> Iterator[Line | Skipped]:
    """Lines, one after the other; raises where a name of the catalog has none."""
    names = set[str]()
    for group in groups:
        module, function = GROUPS[group]
        races = getattr(importlib.import_module(module), function)
        with tempfile.TemporaryDirectory() as folder:
            for race in races(Size(quick=quick, device=device, folder=Path(folder))):
                names.add(race.featurizer)
                skip = isinstance(race, Skipped)
                yield race if skip else raced(race, min(race.most, 2 if quick else 7), device)
    missing = set(featurizers.catalog.NAMES) - names
    if missing and set(groups) == set(GROUPS):
        raise SystemExit(f"no line measures {', '.join(sorted(missing))}; add one to rivals/")


def raced(race: Race, rounds: int, device: Device) -> Line:
    """Measure a line."""
    on_gpu = race.encoder and device == "cuda"
    same(race, on_gpu)  # and the first time for both
    clock = gpu_clock if on_gpu else time.process_time
    sides = [race.ours, *([race.theirs] if race.theirs else [])]
    spent: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        for which in range(len(sides))[:: -1 if number % 2 else 1]:
            spent[which].append(seconds_of(sides[which], clock))
    speeds = [race.seconds / statistics.median(each) for each in spent]
    return Line(race.name, speeds[0], speeds[1] if race.theirs else None)


def seconds_of(side: Callable[[], object], clock: Callable[[], float]) -> float:
    """How long it takes."""
    began = clock()
    side()
    return clock() - began


def gpu_clock() -> float:
    """The time when the GPU has done all that it was given."""
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def same(race: Race, on_gpu: bool) -> None:
    """Raise unless both sides compute the same."""
    mine = race.ours()
    if race.theirs is None:
        return
    if on_gpu:
        import torch

        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            theirs = race.theirs()
        race.theirs()  # warm as it will run
    else:
        theirs = race.theirs()
    if race.compare is not None:
        for one, other in zip(mine, theirs, strict=True):
            race.compare(one, other)


if __name__ == "__main__":
    main()
