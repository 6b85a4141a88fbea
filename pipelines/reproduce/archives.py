"""Corpora that lie in open archives: listed with their sizes first, then fetched and unpacked.

A file that was cut short is gone on with where it stands. It is held against the digest that the
archive tells of it before anything is unpacked, and what was unpacked is not fetched again. Of a
mirror the bytes are taken and not the word: its files are held against the archive's own record,
where that can be reached.
"""

import hashlib
import json
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from featurizers.spec import canonical_json
from featurizers.store import publish
from pipelines.experiment import FailedError
from pipelines.fetch import WAIT_S, Answer, BusyError, opened
from pipelines.show import Show

PIECE = 1 << 20
KEPT = ".archive"
"""A folder beside what was unpacked: unfinished files, and a note of each that is finished."""

LISTING_BYTES = 1 << 24
OWN_RECORD_S = 10.0  # whoever names a mirror may have a network that leads nowhere else
TRIES = 5  # without a byte more
PAUSE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """Where a corpus lies.

    Attributes:
        what: The corpus and the archive's own name of it.
        address: Of the archive, which has Zenodo's interface.
        record: The corpus's number there.
        files: A pattern of the names that are wanted; each is a zip file.
        count: How many there are.
        licence: What the archive tells of it.
    """

    what: str
    address: str
    record: str
    files: str
    count: int
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A file of an archive, and the digest that the archive tells: "md5:..." as text."""

    name: str
    address: str
    size: int
    checksum: str


def digested(archive: Archive, mirror: str) -> tuple[list[Listed], str]:
    """The wanted files of an archive, by name, and whose word their digests are.

    Args:
        archive: Which.
        mirror: Where the files are taken from; empty for the archive itself.

    Raises:
        InputError: The mirror is no address of the web.
        FailedError: As `listing`; or the mirror lists other files than the archive.
    """
    if not mirror:
        return listing(archive), "the archive's own record"
    files = listing(archive, mirror)
    try:
        own = {each.name: each for each in listing(archive, wait_s=OWN_RECORD_S)}
    except FailedError as error:
        return files, f"the mirror's own; nothing independent holds them, for {error}"
    for each in files:
        if _is_other(each, own.get(each.name)):
            raise FailedError(
                f"{each.address} is another file than {archive.address} has in record "
                f"{archive.record}: {each.size} bytes with {each.checksum}; choose another mirror"
            )
    held = [replace(each, checksum=own[each.name].checksum) for each in files]
    return held, f"the archive's own record at {archive.address}, not the mirror"


def _is_other(theirs: Listed, own: Listed | None) -> bool:
    """Whether a mirror lists another file than the archive; other kinds of digests may be equal."""
    if own is None or theirs.size != own.size:
        return True
    kinds = {each.checksum.partition(":")[0] for each in (theirs, own)}
    return len(kinds) == 1 and theirs.checksum != own.checksum


def listing(archive: Archive, mirror: str = "", *, wait_s: float = WAIT_S) -> list[Listed]:
    """The wanted files of an archive, as it lists them now, by name.

    Args:
        archive: Which.
        mirror: Another address with the same interface; empty for the archive's own.
        wait_s: How long the server may be silent.

    Raises:
        InputError: The mirror is no address of the web.
        FailedError: The archive cannot be reached, or lists something else.
    """
    record = f"{mirror or archive.address}/api/records/{archive.record}"
    content = bytearray()
    with opened(record, wait_s=wait_s) as answer:
        while piece := answer.read(PIECE):
            content += piece
            if len(content) > LISTING_BYTES:
                break
    try:
        told = json.loads(content)["files"]
        found = [
            Listed(
                name=str(each["key"]),
                address=f"{record}/files/{each['key']}/content",
                size=int(each["size"]),
                checksum=str(each["checksum"]),
            )
            for each in told
            if re.fullmatch(archive.files, str(each["key"]))
        ]
    except (ValueError, LookupError, TypeError):
        raise FailedError(f"{record} is no list of files as the archive gives them") from None
    if len(found) != archive.count:
        raise FailedError(
            f"{record} lists {len(found)} files such as {archive.files}, wanted {archive.count}; "
            f"the archive has changed, fetch the corpus by hand and give its folder as --data"
        )
    for each in found:
        if not re.fullmatch(r"(md5|sha256):[0-9a-f]+", each.checksum) or each.size <= 0:
            raise FailedError(f"{record}: {each.name} has no digest or size that can be checked")
    return sorted(found, key=lambda each: each.name)


def fetch_corpus(archive: Archive, folder: Path, mirror: str, *, yes: bool, show: Show) -> int:
    """Tell what an archive has and how much of it is still to be fetched; then, told so, fetch it.

    Returns:
        How many bytes are still to be fetched: 0 unless only that was to be told.

    Raises:
        InputError: The mirror is no address of the web.
        FailedError: As `listing` and `fetch`.
    """
    files, whose = digested(archive, mirror)
    size, missing = sum(each.size for each in files), bytes_left(files, folder)
    show.say(f"{archive.what}: {len(files)} files, {_gigabytes(size)}")
    show.say(f"address  {mirror or archive.address}/records/{archive.record}")
    show.say(f"digests  {whose}")
    show.say(f"licence  {archive.licence}")
    show.say(f"to       {folder}, where {_gigabytes(missing)} of it are not there yet")
    if left(files, folder) and not yes:
        show.say("to download it, give --yes")
        return missing or size
    with show.counting("download", missing) as done:
        fetch(files, folder, done)
    return 0


def _gigabytes(size: int) -> str:
    return f"{size} bytes" if size < 10**8 else f"{size / 10**9:.1f} GB"


def left(files: Sequence[Listed], folder: Path) -> list[Listed]:
    """Those that are not unpacked yet in a folder."""
    return [each for each in files if not _unpacked(each, folder)]


def bytes_left(files: Sequence[Listed], folder: Path) -> int:
    """How much is still to be fetched for a folder."""
    return sum(
        each.size - min(each.size, _size(_part(each, folder))) for each in left(files, folder)
    )


def fetch(files: Sequence[Listed], folder: Path, done: Callable[[int], None]) -> None:
    """Fetch and unpack what is not there yet; killed anywhere, it goes on when called again.

    Args:
        files: As `listing` tells.
        folder: Where their members go.
        done: Told how many further bytes are there.

    Raises:
        FailedError: A file cannot be had, is another one, is no whole zip file, or there is no room
            on the disk.
    """
    todo = left(files, folder)
    (folder / KEPT).mkdir(parents=True, exist_ok=True)
    _check_room(todo, folder)
    for each in todo:
        part = _part(each, folder)
        _complete(each, part, done)
        _check(each, part)
        _unpack(each, part, folder)


def _check_room(todo: Sequence[Listed], folder: Path) -> None:
    # A zip file of films is as large as they are, and one lies beside its members for a while.
    wanted = bytes_left(todo, folder) + max((each.size for each in todo), default=0)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise FailedError(
            f"{folder}: {wanted} bytes are wanted, and {free} are free; make room or give another "
            f"folder as --data"
        )


def _complete(file: Listed, part: Path, done: Callable[[int], None]) -> None:
    """Fetch what is missing of a file; a connection that breaks is begun again."""
    fruitless = 0
    while (size := _size(part)) < file.size:
        try:
            with opened(file.address, size) as answer:
                _append(answer, part, file.size, done)
        except BusyError:
            raise
        except FailedError:
            if fruitless + 1 >= TRIES:
                raise
        fruitless = 0 if _size(part) > size else fruitless + 1
        if fruitless >= TRIES:
            raise FailedError(
                f"{file.address} ends at byte {size} of {file.size}; what is there is kept, the "
                f"same command goes on from it"
            )
        if fruitless:
            time.sleep(PAUSE_S)


def _append(answer: Answer, part: Path, size: int, done: Callable[[int], None]) -> None:
    with part.open("ab") as kept:
        kept.truncate(answer.begins)
        kept.seek(0, 2)
        while kept.tell() < size and (piece := answer.read(min(PIECE, size - kept.tell()))):
            kept.write(piece)
            done(len(piece))


def _check(file: Listed, part: Path) -> None:
    kind, _, wanted = file.checksum.partition(":")
    # MD5 is what the archive tells; it is held against damage, not against an enemy.
    found = hashlib.new(kind, usedforsecurity=False)
    with part.open("rb") as content:
        while piece := content.read(PIECE):
            found.update(piece)
    if found.hexdigest() != wanted:
        part.unlink()
        raise FailedError(
            f"{file.address} gave {kind} {found.hexdigest()}, and {wanted} is listed; "
            f"nothing of it was kept, run again"
        )


def _unpack(file: Listed, part: Path, folder: Path) -> None:
    """Members appear whole; the note of all of them comes last, and then the zip file goes."""
    try:
        with zipfile.ZipFile(part) as packed:
            members = [each for each in packed.infolist() if not each.is_dir()]
            for each in members:
                _check_member(file, each)
                place, draft = folder / each.filename, folder / KEPT / "member"
                place.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(each) as source, draft.open("wb") as content:
                    shutil.copyfileobj(source, content, PIECE)
                draft.replace(place)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise FailedError(f"{part} cannot be unpacked: {error}") from None
    note = {"file": file.name, "size": file.size, "checksum": file.checksum}
    sizes = {each.filename: each.file_size for each in members}
    publish(_note(file, folder), canonical_json({**note, "members": sizes}))
    part.unlink()


def _check_member(file: Listed, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename)
    outside = path.is_absolute() or ".." in path.parts or KEPT in path.parts
    if outside or "\\" in member.filename:
        raise FailedError(
            f"{file.name} holds {member.filename!r}, which would lie outside the folder"
        )


def _unpacked(file: Listed, folder: Path) -> bool:
    note = _note(file, folder)
    if not note.is_file():
        return False
    told = json.loads(note.read_bytes())
    return bool(told["checksum"] == file.checksum) and all(
        _size(folder / name) == size for name, size in told["members"].items()
    )


def _note(file: Listed, folder: Path) -> Path:
    return folder / KEPT / f"{file.name}.json"


def _part(file: Listed, folder: Path) -> Path:
    return folder / KEPT / f"{file.name}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
