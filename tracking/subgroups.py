"""The subgroups of two scorecards side by side: the same clips, or the same stream taken away."""

import math
from dataclasses import dataclass

from tracking.parts import Part, Subgroup
from tracking.scorecard import Scorecard

# Differences of sums over clips: what is beyond says nothing.
DECIMALS = 12


@dataclass(frozen=True, slots=True)
class Pair:
    """A metric of candidate and champion on a subgroup.

    Attributes:
        theirs: The champion's; None where its scorecard says nothing of these clips.
        worse_by: How much worse the candidate is, negative where it is better. Infinite where one
            of them has no number, which never wins.
    """

    title: str
    count: int
    ours: float
    theirs: float | None
    worse_by: float


def pairs(metric: str, candidate: Scorecard, champion: Scorecard) -> list[Pair]:
    """Each subgroup of the candidate beside the champion.

    Groups of speakers, and patterns of missing streams where there are several, are found by their
    clips, whatever the champion lacks of them. A stream that is taken away is compared where both
    have it: what it is worth to a model that never reads it cannot be asked.
    """
    theirs: list[Part | Subgroup] = [*champion.as_found, *champion.by_group]
    known = {part.clips: part for part in theirs}
    patterns = candidate.as_found if len(candidate.as_found) > 1 else ()
    asked = {part.streams: part for part in champion.as_asked}
    beside: list[tuple[str, Part | Subgroup, Part | Subgroup | None]] = [
        *((f"{each.kind} {each.name}", each, known.get(each.clips)) for each in candidate.by_group),
        *((f"lacking {_streams(each)}", each, known.get(each.clips)) for each in patterns),
        *(
            (f"without {_streams(each)}", each, asked[each.streams])
            for each in candidate.as_asked
            if each.streams in asked
        ),
    ]
    return [
        _pair(metric, title, ours, theirs, lower=candidate.better[metric] == "lower")
        for title, ours, theirs in beside
    ]


def _pair(
    metric: str, title: str, ours: Part | Subgroup, theirs: Part | Subgroup | None, *, lower: bool
) -> Pair:
    own = ours.metrics[metric]
    other = None if theirs is None else theirs.metrics[metric]
    if other is None or not math.isfinite(other):
        worse_by = -math.inf
    elif not math.isfinite(own):
        worse_by = math.inf
    else:
        worse_by = round(own - other if lower else other - own, DECIMALS)
    return Pair(title, ours.count, own, other, worse_by)


def _streams(part: Part) -> str:
    return ", ".join(part.streams) or "nothing"
