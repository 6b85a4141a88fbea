"""The loss of each clip, and a model whose losses are its own as one that is called."""

from collections.abc import Sequence
from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.batch import Criterion, FusionBatch, OwnLosses
from training.recipe import Recipe


def clip_losses(
    outputs: Tensor, target: Tensor, recipe: Recipe, positive: Sequence[float] = ()
) -> Tensor:
    """The loss of each clip, unweighted, in float32: [B].

    Args:
        outputs: [B, K].
        target: Float [B] for a regression, int64 [B] for classes, float [B, K] for labels.
        recipe: Says which loss.
        positive: For labels, how much a clip that has one counts beside a clip that does not; all
            alike where none are given.
    """
    outputs = outputs.float()
    match recipe.loss:
        case "l1":
            return (outputs[:, 0] - target).abs()
        case "mse":
            return (outputs[:, 0] - target).square()
        case "cross_entropy":
            return functional.cross_entropy(outputs, target, reduction="none")
        case "bce":
            each = functional.binary_cross_entropy_with_logits(
                outputs,
                target,
                pos_weight=outputs.new_tensor(positive) if positive else None,
                reduction="none",
            )
            return each.mean(dim=1)
        case unknown:
            assert_never(unknown)


class SumOfLosses(nn.Module):
    """A model with losses of its own. DeepSpeed prepares for a step in `forward` alone."""

    def __init__(self, model: OwnLosses) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: FusionBatch, criterion: Criterion | None = None) -> Tensor:
        """The sum of its losses of each clip [B]; without a criterion the outputs [B, K]."""
        if criterion is None:
            return self.model.forward(batch)
        return torch.stack(list(self.model.losses(batch, criterion).values())).sum(0)
