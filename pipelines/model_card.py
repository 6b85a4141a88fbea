"""MODEL_CARD.md: what is known of a registered model, for whoever may use it.

After Mitchell et al. (2019), "Model Cards for Model Reporting". Nothing is guessed: what is not
known is said to be unknown.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from featurizers.clip import Clip
from featurizers.manifest import Column
from pipelines.featurize import ledger
from pipelines.licences import judge
from pipelines.lineage import standing_lineage
from pipelines.packaging import requirements_of, specs_of
from pipelines.pages import printable
from pipelines.pages.units import span
from pipelines.plans import Trained
from tracking.scorecard import Scorecard

FILE = "MODEL_CARD.md"
UNKNOWN = "unknown"
MOST_ROWS = 40
SPLITS = ("train", "valid", "test")

_LIMITS = (
    (
        "It says what people like those of its data would say of a clip, and not what somebody "
        "feels. Beyond such people, languages, cameras and situations nothing is known of it."
    ),
    (
        "In the European Union, Article 5(1)(f) of Regulation (EU) 2024/1689 (the AI Act) "
        "prohibits AI systems that infer emotions of people at work and in education, but for "
        "medical or safety reasons; elsewhere such systems are high-risk (Annex III, point 1(c)) "
        "and those who are exposed to one must be told (Article 50(3)). Other laws may restrict "
        "it further."
    ),
    "It is made for research and evaluation. It must not decide about people alone.",
)


def model_card(
    name: str,
    trained: Trained,
    clips: Sequence[Clip],
    columns: Mapping[str, Column],
    card: Scorecard,
    *,
    compared: int,
) -> str:
    """The model card in Markdown.

    Args:
        name: The registered model's name.
        trained: The run.
        clips: All clips of the dataset.
        columns: The columns that it was trained on, by stream.
        card: What the test said.
        compared: How many clips' features were computed through the model and equal the shards'.
    """
    recipe = trained.plan.recipe
    task = recipe.task
    said = {
        "regression": f"a number, as {task.label!r} of its data",
        "classes": f"one of {', '.join(task.classes)}",
        "labels": f"any of {', '.join(task.classes)}",
    }[task.kind]
    parts = [
        f"# {_plain(name)}",
        (
            f"A fusion model of the kind `{recipe.model.kind}` over {', '.join(columns)}: it says "
            f"of a clip {_plain(said)}."
        ),
        "## Intended use and limits",
        "\n".join(f"- {each}" for each in _LIMITS),
        "## How to load it",
        _loading(name, trained),
        "## Data",
        _data(clips, columns, task.label),
        "## Results",
        _results(card),
        "## Features and licences",
        _features(columns),
        "## Parity",
        _parity(card, compared),
        _reproducible(card),
        "## Where it comes from",
        _origin(trained, card, columns),
    ]
    return printable("\n\n".join(part for part in parts if part)) + "\n"


def _loading(name: str, trained: Trained) -> str:
    specs = specs_of(trained.predictor)
    needs = ", ".join(requirements_of(trained.plan.recipe, specs))
    code = (
        "    import mlflow, pandas as pd\n"
        f'    model = mlflow.pyfunc.load_model("models:/{name}@champion")\n'
        '    model.predict(pd.DataFrame([{"media": "clip.mp4", "transcript": "what is said"}]))'
    )
    return f"{code}\n\nOr `fuseline score models:/{name}@champion clip.mp4`. It needs {needs}."


def _data(clips: Sequence[Clip], columns: Mapping[str, Column], label: str) -> str:
    splits = Counter(clip.split or "none" for clip in clips)
    seconds: dict[str, float] = defaultdict(float)
    speakers: dict[str, set[str]] = {}
    for clip in clips:
        seconds[clip.split or "none"] += clip.seconds
        if clip.speaker:
            speakers.setdefault(clip.split or "none", set()).add(clip.speaker)
    rows = [
        [
            split,
            str(splits[split]),
            span(seconds[split] or None) or UNKNOWN,
            str(len(speakers[split])) if split in speakers else UNKNOWN,
            _labels([clip for clip in clips if (clip.split or "none") == split], label),
        ]
        for split in (*SPLITS, "none")
        if splits[split]
    ]
    dealt = _table(["split", "clips", "long", "speakers", f"label `{label}`"], rows)
    balances = [
        [
            each.stream,
            *map(str, (each.clips, each.sample, each.absent, each.quarantined)),
            ", ".join(f"{fault} {count}" for fault, count in sorted(each.faults.items())),
        ]
        for each in ledger(columns)
    ]
    heads = ["stream", "clips", "sample", "absent", "quarantined", "faults"]
    return (
        f"{dealt}\n\nThe ledger (clips = sample + absent + quarantined):\n\n"
        f"{_table(heads, balances)}\n\n"
        "Licence of the data, consent of those who are shown, and who labelled them: "
        f"{UNKNOWN}, no table says it."
    )


def _labels(clips: Sequence[Clip], label: str) -> str:
    values = [clip.labels[label] for clip in clips if label in clip.labels]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if not values:
        return "none"
    if len(numbers) == len(values):
        return f"{len(values)}, mean {sum(numbers) / len(numbers):.3g}"
    counts = Counter(
        name for value in values for name in (value if isinstance(value, tuple) else (str(value),))
    )
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _results(card: Scorecard) -> str:
    told = [f"On {card.count} test clips (evaluation set `{card.evaluation_set[:16]}`):"]
    rows = [
        [name, _number(value), _interval(card.intervals.get(name)), card.undefined.get(name, "")]
        for name, value in card.metrics.items()
    ]
    told.append(_table(["metric", "value", "95 % interval", "why undefined"], rows))
    names = list(card.metrics)[:4]
    parts = [(f"lacks {', '.join(each.streams) or 'nothing'}", each) for each in card.as_found]
    parts += [(f"without {', '.join(each.streams)}", each) for each in card.as_asked]
    missing = [
        [what, str(each.count), *(_number(each.metrics[name]) for name in names)]
        for what, each in parts
    ]
    if missing:
        told += ["By the streams that clips lack, and with each taken away from all:"]
        told += [_table(["streams", "clips", *names], missing)]
    groups = [
        [each.name, str(each.count), *(_number(each.metrics[name]) for name in names)]
        for each in card.by_group[:MOST_ROWS]
    ]
    told += ["By group of speakers:" if groups else f"By group of speakers: {UNKNOWN}."]
    told += [_table(["group", "clips", *names], groups)] if groups else []
    if len(card.by_group) > MOST_ROWS:
        told.append(f"{len(card.by_group) - MOST_ROWS} more groups are in the scorecard.")
    told.append(_calibration(card))
    if card.latency is None:
        told.append(f"Time for a clip: {UNKNOWN}.")
    else:
        time = card.latency
        told.append(
            f"The model alone takes {time.median_s * 1000:.1f} ms for a clip (95 % below "
            f"{time.p95_s * 1000:.1f} ms; {time.clips} clips; {time.machine})."
        )
    if card.leaks:
        told.append(f"Shared with the training data: {_some(card.leaks)}.")
    if card.duplicates is None:
        told.append(f"Test clips that look or sound like training clips: {UNKNOWN}.")
    else:
        near = _some(card.duplicates) if card.duplicates else "none"
        told.append(f"Test clips that look or sound like training clips: {near}.")
    return "\n\n".join(told)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_ROWS} more" if len(names) > MOST_ROWS else ""
    return ", ".join(_plain(name) for name in names[:MOST_ROWS]) + more


def _calibration(card: Scorecard) -> str:
    if card.calibration is None:
        return f"Calibration: {UNKNOWN}."
    numbers = card.calibration.numbers.items()
    return "Calibration: " + ", ".join(f"{name} {_number(value)}" for name, value in numbers) + "."


def _features(columns: Mapping[str, Column]) -> str:
    rows = [
        [
            stream,
            column.spec.fingerprint,
            "equal bits" if column.spec.atol is None else f"within {column.spec.atol:g}",
            column.spec.weights[:16] or "none",
            column.spec.licence or UNKNOWN,
            judge(column.spec.licence),
        ]
        for stream, column in columns.items()
    ]
    heads = ["stream", "feature", "promised", "weights", "licence", "for commerce"]
    note = (
        "Licences are what specs say of themselves: a help for whoever reads them, and no advice. "
        "Weights of encoders are named by their digest and are not part of the model."
    )
    return f"{_table(heads, rows)}\n\n{note}"


def _parity(card: Scorecard, compared: int) -> str:
    if not compared:
        return (
            f"{UNKNOWN.capitalize()}: no training clip could be had to compare features with the "
            "shards."
        )
    kept = "equal" if card.parity else "DO NOT equal"
    return (
        f"Features of {compared} raw training clips, computed through this model, {kept} those "
        "that it was trained on, by each feature's promise."
    )


def _reproducible(card: Scorecard) -> str:
    if card.reproducible is None:
        return f"Whether it says the same of a clip in another process: {UNKNOWN}."
    how = "the same" if card.reproducible else "SOMETHING ELSE"
    return f"Asked again in another process, it says {how} of these clips."


def _origin(trained: Trained, card: Scorecard, columns: Mapping[str, Column]) -> str:
    recipe, lineage = trained.plan.recipe, standing_lineage(trained.plan.folder)
    lines = [
        (
            f"- run `{trained.run_id}`, recipe `{recipe.name}` (digest `{recipe.digest[:16]}`), "
            f"seed {recipe.seed}, epoch {trained.best_epoch} of {len(trained.history)}"
        ),
        f"- evaluation set `{card.evaluation_set}`",
        *(
            f"- column of {stream}: manifest `{column.digest}`"
            for stream, column in columns.items()
        ),
        *(f"- {_plain(sentence)}" for sentence in (lineage.beginnings if lineage else ())),
    ]
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _plain(cell: str) -> str:
    """Text that breaks no table and is no markup: what users wrote is shown as it is."""
    flat = " ".join(str(cell).split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4g}"


def _interval(ends: tuple[float, float] | None) -> str:
    if ends is None or math.isnan(ends[0]):
        return UNKNOWN
    return f"{ends[0]:.4g} to {ends[1]:.4g}"
