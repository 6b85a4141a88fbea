"""TFN, the tensor fusion network: a weight for every product of entries of the streams' vectors.

Source: A. Zadeh, M. Chen, S. Poria, E. Cambria, L.-P. Morency, "Tensor Fusion Network for
Multimodal Sentiment Analysis", EMNLP 2017. With vectors z_m that begin with 1, the fused tensor is
their outer product, which holds each stream by itself, each pair, and so on: h = W vec(z_1 x ... x
z_M) + b.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.batch import FusionBatch
from training.models.vectors import Vectors, VectorSettings, inference

LARGEST = 300_000
"""Entries of the outer product of a clip; the paper's own has 140,481."""


class TensorFusion(nn.Module):
    """Encoders, the outer product of what they give, and layers on it.

    Args:
        streams: Names in order, two at least.
        widths: Dimensions by stream.
        outputs: K.
        settings: Sizes and dropout.

    Raises:
        ValueError: There is one stream only, or the outer product would be too large.
    """

    def __init__(
        self,
        streams: Sequence[str],
        widths: Mapping[str, int],
        outputs: int,
        settings: VectorSettings,
    ) -> None:
        super().__init__()
        self.vectors = Vectors("tfn", streams, widths, settings)
        self.fusion = nn.Linear(_entries(len(streams), settings.vector), settings.hidden)
        self.inference = inference(settings, outputs)

    def forward(self, batch: FusionBatch) -> Tensor:
        """Outputs [B, K]. Raises ValueError for other streams than the model was built for."""
        first, *others = self.vectors(batch)
        product_BP = first
        for vector_BV in others:
            product_BP = torch.einsum("bp,bv->bpv", product_BP, vector_BV).flatten(1)
        outputs: Tensor = self.inference(self.fusion(product_BP))
        return outputs


def _entries(streams: int, vector: int) -> int:
    entries: int = (vector + 1) ** streams
    if entries > LARGEST:
        most = int(LARGEST ** (1 / streams)) - 1
        raise ValueError(
            f"the outer product of {streams} streams with vector {vector} has {entries:,} entries "
            f"for each clip, more than {LARGEST:,}; set vector to {most} at most, or take 'lmf', "
            f"which never forms the product"
        )
    return entries
