"""Forced alignment of generated speech whose word times are known, alone and before an ingest."""

import json

import numpy as np
import pytest
import torch

from featurizers.aligner import MOST_S, Aligner, spell
from featurizers.ctc import best_path
from featurizers.dataset import read_clips
from featurizers.pretrained import MissingWeightsError
from pipelines.__main__ import app
from pipelines.align import align
from pipelines.executors import InProcess, OnRay
from pipelines.experiment import InputError, parse
from pipelines.films import FilmFailedError
from pipelines.ingest import ingest
from pipelines.run import run
from pipelines.show import Show
from tests import checkpoints
from tests.media_maker import wav


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctc") / "tones"
    checkpoints.ctc(folder)
    return folder


@pytest.fixture(scope="module")
def aligner(head):
    return Aligner(model=str(head))


def test_words_are_placed_within_15_ms_in_the_median_and_40_ms_in_95_of_100(aligner):
    random, errors = np.random.default_rng(99), []
    for _ in range(30):
        samples, words, spans, _ = checkpoints.utterance(random)
        found = aligner.words_of(samples, words)
        assert [word.text for word in found] == words
        errors += [(w.start - a, w.end - b) for w, (a, b) in zip(found, spans, strict=True)]
    errors_ms = 1000 * np.abs(errors)
    assert len(errors_ms) > 60
    assert np.median(errors_ms, axis=0).max() <= 15
    assert np.percentile(errors_ms, 95, axis=0).max() <= 40


def test_confidence_tells_what_is_said_from_what_is_not(aligner):
    random, right, wrong = np.random.default_rng(7), [], []
    for _ in range(12):
        samples, words, *_ = checkpoints.utterance(random)
        others = ["".join(random.permutation(list("abcdefgh"))[: len(word)]) for word in words]
        right += [word.confidence for word in aligner.words_of(samples, words)]
        wrong += [word.confidence for word in aligner.words_of(samples, others)]
    assert np.median(right) > 0.7
    assert np.median(wrong) < 0.5


def test_words_are_those_of_the_path_through_what_transformers_gives(head, aligner):
    import transformers

    samples, words, *_ = checkpoints.utterance(np.random.default_rng(5), ["abc", "de"])
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(head)
    model = transformers.Wav2Vec2ForCTC.from_pretrained(head)
    values = extractor(samples / 32768, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        log_probs = model(values.float()).logits[0].double().log_softmax(-1).numpy()
    labels = [checkpoints.VOCABULARY[each] for each in "abc|de"]
    spans = best_path(log_probs, labels, 0).spans
    first, second = aligner.words_of(samples, words)
    reach = 1 + 39 + 7 * 5 + 7 * 20 + 3 * 80
    for word, begin, end in ((first, spans[0, 0], spans[2, 1]), (second, spans[4, 0], spans[5, 1])):
        early = (reach - 320) / 2 / 16_000
        assert (word.start, word.end) == pytest.approx((begin / 50 + early, end / 50 + early))
    shares = [np.exp(log_probs[a:b, n]).mean() for n, (a, b) in zip(labels, spans, strict=True)]
    assert first.confidence == pytest.approx(np.mean(shares[:3]), abs=1e-4)


def test_a_word_without_any_known_character_has_no_times(aligner):
    samples, *_ = checkpoints.utterance(np.random.default_rng(3), ["ab", "cd"])
    first, number, second = aligner.words_of(samples, ["ab", "42", "CD"])
    assert (number.text, number.start, number.end, number.confidence) == ("42", None, None, None)
    assert first.end < second.start


def test_characters_are_looked_up_in_both_cases_and_without_accents():
    vocabulary = {"<pad>": 0, "|": 1, "E": 2, "S": 3, "ß": 4, "é": 5}
    assert spell(["é", "e", "ê", "ß", "x"], vocabulary, 0) == [
        (5, 0),
        (1, None),
        (2, 1),
        (1, None),
        (2, 2),
        (1, None),
        (4, 3),
    ]
    assert spell(["|", "se"], vocabulary, 0) == [(3, 1), (2, 1)]
    assert spell(["se", "es"], {"s": 1, "e": 2}, 0) == [(1, 0), (2, 0), (2, 1), (1, 1)]


def test_words_that_do_not_fit_are_left_alone(aligner):
    samples = np.zeros(8000, dtype=np.int16)
    assert aligner.words_of(samples, ["abcdefgh" * 5]) is None
    assert aligner.words_of(samples[:100], ["a"]) is None
    assert aligner.words_of(samples, ["42"]) is None
    assert aligner.words_of(np.zeros(round(MOST_S * 16_000) + 1, np.int16), ["a"]) is None


def test_a_head_that_will_not_do_is_told(tmp_path):
    checkpoints.ctc(tmp_path, steps=(0, 0))
    checkpoints.write(tmp_path, "vocab.json", {"a": 1})
    with pytest.raises(ValueError, match="no character with the number 0, which is the blank"):
        Aligner(model=str(tmp_path))
    checkpoints.write(tmp_path, "vocab.json", {"<pad>": 0, "a": 99})
    with pytest.raises(ValueError, match="numbers characters up to 99, but the head has 10"):
        Aligner(model=str(tmp_path))
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(MissingWeightsError, match=r"has no vocab\.json"):
        Aligner(model=str(tmp_path))


# Before an ingest


@pytest.fixture
def spoken(tmp_path):
    """Two files of four clips: said as written, not said, said in captions, and without words."""
    random = np.random.default_rng(11)
    samples, words, spans, _ = checkpoints.utterance(random, ["abc", "de", "fgh"])
    other, said, others, _ = checkpoints.utterance(random, ["hg", "ab", "cde"])
    (tmp_path / "a.wav").write_bytes(wav(samples))
    (tmp_path / "b.wav").write_bytes(wav(other))
    (tmp_path / "b.srt").write_text(f"1\n00:00:00,000 --> 00:00:02,000\n{' '.join(said)}\n")
    (tmp_path / "clips.csv").write_text(
        "id,media,mood,transcript,transcript_file\n"
        f"right,a.wav,1,{' '.join(words)},\nwrong,a.wav,2,ggg ccc ddd ggg,\n"
        "captions,b.wav,3,,b.srt\nsilent,b.wav,4,,\n"
    )
    return tmp_path, spans, others


def experiment(at, head, **source):
    given = {"table": "clips.csv", "label": "mood", "align": {"model": str(head)}, **source}
    features = {"text": {"featurizer": "hashed-words"}}
    plain = {"dataset": "data", "source": given, "features": features, "workers": {"featurize": 0}}
    return parse({**plain, "max_dropped": 0.5}, at)


def align_all(made, executor=None, done=lambda count: None):
    return align(made, executor or InProcess(), done)


def kept(made):
    return {path: path.stat().st_mtime_ns for path in (made.raw / "aligned").iterdir()}


def test_clips_get_aligned_words_and_those_that_are_not_sure_keep_estimated_ones(spoken, head):
    folder, spans, others = spoken
    made = experiment(folder, head)
    found = align_all(made)
    assert (found.tried, found.sure, found.lost) == (3, 2, [])
    ingest(made, InProcess(), lambda count: None)
    words = {clip.id: clip.words for clip in read_clips(made.root)}
    for name, wanted in (("right", spans), ("captions", others)):
        assert not any(word.estimated for word in words[name])
        assert all(word.confidence > 0.5 for word in words[name])
        times = [(word.start, word.end) for word in words[name]]
        assert np.abs(np.array(times) - wanted).max() <= 0.06
    assert all(word.estimated and word.confidence is None for word in words["wrong"])
    assert words["silent"] is None


def test_too_little_memory_is_told_with_the_film(spoken, head, monkeypatch):
    def full(aligner, samples):
        raise MemoryError

    monkeypatch.setattr(Aligner, "_outputs", full)
    with pytest.raises(
        FilmFailedError, match=r"\.wav: align ran out of memory with \d+ s of sound"
    ):
        align_all(experiment(spoken[0], head))


def test_words_outside_of_the_vocabulary_lie_between_their_neighbours_and_are_marked(spoken, head):
    folder, *_ = spoken
    (folder / "clips.csv").write_text(
        "id,media,mood,transcript\na,a.wav,1,abc 42 de fgh\nb,b.wav,2,hg ab cde\n"
    )
    made = experiment(folder, head)
    align_all(made)
    ingest(made, InProcess(), lambda count: None)
    first, number, second, _ = read_clips(made.root)[0].words
    assert number.estimated
    assert first.end <= number.start <= number.end <= second.start + 1e-9


def test_running_again_aligns_only_what_is_missing(spoken, head):
    made = experiment(spoken[0], head)
    align_all(made)
    before, table = kept(made), made.table.read_bytes()
    gone = min(before)
    gone.unlink()
    align_all(made)
    after = kept(made)
    assert [path for path in before if after[path] != before[path]] == [gone]
    assert made.table.read_bytes() == table
    strict = experiment(spoken[0], head, align={"model": str(head), "least": 0.999})
    assert align_all(strict).sure == 0


def test_a_bad_file_keeps_its_words_as_they_were_and_is_told(spoken, head):
    folder, *_ = spoken
    (folder / "b.wav").write_bytes(b"nothing")
    made = experiment(folder, head)
    found = align_all(made)
    ((lost),) = found.lost
    assert (lost.media, lost.fault, found.sure) == (str(folder / "b.wav"), "unreadable", 1)
    assert next(row for row in found.clips if row["id"] == "captions")["transcript_file"].endswith(
        "b.srt"
    )


def test_a_run_aligns_before_it_ingests(spoken, head):
    folder, *_ = spoken
    made = experiment(folder, head, label="temper")
    with pytest.raises(InputError, match=r"aligned\.csv: there is no column 'temper'"):
        run(made, Show(quiet=True))


def test_no_head_or_no_table_is_told(spoken, head):
    folder, *_ = spoken
    with pytest.raises(InputError, match=r"source\.align: model is 'nowhere': there is no such"):
        align_all(experiment(folder, "nowhere"))
    with pytest.raises(InputError, match=r"source\.align\.model: no model is given"):
        align_all(experiment(folder, head, align=None))
    with pytest.raises(InputError, match="no such table yet; `fuseline ingest --align`, or `run`"):
        ingest(experiment(folder, head), InProcess(), lambda count: None)


@pytest.mark.ray
@pytest.mark.soak
def test_workers_of_ray_align_the_same(spoken, head):
    folder, *_ = spoken
    made = experiment(folder, head)
    alone = align_all(made).clips
    (folder / "data").rename(folder / "before")
    assert align_all(made, OnRay(1)).clips == alone


def test_the_command_aligns_and_ingests(spoken, head, capsys):
    folder, *_ = spoken
    plain = {"dataset": "data", "source": {"table": "clips.csv", "label": "mood"}}
    features = {"text": {"featurizer": "hashed-words"}}
    (folder / "experiment.yaml").write_text(json.dumps(plain | {"features": features}))
    some = ["workers.featurize=0", f"source.align.model={head}"]
    settings = [each for setting in some for each in ("--set", setting)]
    command = ["ingest", str(folder / "experiment.yaml"), "--align", *settings, "--json"]
    app(command, standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["clips"] == 4
    words = {clip.id: clip.words for clip in read_clips(folder / "data")}
    assert not words["right"][0].estimated
