"""A dataset from `.csd` files of the CMU Multimodal SDK, and such files from a dataset.

One file holds the labels: each of their intervals is a clip, called RECORDING[NUMBER] as the SDK
calls it. One may hold words, as texts. The others are streams; a clip's steps are those that
overlap its interval, on their own times, or the means of those within each word, as the papers have
it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip, Label, Word, key_of
from featurizers.extract import Outcome
from featurizers.imported import imported_spec
from featurizers.spec import Dim, Feature, Modality, Scalar
from featurizers.tiers import is_said
from featurizers.transcript import within
from pipelines.corpora.cmu import DIMS, LABEL_NAMES
from pipelines.corpora.cmu_folds import MOSI
from pipelines.exchange.csd import Sequences, recording_of
from pipelines.exchange.published import Published, Stream, sha256_of, stream_name
from pipelines.experiment import InputError

EPSILON_S = 1e-5
"""What shares less time with a word is beside it; the SDK's own number."""

ENTRIES = "entries"
"""In the metadata of files that `export` wrote: each entry is a clip, with the clip's own clock."""

_MODALITIES: Sequence[tuple[Modality, str]] = (
    ("audio", r"covarep|opensmile|audio|acoustic|mfcc|sound"),
    ("video", r"facet|openface|visual|vision|video|face"),
    ("text", r"glove|word|bert|text|phone"),
)
_USUAL = {"text": "text", "audio": "audio", "video": "video"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """How `.csd` files become a dataset.

    Attributes:
        labels: The file or root of the labels; empty for that which is called so.
        align: The file or root whose intervals are words to which all streams are averaged; empty
            to leave streams on their own times.
        folds: The split of each recording; None where nobody says.
    """

    labels: str = ""
    align: str = ""
    folds: Mapping[str, str] | None = None


Span: TypeAlias = tuple[float, float]


def read_sequences(paths: Sequence[Path], ways: Ways, held: ExitStack) -> Published:
    """The clips and streams of some `.csd` files.

    Args:
        paths: The files; they are read while streams are.
        ways: See there.
        held: Closes the files.

    Raises:
        InputError: A file is no such sequence, or labels, words or streams are missing.
    """
    files = [held.enter_context(Sequences.open(path)) for path in sorted(paths)]
    labels = _the_labels(files, ways.labels)
    others = [each for each in files if each is not labels]
    words = next((each for each in others if each.first.dtype.kind == "U"), None)
    streams = [each for each in others if each.first.dtype.kind != "U"]
    if not streams:
        raise InputError(f"{_listed(files)}: there is no stream of numbers beside the labels")
    by = _named(others, ways.align, "--align") if ways.align else None
    clips, notes = _clips(labels, ways)
    spoken = _Spoken(words, by)
    said = [_with_words(clip, spoken) for clip in clips]
    names = _names(streams)
    return Published(
        clips=said,
        streams={
            name: _stream(name, each, modality, by, spoken)
            for each, (name, modality) in zip(streams, names, strict=True)
        },
        pooling={"kind": "words"} if words or by else {"kind": "own"},
        notes=[*notes, *_absent(streams, clips)],
    )


def _listed(files: Sequence[Sequences]) -> str:
    return ", ".join(each.path.name for each in files)


def _the_labels(files: Sequence[Sequences], asked: str) -> Sequences:
    if asked:
        return _named(files, asked, "--labels")
    found = [each for each in files if "label" in f"{each.root} {each.path.name}".casefold()]
    if len(found) != 1:
        raise InputError(
            f"{_listed(files)}: {len(found)} of them are called labels; name one by --labels"
        )
    return found[0]


def _named(files: Sequence[Sequences], asked: str, option: str) -> Sequences:
    found = [each for each in files if asked in (each.root, each.path.name, each.path.stem)]
    if len(found) != 1:
        told = ", ".join(f"{each.root} ({each.path.name})" for each in files)
        raise InputError(f"{option} {asked}: wanted one of {told}")
    return found[0]


def _names(streams: Sequence[Sequences]) -> list[tuple[str, Modality]]:
    """Name and modality of each stream: text, audio or video where only one is of it."""
    kinds = [_modality(each) for each in streams]
    return [
        (
            _USUAL[kind] if kind in _USUAL and kinds.count(kind) == 1 else stream_name(each.root),
            kind,
        )
        for each, kind in zip(streams, kinds, strict=True)
    ]


def _modality(file: Sequences) -> Modality:
    told = f"{file.root} {file.path.stem}".casefold()
    return next((kind for kind, like in _MODALITIES if re.search(like, told)), "stream")


def _absent(streams: Sequence[Sequences], clips: Sequence[Clip]) -> Iterator[str]:
    for each in streams:
        lost = {clip.source or clip.id for clip in clips if not each.has(_entry(each, clip))}
        if lost:
            yield f"{each.root}: {len(lost)} labelled recordings are not in it, such as {min(lost)}"


# Clips


def _clips(labels: Sequences, ways: Ways) -> tuple[list[Clip], list[str]]:
    """A clip for each labelled interval, and what is to be said of those that are none."""
    whole = labels.metadata.get(ENTRIES) == "clips"
    names = _label_names(labels)
    recordings = {recording_of(entry) for entry in labels.entries}
    folds = ways.folds if ways.folds is not None else MOSI if recordings <= MOSI.keys() else None
    clips, short, foldless = [], 0, 0
    for entry in sorted(labels.entries):
        values = np.asarray(labels.features(entry), dtype=np.float64)
        recording = entry if whole else recording_of(entry)
        split = None if folds is None else folds.get(entry) or folds.get(recording)
        for number, (start, end) in enumerate(labels.intervals(entry).tolist()):
            if folds is not None and split is None:
                foldless += 1
            elif not end > max(start, 0.0):
                short += 1
            else:
                # The SDK numbers segments of a recording as they stand in the file of labels.
                name = entry if whole or "[" in entry else f"{entry}[{number}]"
                clips.append(
                    _clip(
                        name,
                        recording=recording,
                        span=(start, end),
                        labels=_finite(names, values[number]),
                        whole=whole,
                        split=split,
                    )
                )
    notes = [
        *([f"{short} labelled intervals last no time, and are left out"] if short else []),
        *([f"{foldless} labelled intervals are in no fold, and are left out"] if foldless else []),
    ]
    if not clips:
        raise InputError(f"{labels.path}: no labelled interval is left: {'; '.join(notes)}")
    return clips, notes


def _clip(
    name: str,
    *,
    recording: str,
    span: Span,
    labels: Mapping[str, Label],
    whole: bool,
    split: str | None,
) -> Clip:
    start = max(span[0], 0.0)
    return Clip(
        key=key_of(name),
        id=name,
        media="",
        media_digest="",
        start=0.0 if whole else start,
        end=None if whole else span[1],
        seconds=span[1] - start,
        source=recording_of(name) if "[" in name else "" if whole else recording,
        split=split,
        labels=labels,
    )


def _finite(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, Label]:
    return {
        name: value
        for name, value in zip(names, values.tolist(), strict=True)
        if np.isfinite(value)
    }


def _label_names(labels: Sequences) -> list[str]:
    width = labels.first.shape[1]
    known = {**LABEL_NAMES, **dict(zip(DIMS, DIMS, strict=True))}
    told = [known.get(each.casefold(), each) for each in labels.dims]
    if len(told) == width:
        return told
    if width == len(DIMS):
        return list(DIMS)
    opinion = re.search("sentiment|opinion", f"{labels.root} {labels.path.stem}".casefold())
    one = "sentiment" if opinion else "label"
    return [one] if width == 1 else [f"label_{number}" for number in range(width)]


def _entry(file: Sequences, clip: Clip) -> str:
    """The entry of a file that has a clip: its own, or that of its recording."""
    return clip.id if file.owns(clip.id) else clip.source or clip.id


# Words


@dataclass(frozen=True, slots=True)
class _Spoken:
    """Where words lie: in a file of texts, or in that to which streams are aligned."""

    words: Sequences | None
    by: Sequences | None

    def of(self, clip: Clip) -> list[tuple[str, float, float]] | None:
        """Words with their times in the file; without a text where none is told. None for none."""
        file = self.by or self.words
        entry = None if file is None else _entry(file, clip)
        if file is None or entry is None or not file.has(entry):
            return None
        spans = [tuple(each) for each in file.intervals(entry).tolist()]
        texts = self._texts(file, clip, spans)
        found = [(text, *span) for text, span in zip(texts, spans, strict=True)]
        if self.words is None:
            return found
        return [each for each in found if not each[0] or is_said(each[0])]

    def _texts(self, file: Sequences, clip: Clip, spans: Sequence[Any]) -> list[str]:
        if self.words is None:
            return [""] * len(spans)
        entry = _entry(self.words, clip)
        if not self.words.has(entry):
            return [""] * len(spans)
        texts: list[str] = self.words.features(entry).tolist()
        if file is self.words:
            return texts
        known = dict(zip(map(_rounded, self.words.intervals(entry).tolist()), texts, strict=True))
        return [known.get(_rounded(span), "") for span in spans]


def _rounded(span: Sequence[float]) -> tuple[int, int]:
    return round(span[0] * 1000), round(span[1] * 1000)


def _with_words(clip: Clip, spoken: _Spoken) -> Clip:
    found = spoken.of(clip)
    if found is None:
        return clip
    words = [Word(text=text, start=start, end=max(start, end)) for text, start, end in found]
    words.sort(key=lambda word: word.start)
    if spoken.by is None:
        return replace(clip, words=within(words, clip.start, clip.end))
    inside = [word for word in words if _shares(clip, (word.start, word.end))]
    cut = _cut(clip, np.array([(word.start, word.end) for word in inside]).reshape(-1, 2))
    return replace(
        clip,
        words=tuple(
            replace(word, start=start, end=end)
            for word, (start, end) in zip(inside, cut.tolist(), strict=True)
        ),
    )


def _shares(clip: Clip, span: tuple[float, float]) -> bool:
    last = float("inf") if clip.end is None else clip.end
    return min(span[1], last) - max(span[0], clip.start) > EPSILON_S


def _overlapping(clip: Clip, spans: Iterable[tuple[float, float]]) -> NDArray[np.float64]:
    """The spans [W, 2] that share time with a clip, whole, as the SDK takes them to a segment."""
    found = [span for span in spans if _shares(clip, span)]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _cut(clip: Clip, spans: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of each span that lies in a clip, on the clip's clock."""
    return np.clip(spans, clip.start, clip.end) - clip.start


# Streams


def _stream(
    name: str, file: Sequences, modality: Modality, by: Sequences | None, spoken: _Spoken
) -> Stream:
    width = file.first.shape[1]
    dims = [Dim(each) for each in file.dims] if len(file.dims) == width else width
    origin: dict[str, Scalar] = {
        "format": "csd",
        "file": file.path.name,
        "sha256": sha256_of([file.path]),
        "part": file.root,
        **{
            ours: str(file.metadata[theirs])
            for ours, theirs in _TOLD.items()
            if file.metadata.get(theirs)
        },
    }
    if by is not None:
        origin |= {"aligned_to": by.root, "aligned_sha256": sha256_of([by.path])}
    read = _own_steps(file) if by is None else _by_word(file, spoken)
    return Stream(
        spec=imported_spec(name, modality, dims, origin, by_word=by is not None), read=read
    )


_TOLD = {
    "creator": "creator",
    "version": "computational sequence version",
    "description": "computational sequence description",
    "dataset": "dataset name",
    "dataset_version": "dataset version",
    "md5": "md5",
}
"""What of a file's metadata is kept in the spec."""


def _own_steps(file: Sequences) -> Callable[[Clip], Outcome]:
    """The steps that overlap a clip's interval, on its clock."""

    def read(clip: Clip) -> Outcome:
        found = _steps(file, clip)
        if found is None:
            return Outcome(state="absent")
        values, times = found
        return Outcome(state="sample", feature=Feature(values, times - clip.start))

    return read


def _by_word(file: Sequences, spoken: _Spoken) -> Callable[[Clip], Outcome]:
    """The mean of the steps within each word; without such steps, the word is left out.

    As in the SDK's `align`, a mean is of all steps alike, however much of one lies in the word, and
    of the whole word, also of one that a clip begins or ends in.
    """

    def read(clip: Clip) -> Outcome:
        words = sorted((start, max(start, end)) for _, start, end in spoken.of(clip) or ())
        spans = _overlapping(clip, words)
        if not len(spans):
            return Outcome(state="absent")
        found = _steps(file, clip, (spans[:, 0].min(), spans[:, 1].max()))
        if found is None:
            return Outcome(state="absent")
        values, times = found
        rows = [_within(times, span) for span in spans]
        there = [number for number, each in enumerate(rows) if len(each)]
        if not there:
            return Outcome(state="absent")
        with np.errstate(invalid="ignore"):  # of -inf and inf
            means = np.stack([values[rows[at]].mean(axis=0, dtype=np.float64) for at in there])
        return Outcome(state="sample", feature=Feature(means, _cut(clip, spans)[there]))

    return read


def _within(times: NDArray[np.float64], span: NDArray[np.float64]) -> NDArray[np.intp]:
    shared = np.minimum(times[:, 1], span[1]) - np.maximum(times[:, 0], span[0])
    return np.flatnonzero(shared > EPSILON_S)


def _steps(
    file: Sequences, clip: Clip, span: tuple[float, float] | None = None
) -> tuple[NDArray[Any], NDArray[np.float64]] | None:
    """The steps of a file that overlap a clip or another span, in order, on the file's clock."""
    entry = _entry(file, clip)
    if not file.has(entry):
        return None
    times = file.intervals(entry)
    if clip.end is None:  # the entry is the clip
        return (file.features(entry), times) if len(times) else None
    first, last = span or (clip.start, clip.end)
    inside = np.flatnonzero((times[:, 1] > first) & (times[:, 0] < last))
    if not len(inside):
        return None
    rows = slice(int(inside[0]), int(inside[-1]) + 1)
    values = file.features(entry, rows)[inside - rows.start]
    order = np.argsort(times[inside, 0], kind="stable")
    return values[order], times[inside][order]
