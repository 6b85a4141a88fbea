"""Pretrained encoders beside transformers used by hand, one clip at a time.

Both sides have the same random weights, of base size unless it shall be quick: ours from media to
features as a job does, decoding left out, in batches over clips; the other with the checkpoint's
own preprocessor and model, a clip at a time, on the same device. What both computed is compared
with TF32 off on both sides, for ours never uses it; while the clock runs, the other has what torch
has by itself.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.catalog import build
from featurizers.clip import Clip
from featurizers.encoding import Batches, Encoding
from featurizers.spec import AudioChunk, Chunk, EncodingFeaturizer, Pending, Scalar, VideoChunk
from rivals import Device, Floats, Race, Size, Skipped, clip_of, close
from rivals.plain import WORD_S, spaced

RATE_HZ = 16_000
FPS = 2
VIDEO_FPS, WINDOW = 8, 16
VOCABULARY = 8192
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
CLIPS = {"cpu": (16, 4, 4, 2), "cuda": (512, 96, 96, 24)}
"""Clips of text, sound, pictures and films: as many as fill some batches."""

Model: TypeAlias = Any
Given: TypeAlias = tuple[Clip, Sequence[Chunk]]
ByHand: TypeAlias = Callable[[Clip, Sequence[Chunk]], Floats]


def races(size: Size) -> Iterator[Race | Skipped]:
    """Every encoder; each writes its weights when its turn comes."""
    counts = CLIPS["cpu"] if size.quick else CLIPS[size.device]
    for make, count in zip((text, audio, image, video), counts, strict=True):
        yield make(size, SMALL if size.quick else BASE, count)


def ours(featurizer: EncodingFeaturizer, clips: Sequence[Given]) -> list[Floats]:
    """Features of the clips as a job makes them."""
    batches, waiting = Batches(featurizer, []), list[Encoding]()
    for clip, chunks in clips:
        extraction = featurizer.begin(clip)
        for chunk in chunks:
            extraction.add(chunk)
        pending = extraction.finish()
        if not isinstance(pending, Pending):
            raise TypeError(f"{featurizer.spec.name} needed no encoder")
        waiting.append(batches.add(clip, pending))
        while batches.full:
            batches.encode()
    while not batches.empty:
        batches.encode()
    return [each.feature().values for each in waiting]


def text(size: Size, sizes: dict[str, int], count: int) -> Race:
    """BERT on transcripts of 4 to 40 words."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = size.folder / "text"
    numbers = {name: at for at, name in enumerate(["[CLS]", "[SEP]", "[PAD]", "[UNK]"])}
    numbers |= {f"w{at}": at for at in range(4, VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")  # noqa: S106
    fast.save_pretrained(folder)
    settings = hf.BertConfig(**sizes, vocab_size=VOCABULARY, pad_token_id=2)
    saved(hf.BertModel(settings), folder)
    random = np.random.default_rng(0)
    clips = list[Given]()
    for number in range(count):
        spoken = [f"w{at}" for at in random.integers(4, VOCABULARY, random.integers(4, 41))]
        clips.append((clip_of(number, spaced(spoken)), ()))
    model = on_device(hf.BertModel.from_pretrained(folder), size.device)

    def by_hand(clip: Clip, chunks: Sequence[Chunk]) -> Floats:
        inputs = fast(" ".join(word.text for word in clip.words or ()), return_tensors="pt")
        with torch.inference_mode():
            states = model(**inputs.to(size.device)).last_hidden_state[0, 1:-1]
        return np.asarray(states.cpu())

    seconds = sum(len(clip.words or ()) for clip, _ in clips) * WORD_S
    return _race("text", clips, seconds, folder, by_hand)


def audio(size: Size, sizes: dict[str, int], count: int) -> Race:
    """wav2vec2, normed by layer, on 2 to 8 seconds of noise."""
    import torch
    import transformers as hf

    folder = size.folder / "speech"
    settings = hf.Wav2Vec2Config(
        **sizes, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True
    )
    saved(hf.Wav2Vec2Model(settings), folder)
    extractor = hf.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    extractor.save_pretrained(folder)
    random = np.random.default_rng(0)
    lengths = random.integers(2 * RATE_HZ, 8 * RATE_HZ, count)
    clips: list[Given] = [
        (clip_of(number), (AudioChunk(0.0, random.normal(0, 3000, n).astype(np.int16)),))
        for number, n in enumerate(lengths)
    ]
    model = on_device(hf.Wav2Vec2Model.from_pretrained(folder), size.device)

    def by_hand(clip: Clip, chunks: Sequence[Chunk]) -> Floats:
        (chunk,) = chunks
        samples = chunk.samples.astype(np.float32) / 32768  # type: ignore[union-attr] # sound
        inputs = extractor(samples, sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            return np.asarray(model(**inputs.to(size.device)).last_hidden_state[0].cpu())

    return _race("audio", clips, float(lengths.sum()) / RATE_HZ, folder, by_hand)


def image(size: Size, sizes: dict[str, int], count: int) -> Race:
    """ViT, patches of 16 x 16 in pictures of 224 x 224, 2 to 12 of them in a clip."""
    import torch
    import transformers as hf

    folder = size.folder / "image"
    saved(hf.ViTModel(hf.ViTConfig(**sizes), add_pooling_layer=False), folder)
    processor = hf.ViTImageProcessorPil(do_resize=False)
    processor.save_pretrained(folder)
    lengths = np.random.default_rng(0).integers(2, 13, count)
    clips = shown(lengths, FPS)
    model = on_device(hf.ViTModel.from_pretrained(folder, add_pooling_layer=False), size.device)

    def by_hand(clip: Clip, chunks: Sequence[Chunk]) -> Floats:
        (chunk,) = chunks
        pictures = list(chunk.frames)  # type: ignore[union-attr] # pictures
        inputs = processor(images=pictures, return_tensors="pt")
        with torch.inference_mode():
            return np.asarray(model(**inputs.to(size.device)).last_hidden_state[:, 0].cpu())

    return _race("image", clips, float(lengths.sum()) / FPS, folder, by_hand)


def video(size: Size, sizes: dict[str, int], count: int) -> Race:
    """VideoMAE, 16 pictures of 224 x 224 at a time, one or two such windows in a clip."""
    import torch
    import transformers as hf

    folder = size.folder / "video"
    saved(hf.VideoMAEModel(hf.VideoMAEConfig(**sizes, num_frames=WINDOW)), folder)
    processor = hf.VideoMAEImageProcessorPil(do_resize=False, do_center_crop=False)
    processor.save_pretrained(folder)
    lengths = np.array([WINDOW * (1 + number % 2) for number in range(count)])
    clips = shown(lengths, VIDEO_FPS)
    model = on_device(hf.VideoMAEModel.from_pretrained(folder), size.device)

    def by_hand(clip: Clip, chunks: Sequence[Chunk]) -> Floats:
        (chunk,) = chunks
        frames = chunk.frames  # type: ignore[union-attr] # pictures
        windows = [list(frames[at : at + WINDOW]) for at in range(0, len(frames), WINDOW)]
        inputs = processor(windows, return_tensors="pt")
        with torch.inference_mode():
            states = model(inputs["pixel_values"].to(size.device)).last_hidden_state
            return np.asarray(states.mean(dim=1).cpu())

    seconds = float(lengths.sum()) / VIDEO_FPS
    return _race("video", clips, seconds, folder, by_hand, fps=VIDEO_FPS, hop=WINDOW)


def shown(lengths: NDArray[np.int64], fps: float) -> list[Given]:
    """Clips of so many pictures, 224 x 224, of noise."""
    random = np.random.default_rng(0)
    clips = list[Given]()
    for number, length in enumerate(lengths):
        frames = random.integers(0, 256, (length, 224, 224, 3), dtype=np.uint8)
        edges = np.arange(length, dtype=np.float64)[:, np.newaxis] + np.array([0.0, 1.0])
        clips.append((clip_of(number), (VideoChunk(edges / fps, frames),)))
    return clips


def saved(model: Model, folder: Path) -> None:
    """Write random weights, always the same."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.02)
    model.save_pretrained(folder)


def on_device(model: Model, device: Device) -> Model:
    """A model in evaluation mode."""
    return model.eval().to(device)


def _race(
    name: str,
    clips: Sequence[Given],
    seconds: float,
    folder: Path,
    by_hand: ByHand,
    **settings: Scalar,
) -> Race:
    kind = "speech" if name == "audio" else name
    featurizer = build(f"{kind}-encoder", model=str(folder), **settings)
    if not isinstance(featurizer, EncodingFeaturizer):
        raise TypeError(f"{featurizer.spec.name} has no encoder")

    def same(mine: Floats, theirs: Floats) -> None:
        if mine.shape != theirs.shape:
            raise SystemExit(f"{name} encoder: {mine.shape} by us, {theirs.shape} by hand")
        close(f"{name} encoder", mine - theirs, featurizer.spec.atol or 0.0)

    return Race(
        name=f"{name} encoder",
        featurizer=f"{kind}-encoder",
        seconds=seconds,
        ours=lambda: ours(featurizer, clips),
        theirs=lambda: [by_hand(clip, chunks) for clip, chunks in clips],
        compare=same,
        most=2 if name == "video" else 3,
        encoder=True,
    )
