"""Weights that parts of a model begin with, not fresh ones: of branches that were trained alone.

A recipe names them by part of the model, as "FILE#SHA256": the digest decides the run's identity,
and the file is where it lies. Only `fit` reads the file. What was trained holds all weights itself,
so a registered model does not need it again.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

PREDICTOR_WEIGHTS = "weights.safetensors"


def pinned(start: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The same with absolute paths and digests, of files as they are now.

    Args:
        start: By part: a safetensors file, or the folder of a predictor, whose weights are meant. A
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
        start: "FILE#SHA256" by part; a part is the name of a module within the model.

    Raises:
        ValueError: The model has no such part, a file is missing or another one, or it does not
            hold exactly the tensors of the part.
    """
    for part, state in _states(model, start):
        model.get_submodule(part).load_state_dict(state)


def check(model: nn.Module, start: Mapping[str, str]) -> None:
    """Raise ValueError where `begin` would, and load nothing: the model may be on "meta"."""
    for _ in _states(model, start):
        pass


def _states(model: nn.Module, start: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each part and its weights, which fit."""
    found = dict(model.named_modules())
    for part, text in start.items():
        if not part or part not in found:
            parts = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"start: the model has no part {part!r}; its parts are {parts}")
        path, digest = _split(text)
        if not digest:
            raise ValueError(
                f"start.{part}: {path} stands without its digest; write FILE#SHA256, or let "
                f"`training.start.pinned` do it"
            )
        state = _state(part, path, digest)
        _check(part, path, state, found[part].state_dict())
        yield part, state


def _split(text: str) -> tuple[Path, str]:
    """Path and digest; the digest is empty where there is none."""
    path, mark, digest = text.rpartition("#")
    pinned = mark and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    return (Path(path), digest) if pinned else (Path(text), "")


def _read(part: str, path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(
            f"start.{part}: there is no file {path}; give a safetensors file or a predictor's "
            f"folder, which every worker can read"
        )
    return path.read_bytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _state(part: str, path: Path, digest: str) -> dict[str, Tensor]:
    content = _read(part, path)
    if _sha256(content) != digest:
        raise ValueError(
            f"start.{part}: {path} is not the file that the recipe names: its sha256 begins with "
            f"{_sha256(content)[:12]}, {digest[:12]} is wanted"
        )
    try:
        state: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise ValueError(f"start.{part}: {path} is no safetensors file: {error}") from None
    return state


def _check(
    part: str, path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    missing, strange = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or strange:
        raise ValueError(
            f"start.{part}: {path} is of another model: it lacks {len(missing)} tensors of the "
            f"part{_some(missing)}, and has {len(strange)} that the part does not know"
            f"{_some(strange)}"
        )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise ValueError(
                f"start.{part}: {name} is {list(found[name].shape)} in {path} and "
                f"{list(tensor.shape)} in the model; train the branch with the same stream, "
                f"settings and classes"
            )


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
