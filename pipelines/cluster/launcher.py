"""The file of Ray's cluster launcher: by Ray's own schema, and by what this project asks of it."""

import contextlib
import copy
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from pipelines.cluster.room import NodeKind, Room
from pipelines.executors import Need
from pipelines.experiment import InputError
from pipelines.findings import Finding, finding

AREA = "cluster"
TOKEN = "RAY_AUTH_MODE=token"  # noqa: S105 - a setting, not a secret
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH="  # noqa: S105 - a setting, not a secret
LONGEST_IDLE_MINUTES = 60
LONGEST_REASON = 300
HOME_STATE = "/home/ray/fuseline-state"  # of start.sh, in Ray's images
_OPEN = re.compile(r"--dashboard-host[= ](0\.0\.0\.0|\[?::\]?)(?=\s|$)")
_IMAGE = re.compile(r"/ray(?:-ml)?:([\w.]+?)-py(\d)(\d+)")
_PLACEHOLDER = "REPLACE_ME"
_LOOKED_UP = "aws"  # of its node types Ray asks the cloud for the memory
_USUAL_TOKEN = "~/.ray/auth_token"  # noqa: S105 - a path
_STATE = re.compile(r"\bFUSELINE_STATE=[\"']?([^\s\"']+)")
_VOLUME = re.compile(r"(?:^|\s)(?:-v|--volume)[= ]*[^\s:]+:([^\s:]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """A cluster file with what Ray's launcher adds to it.

    Attributes:
        path: The file.
        plain: As Ray takes it, defaults included.
    """

    path: Path
    plain: Mapping[str, Any]

    @property
    def provider(self) -> str:
        """The kind of it, such as aws."""
        return str(self.plain["provider"].get("type", ""))

    @property
    def head(self) -> str:
        """The head's node type."""
        return str(self.plain["head_node_type"])

    @property
    def kinds(self) -> Mapping[str, Mapping[str, Any]]:
        """The node types by name, that of the head, too."""
        found: Mapping[str, Mapping[str, Any]] = self.plain["available_node_types"]
        return found

    @property
    def stated(self) -> bool:
        """Whether it says what its nodes have; of machines at hand it does not."""
        return any(kind.get("resources") for kind in self.kinds.values())

    def room(self) -> Room:
        """The nodes that it can ever have, those without GPUs first, as its autoscaler does."""
        kinds = [
            NodeKind(
                name=name,
                resources=self._resources(kind),
                most=1 if name == self.head else int(kind.get("max_workers", 0)),
                least=1 if name == self.head else int(kind.get("min_workers", 0)),
                spot="spot" in str(kind.get("node_config", "")).lower(),
            )
            for name, kind in self.kinds.items()
        ]
        working = [kind for kind in kinds if kind.holds(Need(cpus=1)) or kind.holds(_GPU)]
        return Room(
            kinds=sorted(working, key=lambda kind: kind.resources.get("GPU", 0.0)),
            most=int(self.plain.get("max_workers", 0)) + 1,
            source=str(self.path),
        )

    def _resources(self, kind: Mapping[str, Any]) -> dict[str, float]:
        has = {key: float(each) for key, each in kind.get("resources", {}).items()}
        # Elsewhere Ray starts no node by what its type does not state.
        return has if self.provider == _LOOKED_UP else {"memory": 0.0, **has}

    def commands(self) -> tuple[str, str]:
        """What starts Ray on the head, and on workers: commands, and the scripts that they call."""
        head, worker = (
            "\n".join(self.plain.get(f"{which}_start_ray_commands", ()))
            for which in ("head", "worker")
        )
        return self._with_scripts(head), self._with_scripts(worker)

    def _with_scripts(self, commands: str) -> str:
        named, mounts = re.findall(r"\S+\.sh\b", commands), self.mounts().items()
        scripts = [
            local / path.removeprefix(f"{remote}/")
            for remote, local in mounts
            for path in named
            if path.startswith(f"{remote}/")
        ]
        # Machines at hand have this repository themselves, wherever it is here.
        here = [base / "deploy" for base in self._bases()]
        scripts += [base / path for path in named for base in (here[0], *here)]
        found = dict.fromkeys(each.resolve() for each in scripts if each.is_file())
        return "\n".join([commands, *(each.read_text() for each in found)])

    def _bases(self) -> list[Path]:
        own = self.path.resolve().parent
        return [Path.cwd(), own, own.parent]

    def mounts(self) -> dict[str, Path]:
        """What is copied to the nodes: the path there, and what lies here; long paths first.

        Relative ones start from where `ray up` is called: the first of this folder, the file's own
        and the one above it where all of them are.
        """
        given: Mapping[str, str] = self.plain.get("file_mounts") or {}
        local = {remote: Path(each).expanduser() for remote, each in given.items()}
        inside = [each for each in local.values() if not each.is_absolute()]
        bases = self._bases()
        holding = [base for base in bases if all((base / each).exists() for each in inside)]
        base = (holding or bases)[0]
        return {remote: base / local[remote] for remote in sorted(local, key=len, reverse=True)}


_GPU = Need(cpus=0.0, gpus=1.0)


def read(path: Path) -> ClusterFile:
    """A cluster file, after the check that `ray up` does; needs no cloud.

    Raises:
        InputError: No file, no YAML, not of the launcher, or against Ray's schema.
    """
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; --cluster wants the file of `ray up`"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("provider"), dict):
        kubernetes = isinstance(plain, dict) and "kind" in plain
        more = " (of Kubernetes, ask a live cluster by --address)" * kubernetes
        raise InputError(
            f"{path}: there is no provider; --cluster wants the file of `ray up`{more}"
        )
    return ClusterFile(path=path, plain=_prepared(path, plain))


def _prepared(path: Path, plain: dict[str, Any]) -> Mapping[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    # Ray (2.60.0) warns of each single file that is mounted, and prints why it gives up.
    # Held by test_a_file_that_ray_refuses_is_told_in_one_line; may go when it raises in silence.
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            prepared: dict[str, Any] = prepare_config(copy.deepcopy(plain))
            validate_config(prepared)
    except Exception as error:  # noqa: BLE001 - Ray raises many kinds at a wrong file, some bare
        raise InputError(f"{path}: {_why(error, said.getvalue())}") from None
    return prepared


def _why(error: Exception, said: str) -> str:
    """What is wrong with a file: an error of its schema has the place and a message of its own."""
    if type(error).__name__ == "ValidationError":  # of jsonschema, which is Ray's to import
        place = ".".join(str(each) for each in getattr(error, "absolute_path", ()))
        return f"{place}: {getattr(error, 'message', error)}".removeprefix(": ")
    told = " ".join(f"{said} {error}".split()) or type(error).__name__
    return f"Ray refuses it: {told[:LONGEST_REASON]}"


def check(file: ClusterFile) -> Iterator[Finding]:
    """What this project asks of a cluster file; Ray's own schema holds already."""
    yield finding(AREA, "schema", "ok", f"{file.path}: Ray {version('ray')} takes it")
    yield from _unfilled(file)
    yield _head_works_not(file)
    yield _limits(file)
    yield _tokens(file)
    yield _dashboard(file)
    yield from _images(file)
    yield _sent(file)
    yield from _outlives(file)


def _unfilled(file: ClusterFile) -> Iterator[Finding]:
    if _PLACEHOLDER in str(file.plain):
        yield finding(AREA, "placeholders", "failed", f"{_PLACEHOLDER} stands there", "fill it in")


def _head_works_not(file: ClusterFile) -> Finding:
    resources = file.kinds[file.head].get("resources", {})
    if not file.stated:
        if re.search(r"--num-cpus[= ]0\b", file.commands()[0]):
            return finding(AREA, "head", "ok", "does no work")
        do = "start the head with --num-cpus=0 --num-gpus=0"
        return finding(AREA, "head", "warning", "whether it does no work is not stated", do)
    if any(resources.get(name, 1) for name in ("CPU", *({"GPU"} & resources.keys()))):
        do = f"set available_node_types.{file.head}.resources to {{CPU: 0}}"
        found = "work can land on it, and a clip take it down"
        return finding(AREA, "head", "warning", found, do)
    return finding(AREA, "head", "ok", "does no work")


def _limits(file: ClusterFile) -> Finding:
    idle = float(file.plain.get("idle_timeout_minutes", 0))
    standing = {
        name: kind["min_workers"]
        for name, kind in file.kinds.items()
        if name != file.head and kind.get("min_workers", 0)
    }
    most = file.plain.get("max_workers", 0)
    if standing and file.provider != "local":
        told = ", ".join(f"{count} x {name}" for name, count in standing.items())
        do = "set their min_workers to 0 if they need not stand ready"
        return finding(AREA, "limits", "warning", f"{told} run with nothing to do", do)
    if idle > LONGEST_IDLE_MINUTES:
        found = f"nodes are given back after {idle:g} idle minutes"
        return finding(AREA, "limits", "warning", found, "set idle_timeout_minutes to less")
    return finding(AREA, "limits", "ok", f"{most} workers at most, idle ones go after {idle:g} min")


def _options(file: ClusterFile) -> str:
    return "\n".join((file.plain.get("docker") or {}).get("run_options") or ())


def _tokens(file: ClusterFile) -> Finding:
    """Whether each node asks for the token, has it, and there is one here."""
    what, options = "token", _options(file)
    bare = [
        which
        for which, text in zip(("head", "workers"), file.commands(), strict=True)
        if TOKEN not in f"{text}\n{options}"
    ]
    if bare:
        found = f"{' and '.join(bare)} start Ray without {TOKEN}: whoever reaches a port runs code"
        do = f"start it by deploy/start.sh, or add `--env {TOKEN}` to docker.run_options"
        return finding(AREA, what, "failed", found, do)
    paths = _token_paths(file)
    sent = [file.mounts().get(path) for path in paths]
    if not sent:
        return finding(AREA, what, "ok", "asked for on every node; bring it there yourself")
    if sent[0] is None:
        do = f"add {paths[0]}: ~/.ray/auth_token to file_mounts"
        return finding(AREA, what, "failed", f"no node gets a file {paths[0]}", do)
    if not sent[0].is_file():
        do = "make one: ray get-auth-token --generate"
        return finding(AREA, what, "failed", f"there is no {sent[0]}", do)
    if sent[0].stat().st_mode & 0o077:
        do = f"chmod 600 {sent[0]}"
        return finding(AREA, what, "warning", f"others may read {sent[0]}", do)
    return finding(AREA, what, "ok", "asked for on every node, and sent to each")


def _token_paths(file: ClusterFile) -> list[str]:
    """Where the nodes look for the token: as they are told, else where Ray does, if it is sent."""
    told = re.findall(rf"{TOKEN_PATH}(\S+)", _options(file))
    return told or [each for each in file.mounts() if each == _USUAL_TOKEN]


def _outlives(file: ClusterFile) -> Iterator[Finding]:
    """Whether runs and models outlive the head's container and its machine."""
    started = "\n".join(file.plain.get("head_start_ray_commands", ()))
    if not re.search(r"start\.sh\s+head", started):
        return
    docker = file.plain.get("docker") or {}
    options = "\n".join([_options(file), *(docker.get("head_run_options") or ())])
    told = f"{started}\n{options}"
    if re.search(r"\bFUSELINE_MLFLOW_STORE(_FILE)?=", told):
        yield finding(AREA, "runs", "ok", "MLflow keeps them outside of the head")
        return
    do = "for more than a trial give FUSELINE_MLFLOW_STORE_FILE and FUSELINE_ARTIFACTS to start.sh"
    if docker.get("container_name") and not _is_mounted(told, options):
        found = "MLflow's runs and registered models lie in the head's container, and go with it"
        do = f"mount a folder of the machine there by docker.head_run_options; {do}"
        yield finding(AREA, "runs", "warning", found, do)
    elif file.provider != "local":
        found = "MLflow's runs and registered models lie on the disk of the head, and go with it"
        yield finding(AREA, "runs", "warning", found, do)


def _is_mounted(told: str, options: str) -> bool:
    """Whether the folder of the head's state is one of its machine, by `docker run -v`."""
    given = _STATE.search(told)
    state = given[1].rstrip("/") if given else HOME_STATE
    targets = [each.rstrip("/") for each in _VOLUME.findall(options)]
    return any(state == each or state.startswith(f"{each}/") for each in targets)


def _dashboard(file: ClusterFile) -> Finding:
    if _OPEN.search("\n".join(file.commands())):
        found = "listens on all addresses, and whoever uses it runs code"
        do = "start the head by deploy/start.sh, or with --dashboard-host=127.0.0.1"
        return finding(AREA, "dashboard", "failed", found, do)
    return finding(AREA, "dashboard", "ok", "on loopback; `ray dashboard` opens a tunnel")


def _images(file: ClusterFile) -> Iterator[Finding]:
    import sys

    ours = (version("ray"), sys.version_info.major, sys.version_info.minor)
    for image in dict.fromkeys(_names(file)):
        told = _IMAGE.search(image)
        if told is None:
            found = f"{image} does not say which Ray and Python it has"
            yield finding(AREA, "image", "warning", found, "a live cluster is asked, by --address")
        elif (told[1], int(told[2]), int(told[3])) != ours:
            found = f"{image}, and here is Ray {ours[0]} on Python {ours[1]}.{ours[2]}"
            do = f"name an image of {ours[0]}-py{ours[1]}{ours[2]}"
            yield finding(AREA, "image", "failed", found, do)
        else:
            yield finding(AREA, "image", "ok", f"{image}: the Ray and the Python of here")


def _names(file: ClusterFile) -> Sequence[str]:
    parts = [file.plain.get("docker") or {}, *(k.get("docker") or {} for k in file.kinds.values())]
    keys = ("image", "head_image", "worker_image")
    return [str(part[key]) for part in parts for key in keys if part.get(key)]


def _sent(file: ClusterFile) -> Finding:
    """Whether all that is copied to the nodes is there; of the token it is told elsewhere."""
    paths = _token_paths(file)
    wanted = {remote: local for remote, local in file.mounts().items() if remote not in paths}
    missing = [str(local) for local in wanted.values() if not local.exists()]
    if missing:
        do = "mend file_mounts, whose paths start from where `ray up` is called"
        return finding(AREA, "files", "failed", f"not there: {', '.join(missing)}", do)
    return finding(AREA, "files", "ok", f"{len(wanted)} files and folders are sent to every node")
