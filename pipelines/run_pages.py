"""The pages of finished runs: in their folders, and with the runs on the tracking server."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from featurizers.clip import Clip
from featurizers.manifest import Column
from featurizers.store import publish
from pipelines.elastic import Say
from pipelines.family import Family, table
from pipelines.pages.results import page
from pipelines.plans import Trained
from pipelines.results import Result, result_of
from pipelines.tracked import when_back
from tracking.mlflow_store import MlflowRun

PAGE = "report.html"


def keep_pages(
    trained: Sequence[Trained],
    clips: Sequence[Clip],
    columns: Mapping[str, Column],
    *,
    uri: str,
    family: Family | None,
    say: Say,
) -> list[Path]:
    """Make a page of each run, and one of all of them where they are a family; keep what changed.

    Args:
        trained: The runs.
        clips: All clips of the dataset.
        columns: Those that the runs were trained on, by stream.
        uri: The tracking server.
        family: What the runs are parts of.
        say: Told what people should know.

    Returns:
        The files: a page of each run, then the one of all.

    Raises:
        AwayError: The server is away, and did not come back.
    """
    results = [result_of(each, clips, columns) for each in trained]
    files = []
    for each, result in zip(trained, results, strict=True):
        run = MlflowRun(uri=uri, run_id=each.run_id)
        files.append(_kept(each.plan.folder / PAGE, page([result]), run, say))
    if family is not None:
        files.append(_kept(family.folder / PAGE, _page(trained, results), family.run, say))
    return files


def page_of(
    trained: Sequence[Trained], clips: Sequence[Clip], columns: Mapping[str, Column]
) -> str:
    """The page of one run, or of several of one recipe; the arguments are those of `keep_pages`."""
    return _page(trained, [result_of(each, clips, columns) for each in trained])


def _page(trained: Sequence[Trained], results: Sequence[Result]) -> str:
    cards = {result.name: result.card for result in results}
    return page(results, table(trained, cards) if len(results) > 1 else ())


def _kept(file: Path, content: str, run: MlflowRun, say: Say) -> Path:
    """Keep a page with a run, then write it; done already where it stands there as it is."""
    if file.is_file() and file.read_text() == content:
        return file
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / PAGE
        draft.write_text(content)
        when_back(partial(run.log_file, draft), say)
    file.parent.mkdir(exist_ok=True)
    publish(file, content.encode())
    return file
