"""A predictor: everything that it takes to score raw clips, in one folder.

    predictor.json           recipe, specs of the features, what to say when nothing can be read
    weights.safetensors      the model
    normaliser.safetensors   mean and standard deviation of each dimension
    STREAM.tokenizer.json    the tokenizer of a stream of word pieces

Loading it needs neither deepspeed nor ray nor mlflow, and unpickles nothing.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from featurizers import catalog
from featurizers.clip import BadClipError, Clip
from featurizers.decoder import Decoder
from featurizers.extract import Outcome, extract
from featurizers.intake import CHOSEN, RawClip, take_in
from featurizers.spec import FeatureSpec, Featurizer, canonical_json
from featurizers.transcript import FORMATS, file_and_tier
from training.batch import Sample, collate
from training.models import build
from training.normaliser import Normaliser
from training.recipe import Recipe, Target, Task
from training.samples import is_empty, spoken_of, to_sample

FORMAT = 1
NAME = "training.predict:Predictor"
MICRO = 64
_TOKENIZER = ".tokenizer.json"


def outputs(
    model: nn.Module, samples: Sequence[Sample], widths: Mapping[str, int]
) -> NDArray[np.float32]:
    """What a model says of samples, in their order: [N, K]. Puts the model into evaluation mode."""
    model.eval()
    with torch.no_grad():
        parts = [
            model(collate(samples[first : first + MICRO], widths)).numpy()
            for first in range(0, len(samples), MICRO)
        ]
    return np.concatenate(parts)


def load_model(folder: Path) -> nn.Module:
    """A predictor's model alone, in evaluation mode: it needs no weights of its features' encoders.

    Raises:
        ValueError: It was written in another format.
    """
    about = _about(folder)
    recipe = Recipe.from_json(about["recipe"])
    widths = {name: spec.width for name, spec in _specs(about).items()}
    model = build(recipe.model, widths, recipe.task.outputs)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    return model.eval()


def _about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / "predictor.json").read_bytes())
    if about["format"] != FORMAT:
        raise ValueError(f"{folder}: predictor format {about['format']}, this code reads {FORMAT}")
    return about


def _specs(about: Mapping[str, Any]) -> dict[str, FeatureSpec]:
    return {name: FeatureSpec.from_json(plain) for name, plain in about["specs"]}


def decide(task: Task, outputs_NK: NDArray[np.float32]) -> NDArray[np.float64]:
    """Predictions from outputs [N, K]: [N], or [N, K] for several labels.

    The number; or the index of the likeliest class; or for each label 1 where its probability is
    over a half, else 0. NaN where an output of the clip is not finite: an argmax would silently
    name a class.
    """
    finite = np.isfinite(outputs_NK).all(axis=1)
    match task.kind:
        case "regression":
            return np.where(finite, outputs_NK[:, 0].astype(np.float64), math.nan)
        case "classes":
            return np.where(finite, outputs_NK.argmax(axis=1), math.nan)
        case "labels":
            return np.where(np.expand_dims(finite, 1), outputs_NK > 0, math.nan)


@dataclass(frozen=True, slots=True)
class _Taken:
    """A row after its features were computed: a clip, or the error that it met."""

    clip: Clip | None
    outcomes: Mapping[str, Outcome]
    error: BadClipError | None = None


@dataclass(slots=True)
class Predictor:
    """Scores raw clips as training would have.

    Attributes:
        specs: The feature of each stream, in the model's order.
        fallback: What an evaluation says of a clip that cannot be read; see
            `training.data.fallback_of`.
        model: In evaluation mode.
        featurizers: What computes the feature of each stream.
    """

    recipe: Recipe
    specs: Mapping[str, FeatureSpec]
    normaliser: Normaliser
    fallback: Target
    model: nn.Module
    featurizers: Mapping[str, Featurizer]

    @staticmethod
    def save(
        folder: Path,
        *,
        recipe: Recipe,
        specs: Mapping[str, FeatureSpec],
        normaliser: Normaliser,
        fallback: Target,
        weights: Mapping[str, Tensor],
        tokenizers: Mapping[str, Path] | None = None,
    ) -> None:
        """Write a predictor to a folder, which is made when it is not there.

        `tokenizers` are the files of streams of word pieces, as `training.pretrained` finds them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in (tokenizers or {}).items():
            shutil.copyfile(file, folder / f"{name}{_TOKENIZER}")
        save_file(dict(weights), folder / "weights.safetensors")
        normaliser.save(folder / "normaliser.safetensors")
        about = {
            "format": FORMAT,
            "predictor": NAME,
            "recipe": recipe.to_json(),
            "specs": [[name, specs[name].to_json()] for name in recipe.model.streams],
            "fallback": fallback,
        }
        (folder / "predictor.json").write_bytes(canonical_json(about))

    @staticmethod
    def load(folder: Path) -> "Predictor":
        """Read what `save` wrote.

        Raises:
            ValueError: It was written in another format, this code computes other features, or
                the weights of an encoder are not to be had.
        """
        about = _about(folder)
        specs = {
            name: replace(spec, source=str(file))
            if (file := folder / f"{name}{_TOKENIZER}").is_file()
            else spec
            for name, spec in _specs(about).items()
        }
        return Predictor(
            recipe=Recipe.from_json(about["recipe"]),
            specs=specs,
            normaliser=Normaliser.load(folder / "normaliser.safetensors"),
            fallback=about["fallback"],
            model=load_model(folder),
            featurizers={name: catalog.from_spec(spec) for name, spec in specs.items()},
        )

    def features(self, row: Mapping[str, Any]) -> dict[str, Outcome]:
        """The features of one raw clip by stream; rows are as in `predict`.

        Raises:
            BadClipError: The transcript or the span cannot be read.
        """
        with Decoder() as decoder:
            taken = self._take(0, row, decoder)
        if taken.error is not None:
            raise taken.error
        return dict(taken.outcomes)

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Score raw clips; a bad one is a row that says so, never an exception.

        Args:
            rows: Each has `media` (a path on this machine) and, where wanted, `transcript` (the
                words, or the path of a file that `read_transcript` takes), `start` and `end` in
                seconds, `id`, and `stream:NAME` (a .npy or .csv file) with `stream:NAME:hz`.

        Returns:
            For each row, in order:

            - id, as given, or else the media
            - state: "scored" or "quarantined"
            - prediction: a number, the name of a class, or the names of all labels whose
              probability is over a half, with commas; None when quarantined
            - scores: JSON, the probability of each class or label; "" for a regression
            - missing: the streams that the clip lacks, with commas
            - fault, message: why it is quarantined; or what damage was passed over
        """
        with Decoder() as decoder:
            taken = [self._take(index, row, decoder) for index, row in enumerate(rows)]
        found = self._outputs(taken)
        return [
            self._answer(_id_of(index, row), taken[index], found.get(index))
            for index, row in enumerate(rows)
        ]

    def _outputs(self, taken: Sequence[_Taken]) -> dict[int, NDArray[np.float32]]:
        """Outputs [K] of the rows that can be scored."""
        samples = {
            index: sample
            for index, each in enumerate(taken)
            if each.clip is not None
            and not is_empty(sample := self._sample(each.clip, each.outcomes))
        }
        if not samples:
            return {}
        widths = {name: spec.width for name, spec in self.specs.items()}
        found = outputs(self.model, list(samples.values()), widths)
        return dict(zip(samples, found, strict=True))

    def _sample(self, clip: Clip, outcomes: Mapping[str, Outcome]) -> Sample:
        features = {name: outcome.feature for name, outcome in outcomes.items()}
        return to_sample(
            clip,
            features,
            self.recipe.pooling,
            self.normaliser,
            spoken=spoken_of(self.specs),
            encoded=self.recipe.model.encoders.keys(),
        )

    def _take(self, index: int, row: Mapping[str, Any], decoder: Decoder) -> _Taken:
        try:
            raw = _raw(index, row)
            clip = take_in(raw, decoder)
        except BadClipError as bad:
            return _Taken(None, {}, bad)
        found = extract(clip, raw.path, list(self.featurizers.values()), decoder)
        return _Taken(clip, dict(zip(self.featurizers, found, strict=True)))

    def _answer(
        self, row_id: str, taken: _Taken, outputs_K: NDArray[np.float32] | None
    ) -> dict[str, Any]:
        missing = [name for name in self.specs if not _has(taken.outcomes, name)]
        answer: dict[str, Any] = {
            "id": row_id,
            "state": "quarantined",
            "prediction": None,
            "scores": "",
            "missing": ",".join(missing),
            "fault": "",
            "message": "",
        }
        if outputs_K is None:
            answer["fault"], answer["message"] = _why(taken)
        elif not np.isfinite(outputs_K).all():
            answer["fault"], answer["message"] = "not_finite", "the model gave NaN or infinity"
        else:
            answer |= {"state": "scored", "message": _notes(taken)} | self._said(outputs_K)
        return answer

    def _said(self, outputs_K: NDArray[np.float32]) -> dict[str, Any]:
        task = self.recipe.task
        decided = decide(task, outputs_K[np.newaxis])[0]
        logits = torch.from_numpy(outputs_K).double()
        match task.kind:
            case "regression":
                return {"prediction": float(decided)}
            case "classes":
                scores = _named(task, logits.softmax(0))
                return {"prediction": task.classes[int(decided)], "scores": scores}
            case "labels":
                has = zip(task.classes, decided, strict=True)
                names = ",".join(name for name, yes in has if yes)
                return {"prediction": names, "scores": _named(task, logits.sigmoid())}


def _named(task: Task, shares_K: Tensor) -> str:
    """Probabilities by class or label, as JSON."""
    return json.dumps(dict(zip(task.classes, shares_K.tolist(), strict=True)))


def _raw(index: int, row: Mapping[str, Any]) -> RawClip:
    media = str(row.get("media") or "")
    path = Path(media) if media else None
    text = row.get("transcript")
    file = _transcript_file(text)
    streams = {
        name.removeprefix("stream:"): Path(str(value))
        for name, value in row.items()
        if name.startswith("stream:") and name.count(":") == 1
    }
    return RawClip(
        key=f"row-{index}",
        id=_id_of(index, row),
        media=media,
        path=path,
        transcript=None if file is not None or text is None else str(text),
        transcript_file=file,
        start=_seconds(row, "start") or 0.0,
        end=_seconds(row, "end"),
        streams=streams,
        stream_rates={name: hz for name in streams if (hz := _seconds(row, f"stream:{name}:hz"))},
        columns={name: str(row.get(name) or "") for name in CHOSEN},
    )


def _id_of(index: int, row: Mapping[str, Any]) -> str:
    return str(row.get("id") or row.get("media") or f"row {index + 1}")


def _transcript_file(text: object) -> Path | None:
    """The file, if the text is the name of one; words that merely end in .txt are words."""
    if not isinstance(text, str) or "\n" in text:
        return None
    try:
        file, _ = file_and_tier(Path(text))
        there = file.suffix.lower() in FORMATS and file.is_file()
    except (OSError, ValueError):
        return None  # longer than a path can be, or with a character that none has
    return Path(text) if there else None


def _seconds(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    try:
        seconds = None if value is None else float(value)
    except (TypeError, ValueError):
        raise BadClipError("bad_span", f"{name} is {value!r}; wanted seconds") from None
    return None if seconds is None or math.isnan(seconds) else seconds


def _has(outcomes: Mapping[str, Outcome], name: str) -> bool:
    return name in outcomes and outcomes[name].state == "sample"


def _notes(taken: _Taken) -> str:
    """What was passed over in the streams of a clip that was scored."""
    return "; ".join(
        f"{name}: {outcome.message}" for name, outcome in taken.outcomes.items() if outcome.message
    )


def _why(taken: _Taken) -> tuple[str, str]:
    """Fault and message of a clip of which nothing could be read."""
    if taken.error is not None:
        return taken.error.fault, taken.error.message
    for outcome in taken.outcomes.values():
        if outcome.fault is not None:
            return outcome.fault, outcome.message
    streams = ", ".join(taken.outcomes)
    return "empty", f"the clip has none of the streams {streams}, or nothing during its words"
