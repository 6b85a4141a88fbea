"""The optimizer's step behind rounded weights that are not split, for all parameters together.

For those (bf16, stage 0) DeepSpeed 0.19.8 goes from one parameter to the next, with some twenty
operations for each, and waits for the device at each to ask whether its gradient is finite. Models
with many small weights then spend more time there than in all layers. Held by
test_a_bf16_step_waits_once_however_many_weights_there_are; may go when DeepSpeed does not wait.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def together(optimizer: Any) -> Callable[[], bool]:  # noqa: ANN401 - of DeepSpeed
    """A step to be taken in place of its own.

    It does what that does: the gradients in float32, clipped by the norm of all of them, AdamW on
    the exact weights, which are rounded into the model's. Weights without a gradient have one of
    zeros. Where the norm is not finite the step is left out.

    Args:
        optimizer: DeepSpeed's FP16_UnfusedOptimizer.

    Returns:
        The step, which says whether it was left out.
    """
    rounded = [each for group in optimizer.fp16_groups for each in group]
    exact = [each for group in optimizer.fp32_groups for each in group]

    @torch.no_grad()
    def step() -> bool:
        for weight, master in zip(rounded, exact, strict=True):
            empty = torch.zeros_like if weight.grad is None else torch.empty_like
            master.grad = empty(master)
        given = [
            (weight.grad, master.grad)
            for weight, master in zip(rounded, exact, strict=True)
            if weight.grad is not None
        ]
        _copy([mine for _, mine in given], [theirs for theirs, _ in given])
        norm = nn.utils.get_total_norm([master.grad for master in exact])
        found = float(norm)
        if not math.isfinite(found):
            return bool(optimizer._skip_invalid_grad_norm())  # noqa: SLF001 - see above
        optimizer.overflow = False
        optimizer._global_grad_norm = found  # noqa: SLF001 - DeepSpeed's engine reads it
        optimizer._update_scale(False)  # noqa: SLF001 - it counts steps there
        if optimizer.clip_grad > 0:
            nn.utils.clip_grads_with_norm_(exact, optimizer.clip_grad, norm)
        optimizer.optimizer.step()
        _copy(rounded, exact)
        for master in exact:
            master.grad = None
        return False

    return step


def _copy(to: list[torch.Tensor], of: list[torch.Tensor]) -> None:
    """Copy many tensors at once."""
    if to:
        torch._foreach_copy_(to, of)
