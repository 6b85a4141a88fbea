"""All that decides a run's numbers, typed and frozen."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from featurizers.align import How

Scalar: TypeAlias = str | int | float | bool

TaskKind: TypeAlias = Literal["regression", "classes", "labels"]
Loss: TypeAlias = Literal["l1", "mse", "cross_entropy", "bce"]

ScheduleKind: TypeAlias = Literal["plateau", "constant", "cosine", "linear", "step"]

Target: TypeAlias = float | int | Sequence[float]
"""What is true or said of a clip: a number, the index of a class, or for each label 1 or 0."""

LARGEST_MICRO = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is predicted: a number, one of some classes, or any of some labels at once.

    Attributes:
        label: The column of the table.
        classes: The classes or labels, in the order of a model's outputs; none for a regression.
    """

    kind: TaskKind
    label: str
    classes: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Columns of a model's output."""
        return 1 if self.kind == "regression" else len(self.classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """The time base that training asks for, and how a stream's steps become a value of it.

    "words": every stream is pooled to the clip's words; a clip without words is pooled to cells of
    `cell_s` seconds.
    "cells": every stream is pooled to cells of `cell_s` seconds, which is a rate of 1 / cell_s.
    "steps": every stream is pooled to `steps` equal parts of the clip.
    "own": every stream keeps its own steps; one with more than `most` is pooled to `most` equal
    parts of its time. For models that want no common time base.

    `how` is that of `featurizers.align.pool`; for streams whose steps are words, "mean" is
    "overlap".
    """

    kind: Literal["words", "cells", "steps", "own"] = "words"
    cell_s: float = 0.5
    steps: int = 50
    how: How = "mean"
    most: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """A pretrained encoder that is trained together with the fusion model, on a raw stream.

    Attributes:
        config: The encoder's settings in transformers, as JSON; its `model_type` is the kind.
        look: What the checkpoint's preprocessor does to the raw stream, as JSON.
        weights: The checkpoint that it begins with, "PLACE#DIGEST", the place a folder or
            NAME@REVISION; empty for weights drawn by chance.
        learning_rate: Of its last layer, where the recipe's is that of the fusion model.
        layer_decay: The learning rate of a layer over that of the layer above it.
        freeze: "none", "all", "features" (what lies below the layers), or a number: so many of the
            first layers as well.
        checkpointing: Whether the backward pass computes activations anew, instead of keeping them.
        width: What its states are projected to; 0 leaves them as they are.
        most: Steps of the raw stream that it reads at most; 0 is as many as the encoder can.
    """

    config: str
    look: str = "{}"
    weights: str = ""
    learning_rate: float = 2e-5
    layer_decay: float = 1.0
    freeze: str | int = "none"
    checkpointing: bool = False
    width: int = 0
    most: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How the learning rate goes over a run.

    "plateau": multiplied by `factor` when more than `patience` epochs in a row brought no better
    validation loss; the `cooldown` epochs after that are not counted.
    "constant": as it is.
    "cosine": half a cosine, from the recipe's rate after the warm-up to `floor` of it at the end
    (Loshchilov and Hutter, "SGDR", 2017, without restarts).
    "linear": a straight line between the same.
    "step": multiplied by `factor` after each of the epochs `at`, or after every `every` epochs
    where `at` names none.

    Attributes:
        warmup: Steps at the beginning in which the rate rises in a straight line, the last of them
            has all of it; below 1, their share of all steps.
        floor: The lowest share of the rate.
    """

    kind: ScheduleKind = "plateau"
    warmup: float = 0
    factor: float = 0.5
    patience: int = 2
    cooldown: int = 0
    floor: float = 0.0
    at: tuple[int, ...] = ()
    every: int = 10

    def warmup_steps(self, total: int) -> int:
        """The length of the warm-up of a run of so many steps."""
        return round(self.warmup * total) if self.warmup < 1 else int(self.warmup)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which model, over which streams (in this order), with which settings of its own.

    Attributes:
        encoders: The encoder of each stream that has one; the model is fused of their states.
    """

    kind: str
    streams: tuple[str, ...]
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    encoders: Mapping[str, EncoderSettings] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides a run's numbers, apart from the data and the code.

    Attributes:
        name: The named recipe that it came from.
        learning_rate: What the schedule's shares are of.
        schedule: How it goes over the run.
        clip_norm: Gradient norm above which gradients are scaled down; None for no clipping.
        patience: Epochs without a better value of `monitor` after which training stops.
        monitor: By what the best epoch is chosen: "valid_loss", or "valid_" and a metric of the
            task.
        min_delta: How much better a value must be for patience to begin anew.
        class_weights: How much each class counts in training, or for labels each clip that has it:
            all alike, by how rare it is, or as given; see `training.class_weights`.
        zero: What is split over the ranks: nothing, the optimizer's state (1), gradients too (2),
            weights too (3).
        offload: What is kept in main memory, not on the device: nothing, the optimizer's state (at
            stage 1 or more), or the weights too (at stage 3).
        compile: Whether PyTorch compiles the model; its numbers differ in their last digits.
        take_absent: Whether training takes clips that lack a stream (masked), or leaves them out.
        modality_dropout: The probability that training masks a stream of a clip; one that the clip
            has always stays.
        raw: Streams that are neither normalised nor cut, such as pixels and joints, which their
            models scale by themselves.
        start: Weights that parts of the model begin with, by part: "FILE#SHA256"; see
            `training.start`.
        fold: Such as "2/5", in place of the dataset's splits; see `training.folds`.
        bucketed: Whether a global batch has clips of near lengths, see `training.order.Buckets`.
        loader: "indexed" finds each clip in its shard, in the global order; "streaming" reads
            whole shards, with the weaker promise of `training.loader.Streaming`.
        checkpoint_every: Epochs between checkpoints.
    """

    name: str
    model: ModelSettings
    task: Task
    pooling: Pooling = field(default_factory=Pooling)
    epochs: int = 30
    global_batch: int = 32
    micro_batch: int | None = None
    learning_rate: float = 5e-4
    schedule: Schedule = field(default_factory=lambda: Schedule(floor=1 / 20))
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0
    patience: int = 10
    monitor: str = "valid_loss"
    min_delta: float = 0.0
    loss: Loss = "l1"
    class_weights: Literal["none", "balanced"] | Mapping[str, float] = "none"
    zero: Literal[0, 1, 2, 3] = 0
    offload: Literal["none", "optimizer", "all"] = "none"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    take_absent: bool = True
    modality_dropout: float = 0.0
    raw: tuple[str, ...] = ()
    start: Mapping[str, str] = field(default_factory=dict)
    bucketed: bool = False
    loader: Literal["indexed", "streaming"] = "indexed"
    seed: int = 0
    fold: str = ""
    checkpoint_every: int = 5

    @property
    def digest(self) -> str:
        """sha256 of all settings in hex; where files of weights lie does not matter."""
        plain = self.to_json()
        plain["start"] = {part: text.rpartition("#")[2] for part, text in self.start.items()}
        for encoder in plain["model"]["encoders"].values():
            encoder["weights"] = encoder["weights"].rpartition("#")[2]
        if not plain["model"]["encoders"]:
            del plain["model"]["encoders"]  # nothing is decided by it
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` gives the recipe back."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_json` wrote."""
        plain = dict(data)
        model, task = dict(plain.pop("model")), dict(plain.pop("task"))
        model["streams"] = tuple(model["streams"])
        encoders = model.get("encoders", {})
        model["encoders"] = {name: EncoderSettings(**each) for name, each in encoders.items()}
        task["classes"] = tuple(task["classes"])
        schedule = dict(plain.pop("schedule", None) or {"floor": 1 / 20})
        schedule["at"] = tuple(schedule.get("at", ()))
        return Recipe(
            model=ModelSettings(**model),
            task=Task(**task),
            pooling=Pooling(**plain.pop("pooling")),
            schedule=Schedule(**schedule),
            raw=tuple(plain.pop("raw", ())),
            **plain,
        )


def fitting_ranks(global_batch: int, workers: int, asked: int | None) -> int:
    """The most ranks up to `workers` to which a global batch can be dealt evenly.

    Args:
        global_batch: Clips of a step.
        workers: How many there are, at least 1.
        asked: Clips that a rank takes at a time, where that is settled.

    Raises:
        ValueError: It does not even fit one, since `asked` does not divide the global batch.
    """
    unit = asked or 1
    fitting = [ranks for ranks in range(workers, 0, -1) if global_batch % (ranks * unit) == 0]
    if not fitting:
        micro_batch(global_batch, 1, asked)  # says what would fit
    return fitting[0]


def micro_batch(global_batch: int, world: int, asked: int | None) -> int:
    """Clips that a rank takes at a time: as asked, or the most up to 64 that divide evenly.

    Raises:
        ValueError: The global batch cannot be dealt evenly.
    """
    unit = world * (asked or 1)
    if global_batch % unit:
        smaller = global_batch // unit * unit
        fits = f"the next smaller one that fits is {smaller}" if smaller else f"take {unit}"
        raise ValueError(
            f"global batch {global_batch} is not divisible by {world} ranks x micro batch "
            f"{asked or 1}; {fits}"
        )
    if asked is not None:
        return asked
    share = global_batch // world
    return next(micro for micro in range(min(share, LARGEST_MICRO), 0, -1) if share % micro == 0)
