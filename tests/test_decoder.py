"""The decoding child: warm, killable, and trusted with nothing."""

import itertools
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from featurizers.clip import BadClipError, Clip
from featurizers.damage import Damage
from featurizers.decoder import Decoder
from featurizers.decoder_process import Child, DecoderDiedError, GivenUpError
from featurizers.extract import extract
from featurizers.limits import Limits
from featurizers.media import NoStream, decode, encode, probe
from featurizers.spec import (
    AudioChunk,
    AudioWant,
    Dim,
    Feature,
    FeatureSpec,
    VideoChunk,
    VideoWant,
)
from tests.media_maker import flat, stairs, tone, write

pytestmark = pytest.mark.media
ROOT = Path(__file__).parent.parent
SOUND, PICTURES = AudioWant(), VideoWant(fps=5, size=16)


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as shared:
        yield shared


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A short clip, one of more sound than a pipe holds, one without sound, one of no media."""
    folder = tmp_path_factory.mktemp("clips")
    encode(folder / "short.mp4", frames=stairs(25), fps=25, samples=tone(300, 1.0), rate_hz=16_000)
    encode(folder / "long.mp4", frames=None, fps=25, samples=tone(300, 90.0), rate_hz=16_000)
    encode(folder / "mute.mp4", frames=stairs(25), fps=25, samples=None, rate_hz=16_000)
    (folder / "bad.mp4").write_text("hello")
    return folder


def gone(pid, seconds=10.0):
    """Whether a process ends within that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def same_events(one, other):
    assert [(i, type(event)) for i, event in one] == [(i, type(event)) for i, event in other]
    for (_, left), (_, right) in zip(one, other, strict=True):
        for name in type(left).__slots__:
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


def test_the_child_gives_what_decoding_here_gives(decoder, clips):
    for name in ("short.mp4", "mute.mp4"):
        wants = [PICTURES, SOUND, VideoWant(fps=2, size=8, colour="rgb")]
        there = list(decoder.decode(clips / name, 0.2, 0.9, wants))
        same_events(there, list(decode(clips / name, 0.2, 0.9, wants, Limits())))
        assert decoder.probe(clips / name) == probe(clips / name)
    assert {type(event) for _, event in there} == {VideoChunk, NoStream}


def test_damage_is_told_by_the_child_too(decoder, clips, tmp_path):
    path = tmp_path / "a.mkv"
    write(path, sound=[(0.0, tone(150, 4.0))], audio="flac")
    content = bytearray(path.read_bytes())
    frames = [at for at in range(len(content) - 1) if content[at : at + 2] == b"\xff\xf8"]
    content[frames[5] : frames[5] + 4] = b"\0\0\0\0"
    path.write_bytes(content)
    events = [event for _, event in decoder.decode(path, 0.0, None, [SOUND])]
    assert isinstance(events[-1], Damage)
    same_events([(0, event) for event in events], list(decode(path, 0.0, None, [SOUND], Limits())))


def test_the_child_is_warm_also_after_a_bad_clip(decoder, clips):
    decoder.probe(clips / "short.mp4")
    pid = decoder.pid
    list(decoder.decode(clips / "short.mp4", 0.0, None, [SOUND]))
    with pytest.raises(BadClipError) as caught:
        list(decoder.decode(clips / "bad.mp4", 0.0, None, [SOUND]))
    assert caught.value.fault == "unreadable"
    with pytest.raises(BadClipError):
        decoder.probe(clips / "bad.mp4")
    list(decoder.decode(clips / "mute.mp4", 0.0, None, [PICTURES]))
    assert decoder.pid == pid


def test_a_decoding_that_is_given_up_leaves_nothing_behind(decoder, clips):
    events = decoder.decode(clips / "long.mp4", 0.0, None, [SOUND])
    next(events)
    pid = decoder.pid
    events.close()
    assert gone(pid)
    assert list(decoder.decode(clips / "short.mp4", 0.0, None, [SOUND]))


def test_closing_ends_the_child_and_another_call_starts_one(clips):
    decoder = Decoder()
    assert decoder.pid is None
    decoder.probe(clips / "short.mp4")
    pid = decoder.pid
    decoder.close()
    assert (gone(pid), decoder.pid) == (True, None)
    decoder.close()
    decoder.probe(clips / "short.mp4")
    assert decoder.pid != pid
    decoder.close()


def test_a_child_that_died_between_two_clips_is_replaced(decoder, clips):
    decoder.probe(clips / "short.mp4")
    os.kill(decoder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, decoder.pid, os.WEXITED | os.WNOWAIT)
    assert list(decoder.decode(clips / "short.mp4", 0.0, None, [SOUND]))


# Killed in the middle of a clip.


class Loudness:
    """A step for each chunk; kills the decoder at the first one, in so many attempts."""

    spec = FeatureSpec(
        name="loudness",
        version=1,
        modality="audio",
        reads=("audio",),
        dims=(Dim("peak"),),
        rate_hz=None,
    )
    wants = SOUND

    def __init__(self, decoder, kills=0):
        self.decoder, self.kills, self.begun = decoder, kills, 0

    def begin(self, clip):
        self.begun += 1
        self.peaks = []
        return self

    def add(self, chunk):
        # Once each: chunks that wait in the pipe still come after it.
        if self.kills and not self.peaks:
            self.kills -= 1
            os.kill(self.decoder.pid, signal.SIGKILL)
        self.peaks.append(float(np.abs(chunk.samples.astype(int)).max()))

    def finish(self):
        values = np.array(self.peaks, dtype=np.float32)[:, np.newaxis]
        return Feature(values, np.zeros((len(values), 2)))


def extracted(path, featurizer, decoder):
    clip = Clip(key="a", id="a", media=str(path), media_digest="", seconds=1.0)
    (outcome,) = extract(clip, path, [featurizer], decoder)
    return outcome


def test_a_child_that_is_killed_once_costs_nothing(decoder, clips):
    undisturbed = extracted(clips / "long.mp4", Loudness(decoder), decoder)
    featurizer = Loudness(decoder, kills=1)
    outcome = extracted(clips / "long.mp4", featurizer, decoder)
    assert (outcome.state, featurizer.begun) == ("sample", 2)
    np.testing.assert_array_equal(outcome.feature.values, undisturbed.feature.values)


def test_a_clip_whose_child_dies_twice_is_quarantined_and_the_next_one_is_not(decoder, clips):
    outcome = extracted(clips / "long.mp4", Loudness(decoder, kills=2), decoder)
    assert (outcome.state, outcome.fault) == ("quarantined", "crashed")
    assert "code -9, twice" in outcome.message
    assert extracted(clips / "short.mp4", Loudness(decoder), decoder).state == "sample"


# Limits.


def test_a_clip_that_takes_too_much_time_is_timed_out(tmp_path):
    path = tmp_path / "sparse.mkv"
    write(path, pictures=[(0.0, flat(30)), (14_000.0, flat(90))])
    with Decoder(Limits(cpu_seconds=0.5, cpu_share=0)) as strict:
        with pytest.raises(DecoderDiedError, match="used up its CPU seconds") as caught:
            for _ in strict.decode(path, 0.0, None, [VideoWant(fps=100, size=64)]):
                pass
        assert caught.value.fault == "timed_out"


def test_a_child_that_hangs_is_timed_out(clips):
    with Decoder() as impatient:
        impatient.probe(clips / "short.mp4")
        impatient.limits = Limits(
            cpu_seconds=0.05, cpu_share=0
        )  # and 20 times that by the clock on the wall
        events = impatient.decode(clips / "long.mp4", 0.0, None, [SOUND])
        next(events)
        pid = impatient.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(DecoderDiedError, match="gave nothing") as caught:
            list(events)
        assert caught.value.fault == "timed_out"
        assert gone(pid)


# A child whose decoding is ours; all else of it is the real one.
PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
import numpy as np
import featurizers.decoder_child as d
from featurizers.media import NoStream, Probe
from featurizers.spec import AudioChunk

def second(at):
    return 0, AudioChunk(float(at), np.zeros(16_000, np.int16))

def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass

def decoded(path, start, end, wants, limits, *, clocks):
    if {silence}:
        yield second(0)
{body}

def probed(path):
    burn(1.3)
    return Probe(seconds=1.0, audio=True, video=False)

d.decode, d.probe = decoded, probed
d.serve({parent})
"""


def started(body, *, silence=True):
    lines = textwrap.indent(textwrap.dedent(body), "    ")
    program = PROGRAM.format(root=str(ROOT), parent=os.getpid(), silence=silence, body=lines)
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )


def decoding(monkeypatch, body, *, silence=True):
    """Let every child decode by these lines, after a first second of silence."""
    monkeypatch.setattr("featurizers.decoder.started", lambda: started(body, silence=silence))


def all_of(decoder, path="a", wants=(SOUND,)):
    return list(decoder.decode(Path(path), 0.0, None, wants))


SLOWLY = """
for at in range(1, 7):
    burn(0.4)
    yield second(at)
"""


@pytest.mark.parametrize(("share", "whole"), [(1.0, True), (0.01, False)])
def test_time_is_earned_by_media_that_came_and_not_by_what_a_header_says(monkeypatch, share, whole):
    decoding(monkeypatch, SLOWLY)
    with Decoder(Limits(cpu_seconds=0.1, cpu_share=share)) as decoder:
        if whole:
            assert len(all_of(decoder)) == 7
            assert decoder.spent.cpu_seconds == pytest.approx(2.4, abs=0.6)
        else:
            with pytest.raises(DecoderDiedError, match="used up its CPU seconds"):
                all_of(decoder)
            assert 0.3 < decoder.spent.cpu_seconds < 2.0


def test_a_chunk_whose_clock_lies_earns_no_time(monkeypatch):
    """One that claims to lie a year after the others earns what the longest span would."""
    decoding(monkeypatch, "yield second(3e7); burn(60)")
    limits = Limits(cpu_seconds=0.5, cpu_share=1.0, seconds=0.5)
    with Decoder(limits) as decoder, pytest.raises(DecoderDiedError, match="its CPU seconds"):
        all_of(decoder)


@pytest.fixture
def _nobody_is_too_slow(monkeypatch):
    """A busy machine makes of one CPU second many by the clock on the wall."""
    monkeypatch.setattr("featurizers.decoder.WALL_FACTOR", 1e4)


@pytest.mark.usefixtures("_nobody_is_too_slow")
def test_what_lies_before_a_span_may_take_its_time_too(monkeypatch):
    decoding(monkeypatch, "burn(1.3); yield second(0)", silence=False)
    with Decoder(Limits(cpu_seconds=0.1, cpu_share=0)) as decoder:
        with pytest.raises(DecoderDiedError, match="used up its CPU seconds"):
            all_of(decoder)
        assert list(decoder.decode(Path("a"), 3.0, None, [SOUND]))


@pytest.mark.usefixtures("_nobody_is_too_slow")
def test_a_want_of_few_pictures_has_the_time_that_its_first_chunk_may_take(monkeypatch):
    decoding(monkeypatch, "burn(1.3); yield 0, NoStream('video')", silence=False)
    with Decoder(Limits(cpu_seconds=0.1, cpu_share=0.1)) as decoder:
        with pytest.raises(DecoderDiedError, match="used up its CPU seconds"):
            all_of(decoder, wants=[VideoWant(fps=100, size=16)])
        assert all_of(decoder, wants=[VideoWant(fps=1, size=16)])


@pytest.mark.usefixtures("_nobody_is_too_slow")
def test_a_probe_of_a_large_file_may_take_longer(monkeypatch, tmp_path):
    decoding(monkeypatch, "")
    small, large = tmp_path / "small.ts", tmp_path / "large.ts"
    small.touch()
    with large.open("wb") as file:
        file.truncate(40 << 20)
    with Decoder(Limits(cpu_seconds=0.01)) as decoder:
        with pytest.raises(BadClipError, match="used up its CPU seconds, twice"):
            decoder.probe(small)
        assert decoder.probe(large).seconds == 1.0


def test_a_span_far_from_the_beginning_is_waited_for_longer(monkeypatch):
    decoding(monkeypatch, "time.sleep(0.5); yield second(0)", silence=False)
    with Decoder(Limits(cpu_seconds=0.01, cpu_share=0)) as decoder:
        with pytest.raises(DecoderDiedError, match="gave nothing"):
            all_of(decoder)
        assert list(decoder.decode(Path("a"), 60.0, None, [SOUND]))


HELD, SPIKE = "x = bytearray(400 << 20); time.sleep(30)", "x = bytearray(400 << 20); del x"
STEADY = """
x = bytearray(400 << 20)
for at in range(1, 1_000_000):
    yield second(at)
"""
TOO_MUCH = "the decoder took more memory than the 200 MiB that are permitted"


@pytest.mark.parametrize("body", [HELD, SPIKE, STEADY, "x = np.empty(8 << 30, np.uint8)"])
def test_a_clip_that_takes_too_much_memory_is_crashed_whoever_sees_it(monkeypatch, body):
    decoding(monkeypatch, body)
    with Decoder(Limits(memory_bytes=200 << 20)) as narrow:
        events = narrow.decode(Path("a"), 0.0, None, [SOUND])
        next(events)
        pid = narrow.pid
        with pytest.raises(DecoderDiedError) as caught:
            list(events)
        # The same words however it was seen: they are kept in shards, which must not differ.
        assert (caught.value.fault, str(caught.value)) == ("crashed", TOO_MUCH)
        assert gone(pid)
        if body in (HELD, STEADY):
            assert narrow.spent.peak_bytes > 200 << 20
        assert narrow.peak_bytes == narrow.spent.peak_bytes


def test_memory_that_is_free_again_before_the_parent_looks_counts_too(monkeypatch):
    monkeypatch.setattr("featurizers.decoder_process.WATCH_S", 3600.0)
    decoding(monkeypatch, SPIKE)
    narrow = Limits(memory_bytes=200 << 20)
    with Decoder(narrow) as decoder, pytest.raises(DecoderDiedError, match="more memory"):
        all_of(decoder)


def test_the_peak_of_one_clip_is_not_held_against_the_next(monkeypatch):
    decoding(monkeypatch, 'x = bytearray((150 if path.name == "big" else 1) << 20); del x')
    with Decoder() as decoder:
        peaks = []
        for name in ("small", "big", "small"):
            all_of(decoder, name)
            peaks.append(decoder.spent.peak_bytes >> 20)
        assert peaks[1] > peaks[0] + 100
        assert peaks[2] < peaks[0] + 50
        assert decoder.peak_bytes >> 20 == peaks[1]


GREEDY = """
yield from map(second, range(1, 60))
x = bytearray(400 << 20)
for at in range(60, 10**12):
    yield second(at)
"""


def test_memory_is_looked_at_too_while_a_slow_parent_never_has_to_wait(monkeypatch):
    """The child itself looks only at the end of a clip, and this one has none."""
    decoding(monkeypatch, GREEDY)
    with Decoder(Limits(memory_bytes=200 << 20)) as narrow:
        events = narrow.decode(Path("a"), 0.0, None, [SOUND])
        with pytest.raises(DecoderDiedError, match="more memory"):
            any(time.sleep(0.03) for _ in itertools.islice(events, 300))


def test_a_child_that_dies_leaves_no_picture_of_its_memory(clips):
    """A dump would hold the clip, and as much of the disk as it had memory."""
    with Decoder() as decoder:
        all_of(decoder, clips / "short.mp4")
        told = Path(f"/proc/{decoder.pid}/limits").read_text()
    (line,) = (line for line in told.splitlines() if line.startswith("Max core file size"))
    assert line.split()[4:6] == ["0", "0"]


def test_what_a_library_prints_is_not_taken_for_an_answer(monkeypatch):
    decoding(monkeypatch, "print('hello', flush=True); d.os.write(1, b'hello'); yield second(1)")
    with Decoder() as decoder:
        assert len(all_of(decoder)) == 2


def test_ctrl_c_is_not_for_the_child(decoder, clips):
    """A terminal sends it to all; the parent ends the child, or finishes its clip."""
    decoder.probe(clips / "short.mp4")
    pid = decoder.pid
    os.kill(pid, signal.SIGINT)
    assert all_of(decoder, clips / "short.mp4")
    assert decoder.pid == pid


def test_a_child_that_decodes_nothing_yet_has_one_thread_that_works_and_one_that_watches(tmp_path):
    """Libraries of arithmetic would start one for each core, in each of many workers."""
    (tmp_path / "bad.mp4").write_text("hello")
    with Decoder() as decoder:
        with pytest.raises(BadClipError):
            decoder.probe(tmp_path / "bad.mp4")
        assert len(list(Path(f"/proc/{decoder.pid}/task").iterdir())) == 2


def test_the_child_decodes_ahead_of_a_parent_that_is_busy(monkeypatch, tmp_path):
    decoding(monkeypatch, "yield from map(second, range(1, 12)); path.touch(); yield second(12)")
    with Decoder() as decoder:
        events = decoder.decode(tmp_path / "ahead", 0.0, None, [SOUND])
        next(events)
        until = time.monotonic() + 20
        while not (tmp_path / "ahead").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        assert len(list(events)) == 12


def test_chunks_are_aligned_and_nobody_writes_into_them(monkeypatch):
    decoding(monkeypatch, "yield from map(second, (1, 22, 333, 4444, 55555, 666666))")
    with Decoder() as decoder:
        for _, sound in all_of(decoder):
            assert sound.samples.flags.aligned
            assert not sound.samples.flags.writeable


def test_a_huge_picture_costs_itself_and_no_other_clip(tmp_path, clips):
    path = tmp_path / "huge.mkv"
    write(path, pictures=[(0.0, np.zeros((8000, 8000, 3), np.uint8))], video="mjpeg")
    with Decoder(Limits(memory_bytes=250 << 20)) as narrow:
        all_of(narrow, clips / "short.mp4", [SOUND, PICTURES])
        wants = [VideoWant(fps=5, size=16, colour="rgb")]
        with pytest.raises(DecoderDiedError) as caught:
            list(narrow.decode(path, 0.0, None, wants))
        assert (caught.value.fault, "250 MiB" in str(caught.value)) == ("crashed", True)
        assert all_of(narrow, clips / "short.mp4", [SOUND, PICTURES])


def test_a_clip_that_nobody_wants_any_more_is_given_up(monkeypatch):
    decoding(monkeypatch, "time.sleep(60)")
    with Decoder() as decoder:
        wanted = [True]
        events = decoder.decode(Path("a"), 0.0, None, [SOUND], given_up=lambda: not wanted[0])
        next(events)
        pid = decoder.pid
        wanted[0] = False
        with pytest.raises(GivenUpError):
            next(events)
        assert gone(pid)


# What a clip cost.


def test_what_a_clip_cost_is_told_by_the_child(decoder, clips):
    all_of(decoder, clips / "long.mp4")
    long = decoder.spent
    assert 0 < long.cpu_seconds < 20
    assert long.seconds > 0
    assert 20 << 20 < long.peak_bytes <= decoder.peak_bytes < 2 << 30
    with pytest.raises(BadClipError):
        all_of(decoder, clips / "bad.mp4")
    assert decoder.spent != long
    assert decoder.spent.cpu_seconds < long.cpu_seconds


def test_waiting_until_chunks_are_taken_is_not_counted_as_busy(monkeypatch):
    decoding(monkeypatch, "for at in range(1, 100): yield second(at)")  # 3 MiB
    with Decoder() as decoder:
        began = time.perf_counter()
        events = decoder.decode(Path("a"), 0.0, None, [SOUND])
        next(events)
        time.sleep(1.0)
        list(events)
        assert decoder.spent.seconds < time.perf_counter() - began - 0.3


def test_what_a_clip_cost_that_killed_its_child_is_known_too(monkeypatch):
    decoding(monkeypatch, "burn(0.5); sys.exit(0) if path.name == 'a' else 0; d.os._exit(3)")
    with Decoder() as decoder:
        with pytest.raises(DecoderDiedError, match="code 3"):
            all_of(decoder, "b")
        assert decoder.spent.cpu_seconds == pytest.approx(0.6, abs=0.3)
        assert decoder.spent.seconds > 0.3


@pytest.mark.parametrize(
    ("limits", "fault"), [(Limits(seconds=0.5), "too_long"), (Limits(pixels=100), "too_large")]
)
def test_the_child_knows_the_limits(clips, limits, fault):
    with Decoder(limits) as strict, pytest.raises(BadClipError) as caught:
        list(strict.decode(clips / "short.mp4", 0.0, None, [PICTURES]))
    assert caught.value.fault == fault


# Parents and decoys.

PARENT = """
import os, sys, time
from pathlib import Path
import featurizers.decoder as d
from featurizers.spec import AudioWant
from tests.test_decoder import started

body, held = sys.argv[1], sys.argv[2] == "held"
decoder = d.Decoder()
if body:
    d.started = lambda: started(body)
    events = decoder.decode(Path("a"), 0.0, None, [AudioWant()])
    next(events)
else:
    decoder._start()
holder = os.fork() if held else -1
if not holder:
    time.sleep(60)
print(decoder.pid, holder, flush=True)
sys.stdin.read()
"""
ENDLESS = "for at in range(1, 1_000_000): yield second(at)"


@pytest.mark.parametrize(
    ("body", "held"),
    [("", ""), (ENDLESS, ""), ("time.sleep(60)", ""), ("burn(60)", ""), ("time.sleep(60)", "held")],
    ids=["idle", "writing", "in a long decode", "busy", "pipes held open by another process"],
)
def test_the_child_ends_when_its_parent_is_killed(body, held):
    command = [sys.executable, "-c", PARENT, body, held]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as parent:
        pid, holder = map(int, parent.stdout.readline().split())
        assert not gone(pid, 0.2)
        parent.kill()
    try:
        assert gone(pid)
    finally:
        if holder > 0:
            os.kill(holder, signal.SIGKILL)


def test_the_child_outlives_the_thread_that_started_it(clips):
    with Decoder() as decoder:
        thread = threading.Thread(target=decoder.probe, args=(clips / "short.mp4",))
        thread.start()
        thread.join()
        pid = decoder.pid
        assert not gone(pid, 0.2)
        decoder.probe(clips / "short.mp4")
        assert decoder.pid == pid


@pytest.mark.parametrize("way", ["current folder", "PYTHONPATH"])
def test_a_decoy_of_our_name_is_not_imported_by_the_child(tmp_path, clips, monkeypatch, way):
    decoy = tmp_path / "featurizers"
    decoy.mkdir()
    trace = tmp_path / "imported"
    for name in ("__init__.py", "decoder.py", "decoder_child.py"):
        (decoy / name).write_text(f"open({str(trace)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    if way == "PYTHONPATH":
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Decoder() as fresh:
        assert fresh.probe(clips / "short.mp4").audio
    assert not trace.exists()


def test_a_decoy_of_a_library_in_the_current_folder_is_not_imported_by_the_child(
    tmp_path, clips, monkeypatch
):
    for name in ("numpy", "av", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    with Decoder() as fresh:
        assert fresh.probe(clips / "short.mp4").audio
    assert not (tmp_path / "imported").exists()


def test_a_relative_path_is_meant_from_the_current_folder(clips, monkeypatch, decoder):
    monkeypatch.chdir(clips)
    with Decoder() as fresh:
        assert fresh.probe(Path("short.mp4")).seconds == pytest.approx(1.0, abs=0.1)


# What a broken child sends.

SAYING = """
import sys, time
sys.stdout.buffer.write(bytes.fromhex(sys.argv[1]))
sys.stdout.buffer.flush()
time.sleep(float(sys.argv[2]))
"""


SPENT = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_bytes": 0}


def message(header, payload=b"", lengths=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<II", *(lengths or (len(text), len(payload)))) + text + payload


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def replaced_by(decoder, content, seconds=0.0):
    """Put a child in place that says this and nothing else."""
    decoder._child = Child(
        subprocess.Popen(
            [sys.executable, "-c", SAYING, content.hex(), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
    )


@pytest.mark.parametrize(
    "content",
    [
        b"garbage and more garbage",
        message(b"\xff\xfe not text"),
        message(b"{'not': json}"),
        message(b"[1, 2]"),
        message(b"7"),
        message({"nothing": "known"}),
        message({"kind": "audio"}, lengths=(9, 0xFFFFFFFF)),
        message({"kind": "audio"}, lengths=(0xFFFFFFF0, 0)),
        message(b"[" * 20_000),
        message({"kind": "audio", "index": 0}),
        message({"kind": "audio", "index": 1, "start": 0.0}),
        message({"kind": "audio", "index": -1, "start": 0.0}),
        message({"kind": "audio", "index": 0, "start": "now"}),
        message({"kind": "audio", "index": 0, "start": 0.0}, b"123"),
        message({"kind": "video", "index": 0, "shape": [1, 1, 1], "times": [[0, 1]]}, b"1"),
        message({"kind": "nonsense", "index": 0}),
        message({"kind": "end"}),
        message({"kind": "end", "seconds": "x", "cpu_seconds": 0, "peak_bytes": 0}),
    ],
)
def test_a_child_that_sends_garbage_has_crashed(clips, content):
    with Decoder() as fooled:
        replaced_by(fooled, content, seconds=30)
        pid = fooled.pid
        with pytest.raises(DecoderDiedError, match="nobody can read") as caught:
            list(fooled.decode(clips / "short.mp4", 0.0, None, [SOUND]))
        assert caught.value.fault == "crashed"
        assert gone(pid)


PICTURE = {"kind": "video", "index": 0, "times": [[0.0, 0.2]]}


@pytest.mark.parametrize("shape", [[1, 8, 8], [1, 16, 16, 3], [2, 8, 16], [256]])
def test_pictures_of_another_shape_than_was_asked_for_are_garbage(clips, shape):
    content = message(PICTURE | {"shape": shape}, bytes(int(np.prod(shape))))
    with Decoder() as fooled:
        replaced_by(fooled, content, seconds=30)
        with pytest.raises(DecoderDiedError, match="nobody can read"):
            list(fooled.decode(clips / "short.mp4", 0.0, None, [PICTURES]))


@pytest.mark.parametrize("content", [b"", b"\x10", message({"kind": "audio"}, b"12")[:-1]])
def test_a_child_that_ends_in_the_middle_of_a_message_has_crashed(clips, content):
    with Decoder() as fooled:
        replaced_by(fooled, content)
        with pytest.raises(DecoderDiedError, match="code 0") as caught:
            list(fooled.decode(clips / "short.mp4", 0.0, None, [SOUND]))
        assert caught.value.fault == "crashed"


def test_a_child_that_stops_in_the_middle_of_a_message_is_timed_out(clips):
    with Decoder(Limits(cpu_seconds=0.05, cpu_share=0)) as fooled:
        replaced_by(fooled, message({"kind": "audio"}, b"1234")[:-1], seconds=30)
        with pytest.raises(DecoderDiedError, match="gave nothing") as caught:
            list(fooled.decode(clips / "short.mp4", 0.0, None, [SOUND]))
        assert caught.value.fault == "timed_out"


def test_a_child_that_dies_just_before_it_is_asked_has_crashed(clips, monkeypatch):
    with Decoder() as decoder:
        decoder.probe(clips / "short.mp4")
        os.kill(decoder.pid, signal.SIGKILL)
        os.waitid(os.P_PID, decoder.pid, os.WEXITED | os.WNOWAIT)
        monkeypatch.setattr(decoder._child.process, "poll", lambda: None)  # as a moment before
        with pytest.raises(DecoderDiedError, match="code -9") as caught:
            list(decoder.decode(clips / "short.mp4", 0.0, None, [SOUND]))
        assert caught.value.fault == "crashed"


def test_nothing_that_the_child_sends_is_unpickled(clips, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "trace"))
    header = {"kind": "audio", "index": 0, "start": 0.0}
    for content in (
        message(bomb),
        message(header, bomb[: len(bomb) // 2 * 2]) + message({"kind": "end", **SPENT}),
    ):
        with Decoder() as fooled:
            replaced_by(fooled, content, seconds=30)
            try:
                events = list(fooled.decode(clips / "short.mp4", 0.0, None, [SOUND]))
                assert isinstance(events[0][1], AudioChunk)
            except DecoderDiedError:
                pass
        assert not (tmp_path / "trace").exists()


def test_a_bug_in_the_child_stops_the_job_with_its_text(clips):
    with Decoder() as fooled:
        replaced_by(fooled, message({"kind": "bug", "message": "ZeroDivisionError"}), seconds=30)
        with pytest.raises(RuntimeError, match=r"short\.mp4:\nZeroDivisionError"):
            list(fooled.decode(clips / "short.mp4", 0.0, None, [SOUND]))


def test_an_unknown_fault_is_a_bug_and_not_a_bad_clip(clips):
    with Decoder() as fooled:
        replaced_by(
            fooled, message({"kind": "fault", "fault": "odd", "message": "", **SPENT}), seconds=30
        )
        with pytest.raises(RuntimeError, match="unknown fault: odd"):
            list(fooled.decode(clips / "short.mp4", 0.0, None, [SOUND]))


def test_a_probe_of_which_the_child_dies_twice_is_a_bad_clip(clips):
    class Doomed(Decoder):
        def _start(self):
            replaced_by(self, b"")
            return self._child

    with Doomed() as doomed, pytest.raises(BadClipError) as caught:
        doomed.probe(clips / "short.mp4")
    assert caught.value.fault == "crashed"
    assert caught.value.message.endswith("twice")


def test_a_probe_of_which_the_child_dies_once_is_tried_again(clips):
    class Unlucky(Decoder):
        starts = 0

        def _start(self):
            self.starts += 1
            if self.starts == 1:
                replaced_by(self, b"")
                return self._child
            return super()._start()

    with Unlucky() as unlucky:
        assert unlucky.probe(clips / "short.mp4") == probe(clips / "short.mp4")
        assert unlucky.starts == 2


def test_a_process_with_many_open_files_decodes(tmp_path):
    """The select() of old stops at file number 1024, and a clip must not pay for that."""
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(32_000))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    held = [os.dup(0) for _ in range(1100)]
    try:
        with Decoder() as decoder:
            assert decoder.probe(path).seconds == pytest.approx(1.0)
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
