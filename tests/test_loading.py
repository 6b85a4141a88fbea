"""How batches are brought to the ranks: by settings that change no number, and leave nothing."""

import json
import multiprocessing
from dataclasses import replace

import pytest
import yaml

from featurizers.dataset import read_clips
from featurizers.manifest import open_column
from featurizers.node_cache import NodeCache
from pipelines.experiment import InputError, load
from pipelines.plans import FINISHED, Loading, Plan
from pipelines.ranks import STATISTICS, received, sent, train_one
from pipelines.run import planned
from tests.test_loop import RECIPE, StopsAt, make_dataset
from tracking.run import MemoryRun
from training.data import load as load_data
from training.loop import fit
from training.session import LocalSession, PreemptedError

SHORT = replace(RECIPE, epochs=2, patience=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return root, make_dataset(root)


def written(folder, **workers):
    plain = {
        "dataset": "data",
        "source": {"table": "clips.csv", "label": "score"},
        "features": {"text": {"featurizer": "hashed-words"}},
        "workers": workers,
    }
    file = folder / "experiment.yaml"
    file.write_text(yaml.safe_dump(plain))
    return file


def test_the_file_says_how_and_it_crosses_to_the_ranks_in_no_digest(tmp_path, made):
    cache = {"folder": "near", "gigabytes": 0.5}
    experiment = load(written(tmp_path, loader=3, node_cache=cache))
    usual = load(written(tmp_path))
    columns = {name: open_column(made[0], each) for name, each in made[1].items()}
    plan, plain = (
        planned(each, columns, SHORT, read_clips(made[0])) for each in (experiment, usual)
    )
    assert plan.loading == Loading(workers=3, node_cache=NodeCache(tmp_path / "near", 1 << 29))
    assert plain.loading == Loading()
    assert plan.folder == plain.folder
    crossed = received(json.loads(json.dumps(sent(plan, "run", ""))))
    assert crossed.loading == plan.loading
    assert received(json.loads(json.dumps(sent(plain, "run", "")))).loading == Loading()


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ({"loader": -1}, r"workers\.loader: "),
        ({"node_cache": {"gigabytes": 1}}, r"workers\.node_cache\.folder: Field required"),
        ({"node_cache": {"folder": "x", "gigabyte": 1}}, r"\(did you mean 'gigabytes'\?\)"),
    ],
)
def test_a_wrong_way_is_told(tmp_path, workers, said):
    with pytest.raises(InputError, match=said):
        load(written(tmp_path, **workers))


def test_loader_workers_and_copies_on_the_node_are_used_and_change_no_result(made, tmp_path):
    far, columns = f"file://{made[0]}", made[1]  # read as an object store is
    near = NodeCache(tmp_path / "near", 1 << 30)
    results, forked = [], []
    for name, loading in (("bare", Loading()), ("all", Loading(workers=1, node_cache=near))):
        folder = tmp_path / name
        folder.mkdir()
        plan = Plan(
            name=name, recipe=SHORT, root=far, folder=folder, columns=columns, loading=loading
        )
        count: list[int] = []
        train_one(
            plan,
            LocalSession(folder / "checkpoints"),
            "",
            "",
            lambda _, count=count: count.append(len(multiprocessing.active_children())),
        )
        forked.append(count)
        results.append((folder / FINISHED).read_bytes())
        assert len([*(folder / STATISTICS).glob("normaliser-*.safetensors")]) == 1
    assert results[0] == results[1]
    assert forked == [[0, 0], [1, 1]]
    assert multiprocessing.active_children() == []
    assert len([path for path in near.folder.iterdir() if path.name[0] != "."]) == len(columns)


@pytest.mark.parametrize("loader", ["indexed", "streaming"])
@pytest.mark.parametrize("ends", ["asked", "damaged"])
def test_forked_workers_end_with_a_fit_that_fails(made, tmp_path, loader, ends, monkeypatch):
    recipe = replace(SHORT, loader=loader)
    data = load_data(*made, recipe)
    if ends == "damaged":

        def broken(*_):
            raise OSError("no such shard")

        monkeypatch.setattr(type(data.train), "made", broken)
        session, error = LocalSession(tmp_path / "run"), OSError
    else:
        session, error = StopsAt(tmp_path / "run", 2), PreemptedError
    with pytest.raises(error) as held:
        fit(recipe, data, session, MemoryRun(), loader_workers=2)
    # The traceback still holds all that the failed steps held.
    assert held.value.__traceback__ is not None
    assert multiprocessing.active_children() == []
