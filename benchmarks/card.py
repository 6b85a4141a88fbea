"""What a training step takes on one CUDA device: by hand, captured as a graph, and compiled.

`models.py --device cuda` and `step.py --device cuda` measure with it. Times are those between two
events on the device, over several steps in a row, medians of rounds in which all that is compared
takes turns. A share of the peak is that of the multiplications and additions that a step of ours
has on a CPU, counted on two clips, over the card's dense bfloat16 peak as its maker states it.
"""

import contextlib
import gc
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from twins import Side

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
IN_A_ROW = 3
WARM = 3


def step(side: Side, device: str = "cpu") -> None:
    """Clear the gradients, forward, backward."""
    side.model.zero_grad(set_to_none=True)
    with autocast(device):
        outputs = side.call()
        loss = torch.stack([output.float().square().sum() for output in outputs]).sum()
    loss.backward()  # type: ignore[no-untyped-call]


def autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """Half precision on a card, nothing on a CPU."""
    if device == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def milliseconds(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median milliseconds of each call."""
    for call in calls:
        for _ in range(WARM):
            call()
    found: list[list[float]] = [[] for _ in calls]
    for number in range(rounds):
        order = range(len(calls)) if number % 2 else reversed(range(len(calls)))
        for which in order:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            for _ in range(IN_A_ROW):
                calls[which]()
            end.record()
            torch.cuda.synchronize()
            found[which].append(begin.elapsed_time(end) / IN_A_ROW)
    return [statistics.median(each) for each in found]


def captured(side: Side) -> Callable[[], None]:
    """The same step, launched as one graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            step(side, "cuda")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(side, "cuda")
    return graph.replay


def peak_mb(call: Callable[[], object], model: nn.Module) -> float:
    """The most that a step adds to weights and inputs."""
    call()
    model.zero_grad(set_to_none=True)
    free()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def free() -> None:
    """Give back what nobody holds."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer. Of the main thread alone."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compiled(side: Side, seconds: float) -> tuple[Callable[[], None] | None, str]:
    """The same step of the compiled model, and what compiling took; None where that is too much."""
    began = time.perf_counter()
    try:
        # A layer that every stream has is compiled for each width and length of theirs.
        torch._dynamo.config.recompile_limit = 64  # noqa: SLF001 - where PyTorch documents it
        with at_most(seconds):
            side.model.compile(dynamic=False)
            for _ in range(WARM):
                step(side, "cuda")
            torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - whatever a compiler raises is what is to be told
        return None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return lambda: step(side, "cuda"), f"{time.perf_counter() - began:.0f} s to compile"


def peak_tflops(given: float | None) -> float | None:
    """The card's, in dense bfloat16; None where it is not known."""
    name = torch.cuda.get_device_name()
    known = [value for card, value in PEAK_TFLOPS.items() if card in name]
    return given or (known[0] if known else None)


def reached_tflops(size: int = 8192) -> float:
    """What a large product of random bfloat16 matrices reaches."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    (taken,) = milliseconds([lambda: a @ b], 5)
    return 2 * size**3 / (taken * 1e-3) / 1e12


def flops(side: Side) -> float:
    """Multiplications and additions of one step, on the CPU."""
    aten = torch.ops.aten
    layers = {
        aten.mkldnn_rnn_layer: _layer_flops,
        aten.mkldnn_rnn_layer_backward: _layer_backward_flops,
    }
    with FlopCounterMode(display=False, custom_mapping=layers) as counter:
        step(side)
    return float(counter.get_total_flops())


def _layer_flops(
    x: Sequence[int], of_input: Sequence[int], of_state: Sequence[int], *_: object, **_more: object
) -> int:
    """One direction of a recurrence: x [T, B, D], weights [4H, D] and [4H, H]."""
    return 2 * x[0] * x[1] * of_input[0] * (of_input[1] + of_state[1])


def _layer_backward_flops(*shapes: Sequence[int], **_more: object) -> int:
    return 2 * _layer_flops(*shapes)
