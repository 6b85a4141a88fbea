"""Around the workers: names, and what becomes of runs that do not end."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.experiment import InputError
from pipelines.train import (
    FINISHED,
    Plan,
    TrainingFailedError,
    _mlflow_run,
    _settled,
    group_name,
    last_words,
)
from tracking import mlflow_store
from tracking.run import MemoryRun
from training.recipes import recipe
