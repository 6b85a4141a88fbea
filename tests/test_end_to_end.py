"""From a table to a champion that scores a raw clip; killed on the way, and taken up again."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from featurizers.dataset import read_clips
from featurizers.manifest import open_column
from featurizers.spec import Feature
from pipelines.demo import make_corpus
from pipelines.experiment import load
from pipelines.reached import reached_by_clips, sought
from pipelines.run import store_uri
from pipelines.score import parity
from pipelines.sources import ask, read_rows
from pipelines.trace import trace

pytestmark = [pytest.mark.ray, pytest.mark.media, pytest.mark.slow, pytest.mark.timeout(600)]

EXPERIMENT = """\
dataset: data
source: {table: corpus/clips.csv, label: sentiment}
features:
  text:  {featurizer: hashed-words}
  audio: {featurizer: logmel, hop_ms: 10}
  video: {featurizer: face-motion, fps: 5}
model: {recipe: mmlatch, hidden: 16}
train: {epochs: 6, global_batch: 16, checkpoint_every: 1, seeds: 2}
shards: {clips: 16}
max_dropped: 0.1
register: {name: whole-way}
promote: {rules: [{metric: mae, better: lower, floor: 10}]}
"""
FUSELINE = [sys.executable, "-P", "-c", "from pipelines.__main__ import main; main()"]


def fuseline(*arguments, cwd):
    return subprocess.run(
        [*FUSELINE, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=400
    )


def killed_in_training(folder):
    """Start a run, and end all its processes as soon as the second seed finished two epochs."""
    with (folder / "killed.log").open("w") as log:
        process = subprocess.Popen(
            [*FUSELINE, "run", "experiment.yaml"],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        files = folder.glob("data/training/*/progress.jsonl")
        lengths = sorted(len(file.read_text().splitlines()) for file in files)
        if len(lengths) == 2 and lengths[0] >= 2 and lengths[1] == 6:
            break
        assert process.poll() is None, (folder / "killed.log").read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole-way")
    make_corpus(folder / "corpus", clips=64)
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    killed_in_training(folder)
    result = fuseline("run", "experiment.yaml", "--json", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "summary.json").write_text(result.stdout)
    return folder


def test_a_run_that_was_killed_in_training_resumes_and_ends_with_a_champion(project):
    summary = json.loads((project / "summary.json").read_text())
    assert summary["clips"] == 64
    assert summary["version"] == 1
    for file in project.glob("data/training/*/progress.jsonl"):
        epochs = [json.loads(line)["epoch"] for line in file.read_text().splitlines()]
        # Both went on after a checkpoint of their own: no first epoch was trained again.
        assert epochs.count(0) == 1
        assert set(epochs) == set(range(6))


@pytest.fixture
def inside(project, called, monkeypatch):
    """Calls commands in the project's folder, in this process: it takes seconds to start one."""
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return called


def test_running_again_takes_the_finished_work_as_it_is(project, inside):
    before = {path: path.stat().st_mtime_ns for path in project.glob("data/columns/*/*")}
    code, out, err = inside("run", "experiment.yaml")
    assert code == 0, err
    assert "2 of 2 runs are finished already" in out
    assert "is champion already" in out
    same = {path: path.stat().st_mtime_ns for path in project.glob("data/columns/*/*.tar")}
    assert same.items() <= before.items()


def test_the_runs_are_evaluated_with_intervals_and_with_each_stream_taken_away(project, inside):
    page = ("--page", "runs.html")
    code, out, err = inside("evaluate", "experiment.yaml", *page, "--json")
    assert code == 0, err
    [kept] = (project / "data" / "training").glob("runs-*/report.html")
    assert (project / "runs.html").read_bytes() == kept.read_bytes()
    cards = json.loads(out)
    assert list(cards) == ["mmlatch seed 0", "mmlatch seed 1"]
    summary = json.loads((project / "summary.json").read_text())
    for name, card in cards.items():
        assert card["metrics"] == summary["test"][name]
        assert card["intervals"] == summary["intervals"][name]
        low, high = card["intervals"]["mae"]
        assert low <= card["metrics"]["mae"] <= high
        assert [part["streams"] for part in card["as_asked"]] == [["audio"], ["text"], ["video"]]
        assert {part["count"] for part in card["as_asked"]} == {card["count"]}
        assert sum(part["count"] for part in card["as_found"]) == card["count"]
    code, _, err = inside("evaluate", "experiment.yaml", "--set", "train.epochs=5")
    assert code == 2
    assert "2 of 2 runs are not trained as the experiment stands" in err


def test_the_champion_scores_a_raw_clip_from_a_folder_with_a_decoy_of_its_code(project, tmp_path):
    for name in ("training", "featurizers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the decoy ran')\n")
    clip = next(c for c in read_clips(project / "data") if c.split == "test" and c.words)
    result = fuseline(
        "score",
        "models:/whole-way@champion",
        clip.media,
        "--transcript",
        " ".join(word.text for word in clip.words),
        "--store",
        str(project),
        "--json",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    (answer,) = json.loads(result.stdout)
    assert (answer["state"], answer["missing"]) == ("scored", "")
    assert -4 < answer["prediction"] < 4


def test_what_the_champion_computes_from_raw_clips_equals_the_shards_bit_for_bit(project):
    experiment = load(project / "experiment.yaml")
    asked, _ = ask(experiment, read_rows(experiment.table))
    columns = {
        stream: open_column(experiment.root, each.spec.fingerprint)
        for stream, each in experiment.featurizers().items()
    }
    some = asked[::9]
    model = "models:/whole-way@champion"
    assert parity(store_uri(experiment), model, some, columns) == []

    class OffByABit:
        def __init__(self, column):
            self.spec, self._column = column.spec, column

        def read(self, key):
            feature = self._column.read(key)
            if feature is None:
                return None
            changed = feature.values.copy()
            changed[0, 0] = np.nextafter(changed[0, 0], np.float32(np.inf))
            return Feature(changed, feature.times)

    wrong = {**columns, "audio": OffByABit(columns["audio"])}
    differences = parity(store_uri(experiment), model, some[:1], wrong)
    assert len(differences) == 1
    assert "stream audio" in differences[0]
    assert "equal bits are promised" in differences[0]


def test_a_version_or_model_that_does_not_exist_is_one_line_and_exit_code_2(project, inside):
    for arguments in (
        ("promote", "experiment.yaml", "--version", "99"),
        ("score", "models:/whole-way/99", str(project / "corpus" / "clips.csv")),
    ):
        code, out, err = inside(*arguments)
        assert code == 2, out + err
        assert len(err.strip().splitlines()) == 1, err
        assert err.startswith("fuseline: ")


def test_the_mlflow_run_knows_settings_metrics_data_model_and_page(project, tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{project / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    version = client.get_model_version_by_alias("whole-way", "champion")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.kind"] == "mmlatch"
    assert {"valid_mae", "train_loss", "test_mae"} <= set(run.data.metrics)
    assert [point.step for point in client.get_metric_history(version.run_id, "valid_loss")][
        -1
    ] == 5
    assert {"fuseline.dataset.train", "fuseline.dataset.test"} <= set(run.data.tags)
    names = {Path(item.path).name for item in client.list_artifacts(version.run_id)}
    assert {"scorecard.json", "finished.json", "report.html"} <= names
    page = Path(client.download_artifacts(version.run_id, "report.html", str(tmp_path)))
    written = [file.read_text() for file in project.glob("data/training/mmlatch-*/report.html")]
    assert len(written) == 2
    assert page.read_text() in written
    # Made again after registration, which compared features with the shards.
    assert sum("equal those of the shards" in each for each in written) == 1
    assert "equal those of the shards" in page.read_text()
    family = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert "report.html" in {item.path for item in client.list_artifacts(family.info.run_id)}
    assert "MODEL_CARD.md" in names
    (card,) = (project / "mlartifacts").glob("*/models/*/artifacts/MODEL_CARD.md")
    told = card.read_text()
    assert "Features of 4 raw training clips, computed through this model, equal" in told
    assert f"run `{version.run_id}`" in told


def test_the_champion_is_traced_to_its_shards_and_a_clip_back_to_it(project):
    uri, root = f"sqlite:///{project / 'mlflow.db'}", project / "data"
    lineage = trace(uri, "whole-way").lineage
    standing = {clip.key: clip for clip in read_clips(root)}
    assert {row["role"] for row in lineage.clips} == {"train", "valid", "test"}
    for row in lineage.clips:
        assert row["media_digest"] == standing[row["key"]].media_digest
        assert row["role"] == standing[row["key"]].split
    clip = lineage.clips[0]["id"]
    for file in trace(uri, "whole-way@champion", clip).files:
        assert hashlib.sha256((root / file["tar"]).read_bytes()).hexdigest() == file["sha256"]
    reach = reached_by_clips(uri, sought([clip], str(root)))
    assert [each.name for each in reach.models] == ["whole-way"]
    # The other seed, which was not registered, has seen it too.
    assert sorted(len(run.versions) for run in reach.runs) == [0, 1]
