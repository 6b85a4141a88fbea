"""What a model says when streams are missing, as found and as asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.test_loop import RECIPE, WIDTHS, make_dataset
from training.data import load
from training.evaluate import lacking, predictions, without_each
from training.models import build
from training.predict import decide, outputs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    data = load(root, make_dataset(root), RECIPE)
    torch.manual_seed(0)
    return data, build(RECIPE.model, WIDTHS, 1)


def slow(model, samples, lost):
    """Each clip by itself, with streams that were never there."""
    found = {}
    for key in samples.keys:
        sample = samples.sample(key)
        values = {name: None if name in lost else each for name, each in sample.values.items()}
        if any(each is not None for each in values.values()):
            alone = outputs(model, [replace(sample, values=values)], WIDTHS)
            found[key] = float(decide(RECIPE.task, alone)[0])
    return found


def test_a_stream_that_is_taken_away_is_as_one_that_was_never_there(made):
    data, model = made
    whole = predictions(model, data.test, RECIPE.task, data.fallback)
    for lost in ("text", "audio"):
        found = predictions(model, data.test, RECIPE.task, data.fallback, lost=[lost])
        # float32 sums over other batch sizes differ in their last bits.
        alone = slow(model, data.test, [lost])
        assert found == pytest.approx({**dict.fromkeys(found, data.fallback), **alone}, abs=1e-5)
        assert found != whole
    assert without_each(model, data.test, RECIPE.task, data.fallback) == {
        lost: predictions(model, data.test, RECIPE.task, data.fallback, lost=[lost])
        for lost in ("text", "audio")
    }


def test_a_clip_that_keeps_nothing_is_told_by_what_training_had(made):
    data, model = made
    silent = [key for key, streams in lacking(data.test).items() if "audio" in streams]
    assert silent
    found = predictions(model, data.test, RECIPE.task, data.fallback, lost=["text"])
    assert {found[key] for key in silent} == {data.fallback}
    gone = predictions(model, data.test, RECIPE.task, data.fallback, lost=["text", "audio"])
    assert set(gone.values()) == {data.fallback}


def test_what_clips_lack_is_what_their_columns_lack(made):
    data, _ = made
    for split in (data.train, data.test):
        found = lacking(split)
        assert set(found) == {clip.key for clip in split.clips}
        for clip in split.clips:
            assert found[clip.key] == (("audio",) if int(clip.id) % 9 == 4 else ())


def test_of_a_single_stream_nothing_is_taken_away(tmp_path):
    alone = replace(RECIPE, model=replace(RECIPE.model, streams=("text",)))
    data = load(tmp_path, make_dataset(tmp_path), alone)
    assert without_each(build(alone.model, WIDTHS, 1), data.test, alone.task, data.fallback) == {}
    assert np.isfinite(data.fallback)
