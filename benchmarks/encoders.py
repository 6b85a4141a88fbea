"""How fast pretrained encoders run, beside transformers used by hand, one clip at a time.

Both sides compute features of the same clips with the same random weights of base size: ours from
media to features as a job does, decoding left out, in batches over clips; the other with the
checkpoint's own preprocessor and model, a clip at a time. They take turns. What they computed is
compared before any figure is printed. On a CPU one thread, and seconds are CPU seconds, so that
other work on the machine does not count; on a GPU, where there is one, seconds of the clock.

    python benchmarks/encoders.py [--quick]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.catalog import build
from featurizers.clip import Clip, Word
from featurizers.encoding import Batches, Encoding
from featurizers.spec import AudioChunk, Chunk, EncodingFeaturizer, Pending, VideoChunk
from tracking.provenance import git_commit, versions

HOME = Path(__file__).resolve().parent.parent
RATE_HZ = 16_000
FPS = 2
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


@dataclass(frozen=True, slots=True)
class Side:
    """One encoder, both ways.

    Attributes:
        unit: What is counted.
        amount: How much of it the clips have.
        by_hand: Makes the features of one clip with transformers.
    """

    featurizer: EncodingFeaturizer
    clips: Sequence[tuple[Clip, Sequence[Chunk]]]
    unit: str
    amount: float
    by_hand: Callable[[Clip, Sequence[Chunk]], NDArray[Any]]


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="small models, fewer clips")
    quick = arguments.parse_args().quick
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    sizes, clips, rounds = (SMALL, 16, 2) if quick else (BASE, 16, 3)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in (
            ("text_encoder", text),
            ("audio_encoder", audio),
            ("image_encoder", image),
        ):
            side = make(Path(scratch, name), sizes, clips)
            figures |= {f"{name}_{figure}": value for figure, value in measured(side, rounds)}
    device = _device()
    print(f"{clips} clips, {rounds} rounds, medians, {device}, {sizes['hidden_size']} dims")
    print(f"  {'':<14} {'ours':>10} {'by hand':>10} {'times':>6}")
    for name in ("text_encoder", "audio_encoder", "image_encoder"):
        ours, hand = figures[f"{name}_per_s"], figures[f"{name}_by_hand_per_s"]
        print(f"  {name:<14} {ours:10.1f} {hand:10.1f} {figures[f'{name}_to_hand']:6.2f}")
    print("  words, seconds of sound and pictures per second")
    used = {**versions(["torch", "transformers"]), "python": platform.python_version()}
    about = {"commit": git_commit(HOME), "versions": used, "device": device}
    print(json.dumps({"benchmark": "encoders", "quick": quick, "figures": figures, **about}))


def measured(side: Side, rounds: int) -> list[tuple[str, float]]:
    """Amounts per second of both sides, and how many times faster ours is."""
    first = side.clips[:1]
    ours(side.featurizer, first)  # loads the model
    side.by_hand(*first[0])
    clock = time.process_time if _device() == "cpu" else time.perf_counter
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        made: list[Sequence[NDArray[Any]]] = [(), ()]
        for which in (0, 1) if number % 2 else (1, 0):
            began = clock()
            if which == 0:
                made[0] = ours(side.featurizer, side.clips)
            else:
                made[1] = [side.by_hand(clip, chunks) for clip, chunks in side.clips]
            seconds[which].append(clock() - began)
        _compare(side, made)
    mine, theirs = (side.amount / statistics.median(each) for each in seconds)
    return [
        ("per_s", round(mine, 2)),
        ("by_hand_per_s", round(theirs, 2)),
        ("to_hand", round(mine / theirs, 3)),
    ]


def ours(
    featurizer: EncodingFeaturizer, clips: Sequence[tuple[Clip, Sequence[Chunk]]]
) -> list[NDArray[Any]]:
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


def _compare(side: Side, made: Sequence[Sequence[NDArray[Any]]]) -> None:
    for mine, theirs in zip(*made, strict=True):
        if mine.shape != theirs.shape or np.abs(mine - theirs).max() > (
            side.featurizer.spec.atol or 0
        ):
            raise RuntimeError(f"{side.featurizer.spec.name}: both sides differ")


def clip_of(number: int, words: tuple[Word, ...] = ()) -> Clip:
    """A clip without media."""
    return Clip(key=f"k{number}", id=str(number), media="", media_digest="", words=words)


def text(folder: Path, sizes: dict[str, int], count: int) -> Side:
    """BERT on transcripts of 4 to 40 words."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

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
    clips = []
    for number in range(count):
        spoken = [f"w{at}" for at in random.integers(4, VOCABULARY, random.integers(4, 41))]
        words = tuple(Word(text=each, start=i, end=i + 1) for i, each in enumerate(spoken))
        clips.append((clip_of(number, words), ()))
    model, where = on_device(hf.BertModel.from_pretrained(folder))

    def by_hand(clip: Clip, chunks: Sequence[Chunk]) -> NDArray[Any]:
        inputs = fast(" ".join(word.text for word in clip.words or ()), return_tensors="pt")
        with torch.inference_mode():
            states = model(**inputs.to(where)).last_hidden_state[0, 1:-1]
        return np.asarray(states.cpu())

    featurizer = built("text-encoder", folder)
    amount = sum(len(clip.words or ()) for clip, _ in clips)
    return Side(featurizer, clips, "words", amount, by_hand)


def audio(folder: Path, sizes: dict[str, int], count: int) -> Side:
    """wav2vec2, normed by layer, on 2 to 8 seconds of noise."""
    import torch
    import transformers as hf

    settings = hf.Wav2Vec2Config(
        **sizes, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True
    )
    saved(hf.Wav2Vec2Model(settings), folder)
    extractor = hf.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    extractor.save_pretrained(folder)
    random = np.random.default_rng(0)
    lengths = random.integers(2 * RATE_HZ, 8 * RATE_HZ, max(4, count // 4))
    clips = [
        (clip_of(number), (AudioChunk(0.0, random.normal(0, 3000, n).astype(np.int16)),))
        for number, n in enumerate(lengths)
    ]
    model, where = on_device(hf.Wav2Vec2Model.from_pretrained(folder))

    def by_hand(clip: Clip, chunks: Sequence[Chunk]) -> NDArray[Any]:
        (chunk,) = chunks
        samples = chunk.samples.astype(np.float32) / 32768  # type: ignore[union-attr] # sound
        inputs = extractor(samples, sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            return np.asarray(model(**inputs.to(where)).last_hidden_state[0].cpu())

    featurizer = built("speech-encoder", folder)
    return Side(featurizer, clips, "s", float(lengths.sum()) / RATE_HZ, by_hand)


def image(folder: Path, sizes: dict[str, int], count: int) -> Side:
    """ViT, patches of 16 x 16 in pictures of 224 x 224, 2 to 12 of them in a clip."""
    import torch
    import transformers as hf

    saved(hf.ViTModel(hf.ViTConfig(**sizes), add_pooling_layer=False), folder)
    processor = hf.ViTImageProcessorPil(do_resize=False)
    processor.save_pretrained(folder)
    random = np.random.default_rng(0)
    clips = []
    for number in range(max(4, count // 4)):
        frames = random.integers(0, 256, (random.integers(2, 13), 224, 224, 3), dtype=np.uint8)
        edges = np.arange(len(frames), dtype=np.float64)[:, np.newaxis] + np.array([0.0, 1.0])
        clips.append((clip_of(number), (VideoChunk(edges / FPS, frames),)))
    model, where = on_device(hf.ViTModel.from_pretrained(folder, add_pooling_layer=False))

    def by_hand(clip: Clip, chunks: Sequence[Chunk]) -> NDArray[Any]:
        (chunk,) = chunks
        pictures = list(chunk.frames)  # type: ignore[union-attr] # pictures
        inputs = processor(images=pictures, return_tensors="pt")
        with torch.inference_mode():
            return np.asarray(model(**inputs.to(where)).last_hidden_state[:, 0].cpu())

    featurizer = built("image-encoder", folder)
    return Side(featurizer, clips, "pictures", sum(len(c[0].frames) for _, c in clips), by_hand)


def saved(model: Any, folder: Path) -> None:  # noqa: ANN401 - transformers' model
    """Write random weights, always the same."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.02)
    model.save_pretrained(folder)


def on_device(model: Any) -> tuple[Any, str]:  # noqa: ANN401 - transformers' model
    """A model in evaluation mode on the GPU, if there is one."""
    where = _device()
    return model.eval().to(where), where


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def built(name: str, folder: Path) -> EncodingFeaturizer:
    """The featurizer with these weights."""
    featurizer = build(name, model=str(folder))
    if not isinstance(featurizer, EncodingFeaturizer):
        raise TypeError(f"{name} has no encoder")
    return featurizer


if __name__ == "__main__":
    main()
