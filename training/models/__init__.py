"""Fusion models, and `build()`, which makes one from settings.

Each is an `nn.Module` that keeps the law of `training.batch.FusionModel`.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import UnionType
from typing import Literal, TypeVar, get_args, get_origin, get_type_hints

from torch import nn

from training.models.blocks import FusionSettings
from training.models.late_fusion import LateFusion
from training.models.mmlatch import MMLatch, MMLatchSettings
from training.models.msaf_lstm import MsafLstm, MsafLstmSettings
from training.models.mult import MulT, MulTSettings
from training.recipe import ModelSettings, Scalar

KINDS = ("mmlatch", "mult", "msaf", "late_fusion", "unimodal")
"""The models that `build` knows."""

Settings = TypeVar("Settings", FusionSettings, MMLatchSettings, MulTSettings, MsafLstmSettings)


def build(settings: ModelSettings, widths: Mapping[str, int], outputs: int) -> nn.Module:
    """A model with fresh weights, drawn from torch's generator.

    Args:
        settings: Kind, streams in order, and settings of that kind.
        widths: Dimensions by stream; more streams than the model reads do no harm.
        outputs: K, the columns of the model's output.

    Raises:
        ValueError: An unknown kind, stream or setting, or a value that the setting does not take.
    """
    _check_streams(settings, widths)
    if outputs < 1:
        raise ValueError(
            f"a model of {outputs} outputs predicts nothing; give 1, or the number of classes"
        )
    streams, given = settings.streams, settings.settings
    match settings.kind:
        case "mmlatch":
            return MMLatch(streams, widths, outputs, _parse(MMLatchSettings, "mmlatch", given))
        case "mult":
            return MulT(streams, widths, outputs, _parse(MulTSettings, "mult", given))
        case "msaf":
            return MsafLstm(streams, widths, outputs, _parse(MsafLstmSettings, "msaf", given))
        case "late_fusion" | "unimodal" as kind:
            return LateFusion(streams, widths, outputs, _parse(FusionSettings, kind, given))
        case unknown:
            raise ValueError(f"unknown model {unknown!r}; {_nearest(unknown, KINDS)}")


def _check_streams(settings: ModelSettings, widths: Mapping[str, int]) -> None:
    streams = settings.streams
    if not streams or len(set(streams)) != len(streams):
        raise ValueError(f"a model reads one stream at least, and each once; found {list(streams)}")
    if settings.kind == "unimodal" and len(streams) != 1:
        raise ValueError(
            f"'unimodal' reads exactly one stream, not {list(streams)}; 'late_fusion' reads several"
        )
    for name in streams:
        if name not in widths:
            raise ValueError(
                f"model {settings.kind!r}: no stream {name!r}; {_nearest(name, widths)}"
            )


def _parse(cls: type[Settings], kind: str, given: Mapping[str, Scalar]) -> Settings:
    """Settings of one kind, each checked for its name and its type."""
    types = get_type_hints(cls)
    known = [field.name for field in fields(cls)]
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"model {kind!r} has no setting {name!r}; {_nearest(name, known)}")
        if not _fits(value, types[name]):
            raise ValueError(f"model {kind!r}: {name} is {value!r}; wanted {_wanted(types[name])}")
    # A mapping cannot be typed by field; each value has just been checked against its field.
    return cls(**given)  # type: ignore[arg-type]


def _fits(value: Scalar, wanted: object) -> bool:
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if isinstance(wanted, UnionType):
        return any(_fits(value, each) for each in get_args(wanted))
    if isinstance(value, bool) or wanted is bool:
        return isinstance(value, bool) and wanted is bool
    return isinstance(value, int | float) if wanted is float else type(value) is wanted


def _wanted(wanted: object) -> str:
    if get_origin(wanted) is Literal:
        return " or ".join(repr(choice) for choice in get_args(wanted))
    if isinstance(wanted, UnionType):
        return " or ".join(_wanted(each) for each in get_args(wanted))
    names: dict[object, str] = {bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(wanted, "a text")


def _nearest(name: str, known: Iterable[str]) -> str:
    choices = list(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.0)
    return f"the nearest known one is {close[0]!r}, of {choices}" if close else "none is known"
