"""A checkpoint is a folder with a marker, written last, that names every file: whole, or refused.

It is written under a hidden name and renamed when all of it lies on the disk, so that a folder
called `step-NUMBER` was whole once; the marker tells whether it still is. Tensors are full and
named, in safetensors files: nothing is unpickled, and nothing depends on the number of ranks.

Who was left behind by a killed command may still be writing here when the next one trains. Each
draft has a name of its own, and is renamed only by who holds the run at that moment.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from featurizers.spec import canonical_json
from training.session import unclaimed

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 2
MARKER = "checkpoint.json"
UNFINISHED = ".unfinished"
PIECE_BYTES = 256 << 20
_NAME = re.compile(r"step-\d{9}")


class CheckpointError(Exception):
    """A checkpoint cannot be written, or is of another run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is incomplete or not what was written."""


def standing(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first; whether they are whole says `problem_of`."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if _NAME.fullmatch(path.name)), reverse=True)


@contextmanager
def draft(folder: Path, position: int, hold: Callable[[], None] = unclaimed) -> Iterator[Path]:
    """A folder to write a checkpoint into, which is then given its name; or is removed.

    A whole checkpoint of as many steps is left as it is.

    Args:
        folder: Where the checkpoints of a run lie.
        position: Steps that were taken.
        hold: Raises where somebody else writes here by now.

    Raises:
        SupersededError: By `hold`; nothing that had a name was touched.
    """
    hold()
    for left in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    unfinished = _hidden(folder)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        for path in unfinished.iterdir():
            _sync(path)
        _sync(unfinished)
        hold()
        final = folder / f"step-{position:09d}"
        # After the same steps a whole one says the same. To replace it would leave none meanwhile.
        if problem_of(final):
            shutil.rmtree(final, ignore_errors=True)
            unfinished.rename(final)
            _sync(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def prune(folder: Path, keep: int, position: int) -> None:
    """Remove all checkpoints but the newest `keep`, at least one, up to a position.

    Args:
        folder: Where the checkpoints of a run lie.
        keep: How many.
        position: Of the one that was written last. What is beyond it was found damaged, or the run
            had not gone back.
    """
    named = [(path, int(path.name.removeprefix("step-"))) for path in standing(folder)]
    beyond = [path for path, number in named if number > position]
    kept = [path for path, number in named if number <= position]
    for path in beyond + kept[max(1, keep) :]:
        # A folder that is half removed must not look like one that is damaged.
        gone = _hidden(folder)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _hidden(folder: Path) -> Path:
    """A name that nobody else writes under."""
    return folder / f"{UNFINISHED}-{secrets.token_hex(4)}"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Pieces:
    """Writes named tensors into files of about 256 MB, so that few are held at one time.

    Args:
        folder: Where `tensors-NUMBER.safetensors` go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._written = folder, 0
        self._held: dict[str, Tensor] = {}
        self._bytes = 0

    def add(self, name: str, tensor: "Tensor") -> None:
        """Take a tensor in main memory that nobody changes or shares."""
        self._held[name] = tensor
        self._bytes += tensor.nbytes
        if self._bytes >= PIECE_BYTES:
            self.end()

    def end(self) -> None:
        """Write what is held."""
        from safetensors.torch import save_file  # the command line asks for our errors alone

        if self._held:
            save_file(self._held, self._folder / f"tensors-{self._written:05d}.safetensors")
        self._written += 1
        self._held, self._bytes = {}, 0


def tensors(folder: Path) -> Iterator[tuple[str, "Tensor"]]:
    """The tensors that `Pieces` wrote, one at a time."""
    for path in sorted(folder.glob("tensors-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no dictionary
                yield name, file.get_tensor(name)


def digests(folder: Path) -> dict[str, tuple[int, str]]:
    """Bytes and sha256 of each file below a folder, by its path inside, the marker left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MARKER:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            found[name] = (path.stat().st_size, sha256)
    return found


def seal(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the marker: the last file of a checkpoint.

    Args:
        folder: The checkpoint.
        about: Plain data to be kept in the marker.
    """
    body = {"format": FORMAT, "about": dict(about), "files": digests(folder)}
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    (folder / MARKER).write_bytes(canonical_json({"body": body, "sha256": digest}))


def read_marker(folder: Path) -> dict[str, Any]:
    """The marker's content: "about" and "files".

    Raises:
        DamagedCheckpointError: There is no marker, or it is not what was written.
    """
    path = folder / MARKER
    if not path.is_file():
        raise DamagedCheckpointError(f"{path} is missing: the checkpoint was not finished")
    try:
        marker = json.loads(path.read_bytes())
        body: dict[str, Any] = marker["body"]
        whole = marker["sha256"] == hashlib.sha256(canonical_json(body)).hexdigest()
    except (ValueError, KeyError, TypeError):
        whole, body = False, {}
    if not whole:
        raise DamagedCheckpointError(f"{path} is damaged")
    if body["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {body['format']}, this code reads {FORMAT}; train anew"
        )
    return body


def problem_of(folder: Path) -> str:
    """What is wrong with a checkpoint, naming the file; empty when all is well."""
    try:
        expected = read_marker(folder)["files"]
    except CheckpointError as error:
        return str(error)
    found = digests(folder)
    for name, (size, sha256) in sorted(expected.items()):
        if name not in found:
            return f"{folder / name} is missing"
        if found[name][0] != size:
            return f"{folder / name} has {found[name][0]} bytes, {size} were written"
        if found[name][1] != sha256:
            return f"{folder / name} is not what was written"
    return ""
