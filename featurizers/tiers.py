"""Transcripts in tiers: which of them has the words."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featurizers.clip import Word
from featurizers.estimate import spread
from featurizers.texts import Text

WORD_TIERS = ("words", "word", "wrd", "ort", "orthography", "tokens", "token")
"""Parts of the names of tiers of words, the likeliest first: "words", "Ann - words", "ORT-MAU"."""

OTHER_TIERS = frozenset(
    (
        *("phones", "phone", "phonemes", "phoneme", "phns", "phn", "sampa", "ipa", "kan", "mau"),
        *("segments", "segment", "segs", "seg", "syllables", "syllable", "syl"),
        *("lemmas", "lemma", "pos", "tags", "tag", "tones", "tone", "breaks"),
        *("gestures", "gesture", "gaze", "comments", "comment", "notes", "note"),
        *("translations", "translation", "glosses", "gloss", "noises", "noise", "events", "event"),
    )
)
"""Parts of the names of tiers that are not what was said, or not in words."""

MOST_TIERS = 256
MOST_TOLD = 16

SILENCES = frozenset(
    (
        *("sil", "sp", "pau", "h#", "#", "_", "<sil>", "<sp>", "<eps>", "<p>", "<p:>"),
        *("<s>", "</s>", "!sil", "!enter", "!exit", "<silence>", "[silence]", "(silence)"),
        *("sent-start", "sent-end"),
    )
)


@dataclass(frozen=True, slots=True)
class Span:
    """What a tier says of a span of time, in seconds."""

    start: float
    end: float
    label: str
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Tier:
    """A named row of spans: a speaker's words, their phones, a translation ..."""

    name: str
    spans: tuple[Span, ...]


def is_said(label: str) -> bool:
    """Whether a label says something, and not that there is silence."""
    return bool(label.strip()) and label.strip().lower() not in SILENCES


def words_of_spans(spans: Iterable[Span]) -> list[Word]:
    """The words of labels; those of one label share its span, marked as estimated."""
    words: list[Word] = []
    for span in spans:
        if is_said(span.label):
            found = spread(span.label.split(), span.start, max(0.0, span.end - span.start))
            alone = len(found) == 1 and not span.estimated
            words += [replace(word, estimated=not alone) for word in found]
    return words


def words_of_tiers(text: Text, tiers: Sequence[Tier], wanted: str | None) -> list[Word]:
    """The words of the tiers that have them.

    These are, in this order of preference:

    1. the tier that was asked for by name;
    2. all tiers with a name such as "words", "Ann - words" or "ORT-MAU" (`WORD_TIERS`);
    3. of the tiers whose labels mostly are single words the one that has most of them, and of the
       others, those of single words first, each that mostly speaks while none of the taken ones
       does: other speakers take turns, while layers that say the same (words, lemmas, sentences)
       lie over each other.

    Tiers with a name such as "phones" or "translation" (`OTHER_TIERS`) are taken only when asked
    for. Words of one label share its span, marked as estimated.

    Raises:
        BadClipError: "bad_transcript": there is no such tier, none to be taken, or too many.
    """
    names = ", ".join(repr(tier.name) for tier in tiers[:MOST_TOLD]) or "none"
    if wanted is None and len(tiers) > MOST_TIERS:
        raise text.bad(f"{len(tiers)} tiers; more than {MOST_TIERS} want #NAME of one to be taken")
    if wanted is not None:
        chosen = [tier for tier in tiers if tier.name == wanted]
        if not chosen:
            raise text.bad(f"there is no tier {wanted!r}; there are {names}")
    else:
        chosen = _chosen([tier for tier in tiers if not _is_other(_parts(tier.name))])
        if tiers and not chosen:
            raise text.bad(f"no tier looks like one of words; there are {names}; add #NAME of one")
    return words_of_spans(span for tier in chosen for span in tier.spans)


def _chosen(tiers: Sequence[Tier]) -> list[Tier]:
    whole = [
        replace(tier, spans=tuple(s for s in tier.spans if is_said(s.label))) for tier in tiers
    ]
    said = [tier for tier in whole if tier.spans]
    for part in WORD_TIERS:
        if named := [tier for tier in said if part in _parts(tier.name)]:
            return named
    return _apart(said) or whole


def _is_other(parts: set[str]) -> bool:
    return bool(parts & OTHER_TIERS) and not parts & set(WORD_TIERS)


def _parts(name: str) -> set[str]:
    return set(re.split(r"[\W_]+", name.lower()))


def _rank(tier: Tier) -> tuple[bool, int]:
    """Tiers of single words come before others, those of many words before those of few."""
    counts = [len(span.label.split()) for span in tier.spans]
    return 2 * counts.count(1) < len(counts), -sum(counts)


def _apart(tiers: Sequence[Tier]) -> list[Tier]:
    """The tier that ranks first, and those which mostly speak while none of the taken ones does."""
    taken: list[int] = []
    over: list[Span] = []
    for at in sorted(range(len(tiers)), key=lambda at: _rank(tiers[at])):
        spans = tiers[at].spans
        length = sum(span.end - span.start for span in spans)
        if not over or 2 * _shared(spans, over) < length:
            taken.append(at)
            over += spans
    return [tiers[at] for at in sorted(taken)]


def _shared(spans: Sequence[Span], others: Sequence[Span]) -> float:
    """Seconds of spans during which one of the others lasts."""
    rising = np.array(sorted((span.start, span.end) for span in others))
    ends = np.maximum.accumulate(rising[:, 1])
    begins = np.maximum(rising[:, 0], np.concatenate([rising[:1, 0], ends[:-1]]))
    edges = np.stack([begins, np.maximum(begins, ends)], axis=1)
    # How long others have lasted up to each edge.
    lasted = np.cumsum(np.diff(edges.ravel(), prepend=edges[0, 0]) * ([0, 1] * len(edges)))
    own = np.array([[span.start, span.end] for span in spans])
    return float(np.diff(np.interp(own, edges.ravel(), lasted)).sum())
