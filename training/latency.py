"""How long a model takes for one clip: measured, so it is other each time and decides no number."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tracking.parts import Latency
from training.batch import collate
from training.data import Samples

WARM_UP = 3  # the first calls allocate, and choose kernels
MOST_CLIPS = 200
MOST_S = 2.0
LEAST_CLIPS = 20  # however slow: of fewer, no 95th percentile can be told


def latency(
    model: nn.Module, samples: Samples, clock: Callable[[], float] = time.perf_counter
) -> Latency | None:
    """Time a model on single clips of a split: features that lie in memory to outputs.

    Decoding, features and pooling are not in it. Clips are taken in order, at most `MOST_CLIPS` of
    them, and no more than `LEAST_CLIPS` once `MOST_S` seconds are over.

    Args:
        model: In main memory; is put into evaluation mode.
        samples: The split.
        clock: Seconds.

    Returns:
        None where nothing of the split can be read.
    """
    model.eval()
    batches = [
        collate([samples.sample(key)], samples.widths) for key in list(samples.keys)[:MOST_CLIPS]
    ]
    if not batches:
        return None
    took: list[float] = []
    with torch.no_grad():
        for batch in batches[:WARM_UP]:
            model(batch)
        began = clock()
        for batch in batches:
            start = clock()
            model(batch)
            took.append(clock() - start)
            if len(took) >= LEAST_CLIPS and clock() - began > MOST_S:
                break
    median, p95 = np.quantile(took, [0.5, 0.95], method="higher").tolist()
    return Latency(median_s=median, p95_s=p95, clips=len(took), machine=machine())


def machine() -> str:
    """What PyTorch computes on in this process: the processor, and how many threads."""
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
