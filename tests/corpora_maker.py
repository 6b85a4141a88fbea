"""Small folders laid out as published corpora are, and what is read of them."""

import numpy as np

from pipelines.corpora import formats
from tests.media_maker import tone, wav

SILENCE = wav(tone(100, 0.5))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


def put(root, *names, content=SILENCE):
    """Files of equal content; a format says what they are by their names alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(name, root, **options):
    """Rows by id, and notes as (kind, clip)."""
    made = formats.read(name, root, formats.options_of(name, options, root, root))
    rows = {row["id"]: row for row in made.rows}
    assert len(rows) == len(made.rows)
    return rows, sorted((note.kind, note.clip) for note in made.notes)


WORDS = ("word",)


def notes(name, root, **options):
    """The notes alone, whole."""
    return formats.read(name, root, formats.options_of(name, options, root, root)).notes


def csd(path, root, videos, dims=()):
    """A computational sequence of the CMU SDK: values and intervals by video."""
    import json

    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group(f"{root}/data")
        for video, (values, intervals) in videos.items():
            each = data.create_group(video)
            each["features"] = np.array(values, dtype="S32" if dims == WORDS else np.float32)
            each["intervals"] = np.array(intervals, dtype=np.float32)
        told = file.create_group(f"{root}/metadata")
        if dims:
            told.create_dataset("dimension names", (1,), dtype=h5py.string_dtype())
            told["dimension names"][0] = json.dumps(list(dims))
