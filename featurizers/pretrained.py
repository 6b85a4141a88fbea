"""Checkpoints of pretrained models: found, named by what they hold, and loaded.

A checkpoint is a folder with config.json and weights in safetensors, as the Hugging Face hub keeps
it. Where it lies is no part of a feature's identity: a spec holds the digest of the files that
decide numbers, and of a model of the hub its name and revision. Nothing is unpickled, and no code
that comes with a checkpoint is run.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from featurizers.spec import canonical_json

FOLDERS = "FUSELINE_WEIGHTS"
"""The environment variable that lists folders in which weights are looked for by digest."""

CONFIG = "config.json"
CARD = "README.md"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARDS = "model-*-of-*.safetensors"

# transformers has no types that could be read without loading it.
Config: TypeAlias = Any
"""A model's settings, with the defaults of its kind."""
Model: TypeAlias = Any
"""A torch.nn.Module of transformers."""

Files: TypeAlias = tuple[str, ...]
"""Files beside the weights and config.json that decide numbers, and must be there."""

PICTURES: Files = ("preprocessor_config.json",)
SOUND: Files = ("preprocessor_config.json",)
WORDS: Files = ("tokenizer.json",)


class WeightsError(ValueError):
    """Weights cannot be used: the fault of a file or of this machine, and no clip's."""


class MissingWeightsError(WeightsError, FileNotFoundError):
    """Weights are not on this machine and cannot be fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
        folder: Where its files lie.
        name: Its name on the hub; empty of a folder.
        revision: Its commit on the hub; empty of a folder.
        kind: What config.json calls its `model_type`.
        digest: sha256 over the files that decide numbers, with their names.
        licence: As its model card says; a text that begins with "unknown" when that says nothing.
    """

    folder: Path
    name: str
    revision: str
    kind: str
    digest: str
    licence: str

    @property
    def source(self) -> str:
        """Where it was found, if the hub's name does not say it."""
        return "" if self.name else str(self.folder)

    @property
    def identity(self) -> dict[str, str]:
        """What a spec's parameters say of it."""
        return {"model": self.name, "revision": self.revision} if self.name else {}

    def read(self, file: str) -> dict[str, Any]:
        """One of its JSON files."""
        return _json(self.folder / file)


def find(
    model: str,
    revision: str = "",
    weights: str = "",
    *,
    files: Files = (),
    kinds: Sequence[str],
) -> Checkpoint:
    """The checkpoint that a featurizer's settings name.

    Args:
        model: With a revision a name of the hub, without one the path of a folder; may be empty
            when `weights` is given.
        revision: The commit of the hub, 40 hex digits.
        weights: The digest that it must have. When the model is not to be had as it is named, it
            is looked for by its digest in the folders that FUSELINE_WEIGHTS lists, and in their
            direct subfolders.
        files: What must be there beside config.json and the weights.
        kinds: The kinds of models that will do.

    Raises:
        MissingWeightsError: It is not on this machine, and cannot be fetched.
        ValueError: The revision is not pinned, the weights are no safetensors, the checkpoint asks
            for code of its own, is of another kind or has another digest.
    """
    found = (
        _of_hub(model, revision, weights, files) if revision else _of_folder(model, weights, files)
    )
    config = _json(found / CONFIG)
    name = model if revision else ""
    _check(found, config, files, kinds)
    digest = digest_of(found, files)
    if weights and digest != weights:
        raise ValueError(
            f"{name or found} holds weights with the digest {digest}, wanted are {weights}: some "
            f"of {', '.join((CONFIG, *files))} and the weights are others; featurize anew with "
            f"them, or give those that were used"
        )
    return Checkpoint(
        folder=found,
        name=name,
        revision=revision,
        kind=str(config["model_type"]),
        digest=digest,
        licence=_licence(found, name),
    )


# Finding.


def _of_folder(model: str, weights: str, files: Files) -> Path:
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        # Absolute, because workers start in other folders.
        return _whole(folder.resolve(), files, str(folder))
    if weights:
        for other in _listed():
            if other.is_dir() and not lacks(other, files) and digest_of(other, files) == weights:
                return other
        said = f"{model} is not there, and no" if model else "no"
        raise MissingWeightsError(
            f"{said} folder that {FOLDERS} lists ({_said(os.environ.get(FOLDERS, ''))}) holds "
            f"weights with the digest {weights}; put the checkpoint's folder there: "
            f"export {FOLDERS}=FOLDER"
        )
    if not model:
        raise ValueError("wanted `model`: a name of the hub with its `revision`, or a folder")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ValueError(
            f"model is {model!r}: there is no such folder; for a model of the hub pin its "
            f"`revision`, the 40 hex digits of a commit"
        )
    raise MissingWeightsError(f"model is {model!r}: there is no such folder")


def _of_hub(model: str, revision: str, weights: str, files: Files) -> Path:
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            f"revision is {revision!r}; branches and tags may move: pin the commit, 40 hex digits, "
            f"which the hub shows in the history of {model}'s files"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise ValueError(
            f"model is {model!r}; with a `revision` wanted is a name of the hub, such as "
            f"facebook/wav2vec2-base; a folder has none"
        )
    cached = _snapshot(model, revision, files, local=True)
    if isinstance(cached, Path) and not lacks(cached, files):
        return cached
    if weights:
        try:
            return _of_folder("", weights, files)
        except MissingWeightsError:
            pass  # then the hub
    fetched = _snapshot(model, revision, files, local=False)
    missing = lacks(fetched, files) if isinstance(fetched, Path) else CONFIG
    if isinstance(fetched, Path) and not missing:
        return fetched
    why = fetched if isinstance(fetched, str) else "no network, or the hub has no such file"
    safe = "; only safetensors are read, which another revision may have" * (missing == WEIGHTS)
    listed = f", or list that folder in {FOLDERS} (digest {weights})" if weights else ""
    raise MissingWeightsError(
        f"{model} at revision {revision} is not whole in this machine's cache of the hub: "
        f"{missing} is missing and was not fetched ({why}{safe}). Where there is a network: "
        f"`hf download {model} --revision {revision}`; or copy its folder here and give the path "
        f"as `model` without `revision`{listed}"
    )


def _snapshot(model: str, revision: str, files: Files, *, local: bool) -> Path | str:
    """The folder of a revision in the cache, perhaps not whole; or why there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    wanted = [CONFIG, *files, CARD, WEIGHTS, INDEX, _SHARDS]
    try:
        found = snapshot_download(
            model, revision=revision, allow_patterns=wanted, local_files_only=local
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return Path(found)


def _listed() -> Iterator[Path]:
    """What FUSELINE_WEIGHTS lists, and what lies directly in it, in order of names."""
    for listed in filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)):
        place = Path(listed).expanduser().resolve()
        if place.exists():
            yield place
        if place.is_dir():
            yield from sorted(place.iterdir())


def listed_files(suffixes: Sequence[str]) -> Iterator[Path]:
    """Files with one of these suffixes in the folders that FUSELINE_WEIGHTS lists."""
    return (path for path in _listed() if path.suffix in suffixes and path.is_file())


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFile:
    """A model in a single file, as its authors publish it.

    Attributes:
        file: What they call it.
        sha256: Of the file; another one of that kind may be anybody's.
        licence: Of the code that runs it, and of that very file.
    """

    name: str
    file: str
    sha256: str
    licence: str

    def licence_of(self, digest: str) -> str:
        """The licence of a file of this kind; one that begins with "unknown" for another file."""
        if digest == self.sha256:
            return self.licence
        return f"unknown: the model file (sha256 {digest[:12]}) is not {self.name}"


def model_file(model: str, weights: str, suffix: str, advice: str) -> Path:
    """A single file that is a model, where it lies on this machine.

    Args:
        model: Its path; may be empty when `weights` is given.
        weights: The sha256 that it must have. A file that is not there is looked for by it in the
            folders that FUSELINE_WEIGHTS lists.
        suffix: Of such files, as in ".onnx".
        advice: What to do when there is none, for errors.

    Raises:
        MissingWeightsError: It is not on this machine.
        ValueError: It has another digest.
    """
    path = Path(model).expanduser()
    if model and path.is_file():
        check_digest(path, weights)
        return path.resolve()
    if not weights:
        said = f"model is {model!r}: there is no such file" if model else "it wants `model`"
        raise MissingWeightsError(f"{said}; {advice}")
    for other in listed_files((suffix,)):
        if digest_of_file(other) == weights:
            return other
    raise MissingWeightsError(
        f"{model or 'its file'} is not there, and no folder that {FOLDERS} lists "
        f"({_said(os.environ.get(FOLDERS, ''))}) has a file of sha256 {weights}; put it in one: "
        f"export {FOLDERS}=FOLDER"
    )


def tokenizer_of(
    model: str, revision: str, weights: str, *, kinds: Sequence[str]
) -> tuple[Path, str]:
    """A tokenizer's file, and the licence of its checkpoint.

    Args:
        model: A name of the hub with its revision, a folder that has the file, or the file; may be
            empty when `weights` is given.
        revision: The commit of the hub, 40 hex digits.
        weights: The sha256 that the file must have. One that is not there is looked for by it in
            the folders that FUSELINE_WEIGHTS lists, and in their direct subfolders.
        kinds: The kinds of models whose tokenizers will do.

    Raises:
        MissingWeightsError: It is not on this machine, and cannot be fetched.
        ValueError: It has another digest, or the checkpoint will not do.
    """
    if revision:
        checkpoint = find(model, revision, files=WORDS, kinds=kinds)
        file, name = checkpoint.folder / WORDS[0], checkpoint.name
    else:
        folder, name = Path(model).expanduser(), ""
        if model and (folder / WORDS[0]).is_file():
            model = str(folder / WORDS[0])
        for other in _listed() if weights and not Path(model).is_file() else ():
            found = other / WORDS[0]
            if found.is_file() and digest_of_file(found) == weights:
                model = str(found)
                break
        file = model_file(
            model, weights, ".json", f"give a folder with {WORDS[0]}, or a name of the hub"
        )
    check_digest(file, weights)
    return file, _licence(file.parent, name)


def check_digest(path: Path, weights: str) -> None:
    """Raise ValueError when a file has another sha256 than this one; empty admits all."""
    digest = digest_of_file(path)
    if weights and digest != weights:
        raise ValueError(
            f"{path} has the sha256 {digest}, wanted is {weights}: featurize anew with it, or give "
            f"the file that was used"
        )


def _said(folders: str) -> str:
    return folders or "it is not set"


# What is in it.


def lacks(folder: Path, files: Files) -> str:
    """The first file that a checkpoint's folder lacks; empty when it is whole."""
    wanted = (CONFIG, *files, *weight_files(folder))
    return next((file for file in wanted if not (folder / file).is_file()), "")


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold a checkpoint's weights, whether they are there or not."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [WEIGHTS]
    parts = _json(folder / INDEX).get("weight_map")
    if not isinstance(parts, dict):
        raise WeightsError(f"{folder / INDEX} has no weight_map; it is no index of weights")
    return [INDEX, *sorted(set(parts.values()))]


def _whole(folder: Path, files: Files, name: str) -> Path:
    missing = lacks(folder, files)
    if missing == WEIGHTS:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        there = f" (found {', '.join(pickles)}, which may hold code and is not opened)"
        raise MissingWeightsError(
            f"{name} has no {WEIGHTS}{there if pickles else ''}; wanted are weights in "
            f"safetensors: on the hub often another revision has them, or load the model once with "
            f"transformers where you trust it and `save_pretrained` it"
        )
    if missing == WORDS[0]:
        raise MissingWeightsError(
            f"{name} has no {missing}; load its tokenizer once with transformers "
            f"(AutoTokenizer), and `save_pretrained` it into a copy of the folder"
        )
    if missing:
        raise MissingWeightsError(f"{name} has no {missing}, so it is no whole checkpoint")
    return folder


def _check(folder: Path, config: Mapping[str, Any], files: Files, kinds: Sequence[str]) -> None:
    for file in (CONFIG, *(each for each in files if each.endswith("_config.json"))):
        if "auto_map" in _json(folder / file):
            raise ValueError(
                f"{folder / file} asks for code that comes with the checkpoint (auto_map); it is "
                f"never run: choose a checkpoint of {', '.join(kinds)}"
            )
    kind = config.get("model_type")
    if kind not in kinds:
        raise ValueError(
            f"{folder / CONFIG}: its model_type is {kind!r}; wanted is one of {', '.join(kinds)}"
        )


def digest_of(folder: Path, files: Files) -> str:
    """sha256 in hex over a checkpoint's files that decide numbers, with their names."""
    names = sorted({CONFIG, *files, *weight_files(folder)})
    return hashlib.sha256(
        canonical_json([[name, digest_of_file(folder / name)] for name in names])
    ).hexdigest()


def digest_of_file(path: Path) -> str:
    """sha256 in hex of a file; computed once for as long as its size and time stay the same."""
    about = path.stat()
    return _sha256(str(path.resolve()), about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{path}: wanted a JSON object")  # noqa: TRY004 - what a file holds
    return plain


def _licence(folder: Path, name: str) -> str:
    """What the model card says of the licence in its front matter."""
    import yaml

    unknown = f"unknown: see {name}" if name else "unknown: as the checkpoint's author says"
    if not (folder / CARD).is_file():
        return unknown
    text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    front = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        plain = yaml.safe_load(front.group(1)) if front else None
    except yaml.YAMLError:
        return unknown
    if not isinstance(plain, dict) or not plain.get("license"):
        return unknown
    said = plain["license"]
    more = plain.get("license_name") or plain.get("license_link")
    licence = ", ".join(map(str, said)) if isinstance(said, list) else str(said)
    return f"{licence}: {more}" if licence == "other" and more else licence


# Loading.


def settings_of(checkpoint: Checkpoint) -> Config:
    """The model's own settings, with the defaults of its kind.

    Raises:
        WeightsError: They are not what that kind has.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    with quiet():
        try:
            return transformers.AutoConfig.from_pretrained(
                checkpoint.folder, local_files_only=True, trust_remote_code=False
            )
        except (StrictDataclassError, TypeError) as error:
            raise WeightsError(f"{checkpoint.folder / CONFIG}: {_line(error)}") from None


def load(
    checkpoint: Checkpoint,
    architecture: str,
    dtype: str,
    *,
    spare: Sequence[str] = (),
    **more: object,
) -> Model:
    """The model with its weights, in evaluation mode, on the CPU.

    Args:
        checkpoint: Where its weights are.
        architecture: The name of its class in transformers.
        dtype: "float32", "float16" or "bfloat16".
        spare: Beginnings of names of weights that may be missing: they change no feature.
        more: Passed on to `from_pretrained`.

    Raises:
        WeightsError: Their file cannot be read, or they are missing or of another shape, so that
            they would be random numbers.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    with quiet():
        try:
            model, report = getattr(transformers, architecture).from_pretrained(
                checkpoint.folder,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, in our words
                **more,
            )
        except SafetensorError as error:
            raise WeightsError(
                f"{checkpoint.folder}: its weights cannot be read ({_line(error)}); get them again"
            ) from None
    missing = sorted(
        name for name in report["missing_keys"] if not any(each in name for each in spare)
    )
    if missing or report["mismatched_keys"]:
        wrong = [*missing, *(str(each) for each in report["mismatched_keys"])]
        raise WeightsError(
            f"{checkpoint.name or checkpoint.folder} lacks {len(wrong)} of the weights of "
            f"{architecture} ({', '.join(wrong[:3])} ...), so that its numbers would be random"
        )
    return model.eval().requires_grad_(False)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


class quiet:  # noqa: N801 - used like a function
    """Without transformers' bars and its table of weights that were not needed."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._verbosity, self._bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()  # type: ignore[no-untyped-call] # transformers'
        logging.disable_progress_bar()  # type: ignore[no-untyped-call] # transformers'

    def __exit__(self, *exc: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._verbosity)
        if self._bar:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call] # transformers'
