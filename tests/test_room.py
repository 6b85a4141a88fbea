"""Which nodes there can ever be for each step, how long it takes, and what that costs."""

import json
from dataclasses import replace

import psutil
import pytest
import yaml

from featurizers.dataset import read_clips
from featurizers.store import StorageError
from pipelines.cluster import probe, spending
from pipelines.cluster.launcher import read
from pipelines.cluster.room import NodeKind, Room, Step, check_device, check_room, steps_of
from pipelines.executors import Need
from pipelines.experiment import InputError, outline
from pipelines.jobs.needs import KINDS
from pipelines.logbook import Logbook
from tests import test_cluster_yaml, test_command_line
from tests.test_cluster_yaml import idle_nodes
from tests.test_command_line import settings

changed, plain = test_cluster_yaml.changed, test_cluster_yaml.plain
BUCKET = {"dataset": "s3://bucket/data", "source": {"table": "clips.csv", "label": "mood"}}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No cluster and no tracking server but those of a test."""
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def by_what(findings):
    return {each.what: each for each in findings}


def failed(findings):
    return {each.what for each in findings if each.state == "failed"}


def plan(folder, **changes):
    return outline(settings(**{"workers": {"featurize": 2}, **changes}), folder)


# Room


def room_of(changed, how=lambda cluster: None):
    return read(changed(how)).room()


def test_room_is_counted_by_node_type_and_by_the_limit_over_all_of_them(changed):
    room = room_of(changed)
    assert room.count(Need()) == 6 * 16 + 4 * 8 + 2 * 48
    assert room.count(Need(gpus=1.0)) == 4 * 1 + 2 * 4
    assert room.count(Need(gpus=0.5)) == 4 * 2 + 2 * 8
    assert room.count(Need(cpus=49.0)) == 0
    # The head counts as a node of its own; of two workers, the largest are taken.
    fewer = room_of(changed, lambda cluster: cluster.update(max_workers=2))
    assert fewer.count(Need(gpus=1.0)) == 2 * 4 + 1


def test_memory_is_compared_where_it_is_known():
    kind = NodeKind(name="x", resources={"CPU": 4.0, "memory": float(3 << 30)}, most=1)
    assert kind.holds(Need(memory_bytes=2 << 30)) == 1
    assert kind.holds(Need(memory_bytes=4 << 30)) == 0
    assert replace(kind, resources={"CPU": 4.0}).holds(Need(memory_bytes=4 << 30)) == 4


def steps(folder, room, **changes):
    experiment = plan(folder, **changes)
    specs = [each.spec for each in experiment.featurizers().values()]
    found = steps_of(experiment, specs, room)
    told = [*check_room(found, room), *check_device(experiment, [room])]
    return experiment, found, told


def test_steps_ask_for_what_workers_and_ranks_hold(changed, tmp_path):
    room = room_of(changed)
    workers = {"featurize": 3, "memory_gb": 2, "train": {"least": 2, "most": 4}}
    _, found, _ = steps(tmp_path, room, workers=workers)
    by_name = {each.name: each for each in found}
    assert by_name["featurize logmel"].need == Need(memory_bytes=2 << 30)
    assert by_name["featurize hashed-words"].need == Need()
    assert by_name["featurize logmel"].most == 3
    assert by_name["ingest"].need == Need()
    # auto with GPUs: fewer ranks train, one on each.
    train = by_name["train"]
    assert (train.need, train.least, train.most) == (Need(gpus=1.0), 1, 4)
    _, found, _ = steps(tmp_path, room, workers=workers, train={"device": "cpu"})
    assert (found[-1].need, found[-1].least) == (Need(), 2)


def test_what_no_node_can_ever_hold_fails_and_says_what_there_is(changed, tmp_path):
    room = room_of(changed)
    _, _, told = steps(
        tmp_path, room, workers={"featurize": 2, "train": 13}, train={"device": "cuda"}
    )
    (found,) = [each for each in told if each.state == "failed"]
    assert found.what == "train"
    assert "13 workers with 1 CPU, 1 GPU each" in found.found
    assert "room for 12" in found.found
    assert "workers.train" in found.do
    small = Room(
        kinds=[NodeKind(name="n", resources={"CPU": 4.0, "memory": 1e9}, most=9)],
        most=9,
        source="it",
    )
    _, _, told = steps(tmp_path, small, workers={"featurize": 2, "memory_gb": 2, "train": 1})
    (found,) = [each for each in told if each.state == "failed"]
    assert (found.what, "workers.memory_gb" in found.do) == ("featurize logmel", True)


def test_gpus_that_come_only_when_asked_for_are_told_where_nobody_asks(changed, tmp_path):
    _, _, told = steps(tmp_path, room_of(changed))
    assert by_what(told)["train.device"].do == "set train.device: cuda"
    _, _, told = steps(tmp_path, room_of(changed, idle_nodes))
    assert "train.device" not in by_what(told)
    _, _, told = steps(tmp_path, room_of(changed), train={"device": "cuda"})
    assert "train.device" not in by_what(told)


def test_the_driver_of_a_job_takes_its_own_part_of_a_small_cluster(tmp_path):
    kind = NodeKind(name="n", resources={"CPU": 2.0, "memory": float(8 << 30)}, most=1)
    one = Room(kinds=[kind], most=1, source="it")
    driver = KINDS["run"]
    assert (one.count(Need()), one.count(Need(), driver)) == (2, 1)
    # With another node it lands where it is in nobody's way.
    gpu = NodeKind(name="gpu", resources={"CPU": 8.0, "GPU": 2.0}, most=1)
    two = Room(kinds=[kind, gpu], most=2, source="it")
    assert two.count(Need(gpus=1.0), driver) == 2
    _, found, _ = steps(tmp_path, one, workers={"featurize": 2, "train": 2})
    told = by_what(check_room(found, one, driver))
    assert {name for name, each in told.items() if each.state == "failed"} == {"train"}
    assert "beside the job's driver (1 CPU, 2.0 GiB of memory)" in told["train"].found
    assert "--cpus 0 --memory 0" in told["train"].do
    tiny = Room(kinds=[replace(kind, resources={"CPU": 1.0})], most=1, source="it")
    assert by_what(check_room([], tiny, Need(cpus=2.0)))["driver of a job"].state == "failed"


def test_a_sweep_asks_for_its_trials(changed, tmp_path):
    space = {"train.learning_rate": {"uniform": [0.1, 0.2]}}
    sweep = {"parallel": 20, "space": space}
    _, found, told = steps(tmp_path, room_of(changed), sweep=sweep, train={"device": "cuda"})
    assert found[-1].need == Need(gpus=1.0)
    assert by_what(told)["sweep"].found.startswith("12 of 20 worker(s) at once")


# Hours and prices


def test_prices_are_of_a_node_type_or_of_what_it_has():
    kind = NodeKind(name="gpu-train", resources={"CPU": 48.0, "GPU": 4.0}, most=1)
    assert spending.price_of(kind, {"gpu-train": 5.67, "CPU": 9.0}) == 5.67
    assert spending.price_of(kind, {"CPU": 0.1, "GPU": 1.0}) == pytest.approx(8.8)
    assert spending.price_of(kind, {"GPU": 1.0}) is None


def test_the_cost_is_nodes_times_hours_and_what_is_not_known_is_said(changed, tmp_path):
    room = room_of(changed)
    prices = {"currency": "EUR", "cpu": 0.5, "gpu-train": 4, "head": 0.2, "gpu-featurize": 1}
    experiment, found, _ = steps(
        tmp_path, room, prices=prices, workers={"featurize": 20}, train={"device": "cuda"}
    )
    by_step = {each.name: each for each in found}
    featurize = spending.Spell(
        step=by_step["featurize logmel, hashed-words"], workers=20, hours=3.0, basis="as measured"
    )
    train = spending.Spell(step=by_step["train"], workers=2, hours=None, basis="nothing yet")
    head = NodeKind(name="head", resources={"CPU": 0}, most=1)
    told = by_what(spending.check([featurize, train], room, experiment.prices, head))
    assert told["featurize"].found == "3.00 h as measured"
    assert told["train"].found == "hours are not known: nothing yet"
    # 20 workers on nodes of 16 cores: two of them.
    assert told["cost"].found.startswith("about 3.60 EUR: featurize 3.00 h x 2 cpu at 0.5, head")
    assert "without train (hours)" in told["cost"].found
    unpriced = by_what(spending.check([featurize], room, None, head))["cost"]
    assert unpriced.found == "not known: the experiment file has no prices"
    assert "prices: {currency" in unpriced.do


def test_hours_come_from_what_was_measured(tmp_path, called):
    test_command_line.films(tmp_path)
    file = test_command_line.experiment(tmp_path, train={"epochs": 5, "seeds": 2})
    assert called("ingest", str(file))[0] == 0
    experiment = outline(yaml.safe_load(file.read_text()), tmp_path)
    specs = [each.spec for each in experiment.featurizers().values()]
    assert "nothing like it" in spending._featurizing(experiment, specs, 1)[1]
    with Logbook(experiment.root) as log:
        for spec in specs:
            done = {"columns": [spec.fingerprint], "clips": 6, "seconds": 3600, "media_seconds": 0}
            log.add("job", **done)
    # Two columns of 6 clips, on two workers.
    assert spending._featurizing(experiment, specs, 2)[0] == pytest.approx(1.0)
    hours, why = spending._training(experiment, 2, on_gpus=False)
    assert hours is None
    assert "no run of mmlatch" in why
    folder = experiment.work / "training" / "mmlatch-0123"
    folder.mkdir(parents=True)
    lines = [
        {"say": "hello"},
        *({"metrics": {"samples_per_second": s}, "ranks": 1} for s in (1, 2, 4)),
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"cut'
    (folder / "progress.jsonl").write_text(text)
    hours, why = spending._training(experiment, 2, on_gpus=False)
    assert hours == pytest.approx(2 * 5 * trained_on(experiment) / 2.0 / 3600)
    assert "roughly" in why
    assert "measured on 1 rank(s); on which device is not known" in why
    assert "2 rank(s) are to train" in why


def test_a_dataset_that_cannot_be_read_from_here_is_told_and_stops_nothing(tmp_path, monkeypatch):
    def away(root):
        raise StorageError(f"{root} is away")

    monkeypatch.setattr(spending, "has_clips", away)
    room = Room(kinds=[NodeKind(name="n", resources={"CPU": 4.0}, most=1)], most=1, source="it")
    experiment, found, _ = steps(tmp_path, room, **BUCKET)
    told = spending.spells(experiment, [], found, room)
    assert [(each.hours, each.basis) for each in told] == [(None, "s3://bucket/data is away")] * 2


def trained_on(experiment):
    return sum(each.split == "train" for each in read_clips(experiment.root))


def test_prices_want_a_currency_and_numbers(tmp_path):
    for wrong, said in [({"cpu": 1}, "currency"), ({"currency": "EUR", "cpu": -1}, "cpu")]:
        with pytest.raises(InputError, match=said):
            plan(tmp_path, prices=wrong)
    assert plan(tmp_path, prices={"currency": "EUR", "cpu": 1}).prices.by_name == {"cpu": 1.0}


class Process:
    """One of the machine's, as psutil gives it."""

    def __init__(self, folder, *words):
        self.folder, self.words = folder, words

    def cwd(self):
        return str(self.folder)

    def cmdline(self):
        if not self.words:
            raise psutil.NoSuchProcess(1)
        return ["python", "/ray/monitor.py", *self.words]


def test_the_node_types_of_an_autoscaler_are_those_of_its_file(monkeypatch, tmp_path):
    """It is a process of the head, started for one cluster by a file."""
    kinds = {"head": {"resources": {"CPU": 0}, "max_workers": 0}, "any": {}}
    kinds["cpu"] = {"resources": {"CPU": 8}, "max_workers": 9}
    (tmp_path / "it.yaml").write_text(
        yaml.safe_dump({"max_workers": 4, "available_node_types": kinds})
    )
    config = "--autoscaling-config=it.yaml"
    processes = [
        Process(tmp_path),
        Process(tmp_path, "--gcs-address=a:2", config),
        Process(tmp_path, "--gcs-address=a:1"),
    ]
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(processes))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    told = [
        {"name": "any", "resources": {}, "most": 4},
        {"name": "cpu", "resources": {"memory": 0.0, "CPU": 8.0}, "most": 4},
    ]
    assert probe.scaling("a:2") == {"most": 4, "kinds": told}
    assert probe.scaling("a:1") is None
    assert probe.scaling("a:3") is None
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert probe.scaling("a:1") is None
    assert [each["resources"] for each in probe.scaling("a:3")["kinds"]] == [{}]


def test_where_nodes_may_come_of_which_nobody_states_what_they_have_nothing_is_refused():
    steps = [Step(name="train", need=Need(cpus=99.0))]
    for unknown, state in ((0, "failed"), (2, "warning")):
        room = Room(kinds=[], most=0, source="it", unknown=unknown)
        assert [each.state for each in check_room(steps, room)] == [state]
