"""Actors that work through items: asked for by need, given work when they are up, replaced.

Ray would do some of this itself, but not so that an item which kills its workers is told from one
that waited behind it, nor so that a worker which never comes up gets nothing: Ray (2.60.0) queues
for it, for ever.
Held by test_a_need_that_this_machine_cannot_meet_is_an_error_at_once.
"""

import os
import pickle
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from pipelines import cores, stopping
from pipelines.executors import (
    Answer,
    ItemFailedError,
    Need,
    NoRoomError,
    WorkerDiedError,
    together,
)

Item = TypeVar("Item")

IN_FLIGHT = 2  # items at each actor: it never idles, and nothing piles up
LOOK_AHEAD = 10_000  # items of other needs that are passed over while one is looked for
DEATHS = 4  # workers of its own that an item may take with it
LOSSES = 16  # workers that it may lose together with their node
GIVEN_UP = 3  # items that are given up before the others are finished
STARTS = 4  # workers of a need in a row that die before they are up
LOOK_S = 0.5
FIRST_TOLD_S = 10.0
TOLD_S = 60.0
# Ray (2.60.0) carries an argument or a result of up to 100 KiB inside the call, up to 10 MiB of
# arguments, and puts larger ones into its object store; an item with the words of 128 clips is
# larger.
# Held by test_items_and_results_stay_out_of_the_object_store.
PIECE_BYTES = 64 * 1024


class Backlog(Generic[Item]):
    """The items that wait, by need; holds numbers, and reads no further than it is asked to.

    Args:
        items: Never copied.
        need: Of an item.
    """

    def __init__(self, items: Sequence[Item], need: Callable[[Item], Need]) -> None:
        self._items, self._need = items, need
        self._unread = 0
        self._waiting: dict[Need, deque[int]] = {}
        self._held = 0
        self._last: tuple[int, Item] | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def needs(self) -> list[Need]:
        """Those that were met so far."""
        return list(self._waiting)

    def item(self, number: int) -> Item:
        """An item; the one that was read last is not asked for again."""
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        return self._items[number]

    def read(self, count: int) -> None:
        """Learn the needs of so many items more."""
        for number in range(self._unread, min(self._unread + count, len(self._items))):
            item = self._items[number]
            self._last = (number, item)
            self._waiting.setdefault(self._need(item), deque()).append(number)
            self._held += 1
            self._unread += 1

    def take(self, need: Need) -> int | None:
        """The next item of this need; None when there is none, or none near."""
        mine = self._waiting[need]
        while not mine and self._readable():
            self.read(1)
        if not mine:
            return None
        self._held -= 1
        return mine.popleft()

    def put_back(self, need: Need, number: int) -> None:
        """Make an item the next of its need again."""
        self._held += 1
        self._waiting[need].appendleft(number)

    def left(self, need: Need) -> int:
        """At most so many items of this need can be taken."""
        return len(self._waiting[need]) + self._readable()

    def _readable(self) -> int:
        return len(self._items) - self._unread if self._held < LOOK_AHEAD else 0


class Waiting:
    """What is done while no worker of a need is up.

    Args:
        patience_s: How long to wait for a node that has what is needed; 0 where none can come.
        told: Told what is waited for.
    """

    def __init__(self, patience_s: float, told: Callable[[str], None]) -> None:
        self._patience_s, self.told = patience_s, told
        self._since: dict[Need, float] = {}
        self._tell_at: dict[Need, float] = {}

    def over(self, need: Need) -> None:
        """A worker of this need is up, or none is wanted."""
        self._since.pop(need, None)

    def look(self, need: Need) -> None:
        """Say once in a while that a need waits, and for what.

        Raises:
            NoRoomError: No node has what is needed, and patience is at an end.
        """
        now = time.monotonic()
        if need not in self._since:
            self._since[need], self._tell_at[need] = now, now + FIRST_TOLD_S
        nodes = list(nodes_alive().values())
        room = any(_holds(node, need) for node in nodes)
        waited_s = now - self._since[need]
        if not room and waited_s >= self._patience_s:
            after = f" after {waited_s / 60:.0f} minutes" if self._patience_s else ""
            raise NoRoomError(
                f"the work needs {need} on one node, found{after} {_found(nodes)}; add such a node "
                f"or ask for less, then run again: what is finished is kept"
            )
        if now >= self._tell_at[need]:
            self._tell_at[need] = now + TOLD_S
            why = "all that would do is in use" if room else "that is not enough"
            self.told(f"waiting for {need} on one node; there are {_found(nodes)}, {why}")


def nodes_alive() -> dict[str, dict[str, float]]:
    """What each node of the cluster has, by its id."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call] # Ray's
    return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}


def _holds(node: Mapping[str, float], need: Need) -> bool:
    wanted = {"CPU": need.cpus, "GPU": need.gpus, "memory": float(need.memory_bytes)}
    return all(node.get(name, 0.0) >= amount for name, amount in wanted.items())


def _found(nodes: Sequence[Mapping[str, float]]) -> str:
    most = Need(
        cpus=max((node.get("CPU", 0.0) for node in nodes), default=0.0),
        gpus=max((node.get("GPU", 0.0) for node in nodes), default=0.0),
        memory_bytes=int(max((node.get("memory", 0.0) for node in nodes), default=0.0)),
    )
    return f"{len(nodes)} node(s) with at most {most}"


@dataclass(slots=True)
class _Trouble:
    """What an item went through that is not finished yet.

    Attributes:
        deaths: Workers that died by themselves while they worked on it.
        losses: Workers that were lost with their node, or could no longer be reached.
    """

    deaths: int = 0
    losses: int = 0


@dataclass(slots=True)
class _Parcel:
    """A result of which pieces are still to come.

    Attributes:
        count: How many pieces it has.
        queued_s: How long its item stood behind another.
        pieces: Those that are there, by their place.
    """

    count: int
    queued_s: float
    pieces: dict[int, bytes] = field(default_factory=dict)

    def in_order(self) -> list[bytes]:
        """All pieces."""
        return [self.pieces[place] for place in range(self.count)]


@dataclass(slots=True, eq=False)
class _Member:
    """One actor.

    Attributes:
        node: Where it is; empty until it is up.
        flights: When each item was handed to it, by number; the oldest first, it works on that.
        parcels: Results, by number, that are fetched from it.
        alone: What it works on has taken a worker with it before, so nothing may stand behind it.
        gone: It ended or was given up: whatever it still says is not heard.
    """

    actor: Any
    pool: "_Pool"
    node: str = ""
    flights: dict[int, float] = field(default_factory=dict)
    parcels: dict[int, _Parcel] = field(default_factory=dict)
    alone: bool = False
    gone: bool = False


@dataclass(slots=True, eq=False)
class _Pool:
    """The actors of one need.

    Attributes:
        kind: Makes one.
        limit: The most of them.
        starting: Those of the members that are not up yet.
        suspects: Items whose worker died; each is tried again alone.
        failed_starts: In a row.
    """

    need: Need
    kind: Any
    limit: int
    members: dict[_Member, None] = field(default_factory=dict)
    starting: dict[_Member, None] = field(default_factory=dict)
    suspects: deque[int] = field(default_factory=deque)
    failed_starts: int = 0


class _Event(NamedTuple):
    """Something that an actor was asked for has come.

    That it is up (no number), or a piece of a result; the piece at place 0 says how many there are.
    """

    member: _Member
    number: int | None
    place: int
    outcome: "Future[Any]"
    at: float


class Crew:
    """All actors of a run.

    Args:
        make_worker: Makes the function, once in each actor.
        backlog: The items.
        limit: The most actors for each need.
        waiting: What is done while there is no room.
        own: The cluster is this machine alone.
    """

    def __init__(
        self,
        make_worker: Callable[[], Callable[[Any], Any]],
        backlog: Backlog[Any],
        limit: int,
        waiting: Waiting,
        *,
        own: bool,
    ) -> None:
        self._maker = _pieces(make_worker)
        self._backlog, self._limit, self._waiting, self._own = backlog, limit, waiting, own
        self._pools: dict[Need, _Pool] = {}
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._trouble: dict[int, _Trouble] = {}
        self._given_up: list[str] = []
        self._failed: dict[int, ItemFailedError] = {}
        self._left = len(backlog)

    def answers(self) -> Iterator[Answer[Any]]:
        """Answers as they come.

        Raises:
            WorkerDiedError: Items were given up.
            ItemFailedError: The function raised it for some items.
            NoRoomError: No node has what an item needs.
        """
        look_at = 0.0
        while self._left:
            stopping.check()
            if time.monotonic() >= look_at:
                self._look()
                look_at = time.monotonic() + LOOK_S
            with suppress(queue.Empty):
                answer = self._hear(self._events.get(timeout=LOOK_S))
                if answer is not None:
                    yield answer
        if self._given_up:
            raise self._failure("all other items are finished")
        if self._failed:
            raise together(self._failed)

    def close(self) -> None:
        """End the actors."""
        for pool in self._pools.values():
            for member in list(pool.members):
                self._end(member)

    def _look(self) -> None:
        """Ask for actors that are missing, and give back what nothing is left for."""
        # Scarce ones first: a worker for a GPU must find a CPU beside it.
        for need in sorted(self._backlog.needs, key=lambda n: (-n.gpus, -n.memory_bytes, -n.cpus)):
            if need not in self._pools:
                self._pools[need] = _Pool(need, _kind(need), self._limit)
            pool = self._pools[need]
            self._fill(pool)
            if len(pool.members) == len(pool.starting) and self._wanted(pool):
                self._waiting.look(need)
            else:
                self._waiting.over(need)

    def _wanted(self, pool: _Pool) -> int:
        return self._backlog.left(pool.need) + len(pool.suspects)

    def _fill(self, pool: _Pool) -> None:
        wanted = self._wanted(pool)
        for _ in range(min(pool.limit - len(pool.members), wanted - len(pool.starting))):
            self._ask_for(pool)
        for member in list(pool.starting)[wanted:]:
            self._end(member)

    def _ask_for(self, pool: _Pool) -> None:
        need, member = pool.need, _Member(pool.kind.remote(), pool)
        pool.members[member] = pool.starting[member] = None
        bound = self._own and need.cpus == 1 and not need.gpus and cores.filled_by(pool.limit)
        started = member.actor.start.remote(bool(need.gpus), bound, *self._maker)
        self._expect(member, None, started)

    def _expect(self, member: _Member, number: int | None, reference: Any, place: int = 0) -> None:  # noqa: ANN401 - Ray's reference has no type
        def came(outcome: "Future[Any]") -> None:
            self._events.put(_Event(member, number, place, outcome, time.monotonic()))

        reference.future().add_done_callback(came)

    def _hear(self, event: _Event) -> Answer[Any] | None:
        from ray.exceptions import RayError, RayTaskError

        member, number, outcome = event.member, event.number, event.outcome
        if member.gone:
            return None
        error = outcome.exception()
        if isinstance(error, RayTaskError):
            # The worker's own exception, not Ray's, which is of both types at once (2.60.0).
            # Held by test_an_exception_of_the_worker_arrives_as_itself.
            self._failed_with(error.cause, member, number)
            return None
        if isinstance(error, RayError):
            self._lose(member, error)
            return None
        if number is None:
            self._arrived(member, outcome.result())
            return None
        return self._answered(event, number)

    def _failed_with(self, error: BaseException, member: _Member, number: int | None) -> None:
        """Note that an item failed; any other error ends the run."""
        if number is None or not isinstance(error, ItemFailedError):
            raise error from None
        self._failed[number] = error
        member.alone = False
        self._finished(member, number)
        self._feed(member)

    def _arrived(self, member: _Member, node: str) -> None:
        member.node = node
        del member.pool.starting[member]
        member.pool.failed_starts = 0
        self._feed(member)

    def _answered(self, event: _Event, number: int) -> Answer[Any] | None:
        """Take a piece of a result; the answer when it was the last.

        What is larger than a piece is fetched while the actor is at work on the next item; when it
        dies before, the item is done again.
        """
        member, piece = event.member, event.outcome.result()
        if event.place == 0:
            piece, count, busy_s = piece
            queued_s = max(0.0, event.at - member.flights.pop(number) - busy_s)
            member.alone = False
            member.parcels[number] = _Parcel(count, queued_s)
            for place in range(1, count):
                self._expect(member, number, member.actor.piece.remote(number, place), place)
        parcel = member.parcels[number]
        parcel.pieces[event.place] = piece
        whole = len(parcel.pieces) == parcel.count
        trouble = self._finished(member, number) if whole else _Trouble()
        self._feed(member)
        if not whole:
            return None
        attempts = 1 + trouble.deaths + trouble.losses
        return Answer(number, _whole(parcel.in_order()), attempts, parcel.queued_s)

    def _finished(self, member: _Member, number: int) -> _Trouble:
        """Let go of an item; what it went through."""
        member.flights.pop(number, None)
        member.parcels.pop(number, None)
        self._left -= 1
        return self._trouble.pop(number, _Trouble())

    def _feed(self, member: _Member) -> None:
        """Hand over what may be in flight; an actor that nothing is left for is ended."""
        while (number := self._next(member)) is not None:
            member.flights[number] = time.monotonic()
            pieces = _pieces(self._backlog.item(number))
            self._expect(member, number, member.actor.call.remote(number, *pieces))
        if not member.flights and not member.parcels:
            self._end(member)

    def _next(self, member: _Member) -> int | None:
        pool = member.pool
        # A suspect is tried alone: with two in flight it is not sure which of them was the killer.
        if len(member.flights) >= (1 if member.alone or pool.suspects else IN_FLIGHT):
            return None
        if not pool.suspects:
            return self._backlog.take(pool.need)
        member.alone = True
        return pool.suspects.popleft()

    def _lose(self, member: _Member, error: Exception) -> None:
        """An actor died, or cannot be reached: take back its items and ask for another."""
        # What it works on is blamed, before a result that was on its way.
        pool, flights = member.pool, [*member.flights, *member.parcels]
        self._end(member)
        away = _is_away(member.node, error)
        if not member.node and not away:
            self._failed_start(pool, error)
        if flights and self._gives_up(flights[0], error, away=away):
            del flights[0]
        for number in reversed(flights):
            if away:
                self._backlog.put_back(pool.need, number)
            else:
                pool.suspects.appendleft(number)
        self._spare_memory(pool, error)
        self._fill(pool)

    def _gives_up(self, number: int, error: Exception, *, away: bool) -> bool:
        """Whether a worker that was lost on an item was one too many."""
        trouble = self._trouble.setdefault(number, _Trouble())
        if away:
            trouble.losses += 1
        else:
            trouble.deaths += 1
        if trouble.deaths < DEATHS and trouble.losses < LOSSES:
            return False
        name = _short(self._backlog.item(number))
        count = trouble.deaths + trouble.losses
        self._given_up.append(f"{name}: its worker died {count} times, {_likely(error)}")
        self._left -= 1
        if len(self._given_up) >= GIVEN_UP:
            raise self._failure("other items are left too, what is finished is kept")
        return True

    def _failure(self, others: str) -> WorkerDiedError:
        advice = "run again with fewer workers or on machines with more memory"
        failed = [f"besides: {together(self._failed)}"] if self._failed else []
        return WorkerDiedError("; ".join([*self._given_up, others, advice, *failed]))

    def _failed_start(self, pool: _Pool, error: Exception) -> None:
        pool.failed_starts += 1
        if pool.failed_starts >= STARTS:
            raise WorkerDiedError(
                f"{STARTS} workers in a row died before they were up ({pool.need}); what is "
                f"finished is kept, run again when they start: {_short(error, 300)}"
            )

    def _spare_memory(self, pool: _Pool, error: Exception) -> None:
        """This machine has no room for so many workers, and nobody else will make some."""
        from ray.exceptions import OutOfMemoryError

        if self._own and isinstance(error, OutOfMemoryError) and pool.limit > 1:
            pool.limit -= 1
            self._waiting.told(
                f"a worker was ended for want of memory; going on with {pool.limit} ({pool.need})"
            )

    def _end(self, member: _Member) -> None:
        import ray

        member.gone = True
        del member.pool.members[member]
        member.pool.starting.pop(member, None)
        # Without a cluster ray.kill starts one and fails (2.60.0); a run may be let go after it.
        # Held by test_a_run_that_is_let_go_after_the_cluster_does_not_start_another.
        if ray.is_initialized():
            ray.kill(member.actor)


class _Actor:
    def __init__(self) -> None:
        self._kept: dict[int, list[bytes]] = {}

    def start(self, gpus: bool, bound: bool, *pieces: bytes) -> str:
        """Make the worker, bound to a core where it shall be; the id of the node that it is on."""
        import ray

        if bound:
            cores.take(cores.place())
        if not gpus:
            # Ray (2.60.0) shows all GPUs to those that asked for none: they would crowd the first.
            # Held by test_a_worker_that_asked_for_no_gpu_sees_none.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._worker = _whole(pieces)()
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def call(self, number: int, *pieces: bytes) -> tuple[bytes, int, float]:
        """The first piece of the result for an item, how many there are, and the seconds taken."""
        began = time.perf_counter()
        result = _pieces(self._worker(_whole(pieces)))
        if len(result) > 1:
            self._kept[number] = result
        return result[0], len(result), time.perf_counter() - began

    def piece(self, number: int, place: int) -> bytes:
        """A further piece of a result; after the last one it is let go."""
        result = self._kept[number]
        if place == len(result) - 1:
            del self._kept[number]
        return result[place]


def _kind(need: Need) -> Any:  # noqa: ANN401 - Ray's actor class
    import ray

    # Repeating is ours: Ray (2.60.0) would repeat all that was in flight, and say only that a
    # worker died, not on what. Held by test_items_behind_one_that_kills_its_workers_are_finished.
    asked: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0}
    if need.memory_bytes:
        asked["memory"] = need.memory_bytes
    return ray.remote(num_cpus=need.cpus, num_gpus=need.gpus, **asked)(_Actor)


def _pieces(value: object) -> list[bytes]:
    from ray import cloudpickle

    data: bytes = cloudpickle.dumps(value)  # type: ignore[no-untyped-call] # Ray's
    return [data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES)]


def _whole(pieces: Sequence[bytes]) -> Any:  # noqa: ANN401 - whatever was packed
    return pickle.loads(b"".join(pieces))  # noqa: S301 - our own driver packed it


def _is_away(node: str, error: Exception) -> bool:
    """Whether an actor's end says nothing about what it worked on."""
    from ray.exceptions import ActorUnavailableError, ObjectLostError

    if isinstance(error, ActorUnavailableError | ObjectLostError):
        return True
    return bool(node) and node not in nodes_alive()


def _likely(error: Exception) -> str:
    from ray.exceptions import OutOfMemoryError

    if isinstance(error, OutOfMemoryError):
        return "for want of memory"
    return "perhaps for want of memory"


def _short(value: object, length: int = 100) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= length else f"{text[: length - 3]}..."
