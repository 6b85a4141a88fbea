"""Every featurizer by name: the one table that a new one is written into."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from featurizers.acoustic import LogMel
from featurizers.lexical import HashedWords
from featurizers.skeletal import Numbers
from featurizers.spec import FeatureSpec, Featurizer, Scalar
from featurizers.visual import FaceMotion

KINDS: Mapping[str, type[Featurizer]] = {
    "hashed-words": HashedWords,
    "logmel": LogMel,
    "face-motion": FaceMotion,
    "numbers": Numbers,
}
NAMES = tuple(KINDS)


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
    whole = isinstance(value, int) and not isinstance(value, bool)
    right = isinstance(value, str) if wanted is str else whole
    if not right and not (wanted is float and isinstance(value, float)):
        form = {int: "a whole number", str: "a text"}.get(wanted, "a number")
        raise ValueError(f"featurizer {name!r}: {parameter} is {value!r}; wanted {form}")


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


def kind(name: str) -> type[Featurizer]:
    """The class of this name. Raises ValueError when there is none."""
    if name not in KINDS:
        raise ValueError(
            f"there is no featurizer {name!r}{_nearest(name, NAMES)}; there are {', '.join(NAMES)}"
        )
    return KINDS[name]


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
