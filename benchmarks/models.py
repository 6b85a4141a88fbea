"""How fast the fusion models train, beside the operations of the authors' code.

The other side is in `twins/`: written for this from a description of what the released code does,
wasteful steps included. Weights are copied from one side to the other, and outputs without dropout
are compared before anything is timed. A step is clearing the gradients, forward and backward, with
dropout as published, on random inputs of the published shapes. The two sides take turns in one
process; figures are medians of the rounds. A round in which other work took more than 8 % of the
machine is done again, at most as often as there are rounds; how many of those that count were
disturbed all the same is printed. Memory is the most that a step adds to weights and inputs, in a
process of its own. Operator calls are those that torch's profiler counts in one step of the twin,
beside the count of the authors' code where it is known.

With `--device cuda` another table is made: `models_on_card.py` says what it holds.

    python benchmarks/models.py [--quick] [--full] [--device cuda] [--only NAME ...]
"""

import argparse
import functools
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import models_on_card  # before the folder leaves sys.path: see featurizers.py
import psutil
import torch
from card import step
from twins import Pair, Side
from twins import mmlatch as mmlatch_twin
from twins import msaf as msaf_twin
from twins import mult as mult_twin

from tracking.provenance import git_commit, versions

HOME = Path(__file__).resolve().parent.parent
THREADS = 2
OTHERS = 0.08
AGREEMENT = 1e-4
Which = Literal["ours", "twin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        name: Of its figures.
        title: For people.
        make: Both sides, from clips, steps and `dropout`.
        clips: B.
        steps: T.
        released_calls: Operator calls of the authors' code in a step; None where nobody counted.
        same: Whether both sides compute one function, and are compared.
        costed: Whether it has a table of cost against length and batch.
    """

    name: str
    title: str
    make: Callable[..., Pair]
    clips: int
    steps: int
    released_calls: int | None = None
    same: bool = True
    costed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Seconds of a step, by round, and how many of the rounds were disturbed."""

    ours: Sequence[float]
    twin: Sequence[float]
    disturbed: int

    @property
    def ratio(self) -> float:
        """Ours over the twin's speed."""
        return statistics.median(self.twin) / statistics.median(self.ours)


def rows(*, full: bool) -> list[Row]:
    """All lines."""
    return [
        Row(
            name="mmlatch",
            title="MMLatch, all clips 50 long",
            make=mmlatch_twin.pair,
            clips=32,
            steps=50,
            released_calls=11_486,
        ),
        Row(
            name="mmlatch_true_lengths",
            title="MMLatch, true lengths",
            make=functools.partial(mmlatch_twin.pair, true_lengths=True),
            clips=32,
            steps=50,
            released_calls=150_106,
        ),
        Row(
            name="mmlatch_fixed",
            title="MMLatch, fixed, true lengths",
            make=functools.partial(mmlatch_twin.pair, true_lengths=True, reference=False),
            clips=32,
            steps=50,
            released_calls=150_106,
            same=False,
        ),
        Row(
            name="mmlatch_padded",
            title="MMLatch, fixed; twin reads padding",
            make=functools.partial(
                mmlatch_twin.pair, true_lengths=True, told_lengths=False, reference=False
            ),
            clips=32,
            steps=50,
            released_calls=11_486,
            same=False,
            costed=True,
        ),
        Row(
            name="mult_aligned",
            title="MulT, 50 steps",
            make=mult_twin.pair,
            clips=32,
            steps=50,
        ),
        Row(
            name="mult_aligned_fixed",
            title="MulT, 50 steps, fixed form",
            make=functools.partial(mult_twin.pair, reference=False),
            clips=32,
            steps=50,
            costed=True,
        ),
        Row(
            name="mult_unaligned",
            title="MulT, 50, 500, 500 steps",
            make=functools.partial(mult_twin.pair, unaligned=True),
            clips=32 if full else 4,
            steps=50,
        ),
        Row(
            name="mult_unaligned_fixed",
            title="MulT, 50, 500, 500, fixed form",
            make=functools.partial(mult_twin.pair, unaligned=True, reference=False),
            clips=32 if full else 4,
            steps=50,
            costed=True,
        ),
        Row(
            name="msaf_ravdess_1",
            title="MSAF, 1024x4x14x14 and 32x208",
            make=msaf_twin.ravdess,
            clips=32,
            steps=4,
            costed=True,
        ),
    ]


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="fewer rounds, no table of cost")
    arguments.add_argument("--full", action="store_true", help="unaligned MulT with 32 clips")
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument("--peak-tflops", type=float, help="of a card that is not known here")
    arguments.add_argument(
        "--compile-seconds", type=float, default=60.0, help="on a card, for all lines together"
    )
    arguments.add_argument("--only", nargs="+", metavar="NAME", help="these lines alone")
    arguments.add_argument(
        "--peak-of", nargs=2, metavar=("NAME", "SIDE"), help="print the MB of one side, no more"
    )
    given = arguments.parse_args()
    torch.set_num_threads(THREADS)
    if given.device == "cuda":
        on_card(given)
        return
    if given.peak_of:
        name, which = given.peak_of
        print(_peak_mb(next(row for row in rows(full=given.full) if row.name == name), which))
        return
    chosen = [row for row in rows(full=given.full) if not given.only or row.name in given.only]
    if not chosen:
        names = [row.name for row in rows(full=given.full)]
        arguments.error(f"no line has the name {given.only}; there are {names}")
    rounds = 3 if given.quick else 9
    figures: dict[str, float] = {}
    print_head(rounds)
    for row in chosen:
        figures |= measured(row, rounds)
    if not given.quick:
        for row in chosen:
            if row.costed:
                figures |= cost(row)
    print_figures("models", given, figures, platform.processor() or "cpu")


def on_card(given: argparse.Namespace) -> None:
    """Measure and print what a CUDA device takes."""
    figures = models_on_card.table(
        given.only, 5 if given.quick else 15, given.peak_tflops, given.compile_seconds
    )
    print_figures("models_on_card", given, figures, torch.cuda.get_device_name())


def print_figures(
    name: str, given: argparse.Namespace, figures: dict[str, float], device: str
) -> None:
    """All figures in one line."""
    used = {**versions(["torch", "numpy"]), "python": platform.python_version()}
    about = {"commit": git_commit(HOME), "versions": used, "device": device}
    print(json.dumps({"benchmark": name, "quick": given.quick, "figures": figures, **about}))


def print_head(rounds: int) -> None:
    """The heads of the columns."""
    print(f"{platform.processor() or 'cpu'}, {THREADS} threads, {rounds} rounds; a training step")
    print(
        f"  {'':<34} {'ours ms (min)':>16} {'twin ms (min)':>16} {'times':>6} {'MB':>6} {'twin':>6}"
        f" {'calls':>7} {'twin':>7} {'released':>8} {'disturbed':>9}"
    )


def measured(row: Row, rounds: int) -> dict[str, float]:
    """All figures of one line, printed."""
    if row.same:
        compare(row)
    pair = row.make(row.clips, row.steps, dropout=True)
    timed = interleaved(pair, rounds)
    calls = {which: operator_calls(side_of(pair, which)) for which in ("ours", "twin")}
    del pair
    peaks = {which: peak_mb(row, which) for which in ("ours", "twin")}
    shown = [
        f"{1e3 * statistics.median(each):8.1f} ({1e3 * min(each):5.1f})"
        for each in (timed.ours, timed.twin)
    ]
    released = f"{row.released_calls:,}" if row.released_calls else ""
    print(
        f"  {row.title:<34} {shown[0]:>16} {shown[1]:>16} {timed.ratio:6.2f}"
        f" {peaks['ours']:6.0f} {peaks['twin']:6.0f} {calls['ours']:>7,} {calls['twin']:>7,}"
        f" {released:>8} {timed.disturbed:>9}",
        flush=True,
    )
    return {
        row.name: round(timed.ratio, 3),
        f"{row.name}_ms": round(1e3 * statistics.median(timed.ours), 2),
        f"{row.name}_twin_ms": round(1e3 * statistics.median(timed.twin), 2),
        f"{row.name}_memory": round(peaks["twin"] / peaks["ours"], 3),
        f"{row.name}_calls": calls["ours"],
        f"{row.name}_twin_calls": calls["twin"],
    }


def compare(row: Row) -> None:
    """Raise RuntimeError unless both sides give the same outputs without dropout."""
    pair = row.make(row.clips, row.steps, dropout=False)
    with torch.no_grad():
        ours, theirs = pair.ours.call(), pair.twin.call()
    for mine, other in zip(ours, theirs, strict=True):
        apart = float((mine - other).abs().max() / other.abs().max())
        if not apart <= AGREEMENT:
            raise RuntimeError(
                f"{row.name}: the twin's outputs differ by {apart:.1e} of the largest, and "
                f"{AGREEMENT:.0e} is allowed; timing them would compare two functions"
            )


def side_of(pair: Pair, which: Which) -> Side:
    """One of both."""
    return pair.ours if which == "ours" else pair.twin


def interleaved(pair: Pair, rounds: int) -> Timed:
    """Both sides in turns."""
    for side in (pair.ours, pair.twin):
        step(side)
        step(side)
    kept: list[tuple[float, float, bool]] = []
    again = rounds
    while len(kept) < rounds:
        seconds, disturbed = one_round(pair, len(kept))
        if disturbed and again:
            again -= 1
            continue
        kept.append((*seconds, disturbed))
    ours, twin, disturbances = zip(*kept, strict=True)
    return Timed(ours=ours, twin=twin, disturbed=sum(disturbances))


def one_round(pair: Pair, number: int) -> tuple[tuple[float, float], bool]:
    """Seconds of ours and of the twin, in an order that changes; whether others were at work."""
    seconds = [0.0, 0.0]
    busy = busy_seconds()
    own = time.process_time()
    began = time.perf_counter()
    for which in (0, 1) if number % 2 else (1, 0):
        side = (pair.ours, pair.twin)[which]
        start = time.perf_counter()
        step(side)
        seconds[which] = time.perf_counter() - start
    there = (time.perf_counter() - began) * (psutil.cpu_count() or 1)
    others = busy_seconds() - busy - (time.process_time() - own)
    return (seconds[0], seconds[1]), others > OTHERS * there


def busy_seconds() -> float:
    """CPU seconds of the machine that somebody used, or that its host took."""
    spent = psutil.cpu_times()
    return float(sum(spent) - spent.idle - getattr(spent, "iowait", 0.0))


def operator_calls(side: Side) -> int:
    """What torch's profiler counts in one step, operators within operators included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(side)
    return sum(each.count for each in profile.key_averages())


# Memory


def peak_mb(row: Row, which: Which) -> float:
    """The most that two steps add to weights and inputs."""
    command = [sys.executable, __file__, "--peak-of", row.name, which]
    if row.clips != standard(row.name).clips:
        command.append("--full")
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - ours
    return float(done.stdout)


def standard(name: str) -> Row:
    """The line of this name at its usual size."""
    return next(row for row in rows(full=False) if row.name == name)


def _peak_mb(row: Row, which: Which) -> float:
    pair = row.make(row.clips, row.steps, dropout=True)
    step(side_of(row.make(2, 2, dropout=True), which))  # what is loaded once
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the preparing
    before = psutil.Process().memory_info().rss
    step(side_of(pair, which))
    step(side_of(pair, which))
    status = Path("/proc/self/status").read_text()
    return (int(status.partition("VmHWM:")[2].split()[0]) * 1024 - before) / 1e6


# Cost against length and batch


def cost(row: Row) -> dict[str, float]:
    """Milliseconds of a step by length and by batch, printed."""
    found: dict[str, float] = {}
    lengths = [(row.clips, steps) for steps in (row.steps // 4, row.steps // 2, row.steps * 2)]
    batches = [(clips, row.steps) for clips in (row.clips // 4, row.clips // 2, row.clips * 2)]
    print(f"{row.title}: by clips and steps")
    print(f"  {'clips':>5} {'steps':>5} {'ours ms':>9} {'a clip':>8} {'twin ms':>9} {'times':>6}")
    for clips, steps in [*sorted(lengths), *sorted(batches)]:
        timed = interleaved(row.make(clips, steps, dropout=True), 3)
        ours = 1e3 * statistics.median(timed.ours)
        print(
            f"  {clips:>5} {steps:>5} {ours:9.1f} {ours / clips:8.2f} {ours * timed.ratio:9.1f}"
            f" {timed.ratio:6.2f}",
            flush=True,
        )
        found[f"{row.name}_{clips}x{steps}_ms"] = round(ours, 2)
        found[f"{row.name}_{clips}x{steps}"] = round(timed.ratio, 3)
    return found


if __name__ == "__main__":
    main()
