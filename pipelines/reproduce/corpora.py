"""From a folder of data to what an experiment reads: its source of clips, and its features.

The folder holds either a corpus as its authors hand it out, which is ingested and whose features
are computed, or features that were published, which are imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from featurizers.face_detector import YUNET
from pipelines.exchange.importing import Wanted, import_files
from pipelines.exchange.published import Imported
from pipelines.experiment import InputError
from pipelines.feature_sets import Member, fetched
from pipelines.reproduce.protocol import Protocol
from pipelines.show import Show

BERT_WIDTH = 768

ROLES: Mapping[str, str] = {"vision": "visual"}
"""Streams of published files by what protocols call them, where that is something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What an experiment reads.

    Attributes:
        source: The section `source` of an experiment file, with the label.
        features: By stream, sections of an experiment file.
        pooling: What imported features are to be pooled to; empty where the recipe decides.
        notes: What is to be told beside the results.
    """

    source: Mapping[str, Any]
    features: Mapping[str, Mapping[str, Any]]
    pooling: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Prepare: TypeAlias = Callable[[Protocol, Path, Path, Show], Data]
"""Makes that of a protocol, the folder of the data, and the folder of the experiment."""


def dataset_of(protocol: Protocol) -> str:
    """Where the dataset goes, from the folder of the experiment."""
    return f"runs/{protocol.name}"


def prepare(protocol: Protocol, data: Path, folder: Path, show: Show) -> Data:
    """Read a folder of data as the protocol's corpus has it.

    Raises:
        InputError: There is no such folder, several files could be meant, or something that the
            features want is missing.
    """
    if not data.exists():
        raise InputError(f"{data}: there is no such folder; --data names that of {protocol.name}")
    if published := _published(data):
        return _imported(protocol, published, folder, show)
    return Data(
        source={
            "folder": str(data.resolve()),
            "format": protocol.format,
            "label": protocol.label,
        },
        features=_with_faces(protocol.features, folder),
        notes=("features are computed from the clips" + protocol.not_theirs,),
    )


def _published(data: Path) -> list[Path]:
    """The files of published features: one pickle."""
    if data.is_file():
        return [data]
    pickles = sorted(path for each in ("*.pkl", "*.pickle") for path in data.glob(each))
    if len(pickles) > 1:
        names = ", ".join(path.name for path in pickles[:4])
        raise InputError(f"{data} has {len(pickles)} pickles ({names}); give one of them as --data")
    return pickles


def _imported(protocol: Protocol, files: list[Path], folder: Path, show: Show) -> Data:
    show.head("import")
    with show.counting("import", None) as done:
        made = import_files(Wanted(files=files, to=folder / dataset_of(protocol)), done)
    notes = [f"features are imported from {', '.join(path.name for path in files)}", *made.notes]
    for note in notes:
        show.say(note)
    return Data(
        source={"imported": True, "label": made.label},
        features={
            stream: {"featurizer": "imported", "column": fingerprint}
            for stream, fingerprint in _by_role(made).items()
        },
        pooling=made.pooling,
        notes=tuple(notes),
    )


def _by_role(made: Imported) -> dict[str, str]:
    """The imported columns by what protocols call their streams."""
    found = {ROLES.get(name, name): column.spec for name, column in made.columns.items()}
    if "text" in found and found["text"].width == BERT_WIDTH:
        found["bert"] = found["text"]
    return {stream: spec.fingerprint for stream, spec in found.items()}


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
