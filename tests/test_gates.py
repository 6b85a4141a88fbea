"""The table of gates: for each a candidate that fails it alone, with the reason that is printed."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featurizers.clip import Clip
from pipelines.experiment import InputError
from pipelines.plans import PREDICTIONS
from pipelines.promote import consider
from pipelines.show import Show
from tracking import mlflow_store
from tracking.parts import Latency
from tracking.rules import rule_from_json
from training.evaluate import evaluation_set, scorecard
from training.predicted import About, predicted
from training.recipe import Task

DOCS = Path(__file__).parents[1] / "docs" / "promotion.md"
SCORE = Task(kind="regression", label="score")
RULES = [
    {"metric": "mae", "better": "lower", "floor": 0.5},
    {"metric": "corr", "not_worse_by": 0.05},
    {"metric": "mae", "better_by": 0.0},
    {"metric": "mae", "no_subgroup_worse_by": 0.1},
    {"latency_ms": 50},
]
CLIPS = [
    Clip(
        key=f"k{i:02d}",
        id=f"clip {i}",
        media="",
        media_digest=f"{i:064d}",
        source=f"film {i}",
        speaker=f"speaker {i // 5}",
        group="young" if i < 15 else "old",
        labels={"score": (i * 7 % 13) / 2 - 3},
    )
    for i in range(60)
]
TRAIN = [
    Clip(key="t", id="t", media="", media_digest="", source="other film", speaker="somebody else")
]
TOOK = Latency(median_s=0.01, p95_s=0.0125, clips=60, machine="a processor, 2 threads")
SHOWN = {"parity": True, "reproducible": True, "duplicates": (), "latency": TOOK}
SHOWN |= {"replicates": 200}
LACKS = {clip.key: ("video",) if i % 4 == 0 else () for i, clip in enumerate(CLIPS)}


def said(offset=0.2, clips=CLIPS):
    """What a model says that errs by so much, to one side and the other."""
    signs = np.random.default_rng(0).choice([-1, 1], len(clips))
    errors = offset if callable(offset) else lambda _: offset
    return {
        clip.key: clip.labels["score"] + sign * errors(clip)
        for clip, sign in zip(clips, signs, strict=True)
    }


def model(given=None, *, clips=CLIPS, train=TRAIN, **shown):
    """Scorecard and predictions of a model."""
    given = said(clips=clips) if given is None else given
    card = scorecard(clips, given, SCORE, train, missing=LACKS, **{**SHOWN, **shown})
    about = About(name="a run", recipe="mult", seed=0, fold="", family="f")
    name = evaluation_set(clips, "score")
    return card, predicted(name, clips, SCORE, about, given, lacking=LACKS)


def near(name, error):
    """Errs more on clips that a test names."""
    return lambda clip: error if name(clip) else 0.1


SAME = dict.fromkeys((clip.key for clip in CLIPS), 1.0)
CHAMPION = model(said(0.3))
ONE_SPEAKER = [replace(TRAIN[0], speaker="speaker 3")]
ONE_SOURCE = [replace(TRAIN[0], source="film 7")]
SAME_BYTES = [replace(TRAIN[0], media_digest=f"{7:064d}")]

GATES = {
    "parity": (model(parity=False), "parity"),
    "parity, not looked at": (model(parity=None), "parity"),
    "reproducible": (model(reproducible=False), "reproducible"),
    "reproducible, not looked at": (model(reproducible=None), "reproducible"),
    "speaker": (model(train=ONE_SPEAKER), "leaks"),
    "source": (model(train=ONE_SOURCE), "leaks"),
    "source, under another name": (model(train=SAME_BYTES), "leaks"),
    "speaker, in what it starts from": (
        model(before={"4f2a9c": ONE_SPEAKER}),
        "leaks",
    ),
    "near-duplicate": (model(duplicates=["clip 4 is like clip 311"]), "duplicates"),
    "near-duplicate, not looked at": (model(duplicates=None), "duplicates"),
    "latency": (model(latency=replace(TOOK, p95_s=0.08)), "latency_ms"),
    "latency, not measured": (model(latency=None), "latency_ms"),
    "speaker group": (
        model(said(near(lambda clip: clip.group == "young", 0.45))),
        "mae no_subgroup_worse_by",
    ),
    "missing pattern": (
        model(said(near(lambda clip: LACKS[clip.key], 0.45))),
        "mae no_subgroup_worse_by",
    ),
}


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow_store.initialise(uri, folder / "mlartifacts")
    return uri


def registered(uri, name, folder, *models):
    """A registered model with these versions; the first one is champion."""
    client = mlflow_store.client_of(uri)
    mlflow_store.registry.create_model(client, name)
    for card, table in models:
        run = mlflow_store.start_run(uri, "toys", "one", {})
        (folder / "scorecard.json").write_text(json.dumps(card.to_json()))
        run.log_file(folder / "scorecard.json")
        if table is not None:
            (folder / PREDICTIONS).write_bytes(table.to_parquet())
            run.log_file(folder / PREDICTIONS)
        client.create_model_version(name, source="/nowhere", run_id=run.run_id)
    first = [rule_from_json({"metric": "mae", "floor": 9.0})]
    assert consider(uri, name, 1, first, why="the first").entry is not None


def verdict(uri, name, rules=RULES, version=2):
    return consider(uri, name, version, list(map(rule_from_json, rules)), why="", dry_run=True)


def failed(promotion):
    return [reason for reason in promotion.verdict.reasons if not reason.passed]


def test_the_candidate_of_this_table_passes_all_gates(uri, tmp_path):
    registered(uri, "good", tmp_path, CHAMPION, model())
    promotion = verdict(uri, "good")
    assert promotion.verdict.promote
    assert len(promotion.verdict.reasons) == 4 + len(RULES)


def test_each_gate_has_a_candidate_that_fails_it_alone(uri, tmp_path):
    registered(uri, "each", tmp_path, CHAMPION, *(found for found, _ in GATES.values()))
    told = []
    for version, (gate, (_, rule)) in enumerate(GATES.items(), 2):
        (reason,) = failed(verdict(uri, "each", version=version))
        assert reason.rule == rule, gate
        told.append(f"| {gate} | `{reason.rule}` | {reason.text} |")
    documented = DOCS.read_text()
    assert [line for line in told if line not in documented] == []


@pytest.mark.parametrize(
    ("gate", "rule", "candidate"),
    [
        ("floor", {"metric": "mae", "floor": 0.1}, model()),
        ("not worse than the champion", {"metric": "mae", "not_worse_by": 0.05}, model(said(0.4))),
        ("better than the champion", {"metric": "mae", "better_by": 0.2}, model()),
        ("NaN", {"metric": "mae", "floor": 9.0}, model(said() | {"k03": float("nan")})),
        (
            "NaN, against a champion",
            {"metric": "corr", "better_by": 0.0},
            model({c.key: 1.0 for c in CLIPS}),
        ),
    ],
)
def test_each_rule_has_a_candidate_that_fails_it_alone(uri, tmp_path, gate, rule, candidate):
    name = re.sub(r"\W+", "-", gate)
    registered(uri, name, tmp_path, CHAMPION, candidate)
    (reason,) = failed(verdict(uri, name, [rule]))
    assert f"| {gate} | `{reason.rule}` | {reason.text} |" in DOCS.read_text()


@pytest.mark.parametrize(
    ("what", "candidate", "rules"),
    [
        ("another evaluation set", model(clips=CLIPS[1:]), RULES),
        ("no rules", model(), []),
        ("an unknown metric", model(), [{"metric": "f1", "floor": 1}]),
        ("the wrong direction", model(), [{"metric": "mae", "better": "higher", "floor": 1}]),
    ],
)
def test_what_cannot_be_judged_is_an_error_of_one_line(uri, tmp_path, what, candidate, rules):
    name = re.sub(r"\W+", "-", what)
    registered(uri, name, tmp_path, CHAMPION, candidate)
    with pytest.raises(InputError) as error:
        verdict(uri, name, rules)
    assert "\n" not in str(error.value)
    assert f"| {what} | {error.value} |" in DOCS.read_text()


def test_whoever_takes_groups_and_speakers_away_is_judged_by_those_of_the_champion(uri, tmp_path):
    nameless = [replace(clip, group=None, speaker=None) for clip in CLIPS]
    worse = said(near(lambda clip: clip.group == "young", 0.45))
    registered(uri, "hidden", tmp_path, CHAMPION, model(worse, clips=nameless))
    (reason,) = failed(verdict(uri, "hidden"))
    assert reason.text.startswith("the worst of 4 is group young (15 clips): 0.45")


def test_a_champion_without_predictions_cannot_be_told_apart(uri, tmp_path):
    registered(uri, "old", tmp_path, (CHAMPION[0], None), model())
    with pytest.raises(InputError, match="version 1 of 'old' cannot be compared clip by clip"):
        verdict(uri, "old")
    assert verdict(uri, "old", RULES[:3]).verdict.promote


def test_a_dry_run_prints_the_verdict_as_a_table(uri, tmp_path, capsys):
    registered(uri, "shown", tmp_path, CHAMPION, model(parity=False))
    Show().promotion(verdict(uri, "shown"))
    told = capsys.readouterr().out
    assert re.search(r"parity\s*│ NO\s*│ the features that the registered model computes", told)
    assert re.search(r"mae floor\s*│ yes\s*│ 0.2; asked: at most 0.5", told)
    assert "shown version 2 is not promoted; champion: 1" in told
