"""`train --check-resume`: kill a short run, let it go on, and compare it with an undisturbed one.

Both take the same steps of the experiment's first run, on the same ranks. One of them saves half
way, loses all its ranks to SIGKILL a step later, and is taken up by Ray Train. Weights, moments
and counts of the last checkpoints are compared to the last bit.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featurizers.spec import canonical_json
from featurizers.store import publish
from pipelines.claim import taken_over
from pipelines.devices import affordable
from pipelines.elastic import Say, numbers
from pipelines.executors import start_ray
from pipelines.limits import Care
from pipelines.plans import CHECKPOINTS, Plan
from pipelines.ranks import sent, train_each
from pipelines.tracked import is_at_work, mlflow_run
from pipelines.train import fit
from training import checkpoint

FOLDER = "resume"
RESULT = "resume.json"
LEAST = 3
"""Steps: one before the checkpoint, one that is lost, and one that is taken again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What a check found.

    Attributes:
        steps: Of each of both runs.
        killed_at: The step after which all ranks were killed.
        ranks: How many there were.
        undisturbed: sha256 of all tensors after the last step.
        resumed: The same of the run that was killed.
    """

    run: str
    steps: int
    killed_at: int
    ranks: int
    undisturbed: str
    resumed: str

    @property
    def identical(self) -> bool:
        """Whether nothing was lost."""
        return self.undisturbed == self.resumed


def check_resume(
    plan: Plan, *, steps: int, uri: str, experiment: str, workers: int, care: Care, say: Say
) -> Resumed:
    """Take some steps twice, once with a kill between them, and keep what came of it with the run.

    The result is a tag of the run, `fuseline.resume`, and a file of it.

    Args:
        plan: The run; it is not trained by this, nor does it matter whether it is finished.
        steps: How many, at least 3.
        uri: The tracking server.
        experiment: The experiment's name there.
        workers: Ranks, rounded down where they do not divide the global batch.
        care: How runs are looked after; one failure more is permitted.
        say: Told what happens.

    Raises:
        TrainingFailedError: The ranks did not come back.
    """
    if steps < LEAST:
        raise ValueError(f"{steps} steps are too few to be interrupted; give at least {LEAST}")
    start_ray(workers)  # it tells how many GPUs there are
    (workers,) = numbers([plan.recipe], *affordable(workers, workers, care.device, say), say)
    half = max(2, (steps + 1) // 2)
    folder = plan.folder / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    digests: dict[str, str] = {}
    taken: dict[str, int] = {}
    for name, killed in (("undisturbed", 0), ("resumed", half)):
        say(f"check of resuming: {steps} steps, {f'killed after {killed}' if killed else name}")
        part = replace(plan, folder=folder / name)
        part.folder.mkdir(parents=True)
        config: Mapping[str, Any] = {
            "uri": "",
            "runs": [sent(part, "", taken_over(part.folder))],
            "check": {"ends": steps, "killed": killed},
        }
        often = replace(care, max_failures=care.max_failures + 1)
        group = folder / "ray" / name
        fit(train_each, config, group=group, workers=workers, care=often, say=say)
        last = checkpoint.standing(part.folder / CHECKPOINTS)[0]
        digests[name], taken[name] = digest_of(last), int(last.name.rpartition("-")[2])
    if not (folder / "resumed" / "killed-0").exists():
        raise ValueError(f"{plan.name} ends after {taken['resumed']} steps; check with fewer")
    found = Resumed(
        run=plan.name,
        steps=taken["undisturbed"],
        killed_at=half,
        ranks=workers,
        undisturbed=digests["undisturbed"],
        resumed=digests["resumed"],
    )
    _keep(found, plan, uri, experiment)
    shutil.rmtree(folder)
    return found


def digest_of(folder: Path) -> str:
    """sha256 in hex of the names and bytes of a checkpoint's tensors, and of AdamW's counts."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in checkpoint.tensors(folder):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(canonical_json(checkpoint.read_marker(folder)["about"]["steps"]))
    return digest.hexdigest()


def _keep(found: Resumed, plan: Plan, uri: str, experiment: str) -> None:
    publish(
        plan.folder / RESULT,
        json.dumps({**asdict(found), "identical": found.identical}, sort_keys=True).encode(),
    )
    run = mlflow_run(plan, uri, experiment)
    run.set_tags({"fuseline.resume": "identical" if found.identical else "differs"})
    run.log_file(plan.folder / RESULT)
    if not plan.finished and not is_at_work(plan.folder):
        run.finish("KILLED")  # as one that was stopped: training it goes on in the same run
