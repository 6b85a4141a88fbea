"""What the settings of a recipe must be, each and together."""

import difflib
import math
from collections.abc import Iterable, Mapping

from featurizers.align import HOWS
from training.metrics import METRICS
from training.recipe import (
    EncoderSettings,
    Loss,
    ModelSettings,
    Pooling,
    Recipe,
    Schedule,
    Task,
    TaskKind,
)
from training.schedule import LOSS, USUAL

ONE_TIME_BASE = ("mmlatch", "late_fusion", "early_fusion")
"""Models that want several streams to have their steps at the same times."""

LOSSES: Mapping[TaskKind, tuple[Loss, ...]] = {
    "regression": ("l1", "mse"),
    "classes": ("cross_entropy",),
    "labels": ("bce",),
}
"""What each kind of task can be trained by; the first is taken where none is asked for."""


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
    check_choice("zero", recipe.zero, (0, 1, 2, 3))
    check_choice("offload", recipe.offload, ("none", "optimizer", "all"))
    if recipe.zero < {"none": 0, "optimizer": 1, "all": 3}[recipe.offload]:
        raise ValueError(
            f"offload is {recipe.offload!r} at zero: {recipe.zero}; the optimizer's state can be "
            f"kept in main memory at stage 1, 2 or 3, and the weights too ('all') at stage 3"
        )
    check_choice("precision", recipe.precision, ("fp32", "bf16"))
    check_choice("loss", recipe.loss, LOSSES[recipe.task.kind])
    _check_classes(recipe.task)
    _check_class_weights(recipe)
    check_choice("compile", recipe.compile, (False, True))
    if recipe.compile and recipe.zero == 3:
        raise ValueError(
            "compile is on at zero: 3, which fetches each layer's weights as it comes to it, so "
            "that there is little to compile; take zero: 2, or leave compile out"
        )


def _check_schedule(schedule: Schedule) -> None:
    check_choice("schedule.kind", schedule.kind, tuple(USUAL))
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
        raise ValueError(f"monitor is {recipe.monitor!r}; {nearest(str(recipe.monitor), known)}")
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
        check_choice("pooling.how", recipe.pooling.how, ("mean", "overlap"))
    if recipe.model.encoders and not recipe.learning_rate:
        raise ValueError(
            "learning_rate is 0; the rates of encoders follow it: freeze parts instead"
        )


def _check_loader(recipe: Recipe) -> None:
    """How clips are read, and what needs the global order for it."""
    check_choice("bucketed", recipe.bucketed, (False, True))
    check_choice("loader", recipe.loader, ("indexed", "streaming"))
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
        check_choice("class_weights", weights, ("none", "balanced"))
    if weights != "none" and recipe.task.kind == "regression":
        raise ValueError(
            f"class_weights is {weights!r}; label {recipe.task.label!r} is a regression, which has "
            f"no classes: leave it out"
        )
    for name, weight in weights.items() if isinstance(weights, Mapping) else ():
        if name not in recipe.task.classes:
            raise ValueError(f"class_weights: {name!r}; {nearest(name, recipe.task.classes)}")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 < weight < math.inf:
            raise ValueError(f"class_weights.{name} is {weight!r}; wanted a number above 0")


def _check_pooling(pooling: Pooling, model: ModelSettings) -> None:
    check_choice("pooling.kind", pooling.kind, ("words", "cells", "steps", "own"))
    check_choice("pooling.how", pooling.how, HOWS)
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


def check_choice(name: str, value: object, known: tuple[object, ...]) -> None:
    """Raise ValueError where a setting is none of what it can be."""
    if value not in known:
        near = (
            difflib.get_close_matches(value, map(str, known), n=1) if isinstance(value, str) else []
        )
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        choices = ", ".join(str(each) for each in known)
        raise ValueError(f"{name} is {value!r}{meant}; it can be: {choices}")


def nearest(word: str, known: Iterable[str]) -> str:
    """For messages: the known word that is most like this one, and all of them."""
    choices = list(known)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.0)
    return f"the nearest is {near[0]!r}, of {', '.join(choices)}"
