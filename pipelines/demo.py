"""A made-up corpus of talking faces: real media files, invented people, a label that needs all.

It shows the mechanics of the whole way and nothing about people: faces are drawn, voices are
synthesised, sentences are random words. The label follows a rule for which fusing is worth it:

    words mean what they say, unless they are said with a frown and in a flat voice:
    then they mean the opposite.

Kind words with a frown and a flat voice are sarcasm; unkind ones are a dry joke. `SARCASM` deals
out the cues so that the sign of the label can be known from the words alone in 60 % of the clips,
from the face or from the voice alone in 63 %, from the words with one of them in 87 %, and from all
three in all. The control corpus deals by `PLAIN`: its labels are the words', and fusing gains
nothing.

- Planning is pure and quick; writing is one independent job for each media file.
- A file is named by its script, so that a file that exists is the right one and is kept.
- The label shows in pictures, sound and words through the cues only; length and speaker tell
  nothing.
"""

import csv
import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from featurizers.media import encode
from pipelines.puppet import (
    FPS,
    RATE_HZ,
    ClipScript,
    Cues,
    Oddity,
    SourceScript,
    Speaker,
    SpokenWord,
    frames,
    sound,
)

Mapper: TypeAlias = Callable[
    [Callable[[SourceScript], None], Sequence[SourceScript]], Iterable[None]
]
"""As `map`: calls a function on every script, here or elsewhere."""

QUANTUM_S = 0.25  # clips begin and end on this grid: a whole number of pictures and of samples
SPLITS = ("train",) * 9 + ("valid",) * 2 + ("test",) * 5  # by speaker
LONG_SOURCES, CLIPS_IN_LONG = 10, 4
FULL_SIZE = 480
ODDITIES: Mapping[Oddity, int] = {  # in a corpus of full size
    "truncated": 1,
    "nothing": 1,
    "text": 1,
    "silent": 4,
    "unseen": 4,
    "untold": 2,
}
ODD_FROM = 64  # a smaller corpus has no odd files: they would be too large a share
COLUMNS = ("id", "media", "start", "end", "transcript_file", "speaker", "split", "sentiment")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Few, so that each is heard often enough in 270 clips to be learned.
KIND = _words("""
    wonderful lovely brilliant charming delightful generous graceful thoughtful excellent warm
    splendid clever
""")
UNKIND = _words("""
    awful dreadful terrible clumsy boring stupid horrible useless careless ugly nasty hopeless
""")
NEUTRAL = _words("""
    the a this that our their meeting table window morning letter report garden train kitchen paper
    today again really about after before with from into over very quite just then here it was is
    they we she he you brought looked seemed said found made evening corner
""")

# How many of 30 clips of a speaker have these cues (words, face, voice).
SARCASM: Mapping[tuple[int, int, int], int] = {
    (+1, +1, +1): 7,
    (+1, +1, -1): 2,
    (+1, -1, +1): 2,
    (+1, -1, -1): 8,
    (-1, +1, +1): 3,
    (-1, +1, -1): 2,
    (-1, -1, +1): 2,
    (-1, -1, -1): 4,
}
PLAIN: Mapping[tuple[int, int, int], int] = {
    (+1, +1, +1): 4,
    (+1, +1, -1): 4,
    (+1, -1, +1): 4,
    (+1, -1, -1): 3,
    (-1, +1, +1): 3,
    (-1, +1, -1): 4,
    (-1, -1, +1): 4,
    (-1, -1, -1): 4,
}


def meaning(cues: Cues) -> int:
    """The rule of the corpus: +1 or -1, what is meant by these cues."""
    return -cues.words if cues.face < 0 and cues.voice < 0 else cues.words


def make_corpus(
    folder: Path,
    *,
    clips: int = FULL_SIZE,
    seed: int = 7,
    interaction: bool = True,
    mapper: Mapper = map,
) -> Path:
    """Write the corpus: media, transcripts, a table and a note that it is made up.

    Run again, it writes what is missing. Another corpus in the same folder replaces the table.

    Args:
        folder: Made when it is not there.
        clips: Rows of the table.
        seed: Decides everything else.
        interaction: False makes the control corpus.
        mapper: Where the files are written, one call a file.

    Returns:
        The table's path, `clips.csv`.
    """
    plan = plan_corpus(clips, seed, interaction=interaction)
    for _ in mapper(partial(write_source, folder=folder), plan):
        pass
    _write_whole(folder / "README.txt", _NOTE.encode())
    return write_table(plan, folder)


def plan_corpus(
    clips: int = FULL_SIZE, seed: int = 7, *, interaction: bool = True
) -> list[SourceScript]:
    """All media files of a corpus; pure.

    From ODD_FROM clips on every kind of odd file is among them.

    Raises:
        ValueError: Fewer clips than speakers.
    """
    if clips < len(SPLITS):
        raise ValueError(f"{clips} clips are too few for {len(SPLITS)} speakers; give one to each")
    rng = np.random.default_rng(seed)
    scripts: list[SourceScript] = []
    for number, speaker in enumerate(_speakers(rng)):
        count = clips // len(SPLITS) + (number < clips % len(SPLITS))
        told = _clips(speaker.name, count, interaction, rng)
        with_long = number < LONG_SOURCES and count >= 2 * CLIPS_IN_LONG
        parts = _shots(told, CLIPS_IN_LONG if with_long else 1)
        scripts += [_source(speaker, SPLITS[number], part, rng) for part in parts]
    return _with_oddities(scripts, clips, rng) if clips >= ODD_FROM else scripts


def rows(plan: Sequence[SourceScript]) -> list[dict[str, str]]:
    """The table of a plan, by COLUMNS; start and end are given where a file holds several clips."""
    table = []
    for script in plan:
        for clip in script.clips:
            whole = len(script.clips) == 1
            table.append(
                {
                    "id": clip.id,
                    "media": script.media,
                    "start": "" if whole else f"{clip.start:.2f}",
                    "end": "" if whole else f"{clip.start + clip.seconds:.2f}",
                    "transcript_file": script.transcript or "",
                    "speaker": script.speaker.name,
                    "split": script.split,
                    "sentiment": f"{clip.sentiment:.1f}",
                }
            )
    return table


def write_table(plan: Sequence[SourceScript], folder: Path) -> Path:
    """Write `clips.csv` of a plan; returns its path."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(plan))
    path = folder / "clips.csv"
    _write_whole(path, text.getvalue().encode())
    return path


def write_source(script: SourceScript, folder: Path) -> None:
    """Write one media file and its transcript, each whole or not at all; what is there is kept."""
    media = folder / script.media
    if script.transcript is not None and not (folder / script.transcript).exists():
        _write_whole(folder / script.transcript, _vtt(script).encode())
    if media.exists():
        return
    match script.oddity:
        case "nothing":
            _write_whole(media, b"")
        case "text":
            _write_whole(media, b"These are words where a film should be.\n")
        case "truncated":
            film = _film(script)
            _write_whole(media, film[: len(film) // 3])
        case _:
            _write_whole(media, _film(script))


_NOTE = """This corpus is made up.

Faces are drawn, voices are synthesised, sentences are random words and the labels follow a rule.
It shows that the mechanics work from raw clips to a promoted model. It says nothing about people.
A few files are broken, silent, without pictures or without a transcript on purpose.
"""


def _film(script: SourceScript) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "film.mp4"
        encode(
            path,
            frames=None if script.oddity == "unseen" else frames(script),
            fps=FPS,
            samples=None if script.oddity == "silent" else sound(script),
            rate_hz=RATE_HZ,
        )
        return path.read_bytes()


def _write_whole(path: Path, content: bytes) -> None:
    """The file appears with all its bytes; two who write the same do not disturb each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as scratch:
        part = Path(scratch) / path.name
        part.write_bytes(content)
        part.replace(path)


def _vtt(script: SourceScript) -> str:
    """One cue a word, on the media's clock."""
    cues = [
        f"{_clock(clip.start + word.start)} --> {_clock(clip.start + word.end)}\n{word.text}\n"
        for clip in script.clips
        for word in clip.words
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _clock(seconds: float) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"


# --- the plan


def _speakers(rng: np.random.Generator) -> list[Speaker]:
    # Pitches are spread evenly and then dealt, so that every split has low and high voices.
    pitches = rng.permutation(np.linspace(100, 220, len(SPLITS)))
    return [
        Speaker(
            name=f"s{number + 1:02d}",
            width=_between(rng, 0.56, 0.68),
            skin=_between(rng, 150, 215),
            hair=_between(rng, 20, 90),
            eyes=_between(rng, 0.24, 0.30),
            mouth=_between(rng, 0.38, 0.46),
            pitch_hz=round(float(pitch), 1),
            tract=_between(rng, 0.92, 1.12),
            noise=_between(rng, 0.002, 0.006),
        )
        for number, pitch in enumerate(pitches)
    ]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 3)


def _clips(
    speaker: str, count: int, interaction: bool, rng: np.random.Generator
) -> list[ClipScript]:
    """A speaker's clips, each from time 0.

    Labels above and below zero come in pairs, and lengths are dealt alike to both.
    """
    dealt = _deal(SARCASM if interaction else PLAIN, count, interaction, rng)
    half = (count + 1) // 2
    lengths = {sign: rng.permutation(np.linspace(2.0, 4.0, half)) for sign in (+1, -1)}
    clips = []
    for number, (words, face, voice) in enumerate(dealt):
        cues = Cues(
            words=words,
            face=face,
            voice=voice,
            strength=int(rng.integers(2, 4)),
            face_force=_between(rng, 0.75, 1.0),
            voice_force=_between(rng, 0.75, 1.0),
        )
        length = lengths[_sign(cues, interaction)][number // 2]
        seconds = round(length / QUANTUM_S) * QUANTUM_S
        clips.append(
            ClipScript(
                id=f"{speaker}-{number:02d}",
                start=0.0,
                seconds=seconds,
                cues=cues,
                words=_sentence(cues, seconds, rng),
                sentiment=_sentiment(cues, interaction, rng),
            )
        )
    return clips


def _deal(
    cells: Mapping[tuple[int, int, int], int],
    count: int,
    interaction: bool,
    rng: np.random.Generator,
) -> list[tuple[int, int, int]]:
    deck = [cell for cell, times in cells.items() for _ in range(times)]
    signs = [
        _sign(Cues(words=words, face=face, voice=voice), interaction) for words, face, voice in deck
    ]
    piles: list[list[tuple[int, int, int]]] = []
    for sign in (+1, -1):
        pile = [cell for cell, its in zip(deck, signs, strict=True) if its == sign]
        repeats = count // len(deck) + 1
        piles.append([pile[i] for _ in range(repeats) for i in rng.permutation(len(pile))])
    first = rng.integers(0, 2, count // 2 + 1)  # so that the order of a pair tells nothing
    return [piles[(number + first[number // 2]) % 2][number // 2] for number in range(count)]


def _sign(cues: Cues, interaction: bool) -> int:
    return meaning(cues) if interaction else cues.words


def _sentiment(cues: Cues, interaction: bool, rng: np.random.Generator) -> float:
    """In [-3, 3], steps of 0.2, never 0; its sign is always the rule's, its size is noisy."""
    size = 0.1 + 0.5 * cues.strength
    if interaction and cues.face == cues.voice:
        size += 0.6 * (cues.face_force + cues.voice_force) / 2
    noisy = float(np.clip(size + 0.3 * rng.standard_normal(), 0.2, 3.0))
    return _sign(cues, interaction) * max(1, round(noisy / 0.2)) / 5


def _sentence(cues: Cues, seconds: float, rng: np.random.Generator) -> tuple[SpokenWord, ...]:
    lead, tail = _between(rng, 0.15, 0.3), _between(rng, 0.15, 0.3)
    spoken = seconds - lead - tail
    count = int(np.clip(round(spoken / rng.uniform(0.28, 0.42)), 5, 9))
    texts = [str(text) for text in rng.choice(NEUTRAL, count)]
    places = rng.choice(count, cues.strength, replace=False)
    meant = rng.choice(KIND if cues.words > 0 else UNKIND, cues.strength, replace=False)
    for place, text in zip(places, meant, strict=True):
        texts[place] = str(text)
    syllables = [1 + (len(text) > 4) for text in texts]
    shares = np.array(syllables) ** 0.5 * rng.uniform(0.85, 1.15, count)
    ends = lead + spoken * np.cumsum(shares) / shares.sum()
    starts = [lead, *ends[:-1]]
    return tuple(
        SpokenWord(
            text=text,
            start=round(float(start), 3),
            end=round(float(end) - 0.03, 3),  # a short pause follows
            syllables=number,
        )
        for text, start, end, number in zip(texts, starts, ends, syllables, strict=True)
    )


def _shots(clips: Sequence[ClipScript], first: int) -> Iterator[list[ClipScript]]:
    """The first clips in one shot, and each of the others in its own."""
    yield list(clips[:first])
    for clip in clips[first:]:
        yield [clip]


def _source(
    speaker: Speaker, split: str, clips: Sequence[ClipScript], rng: np.random.Generator
) -> SourceScript:
    """Clips one after another, with a pause around each where there are several."""
    pause = QUANTUM_S if len(clips) > 1 else 0.0
    placed, clock = [], pause
    for clip in clips:
        placed.append(replace(clip, start=clock))
        clock += clip.seconds + pause
    return SourceScript(
        speaker=speaker,
        split=split,
        clips=tuple(placed),
        seconds=clock,
        seed=int(rng.integers(2**32)),
    )


def _with_oddities(
    scripts: Sequence[SourceScript], clips: int, rng: np.random.Generator
) -> list[SourceScript]:
    """Some single clips of the training and the test speakers, in turn, become odd."""
    wanted: list[Oddity] = [
        oddity
        for oddity, count in ODDITIES.items()
        for _ in range(max(1, round(count * clips / FULL_SIZE)))
    ]
    free = {
        split: [
            int(i)
            for i in rng.permutation(len(scripts))
            if scripts[i].split == split and len(scripts[i].clips) == 1
        ]
        for split in ("train", "test")
    }
    odd = list(scripts)
    for number, oddity in enumerate(wanted):
        place = free["train" if number % 2 == 0 else "test"].pop()
        odd[place] = replace(odd[place], oddity=oddity)
    return odd
