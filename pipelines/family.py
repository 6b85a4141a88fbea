"""Runs that belong together, of several seeds or folds: one parent, one table."""

import hashlib
import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.plans import Plan, Trained
from tracking.mlflow_store import MlflowRun, find_run, start_run
from tracking.scorecard import Scorecard

TAG = "fuseline.family"
TABLE = "runs.json"

Row = dict[str, object]


def parent_of(plans: Sequence[Plan], uri: str, experiment: str, name: str) -> MlflowRun:
    """The run that those of several plans are parts of; the same after a failure."""
    digest = hashlib.sha256("".join(plan.folder.name for plan in plans).encode()).hexdigest()[:16]
    found = find_run(uri, experiment, TAG, digest)
    return found or start_run(uri, experiment, name, {TAG: digest})


def table(trained: Sequence[Trained], cards: Mapping[str, Scorecard]) -> list[Row]:
    """A row for each run, with its best epoch's validation loss and its test metrics.

    Two rows more tell the mean and the standard deviation of the runs (n - 1), where there are
    several; a number that is not defined for all of them has none.

    Args:
        trained: The runs.
        cards: Their scorecards, by name; none where nothing was tested.
    """
    rows: list[Row] = []
    for each in trained:
        card = cards.get(each.plan.name)
        tested = {} if card is None else {f"test {k}": v for k, v in card.metrics.items()}
        numbers = {"valid loss": each.valid_loss, **tested}
        known = {name: v if math.isfinite(v) else None for name, v in numbers.items()}
        rows.append({"run": each.plan.name, **known})
    if len(rows) < 2:
        return rows
    mean: Row = {"run": "mean"}
    deviation: Row = {"run": "deviation"}
    for name in list(rows[0])[1:]:
        values = [row[name] for row in rows]
        found = [value for value in values if isinstance(value, float)]
        whole = len(found) == len(rows)
        mean[name] = statistics.fmean(found) if whole else None
        deviation[name] = statistics.stdev(found) if whole else None
    return [*rows, mean, deviation]


def keep(parent: MlflowRun, rows: Sequence[Row]) -> None:
    """Keep the table with the parent, its means and deviations as metrics, and settle it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / TABLE
        file.write_text(json.dumps(list(rows), indent=1))
        parent.log_file(file)
    for row in rows[-2:]:
        numbers = {
            f"{name} {row['run']}".replace(" ", "_"): value
            for name, value in row.items()
            if isinstance(value, float)
        }
        parent.log_metrics(numbers, step=0)
    parent.finish()
