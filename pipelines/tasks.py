"""What a column of a table asks for: a number, one of some classes, or several labels at once."""

import math
import re
from collections.abc import Collection, Sequence

from featurizers.clip import Clip, Label
from training.recipe import Task, TaskKind

_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")


def guess(values: Sequence[object]) -> TaskKind:
    """What kind of task the cells of a column are for, where nobody says so.

    Numbers are a regression, lists (or texts with commas) several labels, other texts classes.

    Raises:
        ValueError: They may be numbers with a decimal comma, or lists of numbers.
    """
    texts = [value for value in values if float_of(value) is None]
    # NaN and infinity are numbers here, so that one of them is told as such, not taken for a class.
    if not texts:
        return "regression"
    if all(isinstance(text, str) and _DECIMAL_COMMA.fullmatch(text) for text in texts):
        raise ValueError(
            f"found {texts[0]!r}, which is a number with a decimal comma or two labels; write "
            f"numbers with a point, or set source.task: labels"
        )
    several = any(_is_list(text) or "," in str(text) for text in texts)
    return "labels" if several else "classes"


def task_for(kind: TaskKind, label: str, values: Sequence[object]) -> Task:
    """The task of a kind that the filled cells of a column are for.

    Raises:
        ValueError: There are too few classes, or a label's name cannot be.
    """
    if kind == "regression":
        return Task(kind=kind, label=label)
    found = [names_in(value) if kind == "labels" else (str(value),) for value in values]
    classes = tuple(sorted({name for each in found for name in each}))
    least = 2 if kind == "classes" else 1
    if len(classes) < least:
        what = "class" if kind == "classes" else "labels"
        raise ValueError(f"found {len(classes)} {what}; at least {least} are needed")
    return Task(kind=kind, label=label, classes=classes)


def label_of(task: Task, value: object) -> Label:
    """The label of a filled cell.

    Raises:
        ValueError: It is not of the task's kind.
    """
    match task.kind:
        case "regression":
            number = float_of(value)
            if number is None or not math.isfinite(number):
                raise ValueError(
                    f"found {value!r}, wanted a finite number (or set source.task: classes)"
                )
            return number
        case "classes":
            return str(value)
        case "labels":
            return names_in(value)


def names_in(value: object) -> tuple[str, ...]:
    """The names of a cell with several labels, sorted, each once; a lone comma has none.

    Raises:
        ValueError: A name in a list is empty, or has a comma of its own.
    """
    if not isinstance(value, list | tuple):
        return tuple(sorted({name.strip() for name in str(value).split(",")} - {""}))
    names = {str(each).strip() for each in value}
    if wrong := sorted(name for name in names if not name or "," in name):
        raise ValueError(f"found a label {wrong[0]!r} in a list, wanted a name without commas")
    return tuple(sorted(names))


def task_of_labels(label: str, clips: Collection[Clip]) -> Task | None:
    """The task that the labels of a dataset define; None where no clip has that label."""
    values = [clip.labels[label] for clip in clips if label in clip.labels]
    match values:
        case []:
            return None
        case [str(), *_]:
            return task_for("classes", label, values)
        case [tuple(), *_]:
            return task_for("labels", label, values)
        case _:
            return Task(kind="regression", label=label)


def float_of(value: object) -> float | None:
    """A cell as a number, where it is one."""
    try:
        return float(value)  # type: ignore[arg-type] # what float() refuses is the answer
    except (TypeError, ValueError):
        return None


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)
