"""Pickles of arrays and plain containers: what they may hold, and that nothing of them is run."""

import collections
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from pipelines.exchange.plain_pickle import read_plain_pickle
from pipelines.experiment import InputError

PLAIN = {
    "floats": np.arange(12, dtype=np.float32).reshape(3, 4),
    "doubles, big-endian": np.array([1.5, -np.inf, np.nan], dtype=">f8"),
    "Fortran's order": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "turned": np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(2, 0, 1),
    "half, bytes, truth": [np.float16([1, 2]), np.uint8([3]), np.array([True, False])],
    "texts": np.array(["a video$_$1", "ünïcode"]),
    "bytes": np.array([b"sp", b"word"]),
    "objects": np.array(["a", None, 1.5, [np.zeros(2)]], dtype=object),
    "objects on a grid": np.array([["a", "b"], ["c", "d"]], dtype=object),
    "none": np.zeros((0, 5), dtype=np.float32),
    "one number": (np.float32(2.5), np.str_("x"), np.int64(-3)),
    "containers": {"a": [1, 2.0, "x", b"y", None, True], ("t",): {1, 2}, 3: frozenset({4})},
    "ordered": collections.OrderedDict(b=1, a=2),
}


def equal(one, other):
    if isinstance(one, np.ndarray):
        if one.dtype.kind == "O":
            return one.shape == other.shape and all(map(equal, one.ravel(), other.ravel()))
        return one.dtype == other.dtype and np.array_equal(
            one, other, equal_nan=one.dtype.kind == "f"
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other and isinstance(other, type(one) if not isinstance(one, dict) else dict)


def written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_containers_come_back_as_they_were(tmp_path, protocol):
    found = read_plain_pickle(written(tmp_path / "a.pkl", pickle.dumps(PLAIN, protocol=protocol)))
    for name, value in PLAIN.items():
        assert equal(value, found[name]), name


def test_a_pickle_of_python_2_and_an_old_numpy_is_read(tmp_path):
    # As Python 2 wrote {"x": array([1., 2.])} and a byte string: texts without a character set.
    content = (
        b"(dp0\nS'x'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\n"
        b"S'b'\np5\ntp6\nRp7\n(I1\n(I2\ntp8\ncnumpy\ndtype\np9\n(S'f8'\np10\nI0\nI1\ntp11\nRp12\n"
        b"(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS"
        + repr(struct.pack("<2d", 1.0, 2.0)).lstrip("b").encode()
        + b"\np15\ntp16\nbs."
    )
    found = read_plain_pickle(written(tmp_path / "a.pkl", content))
    assert found["x"].tolist() == [1.0, 2.0]


class Runs:
    """A value that runs something when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def global_of(module, name):
    return f"c{module}\n{name}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


ARRAY = global_of("numpy._core.multiarray", "_reconstruct") + (
    global_of("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
)
OBJECT = global_of("numpy", "dtype") + text("O8") + b"\x89\x88\x87R"
# The state of a dtype whose flags were cleared: NumPy's own then takes bytes for pointers.
CLEARED = b"(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def evil(tmp_path):
    """Pickles by name, each of which runs or corrupts something where pickle itself reads it."""
    import os

    mark = f"touch {tmp_path / 'ran'}"
    inside = np.empty(1, dtype=object)
    inside[0] = Runs(os.system, mark)
    eight = b"C\x08" + b"A" * 8
    return {
        "os.system": pickle.dumps(Runs(os.system, mark)),
        "within a split": pickle.dumps({"train": {"text": Runs(os.system, mark)}}),
        "within an array of objects": pickle.dumps(inside),
        "builtins.eval": pickle.dumps(Runs(eval, f"open({str(tmp_path / 'ran')!r}, 'w')")),
        "builtins.getattr": pickle.dumps(Runs(getattr, 1, "real")),
        "a class of another module": pickle.dumps(collections.Counter("ab")),
        "another class as an array": global_of("numpy._core.multiarray", "_reconstruct")
        + global_of("collections", "Counter")
        + b"K\x00\x85C\x01b\x87R.",
        "NumPy's own file": global_of("numpy", "fromfile") + text("/etc/hostname") + b"\x85R.",
        "NumPy's loader": global_of("numpy", "load") + text("/etc/hostname") + b"\x85R.",
        "numpy.f2py": global_of("numpy.testing._private.utils", "runstring")
        + text("1")
        + b"N\x86R.",
        "bytes for objects": ARRAY + b"(K\x01K\x01\x85" + OBJECT + b"\x89" + eight + b"tb.",
        "bytes for objects, flags cleared": ARRAY
        + (b"(K\x01K\x01\x85" + OBJECT + CLEARED + b"\x89" + eight + b"tb."),
        "objects of one byte each": ARRAY
        + (b"(K\x01K\x01\x85" + global_of("numpy", "dtype") + text("V8") + b"\x89\x88\x87R")
        + (b"\x89" + eight + b"tb."),
        "too few bytes": ARRAY
        + (b"(K\x01M\xff\xff\x85" + global_of("numpy", "dtype") + text("f8") + b"\x89\x88\x87R")
        + (b"\x89" + eight + b"tb."),
        "a negative shape": ARRAY
        + (b"(K\x01J\xff\xff\xff\xff\x85" + global_of("numpy", "dtype") + text("f8"))
        + (b"\x89\x88\x87R\x89" + eight + b"tb."),
        "a function that is changed": global_of("numpy", "dtype") + b"}" + text("x") + b"K\x01sb.",
        "a function by itself": pickle.dumps([1])[:-1] + global_of("numpy", "dtype") + b"\x86.",
        "something outside": b"Pelsewhere\n.",
        "an array that is never filled": ARRAY + b".",
        "something that holds itself": b"]\x94h\x00a.",
        "torch": global_of("torch._utils", "_rebuild_tensor_v2") + b")R.",
        "a cut file": pickle.dumps(PLAIN)[:-40],
        "no pickle": b"PK\x03\x04 something else",
        "nothing": b"",
    }


@pytest.mark.parametrize("name", evil(Path("x")))
def test_all_else_is_refused_in_one_line_and_nothing_is_run(tmp_path, name):
    path = written(tmp_path / "evil.pkl", evil(tmp_path)[name])
    with pytest.raises(InputError) as refused:
        read_plain_pickle(path)
    said = str(refused.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    assert not (tmp_path / "ran").exists()


def test_what_is_refused_is_named(tmp_path):
    cases = evil(tmp_path)
    for name, said in (
        ("os.system", "it names posix.system; wanted a pickle of NumPy arrays and plain"),
        ("builtins.eval", "it names builtins.eval"),
        ("a class of another module", "it names collections.Counter"),
        ("bytes for objects, flags cleared", "objects without their list"),
        ("torch", "return_type='np'"),
    ):
        with pytest.raises(InputError, match=said):
            read_plain_pickle(written(tmp_path / "evil.pkl", cases[name]))


def test_the_evil_ones_do_run_where_pickle_itself_reads_them(tmp_path):
    cases = evil(tmp_path)
    for name in ("os.system", "within a split", "within an array of objects", "builtins.eval"):
        pickle.loads(cases[name])  # noqa: S301 - it is to run
        (tmp_path / "ran").unlink()


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"none.pkl: No such file"):
        read_plain_pickle(tmp_path / "none.pkl")
