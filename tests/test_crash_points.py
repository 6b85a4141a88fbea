"""Killed after any step on disk or any request: run again, and the bytes are the undisturbed ones.

One run is recorded step by step. What a kill or a power cut after each step would leave is put back
and run again. Some steps are also reached by a real kill -9, to see that it leaves what was said.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import fsspec
import pytest

from featurizers.clip import BadClipError
from featurizers.decoder import Decoder
from featurizers.extract import Outcome
from featurizers.lexical import HashedWords
from featurizers.manifest import commit, open_column
from featurizers.shards import column_folder, job_id, write_shard
from featurizers.store import store_at
from pipelines import worker
from pipelines.executors import InProcess
from pipelines.featurize import featurize, finished
from pipelines.ingest import ingest
from pipelines.stopping import Stopped
from pipelines.upkeep import retry
from tests import undisturbed
from tests.disk import Disk, Tree
from tests.test_featurize import experiment, rows_of_words
from tests.test_shards import SPEC, shard_of

pytestmark = pytest.mark.media

HERE = Path(__file__).parent.parent
FEATURES = {
    "text": {"featurizer": "hashed-words"},
    "audio": {"featurizer": "logmel", "hop_ms": 20},
}
SEED = 20

# Does a verb for each number that it is given, in a child that dies by kill -9 in place of the step
# after so many; says how the child ended.
DIES = """
import os, signal, sys
from pathlib import Path
from pipelines.experiment import load
from tests import test_crash_points
from tests.disk import Disk

made, work = load(Path(sys.argv[1])), getattr(test_crash_points, sys.argv[2])
for limit in sys.stdin:
    child = os.fork()
    if not child:
        with Disk(made.root, int(limit), lambda: os.kill(os.getpid(), signal.SIGKILL)):
            work(made)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Remembers(Decoder):
    """Decodes each film once: what it gave before, it gives again."""

    def __init__(self):
        super().__init__()
        self._given = {}

    def decode_first(self, path, spans, wants, **how):
        asked = (path, tuple(spans), tuple(wants))
        if asked not in self._given:
            self._given[asked] = list(super().decode_first(path, spans, wants, **how)), self.spent
        events, self.spent = self._given[asked]
        yield from events


@pytest.fixture(scope="module", autouse=True)
def quick():
    """What is not looked at takes no time in this process: decoding, and waiting for the disk.

    What is durable is told by `Disk`, which sees each sync all the same.
    """
    decoder = Remembers()
    with pytest.MonkeyPatch.context() as patch, decoder:
        patch.setattr(worker, "Decoder", lambda: decoder)
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, lambda handle: None)
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Four films of one second, with words."""
    return rows_of_words(tmp_path_factory.mktemp("media"), 4)


def ingested(made):
    ingest(made, InProcess(), lambda count: None)


def featurized(made):
    """Featurize; returns what was computed, as `undisturbed.hold_standing` names it."""
    jobs = []
    featurize(made, InProcess(), jobs.append)
    return {
        (column, record.name)
        for done in jobs
        for column, record in zip(done.columns, done.records, strict=True)
    }


def retried(made):
    """Retry; returns how many clips were tried."""
    found = retry(made, [], InProcess(), lambda done: None, lambda sentence: None)
    return sum(found.clips.values())


def without_logs(found):
    return {name: content for name, content in found.items() if not name.startswith("logs/")}


class Scene:
    """A dataset before some work, the work, and what it leaves when nothing happens.

    Attributes:
        made: The experiment.
        before: What lies there before.
        disk: The recorded run.
        wanted: Files by name after it, without logs.
    """

    def __init__(self, made, work, *, older=False):
        self.made, self.work = made, work
        self._hold = None if work is ingested else older
        self.before = Tree.read(made.root)
        with Disk(made.root) as self.disk:
            self.computed = work(made)
        self.wanted = without_logs(undisturbed.files(made.root))

    def end(self):
        """Hold what lies there now against the undisturbed run."""
        everything = undisturbed.files(self.made.root)
        assert unfinished(everything) == []
        found = without_logs(everything)
        assert sorted(found) == sorted(self.wanted)
        assert [name for name in found if found[name] != self.wanted[name]] == []
        if self._hold is not None:
            undisturbed.hold(found, older=self._hold)

    def states(self, seed=None):
        """Each state that a kill leaves, or with a seed a power cut, once: (steps, state)."""
        seen, chance = [], random.Random(seed)  # noqa: S311 - repeatable, no secret
        for number in range(len(self.disk.left)):
            found = [self.disk.left[number]]
            if seed is not None:
                found = [self.disk.cut[number](None), self.disk.cut[number](chance)]
            for tree in found:
                if tree not in seen:
                    seen.append(tree)
                    yield number, tree

    @contextmanager
    def after(self, number):
        """Say after which step something failed."""
        try:
            yield
        except BaseException as error:
            steps = self.disk.steps
            error.add_note(f"after step {number} of {len(steps)}: {[*steps, None][number - 1]}")
            raise


def grown(folder, rows, work, **changes):
    """A scene whose dataset had two clips, featurized, and is to have four."""
    made = experiment(folder, rows[:2], features=FEATURES, shards={"clips": 2}, **changes)
    ingested(made)
    featurized(made)
    made = experiment(folder, rows, features=FEATURES, shards={"clips": 2}, **changes)
    if work is not ingested:
        ingested(made)
    return made


def fresh(folder, rows):
    made = experiment(folder, rows, features=FEATURES, shards={"clips": 2})
    ingested(made)
    return Scene(made, featurized)


def grows(folder, rows):
    return Scene(grown(folder, rows, featurized), featurized, older=True)


def mended(folder, rows):
    made = experiment(folder, rows, features=FEATURES, shards={"clips": 2})
    ingested(made)
    featurized(made)
    other = [{**rows[0], "transcript": "mended words"}, *rows[1:]]
    made = experiment(folder, other, features=FEATURES, shards={"clips": 2})
    ingested(made)
    return Scene(made, featurized, older=True)


@pytest.fixture(
    scope="module",
    params=[fresh, mended, pytest.param(grows, marks=[pytest.mark.soak, pytest.mark.slow])],
    ids=lambda make: make.__name__,
)
def scene(request, tmp_path_factory, rows):
    """Featurizing for the first time, after words were mended, and after clips were added."""
    return request.param(tmp_path_factory.mktemp(request.param.__name__), rows)


# The checker itself


@pytest.fixture(scope="module")
def whole(tmp_path_factory, rows):
    """The files of a finished dataset."""
    found = fresh(tmp_path_factory.mktemp("whole"), rows).wanted
    assert undisturbed.hold(found) == {"columns": 2, "shards": 4, "clips": 8, "members": 24}
    return found


@pytest.mark.parametrize("harm", ["flipped", "cut", "lost", "added", "unfinished"])
def test_the_checker_finds_any_harm_to_any_file(whole, harm):
    for name, content in whole.items():
        if not name.startswith("columns/"):
            continue
        middle, (folder, _, file) = len(content) // 2, name.rpartition("/")
        flipped = bytes([content[middle] ^ 1])
        changed = {
            "flipped": {name: content[:middle] + flipped + content[middle + 1 :]},
            "cut": {name: content[:middle]},
            "lost": {name: None},
            "added": {f"{folder}/more-{file}": content},
            "unfinished": {f"{folder}/.{file}.x7x7x7x7": content},
        }[harm]
        hurt = {key: value for key, value in {**whole, **changed}.items() if value is not None}
        with pytest.raises((AssertionError, LookupError, ValueError, OSError)):
            undisturbed.hold(hurt)


# Featurize


def test_a_run_makes_the_steps_that_are_spoken_of(scene):
    kinds = {step.kind for step in scene.disk.steps}
    assert kinds >= {"create", "write", "sync", "chmod", "rename", "link", "unlink"}
    assert len(scene.disk.steps) > 50


def test_killed_after_any_step_what_is_missing_is_done_and_nothing_else(scene):
    for number, tree in scene.states():
        with scene.after(number):
            tree.write(scene.made.root)
            standing = undisturbed.hold_standing(tree.files)
            assert featurized(scene.made) == scene.computed - standing
            scene.end()


def test_when_the_power_goes_after_any_step_nothing_is_torn_and_the_bytes_are_the_same(scene):
    for number, tree in scene.states(seed=SEED):
        with scene.after(number):
            tree.write(scene.made.root)
            standing = undisturbed.hold_standing(tree.files)
            assert featurized(scene.made) == scene.computed - standing
            scene.end()


def test_what_a_finished_run_has_written_no_power_cut_takes_away(scene):
    assert [name for name in scene.disk.unsynced() if not name.startswith("logs")] == []


def test_a_column_that_is_there_can_be_read_after_any_step(tmp_path, rows):
    scene = grows(tmp_path, rows)
    fingerprint = scene.made.featurizers()["text"].spec.fingerprint
    seen = set()
    for number, tree in scene.states():
        with scene.after(number):
            tree.write(scene.made.root)
            column = open_column(scene.made.root, fingerprint)
            assert all(column.read(key) is not None for key in column.rows)
            seen.add(len(column.rows))
    assert seen == {2, 4}


def unfinished(found):
    """Names of files that somebody was writing."""
    return [name for name in found if name.rpartition("/")[2].startswith(".")]


def interrupt():
    raise Stopped


def test_stopped_before_any_step_nothing_half_done_is_left(tmp_path, rows):
    scene = fresh(tmp_path, rows)
    for number in range(len(scene.disk.steps)):
        with scene.after(number):
            scene.before.write(scene.made.root)
            with pytest.raises(Stopped), Disk(scene.made.root, number, interrupt):
                featurized(scene.made)
            left = Tree.read(scene.made.root).files
            if scene.disk.steps[number].kind != "unlink":  # then it is the clearing that is stopped
                assert unfinished(left) == []
            undisturbed.hold_standing(left)
            featurized(scene.made)
            scene.end()


def killed_twice(scene, chance, firsts, seconds):
    """Killed, run again and killed in that, and run once more; returns how often."""
    states, died = list(scene.states()), 0
    for number, tree in chance.sample(states, min(firsts, len(states))):
        with scene.after(number):
            tree.write(scene.made.root)
            again = Scene(scene.made, featurized)
            found = list(again.states())
            for second, left in chance.sample(found, min(seconds, len(found))):
                with again.after(second):
                    left.write(scene.made.root)
                    featurized(scene.made)
                    scene.end()
                    died += 1
    return died


def test_killed_again_in_the_run_that_goes_on_the_bytes_are_the_same(tmp_path, rows):
    assert killed_twice(fresh(tmp_path, rows), random.Random(SEED), 4, 8) > 20  # noqa: S311 - repeatable, no secret


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_twice_after_any_two_steps_the_bytes_are_the_same(tmp_path, rows):
    died = killed_twice(fresh(tmp_path, rows), random.Random(SEED), 999, 16)  # noqa: S311 - repeatable, no secret
    assert died > 0


# Real kills


def kill_for_real(scene, verb, limits):
    """Do the work in another process, which is killed in place of the step after so many."""
    file = scene.made.root.parent / "experiment.yaml"
    command = [sys.executable, "-c", DIES, file, verb]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE
    ) as parent:
        for limit in limits:
            with scene.after(limit):
                scene.before.write(scene.made.root)
                print(limit, file=parent.stdin, flush=True)
                assert parent.stdout.readline() == f"{-signal.SIGKILL}\n"
                left = Tree.read(scene.made.root)
                assert left.likeness() == scene.disk.left[limit].likeness()
                scene.work(scene.made)
                scene.end()
        parent.stdin.close()


def limits(scene, count):
    """Some of a scene's steps, by chance."""
    chance = random.Random(SEED)  # noqa: S311 - repeatable, no secret
    return sorted(chance.sample(range(len(scene.disk.steps)), count))


@pytest.mark.slow
def test_a_real_kill_leaves_what_was_recorded(tmp_path, rows):
    scene = fresh(tmp_path, rows)
    kill_for_real(scene, "featurized", limits(scene, 4))


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_real_kills_leave_what_was_recorded(tmp_path, rows):
    scene = fresh(tmp_path, rows)
    kill_for_real(scene, "featurized", limits(scene, 30))


# Ingest


@pytest.fixture(scope="module", params=["first", "more"])
def intake(request, tmp_path_factory, rows):
    """Ingesting for the first time, and more clips beside those that are featurized."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "more":
        return Scene(grown(folder, rows, ingested), ingested)
    made = experiment(folder, rows, features=FEATURES, shards={"clips": 2})
    made.root.mkdir()
    return Scene(made, ingested)


@pytest.mark.parametrize("seed", [None, SEED], ids=["killed", "power-cut"])
def test_ingest_that_broke_off_after_any_step_ends_in_the_same_table_and_plan(intake, seed):
    assert len(intake.disk.steps) >= 20
    for number, tree in intake.states(seed):
        with intake.after(number):
            tree.write(intake.made.root)
            ingested(intake.made)
            intake.end()


def test_clips_that_are_there_can_be_featurized_after_any_step_of_an_ingest(tmp_path, rows):
    """The plan is written first: places without a clip do no harm, clips without one would."""
    scene = Scene(grown(tmp_path, rows, ingested), ingested)
    made, seen = scene.made, set()
    for number, tree in scene.states():
        with scene.after(number):
            tree.write(made.root)
            featurized(made)
            seen.add(len(finished(made)["text"].rows))
    assert seen == {2, 4}


# Retry


@pytest.fixture(scope="module")
def second_try(tmp_path_factory, rows):
    """Trying clips again, one in each of two shards, that were refused on a bad day."""
    begin = HashedWords.begin

    def refuses(featurizer, clip):
        if clip.id in {"who0", "who3"}:
            raise BadClipError("crashed", "on a bad day")
        return begin(featurizer, clip)

    made = experiment(
        tmp_path_factory.mktemp("retry"),
        rows,
        features=FEATURES,
        shards={"clips": 2},
        max_dropped=0.5,
    )
    ingested(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HashedWords, "begin", refuses)
        featurized(made)
    return Scene(made, retried, older=True)


def refused_in(tree):
    """How many clips are quarantined by the records that are there."""
    names = [name for name in tree.files if name.startswith("columns/") and name.count("/") == 2]
    found = [
        json.loads(tree.files[n]) for n in names if n.endswith(".json") and "manifest" not in n
    ]
    return sum(record["counts"]["quarantined"] for record in found)


@pytest.mark.parametrize("seed", [None, SEED], ids=["killed", "power-cut"])
def test_retry_that_broke_off_after_any_step_is_finished_by_calling_it_again(second_try, seed):
    assert second_try.computed == refused_in(second_try.before) == 2
    for number, tree in second_try.states(seed):
        with second_try.after(number):
            tree.write(second_try.made.root)
            undisturbed.hold_standing(tree.files)
            # Only clips whose new record is not there yet are computed once more.
            assert retried(second_try.made) == refused_in(tree)
            second_try.end()


def test_featurizing_after_a_retry_that_broke_off_commits_what_is_finished(second_try):
    for number, tree in list(second_try.states())[::5]:
        with second_try.after(number):
            tree.write(second_try.made.root)
            assert featurized(second_try.made) == set()
            assert finished(second_try.made)
            retried(second_try.made)
            now = undisturbed.files(second_try.made.root)
            assert {name: now[name] for name in second_try.wanted} == second_try.wanted


# Object stores


class Requests:
    """Records what an object store in memory holds after each request that changes it."""

    def __init__(self, root):
        self._root, self.left = root, [undisturbed.files(root)]

    def __enter__(self):
        self._patch = pytest.MonkeyPatch()
        system = fsspec.get_filesystem_class("memory")
        for name in ("pipe_file", "put_file", "rm_file", "cp_file", "mv"):
            self._patch.setattr(system, name, self._recorded(getattr(system, name)))
        return self

    def __exit__(self, *raised):
        self._patch.undo()

    def _recorded(self, real):
        def call(system, *arguments, **named):
            answer = real(system, *arguments, **named)
            self.left.append(undisturbed.files(self._root))
            return answer

        return call


def put_back(root, found):
    """Let an object store hold these objects and no others."""
    system, prefix = fsspec.core.url_to_fs(root)
    if system.exists(prefix):
        system.rm(prefix, recursive=True)
    for name, content in found.items():
        system.pipe_file(f"{prefix}/{name}", content)


@pytest.fixture
def bucket(tmp_path):
    root = f"memory://{tmp_path.name}/dataset"
    put_back(root, {})
    yield root
    put_back(root, {})


def test_on_an_object_store_killed_after_any_request_the_bytes_are_the_same(tmp_path, rows, bucket):
    local = fresh(tmp_path / "local", rows)
    made = experiment(tmp_path, rows, features=FEATURES, shards={"clips": 2}, dataset=bucket)
    with Requests(bucket) as intake:
        ingested(made)
    for number, found in enumerate(intake.left):
        put_back(bucket, found)
        ingested(made)
        assert undisturbed.files(bucket) == intake.left[-1], f"ingest, after request {number}"
    with Requests(bucket) as work:
        computed = featurized(made)
    wanted = without_logs(work.left[-1])
    columns = {n: content for n, content in wanted.items() if n.startswith("columns/")}
    assert columns == {n: c for n, c in local.wanted.items() if n.startswith("columns/")}
    undisturbed.hold(wanted)
    assert len(work.left) > 4 * 3 + 2 * 2
    for number, found in enumerate(work.left):
        put_back(bucket, found)
        standing = undisturbed.hold_standing(found)
        assert featurized(made) == computed - standing, f"after request {number}"
        assert without_logs(undisturbed.files(bucket)) == wanted, f"after request {number}"


# Two workers at the same job


class KilledError(BaseException):
    """The writer is gone."""


class Turns:
    """Lets writers go on one operation at a time, in a given order; then kills some of them."""

    def __init__(self, order, killed):
        self._order, self._killed, self._moved = list(order), killed, threading.Condition()

    @contextmanager
    def take(self, who):
        with self._moved:
            mine = lambda: who not in self._order or self._order[0] == who  # noqa: E731 - short and local
            assert self._moved.wait_for(mine, timeout=20)
            if who in self._order:
                yield
                self._order.pop(0)
                self._moved.notify_all()
                return
        if who in self._killed:
            raise KilledError
        yield


def turned(store, turns, who):
    """A store of which each operation waits for its turn."""

    class Turned:
        def __getattr__(self, name):
            return getattr(store, name)

        def replace(self, name, content):
            with turns.take(who):
                store.replace(name, content)

        def create(self, name, content):
            with turns.take(who):
                return store.create(name, content)

        @contextmanager
        def draft(self, name, what):
            with store.draft(name, what) as draft:
                publish = draft.publish

                def waits(name):
                    with turns.take(who):
                        publish(name)

                draft.publish = waits
                yield draft

    return Turned()


ONE, OTHER = "one", "other"
OPERATIONS = 3  # a writer that wins publishes a tar, an index and a record


def orders():
    """Every order of two writers' operations, and every place where one of them is killed."""
    for made in range(OPERATIONS + 1):
        for places in combinations(range(OPERATIONS + made), made):
            order = [ONE if n in places else OTHER for n in range(OPERATIONS + made)]
            yield order, {ONE} if made < OPERATIONS else set()


def both_write(store, order, killed, outcomes):
    """Two writers do the same job; returns what each was told, None of one that was killed."""
    turns, told = Turns(order, killed), dict.fromkeys((ONE, OTHER))
    clips, _ = shard_of()

    def writes(who):
        try:
            told[who] = write_shard(
                turned(store, turns, who),
                0,
                job_id(SPEC, clips),
                SPEC,
                clips=clips,
                outcomes=outcomes[who],
            )
        except KilledError:
            assert who in killed

    threads = [threading.Thread(target=writes, args=(who,)) for who in told]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


@pytest.mark.parametrize("place", ["folder", "memory"])
@pytest.mark.parametrize("unlucky", [ONE, OTHER])
def test_two_workers_at_one_job_in_any_order_leave_one_whole_shard(tmp_path, place, unlucky):
    clips, well = shard_of()
    ill = [*well]
    ill[2] = Outcome(state="quarantined", fault="timed_out", message="on a slow machine")
    outcomes = {who: ill if who == unlucky else well for who in (ONE, OTHER)}
    for number, (order, killed) in enumerate(orders()):
        root = tmp_path / str(number)
        if place == "memory":
            root = f"memory://{tmp_path.name}/{unlucky}/{number}"
        store = store_at(root)
        told = both_write(store, order, killed, outcomes)
        assert told[OTHER] is not None
        assert told[ONE] in (None if killed else told[OTHER], told[OTHER]), order
        found = undisturbed.files(root)
        folder = column_folder(SPEC.fingerprint)
        records = [name for name in found if name.endswith(".json")]
        assert records == [f"{folder}/{told[OTHER].file}"], order
        assert found[records[0]] == told[OTHER].to_bytes(), order
        undisturbed.hold_standing(found)
        commit(root, SPEC, "plan", [told[OTHER]])
        column = open_column(root, SPEC.fingerprint)
        assert [key for key in column.rows if column.read(key) is None] in ([], [clips[2].key])
        column.close()
