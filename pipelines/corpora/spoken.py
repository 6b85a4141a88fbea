"""Words with times that a corpus has in a form of its own, kept in one that is read everywhere."""

import json
from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

from pipelines.corpora.gathering import Gathering

Spoken: TypeAlias = tuple[str, float, float]
"""A word, and its start and end in seconds of the media."""


def keep(gathering: Gathering, name: str, words: Sequence[Spoken]) -> str:
    """The cell `transcript_file` for words, of which a file is written beside the table."""
    file = f"words/{name}.json"
    gathering.read.files.setdefault(file, partial(as_json, words))
    return file


def as_json(words: Sequence[Spoken]) -> bytes:
    """Words as Whisper writes them."""
    said = [{"word": text, "start": start, "end": end} for text, start, end in words]
    text = " ".join(word for word, _, _ in words)
    span = {"start": words[0][1], "end": words[-1][2]} if words else {}
    segments = [{**span, "text": text, "words": said}] if words else []
    return json.dumps({"segments": segments}, ensure_ascii=False).encode()
