"""From one raw clip to its outcomes, in each column as if no other column were there."""

import dataclasses
import itertools
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from featurizers import catalog
from featurizers.ahead import Ahead
from featurizers.clip import BadClipError, Clip, Word
from featurizers.decoder import Decoder
from featurizers.decoder_process import DecoderDiedError
from featurizers.extract import extract, extract_all
from featurizers.limits import Limits
from featurizers.media import encode
from featurizers.spec import AudioWant, Dim, Feature, FeatureSpec
from featurizers.stages import Stages
from tests.media_maker import stairs, voice, write
from tests.test_decoder import decoding, gone

pytestmark = pytest.mark.media
LOGMEL, FACE = catalog.build("logmel", mels=8), catalog.build("face-motion")
WORDS = catalog.build("hashed-words", dims=8)
ALL = (WORDS, LOGMEL, FACE)
SAID = (Word(text="so", start=0.0, end=0.4), Word(text="it", start=0.4, end=0.8))


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as shared:
        yield shared


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("media")
    sound = voice(150, 1.0)
    encode(made / "both.mp4", frames=stairs(25), fps=25, samples=sound, rate_hz=16_000)
    encode(made / "mute.mp4", frames=stairs(25), fps=25, samples=None, rate_hz=16_000)
    encode(made / "blind.mp4", frames=None, fps=25, samples=sound, rate_hz=16_000)
    (made / "bad.mp4").write_text("hello")
    pictures = [(i / 25, picture) for i, picture in enumerate(stairs(100))]
    write(made / "hurt.mkv", pictures=pictures, sound=[(0.0, voice(150, 4.0))], audio="flac")
    hurt(made / "hurt.mkv")
    return made


def hurt(path):
    """Spoil every second sound packet and no picture."""
    content = bytearray(path.read_bytes())
    frames = [at for at in range(len(content) - 1) if content[at : at + 2] == b"\xff\xf8"]
    for at in frames[::2]:
        content[at : at + 4] = b"\0\0\0\0"
    path.write_bytes(content)


def clip(words=SAID, **changes):
    return Clip(
        key="a", id="a", media="/a.mp4", media_digest="", words=words, seconds=1.0, **changes
    )


class Constant:
    """One step of a number that is told; `error` is raised when it is finished."""

    wants = AudioWant()

    def __init__(self, number=1.0, error=None, shape=(1, 1), dtype="float32"):
        self.number, self.error, self.shape, self.dtype = number, error, shape, dtype
        self.spec = FeatureSpec(
            name="constant",
            version=1,
            modality="audio",
            reads=("audio",),
            dims=(Dim("n"),),
            rate_hz=None,
        )

    def begin(self, clip):
        return self

    def add(self, chunk):
        pass

    def finish(self):
        if self.error:
            raise self.error
        values = np.full(self.shape, self.number, dtype=self.dtype)
        return Feature(values, np.zeros((len(values), 2)))


def states(outcomes):
    return [outcome.state for outcome in outcomes]


def same(one, other):
    assert (one.state, one.fault, one.message) == (other.state, other.fault, other.message)
    assert (one.feature is None) == (other.feature is None)
    if one.feature is not None:
        np.testing.assert_array_equal(one.feature.values, other.feature.values)
        np.testing.assert_array_equal(one.feature.times, other.feature.times)


def test_a_whole_clip_is_a_sample_in_every_column(folder, decoder):
    outcomes = extract(clip(), folder / "both.mp4", ALL, decoder)
    assert states(outcomes) == ["sample"] * 3
    assert [outcome.message for outcome in outcomes] == [""] * 3
    said, heard, seen = (len(outcome.feature.values) for outcome in outcomes)
    assert (said, seen) == (2, 5)
    assert 100 <= heard <= 106  # AAC ends with its last whole frame


def test_outcomes_come_in_the_order_of_the_featurizers(folder, decoder):
    forward = extract(clip(), folder / "both.mp4", ALL, decoder)
    backward = extract(clip(), folder / "both.mp4", ALL[::-1], decoder)
    for one, other in zip(forward, backward[::-1], strict=True):
        same(one, other)


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("mute.mp4", SAID, ["sample", "absent", "sample"]),
        ("blind.mp4", SAID, ["sample", "sample", "absent"]),
        ("both.mp4", None, ["absent", "sample", "sample"]),
        ("both.mp4", (), ["quarantined", "sample", "sample"]),
        ("bad.mp4", SAID, ["sample", "quarantined", "quarantined"]),
        ("nothing.mp4", SAID, ["sample", "quarantined", "quarantined"]),
    ],
)
def test_what_a_clip_lacks_is_absent_and_what_is_bad_is_quarantined(
    folder, decoder, name, words, expected
):
    assert states(extract(clip(words), folder / name, ALL, decoder)) == expected


def test_a_quarantined_clip_says_why(folder, decoder):
    words, sound, _ = extract(clip(()), folder / "bad.mp4", ALL, decoder)
    assert (words.fault, words.message) == ("empty", "the transcript has no words")
    assert sound.fault == "unreadable"
    # No name: what a shard holds must not depend on what its media are called.
    assert "bad.mp4" not in sound.message
    assert sound.message


def test_media_that_cannot_be_had_are_missing_and_words_are_not(decoder):
    outcomes = extract(clip(), None, ALL, decoder)
    assert states(outcomes) == ["sample", "quarantined", "quarantined"]
    assert [outcome.fault for outcome in outcomes] == [None, "missing", "missing"]
    assert outcomes[1].message == "no such file"


def test_words_alone_need_no_decoder(folder):
    with Decoder() as unused:
        assert states(extract(clip(), folder / "bad.mp4", [WORDS], unused)) == ["sample"]
        assert unused.pid is None


def test_a_bad_stream_costs_only_its_own_column(folder, decoder):
    words, sound, pictures = extract(clip(), folder / "hurt.mkv", ALL, decoder)
    assert (words.state, pictures.state) == ("sample", "sample")
    assert (sound.state, sound.fault) == ("quarantined", "corrupt")
    assert "packets are damaged" in sound.message


@pytest.mark.parametrize("name", ["both.mp4", "mute.mp4", "blind.mp4", "hurt.mkv", "bad.mp4"])
@pytest.mark.parametrize("span", [(0.0, None), (0.2, 0.7)])
def test_a_column_does_not_depend_on_its_neighbours(folder, decoder, name, span):
    made = clip(start=span[0], end=span[1])
    together = extract(made, folder / name, [*ALL, Constant()], decoder)
    for featurizer, beside in zip([*ALL, Constant()], together, strict=True):
        (alone,) = extract(made, folder / name, [featurizer], decoder)
        same(alone, beside)


def test_a_limit_that_only_pictures_pass_does_not_cost_the_sound(folder):
    with Decoder(Limits(pixels=100)) as strict:
        words, sound, pictures = extract(clip(), folder / "both.mp4", ALL, strict)
    assert (words.state, sound.state) == ("sample", "sample")
    assert (pictures.state, pictures.fault) == ("quarantined", "too_large")


def test_a_sample_with_some_damage_says_so(tmp_path, decoder):
    path = tmp_path / "scratched.mkv"
    write(path, sound=[(0.0, voice(150, 4.0))], audio="flac")
    content = bytearray(path.read_bytes())
    at = [at for at in range(len(content) - 1) if content[at : at + 2] == b"\xff\xf8"][6]
    content[at : at + 4] = b"\0\0\0\0"
    path.write_bytes(content)
    (outcome,) = extract(clip(), path, [LOGMEL], decoder)
    assert (outcome.state, outcome.fault) == ("sample", None)
    assert "damaged and passed over" in outcome.message


def test_a_title_that_is_no_text_costs_nothing(folder, tmp_path, decoder):
    content = (folder / "hurt.mkv").read_bytes()
    assert b"Lavf" in content
    (tmp_path / "odd.mkv").write_bytes(content.replace(b"Lavf", b"\xff\xfe\xfd\xfc"))
    (outcome,) = extract(clip(), tmp_path / "odd.mkv", [FACE], decoder)
    assert outcome.state == "sample"


@pytest.mark.parametrize("span", [(2.0, 1.0), (-1.0, None), (0.0, np.inf)])
def test_a_span_that_is_none_is_quarantined(folder, decoder, span):
    made = clip(start=span[0], end=span[1])
    (outcome,) = extract(made, folder / "both.mp4", [LOGMEL], decoder)
    assert (outcome.state, outcome.fault) == ("quarantined", "bad_span")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_quarantined(folder, decoder, number):
    odd, sound = extract(clip(), folder / "both.mp4", [Constant(number), LOGMEL], decoder)
    assert (odd.state, odd.fault, odd.feature) == ("quarantined", "not_finite", None)
    assert odd.message == "constant gave NaN or infinity at 1 steps"
    assert sound.state == "sample"


def test_a_featurizer_that_gives_a_clip_up_costs_no_other(folder, decoder):
    giving_up = Constant(error=BadClipError("empty", "too little to see"))
    odd, sound = extract(clip(), folder / "both.mp4", [giving_up, LOGMEL], decoder)
    assert (odd.state, odd.fault, odd.message) == ("quarantined", "empty", "too little to see")
    assert sound.state == "sample"


@pytest.mark.parametrize(
    "featurizer", [Constant(error=ZeroDivisionError()), Constant(shape=(1, 2)), Constant(dtype=int)]
)
def test_a_bug_stops_the_job_and_quarantines_nobody(folder, decoder, featurizer):
    with pytest.raises((ZeroDivisionError, ValueError)):
        extract(clip(), folder / "both.mp4", [featurizer], decoder)
    assert states(extract(clip(), folder / "both.mp4", [LOGMEL], decoder)) == ["sample"]


def test_steps_without_their_times_are_a_bug(folder, decoder):
    class Timeless(Constant):
        def finish(self):
            return Feature(np.zeros((2, 1), np.float32), np.zeros((1, 2)))

    with pytest.raises(ValueError, match=r"constant gave times .*wanted float64 \[2, 2\]"):
        extract(clip(), folder / "both.mp4", [Timeless()], decoder)


# The clips of a job, fetched and decoded ahead.


class Quitter(Constant):
    """Gives clips of one word up where it is told: in begin, add or finish."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def _quit(self, where):
        if where == self.where and len(self.clip.words or ()) == 1:
            raise BadClipError("empty", f"gave up in {where}")

    def begin(self, clip):
        self.clip = clip
        self._quit("begin")
        return self

    def add(self, chunk):
        self._quit("add")

    def finish(self):
        self._quit("finish")
        return super().finish()


# The real decoder, but of some files it dies.
DYING = """
from featurizers.media import decode
if path.name == "doomed.mp4":
    d.os._exit(3)
if path.name == "once.mp4" and not path.with_name("died").exists():
    path.with_name("died").touch()
    d.os._exit(3)
yield from decode(path, start, end, wants, limits)
"""


def job(folder, *names):
    """Clips by the names of their files, and their path; the rest is told in words."""
    made = []
    for number, name in enumerate(names):
        words = {"text": SAID, "wordless": None, "empty": (), "one": SAID[:1]}.get(name, SAID)
        known = "both.mp4" if name in ("wordless", "empty", "one") else name
        path = None if name in ("text", "missing") else str(folder / known)
        made.append(dataclasses.replace(clip(words), key=f"k{number}", media=path or ""))
    return made


def path_of(made):
    return Path(made.media) if made.media else None


MIXED = (
    "both.mp4",
    "mute.mp4",
    "once.mp4",
    "bad.mp4",
    "text",
    "blind.mp4",
    "hurt.mkv",
    "doomed.mp4",
    "one",
    "missing",
    "wordless",
    "empty",
    "nothing.mp4",
    "both.mp4",
)


@pytest.fixture
def mixed(folder, tmp_path, monkeypatch):
    decoding(monkeypatch, DYING, silence=False)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ("once.mp4", "doomed.mp4"):
        shutil.copy(tmp_path / "both.mp4", tmp_path / name)
    return job(tmp_path, *MIXED)


@pytest.mark.parametrize(
    "featurizers",
    [ALL, (LOGMEL,), (WORDS,), (Quitter("begin"), *ALL), (*ALL, Quitter("add"), Quitter("finish"))],
)
def test_a_job_gives_what_its_clips_give_one_by_one(mixed, featurizers):
    died = Path(mixed[0].media).with_name("died")
    with Decoder() as decoder:
        alone = [extract(each, path_of(each), featurizers, decoder) for each in mixed]
    assert died.exists() == (featurizers != (WORDS,))
    died.unlink(missing_ok=True)
    with Decoder() as decoder:
        together = list(extract_all(mixed, path_of, featurizers, decoder, Stages()))
    assert died.exists() == (featurizers != (WORDS,))
    for one, other in zip(alone, together, strict=True):
        for left, right in zip(one, other, strict=True):
            same(left, right)
    if LOGMEL in featurizers:
        heard = [outcomes[featurizers.index(LOGMEL)] for outcomes in together]
        found = dict(zip(MIXED, heard, strict=True))
        assert found["once.mp4"].state == found["one"].state == "sample"
        assert found["mute.mp4"].state == "absent"
        assert (found["doomed.mp4"].fault, found["missing"].fault) == ("crashed", "missing")


def test_a_featurizer_that_gave_a_clip_up_is_not_asked_again_when_the_child_died(mixed):
    class Fickle(Constant):
        begun = 0

        def begin(self, made):
            self.begun += 1
            if self.begun > 1:
                raise BadClipError("corrupt", "asked again")
            return self

        def add(self, chunk):
            raise BadClipError("empty", "gave up")

    fickle, doomed = Fickle(), mixed[MIXED.index("both.mp4")]
    with Decoder() as decoder:
        decoder.decode = dying_late(decoder.decode)
        (outcome,) = extract(doomed, path_of(doomed), [fickle], decoder)
    assert (outcome.fault, outcome.message, fickle.begun) == ("empty", "gave up", 1)


def dying_late(decode):
    """The first decoding breaks off after all of it came."""
    broken = []

    def dying(*arguments, **named):
        yield from decode(*arguments, **named)
        if not broken:
            broken.append(True)
            raise DecoderDiedError("crashed", "at the very end")

    return dying


def test_a_featurizer_that_gives_a_clip_up_early_costs_no_other(folder, decoder):
    for where in ("begin", "add", "finish"):
        (made,) = job(folder, "one")
        lost, kept = extract(made, path_of(made), [Quitter(where), LOGMEL], decoder)
        assert (lost.fault, lost.message, kept.state) == ("empty", f"gave up in {where}", "sample")


DYING_ONCE = """
from featurizers.damage import Damage
from featurizers.media import NoStream
mark = path.with_name("died")
if not mark.exists():
    mark.touch()
    yield 0, Damage("scratched")
    yield 0, NoStream("audio")
    d.os._exit(3)
yield second(0)
yield 0, Damage("bent")
"""


def test_what_was_given_before_the_child_died_is_thrown_away(tmp_path, monkeypatch):
    decoding(monkeypatch, DYING_ONCE, silence=False)
    with Decoder() as decoder:
        (outcome,) = extract(clip(), tmp_path / "a.mp4", [LOGMEL], decoder)
    assert (outcome.state, outcome.message) == ("sample", "bent")
    assert (tmp_path / "died").exists()


DYING_THEN_BAD = """
mark = path.with_name("died")
if not mark.exists():
    mark.touch()
    d.os._exit(3)
raise d.BadClipError("corrupt", "bent")
yield
"""


def test_what_the_second_attempt_finds_bad_is_the_clips_fault(tmp_path, monkeypatch):
    decoding(monkeypatch, DYING_THEN_BAD, silence=False)
    with Decoder() as decoder:
        (outcome,) = extract(clip(), tmp_path / "a.mp4", [LOGMEL], decoder)
    assert (outcome.fault, outcome.message) == ("corrupt", "bent")


class Slow(Constant):
    """Its first clip is finished only when an event has come; says whether it came."""

    def __init__(self, event):
        super().__init__()
        self.event, self.came = event, None

    def finish(self):
        if self.came is None:
            self.came = self.event.wait(20)
        return super().finish()


def test_the_next_clip_is_fetched_and_decoded_while_features_are_computed(folder, decoder):
    later = threading.Event()
    made = job(folder, "both.mp4", "mute.mp4", "both.mp4")

    def fetch(each):
        if each is made[2]:  # and so the one before is decoded
            later.set()
        return path_of(each)

    slow = Slow(later)
    outcomes = list(extract_all(made, fetch, [slow], decoder, Stages()))
    assert slow.came
    assert [states(each) for each in outcomes] == [["sample"], ["absent"], ["sample"]]


def test_words_do_not_wait_for_the_media_beside_them(folder, decoder):
    begun = threading.Event()

    class Words:
        spec, wants = WORDS.spec, None

        def begin(self, made):
            begun.set()
            return WORDS.begin(made)

    def fetch(each):
        assert begun.wait(20)
        return path_of(each)

    made = job(folder, "both.mp4")
    assert list(extract_all(made, fetch, [LOGMEL, Words()], decoder, Stages()))


def test_a_job_of_words_has_no_thread_no_child_and_fetches_nothing(folder):
    with Decoder() as unused:
        threads = set(threading.enumerate())
        outcomes = extract_all(job(folder, "both.mp4", "text"), None, [WORDS], unused, Stages())
        assert states(next(outcomes)) == ["sample"]
        assert set(threading.enumerate()) == threads
        assert states(next(outcomes)) == ["sample"]
        assert unused.pid is None


def test_one_child_serves_all_clips_of_a_job_also_the_bad_ones(folder, decoder):
    made = job(folder, "both.mp4", "bad.mp4", "mute.mp4", "text", "hurt.mkv", "both.mp4")
    pids = set()
    for _ in range(2):  # and those of the next job too
        for _ in extract_all(made, path_of, ALL, decoder, Stages()):
            pids.add(decoder.pid)
    assert len(pids - {None}) == 1


@pytest.mark.parametrize(
    "kind",
    [("blind.mp4", LOGMEL, 150_000), ("mute.mp4", FACE, 150_000), ("missing", LOGMEL, 10_000)],
    ids=["sound", "pictures", "media that are not there"],
)
def test_what_is_read_ahead_is_bounded_by_its_bytes_and_what_is_taken_makes_room(
    folder, decoder, monkeypatch, kind
):
    (name, featurizer, bound), fetched = kind, []

    def fetch(each):
        fetched.append(each)
        return path_of(each)

    def ahead(taken):
        """Clips that are fetched beside those that were taken, once it is at rest."""
        until = time.monotonic() + 20
        while time.monotonic() < until and not all(map(waits, reading_threads())):
            time.sleep(0.01)
        return len(fetched) - taken

    monkeypatch.setattr("featurizers.ahead.AHEAD_BYTES", bound)
    outcomes = extract_all(job(folder, *[name] * 40), fetch, [featurizer], decoder, Stages())
    next(outcomes)
    first = ahead(1)
    assert 2 <= first <= 12
    list(itertools.islice(outcomes, 15))
    assert abs(ahead(16) - first) <= 1
    assert len(list(outcomes)) == 24


def waits(thread):
    """Whether one side of what is read ahead waits for the other, or has ended."""
    frame = sys._current_frames().get(thread.ident)
    sides = (Ahead.take.__code__, Ahead._put.__code__)
    return frame is None or (frame.f_code.co_name == "wait" and frame.f_back.f_code in sides)


def test_a_single_chunk_that_is_larger_than_the_bound_passes(folder, decoder, monkeypatch):
    monkeypatch.setattr("featurizers.ahead.AHEAD_BYTES", 10)
    made = job(folder, "both.mp4", "mute.mp4")
    assert [states(each) for each in extract_all(made, path_of, ALL, decoder, Stages())] == [
        ["sample"] * 3,
        ["sample", "absent", "sample"],
    ]


def test_media_are_held_until_they_are_decoded_and_no_longer(folder, tmp_path, decoder):
    """A cache may drop what was fetched before once the next is asked for."""
    held = []

    def fetch(each):
        while held:
            held.pop().unlink()
        held.append(tmp_path / f"{each.key}.mp4")
        shutil.copy(each.media, held[0])
        return held[0]

    made = job(folder, *["both.mp4"] * 6)
    outcomes = list(extract_all(made, fetch, [LOGMEL, FACE], decoder, Stages()))
    assert [states(each) for each in outcomes] == [["sample", "sample"]] * 6


# Ends before the end.


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name == "reads ahead"]


def test_a_job_that_is_given_up_leaves_no_thread_and_no_busy_child(folder, monkeypatch):
    decoding(monkeypatch, DYING + 'if path.name == "mute.mp4": time.sleep(60)', silence=False)
    made = job(folder, "both.mp4", "mute.mp4", "both.mp4")
    with Decoder() as decoder:
        outcomes = extract_all(made, path_of, [LOGMEL, FACE], decoder, Stages())
        next(outcomes)
        pid, began = decoder.pid, time.monotonic()
        outcomes.close()
        assert time.monotonic() - began < 5
        assert reading_threads() == []
        assert gone(pid)
        assert states(extract(made[0], path_of(made[0]), [LOGMEL], decoder)) == ["sample"]


def test_a_job_that_is_given_up_while_its_queue_is_full_ends_too(folder, decoder, monkeypatch):
    monkeypatch.setattr("featurizers.ahead.AHEAD_BYTES", 10)
    outcomes = extract_all(job(folder, *["both.mp4"] * 9), path_of, ALL, decoder, Stages())
    next(outcomes)
    while not all(map(waits, reading_threads())):
        time.sleep(0.01)
    outcomes.close()
    assert reading_threads() == []


def test_a_fetch_that_hangs_does_not_keep_a_job_that_is_given_up(folder, monkeypatch):
    monkeypatch.setattr("featurizers.ahead.LEAVE_S", 0.1)
    hanging, asked = threading.Event(), threading.Event()

    def fetch(each):
        if each is made[1]:
            asked.set()
            hanging.wait(20)
        return path_of(each)

    made = job(folder, "both.mp4", "both.mp4")
    with Decoder() as decoder:
        outcomes = extract_all(made, fetch, [LOGMEL], decoder, Stages())
        next(outcomes)
        asked.wait(20)
        outcomes.close()
        (thread,) = reading_threads()
        decoder.close()
        hanging.set()
        thread.join(20)
        assert not thread.is_alive()
        assert decoder.pid is None  # it left the decoder alone


def broken(made, number, error):
    def fetch(each):
        if each is made[number]:
            raise error
        return path_of(each)

    return fetch


def test_an_error_of_fetching_is_raised_in_its_place(folder, decoder):
    made = job(folder, *["both.mp4"] * 4)
    outcomes = extract_all(made, broken(made, 2, OSError("offline")), ALL, decoder, Stages())
    given = list(itertools.islice(outcomes, 2))
    assert [states(each) for each in given] == [["sample"] * 3] * 2
    with pytest.raises(OSError, match="offline"):
        next(outcomes)
    assert reading_threads() == []


def test_an_error_of_fetching_wakes_whoever_waits_for_the_clip(folder, decoder):
    taking = threading.current_thread()

    def fetch(each):
        while not waits(taking):
            time.sleep(0.01)
        raise OSError("offline")

    with pytest.raises(OSError, match="offline"):
        next(extract_all(job(folder, "both.mp4"), fetch, ALL, decoder, Stages()))


def test_a_bad_clip_that_fetching_finds_is_quarantined(folder, decoder):
    made = job(folder, *["both.mp4"] * 3)
    bad = BadClipError("too_large", "a petabyte")
    outcomes = list(extract_all(made, broken(made, 1, bad), ALL, decoder, Stages()))
    assert states(outcomes[0]) == states(outcomes[2]) == ["sample"] * 3
    assert states(outcomes[1]) == ["sample", "quarantined", "quarantined"]
    assert (outcomes[1][1].fault, outcomes[1][2].message) == ("too_large", "a petabyte")


@pytest.mark.parametrize("where", ["begin", "add", "finish"])
def test_a_bug_stops_the_job_after_the_clips_before_it(folder, decoder, where):
    class Buggy(Constant):
        count = 0

        def _maybe(self, here):
            if here == where and self.count == 3:
                raise ZeroDivisionError

        def begin(self, made):
            self.count += 1
            self._maybe("begin")
            return self

        def add(self, chunk):
            self._maybe("add")

        def finish(self):
            self._maybe("finish")
            return super().finish()

    outcomes = extract_all(job(folder, *["both.mp4"] * 5), path_of, [Buggy()], decoder, Stages())
    assert len(list(itertools.islice(outcomes, 2))) == 2
    with pytest.raises(ZeroDivisionError):
        next(outcomes)
    assert reading_threads() == []


# What it took.


def test_every_stage_counts_an_item_a_clip(folder, decoder):
    stages, spans = Stages(), []
    made = job(folder, "both.mp4", "missing", "bad.mp4", "both.mp4")
    list(extract_all(made, path_of, ALL, decoder, stages, spans=spans))
    names = ["fetch", "wait", "hashed-words", "logmel", "face-motion", "decode"]
    counts = {name: stages.items(name) for name in names}
    assert counts == dict.fromkeys(names, 4) | {"decode": 3}
    assert set(stages.names) == set(names)
    assert stages.seconds("decode") > 0
    assert 0 < stages.cpu_seconds("logmel") <= stages.seconds("logmel") + 0.05
    assert [key for key, _ in spans] == ["k0", "k1", "k2", "k3"]
    everything = sum(stages.seconds(name) for name in names if name != "wait")
    assert sum(seconds for _, seconds in spans) == pytest.approx(everything)


def test_decoding_counts_every_attempt(mixed):
    times = {}
    with Decoder() as decoder:
        for each in mixed:
            stages = Stages()
            list(extract_all([each], path_of, [LOGMEL, FACE], decoder, stages))
            times[Path(each.media).name] = stages
    assert times["doomed.mp4"].items("decode") == 1
    # Six starts of a child, of which each imports for long.
    assert times["doomed.mp4"].cpu_seconds("decode") > 3 * times["both.mp4"].cpu_seconds("decode")
