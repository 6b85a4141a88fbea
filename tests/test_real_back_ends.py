"""A server on PostgreSQL with artifacts on S3 and passwords: the whole way of a model."""

import json
import logging
import os
import urllib.error
import urllib.request
from base64 import b64encode

import pytest
import s3fs

from pipelines.compare import compare_runs
from pipelines.experiment import InputError
from pipelines.promote import consider, go_back
from pipelines.registered import mend, standing
from tests.object_store import BUCKET, s3_server
from tests.postgres import PASSWORD, postgres
from tests.test_promote import RULES, card
from tests.toy_bundle import log_toy, make_bundle
from tests.tracking_server import ADMIN, ADMIN_PASSWORD, tracking_server
from tracking import mlflow_store
from tracking.journal import JournaledRun, deliver
from tracking.mlflow_store import MlflowRegistry, StoreError
from tracking.run import AwayError

USERS = {"anna": "anna-and-nobody-else", "ben": "ben-and-nobody-else"}
SECRETS = (PASSWORD, ADMIN_PASSWORD, *USERS.values(), "keep-it%3Ato%2Fyourself")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def object_store():
    with s3_server() as environment:
        yield environment


@pytest.fixture(scope="module")
def uri(folder, object_store):
    with postgres() as database:
        server = tracking_server(
            database("mlflow"), database("users"), f"s3://{BUCKET}/mlflow", folder, object_store
        )
        with server as address:
            for name, password in USERS.items():
                add_user(address, name, password)
            yield address


@pytest.fixture(autouse=True)
def anna(monkeypatch):
    """Who calls; tests of the others change it."""
    login(monkeypatch, "anna", USERS["anna"])
    # The object store is the server's business.
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)


def login(monkeypatch, name, password):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def add_user(address, name, password):
    login = b64encode(f"{ADMIN}:{ADMIN_PASSWORD}".encode()).decode()
    request = urllib.request.Request(  # noqa: S310 - of this machine
        f"{address}/api/2.0/mlflow/users/create",
        json.dumps({"username": name, "password": password}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {login}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - of this machine
        assert answer.status == 200


@pytest.fixture(scope="module")
def registered(uri, folder):
    """A run that was logged while the server was away, its model, and two versions of it."""
    os.environ |= {"MLFLOW_TRACKING_USERNAME": "anna", "MLFLOW_TRACKING_PASSWORD": USERS["anna"]}
    mlflow_store.initialise(uri, folder / "not-used")
    bundle = make_bundle(folder)
    for mae in (2.0, 1.0):
        run = mlflow_store.start_run(uri, "toys", "first", {"fuseline.recipe": "toy"})
        (folder / "scorecard.json").write_text(json.dumps(card(mae).to_json()))
        run.log_file(folder / "scorecard.json")
        model = log_toy(run, bundle)
        mlflow_store.register(uri, "toy", model, run.run_id, {"fuseline.test.mae": f"{mae}"})
        (bundle / "trained" / "bias.json").write_text("0.5")
        run.finish()
    return run


def test_a_journal_is_sent_to_the_server(uri, registered, tmp_path):
    run = mlflow_store.start_run(uri, "toys", "journaled", {})

    class Away:
        """The server, while nobody listens."""

        run_id = run.run_id

        def __getattr__(self, call):
            raise AwayError(call)

    waiting = JournaledRun(Away(), tmp_path / "journal", attempt=1, patience_s=0.1)
    waiting.log_settings({"epochs": 3})
    waiting.log_metrics({"mae": 1.5}, 0)
    waiting.log_dataset("clips", "d" * 64, "train")
    (tmp_path / "notes.txt").write_text("kept")
    waiting.log_file(tmp_path / "notes.txt", "data")
    assert waiting.waiting == 4
    deliver(run, tmp_path / "journal")
    found = mlflow_store.client_of(uri).get_run(run.run_id)
    assert found.data.params == {"epochs": "3"}
    assert found.data.metrics == {"mae": 1.5, "attempt": 1.0}
    assert found.data.tags["fuseline.dataset.train"] == "d" * 64
    assert mlflow_store.read_file(uri, run.run_id, "data/notes.txt") == b"kept"


def test_a_model_is_promoted_and_comes_back_whole(uri, registered, tmp_path):
    first = consider(uri, "toy", 1, RULES, why="the first")
    assert (first.entry.generation, first.entry.who) == (1, "anna")
    second = consider(uri, "toy", None, RULES, why="better")
    assert (second.version, second.champion, second.entry.previous) == (2, 1, 1)
    kept = f"promotion/{second.entry.report}/verdict.json"
    verdict = mlflow_store.read_file(uri, registered.run_id, kept)
    assert json.loads(verdict).items() >= second.verdict.to_json().items()
    copy = mlflow_store.download(uri, "models:/toy@champion", tmp_path / "copy")
    assert (copy / "artifacts/trained/bias.json").read_text() == "0.5"
    MlflowRegistry(uri=uri).set_alias("toy", "champion", 1)
    assert [drift.standing for drift in standing(uri, "toy").drifts] == [1]
    assert mend(uri, "toy") == ["alias champion: 1 -> 2 (a promotion broke off before it)"]
    assert go_back(uri, "toy", why="worse in use").version == 1
    found = standing(uri, "toy")
    assert [entry.version for entry in found.history] == [1, 2, 1]
    assert found.aliases == {"champion": 1}


def test_files_lie_in_the_object_store_and_not_here(uri, registered, folder, object_store):
    experiment = mlflow_store.client_of(uri).get_experiment_by_name("toys")
    assert experiment.artifact_location.startswith("mlflow-artifacts:/")
    assert not (folder / "not-used").exists()
    files = s3fs.S3FileSystem(
        endpoint_url=object_store["AWS_ENDPOINT_URL"],
        key=object_store["AWS_ACCESS_KEY_ID"],
        secret=object_store["AWS_SECRET_ACCESS_KEY"],
    )
    names = files.find(f"{BUCKET}/mlflow")
    assert any(name.endswith("artifacts/trained/bias.json") for name in names)


def test_who_may_not_write_is_told_so_in_one_line(uri, registered, monkeypatch):
    login(monkeypatch, "ben", USERS["ben"])
    assert MlflowRegistry(uri=uri).versions("toy") == [1, 2]
    with pytest.raises(StoreError, match="Permission denied") as raised:
        MlflowRegistry(uri=uri).set_alias("toy", "champion", 1)
    check_said(raised.value)


@pytest.mark.parametrize("where", ["variables", "address"])
def test_a_wrong_password_is_one_line_without_it(uri, registered, monkeypatch, where):
    address = uri
    if where == "variables":
        login(monkeypatch, "anna", "guessed")
    else:
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
        address = uri.replace("://", "://anna:guessed@")
    with pytest.raises(StoreError, match="not authenticated") as raised:
        consider(address, "toy", None, RULES, why="")
    assert "guessed" not in str(raised.value)
    check_said(raised.value)


def test_no_message_holds_a_password(uri, registered, caplog):
    caplog.set_level(logging.DEBUG)
    address = uri.replace("://", f"://anna:{USERS['anna']}@")
    for call in (
        lambda: mlflow_store.run_of(address, "toy", 9),
        lambda: mlflow_store.read_file(address, registered.run_id, "nothing.json"),
        lambda: mlflow_store.download(address, "models:/toy/9", None),
        lambda: MlflowRegistry(uri=address).versions("nobody"),
        lambda: compare_runs(address, ["nobody"]),
        lambda: consider(address, "nobody", None, RULES, why=""),
    ):
        with pytest.raises((ValueError, FileNotFoundError, InputError)) as raised:
            call()
        check_said(raised.value)
    assert not [secret for secret in SECRETS if secret in caplog.text]


def check_said(error):
    said = str(error)
    assert "\n" not in said
    assert not [secret for secret in SECRETS if secret in said]
