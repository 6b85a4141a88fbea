"""What must be true of a dataset's bytes, told without a line of the code that wrote them.

Tars are opened by `tarfile`, tables by pyarrow, JSON and digests by the standard library. All
functions take files by name, as `files` reads them from a folder or an object store.
"""

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

STATES = ("sample", "absent", "quarantined")
MEMBERS = ("values", "times", "meta")
_SHARD = re.compile(r"(?P<stem>\d{5}-[0-9a-f]{12})(-[0-9a-f]{8}\.tar|-[0-9a-f]{8}\.parquet|\.json)")


def files(root, below=""):
    """Every file's bytes by name, unfinished ones too."""
    if "://" in str(root):
        import fsspec

        system, prefix = fsspec.core.url_to_fs(str(root), use_listings_cache=False)
        system.invalidate_cache()
        found = {path: system.cat_file(path) for path in system.find(f"{prefix}/{below}")}
        whole = str(prefix).strip("/") + "/"
        return {path.strip("/").removeprefix(whole): content for path, content in found.items()}
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted((Path(root) / below).rglob("*"))
        if path.is_file()
    }


def digests(root):
    """sha256 by name of every file below the columns."""
    return {name: _sha256(content) for name, content in files(root, "columns").items()}


def hold(found, *, older=False):
    """Hold a finished dataset against its own digests, its plan and its clips.

    Args:
        found: Files by name, as `files` gives them.
        older: Whether manifests and shards that no longer count may lie there too.

    Returns:
        How many of what was looked at.
    """
    shards, seen, known = planned(found), Counter(), set()
    columns = sorted({name.split("/")[1] for name in found if name.startswith("columns/")})
    assert columns, "there is no column"
    for column in columns:
        folder = f"columns/{column}"
        manifest, names = pointed(found, folder)
        known |= names
        assert [record["shard"] for record in manifest["records"]] == sorted(shards), column
        keys, ledger = [], Counter()
        for record in manifest["records"]:
            known |= hold_record(found, folder, record)
            rows = hold_shard(found, folder, record, shards[record["shard"]])
            keys += [row["key"] for row in rows]
            ledger.update(row["state"] for row in rows)
            seen["members"] += 3 * record["counts"]["sample"]
        # Laws 1 and 14.
        assert sorted(keys) == sorted(clips_of(found)), f"{column}: not each clip once"
        assert sum(ledger[state] for state in STATES) == len(keys) == sum(ledger.values())
        seen.update(clips=len(keys), shards=len(manifest["records"]), columns=1)
    strays = {name for name in found if name.startswith("columns/")} - known
    if older:
        strays -= _named_by_older(found, columns)
    assert not strays, f"files that nothing names: {sorted(strays)}"
    return seen


def hold_standing(found):
    """What must be true at any moment, also in the middle of a run that was killed.

    Whatever has a final name is whole, and names only what is there.

    Returns:
        What is finished: column and name of each record.
    """
    finished = set()
    for name, content in found.items():
        if not name.startswith("columns/") or name.rsplit("/", 1)[1].startswith("."):
            continue
        folder, file = name.rsplit("/", 1)
        if file == "manifest.json":
            manifest, _ = pointed(found, folder)
            for record in manifest["records"]:
                hold_record(found, folder, record, own=False)
        elif folder.endswith("/manifests"):
            assert file == f"{_sha256(content)}.json", f"{name} is torn"
        elif file.endswith(".json"):
            record = json.loads(content)
            hold_record(found, folder, record)
            finished.add((folder.removeprefix("columns/"), record["name"]))
        else:
            assert _sha256(content)[:8] in file, f"{name} is torn"
    return finished


def clips_of(found):
    """The keys of all clips."""
    keys = _table(found["clips.parquet"])
    assert len({row["key"] for row in keys}) == len(keys), "clips.parquet has a clip twice"
    return [row["key"] for row in keys]


def planned(found):
    """The keys of each shard in the plan's order, of the clips that there are."""
    clips, shards, dealt = set(clips_of(found)), {}, Counter()
    rows = _table(found["plan.parquet"])
    for row in sorted(rows, key=lambda row: (row["shard"], row["position"])):
        dealt[row["key"]] += 1
        if row["key"] in clips:
            shards.setdefault(row["shard"], []).append(row["key"])
    assert set(dealt.values()) <= {1}, "the plan has a clip twice"
    assert clips <= set(dealt), "the plan lacks a clip"
    return shards


def pointed(found, folder):
    """The manifest that a column's pointer names, and the names of both files."""
    pointer = f"{folder}/manifest.json"
    digest = json.loads(found[pointer])["digest"]
    name = f"{folder}/manifests/{digest}.json"
    assert _sha256(found[name]) == digest, f"{name} is not what its name says"
    return json.loads(found[name]), {pointer, name}


def hold_record(found, folder, record, *, own=True):
    """Hold a record against itself and both of its files; returns the names of all three.

    Args:
        own: Whether the record's own file must say the same.
    """
    plain = {name: value for name, value in record.items() if name != "digest"}
    assert _sha256(_json(plain)) == record["digest"], f"{folder}: a record's digest"
    match = _SHARD.fullmatch(f"{record['name']}.json")
    assert match, record["name"]
    assert match["stem"] == f"{record['shard']:05d}-{record['job'][:12]}"
    names = {f"{folder}/{record['name']}.json"}
    if own:
        assert found[f"{folder}/{record['name']}.json"] == _json(record)
    for part, suffix in (("tar", "tar"), ("index", "parquet")):
        file, digest = record[part]["file"], record[part]["sha256"]
        assert file == f"{record['name']}-{digest[:8]}.{suffix}"
        content = found[f"{folder}/{file}"]
        assert (len(content), _sha256(content)) == (record[part]["size"], digest), file
        names.add(f"{folder}/{file}")
    return names


def hold_shard(found, folder, record, keys):
    """Hold a shard's tar against its index, and both against the plan; returns the rows."""
    rows = _table(found[f"{folder}/{record['index']['file']}"])
    assert [row["key"] for row in rows] == keys, record["name"]
    counts = Counter(row["state"] for row in rows)
    assert record["counts"] == {state: counts[state] for state in STATES}
    assert record["faults"] == Counter(row["fault"] for row in rows if row["fault"])
    content = found[f"{folder}/{record['tar']['file']}"]
    members = _members(content)
    feature = folder.removeprefix("columns/").rpartition("-")[0]
    wanted = []
    for row in rows:
        assert (row["state"] == "quarantined") == (row["fault"] is not None)
        if row["state"] == "sample":
            wanted += _hold_sample(content, members, row, feature)
    assert list(members) == wanted, f"{record['tar']['file']} holds other members"
    return rows


def _hold_sample(content, members, row, feature):
    """Hold one clip's members against its row; returns their names in the tar's order."""
    names = {"values": f"{feature}.npy", "times": "times.npy", "meta": "json"}
    for member, suffix in names.items():
        offset, size, payload = members[f"{row['key']}.{suffix}"]
        assert (row[f"{member}_offset"], row[f"{member}_size"]) == (offset, size)
        assert zlib.crc32(payload) == row[f"{member}_crc32"]
        assert content[offset : offset + size] == payload
    values, times = (
        np.load(io.BytesIO(members[f"{row['key']}.{names[each]}"][2]), allow_pickle=False)
        for each in ("values", "times")
    )
    assert len(values) == row["steps"]
    assert (times.shape, times.dtype) == ((row["steps"], 2), np.float64)
    assert json.loads(members[f"{row['key']}.json"][2])["steps"] == row["steps"]
    return [f"{row['key']}.{suffix}" for suffix in sorted(names.values())]


def _members(content):
    """Offset, size and bytes of a tar's members by name."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            assert member.name not in found, f"{member.name} twice"
            assert (member.mtime, member.type) == (0, tarfile.REGTYPE)
            found[member.name] = (
                member.offset_data,
                member.size,
                tar.extractfile(member).read(),
            )
    return found


def _named_by_older(found, columns):
    """The files of manifests that do not count any more."""
    names = set()
    for name, content in found.items():
        if name.startswith("columns/") and name.split("/")[2] == "manifests":
            assert name.endswith(f"/{_sha256(content)}.json")
            names.add(name)
            folder = f"columns/{name.split('/')[1]}"
            for record in json.loads(content)["records"]:
                names |= hold_record(found, folder, record, own=False)
    assert {name.split("/")[1] for name in names} <= set(columns)
    return names


def _table(content):
    return pq.read_table(io.BytesIO(content), page_checksum_verification=True).to_pylist()


def _json(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _sha256(content):
    return hashlib.sha256(content).hexdigest()
