"""Pickles of arrays and plain containers, read without running anything of theirs.

A pickle is a program: it names functions, and calls them. Here every name but a few leads to a
refusal, and those few lead to functions of our own, not to NumPy's: NumPy's own would take a dtype
whose flags were cleared, and raw bytes for pointers to objects. What is made is checked before it
is built: an array has as many bytes as its shape and its type say, and its type is one of plain
numbers and texts.
"""

import math
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipelines.experiment import InputError

_DTYPE = re.compile(r"[<>|=]?([biufc])([0-9]+)|[<>|=]?([SU])([0-9]+)|[|]?(O)([0-9]*)")
_SIZES = {"b": {1}, "i": {1, 2, 4, 8}, "u": {1, 2, 4, 8}, "f": {2, 4, 8}, "c": {8, 16}}
_PLAIN = (str, bytes, int, float, complex, bool, type(None), np.generic)


class _RefusedError(pickle.UnpicklingError):
    """Something is in it that is neither an array nor a plain container."""


def read_plain_pickle(path: Path) -> Any:  # noqa: ANN401 - whatever the pickle holds
    """What a pickle holds: dictionaries, lists, tuples, sets, texts, numbers, NumPy arrays.

    Arrays may hold numbers and texts, or (dtype object) plain values. Those of Python 2 are read
    as well. Arrays are read-only where their bytes are used as they lie in the file.

    Raises:
        InputError: There is no such file, it is no pickle, or it holds anything else. Nothing of
            it was run then.
    """
    try:
        with path.open("rb") as file:
            found = _Reader(file).load()
        return _Resolver()(found)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except _RefusedError as error:
        raise InputError(
            f"{path}: {error}; wanted a pickle of NumPy arrays and plain containers alone. "
            f"Nothing of it was run"
        ) from None
    except _BROKEN as error:
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: no pickle of arrays that can be read: {told}") from None


# What a damaged or a malicious program for the machine of pickles may run into.
_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ImportError,
    MemoryError,
    OverflowError,
    RecursionError,
)


class _Reader(pickle.Unpickler):
    """Knows a few names, and imports none."""

    def __init__(self, file: IO[bytes]) -> None:
        # Texts and arrays of Python 2 are bytes of one character each.
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> "_Call":
        """What stands for a name. Raises _RefusedError for all but a few."""
        found = _KNOWN.get((module, name))
        if found is None:
            hint = ""
            if module.partition(".")[0] == "torch":
                hint = " (MMSA-FET writes arrays with return_type='np')"
            raise _RefusedError(f"it names {module}.{name}{hint}")
        return found

    def persistent_load(self, pid: object) -> NoReturn:
        """Refused: it leads out of the file."""
        raise _RefusedError(f"it names something outside of it ({str(pid)[:40]!r})")


class _Call:
    """Stands for a function that a pickle may call; a pickle can change nothing of it."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401 - of the pickle
        return self._make(*arguments)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise _RefusedError(f"it sets {name!r} of a function")

    def __setstate__(self, state: object) -> NoReturn:
        raise _RefusedError("it changes a function")


class _Type:
    """A dtype in the making: `dtype(text, align, copy)`, then its state with the order of bytes."""

    __slots__ = ("_text", "dtype")

    def __init__(self, text: object, *_: object) -> None:
        text = text.decode("ascii") if isinstance(text, bytes) else text
        found = _DTYPE.fullmatch(text) if isinstance(text, str) else None
        if found is None or not _is_known(found):
            raise _RefusedError(f"it holds an array of {str(text)[:40]!r}")
        self._text = "O" if found[5] else str(text).lstrip("<>|=")
        self.dtype = np.dtype(self._text)

    def __setstate__(self, state: object) -> None:
        # (version, order, subarray, names, fields, size, alignment, flags): only the order is used.
        if not isinstance(state, tuple) or len(state) < 5 or any(state[2:5]):
            raise _RefusedError("it holds an array of records")
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise _RefusedError(f"it holds an array with the order of bytes {str(order)[:10]!r}")
        if self.dtype.kind != "O":
            self.dtype = np.dtype(f"{order}{self._text}")


def _is_known(found: re.Match[str]) -> bool:
    number, size = found[1], found[2]
    return number is None or int(size) in _SIZES[number]


class _Array:
    """An array in the making; `values` once its state is known."""

    __slots__ = ("values",)

    def __init__(self, *_: object) -> None:
        self.values: NDArray[Any] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _RefusedError("it holds an array whose state is none")
        _, shape, kind, fortran, content = state
        self.values = _array(kind, shape, content, "F" if fortran else "C")


def _array(kind: object, shape: object, content: object, order: str) -> NDArray[Any]:
    """An array of a shape from its bytes, or for dtype object from its list."""
    if not isinstance(kind, _Type):
        raise _RefusedError("it holds an array without a type")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise _RefusedError(f"it holds an array of the shape {str(shape)[:60]}")
    count = math.prod(shape)
    if kind.dtype.kind == "O":
        if not isinstance(content, list) or len(content) != count:
            raise _RefusedError("it holds an array of objects without their list")
        made = np.empty(count, dtype=object)
        for at, each in enumerate(content):
            made[at] = each
    else:
        content = content.encode("latin1") if isinstance(content, str) else content
        size = count * kind.dtype.itemsize
        if not isinstance(content, bytes | bytearray | memoryview) or len(content) != size:
            raise _RefusedError(f"it holds an array of {size} bytes with others")
        made = (
            np.frombuffer(content, dtype=kind.dtype) if size else np.empty(count, dtype=kind.dtype)
        )
    return made.reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(
    content: object, kind: object, shape: object, order: object, axes: object = None
) -> _Array:
    """`numpy._core.numeric._frombuffer`, which pickles of protocol 5 call."""
    array = _Array()
    made = _array(kind, shape, content, "F" if order == "F" else "C")
    array.values = made if axes is None else made.transpose(axes)  # type: ignore[call-overload] # of the pickle
    return array


def _scalar(kind: object, content: object = b"") -> Any:  # noqa: ANN401 - a number or a text
    if not isinstance(kind, _Type) or kind.dtype.kind == "O":
        raise _RefusedError("it holds a number without a type")
    return _array(kind, (1,), content, "C")[0]


def _bytes(text: object = "", encoding: object = "latin1") -> bytes:
    """`_codecs.encode`, by which pickles of protocol 2 and less write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"it encodes a text as {str(encoding)[:20]!r}")
    return text.encode("latin1")


def _no_type(*_: object) -> NoReturn:
    raise _RefusedError("it makes an array of no shape")


_RECONSTRUCT, _NUMBER, _BUFFER = _Call(_Array), _Call(_scalar), _Call(_from_buffer)
_KNOWN: Mapping[tuple[str, str], _Call] = {
    **{
        (f"numpy.{core}.multiarray", name): call
        for core in ("core", "_core")
        for name, call in (("_reconstruct", _RECONSTRUCT), ("scalar", _NUMBER))
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _BUFFER for core in ("core", "_core")},
    ("numpy", "ndarray"): _Call(_no_type),
    ("numpy", "dtype"): _Call(_Type),
    ("_codecs", "encode"): _Call(_bytes),
    ("collections", "OrderedDict"): _Call(dict),
    **{
        (module, name): _Call(make)
        for module in ("builtins", "__builtin__")
        for name, make in (
            ("set", set),
            ("frozenset", frozenset),
            ("bytearray", lambda *of: bytearray(_bytes(*of) if of and type(of[0]) is str else b"")),
            ("bytes", _bytes),
            ("complex", complex),
        )
    },
}


class _Circle:
    """Stands for what is being resolved."""


class _Resolver:
    """Puts finished arrays where they were in the making, and refuses what is not plain."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any) -> Any:  # noqa: ANN401 - of the pickle
        if isinstance(value, _PLAIN):
            return value
        # By identity: what is shared a thousand times is walked once. What was seen is held, so
        # that nothing else comes to lie where it lay.
        if id(value) not in self._seen:
            self._seen[id(value)] = value, _Circle()
            self._seen[id(value)] = value, self._resolved(value)
        found = self._seen[id(value)][1]
        if isinstance(found, _Circle):
            raise _RefusedError("it holds something that holds itself")
        return found

    def _resolved(self, value: Any) -> Any:  # noqa: ANN401 - of the pickle
        match value:
            case _Array():
                return self._array(value)
            case dict():
                return {self(name): self(each) for name, each in value.items()}
            case list() | set() | frozenset() | tuple():
                return type(value)([self(each) for each in value])
            case bytearray():
                return bytes(value)
            case _:
                what = type(value).__name__.strip("_").lower()
                raise _RefusedError(f"it holds a {what} by itself")

    def _array(self, value: _Array) -> NDArray[Any]:
        if value.values is None:
            raise _RefusedError("it holds an array that was never filled")
        if value.values.dtype.kind == "O":
            flat = value.values.reshape(-1)
            for at in range(flat.size):
                flat[at] = self(flat[at])
            return flat.reshape(value.values.shape)
        return value.values
