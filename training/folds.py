"""Cross-validation: which clips of a dataset a run trains, validates and is tested on."""

from collections.abc import Sequence
from dataclasses import replace

from featurizers.clip import Clip

LEAST = 3
"""One fold to test on, one to validate on, and one at least to train on."""

ON_TEST = " best on test"
"""Behind a fold, as in "2/5 best on test": the epoch is chosen on the clips that are reported.

Some papers do so, and such a figure is optimistic: it is for holding against theirs, and no more.
"""


def parse(fold: str) -> tuple[int, int]:
    """The number of a fold, from 1, and how many there are, of a text such as "2/5".

    Raises:
        ValueError: It is of another form, or out of range.
    """
    number, _, count = str(fold).removesuffix(ON_TEST).partition("/")
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

    After the last fold comes the first. A clip that is in no fold takes no part. With `ON_TEST`
    the clips of the fold are there twice, as "test" and as "valid", and all others train.

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
    on_test = fold.endswith(ON_TEST)
    splits = {number: "test"} if on_test else {number: "test", number % count + 1: "valid"}
    dealt = [
        replace(clip, split=None if clip.fold is None else splits.get(clip.fold, "train"))
        for clip in clips
    ]
    again = (clip for clip in dealt if clip.split == "test") if on_test else ()
    return [*dealt, *(replace(clip, split="valid") for clip in again)]
