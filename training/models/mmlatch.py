"""MMLatch: what the other streams say masks a stream's input, which is then encoded again.

Source: G. Paraskevopoulos, E. Georgiou, A. Potamianos, "MMLatch: Bottom-Up Top-Down Fusion for
Multimodal Sentiment Analysis", ICASSP 2022, arXiv 2201.09828; the authors' code is
georgepar/mmlatch.

With encoders E_m, inputs X_m and all other streams p: h_m = E_m(X_m) (stage I);
M_m = mean_p sigma(LSTM_mp(h_p)); X'_m = X_m * M_m; the encoders read X'_m and the head fuses what
they give (stage II).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from training.batch import FusionBatch
from training.models.blocks import (
    Encoders,
    FusionSettings,
    Head,
    Lstm,
    Steps,
    check_shares,
    take_streams,
)
from training.models.dropout import dropout
from training.models.lengths import by_length


@dataclass(frozen=True, slots=True, kw_only=True)
class MMLatchSettings(FusionSettings):
    """Settings of MMLatch.

    Attributes:
        mask: "sequence" masks by an LSTM for each pair of streams, "static" by a linear layer step
            by step, "none" not at all (which is late fusion).
        mask_dropout: On the masks; with `reference` it goes on in evaluation, as released.
        mask_rnn_dropout: On the outputs of the mask LSTMs.
        stage1_grad: Whether gradients flow through stage I, as in the released code.
        gives: Streams that mask others: "all", or names with commas.
        receives: Streams that are masked: "all", or names with commas.
    """

    mask: Literal["sequence", "static", "none"] = "sequence"
    mask_dropout: float = 0.2
    mask_rnn_dropout: float = 0.1
    stage1_grad: bool = True
    gives: str = "all"
    receives: str = "all"

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        FusionSettings.__post_init__(self)
        check_shares(mask_dropout=self.mask_dropout, mask_rnn_dropout=self.mask_rnn_dropout)


@dataclass(frozen=True, slots=True)
class Explanation:
    """How far each stream was let through.

    Attributes:
        masks: By receiving stream, [B, T, D] between 0 and 1; 0 at steps that are not valid.
        means: By receiving stream, [B, T]: the mean over the stream's dimensions, a number a word.
    """

    masks: Mapping[str, Tensor]
    means: Mapping[str, Tensor]


class MMLatch(nn.Module):
    """Encoders, masks from above, the same encoders again, and a head.

    Args:
        streams: Names in order; with exactly three, the pair of the last two asks the first (text,
            in the paper).
        widths: Dimensions by stream.
        outputs: K.
        settings: Sizes, dropout, and which stream masks which.

    Raises:
        ValueError: `gives` or `receives` names no stream of the model, or nothing would be masked.
    """

    def __init__(
        self,
        streams: Sequence[str],
        widths: Mapping[str, int],
        outputs: int,
        settings: MMLatchSettings,
    ) -> None:
        super().__init__()
        self.streams = tuple(streams)
        self.widths = tuple(widths[name] for name in streams)
        self.settings = settings
        self.encoders = Encoders(self.widths, settings.hidden, settings.encoder_dropout)
        self.latch = None if settings.mask == "none" else Latch(self.streams, self.widths, settings)
        self.head = Head(len(self.streams), outputs, settings)

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        values, steps = take_streams(batch, self.streams, self.widths, self.settings)
        return by_length(values, steps, self.settings, self._outputs)

    def _outputs(self, values: Sequence[Tensor], steps: Steps) -> Tensor:
        if self.latch is not None:
            masks = self.latch(self._stage_one(values, steps), steps)
            values = [self._masked(x, masks.get(m)) for m, x in enumerate(values)]
        outputs: Tensor = self.head(self.encoders(values, steps), steps)
        return outputs

    def explain(self, batch: FusionBatch) -> Explanation:
        """The masks before their dropout. Ask in evaluation mode.

        Raises:
            ValueError: The model was built without masks.
        """
        if self.latch is None:
            raise ValueError(
                "this MMLatch has no masks (mask is 'none'); build it with 'sequence' or 'static'"
            )
        values, steps = take_streams(batch, self.streams, self.widths, self.settings)
        found = self.latch(self._stage_one(values, steps), steps)
        masks = {self.streams[m]: mask * steps.valid[m].unsqueeze(2) for m, mask in found.items()}
        return Explanation(masks, {name: mask.mean(2) for name, mask in masks.items()})

    def _stage_one(self, values: Sequence[Tensor], steps: Steps) -> Tensor:
        with torch.set_grad_enabled(self.settings.stage1_grad and torch.is_grad_enabled()):
            encoded: Tensor = self.encoders(values, steps)
        return encoded

    def _masked(self, x_BTD: Tensor, mask_BTD: Tensor | None) -> Tensor:
        if mask_BTD is None:
            return x_BTD
        # The released code forgets to stop this dropout in evaluation.
        drops = self.training or self.settings.reference
        return x_BTD * dropout(mask_BTD, self.settings.mask_dropout, drops)


class Latch(nn.Module):
    """One mask network for each pair of a receiving and another, giving stream."""

    def __init__(
        self, streams: Sequence[str], widths: Sequence[int], settings: MMLatchSettings
    ) -> None:
        super().__init__()
        gives = _chosen(settings.gives, streams, "gives")
        receives = _chosen(settings.receives, streams, "receives")
        self.links = [(m, p) for m in receives for p in gives if m != p]
        if not self.links:
            raise ValueError(
                f"with gives {settings.gives!r} and receives {settings.receives!r} no stream of "
                f"{list(streams)} masks another; give two streams at least, or set mask to 'none'"
            )
        self.nets = nn.ModuleList(_mask_net(settings, widths[m]) for m, _ in self.links)

    def forward(self, encoded_MBTH: Tensor, steps: Steps) -> dict[int, Tensor]:
        """Masks [B, T, D] by the receiving stream's position: the mean of what the others say."""
        said: dict[int, list[Tensor]] = {}
        for net, (m, p) in zip(self.nets, self.links, strict=True):
            said.setdefault(m, []).append(net(encoded_MBTH[p], steps.padding))
        return {m: torch.stack(masks).mean(0) for m, masks in said.items()}


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


def _mask_net(settings: MMLatchSettings, width: int) -> nn.Module:
    if settings.mask == "static":
        return StaticMask(settings.hidden, width)
    return SequenceMask(settings.hidden, width, settings.mask_rnn_dropout)


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


_RELEASED_STREAMS = ("text", "audio", "visual")

# For each directed pair of `Crossing`: the released pair, its letter of who asks, of who is asked.
_RELEASED_PAIRS = ("ta.yx", "tv.yx", "va.xy", "ta.xy", "tv.xy", "va.yx")

_RELEASED_PREFIXES = {
    **{
        f"encoder.{s}.encoder.rnn.rnn.": f"encoders.lstms.{m}."
        for m, s in enumerate(_RELEASED_STREAMS)
    },
    "encoder.fuser.rnn.rnn.rnn.": "head.reader.lstm.",
    **{
        f"encoder.fm.f{m + 1}.mask{i + 1}.{old}": f"latch.nets.{2 * m + i}.{new}"
        for m in range(3)
        for i in range(2)
        for old, new in (("rnn.", "lstm."), ("weight", "linear.weight"), ("bias", "linear.bias"))
    },
    "classifier.": "head.classifier.",
}


def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the released MMLatch, or of its late fusion, by our names and in our shapes.

    It fits a model over the streams (text, audio, visual), in this order. Gradients are renamed
    alike.

    Args:
        state: The state dict of georgepar/mmlatch's `AVTClassifier`.

    Raises:
        KeyError: A tensor is missing, or has a name that the released model does not have.
    """
    fuser = "encoder.fuser.att_fuser."

    def beside(prefix: str, *letters: str) -> Tensor:
        return torch.cat([state[f"{prefix}{letter}.weight"].mT for letter in letters], 1)

    ours = {
        "encoders.attention.weight": torch.stack(
            [beside(f"encoder.{s}.encoder.attention.", *"qkv") for s in _RELEASED_STREAMS]
        ),
        "head.reader.attention.weight": beside("encoder.fuser.rnn.attention.", *"qkv").unsqueeze(0),
        "head.crossing.query": torch.stack(
            [beside(f"{fuser}{pair[:3]}", f"q{pair[3]}") for pair in _RELEASED_PAIRS]
        ),
        "head.crossing.key_value": torch.stack(
            [beside(f"{fuser}{pair[:3]}", f"k{pair[4]}", f"v{pair[4]}") for pair in _RELEASED_PAIRS]
        ),
        "head.crossing.third_query": beside(f"{fuser}tav.", "q"),
        "head.crossing.third_key_value": beside(f"{fuser}tav.", "k", "v"),
    }
    for name, tensor in state.items():
        if ".attention." not in name and not name.startswith(fuser):
            prefix = next((old for old in _RELEASED_PREFIXES if name.startswith(old)), None)
            if prefix is None:
                raise KeyError(f"{name!r} is no tensor of the released MMLatch or late fusion")
            ours[_RELEASED_PREFIXES[prefix] + name.removeprefix(prefix)] = tensor
    return ours
