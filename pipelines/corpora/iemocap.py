"""IEMOCAP: five sessions of two actors each, played and improvised."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from pipelines.corpora.gathering import Choice, Gathering, Place
from pipelines.corpora.reading import Read, RowDict
from pipelines.corpora.spoken import Spoken, keep
from pipelines.corpora.tree import SOUND, VIDEO, Tree, text_of
from pipelines.experiment import InputError
from pipelines.sections import Section

EMOTIONS: Mapping[str, str] = {
    "ang": "angry",
    "hap": "happy",
    "sad": "sad",
    "neu": "neutral",
    "fru": "frustrated",
    "exc": "excited",
    "fea": "fearful",
    "sur": "surprised",
    "dis": "disgusted",
    "oth": "other",
}
NOT_AGREED = "xxx"
FOUR: Mapping[str, str] = {
    "angry": "angry",
    "happy": "happy",
    "excited": "happy",
    "sad": "sad",
    "neutral": "neutral",
}
"""Four classes as most papers have them: 5531 utterances."""
ASKED: Mapping[str, str] = {
    "happiness": "happy",
    "sadness": "sad",
    "anger": "angry",
    "neutral": "neutral",
    "neutral state": "neutral",
}
"""Four emotions that may be there at once, by what a judge ticks."""

_TURN = re.compile(
    r"\[\s*([\d.]+)\s*-\s*([\d.]+)\s*\]\s+(Ses0[1-5][FM]_\S+_[FM]\w+)\s+(\w+)"
    r"\s+\[\s*([\d.]+)\s*,\s*([\d.]+)\s*,\s*([\d.]+)\s*\]"
)
_JUDGE = re.compile(r"C-E\d+:\s*(.*)")
_SPOKEN = re.compile(r"(Ses0[1-5][FM]_\S+)\s+\[[\d.]+\s*-\s*[\d.]+\]:\s*(.*)")
_ALIGNED = re.compile(r"\s*(\d+)\s+(\d+)\s+-?\d+\s+([^<+\[\s(][^\s(]*)(?:\(\d+\))?\s*$")
FRAME_S = 0.01


class Options(Section):
    """Which media: the film of a dialogue with each turn's times, or a sound file of each turn."""

    media: Literal["auto", "film", "sentence"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """An utterance, and what its judges said of it."""

    id: str
    start: float
    end: float
    emotion: str
    valence: float
    activation: float
    dominance: float
    judges: list[str] = field(default_factory=list)
    file: str
    row: int


def read(tree: Tree, options: Options) -> Read:
    """A clip for each turn that has been judged.

    Raises:
        InputError: There are no judgements, or a line of them cannot be read.
    """
    gathering = Gathering(tree)
    said = _said(tree)
    aligned = {name.stem: name for name in tree.like("*.wdseg")}
    for turn in _turns(tree):
        place = Place(clip=turn.id, file=turn.file, row=turn.row)
        if turn.end <= turn.start:
            gathering.note(place, "no_span", f"{turn.start:g} to {turn.end:g} s")
            continue
        dialogue, _, actor = turn.id.rpartition("_")
        media = gathering.media(place, _choices(options, dialogue, turn.id))
        row: RowDict = {"media": media, "speaker": f"{dialogue[:5]}-{actor[0]}"}
        if Path(media).stem == dialogue:
            row |= {"start": turn.start, "end": turn.end}
        words = _timed(tree, aligned.get(turn.id), row.get("start", 0.0))
        if words:
            row["transcript_file"] = keep(gathering, turn.id, words)
        elif turn.id in said:
            row["transcript"] = said[turn.id]
        else:
            gathering.note(place, "no_transcript")
        if not turn.emotion:
            gathering.note(place, "no_label", "its judges do not agree")
        session = int(dialogue[4])
        row |= {"group": f"session-{session}", "fold": session}
        gathering.add(place, {**row, **_labels(turn)})
    return gathering.read


def _choices(options: Options, dialogue: str, turn: str) -> list[Choice]:
    """The film, a turn's own sound, and that of the dialogue, in which both are heard."""
    film: Choice = (dialogue, VIDEO)
    sound: list[Choice] = [(turn, SOUND), (dialogue, SOUND)]
    return {"auto": [film, *sound], "film": [film], "sentence": sound[:1]}[options.media]


def _turns(tree: Tree) -> Iterator[Turn]:
    """The turns of all dialogues, in order."""
    files = [name for name in tree.like("Ses0*.txt") if name.parent.name == "EmoEvaluation"]
    if not files:
        raise InputError(
            f"{tree.root}: there are no judgements: wanted Session1/dialog/EmoEvaluation/*.txt"
        )
    for name in files:
        turn: Turn | None = None
        for number, line in enumerate(text_of(tree.root / name).splitlines(), start=1):
            if line.startswith("["):
                if turn is not None:
                    yield turn
                turn = _turn(tree, str(name), number, line)
            elif turn is not None and (judge := _JUDGE.match(line)):
                turn.judges.append(judge[1])
        if turn is not None:
            yield turn


def _turn(tree: Tree, name: str, number: int, line: str) -> Turn:
    told = _TURN.match(line)
    if told is None or told[4] not in {*EMOTIONS, NOT_AGREED}:
        raise InputError(
            f"{tree.root / name}: line {number}: wanted [START - END] TURN EMOTION [V, A, D], "
            f"found {line[:60]!r}"
        )
    start, end, valence, activation, dominance = (float(told[i]) for i in (1, 2, 5, 6, 7))
    return Turn(
        id=told[3],
        start=start,
        end=end,
        emotion=EMOTIONS.get(told[4], ""),
        valence=valence,
        activation=activation,
        dominance=dominance,
        file=name,
        row=number,
    )


def _said(tree: Tree) -> dict[str, str]:
    """What is said in each turn; lines of other forms, such as remarks, are passed over."""
    found: dict[str, str] = {}
    for name in tree.like("Ses0*.txt"):
        if name.parent.name == "transcriptions":
            for line in text_of(tree.root / name).splitlines():
                told = _SPOKEN.match(line.strip())
                if told is not None and told[2].strip():
                    found[told[1]] = told[2].strip()
    return found


def _timed(tree: Tree, name: PurePath | None, start: float) -> list[Spoken]:
    """The words of a turn as they were aligned, on the clock of the media that it starts in.

    A file is CMU Sphinx' word segmentation: first and last frame, of 10 ms, score and word, from
    the turn's start. Silence and noise stand in brackets or between plus signs; (2) behind a word
    is which way of saying it was heard.
    """
    if name is None:
        return []
    lines = (_ALIGNED.match(line) for line in text_of(tree.root / name).splitlines())
    return [
        (told[3].lower(), start + int(told[1]) * FRAME_S, start + (int(told[2]) + 1) * FRAME_S)
        for told in lines
        if told is not None
    ]


def _labels(turn: Turn) -> RowDict:
    labels: RowDict = {}
    if turn.emotion:
        labels["emotion"] = turn.emotion
    if turn.emotion in FOUR:
        labels["emotion4"] = FOUR[turn.emotion]
    if turn.judges:
        labels["emotions"] = ",".join(_most(turn.judges)) or ","
    about = {"valence": turn.valence, "activation": turn.activation, "dominance": turn.dominance}
    return {**labels, **about}


def _most(judges: list[str]) -> list[str]:
    """The emotions of the four that at least half of the judges ticked."""
    ticked: Counter[str] = Counter()
    for judge in judges:
        names = {name.strip().casefold() for name in judge.split(";")}
        ticked.update({ASKED[name] for name in names if name in ASKED})
    return sorted(name for name, count in ticked.items() if 2 * count >= len(judges))
