"""One contract for all executors: in process, and on Ray with one and two workers."""

import gc
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest

from featurizers.clip import Clip, Word
from pipelines.executors import (
    InProcess,
    ItemFailedError,
    Need,
    NoRoomError,
    OnRay,
    WorkerDiedError,
    executor,
    start_ray,
    stop_ray,
)

ROOT = Path(__file__).parent.parent
on_ray = [pytest.mark.ray, pytest.mark.slow]

SMALL, LARGE = Need(cpus=0.5), Need(cpus=1.0, memory_bytes=64 << 20)


class NoGoodError(Exception):
    """What a worker raises."""


class NoLuckError(ItemFailedError):
    """What a worker raises of one item alone."""


class Sour:
    """An exception that cannot cross from one process to another holds one of these."""

    def __reduce__(self):
        raise TypeError("not to be packed")


def doubler():
    return lambda item: 2 * item


def picky():
    def work(item):
        if item == 3:
            raise NoGoodError("three is no good")
        return item

    return work


def unlucky():
    def work(item):
        if item % 4 == 3:
            raise NoLuckError(f"{item} has no luck")
        return item

    return work


def never_lucky():
    raise NoLuckError("no worker has luck")


def broken_after_bad_luck():
    def work(item):
        if item == 1:
            raise NoLuckError("one has no luck")
        if item == 2:
            raise NoGoodError("two is no good")
        return item

    return work


def unpackable():
    def work(item):
        raise NoGoodError(f"no good: {item}", Sour())

    return work


def unmakeable():
    raise NoGoodError("no worker can be made")


def stillborn():
    os.kill(os.getpid(), signal.SIGKILL)


def process_of():
    return lambda item: (item, os.getpid())


def with_a_child(folder):
    """A worker that keeps a child, as one keeps a decoder."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (folder / str(child.pid)).touch()
    return lambda item: child.pid


def napper():
    def work(item):
        time.sleep(item)
        return os.getpid()

    return work


def devices():
    return lambda item: os.environ.get("CUDA_VISIBLE_DEVICES")


def killed_by(folder, killers, always):
    """A worker that kills its own process in the middle of some items: once each, or always."""

    def work(item):
        time.sleep(0.05)  # until the result before this one is on its way
        with (folder / f"{item}").open("a") as tries:
            tries.write(".")
        if item in killers and (always or len((folder / f"{item}").read_text()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return 10 * item

    return work


def tries(folder):
    return {int(path.name): len(path.read_text()) for path in folder.iterdir()}


def waits(folder):
    """A worker that says who it is, and works on item 2 until somebody kills it once."""

    def work(item):
        if item == 2:
            with (folder / "pids").open("a") as pids:
                pids.write(f"{os.getpid()}\n")
            while len((folder / "pids").read_text().split()) == 1:
                time.sleep(0.02)
        return 10 * item

    return work


def results(answers):
    return sorted((answer.number, answer.result) for answer in answers)


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


@pytest.fixture(scope="module")
def cluster():
    start_ray(2)
    yield
    stop_ray()


@pytest.fixture(
    params=[
        "in process",
        pytest.param("ray 1", marks=on_ray),
        pytest.param("ray 2", marks=on_ray),
    ]
)
def where(request):
    if request.param == "in process":
        return InProcess()
    request.getfixturevalue("cluster")
    return OnRay(int(request.param[-1]))


def test_every_item_has_its_result_once(where):
    assert results(where.run(doubler, [5, 1, 4])) == [(0, 10), (1, 2), (2, 8)]
    assert results(where.run(doubler, range(20))) == [(i, 2 * i) for i in range(20)]


def test_items_of_several_needs_have_their_results_once(where):
    mixed = where.run(doubler, range(30), lambda item: LARGE if item % 3 else SMALL)
    assert results(mixed) == [(i, 2 * i) for i in range(30)]


def test_nothing_to_do_is_done(where):
    assert list(where.run(doubler, [])) == []


def test_an_exception_of_the_worker_arrives_as_itself(where):
    seen = []
    with pytest.raises(NoGoodError) as raised:
        seen.extend(answer.number for answer in where.run(picky, [1, 2, 3, 4]))
    assert type(raised.value) is NoGoodError
    assert raised.value.args == ("three is no good",)
    assert set(seen) <= {0, 1, 3}
    assert results(where.run(doubler, [1])) == [(0, 2)]


@pytest.mark.parametrize(
    ("items", "error"),
    [
        ([1, 2, 3, 4, 5], "3 has no luck"),
        (range(12), "3 has no luck; 2 more failed, all others are finished"),
        ([7, 3], "7 has no luck; 1 more failed, all others are finished"),
    ],
)
def test_an_item_that_fails_is_told_of_when_all_others_are_finished(where, items, error):
    seen = []
    with pytest.raises(NoLuckError) as raised:
        seen.extend(answer.result for answer in where.run(unlucky, items))
    assert raised.value.args == (error,)
    assert sorted(seen) == [item for item in items if item % 4 != 3]


def test_a_bug_ends_the_run_whatever_failed_before(where):
    with pytest.raises(NoGoodError, match="two is no good"):
        list(where.run(broken_after_bad_luck, [0, 1, 2, *range(10, 50)]))


def test_a_worker_that_cannot_be_made_ends_the_run_whatever_it_raises(where):
    with pytest.raises(NoLuckError, match=r"no worker has luck$"):
        list(where.run(never_lucky, [1, 2]))


def test_a_large_result_arrives_whole(where):
    sizes = [10, 64 << 10, 400_000, 3, 1_000_003]
    found = results(where.run(lambda: lambda size: bytes(i % 251 for i in range(size)), sizes))
    assert found == [(n, bytes(i % 251 for i in range(size))) for n, size in enumerate(sizes)]


def test_an_exception_that_cannot_cross_is_told_by_its_text(where):
    with pytest.raises(Exception, match="no good: 1"):
        list(where.run(unpackable, [1]))


def test_a_worker_that_cannot_be_made_says_why(where):
    with pytest.raises(NoGoodError, match="no worker can be made"):
        list(where.run(unmakeable, [1, 2]))


def test_leaving_early_ends_the_run(where):
    running = where.run(doubler, range(100))
    assert next(running)
    running.close()
    assert results(where.run(doubler, [1])) == [(0, 2)]


def test_items_may_be_made_when_they_are_asked_for(where):
    items = Numbers(700)
    running = where.run(doubler, items)
    next(running)
    assert len(set(items.made)) <= 300
    assert results(running)[-1] == (699, 1398)
    assert all(items.made.count(number) <= 2 for number in range(700))


class Closed:
    """A worker that fails at 2 and counts how often it is closed."""

    def __init__(self):
        self.times = 0

    def __call__(self, item):
        if item == 2:
            raise RuntimeError("two")
        return item

    def close(self):
        self.times += 1


def test_in_process_the_worker_is_closed_at_the_end_and_when_it_fails():
    worker = Closed()
    assert [answer.result for answer in InProcess().run(lambda: worker, [1, 3])] == [1, 3]
    assert worker.times == 1
    with pytest.raises(RuntimeError, match="two"):
        list(InProcess().run(lambda: worker, [1, 2]))
    assert worker.times == 2


def test_in_process_every_item_is_begun_once_and_waits_for_nothing():
    answers = list(InProcess().run(doubler, [1, 2]))
    assert [(each.attempts, each.queued_seconds) for each in answers] == [(1, 0.0), (1, 0.0)]


def test_no_workers_means_in_this_process():
    assert isinstance(executor(0), InProcess)
    assert executor(2).workers == 2


def test_a_need_is_told_in_words():
    assert str(Need()) == "1 CPU"
    assert str(Need(2, 0.5, 3 << 30)) == "2 CPU, 0.5 GPU, 3.0 GiB of memory"


@pytest.mark.ray
@pytest.mark.slow
class TestOnRay:
    def test_work_is_done_in_as_many_processes_as_asked(self, cluster):
        pids = {each.result[1] for each in OnRay(2).run(process_of, range(400))}
        assert len(pids) == 2
        assert os.getpid() not in pids

    @pytest.mark.parametrize(("workers", "items", "count"), [(2, 9, 2), (2, 1, 1)])
    def test_that_workers_are_started_is_told_once_and_first(self, cluster, workers, items, count):
        told = []
        answers = OnRay(workers, told=told.append).run(doubler, range(items))
        told.extend(answer.number for answer in answers)
        assert told[0] == f"starting {count} worker(s)"
        assert sorted(told[1:]) == list(range(items))

    def test_a_worker_that_dies_is_replaced_and_its_item_repeated(self, cluster, tmp_path):
        worker = partial(killed_by, tmp_path, {2}, always=False)
        answers = list(OnRay(1).run(worker, [1, 2, 3, 4]))
        assert results(answers) == [(0, 10), (1, 20), (2, 30), (3, 40)]
        assert {each.number: each.attempts for each in answers} == {0: 1, 1: 2, 2: 1, 3: 1}
        assert tries(tmp_path) == {1: 1, 2: 2, 3: 1, 4: 1}

    def test_items_behind_one_that_kills_its_workers_are_finished(self, cluster, tmp_path):
        worker, seen = partial(killed_by, tmp_path, {1, 4}, always=True), []
        with pytest.raises(WorkerDiedError) as raised:
            seen.extend(OnRay(2).run(worker, range(12)))
        assert {"1: its worker died 4 times", "4: its worker died 4 times"} == set(
            re.findall(r"\d+: its worker died \d+ times", str(raised.value))
        )
        assert results(seen) == [(i, 10 * i) for i in range(12) if i not in (1, 4)]
        counted = tries(tmp_path)
        assert counted.pop(1) == counted.pop(4) == 4
        assert set(counted.values()) == {1}

    def test_when_everything_kills_its_worker_the_run_ends(self, cluster, tmp_path):
        worker = partial(killed_by, tmp_path, set(range(50)), always=True)
        with pytest.raises(WorkerDiedError, match="other items are left"):
            list(OnRay(2).run(worker, range(50)))
        assert len(tries(tmp_path)) <= 8

    def test_workers_that_die_before_they_are_up_end_the_run(self, cluster):
        with pytest.raises(WorkerDiedError, match=r"4 workers in a row died before .* \(1 CPU\)"):
            list(OnRay(2).run(stillborn, range(3)))

    def test_a_worker_that_is_killed_from_outside_is_replaced(self, cluster, tmp_path):
        from threading import Thread

        def killer():
            pids = tmp_path / "pids"
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not (
                pids.exists() and pids.read_text()[-1:] == "\n"
            ):
                time.sleep(0.02)
            os.kill(int(pids.read_text()), signal.SIGKILL)

        thread = Thread(target=killer)
        thread.start()
        found = results(OnRay(2).run(partial(waits, tmp_path), [1, 2, 3]))
        thread.join()
        assert found == [(0, 10), (1, 20), (2, 30)]
        first, second = (tmp_path / "pids").read_text().split()
        assert first != second

    def test_workers_and_their_children_end_with_the_run(self, cluster, tmp_path):
        pids = {each.result for each in OnRay(2).run(partial(with_a_child, tmp_path), range(8))}
        assert pids <= {int(path.name) for path in tmp_path.iterdir()}
        gone_within(10, [int(path.name) for path in tmp_path.iterdir()])

    def test_a_run_that_is_let_go_after_the_cluster_does_not_start_another(self, cluster):
        import ray

        running = OnRay(1).run(doubler, range(9))
        assert next(running)
        stop_ray()
        running.close()
        assert not ray.is_initialized()

    def test_queued_seconds_are_those_behind_the_item_before(self, cluster):
        first, second, third = sorted(
            OnRay(1).run(napper, [0.4, 0.4, 0.0]), key=lambda each: each.number
        )
        assert first.queued_seconds < 0.3
        assert 0.3 < second.queued_seconds < 0.8
        assert third.queued_seconds > 0.3

    def test_a_need_that_this_machine_cannot_meet_is_an_error_at_once(self, cluster):
        began = time.monotonic()
        with pytest.raises(NoRoomError) as raised:
            list(OnRay(1).run(doubler, [1], lambda item: Need(gpus=64)))
        assert time.monotonic() - began < 10
        assert re.fullmatch(
            r"the work needs 1 CPU, 64 GPU on one node, found 1 node\(s\) with at most \d+ CPU.*; "
            r"add such a node or ask for less, then run again: what is finished is kept",
            str(raised.value),
        )

    def test_a_worker_that_asked_for_no_gpu_sees_none(self, cluster):
        assert [each.result for each in OnRay(1).run(devices, [0])] == [""]

    @pytest.mark.parametrize("size", [10_000, 400_000])
    def test_items_and_results_stay_out_of_the_object_store(self, cluster, size):
        import ray

        before = bytes_ever_stored()
        found = list(OnRay(2).run(lambda: lambda clips: (len(clips), "x" * size), [clips()] * 4))
        assert {each.result[0] for each in found} == {128}
        ours = ray.put(b"x" * 1_000_000)  # when this is counted, all that came before it is
        while (stored := bytes_ever_stored() - before) < 1_000_000:
            assert len(ray.get(ours)) == 1_000_000
        assert stored < 1_010_000

    @pytest.mark.soak
    def test_ten_thousand_items_leave_no_traces_in_this_process(self, cluster):
        list(OnRay(2).run(doubler, range(2_000)))
        gc.collect()
        before = psutil.Process().memory_info().rss
        assert sum(1 for _ in OnRay(2).run(doubler, range(10_000))) == 10_000
        gc.collect()
        assert psutil.Process().memory_info().rss - before < 20 << 20


def clips():
    """What a job of a full shard holds: 128 clips of forty words; more than Ray takes inline."""
    made = []
    for n in range(128):
        words = tuple(Word(text=f"word{n}{w}", start=w + n / 7, end=w + 0.5) for w in range(40))
        name = f"video{n}"
        made.append(Clip(key=name, id=name, media=name, media_digest=name, words=words))
    assert len(pickle.dumps(made)) > 150_000
    return made


def bytes_ever_stored():
    """In this machine's object store, since it was started."""
    import ray
    from ray._private.internal_api import node_stats

    node = ray.nodes()[0]
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
    return stats.store_stats.cumulative_created_bytes


def gone_within(seconds, pids):
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, [pid for pid in pids if alive(pid)]
        time.sleep(0.05)


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# Scripts run in processes of their own: what is at stake is their output, or where they start.
DEADLY = """
import os
from pipelines.executors import OnRay, stop_ray

def deadly():
    return lambda item: os.kill(os.getpid(), 9)

try:
    list(OnRay(1).run(deadly, [1]))
except Exception as error:
    print(type(error).__name__)
stop_ray()
"""

ELSEWHERE = """
import json, sys
sys.path.insert(0, "HOME")
from pipelines.executors import OnRay, stop_ray

def origins():
    def work(item):
        import featurizers, training
        return featurizers.__file__, training.__file__
    return work

print(json.dumps([answer.result for answer in OnRay(1).run(origins, [1])]))
stop_ray()
"""

REPORTING = """
import time
from pipelines.executors import start_ray, stop_ray
start_ray(2)
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

def rank():
    began = time.perf_counter()
    for _ in range(4):
        ray.train.report({"loss": 1.0})
    return time.perf_counter() - began

result = DataParallelTrainer(rank, scaling_config=ray.train.ScalingConfig(num_workers=1)).fit()
print(result.return_value)
stop_ray()
"""


def run_script(text, folder, **changes):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=folder,
        env=environment,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_what_ray_says_of_dead_workers_is_not_on_standard_output(tmp_path):
    done = run_script(DEADLY, tmp_path)
    assert done.stdout == "WorkerDiedError\n"


@pytest.mark.ray
@pytest.mark.slow
def test_workers_import_our_packages_and_not_those_of_the_current_folder(tmp_path):
    for package in ("featurizers", "training"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    script = ELSEWHERE.replace("HOME", str(ROOT))
    found = json.loads(run_script(script, tmp_path).stdout)
    assert found == [[str(ROOT / "featurizers/__init__.py"), str(ROOT / "training/__init__.py")]]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.soak
def test_a_report_of_training_does_not_wait_for_seconds(tmp_path):
    done = run_script(REPORTING, tmp_path)
    assert float(done.stdout.splitlines()[-1]) < 3.0


VERSION = re.compile(r"\((?:Ray )?(2\.\d+\.\d+)\)|Ray (?:Train )?(2\.\d+\.\d+)")


def sources():
    return sorted((ROOT / "pipelines").rglob("*.py"))


def test_every_wrapper_over_ray_cites_the_version_that_is_pinned_and_a_test():
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    cited = 0
    for path in sources():
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            for found in VERSION.finditer(line):
                cited += 1
                where = f"{path.name}:{number + 1}"
                assert (found[1] or found[2]) == pinned, where
                assert re.search(r"Held by\s+test_\w+", "\n".join(lines[number : number + 5])), (
                    where
                )
    assert cited >= 12


def test_every_test_that_a_comment_names_exists():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    # Files of corpora have such names too; those stand in quotes, or end as files do.
    pattern = re.compile(r"(?<![\"\w])test_\w+\b(?!\.csv)")
    named = {name for path in sources() for name in pattern.findall(path.read_text())}
    assert len(named) >= 12
    assert {name for name in named if f"def {name}(" not in tests} == set()
