"""`compare`: runs on a tracking server side by side, clip by clip."""

import re
from collections.abc import Mapping, Sequence

from pipelines.experiment import InputError
from pipelines.plans import PREDICTIONS
from tracking.mlflow_store import MlflowRegistry, parts_of, public, read_file, run_of, runs_called
from tracking.registry import UnknownModelError
from training.compare import Comparison, Difference, IncomparableRunsError, compare
from training.predicted import Predicted

Row = dict[str, object]

SIGNIFICANT = 0.05
_MODEL = re.compile(r"(?:models:/)?([\w.-]+)@([\w-]+)")


def compare_runs(uri: str, names: Sequence[str], metrics: Sequence[str] = ()) -> Comparison:
    """Compare runs on the clips that all of them were scored on.

    Args:
        uri: The tracking server.
        names: Names or ids of runs, of runs of several seeds, or MODEL@ALIAS.
        metrics: What to compare; all metrics of the task where none is given.

    Raises:
        InputError: No such run, several of that name, one without predictions, or they were not
            scored on the same clips.
    """
    ids = list(dict.fromkeys(run_id for name in names for run_id in _runs(uri, name)))
    try:
        return compare([_predicted(uri, run_id) for run_id in ids], metrics)
    except IncomparableRunsError as error:
        raise InputError(str(error)) from None


def tables(found: Comparison) -> list[tuple[str, list[Row]]]:
    """Title and rows for people: scores, and differences to the first model where there are."""
    reference, *others = found.scores
    scores: list[Row] = []
    for name, by_metric in found.scores.items():
        for metric, score in by_metric.items():
            low, high = score.interval
            scores.append(
                {
                    "model": name,
                    "runs": len(score.values),
                    "seeds": ", ".join(map(str, score.seeds)),
                    "metric": metric,
                    "mean": score.mean,
                    "deviation": score.deviation if len(score.values) > 1 else "",
                    "95 % interval": f"{low:.4f} to {high:.4f}",
                }
            )
    title = f"{found.count} clips of set {found.evaluation_set[:12]}"
    if not others:
        return [(title, scores)]
    rows = [_row(found, each) for each in found.differences]
    how = f"paired bootstrap of {found.draws} draws, Holm over {len(rows)} comparisons"
    return [(title, scores), (f"difference to {reference} ({how})", rows)]


def _row(found: Comparison, each: Difference) -> Row:
    low, high = each.interval
    return {
        "model": each.name,
        "metric": each.metric,
        "seeds": ", ".join(map(str, each.seeds)) or "none in common",
        "difference": f"{each.difference:+.4f}",
        "deviation": f"{each.deviation:.4f}" if len(each.seeds) > 1 else "",
        "95 % interval": f"{low:+.4f} to {high:+.4f}",
        "p": f"{each.p:.4f}",
        "p (Holm)": f"{each.corrected:.4f}",
        "": verdict(found, each),
    }


def verdict(found: Comparison, each: Difference) -> str:
    """What a difference comes to: "better", "worse", or nothing that can be told."""
    if not each.corrected <= SIGNIFICANT:
        return ""
    higher = found.better[each.metric] == "higher"
    return "better" if (each.difference > 0) == higher else "worse"


def _runs(uri: str, name: str) -> list[str]:
    """The ids of the runs that a name stands for."""
    if model := _MODEL.fullmatch(name):
        return [_champion(uri, *model.groups())]
    found = runs_called(uri, name)
    if not found:
        raise InputError(
            f"there is no run {name!r} at {public(uri)}; give a run's name or id, or MODEL@ALIAS"
        )
    if len(found) > 1:
        raise InputError(
            f"{len(found)} runs are named {name!r}; give the id of one, newest first: "
            f"{', '.join(found[:5])}"
        )
    return parts_of(uri, found[0]) or found


def _champion(uri: str, name: str, alias: str) -> str:
    aliases: Mapping[str, int] = MlflowRegistry(uri=uri).aliases(name)
    if alias not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise UnknownModelError(f"model {name!r} has no alias {alias!r}; those that exist: {known}")
    return run_of(uri, name, aliases[alias])


def _predicted(uri: str, run_id: str) -> Predicted:
    try:
        return Predicted.from_parquet(read_file(uri, run_id, PREDICTIONS), f"run {run_id}")
    except (FileNotFoundError, ValueError) as error:
        raise InputError(
            f"run {run_id} has no predictions to compare ({error}); train it to its end with this "
            f"version"
        ) from None
