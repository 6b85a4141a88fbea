"""Keys of clips: legal for every WebDataset reader, and never two ids with one key."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurizers.clip import FAULTS, BadClipError, key_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
TRICKY = st.text("ax_.5f2é/ -", min_size=1, max_size=8)


def id_of(key):
    """Undo `key_of`: read escapes from left to right."""
    pieces = re.findall(r"((?:_x[0-9a-f]{2})+)|(.)", key)
    return "".join(
        bytes.fromhex(escapes.replace("_x", "")).decode() if escapes else char
        for escapes, char in pieces
    )


@given(TEXT | TRICKY)
@example("_x2e")
@example("__a")
@example("_é")
@example("_")
@example("a__x5f")
def test_an_id_can_be_read_back_from_its_key(clip_id):
    assert id_of(key_of(clip_id)) == clip_id


@given(TEXT | TRICKY)
def test_a_key_holds_only_what_readers_keep(clip_id):
    key = key_of(clip_id)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", key)
    assert not key.startswith("__")


@given(TRICKY, TRICKY)
def test_different_ids_have_different_keys(one, other):
    assert (key_of(one) == key_of(other)) == (one == other)


@pytest.mark.parametrize("clip_id", ["a", "Clip-01_b", "s1_bbaf2n", "_a", "a__b", "-"])
def test_a_legal_id_stays_as_it_is(clip_id):
    assert key_of(clip_id) == clip_id


@pytest.mark.parametrize(
    ("clip_id", "key"), [("a.b", "a_x2eb"), ("é", "_xc3_xa9"), ("a b", "a_x20b")]
)
def test_what_is_not_legal_becomes_its_bytes(clip_id, key):
    assert key_of(clip_id) == key


def test_a_bad_clip_says_its_fault_and_its_reason():
    bad = BadClipError("too_long", "900 s")
    assert (bad.fault, bad.message, str(bad)) == ("too_long", "900 s", "too_long: 900 s")
    assert len(FAULTS) == len(set(FAULTS))
