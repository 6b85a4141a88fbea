"""Encoders that are trained with the fusion model: the laws of models, freezing, rates, steps."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from featurizers.align import pool
from featurizers.spec import Feature
from training import checkpoint
from training.batch import Sample, Stream, collate
from training.engine import Engine
from training.missing import without
from training.models import build
from training.models.end_to_end import pooled
from training.optimizer import groups
from training.recipe import EncoderSettings, ModelSettings, Recipe, Task

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
WAVES = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
WIDTHS = {"text": 1, "audio": 320, "video": 12 * 12 * 3}
TASK = Task(kind="regression", label="score")


def config(kind, **more):
    import transformers as hf

    made = hf.AutoConfig.for_model(kind, **{**SMALL, **more})
    return json.dumps({**made.to_dict(), "model_type": kind})


def encoders(speech="wav2vec2", norm="group", picture="vit", text="bert", **common):
    stable = {"feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"}
    still = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    still |= {"feat_proj_dropout": 0.0}
    no = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    words = {"vocab_size": 40, "max_position_embeddings": 14, "pad_token_id": 1}
    if text == "distilbert":
        words |= {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
        no = {"dropout": 0.0, "attention_dropout": 0.0}
    return {
        "text": EncoderSettings(config=config(text, **words, **no), width=6, **common),
        "audio": EncoderSettings(config=config(speech, **WAVES, **stable, **still), **common),
        "video": EncoderSettings(
            config=config(picture, image_size=16, patch_size=8), most=3, **common
        ),
    }


def settings(kind="late_fusion", chosen=None, **more):
    small = {"width": 8, "heads": 2, "layers": 1} if kind == "mult" else {"hidden": 8}
    if kind != "mult":
        small |= {"encoder_dropout": 0.0, "fusion_dropout": 0.0}
    return ModelSettings(
        kind=kind,
        streams=tuple(WIDTHS),
        settings={**small, **more},
        encoders=chosen or encoders(),
    )


def model(about):
    torch.manual_seed(5)
    made = build(about, WIDTHS, 1)
    with torch.no_grad():  # as drawn, states of all clips are nearly the same
        for weight in made.encoders.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)
    return made


def spans(count, seconds):
    edges = np.linspace(0.0, seconds, count + 1)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def sample(number, base=True):
    random = np.random.default_rng(number)
    steps = {"text": 3 + 2 * number, "audio": 12 + 5 * number, "video": 2 + number}
    values = {
        "text": random.integers(3, 40, (steps["text"], 1)),
        "audio": random.normal(0, 0.1, (steps["audio"], 320)),
        "video": random.integers(0, 256, (steps["video"], WIDTHS["video"])),
    }
    seconds = steps["audio"] * 0.02
    return Sample(
        key=f"clip{number}",
        values={name: each.astype(np.float32) for name, each in values.items()},
        valid=dict.fromkeys(values),
        target=float(number % 3),
        times={name: spans(count, seconds) for name, count in steps.items()},
        base=spans(3 + number, seconds) if base else None,
    )


def lacking(one, *names):
    values = {name: None if name in names else each for name, each in one.values.items()}
    times = {name: each for name, each in one.times.items() if name not in names}
    return replace(one, values=values, times=times)


SAMPLES = [sample(0), sample(1), lacking(sample(2), "audio"), lacking(sample(3), "text", "video")]

KINDS = [
    encoders(),
    encoders("hubert", "group", "clip_vision_model", "roberta"),
    encoders("wavlm", "layer", "siglip_vision_model", "deberta-v2"),
    encoders("wav2vec2", "layer", "dinov2", "distilbert"),
]


@pytest.mark.parametrize("chosen", KINDS, ids=["base", "hubert", "wavlm", "layer"])
def test_a_clip_says_the_same_alone_and_in_any_batch(chosen):
    made = model(settings(chosen=chosen)).eval()
    with torch.no_grad():
        alone = torch.cat([made(collate([each], WIDTHS)) for each in SAMPLES])
        together = made(collate(SAMPLES, WIDTHS))
        turned = made(collate(SAMPLES[::-1], WIDTHS)).flip(0)
    assert alone.std() > 1e-3
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=0)
    torch.testing.assert_close(turned, alone, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", ["mmlatch", "mult", "tfn"])
def test_other_models_fuse_the_states_as_well(kind):
    own = kind == "mult"
    some = [replace(each, base=None) if own else each for each in SAMPLES]
    small = {"hidden": 8} if kind == "tfn" else {}
    about = settings(kind) if kind != "tfn" else replace(settings(), kind=kind, settings=small)
    made = model(about).eval()
    with torch.no_grad():
        alone = torch.cat([made(collate([each], WIDTHS)) for each in some])
        together = made(collate(some, WIDTHS))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_masked_stream_is_a_missing_stream():
    made = model(settings()).eval()
    with torch.no_grad():
        masked = made(without(collate(SAMPLES[:2], WIDTHS), ["audio"]))
        missing = made(collate([lacking(each, "audio") for each in SAMPLES[:2]], WIDTHS))
    torch.testing.assert_close(masked, missing, atol=2e-6, rtol=0)


def test_states_are_pooled_as_features_are():
    random = np.random.default_rng(1)
    times = np.sort(random.uniform(0, 4, (9, 2)).round(1), axis=1)
    times[3, 1] = times[3, 0]  # a step without length
    base = np.array([[0.0, 0.5], [0.5, 0.5], [1.0, 1.2], [1.2, 3.9], [5.0, 6.0]])
    base[1] = times[3]
    values = random.normal(size=(9, 4)).astype(np.float32)
    wanted, there = pool(Feature(values, times), base, "overlap")
    states = Stream(*(torch.from_numpy(each)[None] for each in (values, np.ones(9, bool))))
    states = replace(states, times=torch.from_numpy(times)[None].float())
    spans_ = Stream(torch.from_numpy(base)[None].float(), torch.ones(1, len(base), dtype=bool))
    found = pooled(states, spans_)
    assert found.mask[0].tolist() == there.tolist()
    torch.testing.assert_close(found.values[0], torch.from_numpy(wanted), atol=1e-5, rtol=0)


RECIPE = Recipe(
    name="late_fusion",
    model=settings(),
    task=TASK,
    global_batch=4,
    micro_batch=2,
    learning_rate=1e-2,
    raw=tuple(WIDTHS),
)


def stepped(recipe, count=2):
    """Weights before and after some steps."""
    engine = Engine(model(recipe.model), recipe)
    engine.set_learning_rate(recipe.learning_rate)
    before = engine.weights()
    for _ in range(count):
        engine.step([collate(SAMPLES[:2], WIDTHS), collate(SAMPLES[2:], WIDTHS)], 4.0)
    after = engine.weights()
    engine.close()
    return before, after


def moved(before, after, prefix):
    return {
        name: float((after[name] - before[name]).abs().max())
        for name in before
        if name.startswith(prefix)
    }


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_what_is_frozen_stays_and_the_rest_learns(zero):
    chosen = encoders(learning_rate=1e-3)
    chosen["text"] = replace(chosen["text"], freeze="all")
    chosen["audio"] = replace(chosen["audio"], freeze="features")
    chosen["video"] = replace(chosen["video"], freeze=1)
    before, after = stepped(replace(RECIPE, model=settings(chosen=chosen), zero=zero))
    assert not any(moved(before, after, "encoders.text").values())
    assert not any(moved(before, after, "encoders.audio.model.feature_").values())
    assert all(moved(before, after, "encoders.audio.model.encoder.layers").values())
    video = moved(before, after, "encoders.video")
    assert {name for name, by in video.items() if not by} == {
        name for name in video if "embeddings" in name or "layers.0." in name
    }
    assert all(moved(before, after, "projections").values())


def test_each_layer_has_its_rate_and_norms_do_not_decay():
    chosen = encoders(learning_rate=1e-4, layer_decay=0.5)
    recipe = replace(RECIPE, model=settings(chosen=chosen), weight_decay=0.1)
    made = model(recipe.model)
    found = {}
    for group in groups(made, recipe):
        for parameter in group["params"]:
            found[id(parameter)] = (round(group["lr"], 9), group["weight_decay"])
    told = {name: found[id(each)] for name, each in made.named_parameters() if id(each) in found}
    text = "encoders.text.model."
    assert told[f"{text}encoder.layer.1.attention.self.query.weight"] == (1e-4, 0.1)
    assert told[f"{text}encoder.layer.1.attention.self.query.bias"] == (1e-4, 0.0)
    assert told[f"{text}encoder.layer.0.output.LayerNorm.weight"] == (5e-5, 0.0)
    assert told[f"{text}embeddings.word_embeddings.weight"] == (2.5e-5, 0.1)
    assert told["encoders.video.model.layernorm.weight"] == (1e-4, 0.0)
    assert {told[name] for name in told if not name.startswith("encoders.")} == {(1e-2, 0.1)}


def test_without_encoders_all_is_one_group_as_ever():
    plain = replace(RECIPE, model=replace(settings(), encoders={}))
    found = groups(build(plain.model, {"text": 1, "audio": 4, "video": 4}, 1), plain)
    assert [(each["lr"], each["weight_decay"]) for each in found] == [(1e-2, 0.01)]


def test_the_loop_s_rate_moves_all_groups_alike():
    recipe = replace(RECIPE, model=settings(chosen=encoders(learning_rate=1e-4)))
    engine = Engine(model(recipe.model), recipe)
    engine.set_learning_rate(5e-3)
    rates = {round(group["lr"], 9) for group in engine._engine.optimizer.param_groups}
    engine.close()
    assert rates == {5e-3, 5e-5}


def test_activations_computed_anew_give_the_same_gradients():
    gradients = []
    for again in (False, True):
        chosen = {
            name: replace(each, checkpointing=again)
            # With dropout, so that what is drawn must be drawn again.
            for name, each in KINDS[0].items()
        }
        made = model(settings(chosen=chosen)).train()
        assert made.encoders["text"].model.is_gradient_checkpointing == again
        torch.manual_seed(9)
        made(collate(SAMPLES, WIDTHS)).square().sum().backward()
        gradients.append({n: p.grad for n, p in made.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_all_stages_take_the_same_steps(zero):
    chosen = encoders(learning_rate=1e-3, checkpointing=True)
    recipe = replace(RECIPE, model=settings(chosen=chosen), clip_norm=1.0)
    _, plain = stepped(replace(recipe, zero=1))
    _, split = stepped(replace(recipe, zero=zero))
    # A key's bias changes nothing, so its gradient is rounding, which Adam makes steps of.
    apart = {name: by for name, by in moved(plain, split, "").items() if "bias" not in name}
    assert max(apart.values()) < 2e-5, apart


@pytest.mark.soak
def test_two_ranks_take_the_steps_of_one_at_every_stage_and_one_goes_on_from_theirs(tmp_path):
    """Two clips a rank, one of which lacks a stream; frozen layers, activations computed anew."""
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in (0, 1)
    ]
    assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
    for recipe in ON_TWO:
        _, alone = stepped(recipe, count=3)
        both = torch.load(tmp_path / f"{recipe.zero}.pt", weights_only=True)
        engine = Engine(model(recipe.model), recipe)
        [folder] = checkpoint.standing(tmp_path / f"run-{recipe.zero}")
        assert engine.load(folder)[0] == {"position": 2}
        engine.set_learning_rate(recipe.learning_rate)
        engine.step(HALVES, 4.0)
        resumed = engine.weights()
        engine.close()
        for found in (alone, resumed):
            apart = {name: by for name, by in moved(both, found, "").items() if "bias" not in name}
            # Rates are 1e-3 and 1e-2: a clip that counts wrongly moves weights by more than that.
            assert max(apart.values()) < 1e-4, (recipe.zero, apart)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_a_checkpoint_of_several_groups_goes_on_as_if_nothing_had_been(tmp_path, zero, precision):
    chosen = encoders(learning_rate=1e-3, layer_decay=0.5)
    chosen["text"] = replace(chosen["text"], freeze=1)
    recipe = replace(RECIPE, model=settings(chosen=chosen), zero=zero, precision=precision)
    halves = [collate(SAMPLES[:2], WIDTHS), collate(SAMPLES[2:], WIDTHS)]

    def engine():
        made = Engine(model(recipe.model), recipe)
        made.set_learning_rate(1e-2)
        return made

    first = engine()
    for step in range(4):
        if step == 2:
            first.save(tmp_path, 2, {}, {})
        first.step(halves, 4.0)
    wanted = first.weights()
    first.close()
    second = engine()
    second.load(checkpoint.standing(tmp_path)[0])
    for _ in range(2):
        second.step(halves, 4.0)
    found = second.weights()
    second.close()
    assert max(moved(wanted, found, "").values()) == 0


def test_the_recipe_is_named_by_weights_and_not_by_where_they_lie():
    def digest(weights):
        chosen = encoders()
        chosen["text"] = replace(chosen["text"], weights=weights)
        return replace(RECIPE, model=settings(chosen=chosen)).digest

    assert digest("/here#" + "a" * 64) == digest("/there#" + "a" * 64)
    assert digest("/here#" + "a" * 64) != digest("/here#" + "b" * 64)
    assert Recipe.from_json(json.loads(json.dumps(RECIPE.to_json()))).digest == RECIPE.digest


HALVES = [collate(SAMPLES[::2], WIDTHS), collate(SAMPLES[1::2], WIDTHS)]
ON_TWO = [
    replace(
        RECIPE,
        model=settings(chosen=encoders(learning_rate=1e-3, checkpointing=True, freeze=1)),
        clip_norm=1.0,
        zero=zero,
    )
    for zero in (0, 1, 2, 3)
]


def _as_rank(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for recipe in ON_TWO:
        engine = Engine(model(recipe.model), recipe)
        engine.set_learning_rate(recipe.learning_rate)
        for step in range(3):
            if step == 2:
                engine.save(folder / f"run-{recipe.zero}", 2, {"position": 2}, {})
            engine.step([HALVES[rank]], 4.0)
        whole = engine.weights()
        engine.close()
        if rank == 0:
            torch.save(whole, folder / f"{recipe.zero}.pt")
    # A rank that leaves first breaks the connections under the other, which then aborts.
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    _as_rank(int(sys.argv[1]), Path(sys.argv[2]))
