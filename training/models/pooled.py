"""The mean of a large map, and the map times a factor for each channel, in few passes over memory.

y = x * a, where a follows from the mean of x, as in every attention over channels. Left to
themselves, the gradients of mean and product each write whole maps that are then added: g * a,
g * x, and the mean's gradient spread out. Here the gradient of x is written once, and the gradient
of the factor not at all at full size. Under torch.compile, which joins these passes by itself,
plain operators are used.

The first `first` axes of a map are kept by the mean; those after them are what is pooled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Scale: TypeAlias = Callable[[Tensor], Tensor]
"""The map times a factor that has its kept axes, or 1 in their place."""


@dataclass(slots=True)
class _Carry:
    """What the product's gradient leaves for the mean's: both are parts of the map's."""

    grad: Tensor | None = None
    factor: Tensor | None = None


class _MeanContext(Protocol):
    """What the mean's node keeps for its gradient."""

    carry: _Carry
    shape: torch.Size
    first: int

    def set_materialize_grads(self, value: bool, /) -> None:
        """Whether gradients that are not there come as zeros, or as None."""


class _ProductContext(Protocol):
    """What the product's node keeps for its gradient."""

    carry: _Carry
    saved_tensors: tuple[Tensor, Tensor]

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors of the graph."""


def pool(x: Tensor, first: int) -> tuple[Tensor, Scale]:
    """The mean of a map over all axes from `first` on, and what multiplies the map.

    Scale it once. First derivatives only.
    """
    if x.dim() == first:
        return x, lambda factor: x * factor.to(x.dtype)
    if torch.compiler.is_compiling():
        return x.mean(_pooled(x, first)), lambda factor: x * _spread(factor.to(x.dtype), x)
    carry = _Carry()
    mean, token = _Mean.apply(x, first, carry)  # type: ignore[no-untyped-call]
    return mean, lambda factor: _product(x, factor, token, carry)


def _product(x: Tensor, factor: Tensor, token: Tensor, carry: _Carry) -> Tensor:
    factor = factor.to(x.dtype)  # under autocast it is wider, and the map should not become so
    y: Tensor = _Product.apply(x.detach(), factor, token, carry)  # type: ignore[no-untyped-call]
    return y


def _pooled(x: Tensor, first: int) -> tuple[int, ...]:
    return tuple(range(first, x.dim()))


def _spread(factor: Tensor, x: Tensor) -> Tensor:
    return factor.reshape(*factor.shape, *[1] * (x.dim() - factor.dim()))


class _Mean(torch.autograd.Function):
    """The mean, and a token that makes this node wait for the product's gradient."""

    @staticmethod
    def forward(ctx: _MeanContext, x: Tensor, first: int, carry: _Carry) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.carry, ctx.shape, ctx.first = carry, x.shape, first
        return x.mean(_pooled(x, first)), x.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(
        ctx: _MeanContext, grad_mean: Tensor | None, grad_token: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        carry = ctx.carry
        spread = None
        if grad_mean is not None:
            shape = (*grad_mean.shape, *[1] * (len(ctx.shape) - ctx.first))
            spread = (grad_mean / ctx.shape[ctx.first :].numel()).reshape(shape)
        # Without the token's gradient the product had no part in this pass, whatever is left of
        # an earlier one.
        if grad_token is None or carry.grad is None or carry.factor is None:
            return None if spread is None else spread.expand(ctx.shape), None, None
        grad, factor = carry.grad, carry.factor
        carry.grad = carry.factor = None
        if spread is None:
            return grad * factor, None, None
        return torch.addcmul(spread, grad, factor), None, None


class _Product(torch.autograd.Function):
    """x * factor; what x gets of the gradient is left to the mean's node."""

    @staticmethod
    def forward(
        ctx: _ProductContext, x: Tensor, factor: Tensor, _token: Tensor, carry: _Carry
    ) -> Tensor:
        ctx.carry = carry
        ctx.save_for_backward(x, factor)
        return x * _spread(factor, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: _ProductContext, grad: Tensor) -> tuple[None, Tensor, Tensor, None]:
        x, factor = ctx.saved_tensors
        carry = ctx.carry
        carry.grad, carry.factor = grad, _spread(factor, x)
        kept = x.shape[: factor.dim()]
        pooled = x.shape[factor.dim() :].numel()
        products = torch.bmm(grad.reshape(-1, 1, pooled), x.reshape(-1, pooled, 1))
        return None, products.view(kept).sum_to_size(factor.shape), grad.new_zeros(()), None
