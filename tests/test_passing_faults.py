"""A fault of the disk or the network is no fault of a clip: waited for, or nothing is concluded."""

import builtins
import errno
import hashlib
import io
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featurizers import opening, transient
from featurizers.clip import BadClipError
from featurizers.decoder import Decoder
from featurizers.intake import RawClip, digest, take_in
from featurizers.limits import Limits
from featurizers.media import decode, probe
from featurizers.opening import open_media
from featurizers.skeletal import read_numbers
from featurizers.spec import AudioWant, VideoWant
from featurizers.store import StorageError
from featurizers.transcript import read_transcript
from pipelines.executors import InProcess
from pipelines.featurize import featurize
from pipelines.ingest import ingest
from pipelines.staging import Stage
from pipelines.worker import ChangedInputError
from tests.media_maker import tone, write
from tests.test_featurize import digests, experiment, film
from tests.weather import Weather

pytestmark = pytest.mark.media
ROOT = Path(__file__).parent.parent
WANTS = [AudioWant(), VideoWant(fps=2, size=16)]
NOW = "could not be read, 5 times .Input/output error.; run the same command again"


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """How long was waited; nobody really waits."""
    slept = []
    monkeypatch.setattr(transient.time, "sleep", slept.append)
    return slept


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Sound and pictures of 14 s, in forms that are read in different ways; each of many reads."""
    folder = tmp_path_factory.mktemp("films")
    noise = np.random.default_rng(1).integers(0, 255, (14, 64, 64, 3), dtype=np.uint8)
    pictures = [(float(i), picture) for i, picture in enumerate(noise)]
    for name, forms in {
        "a.mp4": {},
        "a.mkv": {"audio": "flac"},
        "a.ts": {"audio": "mp2"},
        "a.avi": {"video": "mjpeg", "audio": "pcm_s16le"},
    }.items():
        write(folder / name, pictures=pictures, sound=[(0.0, tone(300, 14.0))], **forms)
    write(folder / "a.wav", sound=[(0.0, tone(300, 14.0))], audio="pcm_s16le")
    write(folder / "a.mp3", sound=[(0.0, tone(300, 14.0))], audio="mp3")
    return folder


def everything(path):
    """What a file gives: its header, all of it, and a span that is sought."""
    found = [plain(probe(path))]
    for start in (0.0, 12.0):
        try:
            events = decode(path, start, None, WANTS, Limits())
            found += [(number, plain(event)) for number, event in events]
        except BadClipError as bad:
            found.append(str(bad))
    return found


def plain(event):
    values = [getattr(event, name) for name in type(event).__slots__]
    return type(event), [v.tobytes() if isinstance(v, np.ndarray) else v for v in values]


def reads_of(path, monkeypatch):
    """How many reads it takes when the weather is fine, and what comes of it."""
    with monkeypatch.context() as patch:
        fine = Weather(path, math.inf)
        patch.setattr(os, "read", fine)
        return everything(path), fine.reads


NAMES = ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.wav", "a.mp3"]


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_that_passes_changes_nothing_whichever_read_it_meets(films, monkeypatch, name):
    undisturbed, reads = reads_of(films / name, monkeypatch)
    assert reads > 10
    for number in range(1, reads + 1):
        monkeypatch.setattr(os, "read", Weather(films / name, number, times=2))
        is_same = everything(films / name) == undisturbed
        assert is_same, f"read {number} of {reads}"


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_that_stays_is_never_a_bad_clip_nor_damage_whichever_read_it_meets(
    films, monkeypatch, waits, name
):
    path = films / name
    for action in (
        lambda: probe(path),
        lambda: list(decode(path, 0.0, None, WANTS, Limits())),
        lambda: list(decode(path, 12.0, None, WANTS, Limits())),
        lambda: list(decode(path, 0.0, 1.0, WANTS, Limits(seconds=0.5))),
    ):
        fine = Weather(path, math.inf)
        monkeypatch.setattr(os, "read", fine)
        outcome(action)
        assert fine.reads > 3
        for number in range(1, fine.reads + 1):
            waits.clear()
            monkeypatch.setattr(os, "read", Weather(path, number))
            assert isinstance(outcome(action), StorageError), f"read {number} of {fine.reads}"
            # Once: what FFmpeg goes on to ask for is not waited for again.
            assert len(waits) == 4


def outcome(action):
    try:
        return action()
    except (BadClipError, StorageError) as error:
        return error


def test_the_error_names_the_file_and_the_reason_and_may_pass(films, monkeypatch):
    monkeypatch.setattr(os, "read", Weather(films / "a.mkv", 5, error=errno.ESTALE))
    with pytest.raises(
        StorageError, match=r"a\.mkv could not be read.*Stale file handle"
    ) as caught:
        list(decode(films / "a.mkv", 0.0, None, WANTS, Limits()))
    assert caught.value.transient


def test_a_kernel_that_says_so_is_believed(tmp_path):
    """Nothing is imitated here: the first page of a process is never there."""
    (tmp_path / "a.mp4").symlink_to("/proc/self/mem")
    with pytest.raises(StorageError, match=NOW):
        probe(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["stat", "open"])
def test_a_file_that_cannot_be_opened_now_is_waited_for(films, monkeypatch, waits, name):
    left, real = [1, 1], getattr(os, name)

    def failing(path, *arguments, **how):
        if str(path).endswith("a.mp4") and left:
            left.pop()
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *arguments, **how)

    expected = probe(films / "a.mp4")
    monkeypatch.setattr(os, name, failing)
    assert probe(films / "a.mp4") == expected
    assert (left, len(waits)) == ([], 2)
    left += [1] * 99
    with pytest.raises(StorageError, match=NOW):
        probe(films / "a.mp4")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_a_file_that_may_not_be_opened_is_a_bad_clip_at_once(films, monkeypatch, waits, code):
    def refused(path, *arguments, **how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(BadClipError, match=f"unreadable: {os.strerror(code)}"):
        probe(films / "a.mp4")
    assert waits == []


@pytest.mark.parametrize("name", ["a.mp4", "a.wav", "a.avi"])
def test_a_file_system_that_gives_less_than_was_asked_for_changes_nothing(films, monkeypatch, name):
    undisturbed, _ = reads_of(films / name, monkeypatch)
    real = os.read
    monkeypatch.setattr(opening.os, "read", lambda handle, size: real(handle, min(size, 100)))
    is_same = everything(films / name) == undisturbed
    assert is_same
    whole = (films / name).read_bytes()
    with open_media(films / name) as file:
        assert [file.read(1000), file.read(), file.read(1)] == [whole[:1000], whole[1000:], b""]


def test_a_place_that_cannot_be_sought_is_waited_for_too_and_not_taken_for_the_beginning(
    films, monkeypatch, waits
):
    path, real, left = films / "a.mp4", os.lseek, []

    def seek(handle, offset, whence):
        if left:
            raise OSError(left[-1], os.strerror(left.pop()))
        return real(handle, offset, whence)

    expected = everything(path)
    monkeypatch.setattr(os, "lseek", seek)
    with open_media(path) as file:
        left += [errno.ESTALE] * 3
        assert (file.seek(-7, os.SEEK_END), file.tell()) == (path.stat().st_size - 7,) * 2
        assert (left, len(waits), len(file.read(9))) == ([], 3, 7)
        left += [errno.ESTALE] * 5
        assert (file.seek(3), file.read(9)) == (-1, b"")
        with pytest.raises(StorageError, match="Stale file handle"):
            file.check()
    is_same = everything(path) == expected
    assert is_same


# In the child.

PROGRAM = """
import os, sys
sys.path.insert(0, {root!r})
from featurizers import decoder_child, transient
from tests.weather import Refusal, Weather
transient.time.sleep = lambda seconds: None
{weather}
decoder_child.serve({parent})
"""


def bad_weather(monkeypatch, path, first, times="10**9"):
    """Let reads of a file fail in every child."""
    in_every_child(monkeypatch, f"os.read = Weather({str(path)!r}, {first}, {times})")


def in_every_child(monkeypatch, weather):
    text = PROGRAM.format(root=str(ROOT), weather=weather, parent=os.getpid())
    monkeypatch.setattr(
        "featurizers.decoder.started",
        lambda: subprocess.Popen(
            [sys.executable, "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        ),
    )


@pytest.mark.parametrize("first", [1, 2, 9])
def test_what_the_child_cannot_read_is_a_storage_error_here_and_the_child_serves_on(
    films, monkeypatch, first
):
    bad_weather(monkeypatch, films / "a.mkv", first)
    with Decoder() as decoder:
        assert decoder.probe(films / "a.wav").audio
        pid = decoder.pid
        with pytest.raises(StorageError, match=rf"a\.mkv {NOW}") as caught:
            for _ in decoder.decode(films / "a.mkv", 0.0, None, WANTS):
                pass
        assert caught.value.transient
        with pytest.raises(StorageError, match=rf"a\.mkv {NOW}"):
            decoder.probe(films / "a.mkv")
        assert list(decoder.decode(films / "a.wav", 0.0, None, WANTS))
        assert decoder.pid == pid


def test_ingest_takes_no_duration_from_a_file_that_cannot_be_read_now(films, monkeypatch):
    path = films / "a.mkv"
    raw = RawClip(key="a", id="a", media=str(path), path=path, columns={})
    bad_weather(monkeypatch, path, 3)
    with Decoder() as decoder, pytest.raises(StorageError, match=NOW):
        take_in(raw, decoder)


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(4):
        film(folder / f"{number}.mp4", number)
    return [
        {"id": f"who{i}", "media": str(folder / f"{i}.mp4"), "transcript": "so so", "mood": i / 2}
        for i in range(4)
    ]


@pytest.mark.parametrize("first", [1, 4])
def test_nothing_is_committed_of_a_shard_whose_media_cannot_be_read_now(
    tmp_path, table, monkeypatch, first
):
    made = experiment(tmp_path / "calm", table, shards={"clips": 2})
    ingest(made, InProcess(), lambda count: None)
    featurize(made, InProcess(), lambda done: None)
    made_there = experiment(tmp_path / "storm", table, shards={"clips": 2})
    ingest(made_there, InProcess(), lambda count: None)
    with monkeypatch.context() as patch:
        bad_weather(patch, table[0]["media"], first)
        with pytest.raises(StorageError, match=rf"0\.mp4 {NOW}"):
            featurize(made_there, InProcess(), lambda done: None)
    begun = digests(made_there.root)
    whole = digests(made.root)
    assert begun.items() < whole.items()
    assert not any(name.endswith("manifest.json") for name in begun)
    featurize(made_there, InProcess(), lambda done: None)
    assert digests(made_there.root) == whole


def test_a_shard_is_the_same_when_its_media_could_not_be_read_for_a_while(
    tmp_path, table, monkeypatch
):
    made = experiment(tmp_path / "calm", table)
    ingest(made, InProcess(), lambda count: None)
    featurize(made, InProcess(), lambda done: None)
    bad_weather(monkeypatch, table[0]["media"], 2, times=4)
    made_there = experiment(tmp_path / "storm", table)
    ingest(made_there, InProcess(), lambda count: None)
    featurize(made_there, InProcess(), lambda done: None)
    assert digests(made_there.root) == digests(made.root)


# Digests.


def failing(monkeypatch, path, times, code=errno.EIO):
    """Let opening a file in this process fail so many times; the list of what is left of them."""
    left, real = [code] * times, Path.open

    def opened(self, *arguments, **how):
        if self == path and left:
            raise OSError(left[-1], os.strerror(left.pop()))
        return real(self, *arguments, **how)

    monkeypatch.setattr(Path, "open", opened)
    return left


def test_a_digest_waits_for_a_file_that_cannot_be_read_for_a_while(films, monkeypatch, waits):
    path = films / "a.wav"
    wanted = hashlib.sha256(path.read_bytes()).hexdigest()
    left = failing(monkeypatch, path, 3)
    assert digest(path) == wanted
    assert (left, len(waits)) == ([], 3)
    failing(monkeypatch, path, 5)
    with pytest.raises(StorageError, match=rf"a\.wav {NOW}"):
        digest(path)


def test_a_file_of_which_nobody_can_say_whether_it_is_there_is_not_taken_for_absent(
    tmp_path, monkeypatch
):
    assert digest(tmp_path) == digest(tmp_path / "nothing") == ""
    path, real = tmp_path / "a.wav", Path.stat

    def lost(self, **how):
        if self == path:
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(self, **how)

    monkeypatch.setattr(Path, "stat", lost)
    with pytest.raises(StorageError, match=r"Stale file handle"):
        digest(path)


def test_media_that_nobody_may_read_cost_their_own_clip_and_say_why(tmp_path, table, monkeypatch):
    """Root may read everything: the refusal is imitated in this process and in the child."""
    path = Path(table[0]["media"])
    failing(monkeypatch, path, 10**3, errno.EACCES)
    in_every_child(monkeypatch, f"os.open = Refusal({str(path)!r})")
    made = experiment(tmp_path / "work", table, max_dropped=0.5)
    assert ingest(made, InProcess(), lambda count: None).counts["unreadable"] == 1
    rows = featurize(made, InProcess(), lambda done: None)["audio"].rows
    assert (rows["who0"].fault, rows["who0"].message) == ("unreadable", "Permission denied")
    assert [rows[f"who{i}"].state for i in (1, 2, 3)] == ["sample"] * 3


def test_media_that_may_not_be_read_any_more_stop_the_job_until_they_may(
    tmp_path, table, monkeypatch
):
    made = experiment(tmp_path / "work", table, shards={"clips": 2})
    ingest(made, InProcess(), lambda count: None)
    path = Path(table[0]["media"])
    with monkeypatch.context() as patch:
        left = failing(patch, path, 10**3, errno.EPERM)
        with pytest.raises(
            ChangedInputError, match=rf"who0.*{path} cannot be read .Operation not permitted.; run"
        ):
            featurize(made, InProcess(), lambda done: None)
        assert len(left) > 990  # not waited for
    columns = featurize(made, InProcess(), lambda done: None)
    assert all(row.state == "sample" for row in columns["audio"].rows.values())


# Other inputs.


def refused_by_stat(monkeypatch, path, code):
    real = Path.stat

    def stat(self, **how):
        if self == path:
            raise OSError(code, os.strerror(code))
        return real(self, **how)

    monkeypatch.setattr(Path, "stat", stat)


@pytest.mark.parametrize("name", ["pose.npy", "pose.csv"])
def test_a_stream_that_cannot_be_read_now_is_no_bad_stream(tmp_path, monkeypatch, name):
    path = tmp_path / name
    np.save(tmp_path / "pose.npy", np.ones((2, 1)))
    (tmp_path / "pose.csv").write_text("a\n1\n1\n")
    real, left = builtins.open, [errno.EIO] * 2

    def opened(file, *arguments, **how):
        if str(file) == str(path) and left:
            raise OSError(left[-1], os.strerror(left.pop()))
        return real(file, *arguments, **how)

    # `Path.open` and numpy find it under either name.
    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(io, "open", opened)
    values, _ = read_numbers(path, 1.0)
    assert (values.tolist(), left) == ([[1.0], [1.0]], [])
    left += [errno.EIO] * 5
    with pytest.raises(StorageError, match=rf"{name} {NOW}"):
        read_numbers(path, 1.0)
    refused_by_stat(monkeypatch, path, errno.ESTALE)
    with pytest.raises(StorageError, match="Stale file handle"):
        read_numbers(path, 1.0)


def test_a_transcript_that_cannot_be_read_now_is_no_bad_transcript(tmp_path, monkeypatch):
    path = tmp_path / "said.txt"
    path.write_text("so so")
    left = failing(monkeypatch, path, 2)
    assert (read_transcript(path), left) == ("so so", [])
    failing(monkeypatch, path, 5)
    with pytest.raises(StorageError, match=rf"said\.txt {NOW}"):
        read_transcript(path)


def test_media_of_which_nobody_can_say_whether_they_are_there_are_not_taken_for_absent(
    tmp_path, monkeypatch
):
    stage, path = Stage(folder=tmp_path / "cache", limit_bytes=1), tmp_path / "a.wav"
    assert stage.local(str(path)) is None
    assert stage.local(str(tmp_path / "a\0b")) is None
    path.touch()
    assert stage.local(str(path)) == path
    with monkeypatch.context() as patch:
        refused_by_stat(patch, path, errno.EACCES)
        assert stage.local(str(path)) is None
    refused_by_stat(monkeypatch, path, errno.ETIMEDOUT)
    with pytest.raises(StorageError, match="timed out"):
        stage.local(str(path))
