"""LMF, low-rank multimodal fusion: tensor fusion whose weights are a sum of few products.

Source: Z. Liu, Y. Shen, V. Lakshminarasimhan, P. P. Liang, A. Zadeh, L.-P. Morency, "Efficient
Low-rank Multimodal Fusion with Modality-Specific Factors", ACL 2018. The weights of the tensor
fusion network for output h are W_h = sum_r w_1rh x ... x w_Mrh; then W_h vec(z_1 x ... x z_M) =
sum_r prod_m (w_mrh . z_m), and the outer product is never formed.

Shapes: M streams, B clips, R rank, V size of a vector, H hidden size.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.batch import FusionBatch
from training.models.vectors import Vectors, VectorSettings, inference


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankSettings(VectorSettings):
    """Settings of LMF: those of TFN, and `rank`, the products that make up the weights."""

    rank: int = 4

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        VectorSettings.__post_init__(self)
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; it must be at least 1")


class LowRankFusion(nn.Module):
    """Encoders, the sum of products of what they give, and layers on it.

    Args:
        streams: Names in order, two at least.
        widths: Dimensions by stream.
        outputs: K.
        settings: Sizes, dropout and rank.

    Raises:
        ValueError: There is one stream only.
    """

    def __init__(
        self,
        streams: Sequence[str],
        widths: Mapping[str, int],
        outputs: int,
        settings: LowRankSettings,
    ) -> None:
        super().__init__()
        self.vectors = Vectors("lmf", streams, widths, settings)
        self.factors = nn.ParameterList(_factor(len(streams), settings) for _ in streams)
        self.bias = nn.Parameter(torch.zeros(settings.hidden))
        self.inference = inference(settings, outputs)

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        pairs = zip(self.vectors(batch), self.factors, strict=True)
        said_BRH = [torch.einsum("bv,vrh->brh", vector, factor) for vector, factor in pairs]
        fused_BH = functools.reduce(torch.mul, said_BRH).sum(1) + self.bias
        outputs: Tensor = self.inference(fused_BH)
        return outputs


def _factor(streams: int, settings: LowRankSettings) -> nn.Parameter:
    """The factor [1 + V, R, H] of a stream, drawn for a fused vector of variance 1 at most."""
    size, rank = 1 + settings.vector, settings.rank
    scale = size**-0.5 * rank ** (-0.5 / streams)
    return nn.Parameter(torch.randn(size, rank, settings.hidden) * scale)
