"""Clips of training that an evaluation set has too, in equal bytes or, by `likeness`, in others.

What was computed is kept in logs/ of the dataset, which is no part of what it promises: a clip is
decoded for it once.
"""

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from featurizers.clip import Clip
from featurizers.dataset import LOGS
from featurizers.decoder import Decoder
from featurizers.likeness import VERSION, Likeness, alike, likeness
from featurizers.spec import canonical_json
from featurizers.store import Root, store_at
from pipelines.executors import Executor, InProcess, executor
from pipelines.experiment import Experiment
from pipelines.lineage import standing_lineage
from pipelines.plans import Plan, labelled
from pipelines.show import Show
from pipelines.sources import stage_of
from pipelines.staging import Stage

FILE = f"{LOGS}/likeness-{VERSION}.jsonl"
TOGETHER = 16  # clips of an item

Cut = tuple[str, float, float]


def near_duplicates(
    experiment: Experiment, plan: Plan, clips: Sequence[Clip], show: Show
) -> list[str] | None:
    """The test clips that look or sound like a training clip, with a progress bar.

    Training clips are also those of runs whose weights this one began with.

    Returns:
        A sentence for each pair. None where there is none, and of some clips the media cannot be
        had: nobody can say that there is none.

    Raises:
        StorageError: Media cannot be read now.
    """
    test, training = (labelled(plan.recipe, clips, split) for split in ("test", "train"))
    where, stage = executor(experiment.workers.featurize), stage_of(experiment)
    with show.counting("look for near-duplicates", None) as done:
        found = likenesses(experiment.root, [*test, *training], stage, where, done)
        lineage = standing_lineage(plan.folder)
        for run_id, before in (lineage.before if lineage else {}).items():
            seen = before.clips_of("train")
            theirs = likenesses(before.dataset, seen, stage, where, done, keep=False)
            found |= {f"{run_id} {key}": each for key, each in theirs.items()}
            training += [_of_run(clip, run_id) for clip in seen]
    for sentence in unknown([*test, *training], found):
        show.say(sentence)
    return like(test, training, found)


def _of_run(clip: Clip, run_id: str) -> Clip:
    """A clip of a run before, named so that it is none of this dataset."""
    return replace(clip, key=f"{run_id} {clip.key}", id=f"{clip.id} of run {run_id}")


def unknown(clips: Sequence[Clip], found: Mapping[str, Likeness]) -> list[str]:
    """How many clips are known by less than their sound and pictures; nothing where none is."""
    with_media = [clip for clip in clips if clip.media_digest]
    bare = len(clips) - len(with_media)
    away = sum(clip.key not in found for clip in with_media)
    blank = sum(found.get(clip.key) == Likeness() for clip in with_media)
    told = (
        (away, "cannot be had here, so that near-duplicates of them are not found"),
        (blank, "have no sound and no pictures that tell anything: compared by equal bytes alone"),
        (bare, "had no media when they were ingested: there is nothing to compare"),
    )
    return [
        f"near-duplicates: {count} of {len(clips)} clips {what}" for count, what in told if count
    ]


def like(
    ours: Sequence[Clip], theirs: Sequence[Clip], found: Mapping[str, Likeness]
) -> list[str] | None:
    """Clips of ours that look or sound like one of theirs, or have its bytes and span.

    None as `near_duplicates`. A clip that never had media has nothing that could be alike.

    Args:
        ours: The clips of an evaluation set.
        theirs: Those of training.
        found: The likeness of those whose media can be had.
    """
    mine, others = ([clip for clip in clips if clip.key in found] for clips in (ours, theirs))
    pairs = alike([found[clip.key] for clip in mine], [found[clip.key] for clip in others])
    same = {(mine[one].key, others[other].key) for one, other in pairs}
    cuts: dict[Cut, list[Clip]] = defaultdict(list)
    for clip in theirs:
        cuts[_cut(clip)].append(clip)
    same |= {
        (clip.key, other.key) for clip in ours if clip.media_digest for other in cuts[_cut(clip)]
    }
    ids = {clip.key: clip.id for clip in (*ours, *theirs)}
    told = [f"{ids[one]} is like {ids[other]}" for one, other in sorted(same)]
    away = any(clip.media_digest and clip.key not in found for clip in (*ours, *theirs))
    return None if away and not told else told


def between_splits(clips: Sequence[Clip], found: Mapping[str, Likeness]) -> list[str]:
    """Clips that look or sound like one of another split, a sentence for each pair.

    Equal bytes and spans are not told: who looks for those needs no likeness.

    Args:
        clips: Of all splits.
        found: The likeness of those whose media can be had.
    """
    some = [clip for clip in clips if clip.key in found and clip.split is not None]
    told: list[str] = []
    for ours, theirs in (("test", ("train", "valid")), ("valid", ("train",))):
        mine = [clip for clip in some if clip.split == ours]
        others = [clip for clip in some if clip.split in theirs]
        pairs = alike([found[clip.key] for clip in mine], [found[clip.key] for clip in others])
        told += [
            f"{mine[one].id} ({ours}) is like {others[other].id} ({others[other].split})"
            for one, other in pairs
            if _cut(mine[one]) != _cut(others[other])
        ]
    return sorted(told)


def likenesses(
    root: Root,
    clips: Sequence[Clip],
    stage: Stage,
    executor: Executor,
    done: Callable[[int], None],
    *,
    keep: bool = True,
) -> dict[str, Likeness]:
    """The likeness of each clip whose media can be had, by key.

    Args:
        root: Where the dataset lies.
        clips: Some of its clips.
        stage: Gives media on the machine that decodes them.
        executor: Where they are decoded.
        done: Told how many clips were decoded.
        keep: Whether what is computed is kept in the dataset's logs; not so for clips that may have
            been forgotten there.

    Raises:
        StorageError: Media cannot be read now.
    """
    kept = _kept(root)
    identities = {clip.key: _identity(clip) for clip in clips}
    known = {
        key: Likeness(sound=kept[key]["sound"], pictures=kept[key]["pictures"])
        for key, identity in identities.items()
        if key in kept and kept[key]["of"] == identity
    }
    todo = sorted(
        (clip for clip in clips if clip.media_digest and clip.key not in known),
        key=lambda clip: (clip.media, clip.start, clip.key),
    )
    items = [todo[first : first + TOGETHER] for first in range(0, len(todo), TOGETHER)]
    for answer in executor.run(partial(_Looker, stage), items):
        known |= answer.result
        done(len(items[answer.number]))
    if todo and keep:
        mine = {clip.key for clip in todo} & known.keys()
        fresh = {key: {"of": identities[key], **asdict(known[key])} for key in mine}
        # A clip a line, by its key: `forget` takes those lines out.
        lines = [json.dumps({key: each}) for key, each in sorted({**kept, **fresh}.items())]
        store_at(root).replace(FILE, "\n".join([*lines, ""]).encode())
    return known


def of_local(root: Root, clips: Sequence[Clip], done: Callable[[int], None]) -> dict[str, Likeness]:
    """The likeness of clips whose media lie on this machine, by key; nothing is fetched."""
    here = [clip for clip in clips if clip.media_digest and "://" not in clip.media]
    with tempfile.TemporaryDirectory(prefix="fuseline-check-") as folder:
        stage = Stage(folder=Path(folder), limit_bytes=0)
        return likenesses(root, here, stage, InProcess(), done)


class _Looker:
    """Looks at clips; holds one decoding child."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._decoder = Decoder()

    def __call__(self, clips: Sequence[Clip]) -> dict[str, Likeness]:
        """The likeness of those whose media are there."""
        paths = ((clip, self._stage.local(clip.media)) for clip in clips)
        return {
            clip.key: likeness(clip, path, self._decoder)
            for clip, path in paths
            if path is not None
        }

    def close(self) -> None:
        """End the child."""
        self._decoder.close()


def _kept(root: Root) -> dict[str, Mapping[str, str]]:
    """What was computed before, by key; lines that cannot be read are passed over."""
    try:
        lines = store_at(root).read(FILE).splitlines()
    except FileNotFoundError:
        return {}
    found: dict[str, Mapping[str, str]] = {}
    for line in lines:
        try:
            found |= json.loads(line)
        except (ValueError, TypeError):
            continue
    return found


def _cut(clip: Clip) -> Cut:
    """A span of a file's bytes, whatever the file is called."""
    return clip.media_digest, round(clip.start, 3), round(clip.seconds, 3)


def _identity(clip: Clip) -> str:
    """A digest of all that a clip's likeness follows from."""
    seen = [clip.media_digest, clip.start, clip.end, clip.audio_stream, clip.video_stream]
    return hashlib.sha256(canonical_json(seen)).hexdigest()[:16]
