"""Trained runs as a page: scores, errors, what missing streams cost, how training went, provenance.

Of several seeds or folds there is one page: the runs beside each other, then the best of them in
full.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pipelines.masks import Step
from pipelines.pages import Figure, Rows, Table, plots, render
from pipelines.pages.units import amount, share, signed
from pipelines.results import Predicted, Result, Resumed
from tracking.parts import Part
from tracking.scorecard import Scorecard
from training.recipe import Target

SHOWN = 2  # metrics with a figure of their own
TILES = 4
WORST = 20
STEPS = 100  # of a clip's masks
CURVES = 8  # runs with a line of their own: more cannot be told apart
BINS = 20

MEANINGS = {
    "mae": "mean distance between truth and prediction",
    "corr": "Pearson's correlation of truth and prediction",
    "acc2_has0": "share right: negative or not",
    "acc2_non0": "share right: negative or positive, truths of 0 left out",
    "f1_has0": "weighted F1: negative or not",
    "f1_non0": "weighted F1: negative or positive, truths of 0 left out",
    "acc7": "share right when rounded, from \u22123 to 3",
    "acc5": "share right when rounded, from \u22122 to 2",
    "acc3": "share right when rounded, from \u22121 to 1",
    "accuracy": "share right",
    "uar": "mean recall of the classes",
    "f1_weighted": "mean F1 of the classes, by their clips",
    "f1_macro": "mean F1 of the classes",
    "f1_micro": "F1 of all labels together",
    "subset_accuracy": "share of clips with every label right",
    "label_accuracy": "mean share right of the labels",
    "label_f1_weighted": "mean weighted F1 of the labels",
}
_STAGES = {
    "data_wait_share": "waiting for data",
    "device_share": "on the device",
    "collectives_share": "among ranks",
}


def page(results: Sequence[Result], rows: Sequence[Mapping[str, object]] = ()) -> str:
    """One run, or several of one recipe, as one HTML file; equal runs give equal bytes.

    Args:
        results: The runs, at least one.
        rows: Of several, as `pipelines.family.table` gives them.
    """
    best = min(results, key=lambda each: (each.standing, each.recipe.seed))
    drawn = figures(results, best)
    return render(
        "results.html",
        made=best,
        several=len(results),
        title=best.recipe.name if len(results) > 1 else best.name,
        verdict=_verdict(best),
        problems=problems(best),
        tiles=_tiles(best.card),
        runs=Table("Runs", [_run_row(row) for row in rows]),
        run_scores=Table("Scores of each run, with 95 % intervals", _run_scores(results)),
        scores=Table("Scores on the test clips", score_rows(best.card)),
        classes=Table("By class", _class_rows(best.card)),
        confusion=_confusion(best),
        labels=Table("By label", _label_rows(best)),
        worst=_worst(best),
        found=Table("Clips by the streams that they lack", _part_rows(best.card.as_found)),
        asked=Table("All clips, with a stream taken away", _asked_rows(best.card)),
        masks=[_masked(best, key, steps) for key, steps in best.masks.items()],
        history=Table("Epochs", _epoch_rows(best)),
        resumed=[_resumed(each) for each in best.resumed],
        time=Table("Where the time of an epoch went", _time_rows(best)),
        recipe=Table("Recipe", _recipe_rows(best)),
        sources=Table("Streams", _source_rows(best)),
        manifests=Table("Columns, with their manifests (sha256)", _manifest_rows(best)),
        made_by=Table("Provenance", _provenance_rows(best)),
        figures=drawn,
        run_figures=["seeds", *(name for name in drawn if name.startswith("runs "))],
        stream_figures=[name for name in drawn if name.startswith("streams ")],
        learning_figures=["losses", *(name for name in drawn if name.startswith("valid ")), "rate"],
        sections=[
            (anchor, name)
            for anchor, name, there in (
                ("runs", "Runs", len(results) > 1),
                ("scores", "Scores", True),
                ("errors", "Where it errs", True),
                ("missing", "Missing streams", bool(best.card.as_asked)),
                ("masks", "Masks", bool(best.masks)),
                ("learning", "Learning", True),
                ("time", "Time", "time" in drawn),
                ("origin", "Recipe and provenance", True),
            )
            if there
        ],
    )


def problems(made: Result) -> list[str]:
    """What a reader must know before the numbers."""
    found = [f"{name} is undefined: {why}" for name, why in made.card.undefined.items()]
    if lost := sum(math.isinf(each.error) for each in made.predicted):
        found.append(f"of {lost} clips the model predicts NaN or infinity")
    if made.card.leaks:
        found.append(f"in training, too: {', '.join(made.card.leaks)}")
    return found


def figures(results: Sequence[Result], best: Result) -> dict[str, Figure]:
    """The figures for which there are numbers, by name."""
    drawn = {
        **_curves(results, best),
        **_by_run(results),
        **_by_streams(best.card),
        **_errors(best),
        "time": _time(best),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def score(value: float) -> str:
    """A metric, with a true minus."""
    if math.isnan(value):
        return "undefined"
    return f"{value:.3f}".replace("-", "\u2212")


def score_rows(card: Scorecard) -> Rows:
    """Each metric with its interval."""
    intervals = card.intervals
    return [
        {
            "metric": name,
            "score": score(value),
            **_ends(intervals.get(name)),
            "better": card.better[name],
            "what it is": MEANINGS.get(name, ""),
        }
        for name, value in card.metrics.items()
    ]


def _ends(ends: tuple[float, float] | None) -> dict[str, str]:
    low, high = ends or (math.nan, math.nan)
    known = not math.isnan(low)
    return {"95 % from": score(low) if known else "", "to": score(high) if known else ""}


def _around(value: float, ends: tuple[float, float] | None) -> str:
    low, high = ends or (math.nan, math.nan)
    if math.isnan(low):
        return score(value)
    return f"{score(value)}\n{score(low)} to {score(high)}"


def _verdict(made: Result) -> str:
    return (
        f"Epoch {made.best_epoch + 1} of {len(made.history)} is the best by "
        f"{made.recipe.monitor}; it is tested on {amount(made.card.count)} clips"
    )


def _tiles(card: Scorecard) -> list[tuple[str, str, str]]:
    """Name, score and interval of the first metrics."""
    tiles = []
    for name, value in list(card.metrics.items())[:TILES]:
        low, high = card.intervals.get(name, (math.nan, math.nan))
        between = "" if math.isnan(low) else f"{score(low)} to {score(high)}"
        tiles.append((name, score(value), between))
    return tiles


def _run_row(row: Mapping[str, object]) -> dict[str, object]:
    return {
        name: score(value) if isinstance(value, float) else (value or "")
        for name, value in row.items()
    }


def _run_scores(results: Sequence[Result]) -> Rows:
    if len(results) < 2:
        return []
    return [
        {
            "run": each.name,
            "clips": each.card.count,
            **{
                name: _around(value, each.card.intervals.get(name))
                for name, value in each.card.metrics.items()
            },
        }
        for each in results
    ]


def _class_rows(card: Scorecard) -> Rows:
    return [
        {
            "class": name,
            "clips": round(values["support"]),
            **{key: score(value) for key, value in values.items() if key != "support"},
        }
        for name, values in card.by_class.items()
    ]


def _confusion(made: Result) -> dict[str, Any] | None:
    """Counts of clips, each with its share of its row: the truth."""
    if made.task.kind != "classes" or not made.card.confusion:
        return None
    names = list(made.card.by_class)
    rows: list[dict[str, Any]] = []
    for name, counts in zip(names, made.card.confusion, strict=True):
        total = sum(counts)
        cells = [
            {
                "count": count,
                "share": round(count / total, 3) if total else 0.0,
                "told": share(count / total) if total else "",
                "right": place == len(rows),
            }
            for place, count in enumerate(counts)
        ]
        rows.append({"truth": name, "cells": cells, "total": total})
    return {"names": names, "rows": rows}


def _label_rows(made: Result) -> Rows:
    """How often each of several labels is rightly and wrongly said."""
    if made.task.kind != "labels":
        return []
    tables = zip(made.card.by_class, made.card.confusion, strict=bool(made.card.confusion))
    return [
        {
            "label": name,
            "has it, predicted": hit,
            "has it, not predicted": missed,
            "has it not, predicted": added,
            "has it not, not predicted": right,
        }
        for name, ((right, added), (missed, hit)) in tables
    ]


def _worst(made: Result) -> Table:
    wrong = [each for each in made.predicted if each.error > 0]
    ordered = sorted(wrong, key=lambda each: (-each.error, each.id))[:WORST]
    left = len(wrong) - len(ordered)
    said = "" if made.task.kind == "regression" or left <= 0 else f"{amount(left)} more are wrong."
    return Table("The clips that are furthest off", [_predicted(made, e) for e in ordered], said)


def _predicted(made: Result, each: Predicted) -> dict[str, object]:
    off = {} if made.task.kind == "classes" else {"off by": _off(each.error)}
    without = {f"without {name}": target(made, said) for name, said in each.without.items()}
    return {
        "clip": each.id,
        "truth": target(made, each.truth),
        "predicted": target(made, each.said),
        **off,
        "lacks": ", ".join(each.lacking),
        **without,
    }


def _off(error: float) -> str:
    return "undefined" if math.isinf(error) else signed(error)


def target(made: Result, value: Target) -> str:
    """A truth or a prediction as people write it."""
    match made.task.kind:
        case "regression":
            return "none" if math.isnan(_number(value)) else signed(_number(value))
        case "classes":
            return "none" if math.isnan(_number(value)) else made.task.classes[int(_number(value))]
        case "labels":
            if isinstance(value, int | float):  # NaN of all of them
                return "none"
            has = zip(made.task.classes, value, strict=True)
            return ", ".join(name for name, yes in has if yes == 1) or "no label"


def _number(value: Target) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise TypeError(f"{value!r} is several numbers; one was wanted")


def _part_rows(parts: Sequence[Part]) -> Rows:
    if len(parts) < 2:
        return []
    return [
        {
            "lacking": ", ".join(part.streams) or "nothing",
            "clips": part.count,
            **{
                name: _around(value, part.intervals.get(name))
                for name, value in part.metrics.items()
            },
        }
        for part in parts
    ]


def _whole(card: Scorecard) -> Part:
    return Part(streams=(), count=card.count, metrics=card.metrics, intervals=card.intervals)


def _asked_rows(card: Scorecard) -> Rows:
    if not card.as_asked:
        return []
    rows = _part_rows([_whole(card), *card.as_asked])
    return [
        {
            "taken away": row["lacking"],
            **{k: v for k, v in row.items() if k not in {"lacking", "clips"}},
        }
        for row in rows
    ]


def _masked(made: Result, key: str, steps: Sequence[Step]) -> dict[str, Any]:
    """A clip's masks: a row a word, with each stream's share of the way from its least to its most.

    A mask of an LSTM stays between 0.27 and 0.73: from 0 to 1 every word would look alike.
    """
    [each] = [each for each in made.predicted if each.key == key]
    streams = list(steps[0].means) if steps else []
    ranges = {}
    for name in streams:
        known = [mean for step in steps if (mean := step.means[name]) is not None]
        ranges[name] = (min(known), max(known)) if known else (0.0, 0.0)
    rows = [
        {
            "word": step.word,
            "at": f"{step.start:.2f}\u2013{step.end:.2f}",
            "cells": [_let_through(step.means[name], ranges[name]) for name in streams],
        }
        for step in steps[:STEPS]
    ]
    without = [f"{target(made, said)} without {name}" for name, said in each.without.items()]
    return {
        "why": made.chosen[key],
        "id": each.id,
        "truth": target(made, each.truth),
        "said": target(made, each.said),
        "without": ", ".join(without),
        "streams": streams,
        "has_words": any(step.word for step in steps),
        "rows": rows,
        "left": len(steps) - len(rows),
    }


def _let_through(mean: float | None, ends: tuple[float, float]) -> dict[str, Any]:
    if mean is None:
        return {"text": "", "share": 0}
    low, high = ends
    return {
        "text": f"{mean:.3f}",
        "share": round((mean - low) / (high - low), 3) if high > low else 0,
    }


def _epoch_rows(made: Result) -> Rows:
    return [
        {"epoch": number, **{name: _small(value) for name, value in epoch.items()}}
        for number, epoch in enumerate(made.history, 1)
    ]


def _small(value: float) -> str:
    return "undefined" if math.isnan(value) else signed(value)


def _resumed(each: Resumed) -> str:
    on = f" on {each.ranks} ranks" if each.ranks else ""
    again = f"; {amount(each.again)} epochs were trained again" if each.again else ""
    return f"Attempt {each.attempt} went on with epoch {each.epoch + 1}{on}{again}"


def _shares(made: Result) -> dict[str, list[float]]:
    """By stage the share of each epoch's time, NaN where it was not noted; what is left is last."""
    if not any(each.shares for each in made.noted.values()):
        return {}
    rows: dict[str, list[float]] = {name: [] for name in [*_STAGES.values(), "all else"]}
    for epoch in range(len(made.history)):
        shares = made.noted[epoch].shares if epoch in made.noted else {}
        known = {title: shares.get(name, math.nan) for name, title in _STAGES.items()}
        known["all else"] = max(0.0, 1 - sum(known.values())) if shares else math.nan
        for title, value in known.items():
            rows[title].append(value)
    return rows


def _time_rows(made: Result) -> Rows:
    rows: Rows = []
    for name, values in _shares(made).items():
        known = [value for value in values if not math.isnan(value)]
        later = known[1:] or known
        rows.append(
            {
                "stage": name,
                "first epoch": share(known[0]),
                "later epochs, mean": share(sum(later) / len(later)),
                "most": share(max(known)),
            }
        )
    return rows


def _recipe_rows(made: Result) -> Rows:
    return [
        {"setting": name, "value": _setting(name, value)}
        for name, value in _flat(made.recipe.to_json())
    ]


def _setting(name: str, value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, str) and (name.startswith("start.") or name.endswith(".weights")):
        place, mark, digest = value.rpartition("#")
        return f"{PurePath(place).name}{mark}{digest}"  # folders are nobody else's business
    return "none" if value is None or value == "" else str(value)


def _flat(plain: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in plain.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


def _source_rows(made: Result) -> Rows:
    return [
        {
            "stream": stream,
            "feature": source.spec.name,
            "version": source.spec.version,
            "dims": source.spec.width,
            "sample": source.balance.sample,
            "absent": source.balance.absent,
            "quarantined": source.balance.quarantined,
            "numbers": "exact" if source.spec.atol is None else f"within {source.spec.atol:g}",
            "licence": source.spec.licence,
        }
        for stream, source in made.sources.items()
    ]


def _manifest_rows(made: Result) -> Rows:
    weighty = any(source.spec.weights for source in made.sources.values())
    return [
        {
            "stream": stream,
            "column": source.balance.column,
            "manifest": source.manifest,
            **({"weights": source.spec.weights} if weighty else {}),
        }
        for stream, source in made.sources.items()
    ]


def _provenance_rows(made: Result) -> Rows:
    told = {
        "run": made.run_id,
        "recipe (sha256)": made.recipe.digest,
        "evaluation set (sha256)": made.card.evaluation_set,
        "features through the registered model": _parity(made.card),
        "attempts": amount(made.attempts) if made.attempts else "not known",
        **{name.replace("env.", "").replace("version.", ""): v for name, v in made.made_by.items()},
    }
    return [{"fact": name, "value": value} for name, value in told.items()]


def _parity(card: Scorecard) -> str:
    match card.parity:
        case None:
            return "not compared with the shards"
        case True:
            return "equal those of the shards"
        case False:
            return "differ from those of the shards"


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
            {each.name: _whole(each.card) for each in results},
            f"{metric} of each run on its test clips, with 95 % intervals.",
        )
        for metric in list(results[0].card.metrics)[:SHOWN]
    }


def _by_streams(card: Scorecard) -> dict[str, Figure | None]:
    parts = {f"all {amount(card.count)} clips": _whole(card)}
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


def _whiskers(
    name: str, title: str, metric: str, parts: Mapping[str, Part], caption: str
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
        (_number(each.truth), _number(each.said))
        for each in made.predicted
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
    shares = _shares(made)
    if not shares:
        return None
    percent = {name: [100 * value for value in values] for name, values in shares.items()}
    marks = [each.epoch for each in made.resumed]
    svg = plots.curves(
        "time", "Shares of each epoch's time", "share of time (%)", percent, marks=marks
    )
    return Figure(svg, "What the training time of each epoch went into; validation is not in it.")
