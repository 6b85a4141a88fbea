"""What a model said of each clip of an evaluation set, as a table that every metric follows from.

`predictions.parquet` has a row a clip, sorted by key:

    key, id         the clip
    truth           a number; the name of a class; or the names of all labels
    prediction      likewise; null where the model gave NaN or infinity
    scores          a struct with the probability of each class or label; null where there is none;
                    no such column for a regression
    spoken          whether it is the model's own: of a clip of which nothing can be read, something
                    is said all the same
    lacks           the streams that the clip lacks for this model
    speaker, group  as in the table of clips; null where it does not say
    without:STREAM  the prediction when no clip has that stream

and in the metadata of its schema "fuseline.predictions": JSON with the number of this format, the
name of the evaluation set, the task, and which run it was.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from featurizers.clip import Clip
from featurizers.dataset import table_bytes
from training.data import target_of
from training.metrics import Bools, Floats
from training.recipe import Recipe, Target, Task

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
ABOUT = b"fuseline.predictions"
WITHOUT = "without:"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Which run it was that spoke.

    Attributes:
        name: For people.
        recipe: The recipe's name.
        seed: Of the recipe.
        fold: As in `Recipe`.
        family: A digest of all that decides the run's numbers but the seed: runs of one family are
            the same thing tried again.
    """

    name: str
    recipe: str
    seed: int
    fold: str
    family: str

    @staticmethod
    def of(name: str, recipe: Recipe, family: str) -> "About":
        """Of a run of a recipe."""
        return About(
            name=name, recipe=recipe.name, seed=recipe.seed, fold=recipe.fold, family=family
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What a model said of each clip of an evaluation set; all in the order of keys.

    Attributes:
        evaluation_set: Its name; see `training.evaluate.evaluation_set`.
        task: What was predicted.
        about: Which run it was.
        keys: The clips.
        ids: Their names for people.
        truth: [N] numbers or indexes of classes; [N, K] of 0 and 1 for several labels.
        said: Likewise; NaN where the model gave no number.
        scores: [N, K] probabilities, NaN where there are none; [N, 0] for a regression.
        spoken: [N]: whether the prediction is the model's own, and not what is said of a clip of
            which nothing can be read.
        lacks: The streams that each clip lacks.
        speakers: Of each clip; None where nobody says.
        groups: Likewise.
        without: By stream, as `said`, when no clip has it.
    """

    evaluation_set: str
    task: Task
    about: About
    keys: tuple[str, ...]
    ids: tuple[str, ...]
    truth: Floats
    said: Floats
    scores: Floats
    spoken: Bools
    lacks: tuple[tuple[str, ...], ...]
    speakers: tuple[str | None, ...]
    groups: tuple[str | None, ...]
    without: Mapping[str, Floats] = field(default_factory=dict)

    def to_parquet(self) -> bytes:
        """The table; equal predictions give equal bytes."""
        import pyarrow as pa

        told, names = _kind(self.task), list(self.task.classes)
        columns: dict[str, pa.Array] = {
            "key": pa.array(self.keys, pa.string()),
            "id": pa.array(self.ids, pa.string()),
            "truth": pa.array(_told(self.task, self.truth), told),
            "prediction": pa.array(_told(self.task, self.said), told),
        }
        if names:
            kind = pa.struct([(name, pa.float64()) for name in names])
            rows = [
                None if np.isnan(row).any() else dict(zip(names, row.tolist(), strict=True))
                for row in self.scores
            ]
            columns["scores"] = pa.array(rows, kind)
        columns["spoken"] = pa.array(self.spoken.tolist(), pa.bool_())
        columns["lacks"] = pa.array([list(each) for each in self.lacks], pa.list_(pa.string()))
        columns["speaker"] = pa.array(self.speakers, pa.string())
        columns["group"] = pa.array(self.groups, pa.string())
        for stream, said in sorted(self.without.items()):
            columns[WITHOUT + stream] = pa.array(_told(self.task, said), told)
        about = {
            "format": FORMAT,
            "evaluation_set": self.evaluation_set,
            "task": asdict(self.task),
            "run": asdict(self.about),
        }
        text = json.dumps(about, sort_keys=True).encode()
        return table_bytes(pa.table(columns).replace_schema_metadata({ABOUT: text}))

    @staticmethod
    def from_parquet(content: bytes, where: str) -> "Predicted":
        """The table that `to_parquet` wrote.

        Raises:
            ValueError: It is no such table, or of another format.
        """
        table = _read(content, where)
        about = json.loads((table.schema.metadata or {}).get(ABOUT, b"{}"))
        if about.get("format") != FORMAT:
            raise ValueError(
                f"{where}: predictions of format {about.get('format')}, this code reads {FORMAT}; "
                f"evaluate the run anew"
            )
        plain = about["task"]
        task = Task(kind=plain["kind"], label=plain["label"], classes=tuple(plain["classes"]))
        rows = table.to_pydict()
        return Predicted(
            evaluation_set=about["evaluation_set"],
            task=task,
            about=About(**about["run"]),
            keys=tuple(rows["key"]),
            ids=tuple(rows["id"]),
            truth=_numbers(task, rows["truth"]),
            said=_numbers(task, rows["prediction"]),
            scores=_scores(task, rows),
            spoken=np.array(rows["spoken"], dtype=np.bool_),
            lacks=tuple(tuple(each) for each in rows["lacks"]),
            speakers=tuple(rows["speaker"]),
            groups=tuple(rows["group"]),
            without={
                name.removeprefix(WITHOUT): _numbers(task, values)
                for name, values in rows.items()
                if name.startswith(WITHOUT)
            },
        )


def predicted(
    evaluation_set: str,
    clips: Sequence[Clip],
    task: Task,
    about: About,
    said: Mapping[str, Target],
    *,
    scores: Mapping[str, Sequence[float]] | None = None,
    lacking: Mapping[str, Sequence[str]] | None = None,
    without: Mapping[str, Mapping[str, Target]] | None = None,
) -> Predicted:
    """What was said of the clips of an evaluation set.

    Args:
        evaluation_set: Its name.
        clips: Its clips, labelled; their order does not matter.
        task: What was predicted.
        about: Which run it was.
        said: For each key what `training.evaluate.predictions` gives.
        scores: Of each clip that the model spoke of itself the probability of each class or label;
            for a regression nothing of each.
        lacking: What `training.evaluate.lacking` gives.
        without: What `training.evaluate.without_each` gives.
    """
    ordered = sorted(clips, key=lambda clip: clip.key)
    keys = [clip.key for clip in ordered]
    unknown = [np.nan] * len(task.classes)
    return Predicted(
        evaluation_set=evaluation_set,
        task=task,
        about=about,
        keys=tuple(keys),
        ids=tuple(clip.id for clip in ordered),
        truth=_array([target_of(clip, task) for clip in ordered]),
        said=_array([said[key] for key in keys]),
        scores=_array([(scores or {}).get(key, unknown) for key in keys]).reshape(
            len(keys), len(unknown)
        ),
        spoken=np.array([key in (scores or {}) for key in keys], dtype=np.bool_),
        lacks=tuple(tuple(sorted((lacking or {}).get(key, ()))) for key in keys),
        speakers=tuple(clip.speaker for clip in ordered),
        groups=tuple(clip.group for clip in ordered),
        without={
            stream: _array([each[key] for key in keys]) for stream, each in (without or {}).items()
        },
    )


def _array(values: Sequence[Any]) -> Floats:
    return np.array(values, dtype=np.float64)


def _kind(task: Task) -> "pa.DataType":
    import pyarrow as pa

    match task.kind:
        case "regression":
            return pa.float64()
        case "classes":
            return pa.string()
        case "labels":
            return pa.list_(pa.string())


def _told(task: Task, values: Floats) -> list[Any]:
    """Numbers, names of classes, or lists of names; None where there is no number."""
    names = task.classes
    match task.kind:
        case "regression":
            return [None if np.isnan(value) else value for value in values.tolist()]
        case "classes":
            return [None if np.isnan(value) else names[int(value)] for value in values.tolist()]
        case "labels":
            return [
                None
                if np.isnan(row).any()
                else [name for name, has in zip(names, row, strict=True) if has]
                for row in values
            ]


def _numbers(task: Task, told: Sequence[Any]) -> Floats:
    """What `_told` was given."""
    match task.kind:
        case "regression":
            return _array([np.nan if value is None else value for value in told])
        case "classes":
            places = {name: float(place) for place, name in enumerate(task.classes)}
            return _array([np.nan if value is None else places[value] for value in told])
        case "labels":
            return _array(
                [
                    [np.nan if value is None else float(name in value) for name in task.classes]
                    for value in told
                ]
            )


def _scores(task: Task, rows: Mapping[str, Sequence[Any]]) -> Floats:
    if not task.classes:
        return np.empty((len(rows["key"]), 0))
    return _array(
        [[np.nan if row is None else row[name] for name in task.classes] for row in rows["scores"]]
    )


def _read(content: bytes, where: str) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(io.BytesIO(content)).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{where} is no table of predictions ({error})") from None
