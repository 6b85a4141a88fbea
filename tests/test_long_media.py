"""Long media: two hours of 1080p stay below 2 GB, and are taken to their end.

A film of some seconds is encoded and its packets are repeated with later times.
"""

import json
import logging
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from featurizers import media
from featurizers.limits import Limits
from featurizers.manifest import open_column
from featurizers.media import encode
from featurizers.spec import AudioChunk, AudioWant, VideoChunk, VideoWant
from pipelines.executors import InProcess
from pipelines.experiment import load
from pipelines.ingest import ingest
from pipelines.logbook import read_logs
from tests.media_maker import voice

pytestmark = pytest.mark.media
ROOT = Path(__file__).parent.parent
RATE = 16_000
PIECE_S = 9.6  # as long as 150 frames of AAC
TWO_HOURS = 750 * PIECE_S
FIVE_MINUTES = 32 * PIECE_S
FULL_HD = (1080, 1920)
GIGABYTE = 1e9
LOOK_S = 0.05


def encode_piece(path, size, fps):
    """A box wanders over a slope while a voice rises, so that the end joins the beginning."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    slope = ((np.sin(x / width * 30) + np.cos(y / height * 20) + 2) * 50).astype(np.uint8)
    count, side = round(PIECE_S * fps), height // 4

    def pictures():
        for number in range(count):
            picture = slope.copy()
            left = round(width / 3 * (1 + np.sin(2 * np.pi * number / count)))
            picture[side : 3 * side, left : left + side] = 40 + number * 7 % 180
            yield np.repeat(picture[..., np.newaxis], 3, axis=2)

    # The encoder's last frames fade out: they lie behind the piece and are left out.
    seconds = PIECE_S + 0.5
    sound = voice(np.linspace(100, 200, round(seconds * RATE)), seconds)
    encode(path, frames=pictures(), fps=fps, samples=sound, rate_hz=RATE)


def repeat(piece, path, times):
    """Write a film that is a piece many times over; nothing is encoded anew."""
    import av

    with av.open(str(piece)) as source, av.open(str(path), "w", format="mp4") as out:
        streams = [out.add_stream_from_template(stream) for stream in source.streams]
        packets = [packet for packet in source.demux() if packet.size]
        packets = [each for each in packets if 0 <= each.pts < PIECE_S / each.time_base - 0.5]
        packets.sort(key=lambda each: each.dts * each.time_base)
        for turn in range(times):
            for each in packets:
                later = round(turn * PIECE_S / each.time_base)
                packet = av.Packet(bytes(each))
                packet.stream, packet.time_base = streams[each.stream_index], each.time_base
                packet.pts, packet.dts = each.pts + later, each.dts + later
                packet.duration, packet.is_keyframe = each.duration, each.is_keyframe
                out.mux(packet)


def film(folder, seconds, *, size=FULL_HD, fps=25):
    """A film of so many seconds, of which only a piece was encoded."""
    piece, path = folder / "piece.mp4", folder / "film.mp4"
    encode_piece(piece, size, fps)
    repeat(piece, path, round(seconds / PIECE_S))
    return path


@dataclass
class Peak:
    """The most resident memory of a process, of its children, and of all of them at one moment."""

    own: int = 0
    children: int = 0
    together: int = 0


class Watch:
    """Looks at a process and all below it every LOOK_S; use as a context manager.

    Attributes:
        peaks: Of each process, by its id.
    """

    def __init__(self, pid):
        self.peaks = {}
        self._root, self._ended = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *raised):
        self._ended.set()
        self._thread.join()

    def _run(self):
        while not self._ended.wait(LOOK_S):
            try:
                self._look([self._root, *self._root.children(recursive=True)])
            except psutil.NoSuchProcess:
                return

    def _look(self, processes):
        own, children = {}, {}
        for process in processes:
            try:
                rss, parent = process.memory_info().rss, process.ppid()
            except psutil.NoSuchProcess:
                continue
            own[process.pid] = rss
            children[parent] = children.get(parent, 0) + rss
        for pid, rss in own.items():
            peak, below = self.peaks.setdefault(pid, Peak()), children.get(pid, 0)
            peak.own, peak.children = max(peak.own, rss), max(peak.children, below)
            peak.together = max(peak.together, rss + below)


@dataclass
class Featurized:
    """What the command made of a film.

    Attributes:
        columns: By stream.
        job: The one line of the log.
        peak: Of the worker that did it.
    """

    columns: dict
    job: dict
    peak: Peak


def featurize(folder, path, spans, workers):
    """Featurize spans of a film, in one shard, by the command in a process of its own."""
    rows = [
        {"id": f"from{start:.0f}", "media": str(path), "start": start, "end": end, "mood": start}
        for start, end in spans
    ]
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "experiment.yaml"
    settings = {
        "dataset": "dataset",
        "source": {"table": "clips.jsonl", "label": "mood", "media_root": [str(path.parent)]},
        "features": {
            "audio": {"featurizer": "logmel"},
            "video": {"featurizer": "face-motion", "fps": 5},
        },
        "shards": {"minutes": 240},
        "workers": {"featurize": workers},
        "max_dropped": 0,
    }
    file.write_text(yaml.safe_dump(settings))
    experiment = load(file)
    ingest(experiment, InProcess(), lambda count: None)
    command = [sys.executable, "-m", "pipelines", "featurize", str(file)]
    with (
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
        Watch(process.pid) as watch,
    ):
        said, _ = process.communicate()
    assert process.returncode == 0, said
    (job,) = (line for line in read_logs(experiment.root) if line["kind"] == "job")
    columns = {
        stream: open_column(experiment.root, each.spec.fingerprint)
        for stream, each in experiment.featurizers().items()
    }
    return Featurized(columns, job, watch.peaks[job["pid"]])


def hold(found, spans, *, below):
    """All steps of all spans are there, and no more memory was taken than is said."""
    for start, end in spans:
        sound, pictures = (found.columns[each].read(f"from{start:.0f}") for each in found.columns)
        for feature, step in ((sound, 0.01), (pictures, 0.2)):
            assert len(feature.values) == round((end - start) / step)
            assert feature.times[0] == pytest.approx([0, step])
            assert feature.times[-1, 1] == pytest.approx(end - start)
            # It goes on to the very end: the last piece is as loud and as lively as the others.
            tail = feature.values[-round(PIECE_S / step) :]
            assert np.ptp(tail, axis=0).max() > 10
    for column in found.columns.values():
        assert [row.message for row in column.rows.values()] == [""] * len(spans)
    told = (found.job["peak_bytes"], found.job["decoder_peak_bytes"])
    logging.getLogger(__name__).info(
        "%s, told %s, %s s, %s", found.peak, told, found.job["seconds"], found.job["stages"]
    )
    assert found.peak.own > 100e6, "another process was looked at"
    assert found.peak.children > 30e6, "the decoding child was not seen"
    assert max(found.peak.together, sum(told)) < below


@pytest.mark.slow
@pytest.mark.soak
def test_five_minutes_in_full_hd_are_never_held_whole(tmp_path):
    spans = [(0.0, FIVE_MINUTES)]
    path = film(tmp_path, FIVE_MINUTES, fps=10)
    ballast = bytearray(b"1") * (800 << 20)  # is ours, and not to be told of the worker
    found = featurize(tmp_path, path, spans, workers=0)
    del ballast
    # Decoded, the pictures alone would take 6 GB.
    hold(found, spans, below=GIGABYTE)
    assert found.job["peak_bytes"] < 1.3 * found.peak.own


@pytest.fixture(scope="module")
def two_hours(tmp_path_factory):
    return film(tmp_path_factory.mktemp("film"), TWO_HOURS)


WHOLE = [(0.0, TWO_HOURS)]
HALVES = [(0.0, TWO_HOURS / 2), (TWO_HOURS / 2, TWO_HOURS)]


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("spans", "workers"),
    [(WHOLE, 0), pytest.param(HALVES, 1, marks=pytest.mark.ray)],
    ids=["whole", "halves-on-ray"],
)
def test_two_hours_in_full_hd_stay_below_2_gb(tmp_path, two_hours, spans, workers):
    hold(featurize(tmp_path, two_hours, spans, workers), spans, below=2 * GIGABYTE)


def test_halves_of_a_film_cost_no_more_than_the_whole(tmp_path, monkeypatch):
    seconds, middle = 12 * PIECE_S, 60.0
    path = film(tmp_path, seconds, size=(96, 128))
    fed, feed = [], media._feed

    def counted(packet, takers):
        fed.append(packet.size)
        return feed(packet, takers)

    monkeypatch.setattr(media, "_feed", counted)

    def decoded(start, end):
        fed.clear()
        wants = [AudioWant(rate_hz=RATE), VideoWant(fps=5, size=48)]
        chunks = [chunk for _, chunk in media.decode(path, start, end, wants, Limits())]
        sound = [each.samples for each in chunks if isinstance(each, AudioChunk)]
        pictures = [each.frames for each in chunks if isinstance(each, VideoChunk)]
        return len(fed), np.concatenate(sound), np.concatenate(pictures)

    whole, first, second = decoded(0, None), decoded(0, middle), decoded(middle, None)
    a_second = whole[0] / seconds
    # From the key picture that lies at most a piece before, with a margin.
    assert first[0] + second[0] < whole[0] + (PIECE_S + 2) * a_second
    np.testing.assert_array_equal(np.concatenate([first[2], second[2]]), whole[2])
    # AAC fills bands with noise, and goes on with it from where it began.
    np.testing.assert_allclose(np.concatenate([first[1], second[1]]), whole[1], atol=8)
