"""A model card is filled from what is known, and says of the rest that it is not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from featurizers.dataset import read_clips
from featurizers.manifest import open_column
from pipelines.lineage import Start, write_lineage
from pipelines.model_card import model_card
from tests.made_of import made_of
from tracking.scorecard import Part, Scorecard

pytestmark = pytest.mark.media


@pytest.fixture
def told(tiny_model, tmp_path):
    root, predictor, *_ = tiny_model
    columns = {name: open_column(root, spec.fingerprint) for name, spec in predictor.specs.items()}
    trained = SimpleNamespace(
        plan=SimpleNamespace(recipe=predictor.recipe, folder=tmp_path),
        predictor=root / "predictor-late_fusion-regression",
        run_id="r" * 32,
        best_epoch=2,
        history=[{}] * 5,
    )
    card = Scorecard(
        evaluation_set="e" * 64,
        count=1,
        metrics={"mae": 0.5, "corr": float("nan")},
        better={"mae": "lower", "corr": "higher"},
        undefined={"corr": "one clip has no spread"},
        as_asked=(
            Part(streams=("audio",), count=1, metrics={"mae": 0.75, "corr": 0.0}, intervals={}),
        ),
        parity=True,
    )
    clips = read_clips(root)

    def tell(name="moods", compared=4, clips=clips, **changes):
        made = replace(card, **changes)
        return model_card(name, trained, clips, columns, made, compared=compared)

    yield tell, clips
    for column in columns.values():
        column.close()


def test_it_tells_data_ledger_results_licences_and_parity(told):
    tell, _ = told
    card = tell()
    assert "| train | 4 |" in card
    assert "| audio | 6 | 5 | 1 | 0 |  |" in card
    assert "| mae | 0.5 | unknown |" in card
    assert "| corr | undefined | unknown | one clip has no spread |" in card
    assert "| without audio | 1 | 0.75 | 0 |" in card
    assert "| equal bits | none | Apache-2.0 | free |" in card
    assert "Features of 4 raw training clips, computed through this model, equal" in card
    assert "Article 5(1)(f)" in card
    assert 'mlflow.pyfunc.load_model("models:/moods@champion")' in card
    assert "torch==" in card
    assert "epoch 2 of 5" in card


def test_what_is_not_known_is_said_to_be_unknown(told):
    tell, _ = told
    card = tell(compared=0, parity=None)
    near, again = "Test clips that look or sound like training clips", "says the same of a clip in"
    for part in ("Calibration", "Time for a clip", "By group of speakers", near):
        assert f"{part}: unknown." in card
    assert f"{again} another process: unknown." in card
    assert "Unknown: no training clip could be had" in card
    assert "consent of those who are shown, and who labelled them: unknown" in card


def test_what_users_wrote_breaks_no_table(told):
    tell, clips = told
    odd = [replace(clip, labels={**clip.labels, "score": "a|b\n<i>[x]"}) for clip in clips]
    lines = tell(clips=odd).splitlines()
    (row,) = [line for line in lines if line.startswith("| train |")]
    assert "a\\|b &lt;i>\\[x] 4" in row


def test_it_tells_of_leaks_near_duplicates_and_a_second_asking(told):
    tell, _ = told
    card = tell(leaks=("speaker <i>[x]",), duplicates=("a|b is like c",), reproducible=False)
    assert "Shared with the training data: speaker &lt;i>\\[x]." in card
    assert "Test clips that look or sound like training clips: a\\|b is like c." in card
    assert "Asked again in another process, it says SOMETHING ELSE of these clips." in card
    assert "look or sound like training clips: none." in tell(duplicates=())
    assert "it says the same of these clips" in tell(reproducible=True)


def test_it_tells_what_the_model_starts_from(told, tmp_path):
    tell, _ = told
    assert "starts with" not in tell()
    starts = [
        Start(part="audio", file="/runs/one/weights", sha256="1" * 64, run_id="r1"),
        Start(part="video", file="/elsewhere/kinetics.pth", sha256="9" * 64),
    ]
    before = {"r1": made_of("/data/one")}
    write_lineage(tmp_path, replace(made_of("/data"), starts=starts, before=before))
    card = tell()
    assert "- starts with audio from weights (sha256 111111111111, of run r1)\n" in card
    assert "kinetics.pth (sha256 999999999999), and nobody knows what these were trained" in card
    assert "what run r1 was made of, of dataset one: clips 2 train, 1 valid" in card
