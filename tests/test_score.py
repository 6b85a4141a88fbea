"""`score`: clips or a table in, a row each out, whatever becomes of one of them."""

import csv
import json
import sys

import pytest

from pipelines import model_process
from pipelines import score as scoring
from pipelines.__main__ import main
from pipelines.experiment import InputError
from pipelines.model_process import ModelProcess, ScoringFailedError
from pipelines.score import score
from pipelines.scoring import failed, rows_of_clips, rows_of_table, tally, write
from pipelines.staging import Stage
from tests.tiny_predictor import VTT, row

pytestmark = pytest.mark.media


@pytest.fixture
def fuseline(monkeypatch, capsys):
    """The command in this process: its exit code, and what it wrote."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fuseline", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        written = capsys.readouterr()
        return end.value.code or 0, written.out, written.err

    return run


@pytest.fixture(scope="module")
def table(tiny_model):
    """A table of the clips, of one that is no media, and of one that is not there."""
    root, *_ = tiny_model
    (root / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    rows = [
        {"id": f"clip {i}", "media": f"{i}.mp4", "transcript_file": "words.vtt", "mood": "glad"}
        for i in range(4)
    ]
    rows.insert(1, {"id": "noise", "media": "noise.mp4"})
    rows.insert(3, {"id": "gone", "media": "gone.mp4"})
    with (root / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root / "clips.csv"


class Direct:
    """A model's process that is this one."""

    predictor = None

    def __init__(self, uri, model, weights=()):
        self.predict, self.explain = self.predictor.predict, self.predictor.explain

    def close(self):
        pass


def named(answers):
    return [{**answer, "model": "models:/tiny/1"} for answer in answers]


@pytest.fixture
def direct(tiny_model, monkeypatch):
    monkeypatch.setattr(Direct, "predictor", tiny_model[1])
    monkeypatch.setattr(scoring, "ModelProcess", Direct)


def test_a_table_is_scored_a_row_each_in_order_and_a_bad_clip_costs_its_row(
    tiny_model, table, fuseline, tmp_path
):
    root, predictor, *_ = tiny_model
    code, out, _ = fuseline(
        "score",
        "models:/tiny@champion",
        table,
        "--store",
        root,
        "--json",
        "--to",
        tmp_path / "a.csv",
    )
    said = json.loads(out)
    assert code == 0
    assert [each["id"] for each in said] == [
        "clip 0",
        "noise",
        "clip 1",
        "gone",
        "clip 2",
        "clip 3",
    ]
    # The version that the alias means, not the alias: which it was is not known later.
    assert {each.pop("model") for each in said} == {"models:/tiny/1"}
    whole = predictor.predict([row(root, i) for i in range(4)])
    assert [each for each in said if each["state"] == "scored"] == whole
    assert [(each["state"], each["fault"]) for each in said if each["state"] != "scored"] == [
        ("quarantined", "unreadable"),
        ("quarantined", "missing"),
    ]
    with (tmp_path / "a.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [each["id"] for each in written] == [each["id"] for each in said]
    assert float(written[0]["prediction"]) == said[0]["prediction"]
    assert written[1]["prediction"] == ""
    assert {each["model"] for each in written} == {"models:/tiny/1"}


@pytest.mark.ray
@pytest.mark.slow
def test_workers_on_ray_give_what_one_gives(tiny_model, table):
    from pipelines.executors import executor, stop_ray

    _, predictor, uri, *_ = tiny_model
    rows = rows_of_table(table) * 6
    told = []
    try:
        said = score(uri, "models:/tiny@champion", rows, executor(2), done=told.append)
    finally:
        stop_ray()
    assert said == named(predictor.predict(rows_of_table(table))) * 6
    assert sum(told) == len(rows)


def test_clips_of_one_file_are_scored_together_and_answers_stand_in_order(direct, tiny_model):
    root, predictor, uri, *_ = tiny_model
    rows = [row(root, i, id=f"{i} {n}", end=1.0 + n / 10) for n in range(3) for i in range(2)]
    said = score(uri, "models:/tiny/1", rows)
    assert [each["id"] for each in said] == [each["id"] for each in rows]
    assert scoring._together(rows) == [[0, 2, 4, 1, 3, 5]]
    assert said == named(predictor.predict(rows))


# A model's process without a model: it speaks as the real one does, and ends on some rows.
DYING = """
import json, os, sys
uri, model = json.loads(sys.stdin.readline())
print(json.dumps({"answer": "ready"}), flush=True)
for line in sys.stdin:
    rows = json.loads(line)["rows"]
    if any(row["id"] in KILLERS and "media" in row for row in rows):
        print("cannot go on", file=sys.stderr, flush=True)
        os._exit(9)
    answer = {"state": "scored", "prediction": 0.5, "fault": "", "message": ""}
    print(json.dumps({"answer": [{"id": row["id"], **answer} for row in rows]}), flush=True)
"""


def dying_on(monkeypatch, *killers):
    monkeypatch.setattr(model_process, "_PROGRAM", f"KILLERS = {killers}\n{DYING}")


def test_a_row_that_ends_the_models_process_costs_no_other_row(monkeypatch):
    dying_on(monkeypatch, "20")
    rows = [{"id": str(number), "media": f"{number}.mp4"} for number in range(40)]
    told = []
    said = score("file:nowhere", "models:/toy/1", rows, done=told.append)
    assert [each["id"] for each in said] == [each["id"] for each in rows]
    assert sum(told) == 40
    assert [each["id"] for each in said if each["state"] != "scored"] == ["20"]
    assert (said[20]["state"], said[20]["fault"]) == ("failed", "crashed")
    assert said[20]["message"] == (
        "on this clip the model's process ended with code 9: cannot go on"
    )
    assert failed(said)


def test_a_model_whose_process_ends_on_every_row_is_given_up(monkeypatch):
    rows = [{"id": str(number), "media": f"{number}.mp4"} for number in range(40)]
    dying_on(monkeypatch, *(each["id"] for each in rows))
    with pytest.raises(ScoringFailedError, match=r"ended with code 9:\ncannot go on"):
        score("file:nowhere", "models:/toy/1", rows)


def test_the_address_of_the_store_is_no_argument_of_the_models_process(monkeypatch):
    started = []

    def popen(arguments, **_):
        started.append(" ".join(arguments))
        raise OSError("not started")

    monkeypatch.setattr(model_process.subprocess, "Popen", popen)
    with pytest.raises(OSError, match="not started"):
        ModelProcess("https://me:hidden@example.com", "models:/toy/1")
    assert "hidden" not in started[0]


def test_remote_clips_are_fetched_and_those_that_cannot_be_are_told_from_bad_ones(
    direct, tiny_model, tmp_path
):
    root, predictor, uri, *_ = tiny_model
    far = {"id": "far", "media": f"file://{root}/0.mp4", "transcript": VTT}
    rows = [far, {"media": f"file://{root}/gone.mp4"}, {**far, "id": "again"}]
    stage = Stage(folder=tmp_path / "cache", limit_bytes=1 << 20)
    said = score(uri, "models:/tiny/1", rows, stage=stage)
    assert [each["state"] for each in said] == ["scored", "quarantined", "scored"]
    assert said[1]["id"] == f"file://{root}/gone.mp4"
    (here,) = predictor.predict([row(root, 0)])
    assert said[0]["prediction"] == said[2]["prediction"] == here["prediction"]
    small = Stage(folder=tmp_path / "small", limit_bytes=10)
    said = score(uri, "models:/tiny/1", [far, row(root, 0)], stage=small)
    assert [each["state"] for each in said] == ["failed", "scored"]
    assert "raise cache.gigabytes" in said[0]["message"]
    assert failed(said)
    assert tally(said) == "2 clips: 1 scored, 1 failed"


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_answers_are_written_whole_and_the_same_bytes_each_time(tmp_path, name):
    answers = [
        {"id": "a", "state": "scored", "prediction": 0.1, "words": [["so", 0.0, 1.0]]},
        {"id": "b", "state": "quarantined", "prediction": None, "words": []},
    ]
    write(tmp_path / name, answers)
    first = (tmp_path / name).read_bytes()
    write(tmp_path / name, answers)
    assert (tmp_path / name).read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == [name]
    if name.endswith(".jsonl"):
        assert [json.loads(line) for line in first.decode().splitlines()] == answers
    if name.endswith(".parquet"):
        import pyarrow.parquet as pq

        table = pq.read_table(tmp_path / name)
        assert table.column("prediction").to_pylist() == [0.1, None]
        assert str(table.schema.field("id").type) == "string"


def test_what_was_named_wrongly_is_one_line_and_exit_code_2(tiny_model, table, fuseline, tmp_path):
    root, *_ = tiny_model
    model = "models:/tiny/1"
    (tmp_path / "up.csv").write_text(f"media\n../{root.name}/0.mp4\n")
    (tmp_path / "url.csv").write_text("media\nhttps://example.com/0.mp4\n")
    (tmp_path / "words.csv").write_text("media,transcript_file\na.mp4,/etc/hostname\n")
    for arguments, told in [
        ((tmp_path / "up.csv",), "row 1, column media: ../"),
        ((tmp_path / "url.csv",), "lies outside every media root"),
        ((tmp_path / "words.csv",), "row 1, column transcript_file: /etc/hostname lies outside"),
        ((root / "0.mp4", root / "gone.mp4"), "there is no such file"),
        (("http://example.com/a.mp4",), "scored from a table"),
        ((root / "0.mp4", root / "1.mp4", "--start", "1"), "give one at a time"),
        ((table, "--to", tmp_path / "a.txt"), "wanted a name that ends in .csv"),
    ]:
        code, _, err = fuseline("score", model, *arguments, "--store", root)
        assert code == 2, arguments
        assert told in err
        assert len(err.splitlines()) == 1


def test_what_is_shown_names_the_version_that_an_alias_means(direct, tiny_model, fuseline):
    root, predictor, *_ = tiny_model
    words = root / "words.vtt"
    clip, store = root / "0.mp4", ("--transcript", words, "--store", root)
    code, out, _ = fuseline("score", "models:/tiny@champion", clip, *store)
    assert code == 0
    assert out.strip().startswith("models:/tiny/1")
    code, out, _ = fuseline("score", "models:/tiny@champion", clip, "--explain", *store)
    assert code == 0
    assert out.strip().startswith("models:/tiny/1")
    assert "with a stream taken away" in out
    assert all(name in out for name in predictor.specs)
    code, out, _ = fuseline("score", "models:/tiny/1", clip, "--explain", "--json", *store)
    (said,) = json.loads(out)
    (whole,) = predictor.explain([row(root, 0, id=str(clip))])
    assert [said] == json.loads(json.dumps(named([whole])))


def test_nothing_that_could_be_scored_is_exit_code_1(direct, tiny_model, fuseline, table):
    root, *_ = tiny_model
    code, out, _ = fuseline("score", "models:/tiny/1", root / "noise.mp4", "--store", root)
    assert code == 1
    assert "1 clips: 1 quarantined (unreadable 1)" in out


def test_a_model_that_is_not_there_or_was_tampered_with_gives_no_number_and_leaves_no_copy(
    tiny_model, tmp_path, monkeypatch
):
    _, _, uri, _, model = tiny_model
    monkeypatch.setattr(model_process.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(InputError, match="models:/tiny/9"):
        ModelProcess(uri, "models:/tiny/9")
    weights = next(model.rglob("weights.safetensors"))
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    try:
        with pytest.raises(ScoringFailedError, match="are not those that were logged"):
            ModelProcess(uri, "models:/tiny/1")
    finally:
        weights.write_bytes(kept)
    assert not list(tmp_path.iterdir())


def test_rows_of_clips_keep_their_name_and_the_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.vtt").touch()
    assert rows_of_clips(["a.mp4"], "a.vtt", 0.5) == [
        {
            "id": "a.mp4",
            "media": str(tmp_path / "a.mp4"),
            "transcript_file": str(tmp_path / "a.vtt"),
            "start": 0.5,
        }
    ]
    assert rows_of_clips(["a.mp4"], "so to say")[0]["transcript"] == "so to say"
