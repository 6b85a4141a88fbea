"""Recipes by name, and what is wrong with them in one line."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.batch import FusionBatch, Stream
from training.losses import clip_losses
from training.models import KINDS, build
from training.recipe import ModelSettings, Pooling, Recipe, Schedule, Task
from training.recipe_checks import ONE_TIME_BASE, check
from training.recipes import NAMES, named

SCORE = Task(kind="regression", label="score")
MOOD = Task(kind="classes", label="mood", classes=("sad", "glad"))
TAGS = Task(kind="labels", label="tags", classes=("happy", "loud", "sad"))


# Streams of networks that read certain ones, with their widths.
READS = {"pixels": 48, "MFCC": 13, "joints": 200}


def streams_for(name):
    if name in KINDS and KINDS[name].reads:
        return {what: READS[what] for what in KINDS[name].reads}
    return {"text": 5} if name == "unimodal" else {"text": 5, "audio": 5, "visual": 5}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_gives_a_recipe_that_survives_json(name):
    streams = list(streams_for(name))
    recipe = named(name, SCORE, streams, {"hidden": 32}, epochs=3, zero=0)
    assert (recipe.name, recipe.epochs, recipe.model.settings["hidden"]) == (name, 3, 32)
    assert Recipe.from_json(recipe.to_json()).digest == recipe.digest


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_names_a_model_that_can_be_built(name):
    streams = streams_for(name)
    model = named(name, MOOD, list(streams)).model
    with torch.device("meta"):
        build(model, streams, MOOD.outputs)


@pytest.mark.parametrize("name", ["mmlatch_mosei", "late_fusion_mosei"])
def test_the_settings_of_mmlatchs_authors_are_those_of_their_paper(name):
    recipe = named(name, SCORE, ["text", "audio", "visual"])
    assert (recipe.loss, recipe.learning_rate, recipe.weight_decay) == ("l1", 5e-4, 0.0)
    assert (recipe.global_batch, recipe.epochs, recipe.patience) == (32, 100, 10)
    assert recipe.clip_norm is None
    assert recipe.model.settings["hidden"] == 100
    assert named(name, MOOD, ["text"]).loss == "cross_entropy"


def test_the_settings_of_msafs_authors_are_those_of_their_paper():
    recipe = named("msaf_mosei", SCORE, ["visual", "audio", "text"])
    assert (recipe.loss, recipe.learning_rate, recipe.weight_decay) == ("mse", 1e-3, 0.0)
    assert (recipe.global_batch, recipe.epochs, recipe.clip_norm) == (16, 10, None)
    assert recipe.pooling == Pooling(kind="steps", steps=50)
    with torch.device("meta"):
        model = build(recipe.model, {"visual": 35, "audio": 74, "text": 768}, 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == 689_337


@pytest.mark.parametrize(
    ("name", "rate", "batch", "epochs", "clip"),
    [
        ("mult_mosei", 1e-3, 16, 20, 1.0),
        ("mult_mosi", 1e-3, 128, 100, 0.8),
        ("mult_iemocap", 2e-3, 32, 30, 0.8),
    ],
)
def test_the_settings_of_mults_authors_are_those_of_their_paper(name, rate, batch, epochs, clip):
    recipe = named(name, SCORE, ["text", "audio", "visual"])
    assert (recipe.learning_rate, recipe.global_batch, recipe.weight_decay) == (rate, batch, 0.0)
    assert (recipe.epochs, recipe.patience, recipe.clip_norm) == (epochs, epochs, clip)
    assert (recipe.loss, named(name, MOOD, ["text"]).loss) == ("l1", "cross_entropy")
    settings = recipe.model.settings
    assert (settings["width"], settings["layers"], settings["output_dropout"]) == (40, 4, 0.1)
    shares = [settings[f"{part}_dropout"] for part in ("attention", "relu", "residual")]
    assert shares == [{"mult_mosei": 0.1, "mult_mosi": 0.2, "mult_iemocap": 0.25}[name]] * 3


def test_labels_are_the_same_loss_as_iemocaps_questions_of_two_outputs_each():
    emotions = Task(kind="labels", label="emotions", classes=("happy", "sad", "angry", "neutral"))
    recipe = named("mult_iemocap", emotions, ["text", "audio", "visual"])
    torch.manual_seed(0)
    both = torch.randn(6, 4, 2, requires_grad=True)
    target = torch.randint(0, 2, (6, 4)).float()
    theirs = torch.nn.functional.cross_entropy(both.view(-1, 2), target.long().view(-1))
    apart = both[..., 1] - both[..., 0]
    ours = clip_losses(apart, target, recipe).mean()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(x, both)[0] for x in (ours, theirs)))
    assert torch.equal(apart > 0, both.argmax(2) == 1)


def test_learning_rates_fall_as_in_the_authors_code():
    found = {}
    for name in NAMES:
        recipe = named(name, MOOD, list(streams_for(name)))
        assert Recipe.from_json(recipe.to_json()) == recipe
        found[name] = recipe.schedule
    assert found["mmlatch"] == found["mult"] == Schedule(floor=1 / 20)
    assert found["mmlatch_mosei"] == Schedule(cooldown=2, floor=1 / 20)
    for name in ("mult_mosei", "mult_mosi", "mult_iemocap"):
        assert found[name] == Schedule(factor=0.1, patience=20)
    for name in ("msaf_ntu", "i3d", "hcn"):
        assert found[name] == Schedule(kind="step", at=(5, 20), factor=0.1)
    for name in ("msaf_mosei", "msaf_ravdess", "resnext3d", "sound_cnn"):
        assert found[name].kind == "constant"


def test_streams_keep_their_own_steps_only_where_the_model_wants_no_common_ones():
    own = {"kind": "own", "most": 100}
    assert named("mult", SCORE, ["text", "audio"], pooling=own).pooling.most == 100
    assert named("unimodal", SCORE, ["text"], pooling=own).pooling.kind == "own"
    with pytest.raises(ValueError, match="'late_fusion' wants all streams on one time base"):
        named("late_fusion", SCORE, ["text", "audio"], pooling=own)
    with pytest.raises(ValueError, match="feedback 'static' wants all streams on one time base"):
        named("mult", SCORE, ["text", "audio"], {"feedback": "static"}, pooling=own)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind != "unimodal" and not KINDS[kind].reads]
)
def test_models_refuse_streams_of_several_lengths_if_and_only_if_the_recipe_does(kind):
    streams = {
        name: Stream(torch.ones(1, steps, 2), torch.ones(1, steps).bool())
        for name, steps in (("text", 3), ("audio", 9))
    }
    batch = FusionBatch(streams=streams, target=None, weight=torch.ones(1), keys=("a",))
    model = build(ModelSettings(kind=kind, streams=tuple(streams)), {"text": 2, "audio": 2}, 2)
    if kind in ONE_TIME_BASE:
        with pytest.raises(ValueError, match="on one time base"):
            model(batch)
    else:
        assert model.eval()(batch).isfinite().all()


def test_the_pooling_of_an_experiment_file_is_a_mapping():
    recipe = named("mmlatch", SCORE, ["text"], pooling={"kind": "steps", "how": "max"})
    assert recipe.pooling == Pooling(kind="steps", steps=50, how="max")
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_the_loss_follows_the_task():
    assert named("mmlatch", SCORE, ["text"]).loss == "l1"
    assert named("mmlatch", MOOD, ["text"]).loss == "cross_entropy"
    assert named("mmlatch", TAGS, ["text"]).loss == "bce"
    assert (SCORE.outputs, MOOD.outputs, TAGS.outputs) == (1, 2, 3)
    recipe = named("mmlatch", TAGS, ["text"])
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 3}, "no setting 'epoch'; the nearest is 'epochs'"),
        ({"epochs": 0}, "epochs is 0; wanted a whole number of at least 1"),
        ({"epochs": True}, "epochs is True"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; wanted a number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"zero": 4}, "zero is 4; it can be: 0, 1, 2, 3"),
        ({"loss": "cross_entropy"}, "loss is 'cross_entropy'; it can be: l1, mse"),
        ({"schedule": "cosin"}, r"schedule.kind is 'cosin' \(did you mean 'cosine'\?\); it can be"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"modality_dropout": -0.1}, "modality_dropout is -0.1"),
        ({"modality_dropout": 1}, "modality_dropout is 1; it is a probability, less than 1"),
        ({"pooling": "cells"}, "pooling is 'cells'; wanted some of kind, cell_s, steps, how, most"),
        ({"pooling": {"hwo": "max"}}, "pooling has no setting 'hwo'; the nearest is 'how'"),
        ({"pooling": {"how": "sum"}}, "pooling.how is 'sum'.* mean, overlap, max, first, last"),
        ({"pooling": {"kind": "rate"}}, "pooling.kind is 'rate'.* words, cells, steps, own"),
        (
            {"raw": ["video"]},
            r"raw is \('video',\); wanted a list of streams of the model, of text",
        ),
        ({"raw": "text"}, "raw is 'text'"),
        ({"start": "face.safetensors"}, "start is 'face.safetensors'; wanted for each part"),
        ({"start": {"video": 3}}, "start is {'video': 3}"),
        ({"pooling": {"cell_s": 0}}, "pooling.cell_s is 0; wanted a number of at least 0.001"),
        ({"pooling": {"cell_s": float("inf")}}, "pooling.cell_s is inf"),
        ({"pooling": {"cell_s": "x"}}, "pooling.cell_s is 'x'"),
        ({"pooling": {"steps": 0}}, "pooling.steps is 0; wanted a whole number of at least 1"),
        ({"pooling": {"most": 0}}, "pooling.most is 0; wanted a whole number of at least 1"),
        ({"pooling": {"steps": 2.5}}, "pooling.steps is 2.5"),
    ],
)
def test_a_setting_that_cannot_be_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        named("late_fusion", SCORE, ["text"], **overrides)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="no recipe 'mmlach'; the nearest is 'mmlatch'"):
        named("mmlach", SCORE, ["text"])


@pytest.mark.parametrize("name", ["msaf_ravdess", "msaf_ntu"])
def test_networks_of_pictures_are_trained_as_the_authors_of_msaf_do(name):
    recipe = named(name, MOOD, list(streams_for(name)))
    chosen = (recipe.learning_rate, recipe.weight_decay, recipe.global_batch, recipe.epochs)
    assert chosen == ((1e-3, 0.0, 4, 70) if name == "msaf_ravdess" else (1e-4, 1e-4, 4, 20))
    assert (recipe.loss, recipe.clip_norm, recipe.patience) == (
        "cross_entropy",
        None,
        recipe.epochs,
    )
    assert recipe.raw == (("pixels",) if name == "msaf_ravdess" else ("pixels", "joints"))
    assert recipe.pooling.kind == "own"
    assert not recipe.take_absent


def test_what_is_raw_may_be_a_list_as_a_file_has_it():
    recipe = named("late_fusion", SCORE, ["text", "pose"], raw=["pose"])
    assert recipe.raw == ("pose",)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_where_weights_lie_is_no_part_of_a_recipes_identity():
    here, there, other = (
        named("hcn", MOOD, ["joints"], start={"fc7": text})
        for text in (f"a#{'0' * 64}", f"b/c#{'0' * 64}", f"a#{'1' * 64}")
    )
    assert here.digest == there.digest != other.digest


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (replace(MOOD, classes=("sad",)), "task of classes wants 2 different ones"),
        (replace(TAGS, classes=()), "task of labels wants 1 different ones"),
        (replace(TAGS, classes=("sad", "sad")), "names one of them twice"),
    ],
)
def test_classes_and_labels_that_cannot_be_told_apart_are_refused(task, message):
    with pytest.raises(ValueError, match=message):
        check(named("unimodal", task, ["text"]))


@pytest.mark.parametrize("name", ["decision_average", "decision_product"])
def test_decisions_are_joined_label_by_label_where_there_may_be_several(name):
    assert named(name, TAGS, ["text", "audio"]).model.settings["labels"] is True
    assert "labels" not in named(name, MOOD, ["text", "audio"]).model.settings


def test_one_label_is_enough_for_several_labels():
    check(named("unimodal", replace(TAGS, classes=("sad",)), ["text"]))


def test_the_page_of_models_names_every_recipe():
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text()
    named_there = set(re.findall(r"`(\w+)`|recipe: (\w+)", page))
    assert set(NAMES) <= {name for pair in named_there for name in pair}
