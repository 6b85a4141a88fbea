"""Missing streams: masked is lacking, for every model, and training may mask some."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_models import MODELS, WIDTHS, make, random_batch
from training.batch import Sample, collate
from training.missing import draw, dropped, without
from training.order import rank_view

SEVERAL = [name for name, chosen in MODELS.items() if len(chosen.streams) > 1]


def samples(*, lacking=()):
    """Four clips of several lengths, with holes; `lacking` names streams by clip."""
    random = np.random.default_rng(5)
    found = []
    for clip, steps in enumerate((6, 3, 5, 4)):
        arrays = {n: random.normal(size=(steps, w)).astype(np.float32) for n, w in WIDTHS.items()}
        holes = {name: random.random(steps) < 0.8 for name in WIDTHS}
        values = {n: None if (clip, n) in lacking else array for n, array in arrays.items()}
        found.append(Sample(key=f"clip-{clip}", values=values, valid=holes, target=float(clip)))
    return found


@pytest.mark.parametrize("name", SEVERAL)
def test_clips_without_a_stream_score_as_clips_that_never_had_it(name):
    model, batch = make(name), collate(samples(), WIDTHS)
    for gone in MODELS[name].streams:
        lacking = collate(samples(lacking=[(clip, gone) for clip in range(4)]), WIDTHS)
        with torch.no_grad():
            torch.testing.assert_close(
                model(without(batch, [gone])), model(lacking), atol=1e-6, rtol=1e-6
            )


@pytest.mark.parametrize("name", SEVERAL)
def test_a_clip_whose_stream_is_dropped_scores_as_one_that_never_had_it(name):
    streams = MODELS[name].streams
    widths = {stream: WIDTHS[stream] for stream in streams}
    draws = torch.full((4, len(streams)), 0.9)
    draws[1, 0] = draws[2, 1] = 0.1
    masked = dropped(collate(samples(), widths), 0.5, draws)
    lacking = collate(samples(lacking=[(1, streams[0]), (2, streams[1])]), widths)
    model = make(name)
    with torch.no_grad():
        whole = model(collate(samples(), widths))
        torch.testing.assert_close(model(masked), model(lacking), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model(masked)[[0, 3]], whole[[0, 3]], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(model(masked)[[1, 2]], whole[[1, 2]], atol=1e-4)


def test_a_batch_without_a_stream_keeps_everything_else():
    batch = collate(samples(), WIDTHS)
    less = without(batch, ["audio"])
    assert not less.streams["audio"].mask.any()
    assert not less.streams["audio"].values.any()
    assert less.streams["text"] is batch.streams["text"]
    assert (less.target is batch.target, less.weight is batch.weight) == (True, True)
    assert batch.streams["audio"].mask.any()
    with pytest.raises(ValueError, match="no stream 'odour', only"):
        without(batch, ["odour"])


@given(seed=st.integers(0, 10_000), share=st.floats(0, 0.999))
@settings(max_examples=50, deadline=None)
def test_modality_dropout_leaves_each_clip_a_stream_that_it_had(seed, share):
    batch = random_batch(seed, clips=6, missing=0.4)
    less = dropped(batch, share, draw(seed, 0, 6, len(batch.streams)))
    before, after = (
        torch.stack([stream.mask.any(1) for stream in each.streams.values()])
        for each in (batch, less)
    )
    assert not (after & ~before).any()
    assert torch.equal(after.any(0), before.any(0))
    for name, stream in less.streams.items():
        assert not stream.values[~stream.mask].any()
        kept = stream.mask.any(1)
        assert torch.equal(stream.mask[kept], batch.streams[name].mask[kept])


def test_streams_are_dropped_as_often_as_asked():
    batch = random_batch(0, clips=4000, steps=1, missing=0.0)
    there = {name: torch.ones_like(stream.mask) for name, stream in batch.streams.items()}
    full = {n: type(s)(torch.ones_like(s.values), there[n]) for n, s in batch.streams.items()}
    batch = type(batch)(streams=full, target=None, weight=batch.weight, keys=batch.keys)
    less = dropped(batch, 0.3, draw(0, 0, 4000, 4))
    gone = torch.stack([~stream.mask[:, 0] for stream in less.streams.values()]).double()
    # 0.3, less the clips that would have lost all four: 0.3 ** 4 of them keep one, a quarter each.
    assert gone.mean(1).tolist() == pytest.approx([0.3 - 0.3**4 / 4] * 4, abs=0.03)


def test_what_is_dropped_does_not_depend_on_the_ranks():
    rows, draws = tuple(range(12)), draw(3, 7, 12, 2)
    found = {}
    for rank in range(2):
        for own in rank_view(rows, rank=rank, world=2, micro=3):
            found |= dict(zip(own, draws[list(own)].tolist(), strict=True))
    assert [found[row] for row in rows] == draws.tolist()


def test_each_step_and_seed_drops_otherwise():
    several = [draw(*chosen, 4, 3) for chosen in ((0, 0), (0, 1), (1, 0))]
    assert not any(torch.equal(several[i], several[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(draw(0, 1, 4, 3), several[1])
