"""What a dataset holds, looked at with suspicion: leaks, balance, labels, words, features.

Nothing is changed. Media are read where near-duplicates are looked for, and what they look and
sound like is kept in the dataset's logs. "failed" is what makes a test score worth nothing, or
training impossible; "warning" is what somebody should look at before training.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featurizers.clip import Clip, Label
from featurizers.dataset import read_clips
from featurizers.likeness import Likeness
from featurizers.manifest import Column, committed, open_column
from featurizers.spec import FeatureSpec
from featurizers.store import Root
from pipelines.duplicates import between_splits
from pipelines.findings import Finding, State, finding
from pipelines.sources import hashed

LEAKS, BALANCE, LABELS, WORDS, FEATURES = "leaks", "balance", "labels", "words", "features"

MOST_OF_ALL = 0.9
"""A class, or a number, that more of the clips have leaves little to learn."""

FEW = 10
"""A class with fewer clips in "train" is hardly learnt, and in "test" hardly measured."""

FAR_QUARTILES = 10.0
"""A label so many interquartile ranges from the middle is more likely a slip than a value."""

SHIFT = 0.3
"""Largest distance of two splits' distributions (Kolmogorov's), where each has `SHIFT_CLIPS`."""
SHIFT_CLIPS = 50

SAME_WORDS = 5
"""Texts of fewer words ("yes", "I don't know") are said in many moods."""

APART = 0.5
"""Equal texts whose numbers differ by more of the label's range contradict each other."""

FASTEST, SLOWEST = 8.0, 0.2
"""Words a second: nobody speaks faster, and slower a transcript is of something else."""

SLOW_S = 5.0
LATE_S = 0.25
"""A word that ends so long after its clip belongs to another one."""

READ_CLIPS = 512
SPARSE = 0.9
"""Where the median dimension is 0 in more of the steps, dimensions that stay 0 are no news."""

WILD = 1e4
"""Times the median dimension's spread."""

NAMED = 3


def check(
    root: Root, look: Callable[[Sequence[Clip]], Mapping[str, Likeness]] | None = None
) -> Iterator[Finding]:
    """All findings of a dataset, one after the other.

    Args:
        root: Where it lies.
        look: Gives the likeness of clips whose media can be had; None to read no media.

    Raises:
        DatasetError: There is no dataset.
        CorruptShardError: A manifest, an index or a clip's feature is not what was written.
    """
    clips = list(read_clips(root))
    yield from leaks(clips)
    if look is not None:
        yield near(clips, look(clips))
    yield from equal_features(clips, [open_column(root, name) for name in committed(root)])
    yield from balance(clips)
    yield from contradictions(clips)
    yield from spoken(clips)
    chosen = sorted(clips, key=lambda clip: hashed(0, clip.key))[:READ_CLIPS]
    for name in committed(root):
        column = open_column(root, name)
        yield from _column(column, chosen)
        column.close()


def leaks(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Speakers, groups, recordings and whole clips that lie in several splits."""
    kinds: tuple[tuple[str, Callable[[Clip], str | None]], ...] = (
        ("speakers", lambda clip: clip.speaker),
        ("groups", lambda clip: clip.group),
        ("recordings", lambda clip: clip.source or None),
    )
    do = "give each one split, in the table's column split or group, and ingest again"
    for what, of in kinds:
        splits: dict[str, set[str]] = defaultdict(set)
        for clip in clips:
            if (value := of(clip)) is not None and clip.split is not None:
                splits[value].add(clip.split)
        torn = [
            f"{value!r} ({', '.join(sorted(each))})"
            for value, each in sorted(splits.items())
            if len(each) > 1
        ]
        if not splits:
            yield finding(LEAKS, what, "ok", "none are named")
        else:
            good = f"each of {len(splits)} lies in one split"
            yield _judged(
                LEAKS, what, torn, good=good, bad="lie in several splits", do=do, state="failed"
            )
    yield from _twice(clips)


def _twice(clips: Sequence[Clip]) -> Iterator[Finding]:
    same: dict[Hashable, list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.media_digest:
            where = (clip.media_digest, clip.start, clip.end)
            same[where, clip.audio_stream, clip.video_stream].append(clip)
    several = [members for members in same.values() if len(members) > 1]
    torn = [each for each in several if len({clip.split for clip in each}) > 1]
    yield _judged(
        LEAKS,
        "equal clips",
        [_ids(members) for members in torn],
        good="no two splits share the same seconds of the same media",
        bad="are the same seconds of the same media, in several splits",
        do="keep one of each",
        state="failed",
    )
    alike = [each for each in several if len({clip.split for clip in each}) == 1]
    if alike:
        said = _few([_ids(members) for members in alike])
        yield finding(
            LEAKS,
            "equal clips",
            "warning",
            f"{len(alike)} times the same seconds of the same media in one split: {said}",
            "keep one of each, or they count twice",
        )


def near(clips: Sequence[Clip], found: Mapping[str, Likeness]) -> Finding:
    """Clips that look or sound like one of another split, in other bytes."""
    what, with_media = "near-duplicates", [clip for clip in clips if clip.media_digest]
    if not with_media:
        return finding(LEAKS, what, "ok", "no clip has media")
    if told := between_splits(clips, found):
        said = f"{len(told)} clips look or sound like one of another split: {_few(told)}"
        return finding(LEAKS, what, "failed", said, "keep one of each, or give both one split")
    away = sum(clip.key not in found for clip in with_media)
    said = f"none of {len(with_media) - away} clips looks or sounds like one of another split"
    if not away:
        return finding(LEAKS, what, "ok", said)
    said += f"; the media of {away} cannot be had here"
    return finding(LEAKS, what, "warning", said, "check where they lie, or give --no-media")


def equal_features(clips: Sequence[Clip], columns: Sequence[Column]) -> Iterator[Finding]:
    """Clips that have the very same features as one of another split, whatever media they had.

    Words may be said twice, so that clips whose features are of text alone are not looked at. Of an
    array its size and checksum are compared, as the indexes have them; nothing is said of features
    that never change in a clip.
    """
    same: dict[Hashable, list[Clip]] = defaultdict(list)
    looked = 0
    for clip in clips:
        rows = [
            (c.spec.modality, row) for c in columns if (row := c.rows.get(clip.key)) is not None
        ]
        there = [(kind, row) for kind, row in rows if row.state == "sample" and row.steps]
        if any(kind != "text" for kind, _ in there):
            looked += 1
            members = [(kind, row.members["values"]) for kind, row in there]
            same[tuple((kind, each.size, each.crc32) for kind, each in members)].append(clip)
    torn = [
        each
        for each in same.values()
        if len({clip.split for clip in each}) > 1 and _varies(each[0], columns)
    ]
    if not columns:
        return
    yield _judged(
        LEAKS,
        "equal features",
        [_ids(members) for members in torn],
        good=f"no two splits share a clip's features, of {looked} clips",
        bad="have equal features, in several splits",
        do="keep one of each",
        state="failed",
    )


def _varies(clip: Clip, columns: Sequence[Column]) -> bool:
    """Whether a clip's features are more than silence or a blank picture, which many share."""
    read = (column.read(clip.key) for column in columns if column.spec.modality != "text")
    return any(f is not None and (f.values != f.values[:1]).any() for f in read)


def balance(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Labels that hardly vary, that a split lacks, or that are far from all others."""
    for name, labelled in _by_label(clips).items():
        values = [label for _, label in labelled]
        if all(isinstance(value, float) for value in values):
            yield from _numbers(name, labelled)
        else:
            yield from _classes(name, labelled)
    if not any(clip.labels for clip in clips):
        yield finding(BALANCE, "labels", "warning", "no clip has one", "there is nothing to learn")


def _by_label(clips: Sequence[Clip]) -> dict[str, list[tuple[Clip, Label]]]:
    found: dict[str, list[tuple[Clip, Label]]] = defaultdict(list)
    for clip in clips:
        for name, label in clip.labels.items():
            found[name].append((clip, label))
    return dict(sorted(found.items()))


def _classes(name: str, labelled: Sequence[tuple[Clip, Label]]) -> Iterator[Finding]:
    """Of classes and of several labels: each clip counts for all that it has."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for clip, label in labelled:
        for each in label if isinstance(label, tuple) else [str(label)]:
            counts[each][clip.split or ""] += 1
    totals = {each: sum(of.values()) for each, of in counts.items()}
    most = max(totals, key=lambda each: (totals[each], each), default="")
    problems = [
        f"{each!r} is in test but not in train"
        for each, of in sorted(counts.items())
        if of["test"] and not of["train"]
    ]
    yield _judged(
        BALANCE,
        name,
        problems,
        good=f"train has all {len(counts)} that test has",
        bad="cannot be learnt",
        do="split otherwise, or leave these clips out",
        state="failed",
    )
    weak = [
        f"{each!r} has {of[split]} clips in {split}"
        for each, of in sorted(counts.items())
        for split in ("train", "test")
        if 0 < of[split] < FEW
    ]
    if totals and totals[most] > MOST_OF_ALL * len(labelled):
        share = totals[most] / len(labelled)
        weak.append(f"{share:.0%} of the clips are {most!r}: who always says so is right as often")
    if weak:
        do = "class weights (train.class_weights) and a macro average tell more"
        yield finding(BALANCE, name, "warning", _few(weak), do)


def _numbers(name: str, labelled: Sequence[tuple[Clip, Label]]) -> Iterator[Finding]:
    values = np.array([label for _, label in labelled], dtype=np.float64)
    common, count = Counter(values.tolist()).most_common(1)[0]
    if count == len(values) and len(values) > 1:
        yield finding(
            BALANCE,
            name,
            "failed",
            f"all {count} clips have {common:g}",
            "check the label's column",
        )
        return
    weak = []
    if count > MOST_OF_ALL * len(values):
        weak.append(f"{count / len(values):.0%} of the clips have {common:g}")
    low, middle, high = np.percentile(values, [25, 50, 75])
    if high > low:
        far = np.abs(values - middle) > FAR_QUARTILES * (high - low)
        slips = [f"{labelled[at][0].id} has {values[at]:g}" for at in np.flatnonzero(far).tolist()]
        if slips:
            weak.append(f"{_few(slips)}, where half lie from {low:g} to {high:g}")
    weak += _shifted(labelled)
    if weak:
        yield finding(BALANCE, name, "warning", "; ".join(weak), "look at the table and the splits")
    else:
        span = f"{values.min():g} to {values.max():g}"
        yield finding(BALANCE, name, "ok", f"{len(values)} numbers from {span}")


def _shifted(labelled: Sequence[tuple[Clip, Label]]) -> list[str]:
    by_split: dict[str, list[float]] = defaultdict(list)
    for clip, label in labelled:
        if isinstance(label, float):
            by_split[clip.split or ""].append(label)
    train = np.sort(by_split["train"])
    found = []
    for split in ("valid", "test"):
        other = np.sort(by_split[split])
        if min(len(train), len(other)) >= SHIFT_CLIPS:
            both = np.concatenate([train, other])
            shares = [np.searchsorted(each, both, "right") / len(each) for each in (train, other)]
            apart = float(np.abs(shares[0] - shares[1]).max())
            if apart > SHIFT:
                found.append(f"{split} is distributed otherwise than train (by {apart:.2f} of 1)")
    return found


def contradictions(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Equal media or equal words with labels that contradict each other."""
    same: dict[tuple[str, Hashable], list[Clip]] = defaultdict(list)
    for clip in clips:
        if clip.media_digest:
            same["media", (clip.media_digest, clip.start, clip.end)].append(clip)
        texts = (word.text.casefold().strip(".,!?;:\"'") for word in clip.words or ())
        said = tuple(text for text in texts if text)  # of some only the times are known
        if len(said) >= SAME_WORDS:
            same["words", said].append(clip)
    ranges = {
        name: _range([label for _, label in labelled if isinstance(label, float)])
        for name, labelled in _by_label(clips).items()
    }
    kinds: tuple[tuple[str, State], ...] = (("media", "failed"), ("words", "warning"))
    for kind, state in kinds:
        torn = [
            f"{_ids(members)} ({name}: {_labels(members, name)})"
            for (of, _), members in same.items()
            if of == kind and len(members) > 1
            for name in ranges
            if _contradict([c.labels[name] for c in members if name in c.labels], ranges[name])
        ]
        yield _judged(
            LABELS,
            f"equal {kind}",
            torn,
            good="none carry contradicting labels",
            bad="carry contradicting labels",
            do="one of them is wrong, or what they share does not decide it",
            state=state,
        )


def _range(values: Sequence[float]) -> float:
    if not values:
        return 0.0
    low, high = np.percentile(values, [5, 95])
    return float(high - low)


def _contradict(labels: Sequence[Label], span: float) -> bool:
    numbers = [label for label in labels if isinstance(label, float)]
    if len(numbers) == len(labels):
        return bool(numbers) and max(numbers) - min(numbers) > APART * span > 0
    return len({str(label) for label in labels}) > 1


def spoken(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Clips whose transcript and length disagree."""
    told = [clip for clip in clips if clip.words is not None]
    if not told:
        yield finding(WORDS, "transcripts", "ok", "no clip has one")
        return
    wrong = [f"{clip.id} {why}" for clip in told if (why := _odd(clip))]
    yield _judged(
        WORDS,
        "transcripts",
        wrong,
        good=f"{len(told)} of {len(clips)} clips have one, as long as the clip",
        bad="do not fit their length",
        do="look at start, end and transcript of these rows",
    )


def _odd(clip: Clip) -> str:
    words = clip.words or ()
    if not words or clip.seconds <= 0:
        return ""
    rate = len(words) / clip.seconds
    if rate > FASTEST and len(words) > 2:
        return f"has {len(words)} words in {clip.seconds:.2f} s"
    if rate < SLOWEST and clip.seconds > SLOW_S:
        return f"has {len(words)} words in {clip.seconds:.1f} s"
    if (late := words[-1].end - clip.seconds) > LATE_S:
        return f"has a word that ends {late:.2f} s after it"
    return ""


def _column(column: Column, clips: Sequence[Clip]) -> Iterator[Finding]:
    """Dimensions of a column that do not vary, or that dwarf all others; of some clips."""
    values = _values(column, clips)
    if values is None:
        yield finding(FEATURES, column.spec.name, "warning", "no clip that was looked at has it")
        return
    if np.issubdtype(values.dtype, np.integer):  # pixels, numbers of word pieces
        yield finding(FEATURES, column.spec.name, "ok", "whole numbers, which are not looked at")
        return
    problems = dimensions(column.spec, values)
    yield _judged(
        FEATURES,
        column.spec.name,
        problems,
        good=f"{values.shape[1]} dimensions vary, on scales that can be compared",
        bad="are of no use as they are",
        do="leave dead ones out, or see why the featurizer gives them",
    )


def _values(column: Column, clips: Iterable[Clip]) -> NDArray[np.generic] | None:
    read = (column.read(clip.key) for clip in clips if clip.key in column.rows)
    steps = [feature.values for feature in read if feature is not None and len(feature.values)]
    return np.concatenate(steps) if steps else None


def dimensions(spec: FeatureSpec, values: NDArray[np.generic]) -> list[str]:
    """What is wrong with dimensions of steps [T, D]."""
    numbers = values.astype(np.float64)
    low, high, spread = numbers.min(axis=0), numbers.max(axis=0), numbers.std(axis=0)
    sparse = float(np.median((numbers == 0).mean(axis=0))) > SPARSE
    dead = [
        f"{spec.dims[at].name!r} is always {low[at]:g}"
        for at in np.flatnonzero(high == low).tolist()
        if not (sparse and low[at] == 0)
    ]
    alive = spread[high > low]
    usual = float(np.median(alive)) if len(alive) else math.inf
    wild = [
        f"{spec.dims[at].name!r} spreads {spread[at] / usual:.1g} times as far as others"
        for at in np.flatnonzero(spread > WILD * usual).tolist()
    ]
    return dead + wild


def _judged(
    area: str,
    what: str,
    problems: Sequence[str],
    *,
    good: str,
    bad: str,
    do: str,
    state: State = "warning",
) -> Finding:
    """What is good where there are no problems; else how many, and the first of them."""
    if not problems:
        return finding(area, what, "ok", good)
    return finding(area, what, state, f"{len(problems)} {bad}: {_few(problems)}", do)


def _few(told: Sequence[str]) -> str:
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return ", ".join(told[:NAMED]) + more


def _ids(clips: Sequence[Clip]) -> str:
    return " = ".join(clip.id for clip in clips[:NAMED])


def _labels(clips: Sequence[Clip], name: str) -> str:
    found: Mapping[str, None] = dict.fromkeys(
        f"{clip.labels[name]:g}" if isinstance(clip.labels[name], float) else str(clip.labels[name])
        for clip in clips
        if name in clip.labels
    )
    return " and ".join(found)
