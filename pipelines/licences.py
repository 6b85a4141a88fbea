"""Licences of the parts that an experiment chose, and whether commerce may use them.

This is a help for whoever reads licences, not advice: what is told is what specs and packages say
of themselves.
"""

import ast
import functools
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from featurizers import catalog
from featurizers.media import codecs
from featurizers.spec import Featurizer
from pipelines.experiment import Experiment, InputError
from pipelines.findings import Finding, State, finding

Verdict: TypeAlias = Literal["free", "copyleft", "restricted", "unknown"]
"""Free for commerce; free with duties towards whoever gets a copy; not for commerce; not known."""

OURS = "fuseline"

_NAME = re.compile(r"[\w.-]+")
_OURS = "featurizers"
CALLED = {"cv2": "opencv-python-headless"}  # packages that are not called as they are imported
_DECODER = "av"
_GPL_PARTS = ("libx264", "libx265")
GPL_NOTE = (
    "the FFmpeg in PyAV's wheel holds {parts}, which are under the GPL: whoever passes on an "
    "environment or an image with that wheel must obey it"
)

_RESTRICTED = re.compile(
    r"non-?\s?commercial|not commercial|\bno commercial|research|personal use|academic"
    r"|commons clause|evaluation|[- ]nc\b|\bnc[- ]",
    re.IGNORECASE,
)
_COPYLEFT = re.compile(r"\bA?GPL|\bGNU (Affero )?General Public", re.IGNORECASE)
_FREE = re.compile(
    r"apache|\bmit\b|\bbsd|\bisc\b|\bmpl|mozilla|\bpsf|python software|unlicense|\bzlib"
    r"|\bcc0|\bcc-by(-sa)?(-\d.*)?$|lgpl|lesser general|hpnd|as the user's data",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something with a licence.

    Attributes:
        what: "featurizer", "model" (that says or places words), "package" or "library".
        name: Of the part.
        streams: The streams that need it.
        licence: As it says itself.
        note: What follows from it.
    """

    what: Literal["featurizer", "model", "package", "library"]
    name: str
    streams: tuple[str, ...]
    licence: str
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether commerce may use it."""
        return judge(self.licence)


def judge(licence: str) -> Verdict:
    """What a licence's own words come to; what is not recognised is unknown."""
    if not licence or licence.lower().startswith("unknown"):
        return "unknown"
    if _RESTRICTED.search(licence):
        return "restricted"
    if _COPYLEFT.search(licence):  # also beside a free one: somebody has to look at which holds
        return "copyleft"
    return "free" if _FREE.search(licence) else "unknown"


def parts_of(featurizers: Mapping[str, Featurizer]) -> list[Part]:
    """Featurizers by stream, with the packages and libraries behind them and the project."""
    own = [
        Part(
            what="featurizer",
            name=each.spec.name,
            streams=(stream,),
            licence=each.spec.licence,
        )
        for stream, each in featurizers.items()
    ]
    needed: dict[str, list[str]] = {name: [] for name in _asked()}
    for stream, each in featurizers.items():
        for package in sorted(_packages(each)):
            needed.setdefault(package, []).append(stream)
    packages = [
        Part(what="package", name=name, streams=tuple(streams), licence=package_licence(name))
        for name, streams in sorted(needed.items())
    ]
    return [*own, *packages, *_libraries(needed.get(_DECODER, []))]


def _asked() -> list[str]:
    """The packages that the project asks for whatever is chosen."""
    try:
        told = importlib.metadata.requires(OURS) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [name[0] for each in told if "extra" not in each and (name := _NAME.match(each))]


def _libraries(streams: Sequence[str]) -> Iterator[Part]:
    """Libraries with licences of their own inside of packages."""
    there = [name for name in _GPL_PARTS if streams and name in codecs(_GPL_PARTS).encoders]
    if streams:
        yield Part(
            what="library",
            name="FFmpeg in PyAV's wheel",
            streams=tuple(streams),
            licence="GPL-2.0-or-later" if there else "LGPL-3.0-or-later",
            note=GPL_NOTE.format(parts=" and ".join(there)) if there else "",
        )


def _packages(featurizer: Featurizer) -> set[str]:
    """The distributions that a featurizer's code imports, wherever in it that is written."""
    known = _distributions()
    modules = imported(type(featurizer).__module__)
    found = {
        known.get(each, [CALLED.get(each, each)])[0]
        for each in modules
        if each not in sys.stdlib_module_names
    }
    return found | ({_DECODER} if featurizer.wants is not None else set())


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    """Installed distributions by what is imported of them; to find them takes a second."""
    return importlib.metadata.packages_distributions()


def imported(module: str) -> set[str]:
    """Top-level names that a module and our own modules behind it import."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        spec = importlib.util.find_spec(current)
        if spec is None or spec.origin is None:
            continue
        names = set(_imports(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))))
        waiting += sorted(each for each in names - seen if each.split(".")[0] == _OURS)
        seen |= names
        found |= {name.split(".")[0] for name in names}
    return found - {_OURS}


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module == _OURS  # what is imported are modules then
            yield from (f"{_OURS}.{each.name}" for each in node.names) if inside else [node.module]


def package_licence(name: str) -> str:
    """What a package's metadata say; a text that begins with "unknown" if they say nothing."""
    try:
        about = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown: the package is not installed"
    told = _first(about.get_all("License-Expression"))
    classified = [
        each.rpartition(" :: ")[2]
        for each in about.get_all("Classifier") or ()
        if each.startswith("License ::")
    ]
    first = _first(about.get_all("License")).strip().partition("\n")[0]
    return told or ", ".join(classified) or first or "unknown: its metadata do not say"


def _first(told: Sequence[str] | None) -> str:
    return told[0] if told else ""


def licences(
    experiment: Experiment | None, *, commercial: bool, accepted: Sequence[str]
) -> Iterator[Finding]:
    """The licences of the chosen parts, or of all that can be built without settings.

    Args:
        experiment: Whose featurizers; None for the catalog's.
        commercial: Whether what is not for commercial use, or may not be, fails.
        accepted: Streams and names of parts whose licence somebody has read and found right.

    Raises:
        InputError: The experiment has no such stream, or the parts none of that name.
    """
    featurizers: dict[str, Featurizer] = {}
    state: State
    for name in catalog.NAMES if experiment is None else experiment.features:
        try:
            built = catalog.build(name) if experiment is None else experiment.featurizer(name)
        except (InputError, ValueError) as error:
            do = "give its weights, and ask again" if commercial else ""
            state = "failed" if commercial and experiment is not None else "warning"
            yield finding("licences", name, state, f"cannot be told: {error}", do)
            continue
        featurizers[name] = built
    models: list[Part] = []
    for name, find in ({} if experiment is None else experiment.listeners()).items():
        try:
            told = find().licence
        except InputError as error:
            do = "give its weights, and ask again" if commercial else ""
            state = "failed" if commercial else "warning"
            yield finding("licences", name, state, f"cannot be told: {error}", do)
            continue
        models.append(Part(what="model", name=name, streams=(name,), licence=told))
    parts = [*models, *parts_of(featurizers)]
    known = {name for part in parts for name in (part.name, *part.streams)}
    if strange := sorted(set(accepted) - known):
        raise InputError(f"--accept {strange[0]}: there is no such part; there are {sorted(known)}")
    yield from (_licence(part, commercial=commercial, accepted=accepted) for part in parts)


def _called(part: Part) -> str:
    return part.streams[0] if part.what == "featurizer" else part.name


def _licence(part: Part, *, commercial: bool, accepted: Sequence[str]) -> Finding:
    what = part.name
    if part.what == "featurizer" and part.streams != (part.name,):
        what = f"{part.streams[0]} ({part.name})"
    own = {part.name, *(part.streams if part.what == "featurizer" else ())}
    if own & set(accepted):
        return finding("licences", what, "ok", part.licence, "accepted by whoever asked")
    match part.verdict:
        case "free":
            return finding("licences", what, "ok", part.licence, part.note)
        case "copyleft":
            return finding("licences", what, "warning", part.licence, part.note)
        case "restricted":
            state: State = "failed" if commercial else "warning"
            return finding("licences", what, state, part.licence, "not for commercial use")
        case "unknown":
            state = "failed" if commercial else "warning"
            do = f"read it, and say so with --accept {_called(part)}" if commercial else "read it"
            return finding("licences", what, state, part.licence, do)
