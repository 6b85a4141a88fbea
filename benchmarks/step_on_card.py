"""Whole training steps on one CUDA device, for `step.py --device cuda`.

*ours* is the engine of the training loop, with DeepSpeed; *bare* is the model with AdamW and
clipping as one writes it by hand, in float32, or under autocast to bfloat16. Both get the same
batches, which lie ready in main memory and are moved to the device in each step, and start from the
same weights; in float32 their losses are compared before any figure is printed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from card import autocast, flops, free, milliseconds, peak_tflops
from torch import Tensor, nn
from twins import Side

from training.batch import FusionBatch, Stream
from training.engine import Engine
from training.losses import clip_losses
from training.models import build
from training.recipe import ModelSettings, Recipe, Scalar, Task

WIDTHS = {"text": 300, "audio": 74, "visual": 35}  # of CMU-MOSEI
WORDS, BATCHES = 50, 4
SETTINGS: Mapping[str, Mapping[str, Scalar]] = {"mmlatch": {"hidden": 100}, "mult": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table."""

    model: str
    clips: int
    precision: Literal["fp32", "bf16"]
    zero: Literal[0, 1, 2, 3] = 0

    @property
    def recipe(self) -> Recipe:
        """What both sides are trained by."""
        settings = SETTINGS[self.model]
        return Recipe(
            name=self.model,
            model=ModelSettings(kind=self.model, streams=tuple(WIDTHS), settings=settings),
            task=Task(kind="regression", label="score"),
            global_batch=self.clips,
            micro_batch=self.clips,
            precision=self.precision,
            zero=self.zero,
        )


def cases(*, quick: bool) -> list[Case]:
    """All lines."""
    found = [
        Case(model=model, clips=clips, precision=precision)
        for model in SETTINGS
        for clips in (32, 1024)
        for precision in ("fp32", "bf16")
    ]
    if quick:
        return found
    return found + [
        Case(model=model, clips=32, precision="bf16", zero=zero)
        for model in SETTINGS
        for zero in (1, 2, 3)
    ]


def table(*, quick: bool, peak: float | None = None) -> dict[str, float]:
    """Measure and print all lines."""
    tflops = peak_tflops(peak)
    print(
        f"{torch.cuda.get_device_name()}, 1 rank, peak {tflops or 'not known'} TFLOP/s (bfloat16)"
    )
    print(
        "model    precision ZeRO clips  ours ms  bare ms  ours over bare (time)  ours clips/s"
        "  ours MB  bare MB  of peak"
    )
    figures: dict[str, float] = {}
    for case in cases(quick=quick):
        try:
            figures |= _measured(case, 5 if quick else 15, tflops)
        except Exception as error:  # noqa: BLE001 - one line that fails leaves the others
            print(f"{case}: {type(error).__name__}: {error}", flush=True)
        free()
    return figures


def _measured(case: Case, rounds: int, tflops: float | None) -> dict[str, float]:
    batches = [random_batch(case.clips, seed) for seed in range(BATCHES)]
    _compare(case, batches[0])
    base = torch.cuda.memory_allocated()
    engine = _ours(case)
    memory = [_held_mb(base, lambda: engine.step(batches[:1], float(case.clips)))]
    base = torch.cuda.memory_allocated()
    by_hand = _Bare(case)
    memory.append(_held_mb(base, lambda: by_hand.step(batches[0])))
    ours, bare = milliseconds(
        [_turns(engine_step(engine, case), batches), _turns(by_hand.step, batches)], rounds
    )
    engine.close()
    model = build(case.recipe.model, WIDTHS, 1)
    two = random_batch(2, 0)
    count = flops(Side(model, lambda: [model(two)])) * case.clips / 2
    share = count / (ours * 1e-3) / (tflops * 1e12) if tflops else float("nan")
    print(
        f"{case.model:<8} {case.precision:<9} {case.zero:>4} {case.clips:>5} {ours:8.2f}"
        f" {bare:8.2f}  {ours / bare:>21.2f}  {case.clips / ours * 1e3:>12.0f} {memory[0]:8.0f}"
        f" {memory[1]:8.0f} {share:>8.2%}",
        flush=True,
    )
    name = f"{case.model}_{case.precision}_zero{case.zero}_{case.clips}"
    return {
        f"{name}_to_bare": round(bare / ours, 3),
        f"{name}_clips_per_s": round(case.clips / ours * 1e3, 1),
        f"{name}_mb": round(memory[0], 1),
        f"{name}_bare_mb": round(memory[1], 1),
        f"{name}_peak_share": round(share, 6),
    }


def random_batch(clips: int, seed: int) -> FusionBatch:
    """Clips of 50 words with random features, in memory that a card reads by itself."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.ones(clips, WORDS, dtype=torch.bool)
    streams = {
        name: Stream(torch.randn(clips, WORDS, width, generator=draw), mask)
        for name, width in WIDTHS.items()
    }
    keys = tuple(f"clip-{row}" for row in range(clips))
    target = torch.randn(clips, generator=draw)
    return FusionBatch(streams=streams, target=target, weight=torch.ones(clips), keys=keys)


def _ours(case: Case) -> Engine:
    torch.manual_seed(case.recipe.seed)
    return Engine(build(case.recipe.model, WIDTHS, 1), case.recipe)


def engine_step(engine: Engine, case: Case) -> Callable[[FusionBatch], Tensor]:
    """One step of ours."""
    return lambda batch: engine.step([batch], float(case.clips))


class _Bare:
    """The same training as one writes it by hand."""

    def __init__(self, case: Case) -> None:
        self.recipe = case.recipe
        torch.manual_seed(self.recipe.seed)
        self.model = build(self.recipe.model, WIDTHS, 1).cuda().train()
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.recipe.learning_rate,
            weight_decay=self.recipe.weight_decay,
        )

    def step(self, batch: FusionBatch) -> Tensor:
        """One step; the sum of losses."""
        there = batch.to("cuda")
        if there.target is None:
            raise TypeError("clips of the benchmark have targets")
        self._optimizer.zero_grad(set_to_none=True)
        with autocast("cuda" if self.recipe.precision == "bf16" else "cpu"):
            outputs = self.model(there)
        loss = clip_losses(outputs, there.target, self.recipe).sum()
        (loss / len(batch.keys)).backward()  # type: ignore[no-untyped-call]
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self._optimizer.step()
        return loss.detach()


def _held_mb(base: int, call: Callable[[], object]) -> float:
    """The most that a side holds in a step: weights, gradients, optimizer, activations."""
    call()
    free()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - base) / 1e6


def _compare(case: Case, batch: FusionBatch) -> None:
    """Raise RuntimeError where the first steps of both sides give other losses."""
    engine = _ours(case)
    losses = []
    for call in (engine_step(engine, case), _Bare(case).step):
        torch.manual_seed(1)
        losses.append(float(call(batch)))
    engine.close()
    ours, bare = losses
    allowed = 1e-3 if case.precision == "fp32" else 5e-2
    if not abs(ours - bare) <= allowed * abs(bare):
        raise RuntimeError(f"the sides' first losses differ: {ours} and {bare}")


def _turns(
    call: Callable[[FusionBatch], Tensor], batches: Sequence[FusionBatch]
) -> Callable[[], None]:
    """One batch after the other, over and over."""
    taken = 0

    def turn() -> None:
        nonlocal taken
        call(batches[taken % len(batches)])
        taken += 1

    return turn
