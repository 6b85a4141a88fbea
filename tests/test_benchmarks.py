"""Scripts of benchmarks/ lie beside one that has the name of a package."""

import subprocess
import sys
from pathlib import Path

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
