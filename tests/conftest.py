"""One thread for each process's arithmetic, set before torch and numpy are imported.

The tests' models are so small that threads wait for each other for longer than they compute, and
ranks and workers are processes beside this one: with a thread for each core, tests/test_loop.py
takes several times as long.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
