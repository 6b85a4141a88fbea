"""A dataset's folder: where its parts lie, and the table of clips."""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurizers.clip import Clip, Label, Word

if TYPE_CHECKING:
    import pyarrow as pa

CLIPS = "clips.parquet"
PLAN = "plan.parquet"
COLUMNS = "columns"
LOGS = "logs"


class StorageError(Exception):
    """Something could not be written; nothing partial is left under its final name."""


class DatasetError(ValueError):
    """A dataset is not there, or not what was expected."""


def publish(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        StorageError: Disk full, no permission and the like; names the path and the bytes.
    """
    with whole(path, f"{len(content)} bytes") as file:
        file.write(content)


@contextmanager
def whole(path: Path, what: str) -> Iterator[BufferedRandom]:
    """A file to write that gets its name when the block ends well: temporary name, fsync, rename.

    It is locked while it is written, so that `sweep` can tell it from what a killed process left.

    Args:
        path: The final name.
        what: What is written, for the message.

    Raises:
        StorageError: Disk full, no permission and the like; nothing is left.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "w+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
            _settle(temporary, path)
    except OSError as error:
        raise StorageError(
            f"{path}: {what} could not be written ({error.strerror}); "
            f"make room or choose another folder, then run the same command again"
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _settle(temporary: Path, final: Path) -> None:
    """Give a finished, synced temporary file its final name, and sync the folder that lists it."""
    temporary.chmod(0o644)
    temporary.replace(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sweep(folder: Path) -> None:
    """Remove the temporary files below a folder that no living process is writing."""
    for leftover in folder.rglob(".*"):
        try:
            with leftover.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink(missing_ok=True)
        except OSError:
            continue  # somebody is writing it, or has just finished


def write_clips(root: Path, clips: Sequence[Clip]) -> None:
    """Write the table of clips, sorted by key; equal clips give equal bytes."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [_row(clip) for clip in sorted(clips, key=lambda clip: clip.key)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), buffer)
    publish(root / CLIPS, buffer.getvalue())


def read_clips(root: Path) -> list[Clip]:
    """All clips of a dataset, sorted by key.

    Raises:
        DatasetError: There is no dataset.
    """
    import pyarrow.parquet as pq

    if not (root / CLIPS).is_file():
        raise DatasetError(f"{root}: there is no {CLIPS}; ingest a table first")
    return [_clip(row) for row in pq.read_table(root / CLIPS).to_pylist()]


def _schema() -> "pa.Schema":
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    word = pa.struct(
        [
            ("text", text),
            ("start", number),
            ("end", number),
            ("confidence", number),
            ("estimated", pa.bool_()),
        ]
    )
    return pa.schema(
        [
            ("key", text),
            ("id", text),
            ("media", text),
            ("media_digest", text),
            ("start", number),
            ("end", number),
            ("seconds", number),
            ("words", pa.list_(word)),
            ("streams", text),
            ("stream_digests", text),
            ("stream_rates", text),
            ("source", text),
            ("speaker", text),
            ("group", text),
            ("split", text),
            ("fold", pa.int32()),
            ("labels", text),
        ]
    )


_JSON = ("streams", "stream_digests", "stream_rates", "labels")


def _row(clip: Clip) -> dict[str, Any]:
    row = {name: getattr(clip, name) for name in _schema().names}
    if clip.words is not None:
        fields = ("text", "start", "end", "confidence", "estimated")
        row["words"] = [{name: getattr(word, name) for name in fields} for word in clip.words]
    for name in _JSON:
        row[name] = json.dumps(dict(row[name]), sort_keys=True, ensure_ascii=False)
    return row


def _clip(row: dict[str, Any]) -> Clip:
    plain = dict(row)
    for name in _JSON:
        plain[name] = json.loads(plain[name])
    plain["labels"] = {name: _label(value) for name, value in plain["labels"].items()}
    if plain["words"] is not None:
        plain["words"] = tuple(Word(**word) for word in plain["words"])
    return Clip(**plain)


def _label(value: float | str | list[str]) -> Label:
    return tuple(value) if isinstance(value, list) else value
