"""Text encoders give what transformers gives by hand, pieces and words made of them."""

import numpy as np
import pytest
import torch

from featurizers.catalog import build
from featurizers.clip import BadClipError, Clip, Word
from featurizers.spec import check_feature
from featurizers.text_encoder import Text, piece_times, pooled
from featurizers.torch_encoder import ATOL
from tests import checkpoints
from tests.checkpoints import TEXT

CLOSE = 2e-5  # float32 on one machine
SPOKEN = "Good unbelievable day, it's sooo bad -- it"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    for kind in TEXT:
        checkpoints.text(root / kind, kind)
    return {kind: root / kind for kind in TEXT}


def words_of(text):
    return tuple(
        Word(text=word, start=float(at), end=at + 0.8) for at, word in enumerate(text.split(" "))
    )


def pending(featurizer, words):
    clip = Clip(key="a", id="a", media="", media_digest="", words=words)
    return featurizer.begin(clip).finish()


def feature(featurizer, words):
    waiting = pending(featurizer, words)
    made = waiting.assemble([featurizer.encoder.encode([item])[0] for item in waiting.items])
    check_feature(featurizer.spec, made)
    return made


def by_hand(folder, text):
    """States of the pieces of a text, special ones left out, by layer; characters of the pieces."""
    import transformers as hf

    tokens = hf.AutoTokenizer.from_pretrained(folder)(
        text, return_tensors="pt", return_offsets_mapping=True, return_special_tokens_mask=True
    )
    model = hf.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        output = model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            output_hidden_states=True,
        )
    keep = tokens.special_tokens_mask[0] == 0
    states = [each[0][keep].numpy() for each in (*output.hidden_states, output.last_hidden_state)]
    return states, tokens.offset_mapping[0][keep].tolist()


@pytest.mark.parametrize("kind", TEXT)
def test_pieces_are_those_of_transformers_by_hand(folders, kind):
    states, offsets = by_hand(folders[kind], SPOKEN)
    for layers, wanted in [("last", states[-1]), (1, states[1]), ("mean", sum(states[1:4]) / 3)]:
        featurizer = build("text-encoder", model=str(folders[kind]), unit="pieces", layers=layers)
        made = feature(featurizer, words_of(SPOKEN))
        assert made.values.shape == (len(offsets), 32)
        np.testing.assert_allclose(made.values, wanted, atol=CLOSE)


@pytest.mark.parametrize("kind", TEXT)
@pytest.mark.parametrize("pool", ["mean", "first", "last"])
def test_words_are_made_of_the_pieces_that_share_their_characters(folders, kind, pool):
    states, offsets = by_hand(folders[kind], SPOKEN)
    wanted, begin = [], 0
    for word in SPOKEN.split(" "):
        end = begin + len(word)
        mine = [
            state
            for state, (a, b) in zip(states[-1], offsets, strict=True)
            if any(begin <= char < end for char in range(a, b))
        ]
        wanted.append({"mean": np.mean(mine, axis=0), "first": mine[0], "last": mine[-1]}[pool])
        begin = end + 1
    made = feature(build("text-encoder", model=str(folders[kind]), pool=pool), words_of(SPOKEN))
    np.testing.assert_allclose(made.values, wanted, atol=CLOSE)
    assert made.times.tolist() == [[w.start, w.end] for w in words_of(SPOKEN)]


def test_some_word_has_several_pieces(folders):
    """Or the tests above would say nothing about pooling."""
    pieces = build("text-encoder", model=str(folders["bert"]), unit="pieces")
    assert len(feature(pieces, words_of(SPOKEN)).values) == 2 * 8


@pytest.mark.parametrize("kind", TEXT)
def test_a_clip_does_not_depend_on_its_neighbours_in_the_batch(folders, kind):
    featurizer = build("text-encoder", model=str(folders[kind]))
    texts = ["good day", SPOKEN, "it", "so bad it s so bad", "really good day", "day good"]
    items = [pending(featurizer, words_of(text)).items[0] for text in texts]
    for item, encoded in zip(items, featurizer.encoder.encode(items), strict=True):
        np.testing.assert_allclose(encoded, featurizer.encoder.encode([item])[0], atol=CLOSE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_keeps_its_promise_beside_neighbours(folders, dtype):
    featurizer = build("text-encoder", model=str(folders["bert"]), dtype=dtype)
    items = [pending(featurizer, words_of(text)).items[0] for text in ("so so so", "it s bad")]
    for item, encoded in zip(items, featurizer.encoder.encode(items), strict=True):
        alone = featurizer.encoder.encode([item])[0]
        np.testing.assert_allclose(encoded, alone, atol=ATOL[dtype])


@pytest.mark.parametrize("kind", TEXT)
def test_a_long_transcript_is_cut_into_windows_that_the_model_takes(folders, kind):
    featurizer = build("text-encoder", model=str(folders[kind]))
    words = words_of(" ".join(["so it really good unbelievable bad"] * 20))
    waiting = pending(featurizer, words)
    assert len(waiting.items) > 2
    assert max(map(len, waiting.items)) == (
        66 if kind not in {"roberta", "xlm-roberta", "mpnet"} else 64
    )
    made = feature(featurizer, words)
    assert len(made.values) == len(words)
    assert np.isfinite(made.values).all()
    # The first words do not know of the cut.
    alone = featurizer.encoder.encode([waiting.items[0]])[0]
    np.testing.assert_allclose(
        made.values[0],
        alone[1:3].mean(axis=0) if kind in {"roberta", "modernbert"} else alone[1],
        atol=CLOSE,
    )


def test_of_a_window_the_pieces_near_its_inner_ends_are_left_out(folders):
    featurizer = build("text-encoder", model=str(folders["bert"]), unit="pieces", window=32)
    words = words_of(" ".join(["so it good bad really day s"] * 12))
    made, items = feature(featurizer, words).values, pending(featurizer, words).items
    assert len(made) == 84
    # 30 pieces and two special ones at a time, of which 3 at each inner end are context.
    for number, (first, begin, end) in enumerate(
        [(0, 0, 27), (24, 3, 27), (48, 3, 27), (72, 3, 12)]
    ):
        states = featurizer.encoder.encode([items[number]])[0][1:-1]
        np.testing.assert_allclose(made[first + begin : first + end], states[begin:end], atol=CLOSE)
    assert len(items) == 4


def test_a_smaller_window_is_another_feature(folders):
    wide, narrow = (
        build("text-encoder", model=str(folders["bert"]), window=each) for each in (512, 32)
    )
    words = words_of(" ".join(["so it is good"] * 20))
    assert wide.spec.fingerprint != narrow.spec.fingerprint
    assert max(len(item) for item in pending(narrow, words).items) == 32


def test_a_word_without_pieces_is_zero_and_never_nan(folders):
    featurizer = build("text-encoder", model=str(folders["bert"]))
    words = tuple(
        Word(text=text, start=float(at), end=at + 0.5)
        for at, text in enumerate(["good", "\x01", "", "bad"])
    )
    made = feature(featurizer, words)
    assert (made.values[1:3] == 0).all()
    assert (np.abs(made.values[[0, 3]]).max(axis=1) > 0.01).all()
    pieces = feature(build("text-encoder", model=str(folders["bert"]), unit="pieces"), words)
    assert pieces.times.tolist() == [[0.0, 0.5], [3.0, 3.5]]


@pytest.mark.parametrize("words", [(), (Word(text="\x01", start=0, end=1),)])
def test_a_transcript_without_pieces_is_empty(folders, words):
    with pytest.raises(BadClipError, match="empty: the transcript has no words that the tokenizer"):
        pending(build("text-encoder", model=str(folders["bert"])), words)


def test_pieces_share_the_time_of_their_word():
    words = (Word(text="abcd", start=1.0, end=3.0), Word(text="ef", start=4.0, end=5.0))
    text = Text([0, 5], [4, 7], [7, 8, 9, 9], [(0, 1), (1, 4), (4, 6), (6, 7)])
    assert piece_times(text, words).tolist() == [[1, 1.5], [1.5, 3], [4, 4.5], [4.5, 5]]


def test_a_piece_over_two_words_belongs_to_both():
    text = Text([0, 3], [2, 5], [1, 2], [(0, 4), (4, 5)])
    states = np.array([[1.0], [3.0]], np.float32)
    assert pooled(states, text, "mean").tolist() == [[1.0], [2.0]]
    assert pooled(states, text, "last").tolist() == [[1.0], [3.0]]


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_times_of_pieces_lie_in_their_words_and_rise(folders, kind):
    made = feature(build("text-encoder", model=str(folders[kind]), unit="pieces"), words_of(SPOKEN))
    assert (made.times[:, 0] <= made.times[:, 1]).all()
    assert (np.diff(made.times, axis=0) >= 0).all()
    inside = made.times - np.floor(made.times[:, :1])
    assert inside.max() <= 0.8 + 1e-9


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("unit", "letters", "unit is 'letters'; wanted words, pieces"),
        ("pool", "max", "pool is 'max'; wanted mean, first, last"),
        ("window", 8, "window is 8; wanted 32 to 8192"),
    ],
)
def test_a_wrong_setting_is_refused(folders, setting, value, said):
    with pytest.raises(ValueError, match=said):
        build("text-encoder", model=str(folders["bert"]), **{setting: value})


def test_a_checkpoint_without_a_tokenizer_is_refused_with_advice(folders, tmp_path):
    own = checkpoints.copied(folders["bert"], tmp_path / "own")
    (own / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer.json; load its tokenizer once"):
        build("text-encoder", model=str(own))
