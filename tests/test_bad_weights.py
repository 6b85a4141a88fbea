"""Weights that cannot be used end a run with one line: the clips are not to blame."""

import json

import pytest

from featurizers import catalog
from featurizers.clip import Clip, Word
from featurizers.pretrained import WeightsError, weight_files
from pipelines.licences import judge
from pipelines.staging import Stage
from pipelines.worker import Job, MissingEncoderError, Part, ShardWorker

CLIP = Clip(
    key="a", id="a", media="", media_digest="", words=(Word(text="good", start=0.0, end=1.0),)
)


def job_of(featurizer):
    return Job(shard=0, clips=(CLIP,), parts=(Part(spec=featurizer.spec, job="0" * 64),))


def test_a_line_of_vectors_that_is_no_number_ends_the_job_and_names_the_file(tmp_path):
    file = tmp_path / "v.txt"
    file.write_text("bad 0.5 0.5\ngood nan 0.5\n", encoding="utf-8")
    worker = ShardWorker(tmp_path / "data", Stage(folder=tmp_path / "cache", limit_bytes=1 << 30))
    with pytest.raises(MissingEncoderError, match=r"v\.txt: the line of 'good' is no 2 finite"):
        worker(job_of(catalog.build("word-vectors", file=str(file))))
    worker.close()


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut", b"nothing of the kind"])
def test_vectors_in_no_npz_file_are_told_by_name(tmp_path, content):
    (tmp_path / "v.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"v\.npz") as caught:
        catalog.build("word-vectors", file=str(tmp_path / "v.npz"))
    assert "allow_pickle" not in str(caught.value)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": 3}'])
def test_an_index_of_weights_without_a_map_is_none(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    assert json.loads(content) is not None
    with pytest.raises(WeightsError, match="no weight_map"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("licence", "verdict"),
    [
        ("MIT", "free"),
        ("LGPL-2.1-or-later", "free"),
        ("Apache-2.0 AND GPL-3.0", "copyleft"),
        ("MIT License, GNU General Public License v3", "copyleft"),
        ("MIT; Commons Clause", "restricted"),
        ("for evaluation only, BSD-like", "restricted"),
    ],
)
def test_the_strictest_part_of_a_licence_counts(licence, verdict):
    assert judge(licence) == verdict
