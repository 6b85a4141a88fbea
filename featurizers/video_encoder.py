"""Video encoders of transformers, window by window: VideoMAE."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip
from featurizers.image_encoder import Look, check_size, look_of, shown, whole_pictures
from featurizers.pretrained import PICTURES, Model, find, load, settings_of
from featurizers.spec import Chunk, Feature, FeatureSpec, Pending, VideoChunk, VideoWant, names
from featurizers.torch_encoder import ATOL, Tensor, TorchEncoder, check_dtype

NAME = "video-encoder"
ARCHITECTURES = {"videomae": "VideoMAEModel"}


class VideoEncoder:
    """One vector for each window of pictures: the mean over all of its patches.

    VideoMAE: Tong et al. 2022. A window has as many pictures as the model takes (16). The last one
    ends with the clip and may overlap more; a clip of fewer pictures is filled up with its last
    one. The model sees the largest centred square, scaled to its own size.

    The promise is 1e-3 in float32, 5e-2 in float16 and 5e-1 in bfloat16.

    Args:
        model: A name of the hub, with its `revision`; or a folder.
        revision: The commit, 40 hex digits.
        weights: The digest that the weights must have.
        fps: Pictures per second that are looked at.
        hop: Pictures from a window to the next.
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
        fps: float = 8,
        hop: int = 8,
        dtype: str = "float32",
    ) -> None:
        check_dtype(NAME, dtype)
        if not 0.1 <= fps <= 120:
            raise ValueError(f"{NAME}: fps is {fps}; wanted 0.1 to 120")
        checkpoint = find(model, revision, weights, files=PICTURES, kinds=tuple(ARCHITECTURES))
        config = settings_of(checkpoint)
        if not 1 <= hop <= config.num_frames:
            raise ValueError(f"{NAME}: hop is {hop}; wanted 1 to {config.num_frames}, its window")
        seen = look_of(checkpoint)
        check_size(NAME, seen, config)
        self.spec = FeatureSpec(
            name=NAME,
            version=1,
            modality="video",
            reads=("video",),
            parameters={
                **checkpoint.identity,
                "fps": float(fps),
                "hop": hop,
                "dtype": dtype,
            },
            dims=tuple(names("state", config.hidden_size)),
            rate_hz=None,
            weights=checkpoint.digest,
            licence=checkpoint.licence,
            atol=ATOL[dtype],
            source=checkpoint.source,
        )
        self.wants = VideoWant(fps=float(fps), size=seen.size, colour="rgb")
        self._window, self._hop = int(config.num_frames), hop
        make = functools.partial(load, checkpoint, ARCHITECTURES[checkpoint.kind], dtype)
        self.encoder = TorchEncoder(make, functools.partial(_run, seen), batch=(2, 16))

    def begin(self, clip: Clip) -> "_Video":
        """Start on a clip."""
        return _Video(self._window, self._hop)


def windows_of(pictures: int, window: int, hop: int) -> list[range]:
    """Windows over so many pictures; the last one ends with them."""
    last = max(0, pictures - window)
    begins = [*range(0, last, hop), last]
    return [range(begin, begin + window) for begin in begins]


class _Video:
    """One clip's pictures."""

    def __init__(self, window: int, hop: int) -> None:
        self._window, self._hop = window, hop
        self._frames: list[NDArray[np.uint8]] = []
        self._times: list[NDArray[np.float64]] = []
        self._bytes = 0

    def add(self, chunk: Chunk) -> None:
        if isinstance(chunk, VideoChunk):
            self._bytes += chunk.frames.nbytes
            self._times.append(chunk.times)
            self._frames.append(chunk.frames)

    def finish(self) -> Pending:
        frames, times = whole_pictures(self._frames, self._times, self._bytes)
        chosen = windows_of(len(frames), self._window, self._hop)
        if len(frames) < self._window:
            more = np.repeat(frames[-1:], self._window - len(frames), axis=0)
            frames = np.concatenate([frames, more])
        last = len(times) - 1
        spans = [[times[each[0], 0], times[min(each[-1], last), 1]] for each in chosen]
        return Pending(
            items=[frames[each.start : each.stop] for each in chosen],
            assemble=lambda encoded: Feature(np.stack(encoded), np.array(spans)),
        )


def _run(
    look: Look,
    model: Model,
    items: Sequence[NDArray[Any]],
    device: str,
) -> Tensor:
    output = model(shown(look, np.stack(items), device).to(model.dtype))
    return output.last_hidden_state.float().mean(dim=1)
