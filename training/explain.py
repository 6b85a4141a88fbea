"""What each stream does to what a model says of a clip."""

import json
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.batch import FusionBatch, Sample, collate
from training.missing import without
from training.models.feedback import Explanation
from training.recipe import Task


@runtime_checkable
class Explaining(Protocol):
    """A model that tells how far it lets each stream through."""

    def explain(self, batch: FusionBatch) -> Explanation:
        """The masks. Raises ValueError when the model was built without any."""


def explained(
    model: nn.Module,
    sample: Sample,
    widths: Mapping[str, int],
    task: Task,
    *,
    answer: Mapping[str, Any],
    said: Callable[[NDArray[np.float32]], Mapping[str, Any]],
) -> dict[str, Any]:
    """What is said of a clip with each stream taken away, and the model's masks.

    Args:
        model: In evaluation mode.
        sample: The clip.
        widths: Dimensions of each stream.
        task: What is predicted.
        answer: What is said of the whole clip.
        said: Makes prediction and scores of outputs [K].

    Returns:
        `without` and `masks`, see `training.predict.Predictor.explain`.
    """
    batch = collate([sample], widths)
    there = [name for name, values in sample.values.items() if values is not None]
    taken: dict[str, dict[str, Any] | None] = {}
    for name in there:
        if len(there) == 1:
            taken[name] = None
            continue
        with torch.no_grad():
            outputs_K = model(without(batch, [name]))[0].numpy()
        if not np.isfinite(outputs_K).all():  # no number, and no class either
            taken[name] = {"prediction": None, "scores": "", "change": None}
            continue
        less = dict(said(outputs_K))
        taken[name] = {**less, "change": _change(task, answer, less)}
    shown = {name: clips[0] for name, clips in masks(model, batch).items() if name in there}
    return {"without": taken, "masks": shown}


def _change(task: Task, answer: Mapping[str, Any], less: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    """How far a number moves; or the probability of the class, or those of all labels."""
    if task.kind == "regression":
        return less["prediction"] - answer["prediction"]
    whole, rest = json.loads(answer["scores"]), json.loads(less["scores"])
    moved = {name: rest[name] - share for name, share in whole.items()}
    return moved[answer["prediction"]] if task.kind == "classes" else moved


def masks(model: nn.Module, batch: FusionBatch) -> dict[str, list[list[float | None]]]:
    """How far a model lets each stream through: by stream, for each clip, at each step.

    It is the mean of the stream's mask, between 0 and 1, and None where the clip has nothing. Of a
    model without masks there is nothing.
    """
    if not isinstance(model, Explaining):
        return {}
    with torch.no_grad():
        try:
            means = model.explain(batch).means
        except ValueError:  # it was built without masks
            return {}
    return {
        name: [
            # A stream that no clip of the batch has is one masked step, however many others have.
            [float(mean) if there else None for mean, there in zip_longest(*clip, fillvalue=False)]
            for clip in zip(means_BT, batch.streams[name].mask, strict=True)
        ]
        for name, means_BT in means.items()
    }
