"""Folds: no group in two of them, labels even, each clip tested once; and the table of the runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from featurizers.clip import Clip
from featurizers.dataset import read_clips, write_clips
from pipelines import family
from pipelines.experiment import InputError
from pipelines.folds import deal
from pipelines.plans import Plan, Trained
from tests.test_loop import RECIPE, make_dataset
from training.data import load
from training.folds import ON_TEST, in_fold, parse
from training.recipe import Task

SIDE = Task(kind="classes", label="side", classes=("left", "right"))


def clips(speakers=12, each=5):
    return [
        Clip(
            key=f"k{s:02d}-{i}",
            id=f"{s}-{i}",
            media="",
            media_digest="",
            seconds=1.0,
            speaker=f"speaker {s}",
            split="train",
            labels={"side": "left" if s % 3 else "right"},
        )
        for s in range(speakers)
        for i in range(each + s % 2)
    ]


def test_a_group_is_in_one_fold_and_each_fold_has_its_share_of_every_label():
    dealt = deal(clips(), SIDE, 4, 0)
    by_speaker = {}
    for clip in dealt:
        by_speaker.setdefault(clip.speaker, set()).add(clip.fold)
    assert all(len(folds) == 1 for folds in by_speaker.values())
    assert {clip.fold for clip in dealt} == {1, 2, 3, 4}
    rights = [sum(c.fold == f and c.labels["side"] == "right" for c in dealt) for f in range(1, 5)]
    assert max(rights) - min(rights) <= 1
    assert deal(clips()[::-1], SIDE, 4, 0) == dealt[::-1]
    assert deal(clips(), SIDE, 4, 1) != dealt


def test_too_few_groups_are_never_torn():
    with pytest.raises(InputError, match="4 folds are wanted of 3 groups"):
        deal(clips(3), SIDE, 4, 0)
    assert {clip.fold for clip in deal(clips(4), SIDE, 4, 0)} == {1, 2, 3, 4}


def test_over_all_folds_each_clip_is_tested_once_and_validated_once():
    dealt = deal(clips(), SIDE, 3, 0)
    found = [in_fold(dealt, f"{number}/3") for number in (1, 2, 3)]
    for those in zip(*found, strict=True):
        assert sorted(clip.split for clip in those) == ["test", "train", "valid"]
    last = {clip.fold: clip.split for clip in found[2]}
    assert last == {3: "test", 1: "valid", 2: "train"}
    assert in_fold(dealt, "") is dealt
    alone = [replace(dealt[0], fold=None), *dealt[1:]]
    assert in_fold(alone, "1/3")[0].split is None


def test_best_on_test_chooses_the_epoch_on_the_clips_that_it_reports(tmp_path):
    dealt = deal(clips(), SIDE, 3, 0)
    found = in_fold(dealt, f"2/3{ON_TEST}")
    keys = {
        split: {clip.key for clip in found if clip.split == split}
        for split in ("train", "valid", "test")
    }
    assert keys["test"] == keys["valid"] == {clip.key for clip in dealt if clip.fold == 2}
    assert keys["train"] == {clip.key for clip in dealt if clip.fold != 2}
    columns = make_dataset(tmp_path)
    standing = list(read_clips(tmp_path))
    write_clips(tmp_path, [replace(clip, fold=i % 3 + 1) for i, clip in enumerate(standing)])
    data = load(tmp_path, columns, replace(RECIPE, fold=f"2/3{ON_TEST}"))
    assert data.test.keys == data.valid.keys == [clip.key for clip in standing][1::3]
    assert len(data.train.keys) == 2 * len(standing) // 3


@pytest.mark.parametrize("fold", ["2", "0/5", "6/5", "1/2", "a/b", "1/5/2", "", "2/5 best"])
def test_what_is_no_fold_is_told(fold):
    with pytest.raises(ValueError, match="fold is"):
        parse(fold)


def test_another_number_of_folds_is_told():
    with pytest.raises(ValueError, match=r"the dataset has 3 folds; `--folds 5` deals them"):
        in_fold(deal(clips(), SIDE, 3, 0), "2/5")


def test_training_reads_the_splits_of_its_fold(tmp_path):
    columns = make_dataset(tmp_path)
    standing = list(read_clips(tmp_path))
    with pytest.raises(ValueError, match="the dataset has no folds"):
        load(tmp_path, columns, replace(RECIPE, fold="1/3"))
    write_clips(tmp_path, [replace(clip, fold=i % 3 + 1) for i, clip in enumerate(standing)])
    data = load(tmp_path, columns, replace(RECIPE, fold="2/3"))
    keys = [clip.key for clip in standing]
    assert (data.test.keys, data.valid.keys) == (keys[1::3], keys[2::3])
    assert sorted(data.train.keys) == keys[0::3]


def trained(seed, loss, fold=""):
    recipe = replace(RECIPE, seed=seed, fold=fold)
    folder = Path(f"plan-{seed}")
    plan = Plan(name=f"seed {seed}", recipe=recipe, root=folder, folder=folder, columns={})
    return Trained(
        plan=plan,
        run_id="r",
        best_epoch=1,
        history=[{"valid_loss": 9.0}, {"valid_loss": loss}],
        predictions={},
        lacking={},
        without={},
    )


class Card:
    def __init__(self, **metrics):
        self.metrics = metrics


def test_the_table_of_runs_ends_with_their_mean_and_deviation():
    runs = [trained(0, 1.0), trained(1, 2.0), trained(2, 3.0)]
    cards = {f"seed {i}": Card(mae=float(i), corr=float("nan")) for i in range(3)}
    rows = family.table(runs, cards)
    assert rows[0] == {"run": "seed 0", "valid loss": 1.0, "test mae": 0.0, "test corr": None}
    assert rows[3] == {"run": "mean", "valid loss": 2.0, "test mae": 1.0, "test corr": None}
    assert rows[4] == {"run": "deviation", "valid loss": 1.0, "test mae": 1.0, "test corr": None}
    assert len(family.table(runs[:1], cards)) == 1


def test_the_best_run_is_that_of_the_best_value_of_what_is_monitored():
    by_loss = replace(RECIPE)
    by_corr = replace(RECIPE, monitor="valid_corr")
    found = trained(0, 2.0)
    history = [{"valid_loss": 1.0, "valid_corr": 0.2}, {"valid_loss": 2.0, "valid_corr": 0.7}]
    for recipe, standing in ((by_loss, 2.0), (by_corr, -0.7)):
        plan = replace(found.plan, recipe=recipe)
        assert replace(found, plan=plan, history=history).standing == standing
