"""What the page of a run says of how it went and of what it was made, as rows of tables."""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pipelines.lineage import Start
from pipelines.masks import Step
from pipelines.pages import Rows
from pipelines.pages.result_scores import target
from pipelines.pages.units import amount, share, signed
from pipelines.results import Result, Resumed
from tracking.scorecard import Scorecard

STEPS = 100  # of a clip's masks

_STAGES = {
    "data_wait_share": "waiting for data",
    "device_share": "on the device",
    "collectives_share": "among ranks",
}


def masked(made: Result, key: str, steps: Sequence[Step]) -> dict[str, Any]:
    """A clip's masks: a row a word, with each stream's share of the way from its least to its most.

    A mask of an LSTM stays between 0.27 and 0.73: from 0 to 1 every word would look alike.
    """
    [each] = [each for each in made.answers if each.key == key]
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


def epoch_rows(made: Result) -> Rows:
    """Each epoch with all that is known of it."""
    return [
        {"epoch": number, **{name: _small(value) for name, value in epoch.items()}}
        for number, epoch in enumerate(made.history, 1)
    ]


def _small(value: float) -> str:
    return "undefined" if math.isnan(value) else signed(value)


def resumed(each: Resumed) -> str:
    """A sentence about where a run went on."""
    on = f" on {each.ranks} ranks" if each.ranks else ""
    again = f"; {amount(each.again)} epochs were trained again" if each.again else ""
    return f"Attempt {each.attempt} went on with epoch {each.epoch + 1}{on}{again}"


def shares_of_time(made: Result) -> dict[str, list[float]]:
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


def time_rows(made: Result) -> Rows:
    """What the time of epochs went into; the first one by itself."""
    rows: Rows = []
    for name, values in shares_of_time(made).items():
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


def recipe_rows(made: Result) -> Rows:
    """Every setting by its dotted name."""
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


def source_rows(made: Result) -> Rows:
    """Each stream's feature, and what became of the clips in its column."""
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


def manifest_rows(made: Result) -> Rows:
    """Where each stream was read."""
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


def provenance_rows(made: Result) -> Rows:
    """Digests, versions, and what registration looked at."""
    told = {
        "run": made.run_id,
        "recipe (sha256)": made.recipe.digest,
        "evaluation set (sha256)": made.card.evaluation_set,
        "features through the registered model": _parity(made.card),
        "test clips much like one in training": _duplicates(made.card),
        "the same when asked again": _again(made.card),
        **{f"{start.part} starts with": _start(made, start) for start in made.starts},
        "attempts": amount(made.attempts) if made.attempts else "not known",
        **{name.replace("env.", "").replace("version.", ""): v for name, v in made.made_by.items()},
    }
    return [{"fact": name, "value": value} for name, value in told.items()]


def _start(made: Result, start: Start) -> str:
    if start.run_id:
        return f"weights of run {start.run_id} (sha256 {start.sha256})"
    return (
        f"{PurePath(start.file).name} (sha256 {start.sha256}); what it was trained on is not known"
    )


def _parity(card: Scorecard) -> str:
    match card.parity:
        case None:
            return "not compared with the shards"
        case True:
            return "equal those of the shards"
        case False:
            return "differ from those of the shards"


def _duplicates(card: Scorecard) -> str:
    if card.duplicates is None:
        return "not looked for"
    return amount(len(card.duplicates)) if card.duplicates else "none"


def _again(card: Scorecard) -> str:
    match card.reproducible:
        case None:
            return "not tried"
        case True:
            return "yes, in another process"
        case False:
            return "no"
