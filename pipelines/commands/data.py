"""Commands on datasets: from raw clips to committed columns, and what is known of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from featurizers.clip import Clip
from featurizers.dataset import DatasetError
from featurizers.likeness import Likeness
from pipelines.commands.options import (
    Dataset,
    File,
    Format,
    Json,
    Raw,
    Set,
    Store,
    as_plain,
    print_findings,
)
from pipelines.experiment import load
from training.recipe import TaskKind

PANEL = "Data"
app = typer.Typer()


@app.command("init", rich_help_panel=PANEL)
def init_command(
    source: Annotated[Path, typer.Argument(help="A table of clips, or a folder of media.")],
    label: Annotated[str, typer.Option(help="The column that is to be predicted.")] = "",
    *,
    to: Annotated[Path, typer.Option(help="The file to write.")] = Path("experiment.yaml"),
    task: Annotated[
        TaskKind | None, typer.Option(help="What for; else as fits what the column holds.")
    ] = None,
    features: Annotated[
        str, typer.Option(help="A set of features: light, classic or strong.")
    ] = "light",
    format_: Format = "",
) -> None:
    """Write a commented experiment.yaml from what is found."""
    from pipelines.start import init

    for line in init(source, label, to, task, features, format_=format_):
        print(line)


@app.command("segment", rich_help_panel=PANEL)
def segment_command(source: Raw, settings: Set = None, as_json: Json = False) -> None:
    """Cut long media into clips by voice, and write the table of clips. Run again, it goes on."""
    from pipelines.films import load_source
    from pipelines.run import segment_all
    from pipelines.show import Show

    experiment = load_source(source, settings or ())
    found = segment_all(experiment, Show(quiet=as_json))
    if as_json:
        told = {"table": str(experiment.cut_table), "clips": len(found.clips)}
        lost = [as_plain(each) for each in found.lost]
        told |= {"films": found.films, "silent": found.silent, "seconds": found.seconds}
        print(json.dumps({**told, "lost": lost}))


@app.command("transcribe", rich_help_panel=PANEL)
def transcribe_command(source: Raw, settings: Set = None, as_json: Json = False) -> None:
    """Give clips without words those that a Whisper model hears, with times. It cuts media, too."""
    from pipelines.films import load_source
    from pipelines.run import transcribe_all
    from pipelines.show import Show

    experiment = load_source(source, settings or ())
    found = transcribe_all(experiment, Show(quiet=as_json))
    if as_json:
        told = {"table": str(experiment.spoken_table), "clips": len(found.clips)}
        told |= {"heard": found.heard, "lost": [as_plain(each) for each in found.lost]}
        print(json.dumps(told))


@app.command("ingest", rich_help_panel=PANEL)
def ingest_command(
    file: Annotated[Path, typer.Argument(help="The experiment file, or a folder with --format.")],
    *,
    format_: Format = "",
    align: Annotated[
        bool, typer.Option("--align", help="First place words without times by source.align.")
    ] = False,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Table to dataset: rows checked, media digested and probed, splits dealt, shards planned."""
    from pipelines.corpus import NOTES
    from pipelines.films import load_source
    from pipelines.run import align_all, ingest_all
    from pipelines.show import Show

    if format_:
        experiment = load_source(file, settings or (), format_)
    else:
        experiment = load(file, settings or ())
    show = Show(quiet=as_json)
    if align:
        align_all(experiment, show)
    clips = ingest_all(experiment, show)
    if as_json:
        told: dict[str, object] = {"dataset": str(experiment.root), "clips": len(clips)}
        if experiment.source.format:
            told["notes"] = str(experiment.raw / NOTES)
        print(json.dumps(told))


@app.command("featurize", rich_help_panel=PANEL)
def featurize_command(file: File, settings: Set = None, as_json: Json = False) -> None:
    """Compute the columns that are not finished, and commit them."""
    from pipelines.featurize import ledger
    from pipelines.run import featurize_all
    from pipelines.show import Show

    columns = featurize_all(load(file, settings or ()), Show(quiet=as_json))
    if as_json:
        print(json.dumps([as_plain(each) for each in ledger(columns)]))


@app.command("status", rich_help_panel=PANEL)
def status_command(file: File, settings: Set = None, as_json: Json = False) -> None:
    """The ledger: clips = sample + absent + quarantined, which clips, and what is out of date."""
    from pipelines.featurize import ledger, standing
    from pipelines.show import Show

    found = standing(load(file, settings or ()))
    lines = ledger(found.columns)
    if as_json:
        plain = [as_plain(each) for each in lines]
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


@app.command("plan", rich_help_panel=PANEL)
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
        print(json.dumps(as_plain(found)))
        return
    show.forecast(found)


@app.command("retry", rich_help_panel=PANEL)
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


@app.command("forget", rich_help_panel=PANEL)
def forget_command(
    dataset: Dataset,
    clips: Annotated[list[str], typer.Argument(help="Ids or keys of clips.")],
    store: Store = Path(),
    as_json: Json = False,
) -> None:
    """Remove clips from a dataset: table, plan, all columns, logs. Later ingests pass them over."""
    from pipelines.reached import reached_if_known, sought
    from pipelines.show import Show
    from pipelines.upkeep import forget
    from tracking.mlflow_store import tracking_uri

    show = Show(quiet=as_json)
    known = sought(clips, dataset)  # before it says no more what they are
    found = forget(dataset, clips, show.say)
    reach, unknown = reached_if_known(tracking_uri(store), known)
    if as_json:
        print(json.dumps({**as_plain(found), **reach.to_json(), "models_unknown": unknown}))
        return
    show.say(
        f"{found.clips} clips are forgotten: {found.shards} shards were written without them, "
        f"{found.files} files removed or mended"
    )
    show.say(
        "not touched: the table and the media themselves, what was cut and heard of them (in raw "
        "of the dataset: spans, words, tables), models that were trained on them, "
        "and their predictions and lineage in runs"
    )
    if unknown:
        show.say(f"which models they have reached is not known: {unknown}")
    else:
        show.say("runs and registered models that they have reached:")
        for sentence in reach.sentences:
            show.say(f"  {sentence}")
        if reach.runs:
            show.say("train these anew without them, and first what they start from")


@app.command("report", rich_help_panel=PANEL)
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


@app.command("check", rich_help_panel=PANEL)
def check_command(
    dataset: Dataset,
    *,
    no_media: Annotated[
        bool, typer.Option("--no-media", help="Do not look for near-duplicates in the media.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What it holds, with suspicion: leaks, balance, labels, words, dead or wild dimensions."""
    from pipelines.check import check
    from pipelines.duplicates import of_local
    from pipelines.show import Show

    def look(clips: Sequence[Clip]) -> Mapping[str, Likeness]:
        with Show(quiet=as_json).counting("look for near-duplicates", None) as done:
            return of_local(dataset, clips, done)

    print_findings(check(dataset, None if no_media else look), as_json=as_json)


@app.command("peek", rich_help_panel=PANEL)
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


@app.command("verify", rich_help_panel=PANEL)
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
        found = [as_plain(each) for each in problems]
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


@app.command("fetch", rich_help_panel=PANEL)
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
        print(json.dumps({**as_plain(model), "path": str(path), "there": there}))
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
