"""What the nodes are asked before a job begins, of an experiment that goes along as a copy."""

import pytest
import yaml

from pipelines.cluster import live
from pipelines.cluster.live import Live
from pipelines.experiment import InputError
from pipelines.jobs import needs
from pipelines.jobs.beforehand import check_beforehand
from pipelines.jobs.server import JobServer
from pipelines.jobs.submission import Submission
from pipelines.jobs.tokens import Token
from tests.test_command_line import settings
from tests.test_validate import node

SERVER = JobServer("http://10.0.0.1:8265", "--address", Token("", "a test"))
MLFLOW = "http://10.0.0.1:5000"


@pytest.fixture
def asked(monkeypatch):
    """The questions that were put to a cluster, whose nodes a test names."""
    found = []

    def answer(address, question):
        found.append(question)
        files = dict.fromkeys(question.files, "there")
        return Live(address=address, nodes=[node(files=files, **each) for each in answer.nodes])

    answer.nodes, answer.found = [{}], found
    monkeypatch.setattr(live, "ask", answer)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return answer


def submitted(folder, *command, shared=False, variables=()):
    return Submission(
        command=command,
        wheel="w.zip",
        folder=str(folder) if shared else "folder.zip",
        inputs="",
        need=needs.need_of(command, None, None, None),
        variables=dict(variables),
        secrets=(),
        record="",
    )


def check(folder, *command, **more):
    check_beforehand(SERVER, submitted(folder, *command, **more), folder, None, lambda line: None)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.mp4").touch()
    (tmp_path / "work" / "clips.csv").write_text("id,media,mood\na,a.mp4,1\n")
    plain = settings(dataset=str(tmp_path / "disk"), workers={"featurize": 2, "train": 1})
    (tmp_path / "work" / "it.yaml").write_text(yaml.safe_dump(plain))
    return tmp_path / "work"


def test_a_store_that_would_go_with_the_copy_is_refused_on_one_node_and_on_several(folder, asked):
    lost = "tracking: MLFLOW_TRACKING_URI is not set: runs and models would lie in the job's copy"
    with pytest.raises(InputError, match=lost):
        check(folder, "run", "it.yaml")
    check(folder, "run", "it.yaml", variables={"MLFLOW_TRACKING_URI": MLFLOW})
    asked.nodes = [{"store": MLFLOW}]
    check(folder, "run", "it.yaml")
    asked.nodes = [{}, {"host": "b"}]
    with pytest.raises(InputError, match=lost):
        check(folder, "run", "it.yaml")


def test_what_goes_along_is_asked_of_no_node_and_room_and_dataset_are(folder, asked):
    asked.nodes = [{"store": MLFLOW}, {"host": "b", "store": MLFLOW}]
    check(folder, "run", "it.yaml")
    (question,) = asked.found
    assert not [file for file in question.files if file.startswith(str(folder))]
    assert [file for file in question.files if file.startswith(str(folder.parent))]
    with pytest.raises(InputError, match=r"media: not reached: .*/a\.mp4 on one"):
        check(folder, "run", "it.yaml", shared=True)  # of which no copy goes along
    asked.nodes = [{"resources": {"CPU": 1.0, "memory": 16.0 * (1 << 30)}, "store": MLFLOW}]
    with pytest.raises(InputError, match="ingest: wants 1 CPU each; the cluster at"):
        check(folder, "run", "it.yaml")


def test_commands_that_train_nothing_want_no_store_and_no_room_for_ranks(folder, asked):
    text = (folder / "it.yaml").read_text() + "\n"
    (folder / "wide.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load(text), "workers": {"train": 9}})
    )
    check(folder, "featurize", "wide.yaml")
    asked.nodes = [{"store": MLFLOW}]
    with pytest.raises(InputError, match="train: wants 9 workers with 1 CPU each"):
        check(folder, "run", "wide.yaml")
