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
    Steps,
    check_shares,
    take_streams,
)
from training.models.feedback import Encode, Explanation, Latch, LatchSettings
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
        self.latch = _latch(self.streams, self.widths, settings)
        self.head = Head(len(self.streams), outputs, settings)

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        values, steps = take_streams(batch, self.streams, self.widths, self.settings)
        return by_length(values, steps, self.settings, self._outputs)

    def _outputs(self, values: Sequence[Tensor], steps: Steps) -> Tensor:
        if self.latch is not None:
            values = self.latch.feed_back(values, steps.padding, self._encode(steps))
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
        return self.latch.explain(values, steps.padding, self._encode(steps), steps.valid)

    def _encode(self, steps: Steps) -> Encode:
        return lambda values: self.encoders(values, steps)


def _latch(
    streams: Sequence[str], widths: Sequence[int], settings: MMLatchSettings
) -> Latch | None:
    if settings.mask == "none":
        return None
    chosen = LatchSettings(
        mask=settings.mask,
        mask_dropout=settings.mask_dropout,
        mask_rnn_dropout=settings.mask_rnn_dropout,
        stage1_grad=settings.stage1_grad,
        gives=settings.gives,
        receives=settings.receives,
        # The released code forgets to stop this dropout in evaluation.
        drops_always=settings.reference,
    )
    return Latch(streams, widths, settings.hidden, chosen)


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
