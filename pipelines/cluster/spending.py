"""How long an experiment would take on a cluster, by what was measured, and what that costs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from featurizers.dataset import DatasetError, has_clips, read_clips
from featurizers.spec import FeatureSpec
from featurizers.store import StorageError
from pipelines.cluster.paces import nearest, paces
from pipelines.cluster.room import DRIVER, NodeKind, Room, Step
from pipelines.executors import Need
from pipelines.experiment import Experiment, InputError
from pipelines.featurize import jobs
from pipelines.findings import Finding, finding
from pipelines.follow import settings_of
from pipelines.forecast import SECONDS_PER_HOUR, estimate
from pipelines.logbook import read_logs
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
    experiment: Experiment,
    specs: Sequence[FeatureSpec],
    steps: Sequence[Step],
    room: Room,
    driver: Need | None = None,
) -> list[Spell]:
    """How long those steps of `run` take that nodes are paid for.

    Args:
        experiment: The settings.
        specs: Of its features.
        steps: By `room.steps_of`.
        room: The nodes that there can be.
        driver: What the driver of a job holds beside them; None where there is none.
    """
    found = []
    for name in ("transcribe", "align", "featurize", "train"):
        step = _widest(steps, name)
        if step is None:
            continue
        workers = max(1, min(step.most, room.count(step.need, driver)))
        hours: float | None
        try:
            hours, basis = _hours_of(experiment, specs, step, workers)
        except (StorageError, DatasetError) as error:
            hours, basis = None, str(error)
        found.append(Spell(step=step, workers=workers, hours=hours, basis=basis))
    return found


def _hours_of(
    experiment: Experiment, specs: Sequence[FeatureSpec], step: Step, workers: int
) -> tuple[float | None, str]:
    if step.name.startswith("featurize"):
        return _featurizing(experiment, specs, workers)
    if step.name == "train":
        return _training(experiment, workers, on_gpus=bool(step.need.gpus))
    return None, "how fast models hear is kept nowhere; what was heard before is not heard again"


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
        jobs(experiment.root, specs).todo,
        read_logs(experiment.root),
        workers,
        on_gpus=bool(experiment.workers.gpus),
    )
    return (None if seconds is None else seconds / SECONDS_PER_HOUR), basis


def _training(experiment: Experiment, ranks: int, *, on_gpus: bool) -> tuple[float | None, str]:
    if not has_clips(experiment.root):
        return None, "nothing was ingested yet; `ingest`, then `validate` again"
    try:
        clips = read_clips(experiment.root)
        recipe = experiment.recipe(task_of(experiment, clips))
    except InputError as error:
        return None, str(error)
    pace = nearest(paces(experiment.work, recipe.name), settings_of(recipe), ranks, on_gpus=on_gpus)
    if pace is None:
        return None, f"no run of {recipe.name} was trained here yet, so there is no estimate"
    label = experiment.source.label
    seen = sum(clip.split == "train" and label in clip.labels for clip in clips)
    runs = experiment.train.seeds * max(1, experiment.train.folds)
    seconds = runs * recipe.epochs * seen / pace.clips_per_s
    unlike = pace.unlike(settings_of(recipe), ranks, on_gpus=on_gpus)
    # Runs may end early. Where another pace was measured, it is no bound.
    basis = (
        f"{'roughly' if unlike else 'at most'}, for {runs} run(s) of {recipe.epochs} epochs over "
        f"{seen} clips at {pace}"
    )
    return seconds / SECONDS_PER_HOUR, "; ".join([basis, ", ".join(unlike)] if unlike else [basis])


def check(
    spells: Sequence[Spell],
    room: Room,
    prices: Prices | None,
    head: NodeKind | None,
    driver: Need | None = None,
) -> Iterator[Finding]:
    """Hours of each spell, and what all of it costs: nothing of this fails.

    Args:
        spells: What takes long.
        room: The nodes that there can be.
        prices: Of an hour.
        head: The node that is there all the time.
        driver: What the driver of a job holds of a node all the time; None where there is none.
    """
    for each in spells:
        what = each.step.name.split()[0]
        if each.hours is None:
            yield finding(AREA, what, "ok", f"hours are not known: {each.basis}")
        else:
            yield finding(AREA, what, "ok", f"{_hours(each.hours)} {each.basis}")
    yield _cost(spells, room, prices, head, driver)


def _cost(
    spells: Sequence[Spell],
    room: Room,
    prices: Prices | None,
    head: NodeKind | None,
    driver: Need | None,
) -> Finding:
    if prices is None:
        do = "write prices: {currency: USD, NODE TYPE or CPU or GPU: price of an hour}"
        return finding(AREA, "cost", "ok", "not known: the experiment file has no prices", do)
    parts, total, unknown, alone = [], 0.0, [], 0.0
    home = None if driver is None else _home(room, driver)
    for each in spells:
        what = each.step.name.split()[0]
        kind = next((kind for kind in room.kinds if kind.holds(each.step.need)), None)
        price = None if kind is None else price_of(kind, prices.by_name)
        if each.hours is None or kind is None or price is None:
            why = "hours" if each.hours is None else f"price of {kind.name if kind else 'a node'}"
            unknown.append(f"{what} ({why})")
            continue
        beside = driver if kind == home else None
        nodes = _nodes(each, kind, beside)
        alone += 0.0 if kind == home else each.hours
        total += nodes * each.hours * price
        parts.append(f"{what} {each.hours:.2f} h x {nodes} {kind.name} at {price:g}")
    if home is not None and alone:
        price = price_of(home, prices.by_name)
        if price is None:
            unknown.append(f"{DRIVER} (price of {home.name})")
        else:
            total += alone * price
            parts.append(f"{DRIVER} {alone:.2f} h x 1 {home.name} at {price:g}")
    hours = sum(each.hours or 0.0 for each in spells)
    if head is not None and parts and (price := price_of(head, prices.by_name)):
        total += hours * price
        parts.append(f"{head.name} {hours:.2f} h at {price:g}")
    found = f"about {total:.2f} {prices.currency}: {', '.join(parts)}" if parts else "not known"
    if unknown:
        found += f"; without {', '.join(unknown)}, which is not known"
    return finding(AREA, "cost", "ok", found)


def _home(room: Room, driver: Need) -> NodeKind | None:
    """Where a job's driver goes: Ray leaves nodes with GPUs to those that ask for one."""
    holding = [kind for kind in room.kinds if kind.holds(driver)]
    return min(holding, key=lambda kind: bool(kind.resources.get("GPU")), default=None)


def _nodes(spell: Spell, kind: NodeKind, driver: Need | None) -> int:
    """How many nodes of a kind a step's workers fill, beside a driver on one of them."""
    each = kind.holds(spell.step.need)
    lost = 0 if driver is None else each - kind.holds(spell.step.need, driver)
    return math.ceil((spell.workers + lost) / each)


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
