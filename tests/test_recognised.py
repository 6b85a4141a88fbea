"""What recognisers write as JSON."""

import json

import pytest

from featurizers.clip import BadClipError
from featurizers.recognised import read_recognised
from featurizers.texts import Text


def read(document):
    return read_recognised(Text("a.json", json.dumps(document)))


def told(document):
    return [(word.text, word.start, word.end, word.estimated) for word in read(document)]


def test_words_that_were_not_aligned_lie_between_their_neighbours():
    words = [
        {"word": "in"},
        {"word": "2014", "start": 2.0, "end": 2.5, "score": 0.7},
        {"word": "we"},
        {"word": "had"},
        {"word": "it", "start": 3.2},
        {"word": "all"},
    ]
    document = {"segments": [{"start": 1.0, "end": 5.0, "text": "", "words": words}]}
    assert told(document) == [
        ("in", 1.0, 2.0, True),
        ("2014", 2.0, 2.5, False),
        ("we", 2.5, pytest.approx(2.8), True),
        ("had", pytest.approx(2.8), pytest.approx(3.2), True),
        ("it", 3.2, 5.0, True),
        ("all", 5.0, 5.0, True),
    ]
    assert [word.confidence for word in read(document)] == [None, 0.7, None, None, None, None]
    del document["segments"][0]["start"]
    assert told(document)[0] == ("in", 2.0, 2.0, True)
    del document["segments"][0]["end"]
    assert told(document)[-2:] == [
        ("it", 3.2, pytest.approx(3.6), True),
        ("all", pytest.approx(3.6), pytest.approx(4.0), True),
    ]


def test_segments_without_words_share_their_span():
    document = [{"start": 0, "end": 2, "text": " so so ", "words": []}, {"text": " "}]
    assert told(document) == [("so", 0.0, 1.0, True), ("so", 1.0, 2.0, True)]
    chunks = {"chunks": [{"text": " well", "timestamp": [1.0, None]}]}
    assert told(chunks) == [("well", 1.0, 1.4, True)]
    assert told({"segments": []}) == []


@pytest.mark.parametrize("sure", [1.5, -0.1, True, "0.5", None, float("1e300")])
def test_a_confidence_that_is_no_share_is_none(sure):
    word = {"word": "so", "start": 2, "end": 1, "probability": sure}
    (found,) = read({"segments": [{"words": [word]}]})
    assert (found.confidence, found.start, found.end) == (None, 2.0, 2.0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{\n", "a.json: line 2: no JSON: "),
        ("[NaN]", "a.json: no JSON: NaN is no number"),
        ("[" * 100_000, "a.json: no JSON: "),
        ("9" * 5000, "a.json: no JSON: "),
        ("3", "no transcript: wanted a list called segments, chunks or transcription, found int"),
        ('{"frames": [], "fps": 5}', "transcription, found frames, fps"),
        ('{"segments": {}}', "transcription, found segments"),
        ("[1]", r"\[0\] is no object"),
        ('{"chunks": [{"text": 1}]}', r"chunks\[0\]: wanted a text"),
        ('[{"text": "", "words": {}}]', r"\[0\]: wanted a text, and its words in a list"),
        ('[{"text": "so", "start": "now"}]', r"\[0\]: 'now' is no time; wanted seconds"),
        ('[{"text": "so", "start": -1}]', r"\[0\]: '-1' is no time"),
        ('[{"text": "so", "start": 1e400}]', r"\[0\]: 'inf' is no time"),
        ('[{"words": [{"word": "a"}, 3]}]', r"\[0\]\.words\[1\] is no object"),
        ('[{"text": "so"}]', r"\[0\]: neither it nor its words have times"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(body, message):
    with pytest.raises(BadClipError, match=message) as caught:
        read_recognised(Text("a.json", body))
    assert caught.value.fault == "bad_transcript"
    assert caught.value.message.startswith("a.json: ")
    assert len(caught.value.message) < 200
