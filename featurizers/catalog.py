"""Every featurizer by name: the one table that a new one is written into."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import cast, get_args

from featurizers.acoustic import LogMel
from featurizers.appearance import Appearance
from featurizers.egemaps import Egemaps
from featurizers.face_track import FaceTrack
from featurizers.frames import Frames
from featurizers.image_encoder import ImageEncoder
from featurizers.imported import PREFIX, Imported, is_imported
from featurizers.landmarks import Landmarks
from featurizers.lexical import HashedWords
from featurizers.mfcc import Mfcc
from featurizers.pretrained import MissingWeightsError
from featurizers.prosody import Prosody
from featurizers.skeletal import Numbers
from featurizers.skeleton import Skeleton
from featurizers.spec import FeatureSpec, Featurizer, Scalar
from featurizers.speech_encoder import SpeechEncoder
from featurizers.text_encoder import TextEncoder
from featurizers.track import Track
from featurizers.video_encoder import VideoEncoder
from featurizers.visual import FaceMotion
from featurizers.waveform import Waveform
from featurizers.word_pieces import WordPieces
from featurizers.word_vectors import WordVectors

KINDS: Mapping[str, type[Featurizer]] = {
    "hashed-words": HashedWords,
    "logmel": LogMel,
    "mfcc": Mfcc,
    "prosody": Prosody,
    "waveform": Waveform,
    "egemaps": Egemaps,
    "face-motion": FaceMotion,
    "face-track": FaceTrack,
    "frames": Frames,
    "appearance": Appearance,
    "landmarks": Landmarks,
    "numbers": Numbers,
    "track": Track,
    "skeleton": Skeleton,
    "speech-encoder": SpeechEncoder,
    "text-encoder": TextEncoder,
    "image-encoder": ImageEncoder,
    "video-encoder": VideoEncoder,
    "word-vectors": WordVectors,
    "word-pieces": WordPieces,
}
NAMES = tuple(KINDS)

# Of these one is enough; each has the same module.
_OPENCV = ("opencv-python-headless", "opencv-python", "opencv-contrib-python")
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "egemaps": ("opensmile",),
    "face-track": _OPENCV,
    "frames": _OPENCV,
    "appearance": _OPENCV,
    "landmarks": ("mediapipe", *_OPENCV),
    "word-pieces": ("huggingface-hub", "tokenizers"),
}


def build(name: str, /, **parameters: Scalar) -> Featurizer:
    """The featurizer of this name with these settings.

    Raises:
        ValueError: No featurizer or setting has that name, or a value is of the wrong kind or out
            of range.
    """
    chosen = kind(name)
    known = inspect.signature(chosen.__init__, eval_str=True).parameters
    for parameter, about in known.items():
        if parameter not in {"self", *parameters} and about.default is about.empty:
            raise ValueError(f"featurizer {name!r} wants a setting {parameter!r}")
    choices = [parameter for parameter in known if parameter != "self"]
    for parameter, value in parameters.items():
        if parameter not in choices:
            raise ValueError(
                f"featurizer {name!r} has no setting {parameter!r}{_nearest(parameter, choices)}; "
                f"it has {', '.join(choices)}"
            )
        _check(name, parameter, value, known[parameter].annotation)
    # The signature was checked just now, which the type checker cannot see.
    make = cast("Callable[..., Featurizer]", chosen)
    return make(**parameters)


def _check(name: str, parameter: str, value: Scalar, wanted: type) -> None:
    kinds = get_args(wanted) or (wanted,)
    if not any(_is(value, kind) for kind in kinds):
        forms = {int: "a whole number", str: "a text"}
        form = " or ".join(forms.get(kind, "a number") for kind in kinds)
        raise ValueError(f"featurizer {name!r}: {parameter} is {value!r}; wanted {form}")


def _is(value: Scalar, wanted: type) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if wanted is str:
        return isinstance(value, str)
    return whole or (wanted is float and isinstance(value, float))


def from_spec(spec: FeatureSpec) -> Featurizer:
    """The featurizer that computes exactly this spec.

    Weights are looked for where the spec was made, if it says so, and then by their digest. What
    was imported stands for itself: it computes nothing.

    Raises:
        ValueError: This version of the code computes another one under that name, or its weights
            are not to be had.
    """
    if is_imported(spec):
        return Imported(spec)
    settings = dict(spec.parameters)
    if place := places(spec.name):
        settings["weights"] = spec.weights
        settings |= {place: spec.source} if spec.source else {}
    try:
        featurizer = build(spec.name, **settings)
    except MissingWeightsError as error:
        raise MissingWeightsError(f"{spec.fingerprint} cannot be computed: {error}") from None
    if featurizer.spec.digest != spec.digest:
        raise ValueError(
            f"{spec.fingerprint} (version {spec.version}) cannot be computed: this code makes "
            f"{featurizer.spec.fingerprint} (version {featurizer.spec.version}); featurize anew"
        )
    return featurizer


def places(name: str) -> str:
    """The setting of this featurizer that says where its weights lie; empty when it has none."""
    return str(getattr(kind(name), "weights_from", ""))


def is_encoder(name: str) -> bool:
    """Whether this featurizer runs a model of transformers, on a GPU where it is given one."""
    return bool(getattr(kind(name), "takes_gpu", False))


def packages(name: str) -> tuple[str, ...]:
    """The distributions, as pip names them, that this featurizer needs and others do not.

    Where several give the same, all are named, and one is enough.
    """
    return _PACKAGES.get(name, ())


def kind(name: str) -> type[Featurizer]:
    """The class of this name. Raises ValueError when there is none."""
    if name.startswith(PREFIX):
        return Imported
    if name not in KINDS:
        raise ValueError(
            f"there is no featurizer {name!r}{_nearest(name, NAMES)}; there are {', '.join(NAMES)}"
        )
    return KINDS[name]


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
