"""What a process says of its own memory."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LARGE = 300 << 20

TELLS = "from featurizers.memory import peak_bytes; print(peak_bytes())"
FORGETS = f"""
from featurizers.memory import forget_peak, peak_bytes

held = bytearray(b"1") * {LARGE}
print(peak_bytes())
del held
print(peak_bytes())
forget_peak()
print(peak_bytes())
"""


def said(program):
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [int(line) for line in done.stdout.split()]


def test_the_peak_is_not_that_of_whoever_started_the_process():
    held = bytearray(b"1") * LARGE
    (peak,) = said(TELLS)
    assert 1 << 20 < peak < len(held) // 2


def test_the_peak_stays_until_it_is_forgotten():
    full, after, forgotten = said(FORGETS)
    assert min(full, after) > LARGE
    assert forgotten < LARGE // 2
