import json
import math
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from tests.toy_bundle import log_toy, make_bundle
from tracking import mlflow_store, provenance
from tracking.mlflow_store import MlflowRegistry, MlflowRun
from tracking.registry import UnknownModelError

DECOY = """
class Predictor:
    @staticmethod
    def load(folder):
        raise SystemExit("the decoy was imported")
"""

# What a stranger's process does: no package of ours but the loader, another working folder.
SCORE = """
import json, sys
import pandas as pd
from tracking.mlflow_store import load
model = load(sys.argv[1], sys.argv[2])
rows = pd.DataFrame([
    {"media": "a.mp4", "transcript": "kind words", "start": 0.5},
    {"media": "b.mp4", "transcript": None, "start": float("nan")},
])
print(json.dumps(model.predict(rows).to_dict("records")))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow_store.initialise(uri, folder / "mlartifacts")
    return uri


@pytest.fixture
def run(uri: str) -> MlflowRun:
    return mlflow_store.start_run(uri, "toys", "first", {"fuseline.recipe": "toy"})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def model_uri(uri: str, bundle: Path) -> str:
    run = mlflow_store.start_run(uri, "toys", "trained", {})
    return log_toy(run, bundle)


def read(run: MlflowRun):
    return mlflow_store.client_of(run.uri).get_run(run.run_id)


def test_the_environment_decides_where_runs_go_else_a_file_does(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert mlflow_store.tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://runs.example:5000")
    assert mlflow_store.tracking_uri(tmp_path) == "http://runs.example:5000"


def test_a_store_that_was_never_made_is_not_made_by_reading_it(tmp_path):
    registry = MlflowRegistry(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(mlflow_store.NoStoreError, match="no tracking store"):
        registry.versions("toy")
    assert not list(tmp_path.iterdir())


def test_nothing_leaks_into_the_environment_that_would_redirect_other_runs(uri, run):
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert "MLFLOW_RUN_ID" not in os.environ


def test_settings_are_kept_and_cannot_change(run):
    run.log_settings({"epochs": 3, "rate": 5e-4, "fused": True, "clip_norm": None})
    run.log_settings({"epochs": 3, **{f"many-{number}": number for number in range(150)}})
    params = read(run).data.params
    assert len(params) == 154
    assert {name: params[name] for name in ("epochs", "rate", "fused", "clip_norm")} == {
        "epochs": "3",
        "rate": "0.0005",
        "fused": "True",
        "clip_norm": "None",
    }
    with pytest.raises(ValueError, match=r"'epochs' of run .* is '3' already"):
        run.log_settings({"epochs": 4})


def test_any_name_and_length_of_a_setting_is_kept(run):
    """Names of classes are whatever their corpus calls them."""
    names = [
        "class_weight.touch head (headache)",
        "class_weight.don't know",
        "w.\u00e9t\u00e9/caf\u00e9",
    ]
    settings = {name: number for number, name in enumerate(names)}
    settings |= {"start.model without head, tail": "x", "n" * 300: "y", "classes": "a," * 4000}
    run.log_settings(settings)
    run.log_settings(settings)  # again, as a run that is taken up does
    params = read(run).data.params
    assert params["class_weight.touch head _x28headache_x29"] == "0"
    assert params["class_weight.don_x27t know"] == "1"
    assert params["start.model without head_x2c tail"] == "x"
    assert len(params) == len(settings)
    assert len(params["classes"]) == 6000
    assert params["classes"].startswith("a,a,")
    with pytest.raises(ValueError, match="'classes' of run"):
        run.log_settings({"classes": "a," * 4001})


def test_metrics_keep_their_step_and_survive_nan(run):
    run.log_metrics({"mae": 1.5, "corr": math.nan}, step=0)
    again = MlflowRun(uri=run.uri, run_id=run.run_id)
    again.log_metrics({"mae": 1.25, "corr": 0.5}, step=1)
    history = mlflow_store.client_of(run.uri).get_metric_history(run.run_id, "mae")
    assert [(point.step, point.value) for point in history] == [(0, 1.5), (1, 1.25)]
    assert read(run).data.metrics == {"mae": 1.25, "corr": 0.5}


def test_a_dataset_is_an_input_with_its_whole_digest_beside_it(run):
    digest = "0123456789abcdef" * 4
    run.log_dataset("clips", digest, "train")
    run.log_dataset("clips", digest, "train")
    found = read(run)
    assert found.data.tags["fuseline.dataset.train"] == digest
    (one,) = found.inputs.dataset_inputs
    assert (one.dataset.name, one.dataset.digest) == ("clips", digest[:36])


def test_a_file_of_a_run_can_be_read_again(run, tmp_path, folder):
    (tmp_path / "scorecard.json").write_text('{"mae": null}')
    run.log_file(tmp_path / "scorecard.json", "evaluation")
    found = mlflow_store.read_file(run.uri, run.run_id, "evaluation/scorecard.json")
    assert json.loads(found) == {"mae": None}
    assert list((folder / "mlartifacts" / "toys").rglob("scorecard.json"))
    with pytest.raises(FileNotFoundError, match=r"has no file 'verdict.json'"):
        mlflow_store.read_file(run.uri, run.run_id, "verdict.json")
    with pytest.raises(FileNotFoundError, match="has no file"):
        mlflow_store.read_file(run.uri, "0" * 32, "verdict.json")


def test_a_run_is_settled_by_finish_and_by_nothing_else(run):
    child = mlflow_store.start_run(run.uri, "toys", "seed-1", {"a": "b"}, parent=run.run_id)
    child.set_tags({"a": "c"})
    child.flush()
    assert read(child).info.status == "RUNNING"
    child.finish("FAILED")
    found = read(child)
    assert found.info.status == "FAILED"
    assert found.info.run_name == "seed-1"
    assert (found.data.tags["a"], found.data.tags["mlflow.parentRunId"]) == ("c", run.run_id)


def test_threads_that_initialise_at_once_find_one_store(uri, folder):
    failures = []

    def open_store():
        try:
            mlflow_store.initialise(uri, folder / "mlartifacts")
            mlflow_store.start_run(uri, "crowd", "one", {})
        except Exception as error:  # noqa: BLE001 - a thread may not lose its failure
            failures.append(error)

    threads = [threading.Thread(target=open_store) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = mlflow_store.client_of(uri).get_experiment_by_name("crowd")
    assert found.artifact_location == str(folder / "mlartifacts" / "crowd")


def test_a_registered_model_holds_its_code_and_no_pickle(uri, model_uri, tmp_path):
    copy = mlflow_store.download(uri, model_uri, tmp_path / "copy")
    files = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert {
        "code/toybundle/predict.py",
        "artifacts/trained/bias.json",
        "serving.py",
        "requirements.txt",
    } <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pyc"))]
    assert "pandas" in (copy / "requirements.txt").read_text().split()


def test_the_same_model_of_a_run_is_registered_once(uri, bundle, model_uri):
    run = mlflow_store.start_run(uri, "toys", "twice", {})
    first = log_toy(run, bundle)
    version = mlflow_store.register(uri, "once", first, run.run_id, {"seed": "0"})
    again = log_toy(run, bundle)
    assert again != first
    assert mlflow_store.register(uri, "once", again, run.run_id, {"seed": "0"}) == version
    assert mlflow_store.run_of(uri, "once", version) == run.run_id
    other = mlflow_store.start_run(uri, "toys", "other", {})
    assert mlflow_store.register(uri, "once", model_uri, other.run_id, {}) == version + 1
    assert MlflowRegistry(uri=uri).versions("once") == [version, version + 1]


def test_the_same_model_registered_by_many_at_once_is_one_version(uri, model_uri, run):
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(
                mlflow_store.register(uri, "crowded", model_uri, run.run_id, {})
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 4
    assert MlflowRegistry(uri=uri).versions("crowded") == [found[0]]


def test_creators_of_a_model_at_once_agree_on_one_ledger(uri):
    client = mlflow_store.client_of(uri)
    threads = [
        threading.Thread(target=mlflow_store.registry.create_model, args=(client, "shared-ledger"))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    home = client.get_experiment_by_name("fuseline").experiment_id
    ledgers = client.search_runs([home], "tags.mlflow.runName = 'promotions of shared-ledger'")
    bound = client.get_registered_model("shared-ledger").tags["fuseline.ledger_run"]
    assert [run.info.run_id for run in ledgers] == [bound]


def test_a_model_that_others_registered_gets_one_ledger(uri, model_uri, run):
    client = mlflow_store.client_of(uri)
    client.create_registered_model("foreign")
    assert mlflow_store.register(uri, "foreign", model_uri, run.run_id, {}) == 1
    registry, found = MlflowRegistry(uri=uri), []
    assert registry.ledger("foreign") == {}
    threads = [
        threading.Thread(
            target=lambda who: found.append(registry.write_once("foreign", "gen-000001", who)),
            args=(f"{number}",),
        )
        for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 6
    assert registry.ledger("foreign") == {"gen-000001": found[0]}
    home = client.get_experiment_by_name("fuseline").experiment_id
    ledgers = client.search_runs([home], "tags.mlflow.runName = 'promotions of foreign'")
    assert len(ledgers) == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("models:/nobody/1", "there is no models:/nobody/1 at sqlite"),
        ("models:/nobody@champion", "there is no models:/nobody@champion"),
        ("models:/m-0123456789abcdef", "there is no models:/m-"),
        ("nobody", "'nobody' names no model; wanted models:/NAME@ALIAS"),
        ("models:/nobody", "names no model"),
    ],
)
def test_a_model_that_is_not_there_is_one_clear_line(uri, address, message, tmp_path):
    with pytest.raises(UnknownModelError, match=message) as raised:
        mlflow_store.download(uri, address, tmp_path)
    assert "\n" not in str(raised.value)


def test_an_alias_or_version_that_is_not_there_is_one_clear_line(uri, model_uri, run, tmp_path):
    mlflow_store.register(uri, "bare", model_uri, run.run_id, {})
    for address in ("models:/bare@champion", "models:/bare/9"):
        with pytest.raises(UnknownModelError, match=f"there is no {address}"):
            mlflow_store.download(uri, address, tmp_path)
    with pytest.raises(UnknownModelError, match="no version 9"):
        mlflow_store.run_of(uri, "bare", 9)
    with pytest.raises(ValueError, match="letters, digits"):
        mlflow_store.register(uri, "a/b", model_uri, run.run_id, {})


def test_a_changed_file_of_a_model_is_found(uri, bundle, run, tmp_path):
    logged = log_toy(run, bundle)
    copy = mlflow_store.download(uri, logged, tmp_path / "sound")
    location, _ = mlflow_store.models.locate(uri, logged)
    (Path(location) / "artifacts/trained/bias.json").write_text("9.0")
    with pytest.raises(OSError, match="not those that were logged"):
        mlflow_store.download(uri, logged, tmp_path / "broken")
    assert (copy / "artifacts/trained/bias.json").read_text() == "0.25"


def test_a_changed_way_to_load_a_model_is_found(uri, bundle, run, tmp_path):
    logged = log_toy(run, bundle)
    location, _ = mlflow_store.models.locate(uri, logged)
    about = Path(location) / "MLmodel"
    whole = about.read_text()
    about.write_text(whole.replace(run.run_id, "0" * 32))
    mlflow_store.download(uri, logged, tmp_path / "other-run")
    for number, (old, new) in enumerate(
        [
            ("mlflow.pyfunc.loaders.code_model", "mlflow.sklearn"),
            ("serving.py", "conda.yaml"),
            ("path: artifacts/trained", "path: artifacts"),
            ("flavors:", "{flavors:"),
        ]
    ):
        assert old in whole
        about.write_text(whole.replace(old, new))
        with pytest.raises(OSError, match="not those that were logged"):
            mlflow_store.download(uri, logged, tmp_path / str(number))


def test_a_run_is_found_by_its_tag(uri):
    assert mlflow_store.find_run(uri, "never-made", "fuseline.plan", "a") is None
    first = mlflow_store.start_run(uri, "found", "one", {"fuseline.plan": "a-1"})
    mlflow_store.start_run(uri, "found", "two", {"fuseline.plan": "a-1"})
    assert mlflow_store.find_run(uri, "found", "fuseline.plan", "a-1") == first
    assert mlflow_store.find_run(uri, "found", "fuseline.plan", "a-2") is None


@pytest.mark.parametrize(
    "call",
    [
        lambda uri, folder: mlflow_store.initialise(uri, folder / "files"),
        lambda uri, _: mlflow_store.start_run(uri, "toys", "one", {}),
        lambda uri, _: MlflowRun(uri=uri, run_id="0" * 32).log_metrics({"mae": 1.0}, 0),
        lambda uri, _: mlflow_store.read_file(uri, "0" * 32, "scorecard.json"),
        lambda uri, _: mlflow_store.run_of(uri, "toy", 1),
        lambda uri, folder: mlflow_store.download(uri, "models:/toy/1", folder / "copy"),
        lambda uri, _: MlflowRegistry(uri=uri).versions("toy"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_clear_line(call, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "damaged.db").write_text("no database at all " * 99)
    for address, said in (
        ("http://anna:secret@127.0.0.1:9", "http://127.0.0.1:9 failed: "),
        ("http://anna:se@secret@127.0.0.1:9", "failed: "),
        (f"sqlite:///{tmp_path}/damaged.db", "file is not a database"),
    ):
        with pytest.raises(mlflow_store.StoreError, match=said) as raised:
            call(address, tmp_path)
        assert "\n" not in str(raised.value)
        assert "secret" not in str(raised.value)
    with pytest.raises(mlflow_store.NoStoreError, match="foo://x is no address of a tracking st"):
        call("foo://x", tmp_path)


def test_what_the_user_sets_for_a_slow_server_stays(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    mlflow_store.connection.open_store("http://127.0.0.1:9")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    mlflow_store.connection.open_store("http://127.0.0.1:9")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"


def score(uri: str, address: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Load and predict in a fresh process, in a folder that holds a decoy of the same name."""
    decoy = folder / "toybundle"
    decoy.mkdir()
    (decoy / "__init__.py").touch()
    (decoy / "predict.py").write_text(DECOY)
    home = Path(mlflow_store.__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", SCORE, uri, address],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_champion_scores_in_a_fresh_process_beside_a_decoy(uri, model_uri, run, tmp_path):
    version = mlflow_store.register(uri, "toy", model_uri, run.run_id, {})
    MlflowRegistry(uri=uri).set_alias("toy", "champion", version)
    answer = score(uri, "models:/toy@champion", tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == [
        {"score": 2.25, "seen": "media,start,transcript"},
        {"score": 0.25, "seen": "media"},
    ]
    assert answer.stderr == ""


def test_a_decoy_that_was_imported_before_is_named_and_not_used(
    uri, model_uri, monkeypatch, tmp_path
):
    decoy = types.ModuleType("toybundle")
    decoy.__file__ = str(tmp_path / "toybundle" / "__init__.py")
    monkeypatch.setitem(sys.modules, "toybundle", decoy)
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow puts the bundle before it
    with pytest.raises(ImportError, match="load the model in a fresh process") as raised:
        mlflow_store.load(uri, model_uri)
    assert f"'toybundle' was imported from {decoy.__file__}" in str(raised.value)


def test_the_code_digest_is_that_of_names_and_bytes(bundle, tmp_path):
    package = bundle / "toybundle"
    copy = tmp_path / "toybundle"
    copy.mkdir()
    for file in package.glob("*.py"):
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "notes.txt").write_text("not code")
    assert provenance.code_digest([copy]) == provenance.code_digest([package])
    (copy / "words.py").rename(copy / "word.py")
    assert provenance.code_digest([copy]) != provenance.code_digest([package])
    with pytest.raises(FileNotFoundError, match=r"no \.py files"):
        provenance.code_digest([tmp_path / "nothing"])


def test_a_commit_says_when_files_differ_from_it(tmp_path):
    assert provenance.git_commit(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    commit = provenance.git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "new.py").touch()
    assert provenance.git_commit(tmp_path) == f"{commit}-dirty"


def test_versions_and_environment_are_plain_facts():
    found = provenance.versions(["pytest", "no-such-distribution"])
    assert found == {"pytest": pytest.__version__}
    assert provenance.environment()["python"] == sys.version.split()[0]
