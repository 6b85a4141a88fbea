"""docs/adding-a-featurizer.md is run as it stands, and its featurizer works like any other."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featurizers import catalog
from featurizers.media import encode
from featurizers.spec import check_feature
from pipelines.executors import InProcess
from pipelines.experiment import load
from pipelines.featurize import featurize
from pipelines.ingest import ingest
from tests import test_command_line
from tests.media_maker import tone

PAGE = Path(__file__).resolve().parent.parent / "docs" / "adding-a-featurizer.md"
LINES = 40

pytestmark = pytest.mark.media


@pytest.fixture(scope="module")
def blocks():
    """The featurizer, its line of the table, and how it is tried."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@pytest.fixture
def added(blocks, tmp_path, monkeypatch):
    """The page's module, written into the table by the page's line."""
    path = tmp_path / "crossings.py"
    path.write_text(blocks[0])
    spec = importlib.util.spec_from_file_location("featurizers.crossings", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "featurizers.crossings", module)
    spec.loader.exec_module(module)
    line = eval(f"{{{blocks[1]}}}", vars(module))  # noqa: S307 - the page's own line
    for name, kind in line.items():
        monkeypatch.setitem(catalog.KINDS, name, kind)
    return next(iter(line))


def film(path, hz, seconds=1.0):
    encode(path, frames=None, fps=5, samples=tone(hz, seconds), rate_hz=16_000)


def test_the_featurizer_has_fewer_than_forty_lines_of_code(blocks):
    lines = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(lines) < LINES


def test_the_page_tries_it_on_a_clip_as_it_stands(blocks, tmp_path):
    film(tmp_path / "clip.mp4", 400)
    done = subprocess.run(
        [sys.executable, "-c", blocks[0] + blocks[2]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sample (")


def test_what_the_page_adds_is_computed_and_committed_like_any_other(added, tmp_path):
    for number in range(6):
        film(tmp_path / f"{number}.mp4", 200 * (number + 1))
    file = test_command_line.experiment(
        tmp_path, features={"audio": {"featurizer": added, "hop_ms": 10}}
    )
    made = load(file)
    ingest(made, InProcess(), lambda count: None)
    column = featurize(made, InProcess(), lambda done: None)["audio"]
    for number in range(6):
        feature = column.read(f"c{number}")
        check_feature(column.spec, feature)
        inner = feature.values[20:-20]  # a tone crosses zero twice in a period
        assert np.median(inner) == pytest.approx(400 * (number + 1), abs=100)
    assert catalog.from_spec(column.spec).spec == column.spec


def test_where_the_sound_is_cut_does_not_show(added):
    sound = np.random.default_rng(0).integers(-9000, 9000, 16_000).astype(np.int16)
    whole, pieces = (_made(added, sound, size) for size in (16_000, 777))
    np.testing.assert_array_equal(whole.values, pieces.values)
    np.testing.assert_array_equal(whole.times, pieces.times)


def _made(name, sound, size):
    from featurizers.clip import Clip
    from featurizers.spec import AudioChunk

    extraction = catalog.build(name).begin(Clip(key="a", id="a", media="a", media_digest=""))
    for at in range(0, len(sound), size):
        extraction.add(AudioChunk(at / 16_000, sound[at : at + size]))
    return extraction.finish()
