"""From a version to the champion: what is kept, what a deleted version or a kill costs."""

import hashlib
import json

import pytest

from pipelines import registered
from pipelines.experiment import InputError
from pipelines.promote import consider, go_back, who
from tests.test_command_line import experiment
from tracking import mlflow_store
from tracking.ledger import current, history
from tracking.mlflow_store import MlflowRegistry, MlflowRun
from tracking.rules import Rule
from tracking.scorecard import Scorecard

RULE = {"metric": "mae", "floor": 9.0, "not_worse_by": 0.1}
RULES = [Rule(**RULE)]


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow_store.initialise(uri, folder / "mlartifacts")
    return uri


def card(mae):
    return Scorecard(
        evaluation_set="e" * 64,
        count=4,
        metrics={"mae": mae},
        better={"mae": "lower"},
        replicates={"mae": (mae,) * 40},
        parity=True,
        reproducible=True,
        duplicates=(),
    )


@pytest.fixture
def name(uri, request, tmp_path):
    model = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return three_versions(uri, model, tmp_path)


def three_versions(uri, model, tmp_path):
    """Make a model of three versions, each better than the one before."""
    client = mlflow_store.client_of(uri)
    mlflow_store.registry.create_model(client, model)
    for mae in (3.0, 2.0, 1.0):
        run = mlflow_store.start_run(uri, "toys", "one", {})
        (tmp_path / "scorecard.json").write_text(json.dumps(card(mae).to_json()))
        run.log_file(tmp_path / "scorecard.json")
        client.create_model_version(model, source="/nowhere", run_id=run.run_id)
    return model


def crown(uri, name, version, **changes):
    return consider(uri, name, version, RULES, why="better", **changes)


def delete(uri, name, version):
    mlflow_store.client_of(uri).delete_model_version(name, str(version))


def tags(uri, name, version):
    return dict(mlflow_store.client_of(uri).get_model_version(name, str(version)).tags)


def test_the_report_that_the_ledger_names_is_kept_with_the_candidates_run(uri, name):
    promotion = crown(uri, name, 1)
    report = promotion.entry.report
    run_id = mlflow_store.run_of(uri, name, 1)
    kept = mlflow_store.read_file(uri, run_id, f"promotion/{report}/verdict.json")
    assert hashlib.sha256(kept).hexdigest() == report
    told = json.loads(kept)
    assert {key: told[key] for key in ("promote", "reasons")} == promotion.verdict.to_json()
    assert (told["version"], told["champion"], told["evaluation_set"]) == (1, None, "e" * 64)
    assert told["rules"][0]["floor"] == 9.0
    assert told["scorecards"] == {"candidate": scorecard_digest(uri, name, 1)}
    found = tags(uri, name, 1)
    assert found["fuseline.generation"] == "1"
    assert [found[f"fuseline.gate.{i}"] for i in range(6)] == [
        reason.text for reason in promotion.verdict.reasons
    ]


def test_the_report_says_on_which_numbers_it_rests(uri, name):
    crown(uri, name, 1)
    report = crown(uri, name, 2).entry.report
    run_id = mlflow_store.run_of(uri, name, 2)
    told = json.loads(mlflow_store.read_file(uri, run_id, f"promotion/{report}/verdict.json"))
    assert (told["version"], told["champion"]) == (2, 1)
    assert told["scorecards"] == {
        "candidate": scorecard_digest(uri, name, 2),
        "champion": scorecard_digest(uri, name, 1),
    }


def scorecard_digest(uri, name, version):
    run_id = mlflow_store.run_of(uri, name, version)
    return hashlib.sha256(mlflow_store.read_file(uri, run_id, "scorecard.json")).hexdigest()


def test_a_crash_after_the_ledger_is_mended_by_the_next_promotion(uri, name):
    crown(uri, name, 1)
    mlflow_store.client_of(uri).delete_model_version_tag(name, "1", "fuseline.generation")
    assert crown(uri, name, 1).entry is None
    assert tags(uri, name, 1)["fuseline.generation"] == "1"


def test_a_dry_run_writes_nothing(uri, name):
    crown(uri, name, 1)
    registry = MlflowRegistry(uri=uri)
    registry.set_alias(name, "champion", 3)
    promotion = crown(uri, name, 2, dry_run=True)
    assert (promotion.verdict.promote, promotion.champion, promotion.entry) == (True, 1, None)
    assert registry.aliases(name) == {"champion": 3}
    assert len(history(registry, name)) == 1
    assert tags(uri, name, 2) == {}
    crown(uri, name, 1, dry_run=True)
    assert registry.aliases(name) == {"champion": 3}


def test_a_champion_that_was_deleted_ends_no_promotion(uri, name):
    crown(uri, name, 1)
    crown(uri, name, 3)
    delete(uri, name, 3)
    promotion = crown(uri, name, 2)
    assert promotion.champion is None
    assert "version 3 was deleted" in promotion.verdict.reasons[-1].text
    assert promotion.entry.generation == 3
    assert MlflowRegistry(uri=uri).aliases(name) == {"champion": 2}
    assert go_back(uri, name, why="worse in use").version == 1


def test_a_champion_that_was_deleted_can_be_rolled_back(uri, name):
    crown(uri, name, 1)
    crown(uri, name, 2)
    delete(uri, name, 2)
    assert go_back(uri, name, why="it is gone").version == 1
    registry = MlflowRegistry(uri=uri)
    assert registry.aliases(name) == {"champion": 1}
    assert current(registry, name).generation == 3
    delete(uri, name, 1)
    with pytest.raises(InputError, match="no champion to go back to"):
        go_back(uri, name, why="all are gone")


class Killed(BaseException):
    """The process ended."""


def die():
    raise Killed


def mortal(replace, at, *, done, die=die):
    """Whoever promotes is killed at one of its writes to the server, before or after it."""
    left = [at]

    def killed_in(write):
        def killing(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0 and not done:
                die()
            answer = write(*args, **kwargs)
            if left[0] < 0:
                die()
            return answer

        return killing

    for kind, calls in (
        (MlflowRegistry, ("write_once", "set_alias", "set_tags")),
        (MlflowRun, ("log_file",)),
    ):
        for call in calls:
            replace(kind, call, killed_in(getattr(kind, call)))


@pytest.mark.parametrize("done", [False, True])
def test_a_promotion_that_is_killed_at_any_write_is_finished_by_the_next(
    uri, name, monkeypatch, done
):
    crown(uri, name, 1)
    deaths, version = 0, 2
    for at in range(9):
        with monkeypatch.context() as patch:
            mortal(patch.setattr, at, done=done)
            try:
                crown(uri, name, version)
            except Killed:
                deaths += 1
            else:
                break
        finish(uri, name, version)
    assert deaths == WRITES


WRITES = 6
"""Of a promotion: the report, its reasons, the generation, two aliases, the generation's tag."""


def finish(uri, name, version):
    """Mend what a kill left, and promote again; then all is as if nothing had been."""
    registry = MlflowRegistry(uri=uri)
    before = current(registry, name)
    registered.mend(uri, name)
    assert registered.standing(uri, name).drifts == []
    assert registry.aliases(name)["champion"] == before.version
    assert tags(uri, name, before.version)["fuseline.generation"] == str(before.generation)
    crown(uri, name, version)
    assert current(registry, name).version == version
    run_id = mlflow_store.run_of(uri, name, version)
    report = current(registry, name).report
    assert mlflow_store.read_file(uri, run_id, f"promotion/{report}/verdict.json")
    go_back(uri, name, why="once more")


def test_an_alias_that_was_set_by_hand_is_the_champion_to_be_beaten(uri, name):
    registry = MlflowRegistry(uri=uri)
    registry.set_alias(name, "champion", 3)
    assert "by its alias alone" in registered.standing(uri, name).sentences[0]
    dry = crown(uri, name, 2, dry_run=True)
    assert (dry.champion, dry.verdict.promote) == (3, False)
    assert registry.ledger(name) == {}
    assert crown(uri, name, 2).entry is None
    assert [(e.generation, e.version) for e in history(registry, name)] == [(0, 3)]


def test_an_alias_set_after_a_first_promotion_broke_off_stops_no_other(uri, name):
    registry = MlflowRegistry(uri=uri)
    registry.write_once(name, "gen-000000", "null")  # and here it was killed
    registry.set_alias(name, "champion", 3)
    assert registered.mend(uri, name) == []
    (said,) = registered.standing(uri, name).sentences
    assert said.startswith("champion: none; its alias was set to version 3 by hand")
    row = next(each for each in registered.overview(uri) if each["model"] == name)
    assert row["champion"] is None
    promotion = crown(uri, name, 2)
    assert (promotion.champion, promotion.entry.generation) == (None, 1)
    assert registry.aliases(name)["champion"] == 2


def test_a_reason_that_the_ledger_cannot_hold_is_told_before_anything_is_written(uri, name):
    for why in ("x" * 5800, "\N{SNOWMAN}" * 1000):
        with pytest.raises(InputError, match="say in fewer words why"):
            consider(uri, name, 1, RULES, why=why)
    assert tags(uri, name, 1) == {}
    crown(uri, name, 1)
    crown(uri, name, 2)
    with pytest.raises(InputError, match="say in fewer words why"):
        go_back(uri, name, why="x" * 6000)


def test_an_alias_that_was_moved_by_hand_is_told_and_put_back(uri, name):
    crown(uri, name, 2)
    registry = MlflowRegistry(uri=uri)
    registry.set_alias(name, "champion", 1)
    found = registered.standing(uri, name)
    assert found.sentences[1] == (
        "alias champion: 1 -> 2 (it was moved by hand): --reconcile puts it back"
    )
    promotion = crown(uri, name, 3)
    assert list(map(str, promotion.mended)) == ["champion: 1 -> 2 (it was moved by hand)"]
    assert registry.aliases(name) == {"champion": 3, "previous": 2}


def test_what_stands_is_told_of_all_models_and_of_one(uri, name, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    crown(uri, name, 1)
    crown(uri, name, 2)
    row = next(each for each in registered.overview(uri) if each["model"] == name)
    assert (row["champion"], row["generation"], row["who"]) == (2, 2, "anna")
    assert (row["versions"], row["aliases"]) == (3, "as in the ledger")
    found = registered.standing(uri, name)
    assert [each["aliases"] for each in found.rows] == ["previous", "champion", ""]
    (said,) = found.sentences
    assert said.startswith("champion: version 2, generation 2, by anna at ")
    assert said.endswith(": better; before it version 1")
    assert json.loads(json.dumps(found.to_json()))["history"][0]["why"] == "better"
    delete(uri, name, 2)
    assert "no version 2" in registered.standing(uri, name).sentences[-1]
    assert registered.overview(uri)


def test_promote_and_rollback_print_one_json_value(uri, name, tmp_path, monkeypatch, called):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    file = experiment(tmp_path, register={"name": name}, promote={"rules": [RULE]})
    code, said, _ = called("promote", file, "--version", "1", "--json")
    told = json.loads(said)
    assert (code, told["version"], told["promote"], told["entry"]["generation"]) == (0, 1, True, 1)
    assert told["reasons"][-2]["rule"] == "mae floor"
    code, said, _ = called(
        "promote", file, "--set", "promote.rules=[{metric: mae, floor: 0.5}]", "--json"
    )
    told = json.loads(said)
    assert (code, told["promote"], told["champion"], told["entry"]) == (1, False, 1, None)
    crown(uri, name, 2)
    code, said, _ = called("rollback", name, "--why", "worse", "--json")
    told = json.loads(said)
    assert (code, told["name"], told["version"], told["why"]) == (0, name, 1, "worse")


@pytest.mark.parametrize(
    ("uri", "named", "expected"),
    [
        ("http://ann%40home:swordfish@host:5000", "ben", "ann@home"),
        ("http://host:5000", "ben", "ben"),
        ("https://host", None, "carl"),
        ("postgresql+psycopg://service:swordfish@host/mlflow", None, "carl"),
        ("postgresql+psycopg://service:swordfish@host/mlflow", "ben", "ben"),
        ("sqlite:////home/mlflow.db", None, "carl"),
    ],
)
def test_who_promotes_is_the_user_of_the_server_before_that_of_the_machine(
    monkeypatch, uri, named, expected
):
    monkeypatch.setenv("LOGNAME", "carl")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    if named:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", named)
    assert who(uri) == expected


@pytest.mark.parametrize("begun", [False, True])
def test_a_champion_by_its_alias_that_has_no_scorecard_is_told_with_what_to_do(uri, name, begun):
    client, registry = mlflow_store.client_of(uri), MlflowRegistry(uri=uri)
    foreign = int(client.create_model_version(name, source="/nowhere").version)
    registry.set_alias(name, "champion", foreign)
    if begun:
        registered.mend(uri, name)
    with pytest.raises(InputError) as told:
        crown(uri, name, 1)
    said = str(told.value)
    assert said.startswith(f"nothing can be judged against the champion of '{name}': version 4 of")
    assert "has no scorecard" in said
    assert "delete that version" in said
    assert "\n" not in said
    delete(uri, name, foreign)
    assert crown(uri, name, 1).entry.version == 1
