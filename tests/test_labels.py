"""One word a line: CTM, HTK's labels and GRID's alignments."""

import pytest

from featurizers.clip import BadClipError
from featurizers.labels import read_align, read_ctm, read_lab
from featurizers.texts import Text


def told(words):
    return [(word.text, round(word.start, 6), round(word.end, 6)) for word in words]


def test_of_a_ctm_the_first_alternative_is_taken_and_silence_left_out():
    body = (
        ";; a comment\n\ntalk A 0.5 0.25 <eps>\ntalk A 1.0 0.5 well 0.9 lex spk\n"
        "talk A * * <ALT_BEGIN>\ntalk A 2.0 0.5 I 1.2\ntalk A * * <ALT>\ntalk A 2.0 0.5 eye\n"
        "talk A * * <ALT_END>\ntalk B 2.5 0.5 see NA\n"
    )
    words = read_ctm(Text("other.ctm", body))
    assert told(words) == [("well", 1.0, 1.5), ("I", 2.0, 2.5), ("see", 2.5, 3.0)]
    assert [word.confidence for word in words] == [0.9, None, None]
    assert read_ctm(Text("a.ctm", "")) == []


def test_of_a_ctm_of_several_recordings_the_one_that_is_called_like_the_file_is_taken():
    body = "one 1 0 1 so\ntwo 1 0 1 it\none 1 1 1 goes\n"
    assert told(read_ctm(Text("one.ctm", body))) == [("so", 0, 1), ("goes", 1, 2)]
    with pytest.raises(BadClipError, match=r"all\.ctm: tells of 2 recordings \(one, two \.\.\.\)"):
        read_ctm(Text("all.ctm", body))


@pytest.mark.parametrize(
    ("read", "body", "message"),
    [
        (read_ctm, "a 1 0.5 0.5 so\na 1 0.5\n", "line 2: found 'a 1 0.5'; wanted 'RECORDING CH"),
        (read_ctm, "a 1 soon 0.5 so\n", "line 1: 'soon' is no time; wanted 'RECORDING CHANNEL"),
        (read_align, "0 100 sil\n100 200\n", "line 2: found '100 200'; wanted 'START END WORD'"),
        (read_align, "0 nan sil\n", "line 1: 'nan' is no time"),
        (
            read_lab,
            "0 100 a\n\nso it goes\n",
            "line 3: found 'so it goes'; wanted 'START END LABEL'",
        ),
    ],
)
def test_what_is_wrong_is_told_by_line(read, body, message):
    with pytest.raises(BadClipError, match=message) as caught:
        read(Text("a.x", body))
    assert caught.value.fault == "bad_transcript"
    assert caught.value.message.startswith("a.x: ")


def test_grid_counts_in_thousandths_of_a_frame():
    body = "0 12250 sil\r\n12250 19250 set\r\n\n19250 27250 white\n27250 30500 sp\n"
    assert told(read_align(Text("a.align", body))) == [("set", 0.49, 0.77), ("white", 0.77, 1.09)]


def test_labels_of_words_have_their_times_in_units_of_100_ns():
    body = "0 1000000 sil\n1000000 5000000 so -12.5\n5000000 9000000 what\n///\n0 9000000 sowhat\n"
    assert told(read_lab(Text("a.lab", body))) == [("so", 0.1, 0.5), ("what", 0.5, 0.9)]


def test_labels_of_sounds_give_the_words_that_they_name():
    body = (
        "0 1000000 sil -1 SENT-START -1\n1000000 2000000 s -3.5 so -9\n2000000 3000000 ow -1\n"
        "3000000 4000000 sp -1\n4000000 5000000 w -1 what\n5000000 6000000 t\n"
    )
    found = told(read_lab(Text("a.lab", body)))
    assert found == [("so", 0.1, 0.3), ("what", 0.4, 0.6)]


def test_labels_in_seconds_may_be_of_several_words():
    words = read_lab(Text("a.lab", "0.5\t1.0\tso\n1\t2.0\tit goes\n"))
    assert told(words) == [("so", 0.5, 1.0), ("it", 1.0, 1.375), ("goes", 1.375, 2.0)]
    assert [word.estimated for word in words] == [False, True, True]


@pytest.mark.parametrize("body", ["tyst nu\n", "", "90 years of it\n"])
def test_labels_without_times_are_a_bare_text(body):
    assert read_lab(Text("a.lab", body)) == body
