"""How long an experiment would take on a cluster, by what was measured, and what that costs."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from featurizers.dataset import DatasetError, has_clips, read_clips
from featurizers.spec import FeatureSpec
from featurizers.store import StorageError
from pipelines.cluster.room import NodeKind, Room, Step
from pipelines.experiment import Experiment, InputError
from pipelines.featurize import jobs
from pipelines.findings import Finding, finding
from pipelines.forecast import SECONDS_PER_HOUR, estimate
from pipelines.logbook import read_logs
from pipelines.plans import FOLDER, PROGRESS
from pipelines.sections import Prices
from pipelines.sources import task_of

AREA = "estimate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spell:
    """How long one kind of work takes.

    Attributes:
        step: The work.
        workers: How many do it at once.
        hours: None where nothing like it was measured.
        basis: Where that is known from, or why it is not.
    """

    step: Step
    workers: int
    hours: float | None
    basis: str


def spells(
    experiment: Experiment, specs: Sequence[FeatureSpec], steps: Sequence[Step], room: Room
) -> list[Spell]:
    """How long featurizing and training take; other steps are short beside these."""
    found = []
    widest = {"featurize": _widest(steps, "featurize"), "train": _widest(steps, "train")}
    for name, step in widest.items():
        if step is None:
            continue
        workers = min(step.most, room.count(step.need))
        tell = _featurizing if name == "featurize" else _training
        hours: float | None
        try:
            hours, basis = tell(experiment, specs, max(1, workers))
        except (StorageError, DatasetError) as error:
            hours, basis = None, str(error)
        found.append(Spell(step=step, workers=max(1, workers), hours=hours, basis=basis))
    return found


def _widest(steps: Sequence[Step], name: str) -> Step | None:
    """The step of this name whose workers hold most."""
    mine = [step for step in steps if step.name.split()[0] == name]
    return max(mine, key=lambda step: (step.need.gpus, step.need.memory_bytes), default=None)


def _featurizing(
    experiment: Experiment, specs: Sequence[FeatureSpec], workers: int
) -> tuple[float | None, str]:
    if not has_clips(experiment.root):
        return None, "nothing was ingested yet; `ingest`, then `validate` again"
    if not specs:
        return None, "the features cannot be built here"
    seconds, basis = estimate(
        jobs(experiment.root, specs).todo, read_logs(experiment.root), workers
    )
    return (None if seconds is None else seconds / SECONDS_PER_HOUR), basis


def _training(
    experiment: Experiment, specs: Sequence[FeatureSpec], ranks: int
) -> tuple[float | None, str]:
    if not has_clips(experiment.root):
        return None, "nothing was ingested yet; `ingest`, then `validate` again"
    try:
        clips = read_clips(experiment.root)
        recipe = experiment.recipe(task_of(experiment, clips))
    except InputError as error:
        return None, str(error)
    speed, measured_on = _pace(experiment, recipe.name)
    if not speed:
        return None, f"no run of {recipe.name} was trained here yet, so there is no estimate"
    label = experiment.source.label
    seen = sum(clip.split == "train" and label in clip.labels for clip in clips)
    runs = experiment.train.seeds * max(1, experiment.train.folds)
    seconds = runs * recipe.epochs * seen / speed
    basis = (
        f"at most, for {runs} run(s) of {recipe.epochs} epochs over {seen} clips at "
        f"{speed:.0f} clips/s, measured on {measured_on} rank(s)"
    )
    if measured_on != ranks:
        basis += f", and {ranks} are to train"
    return seconds / SECONDS_PER_HOUR, basis


def _pace(experiment: Experiment, recipe: str) -> tuple[float, int]:
    """Clips a second in earlier runs of a recipe here, and on how many ranks; 0 for none."""
    speeds: list[float] = []
    ranks = 1
    folder = experiment.work / FOLDER
    for file in sorted(folder.glob(f"{recipe}-*/{PROGRESS}")):
        for line in file.read_text().splitlines():
            try:
                entry = json.loads(line)
                speeds.append(float(entry["metrics"]["samples_per_second"]))
                ranks = int(entry.get("ranks", ranks))
            except (ValueError, KeyError, TypeError):  # a sentence, or cut short by a kill
                continue
    return (median(speeds), ranks) if speeds else (0.0, ranks)


def check(
    spells: Sequence[Spell], room: Room, prices: Prices | None, head: NodeKind | None
) -> Iterator[Finding]:
    """Hours of each spell, and what all of it costs: nothing of this fails.

    Args:
        spells: What takes long.
        room: The nodes that there can be.
        prices: Of an hour.
        head: The node that is there all the time.
    """
    for each in spells:
        what = each.step.name.split()[0]
        if each.hours is None:
            yield finding(AREA, what, "ok", f"hours are not known: {each.basis}")
        else:
            yield finding(AREA, what, "ok", f"{_hours(each.hours)} {each.basis}")
    yield _cost(spells, room, prices, head)


def _cost(
    spells: Sequence[Spell], room: Room, prices: Prices | None, head: NodeKind | None
) -> Finding:
    if prices is None:
        do = "write prices: {currency: USD, NODE TYPE or CPU or GPU: price of an hour}"
        return finding(AREA, "cost", "ok", "not known: the experiment file has no prices", do)
    parts, total, unknown = [], 0.0, []
    for each in spells:
        what = each.step.name.split()[0]
        kind = next((kind for kind in room.kinds if kind.holds(each.step.need)), None)
        price = None if kind is None else price_of(kind, prices.by_name)
        if each.hours is None or kind is None or price is None:
            why = "hours" if each.hours is None else f"price of {kind.name if kind else 'a node'}"
            unknown.append(f"{what} ({why})")
            continue
        nodes = math.ceil(each.workers / kind.holds(each.step.need))
        total += nodes * each.hours * price
        parts.append(f"{what} {each.hours:.2f} h x {nodes} {kind.name} at {price:g}")
    hours = sum(each.hours or 0.0 for each in spells)
    if head is not None and parts and (price := price_of(head, prices.by_name)):
        total += hours * price
        parts.append(f"{head.name} {hours:.2f} h at {price:g}")
    found = f"about {total:.2f} {prices.currency}: {', '.join(parts)}" if parts else "not known"
    if unknown:
        found += f"; without {', '.join(unknown)}, which is not known"
    return finding(AREA, "cost", "ok", found)


def price_of(kind: NodeKind, prices: Mapping[str, float]) -> float | None:
    """Of an hour of one node: that of its type, else of what it has; None where neither is told."""
    if kind.name in prices:
        return prices[kind.name]
    parts = {name: kind.resources.get(name, 0.0) for name in ("CPU", "GPU")}
    if any(amount and name not in prices for name, amount in parts.items()):
        return None
    return sum(amount * prices.get(name, 0.0) for name, amount in parts.items())


def _hours(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 0.01 else "less than a minute"
