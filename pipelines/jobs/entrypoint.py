"""Runs on the node: a command, its secrets unsealed before it, its end recorded after it.

python -P -m pipelines.jobs.entrypoint ID FOLDER RECORD COMMAND...; FOLDER is a path that all nodes
reach, or the name of a package beside our own; RECORD is - where there is none.
"""

import codecs
import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO

from pipelines import HOME
from pipelines.experiment import InputError
from pipelines.jobs.records import SIGTERM_CODE, Record, write
from pipelines.jobs.sealing import Mask, unseal
from pipelines.jobs.submission import INSIDE, SEALED
from pipelines.jobs.tokens import find_token

PR_SET_PDEATHSIG = 1
LAST_WORDS_S = 5.0
CANNOT_BEGIN_CODE = 126  # of shells


def words_of(command: Sequence[str]) -> list[str]:
    """The program and its arguments for the words of a job's command.

    -P, since the working directory may hold a training/ of its own.
    """
    if command[0] == "python":
        return [sys.executable, "-P", *command[1:]]
    return [sys.executable, "-P", "-m", "pipelines", *command]


def path_of(command: Sequence[str], path: str, place: Path) -> str:
    """PYTHONPATH for a command: a program finds what lies beside it, behind everything else."""
    if command[0] != "python":
        return path
    beside = [str((place / word).parent) for word in command[1:2] if word.endswith(".py")]
    return os.pathsep.join([*filter(None, [path]), *dict.fromkeys([*beside, str(place)])])


def place_of(folder: str) -> Path:
    """Where a job runs.

    Raises:
        InputError: This node does not reach that.
    """
    place = Path(folder) if folder.startswith("/") else HOME.parent / Path(folder).stem / INSIDE
    if not place.is_dir():
        raise InputError(
            f"{place} is not on {socket.gethostname()}; --shared wants a working directory that "
            f"all nodes reach by the same path"
        )
    return place


def main(name: str, folder: str, record: str, command: Sequence[str]) -> int:
    """Run a command to its end; returns its exit code, as shells tell it."""
    stopped = threading.Event()

    def hear(number: int, frame: FrameType | None) -> None:
        # Ray sends the signal to the command as well; a second one would cut its saving short.
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hear)
    try:
        place = place_of(folder)
        secrets = _secrets()
    except InputError as error:
        _say(str(error))
        return 2
    began = Record(name=name, host=socket.gethostname(), began=time.time())
    _keep(record, began)
    if stopped.is_set():  # nothing has begun that would have to save
        ended = replace(began, ended=time.time(), exit_code=SIGTERM_CODE, stopped=True)
        _keep(record, ended)
        return SIGTERM_CODE

    def watch(child: "subprocess.Popen[bytes]") -> None:
        if stopped.is_set():  # it came too early for the child to hear
            child.send_signal(signal.SIGTERM)
        threading.Thread(target=tell, daemon=True).start()

    def tell() -> None:
        stopped.wait()
        _keep(record, replace(began, stopped=True))

    path = path_of(command, os.environ.get("PYTHONPATH", ""), place)
    code = _run(words_of(command), place, {"PYTHONPATH": path}, secrets, watch)
    ended = replace(began, ended=time.time(), exit_code=code, stopped=stopped.is_set())
    _keep(record, ended)
    return code


def _secrets() -> dict[str, str]:
    sealed = os.environ.get(SEALED)
    return unseal(sealed, find_token(os.environ, Path.home())) if sealed else {}


def _run(
    words: Sequence[str],
    place: Path,
    more: Mapping[str, str],
    secrets: Mapping[str, str],
    watch: Callable[["subprocess.Popen[bytes]"], None],
) -> int:
    environment = {**os.environ, **more, **secrets}
    environment.pop(SEALED, None)
    try:
        child = subprocess.Popen(  # noqa: S603 - no shell; the words are the submitter's own
            words,
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - no other thread has begun
        )
    except OSError as error:
        _say(f"the command does not begin: {error}")
        return CANNOT_BEGIN_CODE
    with child:
        watch(child)
        if child.stdout is not None:  # never: it is a pipe
            _pass_on(child.stdout, child, Mask(secrets.values()))
        code = child.wait()
    return 128 - code if code < 0 else code


def _end_with_parent() -> None:
    """Killed with this process: nobody would record its end, and an attempt may begin beside it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _pass_on(written: IO[bytes], child: "subprocess.Popen[bytes]", mask: Mask) -> None:
    """Write what a child writes, masked, until it has ended and a little longer.

    What it left behind may hold the pipe open for ever. Of a log with a byte that is no UTF-8, as
    in a file's name of another encoding, Ray (2.60.0) shows nothing: such bytes are written in hex.
    Held by test_bytes_that_are_no_text_do_not_hide_the_log.
    """
    last = float("inf")
    text = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    while time.monotonic() < last:
        if select.select([written], [], [], 0.2)[0]:
            content = os.read(written.fileno(), 1 << 16)
            if not content:
                break
            _write(text.decode(mask(content)).encode())
        if last == float("inf") and child.poll() is not None:
            last = time.monotonic() + LAST_WORDS_S
    _write(text.decode(mask.rest(), final=True).encode())


def _write(content: bytes) -> None:
    """Write into the job's log; a disk that is full under it ends no job."""
    with contextlib.suppress(OSError):
        while content:
            content = content[os.write(sys.stdout.fileno(), content) :]


def _keep(address: str, record: Record) -> None:
    """Record; a job whose storage fails is done all the same, and Ray's word has to do."""
    if address == "-":
        return
    try:
        write(address, record)
    except Exception as error:  # noqa: BLE001 - each store's library has errors of its own
        _say(f"this job is not recorded at {address}: {error}")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"fuseline: {' '.join(line.split())}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
