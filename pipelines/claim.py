"""Who may write into a run's folder: the newest start of a command, and of it the newest rank 0.

A killed command may leave ranks behind that train on, and so may a machine that is given up. When
the run goes on elsewhere they find out before they give anything in the folder its name, and end.
"""

import secrets
from collections.abc import Callable
from pathlib import Path

from featurizers.store import publish
from training.session import SupersededError

OWNER = "owner"


def taken_over(folder: Path) -> str:
    """Take a run's folder from whoever was started before.

    Returns:
        The word by which ranks of this start `claim` the folder.
    """
    start = secrets.token_hex(8)
    publish(folder / OWNER, start.encode())
    return start


def claim(folder: Path, start: str) -> Callable[[], None]:
    """Take a run's folder from ranks of the same start, and say whether it still is one's own.

    Args:
        folder: The run's.
        start: What `taken_over` gave; empty where nobody took it over.

    Returns:
        Raises SupersededError once the folder is somebody else's.

    Raises:
        SupersededError: It is another start's already.
    """
    file = folder / OWNER

    def owner() -> str:
        return file.read_text() if file.is_file() else ""

    def hold() -> None:
        if owner() != mine:
            raise _superseded(folder)

    if owner().partition(" ")[0] != start:
        raise _superseded(folder)
    mine = f"{start} {secrets.token_hex(8)}"
    publish(file, mine.encode())
    return hold


def _superseded(folder: Path) -> SupersededError:
    return SupersededError(
        f"{folder}: another start of the command trains this run now; these ranks end, and write "
        f"nothing more into it"
    )
