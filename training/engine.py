"""DeepSpeed behind one class: steps, predictions, weights, checkpoints. Its only user.

Its settings are generated from the recipe. Facts that shaped this file, of DeepSpeed 0.19.8: it
clips gradients to norm 1 unless told otherwise; it ignores top-level settings that it does not
know; an optimizer named in its settings is compiled with g++, so ours is PyTorch's;
`load_checkpoint` answers a missing checkpoint with (None, None).
"""

import logging
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NotRequired, TypedDict, TypeVar, assert_never

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn import functional

from training import checkpoint
from training.batch import Criterion, FusionBatch, OwnLosses
from training.optimizer import groups
from training.recipe import Recipe, micro_batch

Found = TypeVar("Found")

TAG = "step"
BEST = "best.safetensors"
# DeepSpeed would reserve 2 GB for each bucket; these models have a few million parameters.
BUCKET_ELEMENTS = 10_000_000


class Offload(TypedDict):
    """Where something is kept that is split over the ranks, when not on the device."""

    device: str
    pin_memory: bool


class ZeroSettings(TypedDict):
    """What is split over the ranks: nothing, optimizer states, gradients too, weights too."""

    stage: int
    reduce_bucket_size: int
    allgather_bucket_size: int
    offload_optimizer: NotRequired[Offload]
    offload_param: NotRequired[Offload]


class Switch(TypedDict):
    """A feature that is on or off."""

    enabled: bool


class DeepSpeedSettings(TypedDict):
    """All top-level settings that we give: a misspelt one is a type error here, nothing there."""

    train_batch_size: int
    train_micro_batch_size_per_gpu: int
    gradient_clipping: float
    zero_optimization: ZeroSettings
    zero_force_ds_cpu_optimizer: bool
    bf16: Switch
    steps_per_print: int


def ds_config(recipe: Recipe, world: int, micro: int) -> DeepSpeedSettings:
    """DeepSpeed's settings for a recipe.

    Args:
        recipe: Decides all that decides numbers.
        world: Ranks.
        micro: Clips that each rank takes at a time.
    """
    zero: ZeroSettings = {
        "stage": recipe.zero,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    pinned = torch.cuda.is_available()
    if recipe.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    if recipe.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": pinned}
    return {
        "train_batch_size": recipe.global_batch,
        "train_micro_batch_size_per_gpu": micro,
        # Left out, DeepSpeed would clip to 1.0.
        "gradient_clipping": 0.0 if recipe.clip_norm is None else recipe.clip_norm,
        "zero_optimization": zero,
        # With offloading DeepSpeed insists on its own Adam, which is compiled with g++ at first use
        # and took minutes; PyTorch's is slower by a step of a few million numbers.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": recipe.precision == "bf16"},
        "steps_per_print": 10**9,
    }


def clip_losses(
    outputs: Tensor, target: Tensor, recipe: Recipe, positive: Sequence[float] = ()
) -> Tensor:
    """The loss of each clip, unweighted, in float32: [B].

    Args:
        outputs: [B, K].
        target: Float [B] for a regression, int64 [B] for classes, float [B, K] for labels.
        recipe: Says which loss.
        positive: For labels, how much a clip that has one counts beside a clip that does not; all
            alike where none are given.
    """
    outputs = outputs.float()
    match recipe.loss:
        case "l1":
            return (outputs[:, 0] - target).abs()
        case "mse":
            return (outputs[:, 0] - target).square()
        case "cross_entropy":
            return functional.cross_entropy(outputs, target, reduction="none")
        case "bce":
            each = functional.binary_cross_entropy_with_logits(
                outputs,
                target,
                pos_weight=outputs.new_tensor(positive) if positive else None,
                reduction="none",
            )
            return each.mean(dim=1)
        case unknown:
            assert_never(unknown)


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
        self._engine, *_ = deepspeed.initialize(
            model=_Trained(model) if isinstance(model, OwnLosses) else model,
            optimizer=optimizer,
            config=dict(ds_config(recipe, self._world, self.micro)),
        )
        self._device = self._engine.device

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

    def weights(self) -> dict[str, Tensor]:
        """The whole state of the model in main memory, numbers as float32, at any ZeRO stage."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        # At these settings what the module holds is a part, or rounded.
        masters = self._recipe.zero == 3 or self._recipe.precision == "bf16"
        state: dict[str, Tensor] = {}
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            if hasattr(tensor, "ds_id") and not tensor.requires_grad:
                with GatheredParameters([tensor]):  # frozen: there is no master
                    state[name] = tensor.detach().float().to("cpu", copy=True).contiguous()
                continue
            parameter = masters and isinstance(tensor, nn.Parameter)
            master = safe_get_full_fp32_param(tensor) if parameter else None
            full = (tensor if master is None else master).detach()
            full = full.float() if full.is_floating_point() else full
            state[name] = full.to("cpu", copy=True).contiguous()
        return state

    def save(self, folder: Path, state: Mapping[str, Any], best: Mapping[str, Tensor]) -> None:
        """Write a checkpoint; it is complete when all ranks have returned.

        Args:
            folder: This rank's empty folder. Folders may be the same, or be joined to one
                afterwards.
            state: Plain data of the loop.
            best: Weights worth keeping, on rank 0.
        """
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        if self._rank == 0:
            save_file(dict(best), folder / BEST)
        files: dict[str, tuple[int, str]] = {}
        for found in self._once_for_each(folder, checkpoint.digests):
            files.update(found)
        if self._rank == 0:
            about = {"recipe": self._recipe.digest, "world": self._world, "state": dict(state)}
            checkpoint.seal(folder, files, about)
        distributed.barrier()

    def load(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Take up a checkpoint.

        Returns:
            The state and the best weights that `save` was given.

        Raises:
            CheckpointError: The checkpoint is damaged, of another recipe, or split over another
                number of ranks. Raised on every rank.
        """
        problems = [text for text in self._once_for_each(folder, checkpoint.problem_of) if text]
        if problems:
            raise checkpoint.CheckpointError(problems[0])
        about = checkpoint.read_marker(folder)["about"]
        self._check(folder, about)
        path, _ = self._engine.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise checkpoint.CheckpointError(
                f"{folder}: DeepSpeed found no checkpoint {TAG!r} there"
            )
        return about["state"], load_file(folder / BEST)

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
        distributed.all_reduce(together)
        means = torch.split(together / self._world, [buffer.numel() for buffer in buffers])
        with torch.no_grad():
            for buffer, mean in zip(buffers, means, strict=True):
                buffer.copy_(mean.view_as(buffer))

    def _check(self, folder: Path, about: Mapping[str, Any]) -> None:
        if about["recipe"] != self._recipe.digest:
            raise checkpoint.CheckpointError(
                f"{folder} is a checkpoint of another recipe ({about['recipe'][:12]}, not "
                f"{self._recipe.digest[:12]}); give this run a folder of its own"
            )
        if about["world"] != self._world and self._recipe.zero > 0:
            raise checkpoint.CheckpointError(
                f"{folder} is split over {about['world']} ranks (ZeRO {self._recipe.zero}) and "
                f"cannot be loaded on {self._world}; continue on {about['world']}, or train "
                f"with zero: 0"
            )

    def _once_for_each(self, folder: Path, read: Callable[[Path], Found]) -> list[Found]:
        """What `read` says of each distinct folder: ranks of one machine may share theirs."""
        distributed.barrier()
        places: list[Any] = [None] * self._world
        distributed.all_gather_object(places, (platform.node(), str(folder.resolve())))
        first = places.index(places[self._rank]) == self._rank
        found: list[Any] = [None] * self._world
        distributed.all_gather_object(found, read(folder) if first else None)
        return [each for each in found if each is not None]


class _Trained(nn.Module):
    """A model with losses of its own. DeepSpeed prepares for a step in `forward` alone."""

    def __init__(self, model: OwnLosses) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: FusionBatch, criterion: Criterion | None = None) -> Tensor:
        """The sum of its losses of each clip [B]; without a criterion the outputs [B, K]."""
        if criterion is None:
            return self.model.forward(batch)
        return torch.stack(list(self.model.losses(batch, criterion).values())).sum(0)


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


def _join() -> None:
    """Be the only rank of a group, unless somebody has started one."""
    if not distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        # torch exports HashStore without saying so.
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group(backend, store=store, rank=0, world_size=1)
