"""What ranks train on: GPUs where there are any, and no processor where one is meant."""

import pytest

from pipelines import devices, ranks, train
from pipelines.devices import affordable, on_gpus
from pipelines.limits import Care
from pipelines.ranks import UnsharedFolderError, attended


@pytest.fixture
def cluster(monkeypatch):
    has = {"CPU": 16.0, "GPU": 1.0}
    monkeypatch.setattr(devices, "resources", lambda: has)
    return has


def test_more_ranks_than_gpus_are_fewer_ranks_on_gpus_and_it_is_said(cluster):
    said = []
    assert affordable(2, 2, "auto", said.append) == (1, 1)
    [warning] = said
    assert "2 ranks are wanted and the cluster has 1 GPU(s)" in warning
    assert affordable(2, 4, "auto", said.append) == (1, 4)  # it may grow
    assert len(said) == 2
    assert affordable(1, 4, "auto", said.append) == (1, 4)
    assert affordable(2, 2, "cpu", said.append) == (2, 2)
    assert affordable(2, 2, "cuda", said.append) == (2, 2)  # waits for them
    cluster["GPU"] = 0.0
    assert affordable(2, 2, "auto", said.append) == (2, 2)
    assert len(said) == 2


def test_ranks_are_on_gpus_where_there_are_any_unless_told(cluster):
    assert [on_gpus(device) for device in ("auto", "cpu", "cuda")] == [True, False, True]
    del cluster["GPU"]
    assert [on_gpus(device) for device in ("auto", "cpu", "cuda")] == [False, False, True]


def test_ranks_on_processors_see_no_gpu(cluster, tmp_path):
    def made(gpu_each):
        care = Care(device="cuda" if gpu_each else "cpu")
        return train._trainer(print, {}, tmp_path, 2, care, gpu_each=gpu_each, again=True)

    cpu, cuda = made(False), made(True)
    assert (cpu.scaling_config.use_gpu, cuda.scaling_config.use_gpu) == (False, True)
    hidden = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    assert (cpu.run_config.worker_runtime_env, cuda.run_config.worker_runtime_env) == (hidden, {})
    del cluster["GPU"]
    assert made(False).run_config.worker_runtime_env == {}


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "SHARED_S", 0.0)
    monkeypatch.setattr(ranks.socket, "gethostname", lambda: "node-3")
    done = []
    attend = attended(done.append, tmp_path)
    attend({"runs": 1})
    assert done == [{"runs": 1}]
    (tmp_path / ranks.SHARED).write_text("of another start")
    with pytest.raises(UnsharedFolderError, match=rf"node-3 does not see {tmp_path}"):
        attend({"runs": 1})
    (tmp_path / ranks.SHARED).unlink()
    with pytest.raises(UnsharedFolderError, match="a disk that all nodes share"):
        attend({"runs": 1})
    assert len(done) == 1
