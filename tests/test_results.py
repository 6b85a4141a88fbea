"""The page of trained runs: each value is the scorecard's, and it is read by anybody anywhere."""

import json
import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from featurizers.clip import Word
from featurizers.dataset import read_clips
from featurizers.manifest import open_column
from pipelines.family import table
from pipelines.lineage import Start, write_lineage
from pipelines.masks import choose, masks
from pipelines.pages.result_scores import WORST
from pipelines.pages.results import page
from pipelines.plans import FINISHED, LATENCY, PROGRESS, SCORECARD, Plan, read, score_test
from pipelines.results import Resumed, result_of
from pipelines.run_pages import page_of
from pipelines.tracked import ATTEMPTS, RUN
from tests.made_of import made_of
from tests.test_loop import RECIPE, WIDTHS, make_dataset
from tests.test_pages import EVIL, Page
from training.batch import collate
from training.models import build
from training.normaliser import Normaliser
from training.predict import Predictor, load_model
from training.recipe import ModelSettings, Pooling, Task
from training.samples import to_sample

TASKS = {
    "regression": RECIPE.task,
    "classes": Task(kind="classes", label="side", classes=("minus", "plus")),
    "labels": Task(kind="labels", label="marks", classes=("loud", "glad", "odd")),
}
LATCHED = ModelSettings(kind="mmlatch", streams=tuple(WIDTHS), settings={"hidden": 8})
SHARES = {"time/data_wait_share": 0.2, "time/device_share": 0.5, "time/collectives_share": 0.1}


class Tables(HTMLParser):
    """The tables of a page by caption: rows of texts, small ones in brackets."""

    def __init__(self, content):
        super().__init__()
        self.tables, self._rows, self._in = {}, None, ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in {"th", "td"}:
            self._rows[-1].append("")
        elif tag == "small":
            self._rows[-1][-1] += " ("
        self._in = tag if tag in {"th", "td", "caption"} else self._in

    def handle_endtag(self, tag):
        if tag == "table":
            self.tables[self._caption] = self._rows
        elif tag == "small":
            self._rows[-1][-1] += ")"
        self._in = "" if tag in {"th", "td", "caption"} else self._in

    def handle_data(self, data):
        if self._in == "caption":
            self._caption += data
        elif self._in in {"th", "td"} and self._rows is not None:
            self._rows[-1][-1] += data


def tables(content):
    """Rows by caption, each by its headings."""
    return {
        caption: [dict(zip(rows[0], map(str.strip, row), strict=True)) for row in rows[1:]]
        for caption, rows in Tables(content).tables.items()
    }


def labelled(clips):
    return [
        replace(clip, labels={**clip.labels, "marks": marks}, speaker=f"s{at % 3}")
        for at, (clip, marks) in enumerate(
            zip(clips, [("loud", "glad"), (), ("glad",), ("odd", "loud")] * 15, strict=True)
        )
    ]


class World:
    """A dataset, and runs on it whose folders look as training leaves them."""

    def __init__(self, folder):
        self.root = folder / "some-data"
        self.fingerprints = make_dataset(self.root)
        self.columns = {n: open_column(self.root, f) for n, f in self.fingerprints.items()}
        self.clips = labelled(read_clips(self.root))
        self.drawn = {}

    def trained(self, kind, seed=0, *, epochs=6, broken=False, model=RECIPE.model, pooling=None):
        """A finished run of which chance said the predictions, with the weights that it began with.

        Its streams are pooled to cells, unless told otherwise.
        """
        recipe = replace(
            RECIPE,
            task=TASKS[kind],
            seed=seed,
            model=model,
            pooling=pooling or RECIPE.pooling,
        )
        plan = Plan(
            name=f"late_fusion seed {seed}",
            recipe=recipe,
            root=str(self.root),
            folder=self.root / "training" / f"{kind}-{seed}-{broken}-{recipe.digest[:8]}",
            columns=self.fingerprints,
        )
        plan.folder.mkdir(parents=True, exist_ok=True)
        test = [clip.key for clip in self.clips if clip.split == "test"]
        draw = random.Random(f"{kind} {seed}")  # noqa: S311 - numbers to be shown

        predictions = by_chance(kind, test, draw)
        if broken:
            predictions[test[0]] = [math.nan] * 3 if kind == "labels" else math.nan
        first = next(iter(score_of(self.clips, recipe, predictions, plan).metrics))
        history = [
            {
                "train_loss": 2.0 / (e + 1),
                "valid_loss": 1.0 + abs(e - 2) / 10 + seed / 100,
                f"valid_{first}": 0.5,
                "learning_rate": 0.005 / (e + 1),
            }
            for e in range(epochs)
        ]
        finished = {
            "best_epoch": 2,
            "history": history,
            "predictions": predictions,
            "lacking": {k: ["audio"] if int(k[1:]) % 9 == 4 else [] for k in test},
            "without": {name: by_chance(kind, test, draw) for name in WIDTHS},
            "scores": {key: scores(kind, predictions[key], draw) for key in test},
        }
        (plan.folder / FINISHED).write_text(json.dumps(finished))
        made_by = {"code": "c" * 64, "version.torch": "2.11.0"}
        (plan.folder / RUN).write_text(
            json.dumps({"run_id": f"id-{seed}", "uri": "x", "made_by": made_by})
        )
        timed = {"median_s": 0.002, "p95_s": 0.0045, "clips": 7, "machine": "a machine"}
        (plan.folder / LATENCY).write_text(json.dumps(timed))
        (plan.folder / ATTEMPTS).write_bytes(b"..")
        notes = [(0, 1), (1, 1), (2, 1), (3, 1), *((e, 2) for e in range(2, epochs))]
        lines = [
            {"epoch": e, "attempt": n, "ranks": 2, "metrics": {**history[e], **SHARES}}
            for e, n in notes
        ]
        (plan.folder / PROGRESS).write_text(
            '{"say": "hello"}\n' + "".join(f"{json.dumps(line)}\n" for line in lines) + '{"epo'
        )
        made = build(recipe.model, WIDTHS, recipe.task.outputs)
        Predictor.save(
            plan.folder / "predictor",
            recipe=recipe,
            specs={name: column.spec for name, column in self.columns.items()},
            normaliser=Normaliser.identity(WIDTHS),
            fallback=0.0,
            weights=made.state_dict(),
        )
        return read(plan)

    def result(self, trained):
        return result_of(trained, self.clips, self.columns)

    def page(self, *trained):
        """The page, drawn once."""
        names = tuple(each.plan.folder.name for each in trained)
        if names not in self.drawn:
            self.drawn[names] = self.anew(*trained)
        return self.drawn[names]

    def anew(self, *trained):
        return page_of(trained, self.clips, self.columns)


def by_chance(kind, keys, draw):
    """Predictions of some clips."""
    match kind:
        case "regression":
            return {key: draw.gauss(0, 1) for key in keys}
        case "classes":
            return {key: float(draw.randrange(2)) for key in keys}
        case "labels":
            return {key: [float(draw.randrange(2)) for _ in range(3)] for key in keys}


def scores(kind, said, draw):
    """Probabilities by which that is said."""
    if kind == "regression":
        return []
    if kind == "labels":
        return [0.2 + 0.6 * yes for yes in said]
    sure = draw.uniform(0.5, 1)
    return [sure if place == said else 1 - sure for place in range(2)]


def score_of(clips, recipe, predictions, plan):
    from training.evaluate import scorecard

    test = [clip for clip in clips if clip.split == "test"]
    return scorecard(test, predictions, recipe.task, [], parity=None, replicates=10)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module", params=TASKS)
def each(request, world):
    """A run of each kind of task, with its scorecard and its page."""
    trained = world.trained(request.param)
    return trained, score_test(trained, world.clips, parity=None), world.page(trained)


def written(value):
    return "undefined" if math.isnan(value) else f"{value:.3f}".replace("-", "\u2212")


def around(value, ends):
    low, high = ends
    return written(value) + ("" if math.isnan(low) else f" ({written(low)} to {written(high)})")


# Every value is the scorecard's


def test_each_metric_on_the_page_is_the_scorecards_with_its_interval(each):
    _, card, content = each
    rows = tables(content)["Scores on the test clips"]
    assert [(row["metric"], row["score"], row["95 % from"], row["to"]) for row in rows] == [
        (
            name,
            written(value),
            *(written(e) if not math.isnan(e) else "" for e in card.intervals[name]),
        )
        for name, value in card.metrics.items()
    ]
    assert {row["metric"]: row["better"] for row in rows} == card.better
    assert all(row["what it is"] for row in rows)


def test_scores_when_streams_are_missing_are_the_scorecards(each):
    _, card, content = each
    found = tables(content)
    assert [row.pop("clips") for row in found["Clips by the streams that they lack"]] == [
        str(part.count) for part in card.as_found
    ]
    whole = replace(card.as_asked[0], streams=(), metrics=card.metrics, intervals=card.intervals)
    for caption, first, parts in (
        ("Clips by the streams that they lack", "lacking", card.as_found),
        ("All clips, with a stream taken away", "taken away", [whole, *card.as_asked]),
    ):
        wanted = [
            {first: ", ".join(part.streams) or "nothing"}
            | {name: around(value, part.intervals[name]) for name, value in part.metrics.items()}
            for part in parts
        ]
        shown = [{k: v for k, v in row.items() if k != "clips"} for row in found[caption]]
        assert shown == wanted


def test_confusion_and_classes_are_the_scorecards(world):
    trained = world.trained("classes")
    card = score_test(trained, world.clips, parity=None)
    found = tables(world.page(trained))
    matrix = found["Confusion"]
    for row, counts in zip(matrix, card.confusion, strict=True):
        shown = [int(row[name].split()[0]) for name in ("minus", "plus", "clips")]
        assert shown == [*counts, sum(counts)]
    for row in found["By class"]:
        values = card.by_class[row["class"]]
        assert int(row["clips"]) == values["support"]
        assert row["f1"] == written(values["f1"])


def test_labels_are_counted_as_the_scorecard_counts_them(world):
    trained = world.trained("labels")
    card = score_test(trained, world.clips, parity=None)
    found = tables(world.page(trained))
    assert [row["label"] for row in found["By label"]] == list(card.by_class)
    counts = found["Clips with and without each label"]
    for row, ((right, added), (missed, hit)) in zip(counts, card.confusion, strict=True):
        assert [int(value) for value in list(row.values())[1:]] == [hit, missed, added, right]


def test_the_clips_that_are_furthest_off_come_first_with_what_is_said_without_each_stream(world):
    trained = world.trained("regression")
    rows = tables(world.page(trained))["The clips that are furthest off"]
    truth = {clip.id: clip.labels["score"] for clip in world.clips}
    keys = {clip.id: clip.key for clip in world.clips}
    off = [abs(truth[row["clip"]] - trained.predictions[keys[row["clip"]]]) for row in rows]
    assert off == sorted(off, reverse=True)
    assert len(rows) == min(7, WORST)
    for row, distance in zip(rows, off, strict=True):
        key = keys[row["clip"]]
        assert float(row["off by"]) == pytest.approx(distance, rel=1e-3)
        for name in WIDTHS:
            shown = float(row[f"without {name}"].replace("\u2212", "-"))
            assert shown == pytest.approx(trained.without[name][key], rel=1e-3)


def test_calibration_groups_and_latency_are_the_scorecards(each):
    _, card, content = each
    found = tables(content)
    assert {row["number"]: row["value"] for row in found["Calibration"]} == {
        name: written(value) for name, value in card.calibration.numbers.items()
    }
    assert all(row["what it is"] for row in found["Calibration"])
    bins = [list(row.values()) for row in found["By what is predicted"]]
    assert bins == [
        [
            *map(written, (b.low, b.high)),
            str(b.count),
            *map(written, (b.predicted, b.observed, b.error)),
        ]
        for b in card.calibration.bins
    ]
    assert [row.pop("speaker") for row in found["By speaker"]] == ["s0", "s1", "s2"]
    assert found["By speaker"] == [
        {"clips": str(group.count)}
        | {name: around(value, group.intervals[name]) for name, value in group.metrics.items()}
        for group in card.by_group
    ]
    [row] = found["The model alone, on one clip"]
    assert row == {"machine": "a machine", "median": "2 ms", "95 % below": "4.5 ms", "clips": "7"}


def test_another_scorecard_gives_another_page(world):
    made = world.result(world.trained("regression"))
    worse = replace(made.card, metrics={**made.card.metrics, "mae": 0.123456})
    assert "0.123" in page([replace(made, card=worse)])
    assert "0.123" not in page([made])


# How it went


def test_where_a_run_was_resumed_and_what_was_trained_again_is_told(world):
    made = world.result(world.trained("regression"))
    assert made.attempts == 2
    assert made.resumed == (Resumed(attempt=2, epoch=2, again=2, ranks=2),)
    assert [made.noted[epoch].attempt for epoch in range(6)] == [1, 1, 2, 2, 2, 2]
    content = page([made])
    assert "Attempt 2 went on with epoch 3 on 2 ranks; 2 epochs were trained again." in content
    assert "resumed here" in content
    assert "resumed here" not in page([replace(made, resumed=())])


def test_time_of_epochs_is_shared_out_to_the_last_percent(world):
    rows = tables(world.page(world.trained("regression")))["Where the time of an epoch went"]
    assert {row["stage"]: row["first epoch"] for row in rows} == {
        "waiting for data": "20 %",
        "on the device": "50 %",
        "among ranks": "10 %",
        "all else": "20 %",
    }


def test_a_run_of_which_nothing_was_noted_has_a_page_all_the_same(world):
    trained = world.trained("regression", seed=9)
    for name in (PROGRESS, ATTEMPTS):
        (trained.plan.folder / name).unlink()
    (trained.plan.folder / RUN).write_text('{"run_id": "id-9", "uri": "x"}')
    found = tables(world.page(trained))
    assert "Where the time of an epoch went" not in found
    assert {"fact": "attempts", "value": "not known"} in found["Provenance"]


# Masks


def test_masks_are_the_models_own_of_the_nearest_the_middle_and_the_furthest_clip(world):
    torch.manual_seed(0)
    trained = world.trained("regression", model=LATCHED)
    made = world.result(trained)
    errors = sorted((e.error, e.key) for e in made.answers if not e.lacking)
    wanted = [errors[0][1], errors[len(errors) // 2][1], errors[-1][1]]
    assert list(made.masks) == wanted
    assert [made.chosen[key] for key in wanted] == ["nearest", "in the middle", "furthest off"]
    model = load_model(trained.predictor)
    for key, steps in made.masks.items():
        found = {name: column.read(key) for name, column in world.columns.items()}
        clip = next(each for each in world.clips if each.key == key)
        sample = to_sample(clip, found, trained.plan.recipe.pooling, None)
        means = model.explain(collate([sample], WIDTHS)).means
        for name in WIDTHS:
            shown = [step.means[name] for step in steps]
            assert shown == pytest.approx(means[name][0].tolist(), abs=1e-6)
        assert [(step.start, step.end) for step in steps] == [
            (t / 2, t / 2 + 0.5) for t in range(4)
        ]


def test_masks_stand_on_the_page_step_by_step_and_only_of_a_model_that_has_some(world):
    trained = world.trained("regression", model=LATCHED)
    made, found = world.result(trained), tables(world.page(trained))
    ids = {each.key: each.id for each in made.answers}
    for key, steps in made.masks.items():
        assert found[f"Masks of {ids[key]}"] == [
            {
                "seconds": f"{step.start:.2f}\u2013{step.end:.2f}",
                **{name: f"{mean:.3f}" for name, mean in step.means.items()},
            }
            for step in steps
        ]
    plain = replace(LATCHED, settings={**LATCHED.settings, "mask": "none"})
    assert world.result(world.trained("regression", model=plain)).masks == {}
    assert world.result(world.trained("regression")).masks == {}


def test_masks_of_words_name_them_and_say_nothing_where_a_stream_has_nothing(world):
    said = (Word(text="well", start=0.0, end=0.5), Word(text="then", start=0.6, end=1.9))
    clips = [replace(clip, words=said) for clip in world.clips if clip.key in {"k56", "k58"}]
    recipe = replace(RECIPE, model=LATCHED, pooling=Pooling(kind="words"))
    folder = world.trained("regression", model=LATCHED).predictor
    found = masks(folder, recipe, clips, world.columns)
    assert [step.word for step in found["k56"]] == ["well", "then"]
    assert all(0 < mean < 1 for step in found["k56"] for mean in step.means.values())
    assert [step.means["audio"] for step in found["k58"]] == [None, None]
    assert masks(folder, recipe, [], world.columns) == {}


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ({}, {}),
        ({"a": 1.0}, {"a": "nearest"}),
        ({"a": 1.0, "b": 0.5}, {"b": "nearest", "a": "furthest off"}),
        (
            {"c": 1.0, "b": 1.0, "a": 1.0},
            {"a": "nearest", "b": "in the middle", "c": "furthest off"},
        ),
    ],
)
def test_few_clips_are_chosen_once_each(errors, chosen):
    assert list(choose(errors).items()) == list(chosen.items())


# Provenance


def test_recipe_manifests_licences_and_digests_are_told(world):
    trained = world.trained("regression")
    found = tables(world.page(trained))
    settings = {row["setting"]: row["value"] for row in found["Recipe"]}
    assert settings["learning_rate"] == "0.005"
    assert settings["model.streams"] == "text, audio"
    assert settings["model.settings.hidden"] == "8"
    streams = {row["stream"]: row for row in found["Streams"]}
    manifests = {row["stream"]: row for row in found["Columns, with their manifests (sha256)"]}
    for name, column in world.columns.items():
        assert manifests[name]["manifest"] == column.digest
        assert manifests[name]["column"] == column.spec.fingerprint
        assert streams[name]["licence"] == column.spec.licence
        assert int(streams[name]["absent"]) == (7 if name == "audio" else 0)
    facts = {row["fact"]: row["value"] for row in found["Provenance"]}
    card = score_test(trained, world.clips, parity=None)
    assert facts["evaluation set (sha256)"] == card.evaluation_set
    assert facts["recipe (sha256)"] == trained.plan.recipe.digest
    assert (facts["run"], facts["code"], facts["torch"]) == ("id-0", "c" * 64, "2.11.0")


def test_what_a_run_starts_from_is_told(world):
    trained = world.trained("regression", seed=11)
    starts = [
        Start(part="audio", file="/runs/one/weights.safetensors", sha256="1" * 64, run_id="r1"),
        Start(part="video", file="/elsewhere/kinetics.pth", sha256="9" * 64),
    ]
    write_lineage(trained.plan.folder, replace(made_of("/data"), starts=starts))
    content = world.anew(trained)
    facts = {row["fact"]: row["value"] for row in tables(content)["Provenance"]}
    assert facts["audio starts with"] == f"weights of run r1 (sha256 {'1' * 64})"
    assert facts["video starts with"] == (
        f"kinetics.pth (sha256 {'9' * 64}); what it was trained on is not known"
    )
    assert "/elsewhere" not in content


def test_what_registration_compared_is_told_of_the_same_clips_alone(world):
    trained = world.trained("regression", seed=8)
    card = score_test(trained, world.clips, parity=True)
    file = trained.plan.folder / SCORECARD
    file.write_text(json.dumps(replace(card, evaluation_set="other").to_json()))
    assert world.result(trained).card.parity is None
    card = replace(card, duplicates=("k1",), reproducible=False)
    file.write_text(json.dumps(card.to_json()))
    found = world.result(trained).card
    assert (found.parity, found.duplicates, found.reproducible) == (True, ("k1",), False)
    fact = "features through the registered model"
    for told, run in (("equal", trained), ("not compared", world.trained("regression"))):
        facts = {row["fact"]: row["value"] for row in tables(world.page(run))["Provenance"]}
        assert facts[fact].startswith(told)


def test_folders_of_weights_are_nobodys_business(world):
    trained = world.trained("regression")
    recipe = replace(RECIPE, start={"model": "/home/someone/secret/old#abc"})
    content = page([replace(world.result(trained), recipe=recipe)])
    assert "old#abc" in content
    assert "secret" not in content
    assert str(world.root.parent) not in content


# Several runs


def test_runs_are_compared_with_mean_and_deviation_and_the_best_is_shown_in_full(world):
    trained = [world.trained("regression", seed=seed) for seed in (2, 0, 1)]
    content = world.page(*trained)
    found = tables(content)
    cards = {each.plan.name: score_test(each, world.clips, None) for each in trained}
    for row, wanted in zip(found["Runs"], table(trained, cards), strict=True):
        assert row == {
            name: value if name == "run" else written(value) for name, value in wanted.items()
        }
    assert [row["run"] for row in found["Runs"]][-2:] == ["mean", "deviation"]
    for row in found["Scores of each run, with 95 % intervals"]:
        card = cards[row["run"]]
        assert row["mae"] == around(card.metrics["mae"], card.intervals["mae"])
    best = cards["late_fusion seed 0"]
    assert found["Scores on the test clips"][0]["score"] == written(best.metrics["mae"])
    assert "Runs" not in tables(world.page(trained[0]))


# What is wrong


@pytest.mark.parametrize("kind", TASKS)
def test_predictions_that_are_no_numbers_are_told_first(world, kind):
    content = world.page(world.trained(kind, broken=True))
    assert "of 1 clips the model predicts NaN or infinity" in content
    assert content.index("What is wrong") < content.index('id="scores"')
    rows = tables(content)["Scores on the test clips"]
    assert {row["score"] for row in rows} == {"undefined"}


def test_what_registration_found_wrong_is_told(world):
    made = world.result(world.trained("regression"))
    wrong = {"duplicates": ("k1 is k2",), "parity": False, "reproducible": False}
    content = page([replace(made, card=replace(made.card, leaks=("speaker s1",), **wrong))])
    assert "in training, too: speaker s1" in content
    assert "much like a clip in training: k1 is k2" in content
    assert "features through the registered model differ" in content
    assert "says something else when it is asked again" in content
    right = {"duplicates": (), "parity": True, "reproducible": True}
    content = page([replace(made, card=replace(made.card, leaks=(), **right))])
    assert "What is wrong" not in content
    facts = {row["fact"]: row["value"] for row in tables(content)["Provenance"]}
    assert facts["test clips much like one in training"] == "none"
    assert facts["the same when asked again"] == "yes, in another process"


# Everybody, everywhere


def evil(made):
    """Every text that others write is evil."""
    task = replace(made.task, classes=EVIL[: len(made.task.classes)], label=EVIL[0])
    by_class = dict(zip(EVIL, made.card.by_class.values(), strict=False))
    sources = {
        text: replace(source, spec=replace(source.spec, licence=text, name=text))
        for text, source in zip(EVIL, made.sources.values(), strict=False)
    }
    return replace(
        made,
        name=EVIL[1],
        dataset=EVIL[2],
        recipe=replace(made.recipe, task=task, name=EVIL[0]),
        card=replace(made.card, by_class=by_class, leaks=EVIL),
        answers=tuple(replace(e, id=t) for e, t in zip(made.answers, EVIL, strict=False)),
        sources=sources,
        made_by=dict(zip(EVIL, EVIL, strict=True)),
    )


def test_what_others_wrote_is_text_on_the_page(world):
    made = world.result(world.trained("classes"))
    plain, bad = Page(page([made, replace(made, name="b")])), Page(page([evil(made), made]))
    assert {tag for tag, _ in bad.elements} <= {tag for tag, _ in plain.elements} | {"li", "ul"}
    names = {name for _, attributes in bad.elements for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    assert EVIL[2] in "".join(bad.texts)


def test_the_page_fetches_nothing_and_runs_nothing(each):
    content = each[2]
    found = Page(content)
    assert {"script", "link", "iframe", "object", "embed", "base", "form", "img"}.isdisjoint(
        tag for tag, _ in found.elements
    )
    for _, attributes in found.elements:
        for name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith("#")
    outside = re.sub(r'xmlns="http://www\.w3\.org/2000/svg"', "", content)
    assert not re.search(r"https?:|@import|url\((?!#)", outside)


def test_ids_are_unique_and_every_reference_leads_to_one(each, world):
    several = world.page(*(world.trained("regression", seed=seed) for seed in range(2)))
    for content in (each[2], several):
        found = Page(content)
        ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        for _, attributes in found.elements:
            told = [attributes.get("href", ""), attributes.get("aria-labelledby", "")]
            told += re.findall(r"url\((#[^)]*)\)", " ".join(filter(None, attributes.values())))
            assert {name.removeprefix("#") for name in told if name} <= set(ids)


def test_tables_and_figures_can_be_read_aloud(each):
    found = Page(each[2])
    assert len(found.all("table")) == len(found.all("caption"))
    assert {attributes.get("scope") for attributes in found.all("th")} == {"col", "row"}
    drawn = found.all("svg")
    assert len(drawn) == len(found.all("figcaption")) >= 5
    assert all(one["role"] == "img" and len(one["aria-label"]) > 10 for one in drawn)
    assert len(found.all("h1")) == len(found.all("main")) == 1


def test_equal_runs_give_equal_bytes(world):
    trained = world.trained("classes")
    assert world.anew(trained) == world.page(trained)
