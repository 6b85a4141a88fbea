"""fit(): it learns, stops early, and resumes to the same bits, on one rank and on two."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from featurizers.clip import Clip, Word
from featurizers.dataset import read_clips, write_clips
from featurizers.extract import Outcome
from featurizers.manifest import commit
from featurizers.shards import job_id, write_shard
from featurizers.spec import Dim, Feature, FeatureSpec
from featurizers.store import LocalStore
from tracking.run import MemoryRun
from training.checkpoint import CheckpointError
from training.data import load
from training.loop import fit, step_seed
from training.models import build
from training.predict import decide, outputs
from training.recipe import ModelSettings, Pooling, Recipe, Schedule, Task
from training.session import LocalSession, PreemptedError, Wish

WIDTHS = {"text": 4, "audio": 3}
SPLITS = ["train"] * 42 + ["valid"] * 11 + ["test"] * 7
RECIPE = Recipe(
    name="late_fusion",
    model=ModelSettings(kind="late_fusion", streams=tuple(WIDTHS), settings={"hidden": 8}),
    task=Task(kind="regression", label="score"),
    pooling=Pooling(kind="cells"),
    epochs=4,
    global_batch=8,
    micro_batch=2,
    learning_rate=5e-3,
    checkpoint_every=2,
)
STEPS = 6  # of an epoch: 42 clips in batches of 8
EXACT = {"hidden": 8, "encoder_dropout": 0.0, "fusion_dropout": 0.0}


def without_dropout(recipe):
    """No dropout but of modalities, which is the same on any number of ranks."""
    exact = replace(recipe.model, settings=EXACT)
    return replace(recipe, model=exact, modality_dropout=0.3)


# Classes, and labels, that are as rare as they come.
WEIGHED = {
    "classes": replace(
        without_dropout(RECIPE),
        task=Task(kind="classes", label="side", classes=("minus", "plus")),
        loss="cross_entropy",
        class_weights={"minus": 3.0, "plus": 0.5},
        epochs=2,
    ),
    "labels": replace(
        without_dropout(RECIPE),
        task=Task(kind="labels", label="tags", classes=("high", "loud")),
        loss="bce",
        class_weights="balanced",
        epochs=2,
    ),
}


def make_dataset(root):
    random = np.random.default_rng(0)
    edges = np.arange(5) * 0.5
    times = np.stack([edges[:-1], edges[1:]], axis=1)
    clips, outcomes = [], {name: [] for name in WIDTHS}
    for i, split in enumerate(SPLITS):
        arrays = {name: random.normal(size=(4, width)) for name, width in WIDTHS.items()}
        score = float(arrays["text"][:, 0].mean() + arrays["audio"][:, 1].mean())
        clips.append(
            Clip(
                key=f"k{i:02d}",
                id=f"{i}",
                media="",
                media_digest="",
                seconds=2.0,
                split=split,
                labels={
                    "score": score,
                    "side": "plus" if score > 0 else "minus",
                    "tags": (*(["high"] if score > 0.3 else []), *([] if i % 4 else ["loud"])),
                },
            )
        )
        for name, array in arrays.items():
            found = Feature(array.astype(np.float32), times)
            silent = name == "audio" and i % 9 == 4
            outcomes[name].append(
                Outcome(state="absent") if silent else Outcome(state="sample", feature=found)
            )
    write_clips(root, clips)
    columns = {}
    for name, width in WIDTHS.items():
        spec = FeatureSpec(
            name=name,
            version=1,
            modality="stream",
            reads=("words",),
            dims=tuple(Dim(f"d{i}") for i in range(width)),
            rate_hz=2.0,
        )
        job = job_id(spec, clips)
        commit(
            root,
            spec,
            "plan",
            [write_shard(LocalStore(root), 0, job, spec, clips=clips, outcomes=outcomes[name])],
        )
        columns[name] = spec.fingerprint
    return columns


class StopsAt(LocalSession):
    """Is asked to end after some step."""

    def __init__(self, folder, step):
        super().__init__(folder)
        self.step = step

    def wish(self, position):
        return Wish.END if position == self.step else Wish.GO_ON


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    return root, make_dataset(root)


@pytest.fixture(scope="module")
def data(made):
    return load(*made, RECIPE)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    return fit(RECIPE, data, LocalSession(tmp_path_factory.mktemp("run")), MemoryRun())


def same(ours, theirs):
    assert ours.history == theirs.history
    assert ours.best_epoch == theirs.best_epoch
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights)


def test_it_learns_and_the_best_weights_give_the_best_metrics(data, tmp_path):
    recipe = replace(RECIPE, epochs=25, micro_batch=None, learning_rate=2e-2)
    run, shown = MemoryRun(), []
    found = fit(recipe, data, LocalSession(tmp_path), run, lambda epoch, _: shown.append(epoch))
    assert found.metrics["valid_mae"] < 0.7 * found.history[0]["valid_mae"]
    assert found.metrics["valid_corr"] > 0.7
    model = build(recipe.model, WIDTHS, 1)
    model.load_state_dict(found.weights)
    samples = [data.valid.sample(key) for key in data.valid.keys]
    said = decide(recipe.task, outputs(model, samples, WIDTHS))
    truth = np.array(list(data.valid.targets.values()))
    assert np.abs(said - truth).mean() == pytest.approx(found.metrics["valid_mae"], abs=1e-6)
    assert [step for step, _ in run.metrics] == shown == list(range(len(found.history)))
    assert {"train_loss", "valid_loss", "valid_f1_non0", "learning_rate", "samples_per_second"} <= (
        run.metrics[0][1].keys()
    )
    shares = {name: value for name, value in run.metrics[1][1].items() if name[:5] == "time/"}
    assert shares.keys() == {
        "time/data_wait_share",
        "time/device_share",
        "time/collectives_share",
    }
    assert 0 < shares["time/data_wait_share"] < 1
    assert 0 < shares["time/device_share"] < sum(shares.values()) <= 1
    assert run.datasets["train"] == ("train", data.train.digest)
    assert run.settings["model.kind"] == "late_fusion"
    assert len(run.settings["order_digest"]) == 64
    assert sorted(run.files) == ["data/train_keys_by_shard.json", "recipe.json"]


def test_classes_are_learnt_too(made, tmp_path):
    task = Task(kind="classes", label="side", classes=("minus", "plus"))
    recipe = replace(RECIPE, task=task, loss="cross_entropy", epochs=12, learning_rate=2e-2)
    found = fit(recipe, load(*made, recipe), LocalSession(tmp_path), MemoryRun())
    assert found.metrics["valid_uar"] > 0.7


def test_it_stops_when_validation_gets_no_better(data, tmp_path):
    still = replace(RECIPE, epochs=50, learning_rate=0.0, patience=3)
    found = fit(still, data, LocalSession(tmp_path), MemoryRun())
    assert (len(found.history), found.best_epoch) == (4, 0)


def test_the_best_epoch_and_the_end_can_be_decided_by_a_metric_of_which_more_is_better(
    data, tmp_path
):
    recipe = replace(RECIPE, epochs=12, monitor="valid_corr", min_delta=0.05, patience=2)
    found = fit(recipe, data, LocalSession(tmp_path), MemoryRun())
    values = [epoch["valid_corr"] for epoch in found.history]
    assert found.metrics["valid_corr"] == max(values)
    assert found.best_epoch == values.index(max(values))
    assert len(values) < 12
    assert max(values[-2:]) < max(values[:-2]) + 0.05


@pytest.mark.parametrize("step", [2, STEPS, STEPS + 3])
def test_a_schedule_by_steps_resumes_to_the_same_bits(data, tmp_path, step):
    recipe = replace(RECIPE, epochs=2, schedule=Schedule(kind="cosine", warmup=3))
    whole = fit(recipe, data, LocalSession(tmp_path / "whole"), MemoryRun())
    with pytest.raises(PreemptedError):
        fit(recipe, data, StopsAt(tmp_path / "cut", step), MemoryRun())
    same(fit(recipe, data, LocalSession(tmp_path / "cut"), MemoryRun()), whole)
    half = recipe.learning_rate * (1 + np.cos(np.pi * (STEPS - 1 - 3) / (2 * STEPS - 3))) / 2
    assert whole.history[0]["learning_rate"] == pytest.approx(half)


@pytest.fixture(scope="module")
def short(data, tmp_path_factory):
    recipe = replace(RECIPE, epochs=2)
    place = tmp_path_factory.mktemp("short")
    return recipe, fit(recipe, data, LocalSession(place), MemoryRun())


@pytest.mark.parametrize("step", range(1, 2 * STEPS + 1))
def test_stopped_at_any_step_it_resumes_to_the_same_bits(data, short, tmp_path, step):
    recipe, whole = short
    with pytest.raises(PreemptedError):
        fit(recipe, data, StopsAt(tmp_path, step), MemoryRun())
    torch.manual_seed(1234)
    same(fit(recipe, data, LocalSession(tmp_path), MemoryRun()), whole)
    assert 1 <= len(list(tmp_path.iterdir())) <= 2


@pytest.mark.parametrize("change", ["label", "words", "order"])
def test_a_run_does_not_go_on_with_other_data(made, data, tmp_path, change):
    """A label was mended, or words were placed anew, while the run was down."""
    root = tmp_path / "copy"
    shutil.copytree(made[0], root)
    with pytest.raises(PreemptedError):
        fit(RECIPE, data, StopsAt(tmp_path / "run", STEPS + 1), MemoryRun())
    assert load(root, made[1], RECIPE).digest == data.digest
    clips = list(read_clips(root))
    at = next(i for i, clip in enumerate(clips) if clip.split == "train")
    changes = {
        "label": {"labels": {**clips[at].labels, "score": 0.25}},
        "words": {"words": (Word(text="so", start=0.0, end=0.5),)},
        "order": {"split": "valid"},
    }
    clips[at] = replace(clips[at], **changes[change])
    write_clips(root, clips)
    other = load(root, made[1], RECIPE)
    with pytest.raises(CheckpointError, match="checkpoint of other data"):
        fit(RECIPE, other, LocalSession(tmp_path / "run"), MemoryRun())
    same_as_before = fit(RECIPE, data, LocalSession(tmp_path / "run"), MemoryRun())
    assert len(same_as_before.history) == RECIPE.epochs


def test_modality_dropout_resumes_to_the_same_bits_and_changes_the_run(data, undisturbed, tmp_path):
    recipe = replace(RECIPE, epochs=2, modality_dropout=0.4)
    whole = fit(recipe, data, LocalSession(tmp_path / "whole"), MemoryRun())
    with pytest.raises(PreemptedError):
        fit(recipe, data, StopsAt(tmp_path / "cut", STEPS + 2), MemoryRun())
    torch.manual_seed(1234)
    same(fit(recipe, data, LocalSession(tmp_path / "cut"), MemoryRun()), whole)
    assert whole.history[0]["train_loss"] != undisturbed.history[0]["train_loss"]


def test_a_finished_run_is_taken_as_it_is(data, undisturbed, tmp_path):
    fit(RECIPE, data, LocalSession(tmp_path), MemoryRun())
    again = MemoryRun()
    same(fit(RECIPE, data, LocalSession(tmp_path), again), undisturbed)
    assert again.metrics == []


def test_nothing_to_validate_on_is_said_before_the_first_step(made, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(made[0], root)
    write_clips(root, load(*made, RECIPE).train.clips)
    with pytest.raises(ValueError, match="put some clips into 'valid'"):
        fit(RECIPE, load(root, made[1], RECIPE), LocalSession(tmp_path), MemoryRun())


def test_every_step_and_rank_has_its_own_seed():
    seeds = {step_seed(0, position, rank) for position in range(100) for rank in range(4)}
    assert len(seeds) == 400


@pytest.mark.slow
def test_two_ranks_resume_to_the_same_bits_and_follow_one_rank(made, tmp_path):
    root, columns = made
    command = [sys.executable, __file__, str(root), json.dumps(columns), str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in (0, 1)]
    assert [rank.wait(timeout=180) for rank in ranks] == [0, 0]
    zero, one = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert zero["steps"] == one["steps"] == [4 * STEPS, 4 * STEPS, 2 * STEPS]
    # What batch norms have observed goes on as well, though one rank's checkpoint holds it.
    for name in ("0", "1", "normed"):
        assert zero[name]["resumed"] == zero[name]["undisturbed"]
        assert one[name]["resumed"] == one[name]["undisturbed"]
    # The same global batches on one rank: equal but for the order of float32 sums.
    recipe = without_dropout(RECIPE)
    alone = fit(recipe, load(*made, recipe), LocalSession(tmp_path / "alone"), MemoryRun())
    moved = fit(
        replace(recipe, zero=0),
        load(*made, recipe),
        LocalSession(tmp_path / "moved"),
        MemoryRun(),
    )
    for other in (zero["exact"], moved.history):
        for ours, theirs in zip(other, alone.history, strict=True):
            assert dict(ours) == pytest.approx(dict(theirs), abs=1e-5)
    for name, recipe in WEIGHED.items():
        alone = fit(
            recipe, load(*made, recipe), LocalSession(tmp_path / f"one-{name}"), MemoryRun()
        )
        for ours, theirs in zip(zero[name], alone.history, strict=True):
            assert ours == pytest.approx(dict(theirs), abs=1e-5)
    assert zero["logged"] > 0
    assert all(0.01 < share < 1 for share in zero["among_ranks"])
    assert one["logged"] == 0


class InGroup(StopsAt):
    """One of two ranks."""

    world = 2

    def __init__(self, folder, rank, step):
        super().__init__(folder, step)
        self.rank = rank
        self.asked = 0

    def wish(self, position):
        self.asked += 1
        # One rank alone is told to end, and all of them do.
        return super().wish(position) if self.rank else Wish.GO_ON


def _as_rank(root, columns, folder, rank):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    report = {"steps": []}
    model = ModelSettings(kind="msaf", streams=tuple(WIDTHS), settings={"hidden": 8})
    normed = replace(RECIPE, model=model, epochs=2)
    for name, recipe in ((0, replace(RECIPE, zero=0)), (1, RECIPE), ("normed", normed)):
        data = load(root, columns, recipe)
        session = InGroup(folder / f"undisturbed{name}", rank, 1000)
        whole = fit(recipe, data, session, MemoryRun())
        report["steps"].append(session.asked)
        with pytest.raises(PreemptedError):
            fit(recipe, data, InGroup(folder / f"cut{name}", rank, STEPS + 3), MemoryRun())
        resumed = fit(recipe, data, InGroup(folder / f"cut{name}", rank, 1000), MemoryRun())
        report[name] = {"undisturbed": _plain(whole), "resumed": _plain(resumed)}
    run = MemoryRun()
    exact = fit(without_dropout(RECIPE), data, InGroup(folder / "exact", rank, 1000), run)
    report["exact"] = [dict(epoch) for epoch in exact.history]
    for name, recipe in WEIGHED.items():
        weighed = load(root, columns, recipe)
        found = fit(recipe, weighed, InGroup(folder / name, rank, 1000), MemoryRun())
        report[name] = [dict(epoch) for epoch in found.history]
    report["logged"] = len(run.metrics) + len(run.settings)
    report["among_ranks"] = [points["time/collectives_share"] for _, points in run.metrics]
    whole_state = without_dropout(replace(RECIPE, zero=0))
    with pytest.raises(PreemptedError):
        fit(whole_state, data, InGroup(folder / "moved", rank, STEPS + 3), MemoryRun())
    (folder / f"{rank}.json").write_text(json.dumps(report))
    # A rank that leaves first breaks the connections under the other, which then aborts.
    distributed.barrier()
    distributed.destroy_process_group()


def _plain(outcome):
    weights = {name: tensor.tolist() for name, tensor in outcome.weights.items()}
    return [outcome.best_epoch, [dict(epoch) for epoch in outcome.history], weights]


if __name__ == "__main__":
    _as_rank(Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
