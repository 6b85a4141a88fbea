"""Recipes by name: functions that give all settings of a run, fit for a few hundred clips."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TypeAlias

from featurizers.align import HOWS
from training.recipe import ModelSettings, Pooling, Recipe, Scalar, Task

Setting: TypeAlias = Scalar | Pooling | Mapping[str, Scalar] | None

NAMES = ("mmlatch", "late_fusion", "unimodal")

_DECIDED = ("name", "model", "task")


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


def late_fusion(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """Each stream is encoded alone, then fused; the arguments are those of `mmlatch`."""
    return _recipe("late_fusion", task, streams, settings, overrides)


def unimodal(
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None = None,
    **overrides: Setting,
) -> Recipe:
    """One stream alone, with the same encoder and head; the arguments are those of `mmlatch`."""
    return _recipe("unimodal", task, streams, settings, overrides)


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
    match name:
        case "mmlatch":
            return mmlatch(task, streams, settings, **overrides)
        case "late_fusion":
            return late_fusion(task, streams, settings, **overrides)
        case "unimodal":
            return unimodal(task, streams, settings, **overrides)
        case _:
            raise ValueError(f"there is no recipe {name!r}; {_nearest(name, NAMES)}")


def check(recipe: Recipe) -> None:
    """Raise ValueError where settings are out of range or do not go together."""
    for name in ("epochs", "global_batch", "patience", "checkpoint_every"):
        _check_number(recipe, name, whole=True, least=1)
    _check_number(recipe, "seed", whole=True, least=0)
    for name in ("learning_rate", "weight_decay"):
        _check_number(recipe, name, whole=False, least=0)
    if recipe.micro_batch is not None:
        _check_number(recipe, "micro_batch", whole=True, least=1)
    if recipe.clip_norm is not None:
        _check_number(recipe, "clip_norm", whole=False, least=0)
    _check_pooling(recipe.pooling)
    _check_choice("zero", recipe.zero, (0, 1, 2, 3))
    _check_choice("precision", recipe.precision, ("fp32", "bf16"))
    if recipe.task.kind == "classes":
        _check_choice("loss", recipe.loss, ("cross_entropy",))
        if len(set(recipe.task.classes)) < 2:
            raise ValueError(
                f"label {recipe.task.label!r} has classes {list(recipe.task.classes)}; "
                f"a task of classes wants two different ones at least"
            )
    else:
        _check_choice("loss", recipe.loss, ("l1", "mse"))


def _recipe(
    name: str,
    task: Task,
    streams: Sequence[str],
    settings: Mapping[str, Scalar] | None,
    overrides: Mapping[str, Setting],
) -> Recipe:
    known = [each.name for each in fields(Recipe) if each.name not in _DECIDED]
    for setting in overrides:
        if setting not in known:
            raise ValueError(f"recipes have no setting {setting!r}; {_nearest(setting, known)}")
    defaults: dict[str, Setting] = {
        "learning_rate": 1e-3,
        "loss": "l1" if task.kind == "regression" else "cross_entropy",
    }
    model = ModelSettings(
        kind=name, streams=tuple(streams), settings={"hidden": 64, **(settings or {})}
    )
    chosen = {**defaults, **overrides}
    chosen["pooling"] = _pooling(chosen.get("pooling", Pooling()))
    # A mapping cannot be typed by field; `check` looks at each value.
    recipe = Recipe(name=name, model=model, task=task, **chosen)  # type: ignore[arg-type]
    check(recipe)
    return recipe


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


def _check_pooling(pooling: Pooling) -> None:
    _check_choice("pooling.kind", pooling.kind, ("words", "cells", "steps"))
    _check_choice("pooling.how", pooling.how, HOWS)
    _check_number(pooling, "cell_s", whole=False, least=0.001, among="pooling.")
    _check_number(pooling, "steps", whole=True, least=1, among="pooling.")


def _check_number(
    settings: Recipe | Pooling, name: str, *, whole: bool, least: float, among: str = ""
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
