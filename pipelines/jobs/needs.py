"""What the driver of each command holds of its node, and whether any node has that."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.executors import Need
from pipelines.experiment import InputError

GIB = 1 << 30

# The work is that of workers and ranks, which ask for their own. A driver deals it out, reads
# tables, trains nothing; its core keeps it off a head that is to do no work.
DIRECTS = Need(cpus=1, memory_bytes=1 * GIB)
# Models are loaded and clips scored in the driver itself.
COMPUTES = Need(cpus=1, memory_bytes=2 * GIB)
# Reads records or asks MLflow; at home on the head, which always has room.
READS = Need(cpus=0)

KINDS: Mapping[str, Need] = {
    **dict.fromkeys(("ingest", "featurize", "retry", "segment", "transcribe"), DIRECTS),
    **dict.fromkeys(("train", "sweep", "run", "demo", "python"), COMPUTES),
    **dict.fromkeys(("evaluate", "compare", "score", "check", "verify", "peek"), COMPUTES),
    **dict.fromkeys(("export", "import", "reproduce"), COMPUTES),
}


def need_of(
    command: Sequence[str], cpus: float | None, gpus: float | None, memory_gb: float | None
) -> Need:
    """What the driver of a command is given: what was asked for, else by the command's kind.

    Raises:
        InputError: No such number.
    """
    for option, count in (("--cpus", cpus), ("--gpus", gpus), ("--memory", memory_gb)):
        if count is not None and not (math.isfinite(count) and count >= 0):
            raise InputError(f"{option} {count}: wanted a number of 0 or more")
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise InputError(f"--gpus {gpus:g}: Ray shares one GPU; of several it gives whole ones")
    usual = KINDS.get(command[0], READS)
    return Need(
        cpus=usual.cpus if cpus is None else cpus,
        gpus=usual.gpus if gpus is None else gpus,
        memory_bytes=usual.memory_bytes if memory_gb is None else round(memory_gb * GIB),
    )


@dataclass(frozen=True, slots=True)
class Node:
    """What a node has, whether or not it is in use."""

    name: str
    resources: Mapping[str, float]

    def has(self, need: Need) -> bool:
        """Whether it has all of that when it is idle."""
        wanted = {"CPU": need.cpus, "GPU": need.gpus, "memory": need.memory_bytes}
        return all(self.resources.get(name, 0.0) >= count for name, count in wanted.items())

    def __str__(self) -> str:
        has = Need(
            self.resources.get("CPU", 0.0),
            self.resources.get("GPU", 0.0),
            int(self.resources.get("memory", 0)),
        )
        return f"{self.name} has {has}"


def check_room(need: Need, nodes: Sequence[Node], kinds: Sequence[Node] | None) -> None:
    """Raise InputError where no node, and none that may come, can ever hold the driver.

    Args:
        need: Of the driver.
        nodes: Those that are there.
        kinds: Those that may come, one of each kind; None where that is not known.
    """
    if kinds is None or any(node.has(need) for node in (*nodes, *kinds)):
        return
    order = ("GPU", "CPU", "memory")
    best = sorted((*nodes, *kinds), key=lambda n: [-n.resources.get(k, 0) for k in order])
    told = "; ".join(map(str, best[:3])) or "there is none"
    raise InputError(
        f"the job's driver asks for {need} on one node, which no node of this cluster has or will "
        f"have: {told}; ask for less by --cpus, --gpus and --memory"
    )
