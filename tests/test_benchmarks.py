"""Scripts of benchmarks/ lie beside one that has the name of a package, and that one runs."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def test_a_script_beside_featurizers_py_imports_the_package():
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); "
        "import featurizers.spec; print(featurizers.__file__)"
    )
    environment = {"PYTHONPATH": str(BENCHMARKS.parent)}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert Path(found.stdout.strip()) == BENCHMARKS.parent / "featurizers/__init__.py"


def test_words_and_streams_are_measured_where_media_librosa_and_ray_cannot_be_loaded():
    """As on a machine that has a GPU and little else."""
    script = str(BENCHMARKS / "featurizers.py")
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(('av', 'librosa', 'ray', 'cv2', 'mlflow')))\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        f"sys.argv = [{script!r}, '--quick', '--only', 'words', 'streams']\n"
        f"runpy.run_path({script!r}, run_name='__main__')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(BENCHMARKS.parent)},
    )
    said = json.loads(found.stdout.splitlines()[-1])
    assert said["benchmark"] == "featurizers"
    names = {"hashed_words", "word_vectors", "word_pieces", "numbers", "track", "skeleton"}
    assert set(said["figures"]) == {f"{name}_media_s_per_s" for name in names}
    assert all(value > 0 for value in said["figures"].values())


def test_a_name_of_the_catalog_without_a_line_is_told(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    script = runpy.run_path(str(BENCHMARKS / "featurizers.py"))
    measured = script["measured"]
    monkeypatch.setitem(measured.__globals__, "GROUPS", {"words": ("rivals.plain", "said")})
    monkeypatch.setitem(measured.__globals__, "raced", lambda race, rounds, device: race.name)
    lines = measured(["words"], quick=True, device="cpu")
    assert [next(lines) for _ in range(3)] == ["hashed words", "word vectors", "word pieces"]
    with pytest.raises(SystemExit, match=r"no line measures appearance, .*; add one to rivals/"):
        next(lines)


def figures(script, *arguments):
    """What a benchmark's line for machines says."""
    found = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent), "DS_ACCELERATOR": "cpu"},
    )
    return json.loads(found.stdout.splitlines()[-1])["figures"]


@pytest.mark.soak
def test_losses_of_forty_steps_are_those_of_any_number_of_ranks_and_of_a_resumed_run():
    found = figures("resume.py")
    assert found["steps"] == 40
    assert 0 < found["exact_other_ranks"] < 1e-5
    assert 0 < found["exact_resumed"] < 1e-5
    assert found["same_ranks"] == 0


@pytest.mark.soak
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_encoders_learn_with_their_fusion_model_at_every_stage_and_offloaded(ranks):
    found = figures("finetune.py", "--ranks", ranks, "--zero", "0", "2", "3", "--offload")
    begun = {name: loss for name, loss in found.items() if name.endswith("_first_loss")}
    assert len(begun) == 4, found
    for name, loss in begun.items():
        assert found[name.replace("_first_loss", "_loss")] < loss, name
