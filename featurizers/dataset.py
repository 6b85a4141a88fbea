"""A dataset's parts: where they lie, and the table of clips."""

import hashlib
import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurizers.clip import Clip, Label, Word
from featurizers.store import Root, store_at

if TYPE_CHECKING:
    import pyarrow as pa

CLIPS = "clips.parquet"
PLAN = "plan.parquet"
COLUMNS = "columns"
LOGS = "logs"
FORGOTTEN = "forgotten.json"


class DatasetError(ValueError):
    """A dataset is not there, or not what was expected."""


def write_clips(root: Root, clips: Sequence[Clip]) -> None:
    """Write the table of clips, sorted by key; equal clips give equal bytes.

    Raises:
        StorageError: It could not be written; the one before is as it was.
    """
    import pyarrow as pa

    rows = [_row(clip) for clip in sorted(clips, key=lambda clip: clip.key)]
    store_at(root).replace(CLIPS, table_bytes(pa.Table.from_pylist(rows, schema=_schema())))


def read_clips(root: Root) -> list[Clip]:
    """All clips of a dataset, sorted by key.

    Raises:
        DatasetError: There is no dataset, or its table is damaged.
    """
    store = store_at(root)
    try:
        content = store.read(CLIPS)
    except FileNotFoundError:
        raise DatasetError(f"{store.where()}: there is no {CLIPS}; ingest a table first") from None
    return [_clip(row) for row in table_rows(content, store.where(CLIPS))]


def has_clips(root: Root) -> bool:
    """Whether something was ingested there."""
    try:
        store_at(root).read(CLIPS)
    except FileNotFoundError:
        return False
    return True


def read_forgotten(root: Root) -> frozenset[str]:
    """The digests of the keys of all clips that were forgotten.

    Raises:
        DatasetError: The list is damaged.
    """
    store = store_at(root)
    try:
        return frozenset(json.loads(store.read(FORGOTTEN))["keys"])
    except FileNotFoundError:
        return frozenset()
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{store.where(FORGOTTEN)} is damaged ({error})") from None


def write_forgotten(root: Root, digests: frozenset[str]) -> None:
    """Keep the digests of forgotten keys; the keys themselves are not kept."""
    content = json.dumps({"keys": sorted(digests)}, indent=1)
    store_at(root).replace(FORGOTTEN, content.encode())


def forgotten_digest(key: str) -> str:
    """What is kept of a forgotten clip's key: sha256 in hex."""
    return hashlib.sha256(f"forgotten:{key}".encode()).hexdigest()


_MARK = b"fuseline.sha256"
_EMPTY = b"0" * 64


def table_bytes(table: "pa.Table") -> bytes:
    """A table as Parquet whose footer holds the sha256 of the file with that place zeroed."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_MARK.decode(): _EMPTY.decode()})
    content = buffer.getvalue()
    at = content.index(_EMPTY, content.rindex(_MARK))
    return content[:at] + _digest(content) + content[at + len(_EMPTY) :]


def table_rows(content: bytes, where: str) -> list[dict[str, Any]]:
    """The rows that `table_bytes` wrote.

    Raises:
        DatasetError: The bytes are not those that were written.
    """
    import pyarrow.parquet as pq

    at = content.rfind(_MARK) + len(_MARK) + 2  # Parquet puts its type and length between them
    told = content[at : at + len(_EMPTY)]
    # Parquet's own checksums leave out the footer, and with it the names and types of columns.
    if told != _digest(content[:at] + _EMPTY + content[at + len(_EMPTY) :]):
        raise DatasetError(f"{where} is damaged: it is not what was written; ingest again")
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
    return rows


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


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
