"""Recipes by name: functions that give all settings of a run.

`RECIPES` is the table of them. Some start from raw clips, with defaults fit for a few hundred of
them; those with a corpus in their name repeat a paper's settings on features that were imported.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Protocol, TypeAlias

from featurizers.align import HOWS
from training.metrics import METRICS
from training.recipe import (
    EncoderSettings,
    Loss,
    ModelSettings,
    Pooling,
    Recipe,
    Scalar,
    Schedule,
    Task,
    TaskKind,
)
from training.schedule import LOSS, USUAL

Setting: TypeAlias = (
    Scalar | Pooling | Schedule | Mapping[str, Scalar | Sequence[int]] | Sequence[str | int] | None
)

ONE_TIME_BASE = ("mmlatch", "late_fusion", "early_fusion")
"""Models that want several streams to have their steps at the same times."""

LOSSES: Mapping[TaskKind, tuple[Loss, ...]] = {
    "regression": ("l1", "mse"),
    "classes": ("cross_entropy",),
    "labels": ("bce",),
}
"""What each kind of task can be trained by; the first is taken where none is asked for."""

_DECIDED = ("name", "model", "task")

# What models and runs begin with where a recipe does not say otherwise.
_MODEL: Mapping[str, Scalar] = {"hidden": 64}
_TRAINING: Mapping[str, Setting] = {"learning_rate": 1e-3}

# How the authors of MMLatch train on CMU-MOSEI: AdamW without decay is their Adam, and the rate is
# halved on a plateau of two epochs, down to a twentieth, as everywhere where nothing else is said.
_MMLATCH_MOSEI: Mapping[str, Setting] = {
    "epochs": 100,
    "patience": 10,
    "global_batch": 32,
    "learning_rate": 5e-4,
    "weight_decay": 0.0,
    "clip_norm": None,
    "schedule": Schedule(cooldown=2, floor=1 / 20),
}
_MMLATCH_SIZES: Mapping[str, Scalar] = {
    "hidden": 100,
    "encoder_dropout": 0.2,
    "fusion_dropout": 0.1,
    "pooling": "sum",
}

# Fit for a few hundred clips: few weights between the streams, and rates that escape the plateau
# at which they go unheard.
_MSAF: Mapping[str, Scalar] = {
    "hidden": 64,
    "block_width": 32,
    "segments": 1,
    "block_dropout": 0.1,
    "dropout": 0.3,
}

# How the authors of MSAF train on CMU-MOSEI; AdamW without decay is their Adam.
_MSAF_MOSEI: Mapping[str, Setting] = {
    "epochs": 10,
    "patience": 10,
    "global_batch": 16,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "clip_norm": None,
    "loss": "mse",
    "schedule": Schedule(kind="constant"),
    "pooling": Pooling(kind="steps", steps=50),
}
_MSAF_SIZES: Mapping[str, Scalar] = {
    "channels": "32, 64, 128",
    "block_width": 16,
    "reduction": 2,
    "segments": 5,
    "block_dropout": 0.2,
}


# MulT on a few hundred clips: the width of the released code with fewer layers; and many small
# steps, without which it hardly leaves the mean within 30 epochs of so few clips.
_MULT: Mapping[str, Scalar] = {"width": 30, "heads": 5, "layers": 2, "embedding_dropout": 0.1}
_MULT_STEPS: Mapping[str, Setting] = {"learning_rate": 2e-3, "global_batch": 8, "patience": 15}
# Of the paper's table, what its three corpora have in common.
_MULT_TRAINING: Mapping[str, Setting] = {
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "schedule": Schedule(factor=0.1, patience=20),
}
_MULT_SIZES: Mapping[str, Scalar] = {"width": 40, "layers": 4, "output_dropout": 0.1}


# How the authors of MSAF train their networks of whole pictures. Clips that lack a stream would
# count as 0 in the statistics of BatchNorm.
_RAVDESS: Mapping[str, Setting] = {
    "epochs": 70,
    "patience": 70,
    "global_batch": 4,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "clip_norm": None,
    "schedule": Schedule(kind="constant"),
    "take_absent": False,
    # Longer streams are thinned; pictures must not be averaged.
    "pooling": Pooling(kind="own", most=30_000, how="first"),
}
_NTU: Mapping[str, Setting] = {
    **_RAVDESS,
    "epochs": 20,
    "patience": 20,
    "learning_rate": 1e-4,
    "weight_decay": 1e-4,
    "schedule": Schedule(kind="step", at=(5, 20), factor=0.1),
}


class NamedRecipe(Protocol):
    """How every recipe is called; the arguments are those of `mmlatch`."""

    def __call__(
        self,
        task: Task,
        streams: Sequence[str],
        settings: Mapping[str, Scalar] | None = None,
        **overrides: Setting,
    ) -> Recipe:
        """The recipe, checked. Raises ValueError: no such setting, or a value is out of range."""


def mmlatch(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """MMLatch: each stream is masked by what the others say, then encoded again and fused.

    Args:
        task: What is predicted.
        streams: In the model's order, text first where there is text.
        settings: The model's own settings.
        **overrides: Other fields of `Recipe`; `pooling` may be a mapping of its fields.
    """
    return _recipe("mmlatch", task, streams, settings, overrides)


def mmlatch_mosei(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """MMLatch as its authors train it on CMU-MOSEI; the arguments are those of `mmlatch`.

    The paper's streams are GloVe words, COVAREP and FACET, in this order, averaged over each word.
    """
    sizes = {**_MMLATCH_SIZES, "mask_dropout": 0.2, "mask_rnn_dropout": 0.1}
    return _recipe(
        "mmlatch_mosei",
        task,
        streams,
        settings,
        overrides,
        kind="mmlatch",
        model=sizes,
        training=_MMLATCH_MOSEI,
    )


def mult(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """MulT: each stream asks every other one, by attention; arguments as in `mmlatch`.

    Streams may keep their own steps: `pooling={"kind": "own"}`.
    """
    return _recipe("mult", task, streams, settings, overrides, model=_MULT, training=_MULT_STEPS)


def mult_mosei(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """MulT as its authors train it on CMU-MOSEI; the arguments are those of `mmlatch`.

    The paper's streams are GloVe words, COVAREP and FACET, in this order. As theirs, the
    learning rate is divided by ten when more than 20 epochs brought no better validation loss, and
    no run stops early.
    """
    sizes = {
        **_MULT_SIZES,
        "heads": 8,
        "kernels": "1,3,3",
        "embedding_dropout": 0.3,
        **_blocks(0.1),
    }
    training = {**_MULT_TRAINING, "global_batch": 16, "clip_norm": 1.0, **_epochs(20)}
    return _recipe(
        "mult_mosei",
        task,
        streams,
        settings,
        overrides,
        kind="mult",
        model=sizes,
        training=training,
    )


def mult_mosi(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """MulT as its authors train it on CMU-MOSI; see `mult_mosei`."""
    sizes = {
        **_MULT_SIZES,
        "heads": 10,
        "kernels": "1,3,3",
        "embedding_dropout": 0.2,
        **_blocks(0.2),
    }
    training = {**_MULT_TRAINING, "global_batch": 128, "clip_norm": 0.8, **_epochs(100)}
    return _recipe(
        "mult_mosi",
        task,
        streams,
        settings,
        overrides,
        kind="mult",
        model=sizes,
        training=training,
    )


def mult_iemocap(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """MulT as its authors train it on IEMOCAP; see `mult_mosei`.

    Theirs are four questions at once (happy, sad, angry, neutral), each of two outputs and a cross
    entropy of two ways. That is a task of several labels, with one output for each: the softmax of
    two scores is the sigmoid of their difference, so "bce" is the same loss. Scorecards have each
    emotion's accuracy and weighted F1 by itself, as the paper reports them.
    """
    sizes = {
        **_MULT_SIZES,
        "heads": 10,
        "kernels": "3,5,3",
        "embedding_dropout": 0.3,
        **_blocks(0.25),
    }
    training = {
        **_MULT_TRAINING,
        "global_batch": 32,
        "clip_norm": 0.8,
        "learning_rate": 2e-3,
        **_epochs(30),
    }
    return _recipe(
        "mult_iemocap",
        task,
        streams,
        settings,
        overrides,
        kind="mult",
        model=sizes,
        training=training,
    )


def late_fusion(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """Each stream is encoded alone, then fused; the arguments are those of `mmlatch`."""
    return _recipe("late_fusion", task, streams, settings, overrides)


def late_fusion_mosei(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """The baseline of `mmlatch_mosei`: the same without feedback."""
    return _recipe(
        "late_fusion_mosei",
        task,
        streams,
        settings,
        overrides,
        kind="late_fusion",
        model=_MMLATCH_SIZES,
        training=_MMLATCH_MOSEI,
    )


def unimodal(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """One stream alone, with the same encoder and head; the arguments are those of `mmlatch`."""
    return _recipe("unimodal", task, streams, settings, overrides)


def early_fusion(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """All streams beside each other at each step, and one encoder; arguments as in `mmlatch`."""
    return _recipe("early_fusion", task, streams, settings, overrides)


def decision_average(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """A model for each stream, and the mean of what they say; arguments as in `mmlatch`."""
    return _recipe("decision_average", task, streams, _decision(task, settings), overrides)


def decision_product(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """A model for each stream, and the product of their probabilities, of classes or labels.

    The arguments are those of `mmlatch`.
    """
    return _recipe("decision_product", task, streams, _decision(task, settings), overrides)


def _decision(task: Task, settings: Mapping[str, Scalar] | None) -> dict[str, Scalar]:
    """What the outputs mean, where they are not numbers or classes; then the settings."""
    return {**({"labels": True} if task.kind == "labels" else {}), **(settings or {})}


def tfn(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """Tensor fusion: a weight for every product of entries of the streams' vectors.

    The arguments are those of `mmlatch`.
    """
    return _recipe("tfn", task, streams, settings, overrides)


def lmf(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """Low-rank fusion: tensor fusion with few weights; arguments as in `mmlatch`."""
    return _recipe("lmf", task, streams, settings, overrides)


def msaf(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """Two LSTMs for each stream, and MSAF between them; the arguments are those of `mmlatch`."""
    return _recipe(
        "msaf",
        task,
        streams,
        settings,
        overrides,
        model=_MSAF,
        training={"learning_rate": 1e-2},
    )


def msaf_mosei(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """MSAF as its authors train it on CMU-MOSEI; the arguments are those of `mmlatch`.

    The paper's streams are FACET, COVAREP and BERT, in this order, of 50 steps each.
    """
    return _recipe(
        "msaf_mosei",
        task,
        streams,
        settings,
        overrides,
        kind="msaf",
        model=_MSAF_SIZES,
        training=_MSAF_MOSEI,
    )


def msaf_ravdess(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """Emotions from faces and voices, as MSAF's authors train on RAVDESS: pixels, then MFCC.

    Both branches are to start from weights that `resnext3d` and `sound_cnn` were trained to on the
    same fold: `start` {"video": FILE, "audio": FILE}. Nothing stops early, as in the release; but
    the best epoch is chosen on validation clips, where the release chooses on those it reports.
    Pictures are mirrored by clip, not cropped anew.
    """
    return _network(
        "msaf_ravdess", task, streams, settings, overrides, raw=streams[:1], training=_RAVDESS
    )


def resnext3d(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """The video branch of `msaf_ravdess` alone: one stream of pixels."""
    return _network("resnext3d", task, streams, settings, overrides, raw=streams, training=_RAVDESS)


def sound_cnn(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """The sound branch of `msaf_ravdess` alone: one stream of MFCC."""
    return _network("sound_cnn", task, streams, settings, overrides, raw=(), training=_RAVDESS)


def msaf_ntu(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """Actions from pictures and joints, in this order, as MSAF's authors train on NTU RGB+D.

    Both branches are to start from weights that `i3d` and `hcn` were trained to: `start`
    {"video": FILE, "skeleton": FILE}. The release runs each batch twice, and updates first for the
    loss of one branch, then for that of the other; this adds the two losses, in one update a batch.
    The learning rate is divided by ten after 5 epochs, as there; weights decay apart from the
    gradient (AdamW).
    """
    chosen = {"objective": "branches", **(settings or {})}
    return _network("msaf_ntu", task, streams, chosen, overrides, raw=streams, training=_NTU)


def i3d(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """The video branch of `msaf_ntu` alone: one stream of pixels."""
    return _network("i3d", task, streams, settings, overrides, raw=streams, training=_NTU)


def hcn(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """The skeleton branch of `msaf_ntu` alone: one stream of joints."""
    return _network("hcn", task, streams, settings, overrides, raw=streams, training=_NTU)


RECIPES: Mapping[str, NamedRecipe] = {
    "mmlatch": mmlatch,
    "mmlatch_mosei": mmlatch_mosei,
    "mult": mult,
    "mult_mosei": mult_mosei,
    "mult_mosi": mult_mosi,
    "mult_iemocap": mult_iemocap,
    "late_fusion": late_fusion,
    "late_fusion_mosei": late_fusion_mosei,
    "unimodal": unimodal,
    "early_fusion": early_fusion,
    "decision_average": decision_average,
    "decision_product": decision_product,
    "tfn": tfn,
    "lmf": lmf,
    "msaf": msaf,
    "msaf_mosei": msaf_mosei,
    "msaf_ravdess": msaf_ravdess,
    "resnext3d": resnext3d,
    "sound_cnn": sound_cnn,
    "msaf_ntu": msaf_ntu,
    "i3d": i3d,
    "hcn": hcn,
}

NAMES = tuple(RECIPES)


def named(
    name: str,
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """The recipe of this name; the other arguments are those of `mmlatch`.

    Raises:
        ValueError: There is no such recipe or setting, or a value is out of range.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; {_nearest(name, NAMES)}")
    return RECIPES[name](task, streams, settings, **overrides)


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


def check(recipe: Recipe) -> None:
    """Raise ValueError where settings are out of range or do not go together."""
    for name in ("epochs", "global_batch", "patience", "checkpoint_every"):
        _check_number(recipe, name, whole=True, least=1)
    _check_number(recipe, "seed", whole=True, least=0)
    for name in ("learning_rate", "weight_decay"):
        _check_number(recipe, name, whole=False, least=0)
    _check_number(recipe, "modality_dropout", whole=False, least=0)
    if recipe.modality_dropout >= 1:
        raise ValueError(
            f"modality_dropout is {recipe.modality_dropout}; it is a probability, less than 1"
        )
    if recipe.micro_batch is not None:
        _check_number(recipe, "micro_batch", whole=True, least=1)
    if recipe.clip_norm is not None:
        _check_number(recipe, "clip_norm", whole=False, least=0)
    _check_pooling(recipe.pooling, recipe.model)
    _check_raw(recipe)
    _check_schedule(recipe.schedule)
    _check_monitor(recipe)
    _check_encoders(recipe)
    _check_loader(recipe)
    _check_choice("zero", recipe.zero, (0, 1, 2, 3))
    _check_choice("offload", recipe.offload, ("none", "optimizer", "all"))
    if recipe.zero < {"none": 0, "optimizer": 1, "all": 3}[recipe.offload]:
        raise ValueError(
            f"offload is {recipe.offload!r} at zero: {recipe.zero}; the optimizer's state can be "
            f"kept in main memory at stage 1, 2 or 3, and the weights too ('all') at stage 3"
        )
    _check_choice("precision", recipe.precision, ("fp32", "bf16"))
    _check_choice("loss", recipe.loss, LOSSES[recipe.task.kind])
    _check_classes(recipe.task)
    _check_class_weights(recipe)
    _check_choice("compile", recipe.compile, (False, True))
    if recipe.compile and recipe.zero == 3:
        raise ValueError(
            "compile is on at zero: 3, which fetches each layer's weights as it comes to it, so "
            "that there is little to compile; take zero: 2, or leave compile out"
        )


def _recipe(
    name: str,
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None,
    overrides: Mapping[str, Setting],
    *,
    kind: str | None = None,
    model: Mapping[str, Scalar] = _MODEL,
    training: Mapping[str, Setting] = _TRAINING,
) -> Recipe:
    """The recipe of a name.

    Args:
        name: The recipe's name.
        task: What is predicted.
        streams: In the model's order.
        settings: The model's settings that replace those of `model`.
        overrides: Fields of `Recipe` that replace those of `training`.
        kind: The model's kind, where it is not the recipe's name.
        model: The model's settings.
        training: Fields of `Recipe`; a task of classes always begins with cross entropy.
    """
    known = [each.name for each in fields(Recipe) if each.name not in _DECIDED]
    for setting in overrides:
        if setting not in known:
            raise ValueError(f"recipes have no setting {setting!r}; {_nearest(setting, known)}")
    usual = training.get("loss") if task.kind == "regression" else None
    loss = usual or LOSSES[task.kind][0]
    chosen: dict[str, Setting] = {**training, "loss": loss, **overrides}
    chosen["pooling"] = _pooling(chosen.get("pooling", Pooling()))
    chosen["schedule"] = _schedule(
        chosen.get("schedule", "plateau"), training.get("schedule", USUAL["plateau"])
    )
    chosen["raw"] = _listed(chosen.get("raw", ()))
    built = ModelSettings(
        kind=kind or name, streams=tuple(streams), settings={**model, **(settings or {})}
    )
    # A mapping cannot be typed by field; `check` looks at each value.
    recipe = Recipe(name=name, model=built, task=task, **chosen)  # type: ignore[arg-type]
    check(recipe)
    return recipe


def _blocks(share: float) -> dict[str, Scalar]:
    """The "attention block dropout" of MulT's table."""
    return {f"{name}_dropout": share for name in ("attention", "relu", "residual")}


def _epochs(count: int) -> dict[str, Setting]:
    """So many epochs, whatever the validation loss."""
    return {"epochs": count, "patience": count}


def _listed(given: Setting) -> Setting:
    """A list, as YAML has it, as a tuple; else what was given."""
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else given


def _network(
    name: str,
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None,
    overrides: Mapping[str, Setting],
    *,
    raw: Sequence[str],
    training: Mapping[str, Setting],
) -> Recipe:
    """The recipe of a network that scales some of its streams by itself."""
    return _recipe(
        name,
        task,
        streams,
        settings,
        overrides,
        model={},
        training={**training, "raw": raw},
    )


def _pooling(given: Setting) -> Pooling:
    if isinstance(given, Pooling):
        return given
    known = [each.name for each in fields(Pooling)]
    settings = given if isinstance(given, Mapping) else {}
    if not settings:
        raise ValueError(f"pooling is {given!r}; wanted some of {', '.join(known)}, each a value")
    for setting in settings:
        if setting not in known:
            raise ValueError(f"pooling has no setting {setting!r}; {_nearest(setting, known)}")
    # As above: `check` looks at each value.
    return replace(Pooling(), **settings)  # type: ignore[arg-type]


def _schedule(given: Setting, usual: Setting) -> Setting:
    """A schedule, given as one, by its kind alone, or by a kind and what differs from its usual."""
    if isinstance(given, Schedule):
        return given
    settings = {"kind": given} if isinstance(given, str) else given
    known = [each.name for each in fields(Schedule)]
    if not isinstance(settings, Mapping) or not settings:
        raise ValueError(
            f"schedule is {given!r}; wanted one of {', '.join(USUAL)}, or some of "
            f"{', '.join(known)}, each a value"
        )
    for setting in settings:
        if setting not in known:
            raise ValueError(f"schedule has no setting {setting!r}; {_nearest(setting, known)}")
    own: object = settings.get("kind", getattr(usual, "kind", None))
    _check_choice("schedule.kind", own, tuple(USUAL))
    base = usual if getattr(usual, "kind", None) == own else USUAL[own]  # type: ignore[index] # checked
    changed = {**settings, "at": _listed(settings.get("at", getattr(base, "at", ())))}
    return replace(base, **changed)  # type: ignore[type-var] # `check` looks at each value


def _check_schedule(schedule: Schedule) -> None:
    _check_choice("schedule.kind", schedule.kind, tuple(USUAL))
    for name in ("patience", "cooldown"):
        _check_number(schedule, name, whole=True, least=0, among="schedule.")
    for name in ("warmup", "factor", "floor"):
        _check_number(schedule, name, whole=False, least=0, among="schedule.")
    _check_number(schedule, "every", whole=True, least=1, among="schedule.")
    for name in ("factor", "floor"):
        if getattr(schedule, name) > 1:
            raise ValueError(
                f"schedule.{name} is {getattr(schedule, name)!r}; wanted a share, at most 1"
            )
    if schedule.warmup >= 1 and schedule.warmup != int(schedule.warmup):
        raise ValueError(
            f"schedule.warmup is {schedule.warmup!r}; wanted a whole number of steps, or a share "
            f"of all steps below 1"
        )
    at: object = schedule.at
    whole = isinstance(at, tuple) and all(type(each) is int and each > 0 for each in at)
    if not whole:
        raise ValueError(f"schedule.at is {at!r}; wanted a list of epochs, such as [10, 20]")


def _check_monitor(recipe: Recipe) -> None:
    known = (LOSS, *(f"valid_{name}" for name in METRICS[recipe.task.kind]))
    if recipe.monitor not in known:
        raise ValueError(f"monitor is {recipe.monitor!r}; {_nearest(str(recipe.monitor), known)}")
    _check_number(recipe, "min_delta", whole=False, least=0)


def _check_raw(recipe: Recipe) -> None:
    """Streams that are not normalised, and weights to start from."""
    streams = recipe.model.streams
    # What an experiment file gives is of any type, whatever the fields say.
    raw: object = recipe.raw
    start: object = recipe.start
    if not isinstance(raw, tuple) or not set(raw) <= set(streams):
        raise ValueError(
            f"raw is {raw!r}; wanted a list of streams of the model, of {', '.join(streams)}"
        )
    if not isinstance(start, Mapping) or not all(isinstance(text, str) for text in start.values()):
        raise ValueError(
            f"start is {start!r}; wanted for each part of the model that starts from weights their "
            f"file, such as {{video: runs/face.safetensors}}"
        )


def _check_encoders(recipe: Recipe) -> None:
    for name, encoder in recipe.model.encoders.items():
        among = f"encoders.{name}."
        if name not in recipe.raw:
            raise ValueError(
                f"encoders: {name!r} is no raw stream of the model; its streams are "
                f"{', '.join(recipe.model.streams)}"
            )
        for setting in ("learning_rate", "layer_decay"):
            _check_number(encoder, setting, whole=False, least=0, among=among)
        for setting in ("width", "most"):
            _check_number(encoder, setting, whole=True, least=0, among=among)
        if encoder.layer_decay > 1:
            raise ValueError(
                f"{among}layer_decay is {encoder.layer_decay}; wanted 0 to 1: lower layers learn "
                f"more slowly"
            )
    if recipe.model.encoders and recipe.pooling.kind != "own":
        # Behind an encoder, states are pooled by their overlap alone.
        _check_choice("pooling.how", recipe.pooling.how, ("mean", "overlap"))
    if recipe.model.encoders and not recipe.learning_rate:
        raise ValueError(
            "learning_rate is 0; the rates of encoders follow it: freeze parts instead"
        )


def _check_loader(recipe: Recipe) -> None:
    """How clips are read, and what needs the global order for it."""
    _check_choice("bucketed", recipe.bucketed, (False, True))
    _check_choice("loader", recipe.loader, ("indexed", "streaming"))
    if recipe.loader == "indexed":
        return
    if recipe.bucketed:
        raise ValueError(
            "bucketed is true and loader is 'streaming': buckets are formed of the global order; "
            "take loader: indexed, or bucketed: false"
        )
    if recipe.class_weights != "none":
        raise ValueError(
            "class_weights are asked for and loader is 'streaming': no rank knows the classes of "
            "the others' clips; take loader: indexed, or class_weights: none"
        )


def _check_classes(task: Task) -> None:
    known, least = task.classes, {"regression": 0, "classes": 2, "labels": 1}[task.kind]
    if len(set(known)) < least:
        raise ValueError(
            f"label {task.label!r} has classes {list(known)}; a task of {task.kind} wants "
            f"{least} different ones at least"
        )
    if len(set(known)) < len(known):
        raise ValueError(f"label {task.label!r}: {list(known)} names one of them twice")


def _check_class_weights(recipe: Recipe) -> None:
    # What an experiment file gives is of any type, whatever the field says.
    weights: object = recipe.class_weights
    if not isinstance(weights, Mapping):
        _check_choice("class_weights", weights, ("none", "balanced"))
    if weights != "none" and recipe.task.kind == "regression":
        raise ValueError(
            f"class_weights is {weights!r}; label {recipe.task.label!r} is a regression, which has "
            f"no classes: leave it out"
        )
    for name, weight in weights.items() if isinstance(weights, Mapping) else ():
        if name not in recipe.task.classes:
            raise ValueError(f"class_weights: {name!r}; {_nearest(name, recipe.task.classes)}")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight < math.inf:
            raise ValueError(f"class_weights.{name} is {weight!r}; wanted a number above 0")


def _check_pooling(pooling: Pooling, model: ModelSettings) -> None:
    _check_choice("pooling.kind", pooling.kind, ("words", "cells", "steps", "own"))
    _check_choice("pooling.how", pooling.how, HOWS)
    _check_number(pooling, "cell_s", whole=False, least=0.001, among="pooling.")
    _check_number(pooling, "steps", whole=True, least=1, among="pooling.")
    _check_number(pooling, "most", whole=True, least=1, among="pooling.")
    if pooling.kind == "own" and (wanting := _wants_time_base(model)):
        raise ValueError(
            f"pooling.kind is 'own', which leaves each stream its own steps; {wanting} wants all "
            "streams on one time base: take 'words', 'cells' or 'steps', or model 'mult' without "
            "feedback"
        )


def _wants_time_base(model: ModelSettings) -> str | None:
    """What of a model wants its streams to have their steps at the same times."""
    feedback = model.settings.get("feedback", "none")
    if feedback != "none":
        return f"feedback {feedback!r}"
    several = model.kind in ONE_TIME_BASE and len(model.streams) > 1
    return f"model {model.kind!r}" if several else None


def _check_number(
    settings: Recipe | Pooling | Schedule | EncoderSettings,
    name: str,
    *,
    whole: bool,
    least: float,
    among: str = "",
) -> None:
    value = getattr(settings, name)
    kinds = (int,) if whole else (int, float)
    # bool is an int in Python; "epochs: yes" in YAML is a mistake.
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < math.inf:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{among}{name} is {value!r}; wanted a {kind} of at least {least}")


def _check_choice(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        choices = ", ".join(str(each) for each in known)
        raise ValueError(f"{name} is {value!r}; for this task it can be: {choices}")


def _nearest(word: str, known: Iterable[str]) -> str:
    choices = list(known)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.0)
    return f"the nearest is {near[0]!r}, of {', '.join(choices)}"
