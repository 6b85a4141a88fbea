"""What a published experiment came to, beside the published figures: pure, from numbers to text."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.reproduce.protocol import ChosenOn, Metric, Model, Protocol
from tracking.scorecard import Scorecard
from tracking.strict_json import plain_by_name

DASH = "-"
NOT_RUN = "not run"

_TITLES = {"valid": "validation", "test": "**the test clips**"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run on its test clips.

    Attributes:
        recipe: Of which model of the protocol.
        fold: Such as "2/6"; empty where there is one split.
        run_id: On the tracking server.
        digest: The name of its folder, which follows from all that decides its numbers.
        best_epoch: From 1.
        epochs: How many it trained.
        clips: How many were tested on, of which evaluation set.
        values: By the title of a metric, as the scorecard has it: shares are not in percent.
        made_by: What is known of code, versions and machine, by name.
    """

    recipe: str
    chosen_on: ChosenOn
    seed: int
    fold: str
    run_id: str
    digest: str
    best_epoch: int
    epochs: int
    clips: int
    evaluation_set: str
    values: Mapping[str, float]
    made_by: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All runs of a published experiment.

    Attributes:
        changes: What was asked for that is not the protocol's, as sentences.
        clips: Clips of the corpus by split, or by fold.
        data: What the data are, and what was found missing.
    """

    protocol: Protocol
    changes: tuple[str, ...]
    clips: Mapping[str, int]
    data: tuple[str, ...]
    runs: tuple[Measured, ...]

    @property
    def made_by(self) -> dict[str, str]:
        """What is known of code, versions and machine by name: all that the runs tell."""
        found: dict[str, dict[str, None]] = {}
        for run in self.runs:
            for name, value in run.made_by.items():
                found.setdefault(name, {})[value] = None
        return {name: " and ".join(values) for name, values in sorted(found.items())}


@dataclass(frozen=True, slots=True)
class Summed:
    """A metric over the runs of a model.

    Attributes:
        mean: Over seeds, of the mean over folds.
        deviation: Over seeds (n - 1), of the mean over folds; None of one seed, NaN as the mean is.
        between_folds: Over folds (n - 1), of the mean over seeds; None where there are no folds.
    """

    mean: float
    deviation: float | None
    between_folds: float | None


def value_of(metric: Metric, card: Scorecard) -> float:
    """A metric of a scorecard; NaN where it is not defined."""
    if not metric.label:
        return card.metrics[metric.name]
    return card.by_class.get(metric.label, {}).get(metric.name, math.nan)


def summed(metric: Metric, runs: Sequence[Measured]) -> Summed:
    """A metric over some runs, at least one, each seed with the same folds."""
    by_seed = _means(runs, metric, [run.seed for run in runs])
    by_fold = _means(runs, metric, [run.fold for run in runs])
    return Summed(
        mean=statistics.fmean(by_seed),
        deviation=_deviation(by_seed),
        between_folds=_deviation(by_fold),
    )


def _deviation(values: Sequence[float]) -> float | None:
    """The standard deviation (n - 1); NaN where a value is none, as the mean is, too."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def _means(runs: Sequence[Measured], metric: Metric, groups: Sequence[object]) -> list[float]:
    found: dict[object, list[float]] = {}
    for run, group in zip(runs, groups, strict=True):
        found.setdefault(group, []).append(run.values[metric.title])
    return [statistics.fmean(values) for values in found.values()]


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Plain data for strict JSON; shares are not in percent, but for the published figures."""
    protocol = outcome.protocol
    models = [
        {
            "model": model.recipe,
            "title": model.title,
            "measured": [
                {
                    "epoch_chosen_on": chosen_on,
                    "runs": len(runs),
                    "seeds": sorted({run.seed for run in runs}),
                    "folds": sorted({run.fold for run in runs} - {""}),
                    "metrics": {
                        metric.title: plain_by_name(
                            {
                                name: value
                                for name, value in asdict(summed(metric, runs)).items()
                                if value is not None
                            }
                        )
                        for metric in protocol.metrics
                    },
                }
                for chosen_on, runs in _measured(outcome, model)
            ],
            "published": [asdict(each) for each in model.published],
        }
        for model in protocol.models
    ]
    runs = [{**asdict(run), "values": plain_by_name(run.values)} for run in outcome.runs]
    return {
        "experiment": protocol.name,
        "corpus": protocol.corpus,
        "split": protocol.split,
        "differs_from_protocol": list(outcome.changes),
        "clips": dict(outcome.clips),
        "data": list(outcome.data),
        "notes": list(protocol.notes),
        "models": models,
        "runs": runs,
        "made_by": outcome.made_by,
    }


def markdown(outcome: Outcome) -> str:
    """The page: what was done, the table beside the published figures, each run, the sources."""
    sources: list[str] = []
    parts = [
        [f"# {outcome.protocol.name}: {outcome.protocol.corpus}"],
        list(_facts(outcome)),
        _table(
            [
                "model",
                "",
                *(metric.title for metric in outcome.protocol.metrics),
                "epoch chosen on",
            ],
            _rows(outcome, sources),
        ),
        [_units(outcome.protocol), *(f"[{i}] {text}" for i, text in enumerate(sources, start=1))],
        ["## Runs"],
        _table(
            ["model", "seed", "fold", "epoch", "clips", *_titles(outcome), "run", "digest"],
            [_run(outcome.protocol, run) for run in outcome.runs],
        ),
        ["Made by " + ", ".join(f"{k} {v}" for k, v in outcome.made_by.items())],
    ]
    return "\n\n".join("\n".join(_spaced(part)) for part in parts if part) + "\n"


def _spaced(lines: Sequence[str]) -> list[str]:
    """Lines of prose are paragraphs of their own; those of tables and lists follow each other."""
    spaced: list[str] = []
    for line in lines:
        if spaced and not line.startswith(("|", "- ")):
            spaced.append("")
        spaced.append(line)
    return spaced


def _titles(outcome: Outcome) -> list[str]:
    return [metric.title for metric in outcome.protocol.metrics]


def _facts(outcome: Outcome) -> Iterator[str]:
    protocol = outcome.protocol
    yield f"- Split: {protocol.split}."
    yield "- Clips: " + ", ".join(f"{name}: {count}" for name, count in outcome.clips.items()) + "."
    yield from (f"- Data: {each}." for each in outcome.data)
    yield from (f"- {each}" for each in protocol.notes)
    if outcome.changes:
        yield f"- **Not the protocol's: {'; '.join(outcome.changes)}.**"
    else:
        yield "- All settings are the protocol's."


def _units(protocol: Protocol) -> str:
    shares = [metric.title for metric in protocol.metrics if metric.percent]
    over = " of the mean over folds" if protocol.folds else ""
    marked = (
        " Rows whose epoch was chosen on the test clips are optimistic, and comparable with such "
        "rows alone."
        if protocol.best_on_test or any(_on_test(model) for model in protocol.models)
        else ""
    )
    said = "all but MAE and Corr are" if len(shares) < len(protocol.metrics) else "all are"
    return (
        f"Of the metrics {said} in percent. Behind ± stands the standard deviation over seeds "
        f"(n - 1){over}. A dash: no figure with a source that could be checked.{marked}"
    )


def _on_test(model: Model) -> bool:
    return any(each.chosen_on == "test" for each in model.published)


def _measured(outcome: Outcome, model: Model) -> list[tuple[ChosenOn, list[Measured]]]:
    order: tuple[ChosenOn, ...] = ("valid", "test")
    found = [
        (chosen, [r for r in outcome.runs if (r.recipe, r.chosen_on) == (model.recipe, chosen)])
        for chosen in order
    ]
    return [(chosen, runs) for chosen, runs in found if runs]


def _rows(outcome: Outcome, sources: list[str]) -> Iterator[list[str]]:
    """The rows of each model: ours, then the published ones, whose sources are added."""
    metrics = outcome.protocol.metrics
    for model in outcome.protocol.models:
        name = f"{model.title} (`{model.recipe}`)"
        measured = _measured(outcome, model)
        for chosen_on, runs in measured:
            cells = [_shown(metric, summed(metric, runs)) for metric in metrics]
            marked = "**best on test**, " if chosen_on == "test" else ""
            yield [name, f"here, {marked}{_counted(runs)}", *cells, _TITLES[chosen_on]]
            name = ""
        if not measured:
            yield [name, f"here, {NOT_RUN}", *([DASH] * len(metrics)), DASH]
        for each in model.published:
            if each.source not in sources:
                sources.append(each.source)
            cells = [_published(metric, each.values.get(metric.title)) for metric in metrics]
            note = f" ({each.note})" if each.note else ""
            where = f"published, {each.what}{note} [{sources.index(each.source) + 1}]"
            yield ["", where, *cells, _TITLES[each.chosen_on]]
        if not model.published:
            yield ["", "published", *([DASH] * len(metrics)), DASH]


def _counted(runs: Sequence[Measured]) -> str:
    seeds = len({run.seed for run in runs})
    folds = len({run.fold for run in runs} - {""})
    said = f"{seeds} seed{'s' if seeds > 1 else ''}"
    return f"{said} x {folds} fold{'s' if folds > 1 else ''}" if folds else said


def _shown(metric: Metric, found: Summed) -> str:
    mean = _number(metric, found.mean)
    if found.deviation is None or not math.isfinite(found.mean):
        return mean
    return f"{mean} ± {_number(metric, found.deviation)}"


def _number(metric: Metric, value: float) -> str:
    if not math.isfinite(value):
        return "undefined"
    return f"{100 * value:.2f}" if metric.percent else f"{value:.4f}"


def _published(metric: Metric, value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.2f}" if metric.percent else f"{value:.4f}"


def _run(protocol: Protocol, run: Measured) -> list[str]:
    cells = [_number(metric, run.values[metric.title]) for metric in protocol.metrics]
    fold = run.fold or DASH
    model = f"`{run.recipe}`" + (", best on test" if run.chosen_on == "test" else "")
    epoch = f"{run.best_epoch} of {run.epochs}"
    return [
        model, str(run.seed), fold, epoch, str(run.clips), *cells, run.run_id, f"`{run.digest}`"
    ]  # fmt: skip


def _table(heads: Sequence[str], rows: Iterator[list[str]] | list[list[str]]) -> list[str]:
    return [
        _line(heads),
        _line(["---"] * len(heads)),
        *(_line([cell.replace("|", "\\|") for cell in row]) for row in rows),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
