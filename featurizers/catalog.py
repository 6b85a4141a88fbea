"""Every featurizer by name. A name without a case below is a type error."""

import difflib
import inspect
from typing import Literal, TypeAlias, assert_never, get_args

from featurizers.acoustic import LogMel
from featurizers.lexical import HashedWords
from featurizers.spec import Featurizer, FeatureSpec, Scalar
from featurizers.visual import FaceMotion

Name: TypeAlias = Literal["hashed-words", "logmel", "face-motion"]
NAMES: tuple[Name, ...] = get_args(Name)


def build(name: str, **parameters: Scalar) -> Featurizer:
    """The featurizer of this name with these settings.

    Raises:
        ValueError: No featurizer has that name, no setting has that name, or a value is out of
            range.
    """
    kind = _kind(name)
    known = list(inspect.signature(kind.__init__).parameters)[1:]
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(
                f"featurizer {name!r} has no setting {parameter!r}{_nearest(parameter, known)}; "
                f"it has {', '.join(known)}"
            )
    try:
        featurizer: Featurizer = kind(**parameters)
    except TypeError as error:
        raise ValueError(f"featurizer {name!r}: {parameters}: {error}") from None
    return featurizer


def from_spec(spec: FeatureSpec) -> Featurizer:
    """The featurizer that computes exactly this spec.

    Raises:
        ValueError: This version of the code computes another one under that name.
    """
    featurizer = build(spec.name, **spec.parameters)
    if featurizer.spec.digest != spec.digest:
        raise ValueError(
            f"{spec.fingerprint} (version {spec.version}) cannot be computed: this code makes "
            f"{featurizer.spec.fingerprint} (version {featurizer.spec.version}); featurize anew"
        )
    return featurizer


def _kind(name: str) -> type[HashedWords] | type[LogMel] | type[FaceMotion]:
    known = next((each for each in NAMES if each == name), None)
    match known:
        case "hashed-words":
            return HashedWords
        case "logmel":
            return LogMel
        case "face-motion":
            return FaceMotion
        case None:
            raise ValueError(
                f"there is no featurizer {name!r}{_nearest(name, NAMES)}; "
                f"there are {', '.join(NAMES)}"
            )
        case _:
            assert_never(known)


def _nearest(word: str, known: "tuple[str, ...] | list[str]") -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
