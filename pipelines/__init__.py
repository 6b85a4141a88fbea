"""Flows: where features, training and tracking meet the cluster."""

import importlib.util
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
PACKAGES = ("featurizers", "training", "tracking")


def strangers() -> list[str]:
    """Our package names that would come from elsewhere, such as somebody's folder training/."""
    found: list[str] = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        if [Path(place).resolve() for place in places] != [HOME / name]:
            where = places[0] if places else "nowhere"
            found.append(f"'{name}' would be imported from {where}, not from {HOME / name}")
    return found


# Checked at import, in every process, before anything of the wrong package can run.
if _strangers := strangers():
    sys.stderr.write(
        f"fuseline: {'; '.join(_strangers)}. Run from another folder, or take that one off "
        f"PYTHONPATH.\n"
    )
    sys.exit(2)
