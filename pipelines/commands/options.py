"""Arguments and options that several commands have, and what becomes of them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.experiment import InputError
from pipelines.findings import Finding

File = Annotated[Path, typer.Argument(help="The experiment file.")]
Raw = Annotated[Path, typer.Argument(help="A folder or table of media, or an experiment file.")]
Format = Annotated[
    str, typer.Option("--format", help="Of which published corpus a folder is, such as ravdess.")
]
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


def runs_of(seeds: int | None, folds: int | None, fold: str | None) -> list[str]:
    """The settings that options of several runs stand for."""
    if folds is not None and fold is not None:
        raise InputError("--folds trains on all folds, --fold on one; give one of them")
    given = {"seeds": seeds, "folds": folds, "fold": fold}
    return [f"train.{name}={value}" for name, value in given.items() if value is not None]


def as_plain(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any small frozen dataclass
    """The fields of a result, for JSON."""
    from dataclasses import asdict

    return asdict(value)


def print_findings(findings: Iterable[Finding], *, as_json: bool, code: int = 1) -> None:
    """Print each as it is found, or all as one JSON value; exits with the code where one failed."""
    found = []
    for each in findings:
        found.append(each)
        if not as_json:
            print(each, flush=True)
    if as_json:
        print(json.dumps([as_plain(each) for each in found]))
    if any(each.state == "failed" for each in found):
        raise typer.Exit(code)
