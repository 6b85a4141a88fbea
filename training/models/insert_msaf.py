"""MSAF between the layers of networks that are not edited, and need not know of it.

    fused = insert_msaf({"video": resnet, "audio": cnn}, at=[{"video": "layer3", "audio": "conv2"}])
    outputs = fused({"video": frames, "audio": mfcc})

Source: L. Su, C. Hu, G. Li, D. Cao, "MSAF: Multimodal Split Attention Fusion", arXiv 2012.07175,
whose promise this keeps: it fuses "features of any unimodal networks" with the weights that they
have.
"""

import copy
import difflib
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from training.models.in_step import Inputs, Walk
from training.models.msaf import Msaf, MsafSettings

Point: TypeAlias = Mapping[str, str]
"""Where one MSAF module stands: the layer of each branch, by its name in the branch."""


def insert_msaf(
    branches: Mapping[str, nn.Module],
    at: Sequence[Point],
    settings: MsafSettings | Sequence[MsafSettings] | None = None,
    *,
    widths: Mapping[str, Sequence[int]] | None = None,
    channels: Mapping[str, int | Sequence[int]] | None = None,
) -> "InsertedMsaf":
    """Networks that run in step, with an MSAF module behind some of their layers.

    Args:
        branches: Networks by name, as they are. Their weights are shared, not copied.
        at: The points, in the order in which the forward passes come to them; a point names layers
            of two branches or more.
        settings: Of all modules, or of each.
        widths: By branch, the channels of its layers at its points, for layers that do not tell. A
            layer tells by the last convolution, linear layer, normalisation or recurrence in it.
        channels: By branch, the axis of the channels in what its layers give, one for all or one
            for each of its points: 1 unless said, as in convolutions; transformers have -1.

    Raises:
        ValueError: A layer does not exist, or a point or width cannot be.
    """
    _check_points(branches, at)
    each = (
        [settings or MsafSettings()] * len(at) if not isinstance(settings, Sequence) else settings
    )
    if len(each) != len(at):
        raise ValueError(f"{len(each)} settings for {len(at)} points; give one, or one for each")
    for name in {**(widths or {}), **(channels or {})}:
        if name not in branches:
            raise ValueError(f"there is no branch {name!r}; {_nearest(name, list(branches))}")
    found = {name: _widths(name, branches[name], at, widths) for name in branches}
    axes = {name: _by_point(name, at, (channels or {}).get(name, 1)) for name in branches}
    fusions = [
        Msaf([found[name][p] for name in point], chosen)
        for p, (point, chosen) in enumerate(zip(at, each, strict=True))
    ]
    return InsertedMsaf(branches, at, fusions, axes)


class InsertedMsaf(nn.Module):
    """Branches and what was inserted between their layers; made by `insert_msaf`.

    Called by itself, a branch (`branches[NAME]`) is the network that it was. State is under
    branches.NAME and fusions.POINT.
    """

    def __init__(
        self,
        branches: Mapping[str, nn.Module],
        at: Sequence[Point],
        fusions: Sequence[Msaf],
        axes: Mapping[str, Mapping[int, int]],
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        self.fusions = nn.ModuleList(fusions)
        self.widths = tuple(fusion.channels for fusion in fusions)
        self.at = tuple(dict(point) for point in at)
        self.axes = axes

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(
        self, inputs: Mapping[str, Inputs], masks: Mapping[str, Tensor] | None = None
    ) -> dict[str, Any]:
        """What each branch returns, by name.

        Args:
            inputs: By branch: a tensor, a sequence of arguments, or arguments by name.
            masks: By branch, where it is not valid throughout: [B, T] or [B, 1], True where valid.
                At a layer with another number of steps it is stretched or thinned to them.

        Raises:
            ValueError: A branch has no input, or a layer gives something other than was expected.
            RuntimeError: A branch does not pass its layers once each, in order.
        """
        self._check(inputs, masks or {})
        with ExitStack() as stack:
            walks = {
                name: stack.enter_context(Walk(name, network, self._layers(name), inputs[name]))
                for name, network in self.branches.items()
            }
            # What the layer at which a branch halts gives in place of its own output.
            instead: dict[str, object] = {}
            for number, point in enumerate(self.at):
                given = {name: walks[name].advance(instead.pop(name, None)) for name in point}
                instead |= self._fuse(number, given, masks or {})
            return {name: walk.advance(instead.pop(name, None)) for name, walk in walks.items()}

    def _layers(self, name: str) -> dict[str, nn.Module]:
        network = self.branches[name]
        return {
            point[name]: network.get_submodule(point[name]) for point in self.at if name in point
        }

    def _fuse(
        self, number: int, given: Mapping[str, object], masks: Mapping[str, Tensor]
    ) -> dict[str, object]:
        """Outputs of layers with their tensors fused."""
        fusion, point = self.fusions[number], self.at[number]
        tensors, valid = [], []
        for (name, output), width in zip(given.items(), self.widths[number], strict=True):
            where = f"{point[name]!r} of branch {name!r}"
            axis = self.axes[name][number]
            x = _channels_first(_tensor_in(output, where), axis, where)
            if x.shape[1] != width:
                raise ValueError(
                    f"{where} gives {x.shape[1]} channels in axis {axis}; MSAF was built for "
                    f"{width}: give insert_msaf the widths, or the axis as channels"
                )
            tensors.append(x)
            valid.append(_steps(masks[name], x) if name in masks else None)
        fused = fusion(tensors, None if all(mask is None for mask in valid) else valid)
        return {
            name: _with_tensor(output, y.movedim(1, self.axes[name][number]))
            for (name, output), y in zip(given.items(), fused, strict=True)
        }

    def _check(self, inputs: Mapping[str, Inputs], masks: Mapping[str, Tensor]) -> None:
        known = list(self.branches)
        for name in {**inputs, **masks}:
            if name not in self.branches:
                raise ValueError(f"there is no branch {name!r}; {_nearest(name, known)}")
        missing = [name for name in known if name not in inputs]
        if missing:
            raise ValueError(
                f"branches {missing} have no input; a clip that lacks a modality has values of 0 "
                f"there, and a mask that is False"
            )


def _check_points(branches: Mapping[str, nn.Module], at: Sequence[Point]) -> None:
    if not at:
        raise ValueError("there is no point at which to insert MSAF; name layers in `at`")
    for number, point in enumerate(at):
        if len(point) < 2:
            raise ValueError(
                f"point {number} names layers of {list(point)}; MSAF fuses two branches or more"
            )
        for name, layer in point.items():
            _check_layer(branches, name, layer)
    for name in branches:
        layers = [point[name] for point in at if name in point]
        if not layers or len(set(layers)) < len(layers):
            raise ValueError(
                f"branch {name!r} is fused behind {layers}; it takes part in one point at least, "
                f"each time behind another layer"
            )


def _check_layer(branches: Mapping[str, nn.Module], name: str, layer: str) -> None:
    if name not in branches:
        raise ValueError(f"there is no branch {name!r}; {_nearest(name, list(branches))}")
    layers = [each for each, _ in branches[name].named_modules() if each]
    if layer not in layers:
        raise ValueError(f"branch {name!r} has no layer {layer!r}; {_nearest(layer, layers)}")


def _widths(
    name: str,
    network: nn.Module,
    at: Sequence[Point],
    widths: Mapping[str, Sequence[int]] | None,
) -> dict[int, int]:
    """The channels of a branch at each point that it takes part in."""
    if widths is not None and name in widths:
        return _by_point(name, at, list(widths[name]))
    return {
        number: _width_of(network.get_submodule(point[name]), f"{point[name]!r} of branch {name!r}")
        for number, point in enumerate(at)
        if name in point
    }


def _by_point(name: str, at: Sequence[Point], given: int | Sequence[int]) -> dict[int, int]:
    numbers = [number for number, point in enumerate(at) if name in point]
    values = [given] * len(numbers) if isinstance(given, int) else given
    if len(values) != len(numbers):
        raise ValueError(
            f"branch {name!r} takes part in {len(numbers)} points, and {list(values)} was given; "
            f"give one number for each"
        )
    return dict(zip(numbers, values, strict=True))


def _width_of(layer: nn.Module, where: str) -> int:
    """The channels of what a layer gives, by the last part of it that tells."""
    for part in reversed(list(layer.modules())):
        width = _own_width(part)
        if width is not None:
            return width
    raise ValueError(
        f"{where} ({type(layer).__name__}) does not tell how many channels it gives; give "
        f"insert_msaf the widths of this branch"
    )


def _own_width(part: nn.Module) -> int | None:
    if isinstance(part, nn.LSTM | nn.GRU | nn.RNN):
        return (part.proj_size or part.hidden_size) * (2 if part.bidirectional else 1)
    if isinstance(part, nn.LayerNorm):
        return int(part.normalized_shape[-1])
    for attribute in ("out_channels", "out_features", "num_features", "num_channels"):
        width = getattr(part, attribute, None)
        if isinstance(width, int):
            return width
    return None


def _tensor_in(output: object, where: str) -> Tensor:
    """The tensor that a layer gives, or the first of what it gives."""
    first = output
    if isinstance(output, MutableMapping) and output:
        first = next(iter(output.values()))
    elif isinstance(output, tuple | list) and output:
        first = output[0]
    if isinstance(first, Tensor):
        return first
    raise ValueError(
        f"{where} gives {type(output).__name__}; MSAF takes a tensor, or a tuple, list or "
        f"mapping whose first element is one"
    )


def _with_tensor(output: object, tensor: Tensor) -> object:
    """The same output with another (first) tensor; what the layer gave stays as it is."""
    if isinstance(output, MutableMapping):
        changed = copy.copy(output)
        changed[next(iter(output))] = tensor
        return changed
    if not isinstance(output, tuple | list):
        return tensor
    whole = [tensor, *output[1:]]
    named = hasattr(output, "_fields")
    return type(output)(*whole) if named else type(output)(whole)


def _channels_first(x: Tensor, axis: int, where: str) -> Tensor:
    if not -x.dim() <= axis < x.dim() or axis % x.dim() == 0:
        raise ValueError(
            f"{where} gives {list(x.shape)}, which has no channels in axis {axis}; say in "
            f"`channels` which axis it is"
        )
    return x.movedim(axis, 1)


def _steps(mask: Tensor, x: Tensor) -> Tensor:
    """A mask with the steps of `x` [B, C, T, ...]: of each step, that of the place it lies at."""
    if x.dim() == 2:
        return mask.any(1, keepdim=True)
    given, steps = mask.shape[1], x.shape[2]
    if given in (1, steps):
        return mask
    return mask[:, torch.arange(steps, device=mask.device) * given // steps]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
    return f"the nearest are {', '.join(map(repr, close))}" if close else "none is known"
