"""What was kept with a version of a registered model: its scorecard, and what it said.

A run may be a version of several models, and be scored again when more can be looked at. So a
scorecard is named by its digest, and each version says by a tag which one is its own.
"""

import hashlib
import json

from pipelines.experiment import InputError
from pipelines.plans import PREDICTIONS, SCORECARD
from tracking.mlflow_store import read_file, run_of, version_of
from tracking.scorecard import Scorecard
from training.predicted import Predicted

CARDS = "scorecards"
"""The folder of a run's files in which each scorecard lies in a folder named by its sha256."""

CARD_TAG = "fuseline.scorecard"


def card_of(uri: str, name: str, version: int) -> Scorecard:
    """The scorecard that a version was registered with; raises as `kept_card`."""
    return parsed(kept_card(uri, name, version))


def kept_card(uri: str, name: str, version: int) -> bytes:
    """The file of the scorecard that a version was registered with.

    Raises:
        UnknownModelError: No such model or version.
        InputError: It was registered without a scorecard, or that is another one now.
    """
    found = version_of(uri, name, version)
    digest = found.tags.get(CARD_TAG, "")
    path = f"{CARDS}/{digest}/{SCORECARD}" if digest else SCORECARD
    try:
        kept = read_file(uri, found.run_id, path)
    except FileNotFoundError:
        raise InputError(
            f"version {version} of {name!r} has no scorecard: it was registered by other means"
        ) from None
    if digest and hashlib.sha256(kept).hexdigest() != digest:
        raise InputError(
            f"the scorecard of version {version} of {name!r} was changed since it was registered "
            f"({path} of run {found.run_id}); register the run again"
        )
    return kept


def parsed(kept: bytes) -> Scorecard:
    """A scorecard from its file."""
    return Scorecard.from_json(json.loads(kept))


def predictions_of(uri: str, name: str, version: int) -> Predicted:
    """What was said of each clip by a version.

    Raises:
        UnknownModelError: No such model or version.
        InputError: It was registered without that.
    """
    whose = f"version {version} of {name!r}"
    try:
        content = read_file(uri, run_of(uri, name, version), PREDICTIONS)
        return Predicted.from_parquet(content, whose)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{whose} cannot be compared clip by clip: {error}") from None
