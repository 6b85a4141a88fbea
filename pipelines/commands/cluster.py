"""Commands on clusters."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Json, Set, print_findings

PANEL = "Cluster"
FILE = Path("cluster.yaml")
app = typer.Typer()


@app.command("validate", rich_help_panel=PANEL)
def validate_command(
    file: Annotated[
        Path | None, typer.Argument(help="The experiment file; else the cluster alone.")
    ] = None,
    *,
    cluster: Annotated[
        Path | None,
        typer.Option(
            help="The file of `ray up`; cluster.yaml here, where there is no address.",
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="A live cluster, http://HOST:8265 or HOST:6379; else RAY_ADDRESS.",
            show_default=False,
        ),
    ] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Whether it would run, how long and for how much; spends nothing. Exit code 2: it will not."""
    from pipelines.cluster.validate import validate
    from pipelines.experiment import outline, read

    experiment = None
    if file is not None:
        experiment = outline(read(file, settings or ()), file.parent.resolve(), str(file))
    address = address or os.environ.get("RAY_ADDRESS") or None
    if cluster is None and address is None and FILE.is_file():
        cluster = FILE
    findings = validate(experiment, cluster=cluster, address=address)
    print_findings(findings, as_json=as_json, code=2)
