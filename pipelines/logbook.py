"""What may differ between runs: times, hosts, speeds. It lies in logs/ and nowhere else."""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from featurizers.dataset import LOGS
from featurizers.store import Root, StorageError, is_remote, store_at

FLUSH_LINES = 500
FLUSH_S = 20.0


class Logbook:
    """Lines of one run, as JSON; use as a context manager.

    A local log grows line by line. An object store knows no growing files: there, lines are kept
    for a while and written as numbered parts.

    Args:
        root: The dataset.
        run: The run's name; made up when it is not given.
    """

    def __init__(self, root: Root, run: str | None = None) -> None:
        self.run = run or f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        self.name = f"{LOGS}/featurize-{self.run}.jsonl"
        self._store = store_at(root)
        self._every = FLUSH_LINES if is_remote(root) else 1
        self._lines: list[bytes] = []
        self._part = 0
        self._flushed = time.monotonic()

    def __enter__(self) -> "Logbook":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What ended the run is told, not that the log could not tell.
        with contextlib.suppress(*([] if kind is None else [StorageError])):
            self.flush()

    def add(self, kind: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON takes
        """Write a line; returns it.

        Raises:
            StorageError: It could not be written.
        """
        line = {"kind": kind, "time": time.time(), "run": self.run, **fields}
        self._lines.append(json.dumps(line).encode() + b"\n")
        waited = time.monotonic() - self._flushed
        if len(self._lines) >= self._every or waited > FLUSH_S:
            self.flush()
        return line

    def flush(self) -> None:
        """Write what is kept back."""
        if self._lines:
            self._store.append(self.name, self._part, b"".join(self._lines))
            self._part += 1
            self._lines = []
        self._flushed = time.monotonic()


def read_logs(root: Root, run: str = "") -> Iterator[Mapping[str, Any]]:
    """The lines of all runs or of one, in order; what cannot be read as one is passed over."""
    store = store_at(root)
    for name in sorted(store.sizes(LOGS)):
        if not name.startswith(f"{LOGS}/featurize-{run}") or not name.endswith(".jsonl"):
            continue
        for text in store.read(name).splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # a writer was killed in the middle of it
                continue
            if isinstance(line, dict):
                yield line
