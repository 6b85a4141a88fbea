"""What a run is told by whoever started it: which rank it is, where to resume, where results go."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Session(Protocol):
    """One rank's ties to the world outside. All ranks call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """This process among `world`, from 0."""

    @property
    def world(self) -> int:
        """The number of ranks."""

    def restore(self) -> Path | None:
        """The folder of the checkpoint to resume from; None for a fresh run. Asked once."""

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """Take metrics and a checkpoint: a barrier, called seldom.

        Args:
            metrics: Of the newest epoch.
            checkpoint: This rank's folder, with its part of the checkpoint; it is deleted after the
                call.
        """

    def preempted(self) -> bool:
        """Whether to checkpoint now, because the machine will be taken away.

        Asked after every step; answers the same on all ranks. Training goes on until it is ended.
        """


class LocalSession:
    """One process on one machine: checkpoints lie in a folder, the newest is kept.

    Args:
        folder: Of this run alone; a run that is started again with the same folder resumes.
    """

    rank = 0
    world = 1

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def restore(self) -> Path | None:
        """The newest checkpoint, by number."""
        return max(self._folder.glob("checkpoint-*"), default=None)

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None) -> None:
        """Keep the checkpoint instead of the one before."""
        if checkpoint is None:
            return
        before = self.restore()
        number = 0 if before is None else int(before.name.removeprefix("checkpoint-")) + 1
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(checkpoint, unfinished)
        unfinished.rename(self._folder / f"checkpoint-{number:06d}")
        if before is not None:
            shutil.rmtree(before)

    def preempted(self) -> bool:
        """Never: nobody takes the machine away."""
        return False
