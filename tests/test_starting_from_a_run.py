"""A run that starts from another one, the whole way: lineage, leaks, and what `forget` finds."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest

from pipelines import ranks, run, train
from pipelines.lineage import standing_lineage
from training.session import LocalSession

EXPERIMENT = """\
dataset: {name}
source: {{table: {name}.csv, label: mood}}
features: {{audio: {{featurizer: logmel}}}}
model: {{recipe: unimodal}}
train: {{epochs: 1, global_batch: 4}}
workers: {{featurize: 1}}
"""

OLD = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2


def fitted_here(work, config, **_):
    """The one rank of each run, in this process and without Ray."""
    assert work is ranks.train_each
    for plain in config["runs"]:
        plan = ranks.received(plain)
        session = LocalSession(plan.folder / ranks.CHECKPOINTS)
        ranks.train_one(plan, session, config["uri"], plain["run_id"])


def recording(path, seed):
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).integers(-8000, 8000, size=8_000, dtype=np.int16)
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(noise.tobytes())


def experiment(folder, name, clips):
    """An experiment file and its table; `clips` are id, split, and the seed of the sound."""
    lines = ["id,media,speaker,split,mood"]
    for i, (clip, split, seed) in enumerate(clips):
        recording(folder / name / f"{clip}.wav", seed)
        lines.append(f"{clip},{name}/{clip}.wav,{clip},{split},{i % 3}")
    (folder / f"{name}.csv").write_text("\n".join([*lines, ""]))
    (folder / f"{name}.yaml").write_text(EXPERIMENT.format(name=name))


@pytest.fixture(
    params=["in this process", pytest.param("on Ray", marks=[pytest.mark.soak, pytest.mark.ray])]
)
def folder(request, tmp_path, monkeypatch):
    """Two datasets: one test clip of the new one has the very sound of an old training clip."""
    if request.param == "in this process":
        monkeypatch.setattr(train, "fit", fitted_here)
        monkeypatch.setattr(train, "start_ray", lambda cpus: None)
        monkeypatch.setattr(run, "keep_pages", lambda *_, **__: [])  # drawing takes its time
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    experiment(tmp_path, "old", [(f"old-{i}", split, i) for i, split in enumerate(OLD)])
    new = [(f"new-{i}", split, 50 + i) for i, split in enumerate(OLD)]
    experiment(tmp_path, "new", [*new, ("copy", "test", 0)])
    return tmp_path


def run_of(name):
    (file,) = Path(name).glob("training/*/run.json")
    return json.loads(file.read_bytes())["run_id"], file.parent


def test_a_run_that_starts_from_another_names_it_and_answers_for_its_clips(folder, called):
    code, _, err = called("run", "old.yaml")
    assert code == 0, err
    first, place = run_of("old")
    start = f"train.start={{model: {place / 'predictor'}}}"
    code, said, err = called("run", "new.yaml", "--set", start)
    assert code == 0, err
    second, _ = run_of("new")
    clip = folder / "new" / "copy.wav"
    leak = f"source {clip} (in run {first}, which it starts from)"
    assert leak in " ".join(said.split())

    code, out, _ = called("evaluate", "new.yaml", "--set", start, "--json")
    (card,) = json.loads(out).values()
    assert (code, card["leaks"], card["unknown_starts"]) == (0, [leak], [])
    lineage = standing_lineage(run_of("new")[1])
    assert [(each.part, each.run_id) for each in lineage.starts] == [("model", first)]
    assert {row["id"] for row in lineage.before[first].clips} == {f"old-{i}" for i in range(6)}

    code, out, err = called("forget", "old", "old-0", "--json")
    assert code == 0, err
    told = {each["run_id"]: each for each in json.loads(out)["runs"]}
    assert set(told) == {first, second}
    assert (list(told[first]["roles"].values()), told[first]["through"]) == (["train"], [])
    # Here it measured, and there it was trained on.
    assert set(told[second]["roles"].values()) == {"train", "test"}
    assert told[second]["through"] == [first]
