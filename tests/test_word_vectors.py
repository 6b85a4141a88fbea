"""Vectors of words: the numbers of the file, for each word as it may stand there."""

import numpy as np
import pytest

from featurizers import word_vectors
from featurizers.catalog import build, from_spec
from featurizers.clip import BadClipError, Clip, Word
from featurizers.pretrained import FOLDERS, MissingWeightsError
from featurizers.spec import FeatureSpec, check_feature
from featurizers.word_vectors import Vectors, forms

TABLE = {
    "the": (0.1, -0.2, 0.30000001),
    "Good": (1.0, 2.0, 3.0),
    "good": (4.0, 5.0, 6.0),
    "don't": (7e-3, 8.0, -9.5),
    ". . .": (0.5, 0.5, 0.5),
    "größe": (1.0, 0.0, 1.0),
    ",": (9.0, 9.0, 9.0),
}


def lines(table=TABLE):
    return "".join(f"{word} {' '.join(map(str, numbers))}\n" for word, numbers in table.items())


@pytest.fixture(params=["glove.txt", "headed.txt", "fast.vec", "packed.npz"])
def file(request, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".npz":
        np.savez(path, words=np.array(list(TABLE)), vectors=np.array(list(TABLE.values())))
    else:
        header = "" if path.stem == "glove" else f"{len(TABLE)} 3\n"
        path.write_text(header + lines(), encoding="utf-8")
    return path


def feature(featurizer, *words):
    made = tuple(Word(text=word, start=float(n), end=n + 0.5) for n, word in enumerate(words))
    clip = Clip(key="a", id="a", media="", media_digest="", words=made)
    found = featurizer.begin(clip).finish()
    check_feature(featurizer.spec, found)
    return found


def test_each_word_has_the_numbers_of_the_file(file):
    made = feature(build("word-vectors", file=str(file)), *TABLE)
    np.testing.assert_array_equal(made.values, np.array(list(TABLE.values()), np.float32))
    assert made.times.tolist() == [[n, n + 0.5] for n in range(len(TABLE))]


def test_a_word_that_is_not_there_is_zero(file):
    made = feature(build("word-vectors", file=str(file)), "unheard", "", "7", "!")
    assert (made.values == 0).all()


@pytest.mark.parametrize(
    ("word", "entry"),
    [
        ("Good", "Good"),
        ("GOOD", "good"),
        ('"Good,"', "Good"),
        ("Don't!", "don't"),
        ("THE", "the"),
        (",", ","),
        ("Größe", "größe"),
        (". . .", ". . ."),
    ],
)
def test_a_word_is_found_as_it_may_stand_there(file, word, entry):
    made = feature(build("word-vectors", file=str(file)), word)
    np.testing.assert_array_equal(made.values[0], np.array(TABLE[entry], np.float32))


def test_the_first_of_two_equal_words_counts(tmp_path):
    more = "".join(f"so {number} 4\nit 0 {number}\n" for number in range(1000))
    (tmp_path / "a.txt").write_text("so 1 2\n" + more)
    assert feature(build("word-vectors", file=str(tmp_path / "a.txt")), "so").values.tolist() == [
        [1, 2]
    ]


def test_words_with_equal_hashes_are_told_apart(file, monkeypatch):
    monkeypatch.setattr(word_vectors, "_hash", lambda word: 7)
    made = feature(build("word-vectors", file=str(file)), *TABLE, "unheard")
    np.testing.assert_array_equal(made.values[:-1], np.array(list(TABLE.values()), np.float32))
    assert (made.values[-1] == 0).all()


def test_forms_are_tried_from_the_written_one_on():
    assert forms("\"It's") == ["\"It's", "It's", "\"it's", "it's"]
    assert forms("so") == ["so"]
    assert forms("...") == ["..."]


def test_the_promise_is_exact_and_the_file_is_its_identity(file, tmp_path, monkeypatch):
    spec = build("word-vectors", file=str(file)).spec
    assert spec.atol is None
    assert spec.width == 3
    moved = file.rename(tmp_path / f"moved{file.suffix}")
    assert build("word-vectors", file=str(moved)).spec == spec
    written = FeatureSpec.from_json(spec.to_json())
    monkeypatch.setenv(FOLDERS, str(tmp_path))
    assert from_spec(written).spec.fingerprint == spec.fingerprint
    monkeypatch.setenv(FOLDERS, str(moved))
    assert from_spec(spec).spec.source == str(moved)
    moved.unlink()
    with pytest.raises(MissingWeightsError, match=f"no folder.*sha256 {spec.weights}.*export"):
        from_spec(spec)


def test_another_file_under_the_name_is_refused(file, tmp_path):
    spec = build("word-vectors", file=str(file)).spec
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(ValueError, match=f"wanted is {spec.weights}"):
        from_spec(spec)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.bin", b"x", "wanted one of .txt, .vec, .npz"),
        ("a.txt", b"", "a line is a word and its numbers"),
        ("a.txt", b"alone\n", "a line is a word and its numbers"),
        ("a.txt", b"2 300\nso 1 2\n", "300 were wanted"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        build("word-vectors", file=str(tmp_path / name))


@pytest.mark.parametrize("line", ["so 1", "so 1 x", "so 1 nan", "so 1 1e99"])
def test_a_damaged_line_is_told_with_its_word(tmp_path, line):
    (tmp_path / "a.txt").write_text(f"it 1 2\n{line}\n")
    featurizer = build("word-vectors", file=str(tmp_path / "a.txt"))
    assert feature(featurizer, "it").values.tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="line of 'so' is no 2 finite numbers"):
        feature(featurizer, "so")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"words": np.array(["a"])}, "no array vectors"),
        ({"words": np.array(["a"]), "vectors": np.ones((2, 3))}, "wanted texts"),
        ({"words": np.array([1]), "vectors": np.ones((1, 3))}, "wanted texts"),
        ({"words": np.array(["a"]), "vectors": np.full((1, 3), np.nan)}, "NaN or infinity"),
    ],
)
def test_packed_arrays_of_another_form_are_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=said):
        build("word-vectors", file=str(tmp_path / "a.npz"))


def test_pickled_arrays_are_refused(tmp_path):
    words = np.array(["a", None], dtype=object)
    np.savez(tmp_path / "a.npz", words=words, vectors=np.ones((2, 3)))
    with pytest.raises(ValueError, match="pickled objects, which are not opened"):
        build("word-vectors", file=str(tmp_path / "a.npz"))


def test_a_clip_without_words_is_empty(file):
    with pytest.raises(BadClipError, match="empty: the transcript has no words"):
        feature(build("word-vectors", file=str(file)))


def test_a_large_file_is_held_by_places_alone(tmp_path):
    rows = (f"w{number} {number} 1\n" for number in range(20_000))
    (tmp_path / "a.txt").write_text("".join(rows))
    vectors = Vectors(tmp_path / "a.txt")
    for number in (0, 1, 777, 19_999):
        assert vectors.of(f"w{number}").tolist() == [number, 1]
    assert sum(array.nbytes for array in vectors._index) == 16 * 20_000
