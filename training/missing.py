"""Batches whose clips lack some of their streams: for evaluation, and as modality dropout.

A masked stream is a missing stream: values 0, mask False everywhere. No model can tell the two
apart, and none has code of its own for either.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from training.batch import FusionBatch, Stream

# So that these draws are no other draws of the same seed.
_MARK = 0x6D6F6461


def without(batch: FusionBatch, streams: Collection[str]) -> FusionBatch:
    """The batch as if no clip of it had these streams.

    Raises:
        ValueError: The batch has no such stream.
    """
    if unknown := sorted(set(streams) - set(batch.streams)):
        raise ValueError(f"the batch has no stream {unknown[0]!r}, only {sorted(batch.streams)}")
    kept = {
        name: _kept(stream, torch.zeros_like(stream.mask[:, 0])) if name in streams else stream
        for name, stream in batch.streams.items()
    }
    return replace(batch, streams=kept)


def dropped(batch: FusionBatch, share: float, draws_BM: Tensor) -> FusionBatch:
    """The batch with streams of single clips taken away: modality dropout.

    A stream of a clip is dropped where its draw is less than `share`; but of the streams that the
    clip has, the one with the greatest draw always stays.

    Args:
        batch: Some clips.
        share: The probability that a stream of a clip is dropped.
        draws_BM: [B, M], uniform in [0, 1): a number for each clip and stream, in order.
    """
    there_BM = torch.stack([stream.mask.any(1) for stream in batch.streams.values()], 1)
    draws_BM = torch.where(there_BM, draws_BM, -1.0)
    greatest_BM = draws_BM == draws_BM.amax(1, keepdim=True)
    kept_BM = (draws_BM >= share) | greatest_BM
    streams = {
        name: _kept(stream, kept_BM[:, row])
        for row, (name, stream) in enumerate(batch.streams.items())
    }
    return replace(batch, streams=streams)


def draw(seed: int, position: int, clips: int, streams: int) -> Tensor:
    """The draws [clips, streams] for a whole global batch, the same on every rank.

    Args:
        seed: Of the recipe.
        position: Of the global batch, counted through all epochs.
        clips: In the global batch.
        streams: Of the model.
    """
    generator = np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([_MARK, seed, position]))
    )
    return torch.from_numpy(generator.random((clips, streams)))


def _kept(stream: Stream, kept_B: Tensor) -> Stream:
    """The stream of the clips that keep it, and nothing of the others."""
    mask = stream.mask & kept_B.unsqueeze(1)
    return replace(stream, values=stream.values.masked_fill(~mask.unsqueeze(2), 0.0), mask=mask)
