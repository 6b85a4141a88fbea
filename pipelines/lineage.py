"""What a model was made of: kept with its run, so that it is known when the dataset is gone.

Two files of the run, in its folder `lineage`: `columns.json` has each stream's spec, manifest and
shards; `clips.parquet` has a row for each clip that training, validation or the test took.
"""

import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurizers.clip import Clip
from featurizers.manifest import Column
from featurizers.spec import canonical_json
from featurizers.store import store_at
from pipelines.plans import Trained
from tracking.mlflow_store import MlflowRun, read_file
from training.folds import in_fold

FOLDER = "lineage"
COLUMNS, CLIPS = "columns.json", "clips.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What a run's model was made of.

    Attributes:
        dataset: The dataset's whole path or address.
        columns: By stream: "spec" in full, "fingerprint", "manifest" (its sha256), and "shards", by
            number, each with its "tar" and the tar's "sha256".
        clips: Rows with key, id, role ("train", "valid" or "test"), media, media_digest (sha256),
            start, end (seconds), speaker, shard, and states: by stream "sample", "absent" or
            "quarantined".
    """

    dataset: str
    columns: Mapping[str, Mapping[str, Any]]
    clips: Sequence[Mapping[str, Any]]


def lineage_of(trained: Trained, clips: Sequence[Clip], columns: Mapping[str, Column]) -> Lineage:
    """What a finished run was made of.

    Args:
        trained: The run.
        clips: All clips of the dataset.
        columns: The columns that it was trained on, by stream.
    """
    plan = trained.plan
    return Lineage(
        dataset=store_at(plan.root).where(),
        columns={stream: _column(column) for stream, column in columns.items()},
        clips=list(_taken(trained, clips, columns)),
    )


def keep_lineage(run: MlflowRun, lineage: Lineage) -> None:
    """Keep it with the run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = {"dataset": lineage.dataset, "columns": lineage.columns}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / COLUMNS).write_bytes(canonical_json(plain))
        rows = [{**row, "states": json.dumps(row["states"])} for row in lineage.clips]
        pq.write_table(pa.Table.from_pylist(rows), Path(scratch) / CLIPS, compression="zstd")
        for name in (CLIPS, COLUMNS):
            run.log_file(Path(scratch) / name, FOLDER)


def read_lineage(uri: str, run_id: str) -> Lineage | None:
    """What was kept with a run; None where nothing was, as of models registered by other means."""
    import pyarrow.parquet as pq

    try:
        plain = json.loads(read_file(uri, run_id, f"{FOLDER}/{COLUMNS}"))
        table = pq.read_table(io.BytesIO(read_file(uri, run_id, f"{FOLDER}/{CLIPS}")))
    except FileNotFoundError:
        return None
    rows = [{**row, "states": json.loads(row["states"])} for row in table.to_pylist()]
    return Lineage(dataset=plain["dataset"], columns=plain["columns"], clips=rows)


def _column(column: Column) -> dict[str, Any]:
    return {
        "spec": column.spec.to_json(),
        "fingerprint": column.spec.fingerprint,
        "manifest": column.digest,
        "shards": {
            str(record.shard): {"tar": record.tar.file, "sha256": record.tar.sha256}
            for record in column.records
        },
    }


def _taken(
    trained: Trained, clips: Sequence[Clip], columns: Mapping[str, Column]
) -> Iterator[dict[str, Any]]:
    """The clips that the run took; see `training.data.load` for which these are."""
    recipe = trained.plan.recipe
    places = next(iter(columns.values())).shards
    for clip in in_fold(clips, recipe.fold):
        if clip.split not in {"train", "valid", "test"} or recipe.task.label not in clip.labels:
            continue
        states = {stream: column.rows[clip.key].state for stream, column in columns.items()}
        enough = any if recipe.take_absent or clip.split == "test" else all
        if not enough(state == "sample" for state in states.values()):
            continue
        yield {
            "key": clip.key,
            "id": clip.id,
            "role": clip.split,
            "media": clip.media,
            "media_digest": clip.media_digest,
            "start": clip.start,
            "end": clip.end,
            "speaker": clip.speaker,
            "shard": places[clip.key],
            "states": states,
        }
