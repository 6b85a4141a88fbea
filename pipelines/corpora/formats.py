"""The corpora that can be read, by name: what they are, where to ask, and how they must lie."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from featurizers.spec import Scalar
from pipelines.corpora import (
    cmu,
    cremad,
    grid,
    iemocap,
    meld,
    mmsa,
    mustard,
    ntu,
    ravdess,
    utd_mhad,
)
from pipelines.corpora.reading import Read
from pipelines.corpora.tree import Tree, tree
from pipelines.experiment import InputError
from pipelines.sections import Section


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A corpus, or a layout that several have.

    Attributes:
        title: What people call it.
        licence: What its authors permit.
        ask: Where to get it.
        layout: Lines that show where which files lie; the folders above them do not matter.
        labels: Columns that can be predicted and what they hold; the first is the usual one.
        modalities: Those of text, audio and video of which there is something to learn.
        streams: By name of a stream of numbers, the featurizer that reads it, and its settings.
        splits: What it is split by.
        built_from: What its reader was written after.
        defects: What is known to be wrong with it.
        options: The section `source.options`.
        read: Makes rows of a folder.
    """

    title: str
    licence: str
    ask: str
    layout: Sequence[str]
    labels: Mapping[str, str]
    modalities: Sequence[str] = ("text", "audio", "video")
    streams: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    splits: str
    built_from: str
    defects: str = ""
    options: type[Section]
    read: Callable[[Tree, Any], Read]


FORMATS: Mapping[str, Format] = {
    "ravdess": Format(
        title="RAVDESS",
        licence="CC BY-NC-SA 4.0; commercial licences are sold by its authors",
        ask="https://zenodo.org/records/1188976 (open, 24.8 GB)",
        layout=(
            "Actor_01/01-01-03-01-02-01-01.mp4    sound and pictures",
            "Actor_01/02-01-03-01-02-01-01.mp4    pictures alone",
            "Actor_01/03-01-03-01-02-01-01.wav    sound alone",
        ),
        labels={
            "emotion": "8 classes",
            "intensity": "normal or strong",
            "statement": "2 classes",
            "channel": "speech or song",
            "gender": "of the actor",
        },
        modalities=("audio", "video"),  # two sentences tell nothing of an emotion
        splits="6 folds of 4 actors each in order of their numbers, as MSAF (train.folds: 6)",
        built_from="its documentation",
        defects="one of the singers has no songs (actor 18); Kaggle's copy has all files twice",
        options=ravdess.Options,
        read=ravdess.read,
    ),
    "mosi": Format(
        title="CMU-MOSI",
        licence="as its authors grant it; the films are their makers', on YouTube",
        ask="http://multicomp.cs.cmu.edu/resources/cmu-mosi-dataset/",
        layout=(
            "Raw/Video/Full/03bSnISJMiM.mp4    or Raw/Video/Segmented/03bSnISJMiM_1.mp4",
            "Raw/Transcript/Segmented/03bSnISJMiM.annotprocessed",
            "CMU_MOSI_Opinion_Labels.csd    or OpinionLevelSentiment.csv",
            "CMU_MOSI_TimestampedWords.csd    if there: words with times, for whole videos",
        ),
        labels={"sentiment": "-3 to 3"},
        splits="the SDK's standard folds: 52, 10 and 31 videos",
        built_from="its documentation, the SDK's, and code of others that reads it",
        options=cmu.Options,
        read=cmu.read_mosi,
    ),
    "mosei": Format(
        title="CMU-MOSEI",
        licence="as its authors grant it; the films are their makers', on YouTube",
        ask="http://multicomp.cs.cmu.edu/resources/cmu-mosei-dataset/",
        layout=(
            "Raw/Videos/Full/Combined/03bSnISJMiM.mp4    or Segmented/Combined/03bSnISJMiM_1.mp4",
            "Raw/Transcript/Segmented/Combined/03bSnISJMiM.txt",
            "CMU_MOSEI_Labels.csd",
            "CMU_MOSEI_TimestampedWords.csd    if there: words with times, for whole videos",
            "cmu_mosei_std_folds.py    of the SDK, or source.options.folds",
        ),
        labels={
            "sentiment": "-3 to 3",
            "emotions": "6 that may be there at once",
            **dict.fromkeys(cmu.EMOTIONS, "0 to 3"),
        },
        splits="the SDK's standard folds, read from its file",
        built_from="its documentation, the SDK's, and code of others that reads it",
        defects="labels of videos in no fold, segments without length",
        options=cmu.Options,
        read=cmu.read_mosei,
    ),
    "ntu": Format(
        title="NTU RGB+D 60",
        licence="for academic research alone, by agreement with the ROSE Lab",
        ask="https://rose1.ntu.edu.sg/dataset/actionRecognition/",
        layout=(
            "nturgb+d_rgb/S001C001P001R001A001_rgb.avi",
            "nturgb+d_skeletons/S001C001P001R001A001.skeleton",
        ),
        labels={"action": "60 classes", "camera": "3 classes", "setup": "17 classes"},
        modalities=("video",),
        streams={"skeleton": {"featurizer": "skeleton", "stream": "skeleton", "persons": 2}},
        splits="cross-subject: 20 subjects train, of whom 18, 28 and 38 validate (our choice); the "
        "other 20 test",
        built_from="its documentation, and code of others that reads it",
        defects="302 recordings whose skeletons are missing or incomplete are left out, by its "
        "authors' list",
        options=ntu.Options,
        read=ntu.read,
    ),
    "utd-mhad": Format(
        title="UTD-MHAD",
        licence="freely available; its paper is to be cited",
        ask="https://personal.utdallas.edu/~kehtar/UTD-MHAD.html",
        layout=(
            "Skeleton/a1_s1_t1_skeleton.mat    d_skel, 20 joints",
            "Inertial/a1_s1_t1_inertial.mat    d_iner",
            "Depth/a1_s1_t1_depth.mat    d_depth, with source.options.depth",
            "RGB/a1_s1_t1_color.avi    not needed for the sensors",
        ),
        labels={"action": "27 classes"},
        modalities=("video",),
        streams={
            "skeleton": {"featurizer": "skeleton", "stream": "skeleton", "joints": 20},
            "inertial": {"featurizer": "numbers", "stream": "inertial", "dims": 6},
            "depth": {"featurizer": "numbers", "stream": "depth", "dims": 192},
        },
        splits="subjects 1, 3, 5 and 7 train, of whom 7 validates (our choice); 2, 4, 6, 8 test",
        built_from="its documentation, and code of others that reads it",
        defects="3 of its 864 recordings are not handed out",
        options=utd_mhad.Options,
        read=utd_mhad.read,
    ),
    "iemocap": Format(
        title="IEMOCAP",
        licence="for research, by agreement with USC's SAIL",
        ask="https://sail.usc.edu/iemocap/iemocap_release.htm",
        layout=(
            "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt",
            "Session1/dialog/transcriptions/Ses01F_impro01.txt",
            "Session1/sentences/ForcedAlignment/Ses01F_impro01/Ses01F_impro01_F000.wdseg    or not",
            "Session1/dialog/avi/DivX/Ses01F_impro01.avi    the film, with both actors",
            "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav    or sound alone",
        ),
        labels={
            "emotion4": "angry, happy (with excited), sad, neutral; the others have none",
            "emotion": "10 classes, where the judges agree",
            "emotions": "of happy, sad, angry and neutral those that half of the judges named",
            "valence": "1 to 5",
            "activation": "1 to 5",
            "dominance": "1 to 5",
        },
        splits="5 folds, one a session (train.folds: 5); sessions are never torn, as both actors "
        "are seen and heard in a dialogue",
        built_from="its documentation, and code of others that reads it",
        defects="turns on which the judges do not agree have no `emotion`",
        options=iemocap.Options,
        read=iemocap.read,
    ),
    "crema-d": Format(
        title="CREMA-D",
        licence="Open Database License (ODbL 1.0), contents DbCL 1.0",
        ask="https://github.com/CheyneyComputerScience/CREMA-D (with Git LFS)",
        layout=(
            "VideoFlash/1001_DFA_ANG_XX.flv    or AudioWAV/1001_DFA_ANG_XX.wav",
            "processedResults/summaryTable.csv    the votes",
            "VideoDemographics.csv",
        ),
        labels={
            "emotion": "6 classes, as played",
            "emotion_voice": "6 classes, by vote on the voice; none where it is tied",
            "emotion_face": "by vote on the face",
            "emotion_both": "by vote on both",
            "level": "low, medium or high",
            "age": "of the actor",
            "gender": "of the actor",
        },
        modalities=("audio", "video"),  # twelve sentences tell nothing of an emotion
        splits="none is official; dealt by actors",
        built_from="its documentation",
        defects="the sound of 1076_MTI_SAD_XX is silence; without Git LFS all media are pointers",
        options=cremad.Options,
        read=cremad.read,
    ),
    "meld": Format(
        title="MELD",
        licence="GPL-3.0, its annotations; the films are of the series Friends",
        ask="https://github.com/declare-lab/MELD (open)",
        layout=(
            "train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv",
            "train_splits/dia0_utt0.mp4",
            "dev_splits_complete/dia0_utt0.mp4",
            "output_repeated_splits_test/dia0_utt0.mp4",
        ),
        labels={"emotion": "7 classes", "sentiment": "positive, neutral or negative"},
        splits="the authors', by dialogue; characters speak in all of them, which `check` tells",
        built_from="its documentation, and the reports of its users",
        defects="dev dia110_utt7 is not handed out, train dia125_utt3 is damaged, test dia38_utt4 "
        "and dia220_utt0 are minutes of another scene; texts mix UTF-8 and cp1252",
        options=meld.Options,
        read=meld.read,
    ),
    "mmsa": Format(
        title="CH-SIMS and other corpora in the layout of MMSA-FET",
        licence="that of the corpus, as its authors grant it",
        ask="https://github.com/thuiar/MMSA",
        layout=("label.csv", "Raw/video_0001/0001.mp4"),
        labels={
            "label": "-1 to 1 in CH-SIMS, -3 to 3 in MOSI and MOSEI",
            "label_T": "of the text alone",
            "label_A": "of the sound alone",
            "label_V": "of the pictures alone",
            "annotation": "classes",
        },
        splits="the column mode",
        built_from="code that reads it",
        defects="spreadsheets take the zeros of 0001 away: clips are found all the same",
        options=mmsa.Options,
        read=mmsa.read,
    ),
    "mustard": Format(
        title="MUStARD",
        licence="MIT, its annotations; the films are of television series",
        ask="https://github.com/soujanyaporia/MUStARD",
        layout=("sarcasm_data.json", "utterances_final/1_60.mp4"),
        labels={"sarcasm": "sarcastic or not", "show": "4 classes"},
        splits="independent of speakers: Friends tests, The Big Bang Theory trains, the other two "
        "series validate (our choice); or dealt",
        built_from="its documentation",
        options=mustard.Options,
        read=mustard.read,
    ),
    "grid": Format(
        title="GRID",
        licence="CC BY 4.0",
        ask="https://zenodo.org/records/3625687 (open)",
        layout=("s1/bbaf2n.mpg", "align/s1/bbaf2n.align    or s1/align/bbaf2n.align"),
        labels={
            "command": "4 classes",
            "colour": "4 classes",
            "preposition": "4 classes",
            "letter": "25 classes",
            "digit": "10 classes",
            "adverb": "4 classes",
        },
        modalities=("audio", "video"),  # the words are what is predicted
        splits="dealt by speakers; or LipNet's unseen speakers 1, 2, 20 and 22 test, 3 and 23 "
        "validate (our choice)",
        built_from="eleven of its clips, and its documentation",
        defects="speaker 21 has no films",
        options=grid.Options,
        read=grid.read,
    ),
}


def find(name: str) -> Format:
    """The format of a name.

    Raises:
        InputError: There is none.
    """
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(f"unknown format {name!r}{hint}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def checked(name: str, given: Mapping[str, Any]) -> Section:
    """The settings of a format. Raises InputError: there is no such format or setting."""
    kind = find(name).options
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        told = (_said(kind, each) for each in error.errors(include_url=False))
        raise InputError("; ".join(told)) from None


def settings(options: Section) -> Mapping[str, object]:
    """The settings of a format as an experiment file has them."""
    plain = options.model_dump(mode="json")
    return {key: "PATH" if value is None else value for key, value in plain.items()}


def options_of(name: str, given: Mapping[str, Any], folder: Path, root: Path) -> Section:
    """The settings of a format; paths are looked for from a folder, then from the corpus's own.

    Raises:
        InputError: There is no such format or setting, or a value or a path is wrong.
    """
    options = checked(name, given)
    paths = {
        key: _located(key, value, folder, root)
        for key in type(options).model_fields
        if isinstance(value := getattr(options, key), Path)
    }
    return options.model_copy(update=paths)


def _said(kind: type[Section], error: Any) -> str:  # noqa: ANN401 - pydantic's own dictionary
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, kind.model_fields, n=1)
        known = ", ".join(kind.model_fields) or "none"
        hint = f" (did you mean {near[0]!r}?)" if near else f"; there are {known}"
        return f"unknown key 'source.options.{key}'{hint}"
    return f"source.options.{key}: {error['msg']}, found {error['input']!r}"


def _located(key: str, path: Path, folder: Path, root: Path) -> Path:
    for base in (folder, root):
        if (base / path).exists():
            return base / path
    raise InputError(f"source.options.{key}: there is no {path}, from {folder} or from {root}")


def read(name: str, root: Path, options: Section) -> Read:
    """The rows of a corpus, and notes on what is wrong.

    Raises:
        InputError: There is no such format or folder, nothing in it is of the corpus, two rows
            have one id, or what decides all rows (labels, folds) is wrong.
    """
    found = find(name)
    made = found.read(tree(root), options)
    if not made.rows:
        first = f"; {made.notes[0].kind}: {made.notes[0]}" if made.notes else ""
        raise InputError(
            f"{root}: no clip of {found.title} is there{first}; wanted files such as "
            f"{found.layout[0].split('  ')[0]}"
        )
    return made
