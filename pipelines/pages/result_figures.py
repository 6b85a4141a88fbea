"""The figures of the page of runs."""

import math
from collections.abc import Mapping, Sequence

from pipelines.pages import Figure, plots
from pipelines.pages.result_course import shares_of_time
from pipelines.pages.result_scores import FOUND, group_kind, number, whole
from pipelines.pages.units import amount
from pipelines.results import Result
from tracking.parts import Part, Subgroup
from tracking.scorecard import Scorecard

SHOWN = 2  # metrics with a figure of their own
GROUPS = 20  # with a line of their own
CURVES = 8  # runs with a line of their own: more cannot be told apart
BINS = 20


def figures(results: Sequence[Result], best: Result) -> dict[str, Figure]:
    """The figures for which there are numbers, by name."""
    drawn = {
        **_curves(results, best),
        **_by_run(results),
        **_by_streams(best.card),
        **_errors(best),
        **_by_group(best.card),
        "calibration": _reliability(best),
        "time": _time(best),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _curves(results: Sequence[Result], best: Result) -> dict[str, Figure | None]:
    marks = [each.epoch for each in best.resumed]
    losses = {
        "training": [epoch["train_loss"] for epoch in best.history],
        "validation": [epoch["valid_loss"] for epoch in best.history],
    }
    drawn: dict[str, Figure | None] = {
        "losses": Figure(
            plots.curves(
                "losses",
                "Loss by epoch",
                f"loss ({best.recipe.loss})",
                losses,
                best=best.best_epoch,
                marks=marks,
                log=_is_wide(losses),
            ),
            "Loss on training and validation clips.",
        )
    }
    shown = list(best.card.metrics)[:SHOWN]
    for metric in shown:
        values = {metric: [epoch.get(f"valid_{metric}", math.nan) for epoch in best.history]}
        if all(map(math.isnan, values[metric])):
            continue
        svg = plots.curves(
            f"valid-{metric.replace('_', '-')}",
            f"{metric} on validation clips by epoch",
            metric,
            values,
            best=best.best_epoch,
            marks=marks,
        )
        drawn[f"valid {metric}"] = Figure(svg, f"{metric} on the validation clips.")
    rates = {"learning rate": [epoch["learning_rate"] for epoch in best.history]}
    drawn["rate"] = Figure(
        plots.curves(
            "rate",
            "Learning rate by epoch",
            "learning rate",
            rates,
            marks=marks,
            log=_is_wide(rates),
        ),
        "Learning rate of each epoch's last step.",
    )
    if len(results) > 1:
        drawn["seeds"] = _all_curves(results)
    return drawn


def _all_curves(results: Sequence[Result]) -> Figure:
    monitor = results[0].recipe.monitor
    lines = {each.name: [epoch[monitor] for epoch in each.history] for each in results[:CURVES]}
    svg = plots.curves("seeds", f"{monitor} of each run by epoch", monitor, lines)
    left = len(results) - len(lines)
    more = f" The first {CURVES} runs are shown; {amount(left)} more are left out." if left else ""
    return Figure(svg, f"{monitor} of each run, by which the best epoch is chosen.{more}")


def _is_wide(series: Mapping[str, Sequence[float]]) -> bool:
    values = [value for each in series.values() for value in each if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def _by_run(results: Sequence[Result]) -> dict[str, Figure | None]:
    if len(results) < 2:
        return {}
    return {
        f"runs {metric}": _whiskers(
            f"runs-{metric}",
            f"{metric} of each run",
            metric,
            {each.name: whole(each.card) for each in results},
            f"{metric} of each run on its test clips, with 95 % intervals.",
        )
        for metric in list(results[0].card.metrics)[:SHOWN]
    }


def _by_streams(card: Scorecard) -> dict[str, Figure | None]:
    parts = {f"all {amount(card.count)} clips": whole(card)}
    parts |= {f"without {', '.join(part.streams)}": part for part in card.as_asked}
    if len(card.as_found) > 1:
        for part in card.as_found:
            lacking = ", ".join(part.streams) or "nothing"
            parts[f"lacking {lacking} ({amount(part.count)})"] = part
    if len(parts) < 2:
        return {}
    return {
        f"streams {metric}": _whiskers(
            f"streams-{metric}",
            f"{metric} when streams are missing",
            metric,
            parts,
            f"{metric} with each stream taken away from all clips, and of clips that lack some; "
            "with 95 % intervals.",
        )
        for metric in list(card.metrics)[:SHOWN]
    }


def _by_group(card: Scorecard) -> dict[str, Figure | None]:
    if len(card.by_group) < 2:
        return {}
    kind = group_kind(card)
    parts = {f"{each.name} ({amount(each.count)})": each for each in card.by_group[:GROUPS]}
    left = len(card.by_group) - len(parts)
    more = f" The first {GROUPS} are shown; {amount(left)} more are in the table." if left else ""
    return {
        f"groups {metric}": _whiskers(
            f"groups-{metric}",
            f"{metric} by {kind}",
            metric,
            parts,
            f"{metric} by {kind}, with 95 % intervals.{more}",
        )
        for metric in list(card.metrics)[:SHOWN]
    }


def _reliability(made: Result) -> Figure | None:
    found = made.card.calibration
    if found is None or not found.bins:
        return None
    predicted, observed = FOUND[found.kind]
    pairs = [(each.predicted, each.observed) for each in found.bins]
    svg = plots.scatter("reliability", f"{observed} over {predicted}", predicted, observed, pairs)
    return Figure(
        svg, f"{observed.capitalize()} over {predicted}, by bin: on the line is calibrated."
    )


def _whiskers(
    name: str, title: str, metric: str, parts: Mapping[str, Part | Subgroup], caption: str
) -> Figure | None:
    values = {
        which: (part.metrics[metric], *part.intervals.get(metric, (math.nan, math.nan)))
        for which, part in parts.items()
        if not math.isnan(part.metrics[metric])
    }
    if not values:
        return None
    return Figure(plots.whiskers(name.replace("_", "-"), title, metric, values), caption)


def _errors(made: Result) -> dict[str, Figure | None]:
    if made.task.kind != "regression":
        return {}
    pairs = [
        (number(each.truth), number(each.said))
        for each in made.answers
        if not math.isinf(each.error)
    ]
    if not pairs:
        return {}
    label = made.task.label
    drawn = plots.scatter(
        "truth",
        f"Predicted {label} against the truth",
        f"true {label}",
        f"predicted {label}",
        pairs,
    )
    edges, counts = _binned([said - truth for truth, said in pairs])
    residuals = plots.histogram(
        "residuals", "Clips by error", f"predicted \u2212 true {label}", edges, counts, log=False
    )
    return {
        "truth": Figure(drawn, f"Each test clip by its true and its predicted {label}."),
        "residuals": Figure(residuals, "Test clips by how far the prediction is off."),
    }


def _binned(values: Sequence[float]) -> tuple[list[float], list[int]]:
    """Edges and counts of equal bins, one edge of which is 0."""
    step = max(*map(abs, values), 1e-9) * 2 / BINS
    edges = [step * (place - BINS / 2) for place in range(BINS + 1)]
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, max(0, math.floor(value / step + BINS / 2)))] += 1
    return edges, counts


def _time(made: Result) -> Figure | None:
    shares = shares_of_time(made)
    if not shares:
        return None
    percent = {name: [100 * value for value in values] for name, values in shares.items()}
    marks = [each.epoch for each in made.resumed]
    svg = plots.curves(
        "time", "Shares of each epoch's time", "share of time (%)", percent, marks=marks
    )
    return Figure(svg, "What the training time of each epoch went into; validation is not in it.")
