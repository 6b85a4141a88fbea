"""Eight processes that promote at once, on SQLite and on PostgreSQL: one wins each generation.

In each generation all see the same last entry, and then all claim at once; who has won mirrors the
aliases, while others already look at what comes next.
"""

import multiprocessing

import pytest

from tests.postgres import postgres
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
