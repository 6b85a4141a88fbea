"""Computational sequences of the CMU Multimodal SDK: `.csd` files, which are HDF5.

    ROOT/data/ENTRY/features    [T, D], numbers; of words, texts
    ROOT/data/ENTRY/intervals   [T, 2], seconds
    ROOT/metadata/NAME          [1], a text that is JSON: "root name", "dimension names", "md5" ...

The layout is that of the SDK's `file_ops.py`. Of such a file only what lies in it is read: HDF5 has
links to other files and data that stand in others, and these are refused. All of h5py is here.
"""

import hashlib
import json
import math
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.store import LocalStore
from pipelines.corpora.tree import state
from pipelines.experiment import InputError

NAMES = (
    "root name",
    "computational sequence description",
    "dimension names",
    "computational sequence version",
    "alignment compatible",
    "dataset name",
    "dataset version",
    "creator",
    "contact",
    "featureset bib citation",
    "dataset bib citation",
)
"""What the SDK wants to be told of a sequence (`metadataconfigs.py`)."""

LEVEL = 4  # of gzip; the SDK's 9 takes three times as long for hardly less

Entry: TypeAlias = tuple[NDArray[Any], NDArray[np.float64]]
"""Features [T, D], or of words [T], and intervals [T, 2] in seconds."""

_BROKEN = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Sequences:
    """A file that is open for reading; use as a context manager.

    Attributes:
        root: What the sequence is called.
        metadata: What the file tells of itself.
        entries: Recordings, or segments of them that are called RECORDING[NUMBER].
    """

    path: Path
    root: str
    metadata: Mapping[str, Any]
    entries: Sequence[str]
    _file: Any
    _own: frozenset[str]
    _parts: Mapping[str, Sequence[str]]
    _kept: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @staticmethod
    def open(path: Path) -> "Sequences":
        """Open a file.

        Raises:
            InputError: It is not laid out so, or is a pointer to a file that was not fetched.
        """
        import h5py

        if (wrong := state(path)) is not None:
            raise InputError(f"{path}: is {wrong}: fetch the file itself")
        try:
            file = h5py.File(path, "r")
        except _BROKEN as error:
            raise _wrong(path, str(error)) from None
        try:
            return Sequences._opened(path, file)
        except _BROKEN as error:
            file.close()
            raise _wrong(path, str(error)) from None
        except InputError:
            file.close()
            raise

    @staticmethod
    def _opened(path: Path, file: Any) -> "Sequences":  # noqa: ANN401 - h5py is not typed
        roots = list(file)
        if len(roots) != 1:
            raise _wrong(path, f"it has {len(roots)} roots")
        root = _inside(path, file, roots[0])
        data = _inside(path, root, "data")
        told = _inside(path, root, "metadata") if "metadata" in root else {}
        metadata = {str(name): _told(_inside(path, told, name)) for name in told}
        parts: dict[str, list[str]] = defaultdict(list)
        for name in data:
            parts[recording_of(str(name))].append(str(name))
        entries = [str(name) for name in data]
        called = str(metadata.get("root name") or roots[0])
        return Sequences(path, called, metadata, entries, file, frozenset(entries), dict(parts))

    def __enter__(self) -> "Sequences":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def dims(self) -> list[str]:
        """Names of the dimensions, where the file tells them."""
        found = self.metadata.get("dimension names")
        return [str(name) for name in found] if isinstance(found, list) else []

    @property
    def first(self) -> NDArray[Any]:
        """The first row of features: [1, D], or of words [1]."""
        some = (self._read(name, slice(0, 1)) for name in self.entries)
        return next((each for each in some if len(each)), np.zeros((0, 0)))

    def owns(self, entry: str) -> bool:
        """Whether there is an entry of just this name."""
        return entry in self._own

    def has(self, entry: str) -> bool:
        """Whether there is an entry of this name, or there are segments of it."""
        return entry in self._own or entry in self._parts

    def intervals(self, entry: str) -> NDArray[np.float64]:
        """The intervals of an entry, or of all its segments one after the other."""
        if entry not in self._kept:
            if len(self._kept) > KEPT:
                self._kept.clear()
            some = [self._numbers(part, "intervals", 2) for part in self._of(entry)]
            self._kept[entry] = np.concatenate(some).astype(np.float64)
        return self._kept[entry]

    def features(self, entry: str, rows: slice = slice(None)) -> NDArray[Any]:
        """Some rows of an entry's features: [T, D] as they are, or of words [T] texts."""
        parts = self._of(entry)
        if len(parts) == 1:
            return self._read(parts[0], rows)
        return np.concatenate([self._read(part, slice(None)) for part in parts])[rows]

    @property
    def _data(self) -> Any:  # noqa: ANN401 - h5py is not typed
        return next(iter(self._file.values()))["data"]

    def _of(self, entry: str) -> Sequence[str]:
        return [entry] if entry in self._own else self._parts[entry]

    def _read(self, part: str, rows: slice) -> NDArray[Any]:
        found = self._dataset(part, "features")
        if found.shape[:1] != (len(self.intervals(part)),):
            raise _wrong(self.path, f"{part} has unlike numbers of features and intervals")
        if _is_text(found):
            return np.array([_text(each) for each in np.asarray(found[rows]).reshape(-1)])
        values = np.asarray(found[rows])
        # Some have an axis of length 1 in the middle, or no second one.
        return values.reshape(len(values), math.prod(values.shape[1:]))

    def _numbers(self, part: str, name: str, width: int) -> NDArray[Any]:
        values = np.asarray(self._dataset(part, name))
        if values.ndim != 2 or values.shape[1] != width or values.dtype.kind not in "fiu":
            raise _wrong(self.path, f"{name} of {part} are {values.dtype} {values.shape}")
        if not np.isfinite(values).all():
            raise _wrong(self.path, f"{name} of {part} are not finite")
        return values

    def _dataset(self, part: str, name: str) -> Any:  # noqa: ANN401 - h5py is not typed
        import h5py

        found = _inside(self.path, _inside(self.path, self._data, part), name)
        if not isinstance(found, h5py.Dataset):
            raise _wrong(self.path, f"{part}/{name} is a group")
        return found


KEPT = 64
"""Recordings whose intervals are kept in memory: clips of one follow each other."""


def _inside(path: Path, group: Any, name: str) -> Any:  # noqa: ANN401 - h5py is not typed
    """A member of a group that stands in this very file.

    Raises:
        InputError: It does not.
    """
    import h5py

    if name not in group:
        raise _wrong(path, f"{name} is not there")
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise _wrong(path, f"{name} is a link")
    found = group[name]
    if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
        raise _wrong(path, f"{name} stands in another file")
    return found


def _wrong(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: not a computational sequence of the CMU SDK (root/data/ENTRY/features and "
        f"intervals): {' '.join(what.split())}"
    )


def _told(dataset: Any) -> Any:  # noqa: ANN401 - whatever the file tells of itself
    """A member of the metadata: JSON in most files, else a text."""
    cells = np.asarray(dataset).reshape(-1)
    text = _text(cells[0]) if len(cells) else ""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_text(dataset: Any) -> bool:  # noqa: ANN401 - h5py is not typed
    return dataset.dtype.kind in "SUO"


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def recording_of(entry: str) -> str:
    """The recording of a segment: the SDK calls these RECORDING[NUMBER]."""
    return entry.partition("[")[0]


def write_csd(
    path: Path,
    root: str,
    entries: Iterable[tuple[str, Callable[[], Entry]]],
    metadata: Mapping[str, Any],
) -> None:
    """Write a sequence whole or not at all; equal content gives equal bytes.

    Args:
        path: The file.
        root: What it is called.
        entries: A name, without "/", and what gives its features and intervals.
        metadata: By the SDK's names; those that are not given are empty.

    Raises:
        StorageError: It could not be written.
    """
    import h5py

    md5 = hashlib.md5(usedforsecurity=False)
    with LocalStore(path.parent).draft(path.name, "a computational sequence") as draft:
        with h5py.File(draft.file, "w") as file:
            top = file.create_group(root)
            data = top.create_group("data")
            for name, read in entries:
                features, intervals = read()
                group = data.create_group(name)
                text = features.dtype.kind == "U"
                kept = _as_bytes(features) if text else features
                for what, array in (("features", kept), ("intervals", intervals)):
                    squeezed = {"compression": "gzip", "compression_opts": LEVEL}
                    group.create_dataset(what, data=array, **(squeezed if array.size else {}))
                    md5.update(f"{name}/{what} {array.shape}".encode())
                    md5.update(np.ascontiguousarray(array).tobytes())
            digest = md5.hexdigest()
            own = {"uuid": str(uuid.UUID(digest)), "md5": digest, "root name": root}
            told = top.create_group("metadata")
            for name, value in {**dict.fromkeys(NAMES, ""), **metadata, **own}.items():
                cell = told.create_dataset(name, (1,), dtype=h5py.string_dtype())
                cell[0] = json.dumps(value)
        draft.publish(path.name)


def _as_bytes(texts: NDArray[Any]) -> NDArray[Any]:
    """Texts [T] as the SDK has words: bytes [T, 1]."""
    found = [str(each).encode() for each in texts]
    width = max([len(each) for each in found], default=0)
    return np.array(found, dtype=f"S{max(1, width)}").reshape(-1, 1)
