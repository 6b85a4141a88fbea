"""GRID: 34 speakers say sentences of six words, which a name of a file spells."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from typing import Literal

from pipelines.corpora.gathering import Gathering, Place
from pipelines.corpora.reading import Note, Read, RowDict
from pipelines.corpora.tree import SOUND, VIDEO, Tree
from pipelines.sections import Section

WORDS: Mapping[str, Mapping[str, str]] = {
    "command": {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    "colour": {"b": "blue", "g": "green", "r": "red", "w": "white"},
    "preposition": {"a": "at", "b": "by", "i": "in", "w": "with"},
    "letter": {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},
    "digit": {
        "z": "zero",
        "1": "one",
        "2": "two",
        "3": "three",
        "4": "four",
        "5": "five",
        "6": "six",
        "7": "seven",
        "8": "eight",
        "9": "nine",
    },
    "adverb": {"a": "again", "n": "now", "p": "please", "s": "soon"},
}
UNSEEN = (1, 2, 20, 22)
"""Speakers that LipNet tests on and never trains on (Assael et al. 2016)."""
VALIDATED = (3, 23)
SPEAKERS = 34

_FOLDER = re.compile(r"s(\d{1,2})(?:_processed)?")
_NAME = re.compile(r"(?:id(\d{1,2})_(?:vcd|6000)_)?([blps][bgrw][abiw][a-vx-z][z1-9][anps])")


class Options(Section):
    """A split that is dealt by speakers, or LipNet's speakers that are not seen in training."""

    split: Literal["dealt", "unseen"] = "dealt"


def read(tree: Tree, options: Options) -> Read:
    """A clip for each sentence of a speaker, with the words of its .align file or of its name.

    Raises:
        InputError: Two files of one speaker and name differ.
    """
    gathering = Gathering(tree)
    aligned = {
        key: name
        for name in tree.names
        if name.suffix.lower() == ".align" and (key := _key(name)) is not None
    }
    found: dict[str, list[PurePath]] = {}
    for name in tree.names:
        if name.suffix.lower() in (*VIDEO, *SOUND):
            key = _key(name)
            if key is None:
                why = "its name is none of GRID"
                gathering.read.notes.append(Note(kind="unlisted", file=str(name), message=why))
            else:
                found.setdefault(key, []).append(name)
    codes = Counter(key.rpartition("_")[2] for key in found)
    for key, names in sorted(found.items()):
        place = Place(clip=key, file=str(names[0]))
        media = _chosen(gathering, names)
        gathering.check(place, media)
        code = key.rpartition("_")[2]
        slots = {slot: each[c] for (slot, each), c in zip(WORDS.items(), code, strict=True)}
        row: RowDict = {"media": tree.where(media), "sentence": code}
        # Times of a sentence without its speaker are known to be of the only one who says it.
        words = aligned.get(key) or (aligned.get(code) if codes[code] == 1 else None)
        if words is not None and gathering.check(place, words):
            row["transcript_file"] = tree.where(words)
        else:
            row["transcript"] = " ".join(slots.values())
        if "_" in key:
            row |= _of_speaker(int(key[1:].partition("_")[0]), options)
        gathering.add(place, {**row, **slots})
    return gathering.read


def _key(name: PurePath) -> str | None:
    """Speaker and code, s1_bbaf2n; the code alone where no folder or name tells the speaker."""
    told = _NAME.fullmatch(name.stem)
    if told is None:
        return None
    folders = [_FOLDER.fullmatch(part) for part in name.parts[:-1]]
    speakers = [int(each[1]) for each in folders if each is not None]
    if told[1] is not None:
        speakers.append(int(told[1]))
    known = [each for each in speakers if 1 <= each <= SPEAKERS]
    return f"s{known[-1]}_{told[2]}" if known else told[2]


def _chosen(gathering: Gathering, names: list[PurePath]) -> PurePath:
    """Pictures before sound alone; of several films of a sentence the first by its path."""
    ranked = sorted(names, key=lambda name: (name.suffix.lower() in SOUND, str(name)))
    for other in ranked[1:]:
        if other.suffix.lower() == ranked[0].suffix.lower():
            said = f"{ranked[0]} is taken"
            gathering.read.notes.append(Note(kind="duplicate", file=str(other), message=said))
    return ranked[0]


def _of_speaker(speaker: int, options: Options) -> RowDict:
    row: RowDict = {"speaker": f"speaker-{speaker:02}"}
    if options.split == "unseen":
        is_valid = speaker in VALIDATED
        row["split"] = "test" if speaker in UNSEEN else "valid" if is_valid else "train"
    return row
