"""Model files are shown first, and kept only when they are what was wanted."""

import hashlib
import http.server
import json
from dataclasses import replace
from functools import partial

import pytest

from pipelines import fetch as fetching
from pipelines.__main__ import _called, app
from pipelines.experiment import FailedError, InputError
from pipelines.fetch import KNOWN, fetch, find, is_there
from tests.web_server import Silent, serving

CONTENT = bytes(range(256)) * 600


@pytest.fixture
def served(tmp_path_factory, monkeypatch):
    """A folder that is served on this machine, its address, and the paths that were asked for."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder, asked = tmp_path_factory.mktemp("web"), []

    class Handler(Silent, http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/model.bin")
                self.end_headers()
            elif self.path == "/cut":
                self.send_response(200)
                self.send_header("Content-Length", str(len(CONTENT)))
                self.end_headers()
                self.wfile.write(CONTENT[:1000])
            else:
                super().do_GET()

    with serving(partial(Handler, directory=str(folder))) as address:
        yield folder, address, asked


@pytest.fixture
def model(served):
    folder, address, _ = served
    (folder / "model.bin").write_bytes(CONTENT)
    return replace(
        KNOWN["yunet"],
        file="model.bin",
        address=f"{address}/model.bin",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


def test_a_file_is_fetched_whole_and_once(model, served, tmp_path):
    folder = tmp_path / "a" / "models"
    assert not is_there(model, folder)
    path = fetch(model, folder)
    assert path.read_bytes() == CONTENT
    assert fetch(model, folder) == path
    assert served[2] == ["/model.bin"]
    assert [each.name for each in folder.iterdir()] == ["model.bin"]


def test_a_mirror_and_an_address_that_leads_on_are_taken(model, served, tmp_path):
    gone = replace(model, address=f"{served[1]}/nowhere")
    assert fetch(gone, tmp_path, f"{served[1]}/moved").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"version https://git-lfs", CONTENT[:-1] + b"x", CONTENT * 2])
def test_another_file_is_told_and_not_kept(model, served, tmp_path, content):
    (served[0] / "model.bin").write_bytes(content)
    with pytest.raises(FailedError, match=r"gave another file: .* bytes with the sha256"):
        fetch(model, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_no_more_is_read_than_the_file_may_have(model, served, tmp_path):
    (served[0] / "model.bin").write_bytes(CONTENT * 50)
    with pytest.raises(FailedError, match=f"more than {len(CONTENT)} bytes"):
        fetch(model, tmp_path)


@pytest.mark.parametrize("path", ["nowhere", "cut"])
def test_what_cannot_be_had_is_told_with_what_to_do(model, served, tmp_path, path):
    wanted = "cannot be had: .*--from" if path == "nowhere" else "gave another file|cannot be had"
    with pytest.raises(FailedError, match=wanted):
        fetch(model, tmp_path, f"{served[1]}/{path}")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_a_network_is_told(model, tmp_path):
    nobody = "http://127.0.0.1:9/model.bin"
    with pytest.raises(FailedError, match=r"cannot be had: .*machine with a network"):
        fetch(model, tmp_path, nobody)


@pytest.mark.parametrize("address", ["file:///etc/hosts", "ftp://a/b", "model.bin"])
def test_what_is_no_address_of_the_web_is_refused(model, tmp_path, address):
    with pytest.raises(InputError, match="wanted one that begins with https://"):
        fetch(model, tmp_path, address)


def test_a_file_of_that_name_that_is_another_is_not_replaced(model, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"mine")
    with pytest.raises(FailedError, match="remove it, or choose another folder"):
        fetch(model, tmp_path)
    assert (tmp_path / "model.bin").read_bytes() == b"mine"


def test_an_unknown_name_is_refused_and_the_nearest_is_named():
    with pytest.raises(InputError, match=r"no model 'yunett'.*did you mean 'yunet'"):
        find("yunett")


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_of_a_file_is_whole(name):
    known = KNOWN[name]
    assert known.address.startswith("https://")
    assert known.address.endswith(known.file)
    assert len(bytes.fromhex(known.sha256)) == 32
    assert known.digest_from
    assert known.size > 0
    assert known.licence in {"MIT", "Apache-2.0"}
    assert "FILE" in known.use


def test_the_command_shows_first_and_downloads_with_yes_alone(
    model, served, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fetching, "KNOWN", {"yunet": model})

    def called(*arguments):
        code = _called(lambda: app(["fetch", "yunet", "--to", str(tmp_path / "m"), *arguments]))
        return code, capsys.readouterr().out

    code, out = called()
    assert code == 0
    for shown in (
        model.address,
        str(model.size),
        model.sha256,
        model.digest_from,
        "MIT",
        "give --yes",
    ):
        assert shown in out
    assert served[2] == []
    assert not (tmp_path / "m").exists()
    code, out = called("--yes")
    assert code == 0
    assert f"model: {tmp_path / 'm' / 'model.bin'}}}" in out
    found = json.loads(called("--json")[1])
    assert (found["there"], found["sha256"]) == (True, model.sha256)
    assert served[2] == ["/model.bin"]
