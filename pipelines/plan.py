"""Which clip lies in which shard. Pure, append-only, decided by keys and durations alone."""

import hashlib
import heapq
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from featurizers.clip import Clip
from featurizers.spec import canonical_json

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a clip lies; `generation` counts the ingests that dealt new clips."""

    shard: int
    position: int
    key: str
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The most that a shard may hold."""

    clips: int = 128
    seconds: float = 20 * 60.0


def deal(places: Sequence[Place], clips: Sequence[Clip], room: Room) -> list[Place]:
    """The plan with the clips that it did not have yet dealt into new shards.

    Clips cut from one source lie together, sources are balanced by duration. What was dealt before
    stays where it is. The result depends on the set of clips, not on their order.

    Args:
        places: The plan so far.
        clips: All clips of the dataset, those of the plan among them.
        room: The size of a shard.

    Returns:
        The whole plan, sorted by shard and position.
    """
    known = {place.key for place in places}
    new = [clip for clip in clips if clip.key not in known]
    if not new:
        return sorted(places)
    first = max((place.shard for place in places), default=-1) + 1
    generation = max((place.generation for place in places), default=-1) + 1
    dealt = [
        Place(first + number, position, key, generation)
        for number, keys in enumerate(_shards(_groups(new, room), room))
        for position, key in enumerate(keys)
    ]
    return sorted([*places, *dealt])


def by_shard(places: Sequence[Place], clips: Mapping[str, T]) -> dict[int, list[T]]:
    """The clips of each shard in the plan's order, without those that left the table.

    Args:
        places: The plan.
        clips: Clips by key, or whatever stands for them.
    """
    shards: dict[int, list[T]] = defaultdict(list)
    for place in sorted(places):
        if place.key in clips:
            shards[place.shard].append(clips[place.key])
    return dict(shards)


def digest(places: Sequence[Place]) -> str:
    """sha256 of a plan."""
    rows = [[place.shard, place.position, place.key] for place in sorted(places)]
    return hashlib.sha256(canonical_json(rows)).hexdigest()


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    keys: tuple[str, ...]
    seconds: float


def _groups(clips: Sequence[Clip], room: Room) -> list[_Group]:
    """Clips by source; a source that is too large for one shard is cut, in the order of time."""
    sources: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        # The digest, not the path: moving files must not change the plan.
        sources[clip.media_digest or clip.key].append(clip)
    groups: list[_Group] = []
    for name, members in sources.items():
        ordered = sorted(members, key=lambda clip: (clip.start, clip.key))
        for number, part in enumerate(_cut(ordered, room)):
            keys = tuple(clip.key for clip in part)
            groups.append(_Group(f"{name}/{number:06d}", keys, sum(c.seconds for c in part)))
    return groups


def _cut(clips: Sequence[Clip], room: Room) -> list[list[Clip]]:
    parts: list[list[Clip]] = [[]]
    seconds = 0.0
    for clip in clips:
        if parts[-1] and (len(parts[-1]) >= room.clips or seconds + clip.seconds > room.seconds):
            parts.append([])
            seconds = 0.0
        parts[-1].append(clip)
        seconds += clip.seconds
    return parts


def _shards(groups: Sequence[_Group], room: Room) -> list[list[str]]:
    """As few balanced shards as it takes: the next larger number when a group finds no room."""
    ordered = sorted(groups, key=lambda group: (-group.seconds, min(group.keys)))
    total = sum(group.seconds for group in groups)
    count = sum(len(group.keys) for group in groups)
    wanted = max(1, math.ceil(total / room.seconds), math.ceil(count / room.clips))
    while (shards := _dealt(ordered, wanted, room)) is None:
        wanted += max(1, wanted // 16)
    return [sorted(keys) for keys in shards if keys]


def _dealt(ordered: Sequence[_Group], wanted: int, room: Room) -> list[list[str]] | None:
    """Longest first, each into the emptiest shard that has room; None when one finds none."""
    shards: list[list[str]] = [[] for _ in range(wanted)]
    heap = [(0.0, number) for number in range(wanted)]
    for group in ordered:
        full: list[tuple[float, int]] = []
        while heap and not _fits(group, shards[heap[0][1]], heap[0][0], room):
            full.append(heapq.heappop(heap))
        if not heap:
            return None
        seconds, number = heapq.heappop(heap)
        shards[number] += group.keys
        for entry in (*full, (seconds + group.seconds, number)):
            heapq.heappush(heap, entry)
    return shards


def _fits(group: _Group, keys: Sequence[str], seconds: float, room: Room) -> bool:
    if not keys:
        return True
    return len(keys) + len(group.keys) <= room.clips and seconds + group.seconds <= room.seconds
