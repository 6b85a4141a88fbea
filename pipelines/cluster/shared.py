"""Whether all nodes reach what they shall share: media, dataset, runs, weights, tracking store."""

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from featurizers import catalog
from featurizers.store import is_remote, shown
from pipelines.cluster.launcher import ClusterFile
from pipelines.cluster.live import Live, Node, Question
from pipelines.cluster.probe import fingerprint
from pipelines.experiment import Experiment, InputError
from pipelines.findings import Finding, State, finding
from pipelines.sources import rows_of
from tracking.mlflow_store import public, tracking_uri

T = TypeVar("T")

AREA = "shared"
SAMPLES = 3  # media that nodes are asked for
LOOKED_AT = 10_000  # names below a folder of media
MARKER = ".fuseline-validate-"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
NETWORK_DISKS = (
    "nfs", "nfs4", "lustre", "gpfs", "ceph", "cifs", "smb3", "beegfs", "afs", "9p", "virtiofs",
    "glusterfs", "orangefs", "panfs", "wekafs", "fuse.s3fs", "fuse.gcsfuse", "fuse.sshfs",
    "fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.mount-s3", "fuse.rclone", "fuse.blobfuse2",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Something that several nodes use.

    Attributes:
        what: For people.
        paths: Local files, or folders.
        urls: Of objects, or of prefixes that need not hold anything yet.
        written: Whether nodes write below it, so that a copy of it will not do.
        along: Whether a copy may come with a job, since it lies in the experiment's folder.
    """

    what: str
    paths: Sequence[Path] = ()
    urls: Sequence[str] = ()
    written: bool = False
    along: bool = False


def is_named(live: Live | None, variables: Mapping[str, str] | None) -> bool:
    """Whether a job or its nodes are told of a tracking store."""
    return bool(chosen_store(variables)) or any(each.store for each in (live.nodes if live else ()))


def lost_with_copy() -> Finding:
    """What becomes of runs that nobody told where to go, where a job works in a copy."""
    found = "runs and models would lie in the job's copy of the folder, and go with it"
    do = "serve MLflow as deploy/start.sh head does, or give --env MLFLOW_TRACKING_URI=http://..."
    return finding(AREA, "tracking", "failed", f"MLFLOW_TRACKING_URI is not set: {found}", do)


def places_of(experiment: Experiment, copy: Path | None = None) -> list[Place]:
    """All that workers and ranks use besides code; needs no featurizer to be built.

    Args:
        experiment: The settings.
        copy: A working directory that goes along with a job, and is left out.
    """
    found = _places(experiment)
    if copy is None:
        return found
    folder = copy.resolve()

    def stays(path: Path) -> bool:
        return not path.resolve().is_relative_to(folder)

    others = [replace(place, paths=[*filter(stays, place.paths)]) for place in found]
    return [place for place in others if place.paths or place.urls]


def _places(experiment: Experiment) -> list[Place]:
    found = [_media(experiment)] if experiment.workers.featurize else []
    root = experiment.root
    found.append(
        Place(what="dataset", urls=[str(root)])
        if is_remote(root)
        else Place(what="dataset", paths=[Path(root)], written=True)
    )
    if is_remote(root):
        found.append(Place(what="runs and checkpoints", paths=[experiment.work], written=True))
    weights = _weights(experiment) if experiment.workers.featurize else []
    if weights:
        found.append(_readable(experiment, "weights", weights))
    return found


def _media(experiment: Experiment) -> Place:
    """Some media that the table names, or that lie in the folder that was given."""
    try:
        given = [str(row["media"]) for row in rows_of(experiment) if "media" in row]
    except InputError:
        given = []
    if not given:
        return _readable(experiment, "media", list(islice(_files(experiment.given), SAMPLES)))
    beside = experiment.table.parent
    urls = [each for each in given if "://" in each]
    local = [(beside / each).resolve() for each in given if "://" not in each]
    return _readable(experiment, "media", _some(local), _some(urls))


def _readable(
    experiment: Experiment, what: str, paths: Sequence[Path], urls: Sequence[str] = ()
) -> Place:
    along = bool(paths) and all(each.is_relative_to(experiment.folder) for each in paths)
    return Place(what=what, paths=paths, urls=urls, along=along)


def _some(names: Sequence[T]) -> list[T]:
    """The first, the middle one and the last."""
    places = sorted({0, len(names) // 2, len(names) - 1}) if names else []
    return [names[place] for place in places]


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for each in islice(folder.rglob("*"), LOOKED_AT):
        if each.is_file() and not each.name.startswith("."):
            yield each


def _weights(experiment: Experiment) -> list[Path]:
    """Files and folders of weights that the user names; names of a hub are none."""
    found = []
    for section in experiment.features.values():
        settings = section.model_dump()
        try:
            name = catalog.places(section.featurizer)
        except ValueError:  # no such featurizer, which is told elsewhere
            continue
        given = settings.get(name)
        if isinstance(given, str) and given and not settings.get("revision"):
            found.append(experiment.folder / given)
    return [each for each in dict.fromkeys(found) if each.exists()]


@contextmanager
def marked(places: Sequence[Place], store: str = "") -> Iterator[Question]:
    """What nodes are asked; a marker lies in each folder that is to be shared for so long.

    A folder of that name on another disk has no such file. Where none can be laid, since the folder
    is not on this machine or may not be written, nodes are asked for the topmost folder alone.

    Args:
        places: What several nodes use.
        store: The tracking store by `chosen_store`; each node is asked for its own besides.
    """
    name = f"{MARKER}{secrets.token_hex(6)}"
    written = [path for each in places if each.written for path in each.paths]
    markers: list[Path] = []
    try:
        for folder in dict.fromkeys(map(_there, written)):
            with suppress(OSError):  # the doctor tells that nobody may write there
                if folder != folder.parent:
                    (folder / name).write_text(name)
                    markers.append(folder / name)
        files = [path for each in places if not each.written for path in each.paths]
        urls = [url for each in places for url in each.urls]
        asked = dict.fromkeys(map(str, [*markers, *files, *map(_top, written)]))
        yield Question(files=list(asked), urls=urls, hosts=_hosts(store))
    finally:
        for marker in markers:
            marker.unlink(missing_ok=True)


def _top(path: Path) -> Path:
    """The first folder below the root, such as a mount."""
    return Path(*path.absolute().parts[:2])


def _there(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    place = path.resolve()
    return next(each for each in (place, *place.parents) if each.is_dir())


def chosen_store(variables: Mapping[str, str] | None) -> str:
    """The tracking store that is named here; empty where nobody names one.

    Args:
        variables: Those that a job is given; what this process was told of, it is not. None where
            none is submitted yet.
    """
    told = os.environ if variables is None else variables
    return told.get("MLFLOW_TRACKING_URI", "")


def _hosts(store: str) -> list[tuple[str, int]]:
    """Where an MLflow server would listen; none for other stores."""
    parts = urlsplit(store)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return []
    return [(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))]


def check_live(places: Sequence[Place], question: Question, live: Live) -> Iterator[Finding]:
    """Whether each node on which work can land reaches all places, by what it answered."""
    nodes = [each for each in live.nodes if each.works and not each.error]
    files = map(Path, question.files)
    markers = {each.parent: str(each) for each in files if each.name.startswith(MARKER)}
    for place in places:
        lacking: list[str] = []
        for node in nodes:
            lacking += [f"{path} on {node}" for path in _lacking(place, node, markers)]
            lacking += [
                f"{shown(url)} on {node}: {shown(node.urls[url])}" for url in _away(place, node)
            ]
        unseen = [path for path in place.paths if place.written and _there(path) not in markers]
        if lacking:
            yield _refused(place, f"not reached: {'; '.join(lacking)}")
        elif unseen:
            found = (
                f"{_top(unseen[0])} is on {len(nodes)} node(s), and was not written to from here"
            )
            do = "see that it is one disk for all of them"
            yield finding(AREA, place.what, "warning", found, do)
        else:
            found = f"{_named(place)}, reached by {len(nodes)} node(s)"
            if any(url not in node.urls for node in nodes for url in place.urls):
                found = f"{_named(place)}; those with a password or a signature could not be asked"
            yield finding(AREA, place.what, "ok", found)


def _lacking(place: Place, node: Node, markers: Mapping[Path, str]) -> list[Path]:
    if place.written:
        wanted = {path: markers.get(_there(path), str(_top(path))) for path in place.paths}
        return [path for path, asked in wanted.items() if not node.files.get(asked)]
    return [path for path in place.paths if node.files.get(str(path)) != fingerprint(str(path))]


def _away(place: Place, node: Node) -> list[str]:
    # A dataset's prefix comes into being with its first object.
    new = "not there" if place.what == "dataset" else ""
    return [url for url in place.urls if node.urls.get(url) and node.urls[url] != new]


def check_unasked(places: Sequence[Place], file: ClusterFile | None) -> Iterator[Finding]:
    """The same, where no node can be asked: by the disk that it lies on here."""
    mounts = {} if file is None else file.mounts()
    for place in places:
        own = [
            path
            for path in place.paths
            if not _sent(path, mounts) and _disk(path) not in NETWORK_DISKS
        ]
        if not own:
            how = " on a disk of the network" if place.paths else ""
            yield finding(AREA, place.what, "ok", f"{_named(place)}{how}; no node was asked")
        elif not any(_is_here(path, made=place.written) for path in own):
            found = f"{own[0]} is not on this machine"
            do = "give --address, so that the nodes are asked"
            yield finding(AREA, place.what, "warning", found, do)
        else:
            yield _refused(place, f"{own[0]} lies on a disk of this machine ({_disk(own[0])})")
    if file is not None:
        yield from _accounts(places, file)


def _accounts(places: Sequence[Place], file: ClusterFile) -> Iterator[Finding]:
    """Whether workers may reach buckets; Ray's launcher gives a right to the head alone."""
    scheme, setting = _ACCOUNTS.get(file.provider, ("", ""))
    urls = [url for place in places for url in place.urls if url.startswith(f"{scheme}://")]
    bare = [
        name
        for name, kind in file.kinds.items()
        if name != file.head and setting not in kind.get("node_config", {})
    ]
    if setting and urls and bare:
        found = f"{shown(urls[0])}: {', '.join(bare)} may have no right to reach it"
        do = f"give their node_config {setting}, as docs/operations.md shows"
        yield finding(AREA, "buckets", "warning", found, do)


def _is_here(path: Path, *, made: bool) -> bool:
    """Whether a path is this machine's: it is there, or it will be made in a folder that is."""
    return path.exists() or (made and _there(path) != _there(path).parent)


def _sent(path: Path, mounts: dict[str, Path]) -> bool:
    return any(path.is_relative_to(remote) for remote in mounts)


def _refused(place: Place, found: str) -> Finding:
    usual = "put the experiment file on a disk that all nodes share, at one path"
    state: State = "failed"
    do = _CURES.get(place.what, usual)
    if place.along:
        state = "warning"
        do = f"let it go along with a job's copy of the folder, which takes 100 MiB; or {do}"
    return finding(AREA, place.what, state, found, do)


# What a launcher's file calls the right to reach that cloud's buckets.
_ACCOUNTS = {"aws": ("s3", "IamInstanceProfile"), "gcp": ("gs", "serviceAccounts")}
_CURES: Mapping[str, str] = {
    "media": "give URLs of an object store below source.media_root, or a disk that all share",
    "dataset": "name an object store, as dataset: s3://bucket/mydata, or a disk that all share",
    "weights": "put it at the same path on each node, as by file_mounts",
}


def _named(place: Place) -> str:
    names = [*map(str, place.paths), *map(shown, place.urls)]
    return ", ".join(names) or "none"


def _disk(path: Path) -> str:
    """The kind of file system that a path lies on."""
    import psutil

    place = _there(path)
    holding = [
        part for part in psutil.disk_partitions(all=True) if place.is_relative_to(part.mountpoint)
    ]
    found = max(holding, key=lambda part: len(part.mountpoint), default=None)
    return "" if found is None else str(found.fstype)


def check_store(
    folder: Path,
    file: ClusterFile | None,
    live: Live | None,
    variables: Mapping[str, str] | None = None,
) -> Finding:
    """Whether the tracking store is one for all nodes; more than one node is taken as given.

    Args:
        folder: Where the store would lie if nobody said.
        file: Whose start commands may name one.
        live: Whose nodes may.
        variables: Those that a job is given; None where none is submitted yet.
    """
    what, chosen = "tracking", chosen_store(variables)
    nodes = [] if live is None else [each for each in live.nodes if not each.error]
    if variables is not None and chosen:
        return _judged(chosen, "--env MLFLOW_TRACKING_URI", nodes)
    told = {each.store for each in nodes}
    # A job is given what Ray was started with; a command in a shell has its own.
    if live is not None and live.by_job and told != {""}:
        if len(told) > 1:
            do = "start all nodes with one MLFLOW_TRACKING_URI"
            several = ", ".join(sorted(each or "none" for each in told))
            return finding(AREA, what, "failed", f"the nodes name several: {several}", do)
        return _judged(told.pop(), "of the nodes' own MLFLOW_TRACKING_URI", nodes)
    if chosen:
        by_job = live is not None and live.by_job
        given = ", which a job gets by `job submit --env` alone" if by_job else ""
        return _judged(chosen, f"MLFLOW_TRACKING_URI of here{given}", nodes)
    started = () if live is not None or file is None else file.commands()
    if started and all("MLFLOW_TRACKING_URI=" in text for text in started):
        found = "the head's MLflow server, which nodes and jobs are told of by their start"
        return finding(AREA, what, "ok", found)
    usual = tracking_uri(folder) if variables is None else f"sqlite:///{folder}/mlflow.db"
    return _judged(usual, "MLFLOW_TRACKING_URI is not set", nodes)


def _judged(uri: str, where: str, nodes: Sequence[Node]) -> Finding:
    what, told, parts = "tracking", public(uri), urlsplit(uri)
    do = "serve MLflow where all nodes reach it, as deploy/start.sh head does, and set the variable"
    if parts.scheme in {"", "file", "sqlite"}:
        kind = "a SQLite file" if parts.scheme == "sqlite" else "a local folder"
        found = f"{told} is {kind}, and there is more than one node ({where})"
        return finding(AREA, what, "failed", found, do)
    if parts.scheme not in {"http", "https"}:
        found = f"{told}: runs are shared, and files would lie in a folder of one machine"
        return finding(AREA, what, "failed", found, do)
    if parts.hostname in LOOPBACK:
        found = f"{told} is another machine on each node ({where})"
        return finding(AREA, what, "failed", found, do)
    (place,) = [f"{host}:{port}" for host, port in _hosts(uri)]
    answers = [(node, node.hosts[place]) for node in nodes if place in node.hosts]
    away = [f"{node}: {why}" for node, why in answers if why]
    if away:
        do = "let the server's port through, and see that it runs"
        return finding(AREA, what, "failed", f"{told} is not reached: {'; '.join(away)}", do)
    asked = f"; reached by {len(answers)} nodes" if answers else ""
    return finding(AREA, what, "ok", f"{told}, {where}{asked}")
