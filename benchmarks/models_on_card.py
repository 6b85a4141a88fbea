"""The models on a CUDA device, for `models.py --device cuda`.

Both sides run under autocast to bfloat16. Ours is measured as it is, captured as a CUDA graph,
compiled, and both; the twins wait for the device in every step, as the authors' code does, and
cannot be captured. Compiling is given a share of the time and no more; where it takes longer, that
is printed in place of a figure. The last rows are batches that fill the card.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from card import (
    captured,
    compiled,
    flops,
    free,
    milliseconds,
    peak_mb,
    peak_tflops,
    reached_tflops,
    step,
)
from twins import Pair, Side
from twins import mmlatch as mmlatch_twin
from twins import msaf as msaf_twin
from twins import mult as mult_twin

AGREEMENT = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table.

    Attributes:
        name: Of its figures.
        title: For people.
        make: Both sides, from clips, steps, `dropout` and `device`.
        clips: B.
        steps: T.
        same: Whether both sides compute one function, and are compared.
        twin: Whether the twin is timed; it may be too large, or take too long.
        compiles: Whether ours is compiled as well.
    """

    name: str
    title: str
    make: Callable[..., Pair]
    clips: int
    steps: int = 50
    same: bool = False
    twin: bool = True
    compiles: bool = False


def cases() -> list[Case]:
    """All lines."""
    latch = functools.partial(mmlatch_twin.pair, reference=False)
    padded = functools.partial(latch, true_lengths=True, told_lengths=False)
    mult = functools.partial(mult_twin.pair, reference=False)
    unaligned = functools.partial(mult, unaligned=True)
    return [
        Case(
            name="mmlatch", title="MMLatch, released form", make=mmlatch_twin.pair, clips=32,
            same=True,
        ),
        Case(
            name="mmlatch_true_lengths", title="MMLatch, released form, true lengths",
            make=functools.partial(mmlatch_twin.pair, true_lengths=True), clips=32, same=True,
        ),
        Case(name="mmlatch_fixed", title="MMLatch", make=padded, clips=32, compiles=True),
        Case(
            name="mult_aligned", title="MulT, released form", make=mult_twin.pair, clips=32,
            same=True,
        ),
        Case(name="mult_aligned_fixed", title="MulT", make=mult, clips=32, compiles=True),
        Case(
            name="mult_unaligned", title="MulT, 50, 500, 500, released form",
            make=functools.partial(mult_twin.pair, unaligned=True), clips=32, same=True,
        ),
        Case(
            name="mult_unaligned_fixed", title="MulT, 50, 500, 500", make=unaligned, clips=32,
        ),
        Case(
            name="msaf_ravdess_1", title="MSAF, 1024x4x14x14 and 32x208",
            make=msaf_twin.ravdess, clips=32, steps=4, same=True, compiles=True,
        ),
        Case(name="mmlatch_512", title="MMLatch", make=padded, clips=512),
        Case(name="mmlatch_2048", title="MMLatch", make=padded, clips=2048),
        Case(name="mult_512", title="MulT", make=mult, clips=512),
        Case(name="mult_2048", title="MulT", make=mult, clips=2048, twin=False, compiles=True),
        Case(
            name="mult_unaligned_256", title="MulT, 50, 500, 500", make=unaligned, clips=256,
            twin=False,
        ),
    ]  # fmt: skip


def table(
    chosen: list[str] | None, rounds: int, peak: float | None, compile_seconds: float
) -> dict[str, float]:
    """Measure and print all lines, or those of some names."""
    wanted = [case for case in cases() if not chosen or case.name in chosen]
    if not wanted:
        names = [case.name for case in cases()]
        raise SystemExit(f"no line has the name {chosen}; there are {names}")
    tflops = peak_tflops(peak)
    reached = reached_tflops()
    print(
        f"{torch.cuda.get_device_name()}, bfloat16 by autocast, {rounds} rounds; a training step. "
        f"Peak {f'{tflops:g}' if tflops else 'not known: give --peak-tflops'} TFLOP/s, a product "
        f"of 8192 x 8192 reaches {reached:.0f}"
    )
    print(
        f"  {'':<38} {'clips':>5} {'ours ms':>8} {'twin ms':>8} {'times':>6} {'graph ms':>8}"
        f" {'times':>6} {'compiled':>8} {'& graph':>8} {'MB':>7} {'twin':>7} {'clips/s':>9}"
        f" {'TFLOP/s':>8} {'of peak':>8}"
    )
    figures = {"product_tflops": round(reached, 1)}
    left = compile_seconds
    for case in wanted:
        try:
            found, spent = _measured(case, rounds, tflops, left)
        except Exception as error:  # noqa: BLE001 - one line that fails leaves the others
            print(f"  {case.title:<38} {case.clips:>5} {type(error).__name__}: {error}", flush=True)
            found, spent = {}, 0.0
        figures |= found
        left -= spent
        torch.compiler.reset()
        free()
    return figures


def _measured(
    case: Case, rounds: int, tflops: float | None, left: float
) -> tuple[dict[str, float], float]:
    """Figures of a line, printed; seconds of the compiler."""
    if case.same:
        compare(case)
    pair = case.make(case.clips, case.steps, dropout=True, device="cuda")
    sides = [pair.ours, *([pair.twin] if case.twin else [])]
    eager = [_stepping(side) for side in sides]
    ours, *twin = milliseconds(eager, rounds)
    memory = [peak_mb(call, side.model) for call, side in zip(eager, sides, strict=True)]
    graph, why = _captured_ms(pair.ours, rounds)
    del pair, sides, eager
    free()
    began = time.perf_counter()
    quick, both, told = None, None, ""
    if case.compiles:
        quick, both, told = _compiled_ms(case, rounds, left)
    spent = time.perf_counter() - began if case.compiles else 0.0
    best = min(each for each in (ours, graph, quick, both) if each is not None)
    count = flops(case.make(2, case.steps, dropout=True, device="cpu").ours) * case.clips / 2
    rate = count / (best * 1e-3) / 1e12
    times = [f"{twin[0] / each:6.2f}" if twin and each else "" for each in (ours, graph)]
    shown = [f"{each:8.2f}" if each else "" for each in (graph, quick, both)]
    print(
        f"  {case.title:<38} {case.clips:>5} {ours:8.2f} {f'{twin[0]:.2f}' if twin else '':>8}"
        f" {times[0]:>6} {shown[0]:>8} {times[1]:>6} {shown[1]:>8} {shown[2]:>8}"
        f" {memory[0]:7.0f} {f'{memory[1]:.0f}' if twin else '':>7}"
        f" {case.clips / best * 1e3:9.0f} {rate:8.2f}"
        f" {f'{rate / tflops:.2%}' if tflops else '':>8}  {' '.join([why, told]).strip()}",
        flush=True,
    )
    found = {
        "ms": ours,
        "twin_ms": twin[0] if twin else None,
        "graph_ms": graph,
        "compiled_ms": quick,
        "compiled_graph_ms": both,
        "mb": memory[0],
        "twin_mb": memory[1] if twin else None,
        "clips_per_s": case.clips / best * 1e3,
        "tflops": rate,
        "peak_share": rate / tflops if tflops else None,
    }
    return {
        f"{case.name}_{key}": round(value, 5) for key, value in found.items() if value is not None
    }, spent


def _stepping(side: Side) -> Callable[[], None]:
    return lambda: step(side, "cuda")


def _captured_ms(side: Side, rounds: int) -> tuple[float | None, str]:
    try:
        return milliseconds([captured(side)], rounds)[0], ""
    except RuntimeError as error:
        torch.cuda.synchronize()
        return None, f"not captured: {str(error).splitlines()[0]}"


def _compiled_ms(case: Case, rounds: int, left: float) -> tuple[float | None, float | None, str]:
    """Compiled, compiled and captured, and what there is to say."""
    if left <= 0:
        return None, None, "not compiled: no time left"
    pair = case.make(case.clips, case.steps, dropout=True, device="cuda")
    call, told = compiled(pair.ours, left)
    if call is None:
        return None, None, f"not compiled: {told}"
    (quick,) = milliseconds([call], rounds)
    both, why = _captured_ms(pair.ours, rounds)
    return quick, both, f"{told} {why}".strip()


def compare(case: Case) -> None:
    """Raise RuntimeError unless both sides give the same outputs without dropout, in float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    pair = case.make(case.clips, case.steps, dropout=False, device="cuda")
    with torch.no_grad():
        ours, theirs = pair.ours.call(), pair.twin.call()
    torch.backends.cudnn.allow_tf32 = before
    for mine, other in zip(ours, theirs, strict=True):
        apart = float((mine - other).abs().max() / other.abs().max())
        if not apart <= AGREEMENT:
            raise RuntimeError(
                f"the twin's outputs differ by {apart:.1e} of the largest, and {AGREEMENT:.0e} is "
                f"allowed; timing them would compare two functions"
            )
