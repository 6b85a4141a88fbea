"""docs/python.md is run as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"


@pytest.mark.media
@pytest.mark.slow
def test_the_python_page_runs_without_ray_and_mlflow(tmp_path):
    shown = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    # None makes an import fail: DeepSpeed itself takes MLflow when it finds it, and does without.
    barred = "import sys\nsys.modules['ray'] = sys.modules['mlflow'] = None\n"
    program = barred + "\n".join(shown)
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    assert "torch.Size([8, 1])" in result.stdout
    assert "'state': 'scored'" in result.stdout
