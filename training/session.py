"""What a run is told by whoever started it: which rank it is, where it is kept, when to end."""

import logging
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Protocol


class Wish(IntEnum):
    """What shall happen after a step; of several ranks the strongest wish counts for all."""

    GO_ON = 0
    SAVE = 1
    END = 2


class PreemptedError(Exception):
    """Training was asked to end: all steps that were taken are saved, and running again goes on."""


class SupersededError(Exception):
    """Somebody else trains this run by now; who finds out writes nothing more."""


def unclaimed() -> None:
    """Holds a folder in which nobody else writes; see `Session.hold`."""


class Session(Protocol):
    """One rank's ties to the world outside."""

    @property
    def rank(self) -> int:
        """This process among `world`, from 0."""

    @property
    def world(self) -> int:
        """The number of ranks."""

    @property
    def folder(self) -> Path:
        """Where this run's checkpoints lie, and nothing else; rank 0 alone reads and writes it."""

    @property
    def keep(self) -> int:
        """How many checkpoints stay, the newest; one is too few when the newest gets damaged."""

    def wish(self, position: int) -> Wish:
        """Asked of every rank after every step, and seldom slow.

        Args:
            position: Steps that were taken, through all epochs.
        """

    def alive(self, *, stepping: bool = True) -> None:
        """Told between steps, too, that something was done.

        Args:
            stepping: Whether steps are being taken. What is done before the first and after the
                last may take longer.
        """

    def hold(self) -> None:
        """Asked of rank 0 before anything in the run's folder is given its name.

        Raises:
            SupersededError: Somebody else trains this run by now.
        """

    def say(self, sentence: str) -> None:
        """Tell people; called on rank 0."""


class LocalSession:
    """One process on one machine.

    Args:
        folder: Of this run alone; a run that is started again with the same folder resumes.
        keep: How many checkpoints stay.
        hold: Raises where somebody else trains the run by now.
    """

    rank = 0
    world = 1

    def __init__(self, folder: Path, keep: int = 2, hold: Callable[[], None] = unclaimed) -> None:
        self.folder, self.keep, self._hold = folder, keep, hold

    def wish(self, position: int) -> Wish:
        """To go on: nobody takes the machine away."""
        del position
        return Wish.GO_ON

    def alive(self, *, stepping: bool = True) -> None:
        """Nobody waits for it."""
        del stepping

    def hold(self) -> None:
        """See `Session`."""
        self._hold()

    def say(self, sentence: str) -> None:
        """As a warning of this module's logger."""
        logging.getLogger(__name__).warning("%s", sentence)
