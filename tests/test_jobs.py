"""Jobs without a cluster: what goes along, what is one submission, what may be seen of it."""

import contextlib
import http.server
import json
import shutil
import subprocess
import threading
import zipfile
from io import BytesIO

import pytest

from pipelines import HOME
from pipelines.commands import jobs as commands
from pipelines.executors import Need
from pipelines.experiment import InputError
from pipelines.findings import finding
from pipelines.jobs import beforehand, folder, needed, needs, watch
from pipelines.jobs.needs import Node, check_room, need_of
from pipelines.jobs.prepare import Wish, prepare
from pipelines.jobs.server import JobServer, ServerError
from pipelines.jobs.submission import (
    INSIDE,
    OURS,
    Origin,
    Submission,
    meant,
    request,
    variables_of,
)
from pipelines.jobs.submit import retry, submit
from pipelines.jobs.tokens import Token
from pipelines.jobs.watch import find
from pipelines.jobs.wheel import PACKAGES, wheel

TOKEN = Token("a" * 64, "a test")
COMMANDS = ("demo", "run", "train")


def submission(**changes):
    settings = {
        "command": ("run", "experiment.yaml"),
        "wheel": "fuseline-0.1.0-abc.zip",
        "folder": "_ray_pkg_abc.zip",
        "inputs": "",
        "need": Need(),
        "variables": {},
        "secrets": (),
        "record": "",
    }
    return Submission(**{**settings, **changes})


# --- our own code


def test_the_wheel_holds_the_files_of_our_packages_and_is_named_by_its_bytes():
    first, again = wheel(), wheel()
    assert first == again
    assert first.name.endswith(f"-{first.digest[:16]}.zip")
    with zipfile.ZipFile(BytesIO(first.content)) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
        about = opened.read("fuseline-0.1.0.dist-info/METADATA").decode()
    tracked = subprocess.run(
        [shutil.which("git"), "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=HOME,
        capture_output=True,
        text=True,
        check=True,
    )
    assert names == set(tracked.stdout.split())
    assert "Requires-Dist" not in about  # pip would install those on each node


def test_other_code_is_another_wheel(tmp_path):
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    first = wheel(tmp_path)
    (tmp_path / "training" / "__init__.py").write_text("more = 1\n")
    assert wheel(tmp_path).name != first.name


# --- the working directory


@pytest.fixture
def project(tmp_path):
    """An experiment with its table and a clip; .gitignore names what is large."""
    files = {
        "experiment.yaml": "dataset: /shared/mine\nsource: {table: clips.csv, label: mood}\n",
        "clips.csv": "id,media,mood\na,films/a.mp4,1\n",
        "films/a.mp4": "film",
        "notes/deep/old.txt": "x",
        ".gitignore": "notes/\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    for name in (".git", "__pycache__"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    return tmp_path


def test_what_git_ignores_stays_behind(project):
    found = folder.survey(project)
    assert set(found.files) == {"experiment.yaml", "clips.csv", "films/a.mp4", ".gitignore"}
    assert set(found.ignored) == {".git/", "__pycache__/", "notes/"}
    assert found.why_not("notes/deep/old.txt") == "'notes/' in .gitignore"
    assert found.why_not("clips.csv") == ""


def test_equal_folders_are_one_package_and_other_bytes_another(project):
    first = folder.packed(folder.survey(project))
    (project / "clips.csv").touch()
    assert folder.packed(folder.survey(project)) == first
    (project / "films" / "a.mp4").write_text("firm")
    assert folder.packed(folder.survey(project)).name != first.name


def test_a_folder_that_is_too_large_is_refused_before_it_is_read(project, monkeypatch):
    with (project / "films" / "b.mp4").open("wb") as large:
        large.truncate(folder.MOST_BYTES)
    with pytest.raises(InputError, match=r"100\.0 MiB in 5 files.*films/ has 100\.0 MiB"):
        folder.packed(folder.survey(project))
    monkeypatch.setattr(folder, "MOST_FILES", 3)
    with pytest.raises(InputError, match=r"more than 3 files.*\.rayignore"):
        folder.survey(project)


def test_nothing_of_the_folder_is_imported_before_the_standard_library(project):
    """Ray puts what is in a package before all else, in driver, workers and its own supervisor."""
    (project / "calendar.py").write_text("raise SystemExit('mine')")
    content = folder.packed(folder.survey(project)).content
    with zipfile.ZipFile(BytesIO(content)) as opened:
        tops = {name.partition("/")[0] for name in opened.namelist()}
    assert tops == {INSIDE}
    assert not INSIDE.isidentifier()


def test_what_is_no_file_stays_behind_and_links_are_followed(project, tmp_path_factory):
    import os
    import socket

    outside = tmp_path_factory.mktemp("outside") / "weights.bin"
    outside.write_text("w")
    (project / "weights.bin").symlink_to(outside)
    (project / "lost.bin").symlink_to(project / "nothing")
    os.mkfifo(project / "pipe")
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(project):
        made.bind("socket")
    (project / "notes" / ".gitignore").write_text("!old.txt\n")
    (project / "deep" / "er").mkdir(parents=True)
    (project / ".gitignore").write_text("notes/\n*.log\n")
    (project / "deep" / ".gitignore").write_text("!kept.log\n")
    for name in ("er/kept.log", "er/lost.log"):
        (project / "deep" / name).touch()
    found = set(folder.survey(project).files)
    assert found >= {"weights.bin", "deep/er/kept.log"}
    assert not found & {"lost.bin", "pipe", "socket", "deep/er/lost.log", "notes/deep/old.txt"}
    assert folder.packed(folder.survey(project))


def test_a_link_to_a_folder_above_is_not_followed_for_ever(project):
    (project / "films" / "up").symlink_to(project)
    (project / "more").symlink_to(project / "films")
    assert "more/a.mp4" in folder.survey(project).files


@pytest.mark.parametrize(
    ("ignored", "told"),
    [
        ("*.yaml", "experiment.yaml is needed (the command names it)"),
        ("clips.csv", "clips.csv is needed (experiment.yaml names it as source.table)"),
        ("films/", "films/a.mp4 is needed (row 1 of clips.csv, media)"),
    ],
)
def test_a_needed_file_that_would_stay_behind_is_named(project, ignored, told):
    (project / ".rayignore").write_text(f"# large things\n{ignored}\n")
    with pytest.raises(InputError) as error:
        needed.check_along(("run", "experiment.yaml"), folder.survey(project))
    assert str(error.value).startswith(f"{told} and would not go along, because of")
    assert f"'{ignored}' in .rayignore" in str(error.value)


def test_results_that_would_be_lost_with_the_copy_are_refused(project):
    text = (project / "experiment.yaml").read_text()
    (project / "experiment.yaml").write_text(text.replace("/shared/mine", "runs/mine"))
    wish = Wish(command=("run", "experiment.yaml"), working_dir=project)
    with pytest.raises(InputError, match=r"keeps its dataset in .*runs/mine, and each node gets"):
        prepare(wish, COMMANDS)
    with pytest.raises(InputError, match=r"--folder runs/demo is relative, and each node gets"):
        prepare(Wish(command=("demo",), working_dir=project), COMMANDS)
    (project / "experiment.yaml").write_text(text.replace("/shared/mine", "s3://bucket/mine"))
    with pytest.raises(InputError, match=r"keeps runs of training in .*/mine, and each node gets"):
        prepare(wish, COMMANDS)
    alone = Wish(command=("featurize", "experiment.yaml"), working_dir=project)
    record = prepare(alone, ["featurize"]).submission.record
    assert record == "s3://bucket/mine/logs/jobs"
    (project / "experiment.yaml").write_text(text.replace("/shared/mine", "runs/mine"))
    shared = Wish(command=("run", "experiment.yaml"), working_dir=project, shared=True)
    assert prepare(shared, COMMANDS).submission.record == f"{project}/runs/mine/logs/jobs"


def test_a_path_that_nodes_do_not_have_is_refused(project):
    command = ("run", str(project / "experiment.yaml"))
    with pytest.raises(InputError, match=r"has another path on the nodes: write experiment.yaml"):
        prepare(Wish(command=command, working_dir=project), COMMANDS)


def test_a_word_that_is_no_command_is_refused_and_the_nearest_named(project):
    for words in (("trian", "x"), ("fuseline", "trian")):
        with pytest.raises(InputError, match="did you mean 'train'"):
            prepare(Wish(command=words, working_dir=project), COMMANDS)


# --- what is one submission


@pytest.mark.parametrize(
    "change",
    [
        {"command": ("run", "other.yaml")},
        {"wheel": "other"},
        {"folder": "other"},
        {"inputs": "other"},
        {"need": Need(2)},
        {"variables": {"A": "1"}},
        {"secrets": ("A",)},
    ],
)
def test_whatever_decides_makes_another_submission(change):
    assert submission(**change).digest != submission().digest
    assert Submission.from_json(submission(**change).to_json()) == submission(**change)


def test_where_the_end_is_recorded_decides_nothing():
    assert submission(record="/elsewhere").digest == submission().digest


def test_files_that_stay_where_they_are_count_by_their_bytes(project):
    wish = Wish(command=("run", "experiment.yaml"), working_dir=project, shared=True)
    first = prepare(wish, COMMANDS).submission.digest
    assert prepare(wish, COMMANDS).submission.digest == first
    (project / "clips.csv").write_text("id,media,mood\na,films/a.mp4,2\n")
    second = prepare(wish, COMMANDS).submission.digest
    assert second != first
    with (project / "films" / "a.mp4").open("r+b") as film:  # 1 TB, of which nobody reads a byte
        film.truncate(1 << 40)
    assert prepare(wish, COMMANDS).submission.digest not in {first, second}


def test_no_word_of_the_user_is_read_by_a_shell():
    words = ("python", "-c", "print('$HOME; rm -rf ~')", "a b", "`id`")
    origin = Origin(source="/here", commit="")
    asked = request(submission(command=words), 1, origin, "n")["entrypoint"]
    shown = subprocess.run(
        ["/bin/sh", "-c", asked.replace("exec python", "printf '%s\\0'", 1)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert tuple(shown.stdout.split("\0")[-len(words) - 1 : -1]) == words


def test_variables_are_names_and_values_and_not_those_that_jobs_need():
    assert variables_of(["A=1", "B=a=b"]) == {"A": "1", "B": "a=b"}
    assert variables_of(["TOKENIZERS_PARALLELISM=false"]) == {"TOKENIZERS_PARALLELISM": "false"}
    assert variables_of(["RAY_TRAIN_V2_ENABLED=1", "KEYBOARD=de"])
    names = "PYTHONPATH RAY_ADDRESS RAY_AUTH_MODE RAY_health_check_period_ms PATH HOME PYTHONHOME"
    for wrong in ("A", "1A=1", *(f"{name}=x" for name in names.split()), "CUDA_VISIBLE_DEVICES=0"):
        with pytest.raises(InputError):
            variables_of([wrong])
    names = "HF_TOKEN AWS_SECRET_ACCESS_KEY PGPASSWORD OPENAI_API_KEY MYSQL_PWD SSH_PASSPHRASE"
    for secret in names.split():
        with pytest.raises(InputError, match=f"use --secret {secret}"):
            variables_of([f"{secret}=x"])
    with pytest.raises(InputError, match="--env A is given twice"):
        variables_of(["A=1", "A=2"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"env": ["MLFLOW_TRACKING_URI=http://me:hush@h:5000"]}, "--secret MLFLOW_TRACKING_URI"),
        ({"command": ("score", "https://x/a.mp4?X-Amz-Signature=hush")}, "into a file"),
        ({"command": ("score", "--set=dataset=s3://me:hush@b/x")}, "into a file"),
        ({"records": "s3://me:hush@bucket/jobs"}, "--records"),
        ({"command": ("score", "a\udcff.mp4")}, "is no UTF-8"),
        ({"env": ["A=\udcff"]}, "is no UTF-8"),
        ({"cpus": float("nan")}, "--cpus nan: wanted a number"),
        ({"memory_gb": float("inf")}, "--memory inf: wanted a number"),
        ({"gpus": 1.5}, "--gpus 1.5"),
    ],
)
def test_what_anybody_may_see_holds_no_secret_and_can_be_sent(project, given, said):
    with pytest.raises(InputError) as error:
        prepare(Wish(**{"command": ("score",), "working_dir": project, **given}), ["score"])
    assert said in str(error.value)
    assert "hush" not in str(error.value)


def test_a_secret_that_the_shell_put_into_the_command_is_refused(losing, server, project):
    for given in ({"command": ("demo", "--folder=/x/swordfish")}, {"env": ["A=a swordfish"]}):
        usual = {"command": ("demo", "--folder=/x"), "working_dir": project, "secret": ["S"]}
        with pytest.raises(InputError, match="--secret S: its value stands in the command"):
            submit(server, prepare(Wish(**{**usual, **given}), COMMANDS), {"S": "swordfish"})
    assert not losing.jobs


def test_a_name_that_cannot_be_sent_is_told(project):
    (project / "a\udcff.txt").touch()
    with pytest.raises(InputError, match="is no UTF-8"):
        folder.survey(project)


def test_a_command_that_is_too_long_for_a_process_is_refused():
    origin = Origin(source="/here", commit="")
    assert request(submission(command=("run", "x" * 50_000)), 1, origin, "n")
    for long in ({"command": ("run", "ö" * 60_000)}, {"variables": {"A": "x" * 60_000}}):
        with pytest.raises(InputError, match=r"a job can be told 120000.*into a file"):
            request(submission(**long), 1, origin, "n")


# --- room


def test_the_driver_of_a_command_has_what_its_kind_needs_unless_told():
    assert need_of(("run", "x"), None, None, None) == needs.COMPUTES
    assert need_of(("models",), None, None, None) == Need(cpus=0)
    assert need_of(("run", "x"), 0, 2, 4) == Need(0, 2, 4 << 30)


def test_a_driver_that_no_node_can_hold_is_refused_and_one_that_may_come_is_not():
    small, large = Node("small", {"CPU": 1.0, "memory": 8e9}), Node("large", {"CPU": 4.0})
    check_room(Need(4), [small, large], ())
    with pytest.raises(InputError, match=r"asks for 5 CPU on one node.*large has 4 CPU; small"):
        check_room(Need(5), [small, large], ())
    with pytest.raises(InputError, match=r"4 CPU, 1\.0 GiB of memory"):
        check_room(Need(4, 0, 1 << 30), [small, large], ())
    check_room(Need(5), [small], None)  # what may come is not known
    check_room(Need(5), [small], [Node("kind", {"CPU": 8.0})])


def test_what_would_fail_is_refused_and_warnings_are_told():
    said = []
    fine = [finding("versions", "torch", "ok", "2.13"), finding("room", "x", "warning", "small")]
    beforehand.refuse([*fine, finding("versions", "fuseline", "failed", "0.0 on a")], said.append)
    assert len(said) == 1
    failing = [finding("versions", name, "failed", "2.59 on a") for name in ("ray", "torch")]
    with pytest.raises(InputError, match=r"ray: 2\.59 on a; 1 more would fail.*--no-validate"):
        beforehand.refuse(failing, said.append)
    assert len(said) == 3


# --- a server that loses answers


class Losing(http.server.BaseHTTPRequestHandler):
    """Takes jobs as Ray does; the answers to the first `losses` submissions are lost."""

    def do_GET(self):
        path, jobs = self.path.partition("?")[0], self.server.jobs
        if path == "/api/jobs/":
            self._say(200, list(jobs.values()))
        elif path.startswith("/api/jobs/"):
            found = jobs.get(path.rpartition("/")[2])
            self._say(200 if found else 404, found)
        elif path == "/api/v0/nodes":
            node = {"node_id": "n", "state": "ALIVE", "resources_total": {"CPU": 4, "memory": 8e9}}
            self._say(200, {"data": {"result": {"result": [node]}}})
        else:
            self._say(200, {"ray_version": "2.60.0", "data": {}})

    def do_PUT(self):
        self._say(200, {})

    def do_POST(self):
        if self.path.endswith("/stop"):  # which changes nothing that can be seen
            self._say(200, {"stopped": True})
            return
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["submission_id"]
        if name in self.server.jobs:
            self._say(500, "taken")
            return
        self.server.jobs[name] = {**asked, "status": "RUNNING", "driver_node_id": "n"}
        if self.server.losses:
            self.server.losses -= 1
            self.close_connection = True
        else:
            self._say(200, {"submission_id": name})

    def _say(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *said):
        pass


@pytest.fixture
def losing():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Losing) as running:
        running.jobs, running.losses = {}, 0
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def server(losing):
    return JobServer(f"http://127.0.0.1:{losing.server_port}", "a test", TOKEN)


def test_a_lost_answer_is_no_second_job(losing, server, project):
    prepared = prepare(Wish(command=("run", "experiment.yaml"), working_dir=project), COMMANDS)
    losing.losses = 1
    first = submit(server, prepared, {})
    again = submit(server, prepared, {})
    assert (first.attached, again.attached) == (False, True)
    assert list(losing.jobs) == [first.name] == [again.name]


def test_after_its_end_the_next_attempt_begins(losing, server, project):
    prepared = prepare(Wish(command=("run", "experiment.yaml"), working_dir=project), COMMANDS)
    first = submit(server, prepared, {})
    losing.jobs[first.name]["status"] = "FAILED"
    second = submit(server, prepared, {})
    assert (first.name[-2:], second.name[-2:]) == ("-1", "-2")
    assert losing.jobs[first.name]["metadata"][OURS] == "1"
    assert find(server, first.name.removesuffix("-1")).name == second.name
    assert find(server, first.name).name == first.name
    with pytest.raises(InputError, match="knows no job zzz"):
        find(server, "zzz")


def test_a_job_that_waits_is_stopped_and_the_next_attempt_begins(
    losing, server, project, monkeypatch
):
    monkeypatch.setattr(watch, "PENDING_S", 0.0)
    monkeypatch.setattr(watch, "LOOK_S", 0.0)
    prepared, said = (
        prepare(Wish(command=("run", "experiment.yaml"), working_dir=project), COMMANDS),
        [],
    )
    first = submit(server, prepared, {}).name
    losing.jobs[first]["status"] = "PENDING"
    assert submit(server, prepared, {}).attached
    assert watch.stop(server, first, said.append).settled.state == "stopping"
    assert said[-1] == f"{first} has not begun; it ends as soon as it would begin"
    second = submit(server, prepared, {})
    assert (second.attached, second.name[-2:]) == (False, "-2")
    losing.jobs[second.name]["status"] = "PENDING"
    watch.stop(server, second.name, said.append)
    third = retry(server, second.name)
    assert (third.attached, third.name[-2:]) == (False, "-3")
    assert [each.name for each in watch.all_jobs(server)] == [first, second.name, third.name]
    assert server.info(second.name).to_end
    assert not server.info(third.name).to_end


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("run-abc-1", "run-abc-1"),
        ("run-abc", "run-abc-12"),
        ("run-abc-", "run-abc-12"),
        ("train", "train-abc-2"),
        ("run-abc-2", None),  # there is a 12, which is another one
        ("run-abc-1-", None),
        ("zzz", None),
    ],
)
def test_an_id_means_itself_or_the_newest_attempt_of_what_begins_so(text, name):
    known = ["run-abc-1", "run-abc-9", "run-abc-12", "train-abc-2", "run-xyz-1"]
    assert meant(known, text) == name
    with pytest.raises(InputError, match="run begins run-abc, run-xyz"):
        meant(known, "run")
    for nothing in ("", "-"):  # as of a variable of the shell that is not set
        with pytest.raises(InputError, match="no id of a job is given"):
            meant(known[:1], nothing)


def test_a_command_is_listed_on_one_line_without_what_a_terminal_would_obey():
    line = commands._line(["run", "a b.yaml", "--set", "x=\x1b[2J\n", "déjà"])
    assert line == "run 'a b.yaml' --set 'x=\\x1b[2J\\n' 'déjà'"


def test_a_server_that_is_not_there_is_told_with_where_its_address_is_from():
    gone = JobServer("http://127.0.0.1:1", "RAY_ADDRESS", TOKEN)
    with pytest.raises(ServerError, match=r"at http://127\.0\.0\.1:1 \(from RAY_ADDRESS\) does"):
        gone.jobs()
    with pytest.raises(InputError, match="--address: ray://x:1 is no http"):
        JobServer("ray://x:1", "--address", TOKEN)
