"""What promotion asks of a registry of models."""

from collections.abc import Mapping
from typing import Protocol


class UnknownModelError(ValueError):
    """No registered model, version or alias of that name."""


class UnknownVersionError(UnknownModelError):
    """The model has no such version."""

    def __init__(self, name: str, version: int, known: list[int]) -> None:
        there = ", ".join(map(str, known)) or "none"
        super().__init__(f"model {name!r} has no version {version}; those that exist: {there}")


class Registry(Protocol):
    """What promotion asks of a registry; `UnknownModelError` when the model is not registered."""

    def names(self) -> list[str]:
        """Registered models, sorted."""

    def versions(self, name: str) -> list[int]:
        """Versions that exist, ascending."""

    def ledger(self, name: str) -> dict[str, str]:
        """All texts that were written once, by key; empty where nothing was."""

    def write_once(self, name: str, key: str, text: str) -> str:
        """Write unless something stands there; what stands there now is returned."""

    def aliases(self, name: str) -> dict[str, int]:
        """The version behind each alias."""

    def set_alias(self, name: str, alias: str, version: int | None) -> None:
        """Point an alias at a version that exists, or remove it."""

    def set_tags(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Tags of a version that exists; later values replace earlier ones."""
