"""The standard folds of CMU-MOSI and CMU-MOSEI: which video is for what.

MOSI's stand here: the lists of the CMU Multimodal SDK, as three copies of them in other people's
code agree. MOSEI's have more than three thousand names and are read from a file of the user's.
"""

import ast
import csv
import json
from collections.abc import Mapping
from pathlib import Path

from pipelines.corpora.tree import Tree, text_of
from pipelines.experiment import InputError

_SPLITS = {"train": "train", "valid": "valid", "dev": "valid", "val": "valid", "test": "test"}
_LISTS = {f"standard_{split}_fold": split for split in ("train", "valid", "test")}

_MOSI = {
    "train": """
        2iD-tVS8NPw 8d-gEyoeBzc Qr1Ca94K55A Ci-AH39fi3Y 8qrpnFRGt2A Bfr499ggo-0 QN9ZIUWUXsY
        9T9Hf74oK10 7JsX8y1ysxY 1iG0909rllw Oz06ZWiO20M BioHAh1qJAQ 9c67fiY0wGQ Iu2PFX3z_1s
        Nzq88NnDkEk Clx4VXItLTE 9J25DZhivz8 Af8D0E4ZXaw TvyZBvOMOTc W8NXH0Djyww 8OtFthrtaJM
        0h-zjBukYpk Vj1wYRQjB-o GWuJjcEuzt8 BI97DNYfe5I PZ-lDQFboO8 1DmNV9C1hbY OQvJTdtJ2H4
        I5y0__X72p0 9qR7uwkblbs G6GlGvlkxAQ 6_0THN4chvY Njd1F0vZSm4 BvYR0L6f2Ig 03bSnISJMiM
        Dg_0XKD0Mf4 5W7Z1C_fDaE VbQk4H8hgr0 G-xst2euQUc MLal-t_vJPM BXuRRbG0Ugk LSi-o-IrDMs
        Jkswaaud0hk 2WGyTLYerpo 6Egk_28TtTM Sqr0AcuoNnk POKffnXeBds 73jzhE8R1TQ OtBXNcAL_lE
        HEsqda8_d0Q VCslbP0mgZI IumbAb8q2dM
    """,
    "valid": """
        WKA5OygbEKI c5xsKMxpXnc atnd_PF-Lbs bvLlb-M3UXU bOL9jKpeJRs _dI--eQ6qVU ZAIRrfG22O0
        X3j2zQgwYgE aiEXnCPZubE ZUXBRvtny7o
    """,
    "test": """
        tmZoasNr4rU zhpQhgha_KU lXPQBPVc5Cw iiK8YX8oH1E tStelxIAHjw nzpVDcQ0ywM etzxEpPuc6I
        cW1FSBF59ik d6hH302o4v8 k5Y_838nuGo pLTX3ipuDJI jUzDDGyPkXU f_pcplsH_V0 yvsjCA6Y5Fc
        nbWiPyCm4g0 rnaNMUZpvvg wMbj6ajWbic cM3Yna7AavY yDtzw_Y-7RU vyB00TXsimI dq3Nf_lMPnE
        phBUpBr1hSo d3_k5Xpfmik v0zCBqDeKcE tIrG4oNLFzE fvVhgmXxadc ob23OKe5a9Q cXypl4FnoZo
        vvZ4IcEtiZc f9O3YtZ2VfI c7UH_rxdZv4
    """,
}

MOSI: Mapping[str, str] = {
    video: split for split, videos in _MOSI.items() for video in videos.split()
}
"""The split of each of the 93 videos: 52, 10 and 31."""


def read_folds(path: Path) -> dict[str, str]:
    """The split of each video, from one of three forms of a file.

    A .py file as the SDK has it, of which only the lists standard_train_fold, standard_valid_fold
    and standard_test_fold are read, and nothing is run; a .json file with lists by split; a .csv
    file with the columns video and split.

    Raises:
        InputError: It is none of them, or a video is in two splits.
    """
    text = text_of(path)
    match path.suffix.lower():
        case ".py":
            lists = _python(path, text)
        case ".json":
            lists = _json(path, text)
        case ".csv":
            lists = _csv(path, text)
        case other:
            raise InputError(f"{path}: wanted folds as .py, .json or .csv, found {other!r}")
    folds: dict[str, str] = {}
    for split, videos in lists.items():
        for video in videos:
            if folds.setdefault(video, split) != split:
                raise InputError(f"{path}: {video} is in {folds[video]} and in {split}")
    if not folds:
        raise InputError(f"{path}: has no folds: wanted the lists {', '.join(_LISTS)}")
    return folds


def _python(path: Path, text: str) -> dict[str, list[str]]:
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not Python: {error}") from None
    found: dict[str, list[str]] = {}
    for line in body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            split = _LISTS.get(line.targets[0].id)
            if split is not None:
                try:
                    found[split] = [str(each) for each in ast.literal_eval(line.value)]
                except (ValueError, TypeError):
                    raise InputError(
                        f"{path}: line {line.lineno}: {line.targets[0].id} is no list of names"
                    ) from None
    return found


def _json(path: Path, text: str) -> dict[str, list[str]]:
    try:
        plain = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(plain, dict) or not all(isinstance(each, list) for each in plain.values()):
        raise InputError(f"{path}: wanted lists of videos by split")
    return {_split(path, name): [str(each) for each in some] for name, some in plain.items()}


def _csv(path: Path, text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in csv.DictReader(text.splitlines()):
        if not row.get("video") or not row.get("split"):
            raise InputError(f"{path}: wanted the columns video and split in every row")
        found.setdefault(_split(path, row["split"]), []).append(row["video"])
    return found


def _split(path: Path, name: str) -> str:
    if name.casefold() not in _SPLITS:
        raise InputError(f"{path}: found a split {name!r}, wanted one of {', '.join(_SPLITS)}")
    return _SPLITS[name.casefold()]


def mosei_folds(tree: Tree, given: Path | None) -> dict[str, str]:
    """MOSEI's folds: of the file that is given, else of one that lies among the corpus's.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    if given is not None:
        return read_folds(given)
    for pattern in ("*mosei*folds*.py", "*folds*.json", "*folds*.csv"):
        found = tree.only(pattern)
        if found is not None:
            return read_folds(tree.root / found)
    raise InputError(
        f"{tree.root}: CMU-MOSEI's standard folds are not among its files, and without them no "
        f"score can be held against a published one; put the CMU Multimodal SDK's "
        f"cmu_mosei_std_folds.py there, or name it as source.options.folds (a .json with the lists "
        f"train, valid and test, or a .csv with video and split, does as well)"
    )
