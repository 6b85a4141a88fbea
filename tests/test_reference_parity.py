"""benchmarks/reference_parity.py, on folders that are laid out as the authors' repositories are.

What lies in them are the twins of benchmarks/twins, which have the released names, so that the
script is tried without the authors' code.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
SCRIPT = HOME / "benchmarks" / "reference_parity.py"

MMLATCH = f"""
import sys
import torch.nn as nn
import torch.nn.functional as F
import validators

sys.path.append({str(HOME / "benchmarks")!r})
from twins import mmlatch

class Linear(nn.Linear):
    def forward(self, x, lengths):
        return super().forward(x)

class Mask(mmlatch.Mask):
    def __init__(self, hidden, width, kind):
        super().__init__(hidden, width, 0.2)
        if kind == "learnable_static_mask":
            self.mask1, self.mask2 = Linear(hidden, width), Linear(hidden, width)

    def forward(self, x, others, lengths):
        first, second = self.mask1(others[0], lengths), self.mask2(others[1], lengths)
        return x * F.dropout((first.sigmoid() + second.sigmoid()) / 2, p=0.2)

class NoMask(nn.Module):
    def forward(self, x, h, lengths):
        return x

class AVTClassifier(mmlatch.MMLatch):
    def __init__(self, text, audio, visual, size, *, dropout, feedback, feedback_type=""):
        super().__init__((text, audio, visual), size, dropout=dropout)
        for name, width in (("f1", text), ("f2", audio), ("f3", visual)):
            setattr(self.encoder.fm, name, Mask(size, width, feedback_type))
        if not feedback:
            self.encoder.fm = NoMask()

    def forward(self, inputs):
        return WRONG(super().forward(inputs))
"""

MULT = f"""
import sys
sys.path.append({str(HOME / "benchmarks")!r})
from modules.position_embedding import make_positions
from twins import mult

class MULTModel(mult.MulT):
    def __init__(self, given):
        widths = (given.orig_d_l, given.orig_d_a, given.orig_d_v)
        super().__init__(widths, layers=given.layers, heads=given.num_heads, dropout=False)

    def forward(self, *streams):
        return WRONG(super().forward(*streams)), None
"""

MSAF = f"""
import sys
sys.path.append({str(HOME / "benchmarks")!r})
from twins import msaf

class MSAF(msaf.Msaf):
    def __init__(self, channels, width, dropout, lowest_atten, reduction_factor, split_block):
        super().__init__(channels, width, reduction=reduction_factor, dropout=dropout,
                         floor=lowest_atten, pieces=split_block)

    def forward(self, maps):
        return [WRONG(x) for x in super().forward(maps)]
"""

RIGHT, WRONG = "x", "x * 1.001"


def checkout(folder, model, answer=RIGHT):
    """A stand-in for an authors' repository, of which outputs `x` are given as `answer`."""
    files = {
        "mmlatch": {"mmlatch/mm.py": MMLATCH},
        "mult": {
            "src/models.py": MULT,
            "modules/position_embedding.py": "def make_positions(numbers):\n    return numbers\n",
        },
        "msaf": {"MSAF.py": MSAF},
    }[model]
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("WRONG(", f"(lambda x: {answer})("))
    return folder


def compare(folder, *more):
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--repo", str(folder), *more],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(HOME), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("model", ["mmlatch", "mult", "msaf"])
def test_equal_functions_are_told_to_be_equal(tmp_path, model):
    done = compare(checkout(tmp_path, model))
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["model"] == model
    assert told["agrees"] is True
    assert max(told["figures"].values()) < 1e-5
    assert "no git checkout, so names may differ" in done.stdout


def test_functions_that_differ_by_a_thousandth_fail(tmp_path):
    done = compare(checkout(tmp_path, "msaf", WRONG))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "THEY DIFFER" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["agrees"] is False


def test_a_folder_that_is_no_checkout_is_wrong_input(tmp_path):
    done = compare(tmp_path)
    assert done.returncode == 2
    assert "georgepar/mmlatch (mmlatch/mm.py)" in done.stderr


def test_a_checkout_of_another_model_is_wrong_input(tmp_path):
    done = compare(checkout(tmp_path, "msaf"), "--model", "mult")
    assert done.returncode == 2
    assert "has no src/models.py; for mult give a checkout of yaohungt" in done.stderr
