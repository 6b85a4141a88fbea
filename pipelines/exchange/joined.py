"""A dataset as one WebDataset: of each clip all streams, its labels and its words, together.

    SPLIT-00000.tar: KEY.json, KEY.STREAM.npy [T, D], KEY.STREAM.times.npy [T, 2] ...

Any WebDataset reader reads it without ours. Clips are in an order that their keys alone decide, so
that a shard is no stretch of one recording. Equal datasets give equal bytes.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip
from featurizers.spec import canonical_json
from featurizers.store import LocalStore
from pipelines.exchange.chosen import Chosen
from pipelines.experiment import InputError
from pipelines.sources import SPLITS, hashed

CLIPS = 512  # of a shard


def write_joined(chosen: Chosen, to: Path, clips: int = CLIPS) -> tuple[list[str], list[str]]:
    """Write the shards of each split.

    Args:
        chosen: What is written.
        to: The folder, which is not there yet.
        clips: Of a shard at most.

    Returns:
        The names of the files, and what is to be said.

    Raises:
        InputError: The folder is there already.
        StorageError: Something could not be written.
    """
    if to.exists():
        raise InputError(f"{to} is there already; remove it, or give another folder with --to")
    files = []
    for split in SPLITS:
        some = sorted(
            (clip for clip in chosen.clips if clip.split == split),
            key=lambda clip: hashed(0, clip.key),
        )
        for number, first in enumerate(range(0, len(some), clips)):
            files.append(f"{split}-{number:05d}.tar")
            _write(chosen, to, files[-1], some[first : first + clips])
    return files, []


def _write(chosen: Chosen, to: Path, name: str, clips: list[Clip]) -> None:
    from webdataset import TarWriter

    with LocalStore(to).draft(name, f"a shard of {len(clips)} clips") as draft:
        # TarWriter puts the time of day into headers unless told not to.
        with TarWriter(draft.file, mtime=0) as writer:
            for clip in clips:
                writer.write({"__key__": clip.key, **_members(chosen, clip)})
        draft.publish(name)


def _members(chosen: Chosen, clip: Clip) -> dict[str, bytes]:
    """The payloads of a clip by the suffixes of their names; of streams that it has."""
    members: dict[str, bytes] = {}
    for stream in chosen.columns:
        feature = chosen.read(stream, clip)
        if feature is not None:
            members[f"{stream}.npy"] = _npy(feature.values)
            members[f"{stream}.times.npy"] = _npy(feature.times)
    about = {
        "id": clip.id,
        "split": clip.split,
        "seconds": clip.seconds,
        "source": clip.source,
        "speaker": clip.speaker,
        "group": clip.group,
        "labels": json.loads(json.dumps(dict(clip.labels))),
        "words": None if clip.words is None else [[w.text, w.start, w.end] for w in clip.words],
        "streams": {
            name: column.spec.fingerprint
            for name, column in chosen.columns.items()
            if f"{name}.npy" in members
        },
    }
    return {**members, "json": canonical_json(about)}


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()
