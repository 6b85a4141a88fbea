"""Where work runs: in this process, or on actors of a Ray cluster. Both give the same results."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from pipelines import HOME

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT = 2  # jobs that wait at each actor: it never idles, and nothing piles up
DRAIN_S = 60.0
TASK_RETRIES = 3


class WorkerDiedError(Exception):
    """A worker died again and again on one job; nothing of that job was kept."""


class Executor(Protocol):
    """Runs one function over many items."""

    def run(
        self, make_worker: Callable[[], Callable[[Item], Result]], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        """Results with their item's number, as they finish.

        Args:
            make_worker: Makes the function, once in each process; it may hold what is costly to
                make.
            items: What it is called with. An exception of the function ends the run.
        """


class InProcess:
    """One after the other, here."""

    def run(
        self, make_worker: Callable[[], Callable[[Item], Result]], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        """See `Executor`."""
        worker = make_worker()
        for number, item in enumerate(items):
            yield number, worker(item)


class OnRay:
    """On actors, each with one CPU; an actor that dies is started again and its jobs are repeated.

    Args:
        workers: Number of actors, at least 1.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(
        self, make_worker: Callable[[], Callable[[Item], Result]], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        """See `Executor`."""
        if not items:
            return
        start_ray(self.workers)
        pool = _Pool(make_worker, self.workers, items)
        try:
            yield from pool.results()
        except Exception:
            pool.drain()
            raise
        finally:
            pool.close()


class _Pool:
    """Actors, and what flies to and from them."""

    def __init__(
        self, make_worker: Callable[[], Callable[[Any], Any]], workers: int, items: Sequence[Any]
    ) -> None:
        import ray

        actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=TASK_RETRIES)(_Actor)
        self._actors: list[Any] = [
            actor.remote(make_worker) for _ in range(min(workers, len(items)))
        ]
        self._waiting = iter(enumerate(items))
        self._flying: dict[Any, tuple[int, Any]] = {}

    def results(self) -> Iterator[tuple[int, Any]]:
        """Results as they finish; a free actor gets the next item."""
        import ray

        for _ in range(IN_FLIGHT):
            for each in self._actors:
                self._send(each)
        while self._flying:
            ready, _ = ray.wait(list(self._flying), num_returns=1)
            number, free = self._flying.pop(ready[0])
            result = _value(ready[0])
            self._send(free)
            yield number, result

    def drain(self) -> None:
        """Let what is in flight finish: Ray would report killed calls on standard error."""
        import ray

        if self._flying:
            ray.wait(list(self._flying), num_returns=len(self._flying), timeout=DRAIN_S)

    def close(self) -> None:
        """End the actors."""
        import ray

        for each in self._actors:
            ray.kill(each)

    def _send(self, actor: Any) -> None:  # noqa: ANN401 - Ray's handle has no type
        for number, item in self._waiting:
            self._flying[actor.call.remote(item)] = (number, actor)
            return


class _Actor:
    def __init__(self, make_worker: Callable[[], Callable[[Any], Any]]) -> None:
        self._worker = make_worker()

    def call(self, item: Any) -> Any:  # noqa: ANN401 - passes on
        return self._worker(item)


def _value(reference: Any) -> Any:  # noqa: ANN401 - Ray's reference has no type
    """The result, or the worker's own exception instead of Ray's wrapping of it."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise WorkerDiedError(
            f"a worker died {TASK_RETRIES + 1} times on the same job, perhaps for want of memory; "
            f"finished jobs are kept, run again with fewer workers. {error}"
        ) from None


def executor(workers: int) -> Executor:
    """In this process for 0 workers, otherwise on Ray."""
    return InProcess() if workers == 0 else OnRay(workers)


def start_ray(cpus: int) -> None:
    """Join the cluster at RAY_ADDRESS, or start one on this machine with at least these CPUs.

    One that was started here and is too small is started anew: Ray would wait for ever for what it
    does not have. A cluster that was joined may still grow.
    """
    import ray

    joining = bool(os.environ.get("RAY_ADDRESS"))
    if ray.is_initialized():
        if joining or resources().get("CPU", 0.0) >= cpus:
            return
        ray.shutdown()
    # Without these, one report of a checkpoint takes two seconds, and workers change their devices.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray puts the folder that it is started in on the path of all workers, before everything else:
    # somebody's own training/ there would be imported instead of ours.
    with contextlib.chdir(HOME):
        ray.init(
            address=None if joining else "local",
            num_cpus=None if joining else max(cpus, os.cpu_count() or 1),
            include_dashboard=None if joining else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


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
