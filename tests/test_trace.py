"""From a model to its clips, shards and media: also when the dataset is gone."""

import json
from dataclasses import replace

import pytest

from pipelines.experiment import InputError
from pipelines.lineage import keep_lineage, read_lineage, write_lineage
from pipelines.trace import trace
from tests.made_of import NOW, SPEC, made_of
from tracking import mlflow_store
from tracking.champion import promote
from tracking.mlflow_store import MlflowRegistry
from tracking.registry import UnknownModelError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("gone") / "dataset"


@pytest.fixture(scope="module")
def uri(tmp_path_factory, root):
    """Two versions of one model, of other clips, and a model that others registered."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow_store.initialise(uri, folder / "mlartifacts")
    client = mlflow_store.client_of(uri)
    mlflow_store.registry.create_model(client, "mood")
    whole = made_of(root, uri)
    for number, lineage in enumerate((replace(whole, clips=whole.clips[:1]), whole)):
        run = mlflow_store.start_run(uri, "toys", "late_fusion seed 0", {"fuseline.code": "c" * 64})
        run.log_settings({"name": "late_fusion", "recipe_digest": "r" * 64})
        write_lineage(folder / str(number), lineage)
        keep_lineage(run, folder / str(number))
        client.create_model_version("mood", source="/nowhere", run_id=run.run_id)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", source="/nowhere")
    promote(
        MlflowRegistry(uri=uri),
        "mood",
        2,
        after=None,
        report="f" * 64,
        who="anna",
        why="better",
        now=NOW,
        attempt="a",
    )
    return uri


def test_what_was_kept_is_read_back(uri, root):
    run_id = mlflow_store.run_of(uri, "mood", 2)
    assert read_lineage(uri, run_id) == made_of(root, uri)
    assert not root.exists()
    bare = mlflow_store.start_run(uri, "toys", "bare", {})
    assert read_lineage(uri, bare.run_id) is None


@pytest.mark.parametrize("model", ["mood", "mood@champion", "models:/mood/2"])
def test_a_model_leads_to_ledger_run_recipe_columns_and_counts(uri, root, model):
    found = trace(uri, model)
    assert (found.version.number, found.aliases) == (2, ["champion"])
    said = "\n".join(found.sentences)
    for part in (
        f"generation 1, by anna at {NOW}: better; report {'f' * 64}",
        f"recipe late_fusion {'r' * 64}",
        f"code {'c' * 64}",
        f"dataset {root}: clips 2 train, 1 valid, 2 test, of 5 media files",
    ):
        assert part in said
    assert found.columns[0]["manifest"] == "d" * 64
    told = json.loads(json.dumps(found.to_json()))
    assert told["lineage"]["clips"] == {"train": 2, "valid": 1, "test": 2}
    assert told["run"]["run_id"] == found.version.run_id


def test_a_clip_of_a_model_leads_to_its_media_and_shards(uri):
    found = trace(uri, "mood", "id of a")
    assert (found.clip["media"], found.clip["media_digest"]) == ("/media/a.mp4", "a" * 64)
    assert [(row["state"], row["sha256"]) for row in found.files] == [
        ("sample", "aa" * 32),
        ("sample", "bb" * 32),
    ]
    assert found.files[0]["tar"] == f"columns/{SPEC.fingerprint}/00007-aa.tar"
    titles = [title for title, _ in found.tables]
    assert titles == ["columns", "clip id of a", "its shards"]
    facts = {row["fact"]: row["value"] for row in dict(found.tables)["clip id of a"]}
    assert (facts["media_digest"], facts["start"], facts["speaker"]) == ("a" * 64, "0.0", "anna")
    assert not {"end", "streams", "states"} & set(facts)
    with pytest.raises(InputError, match=r"took no clip 'id of x'; did you mean 'id of"):
        trace(uri, "mood", "id of x")
    with pytest.raises(InputError, match="took no clip 'e'"):
        trace(uri, "mood", "e")


def test_a_model_without_lineage_or_name_is_told(uri):
    assert trace(uri, "foreign/1").sentences[-1] == "there is no run of it"
    for model, said in (
        ("mood/9", r"there is no mood/9; there are versions 1, 2 and @champion"),
        ("foreign", "there are versions 1 and no aliases"),
        ("nobody", "no model 'nobody'"),
        ("a@b@c", "names no model"),
    ):
        with pytest.raises(UnknownModelError, match=said):
            trace(uri, model)
