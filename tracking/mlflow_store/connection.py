"""The way to a tracking store: which one, what it is told of us, and its failures as ours.

Every call names the server; nothing is kept in MLflow's global state, which would leak to other
runs and processes. `initialise` comes before all else: a fresh SQLite file that several processes
open at once is migrated by all of them, and breaks.
"""

import fcntl
import functools
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import quote, unquote, urlsplit

from tracking.registry import UnknownModelError
from tracking.run import AwayError

if TYPE_CHECKING:
    from mlflow import MlflowClient

P = ParamSpec("P")
T = TypeVar("T")

# Holds the ledgers, and in a tag the folder below which all experiments keep their files.
HOME_EXPERIMENT = "fuseline"
ARTIFACTS_TAG = "fuseline.artifacts"

LONGEST_REASON = 300
BUSY_TRIES, FIRST_PAUSE_S, LONGEST_PAUSE_S = 20, 0.02, 0.5

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


def answered(call: Callable[P, T]) -> Callable[P, T]:
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


def public(text: str) -> str:
    """Without the user and password that an address may hold."""
    return re.sub(r"://[^/\s]*@", "://", text)


def tracking_uri(default_folder: Path) -> str:
    """Where runs are written: MLFLOW_TRACKING_URI, else a SQLite file in the folder."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI", "")
    return chosen or f"sqlite:///{default_folder.resolve() / 'mlflow.db'}"


def user_of(uri: str) -> str:
    """Who calls a tracking server: the user in its address, else the one of MLflow's settings.

    The one in the address comes first, as it is with the requests themselves. Empty where there is
    no user, and of a database: who calls that is a program.
    """
    from mlflow.utils.credentials import read_mlflow_creds

    address = urlsplit(uri)
    if not address.scheme.startswith("http"):
        return os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    return unquote(address.username or "") or read_mlflow_creds().username or ""


@answered
def initialise(uri: str, artifacts: Path) -> None:
    """Make the store ready for many processes. May be called by several of them, at any time.

    The files of runs and models go below the folder `artifacts`; a tracking server has its own.
    """
    database = sqlite_file(uri)
    if database is None:
        _make_home(open_store(uri), artifacts=None if uri.startswith("http") else artifacts)
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _make_home(open_store(uri), artifacts)


@answered
def connect(uri: str) -> None:
    """Load what calls to this store need; where a thread would do it, a fork may come in between.

    A process that was forked in the midst of an import waits for ever when it imports the same.
    """
    client_of(uri)


def client_of(uri: str) -> "MlflowClient":
    """MLflow's client of a store.

    Raises:
        NoStoreError: Its SQLite file does not exist.
    """
    database = sqlite_file(uri)
    if database is not None and not database.is_file():
        raise NoStoreError(f"there is no tracking store {database}; train something first")
    return open_store(uri)


def open_store(uri: str) -> "MlflowClient":
    """MLflow's client of a store that may not exist yet, with the settings that we rely on."""
    for name, value in _SETTINGS.items():
        os.environ[name] = value
    os.environ.setdefault(*_RETRIES)
    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It writes a traceback of what it raises, too.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def mlflow_exception() -> type[Exception]:
    """What MLflow raises, without importing it where nothing is caught yet."""
    from mlflow.exceptions import MlflowException

    return MlflowException


@contextmanager
def unknown(message: str, kind: type[Exception] = UnknownModelError) -> Iterator[None]:
    """Tell in one line that something is not there; other failures pass."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        missing = error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
        if missing and not _is_strange_address(error):
            raise kind(message) from error
        raise


def experiment_id(client: "MlflowClient", name: str) -> str:
    """The id of an experiment; made if it is not there yet."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    home = client.get_experiment_by_name(HOME_EXPERIMENT)
    root = None if home is None else home.tags.get(ARTIFACTS_TAG)
    location = None if root is None else f"{root}/{quote(name, safe='')}"
    return _create_experiment(client, name, location, {})


def _make_home(client: "MlflowClient", artifacts: Path | None) -> None:
    if client.get_experiment_by_name(HOME_EXPERIMENT) is None:
        root = None if artifacts is None else str(artifacts.resolve())
        tags = {} if root is None else {ARTIFACTS_TAG: root}
        location = None if root is None else f"{root}/{HOME_EXPERIMENT}"
        _create_experiment(client, HOME_EXPERIMENT, location, tags)


def _create_experiment(
    client: "MlflowClient", name: str, location: str | None, tags: dict[str, str]
) -> str:
    try:
        return str(client.create_experiment(name, artifact_location=location, tags=tags))
    except mlflow_exception():
        # Somebody else was faster, or it is a true failure: then it is not there either.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def sqlite_file(uri: str) -> Path | None:
    """The SQLite file of a store, if it is one."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def patient(call: Callable[P, T]) -> Callable[P, T]:
    """Try again while a SQLite file is locked by others; for calls that may be repeated.

    SQLite waits for a lock, but answers at once where waiting could last for ever.
    """

    @functools.wraps(call)
    def tried(*args: P.args, **kwargs: P.kwargs) -> T:
        for number in range(BUSY_TRIES - 1):
            try:
                return call(*args, **kwargs)
            except mlflow_exception() as error:
                if "database is locked" not in str(error):
                    raise
                longest = min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S)
                time.sleep(random.uniform(0, longest))  # noqa: S311 - so that two do not meet again
        return call(*args, **kwargs)

    return tried


def _store_failures() -> tuple[type[Exception], ...]:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, RequestException, SQLAlchemyError


def _told(uri: str, error: Exception) -> Exception:
    if _is_strange_address(error):
        return NoStoreError(
            f"{public(uri)} is no address of a tracking store; set MLFLOW_TRACKING_URI to "
            "http://HOST:PORT or sqlite:///FILE, or unset it for a file beside the experiment"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = public(lines[0] if lines else type(error).__name__)[:LONGEST_REASON]
    kind = StoreError if _is_refusal(error) else StoreAwayError
    return kind(
        f"the tracking store {public(uri)} failed: {reason}; see that the server runs or the file "
        "is whole, and that MLFLOW_TRACKING_URI is right, then run the same command again"
    )


def _is_refusal(error: Exception) -> bool:
    """Whether the store answered, and would answer the same for ever."""
    return getattr(error, "error_code", "") in _REFUSALS


def _is_strange_address(error: Exception) -> bool:
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    return isinstance(error, UnsupportedModelRegistryStoreURIException)
