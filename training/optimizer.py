"""What an optimizer is told of each parameter: its learning rate and its weight decay."""

from collections.abc import Iterator
from typing import TypedDict

from torch import nn

from training.models.end_to_end import EndToEnd
from training.recipe import Recipe


class Group(TypedDict):
    """Parameters that are treated alike."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


def groups(model: nn.Module, recipe: Recipe) -> list[Group]:
    """The parameters that are trained, by learning rate and weight decay.

    The fusion model is one group, as every model without encoders is. Of an encoder, the last layer
    has the encoder's learning rate, and each layer below it the share `layer_decay` of that (J.
    Howard, S. Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018);
    norms and biases do not decay. What is frozen is in no group.
    """
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, rate, decay in _each(model, recipe):
        if parameter.requires_grad:
            found.setdefault((rate, decay), []).append(parameter)
    return [
        Group(params=parameters, lr=rate, weight_decay=decay)
        for (rate, decay), parameters in found.items()
    ]


def _each(model: nn.Module, recipe: Recipe) -> Iterator[tuple[nn.Parameter, float, float]]:
    """Each parameter with its learning rate and its weight decay."""
    parts = [model]
    if isinstance(model, EndToEnd):
        parts = [model.fusion, model.projections]
    for part in parts:
        for parameter in part.parameters():
            yield parameter, recipe.learning_rate, recipe.weight_decay
    if not isinstance(model, EndToEnd):
        return
    for name, encoder in model.trained():
        settings = recipe.model.encoders[name]
        for _, parameter, depth in encoder.depths():
            below = max(0, encoder.layers - depth)
            rate = settings.learning_rate * settings.layer_decay**below
            yield parameter, rate, recipe.weight_decay if parameter.dim() > 1 else 0.0
