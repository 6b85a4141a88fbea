"""A corpus of an open archive is fetched in parts, goes on where it was cut, and is checked."""

import errno
import hashlib
import http.server
import io
import json
import re
import zipfile
from dataclasses import replace

import pytest

from pipelines.experiment import FailedError, InputError
from pipelines.reproduce import archives
from pipelines.reproduce.archives import Archive, bytes_left, digested, fetch, left, listing
from pipelines.reproduce.protocols import PROTOCOLS
from tests.web_server import Silent, serving

ARCHIVE = Archive(
    what="a corpus",
    address="",
    record="7",
    files=r"Actor_\d\.zip",
    count=2,
    licence="CC BY",
)


def packed(members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as made:
        for name, text in members.items():
            made.writestr(name, text)
    return content.getvalue()


class Web:
    """What is served, what was asked for, and after how many bytes an answer is cut off."""

    def __init__(self):
        self.files = {
            "Actor_1.zip": packed({"Actor_1/a.mp4": b"a" * 5000, "Actor_1/b.mp4": b"b" * 10}),
            "Actor_2.zip": packed({"Actor_2/c.mp4": b"c" * 3000}),
        }
        self.told = dict(self.files)
        self.asked, self.cut, self.ranges = [], None, True
        self.address = ""
        self.own = None  # what the archive itself has, of which this is a mirror

    def record(self, told=None):
        listed = [
            {"key": name, "size": len(bytes_), "checksum": f"md5:{md5(bytes_)}"}
            for name, bytes_ in (told or self.told).items()
        ]
        return json.dumps({"files": [*listed, {"key": "readme.txt", "size": 1, "checksum": "x"}]})

    def answer(self, path, begin):
        if path == "/api/records/7":
            return 200, self.record().encode()
        if path == "/own/api/records/7" and self.own is not None:
            return 200, self.record(self.own).encode()
        name = re.fullmatch(r"/api/records/7/files/(.+)/content", path)
        if name is None or name[1] not in self.files:
            return 404, b""
        content = self.files[name[1]]
        return (206, content[begin:]) if begin and self.ranges else (200, content)


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def web(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(archives, "PAUSE_S", 0.0)
    found = Web()

    class Handler(Silent, http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))
            begin = int(asked[1])
            status, content = found.answer(self.path, begin)
            if self.path.endswith("content"):
                found.asked.append((self.path.split("/")[-2], begin))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            short = found.cut is not None and self.path.endswith("content")
            self.wfile.write(content[: found.cut] if short else content)

    with serving(Handler) as found.address:
        yield found


def there(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.mp4")
        if archives.KEPT not in path.parts
    }


WHOLE = {
    "Actor_1/a.mp4": b"a" * 5000,
    "Actor_1/b.mp4": b"b" * 10,
    "Actor_2/c.mp4": b"c" * 3000,
}


def test_files_are_listed_with_their_sizes_fetched_and_unpacked_once(web, tmp_path):
    files = listing(ARCHIVE, web.address)
    assert [(each.name, each.size) for each in files] == [
        (name, len(content)) for name, content in web.files.items()
    ]
    assert bytes_left(files, tmp_path) == sum(map(len, web.files.values()))
    done = []
    fetch(files, tmp_path, done.append)
    assert there(tmp_path) == WHOLE
    assert sum(done) == sum(map(len, web.files.values()))
    assert left(files, tmp_path) == []
    assert bytes_left(files, tmp_path) == 0
    assert list(tmp_path.rglob("*.part")) == []
    fetch(files, tmp_path, done.append)
    assert len(web.asked) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_goes_on_where_it_was(web, tmp_path, ranges):
    web.cut, web.ranges = 2000, ranges
    files = listing(ARCHIVE, web.address)
    if ranges:
        fetch(files, tmp_path, lambda count: None)
        assert there(tmp_path) == WHOLE
        begins = [begin for name, begin in web.asked if name == "Actor_1.zip"]
        assert begins == list(range(0, len(web.files["Actor_1.zip"]), 2000))
        return
    # A server without ranges begins anew each time, and what it gives is never whole.
    with pytest.raises(FailedError, match=r"ends at byte 2000 of .* the same command goes on"):
        fetch(files, tmp_path, lambda count: None)
    web.cut = None
    fetch(files, tmp_path, lambda count: None)
    assert there(tmp_path) == WHOLE


def test_a_killed_fetch_goes_on_from_its_bytes_and_unpacks_only_what_is_missing(web, tmp_path):
    files = listing(ARCHIVE, web.address)

    def killed(count):
        if there(tmp_path):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(files, tmp_path, killed)
    assert [each.name for each in left(files, tmp_path)] == ["Actor_2.zip"]
    part = tmp_path / archives.KEPT / "Actor_2.zip.part"
    part.write_bytes(web.files["Actor_2.zip"][:100])
    assert bytes_left(files, tmp_path) == len(web.files["Actor_2.zip"]) - 100
    fetch(files, tmp_path, lambda count: None)
    assert web.asked[-1] == ("Actor_2.zip", 100)
    assert there(tmp_path) == WHOLE
    (tmp_path / "Actor_1/b.mp4").unlink()
    assert [each.name for each in left(files, tmp_path)] == ["Actor_1.zip"]


def test_another_file_is_told_and_nothing_of_it_unpacked(web, tmp_path):
    files = listing(ARCHIVE, web.address)
    web.files["Actor_1.zip"] = bytes(len(web.files["Actor_1.zip"]))
    with pytest.raises(FailedError, match=r"gave md5 .* is listed; nothing of it"):
        fetch(files, tmp_path, lambda count: None)
    assert there(tmp_path) == {}
    assert list(tmp_path.rglob("*.part")) == []


@pytest.mark.parametrize("name", ["../out.mp4", "/out.mp4", f"{archives.KEPT}/x", "a\\b"])
def test_a_member_that_would_lie_elsewhere_is_refused(web, tmp_path, name):
    web.files["Actor_1.zip"] = web.told["Actor_1.zip"] = packed({name: b"x"})
    folder = tmp_path / "in"
    with pytest.raises(FailedError, match="which would lie outside the folder"):
        fetch(listing(ARCHIVE, web.address), folder, lambda count: None)
    assert list(tmp_path.iterdir()) == [folder]
    assert there(folder) == {}


def test_a_mirror_s_files_are_held_against_the_archive_s_own_record(web, tmp_path):
    archive = replace(ARCHIVE, address=f"{web.address}/own")
    files, whose = digested(archive, web.address)
    assert files == listing(archive, web.address)
    assert whose.startswith("the mirror's own; nothing independent holds them, for ")
    assert "/own/api/records/7 cannot be had: Not Found" in whose
    web.own = dict(web.files)
    held, whose = digested(archive, web.address)
    assert (held, whose) == (
        files,
        f"the archive's own record at {archive.address}, not the mirror",
    )
    # Of equal size: told at once where the mirror says so, and from the bytes where it lies.
    web.files["Actor_2.zip"] = bytes(len(web.files["Actor_2.zip"]))
    with pytest.raises(FailedError, match=r"gave md5 .* is listed"):
        fetch(held, tmp_path, lambda count: None)
    assert there(tmp_path).keys() == {"Actor_1/a.mp4", "Actor_1/b.mp4"}
    web.told = dict(web.files)
    with pytest.raises(FailedError, match=r"Actor_2\.zip/content is another file than .*/own has"):
        digested(archive, web.address)
    web.own = {**web.files, "Actor_2.zip": b"more" * 500}
    with pytest.raises(FailedError, match="choose another mirror"):
        digested(archive, web.address)


def test_a_mirror_s_own_kind_of_digest_gives_way_to_the_archive_s(web):
    archive = replace(ARCHIVE, address=f"{web.address}/own")
    web.own, record = dict(web.files), web.record
    web.record = lambda told=None: record(told).replace("md5:", "md5:" if told else "sha256:")
    held, _ = digested(archive, web.address)
    assert [each.checksum for each in held] == [f"md5:{md5(x)}" for x in web.files.values()]


def test_what_is_no_zip_file_is_told(web, tmp_path):
    web.files["Actor_1.zip"] = web.told["Actor_1.zip"] = b"no zip"
    with pytest.raises(FailedError, match="cannot be unpacked"):
        fetch(listing(ARCHIVE, web.address), tmp_path, lambda count: None)


def test_a_member_that_cannot_be_unpacked_is_told(web, tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a.mp4", bytes(range(256)) * 40)
    torn = bytearray(content.getvalue())
    torn[40:60] = b"\xff" * 20
    web.files["Actor_1.zip"] = web.told["Actor_1.zip"] = bytes(torn)
    with pytest.raises(FailedError, match=r"Actor_1\.zip.* cannot be unpacked"):
        fetch(listing(ARCHIVE, web.address), tmp_path, lambda count: None)


def test_a_disk_that_is_full_is_none_of_the_network_s(web, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "_append", full)
    with pytest.raises(OSError, match="No space left on device"):
        fetch(listing(ARCHIVE, web.address), tmp_path, lambda count: None)
    assert len(web.asked) == 1


def test_a_disk_without_room_is_told_before_anything_is_fetched(web, tmp_path, monkeypatch):
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(FailedError, match="bytes are wanted, and 1000 are free"):
        fetch(listing(ARCHIVE, web.address), tmp_path, lambda count: None)
    assert web.asked == []


def test_an_archive_that_lists_something_else_is_told(web):
    with pytest.raises(FailedError, match=r"lists 2 files such as .* wanted 3"):
        listing(replace(ARCHIVE, count=3), web.address)
    with pytest.raises(FailedError, match="cannot be had"):
        listing(replace(ARCHIVE, record="8"), web.address)
    with pytest.raises(InputError, match="is no address"):
        listing(ARCHIVE, "file:///etc")
    web.record = lambda: "[1, 2]"
    with pytest.raises(FailedError, match="is no list of files"):
        listing(ARCHIVE, web.address)


@pytest.mark.parametrize("checksum", ["", "crc:12", "md5:xyz"])
def test_a_file_without_a_digest_is_not_taken(web, checksum):
    record = web.record().replace("md5:", "none:") if not checksum else web.record()
    web.record = lambda: re.sub(r"md5:\w+", checksum, record) if checksum else record
    with pytest.raises(FailedError, match="no digest or size that can be checked"):
        listing(ARCHIVE, web.address)


@pytest.mark.parametrize("name", [name for name, each in PROTOCOLS.items() if each.archive])
def test_what_is_known_of_an_archive_is_whole(name):
    archive = PROTOCOLS[name].archive
    assert archive.address.startswith("https://")
    assert archive.record.isdecimal()
    assert archive.licence
    assert archive.count > 0


def test_the_command_tells_size_and_licence_first_and_fetches_with_yes_alone(
    web, tmp_path, monkeypatch, called
):
    from pipelines.reproduce import flow, protocols

    archive = replace(ARCHIVE, address=f"{web.address}/own")
    monkeypatch.setitem(protocols.PROTOCOLS, "ravdess", replace(protocols.RAVDESS, archive=archive))
    went_on = []

    def go_on(*given):
        went_on.append(given)
        raise SystemExit(0)

    monkeypatch.setattr(flow, "reproduce", go_on)
    folder, size = tmp_path / "films", sum(map(len, web.files.values()))
    asked = ("reproduce", "ravdess", "--data", folder, "--download", "--from", web.address)
    code, out, _ = called(*asked)
    assert code == 0
    told = ("2 files", f"{size} bytes", "CC BY", web.address, "give --yes", "nothing independent")
    assert [each for each in told if each not in " ".join(out.split())] == []
    assert json.loads(called(*asked, "--json")[1]) == {"missing_bytes": size}
    assert (web.asked, went_on, folder.exists()) == ([], [], False)
    code, out, _ = called(*asked, "--yes")
    assert (code, there(folder), len(went_on)) == (0, WHOLE, 1)
    code, _, err = called("reproduce", "mosei", "--data", folder, "--download")
    assert code == 2
    assert "lies in no open archive" in err
