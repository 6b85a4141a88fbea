"""Commands on models: training, judging, promoting, scoring."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import File, Fold, Folds, Json, Seeds, Set, Store, as_plain, runs_of
from pipelines.experiment import InputError, load, save
from tracking.mlflow_store import tracking_uri

PANEL = "Models"
app = typer.Typer()


@app.command("train", rich_help_panel=PANEL)
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

    experiment = load(file, [*(settings or ()), *runs_of(seeds, folds, fold)])
    show = Show(quiet=as_json)
    columns, standing = finished(experiment), read_clips(experiment.root)
    task = task_of(experiment, standing)
    recipes, clips = recipes_of(experiment, task), with_folds(experiment, standing, task)
    save(experiment)
    if check_resume:
        from pipelines.run import check_resuming

        found = check_resuming(experiment, recipes[0], columns, clips, show, steps=steps)
        if as_json:
            print(json.dumps({**as_plain(found), "identical": found.identical}))
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


@app.command("sweep", rich_help_panel=PANEL)
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
    from pipelines.space import drawn, recipes
    from pipelines.sweep import sweep_all

    more = [] if trials is None else [f"sweep.trials={trials}"]
    overrides = [*(settings or ()), *more]
    experiment, draws = load(file, overrides), drawn(file, overrides)
    columns, clips = finished(experiment), read_clips(experiment.root)
    found = recipes(draws, task_of(experiment, clips))
    swept = sweep_all(experiment, found, columns, clips, Show(quiet=as_json))
    if as_json:
        print(json.dumps(as_plain(swept)))


@app.command("evaluate", rich_help_panel=PANEL)
def evaluate_command(
    file: File,
    settings: Set = None,
    *,
    seeds: Seeds = None,
    folds: Folds = None,
    fold: Fold = None,
    page: Annotated[
        Path | None, typer.Option(help="Write one HTML file too, that needs nothing else.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Test metrics of trained runs: with intervals, by class, and when streams are missing."""
    from pipelines.evaluate import evaluate, tables
    from pipelines.show import Show

    found = evaluate(load(file, [*(settings or ()), *runs_of(seeds, folds, fold)]))
    cards = found.cards
    if page is not None:
        from featurizers.store import publish
        from pipelines.run_pages import page_of

        publish(page, page_of(found.trained, found.clips, found.columns).encode())
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


@app.command("compare", rich_help_panel=PANEL)
def compare_command(
    runs: Annotated[
        list[str],
        typer.Argument(help="Names or ids of runs, or MODEL@ALIAS; the first is held against."),
    ],
    *,
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; repeatable.")] = None,
    latex: Annotated[
        bool, typer.Option("--latex", help="Print a table for a paper (booktabs).")
    ] = False,
    store: Store = Path(),
    as_json: Json = False,
) -> None:
    """Hold runs against the first one, on the same clips: paired bootstrap, Holm, seeds."""
    from pipelines.compare import compare_runs, tables
    from pipelines.latex import latex as as_latex
    from pipelines.show import Show

    if latex and as_json:
        raise InputError("--latex is for papers, --json for machines; give one of them")
    found = compare_runs(tracking_uri(store), runs, metric or ())
    if as_json:
        print(json.dumps(found.to_json()))
    elif latex:
        print(as_latex(found))
    else:
        show = Show()
        for title, rows in tables(found):
            show.rows(title, rows)


@app.command("models", rich_help_panel=PANEL)
def models_command(
    name: Annotated[str | None, typer.Argument(help="A registered model; else all.")] = None,
    *,
    ledger: Annotated[
        bool, typer.Option("--history", help="All generations: who, when, why, and the report.")
    ] = False,
    mend: Annotated[
        bool, typer.Option("--reconcile", help="Put aliases back to where the ledger says.")
    ] = False,
    store: Store = Path(),
    as_json: Json = False,
) -> None:
    """Registered models, or the versions of one: who is champion, since when, and why."""
    from pipelines import registered
    from pipelines.show import Show

    uri, show = tracking_uri(store), Show(quiet=as_json)
    if name is None:
        if ledger or mend:
            raise InputError("--history and --reconcile are of one model: give its name")
        rows = registered.overview(uri)
        show.rows("models", rows)
        if as_json:
            print(json.dumps(rows))
        return
    mended = registered.mend(uri, name) if mend else []
    for line in mended:
        show.say(line)
    found = registered.standing(uri, name)
    show.rows(name, [as_plain(entry) for entry in found.history] if ledger else found.rows)
    for line in found.sentences:
        show.say(line)
    if as_json:
        print(json.dumps({**found.to_json(), "mended": mended}))


@app.command("trace", rich_help_panel=PANEL)
def trace_command(
    model: Annotated[
        str | None, typer.Argument(help="NAME@ALIAS or NAME/VERSION; NAME is its champion.")
    ] = None,
    clip: Annotated[str | None, typer.Argument(help="A clip of it: its id or key.")] = None,
    *,
    clips: Annotated[
        list[str] | None,
        typer.Option("--clip", help="Instead: what this clip has reached; repeatable."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="Instead: what this shard has; a tar or its sha256.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Of the clip, wherever it lies now.")] = None,
    store: Store = Path(),
    as_json: Json = False,
) -> None:
    """A model to its run, data, shards, media; or a clip or shard to the runs that it reached."""
    from pipelines.reached import reached
    from pipelines.show import Show
    from pipelines.trace import trace

    uri, show = tracking_uri(store), Show(quiet=as_json)
    if sum(each is not None for each in (model, clips, shard)) != 1:
        raise InputError("give one of MODEL, --clip and --shard")
    tables: Iterable[tuple[str, list[dict[str, object]]]] = ()
    if model is not None:
        traced = trace(uri, model, clip, dataset)
        lines, told, tables = traced.sentences, traced.to_json(), traced.tables
    else:
        found = reached(uri, clips or (), shard, dataset)
        lines, told = found.sentences, found.to_json()
    for line in lines:
        show.say(line)
    for title, rows in tables:
        show.rows(title, rows)
    if as_json:
        print(json.dumps(told))


@app.command("promote", rich_help_panel=PANEL)
def promote_command(
    file: File,
    *,
    version: Annotated[int | None, typer.Option(help="The candidate; else the newest.")] = None,
    why: Annotated[str, typer.Option(help="Kept in the ledger.")] = "promoted by hand",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the verdict.")] = False,
    settings: Set = None,
    as_json: Json = False,
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
    Show(quiet=as_json).promotion(promotion)
    if as_json:
        print(json.dumps(promotion.to_json()))
    if not promotion.verdict.promote:
        raise typer.Exit(1)


@app.command("rollback", rich_help_panel=PANEL)
def rollback_command(
    name: Annotated[str, typer.Argument(help="The registered model.")],
    why: Annotated[str, typer.Option(help="Kept in the ledger.")] = "rolled back by hand",
    store: Store = Path(),
    as_json: Json = False,
) -> None:
    """Make the champion before this one champion again."""
    from pipelines.promote import go_back

    entry = go_back(tracking_uri(store), name, why=why)
    if as_json:
        print(json.dumps({"name": name, **as_plain(entry)}))
        return
    print(f"{name} version {entry.version} is champion again (generation {entry.generation})")


@app.command("score", rich_help_panel=PANEL)
def score_command(
    model: Annotated[str, typer.Argument(help="models:/NAME@champion or models:/NAME/VERSION.")],
    clips: Annotated[
        list[str], typer.Argument(help="Media files; or one table: .csv, .jsonl, .parquet.")
    ],
    *,
    transcript: Annotated[
        str | None, typer.Option(help="What is said: the words, or a file of them.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="Seconds into the media.")] = None,
    end: Annotated[float | None, typer.Option(help="Seconds into the media.")] = None,
    media_root: Annotated[
        list[str] | None,
        typer.Option(help="A folder or address below which a table's media may lie; repeatable."),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="On Ray, so many at once; 0 without Ray.", min=0)
    ] = 0,
    to: Annotated[
        Path | None, typer.Option(help="Write the answers to this .csv, .jsonl or .parquet file.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what each stream did, word by word.")
    ] = False,
    timeline: Annotated[
        bool,
        typer.Option(
            "--timeline", help="Of one long film: a score for each utterance; --to is a folder."
        ),
    ] = False,
    recogniser: Annotated[
        str | None,
        typer.Option(help="With --timeline: the Whisper checkpoint that says the words."),
    ] = None,
    store: Store = Path(),
    as_json: Json = False,
) -> None:
    """Score raw clips with a registered model, in a fresh process with the model's own code."""
    from pipelines.executors import executor
    from pipelines.scoring import Job, failed, tally
    from pipelines.show import Show

    show = Show(quiet=as_json)
    job = Job(
        uri=tracking_uri(store),
        model=model,
        clips=tuple(clips),
        transcript=transcript,
        start=start,
        end=end,
        media_roots=tuple(media_root or ()),
        to=to,
        explain=explain,
        recogniser=recogniser,
    )
    if timeline:
        from pipelines.timeline import timeline_of

        answers = timeline_of(job, executor(workers), show)
    else:
        answers = job.score(executor(workers), show)
    if as_json:
        print(json.dumps(answers))
    show.say(tally(answers))
    if failed(answers):
        raise typer.Exit(1)
