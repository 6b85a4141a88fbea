"""Features of words and of streams of numbers: what they cost. Nobody would write another way."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from featurizers.catalog import build
from featurizers.clip import Clip, Word
from featurizers.spec import Featurizer, Scalar
from rivals import Race, Size, Skipped, clip_of, extracted

WORD_S = 0.4
MINUTES = 2
STREAM_HZ = 30


def said(size: Size) -> Iterator[Race | Skipped]:
    """Words: transcripts of 4 to 40 words, the common ones most."""
    random = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlcumwfgypbvk"))
    words = ["".join(random.choice(letters, random.integers(2, 10))) for _ in range(5000)]
    clips, count = list[Clip](), 0
    for number in range(20 if size.quick else 200):
        ranks = np.minimum(random.zipf(1.3, random.integers(4, 41)), len(words)) - 1
        spoken = [words[rank] for rank in ranks]
        clips.append(clip_of(number, spaced(spoken)))
        count += len(spoken)
    vectors = size.folder / "vectors.txt"
    numbers = np.round(random.normal(size=(len(words), 50)), 4)
    pairs = zip(words, numbers.tolist(), strict=True)
    vectors.write_text("".join(f"{word} {' '.join(map(str, each))}\n" for word, each in pairs))
    yield _race(build("hashed-words"), clips, count * WORD_S)
    yield _race(build("word-vectors", file=str(vectors)), clips, count * WORD_S)
    pieces = build("word-pieces", model=str(_tokenizer(size, letters.tolist())))
    yield _race(pieces, clips, count * WORD_S)


def _tokenizer(size: Size, letters: Sequence[str]) -> Path:
    """Word pieces of one letter and of two."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    inner = [*letters, *(a + b for a in letters for b in letters)]
    known = ["[CLS]", "[SEP]", "[UNK]", *inner, *(f"##{each}" for each in inner)]
    numbers = {piece: at for at, piece in enumerate(known)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    file = size.folder / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def spaced(spoken: Sequence[str]) -> tuple[Word, ...]:
    """Words of one length, one after the other."""
    return tuple(
        Word(text=text, start=WORD_S * at, end=WORD_S * (at + 1)) for at, text in enumerate(spoken)
    )


def measured(size: Size) -> Iterator[Race | Skipped]:
    """Streams of two minutes: joints and numbers as arrays, a table of OpenFace's size as CSV."""
    random = np.random.default_rng(0)
    steps = 60 * MINUTES * STREAM_HZ // (6 if size.quick else 1)
    files = {name: str(size.folder / name) for name in ("pose.npy", "body.npy", "face.csv")}
    np.save(files["pose.npy"], random.normal(size=(steps, 12)))
    np.save(files["body.npy"], random.normal(size=(steps, 2, 25, 3)))
    names = [f"AU{number:02}_r" for number in range(1, 36)]
    rows = np.column_stack(
        [np.arange(steps) / STREAM_HZ, random.random(steps), random.random((steps, len(names)))]
    )
    header = ",".join(["timestamp", "confidence", *names])
    np.savetxt(files["face.csv"], rows, fmt="%.3f", delimiter=",", header=header, comments="")
    for name, file, settings in (
        ("numbers", "pose.npy", {"dims": 12}),
        ("track", "face.csv", {"columns": ",".join(names), "least": 0.5, "time": "timestamp"}),
        ("skeleton", "body.npy", {"joints": 25, "persons": 2}),
    ):
        given: dict[str, Scalar] = {"stream": "x", **settings}
        clip = Clip(
            key="a",
            id="a",
            media="",
            media_digest="",
            streams={"x": files[file]},
            stream_rates={"x": STREAM_HZ},
        )
        yield _race(build(name, **given), [clip], steps / STREAM_HZ)


def _race(featurizer: Featurizer, clips: Sequence[Clip], seconds: float) -> Race:
    name = featurizer.spec.name
    return Race(
        name=name.replace("-", " "),
        featurizer=name,
        seconds=seconds,
        ours=lambda: [extracted(featurizer, clip, ()) for clip in clips],
    )
