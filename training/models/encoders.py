"""Encoders of transformers as parts of a model: raw streams in, states with their times out.

They are trained together with the fusion model that reads their states. A clip's states depend on
no other clip of its batch and on no padding: what a checkpoint was never told (the group norm of
the base sizes of wav2vec 2.0 and its kin reads all of a row) is masked here.

Shapes: B clips, T steps of the raw stream, S steps of states, D their width.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from featurizers.speech_encoder import RATE_HZ, grid_of
from featurizers.text_encoder import ARCHITECTURES as TEXT
from featurizers.text_encoder import POOLER, places_of
from training.batch import Stream
from training.recipe import EncoderSettings

SPEECH = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "wavlm": "WavLMModel"}
PICTURES = {
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "vit": "ViTModel",
}
ARCHITECTURES: Mapping[str, str] = {**SPEECH, **PICTURES, **TEXT}
"""The class in transformers of each kind that can be trained."""

# Two draws of their own: one from numpy, which no seed of a step reaches, and one that is another
# on every rank, while ZeRO 3 gathers weights on all ranks together.
_NEVER: Mapping[str, Any] = {"apply_spec_augment": False, "layerdrop": 0.0}
UNREAD = ("masked_spec_embed", "mask_token")
"""Weights that nothing reads: they are not trained, and a checkpoint may lack them."""
# Parts of names that lie above the layers; all else that is in no layer lies below them.
_ABOVE = {"post_layernorm", "head", "pooler", "final_norm", "layernorm"}


def kind_of(settings: EncoderSettings) -> str:
    """The kind of an encoder, as transformers names it.

    Raises:
        ValueError: It cannot be trained here.
    """
    kind = str(json.loads(settings.config).get("model_type", ""))
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"an encoder of kind {kind!r} cannot be trained; wanted one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    return kind


def extras_of(kind: str) -> dict[str, Any]:
    """What the class of this kind is to be called with, besides its settings."""
    return {"add_pooling_layer": False} if kind in {*POOLER, "vit"} else {}


def build_encoder(settings: EncoderSettings, width: int) -> "Encoder":
    """An encoder with weights drawn by chance.

    Args:
        settings: Which.
        width: Dimensions of its raw stream.

    Raises:
        ValueError: The kind is unknown, or the raw stream is not what it reads.
    """
    kind = kind_of(settings)
    if kind in SPEECH:
        return Speech(settings, width)
    return Pictures(settings, width) if kind in PICTURES else Pieces(settings, width)


class Encoder(nn.Module, ABC):
    """A model of transformers, with what is frozen of it.

    Args:
        settings: Which, and how it is trained.

    Attributes:
        width: D.
        layers: How many it has.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        import transformers

        kind = kind_of(settings)
        plain = {**json.loads(settings.config), **(_NEVER if kind in SPEECH else {})}
        plain.pop("model_type")
        self.settings = settings
        self.config = transformers.AutoConfig.for_model(kind, **plain)
        architecture = getattr(transformers, ARCHITECTURES[kind])
        # transformers has no types of its own.
        self.model: Any = architecture(self.config, **extras_of(kind))
        self.width = int(self.config.hidden_size)
        self.layers = int(self.config.num_hidden_layers)
        self.look: dict[str, Any] = json.loads(settings.look)
        self._freeze()
        if settings.checkpointing:
            self.model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

    @property
    def frozen(self) -> bool:
        """Whether nothing of it is trained."""
        return self.settings.freeze == "all"

    def depths(self) -> Iterator[tuple[str, nn.Parameter, int]]:
        """Each parameter by name, with its depth.

        0 below the layers, 1 for the first layer, and one more than there are layers above them.
        """
        inside = next(
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList)
            and name.split(".")[-1] in {"layer", "layers"}
            and len(module) == self.layers
        )
        for name, parameter in self.model.named_parameters():
            if name.startswith(f"{inside}."):
                yield name, parameter, int(name.removeprefix(f"{inside}.").split(".")[0]) + 1
            else:
                above = _ABOVE & set(name.split(".")) and not name.startswith("embeddings.")
                yield name, parameter, self.layers + 1 if above else 0

    def train(self, mode: bool = True) -> "Encoder":
        """Training mode, but for an encoder that is frozen: it drops nothing."""
        super().train(mode and not self.frozen)
        return self

    def forward(
        self, values_BTD: Tensor, mask_BT: Tensor, times_BT2: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, S, D], 0 where they are not valid, their mask [B, S] and times [B, S, 2].

        A clip that lacks the stream is read as one empty step and masked afterwards, so that all
        ranks run all modules whatever their clips have. Plain tensors go in and come out: ZeRO 3
        looks for them.
        """
        if times_BT2 is None:  # no clip of the batch has the stream
            times_BT2 = values_BTD.new_zeros(*mask_BT.shape, 2)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = self._encode(values_BTD.float(), mask_BT, times_BT2.float())
        times = times_BT2 if found.times is None else found.times
        return found.values * found.mask.unsqueeze(2), found.mask, times

    @abstractmethod
    def _encode(self, values_BTD: Tensor, mask_BT: Tensor, times_BT2: Tensor) -> Stream:
        """States of what was given, with their mask and, where it is another one, their times."""

    def _freeze(self) -> None:
        freeze, last = self.settings.freeze, -1
        if freeze == "features":
            last = 0
        elif freeze == "all":
            last = self.layers + 1
        elif isinstance(freeze, int):
            if isinstance(freeze, bool) or not 0 <= freeze <= self.layers:
                raise ValueError(f"freeze is {freeze}; this encoder has {self.layers} layers")
            last = freeze
        elif freeze != "none":
            raise ValueError(
                f"freeze is {freeze!r}; wanted none, all, features, or a number of layers"
            )
        for name, parameter, depth in self.depths():
            if depth <= last or any(part in UNREAD for part in name.split(".")):
                parameter.requires_grad_(False)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype


class Speech(Encoder):
    """wav2vec 2.0, HuBERT or WavLM on a stream of `waveform`."""

    def __init__(self, settings: EncoderSettings, width: int) -> None:
        super().__init__(settings)
        self.grid = grid_of(self.config)
        self.hop = width
        self._norms = []
        if self.config.feat_extract_norm == "group":
            first = self.model.get_submodule("feature_extractor.conv_layers.0")
            norm = _masked(first.get_submodule("layer_norm"))
            first.add_module("layer_norm", norm)
            self._norms.append(norm)
        if self.settings.freeze != "none":
            # Else it asks for gradients by the sound itself.
            self.model.freeze_feature_encoder()

    def _encode(self, values_BTD: Tensor, mask_BT: Tensor, times_BT2: Tensor) -> Stream:
        most = self.settings.most or mask_BT.shape[1]
        mask_BT, values_BTD = mask_BT[:, :most], values_BTD[:, :most]
        reach, hop = self.grid.reach, self.grid.hop
        sound_BN = values_BTD.flatten(1)
        sound_BN = functional.pad(sound_BN, (0, max(0, reach - sound_BN.shape[1])))
        there_B = mask_BT.sum(1) * self.hop
        if self.look.get("do_normalize", True):
            sound_BN = _scaled(sound_BN, there_B)
        lengths_B = there_B.clamp(min=reach)
        valid_BN = torch.arange(sound_BN.shape[1], device=sound_BN.device) < lengths_B.unsqueeze(1)
        for norm in self._norms:
            norm.lengths_B = (lengths_B - self.config.conv_kernel[0]) // self.config.conv_stride[
                0
            ] + 1
        output = self.model(sound_BN.to(self._dtype), attention_mask=valid_BN.long())
        states_BSD: Tensor = output.last_hidden_state
        at_S = torch.arange(states_BSD.shape[1], device=sound_BN.device)
        steps_B = (lengths_B - reach) // hop + 1
        mask_BS = (at_S < steps_B.unsqueeze(1)) & mask_BT.any(1, keepdim=True)
        begins_BS = times_BT2[:, :1, 0] + at_S * (hop / RATE_HZ)
        times_BS2 = torch.stack([begins_BS, begins_BS + hop / RATE_HZ], 2)
        return Stream(states_BSD, mask_BS, times_BS2)


def _scaled(sound_BN: Tensor, lengths_B: Tensor) -> Tensor:
    """Each clip's sound with mean 0 and variance 1, and 0 behind its end."""
    at_N = torch.arange(sound_BN.shape[1], device=sound_BN.device)
    there_BN = (at_N < lengths_B.unsqueeze(1)).float()
    count_B1 = there_BN.sum(1, keepdim=True).clamp(min=1)
    centred_BN = (sound_BN - (sound_BN * there_BN).sum(1, keepdim=True) / count_B1) * there_BN
    variance_B1 = centred_BN.square().sum(1, keepdim=True) / count_B1
    return centred_BN / torch.sqrt(variance_B1 + 1e-7)


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm with a group for each channel, whose statistics are of a clip's own steps.

    Attributes:
        lengths_B: How many steps of each clip count; set before each call.
    """

    lengths_B: Tensor

    def forward(self, x_BCT: Tensor) -> Tensor:
        """As of each clip alone; what lies behind its end is of no use."""
        there_B1T = torch.arange(x_BCT.shape[2], device=x_BCT.device) < self.lengths_B.view(
            -1, 1, 1
        )
        count_B11 = self.lengths_B.view(-1, 1, 1).float()
        exact_BCT = x_BCT.float()
        mean_BC1 = (exact_BCT * there_B1T).sum(2, keepdim=True) / count_B11
        centred_BCT = exact_BCT - mean_BC1
        variance_BC1 = (centred_BCT * there_B1T).square().sum(2, keepdim=True) / count_B11
        scaled_BCT = (centred_BCT * torch.rsqrt(variance_BC1 + self.eps)).to(x_BCT.dtype)
        return scaled_BCT * self.weight[:, None] + self.bias[:, None]


def _masked(norm: nn.Module) -> MaskedGroupNorm:
    """The same norm, with the same parameters, by clip."""
    if not isinstance(norm, nn.GroupNorm) or norm.num_groups != norm.num_channels:
        raise TypeError(f"{norm} is no group norm of single channels")
    ours = MaskedGroupNorm(norm.num_groups, norm.num_channels, norm.eps)
    ours.weight, ours.bias = norm.weight, norm.bias
    return ours


class Pictures(Encoder):
    """CLIP, SigLIP, DINOv2 or ViT on a stream of `frames`, picture by picture."""

    def __init__(self, settings: EncoderSettings, width: int) -> None:
        super().__init__(settings)
        self.channels = 3 if math.isqrt(width // 3) ** 2 * 3 == width else 1
        self.side = math.isqrt(width // self.channels)
        if self.side**2 * self.channels != width:
            raise ValueError(
                f"its stream is {width} wide, which are no square pictures; wanted is the "
                f"featurizer frames"
            )
        # DINOv2 takes any size; the others have places for the pictures that they learnt from.
        own = self.config.image_size
        size = self.look.get("size") if self.config.model_type == "dinov2" else None
        self.size = int(size or (own if isinstance(own, int) else own[0]))

    def _encode(self, values_BTD: Tensor, mask_BT: Tensor, times_BT2: Tensor) -> Stream:
        values_BTD, mask_BT, times_BT2 = _thinned(
            self.settings.most, values_BTD, mask_BT, times_BT2
        )
        rows = mask_BT.flatten().nonzero().squeeze(1)
        if not len(rows):
            rows = rows.new_zeros(1)
        seen = self._shown(values_BTD.flatten(0, 1).index_select(0, rows))
        output = self.model(seen.to(self._dtype))
        if self.config.model_type == "vit":
            states = output.last_hidden_state[:, 0]
        else:
            states = output.pooler_output
        empty = states.new_zeros(mask_BT.numel(), self.width)
        states_BTD = empty.index_copy(0, rows, states).view(*mask_BT.shape, self.width)
        return Stream(states_BTD, mask_BT, times_BT2)

    def _shown(self, values_ND: Tensor) -> Tensor:
        """Pictures as the model learnt to see them: float32 [N, 3, size, size]."""
        pixels = values_ND.view(-1, self.side, self.side, self.channels).movedim(3, 1)
        pixels = pixels.expand(-1, 3, -1, -1)
        if self.side != self.size:
            pixels = functional.interpolate(
                pixels, (self.size, self.size), mode="bilinear", antialias=self.side > self.size
            )
        # Numbers of Python, so that nothing must go to the device.
        scale = float(self.look.get("scale", 1 / 255))
        mean, deviation = self.look.get("mean", (0.5,) * 3), self.look.get("deviation", (0.5,) * 3)
        colours = [
            (pixels[:, at] * scale - float(mean[at])) / float(deviation[at]) for at in range(3)
        ]
        return torch.stack(colours, 1)


def _thinned(
    most: int, values_BTD: Tensor, mask_BT: Tensor, times_BT2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """At most so many steps of each clip, evenly chosen; 0 takes all."""
    if not most or mask_BT.shape[1] <= most:
        return values_BTD, mask_BT, times_BT2
    at_M = torch.arange(most, device=mask_BT.device)
    steps_B1 = mask_BT.sum(1, keepdim=True)
    even_BM = ((2 * at_M + 1) * steps_B1) // (2 * most)
    chosen_BM = torch.where(steps_B1 > most, even_BM, at_M)
    return _taken(chosen_BM, values_BTD, mask_BT, times_BT2)


def _taken(
    chosen_BM: Tensor, values_BTD: Tensor, mask_BT: Tensor, times_BT2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """These steps of each clip."""
    clip_B1 = torch.arange(len(chosen_BM), device=chosen_BM.device).unsqueeze(1)
    return (
        values_BTD[clip_B1, chosen_BM],
        mask_BT[clip_B1, chosen_BM],
        times_BT2[clip_B1, chosen_BM],
    )


class Pieces(Encoder):
    """BERT and its kin on a stream of `word-pieces`."""

    def __init__(self, settings: EncoderSettings, width: int) -> None:
        super().__init__(settings)
        if width != 1:
            raise ValueError(
                f"its stream is {width} wide; wanted are the numbers of word pieces, which the "
                f"featurizer word-pieces gives"
            )
        places = places_of(self.config)
        self.most = min(settings.most or places, places)

    def _encode(self, values_BTD: Tensor, mask_BT: Tensor, times_BT2: Tensor) -> Stream:
        if mask_BT.shape[1] > self.most:
            # The first ones, and the piece that closes the text.
            at_M = torch.arange(self.most, device=mask_BT.device).expand(len(mask_BT), -1)
            last_B1 = mask_BT.sum(1, keepdim=True) - 1
            closing_BM = (at_M == self.most - 1) & (last_B1 >= self.most)
            chosen_BM = torch.where(closing_BM, last_B1, at_M)
            values_BTD, mask_BT, times_BT2 = _taken(chosen_BM, values_BTD, mask_BT, times_BT2)
        filling = self.config.pad_token_id or 0
        ids_BT = values_BTD[:, :, 0].round().long().masked_fill(~mask_BT, filling)
        seen_BT = mask_BT.clone()
        seen_BT[:, 0] = True  # a text of nothing would be a mean over nothing
        output = self.model(input_ids=ids_BT, attention_mask=seen_BT.long())
        states_BTD: Tensor = output.last_hidden_state
        return Stream(states_BTD, mask_BT, times_BT2)
