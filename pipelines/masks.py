"""How far a model with feedback let each stream through, at each word of a few test clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from featurizers.clip import Clip
from featurizers.imported import spoken_of
from featurizers.manifest import Column
from training import explain
from training.batch import collate
from training.normaliser import Normaliser
from training.predict import load_model
from training.recipe import Recipe
from training.samples import is_empty, time_base, to_samples

Why: TypeAlias = Literal["nearest", "in the middle", "furthest off"]
"""How what is said of a chosen clip stands among what is said of all."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a clip's time base.

    Attributes:
        word: What is said; empty where steps are no words.
        start, end: Seconds from the clip's start.
        means: By receiving stream the mean of its mask over the stream's dimensions, between 0 and
            1; None where it has nothing.
    """

    word: str
    start: float
    end: float
    means: Mapping[str, float | None]


def choose(errors: Mapping[str, float]) -> dict[str, Why]:
    """The clips with the least, the middle and the largest error, of equal ones the first by key.

    Args:
        errors: Of each clip, by key.
    """
    ordered = sorted(errors, key=lambda key: (errors[key], key))
    if not ordered:
        return {}
    chosen: dict[str, Why] = {ordered[0]: "nearest"}
    chosen.setdefault(ordered[-1], "furthest off")
    chosen.setdefault(ordered[len(ordered) // 2], "in the middle")
    return {key: chosen[key] for key in ordered if key in chosen}


def masks(
    folder: Path, recipe: Recipe, clips: Sequence[Clip], columns: Mapping[str, Column]
) -> dict[str, tuple[Step, ...]]:
    """The masks of some clips, by key; clips of which nothing can be read are left out.

    Args:
        folder: The predictor's.
        recipe: The run's.
        clips: Which.
        columns: By stream, in the model's order.

    Returns:
        Nothing for a model that has no masks, or that reads streams by encoders of its own.
    """
    if not clips or recipe.model.encoders or recipe.pooling.kind == "own":
        return {}
    features = [{name: each.read(clip.key) for name, each in columns.items()} for clip in clips]
    specs = {name: column.spec for name, column in columns.items()}
    samples = to_samples(
        clips,
        features,
        recipe.pooling,
        Normaliser.load(folder / "normaliser.safetensors"),
        [None] * len(clips),
        spoken=spoken_of(specs),
    )
    full = [at for at, sample in enumerate(samples) if not is_empty(sample)]
    if not full:
        return {}
    batch = collate(
        [samples[at] for at in full], {name: spec.width for name, spec in specs.items()}
    )
    means = explain.masks(load_model(folder), batch)
    found = {}
    for row, at in enumerate(full):
        base = time_base(clips[at], features[at], recipe.pooling)
        # A clip without words is pooled to cells, whatever the recipe says of others.
        words = clips[at].words if recipe.pooling.kind == "words" else None
        texts = [word.text for word in words] if words else [""] * len(base)
        found[clips[at].key] = tuple(
            Step(
                word=text,
                start=float(start),
                end=float(end),
                means={name: each[row][step] for name, each in means.items()},
            )
            for step, (text, (start, end)) in enumerate(zip(texts, base, strict=True))
        )
    return found if means else {}
