"""Kill -9 by a seeded schedule: who can be hit, when, and what a witness saw of the work.

Victims are found by descent from what a test started, never by name on the whole machine.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from featurizers.shards import shard_name
from featurizers.verify import verify
from pipelines.crew import IN_FLIGHT
from pipelines.worker import ShardWorker
from tests import undisturbed

HOME = Path(__file__).parent.parent
KINDS = ("driver", "worker", "decoder", "raylet")
MARK = "FUSELINE_TEST_FAMILY"  # in the environment of all that is started here
RUN_S = 150  # a run that takes longer hangs
GONE_S = 60  # agents of Ray see now and then that their raylet is gone
STEPS_AHEAD = 7  # a kill waits for at most so many jobs to begin or end
AFTER_S = 0.3  # and so long after that
WRITING_SHARE = 0.3  # of workers are killed while they write a shard
DECODING_SHARE = 0.9  # of decoders are killed in the middle of a clip
WAITING_SHARE = 0.7  # of runs begin when all workers of the run before are gone
YOUNG = 2  # workers of a run that are killed before they are up; four in a row end a run
SPARED = 2  # workers that a job may lose by kills; four end a run

# The command line, with a witness beside each worker.
DRIVER = """
import sys
from tests import killing
killing.drive(sys.argv.pop(), int(sys.argv.pop()))
"""


# The witness.


class Seen(ShardWorker):
    """Does jobs, and writes into a diary when it is up and when each of them begins and ends."""

    def __init__(self, diary, run, root, stage):
        super().__init__(root, stage)
        self._diary, self._run = diary, run
        self._note("up")

    def __call__(self, job):
        units = [(p.spec.fingerprint, shard_name(job.shard, p.job)) for p in job.parts]
        self._note("begun", units)
        done = super().__call__(job)
        self._note("ended", units)
        return done

    def _note(self, what, units=()):
        note = {"what": what, "pid": os.getpid(), "run": self._run, "units": units}
        line = json.dumps({**note, "at": time.monotonic()}).encode() + b"\n"
        handle = os.open(self._diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line)  # one call: lines of several workers do not mix
        os.close(handle)


def drive(diary, run):
    """Be the command line; its arguments are the process's own."""
    from pipelines import featurize
    from pipelines.__main__ import main

    featurize.ShardWorker = partial(Seen, diary, run)
    main()


@dataclass(frozen=True)
class Note:
    """A line of the diary; `units` are the columns and names of the records to be made."""

    what: str
    pid: int
    run: int
    units: frozenset
    at: float


class Diary:
    """What the workers of a round wrote down, in the order of time."""

    def __init__(self, file):
        self.file, self._at, self._notes = file, 0, []

    def notes(self):
        with suppress(FileNotFoundError), self.file.open("rb") as lines:
            lines.seek(self._at)
            for line in lines:
                if line.endswith(b"\n"):
                    self._at += len(line)
                    plain = json.loads(line)
                    units = frozenset(map(tuple, plain.pop("units")))
                    self._notes.append(Note(units=units, **plain))
        return self._notes

    def begun(self, pid):
        """The units of each job that a worker has begun, in order."""
        return [note.units for note in self.notes() if (note.pid, note.what) == (pid, "begun")]

    def last(self, pid):
        """The units of the last jobs of a worker: no others can have been in flight there."""
        return frozenset().union(*self.begun(pid)[-IN_FLIGHT:])


# Where the work runs.


class Nodes:
    """A cluster on this machine: a head that does no work, and nodes that are killed and replaced.

    Attributes:
        joined: Drivers outlive a node's end.
    """

    joined = True

    def __init__(self, nodes=2):
        from ray.cluster_utils import Cluster

        # Whether a node is alive is asked more often than usual, so that tests need not wait.
        asked = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
        head = {"num_cpus": 0, "_system_config": asked}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        for _ in range(nodes):
            self._cluster.add_node(num_cpus=1)

    def _raylets(self):
        """The raylet of each node that works."""
        return {node.all_processes["raylet"][0].process: node for node in self._nodes()}

    def _nodes(self):
        return [node for node in self._cluster.worker_nodes if node.all_processes.get("raylet")]

    def family(self, driver):
        """All that a run may have started: the driver's children, and those of the nodes."""
        del driver
        return [each for raylet in self._raylets() for each in children(raylet.pid)]

    def raylets(self, driver):
        del driver
        return [psutil.Process(raylet.pid) for raylet in self._raylets()]

    def mend(self, victim):
        """Put a node in the place of the one whose raylet was killed."""
        dead = {raylet.pid: (raylet, node) for raylet, node in self._raylets().items()}
        raylet, node = dead[victim.pid]
        assert raylet.wait(GONE_S) == -signal.SIGKILL
        self._cluster.remove_node(node, allow_graceful=False)
        self._cluster.add_node(num_cpus=1)

    def close(self):
        self._cluster.shutdown()


class Machine:
    """This machine alone: each driver starts a Ray of its own, and has no other node."""

    joined = False
    address = None

    def family(self, driver):
        return children(driver)

    def raylets(self, driver):
        return [each for each in children(driver) if is_raylet(each)]

    def mend(self, victim):
        """The next driver starts another."""

    def close(self):
        """Nothing is left open."""


def children(pid):
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def words_of(process):
    with suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            return process.cmdline() or [""]
    return [""]


def is_raylet(process):
    return words_of(process)[0].endswith("/raylet")


def is_worker(process):
    """Whether it is an actor of ours; not a child of one that has no name of its own yet."""
    with suppress(psutil.Error):
        named = words_of(process)[0].startswith("ray::_Actor")
        return named and not words_of(process.parent())[0].startswith("ray::")
    return False


def is_in_a_clip(decoder):
    """Whether it has a film open."""
    with suppress(psutil.Error):
        return any(each.path.endswith(".mp4") for each in decoder.open_files())
    return False


def is_decoder(process):
    return any("featurizers.decod" in word for word in words_of(process))


@contextmanager
def marked(patch, name):
    """Mark all that is started meanwhile; hold that none of it is left afterwards."""
    patch.setenv(MARK, name)
    yield
    patch.delenv(MARK)
    deadline = time.monotonic() + GONE_S
    while left := [each for each in psutil.process_iter() if _has_mark(each, name)]:
        assert time.monotonic() < deadline, f"left behind: {[words_of(each) for each in left]}"
        time.sleep(0.2)


def _has_mark(process, name):
    with suppress(psutil.Error):
        ours = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
        return ours and process.environ().get(MARK) == name
    return False


# One run, and whom it loses.


@dataclass
class Run:
    """A driver, from its start to its end.

    Attributes:
        standing: What was finished before.
        quiet: Nobody of an earlier run was at work when it looked what is finished.
        family: All processes that were seen at work for it.
        lost: Workers (process ids) that were killed or lost their node.
        young: Workers that were killed before they were up.
        cut: It was killed itself, or its only node.
        code: How it ended.
        lines: What it wrote into its log.
    """

    number: int
    process: subprocess.Popen
    standing: set
    quiet: bool
    family: set = field(default_factory=set)
    lost: set = field(default_factory=set)
    young: int = 0
    cut: bool = False
    code: int | None = None
    lines: list = field(default_factory=list)

    @property
    def goes_on(self):
        return self.process.poll() is None

    @property
    def jobs(self):
        return [line for line in self.lines if line["kind"] == "job"]


class Round:
    """Featurizes a dataset from nothing to its end under kills.

    Args:
        place: Where the work runs.
        made: The experiment; it was ingested.
        wanted: sha256 by name of an undisturbed run's files.
        units: All columns and names of records.
        chance: Decides who is killed, and when.
    """

    def __init__(self, place, made, wanted, units, chance):
        self._place, self._made, self._wanted, self._units = place, made, wanted, units
        self._chance, self._folder = chance, made.root.parent
        self.diary = Diary(self._folder / f"diary-{time.monotonic_ns()}.jsonl")
        self.runs, self.hits = [], Counter()
        self._decoders = {}  # when a worker last lost its decoder
        self._deaths = Counter()  # of workers, by the units that they had in hand

    def work(self, kinds):
        """Kill as the schedule says until all is finished; what was hit is taken off it."""
        while not self.runs or self.runs[-1].code != 0:
            run = self._start()
            try:
                while kinds and self._strike(run, kinds[0]):
                    self.hits[kinds.popleft()] += 1
                self._end(run)
            finally:
                run.process.kill()
                run.process.wait()
        self._hold()

    def _start(self):
        quiet = not self.runs or self._chance.random() < WAITING_SHARE
        if quiet and self.runs:
            self._all_gone(self.runs[-1])
        number = len(self.runs)
        environment = {**os.environ, "PYTHONPATH": str(HOME)}
        environment.pop("RAY_ADDRESS", None)
        if self._place.address:
            environment["RAY_ADDRESS"] = self._place.address
        standing = undisturbed.hold_standing(undisturbed.files(self._made.root))
        file = self._folder / "experiment.yaml"
        arguments = ["featurize", file, "--json", str(number), self.diary.file]
        with (self._folder / f"errors-{number}.txt").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", DRIVER, *arguments],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=self._folder,
                env=environment,
            )
        self._logs = set(self._log_files())
        self._until = time.monotonic() + RUN_S
        self.runs.append(Run(number, process, standing, quiet))
        return self.runs[-1]

    def _log_files(self):
        return sorted((self._made.root / "logs").glob("featurize-*.jsonl"))

    def _end(self, run):
        while run.goes_on:
            self._patience(run)
            self._meet(run)
            time.sleep(0.2)
        run.code = run.process.returncode
        assert run.code == 0 or run.cut, f"run {run.number}: {run.code}, {self._errors(run)}"
        for file in set(self._log_files()) - self._logs:
            run.lines += _whole_lines(file)
        if run.code:
            # With the driver went all its workers, or Ray itself.
            run.lost |= {note.pid for note in self.diary.notes() if note.run == run.number}
        else:
            self._all_gone(run)

    def _patience(self, run):
        if time.monotonic() > self._until:
            raise AssertionError(f"run {run.number} hangs, it said: {self._errors(run)}")

    def _errors(self, run):
        return (self._folder / f"errors-{run.number}.txt").read_text()

    def _all_gone(self, run):
        """Wait until nobody works for a run any more."""
        deadline = time.monotonic() + GONE_S
        while left := [each for each in self._meet(run) if is_worker(each) or is_decoder(each)]:
            assert time.monotonic() < deadline, f"left behind: {[words_of(each) for each in left]}"
            time.sleep(0.05)

    def _meet(self, run):
        found = self._place.family(run.process.pid)
        run.family |= set(found)
        return run.family

    def _at_work(self, run):
        """Those of this run whose work counts: not who was lost before, nor his child."""
        gone = set().union(*(each.lost for each in self.runs))
        found = [each for each in self._meet(run) if not {each.pid, parent_of(each)} & gone]
        return sorted(found, key=lambda each: each.pid)

    # Kills

    def _strike(self, run, kind):
        """Kill one of a kind at a random moment; False when the run ended before."""
        hit = {
            "driver": self._driver,
            "worker": self._worker,
            "decoder": self._decoder,
            "raylet": self._raylet,
        }[kind]
        self._wait(run)
        while run.goes_on:
            self._patience(run)
            if hit(run):
                return True
            time.sleep(0.01)
        return False

    def _wait(self, run):
        """Wait for a random moment."""
        wanted = len(self.diary.notes()) + self._chance.randint(0, STEPS_AHEAD)
        pause = self._chance.uniform(0, AFTER_S)
        while run.goes_on and len(self.diary.notes()) < wanted:
            self._patience(run)
            time.sleep(0.005)
        if run.goes_on:
            time.sleep(pause)

    def _kill(self, run, victim):
        """True when it was alive, and the run had not ended."""
        with suppress(psutil.NoSuchProcess):
            if run.goes_on and victim.status() != psutil.STATUS_ZOMBIE:
                victim.kill()
                return True
        return False

    def _driver(self, run):
        victim = psutil.Process(run.process.pid)
        self._meet(run)
        if not self._kill(run, victim):
            return False
        assert run.process.wait() == -signal.SIGKILL
        run.cut = True
        return True

    def _raylet(self, run):
        found = self._place.raylets(run.process.pid)
        if not found:
            return False
        victim = self._chance.choice(sorted(found, key=lambda each: each.pid))
        victim.suspend()  # so that it starts nobody while we look
        lost = children(victim.pid)
        self._meet(run)
        if not self._kill(run, victim):
            victim.resume()
            return False
        run.lost |= {each.pid for each in lost}
        run.cut |= not self._place.joined
        self._place.mend(victim)
        return True

    def _worker(self, run):
        workers = [each for each in self._at_work(run) if is_worker(each)]
        if self._chance.random() < WRITING_SHARE:
            victim = self._writer(run, workers)
        else:
            victim = self._chance.choice(workers) if workers else None
        if victim is None or not self._may_die(run, victim) or not self._kill(run, victim):
            return False
        victim.wait(GONE_S)
        run.lost.add(victim.pid)
        self._deaths.update(self.diary.last(victim.pid))
        run.young += not self._is_up(victim)
        return True

    def _writer(self, run, workers):
        """A worker that has an unfinished file open; None when none is seen for a while."""
        until = time.monotonic() + 1.0
        while run.goes_on and time.monotonic() < until:
            for draft in (self._made.root / "columns").glob("*/.*"):
                unit = (draft.parent.name, draft.name[1:19])
                for note in reversed(self.diary.notes()):
                    if note.what == "begun" and unit in note.units:
                        return next((each for each in workers if each.pid == note.pid), None)
            time.sleep(0.001)
        return None

    def _is_up(self, worker):
        return any(note.pid == worker.pid for note in self.diary.notes())

    def _may_die(self, run, worker):
        """A job or a start that loses four workers ends the run, and rightly so."""
        if not self._is_up(worker):
            return run.young < YOUNG
        return all(self._deaths[unit] < SPARED for unit in self.diary.last(worker.pid))

    def _decoder(self, run):
        found = [
            each
            for each in self._at_work(run)
            if is_decoder(each) and self._may_lose_decoder(parent_of(each))
        ]
        if not found:
            return False
        victim = self._chance.choice(found)
        worker = parent_of(victim)
        if self._chance.random() < DECODING_SHARE and not is_in_a_clip(victim):
            return False
        if not self._kill(run, victim):
            return False
        self._decoders[worker] = time.monotonic()
        return True

    def _may_lose_decoder(self, worker):
        """A clip that loses two children in a row is quarantined, and rightly so.

        So a worker loses another only when a job is finished that it began after the first.
        """
        since, young = self._decoders.get(worker, -1.0), set()
        if since < 0:
            return True
        for note in self.diary.notes():
            if note.pid == worker and note.at > since:
                if note.what == "begun":
                    young.add(note.units)
                elif note.units in young:
                    return True
        return False

    # What must be true

    def _hold(self):
        root = self._made.root
        found = undisturbed.files(root)
        unfinished = [name for name in found if name.rpartition("/")[2].startswith(".")]
        assert not unfinished, f"unfinished: {unfinished}"
        others = undisturbed.digests(root).items() ^ self._wanted.items()
        assert not others, f"other bytes: {sorted({name for name, _ in others})}"
        undisturbed.hold(found)
        wrong = verify(root)
        assert not wrong, f"verify found {wrong}"
        for run in self.runs:
            self._hold_run(run)
        self._hold_in_flight()

    def _hold_run(self, run):
        """A run computes what was not finished before it, and nothing else."""
        left = self._units - run.standing
        logged = [unit for line in run.jobs for unit in self._units_of(line)]
        assert len(logged) == len(set(logged)), f"run {run.number} answered twice"
        begun = {
            unit for note in self.diary.notes() if note.run == run.number for unit in note.units
        }
        assert set(logged) <= begun <= left, f"run {run.number} did what was finished before"
        if run.code == 0 and run.quiet:
            assert set(logged) == begun == left, f"run {run.number}"
        up = {note.pid for note in self.diary.notes() if note.run == run.number}
        again = sum(line["attempts"] - 1 for line in run.jobs)
        assert again <= len(run.lost & up), f"run {run.number}: {again} jobs again"

    def _units_of(self, line):
        names = {column: name for column, name in self._units if int(name[:5]) == line["shard"]}
        return [(column, names[column]) for column in line["columns"]]

    def _hold_in_flight(self):
        """Begun more than once is only what was in flight at a worker that was lost."""
        lost = set().union(*(run.lost for run in self.runs))
        begun = defaultdict(list)
        for note in self.diary.notes():
            for unit in note.units if note.what == "begun" else ():
                begun[unit].append(note.pid)
        for unit, workers in begun.items():
            held = [pid for pid in workers if pid not in lost or unit not in self.diary.last(pid)]
            assert len(held) <= 1, f"{unit} was computed twice, by {workers}; lost were {lost}"

    @property
    def begun(self):
        """How many jobs were begun, each time counted."""
        return sum(note.what == "begun" for note in self.diary.notes())

    @property
    def again(self):
        """How many of them were begun not for the first time."""
        seen, again = set(), 0
        for note in self.diary.notes():
            if note.what == "begun":
                again += bool(note.units & seen)
                seen |= note.units
        return again


def parent_of(process):
    with suppress(psutil.Error):
        return process.ppid()
    return 0


def _whole_lines(file):
    for line in file.read_bytes().splitlines():
        with suppress(ValueError):
            yield json.loads(line)
