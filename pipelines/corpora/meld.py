"""MELD: utterances of the series Friends, each cut into a film of its own."""

import re
from collections.abc import Mapping
from pathlib import PurePath

from pipelines.corpora.gathering import Gathering, Place
from pipelines.corpora.reading import Note, Read, RowDict
from pipelines.corpora.tables import read_table
from pipelines.corpora.tree import SOUND, VIDEO, Tree
from pipelines.experiment import InputError
from pipelines.sections import Section

TABLES: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "train_sent_emo.csv": ("train", "train", ("train_splits",)),
    "dev_sent_emo.csv": ("dev", "valid", ("dev_splits",)),
    "test_sent_emo.csv": ("test", "test", ("output_repeated_splits_test", "test_splits")),
}
"""By table: what its clips are called after, their split, and how folders of their films begin."""

COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
SUSPECT: Mapping[str, str] = {
    "train_dia125_utt3": "its film is damaged as handed out",
    "dev_dia110_utt7": "its film is not handed out",
    "test_dia38_utt4": "its film is about 5 minutes long, of another scene",
    "test_dia220_utt0": "its film is about 4 minutes long, of another scene",
    "train_dia309_utt0": "its film is cut wrongly",
}
"""What users reported at https://github.com/declare-lab/MELD/issues: 20, 22, 39."""

_NAME = re.compile(r"dia\d+_utt\d+")
_TIME = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d+)")


class Options(Section):
    """There are none."""


def read(tree: Tree, options: Options) -> Read:
    """A clip for each row of the three tables; its film is whole, its times are the episode's.

    Characters speak in all splits: the standard split is by dialogue.

    Raises:
        InputError: There is no table, or one cannot be read.
    """
    read = Read()
    tables = {pattern: tree.only(pattern) for pattern in TABLES}
    if not any(tables.values()):
        raise InputError(f"{tree.root}: there is none of {', '.join(TABLES)}")
    for pattern, name in tables.items():
        if name is None:
            read.notes.append(Note(kind="incomplete", message=f"there is no {pattern}"))
        else:
            _read_split(tree, read, name, pattern)
    return read


def _read_split(tree: Tree, read: Read, table: PurePath, pattern: str) -> None:
    called, split, folders = TABLES[pattern]
    gathering = Gathering(tree, lambda name: _is_below(name, folders), read)
    taken: set[str] = set()
    for number, row in read_table(tree.root / table, COLUMNS):
        dialogue = f"dia{row['Dialogue_ID']}"
        name = f"{dialogue}_utt{row['Utterance_ID']}"
        taken.add(name)
        place = Place(clip=f"{called}_{name}", file=str(table), row=number)
        about: RowDict = {
            "media": gathering.media(place, [(name, VIDEO), (name, SOUND)]),
            "speaker": row["Speaker"],
            "group": f"{called}_{dialogue}",
            "split": split,
        }
        columns = {"Utterance": "transcript", "Emotion": "emotion", "Sentiment": "sentiment"}
        about |= {to: row[each] for each, to in columns.items() if row[each]}
        if "emotion" not in about:
            gathering.note(place, "no_label")
        _look(gathering, place, row)
        gathering.add(place, about)
    for film in tree.names:
        is_film = film.suffix.lower() in VIDEO and _is_below(film, folders)
        if is_film and film.stem not in taken:
            read.notes.append(Note(kind="unlisted", file=str(film), message="no table has it"))


def _is_below(name: PurePath, folders: tuple[str, ...]) -> bool:
    return any(part.casefold().startswith(folders) for part in name.parts[:-1])


def _look(gathering: Gathering, place: Place, row: Mapping[str, str]) -> None:
    """Note what is known of a clip, and times of the episode that cannot be."""
    if place.clip in SUSPECT:
        gathering.note(place, "suspect", SUSPECT[place.clip])
    start, end = (_seconds(row.get(name, "")) for name in ("StartTime", "EndTime"))
    if start is not None and end is not None and end <= start:
        said = f"its time in the episode goes from {row['StartTime']} to {row['EndTime']}"
        gathering.note(place, "suspect", said)


def _seconds(text: str) -> float | None:
    told = _TIME.fullmatch(text)
    if told is None:
        return None
    hours, minutes, seconds, part = told.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(f"{seconds}.{part}")
