"""A predictor scores raw clips as training would have, and survives what people hand to it."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from featurizers.clip import Clip
from featurizers.manifest import open_column
from pipelines.show import Show
from tests.tiny_predictor import SCORE, TAGS, VTT, WIDTHS, make, row, save
from training.data import load
from training.predict import Predictor, decide, outputs
from training.recipes import named

pytestmark = pytest.mark.media


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six real clips, their committed columns, and a predictor with fresh weights."""
    return make(tmp_path_factory.mktemp("world"))


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
    # Shown beside others, a clip may differ in the last bit; alone it never does.
    assert [each["prediction"] for each in said] == pytest.approx(expected, abs=1e-6)
    alone = [outputs(predictor.model, [sample], WIDTHS)[0, 0] for sample in samples]
    assert [each["prediction"] for each in said] == [float(each) for each in alone]
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
        row(root, 0, transcript_file=str(tmp_path / "bad.vtt")),
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
    plain = row(root, 2, transcript_file=None, transcript="quite good really.txt")
    assert len(predictor.features(plain)["text"].feature.values) == 3
    (whole,) = predictor.predict([plain])
    (blank,) = predictor.predict([{**plain, "start": math.nan, "end": None, "id": None}])
    assert whole["prediction"] == blank["prediction"]
    assert blank["id"] == plain["media"]
    (silent,) = predictor.predict([row(root, 2, transcript_file=None)])
    assert (silent["state"], silent["missing"]) == ("scored", "text")


def test_words_may_be_given_as_a_tier_of_a_file(world, tmp_path):
    root, _, folder, _ = world
    grid = 'File type = "ooTextFile"\nObject class = "TextGrid"\n0 1 <exists> 2\n'
    grid += '"IntervalTier" "a" 0 1 1 0 1 "so"\n"IntervalTier" "b c" 0 1 2 0 0.5 "so" 0.5 1 "so"\n'
    (tmp_path / "a.TextGrid").write_text(grid)
    predictor = Predictor.load(folder)
    for tier, count in {"": 2, "#a": 1, "#b c": 2}.items():
        found = predictor.features(row(root, 2, transcript_file=f"{tmp_path}/a.TextGrid{tier}"))
        assert len(found["text"].feature.values) == count
    spoken = row(root, 2, transcript_file=None, transcript=f"{tmp_path}/a.TextGrid#a or so")
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
    late = row(root, 0, transcript_file=str(tmp_path / "late.vtt"))
    predictor = Predictor.load(folder)
    predictor.recipe = named("late_fusion", SCORE, ["audio", "video"])
    predictor.specs = {name: predictor.specs[name] for name in ("audio", "video")}
    predictor.featurizers = {name: predictor.featurizers[name] for name in ("audio", "video")}
    (said,) = predictor.predict([late])
    assert (said["state"], said["fault"]) == ("quarantined", "empty")
    assert "words" in said["message"]


def test_explaining_says_what_each_stream_did_word_by_word(world):
    root, columns, _, classes = world
    predictor = Predictor.load(save(root, columns, SCORE, "mmlatch"))
    (told,) = predictor.explain([row(root, 1)])
    (said,) = predictor.predict([row(root, 1)])
    assert {name: told[name] for name in said} == said
    assert [word for word, *_ in told["words"]] == ["quite", "good", "really"]
    assert set(told["without"]) == set(told["masks"]) == {"text", "audio", "video"}
    for name, less in told["without"].items():
        assert less["change"] == less["prediction"] - said["prediction"] != 0
        assert len(told["masks"][name]) == 3
        assert all(0 < mask < 1 for mask in told["masks"][name])
    # The same as if the clip had been recorded without it.
    (mute,) = predictor.predict([row(root, 1, transcript_file=None)])
    (dumb,) = predictor.explain([row(root, 1, transcript_file=None)])
    assert (mute["missing"], set(dumb["without"])) == ("text", {"audio", "video"})
    (named,) = Predictor.load(classes).explain([row(root, 1)])
    shares = json.loads(named["scores"])
    assert named["masks"] == {}
    for less in named["without"].values():
        moved = json.loads(less["scores"])[named["prediction"]] - shares[named["prediction"]]
        assert less["change"] == pytest.approx(moved)
    (alone,) = predictor.explain([{"transcript_file": str(root / "words.vtt")}])
    assert alone["without"] == {"text": None}


def test_explaining_goes_on_where_the_model_explodes_without_a_stream(world, capsys):
    root, _, regression, classes = world
    for folder in (regression, classes):
        predictor = Predictor.load(folder)
        model = predictor.model

        class Fragile(torch.nn.Module):
            def forward(self, batch, model=model):
                there = batch.streams["text"].mask.any()
                return model(batch) if there else model(batch) * math.inf

        predictor.model = Fragile()
        (told,) = predictor.explain([row(root, 1)])
        assert told["state"] == "scored"
        assert told["without"]["text"] == {"prediction": None, "scores": "", "change": None}
        assert told["without"]["audio"]["prediction"] is not None
        Show().explained([{**told, "model": "models:/toy/1"}])
        assert "NaN or infinity" in capsys.readouterr().out


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
