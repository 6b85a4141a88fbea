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
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from featurizers import catalog
from featurizers.clip import BadClipError, Clip
from featurizers.decoder import Decoder
from featurizers.extract import Outcome, extract_all, in_order_of_media
from featurizers.imported import spoken_of
from featurizers.intake import take_in
from featurizers.spec import FeatureSpec, Featurizer, canonical_json
from featurizers.stages import Stages
from featurizers.store import StorageError
from training.batch import Sample, collate
from training.explain import explained
from training.models import build
from training.normaliser import Normaliser
from training.recipe import Recipe, Target, Task
from training.rows import Access, Asked, WrongRowsError, checked
from training.samples import is_empty, to_sample

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


def probabilities(task: Task, outputs_NK: NDArray[np.float32]) -> NDArray[np.float64]:
    """The probability of each class or label from outputs [N, K]: [N, K]; [N, 0] of a regression.

    NaN where an output of the clip is not finite.
    """
    if task.kind == "regression":
        return np.empty((len(outputs_NK), 0))
    logits = torch.from_numpy(outputs_NK).double()
    shares = logits.softmax(1) if task.kind == "classes" else logits.sigmoid()
    finite = np.isfinite(outputs_NK).all(axis=1, keepdims=True)
    return np.where(finite, shares.numpy(), math.nan)


@dataclass(frozen=True, slots=True)
class _Taken:
    """A row after its features were computed: a clip, or the error that it met."""

    clip: Clip | None
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    error: BadClipError | StorageError | None = None


class _Decoders:
    """Decoding children that wait for work: a call takes one, or starts another, and gives it back.

    They are ended with the object or the process.
    """

    def __init__(self) -> None:
        self._idle: list[Decoder] = []
        weakref.finalize(self, _close, self._idle)

    @contextmanager
    def one(self) -> Iterator[Decoder]:
        """A decoder that nobody else uses meanwhile."""
        try:
            decoder = self._idle.pop()
        except IndexError:
            decoder = Decoder()
        try:
            yield decoder
        except BaseException:
            decoder.close()
            raise
        self._idle.append(decoder)


def _close(decoders: Sequence[Decoder]) -> None:
    for decoder in decoders:
        decoder.close()


@dataclass(slots=True)
class Predictor:
    """Scores raw clips as training would have.

    Attributes:
        specs: The feature of each stream, in the model's order.
        fallback: What an evaluation says of a clip that cannot be read; see
            `training.data.fallback_of`.
        model: In evaluation mode.
        featurizers: What computes the feature of each stream.
        Refused: What is raised for rows that no clip can be made of.
    """

    recipe: Recipe
    specs: Mapping[str, FeatureSpec]
    normaliser: Normaliser
    fallback: Target
    model: nn.Module
    featurizers: Mapping[str, Featurizer]
    Refused: ClassVar[type[ValueError]] = WrongRowsError
    _decoders: _Decoders = field(default_factory=_Decoders, repr=False)

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
            StorageError: Something cannot be read now, which says nothing of the clip.
            WrongRowsError: The row is none that `predict` takes.
        """
        (taken,) = self._take(self._check([row], Access()))
        if taken.error is not None:
            raise taken.error
        return dict(taken.outcomes)

    def _check(self, rows: Sequence[Mapping[str, Any]], access: Access) -> list[Asked]:
        words = self.recipe.pooling.kind == "words"
        return checked(rows, self.specs, access, pooled_to_words=words)

    def predict(
        self, rows: Sequence[Mapping[str, Any]], *, paths: bool = True, root: Path | None = None
    ) -> list[dict[str, Any]]:
        """Score clips; a bad one is a row that says so, never an exception.

        What is said of a clip does not depend on those beside it, to the last bit: each is shown to
        the model alone. (Encoders whose features are promised `within` a bound do batch clips.)

        Args:
            rows: Each has `media` (a path on this machine) or `media_bytes` (what such a file
                holds) and, where wanted, `transcript` (the words; or captions, from "WEBVTT" on) or
                `transcript_file` (the path of a file that `read_transcript` takes), `start` and
                `end` in seconds, `id`, and `stream:NAME` (a .npy or .csv file) with
                `stream:NAME:hz`. Or it brings features in place of media: `features:STREAM`
                [T, D] with `times:STREAM` [T, 2], for as many of the model's streams as it has, and
                `times:words` [W, 2]; `end` is then the clip's duration. Other cells are passed
                over, and empty ones are as if they were not there.
            paths: Whether rows may name files at all.
            root: The folder below which these must lie; any on this machine where not given.

        Returns:
            For each row, in order:

            - id, as given, or else the media
            - state: "scored", "quarantined", or "failed" where something cannot be read now, which
              says nothing of the clip
            - prediction: a number, the name of a class, or the names of all labels whose
              probability is over a half, with commas; None when not scored
            - scores: JSON, the probability of each class or label; "" for a regression
            - missing: the streams that the clip lacks, with commas
            - fault, message: why it is not scored; or what damage was passed over

        Raises:
            WrongRowsError: Names the row and the column.
        """
        asked = self._check(rows, Access(paths, root))
        taken = self._take(asked)
        samples = self._samples(taken)
        return [
            self._answer(row.id, each, self._outputs(samples.get(number)))
            for number, (row, each) in enumerate(zip(asked, taken, strict=True))
        ]

    def explain(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Score clips as `predict`, and say what each stream did.

        Returns:
            What `predict` gives, with

            - words: [text, start, end] of each, in seconds from the clip's start
            - without: by stream that the clip has, what is said of the clip when it is taken away
              (prediction and scores; None where nothing would be left), and `change`: how far the
              number, or the probability of the class that was said (for several labels, of each),
              moves by that; these are None or empty where the model then gives NaN or infinity
            - masks: of a model that has them, by stream: how far it was let through, a number
              between 0 and 1 for each step that the model sees (each word, where it sees words)

        Raises:
            WrongRowsError: Names the row and the column.
        """
        asked = self._check(rows, Access())
        taken = self._take(asked)
        samples = self._samples(taken)
        answers = []
        for number, (row, each) in enumerate(zip(asked, taken, strict=True)):
            answer = self._answer(row.id, each, self._outputs(samples.get(number)))
            words = () if each.clip is None else each.clip.words or ()
            answer["words"] = [[word.text, word.start, word.end] for word in words]
            answer |= {"without": {}, "masks": {}}
            if answer["state"] == "scored":
                answer |= explained(
                    self.model,
                    samples[number],
                    self._widths,
                    self.recipe.task,
                    answer=answer,
                    said=self._said,
                )
            answers.append(answer)
        return answers

    @property
    def _widths(self) -> dict[str, int]:
        return {name: spec.width for name, spec in self.specs.items()}

    def _outputs(self, sample: Sample | None) -> NDArray[np.float32] | None:
        """Outputs [K] of a clip that can be scored."""
        return None if sample is None else outputs(self.model, [sample], self._widths)[0]

    def _samples(self, taken: Sequence[_Taken]) -> dict[int, Sample]:
        """The rows that can be scored, by their numbers."""
        return {
            number: sample
            for number, each in enumerate(taken)
            if each.clip is not None
            and not is_empty(sample := self._sample(each.clip, each.outcomes))
        }

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

    def _take(self, asked: Sequence[Asked]) -> list[_Taken]:
        """Read the rows' clips and compute their features, decoding ahead."""
        scratch = tempfile.TemporaryDirectory(prefix="fuseline-media-")
        with scratch as folder, self._decoders.one() as decoder:
            taken = [
                self._read(row, f"row-{number}", Path(folder), decoder)
                for number, row in enumerate(asked)
            ]
            computed = self._computed([each.clip for each in taken if _is_raw(each)], decoder)
        return [
            computed[each.clip.key] if each.clip is not None and _is_raw(each) else each
            for each in taken
        ]

    def _read(self, row: Asked, key: str, scratch: Path, decoder: Decoder) -> _Taken:
        if row.features:
            return _Taken(row.clip(key), self._given(row))
        try:
            return _Taken(take_in(row.raw(key, scratch), decoder, digests=False))
        except (BadClipError, StorageError) as error:
            return _Taken(None, error=error)

    def _given(self, row: Asked) -> dict[str, Outcome]:
        """What a row brings, as if it had been computed."""
        absent = Outcome(state="absent")
        return {
            name: Outcome(state="sample", feature=row.features[name])
            if name in row.features
            else absent
            for name in self.specs
        }

    def _computed(self, clips: Sequence[Clip | None], decoder: Decoder) -> dict[str, _Taken]:
        """The features of raw clips, by key."""
        left = in_order_of_media([clip for clip in clips if clip is not None])
        taken: dict[str, _Taken] = {}
        while left:
            found = extract_all(
                left,
                lambda clip: Path(clip.media) if clip.media else None,
                list(self.featurizers.values()),
                decoder,
                Stages(),
            )
            done = 0
            try:
                for clip, outcomes in zip(left, found, strict=True):
                    taken[clip.key] = _Taken(
                        clip, dict(zip(self.featurizers, outcomes, strict=True))
                    )
                    done += 1
            except StorageError as error:
                # Given after the outcomes of the clips before it: this one's media failed.
                taken[left[done].key] = _Taken(None, error=error)
                done += 1
            left = left[done:]
        return taken

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
        if isinstance(taken.error, StorageError):
            answer |= {"state": "failed", "message": str(taken.error)}
        elif outputs_K is None:
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


def _is_raw(taken: _Taken) -> bool:
    """Whether the clip's features are still to be computed."""
    return taken.clip is not None and not taken.outcomes


def _has(outcomes: Mapping[str, Outcome], name: str) -> bool:
    return name in outcomes and outcomes[name].state == "sample"


def _notes(taken: _Taken) -> str:
    """What was passed over in the streams of a clip that was scored."""
    return "; ".join(
        f"{name}: {outcome.message}" for name, outcome in taken.outcomes.items() if outcome.message
    )


def _why(taken: _Taken) -> tuple[str, str]:
    """Fault and message of a clip of which nothing could be read."""
    if isinstance(taken.error, BadClipError):
        return taken.error.fault, taken.error.message
    for outcome in taken.outcomes.values():
        if outcome.fault is not None:
            return outcome.fault, outcome.message
    streams = ", ".join(taken.outcomes)
    return "empty", f"the clip has none of the streams {streams}, or nothing during its words"
