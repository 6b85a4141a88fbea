"""NTU RGB+D and UTD-MHAD: recordings of several sensors to clips with streams."""

from itertools import product

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from featurizers.dataset import read_clips
from pipelines.corpora.matlab import read_array
from pipelines.corpora.ntu import ACTIONS, TRAINING, WHOLE
from pipelines.corpora.ntu_listed import LISTED
from pipelines.corpora.utd_mhad import REMOVED, averaged
from pipelines.experiment import InputError, parse
from pipelines.run import featurize_all, ingest_all
from pipelines.show import Show
from tests import corpora_maker
from tests.corpora_maker import POINTER, put

JOINT = " ".join(["0.5"] * 11) + " 2"
BODY = "72057594037944738 0 1 1 1 1 0 0.01 -0.25 2\n25\n" + f"{JOINT}\n" * 25


def recording(subject=1, action=1, repetition=1, setup=1, camera=1):
    return f"S{setup:03}C{camera:03}P{subject:03}R{repetition:03}A{action:03}"


def skeleton(frames):
    return f"{frames}\n" + f"1\n{BODY}" * frames


def read(name, root, **options):
    """Rows and notes, but those on the setups and recordings that these small folders lack."""
    rows, notes = corpora_maker.read(name, root, **options)
    if name == "ntu":
        assert notes.count(("incomplete", "")) >= 3
        for _ in range(3):
            notes.remove(("incomplete", ""))
    return rows, notes


@pytest.fixture
def ntu(tmp_path):
    """All subjects once, with films of which nobody looks at the bytes."""
    for subject in range(1, 41):
        put(tmp_path, f"nturgb+d_rgb/{recording(subject)}_rgb.avi")
        name = f"nturgb+d_skeletons/{recording(subject)}.skeleton"
        put(tmp_path, name, content=skeleton(3))
    return tmp_path


def test_subjects_are_split_as_the_paper_has_them(ntu):
    rows, notes = read("ntu", ntu)
    assert notes == []
    by_split = {
        split: sorted(int(row["speaker"][-2:]) for row in rows.values() if row["split"] == split)
        for split in ("train", "valid", "test")
    }
    assert by_split["valid"] == [18, 28, 38]
    assert sorted(by_split["train"] + by_split["valid"]) == list(TRAINING)
    assert len(by_split["test"]) == 20
    assert not {3, 6, 7, 10} & {*by_split["train"], *by_split["valid"]}
    code = recording(7)
    assert rows[code] == {
        "id": code,
        "media": str(ntu / f"nturgb+d_rgb/{code}_rgb.avi"),
        "stream:skeleton": str(ntu / f"nturgb+d_skeletons/{code}.skeleton"),
        "speaker": "subject-07",
        "split": "test",
        "action": "drink water",
        "camera": "camera-1",
        "setup": "setup-01",
    }
    rows, _ = read("ntu", ntu, valid=[1, 2])
    assert rows[recording(1)]["split"] == "valid"
    with pytest.raises(
        InputError, match="subject 3 is not of the training half, which are 1, 2, 4"
    ):
        read("ntu", ntu, valid=[3])


def test_parts_of_ntu_that_are_not_there_are_told(ntu):
    for path in (*ntu.rglob(f"{recording(7)}*"), *ntu.rglob(f"{recording(8)}*")):
        path.unlink()
    put(ntu, f"nturgb+d_rgb/{recording(1, setup=3)}_rgb.avi")
    setups = ", ".join(map(str, (2, *range(4, 18))))
    assert [each.message for each in corpora_maker.notes("ntu", ntu)][:4] == [
        "there are no recordings of subjects 7, 8",
        f"there are no recordings of setups {setups}",
        "20 recordings of training subjects, the corpus has 40091 besides those of the list",
        "19 recordings of testing subjects, the corpus has 16487 besides those of the list",
    ]


def test_the_whole_of_ntu_is_told_of_by_nothing():
    listed = [int(code[9:12]) in TRAINING for code in LISTED]
    # The paper's own counts, with the recordings of the list.
    assert WHOLE["training"] + sum(listed) == 40_320
    assert WHOLE["testing"] + len(listed) - sum(listed) == 16_560


def test_there_are_sixty_actions_and_302_listed_recordings():
    assert len(set(ACTIONS)) == 60
    assert not [name for name in ACTIONS if "," in name]  # which would be several labels
    assert len(LISTED) == 302
    assert {"S001C002P005R002A008", "S017C003P020R001A059"} <= LISTED


def test_what_is_wrong_with_ntu_is_told(ntu):
    (ntu / f"nturgb+d_rgb/{recording(1)}_rgb.avi").unlink()
    (ntu / f"nturgb+d_skeletons/{recording(2)}.skeleton").unlink()
    put(ntu, f"nturgb+d_skeletons/{recording(3)}.skeleton", content=POINTER)
    put(ntu, f"nturgb+d_rgb/{recording(4)}_rgb.avi", content=b"")
    put(ntu, "nturgb+d_rgb/S001C002P005R002A008_rgb.avi")
    put(ntu, f"nturgb+d_rgb/{recording(5, action=61)}_rgb.avi", f"depth/{recording(5)}_ir.avi")
    rows, notes = read("ntu", ntu)
    assert len(rows) == 40
    assert notes == [
        ("empty", recording(4)),
        ("incomplete", recording(2)),
        ("listed", "S001C002P005R002A008"),
        ("missing", recording(1)),
        ("pointer", recording(3)),
        ("unlisted", ""),
    ]
    assert "stream:skeleton" not in rows[recording(2)]
    rows, _ = read("ntu", ntu, listed="in")
    assert "S001C002P005R002A008" in rows


def test_skeletons_alone_are_clips_too(ntu, tmp_path):
    for path in (ntu / "nturgb+d_rgb").iterdir():
        path.unlink()
    put(ntu, f"nturgb+d_skeletons/{recording(40)}.skeleton", content="0\n")
    rows, notes = read("ntu", ntu)
    assert notes == [("broken", recording(40)), ("incomplete", "")]
    assert (len(rows), rows[recording(1)]["end"]) == (39, 0.1)
    streams = {"skeleton": {"featurizer": "skeleton", "stream": "skeleton", "persons": 2}}
    source = {"folder": str(ntu), "format": "ntu"}
    plain = {"dataset": "data", "source": source, "features": streams, "workers": {"featurize": 0}}
    made = parse(plain, tmp_path)
    put(ntu, f"nturgb+d_skeletons/{recording(2, action=2)}.skeleton", content=skeleton(6))
    ingest_all(made, Show(quiet=True))
    clips = {clip.id: clip for clip in read_clips(made.root)}
    assert clips[recording(2, action=2)].seconds == pytest.approx(0.2)
    column = featurize_all(made, Show(quiet=True))["skeleton"]
    found = column.read(clips[recording(1)].key)
    assert found.values.shape == (3, 2 * 25 * 4)
    np.testing.assert_allclose(found.values[0, :4], [0.5, 0.5, 0.5, 1.0])


def test_init_of_skeletons_alone_wants_nothing_of_films(ntu, tmp_path, monkeypatch, called):
    monkeypatch.chdir(tmp_path)
    for path in (ntu / "nturgb+d_rgb").iterdir():
        path.unlink()
    put(ntu, f"nturgb+d_skeletons/{recording(2, action=2)}.skeleton", content=skeleton(6))
    code, out, err = called("init", ntu, "--format", "ntu")
    assert (code, err) == (0, ""), out
    written = (tmp_path / "experiment.yaml").read_text()
    assert "video:" not in written
    assert "skeleton: {featurizer: skeleton, stream: skeleton, persons: 2}" in written
    assert "model: {recipe: unimodal}" in written
    parse(__import__("yaml").safe_load(written), tmp_path)


@pytest.fixture
def utd(tmp_path):
    """The first two actions of all subjects, two trials each, without films."""
    for action, subject, trial in product((1, 2), range(1, 9), (1, 2, 3, 4)):
        code = f"a{action}_s{subject}_t{trial}"
        joints = np.arange(20 * 3 * 4, dtype=np.float64).reshape(20, 3, 4)
        put(tmp_path, f"Skeleton/{code}_skeleton.mat", f"Inertial/{code}_inertial.mat")
        savemat(tmp_path / f"Skeleton/{code}_skeleton.mat", {"d_skel": joints})
        savemat(tmp_path / f"Inertial/{code}_inertial.mat", {"d_iner": np.ones((9, 6)) * trial})
    return tmp_path


def few(notes):
    """Notes but those on the 25 actions that these small folders lack."""
    return [(kind, clip) for kind, clip in notes if not (clip and int(clip[1:].split("_")[0]) > 2)]


def test_odd_subjects_train_and_one_of_them_validates(utd):
    rows, notes = read("utd-mhad", utd)
    assert few(notes) == [("incomplete", "")]  # no films
    assert {row["speaker"][-1]: row["split"] for row in rows.values()} == {
        **dict.fromkeys("135", "train"),
        "7": "valid",
        **dict.fromkeys("2468", "test"),
    }
    assert rows["a1_s1_t1"] == {
        "id": "a1_s1_t1",
        "media": str(utd / "a1_s1_t1_color.avi"),
        "start": 0.0,
        "end": pytest.approx(9 / 50),
        "stream:skeleton": "streams/a1_s1_t1_skeleton.npy",
        "stream:skeleton:hz": 30.0,
        "stream:inertial": "streams/a1_s1_t1_inertial.npy",
        "stream:inertial:hz": 50.0,
        "speaker": "subject-1",
        "split": "train",
        "trial": "trial-1",
        "action": "swipe left",
    }
    with pytest.raises(InputError, match="subject 2 is not of the training half"):
        read("utd-mhad", utd, valid=[2])


def test_three_recordings_are_missed_by_nobody(utd):
    _, notes = read("utd-mhad", utd)
    missing = {clip for kind, clip in notes if kind == "missing"}
    assert len(missing) == 861 - 64
    assert not missing & REMOVED


def test_what_is_wrong_with_utd_mhad_is_told(utd):
    put(utd, "Skeleton/a1_s1_t1_skeleton.mat", content=b"no matlab")
    savemat(utd / "Inertial/a1_s1_t2_inertial.mat", {"d_iner": np.ones((9, 7))})
    savemat(utd / "Inertial/a1_s1_t3_inertial.mat", {"other": np.ones((9, 6))})
    put(utd, "Inertial/a1_s1_t4_inertial.mat", content=POINTER)
    for kind in ("skeleton", "inertial"):
        (utd / f"{kind.title()}/a2_s8_t4_{kind}.mat").unlink()
    (utd / "Inertial/a2_s8_t3_inertial.mat").unlink()
    put(utd, *(f"RGB/a{a}_s{s}_t{t}_color.avi" for a, s, t in product((1, 2), range(1, 9), (1, 2))))
    put(utd, "RGB/test.avi")
    rows, notes = read("utd-mhad", utd)
    assert [each for each in few(notes) if each != ("missing", "a2_s8_t4")][:7] == [
        ("broken", "a1_s1_t1"),
        ("broken", "a1_s1_t2"),
        ("broken", "a1_s1_t3"),
        ("incomplete", "a2_s8_t3"),
        ("missing", "a1_s1_t3"),  # its film: other trials have theirs
        ("missing", "a1_s1_t4"),
        ("missing", "a1_s2_t3"),
    ]
    assert ("missing", "a2_s8_t4") in notes
    assert ("pointer", "a1_s1_t4") in notes
    assert ("unlisted", "") in notes
    assert {"start", "end"}.isdisjoint(rows["a1_s1_t1"])
    assert "stream:skeleton" not in rows["a1_s1_t1"]


def test_sensors_become_columns(utd, tmp_path):
    streams = {
        "skeleton": {"featurizer": "skeleton", "stream": "skeleton", "joints": 20},
        "inertial": {"featurizer": "numbers", "stream": "inertial", "dims": 6},
    }
    source = {"folder": str(utd), "format": "utd-mhad"}
    plain = {"dataset": "data", "source": source, "features": streams, "max_dropped": 0.95}
    made = parse({**plain, "workers": {"featurize": 0}}, tmp_path)
    ingest_all(made, Show(quiet=True))
    columns = featurize_all(made, Show(quiet=True))
    skeleton, inertial = (columns[name].read("a2_s3_t2") for name in streams)
    assert skeleton.values.shape == (4, 20 * 4)
    # Joint 1 of frame 2, as the file has it: [joint, axis, frame].
    np.testing.assert_allclose(skeleton.values[2, 4:7], [14.0, 18.0, 22.0])
    assert inertial.values.tolist() == [[2.0] * 6] * 9
    np.testing.assert_allclose(inertial.times[-1], [8 / 50, 9 / 50])


@pytest.mark.parametrize("packed", [False, True])
def test_arrays_of_matlab_files_are_those_that_scipy_reads(tmp_path, packed):
    rng = np.random.default_rng(0)
    arrays = {
        "cube": rng.normal(size=(20, 3, 5)),
        "short": np.arange(12, dtype=np.uint16).reshape(3, 4),
        "one": np.array([[7.0]]),  # small enough to lie in a tag
        "wide": np.arange(6, dtype=np.int64).reshape(1, 6) - 3,
        "single": rng.normal(size=(4, 2)).astype(np.float32),
        "whole": np.arange(9.0).reshape(3, 3),  # which is kept as bytes
    }
    path = tmp_path / "a.mat"
    savemat(path, {"text": "no numbers", **arrays}, do_compression=packed)
    theirs = loadmat(path)
    for name in arrays:
        found = read_array(path, name)
        assert found.dtype == theirs[name].dtype
        np.testing.assert_array_equal(found, theirs[name])
    with pytest.raises(ValueError, match="has no variable other"):
        read_array(path, "other")
    with pytest.raises(ValueError, match="something else than real numbers as text"):
        read_array(path, "text")


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_matlab_file_is_an_error_or_numbers_and_never_more(tmp_path, packed):
    path = tmp_path / "a.mat"
    savemat(path, {"d_iner": np.ones((9, 6))}, do_compression=packed)
    content = path.read_bytes()
    hurt = [content[:size] for size in range(0, len(content), 5)]
    hurt += [
        content[:place] + bytes([byte]) + content[place + 1 :]
        for place in range(len(content))
        for byte in {0, 255, content[place] ^ 1}
    ]
    refused = 0
    for each in hurt:
        path.write_bytes(each)
        try:
            read_array(path, "d_iner")
        except ValueError:
            refused += 1
    assert refused > len(content) // 5


def test_depth_is_averaged_over_what_is_measured(utd):
    depth = np.zeros((24, 32, 2), dtype=np.uint16)
    depth[:2, :2, 0] = [[100, 0], [300, 200]]
    depth[-1, -1, 1] = 7
    found = averaged(depth)
    assert found.shape == (2, 192)
    assert (found[0, 0], found[1, -1]) == (200.0, 7.0)
    assert np.count_nonzero(found) == 2
    put(utd, "Depth/a1_s1_t1_depth.mat")
    savemat(utd / "Depth/a1_s1_t1_depth.mat", {"d_depth": depth})
    rows, _ = read("utd-mhad", utd, depth=True)
    assert rows["a1_s1_t1"]["stream:depth"] == "streams/a1_s1_t1_depth.npy"
    assert "stream:depth" not in read("utd-mhad", utd)[0]["a1_s1_t1"]
