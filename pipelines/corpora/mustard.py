"""MUStARD: utterances of four television series, sarcastic or not."""

import json
from typing import Any, Literal

from pipelines.corpora.gathering import Gathering, Place
from pipelines.corpora.reading import Note, Read, RowDict
from pipelines.corpora.tree import VIDEO, Tree, text_of
from pipelines.experiment import InputError
from pipelines.sections import Section

TESTED, VALIDATED = "FRIENDS", ("GOLDENGIRLS", "SARCASMOHOLICS")


class Options(Section):
    """The speaker-independent split of the paper, or one that is dealt by speakers."""

    split: Literal["independent", "dealt"] = "independent"


def read(tree: Tree, options: Options) -> Read:
    """A clip for each utterance; the films of what was said before it are not read.

    Raises:
        InputError: There is no sarcasm_data.json, or it is not as it should be.
    """
    gathering = Gathering(tree)
    name = tree.only("sarcasm_data.json")
    if name is None:
        raise InputError(f"{tree.root}: there is no sarcasm_data.json")
    utterances = _parsed(tree, text_of(tree.root / name))
    for number, (key, each) in enumerate(utterances.items(), start=1):
        place = Place(clip=key, file=str(name), row=number)
        row: RowDict = {"media": gathering.media(place, [(key, VIDEO)])}
        row |= {"speaker": f"{each['show']}-{each['speaker']}", "show": each["show"]}
        if options.split == "independent":
            row["split"] = _split(each["show"])
        if each["utterance"].strip():
            row["transcript"] = each["utterance"].strip()
        else:
            gathering.note(place, "no_transcript")
        row["sarcasm"] = "sarcastic" if each["sarcasm"] else "not sarcastic"
        gathering.add(place, row)
    for film in tree.names:
        known = film.stem in utterances or film.stem.removesuffix("_c") in utterances
        if film.suffix.lower() in VIDEO and not known:
            said = "sarcasm_data.json does not have it"
            gathering.read.notes.append(Note(kind="unlisted", file=str(film), message=said))
    return gathering.read


def _split(show: str) -> str:
    return "test" if show == TESTED else "valid" if show in VALIDATED else "train"


def _parsed(tree: Tree, text: str) -> dict[str, Any]:
    where = f"{tree.root}: sarcasm_data.json"
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if not isinstance(plain, dict):
        raise InputError(f"{where}: wanted utterances by name")
    wanted = {"utterance": str, "speaker": str, "show": str, "sarcasm": bool}
    for key, each in plain.items():
        for field, kind in wanted.items():
            if not isinstance(each, dict) or not isinstance(each.get(field), kind):
                raise InputError(f"{where}: {key}: wanted {field}, a {kind.__name__}")
    return plain
