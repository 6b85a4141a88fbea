"""One vector for each stream of a clip: what the tensor fusions multiply with each other.

Source: A. Zadeh, M. Chen, S. Poria, E. Cambria, L.-P. Morency, "Tensor Fusion Network for
Multimodal Sentiment Analysis", EMNLP 2017, section 4: words are read by an LSTM, sound and face are
averaged over the clip; layers follow, and each vector gets a 1 in front. The last layer's tanh (the
paper's is a ReLU, as are two layers before it) keeps products of many entries small; with it, a few
hundred clips are enough to learn from.

A stream that a clip lacks is the vector (1, 0, ..., 0): in any product the other streams are left
as they are. Streams need not share a time base.

Shapes: M streams, B clips, T steps, D width of a stream, H hidden size, V size of a vector, K
outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.batch import FusionBatch
from training.models.blocks import Lstm, check_shares, find_stream


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorSettings:
    """Settings of the tensor fusions.

    Attributes:
        hidden: H, of each encoder and of the layers after the fusion.
        vector: V, of each stream.
        recurrent: Streams that are read by an LSTM, the others are averaged over the clip:
            "first" (text, in the papers), "all", "none", or names with commas.
        encoder_dropout: In the encoders, before their last layer.
        fusion_dropout: On what the fusion gives.
    """

    hidden: int = 64
    vector: int = 16
    recurrent: str = "first"
    encoder_dropout: float = 0.2
    fusion_dropout: float = 0.1

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        for name, size in (("hidden", self.hidden), ("vector", self.vector)):
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be at least 1")
        check_shares(encoder_dropout=self.encoder_dropout, fusion_dropout=self.fusion_dropout)


class Vectors(nn.Module):
    """One encoder for each stream.

    Args:
        kind: The model's name, for messages.
        streams: Names in order, two at least.
        widths: Dimensions by stream.
        settings: Sizes, dropout, and which streams are read by an LSTM.

    Raises:
        ValueError: There is one stream only, or `recurrent` names a stream that is not there.
    """

    def __init__(
        self, kind: str, streams: Sequence[str], widths: Mapping[str, int], settings: VectorSettings
    ) -> None:
        super().__init__()
        if len(streams) < 2:
            raise ValueError(
                f"{kind!r} multiplies streams with each other and wants two at least, not "
                f"{list(streams)}; 'unimodal' reads one"
            )
        self.streams = tuple(streams)
        self.widths = tuple(widths[name] for name in streams)
        recurrent = _recurrent(settings.recurrent, self.streams)
        self.encoders = nn.ModuleList(
            (Read if name in recurrent else Averaged)(widths[name], settings)
            for name in self.streams
        )

    def forward(self, batch: FusionBatch) -> list[Tensor]:
        """For each stream [B, 1 + V], beginning with the 1.

        Raises:
            ValueError: The batch has other streams than the model was built for.
        """
        vectors = []
        for name, width, encoder in zip(self.streams, self.widths, self.encoders, strict=True):
            stream = find_stream(batch, name, width)
            values_BTD = stream.values.masked_fill(~stream.mask.unsqueeze(2), 0.0)
            vector_BV = encoder(values_BTD, stream.mask)
            vector_BV = vector_BV.masked_fill(~stream.mask.any(1, keepdim=True), 0.0)
            vectors.append(torch.cat([torch.ones_like(vector_BV[:, :1]), vector_BV], 1))
        return vectors


class Read(nn.Module):
    """What an LSTM has kept when it has read the stream, and one layer."""

    def __init__(self, width: int, settings: VectorSettings) -> None:
        super().__init__()
        self.lstm = Lstm(width, settings.hidden, bidirectional=False)
        self.layers = nn.Sequential(
            nn.Dropout(settings.encoder_dropout),
            nn.Linear(settings.hidden, settings.vector),
            nn.Tanh(),
        )

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The vectors [B, V]."""
        left_BT = mask_BT.flip(1).cumsum(1).flip(1)  # valid steps from here on
        read_BTH = self.lstm(x_BTD, (left_BT == 0).unsqueeze(2).to(x_BTD.dtype))
        last_BT1 = (mask_BT & (left_BT == 1)).unsqueeze(2)
        vector: Tensor = self.layers((read_BTH * last_BT1).sum(1))
        return vector


class Averaged(nn.Module):
    """The mean of the valid steps, and two layers."""

    def __init__(self, width: int, settings: VectorSettings) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, settings.hidden),
            nn.ReLU(),
            nn.Dropout(settings.encoder_dropout),
            nn.Linear(settings.hidden, settings.vector),
            nn.Tanh(),
        )

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The vectors [B, V]."""
        mean_BD = x_BTD.sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1)
        vector: Tensor = self.layers(mean_BD)
        return vector


def inference(settings: VectorSettings, outputs: int) -> nn.Sequential:
    """From what the fusion gives [B, H], before its ReLU, to outputs [B, K]."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Dropout(settings.fusion_dropout),
        nn.Linear(settings.hidden, settings.hidden),
        nn.ReLU(),
        nn.Linear(settings.hidden, outputs),
    )


def _recurrent(chosen: str, streams: tuple[str, ...]) -> tuple[str, ...]:
    known = {"first": streams[:1], "all": streams, "none": ()}
    if chosen in known:
        return known[chosen]
    names = tuple(name.strip() for name in chosen.split(","))
    for name in names:
        if name not in streams:
            raise ValueError(
                f"recurrent names {name!r}, which is no stream of the model; it takes 'first', "
                f"'all', 'none', or some of {list(streams)} with commas"
            )
    return names
