"""What a run's model was made of: kept with the run, so that it is known when the dataset is gone.

Two files in the run's folder `lineage`, on disk and on the tracking server: `columns.json` has each
stream's spec, manifest and shards, and the weights that the run began with; `clips.parquet` has a
row for each clip that training, validation or the test took, now or in a run that those weights
come from. The tag `fuseline.lineage` of the run names both by a digest.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from featurizers.clip import Clip
from featurizers.spec import canonical_json
from featurizers.store import publish
from tracking.mlflow_store import MlflowRun, read_file

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 2
FOLDER = "lineage"
COLUMNS, CLIPS = "columns.json", "clips.parquet"
TAG = "fuseline.lineage"
WEIGHTS_TAG = "fuseline.weights"
"""sha256 of the weights that a run trained, by which a copy of their file is known."""

Row: TypeAlias = Mapping[str, Any]

ROLES = ("train", "valid", "test")

_JSON = ("streams", "states")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Weights that a run began with.

    Attributes:
        part: What of the model began with them; "encoder STREAM" for a pretrained encoder.
        file: Where they lay.
        sha256: Of them, in hex.
        run_id: The run that trained them; empty where no run is known that did.
    """

    part: str
    file: str
    sha256: str
    run_id: str = ""

    def __str__(self) -> str:
        whose = f", of run {self.run_id}" if self.run_id else ""
        # Folders are nobody's business who reads a model card.
        return f"{self.part} from {Path(self.file).name} (sha256 {self.sha256[:12]}{whose})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What a run's model was made of.

    Attributes:
        dataset: The dataset's whole path or address.
        columns: By stream: "spec" in full, "fingerprint", "manifest" (its sha256), and "shards", by
            number, each with its "tar" and the tar's "sha256".
        clips: Rows with key, id, role ("train", "valid" or "test"), media, media_digest (sha256),
            start, end, seconds, audio_stream, video_stream, words (sha256 of the words and their
            times; empty without a transcript), streams (sha256 of each file of numbers, by name),
            source, speaker, shard, and states: by stream "sample", "absent" or "quarantined".
        starts: The weights that it began with.
        before: By id, the runs that these come from, however far back, as far as their lineage is
            known. Of their clips, those alone that decided weights: "train" and "valid".
    """

    dataset: str
    columns: Mapping[str, Mapping[str, Any]]
    clips: Sequence[Row]
    starts: Sequence[Start] = ()
    before: Mapping[str, "Lineage"] = field(default_factory=dict)

    @property
    def unknown(self) -> list[Start]:
        """Weights, here or in a run before, of which nobody knows what they were trained on."""
        every = [*self.starts, *(each for one in self.before.values() for each in one.starts)]
        known = {each.sha256: each for each in every if each.run_id not in self.before}
        return list(known.values())

    @property
    def beginnings(self) -> list[str]:
        """A sentence for each start, and for each run before."""
        lost = {start.sha256 for start in self.unknown}
        told = [
            f"starts with {start}"
            + (", and nobody knows what these were trained on" if start.sha256 in lost else "")
            for start in self.starts
        ]
        return told + [
            f"so it has seen what run {run_id} was made of, of dataset "
            f"{each.dataset.rstrip('/').rpartition('/')[2]}: clips {each.counts}"
            for run_id, each in self.before.items()
        ]

    @property
    def counts(self) -> str:
        """How many clips it took for what."""
        roles = Counter(row["role"] for row in self.clips)
        return ", ".join(f"{roles[role]} {role}" for role in ROLES if roles[role])

    def clips_of(self, role: str) -> list[Clip]:
        """The clips that were taken for something."""
        return [clip_of(row) for row in self.clips if row["role"] == role]


def clip_of(row: Row) -> Clip:
    """The clip of a row, without words and labels."""
    return Clip(
        key=row["key"],
        id=row["id"],
        media=row["media"],
        media_digest=row["media_digest"],
        start=row["start"],
        end=row["end"],
        audio_stream=row["audio_stream"],
        video_stream=row["video_stream"],
        seconds=row["seconds"],
        stream_digests=row["streams"],
        source=row["source"],
        speaker=row["speaker"],
    )


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """Write it into a run's folder."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    for name, content in _files(lineage).items():
        publish(place / name, content)


def standing_lineage(folder: Path) -> Lineage | None:
    """What stands in a run's folder; None where nothing does."""
    place = folder / FOLDER
    if not (place / COLUMNS).is_file():
        return None
    return _parsed((place / COLUMNS).read_bytes(), (place / CLIPS).read_bytes())


def keep_lineage(run: MlflowRun, folder: Path) -> None:
    """Keep with a run what stands in its folder."""
    digest = hashlib.sha256()
    for name in (CLIPS, COLUMNS):
        run.log_file(folder / FOLDER / name, FOLDER)
        digest.update((folder / FOLDER / name).read_bytes())
    # Last: where it is, the files are.
    run.set_tags({TAG: digest.hexdigest()})


def read_lineage(uri: str, run_id: str) -> Lineage | None:
    """What was kept with a run; None where nothing was, as of models registered by other means."""
    try:
        about, clips = (read_file(uri, run_id, f"{FOLDER}/{name}") for name in (COLUMNS, CLIPS))
    except FileNotFoundError:
        return None
    return _parsed(about, clips)


def words_digest(clip: Clip) -> str:
    """sha256 in hex of a clip's words and their times; empty where there is no transcript."""
    if clip.words is None:
        return ""
    said = [[word.text, word.start, word.end] for word in clip.words]
    return hashlib.sha256(canonical_json(said)).hexdigest()


def _files(lineage: Lineage) -> dict[str, bytes]:
    """Content by name; `columns.json`, by which the two are known to be there, comes last."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    every = {"": lineage, **lineage.before}
    rows = [
        {"run": run_id, **row, **{name: json.dumps(row[name], sort_keys=True) for name in _JSON}}
        for run_id, each in every.items()
        for row in each.clips
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, _schema()), buffer, compression="zstd")
    plain = {
        "format": FORMAT,
        **_about(lineage),
        "before": {run_id: _about(each) for run_id, each in lineage.before.items()},
    }
    return {CLIPS: buffer.getvalue(), COLUMNS: canonical_json(plain)}


def _about(lineage: Lineage) -> dict[str, Any]:
    starts = [asdict(start) for start in lineage.starts]
    return {"dataset": lineage.dataset, "columns": lineage.columns, "starts": starts}


def _parsed(about: bytes, clips: bytes) -> Lineage | None:
    """What the two files tell; None where they are of a format that is not read any more."""
    import pyarrow.parquet as pq

    plain = json.loads(about)
    if plain.get("format") != FORMAT:
        return None
    rows: dict[str, list[Row]] = {}
    for row in pq.read_table(io.BytesIO(clips)).to_pylist():
        read = {**row, **{name: json.loads(row[name]) for name in _JSON}}
        rows.setdefault(read.pop("run"), []).append(read)
    before = {
        run_id: _lineage(each, rows.get(run_id, ()), {}) for run_id, each in plain["before"].items()
    }
    return _lineage(plain, rows.get("", ()), before)


def _lineage(
    plain: Mapping[str, Any], rows: Iterable[Row], before: Mapping[str, Lineage]
) -> Lineage:
    return Lineage(
        dataset=plain["dataset"],
        columns=plain["columns"],
        clips=list(rows),
        starts=[Start(**each) for each in plain["starts"]],
        before=before,
    )


def _schema() -> "pa.Schema":
    import pyarrow as pa

    texts, numbers = pa.string(), pa.float64()
    return pa.schema(
        [
            *((name, texts) for name in ("run", "key", "id", "role", "media", "media_digest")),
            *((name, numbers) for name in ("start", "end", "seconds")),
            *((name, texts) for name in ("audio_stream", "video_stream", "words", "streams")),
            *((name, texts) for name in ("source", "speaker")),
            ("shard", pa.int64()),
            ("states", texts),
        ]
    )
