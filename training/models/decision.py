"""Decision-level fusion: a whole model for each stream, and one rule for what they say.

The average and the product of class probabilities are the sum and the product rule of J. Kittler,
M. Hatef, R. Duin, J. Matas, "On Combining Classifiers", IEEE Transactions on Pattern Analysis and
Machine Intelligence 20(3), 1998. The models are trained together, by the loss of what the rule
gives, or each by its own; nothing else connects them, so streams need not share a time base.

A stream that a clip lacks has no say on it; of a clip that lacks all, each model says what it says
of nothing.

Shapes: M streams, B clips, K outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from training.batch import Criterion, FusionBatch
from training.models.blocks import FusionSettings
from training.models.late_fusion import LateFusion

Rule: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Outputs [B, K] from what each model says [M, B, K] and who has a say [M, B, 1]."""


Objective: TypeAlias = Literal["fused", "branches", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionSettings(FusionSettings):
    """Settings of each stream's model, and what the outputs mean.

    Attributes:
        labels: Each output is a label that may or may not be there, not one of some classes; the
            named recipes know it from the task.
        objective: What training makes less: the loss of what the rule gives ("fused"), those of
            what each model says ("branches", as if each were trained alone), or "both".
    """

    labels: bool = False
    objective: Objective = "fused"


class DecisionFusion(nn.Module):
    """The unimodal model of each stream, and a rule.

    Args:
        streams: Names in order.
        widths: Dimensions by stream.
        outputs: K.
        settings: Sizes and dropout of each model.
        rule: What becomes of their outputs.
    """

    def __init__(
        self,
        streams: Sequence[str],
        widths: Mapping[str, int],
        outputs: int,
        settings: DecisionSettings,
        rule: Rule,
    ) -> None:
        super().__init__()
        self.streams = tuple(streams)
        self.rule, self.objective = rule, settings.objective
        self.models = nn.ModuleList(
            LateFusion((name,), widths, outputs, settings) for name in self.streams
        )

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]: a number, logarithms of probabilities of classes, or logits of labels.

        Raises:
            ValueError: The batch has other streams than the model was built for.
        """
        return self.rule(*self._said(batch))

    def losses(self, batch: FusionBatch, criterion: Criterion) -> dict[str, Tensor]:
        """Losses of each clip [B]: "fused", and by stream; 0 where a stream has no say."""
        said_MBK, has_say_MB1 = self._said(batch)
        found: dict[str, Tensor] = {}
        if self.objective != "branches":
            found["fused"] = criterion(self.rule(said_MBK, has_say_MB1))
        if self.objective != "fused":
            for name, said_BK, has_say_B1 in zip(self.streams, said_MBK, has_say_MB1, strict=True):
                found[name] = criterion(said_BK) * has_say_B1.squeeze(1)
        return found

    def _said(self, batch: FusionBatch) -> tuple[Tensor, Tensor]:
        """What each model says [M, B, K], and who has a say [M, B, 1]."""
        said_MBK = torch.stack([model(batch) for model in self.models])
        there_MB = torch.stack([batch.streams[name].mask.any(1) for name in self.streams])
        has_say_MB = there_MB | ~there_MB.any(0)
        return said_MBK, has_say_MB.unsqueeze(2)


def decision_average(
    streams: Sequence[str], widths: Mapping[str, int], outputs: int, settings: DecisionSettings
) -> DecisionFusion:
    """The mean of what the models say: of numbers, or of probabilities."""
    if settings.labels:
        return DecisionFusion(streams, widths, outputs, settings, each_label(mean_probability))
    rule = mean_number if outputs == 1 else mean_probability
    return DecisionFusion(streams, widths, outputs, settings, rule)


def decision_product(
    streams: Sequence[str], widths: Mapping[str, int], outputs: int, settings: DecisionSettings
) -> DecisionFusion:
    """The product of the probabilities that the models give, renormalised.

    Raises:
        ValueError: For a regression.
    """
    if settings.labels:
        return DecisionFusion(streams, widths, outputs, settings, each_label(product))
    if outputs == 1:
        raise ValueError(
            "'decision_product' multiplies probabilities of classes, and a regression has none; "
            "'decision_average' averages numbers"
        )
    return DecisionFusion(streams, widths, outputs, settings, product)


def mean_number(said_MBK: Tensor, has_say_MB1: Tensor) -> Tensor:
    """The mean of those who have a say."""
    return said_MBK.masked_fill(~has_say_MB1, 0.0).sum(0) / has_say_MB1.sum(0)


def mean_probability(said_MBK: Tensor, has_say_MB1: Tensor) -> Tensor:
    """The logarithm of the mean probability of those who have a say."""
    logs_MBK = said_MBK.log_softmax(2).masked_fill(~has_say_MB1, -torch.inf)
    return logs_MBK.logsumexp(0) - has_say_MB1.sum(0).to(said_MBK.dtype).log()


def product(said_MBK: Tensor, has_say_MB1: Tensor) -> Tensor:
    """The logarithm of the product of the probabilities of those who have a say, renormalised."""
    logs_MBK = said_MBK.log_softmax(2).masked_fill(~has_say_MB1, 0.0)
    return logs_MBK.sum(0).log_softmax(1)


def each_label(rule: Rule) -> Rule:
    """The rule for each label by itself, which is there or not: from logits to a logit."""

    def by_label(said_MBK: Tensor, has_say_MB1: Tensor) -> Tensor:
        models, clips, labels = said_MBK.shape
        both_MN2 = torch.stack([said_MBK, torch.zeros_like(said_MBK)], 3).view(models, -1, 2)
        has_say_MN1 = has_say_MB1.expand(-1, -1, labels).reshape(models, -1, 1)
        there_N, not_N = rule(both_MN2, has_say_MN1).unbind(1)
        return (there_N - not_N).view(clips, labels)

    return by_label
