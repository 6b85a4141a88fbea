"""Weights that parts of a model begin with, not fresh ones: of branches that were trained alone.

A recipe names them by part of the model, as "FILE#SHA256": the digest decides the run's identity,
and the file is where it lies. Only `fit` reads the file. What was trained holds all weights itself,
so a registered model does not need it again.

    start: {video: runs/face/predictor}           # a part, and what it was trained to by itself
    start: {model: kinetics.pth}                  # the whole model
    start: {video without fc: kinetics.pth}       # all of a part but its classifier, which is fresh

A file is safetensors, or a checkpoint of PyTorch, of which tensors alone are read: nothing in it
is run. Beginnings "module." (of DataParallel) are cut off, a state within a checkpoint is found,
and what the authors' code of a network calls its layers is known.
"""

import hashlib
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from training.models import (
    hcn,
    i3d,
    late_fusion,
    mmlatch,
    msaf_lstm,
    msaf_ntu,
    msaf_ravdess,
    mult,
    sound_cnn,
)

State: TypeAlias = Mapping[str, Tensor]

PREDICTOR_WEIGHTS = "weights.safetensors"
WHOLE = "model"
"""What stands for the whole model where a part is named."""

RELEASED: Mapping[type[nn.Module], Callable[[State], dict[str, Tensor]]] = {
    mmlatch.MMLatch: mmlatch.from_reference,
    late_fusion.LateFusion: mmlatch.from_reference,
    mult.MulT: mult.from_reference,
    msaf_lstm.MsafLstm: msaf_lstm.from_reference,
    msaf_ravdess.MsafRavdess: msaf_ravdess.from_reference,
    msaf_ntu.MsafNtu: msaf_ntu.from_reference,
    sound_cnn.SoundCnn: sound_cnn.from_reference,
    i3d.I3d: i3d.from_reference,
    hcn.Hcn: hcn.from_reference,
}
"""By network, from the names of its authors' code to ours; 3D ResNeXt has the same ones."""

_WITHOUT = " without "
_WITHIN = ("state_dict", "model_state_dict", "model")
_PARALLEL = "module."
_COUNTS = "num_batches_tracked"

# What damaged files raise is written down nowhere, and differs by where they are cut.
_BROKEN = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    OSError,
)


def pinned(start: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The same with absolute paths and digests, of files as they are now.

    Args:
        start: By part: a file of weights, or the folder of a predictor, whose weights are meant. A
            digest that is there already stays.
        folder: Where relative paths begin.

    Raises:
        ValueError: A file is not there.
    """
    pins = {}
    for part, text in start.items():
        path, digest = _split(text)
        path = folder / path
        path = path / PREDICTOR_WEIGHTS if path.is_dir() else path
        pins[part] = f"{path}#{digest or _sha256(_read(part, path))}"
    return pins


def begin(model: nn.Module, start: Mapping[str, str]) -> None:
    """Give parts of a model the weights of their files.

    Args:
        model: With fresh weights.
        start: "FILE#SHA256" by part. A part is the name of a module within the model, or "model"
            for all of it; behind it may stand " without " and the names, with commas, of modules
            within the part that stay as they are.

    Raises:
        ValueError: The model has no such part, a file is missing or another one, or it does not
            hold exactly the tensors that are to be given.
    """
    for part, state in _states(model, start):
        part.load_state_dict(state, strict=False)


def check(model: nn.Module, start: Mapping[str, str]) -> None:
    """Raise ValueError where `begin` would, and load nothing: the model may be on "meta"."""
    for _ in _states(model, start):
        pass


def _states(
    model: nn.Module, start: Mapping[str, str]
) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    """Each part and its weights, which fit."""
    for name, text in start.items():
        part, left = _part(model, name)
        path, digest = _split(text)
        if not digest:
            raise ValueError(
                f"start.{name}: {path} stands without its digest; write FILE#SHA256, or let "
                f"`training.start.pinned` do it"
            )
        wanted = part.state_dict()
        found = _by_our_names(_state(name, path, digest), part)
        found = {key: x for key, x in found.items() if not key.startswith(left)}
        wanted = {key: x for key, x in wanted.items() if not key.startswith(left)}
        # Older checkpoints have none, and only a norm without momentum asks for it.
        found |= {
            key: torch.zeros(x.shape, dtype=x.dtype)
            for key, x in wanted.items()
            if key.endswith(_COUNTS) and key not in found
        }
        _check(name, path, found, wanted)
        yield part, found


def _part(model: nn.Module, name: str) -> tuple[nn.Module, tuple[str, ...]]:
    """A part, and the beginnings of what stays as it is."""
    chosen, _, without = name.partition(_WITHOUT)
    inside = dict(model.named_modules())
    part = model if chosen == WHOLE else inside.get(chosen)
    if part is None or not chosen:
        parts = ", ".join(child for child, _ in model.named_children())
        raise ValueError(
            f"start: the model has no part {chosen!r}; its parts are {parts}, and {WHOLE!r} is all "
            f"of it"
        )
    left = [child.strip() for child in without.split(",")] if without else []
    known = dict(part.named_modules())
    for child in left:
        if not child or child not in known:
            parts = ", ".join(child for child, _ in part.named_children())
            raise ValueError(f"start.{name}: there is no {child!r} in it, only {parts}")
    return part, tuple(f"{child}." for child in left)


def _split(text: str) -> tuple[Path, str]:
    """Path and digest; the digest is empty where there is none."""
    path, mark, digest = text.rpartition("#")
    pinned = mark and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    return (Path(path), digest) if pinned else (Path(text), "")


def _read(part: str, path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(
            f"start.{part}: there is no file {path}; give a file of weights or a predictor's "
            f"folder, which every worker can read"
        )
    return path.read_bytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _state(part: str, path: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    content = _read(part, path)
    if _sha256(content) != digest:
        raise ValueError(
            f"start.{part}: {path} is not the file that the recipe names: its sha256 begins with "
            f"{_sha256(content)[:12]}, {digest[:12]} is wanted"
        )
    try:
        found: object = load(content)
    except SafetensorError:
        found = _of_torch(part, path, content)
    while isinstance(found, Mapping) and (key := next((k for k in _WITHIN if k in found), "")):
        if isinstance(found[key], Tensor):
            break
        found = found[key]
    tensors = found.items() if isinstance(found, Mapping) else ()
    state = {str(name): x for name, x in tensors if isinstance(x, Tensor)}
    if not state:
        raise ValueError(f"start.{part}: {path} holds no tensors by name")
    parallel = all(name.startswith(_PARALLEL) for name in state)
    return {name.removeprefix(_PARALLEL) if parallel else name: x for name, x in state.items()}


def _of_torch(part: str, path: Path, content: bytes) -> object:
    """A checkpoint of PyTorch, of which numbers, texts and tensors alone are read."""
    try:
        found: object = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _BROKEN:
        raise ValueError(
            f"start.{part}: {path} is neither a safetensors file nor a checkpoint of PyTorch that "
            f"holds tensors, numbers and texts alone; where you trust it, save its state dict with "
            f"safetensors.torch.save_file"
        ) from None
    return found


def _by_our_names(state: State, part: nn.Module) -> dict[str, Tensor]:
    """The state, renamed where its names are those of the authors' code of the part."""
    ours, released = set(part.state_dict()), RELEASED.get(type(part))
    if released is None or ours & set(state) == ours:
        return dict(state)
    try:
        renamed = released(state)
    except KeyError:
        return dict(state)
    return renamed if len(ours & set(renamed)) > len(ours & set(state)) else dict(state)


def _check(part: str, path: Path, found: State, wanted: State) -> None:
    missing, strange = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or strange:
        raise ValueError(
            f"start.{part}: {path} is of another model: it lacks {len(missing)} tensors of the "
            f"part{_some(missing)}, and has {len(strange)} that the part does not know"
            f"{_some(strange)}"
        )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            chosen, _, _ = part.partition(_WITHOUT)
            raise ValueError(
                f"start.{part}: {name} is {list(found[name].shape)} in {path} and "
                f"{list(tensor.shape)} in the model; train the branch with the same stream, "
                f"settings and classes, or leave that layer fresh: "
                f"start: {{{chosen}{_WITHOUT}{name.rpartition('.')[0]}: FILE}}"
            )


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
