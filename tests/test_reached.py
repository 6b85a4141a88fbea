"""From clips and shards to the runs and models that they have reached, wherever they went."""

import hashlib
import json
from dataclasses import replace

import pytest

from featurizers.dataset import write_clips
from pipelines.experiment import InputError
from pipelines.lineage import WEIGHTS_TAG, keep_lineage, standing_lineage, write_lineage
from pipelines.reached import (
    Sought,
    reached_by_clips,
    reached_by_shard,
    reached_if_known,
    sought,
)
from pipelines.trace import trace
from tests.made_of import CLIPS, SPEC, clip, made_of
from tracking import mlflow_store

FOREIGN = {"head": f"/elsewhere/kinetics.pth#{'9' * 64}"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Runs: a registered one, one of it, one of that one's copy, and one of another dataset."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow_store.initialise(uri, folder / "mlartifacts")
    client = mlflow_store.client_of(uri)
    mlflow_store.registry.create_model(client, "mood")
    runs = {}

    def begun(name, lineage):
        run = mlflow_store.start_run(uri, "toys", name, {})
        place = folder / name
        (place / "predictor").mkdir(parents=True)
        weights = place / "predictor" / "weights.safetensors"
        weights.write_text(f"weights of {name}")
        (place / "run.json").write_text(json.dumps({"run_id": run.run_id}))
        write_lineage(place, lineage)
        keep_lineage(run, place)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        run.set_tags({WEIGHTS_TAG: digest})
        runs[name] = run.run_id
        return f"{weights}#{digest}", digest

    first, digest = begun("first", made_of("/data/one", uri))
    client.create_model_version("mood", source="/nowhere", run_id=runs["first"])
    others = [clip("x", "train"), clip("y", "test"), clip("a", "valid", media_digest="7" * 64)]
    start = {"audio": first, **FOREIGN}
    second, _ = begun("second", made_of("/data/two", uri, others, start=start))
    copied = {"model": f"{folder}/copy.safetensors#{digest}"}
    begun("third", made_of("/data/two", uri, others, start=copied))
    begun("fourth", made_of("/data/two", uri, others, start={"video": second}))
    begun("alone", made_of("/data/two", uri, others[:2]))
    client.create_model_version("mood", source="/nowhere", run_id=runs["fourth"])
    return folder, uri, runs


def named(reach, runs):
    names = {run_id: name for name, run_id in runs.items()}
    return {names[run.run_id]: run.roles for run in reach.runs}


def test_a_clip_leads_to_runs_and_models_also_through_weights_that_they_began_with(world):
    _, uri, runs = world
    reach = reached_by_clips(uri, sought(["id of c"]))
    trained = {"c": "train"}
    assert named(reach, runs) == dict.fromkeys(("first", "second", "third", "fourth"), trained)
    assert [(each.version, each.through) for each in reach.models] == [
        (1, []),
        (2, [runs["first"]]),
    ]
    assert reach.sentences == [
        "mood version 1: 1 in train",
        f"mood version 2: 1 in train, through run {runs['first']}, which it starts from",
        *(
            f"run {runs[name]} ({name}) of experiment toys, not registered: 1 in train, through "
            f"run {runs['first']}, which it starts from"
            for name in ("second", "third")
        ),
    ]
    assert json.loads(json.dumps(reach.to_json()))["runs"][0]["versions"] == ["mood/1"]


def test_what_a_run_before_was_only_tested_on_went_no_further(world):
    _, uri, runs = world
    assert named(reached_by_clips(uri, sought(["b"])), runs) == {"first": {"b": "test"}}
    assert named(reached_by_clips(uri, sought(["f"])), runs) == {"first": {"f": "test"}}
    assert named(reached_by_clips(uri, sought(["d"])), runs)["fourth"] == {"d": "valid"}
    (said,) = reached_by_clips(uri, sought(["e"])).sentences
    assert said == "no run and no registered model was made of it"


def test_a_dataset_that_was_moved_or_ingested_anew_leads_to_the_same_runs(world, tmp_path):
    _, uri, runs = world
    everywhere = {"first", "second", "third", "fourth"}
    moved = [
        replace(CLIPS[0], key="renamed", id="other", media="/new/place.mp4"),
        # Cut otherwise, and a part of the file that nobody took.
        replace(CLIPS[2], key="cut", id="cut", start=1.5, end=9.0),
        clip("a", "train", media_digest="5" * 64),
    ]
    write_clips(tmp_path, moved)
    assert set(named(reached_by_clips(uri, sought(["other"], tmp_path)), runs)) == everywhere
    assert set(named(reached_by_clips(uri, sought(["cut"], tmp_path)), runs)) == everywhere
    found = trace(uri, "mood/2", "other", str(tmp_path))
    assert (found.clip["id"], found.through) == ("id of a", runs["first"])
    with pytest.raises(InputError, match="took no clip 'a'"):
        trace(uri, "mood/1", "a", str(tmp_path))
    with pytest.raises(InputError, match="there is no clip 'othr'; did you mean 'other'"):
        sought(["othr"], tmp_path)
    # The same name in another dataset, of other bytes, is another clip.
    assert reached_by_clips(uri, sought(["a"], tmp_path)).runs == []
    two = named(reached_by_clips(uri, sought(["a"], "/data/two")), runs)
    assert two == {name: {"a": "valid"} for name in ("second", "third", "fourth")}


def test_other_parts_of_a_file_are_other_clips(tmp_path, world):
    _, uri, _ = world
    run = mlflow_store.start_run(uri, "cuts", "cuts", {})
    cuts = [
        clip("m", "train", media_digest="3" * 64, start=0.0, end=2.0),
        clip("n", "train", media_digest="3" * 64, start=2.0, end=4.0),
    ]
    write_lineage(tmp_path, made_of("/data/cuts", uri, cuts))
    keep_lineage(run, tmp_path)
    (found,) = reached_by_clips(uri, sought(["m"])).runs
    assert found.roles == {"m": "train"}
    write_clips(tmp_path, [replace(cuts[0], key="whole", id="whole", start=1.0, end=None)])
    (found,) = reached_by_clips(uri, sought(["whole"], tmp_path)).runs
    assert found.roles == {"m": "train", "n": "train"}


def test_without_media_a_clip_is_known_by_its_name_and_its_numbers(world, tmp_path):
    _, uri, _ = world
    spoken = {"media": "", "media_digest": "", "source": "", "words": CLIPS[0].words}
    run = mlflow_store.start_run(uri, "texts", "texts", {})
    write_lineage(tmp_path, made_of("/data/texts", uri, [clip("t", "train", **spoken)]))
    keep_lineage(run, tmp_path)
    for other, found in (({}, 1), ({"words": ()}, 0)):
        write_clips(tmp_path, [clip("t", "train", **{**spoken, **other})])
        assert len(reached_by_clips(uri, sought(["t"], tmp_path)).runs) == found
    write_clips(tmp_path, [clip("u", "train", **spoken)])
    assert reached_by_clips(uri, sought(["u"], tmp_path)).runs == []


@pytest.mark.parametrize(
    "shard", ["00007-aa.tar", f"columns/{SPEC.fingerprint}/00007-aa.tar", "aa" * 32]
)
def test_a_shard_leads_to_what_it_has_reached(world, shard):
    _, uri, runs = world
    reach = reached_by_shard(uri, shard)
    assert {"first", "second", "alone"} <= {run.name for run in reach.runs}
    first = next(run for run in reach.runs if run.run_id == runs["first"])
    assert first.roles == {"a": "train", "b": "test", "d": "valid"}  # c has no sound
    assert reached_by_shard(uri, "7-aa.tar").runs == []


def test_a_model_leads_to_what_it_started_from(world):
    _, uri, runs = world
    said = "\n".join(trace(uri, "mood/2").sentences)
    first, second = runs["first"], runs["second"]
    assert "starts with video from weights.safetensors (sha256 " in said
    assert f"of run {second})" in said
    for run_id, dataset in ((first, "one"), (second, "two")):
        assert f"so it has seen what run {run_id} was made of, of dataset {dataset}" in said
    assert "clips 2 train, 1 valid" in said
    told = json.loads(json.dumps(trace(uri, "mood/2").to_json()))["lineage"]
    assert told["starts"][0]["run_id"] == second
    assert told["before"][first]["clips"] == {"train": 2, "valid": 1}
    assert told["before"][second]["starts"][1]["sha256"] == "9" * 64
    found = trace(uri, "mood/2", "id of c")
    assert (found.through, found.clip["media"]) == (first, "/media/c.mp4")
    assert found.files[1]["tar"] == f"columns/{SPEC.fingerprint}/00007-bb.tar"
    assert trace(uri, "mood/1").lineage.beginnings == []


def test_weights_of_which_nobody_knows_the_clips_are_named(world):
    folder, _, runs = world
    second, fourth = (standing_lineage(folder / name) for name in ("second", "fourth"))
    assert [start.part for start in second.unknown] == ["head"]
    assert second.beginnings[1] == (
        f"starts with head from kinetics.pth (sha256 {'9' * 12}), and nobody knows what "
        "these were trained on"
    )
    # Also where a run before began with them.
    assert [start.file for start in fourth.unknown] == ["/elsewhere/kinetics.pth"]
    assert standing_lineage(folder / "third").unknown == []
    assert set(fourth.before) == {runs["first"], runs["second"]}


def test_where_no_store_is_nobody_knows_what_was_reached(tmp_path):
    found, why = reached_if_known(f"sqlite:///{tmp_path}/mlflow.db", Sought(names=["a"]))
    assert (*found.runs, *found.models) == ()
    assert "no tracking store" in why
