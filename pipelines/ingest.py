"""Table to clips.parquet and plan.parquet: what the dataset is, before anything is computed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from featurizers.clip import Clip
from featurizers.dataset import (
    PLAN,
    forgotten_digest,
    has_clips,
    read_clips,
    read_forgotten,
    table_bytes,
    table_rows,
    write_clips,
)
from featurizers.store import Root, store_at
from pipelines.executors import Executor
from pipelines.experiment import Experiment, InputError, save
from pipelines.plan import Place, Room, deal
from pipelines.sources import Asked, ask, describe, rows_of, split, take_all
from training.recipe import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What an ingest made, or would make.

    Attributes:
        places: The whole plan, with the new clips dealt.
        forgotten: Rows that were passed over, because those clips were to be forgotten.
    """

    clips: list[Clip]
    places: list[Place]
    task: Task
    how_split: str
    counts: Mapping[str, int]
    forgotten: int


def ingest(experiment: Experiment, executor: Executor, done: Callable[[int], None]) -> Ingested:
    """Table to clips.parquet and plan.parquet.

    Args:
        experiment: The settings.
        executor: Where media are digested and probed.
        done: Told how many rows are finished, for a progress bar.

    Raises:
        InputError: The table, a row or all of its media are wrong.
        StorageError: The dataset could not be written.
    """
    found = survey(experiment, executor, done)
    # The plan first: places without a clip do no harm, a clip without a place would be lost.
    write_plan(experiment.root, found.places)
    write_clips(experiment.root, found.clips)
    save(experiment)
    store_at(experiment.root).sweep("")
    return found


def survey(experiment: Experiment, executor: Executor, done: Callable[[int], None]) -> Ingested:
    """What an ingest would make; nothing is written. Raises InputError as `ingest`."""
    asked: list[Asked]
    asked, task = ask(experiment, rows_of(experiment))
    root = experiment.root
    gone = read_forgotten(root)
    kept = [each for each in asked if forgotten_digest(each.raw.key) not in gone]
    if not kept:
        raise InputError(
            f"{experiment.table}: nothing is left: all {len(asked)} clips were to be forgotten"
        )
    standing = read_clips(root) if has_clips(root) else []
    if any(not clip.media for clip in standing):
        raise InputError(
            f"{store_at(root).where()} was imported from published features, and an ingest would "
            f"take the place of its clips; give another `dataset`"
        )
    taken = take_all(experiment, kept, executor, done)
    clips, how = split(taken, task, experiment.source.split_seed, standing=standing)
    room = Room(clips=experiment.shards.clips, seconds=experiment.shards.minutes * 60)
    return Ingested(
        clips=clips,
        places=deal(read_plan(root), clips, room),
        task=task,
        how_split=how,
        counts=describe(clips, task),
        forgotten=len(asked) - len(kept),
    )


def read_plan(root: Root) -> list[Place]:
    """The plan of a dataset; empty when there is none yet.

    Raises:
        DatasetError: It is damaged.
    """
    store = store_at(root)
    try:
        content = store.read(PLAN)
    except FileNotFoundError:
        return []
    return [Place(**row) for row in table_rows(content, store.where(PLAN))]


def write_plan(root: Root, places: Sequence[Place]) -> None:
    """Write the plan; equal plans give equal bytes."""
    import pyarrow as pa

    names = ("shard", "position", "key", "generation")
    rows = [{name: getattr(place, name) for name in names} for place in places]
    types = [pa.int64(), pa.int64(), pa.string(), pa.int64()]
    schema = pa.schema(list(zip(names, types, strict=True)))
    store_at(root).replace(PLAN, table_bytes(pa.Table.from_pylist(rows, schema=schema)))
