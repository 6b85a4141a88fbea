"""What a run is made of, found out when it begins: clips, shards, and runs that it starts from."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from featurizers.clip import Clip
from featurizers.manifest import Column, open_column
from featurizers.store import shown, store_at
from pipelines.lineage import (
    WEIGHTS_TAG,
    Lineage,
    Start,
    keep_lineage,
    read_lineage,
    standing_lineage,
    words_digest,
    write_lineage,
)
from pipelines.plans import CHECKPOINTS, PREDICTOR, RUN, Plan
from tracking.mlflow_store import MlflowRun, runs_tagged
from training.folds import in_fold
from training.recipe import Recipe

OURS = (PREDICTOR, CHECKPOINTS)
"""Folders of a run in which its own weights lie."""


def keep_origins(runs: Sequence[tuple[Plan, MlflowRun]], clips: Sequence[Clip]) -> None:
    """Keep with runs, before they see a clip, which ones they take and what they start from.

    What stands in a run's folder already is left as it is: files that it started from may be gone.

    Args:
        runs: Those that begin, or go on.
        clips: All clips of the dataset.
    """
    opened = cache(open_column)
    for plan, run in runs:
        if standing_lineage(plan.folder) is None:
            columns = {name: opened(plan.root, each) for name, each in plan.columns.items()}
            write_lineage(plan.folder, lineage_of(plan, clips, columns, run.uri))
        keep_lineage(run, plan.folder)


def lineage_of(
    plan: Plan, clips: Sequence[Clip], columns: Mapping[str, Column], uri: str
) -> Lineage:
    """What a run is made of.

    Args:
        plan: The run.
        clips: All clips of the dataset.
        columns: The columns that it is trained on, by stream.
        uri: The tracking server, which may know what trained the weights that it starts from.
    """
    starts: list[Start] = []
    before: dict[str, Lineage] = {}
    for start, found in starts_of(plan.recipe, uri):
        starts.append(start)
        if found is not None:
            before |= {**found.before, start.run_id: _without_test(found)}
    return Lineage(
        dataset=store_at(plan.root).where(),
        columns={stream: _column(column) for stream, column in columns.items()},
        clips=list(_taken(plan.recipe, clips, columns)),
        starts=starts,
        before=before,
    )


def starts_of(recipe: Recipe, uri: str) -> Iterator[tuple[Start, Lineage | None]]:
    """The weights that a recipe begins with, and what is known of the run that trained each.

    Of a file in a run's folder that is this run; of any other file the one that the tracking server
    knows to have trained weights of its digest.
    """
    for part, text in recipe.start.items():
        file, _, digest = text.rpartition("#")
        run_id, found = _by_folder(Path(file), uri)
        if not run_id:
            run_id, found = _by_digest(digest, uri)
        yield Start(part=part, file=file, sha256=digest, run_id=run_id), found
    for stream, encoder in recipe.model.encoders.items():
        if encoder.weights:
            place, _, digest = encoder.weights.rpartition("#")
            yield Start(part=f"encoder {stream}", file=place, sha256=digest), None


def _by_folder(file: Path, uri: str) -> tuple[str, Lineage | None]:
    for folder in file.parents:
        if (folder / RUN).is_file() and file.relative_to(folder).parts[0] in OURS:
            run_id = str(json.loads((folder / RUN).read_bytes())["run_id"])
            return run_id, standing_lineage(folder) or read_lineage(uri, run_id)
    return "", None


def _by_digest(digest: str, uri: str) -> tuple[str, Lineage | None]:
    for run in runs_tagged(uri, WEIGHTS_TAG, digest):
        if found := read_lineage(uri, run.run_id):
            return run.run_id, found
    return "", None


def _without_test(lineage: Lineage) -> Lineage:
    """A run before, with the clips alone that decided its weights."""
    return Lineage(
        dataset=lineage.dataset,
        columns=lineage.columns,
        clips=[row for row in lineage.clips if row["role"] != "test"],
        starts=lineage.starts,
    )


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
    recipe: Recipe, clips: Sequence[Clip], columns: Mapping[str, Column]
) -> Iterator[dict[str, Any]]:
    """The clips that a run takes; see `training.data.load` for which these are.

    Of test clips all that have the label: something is said of one too of which nothing can be
    read, and it counts.
    """
    places = next((column.shards for column in columns.values()), {})
    for clip in in_fold(clips, recipe.fold):
        if clip.split not in {"train", "valid", "test"} or recipe.task.label not in clip.labels:
            continue
        states = {stream: column.rows[clip.key].state for stream, column in columns.items()}
        enough = any if recipe.take_absent else all
        if clip.split != "test" and not enough(state == "sample" for state in states.values()):
            continue
        yield {
            "key": clip.key,
            "id": clip.id,
            "role": clip.split,
            # It is kept at the tracking server.
            "media": shown(clip.media),
            "media_digest": clip.media_digest,
            "start": clip.start,
            "end": clip.end,
            "seconds": clip.seconds,
            "audio_stream": clip.audio_stream,
            "video_stream": clip.video_stream,
            "words": words_digest(clip),
            "streams": dict(clip.stream_digests),
            "source": shown(clip.source),
            "speaker": clip.speaker,
            "shard": places[clip.key],
            "states": states,
        }
