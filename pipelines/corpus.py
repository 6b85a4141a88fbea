"""A published corpus to a table of clips: what is wrong is told, and too much of it is an error."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from pathlib import Path

from featurizers.clip import Clip
from featurizers.store import publish
from pipelines.corpora import formats
from pipelines.corpora.reading import Note, Read
from pipelines.experiment import Experiment, FailedError
from pipelines.films import write_table
from pipelines.sources import read_rows

BEYOND_S = 0.25
"""A label may end so long after its media without a word: few videos end where their sound does."""

MOST_UNSPLIT = 0.10
"""The part of a corpus that may be in no official list, as some recordings of CMU-MOSEI are not;
a list of another corpus, or of another edition, would leave out more without a word."""

NOTES = "corpus-notes.csv"


def read_corpus(experiment: Experiment) -> Read:
    """Write the table of clips of an experiment's corpus, and the notes on it.

    Raises:
        InputError: The corpus is not laid out as it should be.
        FailedError: More clips are lost than `max_dropped` permits, or the official split has few
            of them; the notes are written.
    """
    source = experiment.source
    options = formats.options_of(source.format, source.options, experiment.folder, experiment.given)
    found = formats.read(source.format, experiment.given, options)
    write_notes(experiment, found.notes)
    lost, share = found.lost, experiment.max_dropped
    count = len({note.clip for note in lost})
    if count > share * found.clips:
        raise FailedError(
            f"{experiment.given}: {count} of {found.clips} clips of {source.format} are lost, "
            f"at most {share:.0%} may be; the first: {lost[0].kind}: {lost[0]}; all are in "
            f"{experiment.raw / NOTES}; get what is missing, or raise max_dropped"
        )
    _check_split(experiment, found)
    for name, make in found.files.items():
        path, content = experiment.raw / name, make()
        if not path.is_file() or path.read_bytes() != content:
            publish(path, content)
    write_table(experiment.cut_table, found.rows)
    return found


def _check_split(experiment: Experiment, found: Read) -> None:
    unsplit = [note for note in found.notes if note.kind == "no_split"]
    count, known = len({note.clip for note in unsplit}), found.clips
    if count > max(MOST_UNSPLIT, experiment.max_dropped) * (known + count):
        raise FailedError(
            f"{experiment.given}: {count} of {known + count} clips of {experiment.source.format} "
            f"are in no split; the first: {unsplit[0]}; all are in {experiment.raw / NOTES}; give "
            f"the list of this corpus, or raise max_dropped"
        )


def beyond(clips: Iterable[Clip]) -> list[Note]:
    """Notes on clips whose span ends after their media do, or lies after them altogether.

    Where no clip of a file has any length, the file may as well be unreadable, which is told
    elsewhere.
    """
    clips = list(clips)
    readable = {clip.media for clip in clips if clip.seconds > 0}
    notes = []
    for clip in clips:
        if clip.end is not None and clip.media in readable:
            late = clip.end - clip.start - clip.seconds
            if late > BEYOND_S:
                said = f"ends {late:.2f} s after {clip.media}"
                notes.append(Note(kind="beyond", clip=clip.id, message=said))
    return notes


def read_notes(experiment: Experiment) -> list[Note]:
    """The notes that are written; none where nothing is wrong, or no corpus was read."""
    path = experiment.raw / NOTES
    rows = read_rows(path) if path.is_file() and _has_rows(path) else []
    return [Note(**{**row, "row": int(row["row"])}) for row in rows]


def add_notes(experiment: Experiment, notes: Sequence[Note]) -> None:
    """Add notes to those that are written, in place of others of their kinds."""
    kinds = {note.kind for note in notes}
    kept = [note for note in read_notes(experiment) if note.kind not in kinds]
    write_notes(experiment, [*kept, *notes])


def _has_rows(path: Path) -> bool:
    return len(path.read_text(encoding="utf-8").splitlines()) > 1


def write_notes(experiment: Experiment, notes: Sequence[Note]) -> None:
    """Write notes as a table, whole or not at all."""
    path = experiment.raw / NOTES
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([each.name for each in fields(Note)])
    writer.writerows(astuple(note) for note in notes)
    publish(path, buffer.getvalue().encode("utf-8", "backslashreplace"))
