"""Clips whose sound and pictures lie apart, from the log lines of the jobs that decoded them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from featurizers.clip import Clip
from featurizers.clocks import Clocks, read_clocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """A clip whose sound and pictures lie apart; media is a file name without its folders.

    Attributes:
        start_s, end_s, sound_s, pictures_s: As of `Clocks`.
        told: A sentence about each that is large.
    """

    key: str
    id: str
    media: str
    start_s: float | None
    end_s: float | None
    sound_s: float | None
    pictures_s: float | None
    told: tuple[str, ...]


def measured(log: Iterable[Mapping[str, Any]]) -> dict[str, Clocks]:
    """The clocks of each clip by key, as they were measured last; what is none is passed over.

    A job that decoded no sound knows less: it does not take the place of one that did.
    """
    found: dict[str, Clocks] = {}
    for line in log:
        told = line.get("clocks", ())
        for each in told if isinstance(told, list | tuple) else ():
            if not isinstance(each, Mapping) or not isinstance(each.get("key"), str):
                continue
            try:
                clocks = read_clocks(each)
            except (ValueError, OverflowError):
                continue
            if clocks.known and clocks.known >= found.get(each["key"], Clocks()).known:
                found[each["key"]] = clocks
    return found


def apart(clip: Clip, media: str, clocks: Clocks) -> Apart | None:
    """What is to be told of a clip; None where its clocks agree."""
    told = clocks.remarks()
    if not told:
        return None
    return Apart(key=clip.key, id=clip.id, media=media, told=tuple(told), **clocks.numbers())
