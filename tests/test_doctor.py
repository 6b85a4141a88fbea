"""What a machine and the chosen parts can do is said before it fails."""

import hashlib
import importlib.metadata
import json
import os
import socket
from dataclasses import replace

import pytest

from featurizers import catalog, face_detector, landmarks
from featurizers.media import codecs
from pipelines import doctor as looking
from pipelines.doctor import DECODERS, doctor
from pipelines.experiment import outline
from pipelines.licences import imported, judge, package_licence, parts_of
from tests import test_command_line
from tests.object_store import BUCKET, s3_server
from tests.test_command_line import settings

refused = test_command_line.refused
EXTRA = "egemaps"  # its package is not installed for the tests


@pytest.fixture
def file(tmp_path):
    return test_command_line.experiment(tmp_path)


def by_what(findings):
    return {each.what: each for each in findings}


def plan(folder, **changes):
    return outline(settings(**changes), folder)


# Checks


def test_it_works_without_an_experiment_and_says_of_every_featurizer_what_it_needs(
    called, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, out, _ = called("doctor", "--quick", "--json")
    found = json.loads(out)
    assert code == 0
    features = {each["what"]: each for each in found if each["area"] == "features"}
    assert set(features) == set(catalog.NAMES)
    assert "wants stream, dims" in features["numbers"]["found"]
    assert "wants weights" in features["text-encoder"]["found"]
    assert "`revision`" in features["text-encoder"]["found"]
    assert "GPU" in features["text-encoder"]["found"]
    assert features["logmel"]["found"] == "logmel, 45 dims; licence Apache-2.0"
    assert features[EXTRA]["state"] == "warning"
    assert "opensmile" in features[EXTRA]["do"]
    assert {each["area"] for each in found} == {
        "versions",
        "codecs",
        "disk",
        "devices",
        "features",
    }
    assert list(tmp_path.iterdir()) == []


def test_versions_are_those_that_are_installed_and_old_or_missing_ones_fail(monkeypatch):
    found = by_what(looking._versions())
    assert found["numpy"].found == importlib.metadata.version("numpy")
    assert {each.state for each in found.values()} == {"ok"}
    assert "numpy" in looking._least()
    old = looking._version("numpy", "99.1")
    assert (old.state, old.do) == (
        "failed",
        "at least 99.1 is wanted; install with constraints.txt",
    )
    assert looking._version("no-such-package", "1").found == "not installed"


def test_codecs_that_are_asked_for_and_not_there_are_named(monkeypatch):
    assert looking._codecs().state == "ok"
    assert codecs(["h264", "libx264", "nonsense"]).decoders == {"h264"}
    assert codecs(["h264", "libx264", "nonsense"]).encoders == {"libx264"}
    monkeypatch.setattr(looking, "DECODERS", {**DECODERS, "Odd": ("oddcodec",)})
    found = looking._codecs()
    assert found.state == "warning"
    assert found.do.startswith("not there: Odd;")


def test_media_are_really_decoded_and_a_decoder_that_dies_is_told(monkeypatch):
    assert looking._decoding().state == "ok"
    monkeypatch.setattr("featurizers.decoder_process.sys.executable", "/bin/false")
    found = looking._decoding()
    assert found.state == "failed"
    assert "decoder" in found.found


def test_a_folder_that_cannot_be_written_or_linked_in_fails_and_nothing_is_left(
    tmp_path, monkeypatch
):
    assert [each.state for each in looking._disk(tmp_path / "not" / "yet")] == ["ok", "ok"]

    def refuse(*arguments, **named):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    found = looking._writes(tmp_path)
    assert found.state == "failed"
    assert "hard links" in found.do
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_that_wins_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(looking.LocalStore, "create", lambda self, name, content: True)
    monkeypatch.setattr(looking.LocalStore, "read", lambda self, name: b"second")
    assert looking._writes(tmp_path).found.endswith("a second writer wins")


def test_little_room_warns_and_none_fails(tmp_path, monkeypatch):
    for limit, state in ((looking.LITTLE_DISK, "warning"), (looking.NO_DISK, "failed")):
        usage = looking.shutil.disk_usage(tmp_path)._replace(free=int(limit) - 1)
        monkeypatch.setattr(looking.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert next(looking._disk(tmp_path)).state == state


def test_an_object_store_must_have_conditional_writes_and_is_left_as_it_was():
    with s3_server():
        found = by_what(looking._disk(f"s3://{BUCKET}/doctored"))["object store"]
        assert found.state == "ok"
        assert looking.store_at(f"s3://{BUCKET}/doctored").sizes() == {}
    missing = by_what(looking._disk("no-such-protocol://bucket/data"))["object store"]
    assert missing.state == "failed"


def test_gpus_that_are_asked_for_and_not_there_fail(monkeypatch):
    import torch

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert by_what(looking._devices(0.0))["CUDA"].state == "ok"
    assert by_what(looking._devices(0.5))["CUDA"].state == "failed"


@pytest.mark.ray
def test_a_local_ray_cluster_is_really_started(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = looking._ray()
    assert found.state == "ok", found
    assert "CPU" in found.found


def test_a_cluster_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.255.255.1:6379")
    monkeypatch.setattr(looking, "RAY_S", 0.5)
    found = looking._ray()
    assert found.state == "failed"
    assert found.found == "does not answer within 0.5 s"


def test_ray_that_cannot_be_had_is_told_with_its_last_word(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(looking, "_ASK_RAY", "raise SystemExit('no room for Ray')")
    assert looking._ray().found == "cannot be had: no room for Ray"


def test_a_tracking_store_answers_or_is_made_later_or_fails(tmp_path, monkeypatch):
    sqlite = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert "not there yet" in looking._store(sqlite).found
    assert list(tmp_path.iterdir()) == []
    from tracking.mlflow_store import initialise

    initialise(sqlite, tmp_path / "runs")
    assert looking._store(sqlite).found == "answers"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        found = looking._store(f"http://user:secret@127.0.0.1:{nobody.getsockname()[1]}")
    assert found.state == "failed"
    assert "secret" not in str(found)


def test_the_chosen_parts_are_those_of_the_experiment_each_by_itself(tmp_path):
    features = {
        "text": {"featurizer": "text-encoder", "model": "weights/none"},
        "audio": {"featurizer": EXTRA},
        "video": {"featurizer": "face-motion"},
    }
    experiment = plan(tmp_path, features=features)
    findings = list(doctor(experiment, tmp_path, quick=True))
    found = by_what(each for each in findings if each.area == "features")
    assert {name: each.state for name, each in found.items()} == {
        "text": "failed",
        "audio": "failed",
        "video": "ok",
    }
    assert "there is no such folder" in found["text"].found
    assert "needs opensmile, not installed" in found["audio"].found


def test_an_extra_that_brings_a_missing_package_is_named(monkeypatch):
    asked = ["numpy>=2", 'odd-package>=1; extra == "dev"', 'odd-package>=1; extra == "odd"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    assert looking._lacking("some", ["odd-package"])[1] == "pip install 'fuseline[odd]'"
    assert looking._lacking("some", ["cv2"]) == (
        "some needs opencv-python-headless, not installed",
        "pip install opencv-python-headless",
    )


def test_something_that_is_needed_and_fails_is_exit_code_1(called, refused, file):
    assert called("doctor", file, "--quick")[0] == 0
    missing = "features.text={featurizer: word-vectors, file: none.txt}"
    code, out, _ = called("doctor", file, "--quick", "--set", missing)
    assert code == 1
    assert "failed   features  text: features.text: word-vectors" in out
    assert "no featurizer" not in out
    refused("doctor", file.parent / "none.yaml")
    refused("doctor", file, "--set", "dataste=x")


# Licences


@pytest.mark.parametrize(
    ("licence", "verdict"),
    [
        ("Apache-2.0", "free"),
        ("MIT License", "free"),
        ("BSD-3-Clause AND 0BSD AND Zlib", "free"),
        ("cc-by-4.0", "free"),
        ("LGPL-3.0-or-later", "free"),
        ("as the user's data", "free"),
        ("GPL-2.0-or-later", "copyleft"),
        ("AGPL-3.0", "copyleft"),
        ("cc-by-nc-4.0", "restricted"),
        ("CC BY-NC-SA 4.0", "restricted"),
        ("research and personal use, not commercial", "restricted"),
        ("other: Some Non-Commercial Licence", "restricted"),
        ("MIT, for academic use", "restricted"),
        ("unknown: as the file's author says", "unknown"),
        ("openrail", "unknown"),
        ("", "unknown"),
    ],
)
def test_licences_are_judged_by_their_own_words(licence, verdict):
    assert judge(licence) == verdict


def test_every_package_that_the_project_asks_for_is_known_and_free_for_commerce():
    parts = parts_of({"audio": catalog.build("logmel")})
    packages = {part.name: part for part in parts if part.what == "package"}
    assert {"av", "ray", "deepspeed", "mlflow", "torch", "numpy"} <= set(packages)
    assert {name for name, part in packages.items() if part.verdict != "free"} == set()


def test_ffmpeg_with_its_gpl_parts_is_named_where_media_are_read():
    [library] = [each for each in parts_of({"a": catalog.build("logmel")}) if each.note]
    assert library.licence == "GPL-2.0-or-later"
    assert "libx264 and libx265" in library.note
    assert not [each for each in parts_of({"t": catalog.build("hashed-words")}) if each.note]


def test_packages_behind_a_featurizer_are_found_in_its_code():
    assert "opensmile" in imported("featurizers.egemaps")
    assert {"torch", "transformers", "tokenizers"} <= imported("featurizers.text_encoder")
    assert "torch" not in imported("featurizers.lexical")
    assert package_licence("no-such-package").startswith("unknown")


def test_commercial_refuses_what_is_not_for_commerce_and_names_it(called, file):
    assert called("doctor", file, "--commercial")[0] == 0
    chosen = f"features.audio={{featurizer: {EXTRA}}}"
    code, out, _ = called("doctor", file, "--licences", "--set", chosen)
    assert code == 0
    code, out, _ = called("doctor", file, "--commercial", "--set", chosen)
    lost = [line for line in out.splitlines() if line.startswith("failed")]
    assert code == 1
    assert f"audio ({EXTRA}): audEERING Research License" in lost[0]
    assert "not for commercial use" in lost[0]


def test_an_unknown_licence_is_refused_until_somebody_has_read_it(called, refused, file):
    (file.parent / "words.txt").write_text("so 1 2 3\nno 0 1 1\n")
    chosen = ("--set", "features.text={featurizer: word-vectors, file: words.txt}")
    code, out, _ = called("doctor", file, "--commercial", *chosen)
    assert code == 1
    assert "failed   licences  text (word-vectors): unknown: as the file's author says" in out
    assert called("doctor", file, "--commercial", "--accept", "text", *chosen)[0] == 0
    assert "no such part" in refused("doctor", file, "--commercial", "--accept", "txt", *chosen)


@pytest.mark.parametrize("kind", ["face-track", "landmarks"])
def test_a_model_file_that_is_not_the_published_one_is_of_unknown_licence(
    called, file, monkeypatch, kind
):
    name = {"face-track": "face.onnx", "landmarks": "face.task"}[kind]
    path = file.parent / name
    path.write_bytes(b"somebody trained this on pictures that nobody may use")
    known, place = {
        "face-track": (face_detector.YUNET, "featurizers.face_detector.YUNET"),
        "landmarks": (landmarks.LANDMARKER, "featurizers.landmarks.LANDMARKER"),
    }[kind]
    chosen = ("--set", f"features.video={{featurizer: {kind}, model: {name}}}")
    packages = ("--accept", "mediapipe") if kind == "landmarks" else ()  # it may be missing here
    asked = ("doctor", file, "--commercial", *chosen, *packages)
    code, out, _ = called(*asked)
    [lost] = [line for line in out.splitlines() if line.startswith("failed")]
    assert code == 1
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    wanted = f"video ({kind}): unknown: the model file (sha256 {digest[:12]}) is not {known.name}"
    assert wanted in lost
    assert lost.endswith("read it, and say so with --accept video")
    assert called(*asked, "--accept", "video")[0] == 0
    monkeypatch.setattr(place, replace(known, sha256=digest))
    assert called(*asked)[0] == 0


def test_a_part_whose_licence_cannot_be_told_is_refused(called, file):
    missing = "features.text={featurizer: word-vectors, file: none.txt}"
    code, out, _ = called("doctor", file, "--commercial", "--set", missing)
    assert code == 1
    assert "failed   licences  text: cannot be told" in out


def test_the_models_that_say_and_place_words_are_looked_for_with_their_licences(called, file):
    from tests.checkpoints import recogniser

    chosen = ("--set", "source.transcribe={model: whisper}")
    code, out, _ = called("doctor", file, "--quick", *chosen)
    assert code == 1
    assert "failed   features  source.transcribe: source.transcribe: " in out
    code, out, _ = called("doctor", file, "--commercial", *chosen)
    assert code == 1
    assert "failed   licences  source.transcribe: cannot be told" in out
    recogniser(file.parent / "whisper")
    code, out, _ = called("doctor", file, "--quick", *chosen)
    assert code == 0
    assert "source.transcribe: whisper, weights " in out
    code, out, _ = called("doctor", file, "--commercial", *chosen)
    assert code == 1
    assert "failed   licences  source.transcribe: unknown" in out
    (file.parent / "whisper" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert called("doctor", file, "--commercial", *chosen)[0] == 0
    assert called("doctor", file, "--quick", "--set", "source.align={model: none}")[0] == 1
