"""The table of what was done to jobs: shown by `-s`, appended to FUSELINE_JOB_TABLE where set."""

import contextlib
import os
import sys
from pathlib import Path

HEAD = [("case", "what happened", "seconds", "time lost"), ("---",) * 4]


@contextlib.contextmanager
def rows(told):
    """Rows to be added to, under a heading that tells of the cluster."""
    found = []
    yield found
    lines = [f"| {' | '.join(row)} |" for row in [*HEAD, *found]]
    table = "\n".join([f"{told}:", "", *lines, ""])
    sys.stdout.write(f"\n{table}\n")
    if file := os.environ.get("FUSELINE_JOB_TABLE"):
        with Path(file).open("a") as written:
            written.write(f"{table}\n")
