"""MMLatch as released: one recurrence after the other, one projection for each matrix.

Sequences are packed, also where all are equally long; encoders run twice; six mask networks one by
one; key masks are made anew in each attention; the last step is picked from each recurrence and not
used; the mask's dropout goes on in evaluation.

Source: G. Paraskevopoulos, E. Georgiou, A. Potamianos, "MMLatch: Bottom-Up Top-Down Fusion for
Multimodal Sentiment Analysis", ICASSP 2022, arXiv 2201.09828.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from training.models import build
from training.models.mmlatch import from_reference
from training.recipe import ModelSettings
from twins import Pair, Side, batch_of, no_dropout

WIDTHS = {"text": 300, "audio": 74, "visual": 35}
HIDDEN = 100


class Recurrence(nn.Module):
    """A packed LSTM, unpacked, with dropout; two directions are summed or lie side by side."""

    def __init__(
        self, width: int, hidden: int, dropout: float, *, both: bool = False, added: bool = False
    ) -> None:
        super().__init__()
        self.rnn = nn.LSTM(width, hidden, batch_first=True, bidirectional=both)
        self.drop = nn.Dropout(dropout)
        self.added = added

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Outputs [B, T, H] or [B, T, 2H]."""
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        steps, _ = self.rnn(packed)
        longest = int(lengths.max())
        read, _ = pad_packed_sequence(steps, batch_first=True, total_length=longest)
        read = self.drop(read)
        hidden = self.rnn.hidden_size
        last = (lengths - 1)[:, None, None].expand(-1, 1, hidden)
        read[..., :hidden].gather(1, last)
        if self.added:
            return read[..., :hidden] + read[..., hidden:]
        if self.rnn.bidirectional:
            return torch.cat([read[..., :hidden], read[..., hidden:]], 2)
        return read


class Attention(nn.Module):
    """One head, no bias; the streams that ask and are asked may differ."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.size = size
        self.k, self.q, self.v = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.drop = nn.Dropout(dropout)

    def forward(self, asked: Tensor, asking: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Answers [B, T, S]; with lengths, keys after a clip's end get next to no weight."""
        key, query, value = self.k(asked), self.q(asking), self.v(asked)
        scores = torch.bmm(query, key.transpose(1, 2)) / math.sqrt(self.size)
        if lengths is not None:
            scores = scores + (1 - inside(lengths)[:, None]) * -1e5
        return torch.bmm(self.drop(functional.softmax(scores, 2)), value)


class Symmetric(nn.Module):
    """Two streams that ask each other, each answer added to who asked."""

    def __init__(self, size: int, dropout: float) -> None:
        super().__init__()
        self.size = size
        self.kx, self.qx, self.vx, self.ky, self.qy, self.vy = (
            nn.Linear(size, size, bias=False) for _ in range(6)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The pair's feature [B, T, S]."""
        scale = math.sqrt(self.size)
        of_y = torch.bmm(self.qy(y), self.kx(x).transpose(1, 2)) / scale
        of_x = torch.bmm(self.qx(x), self.ky(y).transpose(1, 2)) / scale
        there = torch.bmm(self.drop(functional.softmax(of_y, 2)), self.vx(x)) + y
        back = torch.bmm(self.drop(functional.softmax(of_x, 2)), self.vy(y)) + x
        return there + back


class Attended(nn.Module):
    """A recurrence of two directions, then self-attention; all steps, or their sum."""

    def __init__(self, width: int, hidden: int, dropout: float, *, added: bool) -> None:
        super().__init__()
        self.rnn = Recurrence(width, hidden, dropout, both=True, added=added)
        self.attention = Attention(hidden if added else 2 * hidden, dropout)
        self.summed = not added

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Encoded steps [B, T, H], or a vector [B, 2H]."""
        read = self.rnn(x, lengths)
        attended: Tensor = self.attention(read, read, lengths)
        return attended.sum(1) if self.summed else attended


class Encoder(nn.Module):
    """One stream's encoder."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.encoder = Attended(width, hidden, dropout, added=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Encoded steps [B, T, H]."""
        encoded: Tensor = self.encoder(x, lengths)
        return encoded


class Mask(nn.Module):
    """Masks one stream by what two others say."""

    def __init__(self, hidden: int, width: int, dropout: float) -> None:
        super().__init__()
        self.mask1 = Recurrence(hidden, width, 0.1)
        self.mask2 = Recurrence(hidden, width, 0.1)
        self.dropout = dropout

    def forward(self, x: Tensor, others: Sequence[Tensor], lengths: Tensor) -> Tensor:
        """The masked stream."""
        first, second = self.mask1(others[0], lengths), self.mask2(others[1], lengths)
        mask = (torch.sigmoid(first) + torch.sigmoid(second)) * 0.5
        return x * functional.dropout(mask, self.dropout)


class Feedback(nn.Module):
    """The three masks, each of its own stream."""

    def __init__(self, widths: Sequence[int], hidden: int, dropout: float) -> None:
        super().__init__()
        self.f1, self.f2, self.f3 = (Mask(hidden, width, dropout) for width in widths)

    def forward(self, x: Sequence[Tensor], h: Sequence[Tensor], lengths: Tensor) -> list[Tensor]:
        """The masked streams."""
        return [
            self.f1(x[0], (h[1], h[2]), lengths),
            self.f2(x[1], (h[0], h[2]), lengths),
            self.f3(x[2], (h[0], h[1]), lengths),
        ]


class Pairs(nn.Module):
    """The attentions between streams."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.ta, self.va, self.tv = (Symmetric(hidden, 0.1) for _ in range(3))
        self.tav = Attention(hidden, 0.1)

    def forward(self, text: Tensor, audio: Tensor, visual: Tensor) -> Tensor:
        """Seven features side by side, [B, T, 7H]."""
        ta, va, tv = self.ta(text, audio), self.va(visual, audio), self.tv(text, visual)
        return torch.cat([text, audio, visual, ta, tv, va, self.tav(text, va)], 2)


class Fuser(nn.Module):
    """Attentions between streams, and what reads them."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.att_fuser = Pairs(hidden)
        self.rnn = Attended(7 * hidden, hidden, 0.1, added=False)

    def forward(self, encoded: Sequence[Tensor], lengths: Tensor) -> Tensor:
        """A vector for each clip, [B, 2H]."""
        read: Tensor = self.rnn(self.att_fuser(*encoded), lengths)
        return read


class Body(nn.Module):
    """All but the last layer."""

    def __init__(self, widths: Sequence[int], hidden: int, dropout: float, mask: float) -> None:
        super().__init__()
        self.text, self.audio, self.visual = (Encoder(w, hidden, dropout) for w in widths)
        self.fuser = Fuser(hidden)
        self.fm = Feedback(widths, hidden, mask)

    def forward(self, x: Sequence[Tensor], lengths: Tensor) -> Tensor:
        """A vector for each clip, [B, 2H]."""
        x = self.fm(x, self.encode(x, lengths), lengths)
        fused: Tensor = self.fuser(self.encode(x, lengths), lengths)
        return fused

    def encode(self, x: Sequence[Tensor], lengths: Tensor) -> list[Tensor]:
        """Encoded steps by stream."""
        encoders = (self.text, self.audio, self.visual)
        return [encoder(each, lengths) for encoder, each in zip(encoders, x, strict=True)]


class MMLatch(nn.Module):
    """The whole model over text, audio and visual, with masks by LSTM."""

    def __init__(
        self, widths: Sequence[int], hidden: int, *, dropout: float = 0.2, mask: float = 0.2
    ) -> None:
        super().__init__()
        self.encoder = Body(widths, hidden, dropout, mask)
        self.classifier = nn.Linear(2 * hidden, 1)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Outputs [B, 1] of `text`, `audio` and `visual` [B, T, D] with `lengths` [B]."""
        streams = [inputs[name] for name in WIDTHS]
        outputs: Tensor = self.classifier(self.encoder(streams, inputs["lengths"]))
        return outputs


def inside(lengths: Tensor) -> Tensor:
    """1 within a clip, else 0; [B, T]."""
    steps = torch.arange(int(lengths.max())).unsqueeze(0).to(lengths.device)
    return (steps < lengths.unsqueeze(1)).float()


def lengths_of(clips: int, steps: int) -> Tensor:
    """Lengths as utterances have them: one as long as the batch, 0.42 of it in the mean."""
    draw = torch.Generator().manual_seed(clips)
    shares = torch.rand(clips, generator=draw).pow(1.5)
    lengths = (shares * steps).round().clamp(1, steps).long()
    lengths[0] = steps
    return lengths


def pair(
    clips: int,
    steps: int,
    *,
    dropout: bool,
    true_lengths: bool = False,
    told_lengths: bool = True,
    reference: bool = True,
    device: str = "cpu",
) -> Pair:
    """Both sides at the paper's sizes.

    Args:
        clips: B.
        steps: T.
        dropout: As published, or none at all.
        true_lengths: Clips of several lengths; else all are T long.
        told_lengths: Whether the twin is told them; the released collator tells it T for each.
        reference: Ours in the released form; else in the fixed one, which is another function where
            clips differ in length, or the pooling.
        device: Where both run.
    """
    torch.manual_seed(0)
    twin = MMLatch(list(WIDTHS.values()), HIDDEN).train()
    settings: dict[str, str | float | bool] = {"hidden": HIDDEN, "pooling": "sum"}
    if reference:
        settings |= {"reference": True, "reference_lengths": "true"}
    if not dropout:
        no_dropout(twin)
        for mask in (twin.encoder.fm.f1, twin.encoder.fm.f2, twin.encoder.fm.f3):
            mask.dropout = 0.0
        names = ("encoder_dropout", "fusion_dropout", "mask_dropout", "mask_rnn_dropout")
        settings |= dict.fromkeys(names, 0.0)
    kind = ModelSettings(kind="mmlatch", streams=tuple(WIDTHS), settings=settings)
    ours = build(kind, WIDTHS, 1).train()
    ours.load_state_dict(from_reference(twin.state_dict()))
    ours, twin = ours.to(device), twin.to(device)
    lengths = lengths_of(clips, steps) if true_lengths else torch.full((clips,), steps)
    valid = torch.arange(steps) < lengths[:, None]
    values = {n: torch.randn(clips, steps, w) * valid[..., None] for n, w in WIDTHS.items()}
    batch = batch_of(values, dict.fromkeys(WIDTHS, valid)).to(device)
    inputs = {name: stream.values for name, stream in batch.streams.items()}
    inputs["lengths"] = (lengths if told_lengths else torch.full((clips,), steps)).to(device)
    return Pair(Side(ours, lambda: [ours(batch)]), Side(twin, lambda: [twin(inputs)]))
