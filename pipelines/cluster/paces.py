"""How fast earlier runs of a dataset were trained, and which of them tells most of one to come."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeAlias

from pipelines.plans import FOLDER, PROGRESS

CPU = "cpu"

Seat: TypeAlias = tuple[int, str, str]
"""On how many ranks, on which device, and with which settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast runs were that had a number of ranks, a device and settings in common.

    Attributes:
        clips_per_s: The median of their epochs', of all ranks together.
        ranks: How many they were.
        device: "cpu", or the name of a card; empty where it was not written down.
        settings: By `follow.settings_of`; empty where it was not written down.
        hosts: Where rank 0 was.
        epochs: How many were measured.
    """

    clips_per_s: float
    ranks: int
    device: str
    settings: str
    hosts: tuple[str, ...]
    epochs: int

    def unlike(self, settings: str, ranks: int, *, on_gpus: bool) -> list[str]:
        """In what they were unlike a run that is to come; empty where they were like it."""
        found = []
        if not self.device:
            found.append("on which device is not known")
        elif (self.device != CPU) != on_gpus:
            found.append(f"{'GPUs' if on_gpus else 'processors'} are to train")
        if self.settings != settings:
            found.append("other settings of model or training were measured")
        if self.ranks != ranks:
            found.append(f"{ranks} rank(s) are to train")
        return found

    def __str__(self) -> str:
        where = f" of {self.device}" * bool(self.device)
        hosts = f" ({', '.join(self.hosts[:3])})" * bool(self.hosts)
        return f"{self.clips_per_s:.3g} clips/s, measured on {self.ranks} rank(s){where}{hosts}"


def paces(work: Path, recipe: str) -> list[Pace]:
    """Those of all runs of a recipe.

    Args:
        work: The folder of runs and checkpoints of an experiment.
        recipe: Its name.
    """
    speeds: dict[Seat, list[float]] = {}
    hosts: dict[Seat, set[str]] = {}
    for file in sorted((work / FOLDER).glob(f"{recipe}-*/{PROGRESS}")):
        for seat, host, speed in _epochs(file.read_text().splitlines()):
            speeds.setdefault(seat, []).append(speed)
            hosts.setdefault(seat, set()).update([host] * bool(host))
    return [
        Pace(
            clips_per_s=median(measured),
            ranks=seat[0],
            device=seat[1],
            settings=seat[2],
            hosts=tuple(sorted(hosts[seat])),
            epochs=len(measured),
        )
        for seat, measured in speeds.items()
    ]


def _epochs(lines: Iterable[str]) -> Iterator[tuple[Seat, str, float]]:
    for line in lines:
        try:
            entry = json.loads(line)
            speed = float(entry["metrics"]["samples_per_second"])
            ranks = int(entry.get("ranks", 1))
        except (ValueError, KeyError, TypeError):  # a sentence, or cut short by a kill
            continue
        if math.isfinite(speed) and speed > 0:
            seat = (ranks, str(entry.get("device", "")), str(entry.get("settings", "")))
            yield seat, str(entry.get("host", "")), speed


def nearest(found: Sequence[Pace], settings: str, ranks: int, *, on_gpus: bool) -> Pace | None:
    """The pace that tells most of a run; None where there is none.

    The kind of device counts before the settings, and those before the number of ranks; of what is
    equally near, the one with most epochs.
    """

    def distance(pace: Pace) -> tuple[bool, bool, bool, float, int]:
        known = bool(pace.device)
        return (
            known and (pace.device != CPU) != on_gpus,
            not known,
            pace.settings != settings,
            abs(math.log(max(pace.ranks, 1) / max(ranks, 1))),
            -pace.epochs,
        )

    return min(found, key=distance, default=None)
