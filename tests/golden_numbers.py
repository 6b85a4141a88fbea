"""The numbers of the authors' own code (tests/golden), and how close is close enough."""

from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


def golden(name):
    """All arrays of a name, float32 and int64; those that were cut by rows are whole again."""
    parts = [GOLDEN / f"{name}.npz", *sorted(GOLDEN.glob(f"{name}_part_*.npz"))]
    found = {}
    for path in filter(Path.is_file, parts):
        with np.load(path, allow_pickle=False) as file:
            found |= {key: file[key] for key in file.files}
    if not found:
        raise FileNotFoundError(f"{GOLDEN} has no numbers of {name!r}")
    cut = {}
    for key in sorted(key for key in found if "@" in key):
        cut.setdefault(key.partition("@")[0], []).append(found.pop(key))
    found |= {key: np.concatenate(rows) for key, rows in cut.items()}
    return {key: torch.from_numpy(array) for key, array in found.items()}


def part(arrays, prefix):
    """Those whose names begin with the prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def close(ours, theirs, tolerance=1e-5):
    """Largest difference over the largest value: what the golden numbers promise (their README)."""
    assert ours.shape == theirs.shape
    assert float((ours.detach() - theirs).abs().max()) <= tolerance * float(theirs.abs().max())
