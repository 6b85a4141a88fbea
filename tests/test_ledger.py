import contextlib
import json
import threading
from collections.abc import Callable

import pytest

from tracking import mlflow_store
from tracking.champion import (
    NothingToRollBackError,
    drifts,
    promote,
    reconcile,
    rollback,
)
from tracking.ledger import Entry, LostRaceError, begin, current, history
from tracking.memory_registry import MemoryRegistry
from tracking.mlflow_store import MlflowRegistry
from tracking.registry import Registry, UnknownModelError, UnknownVersionError

NOW = "2026-01-02T03:04:05Z"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow_store.initialise(uri, folder / "mlartifacts")
    return uri


@pytest.fixture(params=["memory", "mlflow"])
def registry(request: pytest.FixtureRequest) -> Registry:
    if request.param == "memory":
        return MemoryRegistry()
    return MlflowRegistry(uri=request.getfixturevalue("store"))


@pytest.fixture
def name(request: pytest.FixtureRequest, registry: Registry) -> str:
    """A model of three versions; each test has its own, in one store."""
    model = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    for _ in range(3):
        add_version(registry, model)
    return model


def add_version(registry: Registry, model: str) -> None:
    if isinstance(registry, MemoryRegistry):
        registry.register(model)
        return
    assert isinstance(registry, MlflowRegistry)
    client = mlflow_store.client_of(registry.uri)
    mlflow_store.registry.create_model(client, model)
    client.create_model_version(model, source="/nowhere")


def delete_version(registry: Registry, model: str, version: int) -> None:
    if isinstance(registry, MemoryRegistry):
        registry.delete(model, version)
        return
    assert isinstance(registry, MlflowRegistry)
    mlflow_store.client_of(registry.uri).delete_model_version(model, str(version))


def entry_of(registry: Registry, model: str, generation: int) -> Entry | None:
    """The entry that a promoter who saw this generation judged against."""
    found = [entry for entry in history(registry, model) if entry.generation == generation]
    return found[0] if found else None


def crown(registry: Registry, model: str, version: int, generation: int, attempt: str) -> Entry:
    return promote(
        registry,
        model,
        version,
        after=entry_of(registry, model, generation),
        report="f" * 64,
        who="anna",
        why="better",
        now=NOW,
        attempt=attempt,
    )


def uncrown(registry: Registry, model: str, generation: int, attempt: str) -> Entry:
    return rollback(
        registry,
        model,
        after=entry_of(registry, model, generation),
        who="anna",
        why="worse in use",
        now=NOW,
        attempt=attempt,
    )


def test_the_first_promotion_makes_a_champion_and_no_previous(registry, name):
    assert current(registry, name) is None
    entry = crown(registry, name, 2, 0, "a")
    assert current(registry, name) == entry
    assert (entry.generation, entry.version, entry.previous) == (1, 2, None)
    assert registry.aliases(name) == {"champion": 2}


def test_the_champion_before_becomes_previous(registry, name):
    crown(registry, name, 1, 0, "a")
    crown(registry, name, 3, 1, "b")
    assert registry.aliases(name) == {"champion": 3, "previous": 1}


def test_a_champion_promoted_again_keeps_the_version_before_it(registry, name):
    crown(registry, name, 1, 0, "a")
    crown(registry, name, 2, 1, "b")
    assert crown(registry, name, 2, 2, "c").previous == 1
    assert registry.aliases(name) == {"champion": 2, "previous": 1}


def test_who_judged_against_an_older_champion_loses(registry, name):
    crown(registry, name, 1, 0, "a")
    with pytest.raises(LostRaceError, match=r"version 1, by anna"):
        crown(registry, name, 2, 0, "b")
    assert registry.aliases(name) == {"champion": 1}


def test_who_judged_against_an_entry_that_is_not_there_loses(registry, name):
    elsewhere = Entry(
        generation=4, attempt="x", version=1, previous=None, report="", who="", when=NOW, why=""
    )
    with pytest.raises(LostRaceError, match="empty"):
        promote(
            registry,
            name,
            1,
            after=elsewhere,
            report="",
            who="anna",
            why="",
            now=NOW,
            attempt="a",
        )
    assert history(registry, name) == []


def test_the_same_attempt_twice_is_one_generation(registry, name):
    first = crown(registry, name, 1, 0, "a")
    assert crown(registry, name, 1, 0, "a") == first
    assert len(history(registry, name)) == 1


def test_a_version_that_does_not_exist_is_refused_with_those_that_do(registry, name):
    with pytest.raises(UnknownVersionError, match=r"no version 7; those that exist: 1, 2, 3"):
        crown(registry, name, 7, 0, "a")
    with pytest.raises(UnknownVersionError):
        registry.set_alias(name, "champion", 7)
    with pytest.raises(UnknownVersionError):
        registry.set_tags(name, 7, {"gate.parity": "pass"})


def test_a_model_that_does_not_exist_is_named(registry):
    with pytest.raises(UnknownModelError, match="nobody"):
        registry.versions("nobody")
    with pytest.raises(UnknownModelError, match="nobody"):
        crown(registry, "nobody", 1, 0, "a")


def test_an_entry_that_would_be_cut_is_refused(registry, name):
    with pytest.raises(ValueError, match="5900 characters"):
        promote(
            registry,
            name,
            1,
            after=None,
            report="",
            who="anna",
            why="x" * 6000,
            now=NOW,
            attempt="a",
        )
    assert history(registry, name) == []


def test_what_stands_in_the_ledger_cannot_be_changed(registry, name):
    assert registry.ledger(name) == {}
    assert registry.write_once(name, "gen-000001", "ours") == "ours"
    assert registry.write_once(name, "gen-000001", "theirs") == "ours"
    assert registry.ledger(name) == {"gen-000001": "ours"}


def test_a_crash_between_ledger_and_alias_is_mended(registry, name):
    crown(registry, name, 1, 0, "a")
    lost = Entry(
        generation=2, attempt="b", version=2, previous=1, report="", who="ben", when=NOW, why=""
    )
    text = {key: getattr(lost, key) for key in Entry.__dataclass_fields__}
    registry.write_once(name, "gen-000002", json.dumps(text))
    assert registry.aliases(name) == {"champion": 1}
    assert list(map(str, reconcile(registry, name))) == [
        "champion: 1 -> 2 (a promotion broke off before it)",
        "previous: none -> 1 (a promotion broke off before it)",
    ]
    assert registry.aliases(name) == {"champion": 2, "previous": 1}
    assert reconcile(registry, name) == []


def test_aliases_that_were_edited_by_hand_are_mended(registry, name):
    crown(registry, name, 1, 0, "a")
    registry.set_alias(name, "champion", 3)
    registry.set_alias(name, "previous", 2)
    said = [
        "champion: 3 -> 1 (it was moved by hand)",
        "previous: 2 -> none (it was moved by hand)",
    ]
    assert list(map(str, drifts(registry, name))) == said
    assert registry.aliases(name) == {"champion": 3, "previous": 2}
    assert list(map(str, reconcile(registry, name))) == said
    assert registry.aliases(name) == {"champion": 1}


def test_nothing_is_reconciled_before_the_first_promotion(registry, name):
    assert reconcile(registry, name) == []
    assert begin(registry, name, who="anna", now=NOW) is None
    assert registry.ledger(name) == {}


def test_an_alias_without_a_ledger_is_generation_0(registry, name):
    registry.set_alias(name, "champion", 2)
    first = begin(registry, name, who="anna", now=NOW)
    assert (first.generation, first.version, first.previous, first.who) == (0, 2, None, "anna")
    registry.set_alias(name, "champion", 3)
    assert begin(registry, name, who="ben", now=NOW) == first
    assert [drift.wanted for drift in reconcile(registry, name)] == [2]
    entry = crown(registry, name, 1, 0, "a")
    assert (entry.generation, entry.previous) == (1, 2)
    assert registry.aliases(name) == {"champion": 1, "previous": 2}
    assert uncrown(registry, name, 1, "b").version == 2


def test_who_judged_without_a_champion_loses_to_an_alias_that_became_generation_0(registry, name):
    class Late:
        """Reads the ledger before the alias is set, and writes after it."""

        def __getattr__(self, call):
            return getattr(registry, call)

        def write_once(self, model, key, text):
            registry.set_alias(model, "champion", 3)
            begin(registry, model, who="ben", now=NOW)
            return registry.write_once(model, key, text)

    with pytest.raises(LostRaceError, match=r"reached 0 \(version 3, by ben\)"):
        crown(Late(), name, 1, 0, "a")
    assert [entry.version for entry in history(registry, name)] == [3]


def test_an_alias_set_after_the_first_promotion_began_is_no_generation_0(registry, name):
    registry.write_once(name, "gen-000000", "null")  # and then it was killed
    registry.set_alias(name, "champion", 3)
    assert begin(registry, name, who="ben", now=NOW) is None
    assert crown(registry, name, 1, 0, "a").previous is None
    assert registry.aliases(name) == {"champion": 1}


class Killed(BaseException):
    """The process ended."""


class Mortal:
    """A registry whose user is killed at one of its writes, before or after it was done."""

    def __init__(self, registry: Registry, at: int, *, done: bool) -> None:
        self._registry, self._left, self._done = registry, at, done

    def __getattr__(self, call):
        found = getattr(self._registry, call)
        if call not in ("write_once", "set_alias", "set_tags"):
            return found

        def write(*args):
            self._left -= 1
            if self._left < 0 and not self._done:
                raise Killed
            answer = found(*args)
            if self._left < 0:
                raise Killed
            return answer

        return write


@pytest.mark.parametrize(("done", "by_hand"), [(False, False), (True, True)])
def test_a_promotion_that_is_killed_at_any_write_is_mended(registry, name, done, by_hand):
    if by_hand:
        registry.set_alias(name, "champion", 3)
    killed = 0
    for step in range(3):
        for at in range(9):
            before = history(registry, name)
            mortal, attempt = Mortal(registry, at, done=done), f"{step}-{at}"
            try:
                after = begin(mortal, name, who="anna", now=NOW)
                promote(
                    mortal,
                    name,
                    1 + (step + at) % 3,
                    after=after,
                    report="",
                    who="anna",
                    why="",
                    now=NOW,
                    attempt=attempt,
                )
            except Killed:
                killed += 1
            else:
                break
            finally:
                reconcile(registry, name)
            entries = history(registry, name)
            assert len(entries) - len(before) in (0, 1, 2)
            if entries:
                assert registry.aliases(name)["champion"] == entries[-1].version
            assert drifts(registry, name) == []
        entries = history(registry, name)
        assert entries[-1].attempt == attempt
    numbers = [entry.generation for entry in history(registry, name)]
    assert numbers == list(range(0 if by_hand else 1, numbers[-1] + 1))
    assert killed >= 6


@pytest.mark.parametrize("done", [False, True])
def test_a_rollback_that_is_killed_at_any_write_is_mended(registry, name, done):
    for generation, version in enumerate((1, 2, 3, 2, 3)):
        crown(registry, name, version, generation, f"up-{generation}")
    for at in range(3):
        last = current(registry, name)
        mortal, attempt = Mortal(registry, at, done=done), f"{at}"
        with contextlib.suppress(Killed):
            rollback(mortal, name, after=last, who="anna", why="", now=NOW, attempt=attempt)
        reconcile(registry, name)
        assert registry.aliases(name)["champion"] == current(registry, name).version
        assert drifts(registry, name) == []


def test_rolling_back_twice_goes_two_versions_back_and_no_further(registry, name):
    for generation, version in enumerate((1, 2, 3)):
        crown(registry, name, version, generation, f"up-{version}")
    assert uncrown(registry, name, 3, "down-1").version == 2
    assert registry.aliases(name) == {"champion": 2, "previous": 1}
    assert uncrown(registry, name, 4, "down-2").version == 1
    assert registry.aliases(name) == {"champion": 1}
    with pytest.raises(NothingToRollBackError, match="no champion to go back to"):
        uncrown(registry, name, 5, "down-3")
    assert [entry.version for entry in history(registry, name)] == [1, 2, 3, 2, 1]


def test_rolling_back_passes_over_versions_that_were_deleted(registry, name):
    for generation, version in enumerate((1, 2, 3)):
        crown(registry, name, version, generation, f"up-{version}")
    delete_version(registry, name, 3)
    delete_version(registry, name, 2)
    with pytest.raises(UnknownVersionError, match="no version 3"):
        reconcile(registry, name)
    assert uncrown(registry, name, 3, "down").version == 1
    assert registry.aliases(name) == {"champion": 1}


def test_rolling_back_never_makes_a_generation_of_the_champion_itself(registry, name):
    for generation, version in enumerate((1, 2, 1)):
        crown(registry, name, version, generation, f"up-{generation}")
    delete_version(registry, name, 2)
    with pytest.raises(NothingToRollBackError):
        uncrown(registry, name, 3, "down")


def test_a_rollback_can_lose_the_race_too(registry, name):
    crown(registry, name, 1, 0, "a")
    crown(registry, name, 2, 1, "b")
    crown(registry, name, 3, 2, "c")
    with pytest.raises(LostRaceError, match="version 3"):
        uncrown(registry, name, 2, "d")


def test_tags_of_a_version_are_kept(registry, name):
    registry.set_tags(name, 2, {"gate.parity": "pass"})
    registry.set_tags(name, 2, {"gate.parity": "fail", "gate.leaks": "pass"})
    if isinstance(registry, MlflowRegistry):
        tags = mlflow_store.client_of(registry.uri).get_model_version(name, "2").tags
        assert tags == {"gate.parity": "fail", "gate.leaks": "pass"}


def race(promoters: int, generations: int, claim: Callable[[int, int], bool]) -> list[list[int]]:
    """The promoters that won each generation; all start each generation together."""
    winners: list[list[int]] = [[] for _ in range(generations)]
    barrier = threading.Barrier(promoters)

    def run(promoter: int) -> None:
        for generation in range(generations):
            barrier.wait(60)
            if claim(promoter, generation):
                winners[generation].append(promoter)

    threads = [threading.Thread(target=run, args=(promoter,)) for promoter in range(promoters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


def try_to_win(registry: Registry, model: str, promoter: int, generation: int) -> bool:
    version = 1 + promoter % 3
    try:
        crown(registry, model, version, generation, f"{promoter}-{generation}")
    except LostRaceError:
        return False
    return True


def test_of_many_threads_exactly_one_wins_each_generation(registry, name):
    winners = race(4, 4, lambda who, which: try_to_win(registry, name, who, which))
    assert [len(who) for who in winners] == [1, 1, 1, 1]
    entries = history(registry, name)
    assert [entry.attempt for entry in entries] == [f"{w[0]}-{g}" for g, w in enumerate(winners)]
    assert registry.aliases(name)["champion"] == entries[-1].version
    assert reconcile(registry, name) == []
