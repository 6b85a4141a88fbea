"""Clips of one length out of clips of many: what networks of a fixed size are given.

Only valid steps count, and each clip's own number of them: padding changes nothing. A clip without
a valid step is 0 throughout.

Shapes: B clips, T steps, D dimensions, N steps that are wanted.
"""

import torch
from torch import Tensor

from training.batch import Stream


def evenly(stream: Stream, count: int) -> Tensor:
    """Steps that lie evenly over each clip, [B, N, D].

    A clip's n valid steps are cut into N equal parts, and of each part the step in its middle is
    taken, floor((i + 1/2) n / N). A clip of fewer steps repeats some.
    """
    valid_B1 = stream.mask.sum(1, keepdim=True)
    odd_N = 2 * torch.arange(count, device=stream.mask.device) + 1
    taken_BND = _taken(stream, odd_N * valid_B1 // (2 * count))
    return taken_BND.masked_fill((valid_B1 == 0).unsqueeze(2), 0.0)


def first(stream: Stream, count: int) -> Tensor:
    """The first valid steps of each clip, [B, N, D]; 0 after the last one of a shorter clip."""
    valid_B1 = stream.mask.sum(1, keepdim=True)
    step_N = torch.arange(count, device=stream.mask.device)
    taken_BND = _taken(stream, step_N.clamp(max=stream.mask.shape[1] - 1).expand(len(valid_B1), -1))
    return taken_BND.masked_fill((step_N >= valid_B1).unsqueeze(2), 0.0)


def _taken(stream: Stream, wanted_BN: Tensor) -> Tensor:
    """Steps by their number among the valid ones."""
    order_BT = stream.mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    row_B1 = torch.arange(len(order_BT), device=order_BT.device).unsqueeze(1)
    return stream.values[row_B1, order_BT.gather(1, wanted_BN)]
