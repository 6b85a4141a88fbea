"""Folds of a dataset for cross-validation: the table's own, or dealt by groups."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from featurizers.clip import Clip
from featurizers.dataset import write_clips
from pipelines.experiment import Experiment, InputError
from pipelines.sources import group_of, hashed, stratum
from training.folds import parse
from training.recipe import Task


def folds_of(experiment: Experiment) -> list[str]:
    """The folds that an experiment trains on, such as 1/5; the empty one is the dataset's splits.

    Raises:
        InputError: There is no such fold.
    """
    train = experiment.train
    asked = [train.fold] if train.fold else [f"{i + 1}/{train.folds}" for i in range(train.folds)]
    try:
        for fold in asked:
            parse(fold)
    except ValueError as error:
        raise InputError(f"train.{error}") from None
    return asked or [""]


def with_folds(
    experiment: Experiment, clips: Sequence[Clip], task: Task, *, write: bool = True
) -> Sequence[Clip]:
    """The clips of a dataset with as many folds as are asked for.

    Where they stand in that number, from the table or from before, they stay; else they are dealt,
    and written into the table of clips.

    Raises:
        InputError: There are too few groups.
    """
    fold = folds_of(experiment)[0]
    if not fold:
        return clips
    _, count = parse(fold)
    if {clip.fold for clip in clips if clip.fold is not None} == set(range(1, count + 1)):
        return clips
    dealt = deal(clips, task, count, experiment.source.split_seed)
    if write:
        write_clips(experiment.root, dealt)
    return dealt


def deal(clips: Sequence[Clip], task: Task, count: int, seed: int) -> list[Clip]:
    """Clips with a fold from 1 to `count` each; a group, such as a speaker, is in one alone.

    Groups go, the largest first, where their label has the fewest clips yet, then where there are
    the fewest at all. Decided by names, labels and the seed, not by the order of clips.

    Raises:
        InputError: There are fewer groups than folds.
    """
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[group_of(clip)].append(clip)
    if len(groups) < count:
        raise InputError(
            f"{count} folds are wanted of {len(groups)} groups (speakers, or source files), which "
            f"are never torn; take fewer folds, or give the table a column 'group'"
        )
    strata = {name: stratum(members, task) for name, members in groups.items()}
    folds: dict[str, int] = {}
    whole: Counter[int] = Counter(dict.fromkeys(range(1, count + 1), 0))
    alike: dict[str, Counter[int]] = defaultdict(Counter)
    for left, name in zip(
        range(len(groups), 0, -1),
        sorted(groups, key=lambda each: (-len(groups[each]), hashed(seed, each))),
        strict=True,
    ):
        own = alike[strata[name]]
        empty = [fold for fold in whole if not whole[fold]]
        among = empty if left <= len(empty) else list(whole)
        fold = min(among, key=lambda each: (own[each], whole[each], each))
        folds[name] = fold
        own[fold] += len(groups[name])
        whole[fold] += len(groups[name])
    return [replace(clip, fold=folds[group_of(clip)]) for clip in clips]
