"""How many ranks train: what there is room for, fewer after a loss, more when more room comes."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from featurizers.dataset import read_clips
from featurizers.manifest import open_column
from pipelines import devices, elastic, plans, ranks, train
from pipelines.claim import taken_over
from pipelines.elastic import Budget, Size, numbers
from pipelines.executors import start_ray, stop_ray
from pipelines.experiment import InputError, load
from pipelines.limits import PRESENT, Care
from pipelines.plans import FINISHED, Plan
from pipelines.run import planned
from tests.test_loop import RECIPE, make_dataset, without_dropout
from tracking.run import MemoryRun
from training.data import load as load_data
from training.loop import fit
from training.session import LocalSession

CPU = {"CPU": 1.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return root, make_dataset(root)


def test_workers_that_do_not_divide_the_global_batch_are_rounded_down_and_it_is_said():
    said = []
    recipe = replace(RECIPE, global_batch=32, micro_batch=None)
    assert numbers([recipe], 4, 4, said.append) == (4,)
    assert said == []
    assert numbers([recipe], 3, 3, said.append) == (2,)
    assert said == ["warning: 3 workers do not divide the global batch of 32 clips; 2 train"]
    assert numbers([recipe, replace(recipe, global_batch=9)], 3, 3, said.append) == (1,)
    assert numbers([replace(recipe, micro_batch=8)], 8, 8, said.append) == (4,)
    with pytest.raises(ValueError, match="not divisible by 1 ranks x micro batch 5"):
        numbers([replace(recipe, micro_batch=5)], 2, 2, said.append)


def test_between_two_numbers_those_count_that_divide_every_global_batch():
    recipe, silent = replace(RECIPE, global_batch=32, micro_batch=None), lambda sentence: None
    assert numbers([recipe], 1, 9, silent) == (1, 2, 4, 8)
    assert numbers([recipe, replace(recipe, global_batch=12)], 1, 9, silent) == (1, 2, 4)
    assert numbers([replace(recipe, micro_batch=8)], 2, 4, silent) == (2, 4)
    assert numbers([recipe], 5, 7, silent) == (4,)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_a_number_that_does_not_divide_the_batch_is_rounded_down_to_one_that_does():
    said, room = [], [3]
    size = Size([1, 2, 4], CPU, said.append, room=lambda each: room[0], clock=Clock())
    assert size.now() == 2
    assert said == ["there is room for 3 ranks: 2 train, of 1, 2, 4"]
    room[0] = 9
    assert (size.now(), len(said)) == (4, 1)
    room[0] = 0
    assert size.now() == 1  # its room is waited for
    assert Size([4], CPU, said.append, room=lambda each: 0).now() == 4


def test_after_ranks_that_did_not_come_up_fewer_are_tried():
    size = Size([1, 2, 4], CPU, lambda sentence: None, room=lambda each: 4, clock=Clock())
    assert size.now() == 4
    size.came_up(4, found_room=False)
    assert size.now() == 2
    size.came_up(2, found_room=True)
    assert size.now() == 4


class TakenAwayError(RuntimeError):
    preempted = True


def test_lost_groups_are_counted_and_machines_that_were_taken_away_for_themselves():
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
    from ray.train.v2.api.preemption import PreemptionInfo

    lost = WorkerGroupError("it died", {0: RuntimeError("killed")})
    gone = WorkerGroupError("it died", {0: RuntimeError("reset"), 1: TakenAwayError("gone")})
    drained = PreemptionError(PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [1]}))
    room = ControllerError(WorkerGroupStartupTimeoutError(4))
    budget = Budget(Care(max_failures=1), ranks_too=True)
    assert all(budget.permits(each) for each in (gone, room, drained, lost, gone, room))
    assert not budget.permits(lost)
    bug = ControllerError(KeyError("a bug"))
    other = Budget(Care(max_failures=1), ranks_too=True)
    assert [other.permits(bug), other.permits(bug)] == [True, False]
    assert not Budget(Care(), ranks_too=True).permits(OSError("of our own"))
    # Of a fixed number, Ray Train counts those itself.
    assert not any(Budget(Care(), ranks_too=False).permits(each) for each in (gone, drained, lost))
    assert Budget(Care(), ranks_too=False).permits(bug)


def written(folder, workers):
    plain = {
        "dataset": "data",
        "source": {"table": "clips.csv", "label": "score"},
        "features": {"text": {"featurizer": "hashed-words"}},
        "workers": {"train": workers},
    }
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(plain))
    return load(file)


def test_the_file_says_a_number_or_two_and_neither_is_part_of_a_runs_identity(tmp_path, made):
    columns = {name: open_column(made[0], each) for name, each in made[1].items()}
    found, plans = [], set()
    for given in (3, {"most": 4}, {"least": 2, "most": 8}):
        experiment = written(tmp_path, given)
        chosen = experiment.workers.train
        found.append((chosen.least, chosen.most))
        plans.add(planned(experiment, columns, RECIPE, read_clips(made[0])).folder)
        resolved = experiment.model_dump(mode="json", by_alias=True)["workers"]["train"]
        assert resolved == ({"least": 1, **given} if isinstance(given, dict) else given)
    assert found == [(3, 3), (1, 4), (2, 8)]
    assert len(plans) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (0, r"workers\.train: wanted at least 1 rank, found 0"),
        ({"least": 3, "most": 2}, r"workers\.train: .*least is 3, and most only 2"),
        ({"leest": 1, "most": 2}, r"'workers\.train\.leest' \(did you mean 'least'\?\)"),
        (
            "many",
            r"workers\.train: wanted a number of ranks, or \{.*\}, found 'many'",
        ),
    ],
)
def test_a_wrong_number_is_told(tmp_path, given, said):
    with pytest.raises(InputError, match=said):
        written(tmp_path, given)


def test_an_upgrade_of_a_library_that_computes_gives_a_run_another_name(
    tmp_path, made, monkeypatch
):
    columns = {name: open_column(made[0], each) for name, each in made[1].items()}
    experiment, clips = written(tmp_path, 1), read_clips(made[0])
    before = planned(experiment, columns, RECIPE, clips)
    monkeypatch.setattr(plans, "versions", lambda names: dict.fromkeys(names, "9.9"))
    after = planned(experiment, columns, RECIPE, clips)
    assert (before.folder != after.folder, before.family != after.family) == (True, True)


class Groups:
    """Stands for Ray Train: the n-th group ends as the n-th of `ends` says.

    An exception is raised; "grows" waits to be told to end; None is the end of it all.
    """

    def __init__(self, ends, group):
        self.ends, self.group, self.sizes = iter(ends), group, []

    def trainer(self, work, config, group, workers, care, **how):
        self.sizes.append((workers, how["again"]))
        return self

    def fit(self):
        (self.group / PRESENT).touch()
        end = next(self.ends)
        if end == "grows":
            wait_for((self.group / train.STOP).exists)
        elif end is not None:
            raise end


class Room(AbstractContextManager):
    """Stands for Ray's: there at once."""

    def __init__(self, each, count, clock):
        asked.append(count)

    def there(self, training):
        return training

    def __exit__(self, *error):
        pass


asked = []


@pytest.mark.parametrize(
    ("fewer", "room", "ends", "sizes"),
    [
        # A node is lost; then there is room for two, and for four.
        ([1, 2], [4, 3, 9, 9], ["lost", "grows", None], [4, 2, 4]),
        ([1, 2], [1, 2, 4], ["grows", "grows", None], [1, 2, 4]),
        # Ray finds no room for what it said that there was.
        ([1, 2], [4, 4, 4], ["no room", "grows", None], [4, 2, 4]),
        ([], [], ["unlucky", None], [4, 4]),
    ],
)
def test_each_group_has_the_number_that_there_is_room_for(
    tmp_path, monkeypatch, *, fewer, room, ends, sizes
):
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    errors = {
        "lost": WorkerGroupError("it died", {0: RuntimeError("killed")}),
        "no room": ControllerError(WorkerGroupStartupTimeoutError(4)),
        "unlucky": ControllerError(RuntimeError("lost in starting")),
    }
    left = iter(room)
    groups = Groups([errors.get(end, end) for end in ends], tmp_path / "group")
    asked.clear()
    monkeypatch.setattr(train, "_trainer", groups.trainer)
    monkeypatch.setattr(train, "start_ray", lambda cpus: None)
    monkeypatch.setattr(train, "resources", dict)
    monkeypatch.setattr(devices, "resources", dict)
    monkeypatch.setattr(train, "POLL_S", 0.01)
    monkeypatch.setattr(elastic, "RELEASED_S", 0.0)
    monkeypatch.setattr(elastic, "room_for", lambda each: next(left))
    monkeypatch.setattr(elastic, "More", Room)
    train.fit(
        print,
        {},
        group=tmp_path / "group",
        workers=4,
        fewer=fewer,
        care=Care(max_failures=1),
        say=lambda sentence: None,
    )
    assert groups.sizes == [(size, not fewer) for size in sizes]
    assert asked == [2 if size == 2 else 1 for size in sizes if size < 4]


@pytest.fixture(scope="module")
def head():
    """A head that does no work, as in cluster.yaml."""
    from ray.cluster_utils import Cluster

    stop_ray()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        stop_ray()
    cluster.shutdown()


CUT = 14  # past the checkpoint at step 12
WAIT_S = 240.0


def wait_for(there):
    until = time.monotonic() + WAIT_S
    while not there():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.05)


def paced(folder, config):
    """A rank of two that waits after some steps to be lost; or one alone, for more to come."""

    class Paced(ranks.RaySession):
        def wish(self, position):
            if self.rank == 0:
                with (folder / "worlds").open("a") as worlds:
                    worlds.write(f"{position} {self.world}\n")
            if self.world == 2 and position == CUT:
                (folder / f"there-{self.rank}").touch()
                time.sleep(600)  # until it is lost, or ended with the other
            if self.world == 1 and position > CUT:
                (folder / "alone").touch()
                wait_for(self._stop.exists)
            return super().wish(position)

    ranks.RaySession = Paced
    ranks.train_each(config)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_run_that_loses_a_node_goes_on_with_fewer_ranks_and_grows_again(
    head, made, tmp_path, monkeypatch
):
    monkeypatch.setattr(elastic, "MORE_S", 0.5)
    # AdamW makes steps of noise where gradients are small, as large as the learning rate.
    recipe = replace(without_dropout(RECIPE), learning_rate=5e-4)
    folder = tmp_path / "run"
    folder.mkdir()
    plan = Plan(name="it", recipe=recipe, root=made[0], folder=folder, columns=made[1])
    nodes = [head.add_node(num_cpus=1) for _ in range(2)]

    said, where = [], str(tmp_path)
    start_ray(1)
    with ThreadPoolExecutor() as beside:
        trained = beside.submit(
            train.fit,
            lambda config: paced(Path(where), config),
            {"uri": "", "runs": [ranks.sent(plan, "", taken_over(folder))]},
            group=tmp_path / "group",
            workers=2,
            fewer=[1],
            care=Care(max_failures=1),
            say=said.append,
        )
        wait_for(lambda: trained.done() or len(list(tmp_path.glob("there-*"))) == 2)
        head.remove_node(nodes[0], allow_graceful=False)
        wait_for(lambda: trained.done() or (tmp_path / "alone").exists())
        nodes.append(head.add_node(num_cpus=1))
        trained.result()
    worlds = [tuple(map(int, line.split())) for line in (tmp_path / "worlds").open()]
    assert worlds == [
        *((step, 2) for step in range(1, CUT + 1)),
        *((step, 1) for step in range(13, CUT + 2)),
        *((step, 2) for step in range(CUT + 2, 25)),
    ]
    assert any("the ranks were lost, and are started again" in each for each in said)
    assert "there is room for 1 ranks: 1 train, of 1, 2" in said
    assert "there is room for more ranks: these save, and more go on" in said
    alone = fit(recipe, load_data(*made, recipe), LocalSession(tmp_path / "alone-run"), MemoryRun())
    finished = json.loads((folder / FINISHED).read_text())
    for ours, theirs in zip(finished["history"], alone.history, strict=True):
        assert ours == pytest.approx(dict(theirs), abs=1e-5)
    found = load_file(folder / "predictor" / "weights.safetensors")
    assert set(found) == set(alone.weights)
    assert max(float((found[name] - alone.weights[name]).abs().max()) for name in found) < 1e-5
    for node in nodes[1:]:
        head.remove_node(node)
