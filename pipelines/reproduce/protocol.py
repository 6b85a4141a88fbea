"""What a published experiment is: a corpus, its split, models, seeds, metrics, figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pipelines.experiment import InputError
from pipelines.reproduce.archives import Archive
from training.recipe import TaskKind

ChosenOn: TypeAlias = Literal["valid", "test"]
"""On which clips the epoch was chosen that is reported."""

TimeBase: TypeAlias = Literal["any", "one", "recipe"]
"""Steps of imported streams: as they are; as they are, which must be shared; or the recipe's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A column of the table.

    Attributes:
        title: As papers call it.
        name: The metric of a scorecard.
        label: Of a task of several labels: the one that is asked about alone.
        percent: Whether it is a share, and told in percent.
    """

    title: str
    name: str
    label: str = ""
    percent: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What was published of a model.

    Attributes:
        what: Which row of the source, where it has several.
        values: By the title of a metric, in the table's units.
        source: Where the figures can be looked at.
        chosen_on: What its authors' code chooses the epoch on.
        note: In what it differs from the row above it.
    """

    what: str
    values: Mapping[str, float]
    source: str
    chosen_on: ChosenOn
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of a protocol.

    Attributes:
        recipe: Its name.
        title: As papers call it.
        streams: In the recipe's order; those that the data do not have make it be left out.
        settings: Of the model, that are not the recipe's.
        train: Fields of the recipe that are not the recipe's own.
        start: By part, the recipe of an earlier model of the protocol that it starts from, of the
            same fold and seed.
        time_base: What it asks of the steps of imported streams.
        widths: Numbers a step of the streams that its paper has.
    """

    recipe: str
    title: str
    streams: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, str] = field(default_factory=dict)
    time_base: TimeBase = "recipe"
    widths: Mapping[str, int] = field(default_factory=dict)
    published: tuple[Published, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A published experiment.

    Attributes:
        name: As on the command line, and as `ingest --format` calls the corpus.
        corpus: For people, with the paper of the corpus.
        split: Which clips train, validate and test, for people.
        label: The column that is predicted.
        features: By stream, sections of an experiment file, where the clips themselves are given.
        not_theirs: What such features are not, where the paper's cannot be computed.
        own_split: Which clips train there, where the published split is none of theirs.
        own_folds: How many folds that has.
        models: In the order in which they are trained.
        seeds: Runs of each model, of seeds 0, 1, and so on.
        folds: How many of them, each tested on once; 0 where there is one split.
        best_on_test: Whether each model is trained once more as its authors do, the epoch chosen on
            the fold that is reported.
        monitor: What the best epoch is chosen by there.
        notes: What a reader of the table should know.
        sizes: How many clips the paper's split has; a few where files of it differ. A name may be
            several splits, as in "train+valid".
        recordings: The split of each recording, where that is known.
        archive: Where the corpus can be fetched, for those that lie in an open one.
    """

    name: str
    corpus: str
    split: str
    label: str
    task: TaskKind
    metrics: tuple[Metric, ...]
    models: tuple[Model, ...]
    features: Mapping[str, Mapping[str, Any]]
    not_theirs: str = ""
    own_split: str = ""
    own_folds: int = 0
    seeds: int
    folds: int = 0
    best_on_test: bool = False
    monitor: str = "valid_loss"
    notes: tuple[str, ...] = ()
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    recordings: Mapping[str, str] = field(default_factory=dict)
    archive: Archive | None = None


def archive_of(protocol: Protocol) -> Archive:
    """Where the corpus can be fetched. Raises InputError where it has to be asked for."""
    if protocol.archive is None:
        raise InputError(
            f"{protocol.corpus}: lies in no open archive; its authors give it to who asks them; "
            f"see docs/corpora.md, and then --data names its folder"
        )
    return protocol.archive


def wanted(protocol: Protocol, names: Sequence[str]) -> list[Model]:
    """The models of these recipes, with those that they start from; all where none is named.

    Raises:
        InputError: The protocol has no such model.
    """
    known = {model.recipe: model for model in protocol.models}
    for name in names:
        if name not in known:
            raise InputError(f"{protocol.name} has no model {name!r}; it has {', '.join(known)}")
    chosen = set(names or known)
    for model in reversed(protocol.models):
        if model.recipe in chosen:
            chosen |= set(model.start.values())
    return [model for model in protocol.models if model.recipe in chosen]
