"""How much each class counts in training: what is rare may count for more."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from training.order import GlobalBatch
from training.recipe import Recipe, Target


def class_weights(recipe: Recipe, targets: Iterable[Target]) -> dict[str, float]:
    """The weight of each class or label by name, none where nothing is weighed.

    "balanced" is for classes clips / (classes x clips of the class), so that all classes together
    count as much as their clips do; for labels it is clips without the label / clips with it, the
    `pos_weight` of PyTorch. What no clip has counts 1.

    Args:
        recipe: Says which weights.
        targets: Of the training split.
    """
    asked, task = recipe.class_weights, recipe.task
    if asked == "none":
        return {}
    if isinstance(asked, Mapping):
        return {name: float(asked.get(name, 1.0)) for name in task.classes}
    plain: list[Any] = list(targets)
    if task.kind == "labels":
        having = np.array(plain, dtype=np.float64).sum(axis=0)
        against = len(plain) - having
    else:
        having = np.bincount(np.array(plain), minlength=len(task.classes)).astype(np.float64)
        against = np.full(len(having), len(plain) / len(having))
    none = (having == 0) | (against == 0)
    weights = np.where(none, 1.0, against / np.maximum(having, 1))
    return dict(zip(task.classes, weights.tolist(), strict=True))


def weighed(
    batch: GlobalBatch, weights: Mapping[str, float], targets: Mapping[str, Target]
) -> GlobalBatch:
    """A global batch whose clips have the weights of their classes.

    Args:
        batch: Of clips of one class each.
        weights: By class, in the order of the task.
        targets: The number of each clip's class, by key.
    """
    listed = list(weights.values())
    # One class each, so targets are whole numbers.
    return tuple((key, weight * listed[int(targets[key])]) for key, weight in batch)  # type: ignore[arg-type]
