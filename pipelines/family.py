"""Runs that belong together, of several seeds or folds: one parent, one table."""

import json
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipelines.elastic import Say
from pipelines.plans import Plan, Trained
from pipelines.tracked import let_go, run_of, settled, when_back
from pipelines.train import group_name
from tracking.mlflow_store import MlflowRun
from tracking.scorecard import Scorecard

TAG = "fuseline.family"
TABLE = "runs.json"

Row = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Runs that belong together: the run that they are parts of, and its folder beside theirs."""

    folder: Path
    run: MlflowRun


def family_folder(plans: Sequence[Plan]) -> Path:
    """Where what belongs to several runs together lies."""
    return plans[0].folder.parent / f"runs-{group_name(plans)}"


def parent_of(plans: Sequence[Plan], uri: str, experiment: str, name: str) -> Family:
    """The run that those of several plans are parts of; the same after a failure."""
    folder = family_folder(plans)
    folder.mkdir(parents=True, exist_ok=True)
    run = run_of(folder, uri, experiment, name, {TAG: folder.name})
    return Family(folder=folder, run=run)


@contextmanager
def at_work(family: Family | None) -> Iterator[None]:
    """Show the parent as running meanwhile; when training stops before its end, settle it.

    What comes to the end settles it itself, with what is to be kept: `end`.
    """
    with settled([] if family is None else [(family, family.run)]):
        if family is not None:
            family.run.go_on()
        yield


def end(family: Family, file: Path) -> None:
    """Keep a file with the parent, and settle it."""
    family.run.log_file(file)
    family.run.finish()
    let_go(family.folder)


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


def keep(family: Family, rows: Sequence[Row], say: Say) -> None:
    """Keep the table with the parent, its means and deviations as metrics, and settle it.

    Raises:
        AwayError: The server is away, and did not come back.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / TABLE
        file.write_text(json.dumps(list(rows), indent=1))
        when_back(partial(_keep, family, rows, file), say)


def _keep(family: Family, rows: Sequence[Row], file: Path) -> None:
    for row in rows[-2:]:
        numbers = {
            f"{name} {row['run']}".replace(" ", "_"): value
            for name, value in row.items()
            if isinstance(value, float)
        }
        family.run.log_metrics(numbers, step=0)
    end(family, file)
