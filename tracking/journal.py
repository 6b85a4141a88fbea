"""A run whose server may be away: all that is logged is written down here first, and sent in order.

An entry is a file, named by its number, and gone when the server has it. Whoever logs waits for
that only for moments, and not at all while the server is known to be away. What a process leaves
behind is sent by the next one that opens the journal. Sent twice, after a crash between answer and
removal, everything is the same as once: points have the time at which they were logged.
"""

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tracking.run import AwayError, Run

PATIENCE_S = 5.0  # that a call waits for the server
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # between tries; they double


class JournaledRun:
    """See `tracking.run.Run`; none of the calls fails because the server is away.

    What the server refuses is raised by the call, or by the next one where the answer came later.

    Args:
        run: The run on the server; raises AwayError where that cannot be reached.
        folder: Of this run and this writer alone; made when there is something to write.
        attempt: How often this run was begun, from 1. Where it is given every point carries it, so
            that those of steps that were taken again can be told apart; the last one holds.
        patience_s: How long a call waits for the server.
    """

    def __init__(
        self,
        run: Run,
        folder: Path,
        *,
        attempt: int | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._run, self._folder = run, folder
        self._attempt, self._patience_s = attempt, patience_s
        self._wake, self._closed = threading.Event(), threading.Event()
        self._idle = threading.Condition()
        self._is_away = False
        self._refused: Exception | None = None
        self._newest = self._sent = 0  # names of entries
        self._thread = threading.Thread(target=self._send, name="fuseline-journal", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str:
        """See `tracking.run.Run`."""
        return self._run.run_id

    @property
    def waiting(self) -> int:
        """Entries that the server does not have."""
        return len(_numbers(self._folder))

    def log_settings(self, settings: Mapping[str, str | int | float | bool | None]) -> None:
        """See `tracking.run.Run`."""
        self._write("log_settings", {"settings": dict(settings)})

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, at_ms: int | None = None
    ) -> None:
        """See `tracking.run.Run`."""
        at_ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
        points = dict(metrics)
        if self._attempt is not None:
            points["attempt"] = float(self._attempt)
        self._write("log_metrics", {"metrics": points, "step": step, "at_ms": at_ms})

    def log_dataset(self, name: str, digest: str, context: str) -> None:
        """See `tracking.run.Run`."""
        self._write("log_dataset", {"name": name, "digest": digest, "context": context})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """See `tracking.run.Run`."""
        self._write("set_tags", {"tags": dict(tags)})

    def log_file(self, path: Path, folder: str = "") -> None:
        """See `tracking.run.Run`; the file is copied, so that it may be removed at once."""
        self._write("log_file", {"folder": folder}, path)

    def finish(self, status: str = "FINISHED") -> None:
        """See `tracking.run.Run`."""
        self._write("finish", {"status": status})

    def flush(self) -> None:
        """Wait for moments; what the server does not have by then is on the disk.

        Raises:
            Exception: What the server refused.
        """
        self._wait(self._patience_s)

    def close(self, wait_s: float = 0.0) -> int:
        """End sending, after so many seconds at most. Returns how many entries are left."""
        until = time.monotonic() + wait_s
        while self.waiting and self._refused is None and time.monotonic() < until:
            time.sleep(0.05)
        self._closed.set()
        self._wake.set()
        return self.waiting

    def _write(self, call: str, kwargs: Mapping[str, Any], file: Path | None = None) -> None:
        # By time, so that two writers, of which one should be dead already, take no name twice.
        number = max(self._newest + 1, time.time_ns())
        if not self._folder.is_dir():
            self._folder.mkdir(parents=True, exist_ok=True)
            _sync(self._folder.parent)
        entry = self._folder / f"{number:020d}.json"
        if file is not None:
            kept = entry.with_suffix("")
            kept.mkdir(exist_ok=True)
            shutil.copyfile(file, kept / file.name)
            _sync(kept / file.name)
            _sync(kept)
        draft = entry.with_suffix(".draft")
        with draft.open("w") as lines:
            json.dump({"call": call, "kwargs": kwargs}, lines)
            lines.flush()
            os.fsync(lines.fileno())
        draft.rename(entry)
        _sync(self._folder)
        self._newest = number
        self._wake.set()
        self._wait(self._patience_s)

    def _wait(self, patience_s: float) -> None:
        """Until all is sent, or the server is away, or patience ends."""
        with self._idle:
            self._idle.wait_for(
                lambda: self._refused or self._is_away or self._sent >= self._newest,
                timeout=patience_s,
            )
        if self._refused is not None:
            refused, self._refused = self._refused, None
            raise refused

    def _send(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._closed.is_set():
            self._wake.clear()
            newest = self._newest
            try:
                deliver(self._run, self._folder, lambda: not self._closed.is_set())
            except AwayError:
                self._tell(is_away=True)
            except Exception as error:  # noqa: BLE001 - raised again by the call that waits
                self._tell(refused=error)
            else:
                pause_s = FIRST_PAUSE_S
                self._sent = newest
                self._tell()
                self._wake.wait()
                continue
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _tell(self, *, is_away: bool = False, refused: Exception | None = None) -> None:
        with self._idle:
            self._is_away = is_away
            self._refused = self._refused or refused
            self._idle.notify_all()


def deliver(run: Run, folder: Path, on: Callable[[], bool] = lambda: True) -> None:
    """Send what a journal holds, in order.

    Args:
        run: The run on the server.
        folder: The journal; need not exist.
        on: Asked before each entry whether to go on.

    Raises:
        AwayError: The server cannot be reached; the entry and those after it stay.
        Exception: What `run` raised. The entry is removed: it would be refused for ever.
    """
    for number in _numbers(folder):
        if not on():
            return
        with _alone(folder):
            entry = folder / f"{number:020d}.json"
            if not entry.exists():  # another process was faster
                continue
            try:
                _make(run, entry)
            except AwayError:
                raise
            except Exception:
                _remove(entry)
                raise
            _remove(entry)


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make(run: Run, entry: Path) -> None:
    plain = json.loads(entry.read_text())
    kwargs = plain["kwargs"]
    kept = entry.with_suffix("")
    if kept.is_dir():
        [kwargs["path"]] = kept.iterdir()
    getattr(run, plain["call"])(**kwargs)


def _remove(entry: Path) -> None:
    entry.unlink()
    shutil.rmtree(entry.with_suffix(""), ignore_errors=True)


def _numbers(folder: Path) -> list[int]:
    return sorted(int(each.stem) for each in folder.glob("*.json"))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
