"""Weights that were saved by authors' code, by our names: what their layers are called there."""

from collections.abc import Mapping

from torch import Tensor


def renamed(
    state: Mapping[str, Tensor], names: Mapping[str, str], network: str
) -> dict[str, Tensor]:
    """A state with other beginnings of its names.

    Args:
        state: As released.
        names: Our beginning by the released one, each with the dot that ends it.
        network: What it is, for the message.

    Raises:
        KeyError: A tensor has a name that the released network does not have.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        old = next((old for old in names if name.startswith(old)), None)
        if old is None:
            raise KeyError(f"{name!r} is no tensor of the released {network}")
        found[names[old] + name.removeprefix(old)] = tensor
    return found
