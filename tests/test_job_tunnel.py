"""Where the job server is: told, or behind a tunnel that ssh opens; ssh is a stand-in here."""

import contextlib
import http.server
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from pipelines.experiment import InputError
from pipelines.jobs import tunnel as tunnels
from pipelines.jobs.address import Asked, job_server
from pipelines.jobs.server import ServerError
from pipelines.jobs.tunnel import dashboard_port, key_of, read_cluster, ssh_words

ROOT = Path(__file__).parent.parent

# Carries connections as `ssh -L` does, and writes down how it was called.
SSH = """#!{python}
import json, os, socket, sys, threading
open(os.environ["CALLED"], "w").write(json.dumps([sys.argv, os.getpid()]))
if os.environ.get("REFUSE"):
    sys.exit("ubuntu@10.0.0.1: Permission denied (publickey).")
here, port, there, to = sys.argv[sys.argv.index("-L") + 1].split(":")
listening = socket.create_server((here, int(port)))
def carry(one, other):
    while content := one.recv(65536):
        other.sendall(content)
    other.shutdown(socket.SHUT_WR)
while True:
    near, _ = listening.accept()
    far = socket.create_connection((there, int(to)))
    for pair in ((near, far), (far, near)):
        threading.Thread(target=carry, args=pair, daemon=True).start()
"""


class Dashboard(http.server.BaseHTTPRequestHandler):
    """Says its version, to who shows the token."""

    def do_GET(self):
        welcome = self.headers["Authorization"] == "Bearer right"
        body = json.dumps({"ray_version": "2.60.0"}).encode()
        self.send_response(200 if welcome else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *said):
        pass


@pytest.fixture
def dashboard():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


@pytest.fixture
def cluster(tmp_path, dashboard, monkeypatch):
    """The file of a cluster that Ray's launcher has started, and a stand-in for ssh."""
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(SSH.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CALLED", str(tmp_path / "called"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    plain = {
        "cluster_name": "mine",
        "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": []},
        "auth": {"ssh_user": "ubuntu", "ssh_private_key": "~/a key.pem"},
        "head_start_ray_commands": [f"ray start --head --dashboard-port={dashboard}"],
    }
    (tmp_path / "a key.pem").touch()
    file = tmp_path / "cluster file.yaml"
    file.write_text(yaml.safe_dump(plain))
    tags = {"ray-node-type": "head", "ray-node-status": "up-to-date"}
    state = {"10.0.0.1": {"tags": tags, "state": "running"}}
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "cluster-mine.state").write_text(json.dumps(state))
    return file


def called(tmp_path):
    return json.loads((tmp_path / "called").read_text())


def gone(process):
    end = time.monotonic() + 10
    while Path(f"/proc/{process}").exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_tunnel_leads_to_the_head_that_the_launcher_knows_and_ends_with_its_use(
    cluster, tmp_path, dashboard
):
    with job_server(Asked("", cluster), os.environ) as server:
        assert server.ray_version() == "2.60.0"
        words, process = called(tmp_path)
        assert Path(f"/proc/{process}").exists()
    assert gone(process)
    assert words[-2:] == ["--", "ubuntu@10.0.0.1"]
    assert words[words.index("-i") + 1] == f"{Path.home()}/a key.pem"
    assert words[words.index("-L") + 1].endswith(f":127.0.0.1:{dashboard}")
    assert "BatchMode=yes" in words
    # A head that was just made is known to nobody; its key is kept for this cluster alone.
    assert "StrictHostKeyChecking=accept-new" in words
    assert f'UserKnownHostsFile="{tmp_path}/.ssh/fuseline_known_hosts_mine"' in words
    assert (tmp_path / ".ssh").stat().st_mode & 0o777 == 0o700


def test_a_tunnel_that_breaks_is_opened_again_at_the_same_port(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(tunnels, "AGAIN_S", 0.05)
    monkeypatch.setattr(tunnels, "head_of", lambda file: "10.0.0.1")
    with job_server(Asked("", cluster), os.environ) as server:
        _, first = called(tmp_path)
        os.kill(first, 9)
        for _ in range(100):
            with contextlib.suppress(ServerError):
                assert server.ray_version() == "2.60.0"
                break
            time.sleep(0.05)
        _, second = called(tmp_path)
        assert second != first
    assert gone(second)


def test_whoever_else_listens_at_the_port_is_not_taken_for_the_tunnel(cluster, monkeypatch):
    monkeypatch.setattr(tunnels, "head_of", lambda file: "10.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(tunnels, "_free_port", lambda: other.getsockname()[1])
        monkeypatch.setattr(tunnels, "OPEN_S", 5.0)
        with (
            pytest.raises(ServerError, match="ssh opens no tunnel"),
            job_server(Asked("", cluster), os.environ),
        ):
            pass


def test_what_ssh_says_is_told_where_no_tunnel_opens(cluster, monkeypatch):
    monkeypatch.setenv("REFUSE", "1")
    monkeypatch.setattr(tunnels, "head_of", lambda file: "10.0.0.1")
    with (
        pytest.raises(ServerError, match=r"@10\.0\.0\.1 by ~/a key\.pem: ubuntu@10\.0\.0\.1: Perm"),
        job_server(Asked("", cluster), os.environ),
    ):
        pass


def test_a_key_that_is_not_there_is_named(cluster, tmp_path):
    (tmp_path / "a key.pem").unlink()
    with (
        pytest.raises(InputError, match=r"auth\.ssh_private_key: there is no ~/a key\.pem"),
        job_server(Asked("", cluster), os.environ),
    ):
        pass


def test_without_any_address_all_that_was_tried_is_named(tmp_path):
    with (
        pytest.raises(InputError) as error,
        job_server(Asked("", tmp_path / "cluster.yaml"), {}),
    ):
        pass
    tried = ["--address is not given", "RAY_ADDRESS is not set", f"{tmp_path}/cluster.yaml"]
    assert all(each in str(error.value) for each in [*tried, "(token: ", "/.ray/auth_token"])


def test_an_address_is_taken_before_ray_address_and_that_before_a_tunnel(
    tmp_path, dashboard, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    here, nowhere = f"127.0.0.1:{dashboard}", "http://127.0.0.1:1"
    told = {"RAY_AUTH_TOKEN": "right"}
    file = tmp_path / "cluster.yaml"
    file.write_text("provider: {}\nauth: {}\n")
    for asked, variable in ((f"http://{here}", nowhere), (here, nowhere), ("", here)):
        with job_server(Asked(asked, file), {**told, "RAY_ADDRESS": variable}) as server:
            assert server.url == f"http://{here}"
    with (
        pytest.raises(InputError, match=r"from --address\) asks for a token.*RAY_AUTH_TOKEN \(not"),
        job_server(Asked(f"http://{here}", file), {"RAY_AUTH_TOKEN_PATH": "/dev/null"}),
    ):
        pass


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "a;b", "", "$(id)"])
def test_a_head_that_is_no_address_never_reaches_ssh(host):
    with pytest.raises(InputError, match="is no address"):
        ssh_words({"auth": {}}, host, "", 1, 2)


def test_a_user_that_is_an_option_never_reaches_ssh():
    with pytest.raises(InputError, match=r"ssh_user: '-x' is no name"):
        ssh_words({"auth": {"ssh_user": "-x"}}, "10.0.0.1", "", 1, 2)


def test_the_key_that_the_launcher_made_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(tunnels.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "ray-config-0").write_text("{")
    for name, number in (("mine", 1), ("other", 2)):
        config = {"cluster_name": name, "auth": {"ssh_private_key": f"/keys/{name}.pem"}}
        (tmp_path / f"ray-config-{number}").write_text(json.dumps({"config": config}))
    cluster = {"cluster_name": "mine", "auth": {"ssh_user": "ubuntu"}}
    assert key_of(cluster) == "/keys/mine.pem"
    assert key_of({**cluster, "cluster_name": "third"}) == ""


def test_our_own_cluster_files_are_read(tmp_path):
    for name in ("cluster.yaml", "deploy/gcp.yaml"):
        cluster = read_cluster(ROOT / name)
        assert dashboard_port(cluster) == 8265
        user = cluster["auth"]["ssh_user"]
        assert ssh_words(cluster, "10.0.0.1", "", 1, 8265)[-1] == f"{user}@10.0.0.1"
    (tmp_path / "experiment.yaml").write_text("dataset: data\n")
    with pytest.raises(InputError, match="has no provider and auth"):
        read_cluster(tmp_path / "experiment.yaml")
