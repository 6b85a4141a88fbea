"""One clip as a page: pictures, sound, words and features on one axis of time."""

from collections.abc import Sequence
from dataclasses import dataclass

from featurizers.clocks import Clocks
from featurizers.spec import Feature
from pipelines.pages import Rows, Table, lanes, render
from pipelines.pages.units import amount, span
from pipelines.peek import ENVELOPE_HZ, Gap, Peek, Pictures, Shown, Sound

WORDS = 2000  # on the axis
LISTED = 500  # in the table
GAPS = 500

_ABSENT = "absent: the clip has no such modality"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A column on the page.

    Attributes:
        about: What it is, in a few words.
        trouble: Why there is nothing to be seen; empty when there is.
        bad: Whether that is a fault.
        note: Damage that was passed over, and the like.
    """

    name: str
    about: str
    trouble: str
    bad: bool
    note: str
    gaps: Sequence[lanes.Piece]
    blocks: Sequence[lanes.Block]


def page(made: Peek) -> str:
    """The clip as one HTML file; equal clips give equal bytes."""
    words = made.clip.words or ()
    spoken = lanes.spoken(words[:WORDS], made.seconds)
    return render(
        "peek.html",
        made=made,
        tiles=_tiles(made),
        problems=_problems(made),
        ticks=lanes.ticks(made.seconds),
        pictures=_pictures(made.pictures, made.seconds),
        sound=_sound(made.sound, made.seconds),
        words=spoken,
        rows=1 + max((each.row for each in spoken if each.row is not None), default=0),
        left_out=max(0, len(words) - WORDS),
        estimated=any(word.estimated for word in words),
        columns=[_lane(column, made.seconds) for column in made.columns],
        scales=[lanes.colours(signed=signed) for signed in (False, True)],
        clocks=Table("Clocks of sound and pictures", _clock_rows(made.clocks)),
        facts=Table("Columns", [_facts(column) for column in made.columns]),
        word_table=_word_table(made),
    )


def sentences(made: Peek) -> list[str]:
    """What a terminal says of the clip."""
    long = span(made.clip.seconds or None) or "an unknown time"
    said = [f"{made.clip.id}: {long} of {made.clip.media}"]
    for column in made.columns:
        there = "sample" if column.feature is None else f"sample of {_steps(column.feature)}"
        said.append(f"{column.stream}: {_trouble(column) or there}{_note(column)}")
    return [*said, *_problems(made)]


def _note(column: Shown) -> str:
    return f" ({column.message})" if column.state == "sample" and column.message else ""


def _steps(feature: Feature) -> str:
    count = len(feature.values)
    return "1 step" if count == 1 else f"{amount(count)} steps"


def _problems(made: Peek) -> list[str]:
    tracks: dict[str, Sound | Pictures | Shown] = {"sound": made.sound, "pictures": made.pictures}
    lost = [
        f"{name}: {_trouble(track)}"
        for name, track in tracks.items()
        if track.state not in ("sample", "absent")
    ]
    return [*made.notes, *lost, *([] if made.clocks is None else made.clocks.remarks())]


def _trouble(track: Sound | Pictures | Shown) -> str:
    """Why there is nothing to be seen; empty when there is."""
    if track.state == "sample":
        return ""
    if track.state == "absent":
        return _ABSENT
    told = f"{track.state}: {track.fault}" if track.fault else str(track.state)
    return f"{told}: {track.message}" if track.message else told


def _tiles(made: Peek) -> list[tuple[str, str]]:
    clip = made.clip
    labels = {
        name: ", ".join(value) if isinstance(value, tuple) else str(value)
        for name, value in clip.labels.items()
    }
    whole = clip.start == 0 and clip.end is None
    end = "its end" if clip.end is None else f"{clip.end:g} s"
    states = [column.state for column in made.columns]
    return [
        ("long", span(clip.seconds or None) or "unknown"),
        ("of the media", "" if whole else f"{clip.start:g} s to {end}"),
        ("media", clip.media),
        *sorted(labels.items()),
        ("split", clip.split or ""),
        ("speaker", clip.speaker or ""),
        ("words", "" if clip.words is None else amount(len(clip.words))),
        ("columns with a sample", f"{states.count('sample')} of {len(states)}"),
    ]


def _pieces(gaps: Sequence[Gap], seconds: float) -> list[lanes.Piece]:
    return [lanes.placed(start, end, seconds) for start, end in gaps[:GAPS]]


def _pictures(pictures: Pictures, seconds: float) -> dict[str, object]:
    return {
        "trouble": _trouble(pictures),
        "bad": pictures.state != "absent",
        "note": pictures.message if pictures.state == "sample" else "",
        "gaps": _pieces(pictures.gaps, seconds),
        "shown": [
            {
                "piece": lanes.placed(float(time[0]), float(time[1]), seconds),
                "uri": lanes.picture(frame),
                "at": f"{(time[0] + time[1]) / 2:.2f} s",
            }
            for time, frame in zip(pictures.times, pictures.frames, strict=True)
        ],
    }


def _sound(sound: Sound, seconds: float) -> dict[str, object]:
    return {
        "trouble": _trouble(sound),
        "bad": sound.state != "absent",
        "note": sound.message if sound.state == "sample" else "",
        "gaps": _pieces(sound.gaps, seconds),
        "wave": lanes.wave(sound.lows, sound.highs, ENVELOPE_HZ, seconds, sound.gaps),
    }


def _lane(column: Shown, seconds: float) -> Lane:
    spec, feature = column.spec, column.feature
    rate = "by event" if not spec.rate_hz else f"{amount(spec.rate_hz)} steps/s"
    steps = "" if feature is None else f"{_steps(feature)}, "
    return Lane(
        name=column.stream,
        about=f"{steps}{rate}, {amount(spec.width)} dims",
        trouble=_trouble(column),
        bad=column.state != "absent",
        note=column.message if column.state == "sample" else "",
        gaps=_pieces(column.gaps, seconds),
        blocks=[] if feature is None else lanes.blocks(feature, spec.dims, seconds),
    )


def _facts(column: Shown) -> dict[str, object]:
    feature = column.feature
    there = feature is not None and feature.times.size
    return {
        "column": column.stream,
        "state": column.state,
        "fault": column.fault or "",
        "steps": 0 if feature is None else len(feature.values),
        "from": f"{feature.times[:, 0].min():.3f} s" if there and feature else "",
        "to": f"{feature.times[:, 1].max():.3f} s" if there and feature else "",
        "gaps": len(column.gaps),
        "message": column.message,
        "folder": column.spec.fingerprint,
    }


def _clock_rows(clocks: Clocks | None) -> Rows:
    if clocks is None:
        return []
    names = {
        "start_s": "the sound begins later than the pictures by",
        "end_s": "the sound ends later than the pictures by",
        "sound_s": "the sound's times ran ahead of its samples by",
        "pictures_s": "the pictures' times ran ahead of their number by",
    }
    return [
        {"measured": names[name], "found": "unknown" if value is None else f"{value:.3f} s"}
        for name, value in clocks.numbers().items()
    ]


def _word_table(made: Peek) -> Table:
    words = made.clip.words or ()
    rows: Rows = [
        {
            "word": word.text,
            "from": f"{word.start:.3f} s",
            "to": f"{word.end:.3f} s",
            "confidence": "" if word.confidence is None else f"{word.confidence:.2f}",
            "times": "estimated" if word.estimated else "measured",
        }
        for word in words[:LISTED]
    ]
    left = len(words) - LISTED
    note = f"{amount(left)} more are left out; --json has all of them." if left > 0 else ""
    return Table("Words", rows, note)
