"""The command line: grouped help, one line and the right code for each bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from featurizers.egemaps import MissingPackageError
from featurizers.encoding import EncoderMemoryError
from featurizers.media import encode
from pipelines.__main__ import _called, app
from pipelines.experiment import load
from pipelines.sources import ask, read_rows
from tracking import mlflow_store
from training.recipes import NAMES

SCRIPT = Path(sys.executable).parent / "fuseline"
TABLE = "id,media,transcript,mood\n" + "".join(
    f"c{i},{i}.mp4,word number {i},{i - 2.5}\n" for i in range(6)
)


@pytest.fixture(autouse=True)
def _store_beside_the_experiment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def refused(called):
    """Calls a command that must end with one line on standard error; gives that line."""

    def call(*arguments, code=2):
        found, _, err = called(*arguments)
        assert len(err.splitlines()) == 1, err
        assert err.startswith("fuseline: ")
        assert "Traceback" not in err
        assert found == code
        return err

    return call


def fuseline(*arguments, cwd, program=(sys.executable, "-m", "pipelines")):
    return subprocess.run(
        [*program, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def settings(**changes):
    return {
        "dataset": "data",
        "source": {"table": "clips.csv", "label": "mood"},
        "features": {
            "text": {"featurizer": "hashed-words"},
            "audio": {"featurizer": "logmel", "hop_ms": 20},
        },
        "shards": {"clips": 2},
        "workers": {"featurize": 0},
        "register": {"name": "toy"},
        "promote": {"rules": [{"metric": "mae", "floor": 2}]},
        **changes,
    }


def experiment(folder, table=TABLE, **changes):
    """An experiment file with its table."""
    (folder / "clips.csv").write_text(table)
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(settings(**changes), sort_keys=False))
    return file


def films(folder):
    for number in range(6):
        samples = (9000 * np.sin(np.arange(12_000) * 0.02 * (number + 1))).astype(np.int16)
        encode(folder / f"{number}.mp4", frames=None, fps=5, samples=samples, rate_hz=16_000)


# Help


def test_help_lists_the_commands_by_group(tmp_path):
    ended = fuseline("--help", cwd=tmp_path)
    assert ended.returncode == 0
    places = [ended.stdout.index(f" {group} ") for group in ("Data", "Models", "Flows")]
    assert places == sorted(places)
    data, models, flows = places
    for verb in ("init", "ingest", "featurize", "status", "verify"):
        assert data < ended.stdout.index(f" {verb} ") < models
    for verb in ("train", "models", "promote", "rollback", "score"):
        assert models < ended.stdout.index(f" {verb} ", models) < flows
    for verb in ("run", "demo"):
        assert flows < ended.stdout.index(f" {verb} ", flows)


def test_every_command_has_help_that_says_what_it_does(called):
    for command in app.registered_commands:
        code, out, _ = called(command.name, "--help")
        assert code == 0
        assert command.callback.__doc__.splitlines()[0][:40] in out


# Bad input


def test_a_bad_input_is_one_line_and_code_2_in_a_process_of_its_own(tmp_path):
    experiment(tmp_path)
    (tmp_path / "clips.csv").unlink()
    ended = fuseline("run", "experiment.yaml", cwd=tmp_path)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith("fuseline: ")
    assert "clips.csv: there is no such table" in ended.stderr


@pytest.mark.parametrize("verb", ["ingest", "run"])
def test_a_missing_table_is_told(tmp_path, refused, verb):
    file = experiment(tmp_path)
    (tmp_path / "clips.csv").unlink()
    assert "there is no such table" in refused(verb, file)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("id,mood\na,1\n", "there is no column 'media'"),
        ("id,media,temper\na,0.mp4,1\n", "there is no column 'mood'"),
        ("id,media,mood\na,../0.mp4,1\n", "row 1, column media: ../0.mp4 lies outside every"),
        ("id,media,mood\na,/etc/passwd,1\n", "lies outside every media root"),
        ("id,media,mood\na,0.mp4,1\na,1.mp4,2\n", "rows 1 and 2, column id: both are 'a'"),
        ("id,media,mood\na,0.mp4,1\nb,1.mp4,2\n", "nothing is left: none of 2 media files"),
        ("id,media,mood\na,0.mp4,1,9\n", "row 1 has another number of cells"),
        ("", "the table has no rows"),
    ],
)
def test_a_wrong_table_is_told(tmp_path, refused, table, said):
    assert said in refused("ingest", experiment(tmp_path, table))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features": {"audio": {"featurizer": "logmle"}}}, "did you mean 'logmel'?"),
        ({"features": {"audio": {"featurizer": "logmel", "hop": 5}}}, "no setting 'hop'"),
        ({"model": {"recipe": "mmlach"}}, "the nearest is 'mmlatch'"),
        ({"model": {"recipe": "mmlatch", "hiden": 2}}, "no setting 'hiden'"),
        ({"train": {"epoch": 3}}, "did you mean 'epochs'?"),
        ({"trian": {"epochs": 3}}, "did you mean 'train'?"),
        ({"source": {"table": "clips.csv"}}, "source.label: Field required"),
        ({"promote": {"rules": [{"metric": "mae", "flor": 1}]}}, "did you mean 'floor'?"),
    ],
)
def test_a_wrong_experiment_file_is_told_before_anything_is_read(tmp_path, refused, changes, said):
    file = experiment(tmp_path, **changes)
    (tmp_path / "clips.csv").unlink()
    assert said in refused("run", file)


def test_a_file_that_is_no_yaml_is_told(tmp_path, refused):
    (tmp_path / "experiment.yaml").write_text("dataset: [\n  a: b: c\n")
    assert "not YAML" in refused("run", tmp_path / "experiment.yaml")
    assert "No such file" in refused("run", tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("epochs", "wanted key=value"),
        ("train.epoch=3", "did you mean 'epochs'?"),
        ("train.epochs=many", "epochs is 'many'"),
        ("features.audio.featurizer=mel", "there is no featurizer 'mel'"),
    ],
)
@pytest.mark.parametrize("verb", ["ingest", "featurize", "status", "train", "promote", "run"])
def test_a_wrong_setting_is_told_by_every_verb(tmp_path, refused, verb, setting, said):
    assert said in refused(verb, experiment(tmp_path), "--set", setting)


@pytest.mark.parametrize("verb", ["featurize", "status", "train"])
def test_a_dataset_that_was_never_made_is_told(tmp_path, refused, verb):
    message = refused(verb, experiment(tmp_path))
    assert "ingest a table first" in message or "featurize first" in message


def test_verify_of_a_folder_that_is_no_dataset_is_told(tmp_path, refused):
    assert "ingest a table first" in refused("verify", tmp_path)


def test_scoring_a_file_that_is_not_there_is_told(tmp_path, refused):
    (tmp_path / "a.mp4").touch()
    missing, there = tmp_path / "gone.mp4", tmp_path / "a.mp4"
    store = ("--store", tmp_path)
    assert f"{missing}: there is no such file" in refused("score", "models:/toy/1", missing, *store)
    words = ("--transcript", "gone.vtt")
    assert "gone.vtt: there is no such" in refused("score", "models:/toy/1", there, *words, *store)
    message = refused("score", "models:/toy/1", there, there, "--start", "1", *store)
    assert "give one at a time" in message


# The tracking store


@pytest.mark.parametrize(
    "arguments", [("promote", "experiment.yaml"), ("models", "toy"), ("rollback", "toy")]
)
def test_without_a_store_nothing_is_made_and_it_is_told(tmp_path, refused, monkeypatch, arguments):
    experiment(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "train something first" in refused(*arguments)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder with a store in which version 1 of the model "toy" is registered by other means."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    (folder / "code").mkdir()
    (folder / "code" / "__init__.py").touch()
    (folder / "trained").mkdir()
    (folder / "trained" / "predictor.json").write_text('{"predictor": "code:Predictor"}')
    mlflow_store.initialise(uri, folder / "mlartifacts")
    run = mlflow_store.start_run(uri, "toys", "first", {})
    model = mlflow_store.log_model(
        run,
        folder / "trained",
        name="model",
        code=[folder / "code"],
        inputs=[("media", "string", True)],
        outputs=[("state", "string")],
        requirements=["pandas"],
    )
    assert mlflow_store.register(uri, "toy", model, run.run_id, {}) == 1
    return folder


@pytest.mark.slow
def test_models_and_versions_that_do_not_exist_are_told(store, refused, called):
    file = experiment(store)
    assert "'toy' has no version 99" in refused("promote", file, "--version", "99")
    assert "no model 'nobody'" in refused("promote", file, "--set", "register.name=nobody")
    assert "has no scorecard" in refused("promote", file)
    assert "no register.name" in refused("promote", experiment(store, register=None))
    assert "no model 'nobody'" in refused("models", "nobody", "--store", store)
    assert "no champion to go back to" in refused("rollback", "toy", "--store", store)
    code, said, _ = called("models", "toy", "--store", store, "--json")
    told = json.loads(said)
    assert (code, told["history"], [each["number"] for each in told["versions"]]) == (0, [], [1])
    code, said, _ = called("models", "--store", store, "--json")
    assert [each["model"] for each in json.loads(said)] == ["toy"]
    assert "champion: none" in called("models", "toy", "--store", store)[1]
    assert "give its name" in refused("models", "--history", "--store", store)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["models:/nobody@champion", "models:/toy/99"])
def test_scoring_with_a_model_that_does_not_exist_is_told(store, refused, model):
    (store / "a.mp4").touch()
    assert model in refused("score", model, store / "a.mp4", "--store", store)


@pytest.mark.slow
def test_scoring_without_a_store_or_with_a_damaged_model_is_told(store, refused, tmp_path):
    clip = tmp_path / "a.mp4"
    clip.touch()
    assert "train something first" in refused("score", "models:/toy/1", clip, "--store", tmp_path)
    about = next((store / "mlartifacts").rglob("predictor.json"))
    whole = about.read_text()
    try:
        about.write_text("{}")
        message = refused("score", "models:/toy/1", clip, "--store", store, code=1)
        assert "are not those that were logged" in message
    finally:
        about.write_text(whole)


def test_a_server_that_is_out_of_reach_or_no_server_is_told(monkeypatch, refused):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 failed" in refused("models", "toy", code=1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "foo://x")
    assert "foo://x is no address of a tracking store" in refused("rollback", "toy")


def test_ctrl_c_is_one_line_and_code_130(monkeypatch, refused, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("featurizers.dataset.has_clips", stop)
    assert "goes on where it was" in refused("verify", tmp_path, code=130)


# A small dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The experiment file of six clips that are ingested and featurized."""
    folder = tmp_path_factory.mktemp("dataset")
    films(folder)
    file = experiment(folder)
    for verb in ("ingest", "featurize"):
        assert _called(lambda verb=verb: app([verb, str(file)])) == 0
    return file


@pytest.mark.media
def test_status_shows_the_ledger(dataset, called):
    code, out, _ = called("status", dataset)
    assert code == 0
    assert "clips = sample + absent + quarantined" in out
    code, out, err = called("status", dataset, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [(line["stream"], line["clips"], line["sample"]) for line in found["columns"]] == [
        ("text", 6, 6),
        ("audio", 6, 6),
    ]
    assert (found["out_of_date"], found["jobs_left"]) == ([], 0)


@pytest.mark.media
def test_status_tells_what_is_not_as_the_clips_are_now(tmp_path, called):
    films(tmp_path)
    lines = TABLE.splitlines()
    file = experiment(tmp_path, "\n".join(lines[:5]))
    called("ingest", file)
    code, out, _ = called("status", file)
    assert (code, "not finished: text, audio; 4 jobs left" in out) == (1, True)
    assert called("featurize", file)[0] == called("status", file)[0] == 0
    file = experiment(tmp_path, "\n".join([*lines[:4], "c3,3.mp4,other words,0", *lines[5:]]))
    assert called("ingest", file)[0] == 0
    code, out, _ = called("status", file, "--json")
    found = json.loads(out)
    assert (code, found["out_of_date"], found["jobs_left"]) == (1, ["text", "audio"], 3)
    assert [line["clips"] for line in found["columns"]] == [4, 4]


@pytest.mark.media
def test_the_ledger_is_json_also_when_clips_are_quarantined(tmp_path, called):
    films(tmp_path)
    (tmp_path / "2.mp4").write_bytes(b"no film")
    file = experiment(tmp_path, max_dropped=0.5)
    assert called("ingest", file)[0] == 0
    code, out, err = called("featurize", file, "--json")
    assert (code, err) == (0, "")
    assert [line["faults"] for line in json.loads(out)] == [{}, {"unreadable": 1}]
    found = json.loads(called("status", file, "--json")[1])
    assert [line["faults"] for line in found["columns"]] == [{}, {"unreadable": 1}]


@pytest.mark.parametrize(
    "error",
    [
        EncoderMemoryError("no room"),
        MissingPackageError("no openSMILE"),
        PermissionError(13, "No", "/x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_machine_refuses_is_one_line_and_no_traceback(capsys, error):
    def fails():
        raise error

    assert _called(fails) == 1
    assert capsys.readouterr().err == f"fuseline: {error}\n"


@pytest.mark.media
def test_json_is_all_that_is_written_to_standard_output(dataset, called):
    code, out, _ = called("ingest", dataset, "--json")
    assert code == 0
    assert json.loads(out) == {"dataset": str(dataset.parent / "data"), "clips": 6}
    code, out, _ = called("featurize", dataset, "--json")
    assert code == 0
    assert [line["sample"] for line in json.loads(out)] == [6, 6]


@pytest.mark.media
def test_featurizing_again_says_that_it_is_done(dataset, called):
    code, out, _ = called("featurize", dataset)
    assert code == 0
    assert "all columns are finished already" in out


@pytest.mark.media
def test_a_detector_that_is_not_for_real_work_is_warned_of(tmp_path, called):
    films(tmp_path)
    face = {"featurizer": "face-track", "detector": "cascade"}
    file = experiment(tmp_path, features={"face": face})
    assert called("ingest", file)[0] == 0
    code, out, _ = called("featurize", file)
    assert code == 0
    assert "warning: features.face: detector 'cascade' is for trying things out" in out
    assert "fetch yunet" in out


@pytest.mark.media
def test_a_label_that_the_dataset_does_not_have_is_told(dataset, refused):
    message = refused("train", dataset, "--set", "source.label=temper")
    assert "has a label 'temper'; there are mood" in message


@pytest.mark.media
def test_verify_finds_a_flipped_byte_and_names_the_clip(dataset, called):
    root = load(dataset).root
    code, out, _ = called("verify", root)
    assert (code, "all that is there is as it was written" in out) == (0, True)
    tar = sorted(root.glob("columns/logmel-*/*.tar"))[0]
    whole = tar.read_bytes()
    try:
        at = whole.index(b"\x93NUMPY") + 200
        tar.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        code, out, err = called("verify", root)
        assert (code, err) == (1, "")
        assert len(out.splitlines()) == 2
        assert f"damaged: {tar} is not what was written: clips c" in out
        assert "1 problems: `verify --clean`, then `featurize`, mends them" in out
        found = json.loads(called("verify", root, "--json")[1])["problems"]
        assert [len(each["clips"]) for each in found] == [1]
        tar.write_bytes(whole[:-5])
        assert called("verify", root)[0] == 1
    finally:
        tar.write_bytes(whole)
    assert called("verify", root)[0] == 0


@pytest.mark.media
def test_verify_tells_of_a_column_that_is_gone(tmp_path, called):
    films(tmp_path)
    file = experiment(tmp_path)
    called("ingest", file)
    called("featurize", file)
    root = load(file).root
    assert json.loads(called("verify", root, "--json")[1])["not_there"] == []
    (column,) = root.glob("columns/logmel-*")
    shutil.rmtree(column)
    _, out, _ = called("verify", root)
    assert f"not there: column {column.name}; featurize computes it" in out
    assert called("status", file)[0] == 1


@pytest.mark.media
def test_clean_and_featurize_mend_what_verify_found(dataset, called):
    root = load(dataset).root
    tar = sorted(root.glob("columns/hashed-words-*/*.tar"))[0]
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-600])
    stray = tar.with_name(".00001-x.tar.k2j4h6a1")
    stray.write_bytes(b"half")
    code, out, _ = called("verify", root, "--clean")
    assert code == 1
    assert f"removed: {tar.relative_to(root)}" in out
    assert f"removed: {stray.relative_to(root)}" in out
    assert called("featurize", dataset)[0] == 0
    assert tar.read_bytes() == whole
    assert called("verify", root)[0] == 0


@pytest.mark.media
def test_plan_says_what_is_kept_and_what_would_be_redone(dataset, called):
    code, out, _ = called("plan", dataset)
    assert code == 0
    assert "as before 6" in out
    assert "0 jobs, 0 s of media to decode; time: 0 s (nothing is left to do)" in out
    code, out, _ = called(
        "plan", dataset, "--json", "--ingested", "--set", "features.audio.hop_ms=40"
    )
    found = json.loads(out)
    assert code == 0
    kept = {each["stream"]: each["keep"]["clips"] for each in found["columns"]}
    assert kept == {"text": 6, "audio": 0}
    assert found["jobs"] == len(list(load(dataset).root.glob("columns/logmel-*/*.tar")))
    assert found["seconds"] > 0


@pytest.mark.media
def test_report_is_a_table_json_and_one_page(dataset, called, tmp_path):
    root, page = load(dataset).root, tmp_path / "ledger.html"
    code, out, _ = called("report", root, "--page", page)
    assert code == 0
    assert "6 clips" in out
    assert page.read_text().startswith("<!DOCTYPE html>")
    code, out, _ = called("report", root, "--json")
    assert code == 0
    assert json.loads(out)["balanced"] is True


@pytest.mark.media
def test_retry_says_that_nothing_is_left_to_try(dataset, called, refused):
    code, out, _ = called("retry", dataset, "--json")
    assert code == 0
    assert set(json.loads(out)["tried"].values()) == {0}
    assert "--reason gremlins: there is none" in refused("retry", dataset, "--reason", "gremlins")


@pytest.mark.media
def test_forget_names_the_clip_that_it_does_not_know(dataset, refused):
    assert "there is no clip 'c9'" in refused("forget", load(dataset).root, "c9")


@pytest.mark.media
def test_forget_tells_what_it_did_and_what_it_did_not_touch(tmp_path, called):
    films(tmp_path)
    file = experiment(tmp_path)
    for verb in ("ingest", "featurize"):
        assert called(verb, file)[0] == 0
    code, out, _ = called("forget", load(file).root, "c1", "c2")
    assert code == 0
    assert "2 clips are forgotten" in out
    assert "models that were trained on them" in out
    assert called("verify", load(file).root)[0] == 0
    code, out, _ = called("ingest", file)
    assert "2 rows are passed over: those clips were to be forgotten" in out


@pytest.mark.media
def test_too_many_quarantined_clips_are_one_line_and_code_1(tmp_path, refused, called):
    films(tmp_path)
    (tmp_path / "0.mp4").write_bytes(b"no film")
    file = experiment(tmp_path)
    assert called("ingest", file)[0] == 0
    message = refused("featurize", file, code=1)
    assert "1 of 6 clips are quarantined {'unreadable': 1}" in message


# init


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("clips.csv", "mood", ["1", "2.5"]),
        ("my clips #1.csv", "how: it felt", ["glad", "sad"]),
        ("2020.csv", "7", ["1", "-1"]),
        ("größe.csv", "yes", ["a", "b"]),
    ],
)
def test_init_writes_a_file_that_loads(tmp_path, called, name, label, values):
    table = tmp_path / name
    rows = "".join(f"c{i},{i}.mp4,hello,{value}\n" for i, value in enumerate(values))
    table.write_text(f"id,media,transcript,{label}\n{rows}", encoding="utf-8")
    to = tmp_path / "made" / "experiment.yaml"
    code, out, err = called("init", table, "--label", label, "--to", to)
    assert (code, err) == (0, "")
    made = load(to)
    assert made.table.resolve() == table
    assert made.source.label == label
    assert sorted(made.features) == ["audio", "text", "video"]
    assert made.register_ is not None
    assert len(made.rules()) == 1
    assert all(recipe in to.read_text() for recipe in NAMES)
    assert "fuseline run" in out


def test_init_of_a_table_in_another_folder_gives_a_file_whose_media_are_taken(tmp_path, called):
    (tmp_path / "films").mkdir()
    table = tmp_path / "films" / "clips.csv"
    table.write_text(TABLE)
    to = tmp_path / "made" / "experiment.yaml"
    assert called("init", table, "--label", "mood", "--to", to)[0] == 0
    made = load(to)
    asked, task = ask(made, read_rows(made.table))
    assert {Path(each.raw.media).parent for each in asked} == {tmp_path / "films"}
    assert (len(asked), task.kind) == (6, "regression")


@pytest.mark.media
def test_init_of_a_folder_writes_a_table_and_then_the_file(tmp_path, called, refused):
    folder = tmp_path / "films"
    (folder / "sub").mkdir(parents=True)
    films(folder)
    (folder / "5.mp4").rename(folder / "sub" / "5.mp4")
    (folder / "0.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:00.500\nhello\n")
    to = tmp_path / "experiment.yaml"
    code, out, _ = called("init", folder, "--label", "mood", "--to", to)
    assert code == 0
    assert "fill in its column 'mood'" in out
    lines = (folder / "clips.csv").read_text().splitlines()
    assert lines[:2] == ["id,media,transcript_file,mood", "0,0.mp4,0.vtt,"]
    assert lines[6] == "sub/5,sub/5.mp4,,"
    assert "all of it is empty" in refused("init", folder, "--label", "mood", "--to", to)
    filled = [lines[0], *(line + str(i) for i, line in enumerate(lines[1:]))]
    (folder / "clips.csv").write_text("\n".join(filled) + "\n")
    assert called("init", folder, "--label", "mood", "--to", to)[0] == 0
    assert called("ingest", to, "--set", "workers.featurize=0")[0] == 0


def test_init_of_a_folder_finds_the_transcript_of_each_file_that_tells_most_of_times(
    tmp_path, called
):
    names = ["a.mp4", "a.txt", "a.TextGrid", "b.mp4", "b.json", "b.srt", "c.mp4", "c.JSON"]
    names += ["d.mp4", "d.en.vtt", "e.mp4", "e.en.vtt", "e.de.vtt", "f.mp4", "f.pt-BR.vtt", "f.lab"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "b.json").write_text('{"title": "about the film"}')
    (tmp_path / "c.JSON").write_text('[{"text": "so", "start": 0, "end": 1}]')
    assert called("init", tmp_path, "--label", "mood", "--to", tmp_path / "e.yaml")[0] == 0
    lines = (tmp_path / "clips.csv").read_text().splitlines()[1:]
    assert [line.split(",")[2] for line in lines] == [
        *("a.TextGrid", "b.srt", "c.JSON", "d.en.vtt", "", "f.lab")
    ]


def test_init_of_a_folder_gives_files_that_differ_in_their_suffix_ids_that_differ(tmp_path, called):
    names = ["a.mp4", "a.mpg", "a.mp4.mov", "b.mp4", "sub/a.mp4"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("hello")
    assert called("init", tmp_path, "--label", "mood", "--to", tmp_path / "e.yaml")[0] == 0
    lines = (tmp_path / "clips.csv").read_text().splitlines()[1:]
    ids = {line.split(",")[1]: line.split(",")[0] for line in lines}
    assert ids == {
        "a.mp4": "a.mp4",
        "a.mpg": "a.mpg",
        "a.mp4.mov": "a.mp4.mov",
        "b.mp4": "b",
        "sub/a.mp4": "sub/a",
    }
    assert "a.mpg,a.mpg,a.txt," in lines


def test_init_refuses_what_it_cannot_use(tmp_path, refused):
    to = tmp_path / "experiment.yaml"
    (tmp_path / "clips.csv").write_text(TABLE)
    table = tmp_path / "clips.csv"
    assert "no column 'temper'" in refused("init", table, "--label", "temper", "--to", to)
    gone = tmp_path / "gone.csv"
    assert "there is no such table" in refused("init", gone, "--label", "mood", "--to", to)
    (tmp_path / "empty").mkdir()
    empty = tmp_path / "empty"
    assert "there are no media files" in refused("init", empty, "--label", "mood", "--to", to)
    to.write_text("mine")
    assert "is there already" in refused("init", table, "--label", "mood", "--to", to)
    assert to.read_text() == "mine"


# Somebody's own training/


@pytest.mark.slow
def test_a_strangers_package_of_our_name_stops_the_module_but_not_the_script(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").write_text("raise SystemExit('the decoy ran')\n")
    stopped = fuseline("--help", cwd=tmp_path)
    assert stopped.returncode != 0
    assert len(stopped.stderr.splitlines()) == 1
    assert stopped.stderr.startswith("fuseline: 'training' would be imported from ")
    assert str(tmp_path / "training") in stopped.stderr
    home = Path(__file__).parent.parent
    assert str(home / "training") in stopped.stderr
    works = fuseline("--help", cwd=tmp_path, program=[SCRIPT])
    assert works.returncode == 0, works.stderr
    on_path = subprocess.run(
        [SCRIPT, "--help"],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert on_path.returncode != 0
    assert len(on_path.stderr.splitlines()) == 1
    assert "PYTHONPATH" in on_path.stderr
