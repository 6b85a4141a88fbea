"""Where work runs: in this process, or on actors of a Ray cluster. Both give the same results."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pipelines import HOME, stopping
from pipelines.experiment import FailedError

Item = TypeVar("Item")
Result = TypeVar("Result")

HEAD = "node:__internal_head__"  # which Ray counts as a resource of the head
PATIENCE_S = 1800.0
COORDINATED_S = 60.0
FIRST_LOOK = 256  # items whose needs are known before the first worker is asked for


class ItemFailedError(FailedError):
    """One item cannot be done as things are, which says nothing about the others.

    What concerns all of them, such as a full disk, is no such error. Subclasses take one text.
    """


class WorkerDiedError(FailedError):
    """Workers died again and again; what other items gave was handed out before."""


class NoRoomError(FailedError):
    """No node has what an item needs."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a worker holds of its node for as long as it lives."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPU"]
        if self.gpus:
            parts.append(f"{self.gpus:g} GPU")
        if self.memory_bytes:
            parts.append(f"{self.memory_bytes / 2**30:.1f} GiB of memory")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Answer(Generic[Result]):
    """What one item gave.

    Attributes:
        number: The item's place.
        attempts: How often it was begun; more than 1 when a worker died.
        queued_seconds: From its handing over to the worker that gave this, until that began on it:
            how long it stood behind the item before it, and on the way.
    """

    number: int
    result: Result
    attempts: int = 1
    queued_seconds: float = 0.0


def one_cpu(item: object) -> Need:
    """The need of whatever asks for nothing else."""
    return Need()


class Executor(Protocol):
    """Runs one function over many items."""

    def run(
        self,
        make_worker: Callable[[], Callable[[Item], Result]],
        items: Sequence[Item],
        need: Callable[[Item], Need] = one_cpu,
    ) -> Iterator[Answer[Result]]:
        """Answers as they come, each item's once.

        Args:
            make_worker: Makes the function, once in each worker; it may hold what is costly to
                make.
            items: What the function is called with; may make them when they are asked for, and is
                then asked for some of them twice.
            need: What a worker for this item holds. Workers are shared by items of equal need.

        Raises:
            ItemFailedError: The function raised it for some items; the others are finished before.
                Any other exception of the function ends the run at once.
        """


class InProcess:
    """One after the other, here; needs are not asked for."""

    def run(
        self,
        make_worker: Callable[[], Callable[[Item], Result]],
        items: Sequence[Item],
        need: Callable[[Item], Need] = one_cpu,
    ) -> Iterator[Answer[Result]]:
        """See `Executor`."""
        worker = make_worker()
        failed: dict[int, ItemFailedError] = {}
        try:
            for number in range(len(items)):
                stopping.check()
                try:
                    result = worker(items[number])
                except ItemFailedError as error:
                    failed[number] = error
                    continue
                yield Answer(number, result)
        finally:
            _close(worker)
        if failed:
            raise together(failed)


def _close(worker: object) -> None:
    """Let a worker end what it started, where it knows how."""
    close = getattr(worker, "close", None)
    if close is not None:
        close()


def together(failed: Mapping[int, ItemFailedError]) -> ItemFailedError:
    """One error for all items that failed: the first item's, and how many more there are."""
    first = failed[min(failed)]
    if len(failed) == 1:
        return first
    return type(first)(f"{first}; {len(failed) - 1} more failed, all others are finished")


def _say(line: str) -> None:
    logging.getLogger(__name__).warning(line)


class OnRay:
    """On actors: as many as the cluster has room for; those that die are replaced.

    Args:
        workers: The most actors for each need, at least 1.
        patience_s: How long to wait for a node that has what is needed, on a cluster that may grow.
        told: Told that workers are started, and once in a while what is waited for.
    """

    def __init__(
        self,
        workers: int,
        *,
        patience_s: float = PATIENCE_S,
        told: Callable[[str], None] = _say,
    ) -> None:
        self.workers, self._patience_s, self._told = workers, patience_s, told

    def run(
        self,
        make_worker: Callable[[], Callable[[Item], Result]],
        items: Sequence[Item],
        need: Callable[[Item], Need] = one_cpu,
    ) -> Iterator[Answer[Result]]:
        """See `Executor`.

        Raises:
            WorkerDiedError: Workers died on the same item too often. Others are finished first.
            NoRoomError: No node has what an item needs: at once on this machine, after a while on a
                cluster that was joined.
        """
        if not items:
            return
        from pipelines.crew import Backlog, Crew, Waiting

        backlog = Backlog(items, need)
        backlog.read(FIRST_LOOK)
        most = self.workers * len(backlog.needs)
        # It takes a while until they are up, and nothing is told before the first result.
        self._told(f"starting {min(most, len(items))} worker(s)")
        start_ray(most)
        waiting = Waiting(self._patience_s if joins() else 0.0, self._told)
        crew = Crew(make_worker, backlog, self.workers, waiting, own=not joins())
        try:
            yield from crew.answers()
        finally:
            crew.close()


def executor(workers: int) -> Executor:
    """In this process for 0 workers, otherwise on Ray."""
    return InProcess() if workers == 0 else OnRay(workers)


def joins() -> bool:
    """Whether Ray means a cluster that is there already, and not one for this process alone."""
    return bool(os.environ.get("RAY_ADDRESS"))


def start_ray(cpus: int) -> None:
    """Join the cluster at RAY_ADDRESS, or start one on this machine with at least these CPUs.

    One that was started here and is too small is started anew. A cluster that was joined may still
    grow.
    """
    # Ray prints that a worker died on standard output, also without `log_to_driver` (2.60.0): a
    # line between ours is no JSON. It reads this variable when it is imported.
    # Held by test_what_ray_says_of_dead_workers_is_not_on_standard_output.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    import ray

    if ray.is_initialized():
        if joins() or resources().get("CPU", 0.0) >= cpus:
            return
        ray.shutdown()
    # Ray Train's controller looks at reports every 2 s, and a rank waits for it (2.60.0).
    # Held by test_a_report_of_training_does_not_wait_for_seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Ray puts the folder that it is started in on the path of all workers, before everything else
    # (2.60.0): somebody's own training/ there would be imported instead of ours.
    # Held by test_workers_import_our_packages_and_not_those_of_the_current_folder.
    with contextlib.chdir(HOME), _sigterm_kept():
        if joins():
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            # "local": without it Ray joins whatever cluster it finds on this machine (2.60.0).
            # Held by test_a_cluster_of_somebody_else_on_this_machine_is_not_joined.
            ray.init(
                address="local",
                num_cpus=max(cpus, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )


def coordinate_on_head() -> None:
    """Have Ray Train's coordinator made on the head, where this process is on another node.

    Ray Train (2.60.0) makes it on the node of the first driver that trains, for good, and for all
    drivers to come: that node is never idle again, and no autoscaler gives it back.
    Held by test_a_node_on_which_a_driver_trained_is_idle_again.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call] # Ray's
    heads = [each["NodeID"] for each in nodes if each["Alive"] and HEAD in each["Resources"]]
    if not heads or ray.get_runtime_context().get_node_id() in heads:
        return
    there = NodeAffinitySchedulingStrategy(heads[0], soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(_coordinate)
    # Without it, training goes as well, and the node stays.
    with contextlib.suppress(RayError):
        ray.get(task.options(scheduling_strategy=there).remote(), timeout=COORDINATED_S)


def _coordinate() -> None:
    import ray
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

    its: Any = default_autoscaling_coordinator  # it has no types
    ray.get(its.get_or_create_autoscaling_coordinator().__ray_ready__.remote())


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Put back the answer to SIGTERM that `ray.init` replaces.

    Its own (2.60.0) prints a stack dump and dies, and one that comes while it starts ends the
    process as if by `sys.exit`.
    Held by test_a_signal_ends_work_with_its_code_and_one_line.
    """
    before = signal.getsignal(signal.SIGTERM)
    ours = callable(before) and threading.current_thread() is threading.main_thread()
    try:
        yield
    except SystemExit:
        if ours and callable(before):
            before(signal.SIGTERM, None)
        raise
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)


def resources() -> dict[str, float]:
    """What the whole cluster has, by name."""
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call] # Ray's
    return found


def stop_ray() -> None:
    """Leave the cluster; ends one that `start_ray` started."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
