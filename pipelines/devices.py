"""Where ranks train: on GPUs, one each, where the cluster has any; else on processors."""

from collections.abc import Callable

from pipelines.executors import resources
from pipelines.sections import Device

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""For those that asked for no GPU: Ray (2.60.0) shows them all, and they would crowd the first.

Held by test_ranks_on_processors_see_no_gpu; may go when Ray hides them.
"""


def gpus() -> int:
    """How many the cluster has."""
    return int(resources().get("GPU", 0.0))


def on_gpus(device: Device) -> bool:
    """Whether each rank or trial is given a GPU."""
    return device == "cuda" or (device == "auto" and gpus() > 0)


def affordable(
    least: int, most: int, device: Device, say: Callable[[str], None]
) -> tuple[int, int]:
    """No more ranks than there are GPUs, where nobody said on what they train; says so.

    Args:
        least: Ranks that are wanted at least.
        most: And at most; more of them than GPUs stay wanted where the number may grow.
        device: What was said.
        say: Told when there are to be fewer.
    """
    there = gpus()
    if device != "auto" or not 0 < there < least:
        return least, most
    say(
        f"warning: {least} ranks are wanted and the cluster has {there} GPU(s): as many train, one "
        f"on each; train.device: cuda waits for more, cpu trains on processors"
    )
    return there, there if least == most else most
