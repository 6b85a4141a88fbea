"""Tables of numbers over time, from the column stream:NAME to a feature in the shard."""

import numpy as np
import pytest

from featurizers.catalog import build
from featurizers.clip import BadClipError, Clip
from featurizers.decoder import Decoder
from featurizers.extract import extract
from featurizers.manifest import open_column
from featurizers.shards import job_id
from featurizers.skeletal import read_numbers
from pipelines.executors import InProcess
from pipelines.experiment import parse
from pipelines.featurize import featurize
from pipelines.ingest import ingest
from pipelines.score import row_of
from pipelines.sources import ask, read_rows
from pipelines.start import init


def clip_with(path, rate=None, **span):
    rates = {} if rate is None else {"pose": rate}
    return Clip(
        key="a",
        id="a",
        media="a.mp4",
        media_digest="",
        streams={"pose": str(path)},
        stream_rates=rates,
        **span,
    )


def computed(clip, dims=2):
    with Decoder() as decoder:
        (outcome,) = extract(clip, None, [build("numbers", stream="pose", dims=dims)], decoder)
    return outcome


def test_rows_at_a_rate_follow_each_other(tmp_path):
    table = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.save(tmp_path / "pose.npy", table)
    feature = computed(clip_with(tmp_path / "pose.npy", rate=10.0)).feature
    assert np.array_equal(feature.values, table)
    assert np.allclose(feature.times[:, 0], [0, 0.1, 0.2, 0.3, 0.4])
    assert np.allclose(np.diff(feature.times), 0.1)


def test_a_time_column_places_the_rows_and_a_span_takes_those_that_overlap_it(tmp_path):
    (tmp_path / "pose.csv").write_text("time,x,y\n0,1,2\n1,3,4\n2.5,5,6\n4,7,8\n")
    feature = computed(clip_with(tmp_path / "pose.csv", start=2.0, end=3.0)).feature
    assert feature.values.tolist() == [[3, 4], [5, 6]]
    assert feature.times.tolist() == [[-1.0, 0.5], [0.5, 2.0]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1,2\n3,4\n", "the clip gives no rate"),
        ("time,x,y\n0,1,2\n0,3,4\n", "times do not rise"),
        ("time,x,y\n0,1,2\n1,3\n", ""),
        ("time,x,y\n0,1,no\n", "no"),
        ("", ""),
    ],
)
def test_a_table_that_cannot_be_read_quarantines_the_clip(tmp_path, content, said):
    (tmp_path / "pose.csv").write_text(content)
    outcome = computed(clip_with(tmp_path / "pose.csv"))
    assert outcome.state == "quarantined"
    assert outcome.fault == "bad_stream"
    assert said in outcome.message


def test_pickles_and_other_widths_and_missing_files_are_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadClipError, match="Object arrays"):
        read_numbers(tmp_path / "objects.npy", 1.0)
    np.save(tmp_path / "wide.npy", np.zeros((3, 5)))
    assert "5 numbers in a row" in computed(clip_with(tmp_path / "wide.npy", rate=1.0)).message
    assert computed(clip_with(tmp_path / "none.npy", rate=1.0)).fault == "missing"
    assert computed(Clip(key="a", id="a", media="a", media_digest="")).state == "absent"


def test_not_finite_numbers_quarantine_the_clip(tmp_path):
    np.save(tmp_path / "pose.npy", np.full((3, 2), np.nan))
    assert computed(clip_with(tmp_path / "pose.npy", rate=1.0)).fault == "not_finite"


def test_the_job_changes_with_the_numbers_and_their_rate(tmp_path):
    spec = build("numbers", stream="pose", dims=2).spec
    one, other = clip_with(tmp_path / "a", rate=1.0), clip_with(tmp_path / "a", rate=2.0)
    assert job_id(spec, [one]) != job_id(spec, [other])


@pytest.mark.media
def test_a_table_of_clips_with_streams_becomes_a_column(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(b"")
        np.save(tmp_path / f"{name}.npy", np.ones((4, 3)))
    (tmp_path / "a.wav").write_bytes(_wav())
    (tmp_path / "clips.csv").write_text(
        "id,media,y,stream:pose,stream:pose:hz\n"
        "a,a.wav,1,a.npy,25\nb,b.mp4,0,b.npy,25\nc,c.mp4,1,,\n"
    )
    init(tmp_path / "clips.csv", "y", tmp_path / "experiment.yaml")
    assert (
        "pose: {featurizer: numbers, stream: pose, dims: 3}"
        in (tmp_path / "experiment.yaml").read_text()
    )
    experiment = parse(
        {
            "dataset": "data",
            "source": {"table": "clips.csv", "label": "y"},
            "features": {"pose": {"featurizer": "numbers", "stream": "pose", "dims": 3}},
        },
        tmp_path,
    )
    ingest(experiment, InProcess(), lambda count: None)
    column = featurize(experiment, InProcess(), lambda done: None)["pose"]
    states = {key: row.state for key, row in column.rows.items()}
    assert states == {"a": "sample", "b": "sample", "c": "absent"}
    assert open_column(tmp_path / "data", column.spec.fingerprint).read("b").values.shape == (4, 3)
    asked, _ = ask(experiment, read_rows(experiment.table))
    row = row_of(asked[0])
    assert (row["stream:pose"], row["stream:pose:hz"]) == (str(tmp_path / "a.npy"), 25.0)


def _wav():
    import io
    import wave

    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(32000))
    return buffer.getvalue()
