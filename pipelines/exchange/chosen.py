"""The columns of a dataset that are given to another tool, by the names that they have there."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featurizers.align import pool, word_times
from featurizers.clip import Clip
from featurizers.dataset import read_clips
from featurizers.imported import is_imported, spoken_of, stream_of
from featurizers.manifest import Column, committed, open_column
from featurizers.spec import Feature, FeatureSpec
from featurizers.store import Root, store_at
from pipelines.experiment import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A dataset as it is given away.

    Attributes:
        name: Of the dataset, for messages.
        clips: Those with a split, sorted by key.
        columns: By the name of the stream.
        label: What is predicted.
    """

    name: str
    clips: Sequence[Clip]
    columns: Mapping[str, Column]
    label: str

    def read(self, stream: str, clip: Clip) -> Feature | None:
        """A clip's feature; None where it has none."""
        column = self.columns[stream]
        return column.read(clip.key) if clip.key in column.rows else None

    def aligned(self, clip: Clip) -> dict[str, Feature | None]:
        """The features of a clip on the same steps: those that they share, else those of words.

        A word during which a stream has no step is 0 there.

        Raises:
            InputError: They do not share their steps, and the clip has no words.
        """
        found = {name: self.read(name, clip) for name in self.columns}
        there = [each.times for each in found.values() if each is not None]
        if all(times.shape == there[0].shape and (times == there[0]).all() for times in there):
            return found
        words = word_times(clip)
        spoken = spoken_of({name: column.spec for name, column in self.columns.items()})
        if not len(words):
            raise InputError(
                f"clip {clip.id!r} has no words, and its streams do not share their steps: it has "
                f"no aligned form"
            )
        return {
            name: None
            if each is None
            else Feature(pool(each, words, "overlap" if name in spoken else "mean")[0], words)
            for name, each in found.items()
        }


def choose(root: Root, streams: Sequence[str], label: str) -> Chosen:
    """What is exported of a dataset.

    Args:
        root: Where it lies.
        streams: NAME=COLUMN, or a column, whose folder may be cut short; empty for all committed
            columns.
        label: What is predicted; empty for the only label, or "regression_labels".

    Raises:
        InputError: There is no such column or label, or several.
        DatasetError: There is no dataset.
    """
    where, done = store_at(root).where(), committed(root)
    if not done:
        raise InputError(f"{where}: no column is finished; featurize first")
    names = _asked(where, streams, done) if streams else None
    opened = {column: open_column(root, column) for column in (names or done)}
    if names is None:
        names = _usual({name: column.spec for name, column in opened.items()})
    doubled = [name for name, count in Counter(names.values()).items() if count > 1]
    if doubled:
        raise InputError(
            f"{where}: several columns are called {doubled[0]!r}; choose by --stream NAME=COLUMN "
            f"among {', '.join(done)}"
        )
    clips = [clip for clip in read_clips(root) if clip.split is not None]
    known = sorted({each for clip in clips for each in clip.labels})
    usual = known[0] if len(known) == 1 else "regression_labels"
    if (label or usual) not in known:
        told = ", ".join(known) or "none"
        raise InputError(f"{where}: no clip has a label {label or usual!r}; there are {told}")
    return Chosen(
        name=where,
        clips=clips,
        columns={names[column]: opened[column] for column in opened},
        label=label or usual,
    )


def _asked(where: str, streams: Sequence[str], done: Sequence[str]) -> dict[str, str]:
    """The names of asked columns, by column."""
    names: dict[str, str] = {}
    for each in streams:
        name, equals, column = each.rpartition("=")
        found = [folder for folder in done if folder == column] or [
            folder for folder in done if folder.startswith(column)
        ]
        if len(found) != 1:
            told = "several columns begin" if found else "no column begins"
            raise InputError(
                f"--stream {each}: in {where} {told} with {column!r}; there are {', '.join(done)}"
            )
        names[found[0]] = name if equals else _alone(found[0])
    return names


def _alone(folder: str) -> str:
    """The name of a column without its digest."""
    return folder.rpartition("-")[0].removeprefix("imported-")


def _usual(specs: Mapping[str, FeatureSpec]) -> dict[str, str]:
    """The name of each column: an imported one's own, else its modality where no other has that."""
    count = Counter(spec.modality for spec in specs.values())
    return {
        column: stream_of(spec)
        if is_imported(spec)
        else (spec.modality if count[spec.modality] == 1 else spec.name)
        for column, spec in specs.items()
    }
