"""Items of several clips in one batch, and what becomes of it when memory runs out."""

import itertools
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from featurizers import catalog
from featurizers.clip import BadClipError, Clip, Word
from featurizers.decoder import Decoder
from featurizers.encoding import Batches, EncoderMemoryError, is_out_of_memory
from featurizers.extract import extract, extract_all
from featurizers.media import encode
from featurizers.spec import AudioWant, Dim, Feature, FeatureSpec, Pending
from featurizers.stages import Stages
from tests.media_maker import stairs, voice

LOGMEL, WORDS = catalog.build("logmel", mels=8), catalog.build("hashed-words", dims=8)


def clips(*counts, media=""):
    """Clips of so many words."""
    return [
        Clip(
            key=f"k{number}",
            id=f"clip {number}",
            media=str(media),
            media_digest="",
            words=tuple(
                Word(text="a" * (number + at), start=at, end=at + 1) for at in range(count)
            ),
        )
        for number, count in enumerate(counts)
    ]


class Doubler:
    """Doubles; has room for so many items."""

    def __init__(self, batch, room=10**9, error=MemoryError):
        self.batch, self.room, self.error, self.sizes = batch, room, error, []
        self.before = lambda items: None

    def encode(self, items):
        self.sizes.append(len(items))
        self.before(items)
        if len(items) > self.room:
            raise self.error("no room")
        return [2 * item for item in items]


class Lengths:
    """Twice the length of each word, by way of its encoder."""

    wants = None

    def __init__(self, encoder, *, atol=1e-5, assemble=None):
        self.encoder = encoder
        self.spec = FeatureSpec(
            name="lengths",
            version=1,
            modality="text",
            reads=("words",),
            dims=(Dim("length"),),
            rate_hz=None,
            atol=atol,
        )
        self.waiting = self.most_waiting = self.begun = 0
        self._assemble = assemble or self._feature
        encoder.before = self._taken

    def _taken(self, items):
        self.waiting -= len(items) if len(items) <= self.encoder.room else 0

    def begin(self, clip):
        self.begun += 1
        self.clip = clip
        return self

    def add(self, chunk):
        pass

    def finish(self):
        items = [np.array([len(word.text)], np.float32) for word in self.clip.words or ()]
        self.waiting += len(items)
        self.most_waiting = max(self.most_waiting, self.waiting)
        return Pending(items=items, assemble=self._assemble)

    def _feature(self, encoded):
        values = np.array(encoded, np.float32).reshape(-1, 1)
        return Feature(values, np.zeros((len(values), 2)))


def run(made, featurizers, **more):
    with Decoder() as decoder:
        paths = {each.key: Path(each.media) if each.media else None for each in made}
        fetch = more.pop("fetch", lambda each: paths[each.key])
        yield from extract_all(made, fetch, featurizers, decoder, Stages(), **more)


def lengths(outcomes):
    return [outcome[0].feature.values[:, 0].tolist() for outcome in outcomes]


def wanted(made):
    return [[2.0 * len(word.text) for word in each.words] for each in made]


def test_batches_are_filled_across_clips_and_outcomes_keep_their_order():
    made, encoder = clips(3, 1, 0, 7, 2, 2), Doubler(4)
    assert lengths(run(made, [Lengths(encoder)])) == wanted(made)
    assert encoder.sizes == [4, 4, 4, 3]


def test_one_clip_alone_is_encoded_too():
    encoder = Doubler(4)
    for made in clips(3, 0, 9):
        with Decoder() as unused:
            outcomes = extract(made, None, [Lengths(encoder)], unused)
        assert lengths([outcomes]) == wanted([made])
    assert encoder.sizes == [3, 4, 4, 1]


def test_less_than_a_batch_and_one_clip_wait_at_any_time():
    made = clips(*itertools.islice(itertools.cycle([5, 1, 0, 3]), 60))
    featurizer = Lengths(Doubler(8))
    assert lengths(run(made, [featurizer])) == wanted(made)
    assert featurizer.most_waiting <= 7 + 5


def test_outcomes_are_given_as_soon_as_their_batch_is_full():
    featurizer = Lengths(Doubler(4))
    outcomes = run(clips(*[2] * 20), [featurizer])
    next(outcomes)
    assert featurizer.begun == 2


def test_a_clip_waits_for_the_one_before_it():
    """The second clip is whole at once; the first one waits for its batch."""
    encoder = Doubler(4)
    made = clips(2, 0, 2)
    outcomes = run(made, [Lengths(encoder), WORDS])
    assert lengths(outcomes) == wanted(made)
    assert encoder.sizes == [4]


def test_columns_beside_an_encoder_are_what_they_are_alone():
    made = clips(3, 1, 2)
    beside = [each[1] for each in run(made, [Lengths(Doubler(4)), WORDS])]
    alone = [each[0] for each in run(made, [WORDS])]
    for one, other in zip(beside, alone, strict=True):
        np.testing.assert_array_equal(one.feature.values, other.feature.values)


@pytest.mark.media
def test_later_clips_are_decoded_while_a_batch_is_encoded(tmp_path):
    encode(tmp_path / "a.mp4", frames=stairs(5), fps=25, samples=voice(150, 0.5), rate_hz=16_000)
    made, later, came = clips(1, 1, 1, media=tmp_path / "a.mp4"), threading.Event(), []
    featurizer = Lengths(Doubler(1))
    featurizer.wants = AudioWant()
    featurizer.encoder.before = lambda items: came or came.append(later.wait(20))

    def fetch(each):
        if each is made[2]:
            later.set()
        return Path(each.media)

    outcomes = list(run(made, [featurizer, LOGMEL], fetch=fetch))
    assert came == [True]
    assert lengths(outcomes) == wanted(made)
    assert [each[1].state for each in outcomes] == ["sample"] * 3


# Out of memory.


def test_a_batch_that_is_too_large_is_halved_for_good_and_said(tmp_path):
    encoder, notes = Doubler(8, room=2), []
    featurizer = Lengths(encoder)
    made = clips(5, 5, 5)
    assert lengths(run(made, [featurizer], notes=notes)) == wanted(made)
    assert encoder.sizes == [8, 4, *[2] * 7, 1]
    assert encoder.batch == 2
    assert notes == [
        "lengths ran out of memory with 8 items at a time; takes 4 from now on",
        "lengths ran out of memory with 4 items at a time; takes 2 from now on",
    ]
    encoder.sizes.clear()  # the next job knows
    assert lengths(run(made, [featurizer], notes=notes)) == wanted(made)
    assert max(encoder.sizes) == 2
    assert len(notes) == 2


def test_a_last_batch_that_is_small_is_halved_from_its_own_size():
    encoder = Doubler(64, room=3)
    made = clips(5)
    assert lengths(run(made, [Lengths(encoder)])) == wanted(made)
    assert encoder.sizes == [5, 2, 2, 1]


def test_an_exact_promise_keeps_its_batch_and_says_so():
    made = clips(2, 2, 2)
    outcomes = run(made, [Lengths(Doubler(4, room=3), atol=None)])
    with pytest.raises(EncoderMemoryError, match=r"clip 'clip 0': lengths .* promise is exact"):
        next(outcomes)


def test_memory_that_is_too_small_for_one_item_names_the_clip_and_quarantines_nobody():
    encoder = Doubler(2)
    featurizer = Lengths(encoder)
    encoder.room = 2
    outcomes = run(clips(2, 2, 1), [featurizer])
    assert len([next(outcomes), next(outcomes)]) == 2
    encoder.room = 0
    with pytest.raises(EncoderMemoryError, match=r"'clip 2': lengths .* one item at a time; give"):
        next(outcomes)


def test_torch_without_memory_is_recognised():
    """By its real error: this much memory no machine has."""

    class Hungry(Doubler):
        def encode(self, items):
            self.sizes.append(len(items))
            torch.empty(max(0, len(items) - 2) << 50, dtype=torch.uint8)
            return [2 * item for item in items]

    encoder, made = Hungry(8), clips(8)
    assert lengths(run(made, [Lengths(encoder)])) == wanted(made)
    assert encoder.sizes == [8, 4, 2, 2, 2, 2]


@pytest.mark.parametrize(
    "error", [MemoryError, torch.OutOfMemoryError, torch.cuda.OutOfMemoryError]
)
def test_errors_of_memory_are_recognised(error):
    encoder, made = Doubler(4, room=1, error=error), clips(4)
    assert lengths(run(made, [Lengths(encoder)])) == wanted(made)
    assert encoder.batch == 1


def test_memory_errors_are_recognised_where_torch_is_not_loaded(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("can't allocate memory"))


def test_what_failed_is_set_free_before_the_smaller_batch_is_tried():
    """Frames of the error would hold the tensors for which there was no room."""

    class Tensor:
        living = 0

        def __init__(self):
            Tensor.living += 1

        def __del__(self):
            Tensor.living -= 1

    class Holding(Doubler):
        def encode(self, items):
            living = Tensor.living
            held = Tensor()
            self.sizes.append(living)
            if len(items) > 1:
                raise MemoryError(held)
            return items

    encoder = Holding(4)
    list(run(clips(4), [Lengths(encoder)]))
    assert encoder.sizes == [0] * 6


@pytest.mark.parametrize("error", [None, RuntimeError("the device is lost")])
def test_a_device_gives_its_cached_memory_back_before_the_smaller_batch_is_tried(
    monkeypatch, error
):
    """Torch keeps what was freed: without this the half would find no more room than the whole."""
    encoder = Doubler(4, room=1, error=torch.OutOfMemoryError)

    def empty_cache():
        encoder.sizes.append("given back")
        if error:
            raise error

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    made = clips(4)
    assert lengths(run(made, [Lengths(encoder)])) == wanted(made)
    assert encoder.sizes == [4, "given back", 2, "given back", 1, 1, 1, 1]


# Bugs and bad clips.


@pytest.mark.parametrize("error", [ValueError, RuntimeError, ZeroDivisionError])
def test_any_other_error_of_an_encoder_is_a_bug(error):
    encoder = Doubler(4, room=1, error=error)
    with pytest.raises(error, match="no room"):
        list(run(clips(4), [Lengths(encoder)]))
    assert encoder.sizes == [4]


def test_an_encoder_that_loses_items_is_a_bug():
    encoder = Doubler(4)
    encoder.encode = lambda items: items[1:]
    with pytest.raises(ValueError, match="lengths: its encoder gave 3 arrays for 4 items"):
        list(run(clips(4), [Lengths(encoder)]))


def test_items_without_an_encoder_are_a_bug():
    class Forgetful(Lengths):
        def __init__(self):
            super().__init__(Doubler(4))
            del self.encoder

    with pytest.raises(TypeError, match="lengths left items to be encoded, but has no encoder"):
        list(run(clips(4), [Forgetful()]))


def test_a_bad_clip_that_shows_when_it_is_put_together_costs_only_itself():
    def assemble(encoded):
        if len(encoded) == 2:
            raise BadClipError("empty", "too little")
        values = np.full((len(encoded), 1), np.nan if len(encoded) == 3 else 1.0, np.float32)
        return Feature(values, np.zeros((len(encoded), 2)))

    outcomes = [
        each[0] for each in run(clips(1, 2, 3, 4), [Lengths(Doubler(4), assemble=assemble)])
    ]
    assert [(each.state, each.fault) for each in outcomes] == [
        ("sample", None),
        ("quarantined", "empty"),
        ("quarantined", "not_finite"),
        ("sample", None),
    ]


def test_an_error_of_a_later_clip_comes_after_what_waits_for_a_batch():
    class Buggy(Lengths):
        def begin(self, clip):
            if clip.key == "k2":
                raise ZeroDivisionError
            return super().begin(clip)

    made = clips(1, 1, 1)
    outcomes = run(made, [Buggy(Doubler(64))])
    assert lengths([next(outcomes), next(outcomes)]) == wanted(made[:2])
    with pytest.raises(ZeroDivisionError):
        next(outcomes)


def test_the_time_of_a_batch_is_shared_by_its_clips():
    made, spans, stages = clips(1, 3), [], Stages()
    encoder = Doubler(4)
    featurizer = Lengths(encoder)
    encoder.before = lambda items: threading.Event().wait(0.2)
    with Decoder() as unused:
        list(extract_all(made, None, [featurizer], unused, stages, spans=spans))
    assert stages.items("lengths") == 2
    assert stages.seconds("lengths") == pytest.approx(0.2, abs=0.1)
    shares = dict(spans)
    assert shares["k1"] == pytest.approx(3 * shares["k0"], rel=0.2)


def test_items_are_not_kept_once_they_are_encoded():
    batches = Batches(Lengths(Doubler(1)), [])
    items = [np.zeros(1, np.float32), np.zeros(1, np.float32)]
    before = [sys.getrefcount(item) for item in items]
    batches.add(clips(1)[0], Pending(items=list(items), assemble=lambda encoded: None))
    batches.encode()
    assert [sys.getrefcount(item) for item in items] == [before[0], before[1] + 1]
