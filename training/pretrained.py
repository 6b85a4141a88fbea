"""Checkpoints of encoders that are trained with the fusion model: named, begun with, carried along.

An experiment file names a checkpoint; a recipe holds all that decides numbers: the encoder's
settings, what its preprocessor does, and the digest of its weights. So a registered model is built
from its recipe alone. The checkpoint is read once, where training begins; the tokenizer's file goes
into the predictor's folder.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from featurizers import image_encoder
from featurizers.pretrained import (
    PICTURES,
    SOUND,
    WORDS,
    Checkpoint,
    Config,
    MissingWeightsError,
    digest_of_file,
    find,
    load,
    settings_of,
    tokenizer_of,
)
from featurizers.spec import FeatureSpec
from featurizers.speech_encoder import RATE_HZ
from featurizers.text_encoder import ARCHITECTURES as TEXT
from featurizers.word_pieces import NAME as WORD_PIECES
from training.models.encoders import (
    ARCHITECTURES,
    SPEECH,
    UNREAD,
    extras_of,
    kind_of,
)
from training.models.end_to_end import EndToEnd
from training.recipe import EncoderSettings, ModelSettings, Recipe
from training.recipe_checks import nearest

# Checkpoints of the hub hold these with their text half, which is not needed.
_WITH_TEXT = ("clip", "siglip")
KINDS = (*ARCHITECTURES, *_WITH_TEXT)
_PLACE = ("model", "revision", "weights")
_CHECKPOINT = ("config", "look", "weights")
# What says nothing of the numbers that a model computes.
_IDLE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "task_specific_params",
    "torch_dtype",
    "transformers_version",
}


def encoder_settings(given: Mapping[str, Any], folder: Path) -> EncoderSettings:
    """An encoder as an experiment file names it, with all that decides its numbers.

    Args:
        given: `model` with `revision`, or a folder as `model`; perhaps `weights`, the digest that
            the checkpoint must have; and fields of `EncoderSettings`.
        folder: Where relative paths begin.

    Raises:
        MissingWeightsError: The checkpoint is not on this machine, and cannot be fetched.
        ValueError: An unknown key; or the checkpoint is of a kind that cannot be trained, or
            wants sound at another rate.
    """
    known = [each.name for each in fields(EncoderSettings) if each.name not in _CHECKPOINT]
    if unknown := [name for name in given if name not in {*_PLACE, *known}]:
        raise ValueError(
            f"an encoder has no setting {unknown[0]!r}; {nearest(unknown[0], (*_PLACE, *known))}"
        )
    place = {name: str(given.get(name, "")) for name in _PLACE}
    if place["model"] and not place["revision"] and (folder / place["model"]).exists():
        place["model"] = str(folder / place["model"])
    checkpoint = find(place["model"], place["revision"], place["weights"], kinds=KINDS)
    config = _config(settings_of(checkpoint))
    plain = {name: value for name, value in config.to_dict().items() if name not in _IDLE}
    plain["model_type"] = config.model_type
    at = f"{checkpoint.name}@{checkpoint.revision}" if checkpoint.name else checkpoint.source
    return EncoderSettings(
        config=json.dumps(plain, sort_keys=True),
        look=json.dumps(_look(checkpoint, config.model_type), sort_keys=True),
        weights=f"{at}#{checkpoint.digest}",
        **{name: value for name, value in given.items() if name not in _PLACE},
    )


def begin(model: nn.Module, settings: ModelSettings) -> None:
    """Give the encoders of a model the weights of their checkpoints.

    Raises:
        MissingWeightsError: A checkpoint is not on this machine, and cannot be fetched.
        ValueError: It is not the one that the recipe names.
    """
    if not isinstance(model, EndToEnd):
        return
    for name, encoder in model.trained():
        chosen = settings.encoders[name]
        if chosen.weights:
            kind = kind_of(chosen)
            # Its settings are the recipe's: what the checkpoint drops in training may differ.
            loaded = load(
                _checkpoint(chosen),
                ARCHITECTURES[kind],
                "float32",
                spare=(*UNREAD, "pooler."),
                config=encoder.config,
                **extras_of(kind),
            )
            encoder.model.load_state_dict(loaded.state_dict())


def tokenizers(recipe: Recipe, specs: Mapping[str, FeatureSpec]) -> dict[str, Path]:
    """The tokenizer's file of each stream of word pieces.

    Raises:
        MissingWeightsError: It is not on this machine.
    """
    return {
        name: _tokenizer(recipe.model.encoders.get(name), spec)
        for name, spec in specs.items()
        if spec.name == WORD_PIECES
    }


def check_streams(recipe: Recipe, specs: Mapping[str, FeatureSpec]) -> None:
    """Raise ValueError where an encoder would read what it never learnt to read."""
    for name, settings in recipe.model.encoders.items():
        kind, spec = kind_of(settings), specs[name]
        wanted = WORD_PIECES if kind in TEXT else "waveform" if kind in SPEECH else "frames"
        if spec.name != wanted:
            raise ValueError(f"encoders.{name}: {kind} reads {wanted}, not {spec.name}")
        rate = spec.parameters.get("rate_hz", RATE_HZ)
        if kind in SPEECH and rate != RATE_HZ:
            raise ValueError(f"encoders.{name}: {kind} reads sound at {RATE_HZ} Hz, not {rate}")
        own = _own_tokenizer(settings) if kind in TEXT else None
        if own is not None and digest_of_file(own) != spec.weights:
            raise ValueError(
                f"encoders.{name}: stream {name!r} was cut by another tokenizer than {own}; give "
                f"both the same `model`"
            )


def _config(config: Config) -> Config:
    """The settings of what is trained: of models with two halves that of pictures."""
    return config.vision_config if config.model_type in _WITH_TEXT else config


def _look(checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    """What the checkpoint's preprocessor does to what the encoder reads."""
    if kind in TEXT:
        return {}
    file = (SOUND if kind in SPEECH else PICTURES)[0]
    if not (checkpoint.folder / file).is_file():
        raise MissingWeightsError(
            f"{checkpoint.folder} has no {file}, so it is no whole checkpoint"
        )
    if kind in SPEECH:
        plain = checkpoint.read(file)
        if (rate := plain.get("sampling_rate", RATE_HZ)) != RATE_HZ:
            raise ValueError(f"{checkpoint.folder / file} wants sound at {rate} Hz, not {RATE_HZ}")
        return {"do_normalize": bool(plain.get("do_normalize", True))}
    look = image_encoder.look_of(checkpoint)
    seen = {"scale": look.scale, "mean": look.mean, "deviation": look.deviation}
    return {**seen, "size": look.size}


def _checkpoint(settings: EncoderSettings) -> Checkpoint:
    place, _, digest = settings.weights.rpartition("#")
    name, _, revision = place.rpartition("@")
    of_hub = len(revision) == 40 and not Path(place).is_absolute()
    model, commit = (name, revision) if of_hub else (place, "")
    return find(model, commit, digest, kinds=KINDS)


def _own_tokenizer(settings: EncoderSettings) -> Path | None:
    """The tokenizer's file in an encoder's checkpoint, if there are both."""
    if not settings.weights:
        return None
    try:
        file = _checkpoint(settings).folder / WORDS[0]
    except MissingWeightsError:
        return None
    return file if file.is_file() else None


def _tokenizer(settings: EncoderSettings | None, spec: FeatureSpec) -> Path:
    own = _own_tokenizer(settings) if settings else None
    if own is not None and digest_of_file(own) == spec.weights:
        return own
    return tokenizer_of(spec.source, "", spec.weights, kinds=())[0]
