"""Whether an experiment would run on a cluster, before anything is spent.

The cluster is the one at an address, or the one that a file of `ray up` would start, or both; with
neither it is this machine. Nothing is started: nodes that are there are asked, and where there are
none yet, the file and the disks here tell. Read `validate` top to bottom.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from featurizers.spec import FeatureSpec
from pipelines.cluster import launcher, live, shared, spending
from pipelines.cluster.launcher import ClusterFile
from pipelines.cluster.live import Live, Question, UnreachedError
from pipelines.cluster.room import NodeKind, Room, Step, check_device, check_room, steps_of
from pipelines.doctor import check_features
from pipelines.executors import Need
from pipelines.experiment import Experiment, InputError, check
from pipelines.findings import Finding, finding
from pipelines.jobs.needed import MEDIA
from pipelines.jobs.needs import KINDS

STEPS: Mapping[str, frozenset[str]] = {
    "ingest": frozenset({"ingest", "transcribe", "align"}),
    "segment": frozenset({"segment"}),
    "transcribe": frozenset({"transcribe"}),
    "featurize": frozenset({"featurize"}),
    "retry": frozenset({"featurize"}),
    "train": frozenset({"train"}),
    "sweep": frozenset({"train", "sweep"}),
}
"""The steps that have workers, by command; `run` does them all, and others none."""
LOGS = frozenset({"compare", "evaluate", "promote", "reproduce", "run", "sweep", "train"})
"""Commands that write to the tracking store."""


def validate(
    experiment: Experiment | None,
    *,
    cluster: Path | None = None,
    address: str | None = None,
    driver: Need | None = None,
    variables: Mapping[str, str] | None = None,
    copy: Path | None = None,
    command: str = "run",
) -> Iterator[Finding]:
    """Look at everything that can be known beforehand, one finding after the other.

    Args:
        experiment: The settings, as `experiment.outline` gives them; None to look at the cluster
            alone.
        cluster: The file of Ray's cluster launcher.
        address: Of a live cluster: http://HOST:8265 or HOST:6379.
        driver: What the driver of a job is to hold; None for what `run` does.
        variables: The environment that a job is given; None where none is submitted yet.
        copy: The working directory that goes along with a job; None where all nodes reach it.
        command: What is to be done; what it does not use is not looked at.

    Raises:
        InputError: There is no such cluster file, or Ray refuses it.
    """
    file = None if cluster is None else launcher.read(cluster)
    if file is not None:
        yield from launcher.check(file)
    places = _used(experiment, copy, command, submitted=variables is not None)
    there: Live | None = None
    store = shared.chosen_store(variables)
    with shared.marked(places if address else [], store) as question:
        if address:
            try:
                there = live.ask(address, question)
            except UnreachedError as error:
                yield finding("cluster", "address", "failed", str(error))
    if there is not None:
        yield from live.check(there)
    if experiment is None:
        yield from _driver(driver, file, there)
        return
    specs: list[FeatureSpec] = []
    yield from _built(experiment, specs)
    if address and there is None and file is None:
        return  # nothing is known of where it would run
    yield from _placed(
        experiment, specs, file, there, driver=driver or KINDS["run"], command=command
    )
    if _several(file, there):
        yield from _shared(experiment, places, question, file, there)
    yield from _store(experiment, file, there, variables, copy=copy, command=command)


def _used(
    experiment: Experiment | None, copy: Path | None, command: str, *, submitted: bool
) -> list[shared.Place]:
    """What a command uses besides code, and does not bring along; a job takes no more than that."""
    places = [] if experiment is None else shared.places_of(experiment, copy)
    used = [each for each in places if each.what != "media" or command in MEDIA]
    return [replace(each, along=each.along and not submitted) for each in used]


def _several(file: ClusterFile | None, there: Live | None) -> bool:
    """Whether there is, or will be, more than one node: an idle cluster that grows is one now."""
    live = 0 if there is None else max(len(there.nodes), _most(there.room()))
    return file is not None or live > 1


def _store(
    experiment: Experiment,
    file: ClusterFile | None,
    there: Live | None,
    variables: Mapping[str, str] | None,
    *,
    copy: Path | None,
    command: str,
) -> Iterator[Finding]:
    """Whether runs, where a command writes any, go where all nodes reach them, and stay."""
    if command not in LOGS:
        return
    if copy is not None and not shared.is_named(there, variables):
        yield shared.lost_with_copy()
    elif _several(file, there):
        yield shared.check_store(experiment.folder, file, there, variables)


def _built(experiment: Experiment, specs: list[FeatureSpec]) -> Iterator[Finding]:
    """Whether features and model can be built at all; leaves the specs of those that can."""
    found = list(check_features(experiment))
    yield from found
    if any(each.state == "failed" for each in found):
        return
    specs += [each.spec for each in experiment.featurizers().values()]
    try:
        check(experiment)
    except InputError as error:
        yield finding("model", experiment.model.recipe, "failed", str(error))
    else:
        yield finding("model", experiment.model.recipe, "ok", "can be built for these features")


def _placed(
    experiment: Experiment,
    specs: list[FeatureSpec],
    file: ClusterFile | None,
    there: Live | None,
    *,
    driver: Need,
    command: str,
) -> Iterator[Finding]:
    """Whether each step finds a node, how long it takes, and what that costs."""
    rooms = _rooms(file, there)
    # From a shell on one of its machines the driver takes no part of the cluster; on the head it
    # takes nothing of a node that works.
    job = there.by_job if there is not None else file is not None
    held = driver if job and (driver.cpus or driver.gpus) else None
    for room in rooms:
        yield from check_room(_steps(experiment, specs, room, command), room, held)
    if command == "run" or "train" in STEPS.get(command, ()):
        yield from check_device(experiment, rooms)
    if not rooms:
        found = "what the machines have is not stated in the file"
        do = "start the cluster, and give --address"
        yield finding("room", "nodes", "warning", found, do)
        return
    room = rooms[0]
    steps = _steps(experiment, specs, room, command)
    spells = spending.spells(experiment, specs, steps, room, held)
    yield from spending.check(spells, room, experiment.prices, _head(file), held)


def _steps(
    experiment: Experiment, specs: Sequence[FeatureSpec], room: Room, command: str
) -> list[Step]:
    """The work that a command gives to workers."""
    steps = steps_of(experiment, specs, room)
    mine = STEPS.get(command, ())
    return [each for each in steps if command == "run" or each.name.split()[0] in mine]


def _driver(driver: Need | None, file: ClusterFile | None, there: Live | None) -> Iterator[Finding]:
    """Whether any node, also one that may come, has room for the driver of a job."""
    if driver is not None and (driver.cpus or driver.gpus):
        for room in _rooms(file, there):
            yield from check_room([], room, driver)


def _rooms(file: ClusterFile | None, there: Live | None) -> list[Room]:
    """What there is to run on, as far as it is known."""
    rooms = [file.room()] if file is not None and file.stated else []
    # What is there now says little of a cluster that grows by its file.
    if there is not None and (any(kind.resources for kind in there.kinds or ()) or not rooms):
        rooms.append(there.room())
    if file is None and there is None:
        rooms.append(this_machine())
    return rooms


def _most(room: Room) -> int:
    return room.most + room.unknown


def _head(file: ClusterFile | None) -> NodeKind | None:
    if file is None:
        return None
    resources = file.kinds[file.head].get("resources", {})
    return NodeKind(name=file.head, resources=resources, most=1, least=1)


def _shared(
    experiment: Experiment,
    places: list[shared.Place],
    question: Question,
    file: ClusterFile | None,
    there: Live | None,
) -> Iterator[Finding]:
    """Whether more than one node reaches what all of them use."""
    if there is not None and any(node.works and not node.error for node in there.nodes):
        yield from shared.check_live(places, question, there)
    else:
        yield from shared.check_unasked(places, file)


def this_machine() -> Room:
    """Where work runs without a cluster."""
    import psutil
    import torch

    resources = {
        "CPU": float(os.cpu_count() or 1),
        "GPU": float(torch.cuda.device_count()),
        "memory": float(psutil.virtual_memory().total),
    }
    kind = NodeKind(name="this machine", resources=resources, most=1, least=1)
    return Room(kinds=[kind], most=1, source="this machine")
