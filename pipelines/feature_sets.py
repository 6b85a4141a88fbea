"""Features by one name: `light`, `classic` and `strong` stand for sections of an experiment file.

    features: light                                   # the same as leaving `features` out
    features: {set: classic, text: {file: glove.6B.300d.txt}, landmarks: null}
    features: {set: light, text: null, hand: {featurizer: numbers, stream: hand, dims: 9}}

Settings of a stream are laid over those of the set; another featurizer takes its place, null leaves
it out, and further streams are added. What a set cannot know, such as a file of the user's or the
commit of a model, it asks for: nothing weaker is taken in its place. Files that `fetch` put into
the folder `models` are found there.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurizers.face_detector import YUNET
from featurizers.landmarks import LANDMARKER
from featurizers.pretrained import KnownFile

DEFAULT = "light"
STRONG = "strong"
FETCHED = "models"
"""The folder that `fetch` puts files into unless told."""

_SET = "set"
_COMMIT = (
    "the commit of {model} (40 hex digits, with safetensors), which "
    "https://huggingface.co/{model}/commits/main shows"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A stream of a set.

    Attributes:
        featurizer: Its name in the catalog.
        settings: Of the featurizer.
        wants: A setting that the user has to give; empty when there is none.
        instead: Settings of which any does in its place.
        what: What that is, and where it is found.
        weights: What has to be fetched: whose, how large, under which licence.
        file: The one that is wanted, where `fetch` knows it.
    """

    featurizer: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    wants: str = ""
    instead: tuple[str, ...] = ()
    what: str = ""
    weights: str = ""
    file: KnownFile | None = None

    @property
    def section(self) -> dict[str, Any]:
        """As it stands in an experiment file."""
        return {"featurizer": self.featurizer, **self.settings}


def _of_hub(featurizer: str, model: str, weights: str, **settings: object) -> Member:
    return Member(
        featurizer=featurizer,
        settings={"model": model, **settings},
        wants="revision",
        instead=("weights",),
        what=_COMMIT.format(model=model),
        weights=f"{model} ({weights})",
    )


def _of_faces(featurizer: str, **settings: object) -> Member:
    return Member(
        featurizer=featurizer,
        settings={**settings, "fps": 5},
        wants="model",
        instead=("weights", "detector"),
        what="YuNet's ONNX file, which `fuseline fetch yunet` gets (0.2 MB, MIT)",
        weights="YuNet (0.2 MB, MIT)",
        file=YUNET,
    )


SETS: Mapping[str, Mapping[str, Member]] = {
    "light": {
        "text": Member(featurizer="hashed-words"),
        "audio": Member(featurizer="logmel", settings={"hop_ms": 10}),
        "video": Member(featurizer="face-motion", settings={"fps": 5}),
    },
    "classic": {
        "text": Member(
            featurizer="word-vectors",
            wants="file",
            instead=("weights",),
            what="a file of word vectors, such as glove.6B.300d.txt, which its authors give away",
            weights="word vectors (a file of yours, under its authors' licence)",
        ),
        "audio": Member(featurizer="prosody"),
        "video": _of_faces("appearance", crop="face"),
        "face": _of_faces("face-track"),
        "landmarks": Member(
            featurizer="landmarks",
            settings={"fps": 5},
            wants="model",
            instead=("weights",),
            what=(
                "MediaPipe's face_landmarker.task, which `fuseline fetch face-landmarker` gets "
                "(3.8 MB, Apache-2.0)"
            ),
            weights="Face Landmarker (3.8 MB, Apache-2.0)",
            file=LANDMARKER,
        ),
    },
    "strong": {
        "text": _of_hub("text-encoder", "FacebookAI/roberta-base", "0.5 GB, MIT", layers="mean"),
        "audio": _of_hub(
            "speech-encoder", "facebook/hubert-base-ls960", "0.4 GB, Apache-2.0", layers="mean"
        ),
        "video": _of_hub(
            "image-encoder", "google/siglip-base-patch16-224", "0.8 GB, Apache-2.0", fps=5
        ),
    },
}


def name_of(features: object) -> str:
    """The set that a file's `features` name; empty when they name none."""
    if isinstance(features, str):
        return features
    chosen = features.get(_SET) if isinstance(features, Mapping) else None
    return chosen if isinstance(chosen, str) else ""


def members(name: str) -> Mapping[str, Member]:
    """A set by stream. Raises ValueError when there is none of that name."""
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"there is no set of features {name!r}{hint}; there are {', '.join(SETS)}")
    return SETS[name]


def fetched(member: Member, folder: Path) -> str:
    """The path of the file that a member wants, if `fetch` put it here; else empty.

    Args:
        member: Of a set.
        folder: Of the experiment file; paths in it are told from there. Then the folder that the
            command is called in is looked into.
    """
    if member.file is None:
        return ""
    path = Path(FETCHED) / member.file.file
    if (folder / path).is_file():
        return str(path)
    return str(path.resolve()) if path.is_file() else ""


def expand(features: object, folder: Path) -> object:
    """The sections that `features` stand for; what names no set is given back as it is.

    Args:
        features: As they stand in an experiment file.
        folder: Of that file.

    Raises:
        ValueError: There is no set of that name.
    """
    name = name_of(features)
    if not name:
        return features
    sections: dict[str, Any] = {stream: each.section for stream, each in members(name).items()}
    given = features if isinstance(features, Mapping) else {}
    for stream, settings in given.items():
        if stream == _SET:
            continue
        if settings is None:
            sections.pop(stream, None)
        elif isinstance(settings, Mapping):
            sections[stream] = _laid_over(sections.get(stream, {}), settings)
        else:
            sections[stream] = settings
    for stream, member in members(name).items():
        if _lacks(member, sections.get(stream)) and (path := fetched(member, folder)):
            sections[stream] = {**sections[stream], member.wants: path}
    return sections


def _laid_over(section: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    if settings.get("featurizer", section.get("featurizer")) != section.get("featurizer"):
        return dict(settings)
    return {**section, **settings}


def missing(name: str, sections: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the streams of a set still want: a sentence for each.

    Args:
        name: Of the set; empty for none.
        sections: By stream, expanded.
    """
    return [
        f"{stream}.{member.wants}, {member.what}"
        for stream, member in SETS.get(name, {}).items()
        if _lacks(member, sections.get(stream))
    ]


def _lacks(member: Member, section: object) -> bool:
    if not isinstance(section, Mapping) or section.get("featurizer") != member.featurizer:
        return False
    if not member.wants:
        return False
    given = {setting for setting, value in section.items() if value}
    own_model = bool(section.get("model")) and section["model"] != member.settings.get("model")
    return not own_model and not {member.wants, *member.instead} & given


def needs(name: str) -> str:
    """What has to be fetched for a set, with sizes and licences; empty when nothing has to be."""
    wanted = [each.weights for each in SETS[name].values() if each.weights]
    return ", ".join(dict.fromkeys(wanted))


def sentences(name: str, featurizers: Mapping[str, str]) -> list[str]:
    """Which features are used, and what the strong ones would need.

    Args:
        name: Of the set; empty for none.
        featurizers: Names of featurizers by stream.
    """
    told = ", ".join(f"{stream}: {featurizer}" for stream, featurizer in featurizers.items())
    said = [f"features: {f'set {name}' if name else 'as written'} ({told})"]
    if name != STRONG:
        said.append(
            f"features: {{set: {STRONG}}} would need {needs(STRONG)}, each pinned by its revision"
        )
    return said
