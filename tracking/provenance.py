"""What code and which installation made something."""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path


def code_digest(packages: Sequence[Path]) -> str:
    """sha256 in hex over all .py files below some package folders: relative names and bytes.

    Args:
        packages: Folders such as `.../training`; their own names count, where they lie does not.

    Raises:
        FileNotFoundError: A folder without a .py file, so that a wrong path is no empty digest.
    """
    digest = hashlib.sha256()
    for package in sorted(packages, key=lambda folder: folder.name):
        files = sorted(package.rglob("*.py"), key=lambda file: file.relative_to(package).as_posix())
        if not files:
            raise FileNotFoundError(f"{package} has no .py files; a package folder was wanted")
        for file in files:
            content = file.read_bytes()
            name = f"{package.name}/{file.relative_to(package).as_posix()}"
            # The length keeps a name and the bytes after it from running into each other.
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def git_commit(folder: Path) -> str:
    """The commit that is checked out, with "-dirty" when files differ; "" outside a repository."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return ""
    return f"{commit}-dirty" if _git(folder, "status", "--porcelain") else commit


def versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions of distributions; those that are not installed are left out."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, str]:
    """Plain facts about this interpreter and machine."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count() or 0),
    }


def _git(folder: Path, *words: str) -> str:
    """What git prints; nothing when git is absent or refuses."""
    program = shutil.which("git")
    if program is None:
        return ""
    command = [program, "-C", str(folder), *words]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no user text
    return answer.stdout.strip() if answer.returncode == 0 else ""
