"""One run, from the first step to the best weights. Read `fit` from top to bottom."""

import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tracking.run import Run
from training import checkpoint, pretrained
from training.batch import FusionBatch
from training.class_weights import class_weights, weighed
from training.data import Data
from training.engine import Engine
from training.loader import Indexed, Loader, Seat, loader_of
from training.losses import clip_losses
from training.metrics import metrics
from training.missing import draw, dropped
from training.models import build
from training.order import GlobalBatch, order_digest
from training.pace import Pacer, Within
from training.predict import decide
from training.recipe import Recipe
from training.recipe_checks import check
from training.schedule import LOSS, best_epoch, rate_share, waited
from training.session import PreemptedError, Session, Wish
from training.start import begin
from training.timing import STEP, Stages

Epoch: TypeAlias = Mapping[str, float]
Progress: TypeAlias = Callable[[int, Epoch], None]
"""Told the number of each finished epoch and its metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        best_epoch: The epoch with the best value of what the recipe monitors, from 0.
        history: For each epoch: train_loss, valid_loss, valid_METRIC, learning_rate (of its last
            step).
        weights: The model's state after the best epoch, float32 in main memory; empty but on rank
            0.
        metrics: The best epoch's entry of the history.
    """

    best_epoch: int
    history: tuple[Epoch, ...]
    weights: Mapping[str, Tensor]
    metrics: Epoch


@dataclass(frozen=True, slots=True)
class _State:
    """Where a run stands. `position` counts global batches through all epochs.

    Attributes:
        losses: Each rank's sum of losses in the unfinished epoch.
    """

    position: int = 0
    history: tuple[Epoch, ...] = ()
    losses: tuple[float, ...] = ()

    def values(self, name: str) -> list[float]:
        return [epoch[name] for epoch in self.history]

    @property
    def newest(self) -> int:
        return len(self.history) - 1


@dataclass(frozen=True, slots=True)
class _Work:
    """What all parts of the loop need.

    Attributes:
        weights: Of classes or labels, by name; none where all count alike.
        within: Told where an epoch stands, on rank 0.
    """

    recipe: Recipe
    data: Data
    session: Session
    run: Run
    engine: Engine
    weights: Mapping[str, float]
    seat: Seat
    loader: Loader
    stages: Stages
    within: Within | None = None

    def clips(self, step: int) -> int:
        """Clips of the first steps of an epoch, all ranks together."""
        return min(step * self.recipe.global_batch, len(self.data.train))


def fit(
    recipe: Recipe,
    data: Data,
    session: Session,
    run: Run,
    progress: Progress | None = None,
    *,
    within: Within | None = None,
    loader_workers: int = 0,
) -> Outcome:
    """Train until validation stops getting better.

    The numbers depend on recipe and data, and in their last digits on the number of ranks. Stopped
    at any step and resumed on the same number of ranks they are the same to the last bit: the order
    of clips, the streams that modality dropout takes away and the seed of each step's dropout
    follow from the position alone.

    Args:
        recipe: Decides everything.
        data: Loaded for this recipe.
        session: Rank, world, where to resume and where checkpoints go.
        run: Written to by rank 0 only.
        progress: Called by rank 0 after each epoch.
        within: Called by rank 0 now and then within an epoch.
        loader_workers: See `training.loader.loader_of`; they change no number of an indexed loader.

    Returns:
        The best weights and how it went.

    Raises:
        ValueError: A setting is out of range, the global batch does not fit the ranks, there is
            nothing to validate on, or a file of weights to start from does not fit.
        CheckpointError: A checkpoint is of another recipe or other data, or could not be written.
        PreemptedError: The session asked to end; all steps that were taken are saved.
    """
    check(recipe)
    if not len(data.valid):
        raise ValueError(
            f"no usable clip in split 'valid' ({len(data.valid.clips)} have the label): training "
            f"stops by the validation loss; put some clips into 'valid'"
        )
    session.alive(stepping=False)
    work = _begun(recipe, data, session, run, loader_workers)
    work = replace(work, within=None if session.rank else within)
    session.alive(stepping=False)
    engine = work.engine
    with closing(work.loader):
        state, best = _start(work)
        while not _finished(recipe, state):
            engine.collective_seconds()  # of validation, which is not timed here
            started, first = time.perf_counter(), state.position % len(work.loader)
            state = _train_epoch(work, state, best)
            seconds, spoken = time.perf_counter() - started, engine.collective_seconds()
            epoch = {"train_loss": sum(state.losses) / _total_weight(work)} | _validate(work)
            epoch["learning_rate"] = _rate(work, state, state.position - 1)
            state = _State(state.position, (*state.history, epoch))
            if _best(recipe, state) == state.newest:
                best = engine.weights()
            shares = work.stages.shares(seconds, spoken)
            if session.rank == 0:
                # Of an epoch that was gone on with, only what was taken now.
                speed = (len(data.train) - work.clips(first)) / seconds
                _tell(work, state, speed, shares, progress)
            if not len(state.history) % recipe.checkpoint_every or _finished(recipe, state):
                _checkpoint(work, state, best)
    engine.close()
    chosen = _best(recipe, state)
    return Outcome(
        best_epoch=chosen, history=state.history, weights=best, metrics=state.history[chosen]
    )


def step_seed(seed: int, position: int, rank: int) -> int:
    """The seed of one step's dropout on one rank."""
    high, low = np.random.SeedSequence([seed, position, rank]).generate_state(2).tolist()
    return int(high) << 32 | int(low)


def _finished(recipe: Recipe, state: _State) -> bool:
    if not state.history:
        return False
    idle = waited(state.values(recipe.monitor), recipe.monitor, recipe.min_delta)
    return len(state.history) >= recipe.epochs or idle >= recipe.patience


def _best(recipe: Recipe, state: _State) -> int:
    return best_epoch(state.values(recipe.monitor), recipe.monitor)


def _begun(recipe: Recipe, data: Data, session: Session, run: Run, loader_workers: int) -> _Work:
    """Model, engine and loader of a run."""
    torch.manual_seed(recipe.seed)
    model = build(recipe.model, data.train.widths, recipe.task.outputs)
    pretrained.begin(model, recipe.model)
    begin(model, recipe.start)
    counted = class_weights(recipe, data.train.targets.values())
    positive = tuple(counted.values()) if recipe.task.kind == "labels" else ()
    engine = Engine(model, recipe, positive)
    seat = Seat(rank=session.rank, world=session.world, micro=engine.micro)
    weigh = functools.partial(_weighed, recipe, data, counted)
    loader = loader_of(data.train, recipe, seat, loader_workers, weigh)
    return _Work(recipe, data, session, run, engine, counted, seat, loader, Stages())


def _start(work: _Work) -> tuple[_State, dict[str, Tensor]]:
    if work.session.rank == 0:
        _describe(work.run, work.recipe, work.data)
        work.run.log_settings({f"class_weight.{name}": n for name, n in work.weights.items()})
    found = _load(work)
    if found is None:
        return _State(), {}
    plain, best = found
    losses = tuple(plain["losses"])
    if losses and len(losses) != work.session.world:
        # On another number of ranks one of them carries the sum on.
        losses = (sum(losses), *[0.0] * (work.session.world - 1))
    return _State(plain["position"], tuple(plain["history"]), losses), best


def _load(work: _Work) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The newest checkpoint that is whole; None when there is none."""
    session, engine = work.session, work.engine
    for folder in engine.tell(checkpoint.standing(session.folder) if session.rank == 0 else None):
        try:
            plain, best = engine.load(folder)
        except checkpoint.DamagedCheckpointError as error:
            if session.rank == 0:
                session.say(f"{error}; the checkpoint before it is taken, or the run begins anew")
            continue
        if plain["data"] != work.data.digest:
            raise checkpoint.CheckpointError(
                f"{folder} is a checkpoint of other data: clips, labels, splits, words or features "
                "of the dataset were changed since; give the run a folder of its own, as running "
                "the same command again does"
            )
        return plain, best
    return None


def _describe(run: Run, recipe: Recipe, data: Data) -> None:
    keys = data.train.keys_by_shard
    digest = order_digest(map(data.train.order, range(recipe.epochs)))
    run.log_settings({**_flat(recipe.to_json()), "recipe_digest": recipe.digest})
    run.log_settings({"train_clips": len(data.train), "order_digest": digest})
    for context, samples in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        run.log_dataset(context, samples.digest, context)
    with tempfile.TemporaryDirectory() as folder:
        shards, whole = Path(folder, "train_keys_by_shard.json"), Path(folder, "recipe.json")
        shards.write_text(json.dumps(keys, indent=1))
        run.log_file(shards, "data")
        whole.write_text(json.dumps(recipe.to_json(), indent=1, sort_keys=True))
        run.log_file(whole)


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names, lists as text with commas."""
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            listed = isinstance(value, list | tuple)
            flat[f"{prefix}{name}"] = ",".join(map(str, value)) if listed else value
    return flat


def _train_epoch(work: _Work, state: _State, best: Mapping[str, Tensor]) -> _State:
    """Take the steps that are left of the epoch."""
    rank, seed, loader = work.session.rank, work.recipe.seed, work.loader
    epoch = len(state.history)
    first = epoch * len(loader)
    own = torch.tensor(state.losses[rank] if state.losses else 0.0, dtype=torch.float64)
    taken = state.position - first
    pacer = Pacer(work.within, epoch=epoch, steps=len(loader), first=taken, clips=work.clips)
    steps = work.stages.waited(loader.steps(epoch, taken))
    for position, step in enumerate(steps, state.position):
        torch.manual_seed(step_seed(seed, position, rank))
        work.engine.set_learning_rate(_rate(work, state, position))
        share = _with_dropped(work, step.share, position)
        with work.stages.stage(STEP):
            losses = work.engine.step(share, step.weights).cpu()
            wish = work.engine.most(work.session.wish(position + 1))
        own = own + losses
        pacer.stepped(share, float(losses))
        if wish:
            _checkpoint(
                work, replace(state, position=position + 1, losses=_by_rank(work, own)), best
            )
        if wish == Wish.END:
            raise PreemptedError(f"ended after step {position + 1}; run again to go on from there")
    return replace(state, position=first + len(loader), losses=_by_rank(work, own))


def _weighed(
    recipe: Recipe, data: Data, weights: Mapping[str, float], batch: GlobalBatch
) -> GlobalBatch:
    if not weights or recipe.task.kind != "classes":
        return batch
    return weighed(batch, weights, data.train.targets)


def _total_weight(work: _Work) -> float:
    """Of all training clips together."""
    clips = tuple((key, 1.0) for key in work.data.train.keys)
    return sum(weight for _, weight in _weighed(work.recipe, work.data, work.weights, clips))


def _rate(work: _Work, state: _State, position: int) -> float:
    """The learning rate of a step of the epoch after those of the history."""
    recipe, steps = work.recipe, -(-len(work.data.train) // work.recipe.global_batch)
    return recipe.learning_rate * rate_share(
        recipe.schedule,
        position,
        steps=steps,
        epochs=recipe.epochs,
        valid_losses=state.values(LOSS),
    )


def _with_dropped(
    work: _Work, share: Sequence[FusionBatch], position: int
) -> Sequence[FusionBatch]:
    """This rank's micro-batches after modality dropout: what it takes, no rank decides."""
    recipe, seat = work.recipe, work.seat
    if not recipe.modality_dropout:
        return share
    streams = len(recipe.model.streams)
    draws = draw(recipe.seed, position, recipe.global_batch, streams)
    rows = seat.view(tuple(range(len(draws))))
    return [
        dropped(batch, recipe.modality_dropout, draws[list(own)])
        for batch, own in zip(share, rows, strict=True)
    ]


def _by_rank(work: _Work, own: Tensor) -> tuple[float, ...]:
    return tuple(float(loss) for loss in work.engine.gather(own))


def _validate(work: _Work) -> dict[str, float]:
    """Loss and metrics over the whole split, each clip counted once."""
    recipe, valid, engine = work.recipe, work.data.valid, work.engine
    own = []
    for step in Indexed(valid, recipe, work.seat).take(valid.keys):
        own += [engine.predict(each) for each in step.share]
        work.session.alive()
    # Ranks take turns, micro-batch by micro-batch; what pads the last global batch comes last.
    turns_TRMK = torch.stack(engine.gather(torch.stack(own)), dim=1)
    outputs_NK = turns_TRMK.flatten(0, 2)[: len(valid)]
    target = torch.tensor(list(valid.targets.values()))
    loss = clip_losses(outputs_NK, target, recipe).double().mean().item()
    truth = np.array(list(valid.targets.values()), dtype=np.float64)
    found = metrics(recipe.task, truth, decide(recipe.task, outputs_NK.numpy()))
    named = {f"valid_{name}": value for name, value in found.items()}
    agreed = {LOSS: loss, **named}
    # What decides must be the same on all ranks.
    return agreed | {
        name: engine.agree(agreed[name]) for name in dict.fromkeys((LOSS, recipe.monitor))
    }


def _tell(
    work: _Work,
    state: _State,
    speed: float,
    shares: Mapping[str, float],
    progress: Progress | None,
) -> None:
    shown = {**state.history[-1], "samples_per_second": speed, **shares}
    work.run.log_metrics(shown, step=state.newest)
    if progress is not None:
        progress(state.newest, shown)


def _checkpoint(work: _Work, state: _State, best: Mapping[str, Tensor]) -> None:
    session = work.session
    if session.rank == 0:
        work.run.flush()
    kept = {**asdict(state), "data": work.data.digest}
    work.engine.save(session.folder, state.position, kept, best, session.hold)
    if session.rank == 0:
        checkpoint.prune(session.folder, session.keep, state.position)
