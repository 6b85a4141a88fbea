"""Runs, models and the promotion ledger on an MLflow server, or on a local SQLite file.

Every call names the server; nothing is kept in MLflow's global state, which would leak to other
runs and processes. `initialise` comes before all else: a fresh SQLite file that several processes
open at once is migrated by all of them, and breaks.
"""

import atexit
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import quote

from tracking.registry import UnknownModelError, UnknownVersionError
from tracking.run import AwayError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel
    from mlflow.pyfunc import PyFuncModel

P = ParamSpec("P")
T = TypeVar("T")

# Holds the ledgers, and in a tag the folder below which all experiments keep their files.
HOME_EXPERIMENT = "fuseline"
ARTIFACTS_TAG = "fuseline.artifacts"
LEDGER_TAG = "fuseline.ledger_run"
CANDIDATE_TAG = "fuseline.candidate"
DIGEST_TAG = "fuseline.digest"

LONGEST_SETTING = 6000
LONGEST_DATASET_DIGEST = 36
PARAMS_PER_CALL = 100
METRICS_PER_CALL = 1000
LONGEST_REASON = 300

# What differs from one save of a model to the next, and decides nothing: a file, and fields of
# MLmodel (the size is of files that are digested themselves, "uri" is where artifacts came from).
_PER_SAVE = "registered_model_meta"
_FIELDS_PER_SAVE = frozenset(
    ("model_id", "model_uuid", "run_id", "utc_time_created", "model_size_bytes", "uri")
)

_SETTINGS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOG_UV_FILES": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",
}
_REFUSALS = frozenset(
    (
        "BAD_REQUEST",
        "ENDPOINT_NOT_FOUND",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "NOT_FOUND",
        "NOT_IMPLEMENTED",
        "PERMISSION_DENIED",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
        "UNAUTHENTICATED",
    )
)
# MLflow's own 7 tries take minutes when nobody listens; who has a slow server sets more.
_RETRIES = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")


class NoStoreError(ValueError):
    """The tracking store does not exist yet, or its address is of no kind that MLflow knows."""


class StoreError(Exception):
    """The tracking store cannot be opened or reached, or refuses: what, which, what to do."""


class StoreAwayError(StoreError, AwayError):
    """The tracking store cannot be reached or cannot answer; nothing is wrong with what was asked.

    A subclass of what all other failures are.
    """


def _answered(call: Callable[P, T]) -> Callable[P, T]:
    """Tell failures of the store as ours; the first argument is its address, or has it."""

    @functools.wraps(call)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except (NoStoreError, StoreError, UnknownModelError):
            raise  # said already; and there is no need to import MLflow for them
        except _store_failures() as error:
            first: Any = args[0] if args else kwargs.get("uri", kwargs.get("run"))
            raise _told(first if isinstance(first, str) else first.uri, error) from error

    return told


def _store_failures() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, RequestException, SQLAlchemyError


def _told(uri: str, error: Exception) -> Exception:
    if _is_strange_address(error):
        return NoStoreError(
            f"{_public(uri)} is no address of a tracking store; set MLFLOW_TRACKING_URI to "
            "http://HOST:PORT or sqlite:///FILE, or unset it for a file beside the experiment"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = _public(lines[0] if lines else type(error).__name__)[:LONGEST_REASON]
    kind = StoreError if _is_refusal(error) else StoreAwayError
    return kind(
        f"the tracking store {_public(uri)} failed: {reason}; see that the server runs or the file "
        "is whole, and that MLFLOW_TRACKING_URI is right, then run the same command again"
    )


def _is_refusal(error: Exception) -> bool:
    """Whether the store answered, and would answer the same for ever."""
    return getattr(error, "error_code", "") in _REFUSALS


def _is_strange_address(error: Exception) -> bool:
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    return isinstance(error, UnsupportedModelRegistryStoreURIException)


def _public(text: str) -> str:
    """Without the user and password that an address may hold."""
    return re.sub(r"://[^@/\s]*@", "://", text)


def tracking_uri(default_folder: Path) -> str:
    """Where runs are written: MLFLOW_TRACKING_URI, else a SQLite file in the folder."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI", "")
    return chosen or f"sqlite:///{default_folder.resolve() / 'mlflow.db'}"


@_answered
def initialise(uri: str, artifacts: Path) -> None:
    """Make the store ready for many processes. May be called by several of them, at any time.

    The files of runs and models go below the folder `artifacts`; a tracking server has its own.
    """
    database = _database(uri)
    if database is None:
        _make_home(_open(uri), artifacts=None if uri.startswith("http") else artifacts)
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _make_home(_open(uri), artifacts)


@_answered
def connect(uri: str) -> None:
    """Load what calls to this store need; where a thread would do it, a fork may come in between.

    A process that was forked in the midst of an import waits for ever when it imports the same.
    """
    _client(uri)


@_answered
def start_run(
    uri: str, experiment: str, name: str, tags: Mapping[str, str], parent: str | None = None
) -> "MlflowRun":
    """A new run. To go on with one that exists, construct `MlflowRun` with its id.

    `parent` is the id of the run that this one is a part of, for example one seed of several.
    """
    client = _client(uri)
    family = {} if parent is None else {"mlflow.parentRunId": parent}
    run = client.create_run(
        _experiment_id(client, experiment), run_name=name, tags={**tags, **family}
    )
    return MlflowRun(uri=uri, run_id=run.info.run_id)


@_answered
def find_run(uri: str, experiment: str, tag: str, value: str) -> "MlflowRun | None":
    """The oldest run of an experiment with a tag of this value (no quotes in it); None if none."""
    client = _client(uri)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowRun:
    """A run on the server; see `tracking.run.Run`. It holds two texts only, so it can be sent."""

    uri: str
    run_id: str

    @_answered
    def log_settings(self, settings: Mapping[str, str | int | float | bool | None]) -> None:
        """Settings; a changed value, or one too long for MLflow, is a ValueError."""
        from mlflow.entities import Param

        client = _client(self.uri)
        standing = client.get_run(self.run_id).data.params
        fresh = []
        for name, value in settings.items():
            text = str(value)
            if standing.get(name, text) != text:
                raise ValueError(
                    f"setting {name!r} of run {self.run_id} is {standing[name]!r} already, "
                    f"it cannot become {text!r}; start another run"
                )
            if len(text) > LONGEST_SETTING:
                raise ValueError(
                    f"setting {name!r} has {len(text)} characters, MLflow holds "
                    f"{LONGEST_SETTING}; keep it as a file of the run"
                )
            if name not in standing:
                fresh.append(Param(name, text))
        for start in range(0, len(fresh), PARAMS_PER_CALL):
            batch = fresh[start : start + PARAMS_PER_CALL]
            client.log_batch(self.run_id, params=batch, synchronous=True)

    @_answered
    def log_metrics(
        self, metrics: Mapping[str, float], step: int, at_ms: int | None = None
    ) -> None:
        """Numbers at a step. Repeated after a resume they are appended; the latest one holds.

        What was logged already, with the same time, is passed over by the server.
        """
        from mlflow.entities import Metric

        client = _client(self.uri)
        at_ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
        points = [Metric(name, float(value), at_ms, step) for name, value in metrics.items()]
        for start in range(0, len(points), METRICS_PER_CALL):
            batch = points[start : start + METRICS_PER_CALL]
            client.log_batch(self.run_id, metrics=batch, synchronous=True)

    @_answered
    def log_dataset(self, name: str, digest: str, context: str) -> None:
        """A dataset that the run reads; the whole digest is the tag `fuseline.dataset.CONTEXT`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        short = digest[:LONGEST_DATASET_DIGEST]
        dataset = Dataset(name, short, source_type="fuseline", source=f'{{"digest": "{digest}"}}')
        tags = [InputTag("mlflow.data.context", context)]
        client = _client(self.uri)
        client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, tags)])
        client.set_tag(self.run_id, f"fuseline.dataset.{context}", digest, synchronous=True)

    @_answered
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags; later values replace earlier ones."""
        client = _client(self.uri)
        for name, value in tags.items():
            client.set_tag(self.run_id, name, value, synchronous=True)

    @_answered
    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a file with the run."""
        _client(self.uri).log_artifact(self.run_id, str(path), folder or None)

    def flush(self) -> None:
        """All calls above return when the server has answered, so nothing is pending."""

    @_answered
    def go_on(self) -> None:
        """Show the run as running, also where it was settled before."""
        _client(self.uri).update_run(self.run_id, "RUNNING")

    @_answered
    def finish(self, status: str = "FINISHED") -> None:
        """Settle the run: "FINISHED", "FAILED" or "KILLED"."""
        _client(self.uri).set_terminated(self.run_id, status)


@_answered
def read_file(uri: str, run_id: str, path: str) -> bytes:
    """A file that was kept with a run.

    Raises:
        FileNotFoundError: No such run, or no such file in it.
    """
    client, mlflow_error = _client(uri), _mlflow_error()
    missing = f"run {run_id} at {uri} has no file {path!r}"
    # First the run: of a file alone one cannot tell whether it or the server is missing.
    with _unknown(missing, FileNotFoundError):
        client.get_run(run_id)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = client.download_artifacts(run_id, path, scratch)
        except (mlflow_error, OSError) as error:
            raise FileNotFoundError(missing) from error
        return Path(found).read_bytes()


@_answered
def log_model(
    run: MlflowRun,
    folder: Path,
    *,
    name: str,
    code: Sequence[Path],
    inputs: Sequence[tuple[str, str, bool]],
    outputs: Sequence[tuple[str, str]],
    requirements: Sequence[str],
) -> str:
    """Keep a trained model with its code, so that `load` gives it back in any process.

    Args:
        run: The run that trained it.
        folder: What `Predictor.load` reads, and `predictor.json` (see `tracking.serving`).
        name: A name within the run, such as "model".
        code: Package folders that are bundled with the model.
        inputs: Columns that a prediction takes: name, MLflow type, whether it must be there.
        outputs: Columns that it gives: name, MLflow type.
        requirements: Third-party requirements, as pip takes them.

    Returns:
        The model's address, "models:/m-...".
    """
    import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    client = _client(run.uri)
    experiment = client.get_run(run.run_id).info.experiment_id
    model = client.create_logged_model(experiment, name=name, source_run_id=run.run_id)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # MLflow would like to store an example, but ours would be somebody's media.
        warnings.filterwarnings("ignore", message=".*input example", category=UserWarning)
        saved = Path(scratch) / "model"
        mlflow.pyfunc.save_model(
            path=str(saved),
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"model": str(folder.resolve())},
            code_paths=[str(package.resolve()) for package in code],
            signature=ModelSignature(
                inputs=Schema([ColSpec(kind, column, need) for column, kind, need in inputs]),
                outputs=Schema([ColSpec(kind, column) for column, kind in outputs]),
            ),
            pip_requirements=list(requirements),
            mlflow_model=Model(run_id=run.run_id, model_id=model.model_id),
        )
        for cache in sorted(saved.rglob("__pycache__")):
            shutil.rmtree(cache)
        client.log_model_artifacts(model.model_id, str(saved))
        client.set_logged_model_tags(model.model_id, {DIGEST_TAG: _digest(saved)})
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return f"models:/{model.model_id}"


@_answered
def register(uri: str, name: str, model_uri: str, run_id: str, tags: Mapping[str, str]) -> int:
    """The version of a registered model that is this run's model; made if it is not there yet.

    The model's ledger is bound when the model is first created: of several creators one wins, and
    the tag that it created the model with names the ledger for all.

    Raises:
        UnknownModelError: No such model was logged, or a model of that name was registered by
            other means and so has no ledger.
    """
    client = _client(uri)
    location, digest = _locate(uri, model_uri)
    _create_model(client, name)
    registry = MlflowRegistry(uri=uri)
    registry.ledger(name)
    candidate = f"{run_id}:{digest}"
    if standing := _candidates(client, name, candidate):
        return standing[0]
    made = client.create_model_version(
        name,
        source=location,
        run_id=run_id,
        model_id=model_uri.removeprefix("models:/"),
        tags={**tags, CANDIDATE_TAG: candidate, DIGEST_TAG: digest},
    )
    # Two that register the same model at once both made a version; the first one is kept.
    first = _candidates(client, name, candidate)[0]
    if first != int(made.version):
        client.delete_model_version(name, made.version)
    return first


@_answered
def run_of(uri: str, name: str, version: int) -> str:
    """Id of the run that a version was trained by.

    Raises:
        UnknownModelError: No such model or version.
    """
    with _unknown(f"model {name!r} has no version {version} at {uri}"):
        return str(_client(uri).get_model_version(name, str(version)).run_id)


@_answered
def download(uri: str, model_uri: str, to: Path) -> Path:
    """Copy a model into a folder that is empty or new, and verify it.

    The model is "models:/NAME@ALIAS", "models:/NAME/VERSION" or "models:/m-...".

    Raises:
        UnknownModelError: No such model, version or alias.
        OSError: The files are not those that were logged.
    """
    import mlflow.artifacts

    location, digest = _locate(uri, model_uri)
    found = Path(mlflow.artifacts.download_artifacts(location, dst_path=str(to), tracking_uri=uri))
    if digest and _digest(found) != digest:
        raise OSError(
            f"the files of {model_uri} at {location} are not those that were logged "
            f"(sha256 {_digest(found)[:12]}, wanted {digest[:12]}); restore them, or train anew"
        )
    return found


@_answered
def load(uri: str, model_uri: str) -> "PyFuncModel":
    """A model that can predict, from a verified copy; nothing is unpickled.

    Its own code is imported, so this process must not have imported packages of the same names.

    Raises:
        UnknownModelError: No such model, version or alias.
        OSError: The files are not those that were logged.
        ImportError: Code that the model brings was imported from elsewhere.
    """
    copy = Path(tempfile.mkdtemp(prefix="fuseline-model-"))
    # The model may import more of its code at any time, so its copy stays as long as the process.
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    folder = download(uri, model_uri, copy)

    import mlflow.pyfunc

    model: PyFuncModel = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowRegistry:
    """MLflow's model registry; see `tracking.registry.Registry`.

    The ledger is a run of its own whose parameters are write-once: MLflow's one atomic operation.
    """

    uri: str

    @_answered
    def versions(self, name: str) -> list[int]:
        """Versions that exist, ascending."""
        self._model(name)
        found = _client(self.uri).search_model_versions(f"name='{name}'")
        return sorted(int(version.version) for version in found)

    @_answered
    def ledger(self, name: str) -> dict[str, str]:
        """All texts that were written once, by key."""
        return dict(_client(self.uri).get_run(self._ledger_run(name)).data.params)

    @_answered
    def write_once(self, name: str, key: str, text: str) -> str:
        """Write unless something stands there; what stands there now is returned."""
        client, run_id = _client(self.uri), self._ledger_run(name)
        try:
            client.log_param(run_id, key, text, synchronous=True)
        except _mlflow_error():
            # Refused; or accepted, and the answer was lost. What stands there tells.
            standing = self.ledger(name).get(key)
            if standing is None:
                raise
            return standing
        return self.ledger(name)[key]

    @_answered
    def aliases(self, name: str) -> dict[str, int]:
        """The version behind each alias."""
        return {alias: int(version) for alias, version in self._model(name).aliases.items()}

    @_answered
    def set_alias(self, name: str, alias: str, version: int | None) -> None:
        """Point an alias at a version that exists, or remove it."""
        client = _client(self.uri)
        if version is None:
            client.delete_registered_model_alias(name, alias)
            return
        self._check_version(name, version)
        try:
            client.set_registered_model_alias(name, alias, str(version))
        except _mlflow_error():
            # Two that create an alias at once collide in the database; the second try replaces.
            client.set_registered_model_alias(name, alias, str(version))

    @_answered
    def set_tags(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Tags of a version that exists; later values replace earlier ones."""
        self._check_version(name, version)
        client = _client(self.uri)
        for key, value in tags.items():
            client.set_model_version_tag(name, str(version), key, value)

    def _model(self, name: str) -> "RegisteredModel":
        client = _client(self.uri)
        with _unknown(f"no model {name!r} is registered at {self.uri}"):
            return client.get_registered_model(name)

    def _ledger_run(self, name: str) -> str:
        run_id = self._model(name).tags.get(LEDGER_TAG)
        if run_id is None:
            raise UnknownModelError(
                f"model {name!r} at {self.uri} was registered by other means and has no promotion "
                "ledger (a ledger can only be bound when a model is created); use another name"
            )
        return str(run_id)

    def _check_version(self, name: str, version: int) -> None:
        known = self.versions(name)
        if version not in known:
            raise UnknownVersionError(name, version, known)


def _open(uri: str) -> "MlflowClient":
    for name, value in _SETTINGS.items():
        os.environ[name] = value
    os.environ.setdefault(*_RETRIES)
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _client(uri: str) -> "MlflowClient":
    database = _database(uri)
    if database is not None and not database.is_file():
        raise NoStoreError(f"there is no tracking store {database}; train something first")
    return _open(uri)


def _mlflow_error() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    return MlflowException


@contextmanager
def _unknown(message: str, kind: type[Exception] = UnknownModelError) -> Iterator[None]:
    """Tell in one line that something is not there; other failures pass."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        missing = error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
        if missing and not _is_strange_address(error):
            raise kind(message) from error
        raise


def _database(uri: str) -> Path | None:
    """The SQLite file of a store, if it is one."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _make_home(client: "MlflowClient", artifacts: Path | None) -> None:
    if client.get_experiment_by_name(HOME_EXPERIMENT) is None:
        root = None if artifacts is None else str(artifacts.resolve())
        tags = {} if root is None else {ARTIFACTS_TAG: root}
        location = None if root is None else f"{root}/{HOME_EXPERIMENT}"
        _create_experiment(client, HOME_EXPERIMENT, location, tags)


def _experiment_id(client: "MlflowClient", name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    home = client.get_experiment_by_name(HOME_EXPERIMENT)
    root = None if home is None else home.tags.get(ARTIFACTS_TAG)
    location = None if root is None else f"{root}/{quote(name, safe='')}"
    return _create_experiment(client, name, location, {})


def _create_experiment(
    client: "MlflowClient", name: str, location: str | None, tags: dict[str, str]
) -> str:
    try:
        return str(client.create_experiment(name, artifact_location=location, tags=tags))
    except _mlflow_error():
        # Somebody else was faster, or it is a true failure: then it is not there either.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _create_model(client: "MlflowClient", name: str) -> None:
    """Create a registered model together with its ledger, unless it exists."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"a model's name has letters, digits, '_', '-' and '.'; found {name!r}")
    mlflow_error = _mlflow_error()
    try:
        client.get_registered_model(name)
    except mlflow_error:
        run = client.create_run(
            _experiment_id(client, HOME_EXPERIMENT), run_name=f"promotions of {name}"
        )
        client.set_terminated(run.info.run_id)
        try:
            client.create_registered_model(name, tags={LEDGER_TAG: run.info.run_id})
        except mlflow_error:
            client.delete_run(run.info.run_id)
            # Somebody else was faster, or it is a true failure: then this one says so.
            client.get_registered_model(name)


def _candidates(client: "MlflowClient", name: str, candidate: str) -> list[int]:
    found = client.search_model_versions(f"name='{name}'")
    return sorted(int(v.version) for v in found if v.tags.get(CANDIDATE_TAG) == candidate)


def _locate(uri: str, model_uri: str) -> tuple[str, str]:
    """Where a model's files are, and their digest ("" for a model that we did not log)."""
    client = _client(uri)
    form = re.fullmatch(r"models:/(?:(m-\w+)|([^/@]+)@([\w-]+)|([^/@]+)/(\d+))", model_uri)
    if form is None:
        raise UnknownModelError(
            f"{model_uri!r} names no model; wanted models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    logged, alias_of, alias, version_of, number = form.groups()
    with _unknown(f"there is no {model_uri} at {uri}"):
        if logged:
            model = client.get_logged_model(logged)
            return str(model.artifact_location), str(model.tags.get(DIGEST_TAG, ""))
        if alias:
            version = client.get_model_version_by_alias(alias_of, alias)
        else:
            version = client.get_model_version(version_of, number)
        location = client.get_model_version_download_uri(version.name, version.version)
        return str(location), str(version.tags.get(DIGEST_TAG, ""))


def _digest(saved: Path) -> str:
    """sha256 in hex of a saved model: weights, settings, code, requirements and how to load it."""
    digest = hashlib.sha256()
    for file in sorted(saved.rglob("*")):
        name = file.relative_to(saved).as_posix()
        if file.is_file() and name != _PER_SAVE and "__pycache__" not in file.parts:
            content = _lasting(file) if name == "MLmodel" else file.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def _lasting(file: Path) -> bytes:
    """What stays of MLmodel from one save to the next: loader, code, artifacts, signature."""
    import yaml

    content = file.read_bytes()
    try:
        about = yaml.safe_load(content)
    except yaml.YAMLError:
        return content
    return json.dumps(_without(about), sort_keys=True, default=str).encode()


def _without(value: object) -> object:
    """Plain data without what differs per save."""
    if isinstance(value, list):
        return [_without(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {str(k): _without(each) for k, each in value.items() if k not in _FIELDS_PER_SAVE}
    if "model_code_path" in kept:
        # A path on the machine that saved it; at load its last part is looked for in the model.
        kept["model_code_path"] = Path(str(kept["model_code_path"])).name
    return kept
