"""Commands on all of it: the whole way, the demo, and what this machine can do."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import (
    File,
    Fold,
    Folds,
    Json,
    Seeds,
    Set,
    Store,
    print_findings,
    runs_of,
)
from pipelines.experiment import load

PANEL = "Flows"
app = typer.Typer()


@app.command("run", rich_help_panel=PANEL)
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

    experiment = load(file, [*(settings or ()), *runs_of(seeds, folds, fold)])
    summary = run(experiment, Show(quiet=as_json))
    if as_json:
        metrics = {name: dict(card.metrics) for name, card in summary.cards.items()}
        version = None if summary.registered is None else summary.registered.version
        intervals = {name: card.to_json()["intervals"] for name, card in summary.cards.items()}
        told = {"clips": summary.clips, "test": metrics, "intervals": intervals}
        print(json.dumps({**told, "version": version}))
    elif summary.registered is not None and not experiment.source.imported:
        name = summary.registered.name
        at = "@champion" if summary.promotion and summary.promotion.verdict.promote else ""
        ref = f"models:/{name}{at}" if at else f"models:/{name}/{summary.registered.version}"
        print(f"\nscore a clip: fuseline score {ref} CLIP --transcript WORDS")
    if summary.promotion is not None and not summary.promotion.verdict.promote:
        raise typer.Exit(1)


@app.command("demo", rich_help_panel=PANEL)
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


@app.command("reproduce", rich_help_panel=PANEL)
def reproduce_command(
    name: Annotated[str, typer.Argument(help="mosei, mosi, iemocap, ravdess, ntu or utd-mhad.")],
    data: Annotated[
        Path, typer.Option(help="The corpus's folder, or a file or folder of published features.")
    ],
    *,
    seeds: Annotated[int | None, typer.Option(help="How many; else the protocol's.", min=1)] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Only the model of this recipe, and what it starts from; repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Not the protocol's: KEY=VALUE or RECIPE.KEY=VALUE; repeatable."
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Show what an open archive has of it, and its size.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --download: fetch it to --data.")
    ] = False,
    mirror: Annotated[str, typer.Option("--from", help="Another address of the archive.")] = "",
    to: Annotated[Path, typer.Option(help="The folder below which all goes.")] = Path(),
    as_json: Json = False,
) -> None:
    """A published experiment, to a table beside the published figures. Run again, it goes on."""
    from pipelines.reproduce.flow import Wish, reproduce
    from pipelines.reproduce.outcome import markdown, to_json
    from pipelines.reproduce.protocol import archive_of
    from pipelines.reproduce.protocols import find
    from pipelines.show import Show

    protocol, show = find(name), Show(quiet=as_json)
    if download:
        from pipelines.reproduce.archives import fetch_corpus

        missing = fetch_corpus(archive_of(protocol), data, mirror, yes=yes, show=show)
        if missing:
            if as_json:
                print(json.dumps({"missing_bytes": missing}))
            return
    wish = Wish(
        data=data,
        folder=to.resolve(),
        seeds=seeds,
        models=tuple(model or ()),
        settings=tuple(settings or ()),
    )
    outcome, folder = reproduce(protocol, wish, show)
    if as_json:
        print(json.dumps({**to_json(outcome), "folder": str(folder)}))
        return
    print(f"\n{markdown(outcome)}\n{folder}")


@app.command("doctor", rich_help_panel=PANEL)
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
    print_findings(findings, as_json=as_json)


@app.command("ui", rich_help_panel=PANEL)
def ui_command(
    *,
    port: Annotated[int, typer.Option(help="Where to listen; 0 for any free port.")] = 5000,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    store: Store = Path(),
) -> None:
    """MLflow's own pages on the store at hand; where it is a server, that one's address."""
    from pipelines.ui import ui
    from tracking.mlflow_store import tracking_uri

    folder = store / "mlartifacts"
    ui(
        tracking_uri(store),
        folder,
        port=port,
        browser=browser,
        say=lambda line: print(line, flush=True),
    )
