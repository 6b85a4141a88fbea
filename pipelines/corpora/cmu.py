"""CMU-MOSI and CMU-MOSEI: labelled segments of monologues from YouTube."""

import csv
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal, TypeAlias

from pipelines.corpora.cmu_folds import MOSI, mosei_folds, read_folds
from pipelines.corpora.csd import read_numbers, read_words
from pipelines.corpora.gathering import Choice, Gathering, Place
from pipelines.corpora.reading import Note, Read, RowDict
from pipelines.corpora.spoken import keep
from pipelines.corpora.tree import SOUND, VIDEO, Tree, text_of
from pipelines.experiment import InputError
from pipelines.sections import Section

EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
"""As MOSEI's labels have them after the sentiment, each from 0 to 3."""

DIMS = ("sentiment", *EMOTIONS)
NEAR_S = 0.05
"""A label and a line of a transcript whose starts lie closer are of one segment."""

_NAMED = 3

LABEL_NAMES = {"happiness": "happy", "sadness": "sad", "angry": "anger"}
"""Other files' names of these."""


class Options(Section):
    """Where the standard folds stand, and which media are taken.

    `media` takes whole videos with each segment's times (full), or the authors' own cut segments;
    auto: whole ones where there are any.
    """

    folds: Path | None = None
    media: Literal["auto", "full", "segmented"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A labelled stretch of a video.

    Attributes:
        number: The segment's own in its video; None where nothing tells it.
        file, row: Where it is told.
    """

    video: str
    number: int | None
    start: float
    end: float
    labels: Mapping[str, float]
    file: str
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What is said in a segment, and where, if that is told."""

    number: int
    text: str
    start: float = math.nan
    end: float = math.nan


def read_mosi(tree: Tree, options: Options) -> Read:
    """The segments of MOSI; the standard folds are known.

    Raises:
        InputError: There are no labels, or a file of labels or folds is wrong.
    """
    folds = MOSI if options.folds is None else read_folds(options.folds)
    segments = _mosi_segments(tree)
    lines = _transcripts(tree, tree.like("*.annotprocessed"), _numbered)
    return _rows(tree, options, folds, _matched_by_number(segments, lines))


def read_mosei(tree: Tree, options: Options) -> Read:
    """The segments of MOSEI, with its emotions.

    Raises:
        InputError: There are no labels or folds, or a file of them is wrong.
    """
    folds = mosei_folds(tree, options.folds)
    segments = _labelled(tree, "*mosei*labels*.csd", DIMS)
    if segments is None:
        raise InputError(
            f"{tree.root}: there is no CMU_MOSEI_Labels.csd; the CMU Multimodal SDK fetches it"
        )
    texts = [name for name in tree.like("*.txt") if name.stem in segments]
    # Whole transcripts, without times, lie beside those of segments under the same names.
    cut = [name for name in texts if "segmented" in {part.casefold() for part in name.parts}]
    timed = cut or [name for name in texts if _is_timed(tree.root / name)]
    lines = _transcripts(tree, timed, _timed)
    return _rows(tree, options, folds, _matched_by_time(segments, lines))


def _labelled(tree: Tree, pattern: str, dims: Sequence[str]) -> dict[str, list[Segment]] | None:
    """The segments of each video in order of time, of a `.csd` file; None where there is none."""
    name = tree.only(pattern)
    if name is None:
        return None
    found = read_numbers(tree.root / name)
    told = [LABEL_NAMES.get(each.casefold(), each.casefold()) for each in found.dims]
    columns = told if set(dims) <= set(told) else list(dims)
    segments: dict[str, list[Segment]] = {}
    for video, (values, intervals) in sorted(found.videos.items()):
        if values.shape[1] < len(dims):
            raise InputError(
                f"{tree.root / name}: {video} has {values.shape[1]} labels a segment, wanted "
                f"{len(dims)}: {', '.join(dims)}"
            )
        order = intervals[:, 0].argsort(kind="stable").tolist()
        segments[video] = [
            Segment(
                video=video,
                number=None,
                start=float(intervals[at, 0]),
                end=float(intervals[at, 1]),
                labels=dict(zip(columns, values[at].tolist(), strict=False)),
                file=f"{name} {video}",
                row=at + 1,
            )
            for at in order
        ]
    return segments


def _mosi_segments(tree: Tree) -> dict[str, list[Segment]]:
    found = _labelled(tree, "*mosi*labels*.csd", ("sentiment",))
    if found is not None:
        return found
    name = tree.only("OpinionLevelSentiment.csv")
    if name is None:
        raise InputError(
            f"{tree.root}: there are no labels: wanted CMU_MOSI_Opinion_Labels.csd (the CMU "
            f"Multimodal SDK fetches it) or OpinionLevelSentiment.csv"
        )
    segments: dict[str, list[Segment]] = defaultdict(list)
    for number, cells in enumerate(csv.reader(text_of(tree.root / name).splitlines()), start=1):
        if not cells or (number == 1 and _number(cells[0]) is None):
            continue  # a heading, which copies of the file have or not
        start, end, which, label = (_number(cells[i]) if i < len(cells) else None for i in _CELLS)
        if start is None or end is None or which is None or label is None:
            raise InputError(
                f"{tree.root / name}: row {number}: wanted start, end, video, segment and label"
            )
        segments[cells[2]].append(
            Segment(
                video=cells[2],
                number=int(which),
                start=start,
                end=end,
                labels={"sentiment": label},
                file=str(name),
                row=number,
            )
        )
    return segments


_CELLS = (0, 1, 3, 4)


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _transcripts(
    tree: Tree, names: Iterable[PurePath], lines: Callable[[Path], Iterable[Line]]
) -> dict[str, list[Line]]:
    """The lines of transcripts by video. Raises InputError where two of one video differ."""
    by_video: dict[str, PurePath] = {}
    for name in names:
        first = by_video.setdefault(name.stem, name)
        if first != name and not tree.same(first, name):
            raise InputError(
                f"{tree.root}: {first} and {name} differ, and which one is the transcript is not "
                f"known; keep one of them"
            )
    return {video: list(lines(tree.root / name)) for video, name in by_video.items()}


def _numbered(path: Path) -> Iterator[Line]:
    """The lines of a transcript of MOSI: 1_DELIM_TEXT."""
    for number, line in _lines(path):
        told, mark, text = line.partition("_DELIM_")
        if not mark or not told.strip().isdigit():
            raise InputError(
                f"{path}: line {number}: wanted NUMBER_DELIM_TEXT, found {line[:60]!r}"
            )
        yield Line(number=int(told), text=text.strip())


# A name of a video may hold underscores itself, also at its end.
_SECONDS = r"(\d+\.?\d*|\.\d+)"
_TIMED = re.compile(rf".+___(\d+)___{_SECONDS}___{_SECONDS}___(.*)")


def _timed(path: Path) -> Iterator[Line]:
    """The lines of a transcript of MOSEI: VIDEO___NUMBER___START___END___TEXT."""
    for number, line in _lines(path):
        told = _TIMED.fullmatch(line)
        if told is None:
            raise InputError(
                f"{path}: line {number}: wanted VIDEO___NUMBER___START___END___TEXT, found "
                f"{line[:60]!r}"
            )
        which, start, end, text = told.groups()
        yield Line(number=int(which), text=text.strip(), start=float(start), end=float(end))


def _is_timed(path: Path) -> bool:
    """Whether a transcript is one of segments, as far as its first line tells."""
    first = next((line for _, line in _lines(path)), "")
    return _TIMED.fullmatch(first) is not None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            yield number, line.rstrip("\r")


Told: TypeAlias = tuple[Segment, int | None, str | None]
"""A segment, its number and its text as far as they are known."""


def _matched_by_number(
    segments: Mapping[str, Sequence[Segment]], lines: Mapping[str, Sequence[Line]]
) -> Iterator[Told]:
    """Segments without a number are counted in order of time, as the transcripts count them."""
    for video, some in segments.items():
        texts = {line.number: line.text for line in lines.get(video, ())}
        counted = all(each.number is None for each in some)
        # With another count nobody knows which line is of which segment.
        fits = not counted or sorted(texts) == list(range(1, len(some) + 1))
        if not fits and texts:
            # Nor which cut film, whose numbers are the transcript's.
            yield from ((segment, None, None) for segment in some)
            continue
        for place, segment in enumerate(some, start=1):
            number = place if segment.number is None else segment.number
            yield segment, number, texts.get(number)


def _matched_by_time(
    segments: Mapping[str, Sequence[Segment]], lines: Mapping[str, Sequence[Line]]
) -> Iterator[Told]:
    for video, some in segments.items():
        told = lines.get(video, ())
        for segment in some:
            near = min(told, key=lambda line: abs(line.start - segment.start), default=None)
            if near is None or abs(near.start - segment.start) > NEAR_S:
                yield segment, None, None
            else:
                yield segment, near.number, near.text


def _rows(tree: Tree, options: Options, folds: Mapping[str, str], told: Iterable[Told]) -> Read:
    gathering = Gathering(tree)
    sequence = tree.only("*TimestampedWords.csd")
    words = {} if sequence is None else read_words(tree.root / sequence)
    unlabelled = dict(folds)
    for segment, number, text in told:
        unlabelled.pop(segment.video, None)
        at = f"at{round(segment.start * 1000):07d}"
        clip = f"{segment.video}_{at if number is None else number}"
        place = Place(clip=clip, file=segment.file, row=segment.row)
        span = f"{segment.start:g} to {segment.end:g} s"
        if segment.video not in folds:
            gathering.note(place, "no_split", "is in no standard fold")
        elif not segment.end > max(segment.start, 0.0):
            gathering.note(place, "no_span", span)
        else:
            if segment.start < 0:
                gathering.note(place, "moved", f"{span}; taken from 0")
            row = _media(gathering, place, _choices(options, segment.video, number), segment)
            if "start" in row and segment.video in words:
                row["transcript_file"] = keep(gathering, segment.video, words[segment.video])
            elif text:
                row["transcript"] = text
            else:
                gathering.note(place, "no_transcript")
            group = {"group": segment.video, "split": folds[segment.video]}
            gathering.add(place, {**row, **group, **_labels(gathering, place, segment)})
    gathering.read.notes.extend(_incomplete(folds, list(unlabelled)))
    return gathering.read


def _incomplete(folds: Mapping[str, str], unlabelled: Sequence[str]) -> Iterator[Note]:
    """A note on each fold of which videos have no labels."""
    for split, count in Counter(folds.values()).items():
        some = [video for video in unlabelled if folds[video] == split]
        if some:
            more = f" and {len(some) - _NAMED} more" if len(some) > _NAMED else ""
            said = f"{len(some)} of {count} videos of the {split} fold have no labels"
            names = ", ".join(some[:_NAMED])
            yield Note(kind="incomplete", message=f"{said}: {names}{more}")


def _choices(options: Options, video: str, number: int | None) -> list[Choice]:
    """Names of media: whole videos before cut ones, pictures before sound alone, unless told."""
    stems = {"full": [video], "segmented": [] if number is None else [f"{video}_{number}"]}
    kinds = ("full", "segmented") if options.media == "auto" else (options.media,)
    found: list[Choice] = [(s, media) for media in (VIDEO, SOUND) for k in kinds for s in stems[k]]
    return found or [(video, VIDEO)]


def _media(
    gathering: Gathering, place: Place, choices: Sequence[Choice], segment: Segment
) -> RowDict:
    """The media of a segment, with its times where they are those of the whole video."""
    media = gathering.media(place, choices)
    if Path(media).stem != segment.video:
        return {"media": media}
    return {"media": media, "start": max(segment.start, 0.0), "end": segment.end}


def _labels(gathering: Gathering, place: Place, segment: Segment) -> RowDict:
    known: RowDict = {name: each for name, each in segment.labels.items() if math.isfinite(each)}
    if len(known) < len(segment.labels):
        gathering.note(place, "no_label", "a label is no number")
    if set(EMOTIONS) <= set(known):
        known["emotions"] = ",".join(each for each in EMOTIONS if known[each] > 0) or ","
    return known
