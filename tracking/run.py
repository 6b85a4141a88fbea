"""A run: where settings, metrics, inputs and files of one training are written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class AwayError(Exception):
    """The server cannot be reached, or cannot answer, now; later it may."""


class Run(Protocol):
    """One training, as the tracking server sees it. All calls may be repeated."""

    @property
    def run_id(self) -> str:
        """The run's name on the server."""

    def log_settings(self, settings: Mapping[str, str | int | float | bool | None]) -> None:
        """Settings; a changed value for the same name is an error."""

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, at_ms: int | None = None
    ) -> None:
        """Numbers at a step (an epoch); of several for one step the latest hold.

        Args:
            metrics: By name.
            step: The step.
            at_ms: When they were found, in ms since 1970; now, unless given.
        """

    def log_dataset(self, name: str, digest: str, context: str) -> None:
        """The digest (sha256 in hex) of data that the run reads, for "train", "valid" or "test"."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags; later values replace earlier ones."""

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a file with the run."""

    def flush(self) -> None:
        """Return when all that was logged is on the server."""

    def finish(self, status: str = "FINISHED") -> None:
        """Settle the run: "FINISHED", "FAILED" or "KILLED"."""


@dataclass(slots=True)
class MemoryRun:
    """A run that is kept in memory: for trials and tests."""

    run_id: str = "memory"
    settings: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    datasets: dict[str, tuple[str, str]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    status: str = "RUNNING"

    def log_settings(self, settings: Mapping[str, str | int | float | bool | None]) -> None:
        """Keep settings; a changed value is an error, as on a server."""
        for name, value in settings.items():
            if self.settings.setdefault(name, value) != value:
                raise ValueError(
                    f"setting {name!r} is {self.settings[name]!r} already, "
                    f"it cannot become {value!r}"
                )

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, at_ms: int | None = None
    ) -> None:
        """Append."""
        del at_ms
        self.metrics.append((step, dict(metrics)))

    def log_dataset(self, name: str, digest: str, context: str) -> None:
        """Keep by context."""
        self.datasets[context] = (name, digest)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Replace."""
        self.tags.update(tags)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep the name alone."""
        self.files.append(f"{folder}/{path.name}" if folder else path.name)

    def flush(self) -> None:
        """Nothing is pending in memory."""

    def finish(self, status: str = "FINISHED") -> None:
        """Keep the status."""
        self.status = status
