"""Trained runs as a page: scores, errors, what missing streams cost, how training went, provenance.

Of several seeds or folds there is one page: the runs beside each other, then the best of them in
full.
"""

import math
from collections.abc import Mapping, Sequence

from pipelines.pages import Table, render
from pipelines.pages import result_course as course
from pipelines.pages import result_scores as scores
from pipelines.pages.result_figures import figures
from pipelines.pages.result_scores import score
from pipelines.pages.units import amount
from pipelines.results import Result
from tracking.scorecard import Scorecard

TILES = 4


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
        runs=Table("Runs", [scores.run_row(row) for row in rows]),
        run_scores=Table("Scores of each run, with 95 % intervals", scores.run_scores(results)),
        scores=Table("Scores on the test clips", scores.score_rows(best.card)),
        classes=Table(
            "By label" if best.task.kind == "labels" else "By class", scores.class_rows(best)
        ),
        confusion=scores.confusion(best),
        labels=Table("Clips with and without each label", scores.label_rows(best)),
        worst=scores.worst(best),
        found=Table("Clips by the streams that they lack", scores.part_rows(best.card.as_found)),
        asked=Table("All clips, with a stream taken away", scores.asked_rows(best.card)),
        calibration=Table("Calibration", scores.calibration_rows(best.card)),
        bins=Table("By what is predicted", scores.bin_rows(best.card)),
        groups=Table("By " + scores.group_kind(best.card), scores.group_rows(best.card)),
        latency=Table("The model alone, on one clip", scores.latency_rows(best.card)),
        masks=[course.masked(best, key, steps) for key, steps in best.masks.items()],
        history=Table("Epochs", course.epoch_rows(best)),
        resumed=[course.resumed(each) for each in best.resumed],
        time=Table("Where the time of an epoch went", course.time_rows(best)),
        recipe=Table("Recipe", course.recipe_rows(best)),
        sources=Table("Streams", course.source_rows(best)),
        manifests=Table("Columns, with their manifests (sha256)", course.manifest_rows(best)),
        made_by=Table("Provenance", course.provenance_rows(best)),
        figures=drawn,
        run_figures=["seeds", *(name for name in drawn if name.startswith("runs "))],
        group_figures=[name for name in drawn if name.startswith("groups ")],
        stream_figures=[name for name in drawn if name.startswith("streams ")],
        learning_figures=["losses", *(name for name in drawn if name.startswith("valid ")), "rate"],
        sections=[
            (anchor, name)
            for anchor, name, there in (
                ("runs", "Runs", len(results) > 1),
                ("scores", "Scores", True),
                ("errors", "Where it errs", True),
                ("missing", "Missing streams", bool(best.card.as_asked)),
                ("calibration", "Calibration", best.card.calibration is not None),
                ("groups", "Speakers", len(best.card.by_group) > 1),
                ("masks", "Masks", bool(best.masks)),
                ("learning", "Learning", True),
                ("time", "Time", "time" in drawn or best.card.latency is not None),
                ("origin", "Recipe and provenance", True),
            )
            if there
        ],
    )


def problems(made: Result) -> list[str]:
    """What a reader must know before the numbers."""
    found = [f"{name} is undefined: {why}" for name, why in made.card.undefined.items()]
    if lost := sum(math.isinf(each.error) for each in made.answers):
        found.append(f"of {lost} clips the model predicts NaN or infinity")
    if made.card.leaks:
        found.append(f"in training, too: {', '.join(made.card.leaks)}")
    if made.card.duplicates:
        found.append(f"much like a clip in training: {', '.join(made.card.duplicates)}")
    if made.card.parity is False:
        found.append("features through the registered model differ from those of the shards")
    if made.card.reproducible is False:
        found.append("the registered model says something else when it is asked again")
    return found


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
