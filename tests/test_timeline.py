"""A long film to a score for each utterance: captions, a table and a page."""

import json
import re
import wave

import numpy as np
import pyarrow.parquet as pq
import pytest

from featurizers.captions import read_captions
from featurizers.texts import read_text
from pipelines import score as scoring
from pipelines.executors import InProcess
from pipelines.experiment import FailedError, InputError
from pipelines.pages.timeline import page
from pipelines.timeline import Utterance, captions, timeline
from tests.media_maker import tone, wav
from tests.test_voice import SPOKEN, noisy, speech

pytestmark = pytest.mark.media


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    (folder / "talk.wav").write_bytes(wav(noisy(speech(), 30)))
    (folder / "hum.wav").write_bytes(wav(tone(100, 5.0)))
    return folder / "talk.wav"


class Model:
    """A model that says how long a clip is, and has no opinion of the second one."""

    def __init__(self, uri, model, weights=()):
        self.asked = []

    def predict(self, rows):
        return [
            {
                "id": row["id"],
                "state": "scored" if number != 1 else "quarantined",
                "prediction": row["end"] - row["start"] if number != 1 else None,
                "scores": "",
                "missing": "video",
                "fault": "" if number != 1 else "empty",
                "message": "",
            }
            for number, row in enumerate(rows)
        ]

    explain = predict

    def close(self):
        pass


@pytest.fixture
def told(film, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "ModelProcess", Model)
    words = tmp_path / "talk.vtt"
    cues = [f"00:{a:06.3f} --> 00:{b:06.3f}\nword {n} & <b>\n" for n, (a, b) in enumerate(SPOKEN)]
    words.write_text("\n".join(["WEBVTT\n", *cues]))

    def tell(folder="out", **changes):
        given = {"transcript": str(words), **changes}
        return timeline(film, tmp_path / folder, "uri", "models:/toy/1", InProcess(), **given)

    return tell, tmp_path / "out"


def test_each_utterance_is_scored_with_its_words_and_written_thrice(told, film):
    tell, folder = told
    found = tell()
    spans = np.array([[each.start, each.end] for each in found])
    assert np.abs(spans - (np.array(SPOKEN) + np.array([-0.1, 0.1]))).max() <= 0.06
    assert [each.text.split()[:2] for each in found] == [["word", str(n)] for n in range(4)]
    rows = pq.read_table(folder / "scores.parquet").to_pylist()
    assert [[row["start"], row["end"]] for row in rows] == spans.tolist()
    assert [row["prediction"] for row in rows] == [
        each.end - each.start if number != 1 else None for number, each in enumerate(found)
    ]
    assert {row["model"] for row in rows} == {"models:/toy/1"}
    cues = (folder / "scores.vtt").read_text()
    assert cues.startswith("WEBVTT\n\n00:00:")
    assert "[not scored: empty] word 1 &amp;" in cues
    assert len(list(read_captions(read_text(folder / "scores.vtt")))) > 4
    html = (folder / "index.html").read_text()
    assert html.count("<tr>") == 5
    (path,) = re.findall(r'<path d="([^"]+)"', html)
    assert path.count("M") == 3  # none where nothing is scored
    with wave.open(str(film)) as sound:
        seconds = sound.getnframes() / sound.getframerate()
    assert seconds > spans[-1, 1] + 0.1
    assert float(path.rpartition("H")[2]) == pytest.approx(1000 * spans[-1, 1] / seconds, abs=0.01)
    first = (folder / "scores.parquet").read_bytes(), html
    tell()
    assert ((folder / "scores.parquet").read_bytes(), (folder / "index.html").read_text()) == first


def test_the_command_writes_a_timeline_by_a_model(tiny_model, film, monkeypatch, called, tmp_path):
    root, predictor, *_ = tiny_model

    class Tiny(Model):
        def predict(self, rows):
            return predictor.predict(rows)

    monkeypatch.setattr(scoring, "ModelProcess", Tiny)
    named = ("score", "models:/tiny/1", film, "--timeline", "--store", root)
    code, out, _ = called(*named, "--to", tmp_path / "out")
    assert code == 0
    assert f"look at {tmp_path / 'out' / 'index.html'}" in out
    rows = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert len(rows) == len(SPOKEN)
    for row in rows:
        (said,) = predictor.predict(
            [{"media": str(film), "start": row["start"], "end": row["end"]}]
        )
        assert (row["state"], row["prediction"]) == ("scored", said["prediction"])
        assert row["missing"] == "text,video"
    code, _, err = called(*named, "--explain")
    assert code == 2
    assert "without --start, --end and --explain" in err


def test_what_was_cut_before_a_kill_is_not_cut_again(told, monkeypatch):
    tell, folder = told

    def killed(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.timeline.score", killed)
        with pytest.raises(KeyboardInterrupt):
            tell()
    assert not (folder / "scores.vtt").exists()
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("spans/*")}
    assert before
    tell()
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("spans/*")} == before


def test_a_film_that_is_large_is_looked_for_beside_the_page(told, film, monkeypatch, tmp_path):
    tell, folder = told
    assert 'src="data:audio/' in (tell() and (folder / "index.html").read_text())
    monkeypatch.setattr("pipelines.pages.timeline.EMBEDDED_BYTES", 10)
    tell()
    html = (folder / "index.html").read_text()
    (source,) = re.findall(r'<video[^>]* src="([^"]+)"', html)
    assert (folder / source).resolve() == film
    assert f'href="{source}#t=' in html
    assert "media-src data: &#39;self&#39;" not in html
    assert "media-src data: 'self' file:;" in html


def test_without_words_it_is_scored_by_what_is_heard_and_seen(told):
    tell, _ = told
    assert {each.text for each in tell(transcript=None)} == {""}


def test_wrong_input_is_told(told, film):
    tell, _ = told
    with pytest.raises(InputError, match="give one of them"):
        tell(recogniser="openai/whisper-tiny")
    with pytest.raises(InputError, match="a file of words with times"):
        tell(transcript="so to say")
    with pytest.raises(FailedError, match="no voice"):
        timeline(film.with_name("hum.wav"), film.parent / "x", "u", "models:/t/1", InProcess())
    with pytest.raises(InputError, match="no such file"):
        timeline(film.with_name("gone.wav"), film.parent / "x", "u", "models:/t/1", InProcess())


@pytest.mark.parametrize(
    ("numbers", "ends", "zero"),
    [
        ((2.2, -1.94), ("\u22122", "2.5"), 111.11),
        ((0.03, 0.011), ("0", "0.03"), None),
        ((-7.0,), ("\u22127", "0"), None),
        ((0.0,), ("0", "0.5"), None),
    ],
)
def test_numbers_have_an_axis_of_round_ends_with_a_line_at_0(film, numbers, ends, zero):
    said = {"state": "scored", "scores": "", "missing": "", "fault": ""}
    found = [
        Utterance(start=at, end=at + 1.0, text="", answer={**said, "prediction": number})
        for at, number in enumerate(numbers)
    ]
    html = page(film, film.parent, "models:/m/1", found, captions(found))
    shown = re.search(r'class="top">([^<]*)</span><span class="bottom">([^<]*)<', html).groups()
    assert shown == ends[::-1]
    said = re.findall(r"<td[^>]*><bdi>([^<]*)</bdi></td>", html)
    assert said == [f"{number:+.2f}".replace("-", "\u2212") for number in numbers]
    lines = re.findall(r'class="zero" d="M0,([\d.]+)H1000"', html)
    assert [float(line) for line in lines] == ([] if zero is None else [zero])
    heights = [float(y) for y in re.findall(r"M[\d.]+,([\d.]+)H", html.split('class="zero"')[-1])]
    assert all(0 <= y <= 200 for y in heights)


def test_classes_have_a_curve_each_between_0_and_1(film):
    scores = json.dumps({"glad": 0.75, "sad": 0.25})
    said = {"state": "scored", "prediction": "glad", "scores": scores, "missing": "", "fault": ""}
    one = Utterance(start=1.0, end=2.0, text="<script>", answer=said)
    html = page(film, film.parent, "models:/m/1", [one], captions([one]))
    assert re.findall(r'<path d="([^"]+)"', html) == [
        "M500.00,50.00H1000.00",
        "M500.00,150.00H1000.00",
    ]
    assert "<script>" not in html
