"""Numbers of word pieces: what the tokenizer says, with the times of their words."""

import numpy as np
import pytest

from featurizers.catalog import build, from_spec
from featurizers.clip import BadClipError, Clip, Word
from featurizers.pretrained import MissingWeightsError
from tests import checkpoints

WORDS = (
    Word(text="So", start=0.0, end=0.4),
    Word(text="unbelievable,", start=0.5, end=1.8),
    Word(text="day", start=2.0, end=2.5),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    for kind in ("bert", "roberta"):
        (folder / kind).mkdir()
    checkpoints.word_pieces(folder / "bert", "bert")
    checkpoints.byte_pieces(folder / "roberta", "roberta")
    return folder


def clip(words):
    return Clip(key="a", id="a", media="", media_digest="", words=words, seconds=3.0)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_pieces_are_the_tokenizer_s_with_what_stands_around_a_text(folders, kind):
    from tokenizers import Tokenizer

    made = build("word-pieces", model=str(folders / kind)).begin(clip(WORDS)).finish()
    tokenizer = Tokenizer.from_file(str(folders / kind / "tokenizer.json"))
    wanted = tokenizer.encode("So unbelievable, day").ids
    assert made.values[:, 0].tolist() == wanted
    assert made.times[0].tolist() == [0.0, 0.0]
    assert made.times[-1].tolist() == [2.5, 2.5]
    assert made.times[1, 0] == 0.0
    assert made.times[-2, 1] == 2.5
    assert (np.diff(made.times, axis=1) >= 0).all()


def test_a_clip_without_words_has_no_pieces(folders):
    with pytest.raises(BadClipError, match="no words"):
        build("word-pieces", model=str(folders / "bert")).begin(clip(())).finish()


def test_the_tokenizer_alone_decides_and_is_found_by_its_digest(folders, tmp_path, monkeypatch):
    spec = build("word-pieces", model=str(folders / "bert")).spec
    assert spec.atol is None
    assert build("word-pieces", model=str(folders / "bert" / "tokenizer.json")).spec == spec
    assert build("word-pieces", model=str(folders / "roberta")).spec.digest != spec.digest
    plain = type(spec).from_json(spec.to_json())
    with pytest.raises(MissingWeightsError, match=f"{spec.fingerprint} cannot be computed"):
        from_spec(plain)
    monkeypatch.setenv("FUSELINE_WEIGHTS", str(folders))
    assert from_spec(plain).spec == spec


def test_another_tokenizer_under_the_same_path_is_refused(folders):
    spec = build("word-pieces", model=str(folders / "bert")).spec
    with pytest.raises(ValueError, match="has the sha256"):
        build("word-pieces", model=str(folders / "roberta"), weights=spec.weights)
