"""Our own packages as a wheel: equal code gives equal bytes, from a checkout or an installation.

Ray (2.60.0) takes a wheel for one that it has by its file name alone, and installs it by pip, with
all that it requires. Where two nodes are on one machine, the second one calls pip on what the first
one has installed, and removes that when pip fails. A wheel of plain Python is installed by
unpacking it, so it is sent as the archive that it is, under a name of its digest.
Held by test_a_job_has_our_code_its_folder_its_variables_and_its_exit_code.
"""

import base64
import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines import HOME

PACKAGES = ("featurizers", "pipelines", "tracking", "training")
SUFFIXES = frozenset({".css", ".html", ".py", ".typed"})
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can tell


@dataclass(frozen=True, slots=True)
class Archive:
    """A file that the cluster unpacks on each node.

    Attributes:
        name: Under which the cluster keeps it; has its digest.
        content: Its bytes.
        digest: sha256 of the bytes, in hex.
    """

    name: str
    content: bytes
    digest: str


def wheel(home: Path = HOME) -> Archive:
    """The packages below a folder as a wheel, named as what is to be unpacked."""
    version = our_version()
    about = f"fuseline-{version}.dist-info"
    files = {
        file.relative_to(home).as_posix(): file.read_bytes()
        for package in PACKAGES
        for file in (home / package).rglob("*")
        if file.suffix in SUFFIXES and "__pycache__" not in file.parts
    }
    files[f"{about}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: fuseline\nVersion: {version}\n".encode()
    )
    files[f"{about}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: fuseline\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{about}/RECORD"] = _record(files, about)
    content = archive(files)
    digest = hashlib.sha256(content).hexdigest()
    return Archive(f"fuseline-{version}-{digest[:16]}.zip", content, digest)


def our_version() -> str:
    """The version that is installed, or 0 where the code runs without."""
    try:
        return importlib.metadata.version("fuseline")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def archive(files: Mapping[str, bytes], executable: frozenset[str] = frozenset()) -> bytes:
    """A zip of some files by name, whose bytes follow from theirs and nothing else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = (0o755 if name in executable else 0o644) << 16
            made.writestr(entry, files[name])
    return buffer.getvalue()


def _record(files: Mapping[str, bytes], about: str) -> bytes:
    def line(name: str) -> str:
        raw = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=")
        return f"{name},sha256={raw.decode()},{len(files[name])}"

    return "\n".join([*map(line, sorted(files)), f"{about}/RECORD,,", ""]).encode()
