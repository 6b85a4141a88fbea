"""Vectors of words from files: GloVe, word2vec in text form, fastText's .vec, and .npz."""

import functools
import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.pretrained import (
    FOLDERS,
    MissingWeightsError,
    WeightsError,
    digest_of_file,
    listed_files,
)
from featurizers.spec import Chunk, Feature, FeatureSpec, names

NAME = "word-vectors"
FORMATS = (".txt", ".vec", ".npz")


class WordVectors:
    """One step a word: its vector in a file of the user's; all 0 for words that are not in it.

    GloVe: Pennington et al. 2014; word2vec: Mikolov et al. 2013; fastText: Bojanowski et al. 2017.
    A word is looked for as it is written, then without the signs at its ends, then in small
    letters. The numbers are those of the file, so the promise is exact.

    A .txt or .vec file holds a word and its numbers in each line, perhaps after a line that says
    how many there are; a .npz file the arrays `words` [N] and `vectors` [N, D].

    Args:
        file: The file; may be empty when `weights` is given.
        weights: Its sha256 in hex. A file that is not there is looked for by it in the folders that
            FUSELINE_WEIGHTS lists.
    """

    weights_from: ClassVar[str] = "file"
    wants = None

    def __init__(self, *, file: str = "", weights: str = "") -> None:
        path = _found(file, weights)
        digest = digest_of_file(path)
        if weights and digest != weights:
            raise ValueError(f"{NAME}: {path} has the sha256 {digest}, wanted is {weights}")
        self._vectors = vectors_in(str(path), digest)
        self.spec = FeatureSpec(
            name=NAME,
            version=1,
            modality="text",
            reads=("words",),
            dims=tuple(names("vector", self._vectors.width)),
            rate_hz=None,
            weights=digest,
            licence="unknown: as the file's author says",
            source=str(path),
        )

    def begin(self, clip: Clip) -> "_Words":
        """Start on a clip."""
        return _Words(clip, self._vectors)


class _Words:
    def __init__(self, clip: Clip, vectors: "Vectors") -> None:
        self._clip, self._vectors = clip, vectors

    def add(self, chunk: Chunk) -> None:
        raise TypeError(f"{NAME} reads no media")

    def finish(self) -> Feature:
        words = self._clip.words or ()
        if not words:
            raise BadClipError("empty", "the transcript has no words")
        values = np.stack([self._vectors.of(word.text) for word in words])
        times = np.array([[word.start, word.end] for word in words], dtype=np.float64)
        return Feature(values, times)


def _found(file: str, weights: str) -> Path:
    path = Path(file).expanduser()
    if file and path.is_file():
        if path.suffix not in FORMATS:
            raise ValueError(
                f"{NAME}: file is {file!r}; wanted one of {', '.join(FORMATS)}: unpack it, or save "
                f"word2vec's binary form as text"
            )
        return path.resolve()
    if not weights:
        said = f"file is {file!r}: there is no such file" if file else "it wants `file`"
        raise MissingWeightsError(
            f"{NAME}: {said}; give the path of a file of word vectors, such as glove.6B.300d.txt"
        )
    for other in listed_files(FORMATS):
        if digest_of_file(other) == weights:
            return other
    raise MissingWeightsError(
        f"{NAME}: {file or 'the file'} is not there, and no folder that {FOLDERS} lists has a file "
        f"of sha256 {weights}; put it in one: export {FOLDERS}=FOLDER"
    )


@functools.lru_cache(maxsize=4)
def vectors_in(path: str, digest: str) -> "Vectors":
    """The vectors in a file; read once in a process for as long as its digest stays the same."""
    return Vectors(Path(path))


class Vectors:
    """Vectors by word.

    Of a text file only places of lines are held, 16 bytes a word, and lines are read when they are
    asked for.

    Raises:
        ValueError: It is not in one of the forms.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table: dict[str, NDArray[np.float32]] | None = None
        if path.suffix == ".npz":
            self._table, self.width = _npz(path)
            return
        with path.open("rb") as file:
            first = file.readline().split()
            second = file.readline().split()
        self._headed = len(first) == 2 and all(each.isdigit() for each in first)
        self.width = int(first[1]) if self._headed else len(first) - 1
        line = second if self._headed else first
        if self.width < 1 or len(line) <= self.width:
            raise ValueError(
                f"{path}: its first words have {max(0, len(line) - 1)} numbers, {self.width} were "
                f"wanted; a line is a word and its numbers, with spaces between them"
            )

    def of(self, word: str) -> NDArray[np.float32]:
        """The vector [D] of a word."""
        for form in forms(word):
            vector = self._exactly(form)
            if vector is not None:
                return vector
        return np.zeros(self.width, dtype=np.float32)

    @functools.cached_property
    def _index(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes of the words in order, and where their lines begin."""
        hashes, places = [], []
        for place, line in self._lines():
            hashes.append(_hash(self._word(line)))
            places.append(place)
        keys = np.array(hashes, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        return keys[order], np.array(places, dtype=np.int64)[order]

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        place = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file):
                if line.strip() and not (self._headed and number == 0):
                    yield place, line
                place += len(line)

    def _word(self, line: bytes) -> bytes:
        # Some words of GloVe hold spaces, so the numbers are counted from the end.
        return line.rstrip().rsplit(b" ", self.width)[0]

    def _exactly(self, word: str) -> NDArray[np.float32] | None:
        if self._table is not None:
            return self._table.get(word)
        written = word.encode()
        hashes, places = self._index
        key = np.uint64(_hash(written))
        first = int(np.searchsorted(hashes, key))
        with self._path.open("rb") as file:
            while first < len(hashes) and hashes[first] == key:
                file.seek(int(places[first]))
                line = file.readline()
                if self._word(line) == written:
                    return self._numbers(word, line)
                first += 1
        return None

    def _numbers(self, word: str, line: bytes) -> NDArray[np.float32]:
        parts = line.rstrip().rsplit(b" ", self.width)[1:]
        try:
            with np.errstate(over="ignore"):  # to infinity, which is refused
                vector = np.array([float(part) for part in parts]).astype(np.float32)
        except ValueError:
            vector = np.array([np.nan], dtype=np.float32)
        if len(vector) != self.width or not np.isfinite(vector).all():
            raise WeightsError(
                f"{self._path}: the line of {word!r} is no {self.width} finite numbers; "
                f"unpack or fetch the file again"
            )
        return vector


def forms(word: str) -> list[str]:
    """How a word may stand in a file, in the order in which it is looked for."""
    bare = word
    while bare and not bare[0].isalnum():
        bare = bare[1:]
    while bare and not bare[-1].isalnum():
        bare = bare[:-1]
    found = dict.fromkeys([word, bare, word.lower(), bare.lower()])
    return [form for form in found if form]


def _hash(word: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little")


def _npz(path: Path) -> tuple[dict[str, NDArray[np.float32]], int]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            lacks = {"words", "vectors"} - set(arrays.files)
            if lacks:
                raise WeightsError(f"{path}: there is no array {' or '.join(sorted(lacks))}")
            words, vectors = arrays["words"], arrays["vectors"]
    except zipfile.BadZipFile:
        raise WeightsError(f"{path}: no .npz file, or cut; get it again") from None
    except ValueError as error:
        if isinstance(error, WeightsError):
            raise
        # numpy's own advice would be to unpickle it.
        raise WeightsError(f"{path}: it holds pickled objects, which are not opened") from None
    if words.dtype.kind != "U" or vectors.ndim != 2 or words.shape != vectors.shape[:1]:
        raise ValueError(
            f"{path}: words {words.dtype} {words.shape} and vectors {vectors.shape}; wanted texts "
            f"[N] and numbers [N, D]"
        )
    floats: NDArray[Any] = vectors.astype(np.float32)
    if not np.isfinite(floats).all():
        raise ValueError(f"{path}: vectors hold NaN or infinity")
    return dict(zip(words.tolist(), floats, strict=True)), int(floats.shape[1])
