"""Image encoders of transformers, picture by picture: CLIP, SigLIP, DINOv2 and ViT."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import BadClipError, Clip
from featurizers.pretrained import (
    CONFIG,
    PICTURES,
    Checkpoint,
    Config,
    Model,
    find,
    load,
    settings_of,
)
from featurizers.spec import Chunk, Feature, FeatureSpec, Pending, VideoChunk, VideoWant, names
from featurizers.torch_encoder import ATOL, Tensor, TorchEncoder, check_dtype

NAME = "image-encoder"
ARCHITECTURES = {
    "clip": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "vit": "ViTModel",
}
POOLS = ("model", "mean", "projected")
MAX_BYTES = 2 << 30  # of one clip's pictures
# What masked training, or a classifier on top, alone uses.
SPARE = ("mask_token", "pooler.")


class ImageEncoder:
    """One vector for each picture.

    CLIP: Radford et al. 2021; SigLIP: Zhai et al. 2023; DINOv2: Oquab et al. 2023; ViT: Dosovitskiy
    et al. 2020. The model sees the largest centred square of the picture, scaled to its own size;
    pixels are scaled and shifted as the checkpoint's preprocessor does.

    The promise is 1e-3 in float32, 5e-2 in float16 and 5e-1 in bfloat16.

    Args:
        model: A name of the hub, with its `revision`; or a folder.
        revision: The commit, 40 hex digits.
        weights: The digest that the weights must have.
        fps: Pictures per second that are looked at.
        pool: How a picture becomes a vector: "model" as the model is meant (the class token after
            the last norm of CLIP, DINOv2 and ViT, the attention head of SigLIP), the "mean" of all
            patches, or "projected" into the space that CLIP shares with texts.
        dtype: Of weights and arithmetic: float32, float16 or bfloat16.
    """

    takes_gpu: ClassVar[bool] = True
    weights_from: ClassVar[str] = "model"

    def __init__(
        self,
        *,
        model: str = "",
        revision: str = "",
        weights: str = "",
        fps: float = 5,
        pool: str = "model",
        dtype: str = "float32",
    ) -> None:
        check_dtype(NAME, dtype)
        if not 0.1 <= fps <= 120:
            raise ValueError(f"{NAME}: fps is {fps}; wanted 0.1 to 120")
        checkpoint = find(model, revision, weights, files=PICTURES, kinds=tuple(ARCHITECTURES))
        config = settings_of(checkpoint)
        vision: Config = getattr(config, "vision_config", config)
        seen = look_of(checkpoint)
        if checkpoint.kind != "dinov2":  # which takes any size
            check_size(NAME, seen, vision)
        _check_pool(checkpoint, config, pool)
        width = config.projection_dim if pool == "projected" else vision.hidden_size
        self.spec = FeatureSpec(
            name=NAME,
            version=1,
            modality="video",
            reads=("video",),
            parameters={
                **checkpoint.identity,
                "fps": float(fps),
                "pool": pool,
                "dtype": dtype,
            },
            dims=tuple(names("state", width)),
            rate_hz=float(fps),
            weights=checkpoint.digest,
            licence=checkpoint.licence,
            atol=ATOL[dtype],
            source=checkpoint.source,
        )
        self.wants = VideoWant(fps=float(fps), size=seen.size, colour="rgb")
        self.encoder = _encoder(checkpoint, config, seen, pool, dtype)

    def begin(self, clip: Clip) -> "_Images":
        """Start on a clip."""
        return _Images()


@dataclass(frozen=True, slots=True)
class Look:
    """How a model sees pixels: (pixel * scale - mean) / deviation, for each colour.

    Attributes:
        size: Of its square pictures, in pixels.
    """

    size: int
    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def look_of(checkpoint: Checkpoint) -> Look:
    """How a checkpoint's preprocessor shows pictures to its model.

    Raises:
        ValueError: Its pictures are not square, or not of three colours.
    """
    plain, file = checkpoint.read(PICTURES[0]), checkpoint.folder / PICTURES[0]
    size = plain.get("crop_size") if plain.get("do_center_crop") else None
    size = size or plain.get("size")
    sides = set(size.values()) if isinstance(size, Mapping) else {size}
    if len(sides) != 1 or not isinstance(side := next(iter(sides)), int) or side < 1:
        raise ValueError(f"{file}: pictures of size {size}; wanted one whole number, a square's")
    normal = plain.get("do_normalize", True)
    mean = tuple(plain["image_mean"]) if normal else (0.0, 0.0, 0.0)
    deviation = tuple(plain["image_std"]) if normal else (1.0, 1.0, 1.0)
    if len(mean) != 3 or len(deviation) != 3:
        raise ValueError(f"{file}: means {mean} and deviations {deviation}; wanted three of each")
    scale = float(plain.get("rescale_factor", 1 / 255)) if plain.get("do_rescale", True) else 1.0
    return Look(side, scale, mean, deviation)


def check_size(name: str, look: Look, config: Config) -> None:
    """Raise ValueError when a preprocessor makes pictures of another size than its model takes."""
    if config.image_size not in (look.size, [look.size] * 2, (look.size, look.size)):
        raise ValueError(
            f"{name}: {PICTURES[0]} makes pictures of {look.size} pixels, and {CONFIG} wants "
            f"{config.image_size}: these two files are not of one checkpoint"
        )


def shown(look: Look, pixels: NDArray[np.uint8], device: str) -> Tensor:
    """Pictures [..., H, W, 3] as a model sees them: float32 [..., 3, H, W]."""
    import torch

    values = torch.from_numpy(pixels).to(device).movedim(-1, -3).float() * look.scale
    mean = torch.tensor(look.mean, device=device).view(3, 1, 1)
    deviation = torch.tensor(look.deviation, device=device).view(3, 1, 1)
    return (values - mean) / deviation


def _check_pool(checkpoint: Checkpoint, config: Config, pool: str) -> None:
    if pool not in POOLS:
        raise ValueError(f"{NAME}: pool is {pool!r}; wanted {', '.join(POOLS)}")
    if pool == "projected" and checkpoint.kind != "clip":
        raise ValueError(
            f"{NAME}: pool is 'projected', which CLIP alone has, not {checkpoint.kind}"
        )
    if checkpoint.kind == "siglip" and not getattr(config.vision_config, "vision_use_head", True):
        raise ValueError(f"{NAME}: this SigLIP has no head; wanted one that has")


class _Images:
    """One clip's pictures."""

    def __init__(self) -> None:
        self._frames: list[NDArray[np.uint8]] = []
        self._times: list[NDArray[np.float64]] = []
        self._bytes = 0

    def add(self, chunk: Chunk) -> None:
        if isinstance(chunk, VideoChunk):
            self._bytes += chunk.frames.nbytes
            self._times.append(chunk.times)
            if self._bytes <= MAX_BYTES:
                self._frames.append(chunk.frames)

    def finish(self) -> Pending:
        frames, times = whole_pictures(self._frames, self._times, self._bytes)
        return Pending(
            items=list(frames), assemble=lambda encoded: Feature(np.stack(encoded), times)
        )


def whole_pictures(
    frames: Sequence[NDArray[np.uint8]], times: Sequence[NDArray[np.float64]], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """All pictures of a clip and their times.

    Raises:
        BadClipError: There is none, or their size in bytes is more than a clip may have.
    """
    if not times:
        raise BadClipError("empty", "there is no picture in the clip's span")
    every = np.concatenate(times)
    if size > MAX_BYTES:
        raise BadClipError(
            "too_long",
            f"{len(every)} pictures take {size / (1 << 30):.1f} GiB, {MAX_BYTES >> 30} GiB are "
            f"held at most; cut the clip, or take a lower fps",
        )
    return np.concatenate(frames), every


def _encoder(
    checkpoint: Checkpoint,
    config: Config,
    look: Look,
    pool: str,
    dtype: str,
) -> TorchEncoder:
    architecture = ARCHITECTURES[checkpoint.kind]
    more: dict[str, Any] = {}
    if pool == "projected":
        architecture = "CLIPVisionModelWithProjection"
        config.vision_config.projection_dim = config.projection_dim
    if checkpoint.kind in {"clip", "siglip"}:
        more["config"] = config.vision_config
    if checkpoint.kind == "vit":
        more["add_pooling_layer"] = False
    make = functools.partial(load, checkpoint, architecture, dtype, spare=SPARE, **more)
    run = functools.partial(_run, look, pool=pool, kind=checkpoint.kind)
    return TorchEncoder(make, run, batch=(4, 128))


def _run(
    look: Look,
    model: Model,
    items: Sequence[NDArray[Any]],
    device: str,
    *,
    pool: str,
    kind: str,
) -> Tensor:
    output = model(shown(look, np.stack(items), device).to(model.dtype))
    if pool == "projected":
        return output.image_embeds
    if pool == "mean":
        # SigLIP has no class token.
        return output.last_hidden_state[:, int(kind != "siglip") :].float().mean(dim=1)
    return output.last_hidden_state[:, 0] if kind == "vit" else output.pooler_output
