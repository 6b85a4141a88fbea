"""The files of a corpus: links, hidden files, pointers, odd names, and old characters."""

import os

import pytest

from pipelines.corpora.reading import Note
from pipelines.corpora.tree import text_of, tree
from pipelines.corpus import NOTES, add_notes, write_notes
from pipelines.experiment import InputError, parse
from pipelines.sources import read_rows
from tests.corpora_maker import POINTER, put


def test_links_are_followed_and_circles_are_not(tmp_path):
    put(tmp_path / "elsewhere", "b.mp4")
    put(tmp_path / "corpus", "sub/a.mp4")
    (tmp_path / "corpus/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus/sub/round").symlink_to(tmp_path / "corpus")
    found = tree(tmp_path / "corpus")
    assert [str(name) for name in found.names] == ["linked/b.mp4", "sub/a.mp4"]


def test_hidden_files_and_those_of_macos_are_left_out(tmp_path):
    put(tmp_path, "a.mp4", "._a.mp4", ".git/b.mp4", "__MACOSX/c.mp4")
    assert [str(name) for name in tree(tmp_path).names] == ["a.mp4"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (POINTER, "pointer"),
        (b"/annex/objects/MD5E-s1--d41d8cd98f00b204.wav\n", "pointer"),
        (b"version https", None),
        (POINTER + bytes(2000), None),  # far too large for a pointer
    ],
)
def test_the_first_bytes_tell_what_is_no_file(tmp_path, content, kind):
    put(tmp_path, "a.wav", content=content)
    found = tree(tmp_path)
    assert found.state(found.names[0]) == kind


def test_a_link_to_nothing_is_missing(tmp_path):
    (tmp_path / "a.wav").symlink_to(tmp_path / "gone")
    found = tree(tmp_path)
    assert found.state(found.names[0]) == "missing"


def test_two_files_of_one_kind_must_not_differ(tmp_path):
    put(tmp_path, "a/labels.csv", "b/Labels.CSV", content=b"same")
    assert str(tree(tmp_path).only("labels.csv")) == "a/labels.csv"
    put(tmp_path, "b/Labels.CSV", content=b"other")
    with pytest.raises(InputError, match=r"a/labels.csv and b/Labels.CSV differ"):
        tree(tmp_path).only("labels.csv")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"it\x92s \x85", "it\u2019s \u2026"),
        ("it\u0092s caf\u00e9".encode(), "it\u2019s caf\u00e9"),
        ("caf\u00e9 ".encode() + b"caf\xe9", "caf\u00e9 caf\u00e9"),
        (b"\xef\xbb\xbfa\r\nb", "a\r\nb"),
        (b"no \x81 such", "no \ufffd such"),
    ],
)
def test_characters_of_cp1252_are_put_right(tmp_path, content, text):
    (tmp_path / "a.txt").write_bytes(content)
    assert text_of(tmp_path / "a.txt") == text


def test_a_table_that_is_a_pointer_is_refused(tmp_path):
    put(tmp_path, "a.csv", content=POINTER)
    with pytest.raises(InputError, match="is a Git LFS pointer, not the file"):
        text_of(tmp_path / "a.csv")


def test_a_name_that_is_no_text_can_be_told_and_written_down(tmp_path):
    (tmp_path / "corpus").mkdir()
    put(tmp_path / "corpus", os.fsdecode(b"caf\xe9.mp4"))
    (found,) = tree(tmp_path / "corpus").names
    note = Note(kind="unlisted", file=str(found), message="none")
    assert str(note) == "caf\\udce9.mp4: none"
    source = {"folder": "corpus", "format": "ravdess"}
    made = parse({"dataset": "data", "source": source}, tmp_path)
    write_notes(made, [note, Note(kind="beyond", clip="a")])
    add_notes(made, [Note(kind="beyond", clip="b", message="later")])
    rows = read_rows(made.raw / NOTES)
    assert [(row["kind"], row.get("clip")) for row in rows] == [("unlisted", None), ("beyond", "b")]
