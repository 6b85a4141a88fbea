"""A model that is trained here scores raw clips alike wherever it is asked: long, run by make soak.

The command, MLflow's own loader in a fresh environment that was made of the model's requirements
alone, and MLflow's server give the same numbers for the same clips; so do the shards' features.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import venv
from base64 import b64encode
from pathlib import Path

import pytest
import torch

from featurizers.dataset import read_clips
from featurizers.manifest import open_column
from pipelines.demo import make_corpus
from pipelines.experiment import load
from pipelines.score import row_of
from pipelines.sources import ask, read_rows
from training.predict import Predictor

pytestmark = [pytest.mark.soak, pytest.mark.ray, pytest.mark.media, pytest.mark.timeout(7200)]

CLIPS = int(os.environ.get("FUSELINE_SOAK_CLIPS", "200"))
EXPERIMENT = """\
dataset: data
source: {table: corpus/clips.csv, label: sentiment}
features:
  text:  {featurizer: hashed-words}
  audio: {featurizer: logmel, hop_ms: 10}
  video: {featurizer: face-motion, fps: 5}
model: {recipe: mmlatch, hidden: 16}
train: {epochs: 2, global_batch: 16}
max_dropped: 0.2
register: {name: everywhere}
promote: {rules: [{metric: mae, better: lower, floor: 10}]}
"""
FUSELINE = [sys.executable, "-P", "-c", "from pipelines.__main__ import main; main()"]
# What goes with torch: too large to fetch for a test, it is taken from this environment.
TORCH = ("torch", "torchgen", "functorch", "torch-*.dist-info")
TORCH_NEEDS = ("filelock", "fsspec", "jinja2", "networkx", "sympy", "typing-extensions")
PREDICT = """
import json, sys
import mlflow.pyfunc
import pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = json.load(open(sys.argv[2]))
json.dump(model.predict(pd.DataFrame(rows)).to_dict("records"), open(sys.argv[3], "w"))
strangers = {"ray", "deepspeed", "pipelines", "tracking", "webdataset"}
print(sorted(strangers & {name.partition(".")[0] for name in sys.modules}))
"""


def called(*command, cwd, **environment):
    kept = {**os.environ, "RAY_raylet_start_wait_time_s": "600", **environment}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("everywhere")
    make_corpus(folder / "corpus", clips=CLIPS)
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    called(*FUSELINE, "run", "experiment.yaml", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def model(project):
    (found,) = (project / "mlartifacts").glob("*/models/*/artifacts")
    return found


@pytest.fixture(scope="module")
def rows(project):
    experiment = load(project / "experiment.yaml")
    asked, _ = ask(experiment, read_rows(experiment.table))
    return [row_of(each) for each in asked]


@pytest.fixture(scope="module")
def scored(project):
    """What the command says of all clips."""
    began = time.perf_counter()
    out = called(
        *FUSELINE,
        "score",
        "models:/everywhere@champion",
        "corpus/clips.csv",
        "--to",
        "scores.jsonl",
        cwd=project,
    )
    took = time.perf_counter() - began
    said = [json.loads(line) for line in (project / "scores.jsonl").read_text().splitlines()]
    assert {each.pop("model") for each in said} == {"models:/everywhere/1"}
    sys.stdout.write(
        f"\nscore: {len(said)} clips in {took:.1f} s, {len(said) / took:.1f} clips/s; {out}"
    )
    return said


def test_every_clip_has_an_answer_in_order(scored, rows):
    assert [each["id"] for each in scored] == [row["id"] for row in rows]
    assert len(scored) == CLIPS
    assert sum(each["state"] == "scored" for each in scored) >= 0.8 * CLIPS


def test_features_of_the_shards_are_scored_to_the_last_bit_as_raw_clips(project, model, scored):
    clips = {clip.id: clip for clip in read_clips(project / "data")}
    predictor = Predictor.load(next(model.glob("artifacts/*")))
    columns = {
        name: open_column(project / "data", spec.fingerprint)
        for name, spec in predictor.specs.items()
    }
    compared = 0
    for answer in scored:
        clip = clips.get(answer["id"])
        if answer["state"] != "scored" or clip is None:
            continue
        row = {"id": clip.id, "end": clip.seconds}
        if clip.words:
            row["times:words"] = [[word.start, word.end] for word in clip.words]
        for name, column in columns.items():
            feature = column.read(clip.key)
            if feature is not None:
                row |= {f"features:{name}": feature.values, f"times:{name}": feature.times}
        (said,) = predictor.predict([row])
        assert (said["prediction"], said["missing"]) == (answer["prediction"], answer["missing"])
        compared += 1
    sys.stdout.write(f"\nshards: {compared} clips are scored to the last bit as their raw clips")
    assert compared >= 0.8 * CLIPS


def test_a_fresh_environment_of_its_own_requirements_says_the_same(
    project, model, rows, scored, tmp_path
):
    python = fresh(tmp_path / "fresh", model / "requirements.txt")
    (tmp_path / "rows.json").write_text(json.dumps(named(rows)))
    kept = dict.fromkeys(("PYTHONPATH", "FUSELINE_MEDIA_ROOT"), "")
    out = called(
        python,
        "-W",
        "ignore",
        "-c",
        PREDICT,
        model,
        "rows.json",
        "said.json",
        cwd=tmp_path,
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
        **kept,
    )
    assert out.splitlines()[-1] == "[]"
    said = json.loads((tmp_path / "said.json").read_text(), parse_constant=lambda _: None)
    assert said == scored
    sys.stdout.write(f"\nfresh environment: {len(said)} clips, the same numbers")


def named(rows):
    """Rows of equal columns, as a table has them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in names} for row in rows]


def fresh(folder, requirements):
    """A new environment with what a model needs and nothing else; its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    lines = requirements.read_text().split()
    wanted = [line for line in lines if not line.startswith("torch==")]
    (site,) = folder.glob("lib/python3*/site-packages")
    for pattern in TORCH:
        for found in Path(torch.__file__).parents[1].glob(pattern):
            (site / found.name).symlink_to(found)
    called(python, "-m", "pip", "install", "--quiet", *wanted, *TORCH_NEEDS, cwd=folder)
    return python


def test_a_server_says_the_same_of_paths_and_of_bytes(project, model, rows, scored):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (project / "server.log").open("w")
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model)),
            *("--env-manager", "local", "--port", str(port), "--host", "127.0.0.1"),
        ],
        cwd=project,
        env={
            **os.environ,
            "FUSELINE_MEDIA_ROOT": str(project / "corpus"),
            "PYTHONPATH": "",
            # MLflow starts uvicorn by its name.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        stdout=log,
        stderr=log,
    )
    try:
        alive(port, server, project / "server.log")
        table = named(rows)
        columns = list(table[0])
        split = {"columns": columns, "data": [[row[name] for name in columns] for row in table]}
        status, body = post(port, {"dataframe_split": split})
        assert status == 200, body
        assert body["predictions"] == scored
        whole = [row for row in rows if "transcript_file" in row and Path(row["media"]).is_file()]
        some = [
            {
                "id": row["id"],
                "media_bytes": b64encode(Path(row["media"]).read_bytes()).decode(),
                "transcript": Path(row["transcript_file"]).read_text(),
                **{name: row[name] for name in ("start", "end") if name in row},
            }
            for row in whole[:20]
        ]
        status, body = post(port, {"dataframe_records": named(some)})
        assert status == 200, body
        by_id = {each["id"]: each for each in scored}
        assert [each["prediction"] for each in body["predictions"]] == [
            by_id[row["id"]]["prediction"] for row in some
        ]
        status, body = post(port, {"dataframe_records": [{"media": "../experiment.yaml"}]})
        assert (status, "has a '..'" in str(body)) == (400, True)
        sys.stdout.write(
            f"\nserver: {len(rows)} clips by path and {len(some)} by bytes, the same numbers"
        )
    finally:
        server.terminate()
        server.wait()
        log.close()


def alive(port, server, log):
    for _ in range(1200):
        assert server.poll() is None, log.read_text()
        try:
            asked = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            asked.request("GET", "/ping")
            if asked.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def post(port, body):
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    asked.request("POST", "/invocations", json.dumps(body), {"Content-Type": "application/json"})
    answer = asked.getresponse()
    return answer.status, json.loads(answer.read())
