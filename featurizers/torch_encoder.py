"""Runs a model of torch over items: on a GPU where there is one, in batches of like lengths."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

from numpy.typing import NDArray

from featurizers.pretrained import Model

DType: TypeAlias = Literal["float32", "float16", "bfloat16"]
DTYPES: tuple[DType, ...] = get_args(DType)

# How far numbers may move between batches, threads, processors and devices; seen far less.
ATOL: dict[str, float] = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-1}

# torch is loaded where it is used.
Tensor: TypeAlias = Any
Output: TypeAlias = Any
"""What a model of transformers gives: last_hidden_state, hidden_states and the like."""

Run: TypeAlias = Callable[[Model, Sequence[NDArray[Any]], str], Sequence[Tensor]]
"""Takes the model, items of like lengths and the device; gives a tensor for each item."""


class TorchEncoder:
    """Encodes items of several clips at once, each as it would be alone.

    The model is loaded when the first item comes.

    Args:
        load: Makes the model, in evaluation mode.
        run: Runs it.
        batch: How many items at once, on a CPU and on a GPU.
        slack: Items run together whose lengths differ by no more than this share, since shorter
            ones are padded; on a CPU and on a GPU; 0 for models that take no padding.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        run: Run,
        *,
        batch: tuple[int, int],
        slack: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self._load, self._run, self._batches, self._slack = load, run, batch, slack
        self._batch: int | None = None
        self._model: Model = None

    @property
    def device(self) -> str:
        """Where it computes: "cuda" when this process was given a GPU, else "cpu"."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def batch(self) -> int:
        """How many items at once."""
        if self._batch is None:
            self._batch = self._batches[self.device == "cuda"]
        return self._batch

    @batch.setter
    def batch(self, batch: int) -> None:
        self._batch = batch

    def encode(self, items: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """A float32 array for each item."""
        import torch

        if self._model is None:
            self._model = self._load().to(self.device)
        found: dict[int, NDArray[Any]] = {}
        # TF32 keeps 10 bits of a number: far less than float32 promises.
        slack = self._slack[self.device == "cuda"]
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            for group in alike([len(item) for item in items], slack):
                encoded = self._run(self._model, [items[number] for number in group], self.device)
                for number, tensor in zip(group, encoded, strict=True):
                    found[number] = tensor.float().cpu().numpy()
        return [found[number] for number in range(len(items))]


def alike(lengths: Sequence[int], slack: float) -> list[list[int]]:
    """Numbers of items in groups of like lengths: none is longer by more than a share `slack`."""
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda each: (lengths[each], each)):
        if groups and lengths[number] <= lengths[groups[-1][0]] * (1 + slack):
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def padded(items: Sequence[NDArray[Any]], filling: float, device: str) -> tuple[Tensor, Tensor]:
    """Items [n] as one tensor [B, longest] on the device, and its mask (True = valid)."""
    import numpy as np
    import torch

    longest = max(len(item) for item in items)
    values = np.full((len(items), longest), filling, dtype=items[0].dtype)
    mask = np.zeros((len(items), longest), dtype=bool)
    for row, item in enumerate(items):
        values[row, : len(item)] = item
        mask[row, : len(item)] = True
    return torch.from_numpy(values).to(device), torch.from_numpy(mask).to(device)


def check_dtype(name: str, dtype: str) -> None:
    """Raise ValueError when weights cannot be kept in this type."""
    if dtype not in DTYPES:
        raise ValueError(f"{name}: dtype is {dtype!r}; wanted {', '.join(DTYPES)}")


def layers_of(name: str, layers: str, count: int) -> tuple[int, ...]:
    """The numbers of the layers that are averaged; none of them stands for the model's output.

    Args:
        name: The featurizer's.
        layers: "last" (the model's output), "mean" (all layers), a number, or two as in "9-12";
            0 is what enters the first layer, `count` what leaves the last one.
        count: How many layers the model has.

    Raises:
        ValueError: There is no such layer.
    """
    if layers == "last":
        return ()
    first, _, last = ("1", "", str(count)) if layers == "mean" else layers.partition("-")
    if first.isdecimal() and (last or first).isdecimal():
        low, high = int(first), int(last or first)
        if low <= high <= count:
            return tuple(range(low, high + 1))
    raise ValueError(
        f"{name}: layers is {layers!r}; wanted last, mean, a number from 0 to {count}, or two such "
        f"as 1-{count}"
    )


def averaged(output: Output, layers: Sequence[int]) -> Tensor:
    """The mean of some layers [B, T, D] of a model's output; its last state when there are none."""
    import torch

    if not layers:
        return output.last_hidden_state
    if len(layers) == 1:
        return output.hidden_states[layers[0]]
    return torch.stack([output.hidden_states[layer] for layer in layers]).float().mean(dim=0)
