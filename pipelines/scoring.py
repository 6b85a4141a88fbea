"""`score`: what people name, to rows that a model takes; and its answers, to a file or a screen."""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurizers.store import publish
from featurizers.transcript import FORMATS, file_and_tier
from pipelines.executors import Executor
from pipelines.experiment import Experiment, InputError, parse
from pipelines.score import row_of, score
from pipelines.show import Show
from pipelines.sources import ask_to_score, read_rows, stage_of

TABLES = (".csv", ".jsonl", ".parquet")
FORMS = TABLES
SHOWN = 40  # answers that are shown on a screen


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is asked of `fuseline score`.

    Attributes:
        uri: The tracking server.
        model: As `pipelines.score.score` takes it.
        clips: Media files, or one table.
        transcript, start, end: What is told of a single clip.
        media_roots: As `rows_of_table` takes them.
        to: The file that is written, if any.
        explain: Whether to say what each stream did.
        recogniser: Of a timeline: the checkpoint that says the words.
    """

    uri: str
    model: str
    clips: tuple[str, ...]
    transcript: str | None = None
    start: float | None = None
    end: float | None = None
    media_roots: tuple[str, ...] = ()
    to: Path | None = None
    explain: bool = False
    recogniser: str | None = None

    def score(self, executor: Executor, show: Show) -> list[dict[str, Any]]:
        """Score the clips, write the answers where that is asked for, and show them else.

        Raises:
            InputError: What was named is wrong; nothing was read.
            ScoringFailedError: As `pipelines.score.score`.
        """
        if self.recogniser is not None:
            raise InputError("--recogniser goes with --timeline; `transcribe` hears tables")
        if self.to is not None:
            check_target(self.to)
        stage = None
        if is_table(self.clips):
            rows = rows_of_table(Path(self.clips[0]), self.media_roots)
            stage = stage_of(source_of(Path(self.clips[0]), self.media_roots))
        else:
            rows = rows_of_clips(self.clips, self.transcript, self.start, self.end)
        with show.counting("score", len(rows)) as done:
            answers = score(
                self.uri,
                self.model,
                rows,
                executor,
                stage=stage,
                do="explain" if self.explain else "predict",
                done=done,
            )
        if self.to is not None:
            write(self.to, answers)
        elif self.explain:
            show.explained(answers[:SHOWN])
        else:
            show.answers(answers[:SHOWN])
        return answers


def rows_of_clips(
    clips: Sequence[str],
    transcript: str | None = None,
    start: float | None = None,
    end: float | None = None,
) -> list[dict[str, Any]]:
    """Rows of media files that were named one by one.

    Raises:
        InputError: One is no file, or what belongs to one clip is given for several.
    """
    if (transcript is not None or start is not None or end is not None) and len(clips) > 1:
        raise InputError("--transcript, --start and --end are of one clip; give one at a time")
    for clip in clips:
        if "://" in clip:
            raise InputError(f"{clip}: an address is scored from a table, with --media-root")
        if not Path(clip).is_file():
            raise InputError(f"{clip}: there is no such file")
    given = {**words_of(transcript), "start": start, "end": end}
    extra = {name: value for name, value in given.items() if value is not None}
    return [{"id": clip, "media": str(Path(clip).resolve()), **extra} for clip in clips]


def words_of(text: str | None) -> dict[str, str]:
    """Words as they are; a file by its whole path, since another process will read it.

    Raises:
        InputError: It has the name of a file of words, and there is none.
    """
    if text is None:
        return {}
    file, tier = file_and_tier(Path(text))
    if file.suffix.lower() in FORMATS:
        if file.is_file():
            whole = str(file.resolve())
            return {"transcript_file": whole if tier is None else f"{whole}#{tier}"}
        if " " not in text:
            raise InputError(f"--transcript {text}: there is no such file")
    return {"transcript": text}


def is_table(clips: Sequence[str]) -> bool:
    """Whether what was named is a table of clips."""
    return len(clips) == 1 and Path(clips[0]).suffix.lower() in TABLES


def rows_of_table(table: Path, media_roots: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a table of clips; labels, splits and the like are passed over.

    Args:
        table: CSV, JSONL or Parquet, with the columns of a dataset's table.
        media_roots: Folders and addresses beside the table's folder below which media may lie.

    Raises:
        InputError: Names the row and the column.
    """
    return [row_of(each) for each in ask_to_score(source_of(table, media_roots), read_rows(table))]


def source_of(table: Path, media_roots: Sequence[str] = ()) -> Experiment:
    """An experiment that says where the media of a table lie, and nothing else."""
    plain = {
        "dataset": "none",
        "source": {"table": str(table.resolve()), "label": "none", "media_root": list(media_roots)},
        "features": {"none": {"featurizer": "logmel"}},
    }
    return parse(plain, Path.cwd(), str(table))


def check_target(file: Path) -> None:
    """Raise InputError when answers cannot be written to a file of this name."""
    if file.suffix.lower() not in FORMS:
        raise InputError(f"--to {file}: wanted a name that ends in {', '.join(FORMS)}")
    if file.is_dir():
        raise InputError(f"--to {file}: there is a folder of that name")


def write(file: Path, answers: Sequence[Mapping[str, Any]]) -> None:
    """Write answers, a row each, whole or not at all; equal answers give equal bytes.

    Raises:
        StorageError: It cannot be written.
    """
    match file.suffix.lower():
        case ".csv":
            content = _csv(answers)
        case ".jsonl":
            content = "".join(f"{json.dumps(answer)}\n" for answer in answers).encode()
        case _:
            content = _parquet(answers)
    publish(file.resolve(), content)


def _csv(answers: Sequence[Mapping[str, Any]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(answers[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _flat(value) for name, value in row.items()} for row in answers)
    return buffer.getvalue().encode()


def _parquet(answers: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(answers[0])
    columns = {name: [_flat(answer[name]) for answer in answers] for name in names}
    # A column of nothing but None would have no type that others can append to.
    kinds = {name: pa.string() for name in names if not any(map(_is_number, columns[name]))}
    table = pa.table({name: pa.array(values, kinds.get(name)) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def _is_number(value: object) -> bool:
    return isinstance(value, float | int)


def _flat(value: object) -> object:
    """A cell of a table: lists and mappings as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def tally(answers: Sequence[Mapping[str, Any]]) -> str:
    """How many are scored, and why others are not."""
    states = Counter(answer["state"] for answer in answers)
    faults = Counter(answer["fault"] for answer in answers if answer["fault"])
    told = [f"{count} {state}" for state, count in sorted(states.items(), reverse=True)]
    why = ", ".join(f"{fault} {count}" for fault, count in sorted(faults.items()))
    return f"{len(answers)} clips: {', '.join(told)}" + (f" ({why})" if why else "")


def failed(answers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the command failed: something could not be read now, or no clip could be scored."""
    states = {answer["state"] for answer in answers}
    return "failed" in states or "scored" not in states
