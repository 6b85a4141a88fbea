"""DeepSpeed's settings, generated from a recipe: typed here, checked against the library's own.

DeepSpeed 0.19.8 ignores a key at the top level that it does not know. Held by
test_a_misspelt_key_is_an_error_at_any_depth; may go when DeepSpeed refuses such keys itself.
"""

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NotRequired, TypedDict

from training.recipe import Recipe

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
    """All top-level settings that we give: a misspelt one is a type error."""

    train_batch_size: int
    train_micro_batch_size_per_gpu: int
    gradient_accumulation_steps: int
    gradient_clipping: float
    zero_optimization: ZeroSettings
    zero_force_ds_cpu_optimizer: bool
    bf16: Switch
    steps_per_print: int


def ds_config(recipe: Recipe, world: int, micro: int, *, pinned: bool = False) -> DeepSpeedSettings:
    """DeepSpeed's settings for a recipe.

    Args:
        recipe: Decides all that decides numbers.
        world: Ranks.
        micro: Clips that each rank takes at a time.
        pinned: Keep what is offloaded in page-locked memory, from which a GPU copies faster.
    """
    zero: ZeroSettings = {
        "stage": recipe.zero,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
    }
    if recipe.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    if recipe.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": pinned}
    return {
        "train_batch_size": recipe.global_batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": recipe.global_batch // (world * micro),
        # Left out, DeepSpeed would clip to 1.0.
        "gradient_clipping": 0.0 if recipe.clip_norm is None else recipe.clip_norm,
        "zero_optimization": zero,
        # With offloading DeepSpeed insists on its own Adam, which is compiled with g++ at first use
        # and took minutes; PyTorch's is slower by a step of a few million numbers.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": recipe.precision == "bf16"},
        "steps_per_print": 10**9,
    }


def check(
    settings: Mapping[str, Any],
    known: Collection[str],
    sections: Mapping[str, Callable[..., object]],
) -> None:
    """Hold settings against what the library knows.

    Args:
        settings: Plain data, as DeepSpeed would read it.
        known: Names of settings at the top level.
        sections: By name, what builds a section from its keys and refuses those that it does not
            know.

    Raises:
        ValueError: A key is unknown, or a value is not allowed; names the key and the nearest
            known one.
    """
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"DeepSpeed has no setting {name!r}{hint}")
        if name in sections:
            try:
                sections[name](**value)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"DeepSpeed refuses {name!r}: {' '.join(str(error).split())}"
                ) from None
        elif isinstance(value, Mapping):
            raise ValueError(f"the keys of DeepSpeed's section {name!r} cannot be checked")
