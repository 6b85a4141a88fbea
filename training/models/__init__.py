"""Fusion models, and `build()`, which makes one from settings.

Each is an `nn.Module` that keeps the law of `training.batch.FusionModel`; docs/adding-a-model.md
shows how one is added.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from torch import nn

from training.batch import OwnLosses
from training.models.blocks import FusionSettings
from training.models.decision import DecisionSettings, decision_average, decision_product
from training.models.early_fusion import EarlyFusion
from training.models.encoders import Encoder, build_encoder
from training.models.end_to_end import EndToEnd, EndToEndByOwnLosses
from training.models.hcn import Hcn, HcnSettings
from training.models.i3d import I3d, I3dSettings
from training.models.late_fusion import LateFusion
from training.models.lmf import LowRankFusion, LowRankSettings
from training.models.mmlatch import MMLatch, MMLatchSettings
from training.models.msaf_lstm import MsafLstm, MsafLstmSettings
from training.models.msaf_ntu import MsafNtu, MsafNtuSettings
from training.models.msaf_ravdess import MsafRavdess, MsafRavdessSettings
from training.models.mult import MulT, MulTSettings
from training.models.resnext3d import ResNext3d, ResNext3dSettings
from training.models.sound_cnn import SoundCnn, SoundCnnSettings
from training.models.tfn import TensorFusion
from training.models.vectors import VectorSettings
from training.recipe import ModelSettings, Scalar


class Kind(NamedTuple):
    """One kind of model.

    Attributes:
        model: Called with streams in order, widths by stream, outputs, and settings.
        settings: A frozen dataclass of scalars with defaults, which checks its own values.
        reads: What its streams are, in order; empty where it takes any.
    """

    model: Callable[[Sequence[str], Mapping[str, int], int, Any], nn.Module]
    settings: type[Any]
    reads: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "mmlatch": Kind(MMLatch, MMLatchSettings),
    "mult": Kind(MulT, MulTSettings),
    "msaf": Kind(MsafLstm, MsafLstmSettings),
    "late_fusion": Kind(LateFusion, FusionSettings),
    "unimodal": Kind(LateFusion, FusionSettings),
    "early_fusion": Kind(EarlyFusion, FusionSettings),
    "decision_average": Kind(decision_average, DecisionSettings),
    "decision_product": Kind(decision_product, DecisionSettings),
    "tfn": Kind(TensorFusion, VectorSettings),
    "lmf": Kind(LowRankFusion, LowRankSettings),
    "resnext3d": Kind(ResNext3d, ResNext3dSettings, ("pixels",)),
    "sound_cnn": Kind(SoundCnn, SoundCnnSettings, ("MFCC",)),
    "msaf_ravdess": Kind(MsafRavdess, MsafRavdessSettings, ("pixels", "MFCC")),
    "i3d": Kind(I3d, I3dSettings, ("pixels",)),
    "hcn": Kind(Hcn, HcnSettings, ("joints",)),
    "msaf_ntu": Kind(MsafNtu, MsafNtuSettings, ("pixels", "joints")),
}
"""The models that `build` knows."""


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
    if settings.encoders:
        return _end_to_end(settings, widths, outputs)
    if outputs < 1:
        raise ValueError(
            f"a model of {outputs} outputs predicts nothing; give 1, or one for each class or label"
        )
    if settings.kind not in KINDS:
        raise ValueError(f"unknown model {settings.kind!r}; {_nearest(settings.kind, KINDS)}")
    kind = KINDS[settings.kind]
    if kind.reads and len(kind.reads) != len(settings.streams):
        raise ValueError(
            f"model {settings.kind!r} reads {' and '.join(kind.reads)}, in this order; found "
            f"{list(settings.streams)}"
        )
    parsed = _parse(kind.settings, settings.kind, settings.settings)
    return kind.model(settings.streams, widths, outputs, parsed)


def _end_to_end(settings: ModelSettings, widths: Mapping[str, int], outputs: int) -> EndToEnd:
    """The same model of the states of encoders, and these encoders."""
    encoders: dict[str, Encoder] = {}
    for name, each in settings.encoders.items():
        if name not in settings.streams:
            raise ValueError(f"encoders: no stream {name!r}; {_nearest(name, settings.streams)}")
        try:
            encoders[name] = build_encoder(each, widths[name])
        except ValueError as error:
            raise ValueError(f"encoders.{name}: {error}") from None
    states = {name: each.settings.width or each.width for name, each in encoders.items()}
    fusion = build(replace(settings, encoders={}), {**widths, **states}, outputs)
    by_own_losses = isinstance(fusion, OwnLosses)
    return (EndToEndByOwnLosses if by_own_losses else EndToEnd)(encoders, fusion)


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


def _parse(cls: type[Any], kind: str, given: Mapping[str, Scalar]) -> Any:  # noqa: ANN401 - each kind has its own
    """Settings of one kind, each checked for its name and its type."""
    types = get_type_hints(cls)
    known = [field.name for field in fields(cls)]
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"model {kind!r} has no setting {name!r}; {_nearest(name, known)}")
        if not _fits(value, types[name]):
            raise ValueError(f"model {kind!r}: {name} is {value!r}; wanted {_wanted(types[name])}")
    return cls(**given)


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
