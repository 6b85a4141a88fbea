"""IEMOCAP: what judges and transcripts say of turns, and where these are heard and seen."""

import pytest

from featurizers.transcript import read_transcript
from pipelines.corpora import formats
from pipelines.experiment import InputError
from tests.corpora_maker import put, read

JUDGED = """\
% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
C-E3:\tNeutral;\t()
C-E4:\tSadness; Anger;\t()
A-E3:\tval 3; act 2; dom  2;\t()

[10.0100 - 11.3925]\tSes01F_impro01_M001\texc\t[4.0, 3.5, 3.0]
C-E2:\tHappiness; Excited;\t()
C-E3:\tExcited;\t()

[14.0 - 15.0]\tSes01F_impro01_F001\txxx\t[2.5, 3.0, 2.0]
[16.0 - 16.0]\tSes01F_impro01_F002\tang\t[2.5, 3.0, 2.0]
"""
SPOKEN = """\
Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
M: [LAUGHTER]
Ses01F_impro01_M001 [010.0100-011.3925]: Do you have it\x85?
Ses01F_impro01_F001 [014.0000-015.0000]: Yeah.
Ses01F_impro01_MXX0 [020.0000-021.0000]: Nobody judged this.
"""
FIRST, SECOND, THIRD, FOURTH = (f"Ses01F_impro01_{n}" for n in ("F000", "M001", "F001", "F002"))


@pytest.fixture
def session(tmp_path):
    dialog = "Session1/dialog"
    put(tmp_path, f"{dialog}/EmoEvaluation/Ses01F_impro01.txt", content=JUDGED)
    other = f"{dialog}/EmoEvaluation/Categorical/Ses01F_impro01_e2_cat.txt"
    put(tmp_path, other, f"{dialog}/EmoEvaluation/._Ses01F_impro01.txt", content=":Neutral; ()\n")
    spoken = SPOKEN.encode("latin-1")
    put(tmp_path, f"{dialog}/transcriptions/Ses01F_impro01.txt", content=spoken)
    put(tmp_path, f"{dialog}/avi/DivX/Ses01F_impro01.avi", f"{dialog}/wav/Ses01F_impro01.wav")
    return tmp_path


def test_a_turn_has_its_labels_words_speaker_and_fold(session):
    rows, notes = read("iemocap", session)
    assert notes == [("no_label", THIRD), ("no_span", FOURTH)]
    assert rows[FIRST] == {
        "id": FIRST,
        "media": str(session / "Session1/dialog/avi/DivX/Ses01F_impro01.avi"),
        "speaker": "Ses01-F",
        "start": 6.2901,
        "end": 8.2357,
        "transcript": "Excuse me.",
        "group": "session-1",
        "fold": 1,
        "emotion": "neutral",
        "emotion4": "neutral",
        "emotions": "neutral",  # two of three; only one of three named sadness or anger
        "valence": 2.5,
        "activation": 2.5,
        "dominance": 2.5,
    }
    assert (rows[SECOND]["emotion"], rows[SECOND]["emotion4"]) == ("excited", "happy")
    assert (rows[SECOND]["emotions"], rows[SECOND]["speaker"]) == ("happy", "Ses01-M")
    assert rows[SECOND]["transcript"] == "Do you have it\N{HORIZONTAL ELLIPSIS}?"
    assert not {"emotion", "emotion4", "emotions"} & set(rows[THIRD])


def test_turns_may_be_files_of_their_own(session):
    folder = "Session1/sentences/wav/Ses01F_impro01"
    put(session, *(f"{folder}/{turn}.wav" for turn in (FIRST, SECOND)))
    rows, notes = read("iemocap", session, media="sentence")
    assert rows[FIRST]["media"] == str(session / f"{folder}/{FIRST}.wav")
    assert "start" not in rows[FIRST]
    assert ("missing", THIRD) in notes
    (session / "Session1/dialog/avi/DivX/Ses01F_impro01.avi").unlink()
    rows, _ = read("iemocap", session)
    assert rows[FIRST]["media"].endswith(f"{FIRST}.wav")
    # Where a turn has no file, its dialogue's sound has it.
    assert rows[THIRD]["media"].endswith("dialog/wav/Ses01F_impro01.wav")
    assert rows[THIRD]["start"] == 14.0


def test_words_are_taken_with_their_times_where_they_are_aligned(session, tmp_path):
    aligned = (
        "\t SFrm  EFrm    SegAScr Word\n"
        "\t    0    40     -46000 <s>\n"
        "\t   41    72     -17530 EXCUSE(2)\n"
        "\t   73    80     -17530 ++NOISE++\n"
        "\t   81    99     -58661 ME\n"
        "\t  100   193     -46000 </s>\n"
        " Total score:     -308615\n"
    )
    folder = "Session1/sentences/ForcedAlignment/Ses01F_impro01"
    put(session, f"{folder}/{FIRST}.wdseg", content=aligned)
    rows, _ = read("iemocap", session)
    assert rows[FIRST]["transcript_file"] == f"words/{FIRST}.json"
    assert "transcript" not in rows[FIRST]
    assert "transcript_file" not in rows[SECOND]
    made = formats.read("iemocap", session, formats.checked("iemocap", {}))
    (path,) = made.files
    (tmp_path / "words.json").write_bytes(made.files[path]())
    words = read_transcript(tmp_path / "words.json")
    found = [
        (word.text, round(word.start - 6.2901, 2), round(word.end - 6.2901, 2)) for word in words
    ]
    assert found == [("excuse", 0.41, 0.73), ("me", 0.81, 1.0)]


def test_judgements_that_cannot_be_read_are_refused(session):
    name = "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    put(session, name, content="[1 - 2] Ses01F_impro01_F000 joy [1, 1, 1]\n")
    with pytest.raises(InputError, match=r"Ses01F_impro01.txt: line 1: wanted \[START - END\]"):
        read("iemocap", session)
    (session / name).unlink()
    with pytest.raises(InputError, match="there are no judgements"):
        read("iemocap", session)
