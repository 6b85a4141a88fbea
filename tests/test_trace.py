"""From a model to its clips, shards and media, and back: also when the dataset is gone."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from featurizers.acoustic import LogMel
from featurizers.clip import Clip
from pipelines.experiment import InputError
from pipelines.lineage import Lineage, keep_lineage, lineage_of, read_lineage
from pipelines.trace import (
    reached_by_clips,
    reached_by_shard,
    reached_if_known,
    sentences_of,
    trace,
)
from tracking import mlflow_store
from tracking.champion import promote
from tracking.mlflow_store import MlflowRegistry
from tracking.registry import UnknownModelError
from training.recipe import ModelSettings, Recipe, Task

NOW = "2026-01-02T03:04:05Z"
SPEC = LogMel().spec


def column(folder, number, states):
    """A column of one shard, without files."""
    tar = SimpleNamespace(file=f"0000{number}-{folder}.tar", sha256=folder * 32)
    return SimpleNamespace(
        spec=SPEC,
        digest="d" * 64,
        records=(SimpleNamespace(shard=number, tar=tar),),
        shards=dict.fromkeys(states, number),
        rows={key: SimpleNamespace(state=state) for key, state in states.items()},
    )


def clip(key, split, label=1.0):
    return Clip(
        key=key,
        id=f"id of {key}",
        media=f"/media/{key}.mp4",
        media_digest=key * 64,
        split=split,
        labels={} if label is None else {"mood": label},
    )


def made_of(root, **changes):
    """What a run was made of: five clips, of which c has no sound and e no label."""
    recipe = Recipe(
        name="late_fusion",
        task=Task(kind="regression", label="mood"),
        model=ModelSettings(kind="late_fusion", streams=("audio", "video")),
        **changes,
    )
    states = dict.fromkeys("abcde", "sample")
    return lineage_of(
        SimpleNamespace(plan=SimpleNamespace(root=root, recipe=recipe)),
        [
            clip("a", "train"),
            clip("b", "test"),
            clip("c", "train"),
            clip("d", "valid"),
            clip("e", "train", label=None),
        ],
        {
            "audio": column("aa", 7, {**states, "c": "absent"}),
            "video": column("bb", 7, states),
        },
    )


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
    whole = made_of(root)
    for lineage in (replace(whole, clips=whole.clips[:1]), whole):
        run = mlflow_store.start_run(uri, "toys", "late_fusion seed 0", {"fuseline.code": "c" * 64})
        run.log_settings({"name": "late_fusion", "recipe_digest": "r" * 64})
        keep_lineage(run, lineage)
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


def test_a_run_was_made_of_the_clips_that_training_took(root):
    found = made_of(root, take_absent=False)
    assert {row["key"]: row["role"] for row in found.clips} == {
        "a": "train",
        "b": "test",
        "d": "valid",
    }
    taken = {row["key"] for row in made_of(root).clips}
    assert taken == {"a", "b", "c", "d"}


def test_what_was_kept_is_read_back(uri, root):
    run_id = mlflow_store.run_of(uri, "mood", 2)
    found = read_lineage(uri, run_id)
    assert isinstance(found, Lineage)
    assert found.clips == made_of(root).clips
    assert found.columns == json.loads(json.dumps(made_of(root).columns))
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
        f"dataset {root}: clips 2 train, 1 valid, 1 test, of 4 media files",
    ):
        assert part in said
    assert found.columns[0]["manifest"] == "d" * 64
    told = json.loads(json.dumps(found.to_json()))
    assert told["lineage"]["clips"] == {"train": 2, "valid": 1, "test": 1}
    assert told["run"]["run_id"] == found.version.run_id


def test_a_clip_of_a_model_leads_to_its_media_and_shards(uri):
    found = trace(uri, "mood", "id of a")
    assert (found.clip["media"], found.clip["media_digest"]) == ("/media/a.mp4", "a" * 64)
    assert [(row["state"], row["sha256"]) for row in found.files] == [
        ("sample", "aa" * 32),
        ("sample", "bb" * 32),
    ]
    assert found.files[0]["tar"] == f"columns/{SPEC.fingerprint}/00007-aa.tar"
    with pytest.raises(InputError, match=r"took no clip 'id of x'; did you mean 'id of"):
        trace(uri, "mood", "id of x")
    with pytest.raises(InputError, match="took no clip 'e'"):
        trace(uri, "mood", "e")


def test_a_clip_leads_to_the_models_that_it_has_reached(uri, root, tmp_path):
    found = reached_by_clips(uri, ["id of a", "d"])
    assert [(each.name, each.version, each.roles) for each in found] == [
        ("mood", 1, {"a": "train"}),
        ("mood", 2, {"a": "train", "d": "valid"}),
    ]
    assert [each.was_champion for each in found] == [False, True]
    assert sentences_of(found)[1] == "mood version 2 (champion): 1 in train, 1 in valid"
    assert reached_by_clips(uri, ["a"], str(root)) == reached_by_clips(uri, ["a"])
    assert reached_by_clips(uri, ["a"], str(tmp_path)) == []
    assert sentences_of(reached_by_clips(uri, ["e"])) == ["no registered model was made of it"]


@pytest.mark.parametrize(
    "shard", ["00007-aa.tar", f"columns/{SPEC.fingerprint}/00007-aa.tar", "aa" * 32]
)
def test_a_shard_leads_to_the_models_that_it_has_reached(uri, shard):
    assert [each.version for each in reached_by_shard(uri, shard)] == [1, 2]
    assert reached_by_shard(uri, "7-aa.tar") == []


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


def test_where_no_store_is_nobody_knows_which_models_were_reached(tmp_path):
    found, why = reached_if_known(f"sqlite:///{tmp_path}/mlflow.db", ["a"], str(tmp_path))
    assert found == []
    assert "no tracking store" in why
