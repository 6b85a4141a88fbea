"""Recipes by name: functions that give all settings of a run.

`RECIPES` is the table of them. Those here start from raw clips, with defaults fit for a few hundred
of them; those with a corpus in their name repeat a paper's settings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from training import paper_recipes as papers
from training.recipe import EncoderSettings, Recipe, Scalar, Task
from training.recipe_builder import Asked, Setting, build
from training.recipe_checks import check, nearest

# Fit for a few hundred clips: few weights between the streams, and rates that escape the plateau
# at which they go unheard.
_MSAF: Mapping[str, Scalar] = {
    "hidden": 64,
    "block_width": 32,
    "segments": 1,
    "block_dropout": 0.1,
    "dropout": 0.3,
}

# MulT on a few hundred clips: the width of the released code with fewer layers; and many small
# steps, without which it hardly leaves the mean within 30 epochs of so few clips.
_MULT: Mapping[str, Scalar] = {"width": 30, "heads": 5, "layers": 2, "embedding_dropout": 0.1}
_MULT_STEPS: Mapping[str, Setting] = {"learning_rate": 2e-3, "global_batch": 8, "patience": 15}


def mmlatch(asked: Asked) -> Recipe:
    """MMLatch: each stream is masked by what the others say, then encoded again and fused."""
    return build("mmlatch", asked)


def mult(asked: Asked) -> Recipe:
    """MulT: each stream asks every other one, by attention.

    Streams may keep their own steps: `pooling={"kind": "own"}`.
    """
    return build("mult", asked, model=_MULT, training=_MULT_STEPS)


def late_fusion(asked: Asked) -> Recipe:
    """Each stream is encoded alone, then fused."""
    return build("late_fusion", asked)


def unimodal(asked: Asked) -> Recipe:
    """One stream alone, with the same encoder and head."""
    return build("unimodal", asked)


def early_fusion(asked: Asked) -> Recipe:
    """All streams beside each other at each step, and one encoder."""
    return build("early_fusion", asked)


def decision_average(asked: Asked) -> Recipe:
    """A model for each stream, and the mean of what they say."""
    return build("decision_average", _decision(asked))


def decision_product(asked: Asked) -> Recipe:
    """A model for each stream, and the product of their probabilities, of classes or labels."""
    return build("decision_product", _decision(asked))


def _decision(asked: Asked) -> Asked:
    """With what the outputs mean, where they are not numbers or classes."""
    if asked.task.kind != "labels":
        return asked
    return replace(asked, settings={"labels": True, **asked.settings})


def tfn(asked: Asked) -> Recipe:
    """Tensor fusion: a weight for every product of entries of the streams' vectors."""
    return build("tfn", asked)


def lmf(asked: Asked) -> Recipe:
    """Low-rank fusion: tensor fusion with few weights."""
    return build("lmf", asked)


def msaf(asked: Asked) -> Recipe:
    """Two LSTMs for each stream, and MSAF between them."""
    return build("msaf", asked, model=_MSAF, training={"learning_rate": 1e-2})


RECIPES: Mapping[str, Callable[[Asked], Recipe]] = {
    "mmlatch": mmlatch,
    "mmlatch_mosei": papers.mmlatch_mosei,
    "mult": mult,
    "mult_mosei": papers.mult_mosei,
    "mult_mosi": papers.mult_mosi,
    "mult_iemocap": papers.mult_iemocap,
    "late_fusion": late_fusion,
    "late_fusion_mosei": papers.late_fusion_mosei,
    "unimodal": unimodal,
    "early_fusion": early_fusion,
    "decision_average": decision_average,
    "decision_product": decision_product,
    "tfn": tfn,
    "lmf": lmf,
    "msaf": msaf,
    "msaf_mosei": papers.msaf_mosei,
    "msaf_ravdess": papers.msaf_ravdess,
    "resnext3d": papers.resnext3d,
    "sound_cnn": papers.sound_cnn,
    "msaf_ntu": papers.msaf_ntu,
    "i3d": papers.i3d,
    "hcn": papers.hcn,
}

NAMES = tuple(RECIPES)


def named(
    name: str,
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """The recipe of this name.

    Args:
        name: Of the table.
        task: What is predicted.
        streams: In the model's order, text first where there is text.
        settings: The model's own settings.
        **overrides: Other fields of `Recipe`; `pooling` may be a mapping of its fields.

    Raises:
        ValueError: There is no such recipe or setting, or a value is out of range.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; {nearest(name, NAMES)}")
    asked = Asked(task=task, streams=streams, settings=settings or {}, overrides=overrides)
    return RECIPES[name](asked)


def fine_tuned(recipe: Recipe, encoders: Mapping[str, EncoderSettings]) -> Recipe:
    """The same with encoders that are trained too, each on a raw stream of the model.

    Raises:
        ValueError: A value is out of range, or the model takes no encoders.
    """
    model = replace(recipe.model, encoders=dict(encoders))
    raw = tuple(name for name in model.streams if name in {*recipe.raw, *encoders})
    tuned = replace(recipe, model=model, raw=raw)
    check(tuned)
    return tuned
