"""Promoters on SQLite and on PostgreSQL: of eight at once one wins, and one that dies is mended.

In each generation all see the same last entry, and then all claim at once; who has won mirrors the
aliases, while others already look at what comes next.
"""

import multiprocessing
import os
import signal
from functools import partial

import pytest

from tests.postgres import postgres
from tests.test_promote import WRITES, crown, finish, mortal, three_versions
from tracking import mlflow_store
from tracking.champion import drifts, promote, reconcile
from tracking.ledger import LostRaceError, begin, history
from tracking.mlflow_store import MlflowRegistry
from tracking.mlflow_store.registry import create_model

NOW = "2026-01-02T03:04:05Z"
PROMOTERS = 8


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def uri(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    if request.param == "sqlite":
        yield ready(f"sqlite:///{folder / 'mlflow.db'}", folder)
        return
    with postgres() as database:
        yield ready(database("races"), folder)


def ready(uri, folder):
    mlflow_store.initialise(uri, folder / "mlartifacts")
    return uri


@pytest.fixture(scope="module")
def crowd():
    """How processes are made: one import of MLflow for all; each still opens the store itself."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "tests.test_promoters",
            "mlflow.store.tracking.sqlalchemy_store",
            "mlflow.store.model_registry.sqlalchemy_store",
            "alembic.command",
        ]
    )
    return context


def promoter(uri, model, number, barrier, *, generations, won):
    """Promotes in every generation; the model and its versions may not be there yet."""
    registry = MlflowRegistry(uri=uri)
    barrier.wait(120)
    client = mlflow_store.client_of(uri)
    create_model(client, model)
    own = int(client.create_model_version(model, source="/nowhere").version)
    for generation in range(generations):
        after = begin(registry, model, who=f"promoter {number}", now=NOW)
        barrier.wait(120)
        try:
            entry = promote(
                registry,
                model,
                own,
                after=after,
                report="f" * 64,
                who=f"promoter {number}",
                why="a race",
                now=NOW,
                attempt=f"{number}-{generation}",
            )
        except LostRaceError:
            pass
        else:
            won.put((entry.generation, number))
        barrier.wait(120)


def race(uri, model, crowd, generations):
    """The winners of each generation."""
    barrier, won = crowd.Barrier(PROMOTERS), crowd.SimpleQueue()
    children = [
        crowd.Process(
            target=promoter,
            args=(uri, model, number, barrier),
            kwargs={"generations": generations, "won": won},
        )
        for number in range(PROMOTERS)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
    assert [child.exitcode for child in children] == [0] * PROMOTERS
    found = []
    while not won.empty():
        found.append(won.get())
    return sorted(found)


def check_race(uri, model, winners, generations):
    registry = MlflowRegistry(uri=uri)
    entries = history(registry, model)
    assert [entry.generation for entry in entries] == list(range(1, generations + 1))
    # Exactly one says that it won, and the ledger says the same.
    assert winners == [(entry.generation, int(entry.attempt.split("-")[0])) for entry in entries]
    befores = [None, *(entry.version for entry in entries)]
    for entry, before in zip(entries, befores, strict=False):
        assert before in (entry.previous, entry.version)
    reconcile(registry, model)
    aliases = registry.aliases(model)
    assert (aliases["champion"], aliases.get("previous")) == (
        entries[-1].version,
        entries[-1].previous,
    )
    assert drifts(registry, model) == []


def test_of_eight_promoters_of_a_name_that_did_not_exist_one_wins_each_generation(uri, crowd):
    check_race(uri, "fresh", race(uri, "fresh", crowd, 3), 3)


@pytest.mark.soak
def test_eight_promoters_race_for_twenty_generations(uri, crowd):
    check_race(uri, "long", race(uri, "long", crowd, 20), 20)


def doomed(uri, name, at, *, done):
    """Promotes, and gets SIGKILL from itself at one of its writes."""
    kill = partial(os.kill, os.getpid(), signal.SIGKILL)
    mortal(setattr, at, done=done, die=kill)
    crown(uri, name, 2)


def killed(uri, name, crowd, at, *, done):
    """How the process ended that was to die at a write."""
    child = crowd.Process(target=doomed, args=(uri, name, at), kwargs={"done": done})
    child.start()
    child.join(120)
    return child.exitcode


def test_a_promoter_that_is_really_killed_behind_the_ledger_is_mended(uri, crowd, tmp_path):
    name = three_versions(uri, "killed", tmp_path)
    crown(uri, name, 1)
    assert killed(uri, name, crowd, 3, done=False) == -signal.SIGKILL
    registry = MlflowRegistry(uri=uri)
    assert [entry.version for entry in history(registry, name)] == [1, 2]
    assert registry.aliases(name) == {"champion": 1}
    finish(uri, name, 2)


@pytest.mark.soak
def test_a_promoter_that_is_really_killed_at_any_write_is_mended(uri, crowd, tmp_path):
    name = three_versions(uri, "killed-anywhere", tmp_path)
    crown(uri, name, 1)
    for done in (False, True):
        for at in range(WRITES):
            assert killed(uri, name, crowd, at, done=done) == -signal.SIGKILL, (at, done)
            finish(uri, name, 2)
    assert killed(uri, name, crowd, WRITES, done=False) == 0
