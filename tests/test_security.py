"""What docs/security.md says, as far as a machine can hold it."""

import ast
import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from featurizers.clip import Clip
from featurizers.store import StorageError, shown, store_at
from pipelines import train
from pipelines.__main__ import _line
from pipelines.limits import Care
from pipelines.origins import _taken
from pipelines.show import Show
from tests import test_deploy
from tests.test_deploy import DEPLOY, ROOT, lines_of, run
from training.recipe import ModelSettings, Recipe, Task

slurm, stubs = test_deploy.slurm, test_deploy.stubs
PACKAGES = ("featurizers", "training", "tracking", "pipelines")
SOURCES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
RUNS = {"run", "Popen", "call", "check_call", "check_output"}
SHELLS = {"system", "popen", "create_subprocess_shell", "getoutput", "getstatusoutput"}
STARTERS = {"subprocess", "os", "asyncio"}
SHELL_NAMES = {"sh", "bash", "dash", "zsh"}
HOSTILE = ("$(touch pwned)", "; touch pwned", "`touch pwned`", "a b", "*", "-x", "'", '"', "$HOME")


# Shells


def commands_of(file):
    """What a source file starts: the calls of subprocess and os that do so."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            where = node.func.value
            if isinstance(where, ast.Name) and where.id in STARTERS:
                yield node.func.attr, node


def other_names(file):
    """Names of what starts programs that `commands_of` does not see: imports by another name."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in STARTERS:
            yield from {each.name for each in node.names} & (RUNS | SHELLS)
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in STARTERS and each.asname)


def is_shell(words):
    """Whether a list of words is a shell that reads a program from its arguments."""
    texts = [each.value for each in getattr(words, "elts", ()) if isinstance(each, ast.Constant)]
    return "-c" in texts and bool({str(each).rpartition("/")[2] for each in texts} & SHELL_NAMES)


def test_a_shell_by_another_name_is_seen(tmp_path):
    file = tmp_path / "x.py"
    for text in ("from subprocess import run", "from os import system", "import subprocess as s"):
        file.write_text(text)
        assert list(other_names(file)), text
    file.write_text("import subprocess\nsubprocess.run(['/bin/sh', '-c', text])")
    ((_, call),) = commands_of(file)
    assert is_shell(call.args[0])


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_text_of_a_user_reaches_a_shell(file):
    assert not list(other_names(file)), file
    for name, call in commands_of(file):
        assert not any(map(is_shell, call.args)), f"{file}:{call.lineno}"
        assert name not in SHELLS, f"{file}:{call.lineno}"
        if name in RUNS:
            shell = [each for each in call.keywords if each.arg in {"shell", "executable", None}]
            assert not shell, f"{file}:{call.lineno}"
            # A text would be split, or looked up as a whole; a list is what is meant.
            given = [isinstance(each, ast.Constant | ast.JoinedStr) for each in call.args[:1]]
            assert not any(given), f"{file}:{call.lineno}"


def test_arguments_reach_the_command_of_a_slurm_job_as_they_are(stubs, slurm):
    done, calls = run(stubs, "run", *HOSTILE, script=DEPLOY / "slurm.sbatch", **slurm)
    assert done.returncode == 0, done.stderr
    (command,) = [each for each in lines_of(calls, 5) if each.startswith("fuseline run ")]
    said = command.partition(" | ")[0]
    # The stub quotes by printf %q; a shell of its own takes that apart again.
    words = subprocess.run(
        ["/bin/bash", "-c", f"printf '%s\\0' {said}"], capture_output=True, text=True, check=True
    )
    assert words.stdout.split("\0")[2:-1] == list(HOSTILE)
    assert not list(stubs.parent.rglob("pwned"))


def test_flags_of_a_node_are_words_and_no_program(stubs):
    flags = "--labels=$(touch${IFS}pwned) ;touch pwned"
    done, calls = run(
        stubs, "worker", RAY_HEAD_IP="127.0.0.8", FUSELINE_NODE_IP="127.0.0.9",
        FUSELINE_RAY_FLAGS=flags,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (ray,) = lines_of(calls, 1)
    assert r"\;touch pwned" in ray
    assert not list(stubs.parent.rglob("pwned"))
    assert not Path("pwned").exists()


# What listens, and what it asks for


def scripts():
    """All that starts Ray or MLflow, as text, by file."""
    files = [ROOT / "cluster.yaml", *(each for each in DEPLOY.iterdir() if each.is_file())]
    return {file.name: file.read_text() for file in files}


def test_every_way_to_start_a_cluster_asks_for_the_token():
    texts = scripts()
    for name in ("start.sh", "slurm.sbatch"):
        assert "export RAY_AUTH_MODE=token" in texts[name]
        starts = texts[name].index(
            "ray start --head" if name == "start.sh" else 'deploy/start.sh" head'
        )
        assert texts[name].index("export RAY_AUTH_MODE=token") < starts
    for name in ("cluster.yaml", "gcp.yaml"):
        assert "--env RAY_AUTH_MODE=token" in yaml.safe_load(texts[name])["docker"]["run_options"]
    assert "ENV RAY_AUTH_MODE=token" in texts["Dockerfile"]
    kuberay = next(yaml.safe_load_all(texts["kuberay.yaml"]))["spec"]["rayClusterSpec"]
    assert kuberay["authOptions"] == {"mode": "token"}
    groups = [kuberay["headGroupSpec"], *kuberay["workerGroupSpecs"]]
    for group in groups:
        ray = group["template"]["spec"]["containers"][0]
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in ray["env"]
    assert not any("RAY_AUTH_MODE=disabled" in text for text in texts.values())
    # Nothing starts Ray but by these.
    assert {name for name, text in texts.items() if re.search(r"^\s*ray start", text, re.M)} == {
        "start.sh"
    }


def test_every_dashboard_is_on_loopback_but_that_of_a_pod():
    texts = scripts()
    assert "--dashboard-host=127.0.0.1" in texts["start.sh"]
    open_ones = {name for name, text in texts.items() if re.search(r"-host:? *0\.0\.0\.0", text)}
    assert open_ones == {"kuberay.yaml"}
    services = list(yaml.safe_load_all(texts["kuberay.yaml"]))[1:]
    # Kubernetes shows a service to its own cluster unless told otherwise.
    assert {each["spec"].get("type", "ClusterIP") for each in services} == {"ClusterIP"}


def test_ports_that_are_opened_are_in_the_papers():
    paper = (ROOT / "docs/operations.md").read_text().partition("## What listens where")[2]
    table = paper.partition("\n## ")[0]
    opened = set(re.findall(r"-port[= ](\d+)", "\n".join(scripts().values())))
    assert opened == {"6379", "8076", "8077", "52366", "5000"}
    assert {*opened, "8265", "52365"} <= set(re.findall(r"\d{4,5}", table))


def test_secrets_are_in_no_argument_and_no_file_of_the_repository():
    for name, text in scripts().items():
        assert not re.search(r"://[\w.]+:[^@\s.]+@", text), name
        assert not re.search(r"--(?:password|token|backend-store-uri)[= ]", text), name


# Secrets in what is told


def test_addresses_are_told_without_passwords_and_signatures():
    assert shown("see s3://key:word@bucket/a and b@c") == "see s3://bucket/a and b@c"
    signed = "https://x.example/a.mp4?id=5&X-Amz-Signature=abc&api_key=d&b=1: no"
    told = "https://x.example/a.mp4?id=5&X-Amz-Signature=***&api_key=***&b=1: no"
    assert shown(signed) == told
    assert shown("/data/a?b=c@d") == "/data/a?b=c@d"
    assert "word" not in str(StorageError("http://me:word@h/a failed: http://me:word@h/a?sig=word"))
    assert _line(ValueError("ftp://me:word@h/a\n  is not there")) == "ftp://h/a is not there"


def test_a_store_tells_where_it_is_without_its_password():
    store = store_at("http://me:word@127.0.0.1/data")
    assert store.where("a.tar") == "http://127.0.0.1/data/a.tar"


def test_lines_for_people_and_the_lineage_of_a_run_hold_no_signature(capsys):
    signed = "https://me:word@x.example/a.mp4?X-Amz-Signature=word"
    told = "https://x.example/a.mp4?X-Amz-Signature=***"
    Show().say(f"{signed}: unreadable")
    assert capsys.readouterr().out == f"{told} unreadable\n"
    clip = Clip(
        key="a",
        id="a",
        media=signed,
        media_digest="0" * 64,
        source=signed,
        split="train",
        labels={"mood": 1.0},
    )
    recipe = Recipe(
        name="late_fusion",
        task=Task(kind="regression", label="mood"),
        model=ModelSettings(kind="late_fusion", streams=("audio",)),
    )
    column = SimpleNamespace(shards={"a": 0}, rows={"a": SimpleNamespace(state="sample")})
    (row,) = _taken(recipe, [clip], {"audio": column})
    assert (row["media"], row["source"]) == (told, told)


def test_what_ray_train_shows_of_a_run_holds_no_password(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "gpus", lambda: 0)  # Ray is not asked
    seen = []
    config = {"uri": "http://me:word@server:5000", "runs": []}
    trainer = train._trainer(
        seen.append, config, tmp_path, 1, Care(device="cpu"), gpu_each=False, again=True
    )
    shown_there = (trainer.train_loop_config, trainer.run_config, trainer.scaling_config)
    assert "word" not in str(shown_there)
    # The ranks are told all the same.
    trainer.train_loop_per_worker(trainer.train_loop_config)
    assert seen[0]["uri"] == config["uri"]
    assert {"stop", "keep", "hang_s", "check"} <= set(seen[0])


# Advisories


def advisories():
    paper = (ROOT / "docs/security.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (CVE-[\d-]+).*\| ([\d.]+)[^|]*\|$", paper, re.M)
    assert len(rows) >= 7
    return rows


def numbers(version):
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))


@pytest.mark.parametrize(("package", "advisory", "without"), advisories())
def test_the_versions_that_are_pinned_and_installed_are_without_known_holes(
    package, advisory, without
):
    pinned = re.search(rf"^{package}==([\w.+]+)", (ROOT / "constraints.txt").read_text(), re.M)
    for found in (pinned[1], importlib.metadata.version(package)):
        assert numbers(found) >= numbers(without), advisory


def test_the_project_itself_asks_for_no_version_with_a_hole():
    asked = {}
    for each in _requirements():
        name, least = re.match(r"([\w.-]+)[^>]*>=([\d.]+)", each).groups()
        asked[name] = least
    for package, advisory, without in advisories():
        if package in asked:
            assert numbers(asked[package]) >= numbers(without), advisory


def _requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [each for each in project["dependencies"] if ">=" in each]
