"""docs/python.md is run as it stands."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"

# Runs a program as a notebook does, by a shell of the name that tells one; prints what it showed.
NOTEBOOK = """
import json, sys
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

class ZMQInteractiveShell(InteractiveShell):
    pass

sys.modules["ipywidgets"] = None
shell = ZMQInteractiveShell.instance(display_pub_class=CapturingDisplayPublisher)
shell.run_cell(sys.stdin.read()).raise_error()
print(json.dumps(shell.display_pub.outputs))
"""


def shown():
    return "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S))


def run(program, folder, *, given=""):
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def plain(output):
    return re.sub(r"\x1b\[[0-9;]*m", "", output["data"]["text/plain"])


@pytest.mark.media
@pytest.mark.slow
def test_the_python_page_runs_without_ray_and_mlflow(tmp_path):
    # None makes an import fail: DeepSpeed itself takes MLflow when it finds it, and does without.
    barred = "import sys\nsys.modules['ray'] = sys.modules['mlflow'] = None\n"
    out = run(barred + shown(), tmp_path)
    assert "torch.Size([8, 1])" in out
    assert "'state': 'scored'" in out


@pytest.mark.media
@pytest.mark.slow
def test_the_python_page_draws_bars_in_a_notebook_without_widgets(tmp_path):
    until_trained = shown().split("\nrecipe = ")[0]
    out = run(NOTEBOOK, tmp_path, given=until_trained)
    told = [each for each in json.loads(out.splitlines()[-1]) if "text/html" in each["data"]]
    bars = {each["transient"]["display_id"]: each for each in told if each.get("transient")}
    ingested, featurized = bars.values()
    assert re.search(r"ingest +━+ 48/48", plain(ingested))
    assert re.search(r"featurize +━+ 96/96 clips .* media s/s, 0 faults", plain(featurized))
    assert "96/96 clips" in featurized["data"]["text/html"]
    changes = [each for each in told if each.get("update")]
    assert len(changes) > 2
    assert all(each["transient"]["display_id"] in bars for each in changes)
    assert any("in 2 jobs" in plain(each) for each in told)
