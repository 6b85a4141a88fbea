"""Praat's and ELAN's files: which tiers have the words, and what is wrong in which line."""

import pytest

from featurizers.clip import BadClipError
from featurizers.elan import read_elan
from featurizers.textgrid import read_textgrid
from featurizers.texts import Text
from featurizers.tiers import MOST_TIERS, Span, Tier, words_of_tiers

ANY = Text("a.TextGrid", "")


def tier(name, *labels, start=0.0, length=1.0):
    """Labels one after the other, each of them so long."""
    return Tier(
        name,
        tuple(
            Span(start + number * length, start + (number + 1) * length, label)
            for number, label in enumerate(labels)
        ),
    )


def said(*tiers, wanted=None):
    return sorted(
        (word.start, word.text, word.estimated) for word in words_of_tiers(ANY, tiers, wanted)
    )


def texts(*tiers, wanted=None):
    return [text for _, text, _ in said(*tiers, wanted=wanted)]


PHONES = tier("phones", "ai", "s", "o:", "sil", "j", "u:", length=0.5)
WORDS = tier("words", "I", "saw", "sil", "", "you")


def test_tiers_of_words_are_known_by_their_name():
    longer = tier("notes of the day", "one", "two", "three", "four", "five", "six")
    assert texts(PHONES, longer, WORDS) == ["I", "saw", "you"]
    ann, bob = tier("Ann - words", "yes", "", "so"), tier("Bob - words", "", "no")
    assert texts(tier("Ann - phones", "j", "e"), ann, bob) == ["yes", "no", "so"]
    assert texts(tier("MAU", "a", "b", "c"), tier("ORT-MAU", "ab")) == ["ab"]
    assert texts(tier("token", "b"), tier("word", "a")) == ["a"]
    assert texts(tier("token", "b"), tier("word", "", "sil")) == ["b"]


def test_else_it_is_the_tier_with_most_single_words_and_those_of_other_speakers():
    ann, bob = tier("Ann", "yes", "", "", "so"), tier("Bob", "", "no", "one")
    lemmas = tier("base", "yea", "", "", "such")
    turns = tier("turns", "she asks", "he answers", "she says")
    assert texts(turns, ann, lemmas, bob) == ["yes", "no", "one", "so"]


def test_tiers_of_sentences_are_taken_where_no_words_lie_over_them_and_their_words_share_them():
    ann, bob = tier("Ann", "I saw", ""), tier("Bob", "", "you two there", "yes")
    other = tier("fr", "je voyais", "vous deux")
    found = said(other, ann, bob)
    assert [text for _, text, _ in found] == ["I", "saw", "you", "two", "there", "yes"]
    assert [estimated for _, _, estimated in found] == [True] * 5 + [False]


def test_a_tier_that_is_asked_for_is_taken_whatever_it_is():
    assert texts(WORDS, PHONES, wanted="phones") == ["ai", "s", "o:", "j", "u:"]
    with pytest.raises(BadClipError, match=r"a\.TextGrid: there is no tier 'word'.*'words'"):
        words_of_tiers(ANY, [WORDS], "word")


def test_of_very_many_tiers_one_must_be_named():
    many = [tier(f"t{number}", "so", start=number) for number in range(MOST_TIERS + 1)]
    with pytest.raises(BadClipError, match="257 tiers; more than 256 want #NAME"):
        words_of_tiers(ANY, many, None)
    assert texts(*many, wanted="t7") == ["so"]
    assert texts(*many[1:]) == ["so"] * MOST_TIERS


def test_phones_alone_are_no_words_and_a_file_that_says_nothing_has_none():
    with pytest.raises(BadClipError, match="no tier looks like one of words; there are 'phones'"):
        words_of_tiers(ANY, [PHONES], None)
    assert texts() == []
    assert texts(tier("Ann"), tier("Bob", "", "sil")) == []


GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "item [2]: ""words"" "
        xmin = 0
        xmax = 2
        intervals: size = 2
        intervals [1]: ! a comment with "a text" and 5
            xmin = -0.5
            xmax = 1e0
            text = "intervals [9]:
 said ""so"" here"
        intervals [2]:
            xmin = 1
            xmax = 2
            text = "on"
"""


def test_what_looks_like_structure_in_a_textgrids_texts_is_text():
    (found,) = read_textgrid(Text("a.TextGrid", GRID))
    assert found.name == 'item [2]: "words" '
    assert found.spans == (
        Span(-0.5, 1.0, 'intervals [9]:\n said "so" here'),
        Span(1.0, 2.0, "on"),
    )


def test_a_textgrid_may_have_no_tiers():
    head = 'File type = "ooTextFile"\nObject class = "TextGrid"\n0\n1\n'
    assert read_textgrid(Text("a.TextGrid", f"{head}<absent>\n")) == []
    assert read_textgrid(Text("a.TextGrid", f"{head}<exists>\n0\n")) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "line 1: the file ends here, before ooTextFile"),
        ('"Praat chronological TextGrid text file"\n', "line 1: wanted 'ooTextFile'; save it"),
        (GRID.replace('"TextGrid"', '"Sound"'), "line 2: wanted 'TextGrid'"),
        (GRID.replace('"on"', '"on'), "line 23: the file ends here, before the text of entry 2"),
        (GRID.replace("size = 2", "size = 3"), "before the time of entry 3 of 3 of tier 1 of 1"),
        (GRID.replace("size = 2", "size = 2.5"), r"line 14: found 2\.5, wanted the size of"),
        (GRID.replace("xmax = 1e0", 'xmax = "1"'), "line 17: found '\"1\"', wanted the end of"),
        (GRID.replace("<exists>", "2"), "line 6: found '2', wanted <exists>"),
    ],
)
def test_what_is_wrong_with_a_textgrid_is_told_by_line(body, message):
    with pytest.raises(BadClipError, match=message) as caught:
        read_textgrid(Text("a.TextGrid", body))
    assert caught.value.fault == "bad_transcript"
    assert "a.TextGrid: line " in caught.value.message


def eaf(slots, *tiers):
    times = "".join(
        f'<TIME_SLOT TIME_SLOT_ID="{name}"' + ("/>\n" if ms is None else f' TIME_VALUE="{ms}"/>\n')
        for name, ms in slots.items()
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ANNOTATION_DOCUMENT>\n'
        '<HEADER TIME_UNITS="milliseconds"/>\n'
        f"<TIME_ORDER>\n{times}</TIME_ORDER>\n{''.join(tiers)}</ANNOTATION_DOCUMENT>\n"
    )


def xml_tier(name, *annotations):
    """Annotations are (id, slot, slot, text) or (id, parent, text)."""
    text = f'<TIER TIER_ID="{name}" LINGUISTIC_TYPE_REF="t">\n'
    for own, *refers, said in annotations:
        kind = "ALIGNABLE_ANNOTATION" if len(refers) == 2 else "REF_ANNOTATION"
        keys = ["TIME_SLOT_REF1", "TIME_SLOT_REF2"] if len(refers) == 2 else ["ANNOTATION_REF"]
        given = " ".join(f'{key}="{value}"' for key, value in zip(keys, refers, strict=True))
        text += f'<ANNOTATION><{kind} ANNOTATION_ID="{own}" {given}>'
        text += f"<ANNOTATION_VALUE>{said}</ANNOTATION_VALUE></{kind}></ANNOTATION>\n"
    return f"{text}</TIER>\n"


def test_annotations_of_elan_without_times_divide_the_one_that_they_belong_to():
    tiers = read_elan(
        Text(
            "a.eaf",
            eaf(
                {"t1": 1000, "t2": 3000},
                xml_tier("lemmas", ("c1", "b1", "be"), ("c2", "b2", "I")),
                xml_tier("words", ("b1", "a1", "am"), ("b2", "a1", "I"), ("b3", "a1", "&lt;3")),
                xml_tier("said", ("a1", "t1", "t2", "am I &lt;3")),
            ),
        )
    )
    assert [each.name for each in tiers] == ["lemmas", "words", "said"]
    assert tiers[2].spans == (Span(1.0, 3.0, "am I <3"),)
    assert tiers[1].spans == (
        Span(1.0, 1.75, "am", estimated=True),
        Span(1.75, 2.25, "I", estimated=True),
        Span(2.25, 3.0, "<3", estimated=True),
    )
    assert tiers[0].spans[1] == Span(1.75, 2.25, "I", estimated=True)
    assert texts(*tiers) == ["am", "I", "<3"]


def test_a_lone_annotation_without_times_has_those_of_the_one_that_it_belongs_to():
    tiers = xml_tier("x", ("1", "a", "b", "s")), xml_tier("word", ("2", "1", "so"))
    body = eaf({"a": 0, "b": 500}, *tiers)
    assert said(*read_elan(Text("a.eaf", body))) == [(0.0, "so", False)]


def test_time_slots_without_a_time_lie_between_those_around_them():
    slots = {"a": 1000, "b": None, "c": None, "d": 4000, "e": None}
    (found,) = read_elan(
        Text("a.eaf", eaf(slots, xml_tier("w", ("1", "a", "b", "x"), ("2", "c", "e", "y"))))
    )
    assert found.spans == (Span(1.0, 2.0, "x", estimated=True), Span(3.0, 4.0, "y", estimated=True))


def test_an_elan_file_without_annotations_has_no_words():
    assert read_elan(Text("a.eaf", eaf({}))) == []
    assert texts(*read_elan(Text("a.eaf", eaf({"a": None}, xml_tier("words"))))) == []


BOMB = '<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]>\n<a>&c;</a>'
STOLEN = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>\n<a>&b;</a>'
ONE = eaf({"a": 0, "b": 1}, xml_tier("w", ("1", "a", "b", "x")))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (BOMB, "line 2: has a document type, which is refused"),
        (STOLEN, "line 1: has a document type, which is refused"),
        ("<html/>", "line 1: found the element 'html', wanted 'ANNOTATION_DOCUMENT'"),
        ("", "line 1: no XML: no element found"),
        (ONE[:-30], "no XML: "),
        (ONE.replace("&", "").replace(">x<", ">&x;<"), "no XML: undefined entity"),
        (ONE.replace("milliseconds", "PAL-frames"), "line 3: times are in PAL-frames"),
        (ONE.replace('TIME_VALUE="1"', 'TIME_VALUE="soon"'), "a time slot has no milliseconds"),
        (ONE.replace('REF2="b"', 'REF2="c"'), "line 9: there is no time slot 'c'"),
        (ONE.replace('TIME_SLOT_REF2="b"', ""), "line 9: ALIGNABLE_ANNOTATION has no TIME_"),
        (eaf({}, xml_tier("w", ("1", "2", "x"), ("2", "1", "y"))), "'1' belongs to '2', which is"),
        (ONE.replace("TIER", "TIRE"), "line 9: annotation '1' lies in no tier"),
    ],
)
def test_what_is_wrong_with_an_elan_file_is_told(body, message):
    with pytest.raises(BadClipError, match=message) as caught:
        read_elan(Text("a.eaf", body))
    assert caught.value.fault == "bad_transcript"
    assert caught.value.message.startswith("a.eaf: ")
