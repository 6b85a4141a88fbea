"""Captions that roll are told once, and nothing else is dropped."""

import pytest

from featurizers.captions import read_captions
from featurizers.texts import Text


def read(body, name="a.vtt"):
    words = read_captions(Text(name, body))
    return [(word.text, round(word.start, 3), round(word.end, 3), word.estimated) for word in words]


def said(body, name="a.vtt"):
    return [word[0] for word in read(body, name)]


# As YouTube serves what its recogniser heard: two lines, of which the upper one repeats;
# "~" stands for a line of one space.
ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:00.080 --> 00:00:02.000 align:start position:0%
~
so<00:00:00.400><c> it</c><00:00:00.640><c> goes</c>

00:00:02.000 --> 00:00:02.010 align:start position:0%
so it goes
~

00:00:02.010 --> 00:00:04.000 align:start position:0%
so it goes
and<00:00:02.500><c> on</c><00:00:03.000><c> and</c><00:00:03.500><c> on</c>

00:00:04.000 --> 00:00:04.010 align:start position:0%
and on and on
~

00:00:04.010 --> 00:00:06.000 align:start position:0%
and on and on
for<00:00:04.500><c> ever</c>
""".replace("~", " ")


def test_rolling_captions_are_told_once_with_their_inline_times():
    assert read(ROLLING) == [
        ("so", 0.08, 0.4, False),
        ("it", 0.4, 0.64, False),
        ("goes", 0.64, 2.0, False),
        ("and", 2.01, 2.5, False),
        ("on", 2.5, 3.0, False),
        ("and", 3.0, 3.5, False),
        ("on", 3.5, 4.0, False),
        ("for", 4.01, 4.5, False),
        ("ever", 4.5, 6.0, False),
    ]


def test_rolling_captions_that_were_made_subrip_are_told_once():
    lines = ["so it goes", "and on and on", "for ever", "and ever"]
    cues, at = [], 0
    for above, line in zip(["", *lines], lines, strict=False):
        cues.append((at, at + 2000, f"{above}\n{line}".strip()))
        cues.append((at + 2000, at + 2010, f"{line}\n "))
        at += 2010
    body = "\n".join(
        f"{number}\n00:00:{start / 1000:06.3f} --> 00:00:{end / 1000:06.3f}\n{text}\n"
        for number, (start, end, text) in enumerate(cues, start=1)
    )
    assert said(body, "a.srt") == " ".join(lines).split()


def test_captions_that_grow_word_by_word_are_told_once():
    words = ["this", "is", "what", "they", "say", "live"]
    body = "WEBVTT\n\n" + "\n".join(
        f"00:0{number}.000 --> 00:0{number + 1}.000\n{' '.join(words[: number + 1])}\n"
        for number in range(len(words))
    )
    found = read(body)
    assert [word[0] for word in found] == words
    assert [word[1] for word in found] == [0, 1, 2, 3, 4, 5]


def cues(*texts, gap=0):
    return "WEBVTT\n\n" + "\n".join(
        f"00:{number * (1 + gap):02d}.000 --> 00:{number * (1 + gap) + 1:02d}.000\n{text}\n"
        for number, text in enumerate(texts)
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (cues("No.", "No.", "No."), "No. No. No."),  # nothing is ever added
        (cues("Well", "Go", "Go on", "or not", "as you"), "Well Go Go on or not as you"),  # chance
        (cues("Go", "Go on", gap=1), "Go Go on"),  # the screen was empty between them
    ],
)
def test_what_is_said_twice_without_rolling_is_told_twice(body, words):
    assert said(body) == words.split()


def test_a_line_of_spaces_ends_no_webvtt_caption_and_an_empty_one_no_subrip_caption():
    assert said("WEBVTT\n\n00:01.000 --> 00:02.000\n \nhello\n\nnobody says this\n") == ["hello"]
    body = "1\n00:00:01,000 --> 00:00:02,000\nhello\n\nthere\n\n2\n\n"
    body += "00:00:02,000 --> 00:00:03,000\nyou\n"
    assert said(body, "a.srt") == ["hello", "there", "you"]


def test_inline_times_out_of_place_are_moved_to_where_they_may_be():
    body = "WEBVTT\n\n00:01.000 --> 00:03.000\na<00:02.000>b<00:01.500>c<00:09.000>d\n"
    assert read(body) == [
        ("a", 1.0, 2.0, False),
        ("b", 2.0, 2.0, False),
        ("c", 2.0, 3.0, False),
        ("d", 3.0, 3.0, False),
    ]


def test_a_caption_that_ends_before_it_begins_is_spoken_at_a_usual_pace():
    assert read("WEBVTT\n\n00:03.000 --> 00:02.000\nso so\n") == [
        ("so", 3.0, 3.4, True),
        ("so", 3.4, 3.8, True),
    ]


def test_fractions_of_a_second_may_have_fewer_digits_and_styles_are_not_spoken():
    body = "1\n0:00:01,5 --> 0:00:02,25\n{\\an8}{\\i1}so{\\i0} {it}\n"
    assert read(body, "a.srt") == [("so", 1.5, 1.781, True), ("{it}", 1.781, 2.25, True)]
