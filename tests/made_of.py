"""What a run is made of, without files: for tests of lineage."""

import json
from dataclasses import replace
from types import SimpleNamespace

from featurizers.acoustic import LogMel
from featurizers.clip import Clip, Word
from pipelines.origins import lineage_of
from training.recipe import ModelSettings, Recipe, Task

NOW = "2026-01-02T03:04:05Z"
SPEC = LogMel().spec


def column(folder, number, states):
    """A column of one shard, without files."""
    tar = SimpleNamespace(file=f"0000{number}-{folder}.tar", sha256=folder * 32)
    return SimpleNamespace(
        spec=SPEC,
        digest="d" * 64,
        records=(SimpleNamespace(shard=number, tar=tar),),
        shards=dict.fromkeys(states, number),
        rows={key: SimpleNamespace(state=state) for key, state in states.items()},
    )


def clip(key, split, label=1.0, **changes):
    given = {
        "media": f"/media/{key}.mp4",
        "media_digest": key * 64,
        "seconds": 2.0,
        "source": f"/media/{key}.mp4",
    }
    return Clip(
        key=key,
        id=f"id of {key}",
        split=split,
        labels={} if label is None else {"mood": label},
        **{**given, **changes},
    )


CLIPS = (
    clip("a", "train", words=(Word(text="so", start=0.0, end=0.5),), speaker="anna"),
    clip("b", "test"),
    clip("c", "train", stream_digests={"pose": "p" * 64}),
    clip("d", "valid"),
    clip("e", "train", label=None),
    clip("f", "test"),
)


def plan_of(root, **changes):
    recipe = Recipe(
        name="late_fusion",
        task=Task(kind="regression", label="mood"),
        model=ModelSettings(kind="late_fusion", streams=("audio", "video")),
        **changes,
    )
    return SimpleNamespace(root=root, recipe=recipe)


def made_of(root, uri="sqlite:////nowhere", clips=CLIPS, **changes):
    """A lineage: c has no sound, e no label, and f nothing that can be read."""
    states = {each.key: "sample" for each in clips} | {"f": "quarantined"}
    columns = {
        "audio": column("aa", 7, {**states, "c": "absent"}),
        "video": column("bb", 7, states),
    }
    found = lineage_of(plan_of(root, **changes), clips, columns, uri)
    return replace(found, columns=json.loads(json.dumps(found.columns)))
