"""Who gets which item, and who is blamed when a worker dies; with actors that only play."""

import queue
import random
import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from pipelines import crew
from pipelines.crew import Backlog, Crew, Waiting
from pipelines.executors import ItemFailedError, Need, WorkerDiedError, one_cpu

SMALL, LARGE = Need(cpus=0.5), Need(cpus=1.0, memory_bytes=64 << 20)


def large_of(item):
    """More bytes than fit into one piece, other ones for each item."""
    return random.Random(item).randbytes(3 * crew.PIECE_BYTES)  # noqa: S311 - no secret, only bytes


class Numbers(Sequence):
    """Items that are made when they are asked for, and counted."""

    def __init__(self, count):
        self.count, self.made = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number >= self.count:
            raise IndexError(number)
        self.made.append(number)
        return number


class Method:
    """What is called with `remote`, and gives something with a `future`."""

    def __init__(self, call):
        self._call = call

    def remote(self, *arguments):
        self._future = Future()
        # Each call has a future of its own, also while others of this method are open.
        asked = Method(self._call)
        asked._future = Future()
        self._call(asked._future, *arguments)
        return asked

    def future(self):
        return self._future


class Player:
    """An actor of a thread. A result waits until the next item is finished, or none comes.

    So an item that kills its worker takes the result of the one before along, as happens on a
    machine that is busy.
    """

    def __init__(self, stage):
        self.stage, self.queue, self.ended = stage, queue.SimpleQueue(), False
        self.start, self.call = Method(self._started), Method(self._called)
        self.piece, self.kept = Method(self._asked_for_piece), {}
        threading.Thread(target=self._play, daemon=True).start()

    def _started(self, future, gpus, *pieces):
        future.set_result("here")

    def _called(self, future, number, *pieces):
        self.queue.put((number, crew._whole(pieces), future))

    def _asked_for_piece(self, future, number, place):
        self.queue.put(((number, place), None, future))

    def _play(self):
        from ray.exceptions import RayTaskError

        unsent = []
        while not self.ended:
            try:
                number, item, future = self.queue.get(timeout=0.002)
            except queue.Empty:
                self._send(unsent)
                continue
            if item is None:
                self._send(unsent)
                future.set_result(self.kept[number[0]][number[1]])
                continue
            error = self.stage.error(item)
            if isinstance(error, RayTaskError):
                self._send(unsent)
                future.set_exception(error)
                continue
            if error is not None:
                self._die([future, *(each for each, _ in unsent)], error)
                return
            self._send(unsent)
            self.kept[number] = crew._pieces(self.stage.result(item))
            unsent.append((future, (self.kept[number][0], len(self.kept[number]), 0.0)))

    def _send(self, unsent):
        while unsent:
            future, result = unsent.pop()
            future.set_result(result)

    def _die(self, futures, error):
        while not self.queue.empty():
            futures.append(self.queue.get()[2])
        for future in futures:
            future.set_exception(error)


class Stage:
    """Makes players. Some items kill their worker always, some once; some lose it to its node.

    Some fail, and some have a result of many pieces.
    """

    def __init__(self, always=(), once=(), lost=(), failing=(), large=()):
        self.always, self.once, self.lost = set(always), set(once), dict.fromkeys(lost, 3)
        self.failing, self.large = set(failing), set(large)
        self.begun = {}

    def result(self, item):
        return 10 * item if item not in self.large else (10 * item, large_of(item))

    def remote(self):
        return Player(self)

    def error(self, item):
        from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

        self.begun[item] = self.begun.get(item, 0) + 1
        if self.lost.get(item):
            self.lost[item] -= 1
            return ActorUnavailableError("no answer", None)
        if item in self.failing:
            return RayTaskError("work", "", ItemFailedError(f"{item} is no good"))
        if item in self.always or item in self.once:
            self.once.discard(item)
            return ActorDiedError()
        return None


@pytest.fixture
def played(monkeypatch):
    """Runs items on a stage: the answers, and what was raised."""
    import ray

    def run(stage, items, workers):
        monkeypatch.setattr(crew, "_kind", lambda need: stage)
        monkeypatch.setattr(crew, "nodes_alive", lambda: {"here": {"CPU": 9.0}})
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "kill", lambda player: setattr(player, "ended", True))
        waiting = Waiting(0.0, lambda line: None)
        backlog = Backlog(items, one_cpu)
        backlog.read(1)
        ours, answers, error = Crew(int, backlog, workers, waiting, own=True), [], ""
        try:
            answers.extend(ours.answers())
        except (WorkerDiedError, ItemFailedError) as raised:
            error = str(raised)
        ours.close()
        return answers, error

    return run


@pytest.mark.parametrize("seed", range(12))
def test_only_items_that_kill_their_workers_are_given_up(played, seed):
    chance = random.Random(seed)  # noqa: S311 - no secret depends on it
    items = list(range(40))
    always = chance.sample(items, chance.randint(0, 2))
    once, lost = chance.sample(items, 4), chance.sample(items, 4)
    answers, error = played(Stage(always, once, lost), items, workers=chance.randint(1, 4))
    found = sorted((each.number, each.result) for each in answers)
    assert found == [(item, 10 * item) for item in items if item not in always]
    assert all(f"{item}: its worker died" in error for item in always)
    assert error.count("its worker died") == len(always)


@pytest.mark.parametrize("seed", range(12))
def test_nobody_is_blamed_for_more_than_one_death_of_others(played, monkeypatch, seed):
    monkeypatch.setattr(crew, "DEATHS", 3)  # one of its own, one that was another's
    chance = random.Random(seed)  # noqa: S311 - no secret depends on it
    once = chance.sample(range(60), 40)
    answers, error = played(Stage(once=once), range(60), workers=chance.randint(1, 4))
    assert (len(answers), error) == (60, "")


def test_an_item_just_before_one_that_kills_its_workers_is_not_blamed(played):
    stage = Stage(always=[1])
    answers, error = played(stage, range(5), workers=1)
    assert error.startswith("1: its worker died 4 times, perhaps for want of memory; all other")
    assert {each.number: each.attempts for each in answers} == {0: 2, 2: 1, 3: 1, 4: 1}
    assert stage.begun == {0: 2, 1: 5, 2: 1, 3: 1, 4: 1}


def test_workers_that_are_lost_with_their_node_count_less(played, monkeypatch):
    monkeypatch.setattr(crew, "DEATHS", 1)
    answers, error = played(Stage(lost=[0]), [0, 1, 2], workers=1)
    assert (sorted(each.result for each in answers), error) == ([0, 10, 20], "")
    assert next(each.attempts for each in answers if each.number == 0) == 4
    monkeypatch.setattr(crew, "LOSSES", 3)
    _, error = played(Stage(lost=[0]), [0], workers=1)
    assert "0: its worker died 3 times" in error


@pytest.mark.parametrize("seed", range(12))
def test_results_of_many_pieces_arrive_whole_however_workers_die(played, seed):
    chance = random.Random(seed)  # noqa: S311 - no secret depends on it
    items = list(range(40))
    large, once = chance.sample(items, 30), chance.sample(items, 12)
    always = chance.sample([item for item in items if item not in once], 1)
    stage = Stage(always, once, lost=chance.sample(items, 3), large=large)
    answers, error = played(stage, items, workers=chance.randint(1, 4))
    assert sorted(each.number for each in answers) == [i for i in items if i not in always]
    for each in answers:
        item = each.number
        assert each.result == ((10 * item, large_of(item)) if item in large else 10 * item)
    assert re.findall(r"(\d+): its worker died", error) == [str(item) for item in always]


@pytest.mark.parametrize("workers", [1, 3])
def test_items_that_fail_do_not_keep_others_from_being_finished_or_given_up(played, workers):
    stage = Stage(always=[5], failing=[3, 7], large=[7, 8])
    answers, error = played(stage, range(12), workers=workers)
    assert sorted(each.number for each in answers) == [0, 1, 2, 4, 6, 8, 9, 10, 11]
    assert error.startswith("5: its worker died 4 times")
    assert error.endswith("besides: 3 is no good; 1 more failed, all others are finished")
    assert (stage.begun[3], stage.begun[7]) <= (2, 2)


def test_when_several_items_are_given_up_the_others_are_not_waited_for(played):
    answers, error = played(Stage(always=range(100)), range(100), workers=2)
    assert answers == []
    assert error.count("its worker died") == crew.GIVEN_UP
    assert "what is finished is kept" in error


def test_a_backlog_reads_no_further_than_it_must():
    items = Numbers(1000)
    backlog = Backlog(items, lambda item: LARGE if item >= 500 else SMALL)
    backlog.read(10)
    assert backlog.needs == [SMALL]
    assert [backlog.take(SMALL) for _ in range(12)] == list(range(12))
    assert len(items.made) == 12
    backlog.put_back(SMALL, 3)
    assert backlog.take(SMALL) == 3
    backlog.read(1000)
    assert backlog.take(LARGE) == 500
    assert (backlog.left(SMALL), backlog.left(LARGE)) == (488, 499)


def test_a_backlog_passes_over_a_limited_number_of_items(monkeypatch):
    monkeypatch.setattr(crew, "LOOK_AHEAD", 20)
    items = Numbers(1000)
    backlog = Backlog(items, lambda item: SMALL if item in (0, 900) else LARGE)
    backlog.read(1)
    assert backlog.take(SMALL) == 0
    assert backlog.take(SMALL) is None
    assert backlog.left(SMALL) == 0
    assert len(items.made) == 21
    while (number := backlog.take(LARGE)) is not None and number < 899:
        pass
    assert backlog.take(SMALL) == 900


def test_want_of_memory_on_this_machine_takes_one_worker_less():
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError

    told = []
    for own, left in ((True, 1), (False, 3)):
        ours = Crew(int, Backlog([1], one_cpu), 3, Waiting(0, told.append), own=own)
        pool = crew._Pool(Need(), None, 3)
        for error in (WorkerCrashedError(), *[OutOfMemoryError("no memory")] * 3):
            ours._spare_memory(pool, error)
        assert pool.limit == left
    assert len(told) == 2
    assert told[0] == "a worker was ended for want of memory; going on with 2 (1 CPU)"
