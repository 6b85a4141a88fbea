"""Runs, models and the promotion ledger on an MLflow server, or on a local SQLite file."""

from tracking.mlflow_store.connection import (
    NoStoreError,
    StoreAwayError,
    StoreError,
    client_of,
    connect,
    initialise,
    public,
    tracking_uri,
)
from tracking.mlflow_store.models import (
    Version,
    describe,
    download,
    load,
    log_model,
    register,
    run_of,
    version_behind,
    versions_of,
)
from tracking.mlflow_store.registry import MlflowRegistry
from tracking.mlflow_store.runs import (
    MlflowRun,
    RunFacts,
    find_run,
    parts_of,
    read_file,
    read_run,
    runs_called,
    start_run,
)

__all__ = [
    "MlflowRegistry",
    "MlflowRun",
    "NoStoreError",
    "RunFacts",
    "StoreAwayError",
    "StoreError",
    "Version",
    "client_of",
    "connect",
    "describe",
    "download",
    "find_run",
    "initialise",
    "load",
    "log_model",
    "parts_of",
    "public",
    "read_file",
    "read_run",
    "register",
    "run_of",
    "runs_called",
    "start_run",
    "tracking_uri",
    "version_behind",
    "versions_of",
]
