"""CREMA-D: 91 actors say twelve sentences in six emotions, judged by voice, by face and by both."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Literal

from pipelines.corpora.gathering import Choice, Gathering, Place
from pipelines.corpora.reading import Note, Read, RowDict
from pipelines.corpora.tables import read_table
from pipelines.corpora.tree import SOUND, VIDEO, Tree
from pipelines.sections import Section

SENTENCES: Mapping[str, str] = {
    "IEO": "It's eleven o'clock",
    "TIE": "That is exactly what happened",
    "IOM": "I'm on my way to the meeting",
    "IWW": "I wonder what this is about",
    "TAI": "The airplane is almost full",
    "MTI": "Maybe tomorrow it will be cold",
    "IWL": "I would like a new alarm clock",
    "ITH": "I think I have a doctor's appointment",
    "DFA": "Don't forget a jacket",
    "ITS": "I think I've seen this before",
    "TSI": "The surface is slick",
    "WSI": "We'll stop in a couple of minutes",
}
EMOTIONS: Mapping[str, str] = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
LEVELS: Mapping[str, str] = {"LO": "low", "MD": "medium", "HI": "high"}
SILENT = "1076_MTI_SAD_XX"
VOTES: Mapping[str, str] = {
    "VoiceVote": "emotion_voice",
    "FaceVote": "emotion_face",
    "MultiModalVote": "emotion_both",
}
_SOUNDS: tuple[tuple[str, ...], ...] = ((".wav", ".mp3"), SOUND)
_KINDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "auto": (VIDEO, *_SOUNDS),
    "video": (VIDEO,),
    "audio": _SOUNDS,
}
FIRST_ACTOR, LAST_ACTOR = 1001, 1091

_LETTERS = {name[0]: emotion for name, emotion in EMOTIONS.items()}
# One name ends in a single X.
_NAME = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX?)")


class Options(Section):
    """Which media: the films, with sound and pictures, or sound alone; auto: films where there."""

    media: Literal["auto", "video", "audio"] = "auto"


def read(tree: Tree, options: Options) -> Read:
    """A clip for each recording, with the emotion that was played and those that were seen.

    Votes that are tied have no label. There is no standard split; actors are never torn.

    Raises:
        InputError: Two files of one name differ, or a table cannot be read.
    """
    gathering = Gathering(tree)
    found = _names(gathering)
    votes = _votes(gathering)
    actors = _actors(tree)
    kinds = _KINDS[options.media]
    for name in sorted({*found, *votes}):
        told = _NAME.fullmatch(name)
        place = Place(clip=name, file=votes.get(name, ("", 0, {}))[0], row=_row(votes, name))
        if told is None:
            gathering.note(place, "unlisted", "its name is none of CREMA-D")
            continue
        actor, sentence, emotion, level = told.groups()
        choices: list[Choice] = [(name, suffixes) for suffixes in kinds]
        row: RowDict = {"media": gathering.media(place, choices), "speaker": f"actor-{actor}"}
        row |= {"transcript": SENTENCES[sentence], "emotion": EMOTIONS[emotion]}
        if level in LEVELS:
            row["level"] = LEVELS[level]
        if name in votes:
            row |= votes[name][2]
        elif votes:
            gathering.note(place, "no_label", "the table of votes does not have it")
        if name == SILENT:
            gathering.note(place, "suspect", "its sound is silence")
        gathering.add(place, {**row, **actors.get(actor, {})})
    return gathering.read


def _names(gathering: Gathering) -> set[str]:
    found = set()
    for name in gathering.tree.names:
        if name.suffix.lower() in (*VIDEO, *SOUND):
            if _is_one(name.stem):
                found.add(name.stem)
            else:
                why = "its name is none of CREMA-D"
                gathering.read.notes.append(Note(kind="unlisted", file=str(name), message=why))
    return found


def _is_one(name: str) -> bool:
    told = _NAME.fullmatch(name)
    return (
        told is not None
        and FIRST_ACTOR <= int(told[1]) <= LAST_ACTOR
        and told[2] in SENTENCES
        and told[3] in EMOTIONS
    )


_Voted = dict[str, tuple[str, int, RowDict]]


def _votes(gathering: Gathering) -> _Voted:
    """By recording, where its votes stand and what they are."""
    name: PurePath | None = gathering.tree.only("summaryTable.csv")
    if name is None:
        said = "there is no processedResults/summaryTable.csv, which has the votes"
        gathering.read.notes.append(Note(kind="incomplete", message=said))
        return {}
    found: _Voted = {}
    for number, row in read_table(gathering.tree.root / name, ("FileName", *VOTES)):
        labels = {
            label: _LETTERS[row[column]]
            for column, label in VOTES.items()
            if row[column] in _LETTERS
        }
        if _is_one(row["FileName"]):
            found[row["FileName"]] = (str(name), number, labels)
    return found


def _row(votes: _Voted, name: str) -> int:
    return votes[name][1] if name in votes else 0


def _actors(tree: Tree) -> dict[str, RowDict]:
    """What is told of each actor."""
    name = tree.only("VideoDemographics.csv")
    if name is None:
        return {}
    columns = ("ActorID", "Age", "Sex")
    return {
        row["ActorID"]: {"age": float(row["Age"]), "gender": row["Sex"].casefold()}
        for _, row in read_table(tree.root / name, columns)
        if row["Age"].replace(".", "", 1).isdigit()
    }
