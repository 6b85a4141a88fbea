"""Whisper's tokens to words with times."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from featurizers.encoding import EncoderMemoryError
from featurizers.pretrained import MissingWeightsError
from featurizers.whisper import Recogniser, elected, told
from tests import checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper") / "small"
    checkpoints.recogniser(folder)
    return folder


@pytest.fixture(scope="module")
def encode(checkpoint):
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    return (
        lambda text: tokenizer.encode(text).ids,
        lambda tokens: tokenizer.decode(list(tokens), skip_special_tokens=False),
    )


SOUNDS = [checkpoints.hum(1.5, 0), checkpoints.hum(2.0, 1), checkpoints.hum(0.4, 2)]


# Tokens to words


def words(encode, text, spaced=True):
    tokens, decode = encode[0](text), encode[1]
    times = [number / 10 for number in range(len(tokens) + 1)]
    chosen = [number / 100 for number in range(len(tokens))]
    return [
        (w.text, w.start, w.end, w.probability) for w in told(tokens, times, chosen, decode, spaced)
    ]


def test_a_word_begins_with_a_space_and_takes_the_mean_of_its_tokens(encode):
    assert words(encode, " so it goes") == [
        ("so", 0.0, 0.1, 0.0),
        ("it", 0.1, 0.2, pytest.approx(0.01)),
        ("goes", 0.2, 0.4, pytest.approx(0.025)),
    ]


def test_marks_belong_to_the_word_before_them_and_letters_of_several_tokens_stay_whole(encode):
    assert [each[0] for each in words(encode, " só, it - goes!")] == ["só,", "it -", "goes!"]


def test_without_spaces_each_character_is_a_word(encode):
    assert [each[0] for each in words(encode, "日本。語", spaced=False)] == ["日", "本。", "語"]


def test_a_word_whose_end_is_not_known_has_none(encode):
    tokens, decode = encode[0](" so it"), encode[1]
    spoken = told(tokens, [0.1, 0.5, 0.5], [1.0, 1.0], decode, spaced=True)
    assert [(word.start, word.end) for word in spoken] == [(0.1, 0.5), (0.5, None)]


def test_a_torn_character_at_the_end_is_left_out(encode):
    tokens, decode = encode[0](" soé")[:-1], encode[1]
    (word,) = told(tokens, [0.0, 0.1, 0.2], [1.0, 1.0], decode, spaced=True)
    assert word.text == "so"


# The model


def test_words_have_the_times_that_transformers_gives(checkpoint, encode):
    import transformers

    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        checkpoint, attn_implementation="eager"
    )
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(checkpoint)
    recogniser = Recogniser(model=str(checkpoint))
    for sound, spoken in zip(SOUNDS, recogniser.words_of(SOUNDS, "en"), strict=True):
        mel = extractor(
            [sound.astype(np.float32) / 32768],
            sampling_rate=16_000,
            return_tensors="pt",
            return_attention_mask=True,
        )
        output = model.generate(
            mel.input_features,
            attention_mask=mel.attention_mask,
            language="en",
            task="transcribe",
            return_token_timestamps=True,
            return_dict_in_generate=True,
        )
        begin = output["sequences"].shape[1] - len(output["scores"])
        tokens = output["sequences"][0, begin:].tolist()
        shares = torch.stack(output["scores"])[:, 0].softmax(-1).max(-1).values.tolist()
        times = [*output["token_timestamps"][0, begin:].tolist(), len(sound) / 16_000]
        by_hand = told(tokens, times, shares, encode[1], spaced=True)
        assert [(w.text, w.start, w.end) for w in spoken] == [
            (w.text, w.start, w.end) for w in by_hand
        ]
        assert spoken
        assert [w.probability for w in spoken] == pytest.approx(
            [w.probability for w in by_hand], abs=1e-4
        )


def test_words_do_not_depend_on_the_sounds_beside_theirs(checkpoint):
    recogniser = Recogniser(model=str(checkpoint))
    together = recogniser.words_of(SOUNDS * 2, "de")
    alone = [recogniser.words_of([sound], "de")[0] for sound in SOUNDS]
    for one, other in zip(together, alone * 2, strict=True):
        assert [(w.text, w.start, w.end) for w in one] == [(w.text, w.start, w.end) for w in other]


def narrow(monkeypatch, recogniser, room):
    """A recogniser that has room for so many pieces; tells how many it was given."""
    sizes, mel = [], recogniser._mel

    def tight(sounds):
        sizes.append(len(sounds))
        if len(sounds) > room:
            raise torch.OutOfMemoryError("no room")
        return mel(sounds)

    monkeypatch.setattr(recogniser, "_mel", tight)
    return sizes


def test_fewer_pieces_are_heard_at_once_from_when_memory_ran_out(checkpoint, monkeypatch):
    wanted = Recogniser(model=str(checkpoint)).words_of(SOUNDS * 2, "de")
    recogniser = Recogniser(model=str(checkpoint))
    sizes = narrow(monkeypatch, recogniser, 2)
    said = recogniser.words_of(SOUNDS * 2, "de")
    assert sizes == [4, 2, 2, 2]
    for one, other in zip(said, wanted, strict=True):
        assert [(w.text, w.start, w.end) for w in one] == [(w.text, w.start, w.end) for w in other]
    recogniser.language_of(SOUNDS)  # the next film knows
    assert sizes[4:] == [2, 1]


def test_memory_that_is_too_small_for_one_piece_is_told(checkpoint, monkeypatch):
    recogniser = Recogniser(model=str(checkpoint))
    narrow(monkeypatch, recogniser, 0)
    with pytest.raises(EncoderMemoryError, match="transcribe ran out of memory with one piece"):
        recogniser.words_of(SOUNDS, "de")


def test_the_language_is_that_of_most_pieces_unless_it_is_given(checkpoint, tmp_path):
    recogniser = Recogniser(model=str(checkpoint))
    each = [recogniser.language_of([sound]) for sound in SOUNDS]
    assert recogniser.language_of(SOUNDS) == elected(each)
    assert elected(["en", "de", "ja", "de"]) == "de"
    assert elected(["ja", "en", "ja", "en"]) == "en"
    assert Recogniser(model=str(checkpoint), language="ja").language_of(SOUNDS) == "ja"
    checkpoints.recogniser(tmp_path, is_multilingual=False)
    assert Recogniser(model=str(tmp_path)).language_of(SOUNDS) == ""


@pytest.mark.parametrize(
    ("generation", "given", "said"),
    [
        ({"alignment_heads": None}, {}, "names no alignment_heads"),
        ({}, {"language": "fr"}, "does not know the language 'fr'; it knows de, en, ja"),
        ({}, {"dtype": "int8"}, "dtype is 'int8'"),
        ({}, {"weights": "0" * 64}, "wanted are 0000"),
    ],
)
def test_a_checkpoint_that_will_not_do_is_told(tmp_path, generation, given, said):
    checkpoints.recogniser(tmp_path, **generation)
    with pytest.raises(ValueError, match=said):
        Recogniser(model=str(tmp_path), **given)


def test_a_checkpoint_that_is_not_whole_is_told(tmp_path):
    checkpoints.recogniser(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(MissingWeightsError, match="has no generation_config"):
        Recogniser(model=str(tmp_path))
