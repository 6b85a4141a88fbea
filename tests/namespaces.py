"""Hosts on one machine: namespaces of the kernel, joined by a switch. Root alone may make them.

A host has a network, an address and a loopback of its own, processes of its own (what goes through
the list of processes, as `ray stop` does, finds no others), a name, a /dev/shm, and folders of its
own where it is told so; all else of the disk is what all hosts share. Nothing of it has a name
outside: with the last process a host is gone, and its first process ends with the one that made it,
however that ends.
"""

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1
CLONE_NEWNET = 0x40000000
SPACES = ("--net", "--mount", "--uts", "--ipc", "--pid")
UNSHARE = ("unshare", *SPACES, "--fork", "--mount-proc", "--kill-child=SIGKILL")
RAYS = "/tmp/ray"  # noqa: S108 - where Ray keeps its sessions
LIBC = ctypes.CDLL(None, use_errno=True)

# The first process of a host. It waits for its wire, and reaps what loses its parent by ignoring
# the end of children.
FIRST = """\
set -e
name=$1; names=$2; shift 2
hostname "$name"
ip link set lo up
mount -t tmpfs tmpfs /dev/shm
mount --bind "$names" /etc/hosts
while [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift 2; done
echo up
exec env --ignore-signal=CHLD sleep infinity
"""


@functools.cache
def refused() -> str:
    """Why no host can be made here; empty where they can."""
    if missing := [tool for tool in ("ip", "unshare", "nsenter") if not shutil.which(tool)]:
        return f"no {missing[0]} on this machine"
    tried = subprocess.run(
        [*UNSHARE, "ip", "link", "set", "lo", "up"],
        capture_output=True,
        text=True,
        check=False,
    )
    return tried.stderr.strip() if tried.returncode else ""


@dataclass(frozen=True)
class Host:
    """One of a network.

    Attributes:
        name: As `hostname` tells it, and by which the others find it.
        address: On the network that all hosts share.
        home: A folder of its own, for what runs there as HOME.
        first: The process outside, with which all of the host ends.
        pid: Of its first process, as seen from outside.
        switch: What its wire leads to.
    """

    name: str
    address: str
    home: Path
    first: subprocess.Popen
    pid: int
    switch: Sequence[str]

    @property
    def prefix(self) -> list[str]:
        """Words that run what comes after them there, in the folder /."""
        return ["nsenter", f"--target={self.pid}", *SPACES]

    def words(self, command: Sequence[str], cwd: Path | str = "/") -> list[str]:
        """The words of a command that runs there in a folder."""
        return [*self.prefix, "env", f"--chdir={cwd}", *map(str, command)]

    def popen(self, command: Sequence[str], *, cwd: Path | str = "/", **options):
        """A process there, leader of a group: by that it is ended, since nsenter is before it."""
        return subprocess.Popen(self.words(command, cwd), start_new_session=True, **options)

    def run(self, command: Sequence[str], *, cwd: Path | str = "/", **options):
        """As `subprocess.run`; raises where it fails, unless `check` says not to."""
        options.setdefault("check", True)
        return subprocess.run(self.words(command, cwd), **options)  # noqa: PLW1510 - it is set

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread, and what it starts, are on this host's network; all else stays."""
        with (
            Path("/proc/thread-self/ns/net").open() as before,
            Path(f"/proc/{self.pid}/ns/net").open() as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def cut(self) -> None:
        """Take its wire off: nobody is told, all on it goes on."""
        self._wire("down")

    def join(self) -> None:
        """Put the wire on again."""
        self._wire("up")

    def kill(self) -> None:
        """End all of its processes at once; its folders stay. Twice is no error."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.first.wait()

    def _wire(self, state: str) -> None:
        subprocess.run([*self.switch, "ip", "link", "set", f"to-{self.pid}", state], check=True)


@dataclass
class Network:
    """Hosts by name; see `network`.

    Attributes:
        switch: The first process of what all wires lead to.
    """

    folder: Path
    prefix: str
    switch: int
    hosts: dict[str, Host] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(2, 255)))

    def host(self, name: str, own: Sequence[str] = (RAYS,), address: str = "") -> Host:
        """Add one, up when this returns.

        Args:
            name: That no host has, or that of one that was killed: its folders are found again.
            own: Paths that are other folders there, of the same content as long as `folder` is.
            address: Of one that was killed, to have it again.
        """
        if name in self.hosts:
            self.hosts[name].kill()
        home = self._folder(name, "home")
        binds = []
        for path in own:
            Path(path).mkdir(parents=True, exist_ok=True)
            binds += [self._folder(name, path.strip("/").replace("/", "-")), path]
        address = address or f"{self.prefix}.{next(self.numbers)}"
        names = self.folder / "hosts"
        first = _first([name, names, *binds])
        pid = _child(first)
        wire, switch = f"to-{pid}", ["nsenter", f"--target={self.switch}", "--net"]
        made = Host(name, address, home, first, pid, switch)
        self.hosts[name] = made
        # The file itself is in each host: it is written, not replaced.
        names.write_text(_names(self.hosts.values()))
        for command in (
            [*switch, "ip", "link", "add", wire, "type", "veth", "peer", "wire", "netns", str(pid)],
            [*switch, "ip", "link", "set", wire, "master", "switch", "up"],
            [*made.prefix, "ip", "address", "add", f"{address}/24", "dev", "wire"],
            [*made.prefix, "ip", "link", "set", "wire", "up"],
            # A way to nowhere: what is not there is asked for in vain for some seconds.
            [*made.prefix, "ip", "route", "add", "default", "dev", "wire"],
        ):
            subprocess.run(command, check=True)
        return made

    def _folder(self, host: str, what: str) -> Path:
        made = self.folder / host / what
        made.mkdir(parents=True, exist_ok=True)
        return made


@contextlib.contextmanager
def network(folder: Path, prefix: str = "10.91.7") -> Iterator[Network]:
    """A network without hosts; all that are made end with it.

    Args:
        folder: Of what is each host's own.
        prefix: The first three bytes of all addresses. It is of no meaning outside of the hosts, so
            that several networks of the same one may be there at once.
    """
    names = folder / "hosts"
    names.write_text(_names([]))
    middle = _first(["switch", names])
    try:
        made = Network(folder, prefix, _child(middle))
        by = ["nsenter", f"--target={made.switch}", "--net", "ip", "link"]
        subprocess.run([*by, "add", "switch", "type", "bridge"], check=True)
        subprocess.run([*by, "set", "switch", "up"], check=True)
        try:
            yield made
        finally:
            for host in made.hosts.values():
                host.kill()
    finally:
        middle.kill()
        middle.wait()


def _first(words: Sequence[str | Path]) -> subprocess.Popen:
    made = subprocess.Popen(
        [*UNSHARE, "sh", "-c", FIRST, "first", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_parent,  # noqa: PLW1509 - it makes one system call
    )
    assert made.stdout.readline() == b"up\n", made.communicate()[1].decode()
    return made


def _end_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _child(process: subprocess.Popen) -> int:
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


def _names(hosts: Sequence[Host]) -> str:
    known = [("127.0.0.1", "localhost"), *((host.address, host.name) for host in hosts)]
    return "".join(f"{address} {name}\n" for address, name in known)


def _enter(file: int) -> None:
    if LIBC.setns(file, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
