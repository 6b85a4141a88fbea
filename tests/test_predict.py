"""A predictor scores raw clips as training would have, and survives what people hand to it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from featurizers import catalog
from featurizers.clip import Clip
from featurizers.dataset import write_clips
from featurizers.decoder import Decoder
from featurizers.extract import extract
from featurizers.intake import RawClip, take_in
from featurizers.manifest import commit, open_column
from featurizers.media import encode
from featurizers.shards import job_id, write_shard
from featurizers.store import LocalStore
from training.data import load
from training.models import build
from training.predict import Predictor, decide, outputs
from training.recipe import Task
from training.recipes import named

FEATURIZERS = {
    "text": catalog.build("hashed-words", dims=16),
    "audio": catalog.build("logmel"),
    "video": catalog.build("face-motion"),
}
SPECS = {name: featurizer.spec for name, featurizer in FEATURIZERS.items()}
WIDTHS = {name: spec.width for name, spec in SPECS.items()}
SCORE = Task(kind="regression", label="score")
MOOD = Task(kind="classes", label="mood", classes=("glad", "sad"))
TAGS = Task(kind="labels", label="tags", classes=("calm", "glad", "loud"))
VTT = "WEBVTT\n\n00:00.000 --> 00:00.600\nquite good\n\n00:00.600 --> 00:01.200\nreally\n"

pytestmark = pytest.mark.media


def labels(i):
    return {"score": float(i), "mood": "glad", "tags": ("glad", "loud") if i % 2 else ()}


def record(path, seed, *, sound=True, pictures=True):
    """A second and a half of noise and moving bars."""
    random = np.random.default_rng(seed)
    tone = np.sin(np.arange(24_000) * (0.05 + 0.01 * seed)) * 6000 + random.normal(0, 300, 24_000)
    frames = [
        np.roll(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)), (i * (seed + 1)) % 64, axis=1)
        for i in range(15)
    ]
    encode(
        path,
        frames=[np.repeat(f[:, :, None], 3, axis=2) for f in frames] if pictures else None,
        fps=10,
        samples=tone.astype(np.int16) if sound else None,
        rate_hz=16_000,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six real clips, their committed columns, and a predictor with fresh weights."""
    root = tmp_path_factory.mktemp("world")
    (root / "words.vtt").write_text(VTT)
    clips, outcomes = [], []
    with Decoder() as decoder:
        for i, split in enumerate(["train"] * 4 + ["valid", "test"]):
            path = root / f"{i}.mp4"
            record(path, i, sound=i != 3)
            raw = RawClip(
                key=f"k{i}",
                id=f"clip {i}",
                media=str(path),
                path=path,
                transcript_file=root / "words.vtt",
                columns={"split": split, "labels": labels(i)},
            )
            clips.append(take_in(raw, decoder))
            outcomes.append(extract(clips[-1], path, list(FEATURIZERS.values()), decoder))
    write_clips(root, clips)
    columns = {}
    for place, (name, spec) in enumerate(SPECS.items()):
        job = job_id(spec, clips)
        found = [each[place] for each in outcomes]
        commit(
            root,
            spec,
            "plan",
            [write_shard(LocalStore(root), 0, job, spec, clips=clips, outcomes=found)],
        )
        columns[name] = spec.fingerprint
    return root, columns, save(root, columns, SCORE), save(root, columns, MOOD)


def save(root, columns, task):
    recipe = named("late_fusion", task, list(SPECS), {"hidden": 8})
    data = load(root, columns, recipe)
    torch.manual_seed(0)
    folder = root / f"predictor-{task.kind}"
    Predictor.save(
        folder,
        recipe=recipe,
        specs=data.specs,
        normaliser=data.normaliser,
        fallback=data.fallback,
        weights=build(recipe.model, WIDTHS, task.outputs).state_dict(),
    )
    return folder


def row(root, i, **changes):
    found = {"id": f"clip {i}", "media": str(root / f"{i}.mp4")}
    return {**found, "transcript": str(root / "words.vtt"), **changes}


def test_features_of_a_raw_clip_equal_those_in_the_shard_bit_for_bit(world):
    root, columns, folder, _ = world
    predictor = Predictor.load(folder)
    for i in (0, 3):
        computed = predictor.features(row(root, i))
        for name, fingerprint in columns.items():
            column = open_column(root, fingerprint)
            stored = column.read(f"k{i}")
            assert computed[name].state == column.rows[f"k{i}"].state
            if stored is not None:
                assert computed[name].feature.values.tobytes() == stored.values.tobytes()
                assert computed[name].feature.times.tobytes() == stored.times.tobytes()
            column.close()
    assert computed["audio"].state == "absent"


def test_predictions_equal_those_that_training_makes_from_the_shards(world):
    root, columns, folder, _ = world
    predictor = Predictor.load(folder)
    data = load(root, columns, predictor.recipe)
    samples = [
        split.sample(key) for split in (data.train, data.valid, data.test) for key in split.keys
    ]
    expected = decide(SCORE, outputs(predictor.model, samples, WIDTHS)).tolist()
    said = predictor.predict([row(root, i) for i in range(6)])
    assert [each["prediction"] for each in said] == expected
    assert [each["id"] for each in said] == [f"clip {i}" for i in range(6)]
    assert {each["state"] for each in said} == {"scored"}
    assert [each["missing"] for each in said] == ["", "", "", "audio", "", ""]
    assert json.loads((folder / "predictor.json").read_text())["predictor"] == (
        "training.predict:Predictor"
    )


def test_classes_are_named_with_a_probability_each(world):
    root, _, _, folder = world
    (said,) = Predictor.load(folder).predict([row(root, 1)])
    scores = json.loads(said["scores"])
    assert said["prediction"] == max(scores, key=scores.get)
    assert sum(scores.values()) == pytest.approx(1.0)


def test_of_several_labels_those_over_a_half_are_named_with_a_probability_for_all(world):
    root, columns, *_ = world
    predictor = Predictor.load(save(root, columns, TAGS))
    assert predictor.fallback == [0.0, 0.0, 0.0]
    for shift in (-9.0, 0.0, 9.0):
        with torch.no_grad():
            list(predictor.model.parameters())[-1].fill_(shift)
        (said,) = predictor.predict([row(root, 1)])
        scores = json.loads(said["scores"])
        assert tuple(scores) == TAGS.classes
        assert all(0 <= share <= 1 for share in scores.values())
        assert said["prediction"] == ",".join(name for name, share in scores.items() if share > 0.5)
        assert (said["state"], shift < 0) == ("scored", said["prediction"] == "")


def test_a_bad_clip_is_a_row_that_says_why_and_harms_no_other(world, tmp_path):
    root, _, folder, _ = world
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "bad.vtt").write_bytes(b"\xff\xfe\xff")
    rows = [
        row(root, 0),
        {"media": str(tmp_path / "nowhere.mp4")},
        {"media": str(tmp_path / "noise.mp4")},
        row(root, 0, start=5.0, end=2.0),
        row(root, 0, start="soon"),
        row(root, 0, transcript=str(tmp_path / "bad.vtt")),
        {},
        row(root, 0),
    ]
    said = Predictor.load(folder).predict(rows)
    assert [each["state"] for each in said] == ["scored", *["quarantined"] * 6, "scored"]
    assert [each["fault"] for each in said[1:7]] == [
        "missing",
        "unreadable",
        "bad_span",
        "bad_span",
        "bad_transcript",
        "missing",
    ]
    assert said[0]["prediction"] == said[7]["prediction"]
    assert all(each["message"] for each in said[1:7])
    assert {each["prediction"] for each in said[1:7]} == {None}
    assert said[1]["missing"] == "text,audio,video"
    assert [list(each) for each in said] == [list(said[0])] * 8


def test_words_may_be_given_as_they_are_and_empty_cells_are_left_out(world):
    root, _, folder, _ = world
    predictor = Predictor.load(folder)
    plain = row(root, 2, transcript="quite good really.txt")
    assert len(predictor.features(plain)["text"].feature.values) == 3
    (whole,) = predictor.predict([plain])
    (blank,) = predictor.predict([{**plain, "start": math.nan, "end": None, "id": None}])
    assert whole["prediction"] == blank["prediction"]
    assert blank["id"] == plain["media"]
    (silent,) = predictor.predict([row(root, 2, transcript=None)])
    assert (silent["state"], silent["missing"]) == ("scored", "text")


def test_words_may_be_given_as_a_tier_of_a_file(world, tmp_path):
    root, _, folder, _ = world
    grid = 'File type = "ooTextFile"\nObject class = "TextGrid"\n0 1 <exists> 2\n'
    grid += '"IntervalTier" "a" 0 1 1 0 1 "so"\n"IntervalTier" "b c" 0 1 2 0 0.5 "so" 0.5 1 "so"\n'
    (tmp_path / "a.TextGrid").write_text(grid)
    predictor = Predictor.load(folder)
    for tier, count in {"": 2, "#a": 1, "#b c": 2}.items():
        found = predictor.features(row(root, 2, transcript=f"{tmp_path}/a.TextGrid{tier}"))
        assert len(found["text"].feature.values) == count
    spoken = row(root, 2, transcript=f"{tmp_path}/b.TextGrid#a\0 or so")
    assert len(predictor.features(spoken)["text"].feature.values) == 3


def test_weights_that_explode_give_no_number_and_no_class(world):
    root, _, regression, classes = world
    for folder in (regression, classes):
        predictor = Predictor.load(folder)
        with torch.no_grad():
            for parameter in predictor.model.parameters():
                parameter.fill_(math.nan)
        (said,) = predictor.predict([row(root, 0)])
        assert (said["state"], said["prediction"]) == ("quarantined", None)
        assert said["fault"] == "not_finite"


def test_a_clip_with_nothing_at_its_words_is_not_scored(world, tmp_path):
    root, _, folder, _ = world
    (tmp_path / "late.vtt").write_text(VTT.replace("00:0", "09:0"))
    late = row(root, 0, transcript=str(tmp_path / "late.vtt"))
    predictor = Predictor.load(folder)
    predictor.recipe = named("late_fusion", SCORE, ["audio", "video"])
    predictor.specs = {name: predictor.specs[name] for name in ("audio", "video")}
    predictor.featurizers = {name: predictor.featurizers[name] for name in ("audio", "video")}
    (said,) = predictor.predict([late])
    assert (said["state"], said["fault"]) == ("quarantined", "empty")
    assert "words" in said["message"]


def test_another_format_is_refused(world, tmp_path):
    about = json.loads((world[2] / "predictor.json").read_text())
    (tmp_path / "predictor.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(ValueError, match="format 99, this code reads 1"):
        Predictor.load(tmp_path)


def test_loading_a_predictor_loads_none_of_the_heavy_libraries():
    code = (
        "import sys, training.predict; "
        "heavy = {'deepspeed', 'ray', 'mlflow', 'pyarrow', 'av', 'webdataset', 'pandas'}; "
        "print(*sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    found = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root)
    assert found.split() == []


def test_the_time_base_of_a_test_clip_is_its_words(world):
    root, columns, folder, _ = world
    predictor = Predictor.load(folder)
    sample = load(root, columns, predictor.recipe).test.sample("k5")
    assert {values.shape[0] for values in sample.values.values()} == {3}
    assert isinstance(load(root, columns, predictor.recipe).test.clips[0], Clip)
