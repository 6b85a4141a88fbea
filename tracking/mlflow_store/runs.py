"""Runs on a tracking server, or on a local SQLite file."""

import hashlib
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.mlflow_store.connection import (
    answered,
    client_of,
    experiment_id,
    mlflow_exception,
    public,
    unknown,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

LONGEST_SETTING = 6000
LONGEST_DATASET_DIGEST = 36
PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000


_ILLEGAL = re.compile(r"[^\w.\- :]")
_LONGEST_NAME = 250


@answered
def start_run(
    uri: str, experiment: str, name: str, tags: Mapping[str, str], parent: str | None = None
) -> "MlflowRun":
    """A new run. To go on with one that exists, construct `MlflowRun` with its id.

    `parent` is the id of the run that this one is a part of, for example one seed of several.
    """
    client = client_of(uri)
    family = {} if parent is None else {"mlflow.parentRunId": parent}
    run = client.create_run(
        experiment_id(client, experiment), run_name=name, tags={**tags, **family}
    )
    return MlflowRun(uri=uri, run_id=run.info.run_id)


@answered
def find_run(uri: str, experiment: str, tag: str, value: str) -> "MlflowRun | None":
    """The oldest run of an experiment with a tag of this value (no quotes in it); None if none."""
    client = client_of(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = client.search_runs(
        [found.experiment_id],
        f"tags.`{tag}` = '{value}'",
        max_results=1,
        order_by=["attributes.start_time ASC"],
    )
    return MlflowRun(uri=uri, run_id=runs[0].info.run_id) if runs else None


@answered
def runs_tagged(uri: str, tag: str, value: str = "") -> "list[RunFacts]":
    """The runs of all experiments with a tag of this value, or of any; oldest first.

    Args:
        uri: The tracking server.
        tag: Its name.
        value: Without quotes in it; any where it is empty.
    """
    client = client_of(uri)
    names = {each.experiment_id: str(each.name) for each in client.search_experiments()}
    wanted = f"= '{value}'" if value else "LIKE '%'"
    runs: list[RunFacts] = []
    token: str | None = None
    while True:
        found = client.search_runs(
            list(names),
            f"tags.`{tag}` {wanted}",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs += [_facts(run, names[run.info.experiment_id]) for run in found]
        token = found.token
        if not token:
            return runs


@answered
def runs_called(uri: str, name: str) -> list[str]:
    """The ids of the runs with this id, or else with this name in any experiment; newest first."""
    client, missing = client_of(uri), mlflow_exception()
    if re.fullmatch("[0-9a-f]{32}", name):
        try:
            return [str(client.get_run(name).info.run_id)]
        except missing:
            return []  # or it is a name, which looks like an id; nobody gives one
    if "'" in name and '"' in name:
        return []  # no filter of MLflow's can say it
    quote = '"' if "'" in name else "'"
    found = client.search_runs(
        [each.experiment_id for each in client.search_experiments()],
        f"attributes.run_name = {quote}{name}{quote}",
        order_by=["attributes.start_time DESC"],
    )
    return [str(run.info.run_id) for run in found]


@answered
def parts_of(uri: str, run_id: str) -> list[str]:
    """The ids of the finished runs that are parts of a run, oldest first."""
    client = client_of(uri)
    found = client.search_runs(
        [client.get_run(run_id).info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time ASC"],
    )
    return [str(run.info.run_id) for run in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowRun:
    """A run on the server; see `tracking.run.Run`. It holds two texts only, so it can be sent."""

    uri: str
    run_id: str

    @answered
    def log_settings(self, settings: Mapping[str, str | int | float | bool | None]) -> None:
        """Settings; a changed value is a ValueError.

        What MLflow takes in no name is escaped in it. Of a value that is longer than it holds, it
        gets the beginning and a digest of the whole.
        """
        from mlflow.entities import Param

        client = client_of(self.uri)
        standing = client.get_run(self.run_id).data.params
        fresh = []
        for given, value in settings.items():
            name, text = _legal(given), _short(str(value))
            if standing.get(name, text) != text:
                raise ValueError(
                    f"setting {name!r} of run {self.run_id} is {standing[name]!r} already, "
                    f"it cannot become {text!r}; start another run"
                )
            if name not in standing:
                fresh.append(Param(name, text))
        for start in range(0, len(fresh), PARAMS_PER_CALL):
            batch = fresh[start : start + PARAMS_PER_CALL]
            client.log_batch(self.run_id, params=batch, synchronous=True)

    @answered
    def log_metrics(
        self, metrics: Mapping[str, float], step: int, at_ms: int | None = None
    ) -> None:
        """Numbers at a step. Repeated after a resume they are appended; the latest one holds.

        What was logged already, with the same time, is passed over by the server.
        """
        from mlflow.entities import Metric

        client = client_of(self.uri)
        at_ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
        points = [Metric(name, float(value), at_ms, step) for name, value in metrics.items()]
        for start in range(0, len(points), METRICS_PER_CALL):
            batch = points[start : start + METRICS_PER_CALL]
            client.log_batch(self.run_id, metrics=batch, synchronous=True)

    @answered
    def log_dataset(self, name: str, digest: str, context: str) -> None:
        """A dataset that the run reads; the whole digest is the tag `fuseline.dataset.CONTEXT`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        short = digest[:LONGEST_DATASET_DIGEST]
        dataset = Dataset(name, short, source_type="fuseline", source=f'{{"digest": "{digest}"}}')
        tags = [InputTag("mlflow.data.context", context)]
        client = client_of(self.uri)
        client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])
        client.set_tag(self.run_id, f"fuseline.dataset.{context}", digest, synchronous=True)

    @answered
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags; later values replace earlier ones."""
        client = client_of(self.uri)
        for name, value in tags.items():
            client.set_tag(self.run_id, name, value, synchronous=True)

    @answered
    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a file with the run."""
        client_of(self.uri).log_artifact(self.run_id, str(path), folder or None)

    def flush(self) -> None:
        """All calls above return when the server has answered, so nothing is pending."""

    @answered
    def go_on(self) -> None:
        """Show the run as running, also where it was settled before."""
        client_of(self.uri).update_run(self.run_id, "RUNNING")

    @answered
    def finish(self, status: str = "FINISHED") -> None:
        """Settle the run: "FINISHED", "FAILED" or "KILLED"."""
        client_of(self.uri).set_terminated(self.run_id, status)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a run was told, except its points and files."""

    run_id: str
    name: str
    experiment: str
    status: str
    settings: Mapping[str, str]
    tags: Mapping[str, str]


@answered
def read_run(uri: str, run_id: str) -> RunFacts | None:
    """What a run was told; None where there is no such run."""
    client = client_of(uri)
    try:
        with unknown("", FileNotFoundError):
            run = client.get_run(run_id)
            experiment = client.get_experiment(run.info.experiment_id)
    except FileNotFoundError:
        return None
    return _facts(run, str(experiment.name))


def _facts(run: "Run", experiment: str) -> RunFacts:
    return RunFacts(
        run_id=str(run.info.run_id),
        name=str(run.info.run_name),
        experiment=experiment,
        status=str(run.info.status),
        settings=dict(run.data.params),
        tags=dict(run.data.tags),
    )


@answered
def read_file(uri: str, run_id: str, path: str) -> bytes:
    """A file that was kept with a run.

    Raises:
        FileNotFoundError: No such run, or no such file in it.
    """
    client = client_of(uri)
    missing = f"run {run_id} at {public(uri)} has no file {path!r}"
    # First the run: of a file alone one cannot tell whether it or the server is missing.
    with unknown(missing, FileNotFoundError):
        client.get_run(run_id)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = client.download_artifacts(run_id, path, scratch)
        except (mlflow_exception(), OSError) as error:
            raise FileNotFoundError(missing) from error
        return Path(found).read_bytes()


def _legal(name: str) -> str:
    """A setting's name as MLflow takes it: what it does not take becomes _xHH, a byte each."""
    escaped = _ILLEGAL.sub(lambda found: "".join(f"_x{b:02x}" for b in found[0].encode()), name)
    return _short(escaped, _LONGEST_NAME)


def _short(text: str, longest: int = LONGEST_SETTING) -> str:
    """A text that MLflow holds: where it is longer, its beginning and a digest of all of it."""
    if len(text) <= longest:
        return text
    end = f"... sha256 {hashlib.sha256(text.encode()).hexdigest()}"
    return text[: longest - len(end)] + end
