"""The experiment file: typed, checked at the door, resolved settings saved beside the output."""

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import yaml
from pydantic import BaseModel, Field, ValidationError

from featurizers import catalog
from featurizers.imported import PREFIX, Imported
from featurizers.manifest import committed, open_column
from featurizers.node_cache import NodeCache
from featurizers.pretrained import Checkpoint
from featurizers.spec import Featurizer, Scalar
from featurizers.store import Root, StorageError, is_remote, store_at
from pipelines import feature_sets
from pipelines.sections import (
    Align,
    Cache,
    FeatureSettings,
    ModelSection,
    Prices,
    Promote,
    Register,
    Section,
    Segment,
    Shards,
    Source,
    Sweep,
    Train,
    Transcribe,
    Workers,
    said,
)
from tracking.rules import AnyRule, rule_from_json
from training import recipes
from training.recipe import EncoderSettings, Recipe, Task, TaskKind, fitting_ranks
from training.recipe_builder import Setting
from training.recipe_checks import LOSSES

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

RESOLVED = "experiment.resolved.yaml"

IMPORTED = "imported"
"""In a file, the featurizer of a column that was imported; no catalog has it."""

# Fields of a recipe that follow from other sections, or from --seeds and --folds.
_NOT_SET_HERE = ("name", "model", "task", "seed", "fold")


class InputError(Exception):
    """What the user gave is wrong. One line: what was found, what was wanted, what to do."""


class FailedError(Exception):
    """The input was right, and the work could not be finished; what is finished is kept."""


class Experiment(Section):
    """A whole experiment file, with the folder that its relative paths start from.

    `feature_set` is the name of the set that its features were made of, empty when they are written
    out.
    """

    folder: Path
    feature_set: str = ""
    dataset: str
    source: Source
    features: Annotated[dict[str, FeatureSettings], Field(min_length=1)]
    model: ModelSection
    train: Train = Train()
    sweep: Sweep | None = None
    workers: Workers = Workers()
    register_: Annotated[Register | None, Field(alias="register")] = None
    promote: Promote | None = None
    shards: Shards = Shards()
    cache: Cache = Cache()
    prices: Prices | None = None
    max_dropped: Annotated[float, Field(ge=0, le=1)] = 0.05

    @property
    def root(self) -> Root:
        """Where the dataset lies: a folder, or the URL of an object store's prefix."""
        return self.dataset if is_remote(self.dataset) else self.folder / self.dataset

    @property
    def name(self) -> str:
        """The last part of the dataset's name."""
        return PurePosixPath(self.dataset.rstrip("/")).name

    @property
    def work(self) -> Path:
        """The local folder of runs and caches: the dataset's own, or one that is called like it."""
        return self.folder / (self.name if is_remote(self.dataset) else self.dataset)

    @property
    def segment(self) -> Segment | None:
        """How whole media are cut; None where the clips are given."""
        usual = Segment() if self.source.folder and not self.source.format else None
        return self.source.segment or usual

    @property
    def given(self) -> Path:
        """The table or the folder that the user gave."""
        return self.folder / (self.source.table or self.source.folder)

    @property
    def raw(self) -> Path:
        """The local folder of what was made of whole media: spans, words, tables of clips."""
        return self.work / "raw"

    @property
    def cut_table(self) -> Path:
        """The table of clips before words: the one that was given, or that is written of a folder.

        Of whole media `segment` writes it; of a published corpus, reading that does.
        """
        if self.source.format:
            return self.raw / "corpus.csv"
        return self.given if self.segment is None else self.raw / "clips.csv"

    @property
    def spoken_table(self) -> Path:
        """The table of clips with words: the one before, or the one that `transcribe` writes."""
        return self.cut_table if self.source.transcribe is None else self.raw / "spoken.csv"

    @property
    def table(self) -> Path:
        """The table of clips: the one that was given, or the last that is written on the way."""
        return self.spoken_table if self.source.align is None else self.raw / "aligned.csv"

    def recogniser(self) -> dict[str, Any]:
        """What a `whisper.Recogniser` is made with; its checkpoint is found, and its digest added.

        Raises:
            InputError: None is wanted, or it is not there.
        """
        from featurizers.whisper import Recogniser

        return self._found("transcribe", self.source.transcribe, Recogniser)

    def aligner(self) -> dict[str, Any]:
        """What an `aligner.Aligner` is made with, as `recogniser`."""
        from featurizers.aligner import Aligner

        return self._found("align", self.source.align, Aligner)

    def listeners(self) -> dict[str, Callable[[], Checkpoint]]:
        """By section, what finds the checkpoint that says or places words, where one is wanted.

        What is found is a Checkpoint; an InputError says what is missing.
        """
        from featurizers.aligner import Aligner
        from featurizers.whisper import Recogniser

        wanted: dict[str, tuple[Transcribe | Align | None, Callable[..., Any]]] = {
            "transcribe": (self.source.transcribe, Recogniser),
            "align": (self.source.align, Aligner),
        }
        return {
            f"source.{name}": functools.partial(self._checkpoint, name, section, make)
            for name, (section, make) in wanted.items()
            if section is not None
        }

    def _checkpoint(
        self, name: str, section: Transcribe | Align | None, make: Callable[..., Any]
    ) -> Checkpoint:
        settings = self._found(name, section, make)
        return cast("Checkpoint", _at(f"source.{name}", make, **settings).checkpoint)

    def _found(
        self, name: str, section: Transcribe | Align | None, make: Callable[..., Any]
    ) -> dict[str, Any]:
        if section is None:
            raise InputError(
                f"source.{name}.model: no model is given; name a folder, or a name of the hub with "
                f"its source.{name}.revision"
            )
        settings = section.model_dump(exclude={"least"})
        if not settings["revision"] and (self.folder / settings["model"]).is_dir():
            settings["model"] = str(self.folder / settings["model"])
        made = _at(f"source.{name}", make, **settings)
        return {**settings, "weights": made.checkpoint.digest}

    @property
    def cache_folder(self) -> Path:
        """The node's folder for remote media."""
        return self.folder / self.cache.folder if self.cache.folder else self.work / "cache"

    @property
    def node_cache(self) -> NodeCache | None:
        """Copies of shards on each machine, where they are wanted."""
        wanted = self.workers.node_cache
        if wanted is None:
            return None
        return NodeCache(self.folder / wanted.folder, int(wanted.gigabytes * (1 << 30)))

    def featurizers(self) -> dict[str, Featurizer]:
        """A featurizer for each stream.

        Raises:
            InputError: Unknown featurizer or setting.
        """
        return {stream: self.featurizer(stream) for stream in self.features}

    def featurizer(self, stream: str) -> Featurizer:
        """The featurizer of one stream. Raises InputError as `featurizers`."""
        chosen = self.features[stream]
        if chosen.featurizer == IMPORTED:
            return _at(f"features.{stream}", _imported, self.root, _extra(chosen))
        return _at(f"features.{stream}", _built, self.folder, chosen)

    def recipe(self, task: Task, seed: int = 0) -> Recipe:
        """The recipe of one run; weights that it starts from are pinned by their digests.

        Raises:
            InputError: Unknown recipe or setting, or a file of weights is not there.
        """
        model = _extra(self.model)
        encoders = model.pop("encoders", {})
        recipe = recipe_of(
            self.model.recipe,
            task,
            tuple(self.features),
            seed=seed,
            model=model,
            train=_extra(self.train),
        )
        if encoders:
            recipe = _at("model", recipes.fine_tuned, recipe, self._encoders(encoders))
        if not recipe.start:
            return recipe
        from training.start import pinned

        return replace(recipe, start=_at("train", pinned, recipe.start, self.folder))

    def _encoders(self, given: object) -> dict[str, EncoderSettings]:
        """What `model.encoders` says. Raises InputError."""
        from training.pretrained import encoder_settings

        if not isinstance(given, Mapping) or not all(
            isinstance(each, Mapping) for each in given.values()
        ):
            raise InputError(
                f"model.encoders is {given!r}; wanted for each stream that has an encoder its "
                f"settings, such as {{text: {{model: weights/bert}}}}"
            )
        return {
            name: _at(f"model.encoders.{name}", encoder_settings, each, self.folder)
            for name, each in given.items()
        }

    def rules(self) -> list[AnyRule]:
        """The promotion rules.

        Raises:
            InputError: A rule is not well formed.
        """
        given = () if self.promote is None else self.promote.rules
        return [_at(f"promote.rules[{i}]", rule_from_json, rule) for i, rule in enumerate(given)]


def recipe_of(
    name: str,
    task: Task,
    streams: Sequence[str],
    *,
    seed: int,
    model: Mapping[str, Scalar],
    train: Mapping[str, Setting],
) -> Recipe:
    """A named recipe with settings of the model and of the training replaced."""
    known = [each.name for each in fields(Recipe) if each.name not in _NOT_SET_HERE]
    for setting in train:
        if setting not in known:
            near = difflib.get_close_matches(setting, [*known, *Train.model_fields], n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else f"; there are {', '.join(known)}"
            raise InputError(f"unknown key 'train.{setting}'{hint}")
    return _at(
        "train" if name in recipes.NAMES else "model.recipe",
        recipes.named,
        name,
        task,
        tuple(streams),
        dict(model),
        seed=seed,
        **dict(train),
    )


def load(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file; `overrides` are key=value with dots, as in train.epochs=3.

    Raises:
        InputError: No such file, no YAML, an unknown key or a value of the wrong kind.
    """
    return parse(read(path, overrides), path.parent.resolve(), str(path))


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain data of an experiment file, with overrides. Raises InputError: no file, no YAML."""
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; `fuseline init TABLE --label LABEL` writes one"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(plain, dict):
        raise InputError(f"{path}: wanted keys such as dataset, source and features")
    return replaced(plain, overrides)


def replaced(plain: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Plain settings with some of them replaced, in place; `overrides` as in `load`.

    Raises:
        InputError: One of them is not well formed.
    """
    for override in overrides:
        _override(plain, override)
    return plain


def parse(plain: Mapping[str, Any], folder: Path, name: str = "experiment") -> Experiment:
    """Check plain data against the experiment's types and names, and build its featurizers."""
    experiment = outline(plain, folder, name)
    check(experiment, name)
    return experiment


def check(experiment: Experiment, name: str = "experiment") -> None:
    """Whether featurizers and model can be built. Raises InputError."""
    _check_set(name, experiment)
    _check_model(experiment)


def outline(plain: Mapping[str, Any], folder: Path, name: str = "experiment") -> Experiment:
    """The same, without building featurizers and model: their weights need not be there."""
    for key in ("folder", "feature_set"):
        if key in plain:
            raise InputError(f"{name}: unknown key {key!r}; {_NOT_KEYS[key]}")
    asked = plain.get("features", feature_sets.DEFAULT)
    try:
        features = feature_sets.expand(asked, folder)
    except ValueError as error:
        raise InputError(f"{name}: features: {error}") from None
    alone = isinstance(features, dict) and len(features) == 1
    usual = {"model": {"recipe": "unimodal" if alone else "mmlatch"}}
    ours = {"folder": folder, "feature_set": feature_sets.name_of(asked), "features": features}
    try:
        experiment = Experiment.model_validate({**usual, **plain, **ours})
    except ValidationError as error:
        raise InputError(
            f"{name}: {'; '.join(said(each, Experiment) for each in error.errors())}"
        ) from None
    _check_names(name, experiment)
    if experiment.source.format:
        from pipelines.corpora import formats

        formats.checked(experiment.source.format, experiment.source.options)
    experiment.rules()
    return experiment


_NOT_KEYS = {
    "folder": "paths start from the file's own folder",
    "feature_set": "write features: {set: NAME}",
}


def _check_set(name: str, experiment: Experiment) -> None:
    """Whether all is there that a set of features cannot know. Raises InputError."""
    sections = {stream: each.model_dump() for stream, each in experiment.features.items()}
    if missing := feature_sets.missing(experiment.feature_set, sections):
        raise InputError(
            f"{name}: features: the set {experiment.feature_set!r} wants {'; '.join(missing)}; "
            f"give each as in features: {{set: {experiment.feature_set}, STREAM: {{SETTING: ...}}}}"
            f", or leave a stream out with STREAM: null"
        )


def _check_names(name: str, experiment: Experiment) -> None:
    try:
        store_at(experiment.root)
    except StorageError as error:
        raise InputError(f"{name}: dataset: {error}") from None
    for stream in experiment.features:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", stream):
            raise InputError(
                f"{name}: features: found a stream {stream!r}, wanted a name of letters, digits, "
                f"'_' and '-'"
            )


def _check_model(experiment: Experiment) -> None:
    """Build the model without memory: a wrong setting must not wait for the features.

    Where the file does not say what is predicted, every model can be built for classes.
    """
    chosen = _extra(experiment.train).get("loss")
    kind: TaskKind = experiment.source.task or "classes"
    for each, losses in LOSSES.items():
        if experiment.source.task is None and chosen in losses:
            kind = each
    classes = () if kind == "regression" else ("one", "other")
    check_model(experiment, Task(kind=kind, label=experiment.source.label, classes=classes))


def check_model(experiment: Experiment, task: Task) -> "nn.Module":
    """The model without memory.

    Raises:
        InputError: It cannot be built for the task, or not be dealt to the ranks.
    """
    import torch

    from training.models import build
    from training.pretrained import check_streams

    specs = {stream: each.spec for stream, each in experiment.featurizers().items()}
    widths = {stream: spec.width for stream, spec in specs.items()}
    recipe = experiment.recipe(task)
    _at("model", check_streams, recipe, specs)
    ranks = experiment.workers.train.most
    _at("train.global_batch", fitting_ranks, recipe.global_batch, ranks, recipe.micro_batch)
    with torch.device("meta"):
        return _at("model", build, recipe.model, widths, task.outputs)


def check_start(experiment: Experiment, task: Task) -> None:
    """Raise InputError where weights to start from do not fit the model of a task."""
    recipe = experiment.recipe(task)
    if recipe.start:
        from training import start

        _at("train", start.check, check_model(experiment, task), recipe.start)


def save(experiment: Experiment) -> None:
    """Write the resolved settings, defaults included, into the dataset."""
    plain = experiment.model_dump(mode="json", by_alias=True, exclude={"folder", "feature_set"})
    content = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode()
    store_at(experiment.root).replace(RESOLVED, content)


def _built(folder: Path, chosen: FeatureSettings) -> Featurizer:
    """A featurizer; weights of the user's own are looked for from the file's folder."""
    settings = _extra(chosen)
    placed = catalog.places(chosen.featurizer)
    given = settings.get(placed)
    if (
        isinstance(given, str)
        and given
        and not settings.get("revision")
        and (folder / given).exists()
    ):
        settings[placed] = str(folder / given)
    return catalog.build(chosen.featurizer, **settings)


def _imported(root: Root, settings: Mapping[str, Any]) -> Featurizer:
    """What stands for a column of the dataset that was imported."""
    done = [name for name in committed(root) if name.startswith(PREFIX)]
    column = settings.get("column")
    if set(settings) != {"column"} or column not in done:
        raise ValueError(
            f"found {dict(settings)}; wanted column, one of those that were imported: "
            f"{', '.join(done) or 'there is none; see `fuseline import`'}"
        )
    return Imported(open_column(root, str(column)).spec)


def _extra(section: BaseModel) -> dict[str, Any]:
    return dict(section.model_extra or {})


def _at(place: str, make: Callable[..., T], *args: Any, **kwargs: Any) -> T:  # noqa: ANN401 - passes on
    """Call something that checks what the user gave; a ValueError names the place in the file."""
    try:
        return make(*args, **kwargs)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None


def _override(plain: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: wanted key=value, such as train.epochs=3")
    *path, last = key.split(".")
    place = plain
    for part in path:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {override}: {part!r} has no keys of its own")
        place = inner
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: {value!r} is no YAML value") from None
