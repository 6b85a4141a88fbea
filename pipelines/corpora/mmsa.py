"""The layout of MMSA-FET: a label.csv beside Raw/VIDEO/CLIP.mp4; CH-SIMS is handed out so."""

from collections.abc import Mapping
from pathlib import PurePath

from pipelines.corpora.gathering import Choice, Gathering, Place
from pipelines.corpora.reading import Note, Read, RowDict
from pipelines.corpora.tables import read_table
from pipelines.corpora.tree import SOUND, VIDEO, Tree
from pipelines.experiment import InputError
from pipelines.sections import Section

SPLITS: Mapping[str, str] = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
LABELS = ("label", "label_T", "label_A", "label_V")
PADDED = 4
"""Digits of CH-SIMS' clips, whose zeros spreadsheets take away."""


class Options(Section):
    """There are none."""


def read(tree: Tree, options: Options) -> Read:
    """A clip for each row of label.csv, by the id that MMSA's own files of features have.

    Raises:
        InputError: There is no label.csv, or it cannot be read.
    """
    gathering = Gathering(tree)
    name = tree.only("label.csv") or tree.only("meta.csv")
    if name is None:
        raise InputError(f"{tree.root}: there is no label.csv")
    taken: set[PurePath] = set()
    for number, row in read_table(tree.root / name, ("video_id", "clip_id", "text", "label")):
        video, clip = row["video_id"], row["clip_id"]
        place = Place(clip=f"{video}$_${clip}", file=str(name), row=number)
        mode = row.get("mode", "")
        if mode and mode.casefold() not in SPLITS:
            gathering.note(place, "no_split", f"its mode is {mode!r}")
            continue
        choices = _choices(video, clip)
        film = gathering.find(place, choices)
        media = gathering.media(place, choices) if film is None else tree.where(film)
        taken |= set() if film is None else {film}
        about: RowDict = {"media": media, "group": video}
        if mode:
            about["split"] = SPLITS[mode.casefold()]
        if row["text"]:
            about["transcript"] = row["text"]
        else:
            gathering.note(place, "no_transcript")
        gathering.add(place, {**about, **_labels(gathering, place, row)})
    for each in tree.names:
        if each.suffix.lower() in VIDEO and each not in taken:
            said = f"{name} does not have it"
            gathering.read.notes.append(Note(kind="unlisted", file=str(each), message=said))
    return gathering.read


def _choices(video: str, clip: str) -> list[Choice]:
    names = [f"{video}/{clip}"]
    if clip.isdigit() and len(clip) < PADDED:
        names.append(f"{video}/{int(clip):0{PADDED}}")
    return [(name, suffixes) for suffixes in (VIDEO, SOUND) for name in names]


def _labels(gathering: Gathering, place: Place, row: Mapping[str, str]) -> RowDict:
    labels: RowDict = {}
    for name in LABELS:
        try:
            labels[name] = float(row.get(name, ""))
        except ValueError:
            if name == "label":
                gathering.note(place, "no_label", f"its label is {row[name]!r}")
    if annotation := row.get("annotation"):
        labels["annotation"] = annotation
    return labels
