"""The registry that promotion works on, as MLflow has it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracking.mlflow_store.connection import (
    HOME_EXPERIMENT,
    answered,
    client_of,
    experiment_id,
    mlflow_exception,
    patient,
    public,
    unknown,
)
from tracking.registry import UnknownVersionError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

LEDGER_TAG = "fuseline.ledger_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowRegistry:
    """MLflow's model registry; see `tracking.registry.Registry`.

    The ledger is a run of its own whose parameters are write-once: MLflow's one atomic operation.
    """

    uri: str

    @answered
    @patient
    def names(self) -> list[str]:
        """Registered models, sorted."""
        found = client_of(self.uri).search_registered_models()
        names = [str(model.name) for model in found]
        while found.token:
            found = client_of(self.uri).search_registered_models(page_token=found.token)
            names += [str(model.name) for model in found]
        return sorted(names)

    @answered
    @patient
    def versions(self, name: str) -> list[int]:
        """Versions that exist, ascending."""
        self._model(name)
        found = client_of(self.uri).search_model_versions(f"name='{name}'")
        return sorted(int(version.version) for version in found)

    @answered
    @patient
    def ledger(self, name: str) -> dict[str, str]:
        """All texts that were written once, by key; empty where nothing was."""
        run_id = self._ledger_run(name)
        if run_id is None:
            return {}
        return dict(client_of(self.uri).get_run(run_id).data.params)

    @answered
    @patient
    def write_once(self, name: str, key: str, text: str) -> str:
        """Write unless something stands there; what stands there now is returned."""
        client = client_of(self.uri)
        run_id = self._ledger_run(name) or _bind(client, name)
        try:
            client.log_param(run_id, key, text, synchronous=True)
        except mlflow_exception():
            # Refused; or accepted, and the answer was lost. What stands there tells.
            standing = self.ledger(name).get(key)
            if standing is None:
                raise
            return standing
        return self.ledger(name)[key]

    @answered
    @patient
    def aliases(self, name: str) -> dict[str, int]:
        """The version behind each alias."""
        return {alias: int(version) for alias, version in self._model(name).aliases.items()}

    @answered
    @patient
    def set_alias(self, name: str, alias: str, version: int | None) -> None:
        """Point an alias at a version that exists, or remove it."""
        client = client_of(self.uri)
        if version is None:
            client.delete_registered_model_alias(name, alias)
            return
        self._check_version(name, version)
        try:
            client.set_registered_model_alias(name, alias, str(version))
        except mlflow_exception():
            # Two that create an alias at once collide in the database; the second try replaces.
            client.set_registered_model_alias(name, alias, str(version))

    @answered
    @patient
    def set_tags(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Tags of a version that exists; later values replace earlier ones."""
        self._check_version(name, version)
        client = client_of(self.uri)
        for key, value in tags.items():
            client.set_model_version_tag(name, str(version), key, value)

    def _model(self, name: str) -> "RegisteredModel":
        client = client_of(self.uri)
        with unknown(f"no model {name!r} is registered at {public(self.uri)}"):
            return client.get_registered_model(name)

    def _ledger_run(self, name: str) -> str | None:
        client = client_of(self.uri)
        bound = self._model(name).tags.get(LEDGER_TAG) or _bound(client, name)
        return None if bound is None else str(bound)

    def _check_version(self, name: str, version: int) -> None:
        known = self.versions(name)
        if version not in known:
            raise UnknownVersionError(name, version, known)


@patient
def create_model(client: "MlflowClient", name: str) -> None:
    """Create a registered model together with its ledger, unless it exists.

    Of several creators one wins, and the tag that it created the model with names the ledger for
    all: a name is given once.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"a model's name has letters, digits, '_', '-' and '.'; found {name!r}")
    try:
        client.get_registered_model(name)
    except mlflow_exception():
        run_id = _ledger_for(client, name)
        try:
            client.create_registered_model(name, tags={LEDGER_TAG: run_id})
        except mlflow_exception():
            client.delete_run(run_id)
            # Somebody else was faster, or it is a true failure: then this one says so.
            client.get_registered_model(name)


def _ledger_for(client: "MlflowClient", name: str) -> str:
    home = experiment_id(client, HOME_EXPERIMENT)
    run = client.create_run(home, run_name=f"promotions of {name}")
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def _bind(client: "MlflowClient", name: str) -> str:
    """Give a model that was registered by other means a ledger, unless it has one.

    A tag of a model that exists can be set by several, and the last one holds. The name of an
    experiment is given once, as that of a model is: it is made for this alone.
    """
    run_id = _ledger_for(client, name)
    try:
        client.create_experiment(f"{HOME_EXPERIMENT}/ledger/{name}", tags={LEDGER_TAG: run_id})
    except mlflow_exception():
        client.delete_run(run_id)
        standing = _bound(client, name)
        if standing is None:
            raise
        return standing
    return run_id


def _bound(client: "MlflowClient", name: str) -> str | None:
    found = client.get_experiment_by_name(f"{HOME_EXPERIMENT}/ledger/{name}")
    return None if found is None else str(found.tags[LEDGER_TAG])
