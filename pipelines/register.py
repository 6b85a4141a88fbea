"""Trained runs to registered models: logged, held against the shards, asked twice, registered."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featurizers.clip import Clip
from featurizers.manifest import Column
from featurizers.spec import canonical_json
from featurizers.store import publish
from pipelines.experiment import FailedError, InputError
from pipelines.model_card import FILE as MODEL_CARD
from pipelines.model_card import model_card
from pipelines.model_process import ModelProcess
from pipelines.origins import keep_origins
from pipelines.packaging import logged
from pipelines.plans import SCORECARD, Trained, score_test
from pipelines.score import parity, row_of
from pipelines.scorecards import CARD_TAG, CARDS, card_of
from pipelines.sources import Asked
from pipelines.staging import Stage
from pipelines.tracked import keep_file
from tracking.mlflow_store import (
    MlflowRegistry,
    MlflowRun,
    describe,
    register,
    versions_of_run,
)
from tracking.scorecard import Scorecard

PARITY_CLIPS = 4


class ParityError(FailedError):
    """The model computes other features from raw clips than those it was trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A version of a registered model, with what is known of it.

    Attributes:
        compared: How many clips' features were computed through it and equal those of the shards.
    """

    name: str
    version: int
    model_uri: str
    card: Scorecard
    compared: int

    @property
    def checked(self) -> str:
        """What was compared, for people."""
        if not self.compared and self.card.parity:
            return "its features were compared with the shards when it was registered"
        if self.compared:
            return f"features of {self.compared} raw clips equal those of the shards"
        return (
            "no training clip could be had to compare features with the shards, so it cannot "
            "be promoted; make the media of some training clips readable here and run again"
        )


def register_model(
    trained: Trained,
    clips: Sequence[Clip],
    asked: Sequence[Asked],
    columns: Mapping[str, Column],
    *,
    uri: str,
    name: str,
    stage: Stage | None = None,
    weights: Sequence[str] = (),
    duplicates: Sequence[str] | None = None,
) -> Registered:
    """Log a trained run as a model, hold it against the shards, and register it.

    Args:
        trained: The run.
        clips: All clips of the dataset.
        asked: The rows that they came from: the raw input of the comparison.
        columns: The columns that it was trained on.
        uri: The tracking server.
        name: The registered model's name.
        stage: Where remote clips are fetched to; where not given, local clips alone are compared.
        weights: Where the weights of encoders lie that are not of the hub.
        duplicates: Test clips that are like training clips; None when nobody looked.

    A version of this run that stands is left as it is where less could be looked at now than when
    it was registered: what was seen then is not forgotten because media are away.

    Raises:
        StorageError: A remote clip cannot be fetched.
        ParityError: Features through the model differ from the shards; nothing is registered.
    """
    run = MlflowRun(uri=uri, run_id=trained.run_id)
    model_uri = logged(trained, run)
    used = {stream: columns[stream] for stream in trained.plan.recipe.model.streams}
    some = _some(asked, clips, used, remote=stage is not None)
    said: list[Any] = []
    differences, compared = _compare(uri, model_uri, some, used, stage, weights=weights, said=said)
    if differences:
        raise ParityError(
            f"{model_uri} is not registered: features of raw clips differ from the shards: "
            f"{'; '.join(differences[:3])} ({len(differences)} in all)"
        )
    card = score_test(
        trained,
        clips,
        parity=True if compared else None,
        duplicates=duplicates,
        reproducible=_is_reproducible(uri, model_uri, some, said, stage, weights=weights),
    )
    standing = dict(reversed(versions_of_run(uri, trained.run_id)))
    before = _before(uri, standing, name)
    if before is not None and _says_less(card, before):
        card = before
        if name in standing:
            publish(trained.plan.folder / SCORECARD, canonical_json(card.to_json()))
            return Registered(
                name=name,
                version=standing[name],
                model_uri=model_uri,
                card=card,
                compared=compared,
            )
    # Before the version, so that there is none of which nobody knows what it was made of.
    keep_origins([(trained.plan, run)], clips)
    tags = {
        CARD_TAG: _keep_card(run, trained.plan.folder, card),
        "fuseline.evaluation_set": card.evaluation_set,
        "fuseline.parity": "checked" if card.parity else "not compared",
        **{f"fuseline.test.{metric}": f"{value:.6g}" for metric, value in card.metrics.items()},
    }
    # The files of a model are one for all its names: the first name's card stays.
    if not set(standing) - {name}:
        told = model_card(name, trained, clips, used, card, compared=compared)
        keep_file(run, MODEL_CARD, told.encode())
        describe(uri, model_uri, told)
    version = register(uri, name, model_uri, trained.run_id, tags)
    if name in standing:
        MlflowRegistry(uri=uri).set_tags(name, version, tags)
    return Registered(name=name, version=version, model_uri=model_uri, card=card, compared=compared)


def _keep_card(run: MlflowRun, folder: Path, card: Scorecard) -> str:
    """Keep a scorecard with a run, where none that is there already is written over; its digest."""
    content = canonical_json(card.to_json())
    digest = hashlib.sha256(content).hexdigest()
    publish(folder / SCORECARD, content)
    keep_file(run, SCORECARD, content)
    keep_file(run, SCORECARD, content, f"{CARDS}/{digest}")
    return digest


def _before(uri: str, standing: Mapping[str, int], name: str) -> Scorecard | None:
    """What is known of a run's model that stands under this name, or else under another one."""
    for other in sorted(standing, key=lambda each: (each != name, each)):
        with contextlib.suppress(InputError):  # without a scorecard, there is nothing to keep
            return card_of(uri, other, standing[other])
    return None


def _says_less(card: Scorecard, before: Scorecard) -> bool:
    """Whether something was looked at before, of the same clips, that nobody could look at now."""
    seen = ("parity", "reproducible", "duplicates")
    return card.evaluation_set == before.evaluation_set and any(
        getattr(card, name) is None and getattr(before, name) is not None for name in seen
    )


def _some(
    asked: Sequence[Asked], clips: Sequence[Clip], columns: Mapping[str, Column], *, remote: bool
) -> list[Asked]:
    """A few training clips with a feature: the first of each pattern of streams, then others."""
    training = {clip.key for clip in clips if clip.split == "train"}
    patterns: dict[tuple[str, ...], Asked] = {}
    usable: list[Asked] = []
    for each in asked:
        if each.raw.key not in training or (_is_remote(each) and not remote):
            continue
        states = tuple(column.rows[each.raw.key].state for column in columns.values())
        # Of a clip without any feature, nothing can be compared.
        if "sample" in states:
            patterns.setdefault(states, each)
            usable.append(each)
    others = [each for each in usable if each not in patterns.values()]
    return [*patterns.values(), *others][: max(PARITY_CLIPS, len(patterns))]


def _is_remote(asked: Asked) -> bool:
    return "://" in asked.raw.media


def _compare(
    uri: str,
    model_uri: str,
    some: Sequence[Asked],
    columns: Mapping[str, Column],
    stage: Stage | None,
    *,
    weights: Sequence[str],
    said: list[Any],
) -> tuple[list[str], int]:
    """What differs from the shards, and how many clips were compared.

    `said` takes what the model says of each of these: those that lie here, then the others.
    """
    differences: list[str] = []
    compared = 0
    for here in _at_hand(some, stage):
        differences += parity(uri, model_uri, here, columns, weights, said=said)
        compared += len(here)
    return differences, compared


def _is_reproducible(
    uri: str,
    model_uri: str,
    some: Sequence[Asked],
    said: Sequence[Any],
    stage: Stage | None,
    *,
    weights: Sequence[str],
) -> bool | None:
    """Whether a model says in another process what it said of clips; None without any."""
    again: list[Any] = []
    with contextlib.ExitStack() as stack:
        process: ModelProcess | None = None
        for rows in _at_hand(some, stage):
            process = process or stack.enter_context(ModelProcess(uri, model_uri, weights))
            again += process.predict([row_of(each) for each in rows])
    return again == list(said) if again else None


def _at_hand(some: Sequence[Asked], stage: Stage | None) -> Iterator[list[Asked]]:
    """The clips that can be had: those that lie here at once, then the others one by one.

    One by one, since a stage keeps the copy alone that was asked for last.
    """
    if local := [each for each in some if not _is_remote(each)]:
        yield local
    for each in some:
        path = stage.local(each.raw.media) if stage and _is_remote(each) else None
        if path is not None:
            yield [replace(each, raw=replace(each.raw, media=str(path)))]
