"""One thread for each process's arithmetic, set before torch and numpy are imported.

The tests' models are so small that threads wait for each other for longer than they compute, and
ranks and workers are processes beside this one: with a thread for each core, tests/test_loop.py
takes several times as long.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray reads it when it is imported, and some tests import Ray before our own `start_ray` sets it.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")

import sys
from functools import partial

import pytest


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """One thread, whatever the variable says, and whatever tests before have set."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Six clips, a predictor that reads them, and the store in which it is logged as a model.

    The folder, the predictor, the store's address, the model's, and the model's own folder. In the
    store, it is version 1 of the model "tiny".
    """
    from tests.tiny_predictor import log, make
    from tracking import mlflow_store
    from training.predict import Predictor

    root = tmp_path_factory.mktemp("tiny")
    _, _, folder, _ = make(root)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    mlflow_store.initialise(uri, root / "mlartifacts")
    run, address = log(folder, uri)
    mlflow_store.register(uri, "tiny", address, run.run_id, {})
    mlflow_store.MlflowRegistry(uri=uri).set_alias("tiny", "champion", 1)
    (model,) = (root / "mlartifacts").glob("toys/models/*/artifacts")
    return root, Predictor.load(folder), uri, address, model


@pytest.fixture
def called(capsys):
    """Calls a command in this process; gives its code, standard output and standard error."""
    from pipelines.__main__ import _called, app
    from pipelines.stopping import stoppable

    def call(*arguments):
        capsys.readouterr()
        run = partial(_called, lambda: app([str(each) for each in arguments], standalone_mode=True))
        code = stoppable(run, lambda: None)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
