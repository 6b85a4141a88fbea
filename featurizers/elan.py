"""ELAN's annotation files (.eaf) to tiers."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.parsers import expat

import numpy as np

from featurizers.clip import BadClipError
from featurizers.estimate import spread
from featurizers.texts import Text
from featurizers.tiers import Span, Tier


def read_elan(text: Text) -> list[Tier]:
    """The tiers of an ELAN file.

    Annotations without times of their own divide that of the annotation that they belong to, and
    time slots without a value lie evenly between those around them; both are marked as estimated.

    Raises:
        BadClipError: "bad_transcript": it is no such XML, or something that it refers to is not
            there. A document type is refused, and with it all entities.
    """
    document = _Document(text)
    slots = _slot_times(text, document.slots)
    spans = {each.id: _aligned(text, each, slots) for each in document.annotations if each.slots}
    _divide(text, document.annotations, spans)
    tiers: dict[str, list[Span]] = {name: [] for name in document.tiers}
    for each in document.annotations:
        tiers[each.tier].append(spans[each.id])
    return [Tier(name, tuple(found)) for name, found in tiers.items()]


@dataclass(slots=True)
class _Annotation:
    """An annotation, with its two time slots or with the annotation that it belongs to."""

    id: str
    tier: str
    line: int
    slots: tuple[str, ...] = ()
    parent: str = ""
    label: str = ""


class _Document:
    """What an ELAN file holds, as it stands there.

    Attributes:
        tiers: Their names.
        slots: The milliseconds of each time slot as they are written; None for one without.
        annotations: Those of all tiers.
    """

    def __init__(self, text: Text) -> None:
        self.tiers: list[str] = []
        self.slots: dict[str, str | None] = {}
        self.annotations: list[_Annotation] = []
        self._text, self._inside = text, ""
        self._parser = parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._data
        try:
            parser.Parse(text.body, True)
        except expat.ExpatError as error:
            raise text.bad(f"no XML: {expat.ErrorString(error.code)}", error.lineno) from None

    def _bad(self, message: str) -> BadClipError:
        return self._text.bad(message, self._parser.CurrentLineNumber)

    def _refuse(self, *_: object) -> None:
        raise self._bad("has a document type, which is refused; save it from ELAN again")

    def _start(self, name: str, given: dict[str, str]) -> None:
        if not self._inside and name != "ANNOTATION_DOCUMENT":
            raise self._bad(f"found the element {name!r}, wanted 'ANNOTATION_DOCUMENT'")
        self._inside = name
        try:
            self._take(name, given)
        except KeyError as missing:
            raise self._bad(f"{name} has no {missing.args[0]}") from None

    def _take(self, name: str, given: dict[str, str]) -> None:
        match name:
            case "HEADER":
                if (units := given.get("TIME_UNITS", "milliseconds")) != "milliseconds":
                    raise self._bad(f"times are in {units}; wanted milliseconds")
            case "TIME_SLOT":
                self.slots[given["TIME_SLOT_ID"]] = given.get("TIME_VALUE")
            case "TIER":
                self.tiers.append(given["TIER_ID"])
            case "ALIGNABLE_ANNOTATION":
                slots = given["TIME_SLOT_REF1"], given["TIME_SLOT_REF2"]
                self._annotate(given["ANNOTATION_ID"], slots, "")
            case "REF_ANNOTATION":
                self._annotate(given["ANNOTATION_ID"], (), given["ANNOTATION_REF"])
            case _:
                pass

    def _annotate(self, name: str, slots: tuple[str, ...], parent: str) -> None:
        if not self.tiers:
            raise self._bad(f"annotation {name!r} lies in no tier")
        line = self._parser.CurrentLineNumber
        self.annotations.append(_Annotation(name, self.tiers[-1], line, slots, parent))

    def _end(self, _: str) -> None:
        self._inside = "between"

    def _data(self, letters: str) -> None:
        if self._inside == "ANNOTATION_VALUE" and self.annotations:
            self.annotations[-1].label += letters


def _slot_times(text: Text, slots: Mapping[str, str | None]) -> dict[str, tuple[float, bool]]:
    """Seconds of each time slot, and whether they are estimated."""
    try:
        known = {at: float(ms) for at, ms in enumerate(slots.values()) if ms is not None}
    except ValueError as error:
        raise text.bad(f"a time slot has no milliseconds: {error}") from None
    if not known:
        return {}
    # A slot at either end without a time has that of the nearest.
    seconds = np.interp(range(len(slots)), list(known), list(known.values())) / 1000
    return {
        name: (time, value is None)
        for (name, value), time in zip(slots.items(), seconds.tolist(), strict=True)
    }


def _aligned(text: Text, each: _Annotation, slots: Mapping[str, tuple[float, bool]]) -> Span:
    for slot in each.slots:
        if slot not in slots:
            raise text.bad(f"there is no time slot {slot!r}, or none has a time", each.line)
    (start, guessed), (end, guessed_too) = (slots[slot] for slot in each.slots)
    return Span(start, end, each.label, guessed or guessed_too)


def _divide(text: Text, annotations: Iterable[_Annotation], spans: dict[str, Span]) -> None:
    """Add the spans of annotations that have their times from another."""
    families: dict[str, dict[str, list[_Annotation]]] = defaultdict(lambda: defaultdict(list))
    for each in annotations:
        if not each.slots:
            families[each.parent][each.tier].append(each)
    known = list(spans)
    for parent in known:  # grows as children become known
        whole = spans[parent]
        for children in families.get(parent, {}).values():
            parts = spread([each.label for each in children], whole.start, whole.end - whole.start)
            guessed = whole.estimated or len(children) > 1
            for each, part in zip(children, parts, strict=True):
                spans[each.id] = Span(part.start, part.end, each.label, guessed)
                known.append(each.id)
    for each in annotations:
        if each.id not in spans:
            raise text.bad(
                f"annotation {each.id!r} belongs to {each.parent!r}, which is not there", each.line
            )
