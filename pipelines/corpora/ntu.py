"""NTU RGB+D 60: sixty actions before three cameras, as films and as skeletons of a Kinect."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from pipelines.corpora.gathering import Gathering, Place
from pipelines.corpora.ntu_listed import LISTED
from pipelines.corpora.reading import Note, Read, RowDict
from pipelines.corpora.tree import VIDEO, Tree
from pipelines.experiment import InputError
from pipelines.sections import Section

TRAINING = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
"""The subjects of cross-subject evaluation who train (Shahroudy et al. 2016); all others test."""
SUBJECTS = 40
SETUPS = 17
WHOLE = {"training": 40_091, "testing": 16_487}
"""Recordings of the subjects who train and of the others, without the 302 of the list."""
KINECT_HZ = 30.0

ACTIONS = (
    *("drink water", "eat meal/snack", "brushing teeth", "brushing hair", "drop", "pickup"),
    *("throw", "sitting down", "standing up (from sitting position)", "clapping", "reading"),
    *("writing", "tear up paper", "wear jacket", "take off jacket", "wear a shoe"),
    *("take off a shoe", "wear on glasses", "take off glasses", "put on a hat/cap"),
    *("take off a hat/cap", "cheer up", "hand waving", "kicking something"),
    *("reach into pocket", "hopping (one foot jumping)", "jump up", "make a phone call"),
    *("playing with phone/tablet", "typing on a keyboard", "pointing to something with finger"),
    *("taking a selfie", "check time (from watch)", "rub two hands together", "nod head/bow"),
    *("shake head", "wipe face", "salute", "put the palms together"),
    *("cross hands in front (say stop)", "sneeze/cough", "staggering", "falling"),
    *("touch head (headache)", "touch chest (stomachache/heart pain)", "touch back (backache)"),
    *("touch neck (neckache)", "nausea or vomiting condition", "use a fan/feeling warm"),
    *("punching/slapping other person", "kicking other person", "pushing other person"),
    *("pat on back of other person", "point finger at the other person"),
    *("hugging other person", "giving something to other person", "touch other person's pocket"),
    *("handshaking", "walking towards each other", "walking apart from each other"),
)

_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R\d{3}A(\d{3})")
_FILM = "_rgb"


class Options(Section):
    """Who of the training subjects validate, and whether recordings of the list are left out."""

    valid: tuple[int, ...] = (18, 28, 38)
    listed: Literal["out", "in"] = "out"


def read(tree: Tree, options: Options) -> Read:
    """A clip for each recording: its film, and its skeleton as a stream.

    Of a corpus without any films the clips are as long as their skeletons.

    Raises:
        InputError: A validating subject is not of the training half, or two files of one name
            differ.
    """
    if wrong := sorted(set(options.valid) - set(TRAINING)):
        raise InputError(
            f"source.options.valid: subject {wrong[0]} is not of the training half, which are "
            f"{', '.join(map(str, TRAINING))}"
        )
    gathering = Gathering(tree)
    recordings = _recordings(gathering)
    films = any("film" in each.kinds for each in recordings.values())
    skeletons = any("skeleton" in each.kinds for each in recordings.values())
    for what, there in (("films (..._rgb.avi)", films), ("skeletons (.skeleton)", skeletons)):
        if recordings and not there:
            gathering.read.notes.append(Note(kind="incomplete", message=f"there are no {what}"))
    gathering.read.notes.extend(_incomplete(recordings))
    for code, recording in sorted(recordings.items()):
        place = Place(clip=code, file=code)
        if options.listed == "out" and code in LISTED:
            gathering.note(place, "listed")
            continue
        row = _files(gathering, place, films=films, skeletons=skeletons)
        if row is not None:
            gathering.add(place, {**row, **_said(recording, options)})
    return gathering.read


@dataclass(frozen=True, slots=True)
class _Recording:
    """What the name of a recording says, and which of film and skeleton it has."""

    setup: int
    camera: int
    subject: int
    action: int
    kinds: set[str] = field(default_factory=set)


def _incomplete(recordings: Mapping[str, _Recording]) -> Iterator[Note]:
    """Notes on subjects and setups that are not there, and on another number of recordings."""
    for what, count, there in (
        ("subjects", SUBJECTS, {each.subject for each in recordings.values()}),
        ("setups", SETUPS, {each.setup for each in recordings.values()}),
    ):
        if absent := sorted(set(range(1, count + 1)) - there):
            names = ", ".join(map(str, absent))
            yield Note(kind="incomplete", message=f"there are no recordings of {what} {names}")
    halves = Counter(
        "training" if each.subject in TRAINING else "testing"
        for code, each in recordings.items()
        if code not in LISTED
    )
    for half, count in WHOLE.items():
        if halves[half] != count:
            said = f"{halves[half]} recordings of {half} subjects, the corpus has {count}"
            yield Note(kind="incomplete", message=f"{said} besides those of the list")


def _recordings(gathering: Gathering) -> dict[str, _Recording]:
    found: dict[str, _Recording] = {}
    for name in gathering.tree.names:
        code, kind = name.stem, "skeleton"
        if name.suffix.lower() in VIDEO and code.endswith(_FILM):
            code, kind = code.removesuffix(_FILM), "film"
        elif name.suffix != ".skeleton":
            continue
        told = _NAME.fullmatch(code)
        if told is None or not 1 <= int(told[4]) <= len(ACTIONS) or int(told[3]) > SUBJECTS:
            why = "its name is none of NTU RGB+D 60"
            gathering.read.notes.append(Note(kind="unlisted", file=str(name), message=why))
            continue
        setup, camera, subject, action = (int(each) for each in told.groups())
        recording = _Recording(setup, camera, subject, action)
        found.setdefault(code, recording).kinds.add(kind)
    return found


def _files(gathering: Gathering, place: Place, *, films: bool, skeletons: bool) -> RowDict | None:
    """Film and skeleton of a recording; None where it has no film, as none has, nor a skeleton."""
    row: RowDict = {}
    skeleton = gathering.find(place, [(place.clip, (".skeleton",))])
    if skeleton is not None:
        row["stream:skeleton"] = gathering.tree.where(skeleton)
    elif skeletons:
        gathering.note(place, "incomplete", "there is a film, and no skeleton")
    if films:
        return {**row, "media": gathering.media(place, [(place.clip + _FILM, VIDEO)])}
    seconds = 0.0 if skeleton is None else _frames(gathering, place, skeleton) / KINECT_HZ
    media = str(gathering.tree.root / f"{place.clip}{_FILM}.avi")
    return {**row, "media": media, "start": 0.0, "end": seconds} if seconds else None


def _frames(gathering: Gathering, place: Place, skeleton: PurePath) -> int:
    """How many frames a skeleton has, which the first line of its file tells."""
    with (gathering.tree.root / skeleton).open("rb") as file:
        first = file.readline(64).strip()
    if not first.isdigit() or not int(first):
        if gathering.tree.state(skeleton) is None:
            gathering.note(place, "broken", f"{skeleton} begins with {first[:20]!r}, not frames")
        return 0
    return int(first)


def _said(recording: _Recording, options: Options) -> RowDict:
    subject = recording.subject
    split = "valid" if subject in options.valid else "train" if subject in TRAINING else "test"
    return {
        "speaker": f"subject-{subject:02}",
        "split": split,
        "action": ACTIONS[recording.action - 1],
        "camera": f"camera-{recording.camera}",
        "setup": f"setup-{recording.setup:02}",
    }
