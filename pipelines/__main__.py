"""The command line: each command is one call. Exit code 0 done, 1 failed, 2 the input was wrong."""

if __name__ == "__main__":
    from pipelines import entry

    entry.main()  # comes back here by importing this module; does not return

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from featurizers.dataset import DatasetError
from featurizers.egemaps import MissingPackageError
from featurizers.encoding import EncoderMemoryError
from featurizers.manifest import CorruptShardError
from featurizers.store import StorageError
from pipelines.experiment import FailedError, InputError, load, save
from pipelines.stopping import stoppable
from tracking.mlflow_store import MlflowRegistry, NoStoreError, StoreError, tracking_uri
from tracking.registry import LostRaceError, UnknownModelError, history
from training.checkpoint import CheckpointError
from training.recipe import TaskKind

# Commands import what they call: `--help` and a wrong file name need neither torch nor a table.
WRONG_INPUT = (InputError, DatasetError, NoStoreError, UnknownModelError)
FAILED = (
    FailedError,
    StorageError,
    EncoderMemoryError,
    MissingPackageError,
    OSError,  # permissions and the like, wherever they are met; its text names the file
    StoreError,
    CorruptShardError,
    LostRaceError,
    CheckpointError,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Raw clips (video, audio, transcript) to trained, tracked and promoted fusion models.",
)

File = Annotated[Path, typer.Argument(help="The experiment file.")]
Raw = Annotated[Path, typer.Argument(help="A folder or table of media, or an experiment file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Replace a setting, as in --set train.epochs=3; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value, for machines.")]
Dataset = Annotated[str, typer.Argument(help="The dataset: a folder, or an address like s3://.")]
Store = Annotated[
    Path, typer.Option(help="Folder of mlflow.db, where MLFLOW_TRACKING_URI is not set.")
]

Seeds = Annotated[int | None, typer.Option(help="How many runs, with other seeds.")]
Folds = Annotated[int | None, typer.Option(help="Train on each of so many folds by groups.")]
Fold = Annotated[str | None, typer.Option(help="Train on one fold alone, as in --fold 2/5.")]

DATA, MODELS, FLOWS = "Data", "Models", "Flows"


@app.command("init", rich_help_panel=DATA)
def init_command(
    source: Annotated[Path, typer.Argument(help="A table of clips, or a folder of media.")],
    label: Annotated[str, typer.Option(help="The column that is to be predicted.")],
    to: Annotated[Path, typer.Option(help="The file to write.")] = Path("experiment.yaml"),
    task: Annotated[
        TaskKind | None, typer.Option(help="What for; else as fits what the column holds.")
    ] = None,
    features: Annotated[
        str, typer.Option(help="A set of features: light, classic or strong.")
    ] = "light",
) -> None:
    """Write a commented experiment.yaml from what is found."""
    from pipelines.start import init

    for line in init(source, label, to, task, features):
        print(line)


@app.command("segment", rich_help_panel=DATA)
def segment_command(source: Raw, settings: Set = None, as_json: Json = False) -> None:
    """Cut long media into clips by voice, and write the table of clips. Run again, it goes on."""
    from pipelines.films import load_source
    from pipelines.run import segment_all
    from pipelines.show import Show

    experiment = load_source(source, settings or ())
    found = segment_all(experiment, Show(quiet=as_json))
    if as_json:
        told = {"table": str(experiment.cut_table), "clips": len(found.clips)}
        lost = [_plain(each) for each in found.lost]
        told |= {"films": found.films, "silent": found.silent, "seconds": found.seconds}
        print(json.dumps({**told, "lost": lost}))


@app.command("transcribe", rich_help_panel=DATA)
def transcribe_command(source: Raw, settings: Set = None, as_json: Json = False) -> None:
    """Give clips without words those that a Whisper model hears, with times. It cuts media, too."""
    from pipelines.films import load_source
    from pipelines.run import transcribe_all
    from pipelines.show import Show

    experiment = load_source(source, settings or ())
    found = transcribe_all(experiment, Show(quiet=as_json))
    if as_json:
        told = {"table": str(experiment.spoken_table), "clips": len(found.clips)}
        told |= {"heard": found.heard, "lost": [_plain(each) for each in found.lost]}
        print(json.dumps(told))


@app.command("ingest", rich_help_panel=DATA)
def ingest_command(
    file: File,
    *,
    align: Annotated[
        bool, typer.Option("--align", help="First place words without times by source.align.")
    ] = False,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Table to dataset: rows checked, media digested and probed, splits dealt, shards planned."""
    from pipelines.run import align_all, ingest_all
    from pipelines.show import Show

    experiment = load(file, settings or ())
    show = Show(quiet=as_json)
    if align:
        align_all(experiment, show)
    clips = ingest_all(experiment, show)
    if as_json:
        print(json.dumps({"dataset": str(experiment.root), "clips": len(clips)}))


@app.command("featurize", rich_help_panel=DATA)
def featurize_command(file: File, settings: Set = None, as_json: Json = False) -> None:
    """Compute the columns that are not finished, and commit them."""
    from pipelines.featurize import ledger
    from pipelines.run import featurize_all
    from pipelines.show import Show

    columns = featurize_all(load(file, settings or ()), Show(quiet=as_json))
    if as_json:
        print(json.dumps([_plain(each) for each in ledger(columns)]))


@app.command("status", rich_help_panel=DATA)
def status_command(file: File, settings: Set = None, as_json: Json = False) -> None:
    """The ledger: clips = sample + absent + quarantined, which clips, and what is out of date."""
    from pipelines.featurize import ledger, standing
    from pipelines.show import Show

    found = standing(load(file, settings or ()))
    lines = ledger(found.columns)
    if as_json:
        plain = [_plain(each) for each in lines]
        print(json.dumps({"columns": plain, "out_of_date": found.stale, "jobs_left": found.left}))
    else:
        show = Show()
        if lines:
            show.ledger(lines)
        for stream, column in found.columns.items():
            for row in column.rows.values():
                if row.state == "quarantined":
                    show.say(f"{stream}: {row.key}: {row.fault}: {row.message}")
        if found.stale:
            names = ", ".join(found.stale)
            show.say(f"out of date or not finished: {names}; {found.left} jobs left, featurize")
    if found.stale:
        raise typer.Exit(1)


@app.command("plan", rich_help_panel=DATA)
def plan_command(
    file: File,
    *,
    ingested: Annotated[
        bool, typer.Option("--ingested", help="Take what was ingested; do not read the table.")
    ] = False,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Say what featurizing would do, redo and keep: shards, clips, hours, and how long it takes."""
    from pipelines.executors import executor
    from pipelines.forecast import forecast
    from pipelines.show import Show

    experiment = load(file, settings or ())
    show = Show(quiet=as_json)
    with show.counting("read", None) as done:
        found = forecast(
            experiment, executor(experiment.workers.featurize), done, read_table=not ingested
        )
    if as_json:
        print(json.dumps(_plain(found)))
        return
    show.forecast(found)


@app.command("retry", rich_help_panel=DATA)
def retry_command(
    file: File,
    reason: Annotated[
        list[str] | None, typer.Option(help="Only clips with this fault; repeatable.")
    ] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Try quarantined clips once more, and nothing else."""
    from pipelines.run import retry_all
    from pipelines.show import Show

    retried = retry_all(load(file, settings or ()), reason or (), Show(quiet=as_json))
    if as_json:
        left_out = list(retried.left_out)
        print(
            json.dumps(
                {"tried": dict(retried.clips), "left": dict(retried.left), "left_out": left_out}
            )
        )


@app.command("forget", rich_help_panel=DATA)
def forget_command(
    dataset: Dataset,
    clips: Annotated[list[str], typer.Argument(help="Ids or keys of clips.")],
    as_json: Json = False,
) -> None:
    """Remove clips from a dataset: table, plan, all columns, logs. Later ingests pass them over."""
    from pipelines.show import Show
    from pipelines.upkeep import forget

    show = Show(quiet=as_json)
    found = forget(dataset, clips, show.say)
    if as_json:
        print(json.dumps(_plain(found)))
        return
    show.say(
        f"{found.clips} clips are forgotten: {found.shards} shards were written without them, "
        f"{found.files} files removed or mended"
    )
    show.say(
        "not touched: the table and the media themselves, what was cut and heard of them (in raw "
        "of the dataset: spans, words, tables), models that were trained on them, and "
        "their predictions in runs"
    )


@app.command("report", rich_help_panel=DATA)
def report_command(
    dataset: Dataset,
    *,
    page: Annotated[
        Path | None, typer.Option(help="Write one HTML file too, that needs nothing else.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The ledger: what became of every clip and why, durations, speed by stage, slowest clips."""
    from featurizers.store import publish
    from pipelines.pages.ledger import page as drawn
    from pipelines.pages.ledger import sentences, tables
    from pipelines.report import report
    from pipelines.show import Show

    made = report(dataset)
    if page is not None:
        publish(page, drawn(made).encode())
    if as_json:
        print(json.dumps(made.to_json()))
    else:
        show = Show()
        for title, rows in tables(made):
            show.rows(title, rows)
        for sentence in sentences(made):
            show.say(sentence)
    if not made.balanced:
        raise typer.Exit(1)


@app.command("peek", rich_help_panel=DATA)
def peek_command(
    dataset: Dataset,
    clip: Annotated[str, typer.Argument(help="The clip's key or id.")],
    *,
    output: Annotated[
        Path | None, typer.Option(help="The page to write; else KEY.html, and none with --json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One clip as a page: frames, waveform, words and features on one axis of time."""
    from featurizers.store import publish
    from pipelines.pages.peek import page, sentences
    from pipelines.peek import peek

    made = peek(dataset, clip)
    if output is None and not as_json:
        output = Path(f"{made.clip.key[:100]}.html")  # keys may be longer than a name of a file
    if output is not None:
        publish(output, page(made).encode())
    if as_json:
        print(json.dumps(made.to_json()))
    else:
        print("\n".join([*sentences(made), f"wrote {output}"]))
    if not made.whole:
        raise typer.Exit(1)


@app.command("verify", rich_help_panel=DATA)
def verify_command(
    dataset: Dataset,
    *,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove unfinished, stray and damaged files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hold every byte of a dataset against what was written, and name the clips that are hurt."""
    from featurizers.dataset import has_clips
    from featurizers.store import store_at
    from featurizers.verify import clean as remove
    from featurizers.verify import verify
    from pipelines.report import asked_but_not_there

    where = store_at(dataset).where()
    if not has_clips(dataset):
        raise DatasetError(f"{where}: there is no dataset; ingest a table first")
    problems, absent = verify(dataset), asked_but_not_there(dataset)
    removed = remove(dataset, problems) if clean else []
    left = [each for each in problems if each.file not in removed or each.what == "damaged"]
    if as_json:
        found = [_plain(each) for each in problems]
        print(json.dumps({"problems": found, "removed": removed, "not_there": absent}))
    else:
        lines = [f"{problem.what}: {problem}" for problem in problems]
        lines += [f"removed: {name}" for name in removed]
        lines += [f"not there: column {each}; featurize computes it" for each in absent]
        advice = "featurize again" if clean else "`verify --clean`, then `featurize`, mends them"
        lines.append(
            f"{len(left)} problems: {advice}"
            if left
            else f"{where}: all that is there is as it was written"
        )
        print("\n".join(lines))
    if left:
        raise typer.Exit(1)


@app.command("fetch", rich_help_panel=DATA)
def fetch_command(
    name: Annotated[str, typer.Argument(help="yunet or face-landmarker.")],
    *,
    to: Annotated[Path, typer.Option(help="The folder for it.")] = Path("models"),
    yes: Annotated[bool, typer.Option("--yes", help="Download; else it is only shown.")] = False,
    mirror: Annotated[str, typer.Option("--from", help="Another address of the same file.")] = "",
    as_json: Json = False,
) -> None:
    """A model's file: shows address, size, licence and digest; downloads it with --yes."""
    from pipelines.fetch import fetch, find, is_there

    model = find(name)
    there = is_there(model, to) or yes
    path = fetch(model, to, mirror) if there else to / model.file
    if as_json:
        print(json.dumps({**_plain(model), "path": str(path), "there": there}))
        return
    print(f"{model.name}: {model.what}")
    print(f"address  {mirror or model.address}")
    print(f"size     {model.size} bytes")
    print(f"licence  {model.licence}")
    print(f"sha256   {model.sha256}")
    print(f"         as told by {model.digest_from}")
    print(f"file     {path}" + (", whole" if there else ", not there yet"))
    use = model.use.replace("FILE", str(path))
    print(f"use it   {use}" if there else "to download it, give --yes")


@app.command("train", rich_help_panel=MODELS)
def train_command(
    file: File,
    settings: Set = None,
    *,
    seeds: Seeds = None,
    folds: Folds = None,
    fold: Fold = None,
    check_resume: Annotated[
        bool,
        typer.Option("--check-resume", help="Kill a short run, resume it, compare; train nothing."),
    ] = False,
    steps: Annotated[int, typer.Option(help="With --check-resume: how many steps.", min=3)] = 8,
    as_json: Json = False,
) -> None:
    """Train the experiment's recipe, and register the best run where a name is given."""
    from featurizers.dataset import read_clips
    from pipelines.featurize import finished
    from pipelines.folds import with_folds
    from pipelines.run import recipes_of, register_best, runs_table, train_all
    from pipelines.show import Show
    from pipelines.sources import task_of

    experiment = load(file, [*(settings or ()), *_runs(seeds, folds, fold)])
    show = Show(quiet=as_json)
    columns, standing = finished(experiment), read_clips(experiment.root)
    task = task_of(experiment, standing)
    recipes, clips = recipes_of(experiment, task), with_folds(experiment, standing, task)
    save(experiment)
    if check_resume:
        from pipelines.run import check_resuming

        found = check_resuming(experiment, recipes[0], columns, clips, show, steps=steps)
        if as_json:
            print(json.dumps({**_plain(found), "identical": found.identical}))
        if not found.identical:
            raise typer.Exit(1)
        return
    trained = train_all(experiment, recipes, columns, clips, show)
    registered = register_best(experiment, trained, columns, clips, show)
    if as_json:
        version = None if registered is None else registered.version
        runs = [{"run_id": each.run_id, "valid_loss": each.valid_loss} for each in trained]
        rows = runs_table(trained, clips) if len(trained) > 1 else []
        print(json.dumps({"runs": runs, "version": version, "table": rows}))


@app.command("sweep", rich_help_panel=MODELS)
def sweep_command(
    file: File,
    settings: Set = None,
    *,
    trials: Annotated[int | None, typer.Option(help="How many draws of the space.")] = None,
    as_json: Json = False,
) -> None:
    """Search settings: random trials, ended when behind the median. Run again, it goes on."""
    from featurizers.dataset import read_clips
    from pipelines.featurize import finished
    from pipelines.show import Show
    from pipelines.sources import task_of
    from pipelines.space import drawn
    from pipelines.sweep import sweep_all

    more = [] if trials is None else [f"sweep.trials={trials}"]
    overrides = [*(settings or ()), *more]
    experiment = load(file, overrides)
    columns, clips = finished(experiment), read_clips(experiment.root)
    task = task_of(experiment, clips)
    found = drawn(file, overrides, task)
    swept = sweep_all(experiment, found, columns, clips, Show(quiet=as_json))
    if as_json:
        print(json.dumps(_plain(swept)))


@app.command("evaluate", rich_help_panel=MODELS)
def evaluate_command(
    file: File,
    settings: Set = None,
    *,
    seeds: Seeds = None,
    folds: Folds = None,
    fold: Fold = None,
    as_json: Json = False,
) -> None:
    """Test metrics of trained runs: with intervals, by class, and when streams are missing."""
    from pipelines.evaluate import evaluate, tables
    from pipelines.show import Show

    cards = evaluate(load(file, [*(settings or ()), *_runs(seeds, folds, fold)]))
    if as_json:
        plain = {name: card.to_json() for name, card in cards.items()}
        for each in plain.values():
            del each["replicates"]  # thousands of numbers, of which the intervals are made
        print(json.dumps(plain))
        return
    show = Show()
    first = next(iter(cards.values()))
    show.scores(f"test, {first.count} clips", cards, list(first.metrics))
    for name, card in cards.items():
        for title, rows in tables(card):
            show.rows(f"{name}: {title}", rows)


@app.command("models", rich_help_panel=MODELS)
def models_command(
    name: Annotated[str, typer.Argument(help="The registered model.")],
    store: Store = Path(),
    as_json: Json = False,
) -> None:
    """The ledger of a registered model: who was champion, since when, and why."""
    from pipelines.show import Show

    entries = [_plain(entry) for entry in history(MlflowRegistry(uri=tracking_uri(store)), name)]
    if as_json:
        print(json.dumps(entries))
        return
    Show().rows(name, entries)


@app.command("promote", rich_help_panel=MODELS)
def promote_command(
    file: File,
    version: Annotated[int | None, typer.Option(help="The candidate; else the newest.")] = None,
    why: Annotated[str, typer.Option(help="Kept in the ledger.")] = "promoted by hand",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the verdict.")] = False,
    settings: Set = None,
) -> None:
    """Judge a version by the experiment's rules, and make it champion when it passes."""
    from pipelines.promote import consider
    from pipelines.show import Show

    experiment = load(file, settings or ())
    if experiment.register_ is None:
        raise InputError(f"{file}: there is no register.name; which model is to be promoted?")
    name, rules = experiment.register_.name, experiment.rules()
    promotion = consider(
        tracking_uri(experiment.folder), name, version, rules, why=why, dry_run=dry_run
    )
    Show().promotion(promotion)
    if not promotion.verdict.promote:
        raise typer.Exit(1)


@app.command("rollback", rich_help_panel=MODELS)
def rollback_command(
    name: Annotated[str, typer.Argument(help="The registered model.")],
    why: Annotated[str, typer.Option(help="Kept in the ledger.")] = "rolled back by hand",
    store: Store = Path(),
) -> None:
    """Make the champion before this one champion again."""
    from pipelines.promote import go_back

    entry = go_back(tracking_uri(store), name, why=why)
    print(f"{name} version {entry.version} is champion again (generation {entry.generation})")


@app.command("score", rich_help_panel=MODELS)
def score_command(
    model: Annotated[str, typer.Argument(help="models:/NAME@champion or models:/NAME/VERSION.")],
    clips: Annotated[list[Path], typer.Argument(help="Media files.")],
    *,
    transcript: Annotated[
        str | None, typer.Option(help="What is said: the words, or a file of them.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="Seconds into the media.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds into the media.")] = None,
    store: Store = Path(),
    as_json: Json = False,
) -> None:
    """Score raw clips with a registered model, in a fresh process with the model's own code."""
    from pipelines.score import score
    from pipelines.show import Show

    if (transcript is not None or start is not None or end is not None) and len(clips) > 1:
        raise InputError("--transcript, --start and --end are of one clip; give one at a time")
    for clip in clips:
        if not clip.is_file():
            raise InputError(f"{clip}: there is no such file")
    given = {"transcript": _transcript(transcript), "start": start, "end": end}
    extra = {name: value for name, value in given.items() if value is not None}
    rows = [{"id": str(clip), "media": str(clip.resolve()), **extra} for clip in clips]
    answers = score(tracking_uri(store), model, rows)
    if as_json:
        print(json.dumps(answers))
    else:
        Show().rows(model, answers)
    if all(answer["state"] == "quarantined" for answer in answers):
        raise typer.Exit(1)


def _transcript(text: str | None) -> str | None:
    """Words as they are; a file by its whole path, since another process will read it."""
    from featurizers.transcript import FORMATS, file_and_tier

    file, tier = (None, None) if text is None else file_and_tier(Path(text))
    if file is None or file.suffix.lower() not in FORMATS:
        return text
    if file.is_file():
        return str(file.resolve()) if tier is None else f"{file.resolve()}#{tier}"
    if " " not in str(text):
        raise InputError(f"--transcript {text}: there is no such file")
    return text


@app.command("run", rich_help_panel=FLOWS)
def run_command(
    file: File,
    settings: Set = None,
    *,
    seeds: Seeds = None,
    folds: Folds = None,
    fold: Fold = None,
    as_json: Json = False,
) -> None:
    """Everything: ingest, featurize, train, register, promote. Run again, it goes on."""
    from pipelines.run import run
    from pipelines.show import Show

    experiment = load(file, [*(settings or ()), *_runs(seeds, folds, fold)])
    summary = run(experiment, Show(quiet=as_json))
    if as_json:
        metrics = {name: dict(card.metrics) for name, card in summary.cards.items()}
        version = None if summary.registered is None else summary.registered.version
        intervals = {name: card.to_json()["intervals"] for name, card in summary.cards.items()}
        told = {"clips": summary.clips, "test": metrics, "intervals": intervals}
        print(json.dumps({**told, "version": version}))
    elif summary.registered is not None:
        name = summary.registered.name
        at = "@champion" if summary.promotion and summary.promotion.verdict.promote else ""
        ref = f"models:/{name}{at}" if at else f"models:/{name}/{summary.registered.version}"
        print(f"\nscore a clip: fuseline score {ref} CLIP --transcript WORDS")
    if summary.promotion is not None and not summary.promotion.verdict.promote:
        raise typer.Exit(1)


@app.command("demo", rich_help_panel=FLOWS)
def demo_command(
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    clips: Annotated[int, typer.Option(help="Size of the generated corpus.", min=32)] = 480,
    seed: Annotated[int, typer.Option(help="Of the training runs.")] = 0,
    control: Annotated[
        bool, typer.Option("--control", help="A label that the words alone decide: no gain.")
    ] = False,
) -> None:
    """The whole way on a generated corpus, to a promoted model that scores a raw clip."""
    from pipelines.run import demo
    from pipelines.show import Show

    summary = demo(folder, Show(), clips=clips, seed=seed, interaction=not control)
    if summary.promotion is None or not summary.promotion.verdict.promote:
        raise typer.Exit(1)


@app.command("doctor", rich_help_panel=FLOWS)
def doctor_command(
    file: Annotated[Path | None, typer.Argument(help="An experiment file; else all parts.")] = None,
    *,
    licences: Annotated[
        bool, typer.Option("--licences", help="The licences of the chosen parts instead.")
    ] = False,
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Licences; what is not for commerce fails.")
    ] = False,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            help="With --commercial: a stream or part whose licence you read; repeatable."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out decoding, Ray and the tracking store.")
    ] = False,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """What this machine, its stores and the chosen parts can do, and what to do about the rest."""
    from pipelines.doctor import doctor
    from pipelines.experiment import outline, read
    from pipelines.licences import licences as told_licences

    experiment = None
    if file is not None:
        experiment = outline(read(file, settings or ()), file.parent.resolve(), str(file))
    if licences or commercial:
        findings = told_licences(experiment, commercial=commercial, accepted=accept or ())
    else:
        findings = doctor(experiment, Path(), quick=quick)
    found = []
    for each in findings:
        found.append(each)
        if not as_json:
            print(each, flush=True)
    if as_json:
        print(json.dumps([_plain(each) for each in found]))
    if any(each.state == "failed" for each in found):
        raise typer.Exit(1)


def _runs(seeds: int | None, folds: int | None, fold: str | None) -> list[str]:
    """The settings that options of several runs stand for."""
    if folds is not None and fold is not None:
        raise InputError("--folds trains on all folds, --fold on one; give one of them")
    given = {"seeds": seeds, "folds": folds, "fold": fold}
    return [f"train.{name}={value}" for name, value in given.items() if value is not None]


def _plain(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any small frozen dataclass
    from dataclasses import asdict

    return asdict(value)


def main() -> None:
    """Run a command; turn what went wrong into one line and an exit code."""
    # Joblib, tokenizers and friends need not tell that they forked.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(stoppable(lambda: _called(lambda: app(standalone_mode=True)), _leave))


def _leave() -> None:
    """End what was started for the command."""
    if "ray" in sys.modules:
        from pipelines.executors import stop_ray

        stop_ray()


def _called(call: Callable[[], None]) -> int:
    try:
        call()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except WRONG_INPUT as error:
        print(f"fuseline: {_line(error)}", file=sys.stderr)
        return 2
    except FAILED as error:
        print(f"fuseline: {_line(error)}", file=sys.stderr)
        return 1
    return 0


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
