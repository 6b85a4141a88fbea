"""What is submitted, its digest, and the ids of its attempts."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurizers.spec import canonical_json
from featurizers.store import shown
from pipelines.executors import Need
from pipelines.experiment import InputError

OURS = "fuseline"
"""The key of a job's metadata by which ours are known, with the format's number."""
FORMAT = "1"
STOP_WAIT_S = 3600
"""How long Ray waits for a job that is to stop; ours end by themselves, within train.hang_s."""
MOST_TOLD = 120_000
"""Bytes of the command with all that goes with it; Linux lets one argument have 131072."""
SEALED = "FUSELINE_SEALED"
"""The environment variable of sealed secrets."""
COMMIT = "FUSELINE_COMMIT"
"""That of the commit of our code, which a wheel does not have."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
INSIDE = "fuseline-work"
"""The folder that holds the working directory in its package. What lies at the top of a package is
imported before the standard library; of a folder with a hyphen nothing is."""
KEPT = frozenset(
    {"CUDA_VISIBLE_DEVICES", "HOME", "PATH", "PYTHONHOME", "PYTHONPATH", SEALED, COMMIT}
)
"""Variables that jobs need as they are: by some Ray finds Python and the token, and gives GPUs."""
RAY_LIBRARIES = ("RAY_AIR_", "RAY_DATA_", "RAY_TRAIN_", "RAY_TUNE_")
"""Settings of Ray's that jobs may change; others are of the cluster."""
_TELLING = ("APIKEY", "PASSPHRASE", "PASSWD", "PASSWORD", "PWD", "SECRET", "TOKEN")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What decides what a job does; equal ones are one submission, and attempts of it follow.

    Attributes:
        command: Its words; the first is a command of ours, or python.
        wheel: The name of our code, which has its digest.
        folder: The name of the packed working directory, or the path of one that all nodes reach.
        inputs: Digest of the files that are named and stay where they are.
        need: What the driver holds of its node.
        variables: Environment variables, by name.
        secrets: Names of those whose values nobody is to see. The values do not count: one that
            was renewed makes no other submission.
        record: Where its ends are recorded, which decides nothing; empty where no place is known.
    """

    command: tuple[str, ...]
    wheel: str
    folder: str
    inputs: str
    need: Need
    variables: Mapping[str, str]
    secrets: tuple[str, ...]
    record: str

    @property
    def shared(self) -> bool:
        """Whether the working directory stays where it is."""
        return self.folder.startswith("/")

    @property
    def digest(self) -> str:
        """Of all that decides what is done, in 12 hex digits."""
        decides = {name: value for name, value in self.to_json().items() if name != "record"}
        return hashlib.sha256(canonical_json(decides)).hexdigest()[:12]

    def attempt(self, number: int) -> str:
        """The id of an attempt."""
        return f"{self.command[0]}-{self.digest}-{number}"

    def to_json(self) -> dict[str, Any]:
        """Plain data, without anything that is secret."""
        return {
            "command": list(self.command),
            "wheel": self.wheel,
            "folder": self.folder,
            "inputs": self.inputs,
            "cpus": self.need.cpus,
            "gpus": self.need.gpus,
            "memory_bytes": self.need.memory_bytes,
            "variables": dict(self.variables),
            "secrets": list(self.secrets),
            "record": self.record,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Submission":
        """The reverse of `to_json`."""
        need = Need(plain["cpus"], plain["gpus"], plain["memory_bytes"])
        return cls(
            command=tuple(plain["command"]),
            wheel=plain["wheel"],
            folder=plain["folder"],
            inputs=plain["inputs"],
            need=need,
            variables=plain["variables"],
            secrets=tuple(plain["secrets"]),
            record=plain["record"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What goes with an attempt and decides nothing of what it does.

    Attributes:
        source: The submitter's working directory, by which a retry finds it.
        commit: What was checked out there of our code; runs are marked with it.
        sealed: The secrets, sealed; empty where there are none.
    """

    source: str
    commit: str
    sealed: str = ""


def request(submission: Submission, number: int, origin: Origin, nonce: str) -> dict[str, Any]:
    """What Ray's Jobs API is asked for.

    Args:
        submission: What to do.
        number: Of the attempt.
        origin: Where it is from.
        nonce: What tells this start from another of the same id, on a cluster made anew.

    Raises:
        InputError: It is more than a process can be told.
    """
    name = submission.attempt(number)
    record = submission.record and f"{submission.record}/{name}.{nonce}"
    entry = ("python", "-P", "-m", "pipelines.jobs.entrypoint", name, submission.folder)
    packages = [submission.wheel, *([] if submission.shared else [submission.folder])]
    environment: dict[str, Any] = {
        # Not `working_dir`: where two nodes are on one machine, the second one removes what the
        # first one works in, and unpacks it anew (Ray 2.60.0).
        # Held by test_a_job_has_our_code_its_folder_its_variables_and_its_exit_code.
        "py_modules": [f"gcs://{package}" for package in packages],
        "env_vars": {
            **submission.variables,
            # Ray's own 3 s (2.60.0) are no time to save anything in; its supervisor reads this.
            # Held by test_two_clients_at_once_get_one_job_which_is_stopped_and_tried_again.
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        },
    }
    if origin.commit:
        environment["env_vars"][COMMIT] = origin.commit
    if origin.sealed:
        environment["env_vars"][SEALED] = origin.sealed
        environment["worker_process_setup_hook"] = "pipelines.jobs.sealing.unseal_here"
    # `exec`: a shell in between would get the signals that are for the command.
    entrypoint = f"exec {shlex.join([*entry, record or '-', *submission.command])}"
    metadata = {
        OURS: FORMAT,
        "submission": json.dumps(submission.to_json(), sort_keys=True),
        "attempt": str(number),
        "source": origin.source,
        "commit": origin.commit,
        "record": record,
        "nonce": nonce,
    }
    # One is an argument of a shell, the other one a variable of the driver (Ray 2.60.0).
    # Held by test_a_command_that_is_too_long_for_a_process_is_refused.
    told = max(len(entrypoint.encode()), len(json.dumps([environment, metadata])))
    if told > MOST_TOLD:
        raise InputError(
            f"the command, its variables and its secrets come to {told} bytes, and a job can be "
            f"told {MOST_TOLD}: write them into a file of the working directory"
        )
    return {
        "entrypoint": entrypoint,
        "submission_id": name,
        "runtime_env": environment,
        "metadata": metadata,
        "entrypoint_num_cpus": submission.need.cpus,
        "entrypoint_num_gpus": submission.need.gpus,
        "entrypoint_memory": submission.need.memory_bytes,
    }


def variables_of(given: Sequence[str]) -> dict[str, str]:
    """Environment variables from NAME=VALUE. Raises InputError."""
    found: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise InputError(f"--env {each}: wanted NAME=VALUE; a secret is given by --secret NAME")
        words = name.upper().split("_")
        if words[-1] == "KEY" or any(word.endswith(_TELLING) for word in words):
            raise InputError(
                f"--env {name}: anybody may see its value, and by its name it is a secret: use "
                f"--secret {name}, which takes it from your environment"
            )
        check_open(value, f"--env {name}", f"use --secret {name}")
        if name in found:
            raise InputError(f"--env {name} is given twice")
        found[checked(name, "--env")] = value
    return dict(sorted(found.items()))


def checked(name: str, option: str) -> str:
    """The name of an environment variable that jobs may be given. Raises InputError."""
    if not NAME.fullmatch(name):
        raise InputError(f"{option} {name}: no name of an environment variable")
    if name in KEPT or (name.startswith("RAY_") and not name.startswith(RAY_LIBRARIES)):
        raise InputError(f"{option} {name}: jobs need it as it is")
    return name


def check_open(text: str, option: str, do: str) -> None:
    """Raise InputError where a text may not be seen by all, or cannot be sent at all.

    Args:
        text: Which stands in the job's metadata and in its log.
        option: By which it was given.
        do: What to do instead.
    """
    if shown(text) != text:
        raise InputError(
            f"{option}: {shown(text)} holds a password or a signature, and anybody may see it: {do}"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{option}: {text!a} is no UTF-8; wanted a name that is") from None


def number_of(name: str) -> int:
    """The number of an attempt by its id."""
    return int(name.rpartition("-")[2])


def meant(names: Iterable[str], text: str) -> str | None:
    """The id that a text means: that one, else the newest attempt of what begins so.

    Raises:
        InputError: Nothing is given, or several submissions begin so.
    """
    known = set(names)
    if text in known:
        return text
    begins = text.rstrip("-")
    if not begins:
        raise InputError("no id of a job is given; `fuseline job list` shows them")
    submissions = sorted({each.rpartition("-")[0] for each in known})
    begun = [each for each in submissions if each.startswith(begins)]
    if len(begun) > 1:
        raise InputError(f"{text} begins {', '.join(begun[:5])}; wanted more of the id")
    mine = [each for each in known if [each.rpartition("-")[0]] == begun]
    return max(mine, key=number_of, default=None)
