"""Clips of like length together: a batch in a few groups, none longer than its longest clip.

By the padding law of `training.batch.FusionModel` clips do not depend on what they are padded to,
nor on each other, so a batch may be computed in parts. On a CPU time goes by rows that are read,
padding or not; utterances of mean length 21 in a batch of 50 steps are computed in half the time.
A GPU would wait for the lengths and do the parts one after the other, so there it is left alone.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from training.models.blocks import FusionSettings, Steps, fixed_steps

GROUP = 16
"""Clips in a group. Recurrences take as long for each row with these as with more clips."""
WORTH = 0.9
"""Groups are made when at most this share of the rows is left."""


def by_length(
    values: Sequence[Tensor],
    steps: Steps,
    settings: FusionSettings,
    compute: Callable[[Sequence[Tensor], Steps], Tensor],
) -> Tensor:
    """Outputs [B, K] of `compute`, for whole batches or for groups of their clips.

    Args:
        values: [B, T, D] by stream.
        steps: What each step counts for.
        settings: With `reference`, clips depend on each other, and the batch stays whole.
        compute: Outputs of some clips.
    """
    groups = [] if settings.reference else length_groups(steps.valid)
    if not groups:
        return compute(values, steps)
    outputs: list[Tensor] = []
    for rows, longest in groups:
        valid_MBT = steps.valid[:, :, :longest].index_select(1, rows)
        own = fixed_steps(valid_MBT, settings.pooling, values[0].dtype)
        outputs.append(compute([x[:, :longest].index_select(0, rows) for x in values], own))
    places = torch.cat([rows for rows, _ in groups]).argsort()
    return torch.cat(outputs).index_select(0, places)


def length_groups(valid_MBT: Tensor) -> list[tuple[Tensor, int]]:
    """The rows of each group with its steps, longest first; none when groups would not help."""
    _, clips, steps = valid_MBT.shape
    if valid_MBT.device.type != "cpu" or clips <= GROUP:
        return []
    lengths_B = (valid_MBT.any(0) * torch.arange(1, steps + 1)).amax(1).clamp(min=1)
    ordered, order = lengths_B.sort(descending=True, stable=True)
    groups = [(order[at : at + GROUP], int(ordered[at])) for at in range(0, clips, GROUP)]
    rows = sum(len(group) * longest for group, longest in groups)
    return groups if rows <= WORTH * clips * steps else []
