"""How busy the nodes are that train a run: one rank of each node looks, and logs it."""

import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from statistics import fmean

from tracking.mlflow_store import StoreError
from tracking.run import Run

LOOK_S, LOG_S = 5.0, 60.0

Look = Callable[[], Mapping[str, float]]


def look() -> dict[str, float]:
    """What this node is doing: CPU in percent of all cores, memory and GPU memory in GB.

    CPU is the mean since this was asked last.
    """
    import psutil
    import torch

    memory = psutil.virtual_memory()
    found = {"cpu_percent": psutil.cpu_percent(), "memory_gb": memory.used / 1e9}
    if torch.cuda.is_available():
        rooms = [torch.cuda.mem_get_info(number) for number in range(torch.cuda.device_count())]
        found["gpu_memory_gb"] = sum(total - free for free, total in rooms) / 1e9
    return found


class Gauges:
    """Looks every few seconds and logs the mean once a minute, as `system/NODE/NAME`.

    Args:
        run: Where it is logged.
        now_s: Seconds since the run was made; the step of each point.
        look: Gives numbers by name.
        node: How this node is called.
        look_s: Seconds between looks.
        log_s: Seconds between points.
    """

    def __init__(
        self,
        run: Run,
        now_s: Callable[[], float],
        *,
        look: Look = look,
        node: str = "",
        look_s: float = LOOK_S,
        log_s: float = LOG_S,
    ) -> None:
        self._run, self._now_s, self._look = run, now_s, look
        self._node = node or socket.gethostname()
        self._look_s, self._log_s = look_s, log_s
        self._seen: list[Mapping[str, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fuseline-gauges", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Log what was seen since the last point, and look no more."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        # What psutil counts since it was asked last it counts by thread: this one alone asks.
        self._look()
        logged_s = self._now_s()
        while not self._ended.wait(self._look_s):
            self._seen.append(self._look())
            if self._now_s() - logged_s >= self._log_s:
                logged_s = self._now_s()
                self._log()
        if not self._seen:
            self._seen.append(self._look())
        self._log()

    def _log(self) -> None:
        names = {name for each in self._seen for name in each}
        means = {
            f"system/{self._node}/{name}": fmean(each[name] for each in self._seen if name in each)
            for name in sorted(names)
        }
        self._seen = []
        # What a server says no to is not worth a run.
        with suppress(StoreError):
            self._run.log_metrics(means, step=int(self._now_s()))
