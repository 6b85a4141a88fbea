"""Transcripts in the forms that people have become words with times."""

from pathlib import Path

import pytest

from featurizers.clip import BadClipError, Word
from featurizers.transcript import FORMATS, file_and_tier, read_transcript, within


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def told(words):
    return [(word.text, round(word.start, 3), round(word.end, 3), word.estimated) for word in words]


def read(tmp_path, name, text):
    return told(read_transcript(written(tmp_path, name, text)))


VTT = """WEBVTT - made by a machine
Kind: captions

STYLE
::cue { color: red }

NOTE nobody says
this

opening
00:01.000 --> 00:01.400 align:start position:0%
<v Ann Lee>hello

NOTE nor this

00:00:01.500 --> 00:00:02.000
R&amp;B
"""


def test_a_cue_of_one_word_has_that_words_times(tmp_path):
    assert read(tmp_path, "a.vtt", VTT) == [
        ("hello", 1.0, 1.4, False),
        ("R&B", 1.5, 2.0, False),
    ]


def test_inline_times_are_the_times_of_words(tmp_path):
    text = """WEBVTT

00:00:02.000 --> 00:00:04.000
so <00:00:02.500><c.yellow> much</c><00:00:03.250><c> rain</c>

01:00:00.000 --> 01:00:01.000
late <01:00:00.250>it was
"""
    assert read(tmp_path, "a.vtt", text) == [
        ("so", 2.0, 2.5, False),
        ("much", 2.5, 3.25, False),
        ("rain", 3.25, 4.0, False),
        ("late", 3600.0, 3600.25, False),
        ("it", 3600.25, 3600.571, True),
        ("was", 3600.571, 3601.0, True),
    ]


def test_several_words_share_a_cue_by_their_length_and_are_marked(tmp_path):
    text = "1\n00:00:01,000 --> 00:00:02,000\nI saw\nyou\n"
    assert read(tmp_path, "a.srt", text) == [
        ("I", 1.0, 1.2, True),
        ("saw", 1.2, 1.6, True),
        ("you", 1.6, 2.0, True),
    ]


def test_accents_tags_and_windows_line_ends_are_understood(tmp_path):
    first = "1\r\n00:00:00,500 --> 00:00:01,000\r\n<i>Café</i>\r\n\r\n"
    text = first + "2\r\n00:00:01,000 --> 00:00:01,500\r\n{\\an8}déjà\r\n"
    found = read(tmp_path, "a.srt", text)
    assert found == [("Café", 0.5, 1.0, False), ("déjà", 1.0, 1.5, False)]


@pytest.mark.parametrize("name", ["a.srt", "A.VTT"])
def test_a_byte_order_mark_is_no_word(tmp_path, name):
    text = b"\xef\xbb\xbf" + "00:00:01.000 --> 00:00:02.000\nhé\n".encode()
    assert read(tmp_path, name, text) == [("hé", 1.0, 2.0, False)]


def test_cues_out_of_order_come_in_order_of_time(tmp_path):
    text = "00:05.000 --> 00:06.000\nb\n\n00:01.000 --> 00:02.000\na\n"
    assert [word.text for word in read_transcript(written(tmp_path, "a.vtt", text))] == ["a", "b"]


def test_a_cue_that_says_nothing_gives_no_word(tmp_path):
    text = "WEBVTT\n\n00:01.000 --> 00:02.000\n\n00:02.000 --> 00:03.000\n<c></c>\n"
    assert read(tmp_path, "a.vtt", text) == []


@pytest.mark.parametrize(("name", "text"), [("a.srt", ""), ("a.vtt", "WEBVTT\n"), ("a.vtt", "")])
def test_an_empty_file_has_no_words(tmp_path, name, text):
    assert read_transcript(written(tmp_path, name, text)) == ()


def test_a_plain_text_has_no_times(tmp_path):
    assert read_transcript(written(tmp_path, "a.txt", "So it goes.\n")) == "So it goes.\n"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.srt", "no times at all\n", "no cue with times"),
        ("a.srt", "1\n00:00:01 -> 2\nhello\n", "no cue with times"),
        ("a.srt", "1\n1.5 --> 2.5\nhello\n", "wanted 'HH:MM:SS.mmm"),
        ("a.srt", "0:01.000 --> 0:02.000\na\n0:02.000 --> 0:03.000\nb\n", "after an empty line"),
        ("a.srt", b"\xff\xfe\x00", "not utf-16 at byte 2; save it as UTF-8"),
        ("a.txt", b"a\x00\x00\x00b\x00\n\x00", "line 1: holds NUL characters, so it is no text"),
        ("a.docx", b"PK", "wanted one of .textgrid, .eaf, .ctm, .align, .json, .lab, .vtt, .srt"),
        ("a.ctm", "a 1 0 1 so\na 1 1e400 1 it\n", "word 'it' lies at inf s to inf s"),
        ("a", b"", "wanted one of"),
    ],
)
def test_what_cannot_be_read_is_said_with_the_files_name(tmp_path, name, content, reason):
    path = written(tmp_path, name, content)
    with pytest.raises(BadClipError, match=reason) as caught:
        read_transcript(path)
    assert caught.value.fault == "bad_transcript"
    assert f"{path.name}:" in caught.value.message


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_missing_file_and_a_folder_are_bad_transcripts(tmp_path, suffix):
    (tmp_path / f"folder{suffix}").mkdir()
    for name in ("folder", "nothing"):
        with pytest.raises(BadClipError, match=name) as caught:
            read_transcript(tmp_path / f"{name}{suffix}")
        assert caught.value.fault == "bad_transcript"


def word(text, start, end):
    return Word(text=text, start=start, end=end, confidence=0.5)


def test_a_span_takes_the_words_whose_middle_lies_in_it_on_its_own_clock():
    words = [word("before", 0.0, 1.0), word("in", 1.9, 2.3), word("cut", 3.8, 4.1)]
    found = within([*words, word("after", 4.0, 5.0)], 2.0, 4.0)
    assert told(found) == [("in", 0.0, 0.3, False), ("cut", 1.8, 2.0, False)]
    assert found[0].confidence == 0.5


def test_the_rest_of_a_file_is_a_span_too():
    found = within([word("a", 0.0, 1.0), word("b", 9.0, 9.5)], 2.0, None)
    assert told(found) == [("b", 7.0, 7.5, False)]


def test_spans_side_by_side_share_no_word():
    words = [word(str(i), i / 4, i / 4 + 0.25) for i in range(40)]
    parts = [within(words, start, start + 1.1) for start in (0.0, 1.1, 2.2, 3.3)]
    said = [one.text for part in parts for one in part]
    assert said == [str(i) for i in range(len(said))]


NARROW = {
    "cp1252": "Ça va, où êtes-vous allés hier? Je suis allé à la plage avec mon frère et ma sœur.",
    "latin-1": "Hon är så trött på allt det där, säger han till mig, men vi åker ändå i kväll.",
    "cp1250": "Zażółć gęślą jaźń, proszę. Dzisiaj jest bardzo ładna pogoda i pójdę na spacer.",
    "cp1251": "Привет, как дела сегодня вечером? Мы с друзьями ходили в город.",  # noqa: RUF001 - as they are written
    "koi8-r": "Привет, как дела сегодня вечером? Мы с друзьями ходили в город.",  # noqa: RUF001 - as they are written
    "cp1253": "Καλημέρα, τι κάνεις σήμερα; Χθες το βράδυ πήγαμε στην πόλη με φίλους.",
    "shift_jis": "こんにちは、今日はいい天気ですね。昨日の夜は友達と街へ行きました。",
    "gb18030": "今天天气很好，我们去公园吧。昨天晚上我和朋友们一起去了城里。",  # noqa: RUF001 - as they are written
    "utf-16-le": "no mark",
    "utf-16-be": "nor here",
    "utf-32": "the mark of it",
}


@pytest.mark.parametrize("encoding", NARROW)
def test_character_sets_are_told_from_the_text(tmp_path, encoding):
    text = NARROW[encoding]
    assert read_transcript(written(tmp_path, "a.txt", text.encode(encoding))) == text
    caption = f"1\n00:00:01,000 --> 00:00:02,000\n{text}\n".encode(encoding)
    found = read_transcript(written(tmp_path, "a.srt", caption))
    assert " ".join(word.text for word in found) == text


@pytest.mark.parametrize("text", ["Café", "déjà vu", "I don’t “know”", "über"])  # noqa: RUF001 - as they are written
def test_a_text_that_is_too_short_to_tell_is_taken_for_western(tmp_path, text):
    assert read_transcript(written(tmp_path, "a.txt", text.encode("cp1252"))) == text


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(BadClipError, match=r"a\.json: 64 MiB; at most 64 are taken"):
        read_transcript(path)


def test_marks_that_stand_alone_are_no_words_but_signs_that_are_spoken_are(tmp_path):
    text = "00:01.000 --> 00:02.000\n- Rock & roll … ♪\n\n00:02.000 --> 00:03.000\n--\n"
    words = read_transcript(written(tmp_path, "a.vtt", text))
    assert [word.text for word in words] == ["Rock", "&", "roll"]


def test_words_come_in_order_and_none_lies_before_the_media_or_ends_before_it_begins(tmp_path):
    lines = ["a 1 2.0 1.0 late", "a 2 -0.5 1.0 early", "a 1 1.0 -0.5 back"]
    assert read(tmp_path, "a.ctm", "\n".join(lines)) == [
        ("early", 0.0, 0.5, False),
        ("back", 1.0, 1.0, False),
        ("late", 2.0, 3.0, False),
    ]


GRID = """File type = "ooTextFile"
Object class = "TextGrid"
0 1 <exists> 2
"IntervalTier" "words" 0 1 1 0 1 "so"
"IntervalTier" "Ann/ORT #2" 0 1 1 0 1 "it"
"""


def test_a_tier_may_be_named_after_the_file(tmp_path):
    path = written(tmp_path, "a.TextGrid", GRID)
    assert [word.text for word in read_transcript(path)] == ["so"]
    assert [word.text for word in read_transcript(Path(f"{path}#Ann/ORT #2"))] == ["it"]
    assert file_and_tier(Path(f"{path}#words")) == (path, "words")
    odd = written(tmp_path, "a.textgrid#words", "")
    assert file_and_tier(odd) == (odd, None)
    assert file_and_tier(tmp_path / "a.srt#words") == (tmp_path / "a.srt#words", None)
    with pytest.raises(BadClipError, match=r"a\.TextGrid: there is no tier 'phones'; there are"):
        read_transcript(Path(f"{path}#phones"))
