"""A dataset's parts: where they lie, and the table of clips."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, overload

from featurizers.clip import Clip, Label, Word
from featurizers.store import Root, Store, store_at

if TYPE_CHECKING:
    import pyarrow as pa

CLIPS = "clips.parquet"
PLAN = "plan.parquet"
COLUMNS = "columns"
LOGS = "logs"
FORGOTTEN = "forgotten.json"
AT_ONCE = 1024  # rows that are plain objects at one time: such a row takes ten times the memory


class DatasetError(ValueError):
    """A dataset is not there, or not what was expected."""


class Clips(Sequence[Clip]):
    """Clips held as a table; each is made when it is asked for, and takes a tenth of the memory.

    Args:
        table: Of `clips.parquet`.
    """

    def __init__(self, table: "pa.Table") -> None:
        self._batches = table.to_batches()
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Clip]:
        for batch in self._batches:
            for start in range(0, batch.num_rows, AT_ONCE):
                yield from map(_clip, batch.slice(start, AT_ONCE).to_pylist())

    @overload
    def __getitem__(self, at: int) -> Clip: ...
    @overload
    def __getitem__(self, at: slice) -> "Some": ...
    def __getitem__(self, at: int | slice) -> "Clip | Some":
        numbers = range(len(self))[at]
        return self.some([numbers])[0] if isinstance(numbers, int) else self.some(numbers)

    def keys(self) -> list[str]:
        """Of all clips, in order."""
        return [key for batch in self._batches for key in batch.column("key").to_pylist()]

    def ids(self) -> list[str]:
        """Of all clips, in order."""
        return [name for batch in self._batches for name in batch.column("id").to_pylist()]

    def some(self, numbers: Sequence[int]) -> "Some":
        """The clips in these places."""
        return Some(self, numbers)

    def rows(self, numbers: Sequence[int]) -> "pa.Table":
        """The rows in these places."""
        import pyarrow as pa

        # By batch: to take from several at once, Arrow would first join all of their texts.
        found, order = [], []
        start = 0
        for batch, end in zip(self._batches, self._ends, strict=True):
            mine = [at for at, number in enumerate(numbers) if start <= number < end]
            found.append(batch.take(pa.array([numbers[at] - start for at in mine], pa.int64())))
            order += mine
            start = end
        back = sorted(range(len(order)), key=order.__getitem__)
        return (
            pa.Table.from_batches(found, _schema())
            .combine_chunks()
            .take(pa.array(back, pa.int64()))
        )


class Some(Sequence[Clip]):
    """A few clips of a table: made once, when the first of them is asked for.

    In another process they arrive as a tuple; they travel as a table, since packing clip by clip
    and word by word takes a hundred times as long.
    """

    def __init__(self, clips: Clips, numbers: Sequence[int]) -> None:
        self._clips, self._numbers = clips, numbers
        self._made: tuple[Clip, ...] | None = None

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> Clip: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Clip, ...]: ...
    def __getitem__(self, at: int | slice) -> Clip | tuple[Clip, ...]:
        if self._made is None:
            self._made = tuple(map(_clip, self._clips.rows(self._numbers).to_pylist()))
        return self._made[at]

    def __reduce__(self) -> tuple[Callable[[bytes], tuple[Clip, ...]], tuple[bytes]]:
        import pyarrow as pa

        table, sink = self._clips.rows(self._numbers), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return _arrived, (sink.getvalue().to_pybytes(),)


def _arrived(content: bytes) -> tuple[Clip, ...]:
    import pyarrow as pa

    return tuple(map(_clip, pa.ipc.open_stream(content).read_all().to_pylist()))


def write_clips(root: Root, clips: Sequence[Clip]) -> None:
    """Write the table of clips, sorted by key; equal clips give equal bytes.

    Raises:
        StorageError: It could not be written; the one before is as it was.
    """
    import pyarrow as pa

    ordered, schema = sorted(clips, key=lambda clip: clip.key), _schema()
    pieces = [
        pa.Table.from_pylist(list(map(_row, ordered[start : start + AT_ONCE])), schema=schema)
        for start in range(0, len(ordered), AT_ONCE)
    ]
    table = pa.concat_tables([schema.empty_table(), *pieces]).combine_chunks()
    store_at(root).replace(CLIPS, table_bytes(table))


def read_clips(root: Root) -> Clips:
    """All clips of a dataset, sorted by key.

    Raises:
        DatasetError: There is no dataset, or its table is damaged.
    """
    store = store_at(root)
    content = _content(store)
    if content is None:
        raise DatasetError(f"{store.where()}: there is no {CLIPS}; ingest a table first")
    return Clips(_table(content, store.where(CLIPS)))


def has_clips(root: Root) -> bool:
    """Whether something was ingested there.

    Raises:
        DatasetError: It is a file.
    """
    return _content(store_at(root)) is not None


def _content(store: Store) -> bytes | None:
    """The bytes of the table of clips, where there is one."""
    try:
        return store.read(CLIPS)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise DatasetError(
            f"{store.where()} is a file; wanted the folder of a dataset, which an experiment file "
            f"names as dataset"
        ) from None


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
    rows: list[dict[str, Any]] = _table(content, where).to_pylist()
    return rows


def _table(content: bytes, where: str) -> "pa.Table":
    import pyarrow.parquet as pq

    at = content.rfind(_MARK) + len(_MARK) + 2  # Parquet puts its type and length between them
    told = content[at : at + len(_EMPTY)]
    # Parquet's own checksums leave out the footer, and with it the names and types of columns.
    if told != _digest(content[:at] + _EMPTY + content[at + len(_EMPTY) :]):
        raise DatasetError(f"{where} is damaged: it is not what was written; ingest again")
    # Not `read_table`: its many small pieces would each be looked into for every job.
    return pq.ParquetFile(io.BytesIO(content)).read()


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
            ("audio_stream", text),
            ("video_stream", text),
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
