"""Trained models on a tracking server: logged whole, registered once, verified when fetched."""

import atexit
import datetime as dt
import hashlib
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking.mlflow_store.connection import answered, client_of, public, unknown
from tracking.mlflow_store.registry import create_model
from tracking.mlflow_store.runs import MlflowRun
from tracking.registry import UnknownModelError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.pyfunc import PyFuncModel

CANDIDATE_TAG = "fuseline.candidate"
DIGEST_TAG = "fuseline.digest"

# What differs from one save of a model to the next, and decides nothing: a file, and fields of
# MLmodel (the size is of files that are digested themselves, "uri" is where artifacts came from).
_PER_SAVE = "registered_model_meta"
# Told of a model after it is logged: it decides nothing, and has a digest of its own.
MODEL_CARD = "MODEL_CARD.md"
# What `tracking.serving` holds a model's files against.
FILES = "files.json"
MATRIX = "matrix"
_FIELDS_PER_SAVE = frozenset(
    ("model_id", "model_uuid", "run_id", "utc_time_created", "model_size_bytes", "uri")
)


@answered
def log_model(
    run: MlflowRun,
    folder: Path,
    *,
    name: str,
    code: Sequence[Path],
    inputs: Sequence[tuple[str, str, bool]],
    outputs: Sequence[tuple[str, str]],
    requirements: Sequence[str],
    example: Mapping[str, Any] | None = None,
) -> str:
    """Keep a trained model with its code, so that `load` gives it back in any process.

    Args:
        run: The run that trained it.
        folder: What `Predictor.load` reads, and `predictor.json` (see `tracking.serving`).
        name: A name within the run, such as "model".
        code: Package folders that are bundled with the model.
        inputs: Columns that a prediction takes: name, MLflow type or "matrix" (numbers, [rows,
            columns]), whether it must be there.
        outputs: Columns that it gives: name, MLflow type.
        requirements: Third-party requirements, as pip takes them.
        example: A row that a prediction takes, for people to begin with.

    Returns:
        The model's address, "models:/m-...".
    """
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    client = client_of(run.uri)
    experiment = client.get_run(run.run_id).info.experiment_id
    model = client.create_logged_model(experiment, name=name, source_run_id=run.run_id)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # Said of a model that is logged without an example.
        warnings.filterwarnings("ignore", message=".*input example", category=UserWarning)
        saved = Path(scratch) / "model"
        mlflow.pyfunc.save_model(
            path=str(saved),
            python_model=str(Path(__file__).parent.with_name("serving.py")),
            artifacts={"model": str(folder.resolve())},
            code_paths=[str(package.resolve()) for package in code],
            signature=ModelSignature(
                inputs=Schema(
                    [ColSpec(_type(kind), column, need) for column, kind, need in inputs]
                ),
                outputs=Schema([ColSpec(kind, column) for column, kind in outputs]),
            ),
            pip_requirements=list(requirements),
            input_example=None if example is None else pd.DataFrame([example]),
            mlflow_model=Model(run_id=run.run_id, model_id=model.model_id),
        )
        for cache in sorted(saved.rglob("__pycache__")):
            shutil.rmtree(cache)
        (saved / FILES).write_text(json.dumps(_files(saved), indent=1))
        client.log_model_artifacts(model.model_id, str(saved))
        client.set_logged_model_tags(model.model_id, {DIGEST_TAG: _digest(saved)})
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return f"models:/{model.model_id}"


def _type(kind: str) -> Any:  # noqa: ANN401 - a type of MLflow
    from mlflow.types.schema import Array, DataType

    return Array(Array(DataType.double)) if kind == MATRIX else kind


def _files(saved: Path) -> dict[str, str]:
    """sha256 in hex of what a model is loaded from, by relative name."""
    return {
        file.relative_to(saved).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(saved.rglob("*"))
        if file.is_file() and file.parent != saved
    }


@answered
def describe(uri: str, model_uri: str, card: str) -> None:
    """Keep a model's card with it, in place of one that is there."""
    client = client_of(uri)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / MODEL_CARD).write_text(card, encoding="utf-8")
        client.log_model_artifacts(model_uri.removeprefix("models:/"), scratch)


@answered
def register(uri: str, name: str, model_uri: str, run_id: str, tags: Mapping[str, str]) -> int:
    """The version of a registered model that is this run's model; made if it is not there yet.

    Raises:
        UnknownModelError: No such model was logged.
    """
    client = client_of(uri)
    location, digest = locate(uri, model_uri)
    create_model(client, name)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version of a registered model.

    Attributes:
        run_id: The run that trained it; "" where it was registered without one.
        when: ISO 8601, UTC.
    """

    number: int
    run_id: str
    when: str
    tags: Mapping[str, str]


@answered
def versions_of(uri: str, name: str) -> list[Version]:
    """All versions of a registered model, ascending; none where there is no such model."""
    found = client_of(uri).search_model_versions(f"name='{name}'")
    return sorted(map(_version, found), key=lambda each: each.number)


@answered
def versions_of_run(uri: str, run_id: str) -> list[tuple[str, int]]:
    """Name and number of each version, of whatever model, that a run trained; sorted."""
    found = client_of(uri).search_model_versions(f"run_id='{run_id}'")
    return sorted((str(each.name), int(each.version)) for each in found)


@answered
def version_of(uri: str, name: str, number: int) -> Version:
    """A version of a registered model.

    Raises:
        UnknownModelError: No such model or version.
    """
    with unknown(f"model {name!r} has no version {number} at {public(uri)}"):
        return _version(client_of(uri).get_model_version(name, str(number)))


def run_of(uri: str, name: str, version: int) -> str:
    """Id of the run that a version was trained by. Raises UnknownModelError as `version_of`."""
    return version_of(uri, name, version).run_id


def _version(found: "ModelVersion") -> Version:
    made = dt.datetime.fromtimestamp(found.creation_timestamp / 1000, dt.UTC)
    return Version(
        number=int(found.version),
        run_id=str(found.run_id or ""),
        when=made.isoformat(timespec="seconds"),
        tags=dict(found.tags),
    )


@answered
def version_behind(uri: str, model_uri: str) -> str:
    """The address of the version that an alias means now; any other address as it is.

    Raises:
        UnknownModelError: There is no such alias.
    """
    form = re.fullmatch(r"models:/([^/@]+)@([\w-]+)", model_uri)
    if form is None:
        return model_uri
    with unknown(f"there is no {model_uri} at {public(uri)}"):
        found = client_of(uri).get_model_version_by_alias(*form.groups())
    return f"models:/{found.name}/{found.version}"


@answered
def download(uri: str, model_uri: str, to: Path) -> Path:
    """Copy a model into a folder that is empty or new, and verify it.

    The model is "models:/NAME@ALIAS", "models:/NAME/VERSION" or "models:/m-...".

    Raises:
        UnknownModelError: No such model, version or alias.
        OSError: The files are not those that were logged.
    """
    import mlflow.artifacts

    location, digest = locate(uri, model_uri)
    found = Path(mlflow.artifacts.download_artifacts(location, dst_path=str(to), tracking_uri=uri))
    # The digest is of sources; Python would sooner run compiled code that was put beside them.
    for cache in sorted(to.rglob("__pycache__")):
        shutil.rmtree(cache)
    if digest and _digest(found) != digest:
        raise OSError(
            f"the files of {model_uri} at {location} are not those that were logged "
            f"(sha256 {_digest(found)[:12]}, wanted {digest[:12]}); restore them, or train anew"
        )
    return found


@answered
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


def _candidates(client: "MlflowClient", name: str, candidate: str) -> list[int]:
    found = client.search_model_versions(f"name='{name}'")
    return sorted(int(v.version) for v in found if v.tags.get(CANDIDATE_TAG) == candidate)


def locate(uri: str, model_uri: str) -> tuple[str, str]:
    """Where a model's files are, and their digest ("" for a model that we did not log)."""
    client = client_of(uri)
    form = re.fullmatch(r"models:/(?:(m-\w+)|([^/@]+)@([\w-]+)|([^/@]+)/(\d+))", model_uri)
    if form is None:
        raise UnknownModelError(
            f"{model_uri!r} names no model; wanted models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    logged, alias_of, alias, version_of, number = form.groups()
    with unknown(f"there is no {model_uri} at {public(uri)}"):
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
        if (
            file.is_file()
            and name not in (_PER_SAVE, MODEL_CARD)
            and "__pycache__" not in file.parts
        ):
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
