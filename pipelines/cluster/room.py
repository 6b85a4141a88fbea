"""What the steps of an experiment ask of nodes, and what nodes a cluster can ever have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from featurizers.spec import FeatureSpec
from pipelines.executors import Need
from pipelines.experiment import Experiment
from pipelines.featurize import by_stream
from pipelines.findings import Finding, finding
from pipelines.worker import Job, Part, need_of

GIB = 1 << 30
DRIVER = "driver of a job"
_ON_HEAD = "give `job submit` --cpus 0 --memory 0, which runs the driver on the head"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKind:
    """Nodes that are alike.

    Attributes:
        resources: Of one node by Ray's names; memory, in bytes, may be unknown and is left out. It
            is 0 where an autoscaler is not told of it: Ray then starts none for who asks for some.
        most: How many of them there can be.
        least: How many there always are, or are now.
        spot: Whether they may be taken away.
    """

    name: str
    resources: Mapping[str, float]
    most: int
    least: int = 0
    spot: bool = False

    def holds(self, need: Need, beside: Need | None = None) -> int:
        """How many workers of a need one node has room for, beside another one or none."""
        amounts, taken = asked(need), {} if beside is None else asked(beside)
        if "memory" not in self.resources:
            amounts.pop("memory", None)
        left = {name: self.resources.get(name, 0.0) - taken.get(name, 0.0) for name in amounts}
        return max(0, int(min((left[name] // amounts[name] for name in amounts), default=0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a cluster can ever have.

    Attributes:
        kinds: Of its nodes, in order of preference.
        most: Nodes over all kinds.
        source: Where that is known from, for messages.
        unknown: How many more may come of which nobody states what they have.
    """

    kinds: Sequence[NodeKind]
    most: int
    source: str
    unknown: int = 0

    def count(self, need: Need, beside: Need | None = None) -> int:
        """How many workers of a need there is ever room for at once.

        Args:
            need: Of each.
            beside: Of one other, which is where it takes the least of them their room.
        """
        if beside is not None:
            lost = [
                kind.holds(need) - kind.holds(need, beside)
                for kind in self.kinds
                if kind.most and kind.holds(beside)
            ]
            return self.count(need) - min(lost, default=0)
        left, total = self.most, 0
        for kind in sorted(self.kinds, key=lambda kind: -kind.holds(need)):
            nodes = min(left, kind.most)
            total += nodes * kind.holds(need)
            left -= nodes
        return total

    @property
    def gpus(self) -> bool:
        """Whether any node has a GPU."""
        return any(kind.most and kind.resources.get("GPU", 0.0) >= 1 for kind in self.kinds)

    @property
    def gpus_now(self) -> bool:
        """Whether a node with a GPU is always there."""
        return any(kind.least and kind.resources.get("GPU", 0.0) >= 1 for kind in self.kinds)

    def __str__(self) -> str:
        told = [f"{kind.most} x {kind.name} ({_told(kind.resources)})" for kind in self.kinds]
        return ", ".join(told) or "no node that works"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Work of one kind.

    Attributes:
        name: The command, with what of it.
        need: What one worker holds.
        least: Workers that there must be room for at once.
        most: Workers that are wanted.
        cure: What to change in the experiment file where there is no room.
    """

    name: str
    need: Need
    least: int = 1
    most: int = 1
    cure: str = ""


def asked(need: Need) -> dict[str, float]:
    """A need by Ray's names."""
    amounts = {"CPU": need.cpus, "GPU": need.gpus, "memory": float(need.memory_bytes)}
    return {name: amount for name, amount in amounts.items() if amount}


def steps_of(experiment: Experiment, specs: Sequence[FeatureSpec], room: Room) -> list[Step]:
    """All work that is given to workers; what runs in the driver's own process asks for nothing."""
    return [*_before(experiment), *_featurize(experiment, specs), *_train(experiment, room)]


def _before(experiment: Experiment) -> Iterator[Step]:
    workers = experiment.workers
    if not workers.featurize:
        return
    source = experiment.source
    hears = Need(gpus=workers.gpus)
    yield Step(name="ingest", need=Need(), most=workers.featurize)
    if experiment.segment is not None:
        yield Step(name="segment", need=Need(), most=workers.featurize)
    for name, section in (("transcribe", source.transcribe), ("align", source.align)):
        if section is not None:
            yield Step(
                name=name, need=hears, most=workers.featurize, cure="set workers.gpus to less, or 0"
            )


def _featurize(experiment: Experiment, specs: Sequence[FeatureSpec]) -> Iterator[Step]:
    workers = experiment.workers
    if not workers.featurize:
        return
    parts = [Part(spec=spec, job="") for spec in specs]
    found: dict[Need, list[str]] = {}
    for group in by_stream(parts):
        job = Job(shard=0, clips=(), parts=tuple(group))
        need = need_of(job, int(workers.memory_gb * GIB), workers.gpus)
        found.setdefault(need, []).extend(part.spec.name for part in group)
    for need, names in found.items():
        settings = [
            *(["workers.gpus"] * bool(need.gpus)),
            *(["workers.memory_gb"] * bool(need.memory_bytes)),
        ]
        yield Step(
            name=f"featurize {', '.join(names)}",
            need=need,
            most=workers.featurize,
            cure=f"set {' or '.join(settings)} to less" if settings else "",
        )


def _train(experiment: Experiment, room: Room) -> Iterator[Step]:
    device, ranks = experiment.train.device, experiment.workers.train
    on_gpus = device == "cuda" or (device == "auto" and room.gpus)
    rank = Need(gpus=1.0) if on_gpus else Need()
    # Where nobody said on what they train, as many ranks train as there are GPUs.
    least = 1 if on_gpus and device == "auto" else ranks.least
    yield Step(
        name="train",
        need=rank,
        least=least,
        most=ranks.most,
        cure="set workers.train to fewer, or train.device: cpu" if on_gpus else "set workers.train",
    )
    if experiment.sweep is not None:
        yield Step(
            name="sweep",
            need=rank,
            most=experiment.sweep.parallel,
            cure="set train.device: cpu" if on_gpus else "",
        )


def check_room(steps: Sequence[Step], room: Room, driver: Need | None = None) -> Iterator[Finding]:
    """Whether each step can ever run; one that can but not as wide as wanted is told, too.

    Args:
        steps: What is to run.
        room: The nodes that there can be.
        driver: What the driver of a job holds of a node as long as all of it takes; None for one
            that is no job.
    """
    if driver is not None:
        yield _check_step(Step(name=DRIVER, need=driver, cure=_ON_HEAD), room, None)
    for step in steps:
        yield _check_step(step, room, driver)


def check_device(experiment: Experiment, rooms: Sequence[Room]) -> Iterator[Finding]:
    """Whether ranks would miss GPUs that come only when they are asked for."""
    if experiment.train.device != "auto" or any(room.gpus_now for room in rooms):
        return
    if any(room.gpus for room in rooms):
        yield finding(
            "room",
            "train.device",
            "warning",
            "auto looks for GPUs that are there when training begins, and none is there before it "
            "is asked for: it would train on processors",
            "set train.device: cuda",
        )


def _check_step(step: Step, room: Room, driver: Need | None) -> Finding:
    there, each = room.count(step.need, driver), f"{step.need} each"
    if there < step.least:
        many = f"{step.least} workers with " * (step.least > 1)
        alone = room.count(step.need)
        beside = f" beside the job's driver ({driver})" if there < alone else ""
        found = f"wants {many}{each}; {room.source} has room for {there}{beside}: {room}"
        if room.unknown:
            found += "; of nodes that may still come nobody states what they have"
            return finding("room", step.name, "warning", found)
        do = step.cure or "choose nodes that have it"
        if alone >= step.least:
            do = f"{_ON_HEAD}; or {do}"
        return finding("room", step.name, "failed", found, do)
    some = f"{there} of " if there < step.most else ""
    found = f"{some}{step.most} worker(s) at once, {each}, on {room.source}"
    if step.need.memory_bytes and not all("memory" in kind.resources for kind in room.kinds):
        found += "; what memory its nodes have is not stated"
    return finding("room", step.name, "ok", found)


def _told(resources: Mapping[str, float]) -> str:
    parts = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)]
    if memory := resources.get("memory"):
        parts.append(f"{memory / GIB:.1f} GiB")
    elif memory is not None:
        parts.append("memory not stated")
    return ", ".join(parts) or "no CPU"
