"""Models side by side: by hand, by what must hold for all numbers, and through the front door."""

import itertools
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurizers.clip import Clip
from pipelines.__main__ import _called, app
from pipelines.compare import compare_runs, tables
from pipelines.experiment import InputError
from pipelines.latex import escaped, latex
from pipelines.plans import PREDICTIONS
from tracking import mlflow_store
from tracking.scorecard import interval
from training.compare import IncomparableRunsError, compare, holm, paired_p
from training.evaluate import evaluation_set
from training.predicted import About, predicted
from training.recipe import Task

SCORE = Task(kind="regression", label="score")
CLIPS = [
    Clip(
        key=f"k{i:02d}",
        id=f"clip {i}",
        media="",
        media_digest=f"{i:064d}",
        labels={"score": (i * 7 % 13) / 2 - 3},
    )
    for i in range(40)
]


def run(name, seed, error, *, clips=CLIPS, task=SCORE):
    """What a run says that errs by about so much."""
    noise = np.random.default_rng([seed, round(error * 100)]).normal(0, error, len(clips))
    said = {clip.key: clip.labels["score"] + e for clip, e in zip(clips, noise, strict=True)}
    about = About(name=f"{name} seed {seed}", recipe=name, seed=seed, fold="", family=f"{name}-f")
    return predicted(evaluation_set(clips, "score"), clips, task, about, said)


def named_b(table):
    return replace(table, about=replace(table.about, family="b", name="b"))


# Holm and p


def test_holm_by_hand():
    # Of 4 comparisons: 0.01 x 4, 0.02 x 3, 0.03 x 2, then 0.04 x 1 raised to the one before.
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    found = holm([0.02, math.nan, 0.03])
    assert found[::2] == pytest.approx([0.04, 0.04])
    assert math.isnan(found[1])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_and_keeps_the_order(values):
    found = holm(values)
    assert all(p <= c <= 1 for p, c in zip(values, found, strict=True))
    by_value = [c for _, c in sorted(zip(values, found, strict=True))]
    assert by_value == sorted(by_value)
    assert min(found) == pytest.approx(min(1.0, len(values) * min(values)))
    # Rejected by Bonferroni, rejected by Holm.
    bonferroni = [p * len(values) <= 0.05 for p in values]
    assert all(c <= 0.05 for c, yes in zip(found, bonferroni, strict=True) if yes)


def test_the_p_of_a_bootstrap_by_hand():
    assert paired_p([1.0] * 99) == 2 / 100
    assert paired_p([-1.0] * 99) == 2 / 100
    assert paired_p([1.0] * 96 + [-1.0] * 3) == 8 / 100
    assert paired_p([0.0] * 50) == 1.0
    assert math.isnan(paired_p([1.0, math.nan]))
    assert math.isnan(paired_p([]))


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=39, max_size=300))
def test_p_is_at_most_five_percent_just_where_the_interval_leaves_zero_out(values):
    low, high = interval([float(value) for value in values])
    assert (paired_p(values) <= 0.05) == (low > 0 or high < 0)


# Models


def test_means_deviations_and_differences_by_hand():
    runs = [run("good", 0, 0.3), run("bad", 0, 1.0), run("good", 1, 0.3)]
    found = compare(runs, ["mae"], draws=400)
    errors = [float(np.abs(each.said - each.truth).mean()) for each in runs]
    good, bad = found.scores["good"]["mae"], found.scores["bad"]["mae"]
    assert list(found.scores) == ["good", "bad"]
    assert good.values == pytest.approx((errors[0], errors[2]))
    assert good.mean == pytest.approx((errors[0] + errors[2]) / 2)
    assert good.deviation == pytest.approx(abs(errors[0] - errors[2]) / math.sqrt(2))
    assert bad.mean == pytest.approx(errors[1])
    assert math.isnan(bad.deviation)
    (difference,) = found.differences
    assert (difference.name, difference.metric) == ("bad", "mae")
    # Only one seed is of both: the other run of the first model says nothing of the difference.
    assert difference.difference == pytest.approx(errors[1] - errors[0])
    assert (difference.seeds, math.isnan(difference.deviation)) == ((0,), True)
    assert difference.interval[0] < difference.difference < difference.interval[1]
    assert difference.p == difference.corrected == 2 / 401


def test_runs_are_paired_by_their_seeds():
    def differences(ours, theirs):
        runs = [*(run("a", seed, 0.5) for seed in ours), *(run("b", seed, 0.9) for seed in theirs)]
        (found,) = compare(runs, ["mae"], draws=50).differences
        return found

    def error(name, seed):
        one = run(name, seed, {"a": 0.5, "b": 0.9}[name])
        return float(np.abs(one.said - one.truth).mean())

    by_seed = [error("b", seed) - error("a", seed) for seed in range(4)]
    found = differences((0, 1, 2, 3), (3, 1, 2))
    assert found.seeds == (1, 2, 3)
    assert found.difference == pytest.approx(np.mean(by_seed[1:]))
    assert found.deviation == pytest.approx(np.std(by_seed[1:], ddof=1))
    # Without a seed in common, all runs count.
    found = differences((0, 1), (2,))
    assert (found.seeds, math.isnan(found.deviation)) == ((), True)
    means = error("b", 2) - (error("a", 0) + error("a", 1)) / 2
    assert found.difference == pytest.approx(means)
    # A seed that was trained twice counts once.
    assert differences((0, 0, 1), (0, 1)) == differences((0, 1), (0, 1))


def test_the_bootstrap_is_paired_clip_by_clip():
    # The second errs by a tenth more on every clip: on every draw, whatever clips are in it.
    first = run("a", 0, 1.0)
    sign = np.sign(first.said - first.truth)
    second = replace(
        first, said=first.said + 0.1 * sign, about=replace(first.about, family="b", name="b")
    )
    (difference,) = compare([first, second], ["mae"], draws=200).differences
    assert difference.interval == pytest.approx((0.1, 0.1))
    assert difference.p == 2 / 201


def test_a_model_is_no_other_than_itself():
    first = run("a", 0, 1.0)
    second = named_b(first)
    for each in compare([first, second], draws=100).differences:
        assert (each.difference, each.p, each.corrected) == (0.0, 1.0, 1.0)


def test_correction_is_over_all_that_is_shown():
    runs = [run("a", 0, 0.5), run("b", 0, 0.6), run("c", 0, 0.9)]
    found = compare(runs, draws=300)
    assert len(found.differences) == 2 * 9
    assert [each.corrected for each in found.differences] == holm(
        [each.p for each in found.differences]
    )
    assert {"acc2_has0", "acc2_non0"} <= set(found.better)


def test_the_order_of_runs_of_one_model_changes_nothing():
    runs = [run("a", seed, 0.5) for seed in range(3)]
    expected = compare(runs, ["mae"], draws=100).scores["a"]["mae"]
    for order in itertools.permutations(runs):
        found = compare(order, ["mae"], draws=100).scores["a"]["mae"]
        assert found.interval == pytest.approx(expected.interval)
        numbers = (found.mean, found.deviation)
        assert numbers == pytest.approx((expected.mean, expected.deviation))


def test_what_is_undefined_is_no_comparison():
    first, second = run("a", 0, 0.5), run("b", 0, 0.5)
    broken = replace(second, said=np.where(np.arange(40) == 3, np.nan, second.said))
    found = compare([first, broken], ["mae", "corr"], draws=100)
    assert all(math.isnan(each.p) and math.isnan(each.corrected) for each in found.differences)
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["models"]["b"]["mae"]["mean"] is None
    assert plain["differences"][0]["p_holm"] is None


def test_two_recipes_of_one_name_are_two_models():
    first, second = run("a", 0, 0.5), run("a", 0, 0.6)
    second = replace(second, about=replace(second.about, family="other"))
    assert list(compare([first, second], ["mae"], draws=50).scores) == ["a a-f", "a other"]


def test_other_clips_and_other_metrics_are_refused():
    with pytest.raises(IncomparableRunsError, match=r"40 clips of set .* on 39 of .* the same set"):
        compare([run("a", 0, 0.5), run("b", 0, 0.5, clips=CLIPS[1:])])
    with pytest.raises(IncomparableRunsError, match="no metric 'f1' of regression; there are mae"):
        compare([run("a", 0, 0.5)], ["f1"])


# LaTeX

NASTY = "50%_of #1 & {$x^2$} ~\\o| <é> \\end{table} \u03b1" + "\n\x07"


def test_special_characters_are_told_and_never_obeyed():
    text = escaped(NASTY)
    assert text.startswith(r"50\%\_of \#1 \& \{\$x\textasciicircum{}2\$\} \textasciitilde{}")
    assert "é" in text
    assert "[U+03B1]" in text
    assert "[U+0007]" in text
    assert r"\end{table}" not in text


def checked(table):
    """What a LaTeX that has no table package would trip over; the number of columns."""
    assert table.isascii() or all(char < "\u0100" for char in table)
    bare = re.sub(r"\\[\\{}%&$#_]", "", table)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    begun = re.findall(r"\\begin\{(\w+)\}", table)
    assert begun == list(reversed(re.findall(r"\\end\{(\w+)\}", table))) == ["table", "tabular"]
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", table).group(1))
    lines = [line for line in table.splitlines() if line.endswith(r" \\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in lines)
    body = "\n".join(bare.splitlines()[1:])
    assert "%" not in body
    assert "#" not in body
    return columns, len(lines)


@pytest.fixture
def comparison():
    runs = [run(NASTY, 0, 0.5), run(NASTY, 1, 0.5), run("bad", 0, 2.0), run("same", 0, 0.5)]
    return compare(runs, draws=5000)


def test_a_table_for_a_paper_is_well_formed(comparison):
    table = latex(comparison)
    assert checked(table) == (10, 4)
    for rule in ("toprule", "midrule", "bottomrule"):
        assert table.count(f"\\{rule}") == 1
    row = next(line for line in table.splitlines() if line.startswith("bad &"))
    assert re.match(r"bad & \$[\d.]+\^\{\*+\}\$ & ", row)
    assert table.count(r"\mathbf{") >= 9
    assert r"MAE $\downarrow$ & Corr $\uparrow$ & Acc-2 (has0) $\uparrow$ & Acc-2 (non0)" in table
    assert "Holm-corrected over 18 comparisons" in table
    assert r" \pm " in table


def test_one_model_has_a_table_without_comparisons():
    table = latex(compare([run("a", 0, 0.5)], ["mae"], draws=50))
    assert checked(table) == (2, 2)
    assert r"\caption{40 test clips.}" in table
    assert "mathbf" not in table


@given(st.text(max_size=30))
def test_any_name_gives_a_well_formed_row(name):
    found = escaped(name)
    bare = re.sub(r"\\[\\{}%&$#_]", "", found)
    assert not set(bare) & set("&%$#_~^\\") - ({"\\"} if "\\text" in bare else set())
    assert bare.count("{") == bare.count("}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no pdflatex")
def test_a_table_for_a_paper_compiles(comparison, tmp_path):
    head = "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs}\n"
    text = f"{head}\\begin{{document}}\n{latex(comparison)}\n\\end{{document}}\n"
    (tmp_path / "paper.tex").write_text(text)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-2000:]


# Through the front door


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with two seeds of one model as parts of a run, another model, and another set."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow_store.initialise(uri, folder / "mlartifacts")
    parent = mlflow_store.start_run(uri, "toys", "good, 2 runs", {})

    def kept(table, parent=None):
        made = mlflow_store.start_run(uri, "toys", table.about.name, {}, parent)
        (folder / PREDICTIONS).write_bytes(table.to_parquet())
        made.log_file(folder / PREDICTIONS)
        made.finish()
        return made.run_id

    for seed in range(2):
        kept(run("good", seed, 0.3), parent.run_id)
    bad = kept(run("bad", 0, 1.5))
    kept(run("else", 0, 0.5, clips=CLIPS[1:]))
    for _ in range(2):
        kept(run("twice", 0, 0.5))
    mlflow_store.start_run(uri, "toys", "empty", {}).finish()
    client = mlflow_store.client_of(uri)
    mlflow_store.registry.create_model(client, "toy")
    client.create_model_version("toy", source="/nowhere", run_id=bad)
    client.set_registered_model_alias("toy", "champion", "1")
    return folder, uri, bad


def test_runs_are_named_by_name_by_id_by_their_parent_and_by_alias(store):
    _, uri, bad = store
    told = [
        compare_runs(uri, names, ["mae"]).to_json()
        for names in (
            ["good, 2 runs", "bad seed 0"],
            ["good seed 0", "good seed 1", bad],
            ["good, 2 runs", "toy@champion", "good seed 0"],
            ["good, 2 runs", "models:/toy@champion"],
        )
    ]
    assert told[0] == told[1] == told[2] == told[3]
    assert [len(each["mae"]["values"]) for each in told[0]["models"].values()] == [2, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["gone"], "there is no run 'gone'"),
        (["f" * 32], "there is no run 'ffff"),
        (['it\'s "it"'], "there is no run"),
        (["twice seed 0"], "2 runs are named 'twice seed 0'; give the id of one, newest first: "),
        (["empty"], "has no predictions to compare"),
        (["good seed 0", "else seed 0"], "compare runs that were scored on the same set"),
        (["toy@gone"], "model 'toy' has no alias 'gone'; those that exist: champion"),
        (["nobody@champion"], "no model 'nobody' is registered"),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(store, names, message):
    with pytest.raises((InputError, ValueError), match=message) as error:
        compare_runs(store[1], names)
    assert "\n" not in str(error.value)


def test_tables_for_people_tell_seeds_intervals_and_what_differs(store):
    (title, scores), (how, rows) = tables(compare_runs(store[1], ["good, 2 runs", "bad seed 0"]))
    assert title.startswith("40 clips of set ")
    assert how == "difference to good (paired bootstrap of 10000 draws, Holm over 9 comparisons)"
    assert [scores[0]["model"], scores[0]["runs"], scores[0]["metric"]] == ["good", 2, "mae"]
    assert (scores[0]["seeds"], scores[9]["seeds"]) == ("0, 1", "0")
    assert scores[9]["deviation"] == ""
    assert {"acc2_has0", "acc2_non0"} <= {row["metric"] for row in scores}
    assert (rows[0]["seeds"], rows[0][""]) == ("0", "worse")
    assert tables(compare_runs(store[1], ["bad seed 0"]))[1:] == []


def test_the_command_prints_json_or_a_paper_and_refuses_other_sets(store, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def called(*arguments):
        given = ["compare", *arguments, "--store", str(store[0])]
        code = _called(lambda: app(given, standalone_mode=True))
        told = capsys.readouterr()
        return code, told.out, told.err

    both = ("good, 2 runs", "bad seed 0")
    code, out, _ = called(*both, "--latex", "--metric", "mae")
    assert (code, checked(out.rstrip("\n"))) == (0, (2, 3))
    code, out, _ = called(*both, "--json", "--metric", "mae", "--metric", "corr")
    assert (code, list(json.loads(out)["better"])) == (0, ["mae", "corr"])
    code, out, err = called("bad seed 0", "else seed 0")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"fuseline: bad seed 0 was scored on 40 clips .*\n", err)
    code, _, err = called(*both, "--json", "--latex")
    assert (code, len(err.splitlines())) == (2, 1)
