"""RAVDESS: 24 actors speak and sing two sentences in eight emotions; a name of a file says all."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import PurePath
from typing import Literal

from pipelines.corpora.gathering import Gathering, Place
from pipelines.corpora.reading import Note, Read, RowDict
from pipelines.corpora.tree import Tree
from pipelines.experiment import InputError
from pipelines.sections import Section

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
STATEMENTS = ("Kids are talking by the door", "Dogs are sitting by the door")
CHANNELS = ("speech", "song")
INTENSITIES = ("normal", "strong")
ACTORS = 24
ACTORS_A_FOLD = 4
SILENT_SINGER = 18
SUNG = 6
"""The first emotions are sung, too."""

AV, VIDEO, SOUND = 1, 2, 3
"""The first number of a name: all, pictures alone, sound alone."""

_NAME = re.compile(r"(0[1-3])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)")


class Options(Section):
    """What is taken: speech, as the papers do, song, or both; and which file of a performance.

    `take: av` is the one with sound and pictures, and another only where there is none.
    """

    channel: Literal["speech", "song", "both"] = "speech"
    take: Literal["av", "video", "audio"] = "av"


@dataclass(frozen=True, slots=True, order=True)
class Performance:
    """All of a name but which of sound and pictures the file has."""

    channel: int
    emotion: int
    intensity: int
    statement: int
    repetition: int
    actor: int

    @property
    def id(self) -> str:
        """As in the name: 01-06-01-02-01-12."""
        numbers = (self.channel, self.emotion, self.intensity)
        return "-".join(f"{n:02}" for n in (*numbers, self.statement, self.repetition, self.actor))

    @property
    def can_be(self) -> bool:
        """Nobody is strongly neutral; disgust, surprise and all of one actor are not sung."""
        is_sung = self.channel == 2
        return (
            1 <= self.actor <= ACTORS
            and not (self.emotion == 1 and self.intensity == 2)
            and not (is_sung and (self.emotion > SUNG or self.actor == SILENT_SINGER))
        )


def read(tree: Tree, options: Options) -> Read:
    """A clip for each performance, whichever of its up to three files there are.

    Raises:
        InputError: Two files of one name differ.
    """
    found, notes = _files(tree)
    wanted = {"speech": (1,), "song": (2,), "both": (1, 2)}[options.channel]
    performances = {each: files for each, files in found.items() if each.channel in wanted}
    gathering = Gathering(tree, read=Read(notes=notes))
    has_av = any(AV in files for files in performances.values())
    for performance, files in sorted(performances.items()):
        chosen = _chosen(files, options)
        place = Place(clip=performance.id, file=str(files.get(chosen, performance.id)))
        if chosen not in files:
            has = ", ".join(str(each) for each in files.values())
            gathering.note(place, "missing", f"there is only {has}")
            continue
        gathering.check(place, files[chosen])
        gathering.add(place, _row(performance, tree.where(files[chosen])))
        if options.take == "av" and has_av and chosen != AV:
            lacks = "there is no file 01-...mp4 with both sound and pictures"
            gathering.note(place, "incomplete", lacks)
    gathering.read.notes.extend(_absent(set(performances), wanted))
    return gathering.read


def _files(tree: Tree) -> tuple[dict[Performance, dict[int, PurePath]], list[Note]]:
    """The files of each performance by their first number."""
    found: dict[Performance, dict[int, PurePath]] = {}
    notes: list[Note] = []
    for name in tree.names:
        if name.suffix.lower() not in (".mp4", ".wav"):
            continue
        told = _NAME.fullmatch(name.stem)
        numbers = [int(each) for each in told.groups()] if told else []
        performance = Performance(*numbers[1:]) if numbers else None
        if performance is None or not performance.can_be:
            why = "its name is none of RAVDESS"
            notes.append(Note(kind="unlisted", file=str(name), message=why))
            continue
        files = found.setdefault(performance, {})
        first = files.setdefault(numbers[0], name)
        if first == name:
            continue
        if not tree.same(first, name):
            raise InputError(
                f"{tree.root}: {first} and {name} have one name and differ; keep one of them"
            )
        notes.append(Note(kind="duplicate", file=str(name), message=f"is equal to {first}"))
    return found, notes


def _chosen(files: dict[int, PurePath], options: Options) -> int:
    """Which file, 0 for none; a wav file without pictures never stands for wanted pictures."""
    order = {"av": (AV, SOUND, VIDEO), "video": (VIDEO, AV), "audio": (SOUND, AV)}[options.take]
    return next((each for each in order if each in files), 0)


def _row(performance: Performance, media: str) -> RowDict:
    actor = performance.actor
    return {
        "media": media,
        "transcript": STATEMENTS[performance.statement - 1],
        "speaker": f"actor-{actor:02}",
        "fold": (actor - 1) // ACTORS_A_FOLD + 1,
        "emotion": EMOTIONS[performance.emotion - 1],
        "intensity": INTENSITIES[performance.intensity - 1],
        "channel": CHANNELS[performance.channel - 1],
        "statement": f"statement-{performance.statement}",
        "gender": "male" if actor % 2 else "female",
    }


def _absent(there: set[Performance], channels: tuple[int, ...]) -> Iterator[Note]:
    """Performances that the others of that actor should have beside them, and whole actors."""
    begun = {(each.actor, each.channel) for each in there}
    for channel in channels:
        gone = [
            f"{actor:02}"
            for actor in range(1, ACTORS + 1)
            if (actor, channel) not in begun and not (channel == 2 and actor == SILENT_SINGER)
        ]
        if gone:
            said = f"no {CHANNELS[channel - 1]} of actors {', '.join(gone)}"
            yield Note(kind="incomplete", message=said)
    for actor, channel in sorted(begun):
        parts = product(range(1, len(EMOTIONS) + 1), (1, 2), (1, 2), (1, 2))
        for each in (Performance(channel, *part, actor) for part in parts):
            if each.can_be and each not in there:
                said = f"actor {actor:02} has others, and not this one"
                yield Note(kind="missing", clip=each.id, file=each.id, message=said)
