"""All that decides the next steps of a model under DeepSpeed, whole, at any ZeRO stage.

DeepSpeed rounds weights, splits them and the optimizer's state over the ranks, and pads what it
splits. Here they are read as tensors of the model's own names and shapes, and set from such. Every
function is called by all ranks together.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from training.recipe import Recipe
from training.rounded_step import together

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW knows of each number beside the count of its steps."""

_WEIGHT = "weight"


class WholeState:
    """Weights, moments and counts of steps of a model in training.

    Args:
        model: In training.
        recipe: Says what is rounded and what is split.
        engine: DeepSpeed's, fresh.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, engine: Any) -> None:  # noqa: ANN401 - of DeepSpeed
        self._model, self._recipe, self._engine = model, recipe, engine
        self._masters = self._begin()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the module's state, whole and exact, on every rank."""
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            yield name, self._full(tensor) if isinstance(tensor, nn.Parameter) else tensor.detach()

    def everything(self) -> Iterator[tuple[str, Tensor]]:
        """Weights and moments, whole, on every rank: "weight/NAME", "exp_avg/NAME" and so on."""
        from deepspeed.utils import safe_get_full_optimizer_state

        for name, tensor in self.weights():
            yield f"{_WEIGHT}/{name}", tensor
        stepped = self.steps()
        if stepped and self._recipe.zero in {1, 2}:
            self._link()
        for name, parameter in self._trained():
            for moment in MOMENTS if name in stepped else ():
                if self._recipe.zero:
                    yield f"{moment}/{name}", safe_get_full_optimizer_state(parameter, moment)
                else:
                    yield f"{moment}/{name}", self._own_state(parameter)[moment]

    def steps(self) -> dict[str, int]:
        """How many steps each parameter has taken; those that took none are left out."""
        if self._recipe.zero:
            counts = [int(each["step"]) for each in self._adamw.state.values() if "step" in each]
            return (
                dict.fromkeys((name for name, _ in self._trained()), max(counts)) if counts else {}
            )
        states = {name: self._own_state(parameter) for name, parameter in self._trained()}
        return {name: int(state["step"]) for name, state in states.items() if state}

    def take_up(self, steps: Mapping[str, int], tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Go on from a state.

        Args:
            steps: As `steps` gave them.
            tensors: As `everything` gave them; every rank has each of them whole.
        """
        self._prepare_moments(steps)
        targets = dict(self._model.state_dict(keep_vars=True))
        for name, tensor in tensors:
            kind, _, target = name.partition("/")
            self._put(kind, targets[target], tensor)

    def _begin(self) -> dict[int, Tensor]:
        """The exact weights behind rounded ones that are not split, by the id of the parameter.

        For those (bf16, stage 0) DeepSpeed 0.19.8 takes a step of the optimizer without gradients
        to make room for its state: weights decay once too often, and AdamW counts from 1. Held by
        test_bf16_begins_as_the_other_stages_do; may go when it makes room otherwise.
        """
        groups = getattr(self._engine.optimizer, "fp16_groups", None)
        if self._recipe.zero or groups is None:
            return {}
        masters = {}
        with torch.no_grad():
            for rounded, exact in zip(groups, self._engine.optimizer.fp32_groups, strict=True):
                for parameter, master in zip(rounded, exact, strict=True):
                    master.copy_(parameter)
                    masters[id(parameter)] = master
        self._adamw.state.clear()
        self._engine.optimizer.step = together(self._engine.optimizer)
        return masters

    @property
    def _adamw(self) -> torch.optim.AdamW:
        """The optimizer within DeepSpeed's, which splits its state, or is the same."""
        optimizer: torch.optim.AdamW = getattr(
            self._engine.optimizer, "optimizer", self._engine.optimizer
        )
        return optimizer

    def _full(self, parameter: nn.Parameter) -> Tensor:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        if self._recipe.zero == 3 and not parameter.requires_grad:
            with GatheredParameters([parameter]):
                return parameter.detach().clone()
        if self._recipe.zero == 3 or (self._recipe.zero and self._recipe.precision == "bf16"):
            master = safe_get_full_fp32_param(parameter)
        else:
            master = self._masters.get(id(parameter))
        return (parameter if master is None else master).detach()

    def _link(self) -> None:
        """Let every parameter know its part of AdamW's state.

        DeepSpeed 0.19.8 does so at stages 1 and 2 once the first group of parameters has stepped,
        when the others have no state yet. Held by
        test_a_checkpoint_of_several_groups_goes_on_as_if_nothing_had_been; may go when it waits.
        """
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero = self._engine.optimizer
        for number, part in enumerate(zero.single_partition_of_fp32_groups):
            lazy_init_hp_params_optimizer_state(zero.bit16_groups[number], part, self._adamw.state)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        named = self._model.named_parameters()
        return [(name, each) for name, each in named if each.requires_grad]

    def _own_state(self, parameter: Tensor) -> dict[str, Any]:
        """AdamW's state of a parameter that is not split; empty before its first step."""
        state: dict[str, Any] = self._adamw.state[self._masters.get(id(parameter), parameter)]
        return state

    def _prepare_moments(self, steps: Mapping[str, int]) -> None:
        """Give AdamW a state of zeros with these counts, as its first step would."""
        if not self._recipe.zero:
            for name, parameter in self._trained():
                master = self._masters.get(id(parameter), parameter)
                if name in steps:
                    self._adamw.state[master] = _no_moments(master, steps[name])
            return
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero = self._engine.optimizer
        third = self._recipe.zero == 3
        flat = zero.fp32_partitioned_groups_flat if third else zero.single_partition_of_fp32_groups
        for number, part in enumerate(flat if steps else ()):
            self._adamw.state[part] = _no_moments(part, max(steps.values()))
            if not third:
                lazy_init_hp_params_optimizer_state(
                    zero.bit16_groups[number], part, self._adamw.state
                )

    @torch.no_grad()
    def _put(self, kind: str, target: Tensor, value: Tensor) -> None:
        """Set a weight or a moment from a whole tensor that all ranks have."""
        if kind == _WEIGHT:
            self._put_weight(target, value)
        elif not self._recipe.zero:
            self._own_state(target)[kind].copy_(value)
        else:
            self._put_split(target, value, kind)

    def _put_weight(self, target: Tensor, value: Tensor) -> None:
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([target], modifier_rank=0, enabled=hasattr(target, "ds_id")):
            if distributed.get_rank() == 0 or not hasattr(target, "ds_id"):
                target.copy_(value)
        if id(target) in self._masters:
            self._masters[id(target)].copy_(value)
        elif self._recipe.zero and target.requires_grad:
            self._put_split(target, value, None)

    def _put_split(self, parameter: Tensor, value: Tensor, moment: str | None) -> None:
        """Set this rank's part of a master weight (None) or a moment."""
        from deepspeed import utils as of

        if self._recipe.zero < 3:
            if moment is None:
                of.safe_set_full_fp32_param(parameter, value)
            else:
                of.safe_set_full_optimizer_state(parameter, value, moment)
            return
        # DeepSpeed 0.19.8 cuts past the end of a tensor that the ranks do not divide, so cut here.
        # Held by test_a_checkpoint_of_two_ranks_goes_on_on_any_number.
        size = parameter.ds_tensor.ds_numel  # type: ignore[attr-defined] # DeepSpeed's
        whole = size * distributed.get_world_size()
        padded = functional.pad(value.flatten(), (0, whole - value.numel()))
        part = padded[size * distributed.get_rank() :][:size]
        if moment is None:
            of.safe_set_local_fp32_param(parameter, part)
        else:
            of.safe_set_local_optimizer_state(parameter, part, moment)


def _no_moments(parameter: Tensor, steps: int) -> dict[str, Tensor]:
    zeros = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
    return {"step": torch.tensor(float(steps)), **zeros}
