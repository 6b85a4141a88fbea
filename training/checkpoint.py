"""A checkpoint is a folder with a marker, written last, that names every file: whole, or refused.

DeepSpeed's own files are unpickled when they are loaded, so nothing of a folder is opened before
its marker has been checked. The marker guards against damage, not against somebody who can write to
the folder.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurizers.spec import canonical_json

FORMAT = 1
MARKER = "checkpoint.json"


class CheckpointError(Exception):
    """A checkpoint is incomplete, damaged, or of another run."""


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


def seal(folder: Path, files: Mapping[str, tuple[int, str]], about: Mapping[str, Any]) -> None:
    """Write the marker: the last file of a checkpoint.

    Args:
        folder: The checkpoint.
        files: What `digests` found, on every machine that has a part of the checkpoint.
        about: Plain data to be kept in the marker.
    """
    body = {"format": FORMAT, "about": dict(about), "files": dict(files)}
    digest = hashlib.sha256(canonical_json(body)).hexdigest()
    (folder / MARKER).write_bytes(canonical_json({"body": body, "sha256": digest}))


def read_marker(folder: Path) -> dict[str, Any]:
    """The marker's content: "about" and "files".

    Raises:
        CheckpointError: There is no marker, or it is not what was written.
    """
    path = folder / MARKER
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the checkpoint was not finished; use an earlier one"
        )
    try:
        marker = json.loads(path.read_bytes())
        body: dict[str, Any] = marker["body"]
        whole = marker["sha256"] == hashlib.sha256(canonical_json(body)).hexdigest()
    except (ValueError, KeyError, TypeError):
        whole, body = False, {}
    if not whole:
        raise CheckpointError(f"{path} is damaged; use an earlier checkpoint")
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
            return f"{folder / name} is missing; use an earlier checkpoint"
        if found[name][0] != size:
            return (
                f"{folder / name} has {found[name][0]} bytes, {size} were written; "
                f"use an earlier checkpoint"
            )
        if found[name][1] != sha256:
            return f"{folder / name} is not what was written; use an earlier checkpoint"
    return ""
