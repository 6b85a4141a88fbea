"""Sequences fused by MSAF: two LSTMs for each stream, and between them one MSAF module.

Source: L. Su, C. Hu, G. Li, D. Cao, "MSAF: Multimodal Split Attention Fusion", arXiv 2012.07175,
the network for sentiment on CMU-MOSEI; the authors' code is anita-hu/MSAF.

Streams need not share a time base: segments are shares of a clip, not spans of steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.batch import FusionBatch
from training.models import msaf
from training.models.blocks import Lstm, check_shares, find_stream
from training.models.msaf import Msaf, MsafSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class MsafLstmSettings(MsafSettings):
    """Settings of the LSTMs and of the module between them.

    Attributes:
        hidden: The hidden size of both LSTMs of each stream.
        channels: "hidden" for that size throughout, or a size for each stream, in order and with
            commas: "32, 64, 128".
        dropout: On what each LSTM gives; the paper has none.
        reference: The released function instead of the fixed one: padding is read like any other
            step, cut into segments, and the last row of the batch is what the classifier reads.
    """

    reduction: int = 2
    segments: int = 5
    hidden: int = 64
    channels: str = "hidden"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        MsafSettings.__post_init__(self)
        if self.hidden < 1:
            raise ValueError(f"hidden is {self.hidden}; it must be at least 1")
        check_shares(dropout=self.dropout)

    def sizes(self, streams: Sequence[str]) -> list[int]:
        """The hidden size of each stream.

        Raises:
            ValueError: `channels` is not one number of at least 1 for each stream.
        """
        if self.channels == "hidden":
            return [self.hidden] * len(streams)
        words = [word.strip() for word in self.channels.split(",")]
        if len(words) != len(streams) or not all(word.isdecimal() and int(word) for word in words):
            raise ValueError(
                f"channels is {self.channels!r}; it takes 'hidden', or a number of at least 1 for "
                f"each of {list(streams)}, with commas"
            )
        return [int(word) for word in words]


class MsafLstm(nn.Module):
    """An LSTM for each stream, MSAF, another LSTM; what each says last, beside each other, read.

    Args:
        streams: Names in order (visual, audio, text in the paper).
        widths: Dimensions by stream.
        outputs: K.
        settings: Sizes, and those of MSAF.
    """

    def __init__(
        self,
        streams: Sequence[str],
        widths: Mapping[str, int],
        outputs: int,
        settings: MsafLstmSettings,
    ) -> None:
        super().__init__()
        self.streams = tuple(streams)
        self.widths = tuple(widths[name] for name in streams)
        self.settings = settings
        sizes = settings.sizes(self.streams)
        self.first = nn.ModuleList(
            Lstm(width, size, bidirectional=False)
            for width, size in zip(self.widths, sizes, strict=True)
        )
        self.msaf = Msaf(sizes, settings)
        self.second = nn.ModuleList(Lstm(size, size, bidirectional=False) for size in sizes)
        self.classifier = nn.Linear(sum(sizes), outputs)

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        streams = [
            find_stream(batch, name, width)
            for name, width in zip(self.streams, self.widths, strict=True)
        ]
        values, masks = [s.values for s in streams], [s.mask for s in streams]
        if self.settings.reference:
            masks = [torch.ones_like(mask) for mask in masks]
        else:
            pairs = zip(values, masks, strict=True)
            values = [x_BTD.masked_fill(~mask_BT.unsqueeze(2), 0.0) for x_BTD, mask_BT in pairs]
        padding = [_padding(mask_BT).to(x.dtype) for x, mask_BT in zip(values, masks, strict=True)]
        first = self._each(self.first, values, padding)
        fused = self.msaf([states_BTH.mT for states_BTH in first], masks)
        second = self._each(self.second, [states_BHT.mT for states_BHT in fused], padding)
        last = [_last(states, mask) for states, mask in zip(second, masks, strict=True)]
        outputs: Tensor = self.classifier(torch.cat(last, 1))
        return outputs

    def _each(
        self, lstms: nn.ModuleList, values: Sequence[Tensor], padding: Sequence[Tensor]
    ) -> list[Tensor]:
        return [
            nn.functional.dropout(lstm(x, after), self.settings.dropout, self.training)
            for lstm, x, after in zip(lstms, values, padding, strict=True)
        ]


def _left(mask_BT: Tensor) -> Tensor:
    """How many valid steps there are from each step on, that step included."""
    return mask_BT.flip(1).cumsum(1).flip(1)


def _padding(mask_BT: Tensor) -> Tensor:
    """True after a clip's last valid step, [B, T, 1]."""
    return (_left(mask_BT) == 0).unsqueeze(2)


def _last(states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """States at the last valid step of each clip, [B, H]; 0 where there is none."""
    last_BT = mask_BT & (_left(mask_BT) == 1)
    return torch.bmm(last_BT.to(states_BTH.dtype).unsqueeze(1), states_BTH).squeeze(1)


def from_reference(
    state: Mapping[str, Tensor], streams: Sequence[str] = ("visual", "audio", "text")
) -> dict[str, Tensor]:
    """The state of the released sentiment network by our names and in our shapes; gradients alike.

    Args:
        state: The state dict of anita-hu/MSAF's network for CMU-MOSEI.
        streams: The released names of the model's streams, in its order.

    Raises:
        KeyError: A tensor is missing.
    """
    ours = {
        f"msaf.{name}": tensor for name, tensor in msaf.from_reference(state, "msaf.0.").items()
    }
    for m, stream in enumerate(streams):
        for layer, name in enumerate(("first", "second")):
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                ours[f"{name}.{m}.{kind}_l0"] = state[f"{stream}_model.{layer}.{kind}_l0"]
    for kind in ("weight", "bias"):
        ours[f"classifier.{kind}"] = state[f"multimodal_classifier.0.{kind}"]
    return ours
