"""From a folder of data to what an experiment reads: its source of clips, and its features.

The folder holds either a corpus as its authors hand it out, which is ingested and whose features
are computed, or features that were published, which are imported.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from featurizers.face_detector import YUNET
from featurizers.spec import FeatureSpec
from pipelines.exchange.importing import Wanted, import_files
from pipelines.exchange.published import Imported, sha256_of
from pipelines.experiment import InputError
from pipelines.feature_sets import Member, fetched
from pipelines.reproduce.protocol import Protocol
from pipelines.show import Show

BERT_WIDTH = 768

ROLES: Mapping[str, str] = {
    "text": r"^text$|glove|word_?vectors",
    "audio": r"^audio$|covarep",
    "visual": r"^(video|vision|visual)$|facet",
    "bert": r"bert",
}
"""What the papers' features are called as streams and files, by what protocols call them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What an experiment reads.

    Attributes:
        source: The section `source` of an experiment file, with the label.
        features: By stream, sections of an experiment file.
        pooling: What imported features are to be pooled to; empty where the recipe decides.
        notes: What is to be told beside the results.
        itself: Whether it is the corpus itself, not its published features.
        mark: Of published features: of which kind, and the beginning of their sha256.
        widths: Of published features: numbers a step, by stream.
    """

    source: Mapping[str, Any]
    features: Mapping[str, Mapping[str, Any]]
    pooling: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    itself: bool = False
    mark: str = ""
    widths: Mapping[str, int] = field(default_factory=dict)


Prepare: TypeAlias = Callable[[Protocol, Path, Path, Show], Data]
"""Makes that of a protocol, the folder of the data, and the folder of the experiment."""


def name_of(protocol: Protocol, mark: str) -> str:
    """What dataset and result are called: those of other published features have other names."""
    return f"{protocol.name}-{mark}" if mark else protocol.name


def dataset_of(protocol: Protocol, mark: str = "") -> str:
    """Where the dataset goes, from the folder of the experiment."""
    return f"runs/{name_of(protocol, mark)}"


def _mark(wanted: Wanted) -> str:
    folds = () if wanted.folds is None else (wanted.folds,)
    kind = "csd" if wanted.files[0].suffix.lower() == ".csd" else "pickle"
    return f"{kind}-{sha256_of([*wanted.files, *folds])[:8]}"


def prepare(protocol: Protocol, data: Path, folder: Path, show: Show) -> Data:
    """Read a folder of data as the protocol's corpus has it.

    Raises:
        InputError: There is no such folder, several files could be meant, or something that the
            features want is missing.
    """
    if not data.exists():
        raise InputError(f"{data}: there is no such folder; --data names that of {protocol.name}")
    if wanted := _published(protocol, data, folder):
        mark = _mark(wanted)
        wanted = replace(wanted, to=folder / dataset_of(protocol, mark))
        return replace(_imported(wanted, show), mark=mark)
    return Data(
        source={
            "folder": str(data.resolve()),
            "format": protocol.name,
            "label": protocol.label,
        },
        features=_with_faces(protocol.features, folder),
        notes=("features are computed from the clips" + protocol.not_theirs,),
        itself=True,
    )


def _published(protocol: Protocol, data: Path, folder: Path) -> Wanted | None:
    """What is to be imported: one pickle, or the SDK's sequences; None of a corpus itself.

    Raises:
        InputError: Several files could be meant.
    """
    to = folder / dataset_of(protocol)
    if data.is_file():
        return Wanted(files=[data], to=to)
    sequences = sorted(data.glob("*.csd"))
    pickles = sorted(path for each in ("*.pkl", "*.pickle") for path in data.glob(each))
    # A corpus itself has a file of its labels, and no other.
    if any("label" not in path.stem.casefold() for path in sequences):
        return Wanted(
            files=sequences,
            to=to,
            label=protocol.label,
            align=next((path.stem for path in sequences if _is(path.stem, "text")), ""),
            folds=_only(data, ("*folds*.py", "*folds*.json", "*folds*.csv")),
        )
    pickle = _only(data, ("*.pkl", "*.pickle")) if pickles else None
    return None if pickle is None else Wanted(files=[pickle], to=to)


def _only(folder: Path, patterns: Sequence[str]) -> Path | None:
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise InputError(f"{folder} has {len(found)} files where one is wanted: {names}")
    return found[0] if found else None


def _imported(wanted: Wanted, show: Show) -> Data:
    show.head("import")
    with show.counting("import", None) as done:
        made = import_files(wanted, done)
    names = ", ".join(path.name for path in wanted.files)
    aligned = f", averaged to the words of {wanted.align}" if wanted.align else ""
    notes = [f"features are imported from {names}{aligned}", *made.notes]
    for note in notes:
        show.say(note)
    roles = _by_role(made)
    return Data(
        source={"imported": True, "label": made.label},
        features={
            role: {"featurizer": "imported", "column": spec.fingerprint}
            for role, spec in roles.items()
        },
        widths={role: spec.width for role, spec in roles.items()},
        pooling=made.pooling,
        notes=tuple(notes),
    )


def _by_role(made: Imported) -> dict[str, FeatureSpec]:
    """The imported columns by what protocols call their streams."""
    roles: dict[str, FeatureSpec] = {}
    for role in ROLES:
        for name, column in made.columns.items():
            if _is(name, role):
                roles.setdefault(role, column.spec)
    if "text" in roles and roles["text"].width == BERT_WIDTH:
        roles.setdefault("bert", roles["text"])
    return roles


def _is(name: str, role: str) -> bool:
    """Whether a stream or a file is what a protocol calls so."""
    return re.search(ROLES[role], name.casefold()) is not None


def _with_faces(
    features: Mapping[str, Mapping[str, Any]], folder: Path
) -> dict[str, Mapping[str, Any]]:
    """Features whose pictures are cut out around faces, with the file that finds them.

    Raises:
        InputError: It is not there.
    """
    found = dict(features)
    for stream, section in features.items():
        if section.get("crop") == "face":
            path = fetched(Member(featurizer="frames", file=YUNET), folder)
            found[stream] = {**section, "model": path} if path else section
    return found
