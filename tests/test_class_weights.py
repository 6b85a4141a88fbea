"""Weights of classes: what is counted, and that the loss is exact over the global batch."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tests.test_loop import RECIPE, make_dataset
from tracking.run import MemoryRun
from training.class_weights import class_weights, weighed
from training.data import load
from training.loop import fit
from training.losses import clip_losses
from training.recipe import Task
from training.recipe_checks import check
from training.session import LocalSession

MOOD = Task(kind="classes", label="side", classes=("minus", "plus"))
TAGS = Task(kind="labels", label="tags", classes=("happy", "loud", "sad"))
CLASSES = replace(RECIPE, task=MOOD, loss="cross_entropy", class_weights="balanced", epochs=1)
LABELS = replace(RECIPE, task=TAGS, loss="bce", class_weights="balanced")


def test_balanced_classes_count_alike_together():
    found = class_weights(CLASSES, [0, 0, 0, 1])
    assert found == {"minus": pytest.approx(4 / 6), "plus": 2.0}
    assert 3 * found["minus"] == found["plus"]
    assert class_weights(CLASSES, [1, 1]) == {"minus": 1.0, "plus": 0.5}
    assert class_weights(replace(CLASSES, class_weights="none"), [0, 1]) == {}
    given = replace(CLASSES, class_weights={"plus": 3})
    assert class_weights(given, [0, 1]) == {"minus": 1.0, "plus": 3.0}


def test_labels_are_weighed_where_clips_have_them_as_in_pytorch():
    targets = [(1, 0, 1), (0, 0, 1), (0, 0, 1), (0, 0, 1)]
    found = class_weights(LABELS, targets)
    assert found == {"happy": 3.0, "loud": 1.0, "sad": 1.0}
    outputs, target = torch.randn(4, 3), torch.tensor(targets).float()
    ours = clip_losses(outputs, target, LABELS, tuple(found.values()))
    theirs = functional.binary_cross_entropy_with_logits(
        outputs, target, pos_weight=torch.tensor([3.0, 1.0, 1.0]), reduction="none"
    )
    assert torch.equal(ours, theirs.mean(1))


def test_the_loss_of_a_global_batch_is_pytorchs_weighted_mean():
    outputs, target = torch.randn(5, 2), torch.tensor([0, 0, 1, 0, 1])
    batch = weighed(
        tuple((str(i), 1.0) for i in range(5)),
        {"minus": 0.5, "plus": 3.0},
        {str(i): int(each) for i, each in enumerate(target)},
    )
    weights = torch.tensor([weight for _, weight in batch])
    ours = (clip_losses(outputs, target, CLASSES) * weights).sum() / weights.sum()
    theirs = functional.cross_entropy(outputs, target, weight=torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(ours, theirs)


def test_a_run_is_trained_and_told_by_weighted_losses(tmp_path):
    columns = make_dataset(tmp_path)
    still = replace(CLASSES, learning_rate=0.0)
    data = load(tmp_path, columns, still)
    runs = [MemoryRun(), MemoryRun()]
    plain = replace(still, class_weights={"minus": 1})
    heavy = replace(still, class_weights={"minus": 1000.0})
    found = [
        fit(recipe, data, LocalSession(tmp_path / str(i)), run).history[0]
        for i, (recipe, run) in enumerate(zip((plain, heavy), runs, strict=True))
    ]
    assert found[0]["valid_loss"] == found[1]["valid_loss"]
    assert found[0]["train_loss"] != pytest.approx(found[1]["train_loss"], rel=1e-3)
    assert found[1]["train_loss"] < 3  # over the sum of weights
    assert runs[1].settings["class_weight.minus"] == 1000.0


@pytest.mark.parametrize(
    ("task", "loss", "given", "message"),
    [
        (MOOD, "cross_entropy", "balancd", "class_weights is 'balancd' .*: none, balanced"),
        (MOOD, "cross_entropy", {"plsu": 2}, "the nearest is 'plus'"),
        (MOOD, "cross_entropy", {"plus": 0}, "class_weights.plus is 0; wanted a number above 0"),
        (RECIPE.task, "l1", "balanced", "a regression, which has no classes"),
    ],
)
def test_what_is_wrong_is_told(task, loss, given, message):
    with pytest.raises(ValueError, match=message):
        check(replace(RECIPE, task=task, loss=loss, class_weights=given))
