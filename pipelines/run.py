"""The whole way for an experiment: table, columns, runs, registered model, champion."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from featurizers.clip import Clip
from featurizers.dataset import read_clips
from featurizers.manifest import Column
from pipelines.align import Placed, align
from pipelines.corpora.reading import findings
from pipelines.corpus import NOTES, add_notes, beyond, read_corpus
from pipelines.demo import FULL_SIZE, make_corpus, plan_corpus, write_source
from pipelines.duplicates import near_duplicates
from pipelines.executors import Executor, executor
from pipelines.experiment import Experiment, InputError, check_model, check_start, parse, save
from pipelines.family import Family, at_work, keep, parent_of, table
from pipelines.feature_sets import sentences
from pipelines.featurize import featurize, jobs, ledger, specs_of
from pipelines.films import Lost
from pipelines.folds import folds_of, with_folds
from pipelines.ingest import ingest
from pipelines.limits import Care
from pipelines.plans import Loading, Plan, Trained, plan_run, score_test
from pipelines.promote import Promotion, consider
from pipelines.register import Registered, register_model
from pipelines.resume import Resumed, check_resume
from pipelines.run_pages import keep_pages
from pipelines.score import row_of, score
from pipelines.segment import Segmented, segment
from pipelines.show import Show
from pipelines.sources import Asked, ask, rows_of, stage_of, task_of
from pipelines.train import train
from pipelines.transcribe import Transcribed, transcribe
from pipelines.upkeep import Retried, retry
from tracking.mlflow_store import initialise, tracking_uri
from tracking.scorecard import Scorecard
from training.bootstrap import paired_bound
from training.data import target_of
from training.evaluate import scorecard
from training.folds import in_fold
from training.recipe import Recipe, Task

MODEL = "demo-sentiment"
DEMO_EPOCHS = 40
DEMO_METRICS = ("acc2_non0", "f1_non0", "mae", "corr")
IMPORTED_MODEL = (
    "its features were imported, so that it scores rows that bring theirs, and no raw clip; with "
    "nothing to compare it cannot be promoted"
)
MADE_UP = (
    "The demo corpus is made up: drawn faces, synthetic voices, random words. It shows mechanics."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run of an experiment came to."""

    clips: int
    trained: Sequence[Trained]
    cards: Mapping[str, Scorecard]
    registered: Registered | None
    promotion: Promotion | None


def _tell_lost(lost: Sequence[Lost], show: Show) -> None:
    for each in lost:
        show.say(f"{each.media}: {each.fault}: {each.message}")


def read_corpus_all(experiment: Experiment, show: Show) -> None:
    """Read a published corpus into its table of clips, and say what is wrong."""
    show.head("corpus")
    found = read_corpus(experiment)
    for each in findings(found.notes):
        show.say(str(each))
    more = f"; {experiment.raw / NOTES} names each" if found.notes else ""
    show.say(f"{len(found.rows)} clips; {experiment.cut_table}{more}")


def segment_all(experiment: Experiment, show: Show) -> Segmented:
    """Cut whole media into clips, with a progress bar."""
    show.head("segment")
    with show.counting("segment", None) as done:
        found = segment(experiment, executor(experiment.workers.featurize), done)
    _tell_lost(found.lost, show)
    show.say(
        f"{len(found.clips)} clips, {found.seconds / 3600:.2f} h cut from {found.films} media "
        f"files; {len(found.lost)} are bad, {found.silent} have no voice; {experiment.cut_table}"
    )
    return found


def transcribe_all(experiment: Experiment, show: Show) -> Transcribed:
    """Make the table of clips where none is given, and transcribe clips without words."""
    if experiment.source.format:
        read_corpus_all(experiment, show)
    elif experiment.segment is not None:
        segment_all(experiment, show)
    show.head("transcribe")
    with show.counting("transcribe", None) as done:
        found = transcribe(experiment, executor(experiment.workers.featurize), done)
    _tell_lost(found.lost, show)
    show.say(
        f"{found.heard} of {len(found.clips)} clips were without words; {len(found.lost)} media "
        f"files are bad; {experiment.spoken_table}"
    )
    return found


def align_all(experiment: Experiment, show: Show) -> Placed:
    """Align words without times, with a progress bar; of a corpus first its table is made."""
    if experiment.source.format and experiment.spoken_table == experiment.cut_table:
        read_corpus_all(experiment, show)
    show.head("align")
    with show.counting("align", None) as done:
        found = align(experiment, executor(experiment.workers.featurize), done)
    _tell_lost(found.lost, show)
    show.say(
        f"{found.sure} of {found.tried} clips with words without times are aligned, the others "
        f"keep estimated times; {experiment.table}"
    )
    return found


def ingest_all(experiment: Experiment, show: Show) -> list[Clip]:
    """Ingest the table, with a progress bar; of a corpus first that table is made.

    What was imported is taken as it is.
    """
    if experiment.source.format and experiment.table == experiment.cut_table:
        read_corpus_all(experiment, show)
    show.head("ingest")
    if experiment.source.imported:
        clips = list(read_clips(experiment.root))
        show.say(f"clips {len(clips)}, as they were imported")
        return clips
    rows = rows_of(experiment)
    with show.counting("ingest", len(rows)) as done:
        found = ingest(experiment, executor(experiment.workers.featurize), done)
    counts = ", ".join(f"{name} {count}" for name, count in found.counts.items())
    show.say(f"{counts}; {found.how_split}; task {found.task.kind}")
    if found.forgotten:
        show.say(f"{found.forgotten} rows are passed over: those clips were to be forgotten")
    late = beyond(found.clips)
    for each in findings(late):
        show.say(str(each))
    if experiment.source.format and late:
        add_notes(experiment, late)
    return found.clips


def featurize_all(experiment: Experiment, show: Show) -> dict[str, Column]:
    """Compute and commit the columns, with a progress bar."""
    show.head("featurize")
    save(experiment)  # also where --set changed the columns: a report must know which are meant
    for stream, featurizer in experiment.featurizers().items():
        if caution := getattr(featurizer, "caution", ""):
            show.say(f"warning: features.{stream}: {caution}")
    work = jobs(experiment.root, specs_of(experiment))
    speed: list[str] = []
    with show.featurizing(sum(len(job.clips) for job in work.todo)) as done:
        where = executor(experiment.workers.featurize)
        columns = featurize(experiment, where, done, speed.append, work=work)
    for sentence in speed or ["all columns are finished already"]:
        show.say(sentence)
    show.ledger(ledger(columns))
    return columns


def retry_all(experiment: Experiment, reasons: Sequence[str], show: Show) -> Retried:
    """Try quarantined clips once more, with a progress bar."""
    show.head("retry")
    speed: list[str] = []
    with show.featurizing(None) as done:
        where = executor(experiment.workers.featurize)
        retried = retry(experiment, reasons, where, done, speed.append)
    for name, tried in retried.clips.items():
        show.say(f"{name}: {tried} clips tried again, {retried.left[name]} still quarantined")
    show.ledger(ledger(retried.columns))
    return retried


def train_all(
    experiment: Experiment,
    recipes: Sequence[Recipe],
    columns: Mapping[str, Column],
    clips: Sequence[Clip],
    show: Show,
) -> list[Trained]:
    """Train recipes that are not finished, with a progress bar."""
    show.head("train")
    plans: list[Plan] = []
    for recipe in recipes:
        check_usable(recipe, clips, columns)
        plans.append(planned(experiment, columns, recipe, clips))
    if finished := sum(plan.finished for plan in plans):
        show.say(f"{finished} of {len(plans)} runs are finished already")
    left = sum(not plan.finished for plan in plans)
    family = _family(experiment, plans)
    with at_work(family):
        with show.training(left, max(recipe.epochs for recipe in recipes)) as told:
            trained = train(
                plans,
                clips,
                uri=store_uri(experiment),
                store=experiment.folder,
                experiment=experiment.name,
                workers=experiment.workers.train.most,
                least=experiment.workers.train.least,
                care=care_of(experiment),
                told=told,
                say=show.say,
                within=told.within,
                parent=None if family is None else family.run.run_id,
            )
        for each in trained:
            show.say(
                f"{each.plan.name}: best epoch {each.best_epoch + 1} of {len(each.history)}, "
                f"valid loss {each.valid_loss:.4f}, run {each.run_id}"
            )
        if family is not None:
            rows = runs_table(trained, clips)
            keep(family, rows, show.say)
            show.rows(f"{len(trained)} runs of run {family.run.run_id}", rows)
    for file in _pages(experiment, trained, columns, clips, show):
        show.say(f"page: {file}")
    return trained


def _pages(
    experiment: Experiment,
    trained: Sequence[Trained],
    columns: Mapping[str, Column],
    clips: Sequence[Clip],
    show: Show,
) -> list[Path]:
    """Keep the pages of some runs that are changed; returns the files of all."""
    family = _family(experiment, [each.plan for each in trained])
    uri = store_uri(experiment)
    return keep_pages(trained, clips, columns, uri=uri, family=family, say=show.say)


def check_resuming(
    experiment: Experiment,
    recipe: Recipe,
    columns: Mapping[str, Column],
    clips: Sequence[Clip],
    show: Show,
    *,
    steps: int,
) -> Resumed:
    """Whether a run that is killed after some steps goes on to the same bits; see `resume`."""
    show.head("check of resuming")
    check_usable(recipe, clips, columns)
    plan = planned(experiment, columns, recipe, clips)
    uri = store_uri(experiment)
    initialise(uri, experiment.folder / "mlartifacts")
    found = check_resume(
        plan,
        steps=steps,
        uri=uri,
        experiment=experiment.name,
        workers=experiment.workers.train.least,
        care=care_of(experiment),
        say=show.say,
    )
    same = "the same, to the last bit" if found.identical else "NOT the same"
    show.say(
        f"{found.run}: {found.steps} steps on {found.ranks} ranks, all of them killed after "
        f"{found.killed_at}: weights and moments are {same} as undisturbed "
        f"({found.resumed[:12]}, {found.undisturbed[:12]})"
    )
    return found


def planned(
    experiment: Experiment, columns: Mapping[str, Column], recipe: Recipe, clips: Sequence[Clip]
) -> Plan:
    """The plan of one run of the experiment, which says how its batches are brought."""
    loading = Loading(workers=experiment.workers.loader, node_cache=experiment.node_cache)
    plan = plan_run(experiment.root, experiment.work, columns, recipe, clips)
    return replace(plan, loading=loading)


def care_of(experiment: Experiment) -> Care:
    """How the experiment's runs are looked after."""
    train = experiment.train
    return Care(
        max_failures=train.max_failures,
        keep=train.keep,
        checkpoint_minutes=train.checkpoint_minutes,
        hang_s=train.hang_s,
        stall_minutes=train.stall_minutes,
        wait_minutes=train.wait_minutes,
        deadline_minutes=train.deadline_minutes,
        device=train.device,
    )


def runs_table(trained: Sequence[Trained], clips: Sequence[Clip]) -> list[dict[str, object]]:
    """A row for each run, with its test metrics; then mean and deviation, where they are alike."""
    return table(trained, {each.plan.name: score_test(each, clips, None) for each in trained})


def are_alike(plans: Sequence[Plan]) -> bool:
    """Whether runs are of one recipe, and differ by seed and fold alone.

    The weights that they start from may be of their own fold and seed.
    """
    return len({replace(p.recipe, seed=0, fold="", start={}).digest for p in plans}) == 1


def _family(experiment: Experiment, plans: Sequence[Plan]) -> Family | None:
    """That of several runs that are alike; None of others."""
    if len(plans) < 2 or not are_alike(plans):
        return None
    uri = store_uri(experiment)
    initialise(uri, experiment.folder / "mlartifacts")
    return parent_of(plans, uri, experiment.name, f"{plans[0].recipe.name}, {len(plans)} runs")


def check_usable(recipe: Recipe, clips: Sequence[Clip], columns: Mapping[str, Column]) -> None:
    """Raise InputError, before workers start, when a split has nothing to work on."""
    dealt = in_fold(clips, recipe.fold)
    for name in ("train", "valid", "test"):
        labelled = [c for c in dealt if c.split == name and recipe.task.label in c.labels]
        # Testing takes every clip that has anything; see `training.data.load`.
        enough = any if recipe.take_absent or name == "test" else all
        usable = [
            clip
            for clip in labelled
            if enough(columns[s].rows[clip.key].state == "sample" for s in recipe.model.streams)
        ]
        if not usable:
            raise InputError(
                f"split {name!r} has no usable clip: {len(labelled)} are labelled with "
                f"{recipe.task.label!r}, none of them has a sample; give the table a split column, "
                f"more groups, or another source.split_seed"
            )


def store_uri(experiment: Experiment) -> str:
    """The tracking server of an experiment: MLFLOW_TRACKING_URI, or a file beside it."""
    return tracking_uri(experiment.folder)


def recipes_of(experiment: Experiment, task: Task) -> list[Recipe]:
    """The experiment's recipe, once for each fold and seed.

    Raises:
        InputError: The model is for other tasks, or weights to start from do not fit it.
    """
    check_model(experiment, task)
    check_start(experiment, task)
    seeds = range(experiment.train.seeds)
    return [
        replace(experiment.recipe(task, seed), fold=fold)
        for fold in folds_of(experiment)
        for seed in seeds
    ]


def register_best(
    experiment: Experiment,
    trained: Sequence[Trained],
    columns: Mapping[str, Column],
    clips: Sequence[Clip],
    show: Show,
) -> Registered | None:
    """Register the run with the lowest validation loss; None when no name is given."""
    if experiment.register_ is None:
        return None
    if trained[0].plan.recipe.fold:
        show.say("folds measure a recipe: nothing is registered; train without them for a model")
        return None
    show.head("register")
    best = min(trained, key=lambda each: (each.standing, each.plan.recipe.seed))
    asked = [] if experiment.source.imported else ask(experiment, rows_of(experiment))[0]
    registered = register_model(
        best,
        clips,
        asked,
        columns,
        uri=store_uri(experiment),
        name=experiment.register_.name,
        stage=stage_of(experiment),
        weights=sorted({each.spec.source for each in experiment.featurizers().values()} - {""}),
        duplicates=near_duplicates(experiment, best.plan, clips, show),
    )
    # Again: they tell of the comparison with the shards now.
    _pages(experiment, trained, columns, clips, show)
    told = IMPORTED_MODEL if experiment.source.imported else registered.checked
    show.say(f"{registered.name} version {registered.version} ({best.plan.name}): {told}")
    return registered


def _comparable(loss: float) -> float:
    """A loss that can be ordered: NaN, which compares with nothing, is as bad as infinity."""
    return math.inf if math.isnan(loss) else loss


def run(experiment: Experiment, show: Show) -> Summary:
    """Everything, from the table to the champion; what is finished is taken as it is.

    Raises:
        InputError: The experiment or its table is wrong.
    """
    chosen = {stream: each.featurizer for stream, each in experiment.features.items()}
    for sentence in sentences(experiment.feature_set, chosen):
        show.say(sentence)
    if experiment.source.transcribe is not None:
        transcribe_all(experiment, show)
    elif experiment.segment is not None:
        segment_all(experiment, show)
        show.say("no source.transcribe: clips without a transcript have no words")
    if experiment.source.align is not None:
        align_all(experiment, show)
    clips: Sequence[Clip] = ingest_all(experiment, show)
    task = task_of(experiment, clips)
    recipes = recipes_of(experiment, task)
    columns = featurize_all(experiment, show)
    clips = with_folds(experiment, clips, task)
    trained = train_all(experiment, recipes, columns, clips, show)
    cards = {each.plan.name: score_test(each, clips, parity=None) for each in trained}
    show.scores("test", cards, list(next(iter(cards.values())).metrics))
    show.missing(cards, list(next(iter(cards.values())).metrics))
    registered = register_best(experiment, trained, columns, clips, show)
    promotion = None
    if registered is not None and experiment.promote is not None:
        show.head("promote")
        promotion = consider(
            store_uri(experiment),
            registered.name,
            registered.version,
            experiment.rules(),
            why=f"run of {experiment.name}",
        )
        show.promotion(promotion)
    return Summary(
        clips=len(clips),
        trained=trained,
        cards=cards,
        registered=registered,
        promotion=promotion,
    )


def demo(folder: Path, show: Show, *, clips: int, seed: int, interaction: bool = True) -> Summary:
    """The whole way on a generated corpus, with late fusion and each modality alone beside it.

    Args:
        folder: Where everything goes.
        show: Told what happens.
        clips: Size of the corpus.
        seed: Of the runs; the corpus is always the same.
        interaction: False takes the control corpus, whose label the words alone decide.
    """
    show.say(MADE_UP)
    show.head("corpus")
    name, folder = "corpus" if interaction else "control", folder.resolve()
    standard = interaction and clips == FULL_SIZE
    model = MODEL if standard else f"{MODEL}-{name}-{clips}"
    experiment = parse(demo_settings(name, model), folder, "demo")
    write_corpus(folder / name, executor(experiment.workers.featurize), clips, interaction, show)
    table = ingest_all(experiment, show)
    columns = featurize_all(experiment, show)
    task = task_of(experiment, table)
    recipes = [replace(each, seed=seed) for each in demo_recipes(experiment, task)]
    trained = train_all(experiment, recipes, columns, table, show)
    cards = {each.plan.name: score_test(each, table, parity=None) for each in trained}
    show.scores(
        f"test, {next(iter(cards.values())).count} clips",
        {**cards, **chance_cards(table, task)},
        DEMO_METRICS,
    )
    show.missing(cards, DEMO_METRICS)
    for line in gains(cards):
        show.say(line)
    registered = register_best(experiment, trained[:1], columns, table, show)
    if registered is None:
        raise InputError("the demo registers its model, but no name is given")
    show.head("promote")
    promotion = consider(
        store_uri(experiment), model, registered.version, experiment.rules(), why="demo"
    )
    show.promotion(promotion)
    # A model that is not promoted scores, too; the champion is another one then, or none.
    ref = f"models:/{model}" + (
        "@champion" if promotion.verdict.promote else f"/{registered.version}"
    )
    show.head(f"score a raw clip with {ref}")
    show_score(experiment, ref, table, show)
    show.say(MADE_UP)
    return Summary(
        clips=len(table),
        trained=trained,
        cards=cards,
        registered=registered,
        promotion=promotion,
    )


def demo_settings(corpus: str, model: str) -> dict[str, Any]:
    """The demo's experiment file."""
    return {
        "dataset": f"{corpus}-dataset",
        "source": {"table": f"{corpus}/clips.csv", "label": "sentiment"},
        "features": {
            "text": {"featurizer": "hashed-words"},
            "audio": {"featurizer": "logmel", "hop_ms": 10},
            "video": {"featurizer": "face-motion", "fps": 5},
        },
        "model": {"recipe": "mmlatch"},
        "train": {"epochs": DEMO_EPOCHS, "learning_rate": 1.0e-3},
        "shards": {"clips": 32},
        "register": {"name": model},
        "promote": {
            "rules": [
                {"metric": "acc2_non0", "floor": 0.7},
                {"metric": "mae", "better": "lower", "not_worse_by": 0.05},
            ]
        },
    }


def demo_recipes(experiment: Experiment, task: Task) -> list[Recipe]:
    """MMLatch, late fusion and each modality alone, trained alike."""
    alone = [
        experiment.model_copy(
            update={
                "model": experiment.model.model_copy(update={"recipe": "unimodal"}),
                "features": {stream: settings},
            }
        )
        for stream, settings in experiment.features.items()
    ]
    late = experiment.model_copy(
        update={"model": experiment.model.model_copy(update={"recipe": "late_fusion"})}
    )
    return [each.recipe(task) for each in (experiment, late, *alone)]


def chance_cards(clips: Sequence[Clip], task: Task) -> dict[str, Scorecard]:
    """What can be guessed from a clip's duration alone, and from its speaker alone.

    Duration: a straight line through the training clips. Speaker: the mean of that speaker's
    training clips, of all of them for a new speaker.
    """
    train_clips = [clip for clip in clips if clip.split == "train"]
    test = [clip for clip in clips if clip.split == "test"]
    labels = np.array([target_of(clip, task) for clip in train_clips], dtype=np.float64)
    slope, base = np.polyfit([clip.seconds for clip in train_clips], labels, 1)
    means = {
        speaker: labels[[clip.speaker == speaker for clip in train_clips]].mean()
        for speaker in {clip.speaker for clip in train_clips}
    }
    guesses = {
        "duration alone": {clip.key: float(base + slope * clip.seconds) for clip in test},
        "speaker alone": {clip.key: float(means.get(clip.speaker, labels.mean())) for clip in test},
    }
    return {
        name: scorecard(test, guess, task, train_clips, parity=None)
        for name, guess in guesses.items()
    }


def gains(cards: Mapping[str, Scorecard], metric: str = "acc2_non0") -> list[str]:
    """How much better each fused model is than the best single modality, with its bound.

    The models are in the order of `demo_recipes`: two fused ones, then each modality alone.
    """
    fused, single = list(cards.items())[:2], list(cards.items())[2:]
    best, other = min(single, key=lambda each: _comparable(-each[1].metrics[metric]))
    lines: list[str] = []
    for name, card in fused:
        bound = paired_bound(card.replicates[metric], other.replicates[metric], "higher")
        lines.append(
            f"{name}: {metric} {card.metrics[metric] - other.metrics[metric]:+.3f} over {best}; "
            f"at least {bound:+.3f} with 95 % confidence (paired bootstrap)"
        )
    return lines


def write_corpus(folder: Path, where: Executor, clips: int, interaction: bool, show: Show) -> None:
    """Write the generated corpus, one job a media file."""
    plan = plan_corpus(clips, interaction=interaction)
    with show.counting("corpus", len(plan)) as done:
        for _ in where.run(partial(_Writer, folder), plan):
            done(1)
    make_corpus(folder, clips=clips, interaction=interaction)
    show.say(f"{len(plan)} media files in {folder}")


class _Writer:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, script: Any) -> None:  # noqa: ANN401 - a script of the corpus
        write_source(script, folder=self._folder)


def show_score(experiment: Experiment, model: str, clips: Sequence[Clip], show: Show) -> None:
    """Score the first whole test clip from its raw file."""
    by_key = {clip.key: clip for clip in read_clips(experiment.root)}
    asked, _ = ask(experiment, rows_of(experiment))
    test = {clip.key for clip in clips if clip.split == "test" and clip.seconds and clip.words}
    chosen: Asked = next(each for each in asked if each.raw.key in test)
    rows = score(store_uri(experiment), model, [row_of(chosen)])
    clip = by_key[chosen.raw.key]
    spoken = " ".join(word.text for word in clip.words or ())
    show.say(f"{chosen.raw.media}: {spoken!r}, labelled {clip.labels[experiment.source.label]}")
    show.answers(rows)
