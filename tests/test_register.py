"""From a run to a registered model: what is compared with the shards, and what is kept of it."""

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from featurizers.clip import Clip
from featurizers.intake import RawClip
from featurizers.spec import Feature
from pipelines import register, score
from pipelines.experiment import InputError
from pipelines.plans import SCORECARD
from pipelines.scorecards import card_of, kept_card
from pipelines.sources import Asked
from pipelines.staging import Stage
from tests.test_promote import RULES, card, scorecard_digest, three_versions
from tracking import mlflow_store
from tracking.gate import judge
from tracking.scorecard import Scorecard


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow_store.initialise(uri, folder / "mlartifacts")
    return uri


@pytest.fixture
def name(uri, request, tmp_path):
    model = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return three_versions(uri, model, tmp_path)


class Column:
    """A column of a few clips, without files."""

    def __init__(self, **states):
        self.rows = {key: type("Row", (), {"state": state})() for key, state in states.items()}

    def read(self, key):
        if self.rows[key].state != "sample":
            return None
        return Feature(np.ones((2, 3), dtype=np.float32), np.zeros((2, 2)))


def asked(key, media):
    return Asked(number=1, raw=RawClip(key=key, id=key, media=media, path=None, columns={}))


def clip(key, split):
    return Clip(key=key, id=key, media="", media_digest="", start=0.0, end=None, split=split)


def test_clips_are_chosen_from_training_and_have_something_to_compare():
    columns = {
        "text": Column(a="sample", b="sample", c="absent", d="sample", e="sample"),
        "audio": Column(a="sample", b="sample", c="quarantined", d="absent", e="sample"),
    }
    rows = [asked(key, f"/{key}.mp4") for key in "abcd"] + [asked("e", "s3://bucket/e.mp4")]
    clips = [clip(key, "test" if key == "b" else "train") for key in "abcde"]
    some = register._some(rows, clips, columns, remote=False)
    assert [each.raw.key for each in some] == ["a", "d"]
    some = register._some(rows, clips, columns, remote=True)
    assert [each.raw.key for each in some] == ["a", "d", "e"]


def test_remote_clips_are_fetched_and_compared(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(
        register,
        "parity",
        lambda _uri, _model, some, _columns, weights, said=None: (
            compared.append([*weights, *(each.raw.media for each in some)]) or []
        ),
    )
    (tmp_path / "far.mp4").write_text("film")
    far, gone = f"file://{tmp_path}/far.mp4", f"file://{tmp_path}/gone.mp4"
    stage = Stage(folder=tmp_path / "cache", limit_bytes=1000)
    some = [asked("a", "/a.mp4"), asked("b", far), asked("c", gone)]
    assert register._compare("uri", "model", some, {}, stage, weights=["/w"], said=[]) == ([], 2)
    assert compared[0] == ["/w", "/a.mp4"]
    assert compared[1][0] == "/w"
    assert Path(compared[1][1]).parent == tmp_path / "cache"
    assert register._compare("uri", "model", some[2:], {}, stage, weights=[], said=[]) == ([], 0)


def test_of_a_dataset_that_lies_elsewhere_the_model_is_asked_twice_too(tmp_path, monkeypatch):
    class Film(Process):
        """Says what the file holds that it is shown."""

        def predict(self, rows):
            return [{"prediction": Path(row["media"]).read_text()} for row in rows]

    monkeypatch.setattr(score, "ModelProcess", Film)
    monkeypatch.setattr(register, "ModelProcess", Film)
    some = []
    for key in "ab":
        (tmp_path / f"{key}.mp4").write_text(f"film {key}")
        some.append(asked(key, f"file://{tmp_path}/{key}.mp4"))
    # It holds one film at a time.
    stage = Stage(folder=tmp_path / "cache", limit_bytes=8)
    said = []
    assert register._compare("uri", "model", some, {}, stage, weights=[], said=said) == ([], 2)
    assert said == [{"prediction": "film a"}, {"prediction": "film b"}]
    assert register._is_reproducible("uri", "model", some, said, stage, weights=[])
    assert not register._is_reproducible("uri", "model", some, said[::-1], stage, weights=[])


def test_a_version_of_which_nothing_was_compared_says_so_and_is_refused(uri, name):
    unseen = Scorecard.from_json({**card(1.0).to_json(), "parity": None})
    found = register.Registered(
        name=name, version=1, model_uri="models:/m-1", card=unseen, compared=0
    )
    assert "cannot be promoted" in found.checked
    assert not judge(unseen, None, RULES).promote


@pytest.fixture
def registering(monkeypatch, tmp_path):
    """Registers a run as a model of a name; what is seen of it is said, and nothing is computed."""

    def register_it(uri, run_id, name, seen):
        for call, answer in (
            ("logged", "models:/m-1"),
            ("_some", []),
            ("_compare", ([], int(bool(seen.parity)))),
            ("_is_reproducible", None),
            ("score_test", seen),
            ("model_card", f"# {name}"),
            ("keep_origins", None),
        ):
            monkeypatch.setattr(register, call, lambda *_, answer=answer, **__: answer)
        described = []
        monkeypatch.setattr(register, "describe", lambda *told: described.append(told[-1]))
        monkeypatch.setattr(register, "register", partial(version_of, run_id))
        recipe = SimpleNamespace(model=SimpleNamespace(streams=()))
        trained = SimpleNamespace(
            plan=SimpleNamespace(folder=tmp_path, recipe=recipe), run_id=run_id
        )
        found = register.register_model(trained, [], [], {}, uri=uri, name=name)
        return found, described

    return register_it


def version_of(run_id, uri, name, _model_uri, _run_id, tags):
    """The version of a run: one that stands, or a new one without files."""
    standing = dict(mlflow_store.versions_of_run(uri, run_id))
    if name in standing:
        return standing[name]
    client = mlflow_store.client_of(uri)
    mlflow_store.registry.create_model(client, name)
    made = client.create_model_version(name, source="/nowhere", run_id=run_id, tags=tags)
    return int(made.version)


def test_a_version_that_stands_keeps_what_was_seen_when_it_was_registered(
    uri, name, tmp_path, registering
):
    run_id, less = mlflow_store.run_of(uri, name, 2), replace(card(9.0), duplicates=None)
    before = scorecard_digest(uri, name, 2)
    found, described = registering(uri, run_id, name, replace(less, parity=None))
    assert (found.version, found.card.to_json()) == (2, card(2.0).to_json())
    assert json.loads((tmp_path / SCORECARD).read_bytes()) == card(2.0).to_json()
    assert "when it was registered" in found.checked
    assert scorecard_digest(uri, name, 2) == before
    assert described == []


def test_a_run_that_is_registered_under_another_name_too_changes_nothing_of_the_first(
    uri, name, registering
):
    run_id = mlflow_store.run_of(uri, name, 2)
    registering(uri, run_id, name, card(2.0))
    first = kept_card(uri, name, 2)
    found, described = registering(uri, run_id, f"{name}-too", card(2.5))
    assert (found.version, described) == (1, [])  # the model's files are those of both
    assert kept_card(uri, name, 2) == first
    assert card_of(uri, f"{name}-too", 1).metrics == {"mae": 2.5}
    # What was seen of the run under one name is known of it under the other.
    unseen = replace(card(2.0), parity=None)
    found, _ = registering(uri, run_id, f"{name}-three", unseen)
    assert card_of(uri, f"{name}-three", 1).parity is True


def test_a_version_that_is_registered_again_has_the_newer_scorecard_and_its_old_one_stays(
    uri, name, registering
):
    run_id = mlflow_store.start_run(uri, "toys", "one", {}).run_id
    registering(uri, run_id, name, replace(card(1.0), duplicates=None))
    before = kept_card(uri, name, 4)
    assert card_of(uri, name, 4).duplicates is None
    found, described = registering(uri, run_id, name, card(1.0))
    assert (found.version, described) == (4, [f"# {name}"])
    assert card_of(uri, name, 4).duplicates == ()
    kept = f"scorecards/{hashlib.sha256(before).hexdigest()}/{SCORECARD}"
    assert mlflow_store.read_file(uri, run_id, kept) == before


def test_a_scorecard_that_was_changed_is_refused(uri, name, registering, tmp_path):
    run_id = mlflow_store.run_of(uri, name, 1)
    registering(uri, run_id, name, card(3.0))
    digest = hashlib.sha256(kept_card(uri, name, 1)).hexdigest()
    (tmp_path / SCORECARD).write_text(json.dumps(card(0.1).to_json()))
    mlflow_store.MlflowRun(uri=uri, run_id=run_id).log_file(
        tmp_path / SCORECARD, f"scorecards/{digest}"
    )
    with pytest.raises(InputError, match="was changed since it was registered"):
        card_of(uri, name, 1)


class Process:
    """A model's process that has no text of any clip, and always says the same."""

    said: ClassVar = [{"prediction": 1.5}]

    def __init__(self, *asked):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def features(self, rows, stem):
        return [{"text": "absent"}]

    def predict(self, rows):
        return self.said


def test_a_stream_that_the_model_does_not_give_is_a_difference(monkeypatch):
    monkeypatch.setattr(score, "ModelProcess", Process)
    columns = {"text": Column(a="absent"), "audio": Column(a="sample"), "video": Column(a="absent")}
    found = score.parity("uri", "models:/toy/1", [asked("a", "/a.mp4")], columns)
    assert found == [
        "clip a, stream audio: the model does not give it",
        "clip a, stream video: the model does not give it",
    ]


@pytest.mark.parametrize(("before", "same"), [([{"prediction": 1.5}], True), ([{}], False)])
def test_a_model_is_asked_again_in_another_process(monkeypatch, before, same):
    monkeypatch.setattr(register, "ModelProcess", Process)
    here = [asked("a", "/a.mp4"), asked("b", "s3://bucket/b.mp4")]
    ask = partial(register._is_reproducible, "uri", "models:/toy/1", weights=[])
    assert ask(here, before, None) is same
    assert ask(here[1:], [], None) is None


def test_what_a_model_says_is_told_beside_its_features(monkeypatch):
    monkeypatch.setattr(score, "ModelProcess", Process)
    said = []
    assert score.parity("uri", "models:/toy/1", [asked("a", "/a.mp4")], {}, said=said) == []
    assert said == Process.said
