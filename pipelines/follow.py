"""What ranks tell the driver while they train: in files of the run's folder, which it follows.

Epochs and sentences are lines of one file, which stay. How far an unfinished epoch is stands in
another, which is replaced.
"""

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from pipelines.elastic import Say
from pipelines.plans import NOW, PROGRESS, Plan
from training.pace import Pace
from training.recipe import Recipe

POLL_S = 0.5

Told = Callable[[str, int, Mapping[str, float]], None]
"""Told run name, epoch and metrics."""

Within = Callable[[str, Pace], None]
"""Told run name and where its epoch stands."""


def note(folder: Path, entry: Mapping[str, Any]) -> None:
    """Write a line for the driver."""
    line = json.dumps(dict(entry)).encode() + b"\n"
    handle = os.open(folder / PROGRESS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line)  # one call: lines of several ranks do not mix
    finally:
        os.close(handle)


def settings_of(recipe: Recipe) -> str:
    """Digest of the settings by which one run may be slower than another."""
    return replace(recipe, seed=0, fold="", epochs=1).digest[:16]


def note_pace(folder: Path, name: str, pace: Pace) -> None:
    """Write where an epoch stands, in the place of what stood there."""
    unfinished = folder / f".{NOW}"
    # It is there to be looked at: where it cannot be written, training goes on.
    with suppress(OSError):
        unfinished.write_text(json.dumps({"name": name, **asdict(pace)}))
        unfinished.replace(folder / NOW)


class Follow(AbstractContextManager["Follow"]):
    """Follows the files of running plans, while Ray Train blocks this thread.

    Args:
        plans: The runs.
        told: Told of each epoch.
        say: Told what ranks say.
        within: Told where an unfinished epoch stands.
    """

    def __init__(
        self, plans: Sequence[Plan], told: Told, say: Say, within: Within | None = None
    ) -> None:
        self._folders = [plan.folder for plan in plans]
        files = [folder / PROGRESS for folder in self._folders]
        self._read = {file: file.stat().st_size if file.exists() else 0 for file in files}
        self._told, self._say, self._within = told, say, within
        # Of an attempt before this one.
        self._stood = {folder: _standing(folder) for folder in self._folders}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Follow":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _follow(self) -> None:
        while not self._ended.wait(POLL_S):
            self._look()
            if self._within is not None:
                self._look_within(self._within)

    def _look(self) -> None:
        for file in self._read:
            if not file.exists():
                continue
            with file.open("rb") as lines:
                lines.seek(self._read[file])
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    self._read[file] += len(line)
                    entry = json.loads(line)
                    if "say" in entry:
                        self._say(entry["say"])
                    else:
                        self._told(entry["name"], entry["epoch"], entry["metrics"])

    def _look_within(self, within: Within) -> None:
        for folder in self._folders:
            found = _standing(folder)
            if found != self._stood[folder]:
                self._stood[folder] = found
                entry = json.loads(found)
                within(entry.pop("name"), Pace(**entry))


def _standing(folder: Path) -> bytes:
    try:
        return (folder / NOW).read_bytes()
    except FileNotFoundError:
        return b""
