"""Every format of transcripts, written from random words, gives these words back."""

import html
import json
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurizers.clip import BadClipError
from featurizers.tiers import SILENCES
from featurizers.transcript import FORMATS, MARKS, read_transcript

# One folder serves all examples of a test: each writes its file anew.
QUICK = settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SPOKEN = st.text(
    st.characters(categories=("Ll", "Lu", "Lo", "Nd"), include_characters="'-&\"<"), min_size=1
).filter(lambda text: not MARKS.issuperset(text) and text.lower() not in SILENCES)


@st.composite
def timed_words(draw):
    """Texts with start and end in milliseconds, one after the other, with and without pauses."""
    at, words = draw(st.integers(0, 5_000_000)), []
    for text in draw(st.lists(SPOKEN, min_size=1, max_size=6)):
        start = at + draw(st.sampled_from([0, 0, 7, 1500]))
        at = start + draw(st.integers(1, 3000))
        words.append((text, start, at))
    return words


def clock(ms, mark):
    return (
        f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{mark}{ms % 1000:03d}"
    )


def srt(words):
    return "\n".join(
        f"{number}\n{clock(start, ',')} --> {clock(end, ',')}\n<i>{html.escape(text)}</i>\n"
        for number, (text, start, end) in enumerate(words, start=1)
    )


def vtt(words):
    """One cue, whose words and pauses have inline times."""
    cue = f"WEBVTT\n\n{clock(words[0][1], '.')} --> {clock(words[-1][2], '.')} align:start\n"
    for number, (text, start, end) in enumerate(words):
        inline = f"<{clock(start, '.')}>" if number else ""
        after = words[number + 1][1] if number + 1 < len(words) else end
        rest = f"<{clock(end, '.')}>" if after != end else ""
        cue += f"{inline}<c> {html.escape(text, quote=False)}</c>{rest}"
    return cue + "\n"


def filled(words):
    """The spans of a tier that has no holes, in seconds."""
    at = 0
    for text, start, end in words:
        if start > at:
            yield at / 1000, start / 1000, ""
        yield start / 1000, end / 1000, text.replace('"', '""')
        at = end


def textgrid(words):
    spans, end = list(filled(words)), words[-1][2] / 1000
    text = f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0 \nxmax = {end} \n'
    text += "tiers? <exists> \nsize = 2 \nitem []: \n    item [1]:\n"
    text += '        class = "TextTier" \n        name = "bells" \n        xmin = 0 \n'
    text += f"        xmax = {end} \n        points: size = 1 \n        points [1]:\n"
    text += '            number = 0.5 \n            mark = "ding ""dong""" \n    item [2]:\n'
    text += '        class = "IntervalTier" \n        name = "Ann - words" \n        xmin = 0 \n'
    text += f"        xmax = {end} \n        intervals: size = {len(spans)} \n"
    for number, (begin, stop, label) in enumerate(spans, start=1):
        text += f"        intervals [{number}]:\n            xmin = {begin} \n"
        text += f'            xmax = {stop} \n            text = "{label}" \n'
    return text


def short_textgrid(words):
    spans, end = list(filled(words)), words[-1][2] / 1000
    text = f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n{end}\n<exists>\n1\n'
    text += f'"IntervalTier"\n"Ann"\n0\n{end}\n{len(spans)}\n'
    return text + "".join(f'{begin}\n{stop}\n"{label}"\n' for begin, stop, label in spans)


def eaf(words):
    text = '<?xml version="1.0" encoding="UTF-8"?>\n<ANNOTATION_DOCUMENT AUTHOR="">\n'
    text += '<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds"/>\n<TIME_ORDER>\n'
    for number, (_, start, end) in enumerate(words):
        text += f'<TIME_SLOT TIME_SLOT_ID="b{number}" TIME_VALUE="{start}"/>\n'
        text += f'<TIME_SLOT TIME_SLOT_ID="e{number}" TIME_VALUE="{end}"/>\n'
    text += f"</TIME_ORDER>\n<TIER LINGUISTIC_TYPE_REF='x' TIER_ID={quoteattr('words')}>\n"
    for number, (said, _, _) in enumerate(words):
        text += f'<ANNOTATION>\n<ALIGNABLE_ANNOTATION ANNOTATION_ID="a{number}" '
        text += f'TIME_SLOT_REF1="b{number}" TIME_SLOT_REF2="e{number}">\n'
        text += f"<ANNOTATION_VALUE>{escape(said)}</ANNOTATION_VALUE>\n"
        text += "</ALIGNABLE_ANNOTATION>\n</ANNOTATION>\n"
    return f"{text}</TIER>\n</ANNOTATION_DOCUMENT>\n"


def ctm(words):
    lines = (f"talk 1 {s / 1000} {(e - s) / 1000} {text} 0.5" for text, s, e in words)
    return ";; made by a test\n" + "\n".join(lines)


def align(words):
    return "".join(f"{start * 25} {end * 25} {text}\r\n" for text, start, end in words)


def lab(words):
    return "".join(f"{start * 10_000} {end * 10_000} {text}\n" for text, start, end in words)


def whisper(words):
    items = [
        {"word": f" {text}", "start": start / 1000, "end": end / 1000, "probability": 0.5}
        for text, start, end in words
    ]
    segment = {"id": 0, "start": items[0]["start"], "end": items[-1]["end"], "words": items}
    return json.dumps({"text": "", "segments": [{**segment, "text": ""}], "language": "en"})


def whisperx(words):
    segments = [
        {
            "start": start / 1000,
            "end": end / 1000,
            "text": text,
            "words": [{"word": text, "start": start / 1000, "end": end / 1000, "score": 0.5}],
        }
        for text, start, end in words
    ]
    return json.dumps({"segments": segments, "word_segments": []}, ensure_ascii=False, indent=1)


def transformers(words):
    chunks = [{"text": f" {t}", "timestamp": [s / 1000, e / 1000]} for t, s, e in words]
    return json.dumps({"text": "", "chunks": chunks})


def whisper_cpp(words):
    items = [{"offsets": {"from": s, "to": e}, "text": f" {t}"} for t, s, e in words]
    return json.dumps({"transcription": items})


SURE = (ctm, whisper, whisperx)
WRITERS = {
    srt: "srt",
    vtt: "vtt",
    textgrid: "TextGrid",
    short_textgrid: "textgrid",
    eaf: "eaf",
    ctm: "ctm",
    align: "align",
    lab: "lab",
    whisper: "json",
    whisperx: "JSON",
    transformers: "json",
    whisper_cpp: "json",
}


def test_every_format_is_written_here():
    assert {f".{suffix.lower()}" for suffix in WRITERS.values()} == {*FORMATS} - {".txt"}


@pytest.mark.parametrize("write", WRITERS)
@QUICK
@given(words=timed_words(), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_words_that_were_written_are_read(tmp_path, write, words, encoding):
    path = tmp_path / f"talk.{WRITERS[write]}"
    path.write_bytes(write(words).encode(encoding))
    found = read_transcript(path)
    assert [word.text for word in found] == [text for text, _, _ in words]
    for word, (_, start, end) in zip(found, words, strict=True):
        assert (word.start, word.end) == (pytest.approx(start / 1000), pytest.approx(end / 1000))
        assert word.estimated is False
        assert word.confidence == (0.5 if write in SURE else None)


@QUICK
@given(words=timed_words(), form=st.sampled_from(["long_textgrid", "short_textgrid"]))
def test_textgrids_that_praatio_writes_are_read(tmp_path, words, form):
    from praatio import textgrid

    entries = [(start / 1000, end / 1000, text) for text, start, end in words]
    grid = textgrid.Textgrid()
    grid.addTier(textgrid.IntervalTier("phones", entries))
    grid.addTier(textgrid.IntervalTier("words", entries))
    path = tmp_path / "talk.TextGrid"
    grid.save(str(path), form, includeBlankSpaces=True)
    found = [(word.start, word.end, word.text) for word in read_transcript(path)]
    assert found == [(pytest.approx(s), pytest.approx(e), text) for s, e, text in entries]


@pytest.mark.parametrize("form", ["srt", "vtt"])
@QUICK
@given(words=timed_words())
def test_captions_that_pysubs2_writes_are_read(tmp_path, words, form):
    import pysubs2

    plain = [(text.translate(str.maketrans('<&"', "---")), s, e) for text, s, e in words]
    plain = [word for word in plain if not MARKS.issuperset(word[0])]
    subtitles = pysubs2.SSAFile()
    subtitles.events = [pysubs2.SSAEvent(s, e, text) for text, s, e in plain]
    path = tmp_path / f"talk.{form}"
    subtitles.save(str(path), format_=form)
    found = [(word.text, word.start, word.end) for word in read_transcript(path)]
    assert found == [(t, pytest.approx(s / 1000), pytest.approx(e / 1000)) for t, s, e in plain]


@pytest.mark.parametrize("write", WRITERS)
@QUICK
@given(words=timed_words(), harm=st.data())
def test_a_file_that_was_spoilt_is_read_or_refused_and_never_a_bug(tmp_path, write, words, harm):
    content = bytearray(write(words).encode(harm.draw(st.sampled_from(["utf-8", "utf-16"]))))
    for _ in range(harm.draw(st.integers(1, 3))):
        at = harm.draw(st.integers(0, len(content)))
        content[at : at + harm.draw(st.integers(0, 40))] = harm.draw(st.binary(max_size=8))
    path = tmp_path / f"talk.{WRITERS[write]}"
    path.write_bytes(content)
    found, refused = (), "bad_transcript: talk."
    try:
        found = read_transcript(path)
    except BadClipError as bad:
        refused = str(bad)
    assert refused.startswith("bad_transcript: talk.")
    words = () if isinstance(found, str) else found
    starts = [word.start for word in words]
    assert starts == sorted(starts)
    assert all(0 <= word.start <= word.end < float("inf") for word in words)
