"""In what the data of a run are not those of the published experiment."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from featurizers.clip import Clip
from featurizers.manifest import Column
from pipelines.corpora.reading import LOST, Note
from pipelines.reproduce.protocol import Model, Protocol


def differences(
    protocol: Protocol,
    models: Sequence[Model],
    widths: Mapping[str, int],
    counts: Mapping[str, int],
    clips: Sequence[Clip],
) -> Iterator[str]:
    """What of features and splits is not the paper's, as sentences.

    Args:
        protocol: The experiment.
        models: Those that are trained.
        widths: Numbers a step of published features, by stream.
        counts: Labelled clips by split.
        clips: All of them.
    """
    yield from _widths(models, widths)
    sizes = {} if protocol.folds else protocol.sizes
    for name, known in sizes.items():
        found = sum(counts.get(split, 0) for split in name.split("+"))
        if found not in known:
            yield f"{found} clips of {name}, not {' or '.join(map(str, known))}"
    yield from _recordings(protocol, clips)


def _widths(models: Sequence[Model], widths: Mapping[str, int]) -> Iterator[str]:
    unlike: dict[tuple[str, int], list[str]] = {}
    for model in models:
        for stream in model.streams:
            wanted = model.widths.get(stream)
            if wanted is not None and widths.get(stream, wanted) != wanted:
                unlike.setdefault((stream, wanted), []).append(model.recipe)
    for (stream, wanted), recipes in unlike.items():
        yield f"{stream} of {widths[stream]} numbers, not {wanted} ({', '.join(recipes)})"


def _recordings(protocol: Protocol, clips: Sequence[Clip]) -> Iterator[str]:
    """Which clips are in another split than their recordings, or of none that is known."""
    known = protocol.recordings
    if not known:
        return
    strange = [clip for clip in clips if _recording(clip) not in known]
    moved = [clip for clip in clips if known.get(_recording(clip), clip.split) != clip.split]
    if strange:
        yield (
            f"{len(strange)} clips whose ids name no recording of the folds, such as "
            f"{strange[0].id}: their split is the file's word"
        )
    if moved:
        yield (
            f"{len(moved)} clips in another split than the folds have, such as {moved[0].id} in "
            f"{moved[0].split}"
        )


def _recording(clip: Clip) -> str:
    return clip.group or clip.source or clip.id


def lost(notes: Iterable[Note], clips: Sequence[Clip], columns: Iterable[Column]) -> Iterator[str]:
    """How many clips were lost: without a row, quarantined, or without a file that they want."""
    columns = list(columns)
    noted = {note.clip for note in notes if note.kind in LOST and note.clip}
    gone = noted - {clip.id for clip in clips}
    for clip in clips:
        states = {column.rows[clip.key].state for column in columns if clip.key in column.rows}
        if "quarantined" in states or (clip.id in noted and states != {"sample"}):
            gone.add(clip.id)
    if gone:
        said = f"{len(gone)} of {len({*gone, *(clip.id for clip in clips)})} clips"
        yield f"{said} are lost, with all of their features or some"
