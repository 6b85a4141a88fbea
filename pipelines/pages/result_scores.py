"""What the page of a run says of its scorecard and its test clips, as rows of tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.pages import Rows, Table
from pipelines.pages.units import amount, share, signed, span
from pipelines.results import Answer, Result
from tracking.parts import Part, TaskKind
from tracking.scorecard import Scorecard
from training.recipe import Target

WORST = 20

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
CALIBRATION = {
    "ece": "expected calibration error: mean distance of probability and share right",
    "mce": "the largest distance of a bin",
    "brier": "mean squared distance of all probabilities from the truth",
    "confidence": "mean probability",
    "accuracy": "mean share right",
    "bias": "mean of predicted \u2212 true",
    "slope": "of the line of the truth over the prediction; 1 is best",
    "intercept": "of that line; 0 is best",
    "q05": "5 % of predicted \u2212 true lie below",
    "q25": "25 % lie below",
    "q50": "half of them lie below",
    "q75": "75 % lie below",
    "q95": "95 % lie below",
}


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


def run_row(row: Mapping[str, object]) -> dict[str, object]:
    """A row of `pipelines.family.table`, as people read it."""
    return {
        name: score(value) if isinstance(value, float) else (value or "")
        for name, value in row.items()
    }


def run_scores(results: Sequence[Result]) -> Rows:
    """The scores of each of several runs."""
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


def class_rows(made: Result) -> Rows:
    """Each class or label by itself."""
    kind = "label" if made.task.kind == "labels" else "class"
    return [
        {
            kind: name,
            "clips": round(values["support"]),
            **{key: score(value) for key, value in values.items() if key != "support"},
        }
        for name, values in made.card.by_class.items()
    ]


def confusion(made: Result) -> dict[str, Any] | None:
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


def label_rows(made: Result) -> Rows:
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


def worst(made: Result) -> Table:
    """The clips that are furthest off."""
    wrong = [each for each in made.answers if each.error > 0]
    ordered = sorted(wrong, key=lambda each: (-each.error, each.id))[:WORST]
    left = len(wrong) - len(ordered)
    said = "" if made.task.kind == "regression" or left <= 0 else f"{amount(left)} more are wrong."
    return Table("The clips that are furthest off", [_answer(made, e) for e in ordered], said)


def _answer(made: Result, each: Answer) -> dict[str, object]:
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
            return "none" if math.isnan(number(value)) else signed(number(value))
        case "classes":
            return "none" if math.isnan(number(value)) else made.task.classes[int(number(value))]
        case "labels":
            if isinstance(value, int | float):  # NaN of all of them
                return "none"
            has = zip(made.task.classes, value, strict=True)
            return ", ".join(name for name, yes in has if yes == 1) or "no label"


def number(value: Target) -> float:
    """The number of a regression, or of a class.

    Raises:
        TypeError: It is several labels.
    """
    if isinstance(value, int | float):
        return float(value)
    raise TypeError(f"{value!r} is several numbers; one was wanted")


def part_rows(parts: Sequence[Part]) -> Rows:
    """Scores of clips by what they lack; nothing where all lack the same."""
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


def whole(card: Scorecard) -> Part:
    """All clips, as a part of them."""
    return Part(streams=(), count=card.count, metrics=card.metrics, intervals=card.intervals)


def asked_rows(card: Scorecard) -> Rows:
    """Scores of all clips with each stream taken away."""
    if not card.as_asked:
        return []
    rows = part_rows([whole(card), *card.as_asked])
    return [
        {
            "taken away": row["lacking"],
            **{k: v for k, v in row.items() if k not in {"lacking", "clips"}},
        }
        for row in rows
    ]


def calibration_rows(card: Scorecard) -> Rows:
    """The numbers of a calibration."""
    if card.calibration is None:
        return []
    return [
        {"number": name, "value": score(value), "what it is": CALIBRATION.get(name, "")}
        for name, value in card.calibration.numbers.items()
    ]


def bin_rows(card: Scorecard) -> Rows:
    """Bins with what a calibrated model has equal: what is predicted and what is found."""
    if card.calibration is None:
        return []
    predicted, observed = FOUND[card.calibration.kind]
    return [
        {
            "from": score(each.low),
            "to": score(each.high),
            "count": each.count,
            predicted: score(each.predicted),
            observed: score(each.observed),
            "off by": score(each.error),
        }
        for each in card.calibration.bins
    ]


FOUND: Mapping[TaskKind, tuple[str, str]] = {
    "regression": ("mean prediction", "mean truth"),
    "classes": ("mean probability of what is predicted", "share right"),
    "labels": ("mean probability of yes", "share of yes in the truth"),
}


def group_kind(card: Scorecard) -> str:
    """What groups of speakers are: "group" or "speaker"."""
    return card.by_group[0].kind if card.by_group else "speaker"


def group_rows(card: Scorecard) -> Rows:
    """Scores by group of speakers; nothing of a single one."""
    if len(card.by_group) < 2:
        return []
    return [
        {
            each.kind: each.name,
            "clips": each.count,
            **{
                name: _around(value, each.intervals.get(name))
                for name, value in each.metrics.items()
            },
        }
        for each in card.by_group
    ]


def latency_rows(card: Scorecard) -> Rows:
    """How long the model takes for a clip."""
    found = card.latency
    if found is None:
        return []
    times = {"median": span(found.median_s), "95 % below": span(found.p95_s)}
    return [{"machine": found.machine, **times, "clips": found.clips}]
