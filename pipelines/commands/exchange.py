"""Commands between datasets and the forms of other tools."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Dataset, Json
from pipelines.exchange.exporting import Form
from pipelines.exchange.importing import Format

PANEL = "Data"
app = typer.Typer()


@app.command("import", rich_help_panel=PANEL)
def import_command(
    files: Annotated[list[Path], typer.Argument(help="Published features, all of one format.")],
    *,
    to: Annotated[str, typer.Option(help="The dataset: a folder, or an address like s3://.")],
    label: Annotated[str, typer.Option(help="What is predicted; else the file's own label.")] = "",
    kind: Annotated[
        Format | None, typer.Option("--format", help="Else what the suffixes say.")
    ] = None,
    labels: Annotated[str, typer.Option(help=".csd: the file or root that holds labels.")] = "",
    align: Annotated[
        str, typer.Option(help=".csd: the file or root of words that all are averaged to.")
    ] = "",
    folds: Annotated[
        Path | None, typer.Option(help=".csd: recordings by split (.py of the SDK, .json, .csv).")
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(help="Arrays: STREAM=HZ, of one without times; repeatable."),
    ] = None,
    experiment: Annotated[
        Path | None, typer.Option(help="Write an experiment file that trains on it, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Published features to a dataset, whose columns say from which file they came."""
    from pipelines.exchange.importing import Wanted, import_files, rates_of, write_experiment
    from pipelines.show import Show

    show = Show(quiet=as_json)
    with show.counting("import", None) as done:
        wanted = Wanted(
            files=files,
            to=to,
            label=label,
            kind=kind,
            labels=labels,
            align=align,
            folds=folds,
            rates=rates_of(rate or ()),
        )
        made = import_files(wanted, done)
    columns = {name: column.spec.fingerprint for name, column in made.columns.items()}
    if experiment is not None:
        write_experiment(made, to, experiment)
    if as_json:
        told = {"dataset": to, "clips": made.clips, "splits": dict(made.counts)}
        told |= {"columns": columns, "label": made.label, "labels": list(made.labels)}
        print(json.dumps({**told, "pooling": dict(made.pooling), "notes": list(made.notes)}))
        return
    for note in made.notes:
        show.say(note)
    counts = ", ".join(f"{name} {count}" for name, count in made.counts.items())
    show.say(f"{made.clips} clips ({counts}), labels {', '.join(made.labels)}; {to}")
    for name, column in columns.items():
        show.say(f"  {name}: {{featurizer: imported, column: {column}}}")
    if experiment is not None:
        show.say(f"wrote {experiment}; next: fuseline run {experiment}")


@app.command("export", rich_help_panel=PANEL)
def export_command(
    dataset: Dataset,
    *,
    to: Annotated[Path, typer.Option(help="The file or folder to write.")],
    streams: Annotated[
        list[str] | None,
        typer.Option("--stream", help="NAME=COLUMN, of which the beginning will do; repeatable."),
    ] = None,
    form: Annotated[
        Form | None, typer.Option("--format", help="Else mmsa for .pkl, csd for a folder.")
    ] = None,
    label: Annotated[str, typer.Option(help="What is predicted; else the only label.")] = "",
    aligned: Annotated[
        bool, typer.Option("--aligned", help="MMSA: all streams on the same steps, those of words.")
    ] = False,
    most: Annotated[int, typer.Option(help="MMSA: steps of a clip at most; 0 for all.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """A dataset in the form of another tool: MMSA's pickle, .csd files, or one WebDataset."""
    from pipelines.exchange.exporting import Asked, export
    from pipelines.show import Show

    show = Show(quiet=as_json)
    asked = Asked(to=to, form=form, streams=streams or (), label=label, aligned=aligned, most=most)
    made = export(dataset, asked)
    if as_json:
        print(
            json.dumps({"clips": made.clips, "files": list(made.files), "notes": list(made.notes)})
        )
        return
    for note in made.notes:
        show.say(note)
    show.say(f"{made.clips} clips, {', '.join(made.streams)}; wrote {', '.join(made.files)}")
