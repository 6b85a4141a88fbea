"""Cross-validation: which clips of a dataset a run trains, validates and is tested on."""

from collections.abc import Sequence
from dataclasses import replace

from featurizers.clip import Clip

LEAST = 3
"""One fold to test on, one to validate on, and one at least to train on."""


def parse(fold: str) -> tuple[int, int]:
    """The number of a fold, from 1, and how many there are, of a text such as "2/5".

    Raises:
        ValueError: It is of another form, or out of range.
    """
    number, _, count = str(fold).partition("/")
    if not (number.isdecimal() and count.isdecimal()) or not 1 <= int(number) <= int(count):
        raise ValueError(f"fold is {fold!r}; wanted one of several, such as 2/5")
    if int(count) < LEAST:
        raise ValueError(
            f"fold is {fold!r}; wanted {LEAST} folds at least: one to test on, one to validate on, "
            f"the others to train on"
        )
    return int(number), int(count)


def in_fold(clips: Sequence[Clip], fold: str) -> Sequence[Clip]:
    """Clips with the splits of a fold: it is "test", the next one "valid", the others "train".

    After the last fold comes the first. A clip that is in no fold takes no part.

    Args:
        clips: Of the dataset, each with its fold.
        fold: Such as "2/5"; empty for the dataset's own splits.

    Raises:
        ValueError: The dataset has another number of folds.
    """
    if not fold:
        return clips
    number, count = parse(fold)
    found = {clip.fold for clip in clips if clip.fold is not None}
    if found != set(range(1, count + 1)):
        have = f"has {len(found)} folds" if found else "has no folds"
        raise ValueError(f"fold is {fold!r}, and the dataset {have}; `--folds {count}` deals them")
    splits = {number: "test", number % count + 1: "valid"}
    return [
        replace(clip, split=None if clip.fold is None else splits.get(clip.fold, "train"))
        for clip in clips
    ]
