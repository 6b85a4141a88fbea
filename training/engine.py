"""DeepSpeed behind one class: steps, predictions, weights, checkpoints.

Its settings are generated from the recipe, in `training.deepspeed_json`; what it rounds and splits
is put together again in `training.deepspeed_state`, which is its only other user. Facts that shaped
this file, of DeepSpeed 0.19.8: it clips gradients to norm 1 unless told otherwise; an optimizer
named in its settings is compiled with g++, so ours is PyTorch's; its own checkpoints are pickled,
and split over the ranks that wrote them, so ours are written from full tensors.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from training import checkpoint, deepspeed_json
from training.batch import FusionBatch, OwnLosses
from training.checkpoint import CheckpointError, DamagedCheckpointError
from training.deepspeed_json import DeepSpeedSettings, ds_config
from training.deepspeed_state import WholeState
from training.losses import SumOfLosses, clip_losses
from training.optimizer import groups
from training.recipe import Recipe, micro_batch
from training.session import SupersededError, unclaimed
from training.timing import Collectives

BEST = "best.safetensors"

COMPILER = "inductor"
"""PyTorch's own; on a CPU it needs a C++ compiler."""


class Engine:
    """A model in training on this rank; every method is called by all ranks together.

    Attributes:
        micro: Clips that this rank takes at a time.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, positive: Sequence[float] = ()) -> None:
        deepspeed = _deepspeed()
        _join()
        self._recipe, self._positive = recipe, positive
        self._rank, self._world = distributed.get_rank(), distributed.get_world_size()
        self.micro = micro_batch(recipe.global_batch, self._world, recipe.micro_batch)
        self._dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        # DeepSpeed would leave buffers as they are, and rounded weights beside exact buffers fail.
        model = model.to(self._dtype)
        self._observed = _observed(model)
        self._model, self._own_losses = model, isinstance(model, OwnLosses)
        found = groups(model, recipe)
        # What each group's rate is of the recipe's.
        self._scales = [each["lr"] / (recipe.learning_rate or 1.0) for each in found]
        optimizer = torch.optim.AdamW([dict(group) for group in found])
        settings = ds_config(recipe, self._world, self.micro, pinned=torch.cuda.is_available())
        check_settings(settings)
        trained = SumOfLosses(model) if isinstance(model, OwnLosses) else model
        if recipe.compile:
            # In place, so that names of weights stay; lengths differ from batch to batch.
            trained.compile(backend=COMPILER, dynamic=True)
        self._engine, *_ = deepspeed.initialize(
            model=trained,
            optimizer=optimizer,
            config=dict(settings),
        )
        self._device = self._engine.device
        self._collectives = _collectives(self._device)
        self._hold(settings)
        self._whole = WholeState(model, recipe, self._engine)

    def step(self, micro_batches: Sequence[FusionBatch], weight_sum: float) -> Tensor:
        """One step of the optimizer on a global batch.

        The loss is the sum of weighted losses over the sum of weights of the global batch, whatever
        the ranks.

        Args:
            micro_batches: This rank's share.
            weight_sum: The sum of weights of the global batch.

        Returns:
            This rank's sum of weighted losses, float64 [].
        """
        self._engine.train()
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for batch in micro_batches:
            there = batch.to(self._device, self._dtype)
            losses = self._losses(there)
            loss = (losses * there.weight).sum()
            # DeepSpeed sums gradients over micro-batches and averages them over ranks.
            self._engine.backward(loss * (self._world / weight_sum), scale_wrt_gas=False)
            self._engine.step()
            total += loss.detach()
        self._level()
        return total

    def _losses(self, batch: FusionBatch) -> Tensor:
        criterion = partial(
            clip_losses, target=_target(batch), recipe=self._recipe, positive=self._positive
        )
        if self._own_losses:
            losses: Tensor = self._engine(batch, criterion)
            return losses
        return criterion(self._engine(batch))

    def predict(self, batch: FusionBatch) -> Tensor:
        """Outputs in evaluation mode, float32 [B, K], in main memory."""
        self._engine.eval()
        with torch.no_grad():
            outputs: Tensor = self._engine(batch.to(self._device, self._dtype))
        return outputs.float().cpu()

    def set_learning_rate(self, rate: float) -> None:
        """Use this learning rate from the next step on."""
        for group, scale in zip(self._engine.optimizer.param_groups, self._scales, strict=True):
            group["lr"] = rate * scale

    def gather(self, values: Tensor) -> list[Tensor]:
        """The tensors of all ranks, in order of rank; all have the same shape and type."""
        own = values.contiguous().to(self._device)
        found = [torch.empty_like(own) for _ in range(self._world)]
        distributed.all_gather(found, own)
        return [each.cpu() for each in found]

    def agree(self, value: float) -> float:
        """Rank 0's value, so that no rank decides otherwise for a difference in its last digit."""
        shared = torch.tensor([value], dtype=torch.float64, device=self._device)
        distributed.broadcast(shared, src=0)
        return float(shared.item())

    def most(self, wish: int) -> int:
        """The largest of what the ranks ask for."""
        if self._world == 1:
            return wish
        shared = torch.tensor([wish], device=self._device)
        with self._collectives.timed():
            distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        return int(shared.item())

    def tell(self, value: Any) -> Any:  # noqa: ANN401 - any plain data
        """What rank 0 gives, on every rank."""
        shared = [value]
        distributed.broadcast_object_list(shared, src=0, device=self._device)
        return shared[0]

    def collective_seconds(self) -> float:
        """That steps spent among ranks since this was asked last; see `timing.Collectives`."""
        return self._collectives.seconds()

    def weights(self) -> dict[str, Tensor]:
        """The model's whole state in rank 0's memory, numbers as float32; {} on other ranks."""
        # At stage 3 whole tensors come of all ranks, one at a time.
        found = ((name, tensor) for name, tensor in self._whole.weights() if not self._rank)
        return {name: _apart(tensor, torch.float32) for name, tensor in found}

    def save(
        self,
        folder: Path,
        position: int,
        state: Mapping[str, Any],
        best: Mapping[str, Tensor],
        hold: Callable[[], None] = unclaimed,
    ) -> None:
        """Write a checkpoint, which any number of ranks can take up; rank 0 alone writes.

        Args:
            folder: Where the checkpoints of this run lie, for rank 0.
            position: Steps that were taken; names the checkpoint.
            state: Plain data of the loop.
            best: Weights worth keeping, on rank 0.
            hold: Asked on rank 0, see `checkpoint.draft`.

        Raises:
            CheckpointError: It could not be written, as when the disk is full, or the run is
                somebody else's by now; what was written of it is removed, and earlier ones stay.
                Raised on every rank.
        """
        about = {"recipe": self._recipe.digest, "world": self._world, "state": dict(state)}
        about["steps"] = self._whole.steps()
        full = self._whole.everything()
        problem = ""
        try:
            if self._rank == 0:
                with checkpoint.draft(folder, position, hold) as unfinished:
                    pieces = checkpoint.Pieces(unfinished)
                    for name, tensor in full:
                        pieces.add(name, _apart(tensor))
                    pieces.end()
                    save_file(dict(best), unfinished / BEST)
                    checkpoint.seal(unfinished, about)
        except SupersededError as error:
            problem = str(error)
        except (OSError, SafetensorError) as error:
            last = next((f", the last good one is {path}" for path in _whole(folder)), "")
            problem = (
                f"{folder}: no checkpoint could be written at step {position}: {error}; what was "
                f"written of it is removed{last}; make room, and run the same command again"
            )
        # Whole tensors come of all ranks, also when rank 0 has nothing to write them to any more.
        for _ in full:
            pass
        problem = self.tell(problem)
        if problem:
            raise CheckpointError(problem)

    def load(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Take up a checkpoint, whatever number of ranks wrote it; rank 0 alone reads.

        Returns:
            The state that `save` was given; and on rank 0 the best weights.

        Raises:
            DamagedCheckpointError: It is not what was written; nothing was taken up of it.
            CheckpointError: It is of another recipe. Both are raised on every rank.
        """
        damage = self.tell(checkpoint.problem_of(folder) if self._rank == 0 else "")
        if damage:
            raise DamagedCheckpointError(damage)
        about = self.tell(checkpoint.read_marker(folder)["about"] if self._rank == 0 else None)
        if about["recipe"] != self._recipe.digest:
            raise CheckpointError(
                f"{folder} is a checkpoint of another recipe ({about['recipe'][:12]}, not "
                f"{self._recipe.digest[:12]}); give this run a folder of its own"
            )
        self._whole.take_up(about["steps"], self._shared(folder))
        return about["state"], load_file(folder / BEST) if self._rank == 0 else {}

    def close(self) -> None:
        """Release what DeepSpeed holds; the engine is of no use afterwards."""
        self._engine.destroy()

    def _level(self) -> None:
        """Give all ranks the mean of what they observed.

        Each rank sees other clips. Ranks with values of their own would validate another model than
        rank 0 saves, and would not go on from a checkpoint as they were.
        """
        if self._world == 1 or not self._observed:
            return
        buffers = [self._model.get_buffer(name) for name in self._observed]
        together = torch.cat([buffer.detach().flatten().float() for buffer in buffers])
        with self._collectives.timed():
            distributed.all_reduce(together)
        means = torch.split(together / self._world, [buffer.numel() for buffer in buffers])
        with torch.no_grad():
            for buffer, mean in zip(buffers, means, strict=True):
                buffer.copy_(mean.view_as(buffer))

    def _hold(self, settings: DeepSpeedSettings) -> None:
        """Raise RuntimeError where DeepSpeed made something else of its settings."""
        engine = self._engine
        found = {
            "train_batch_size": engine.train_batch_size(),
            "gradient_accumulation_steps": engine.gradient_accumulation_steps(),
            "gradient_clipping": engine.gradient_clipping(),
            "zero_optimization.stage": engine.zero_optimization_stage(),
            "bf16.enabled": engine.bfloat16_enabled(),
        }
        wanted = {
            **settings,
            "zero_optimization.stage": settings["zero_optimization"]["stage"],
            "bf16.enabled": settings["bf16"]["enabled"],
        }
        for name, value in found.items():
            if value != wanted[name]:
                raise RuntimeError(f"DeepSpeed took {name} {value!r}, told was {wanted[name]!r}")

    def _shared(self, folder: Path) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a checkpoint, one at a time, on every rank."""
        found = checkpoint.tensors(folder) if self._rank == 0 else iter(())
        while True:
            name, tensor = next(found, ("", torch.empty(0)))
            if self._world == 1:
                if not name:
                    return
                yield name, tensor.to(self._device)
                continue
            name, shape, dtype = self.tell((name, tensor.shape, tensor.dtype))
            if not name:
                return
            there = tensor.to(self._device) if self._rank == 0 else None
            there = torch.empty(shape, dtype=dtype, device=self._device) if there is None else there
            distributed.broadcast(there, src=0)
            yield name, there


def check_settings(settings: Mapping[str, Any]) -> None:
    """Hold settings against all that DeepSpeed knows. Raises ValueError as `deepspeed_json.check`.

    Args:
        settings: Plain data, as DeepSpeed would read it.
    """
    _deepspeed()
    from deepspeed.runtime import constants, precision_config
    from deepspeed.runtime.zero import config as zero

    modules = (constants, precision_config, zero)
    sections: dict[str, Callable[..., object]] = {
        "zero_optimization": zero.DeepSpeedZeroConfig,
        "bf16": precision_config.DeepSpeedBF16Config,
    }
    known = {
        value for module in modules for value in vars(module).values() if isinstance(value, str)
    }
    deepspeed_json.check(settings, known, sections)


def _whole(folder: Path) -> Iterator[Path]:
    """The checkpoints of a run that are whole, newest first."""
    return (path for path in checkpoint.standing(folder) if not checkpoint.problem_of(path))


def _apart(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy in main memory; of floating point numbers with this type, where one is given."""
    kept = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return kept.detach().to("cpu", copy=True).contiguous()


def _observed(model: nn.Module) -> list[str]:
    """The names of what a model takes down in training: the running values of batch norms."""
    kept = model.state_dict()
    return [
        name
        for name, buffer in model.named_buffers()
        if name in kept and buffer.is_floating_point()
    ]


def _target(batch: FusionBatch) -> Tensor:
    if batch.target is None:
        raise ValueError(f"clips {', '.join(batch.keys[:3])} ... have no targets to train on")
    return batch.target


def _deepspeed() -> ModuleType:
    """The library, imported such that it neither guesses, nor compiles, nor talks."""
    cuda = torch.cuda.is_available()
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if not cuda:
        # Found out by trial compilations, and only asked for an all-reduce that is compiled on the
        # spot and not used in training. Said beforehand, nothing is compiled, and no g++ is needed.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    library: ModuleType = deepspeed
    return library


def _collectives(device: torch.device) -> Collectives:
    from deepspeed import comm

    return Collectives(comm.comm.cdb, cuda=device.type == "cuda")


def _join() -> None:
    """Be the only rank of a group, unless somebody has started one."""
    if not distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        # torch exports HashStore without saying so.
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
