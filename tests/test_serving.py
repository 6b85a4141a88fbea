"""A registered model is whole: any process with MLflow loads it, and reads no more than it may."""

import json
import os
import py_compile
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from featurizers.intake import RawClip
from pipelines.packaging import requirements_of
from tests.tiny_predictor import SPECS, VTT, row
from tests.toy_bundle import log_toy, make_bundle
from tracking import mlflow_store
from training.rows import Access, WrongRowsError, checked

NAMED = {
    "below": "sub/0.mp4",
    "up": "sub/../../media/sub/0.mp4",
    "link": "out.mp4",
    "url": "http://127.0.0.1:9/0.mp4",
}
pytestmark = pytest.mark.media

# Another person's process: MLflow alone, none of our packages, neither Ray nor DeepSpeed.
STRANGER = """
import json, os, sys
from pathlib import Path

FORBIDDEN = {"ray", "deepspeed", "pipelines", "tracking", "webdataset", "pyarrow.dataset"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"no module {name!r} in this environment", name=name)

sys.meta_path.insert(0, Absent())
import mlflow.pyfunc
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

asked = json.load(open(sys.argv[1]))
answers = {}

def told(name, call):
    try:
        answers[name] = call()
    except MlflowException as error:
        answers[name] = [error.get_http_status_code(), error.message]

def frame(rows):
    made = pd.DataFrame(rows)
    if "media_bytes" in made:
        made["media_bytes"] = [Path(file).read_bytes() for file in made["media_bytes"]]
    return made

def answered(body):
    found = scoring_server.invocations(json.dumps(body), "application/json", model, schema)
    return [found.status, json.loads(found.response)]

for session, about in asked["sessions"].items():
    os.environ |= about["environment"]
    model = mlflow.pyfunc.load_model(asked["model"])
    schema = model.metadata.get_input_schema()
    for name, rows in about.get("frames", {}).items():
        told(f"{session} {name}", lambda: model.predict(frame(rows)).to_dict("records"))
    for name, body in about.get("requests", {}).items():
        told(f"{session} {name}", lambda: answered(body))
answers["modules"] = sorted({name.partition(".")[0] for name in sys.modules} & FORBIDDEN)
json.dump(answers, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def world(tiny_model):
    """Raw clips, a predictor of them, and the folder in which MLflow keeps it as a model."""
    return tiny_model


@pytest.fixture(scope="module")
def answers(world):
    """What a stranger's process gets: by itself, and as a server without and with a root."""
    root, predictor, _, _, model = world
    rows = [row(root, i) for i in range(4)]
    frames = {
        "paths": rows,
        "bytes": [
            {"id": each["id"], "media_bytes": each["media"], "transcript": VTT} for each in rows
        ],
        "features": [as_features(predictor, each) for each in rows],
        "strange": [{"vedio": "0.mp4"}],
        "narrow": [{"features:text": [[1.0, 2.0]], "times:text": [[0.0, 1.0]]}],
    }
    shutil.copytree(model, root / "elsewhere" / "model")
    (root / "media" / "sub").mkdir(parents=True)
    shutil.copyfile(root / "0.mp4", root / "media" / "sub" / "0.mp4")
    (root / "media" / "out.mp4").symlink_to(root / "0.mp4")
    requests = {
        **{
            name: {"dataframe_split": split([{"media": media, "transcript": VTT}])}
            for name, media in NAMED.items()
        },
        "whole": {"dataframe_split": split([{"media": str(root / "0.mp4")}])},
        "words": {"dataframe_records": [{"transcript_file": "/etc/hostname.txt"}]},
        "example": json.loads((model / "serving_input_example.json").read_text()),
        "instances": {"instances": [{"media": "sub/0.mp4", "transcript": VTT}]},
    }
    served = {"__pyfunc_model_path__": str(model)}
    sessions = {
        "own": {"environment": {}, "frames": frames},
        "closed": {"environment": served, "requests": requests},
        "opened": {
            "environment": {"FUSELINE_MEDIA_ROOT": str(root / "media")},
            "requests": requests,
        },
    }
    question, answer = root / "question.json", root / "answer.json"
    question.write_text(
        json.dumps({"model": str(root / "elsewhere" / "model"), "sessions": sessions})
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", STRANGER, str(question), str(answer)],
        cwd=root,
        env={**kept, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(answer.read_text())


def as_features(predictor, row):
    """The row with its features and the times of its words in place of its media."""
    (said,) = predictor.explain([row])
    brought = {"id": row["id"], "times:words": [times for _, *times in said["words"]]}
    for name, outcome in predictor.features(row).items():
        there = outcome.feature
        brought[f"features:{name}"] = [] if there is None else there.values.tolist()
        brought[f"times:{name}"] = [] if there is None else there.times.tolist()
    return brought


def split(rows):
    columns = list(rows[0])
    return {"columns": columns, "data": [[row[name] for name in columns] for row in rows]}


def test_paths_bytes_and_features_give_the_same_bits_in_a_process_without_us(world, answers):
    root, predictor, *_ = world
    here = predictor.predict([row(root, i) for i in range(4)])
    assert answers["modules"] == []
    assert {each["state"] for each in here} == {"scored"}
    assert [each["missing"] for each in here] == ["", "", "", "audio"]
    for form in ("paths", "bytes", "features"):
        assert answers[f"own {form}"] == here, form
    status, message = answers["own strange"]
    assert status == 400
    assert "none of the columns media, media_bytes" in message
    status, message = answers["own narrow"]
    assert status == 400
    assert message == (
        "row 1, column features:text: found the shape [1, 2]; wanted [steps, 16], as "
        "hashed-words gives it"
    )


def test_a_server_takes_bytes_and_no_paths_but_those_under_its_root(world, answers):
    root, predictor, *_ = world
    (expected,) = predictor.predict([row(root, 0)])
    files = (*NAMED, "whole", "words", "instances")
    assert {answers[f"closed {name}"][0] for name in files} == {400}
    assert "none may be read here; give media_bytes" in answers["closed below"][1]
    assert "none may be read here" in answers["closed words"][1]
    for name in ("closed example", "opened example", "opened below", "opened instances"):
        status, body = answers[name]
        assert status == 200, body
        (said,) = body["predictions"]
        assert said["state"] == "scored"
        if "example" not in name:
            assert (said["prediction"], said["missing"]) == (expected["prediction"], "")
    assert {answers[f"opened {name}"][0] for name in ("whole", "up", "link", "url", "words")} == {
        400
    }
    assert "has a '..'" in answers["opened up"][1]
    for name in ("whole", "link"):
        assert "lies outside the folder of media" in answers[f"opened {name}"][1]
    assert "found the address" in answers["opened url"][1]


def test_damage_and_what_was_slipped_in_is_found_whoever_loads_the_model(world, tmp_path):
    import mlflow.pyfunc

    _, _, uri, address, model = world
    stored = {file: file.read_bytes() for file in model.rglob("*") if file.is_file()}
    weights = next(model.rglob("weights.safetensors"))
    code = model / "code" / "training" / "predict.py"
    changed = bytearray(stored[weights])
    changed[-3] ^= 1
    tries = {
        weights: (bytes(changed), "weights.safetensors is not as it was saved"),
        code: (stored[code] + b"\n", "predict.py is not as it was saved"),
        code.with_name("more.py"): (b"", "more.py is no file of this model"),
        weights.with_name("model.pkl"): (b"cos\nsystem\n(S'touch ran'\ntR.", "is no file of this"),
    }
    for file, (content, message) in tries.items():
        file.write_bytes(content)
        try:
            with pytest.raises(OSError, match="are not those that were logged"):
                mlflow_store.download(uri, address, tmp_path / file.name)
            with pytest.raises(OSError, match=message):
                mlflow.pyfunc.load_model(str(model))
        finally:
            file.unlink()
            if file in stored:
                file.write_bytes(stored[file])
    assert not Path("ran").exists()


def test_compiled_code_that_lies_beside_the_sources_is_never_run(world, tmp_path):
    _, _, uri, address, model = world
    cache = model / "code" / "training" / "__pycache__"
    cache.mkdir()
    (cache / "predict.cpython-311.pyc").write_bytes(b"anything")
    try:
        assert not list(mlflow_store.download(uri, address, tmp_path).rglob("*.pyc"))
    finally:
        shutil.rmtree(cache)


@pytest.mark.parametrize("linked", [False, True])
def test_compiled_code_that_was_slipped_in_is_not_run_by_mlflow_itself(world, tmp_path, linked):
    _, _, uri, *_ = world
    run = mlflow_store.start_run(uri, "toys", "slipped", {})
    model = mlflow_store.download(uri, log_toy(run, make_bundle(tmp_path)), tmp_path / "model")
    (tmp_path / "words.py").write_text("def count(text):\n    return 99.0\n")
    cache = model / "code" / "toybundle" / "__pycache__"
    lies = cache
    if linked:
        lies = tmp_path / "lies"
        cache.symlink_to(lies)
    py_compile.compile(
        str(tmp_path / "words.py"),
        cfile=str(lies / f"words.{sys.implementation.cache_tag}.pyc"),
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    asked = (
        "import mlflow.pyfunc as m, pandas as p, sys; print(m.load_model(sys.argv[1])"
        ".predict(p.DataFrame([{'media': '', 'transcript': 'so'}]))['score'][0])"
    )
    said = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", asked, str(model)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(said.stdout) == 1.25


def test_a_model_of_pickled_code_is_not_loaded(world, tmp_path):
    import mlflow.pyfunc
    from mlflow.exceptions import MlflowException

    class Slipped(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
        mlflow.pyfunc.save_model(str(tmp_path / "pickled"), python_model=Slipped())
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        with pytest.raises(MlflowException, match=r"(?i)pickle"):
            mlflow.pyfunc.load_model(str(tmp_path / "pickled"))


def test_its_requirements_name_what_its_features_read_and_no_cluster(world):
    _, predictor, _, _, model = world
    lines = (model / "requirements.txt").read_text().split()
    names = {line.partition("==")[0] for line in lines}
    assert {"av", "mlflow", "numpy", "safetensors", "torch"} <= names
    assert not {"ray", "deepspeed", "transformers", "webdataset", "pyarrow"} & names
    assert all("==" in line and "+" not in line for line in lines)
    from featurizers import catalog

    faces = {"video": catalog.build("appearance").spec}
    with_faces = " ".join(requirements_of(predictor.recipe, faces))
    assert "opencv" in with_faces


# Which files rows may name


def rows_of(*rows, access=None, words=False):
    return checked(rows, SPECS, access or Access(), pooled_to_words=words)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../secret.mp4", "has a '..'"),
        ("a/../b.mp4", "has a '..'"),
        ("/etc/passwd", "lies outside"),
        ("https://example.com/a.mp4", "found the address"),
        ("a\0b", "is no path"),
        ("a\ud800b", "is no path"),
    ],
)
@pytest.mark.parametrize("column", ["media", "transcript_file", "stream:pose"])
def test_no_row_leads_out_of_the_folder_of_media(tmp_path, column, name, message):
    access = Access(root=tmp_path)
    with pytest.raises(WrongRowsError, match=message) as raised:
        rows_of({"media": "a.mp4"}, {column: name}, access=access)
    assert str(raised.value).startswith(f"row 2, column {column}: ")


def test_a_tier_is_read_of_no_file_that_leads_out_of_the_folder_of_media(tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    for folder in (tmp_path, media):
        (folder / "w.TextGrid").touch()
    (media / "out.TextGrid").symlink_to(tmp_path / "w.TextGrid")
    (media / "in.TextGrid").symlink_to(media / "w.TextGrid")
    access = Access(root=media)
    for name in ("out.TextGrid", "out.TextGrid#ORT", f"{tmp_path}/w.TextGrid#ORT"):
        with pytest.raises(WrongRowsError, match=r"transcript_file: .*lies outside"):
            rows_of({"media": "a.mp4", "transcript_file": name}, access=access)
    for name in ("in.TextGrid#ORT", f"{media}/w.TextGrid#ORT"):
        (asked,) = rows_of({"media": "a.mp4", "transcript_file": name}, access=access)
        assert asked.transcript_file == media / "w.TextGrid#ORT"


@pytest.mark.parametrize("name", ["a.\0x", "a.\ud800"])
def test_bytes_whose_name_no_file_can_have_are_refused(name):
    with pytest.raises(WrongRowsError, match="row 1, column media: its ending"):
        rows_of({"media": name, "media_bytes": b"anything"}, access=Access(paths=False))


def test_words_are_words_also_where_a_file_has_their_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("secret.txt").write_text("what nobody may read")
    (asked,) = rows_of({"transcript": "secret.txt"}, access=Access(paths=False))
    raw: RawClip = asked.raw("k", tmp_path)
    assert (raw.transcript, raw.transcript_file) == ("secret.txt", None)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"features:face": [[1.0]], "times:face": [[0, 1]]}, "no stream 'face'; it has text"),
        ({"features:text": [[1.0] * 16]}, "column times:text: is missing"),
        ({"times:text": [[0, 1]]}, "column features:text: is missing"),
        (
            {"features:text": [[1.0] * 16], "times:text": [[0, 1], [1, 2]]},
            "found 2 steps; wanted 1",
        ),
        ({"features:text": [[1.0] * 16], "times:text": [[1, 0]]}, "ends before it begins"),
        ({"features:text": [[1.0] * 16], "times:text": [0, 1]}, "found the shape"),
        ({"features:text": [[1.0], [1.0, 2.0]], "times:text": [[0, 1]]}, "of different lengths"),
        ({"features:text": [[float("nan")] * 16], "times:text": [[0, 1]]}, "NaN or infinity"),
        (
            {"features:text": [[1.0] * 16], "times:text": [[0, 1]], "media": "a.mp4"},
            "media or features, not both",
        ),
        (
            {"features:text": [[1.0] * 16], "times:text": [[0, 1]], "transcript": "so"},
            "column times:words: is missing",
        ),
        ({"media_bytes": "AAAA"}, "found str; wanted bytes"),
        ({"times:words": [[0, 1, 2]]}, "column times:words: found the shape"),
    ],
)
def test_what_fits_no_model_is_refused_by_its_name(cells, message):
    with pytest.raises(WrongRowsError, match=message):
        rows_of(cells, words=True)
