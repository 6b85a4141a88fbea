"""Feedback: what the other streams say masks a stream's input, which is then read once more.

Source: G. Paraskevopoulos, E. Georgiou, A. Potamianos, "MMLatch: Bottom-Up Top-Down Fusion for
Multimodal Sentiment Analysis", ICASSP 2022, arXiv 2201.09828, which adds it to its own encoders and
to MulT.

Any model can take it that gives one encoding of each stream on the stream's own steps, h_m =
E_m(X_m) (stage I). Then M_m = mean_p sigma(f_mp(h_p)) over the other streams p, where f is an LSTM
or a linear layer; and X'_m = X_m * M_m is what the model reads (stage II). A mask needs the time
base of the stream that it is for, so streams must share one.

Shapes: M streams, B clips, T steps, D width of a stream, H width of an encoding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from training.models.blocks import Lstm
from training.models.dropout import dropout

MaskKind: TypeAlias = Literal["sequence", "static"]

Encode: TypeAlias = Callable[[Sequence[Tensor]], Tensor]
"""From values [B, T, D] by stream to encodings [M, B, T, H], 0 where a stream is not valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatchSettings:
    """Settings of the masks; those of the models say what each is.

    Attributes:
        drops_always: Whether the dropout on the masks goes on in evaluation, as released.
    """

    mask: MaskKind
    mask_dropout: float
    mask_rnn_dropout: float
    stage1_grad: bool
    gives: str = "all"
    receives: str = "all"
    drops_always: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """How far each stream was let through.

    Attributes:
        masks: By receiving stream, [B, T, D] between 0 and 1; 0 at steps that are not valid.
        means: By receiving stream, [B, T]: the mean over the stream's dimensions, a number a word.
    """

    masks: Mapping[str, Tensor]
    means: Mapping[str, Tensor]


class Latch(nn.Module):
    """One mask network for each pair of a receiving and another, giving stream.

    Args:
        streams: Names in order.
        widths: D of each stream.
        hidden: H.
        settings: Which stream masks which, and how.

    Raises:
        ValueError: `gives` or `receives` names no stream, or nothing would be masked.
    """

    def __init__(
        self, streams: Sequence[str], widths: Sequence[int], hidden: int, settings: LatchSettings
    ) -> None:
        super().__init__()
        self.streams, self.settings = tuple(streams), settings
        gives = _chosen(settings.gives, streams, "gives")
        receives = _chosen(settings.receives, streams, "receives")
        self.links = [(m, p) for m in receives for p in gives if m != p]
        if not self.links:
            raise ValueError(
                f"with gives {settings.gives!r} and receives {settings.receives!r} no stream of "
                f"{list(streams)} masks another; give two streams at least, or set mask to 'none'"
            )
        self.nets = nn.ModuleList(_mask_net(settings, hidden, widths[m]) for m, _ in self.links)

    def forward(self, encoded_MBTH: Tensor, padding_BT1: Tensor) -> dict[str, Tensor]:
        """Masks [B, T, D] by the receiving stream: the mean of what the others say."""
        # By name: what a module gives by number, ZeRO 3 of DeepSpeed (0.19.8) stumbles over.
        # Held by test_models_take_the_same_steps_with_their_weights_split.
        said: dict[str, list[Tensor]] = {}
        for net, (m, p) in zip(self.nets, self.links, strict=True):
            said.setdefault(self.streams[m], []).append(net(encoded_MBTH[p], padding_BT1))
        return {name: torch.stack(masks).mean(0) for name, masks in said.items()}

    def feed_back(
        self, values: Sequence[Tensor], padding_BT1: Tensor, encode: Encode
    ) -> list[Tensor]:
        """What stage II reads: the values of all streams, masked where they receive.

        Args:
            values: [B, T, D] by stream.
            padding_BT1: 1 after the clip's end, else 0.
            encode: Stage I.
        """
        masks = self._masks(values, padding_BT1, encode)
        return [
            self._masked(x, masks.get(name)) for name, x in zip(self.streams, values, strict=True)
        ]

    def explain(
        self, values: Sequence[Tensor], padding_BT1: Tensor, encode: Encode, valid_MBT: Tensor
    ) -> Explanation:
        """The masks before their dropout, at the steps that are valid."""
        found = self._masks(values, padding_BT1, encode)
        valid = dict(zip(self.streams, valid_MBT, strict=True))
        masks = {name: mask * valid[name].unsqueeze(2) for name, mask in found.items()}
        return Explanation(masks, {name: mask.mean(2) for name, mask in masks.items()})

    def _masks(
        self, values: Sequence[Tensor], padding_BT1: Tensor, encode: Encode
    ) -> dict[str, Tensor]:
        with torch.set_grad_enabled(self.settings.stage1_grad and torch.is_grad_enabled()):
            encoded_MBTH = encode(values)
        masks: dict[str, Tensor] = self(encoded_MBTH, padding_BT1)
        return masks

    def _masked(self, x_BTD: Tensor, mask_BTD: Tensor | None) -> Tensor:
        if mask_BTD is None:
            return x_BTD
        drops = self.training or self.settings.drops_always
        return x_BTD * dropout(mask_BTD, self.settings.mask_dropout, drops)


class SequenceMask(nn.Module):
    """sigma(LSTM(h)); without dropout between 0.27 and 0.73, as an LSTM gives -1 to 1."""

    def __init__(self, hidden: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.lstm = Lstm(hidden, width, bidirectional=False)

    def forward(self, encoded_BTH: Tensor, padding_BT1: Tensor) -> Tensor:
        """The mask [B, T, D] that one stream wants for another."""
        said: Tensor = self.lstm(encoded_BTH, padding_BT1)
        return dropout(said, self.dropout, self.training).sigmoid()


class StaticMask(nn.Module):
    """sigma(W h + b), step by step."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, width)

    def forward(self, encoded_BTH: Tensor, _padding_BT1: Tensor) -> Tensor:
        """The mask [B, T, D] that one stream wants for another."""
        said: Tensor = self.linear(encoded_BTH)
        return said.sigmoid()


def _mask_net(settings: LatchSettings, hidden: int, width: int) -> nn.Module:
    if settings.mask == "static":
        return StaticMask(hidden, width)
    return SequenceMask(hidden, width, settings.mask_rnn_dropout)


def _chosen(names: str, streams: Sequence[str], setting: str) -> list[int]:
    """The positions of the named streams."""
    if names == "all":
        return list(range(len(streams)))
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in streams:
            raise ValueError(
                f"{setting} names {name!r}, which is no stream of the model; "
                f"it takes 'all', or some of {list(streams)} with commas"
            )
    return [m for m, name in enumerate(streams) if name in wanted]
