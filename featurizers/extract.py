"""From one raw clip to its features: the one path that shards and registered models share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from featurizers.clip import BadClipError, Clip, Fault
from featurizers.decoder import Decoder, DecoderDiedError
from featurizers.media import Damage, NoStream
from featurizers.spec import Extraction, Feature, Featurizer, Want, check_feature


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a clip in one column.

    Attributes:
        state: "sample", "absent" (the clip has no such modality) or "quarantined".
        message: Why it is quarantined; or, of a sample, what damage was passed over.
    """

    state: Literal["sample", "absent", "quarantined"]
    feature: Feature | None = None
    fault: Fault | None = None
    message: str = ""


def extract(
    clip: Clip, path: Path | None, featurizers: Sequence[Featurizer], decoder: Decoder
) -> list[Outcome]:
    """Compute features of a clip, decoding its media once.

    When the joint decoding fails, each featurizer is tried alone: what a column holds must not
    depend on which others were computed beside it.

    Args:
        clip: The clip.
        path: Its media on this machine; None when they cannot be had ("missing").
        featurizers: What to compute.
        decoder: Decodes the media.

    Returns:
        An outcome for each featurizer, in their order.
    """
    outcomes: dict[int, Outcome] = {}
    media = [i for i, featurizer in enumerate(featurizers) if featurizer.wants is not None]
    for index, featurizer in enumerate(featurizers):
        if featurizer.wants is None:
            outcomes[index] = _without_media(clip, featurizer)
    if media:
        chosen = [featurizers[i] for i in media]
        outcomes.update(zip(media, _from_media(clip, path, chosen, decoder), strict=True))
    return [outcomes[i] for i in range(len(featurizers))]


def _without_media(clip: Clip, featurizer: Featurizer) -> Outcome:
    if not all(_there(clip, name) for name in featurizer.spec.reads):
        return Outcome(state="absent")
    try:
        return _finished(featurizer, featurizer.begin(clip), "")
    except BadClipError as bad:
        return Outcome(state="quarantined", fault=bad.fault, message=bad.message)


def _there(clip: Clip, name: str) -> bool:
    return clip.words is not None if name == "words" else name[len("stream:") :] in clip.streams


def _from_media(
    clip: Clip, path: Path | None, featurizers: Sequence[Featurizer], decoder: Decoder
) -> list[Outcome]:
    if path is None:
        missing = Outcome(state="quarantined", fault="missing", message="no such file")
        return [missing] * len(featurizers)
    try:
        return _decoded(clip, path, featurizers, decoder)
    except BadClipError as bad:
        if len(featurizers) == 1:
            return [Outcome(state="quarantined", fault=bad.fault, message=bad.message)]
    return [_from_media(clip, path, [featurizer], decoder)[0] for featurizer in featurizers]


def _decoded(
    clip: Clip, path: Path, featurizers: Sequence[Featurizer], decoder: Decoder
) -> list[Outcome]:
    try:
        return _attempt(clip, path, featurizers, decoder)
    except DecoderDiedError:
        try:
            return _attempt(clip, path, featurizers, decoder)
        except DecoderDiedError as died:
            raise BadClipError(died.fault, f"{died}, twice") from None


def _attempt(
    clip: Clip, path: Path, featurizers: Sequence[Featurizer], decoder: Decoder
) -> list[Outcome]:
    absent: set[int] = set()
    notes: dict[int, list[str]] = {}
    wants: list[Want] = [want for featurizer in featurizers if (want := featurizer.wants)]
    extractions = [featurizer.begin(clip) for featurizer in featurizers]
    for index, event in decoder.decode(path, clip.start, clip.end, wants, seconds=clip.seconds):
        match event:
            case NoStream():
                absent.add(index)
            case Damage():
                notes.setdefault(index, []).append(event.message)
            case _:
                extractions[index].add(event)
    return [
        Outcome(state="absent")
        if index in absent
        else _finished(featurizer, extraction, "; ".join(notes.get(index, ())))
        for index, (featurizer, extraction) in enumerate(zip(featurizers, extractions, strict=True))
    ]


def _finished(featurizer: Featurizer, extraction: Extraction, message: str) -> Outcome:
    try:
        feature = extraction.finish()
    except BadClipError as bad:
        return Outcome(state="quarantined", fault=bad.fault, message=bad.message)
    check_feature(featurizer.spec, feature)
    if featurizer.spec.dtype == "float32" and not np.isfinite(feature.values).all():
        bad_steps = int((~np.isfinite(feature.values)).any(axis=1).sum())
        text = f"{featurizer.spec.name} gave NaN or infinity at {bad_steps} steps"
        return Outcome(state="quarantined", fault="not_finite", message=text)
    return Outcome(state="sample", feature=feature, message=message)
