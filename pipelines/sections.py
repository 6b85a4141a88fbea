"""The sections of an experiment file, and what is said of keys and values that they do not take."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from training.recipe import TaskKind

Device: TypeAlias = Literal["auto", "cpu", "cuda"]


class Section(BaseModel):
    """A section of the file: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Segment(Section):
    """How long media are cut into clips, in seconds: see `featurizers.voice.cut`."""

    least_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    most_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 15.0
    pause_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.4
    margin_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1

    @model_validator(mode="after")
    def _can_be(self) -> "Segment":
        if self.least_s > self.most_s / 2 - self.margin_s:
            raise ValueError(
                f"least_s is {self.least_s:g}, wanted at most half of most_s without its margin: "
                f"{self.most_s / 2 - self.margin_s:g}"
            )
        return self


class Transcribe(Section):
    """The Whisper checkpoint that says the words of clips without any; see `whisper.Recogniser`."""

    model: str = ""
    revision: str = ""
    weights: str = ""
    language: str = ""
    dtype: str = "float32"


class Align(Section):
    """The wav2vec2 head that places words without times; see `aligner.Aligner`.

    `least` is the mean confidence of a clip's words below which they keep estimated times.
    """

    model: str = ""
    revision: str = ""
    weights: str = ""
    least: Annotated[float, Field(ge=0, le=1)] = 0.5


class Source(Section):
    """Where the clips come from; media lie in the table's folder or below a media root.

    A table, or a folder of media. With `segment` those that are whole are cut into clips; of a
    folder they always are, unless it has a `format`: then it is a published corpus, read as
    `pipelines.corpora.formats` says, with the format's own `options`, and `label` may be left out.
    With `transcribe` clips without words get them, and with `align` words without times get those.
    Or, with `imported`, the clips of the dataset as `fuseline import` made them.
    """

    table: str = ""
    folder: str = ""
    format: str = ""
    options: dict[str, Any] = {}
    imported: bool = False
    label: str
    segment: Segment | None = None
    transcribe: Transcribe | None = None
    align: Align | None = None
    task: TaskKind | None = None
    media_root: tuple[str, ...] = (".",)
    split_seed: int = 0

    @field_validator("media_root", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _usual_label(cls, given: Any) -> Any:  # noqa: ANN401 - whatever the file has
        if isinstance(given, Mapping) and given.get("format") and not given.get("label"):
            from pipelines.corpora.formats import find

            return {**given, "label": next(iter(find(str(given["format"])).labels))}
        return given

    @model_validator(mode="after")
    def _one_source(self) -> "Source":
        if sum((bool(self.table), bool(self.folder), self.imported)) != 1:
            raise ValueError(
                "wanted either table (of clips or media), folder (of media), or imported: true"
            )
        if self.format and not self.folder:
            raise ValueError("a format is that of a folder; give source.folder in place of table")
        if self.format and self.segment is not None:
            raise ValueError("segment cuts whole media, and a corpus of a format has its own clips")
        if self.options and not self.format:
            raise ValueError("options are those of a format, and none is given")
        return self


class FeatureSettings(BaseModel):
    """A stream: which featurizer computes it; other keys are that featurizer's settings."""

    model_config = ConfigDict(extra="allow", frozen=True)
    featurizer: str


class ModelSection(BaseModel):
    """Which recipe; other keys are the model's settings."""

    model_config = ConfigDict(extra="allow", frozen=True)
    recipe: str


class Train(BaseModel):
    """How often and how long; other keys are fields of the recipe.

    Some decide no number: `max_failures`, how often failed workers are started again; `keep`, how
    many checkpoints of a run stay; `checkpoint_minutes`, minutes from one to the next at most;
    `hang_s`, seconds without a step after which a rank is ended; `stall_minutes`, minutes without
    a sign before the first step or after the last, after which it is; `wait_minutes`, minutes
    without any rank after which training is given up; `deadline_minutes`, minutes after which it is
    ended (0: never); `device`, cpu or cuda, or auto for GPUs where the cluster has any.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    folds: Annotated[int, Field(ge=0, le=100)] = 0
    fold: str = ""
    max_failures: Annotated[int, Field(ge=0)] = 2
    keep: Annotated[int, Field(ge=1)] = 2
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 10.0
    hang_s: Annotated[float, Field(gt=0)] = 300.0
    stall_minutes: Annotated[float, Field(gt=0)] = 30.0
    wait_minutes: Annotated[float, Field(gt=0)] = 15.0
    deadline_minutes: Annotated[float, Field(ge=0)] = 0.0
    device: Device = "auto"


class Sweep(Section):
    """A search for settings; see `pipelines.sweep` and, for `space`, `pipelines.space`.

    `metric` is what trials are compared by, the recipe's `monitor` unless set; `grace` the epochs
    before the median of the others may stop one; `parallel` how many train at a time.
    """

    trials: Annotated[int, Field(ge=1, le=1000)] = 10
    metric: str = ""
    space: dict[str, dict[str, Any]] = {}
    seed: Annotated[int, Field(ge=0)] = 0
    parallel: Annotated[int, Field(ge=1)] = 1
    grace: Annotated[int, Field(ge=1)] = 3


class NodeCacheSection(Section):
    """Where each machine keeps copies of shards for training, and how much of them."""

    folder: Annotated[str, Field(min_length=1)]
    gigabytes: Annotated[float, Field(gt=0)] = 20.0


class Ranks(Section):
    """How many ranks train: a number, or as many as there is room for between two.

    One number is written as it is. See `pipelines.elastic`.
    """

    least: Annotated[int, Field(ge=1)] = 1
    most: Annotated[int, Field(ge=1)]

    @model_validator(mode="before")
    @classmethod
    def _number(cls, given: object) -> object:
        if isinstance(given, int) and not isinstance(given, bool):
            if given < 1:
                raise ValueError("wanted at least 1 rank")
            return {"least": given, "most": given}
        if not isinstance(given, Mapping | Ranks):
            # pydantic would let a TypeError through.
            wanted = "wanted a number of ranks, or {least: 1, most: 4}"
            raise ValueError(wanted)  # noqa: TRY004 - see above
        return given

    @model_validator(mode="after")
    def _ordered(self) -> "Ranks":
        if self.least > self.most:
            raise ValueError(f"least is {self.least}, and most only {self.most}")
        return self

    @model_serializer(mode="wrap")
    def _short(self, plain: SerializerFunctionWrapHandler) -> object:
        return self.most if self.least == self.most else plain(self)


class Workers(Section):
    """How many processes.

    `featurize` changes no number, nor do `memory_gb`, what a cluster sets aside for each worker
    that decodes, and `gpus`, what it gives of a GPU to each worker that has a pretrained encoder
    (0: none, 1: a GPU, 0.5: half of one). `train` does, in the last digits where nothing is drawn
    by chance: each rank draws its own dropout, and sums are taken in another order. The clips of
    each global batch stay the same, and so does the run.

    `loader`, processes of each rank that make batches ahead of time, and `node_cache`, copies of
    shards on each machine, change no bit of an indexed loader's batches.
    """

    featurize: Annotated[int, Field(ge=0)] = 2
    train: Ranks = Ranks(least=2, most=2)
    memory_gb: Annotated[float, Field(ge=0)] = 0.0
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    loader: Annotated[int, Field(ge=0)] = 0
    node_cache: NodeCacheSection | None = None


class Register(Section):
    """The registered model's name."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class Promote(Section):
    """The rules that a candidate must pass."""

    rules: tuple[dict[str, Any], ...]


class Shards(Section):
    """How large a shard may be."""

    clips: Annotated[int, Field(ge=1)] = 128
    minutes: Annotated[float, Field(gt=0)] = 20.0


class Cache(Section):
    """Where remote media are kept on a node, and how much of them."""

    folder: str = ""
    gigabytes: Annotated[float, Field(gt=0)] = 20.0


class Prices(BaseModel):
    """What a node costs an hour: by its type's name, or by what it has, as in CPU and GPU.

    Numbers are of `currency`; they decide nothing, and `validate` reckons with them.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    currency: Annotated[str, Field(min_length=1)]

    @property
    def by_name(self) -> Mapping[str, float]:
        """Prices of an hour by name."""
        return dict(self.__pydantic_extra__)


_KEYS: dict[tuple[str, ...], type[BaseModel]] = {
    ("source",): Source,
    ("source", "segment"): Segment,
    ("source", "transcribe"): Transcribe,
    ("source", "align"): Align,
    ("sweep",): Sweep,
    ("workers",): Workers,
    ("workers", "node_cache"): NodeCacheSection,
    ("workers", "train"): Ranks,
    ("register",): Register,
    ("promote",): Promote,
    ("shards",): Shards,
    ("cache",): Cache,
}


def said(error: Any, whole: type[Section]) -> str:  # noqa: ANN401 - pydantic's own dictionary
    """One of pydantic's errors in words; a key that is not known gets the nearest one that is.

    Args:
        error: One of `ValidationError.errors()`.
        whole: The type of the whole file.
    """
    place = tuple(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        model = {(): whole, **_KEYS}.get(place[:-1])
        known = [] if model is None else [f.alias or n for n, f in model.model_fields.items()]
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else f"; there are {', '.join(known)}"
        return f"unknown key {'.'.join(place)!r}{hint}"
    found = "" if error["type"] == "missing" else f", found {error['input']!r}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{'.'.join(place)}: {message}{found}"
