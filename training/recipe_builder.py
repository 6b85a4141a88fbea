"""How recipes are made of what a run asks for: settings, replaced where others are asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

from training.recipe import ModelSettings, Pooling, Recipe, Scalar, Schedule, Task
from training.recipe_checks import LOSSES, check, check_choice, nearest
from training.schedule import USUAL

Setting: TypeAlias = (
    Scalar | Pooling | Schedule | Mapping[str, Scalar | Sequence[int]] | Sequence[str | int] | None
)

_DECIDED = ("name", "model", "task")

# What models and runs begin with where a recipe does not say otherwise.
_MODEL: Mapping[str, Scalar] = {"hidden": 64}
_TRAINING: Mapping[str, Setting] = {"learning_rate": 1e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What every recipe is given.

    Attributes:
        task: What is predicted.
        streams: In the model's order, text first where there is text.
        settings: The model's own settings that replace those of the recipe.
        overrides: Other fields of `Recipe` that replace the recipe's; "pooling" and "schedule" may
            be mappings of their fields.
    """

    task: Task
    streams: Sequence[str]
    settings: Mapping[str, Scalar]
    overrides: Mapping[str, Setting]


def build(
    name: str,
    asked: Asked,
    *,
    kind: str | None = None,
    model: Mapping[str, Scalar] = _MODEL,
    training: Mapping[str, Setting] = _TRAINING,
) -> Recipe:
    """The recipe of a name, checked.

    Args:
        name: The recipe's name.
        asked: What it is made for.
        kind: The model's kind, where it is not the recipe's name.
        model: The model's settings.
        training: Fields of `Recipe`; a task of classes always begins with cross entropy.

    Raises:
        ValueError: There is no such setting, or a value is out of range.
    """
    known = [each.name for each in fields(Recipe) if each.name not in _DECIDED]
    for setting in asked.overrides:
        if setting not in known:
            raise ValueError(f"recipes have no setting {setting!r}; {nearest(setting, known)}")
    usual = training.get("loss") if asked.task.kind == "regression" else None
    loss = usual or LOSSES[asked.task.kind][0]
    chosen: dict[str, Setting] = {**training, "loss": loss, **asked.overrides}
    chosen["pooling"] = _pooling(chosen.get("pooling", Pooling()))
    chosen["schedule"] = _schedule(
        chosen.get("schedule", "plateau"), training.get("schedule", USUAL["plateau"])
    )
    chosen["raw"] = _listed(chosen.get("raw", ()))
    built = ModelSettings(
        kind=kind or name, streams=tuple(asked.streams), settings={**model, **asked.settings}
    )
    # A mapping cannot be typed by field; `check` looks at each value.
    recipe = Recipe(name=name, model=built, task=asked.task, **chosen)  # type: ignore[arg-type]
    check(recipe)
    return recipe


def _listed(given: Setting) -> Setting:
    """A list, as YAML has it, as a tuple; else what was given."""
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else given


def _pooling(given: Setting) -> Pooling:
    if isinstance(given, Pooling):
        return given
    known = [each.name for each in fields(Pooling)]
    settings = given if isinstance(given, Mapping) else {}
    if not settings:
        raise ValueError(f"pooling is {given!r}; wanted some of {', '.join(known)}, each a value")
    for setting in settings:
        if setting not in known:
            raise ValueError(f"pooling has no setting {setting!r}; {nearest(setting, known)}")
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
            raise ValueError(f"schedule has no setting {setting!r}; {nearest(setting, known)}")
    own: object = settings.get("kind", getattr(usual, "kind", None))
    check_choice("schedule.kind", own, tuple(USUAL))
    base = usual if getattr(usual, "kind", None) == own else USUAL[own]  # type: ignore[index] # checked
    changed = {**settings, "at": _listed(settings.get("at", getattr(base, "at", ())))}
    return replace(base, **changed)  # type: ignore[type-var] # `check` looks at each value
