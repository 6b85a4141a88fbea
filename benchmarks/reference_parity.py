"""Whether our models, in their reference form, compute what an authors' checkout computes.

Fetch the authors' repository yourself, and give its folder. Random weights are drawn by the
authors' own constructors, with noise on what they start constant, and copied into ours by
`from_reference`; random inputs go through both; outputs and the gradients of all weights and
inputs are compared, the largest difference over the largest value of the authors' tensor (a tensor
of which nothing reaches a millionth of the largest gradient counts as that large: it is 0 but for
rounding). Both sides compute in float64, as in float32 rounding alone makes small gradients differ
by more than 1e-4. Outputs may differ by 1e-5, gradients by 1e-4; exit code 1 where they differ by
more.

The authors' code is imported as it lies there. It is some years old, so a few names are replaced
while it is imported, and no file is changed: see `PATCHED`.

    python benchmarks/reference_parity.py --repo PATH [--model mmlatch|mult|msaf]
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import math
import platform
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tracking.provenance import git_commit, versions
from training.batch import FusionBatch, Stream
from training.models import build
from training.models.mmlatch import from_reference as mmlatch_from_reference
from training.models.msaf import Msaf, MsafSettings
from training.models.msaf import from_reference as msaf_from_reference
from training.models.mult import from_reference as mult_from_reference
from training.recipe import ModelSettings, Scalar

HOME = Path(__file__).resolve().parent.parent
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
NOTHING = 1e-6
WIDTHS = {"text": 300, "audio": 74, "visual": 35}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """An authors' repository.

    Attributes:
        repository: Where it was published.
        commit: What this was written against.
        file: A file that only a checkout of it has.
    """

    repository: str
    commit: str
    file: str


ORIGINS = {
    "mmlatch": Origin(
        repository="georgepar/mmlatch",
        commit="2d9bfc9ad60176fc25345cc54644cfbd2bf326e9",
        file="mmlatch/mm.py",
    ),
    "mult": Origin(
        repository="yaohungt/Multimodal-Transformer",
        commit="a670936824ee722c8494fd98d204977a1d663c7a",
        file="src/models.py",
    ),
    "msaf": Origin(
        repository="anita-hu/MSAF",
        commit="125e0f1eef33d10c1cb69f0580b7b8e4782f2c69",
        file="MSAF.py",
    ),
}

PATCHED = {
    "mmlatch": "a stand-in for the package `validators`, where it is not installed; `F.dropout` of "
    "mmlatch.mm, which is called without the training flag, passes its input",
    "mult": "`make_positions` gives contiguous numbers, which current torch wants for a view",
    "msaf": "nothing",
}


@dataclass(frozen=True, slots=True)
class Compared:
    """One case: by name, our tensor and the authors'."""

    name: str
    outputs: Mapping[str, tuple[Tensor, Tensor]]
    gradients: Mapping[str, tuple[Tensor, Tensor]]


def main() -> int:
    """Compare and print; 0 when all agree."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--repo", type=Path, required=True, help="the authors' checkout")
    arguments.add_argument("--model", choices=ORIGINS, help="told by the checkout's files if left")
    given = arguments.parse_args()
    try:
        model = given.model or recognised(given.repo)
        missing(given.repo, model)
    except ValueError as bad:
        arguments.error(str(bad))
    print(about_checkout(given.repo, model))
    print(f"  {'case':<36} {'outputs':>9} {'gradients':>9}  the gradient that differs most")
    figures: dict[str, float] = {}
    agrees = True
    with importing_from(given.repo):
        for compared in CASES[model]():
            output, _ = largest(compared.outputs)
            gradient, name = largest(compared.gradients)
            print(f"  {compared.name:<36} {output:9.1e} {gradient:9.1e}  {name}")
            figures |= {f"{compared.name}, outputs": output}
            figures |= {f"{compared.name}, gradients": gradient}
            agrees &= output <= OUTPUT_TOLERANCE and gradient <= GRADIENT_TOLERANCE
    print("both compute the same" if agrees else "THEY DIFFER")
    used = {**versions(["torch"]), "python": platform.python_version()}
    about = {"commit": git_commit(HOME), "versions": used, "model": model, "agrees": agrees}
    print(json.dumps({"benchmark": "reference_parity", "figures": figures, **about}))
    return 0 if agrees else 1


def recognised(repo: Path) -> str:
    """The model of a checkout.

    Raises:
        ValueError: It is none of the three.
    """
    for model, origin in ORIGINS.items():
        if (repo / origin.file).is_file():
            return model
    known = ", ".join(f"{each.repository} ({each.file})" for each in ORIGINS.values())
    raise ValueError(f"{repo} is no checkout of {known}; give the folder that git clone made")


def missing(repo: Path, model: str) -> None:
    """Raise ValueError where the checkout is not that of the model."""
    origin = ORIGINS[model]
    if not (repo / origin.file).is_file():
        raise ValueError(
            f"{repo} has no {origin.file}; for {model} give a checkout of {origin.repository}"
        )


def about_checkout(repo: Path, model: str) -> str:
    """What is compared with, and whether it is what this was written against."""
    origin, found = ORIGINS[model], git_commit(repo)
    text = f"{origin.repository}, written against commit {origin.commit[:12]}"
    if found != origin.commit:
        text += f"; this is {found[:12] or 'no git checkout'}, so names may differ"
    return f"{text}\nreplaced while importing: {PATCHED[model]}"


def largest(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[float, str]:
    """The largest difference over the largest value, and where it is.

    NaN anywhere counts as an infinite difference.
    """
    found = []
    least = NOTHING * max(float(theirs.abs().max()) for _, theirs in pairs.values())
    for name, (ours, theirs) in pairs.items():
        if ours.shape != theirs.shape:
            return float("inf"), name
        apart = float((ours - theirs).abs().max()) / max(float(theirs.abs().max()), least)
        found.append((float("inf") if math.isnan(apart) else apart, name))
    return max(found)


@contextlib.contextmanager
def importing_from(repo: Path) -> Iterator[None]:
    """Imports look in the checkout first."""
    sys.path.insert(0, str(repo.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(repo.resolve()))


def stand_in(name: str, **members: object) -> None:
    """A module of this name, unless there is one."""
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        module = types.ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module


def stirred(model: nn.Module) -> nn.Module:
    """In float64 and training mode, without dropout, and with noise on all weights."""
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)
    return model.double().train()


def gradients_of(
    ours: nn.Module, theirs: nn.Module, rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Gradients of all weights, by our names."""
    released = rename({name: found(weight) for name, weight in theirs.named_parameters()})
    return {name: (found(weight), released[name]) for name, weight in ours.named_parameters()}


def found(tensor: Tensor) -> Tensor:
    """Its gradient.

    Raises:
        RuntimeError: Nothing flowed back to it.
    """
    if tensor.grad is None:
        raise RuntimeError(f"no gradient reached a tensor of {list(tensor.shape)}")
    return tensor.grad


def noise(*shape: int) -> Tensor:
    """Normal noise in float64."""
    return torch.randn(shape, dtype=torch.float64)


def twice(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Two leaves of one value."""
    return tensor.clone().requires_grad_(), tensor.clone().requires_grad_()


def batch_of(values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> FusionBatch:
    """Our batch."""
    clips = len(next(iter(values.values())))
    return FusionBatch(
        streams={name: Stream(values[name], masks[name]) for name in values},
        target=None,
        weight=torch.ones(clips),
        keys=tuple(f"clip-{row}" for row in range(clips)),
    )


def run(
    name: str,
    ours: Callable[[], Sequence[Tensor]],
    theirs: Callable[[], Sequence[Tensor]],
    inputs: Mapping[str, tuple[Tensor, Tensor]],
    weights: Callable[[], dict[str, tuple[Tensor, Tensor]]],
) -> Compared:
    """Both sides, there and back."""
    mine, released = ours(), theirs()
    for outputs in (mine, released):
        torch.stack([output.square().sum() for output in outputs]).sum().backward()
    answers = {
        f"output {at}": (a.detach(), b.detach())
        for at, (a, b) in enumerate(zip(mine, released, strict=True))
    }
    of_inputs = {f"input {name}": (found(a), found(b)) for name, (a, b) in inputs.items()}
    return Compared(name, answers, {**weights(), **of_inputs})


# MMLatch


def mmlatch() -> Iterator[Compared]:
    """MMLatch with both kinds of mask, and late fusion; lengths as released, and true ones."""
    stand_in("validators", ValidationFailure=Exception)
    module: Any = importlib.import_module("mmlatch.mm")
    module.F = types.SimpleNamespace(dropout=lambda x, p: x)
    for title, chosen in (
        ("mmlatch", {"feedback": True, "feedback_type": "learnable_sequence_mask"}),
        ("mmlatch, static mask", {"feedback": True, "feedback_type": "learnable_static_mask"}),
        ("late fusion", {"feedback": False}),
    ):
        for lengths in ("batch", "true"):
            torch.manual_seed(0)
            theirs = stirred(module.AVTClassifier(*WIDTHS.values(), 100, dropout=0.0, **chosen))
            yield _mmlatch_case(f"{title}, {lengths} lengths", theirs, chosen, lengths)


def _mmlatch_case(
    name: str, theirs: nn.Module, chosen: Mapping[str, Any], lengths: str
) -> Compared:
    settings: dict[str, Scalar] = {
        "reference": True,
        "reference_lengths": lengths,
        "encoder_dropout": 0.0,
        "fusion_dropout": 0.0,
    }
    if chosen["feedback"]:
        mask = "sequence" if "sequence" in chosen["feedback_type"] else "static"
        settings |= {"mask": mask, "mask_dropout": 0.0, "mask_rnn_dropout": 0.0}
    kind = "mmlatch" if chosen["feedback"] else "late_fusion"
    ours = build(ModelSettings(kind=kind, streams=tuple(WIDTHS), settings=settings), WIDTHS, 1)
    ours = ours.double().train()
    ours.load_state_dict(mmlatch_from_reference(theirs.state_dict()))
    steps = torch.tensor([12, 5, 9, 3])
    valid = torch.arange(12) < steps[:, None]
    inputs = {n: twice(noise(4, 12, w) * valid[..., None]) for n, w in WIDTHS.items()}
    batch = batch_of({n: x for n, (x, _) in inputs.items()}, dict.fromkeys(WIDTHS, valid))
    told: dict[str, Tensor] = {n: x for n, (_, x) in inputs.items()}
    told["lengths"] = steps if lengths == "true" else torch.full((4,), 12)
    return run(
        name,
        lambda: [ours(batch)],
        lambda: [theirs(told)],
        inputs,
        lambda: gradients_of(ours, theirs, mmlatch_from_reference),
    )


# MulT


def mult() -> Iterator[Compared]:
    """MulT with the released settings: streams of one length, of three, and with empty steps."""
    positions: Any = importlib.import_module("modules.position_embedding")
    made = positions.make_positions
    positions.make_positions = lambda *given: made(*given).contiguous()
    module: Any = importlib.import_module("src.models")
    for name, lengths in (("one length", (9, 9, 9)), ("three lengths", (6, 17, 11))):
        for empty in (False, True):
            torch.manual_seed(0)
            theirs = stirred(module.MULTModel(types.SimpleNamespace(**MULT)))
            title = f"mult, {name}{', empty steps' if empty else ''}"
            yield _mult_case(title, theirs, lengths, empty=empty)


MULT: dict[str, Any] = {
    "orig_d_l": 300,
    "orig_d_a": 74,
    "orig_d_v": 35,
    "output_dim": 1,
    "layers": 5,
    "num_heads": 5,
    **dict.fromkeys(("lonly", "aonly", "vonly", "attn_mask"), True),
    **dict.fromkeys(("attn_dropout", "attn_dropout_a", "attn_dropout_v"), 0.0),
    **dict.fromkeys(("relu_dropout", "res_dropout", "out_dropout", "embed_dropout"), 0.0),
}
"""What the released model reads of its hyperparameters; its width of 30 cannot be set."""


def _mult_case(
    name: str, theirs: nn.Module, lengths: tuple[int, int, int], *, empty: bool
) -> Compared:
    settings: dict[str, Scalar] = {"width": 30, "heads": 5, "layers": 5, "reference": True}
    for part in ("embedding", "attention", "relu", "residual", "output"):
        settings[f"{part}_dropout"] = 0.0
    kind = ModelSettings(kind="mult", streams=tuple(WIDTHS), settings=settings)
    ours = build(kind, WIDTHS, 1).double().train()
    ours.load_state_dict(mult_from_reference(theirs.state_dict()))
    inputs: dict[str, tuple[Tensor, Tensor]] = {}
    masks: dict[str, Tensor] = {}
    for (stream, width), length in zip(WIDTHS.items(), lengths, strict=True):
        x = noise(3, length, width)
        if empty:
            x[1, :2] = 0.0
            x[2, -2:] = 0.0
        inputs[stream] = twice(x)
        masks[stream] = torch.ones(3, length, dtype=torch.bool)
    batch = batch_of({n: x for n, (x, _) in inputs.items()}, masks)
    told = [x for _, x in inputs.values()]
    return run(
        name,
        lambda: [ours(batch)],
        lambda: [theirs(*told)[0]],
        inputs,
        lambda: gradients_of(ours, theirs, mult_from_reference),
    )


# MSAF


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """A module, and the maps that it is given.

    Attributes:
        shapes: Of each modality, without the batch.
        settings: Of our module, in the released form and without dropout.
    """

    name: str
    shapes: Sequence[tuple[int, ...]]
    settings: MsafSettings


def msaf() -> Iterator[Compared]:
    """The MSAF module: maps of several ranks, an attention floor, segments; both modes."""
    module: Any = importlib.import_module("MSAF")
    shared = {"block_dropout": 0.0, "reference": True}
    for maps in (
        Maps(
            name="msaf, video and sound",
            shapes=[(64, 4, 6, 6), (32, 52)],
            settings=MsafSettings(block_width=16, **shared),
        ),
        Maps(
            name="msaf, floor, vectors",
            shapes=[(64, 4, 3, 3), (128,)],
            settings=MsafSettings(block_width=32, floor=0.5, **shared),
        ),
        Maps(
            name="msaf, five segments",
            shapes=[(32, 11), (64, 10), (128, 12)],
            settings=MsafSettings(block_width=16, reduction=2, segments=5, **shared),
        ),
    ):
        for training in (True, False):
            torch.manual_seed(0)
            yield _msaf_case(maps, module, training=training)


def _msaf_case(maps: Maps, module: Any, *, training: bool) -> Compared:  # noqa: ANN401 - theirs
    settings, channels = maps.settings, [shape[0] for shape in maps.shapes]
    theirs = stirred(
        module.MSAF(
            channels,
            settings.block_width,
            0.0,
            lowest_atten=settings.floor,
            reduction_factor=settings.reduction,
            split_block=settings.segments,
        )
    ).train(training)
    ours = Msaf(channels, settings).double().train(training)
    ours.load_state_dict(msaf_from_reference(theirs.state_dict()))
    inputs = {str(m): twice(noise(6, *shape)) for m, shape in enumerate(maps.shapes)}
    return run(
        f"{maps.name}, {'training' if training else 'evaluation'}",
        lambda: ours([x for x, _ in inputs.values()]),
        lambda: theirs([x for _, x in inputs.values()]),
        inputs,
        lambda: gradients_of(ours, theirs, msaf_from_reference),
    )


CASES: Mapping[str, Callable[[], Iterator[Compared]]] = {
    "mmlatch": mmlatch,
    "mult": mult,
    "msaf": msaf,
}


if __name__ == "__main__":
    sys.exit(main())
