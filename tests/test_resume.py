"""`train --check-resume`: a run is killed, goes on, and the answer is kept with it."""

import json

import numpy as np
import pytest
import yaml

from featurizers.media import encode
from pipelines.__main__ import app
from pipelines.executors import stop_ray
from tracking import mlflow_store

SPLITS = ["train"] * 20 + ["valid"] * 5 + ["test"] * 3
WORDS = ["good", "bad", "day", "night", "so", "very"]


@pytest.fixture
def file(tmp_path, monkeypatch):
    """An experiment on what is said in one short film, with its columns."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    encode(tmp_path / "a.mp4", frames=None, fps=5, samples=np.zeros(8000, np.int16), rate_hz=16_000)
    rows = [
        f"c{n},a.mp4,{WORDS[n % 6]} {WORDS[n % 5]} number {n},{n % 6 - 2.5},{split}"
        for n, split in enumerate(SPLITS)
    ]
    (tmp_path / "clips.csv").write_text("\n".join(["id,media,transcript,mood,split", *rows]))
    plain = {
        "dataset": "data",
        "source": {"table": "clips.csv", "label": "mood"},
        "features": {"text": {"featurizer": "hashed-words"}},
        "model": {"recipe": "late_fusion", "hidden": 8},
        "train": {"epochs": 4, "global_batch": 4, "zero": 2, "max_failures": 0},
        "workers": {"featurize": 0, "train": 3},
    }
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(plain))
    call("ingest", file)
    call("featurize", file)
    return file


def call(*arguments):
    """The command line; raises where its exit code is not 0."""
    app([str(each) for each in arguments], standalone_mode=False)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_is_checked_by_a_kill_and_the_answer_is_kept_with_it(file, capsys):
    capsys.readouterr()
    try:
        call("train", file, "--check-resume", "--steps", 8, "--json")
    finally:
        stop_ray()
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["killed_at"], found["ranks"]) == (8, 4, 2)
    assert found["identical"]
    assert found["undisturbed"] == found["resumed"]
    uri = f"sqlite:///{file.parent / 'mlflow.db'}"
    [folder] = file.parent.glob("data/training/late_fusion-*")
    run_id = mlflow_store.find_run(uri, "data", "fuseline.plan", folder.name).run_id
    run = mlflow_store.client_of(uri).get_run(run_id)
    assert run.data.tags["fuseline.resume"] == "identical"
    assert run.info.status == "KILLED"  # as one that can be gone on with
    again = json.loads(mlflow_store.read_file(uri, run_id, "resume.json"))
    assert again == found
    assert not (folder / "resume").exists()
