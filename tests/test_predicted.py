"""The table of what was said of each clip: all metrics follow from it, and it survives its file."""

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from featurizers.clip import Clip
from training.evaluate import evaluation_set, scorecard
from training.metrics import metrics
from training.predicted import About, Predicted, predicted
from training.recipe import Task

SCORE = Task(kind="regression", label="score")
MOOD = Task(kind="classes", label="mood", classes=("sad", "calm", "glad"))
TAGS = Task(kind="labels", label="tags", classes=("early", "even"))
ABOUT = About(name="mult seed 1", recipe="mult", seed=1, fold="", family="f" * 16)


def clips(count=12):
    return [
        Clip(
            key=f"k{i:02d}",
            id=f"clip {i}",
            media="",
            media_digest=f"{i:064d}",
            speaker=f"s{i // 4}" if i > 1 else None,
            group="g" if i < 4 else None,
            labels={
                "score": i / 3 - 2,
                "mood": MOOD.classes[i % 3],
                "tags": tuple(
                    name for name, has in (("early", i < 5), ("even", i % 2 == 0)) if has
                ),
            },
        )
        for i in range(count)
    ]


def made(task, said, scores, **more):
    some = clips()
    name = evaluation_set(some, task.label)
    return predicted(name, some[::-1], task, ABOUT, said, scores=scores, **more)


KEYS = [clip.key for clip in clips()]
CASES = {
    "regression": (
        SCORE,
        {key: i / 7 - 1.1 for i, key in enumerate(KEYS)},
        {key: [] for key in KEYS[1:]},
        {"text": dict.fromkeys(KEYS, 0.25)},
    ),
    "classes": (
        MOOD,
        {key: float(i % 2) for i, key in enumerate(KEYS)},
        {key: [0.5, 0.3, 0.2] for key in KEYS[1:]},
        {"text": dict.fromkeys(KEYS, 1)},
    ),
    "labels": (
        TAGS,
        {key: [float(i % 2), 0.0] for i, key in enumerate(KEYS)},
        {key: [0.9, 0.1] for key in KEYS[1:]},
        {"text": {key: [1.0, 1.0] for key in KEYS}},
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_table_comes_back_from_its_file_as_it_was(kind):
    task, said, scores, without = CASES[kind]
    table = made(task, said, scores, without=without, lacking={"k03": ("video", "audio")})
    content = table.to_parquet()
    back = Predicted.from_parquet(content, "here")
    assert back.to_parquet() == content
    for name in ("evaluation_set", "task", "about", "keys", "ids", "lacks", "speakers", "groups"):
        assert getattr(back, name) == getattr(table, name)
    for name in ("truth", "said", "scores", "spoken"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
    np.testing.assert_array_equal(back.without["text"], table.without["text"])
    assert back.lacks[3] == ("audio", "video")
    assert (back.spoken[0], back.spoken[1], back.speakers[0], back.groups[4]) == (
        False,
        True,
        None,
        None,
    )


@pytest.mark.parametrize("kind", CASES)
def test_every_metric_of_the_scorecard_follows_from_the_table(kind):
    task, said, scores, without = CASES[kind]
    lacks = {key: ("text",) if i < 3 else () for i, key in enumerate(KEYS)}
    card = scorecard(
        clips(),
        said,
        task,
        [],
        parity=None,
        replicates=40,
        scores=scores,
        missing=lacks,
        without=without,
    )
    content = made(task, said, scores, without=without, lacking=lacks).to_parquet()
    back = Predicted.from_parquet(content, "here")
    assert back.evaluation_set == card.evaluation_set
    assert metrics(task, back.truth, back.said) == dict(card.metrics)
    assert metrics(task, back.truth, back.without["text"]) == pytest.approx(
        dict(card.as_asked[0].metrics), nan_ok=True
    )
    lacking = np.array([each == ("text",) for each in back.lacks])
    assert metrics(task, back.truth[lacking], back.said[lacking]) == pytest.approx(
        dict(card.as_found[1].metrics), nan_ok=True
    )
    in_group = np.array([each == "g" for each in back.groups])
    (group,) = (each for each in card.by_group if each.name == "g")
    assert metrics(task, back.truth[in_group], back.said[in_group]) == pytest.approx(
        dict(group.metrics), nan_ok=True
    )
    assert card.calibration.count == back.spoken.sum() == 11


def test_people_read_names_and_not_numbers_in_it():
    task, said, scores, _ = CASES["classes"]
    table = pq.read_table(io.BytesIO(made(task, said | {"k01": np.nan}, scores).to_parquet()))
    rows = table.to_pylist()
    assert rows[0]["truth"] == "sad"
    assert rows[1]["prediction"] is None
    assert (rows[0]["scores"], rows[1]["scores"]["calm"]) == (None, 0.3)
    task, said, scores, _ = CASES["labels"]
    rows = pq.read_table(io.BytesIO(made(task, said, scores).to_parquet())).to_pylist()
    assert (rows[0]["truth"], rows[1]["prediction"]) == (["early", "even"], ["early"])


def test_another_file_is_refused():
    with pytest.raises(ValueError, match="here is no table of predictions"):
        Predicted.from_parquet(b"no table", "here")
    from featurizers.dataset import table_bytes

    plain = pq.read_table(io.BytesIO(made(*CASES["classes"][:3]).to_parquet()))
    content = table_bytes(plain.replace_schema_metadata(None))
    with pytest.raises(ValueError, match="of format None, this code reads 1"):
        Predicted.from_parquet(content, "here")


def test_equal_predictions_give_equal_bytes_in_any_order():
    task, said, scores, _ = CASES["regression"]
    table = made(task, said, scores)
    back = dict(reversed(said.items()))
    assert made(task, back, dict(reversed(scores.items()))).to_parquet() == table.to_parquet()
    other = replace(table, about=replace(ABOUT, seed=2))
    assert other.to_parquet() != table.to_parquet()
