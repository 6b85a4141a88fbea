"""The settings that a sweep tries: drawn from a space, always the same for the same seed."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pipelines.experiment import Experiment, InputError, load
from training.metrics import METRICS
from training.recipe import Recipe, Scalar, Task
from training.schedule import LOSS

Draw: TypeAlias = Mapping[str, Scalar]
"""Values by the dotted names of settings."""

KINDS = ("choice", "uniform", "log_uniform", "integer")
SECTIONS = ("train.", "model.")


def check(space: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise InputError where a space is not well formed."""
    if not space:
        raise InputError(
            "sweep.space: nothing is to be varied; wanted settings, such as "
            "{train.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}}"
        )
    for name, chosen in space.items():
        place = f"sweep.space.{name}"
        if not name.startswith(SECTIONS):
            raise InputError(f"{place}: a sweep varies settings of {' and '.join(SECTIONS)}")
        if len(chosen) != 1 or next(iter(chosen)) not in KINDS:
            near = difflib.get_close_matches(str(next(iter(chosen), "")), KINDS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(
                f"{place}: found {', '.join(map(str, chosen))}, wanted one of {', '.join(KINDS)}"
                f"{hint}"
            )
        kind, values = next(iter(chosen.items()))
        _check_values(place, kind, values)


def _check_values(place: str, kind: str, values: Any) -> None:  # noqa: ANN401 - of a file
    if kind == "choice":
        scalars = isinstance(values, list) and all(
            isinstance(value, str | int | float | bool) for value in values
        )
        if not scalars or not values:
            raise InputError(f"{place}: choice is {values!r}, wanted a list of values")
        return
    numbers = (
        isinstance(values, list)
        and len(values) == 2
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )
    if not numbers or values[0] >= values[1]:
        raise InputError(
            f"{place}: {kind} is {values!r}, wanted the lowest and the highest number "
            f"(YAML wants a dot in 1.0e-4)"
        )
    if kind == "log_uniform" and values[0] <= 0:
        raise InputError(f"{place}: log_uniform begins at {values[0]}, wanted more than 0")
    if kind == "integer" and any(value != int(value) for value in values):
        raise InputError(f"{place}: integer is {values!r}, wanted whole numbers")


def draw(space: Mapping[str, Mapping[str, Any]], trials: int, seed: int) -> list[Draw]:
    """So many different draws, or all there are of a space that has no more.

    Each draw depends on its number alone, so that more trials later begin with the same ones.
    Numbers have 4 digits, so that what is printed is what was tried.

    Args:
        space: As `check` wants it.
        trials: How many.
        seed: Of the draws.
    """
    found: list[Draw] = []
    for number in range(trials * 20):
        if len(found) == trials:
            break
        generator = np.random.default_rng([seed, number])
        drawn = {name: _value(*next(iter(space[name].items())), generator) for name in space}
        if drawn not in found:
            found.append(drawn)
    return found


def drawn(file: Path, overrides: Sequence[str]) -> list[tuple[Draw, Experiment]]:
    """The trials of an experiment file: what was drawn, and the experiment that it makes.

    It needs no dataset, so that a wrong space is told before anything is read or computed.

    Raises:
        InputError: There is no space, it is not well formed, or a draw makes no experiment.
    """
    experiment = load(file, overrides)
    if experiment.sweep is None:
        raise InputError(
            f"{file}: there is no section sweep; wanted for example "
            "sweep: {trials: 20, space: {train.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}}}"
        )
    check(experiment.sweep.space)
    kinds = METRICS if experiment.source.task is None else (experiment.source.task,)
    _check_metric(experiment.sweep.metric, [name for kind in kinds for name in METRICS[kind]])
    found = draw(experiment.sweep.space, experiment.sweep.trials, experiment.sweep.seed)
    return [(values, load(file, [*overrides, *flags(values)])) for values in found]


def recipes(trials: Sequence[tuple[Draw, Experiment]], task: Task) -> list[tuple[Draw, Recipe]]:
    """The recipe of each trial for the task that the dataset has.

    Raises:
        InputError: A draw makes no recipe of this task, or the task has not the metric.
    """
    for _, experiment in trials[:1]:
        _check_metric(experiment.sweep.metric if experiment.sweep else "", METRICS[task.kind])
    return [(values, experiment.recipe(task)) for values, experiment in trials]


def _check_metric(metric: str, names: Iterable[str]) -> None:
    known = (LOSS, *(f"valid_{name}" for name in dict.fromkeys(names)))
    if metric and metric not in known:
        raise InputError(f"sweep.metric is {metric!r}; wanted one of {', '.join(known)}")


def _value(kind: str, values: Sequence[Any], generator: np.random.Generator) -> Scalar:
    if kind == "choice":
        chosen: Scalar = values[int(generator.integers(len(values)))]
        return chosen
    low, high = values
    if kind == "integer":
        return int(generator.integers(int(low), int(high) + 1))
    if kind == "log_uniform":
        number = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        number = float(generator.uniform(low, high))
    return float(f"{number:.3e}")


def flags(drawn: Draw) -> list[str]:
    """A draw as `--set` takes it: name=value, in YAML."""
    return [f"{name}={_yaml(value)}" for name, value in drawn.items()]


def _yaml(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # YAML reads 1e-05 as a word, and 1.000e-05 as a number.
    return (
        f"{value:.3e}"
        if isinstance(value, float) and float(f"{value:.3e}") == value
        else str(value)
    )
