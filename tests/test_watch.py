"""The watch over ranks through a whole run: what they tell it, and what a kill costs."""

import threading
from dataclasses import replace

import pytest

from pipelines.notice import Notice
from pipelines.plans import FINISHED, Loading, Plan
from pipelines.ranks import RaySession, train_one
from tests.test_loop import RECIPE, make_dataset
from tracking.run import MemoryRun
from training import checkpoint, loop
from training.data import load
from training.loop import fit

SHORT = replace(RECIPE, epochs=1)


class Told:
    """A watch that takes down what it is told."""

    def __init__(self):
        self.beats, self.enough = [], threading.Event()

    def beat(self, *, stepping=True):
        self.beats.append(stepping)
        if len(self.beats) > 3:
            self.enough.set()

    def warned(self):
        return False


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return root, make_dataset(root)


def session(plan, rank=0, kind=RaySession, **ties):
    notice = Notice(lambda: None)
    notice.end()
    stop = plan.folder / "stop"
    return kind(plan.folder, rank, 1, keep=9, stop=stop, notice=notice, save_s=600, **ties)


def planned(made, folder):
    return Plan(
        name="run", recipe=SHORT, root=made[0], folder=folder, columns=made[1], loading=Loading()
    )


def test_the_watch_is_told_of_reading_and_building_then_of_steps_then_of_testing(made, tmp_path):
    watch = Told()
    train_one(planned(made, tmp_path), session(planned(made, tmp_path), watch=watch), "", "")
    beats = "".join("S" if stepping else "-" for stepping in watch.beats)
    before, steps, after = beats.partition("S" * 6)  # and validation tells it, too
    assert set(before) == {"-"}
    assert len(before) > 1  # read, and built
    assert set((steps + after).rstrip("-")) == {"S"}
    # After the last step, and before each pass of the model: with all streams, without each.
    assert after.endswith("-" * 4)


def test_other_ranks_wait_for_the_test_as_long_as_it_takes_and_in_no_collective(
    made, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "fit", lambda *_, **__: None)
    plan, watch = planned(made, tmp_path), Told()
    waiting = threading.Thread(target=train_one, args=(plan, session(plan, 1, watch=watch), "", ""))
    waiting.start()
    assert watch.enough.wait(60)  # it lives, and says so
    assert waiting.is_alive()
    (tmp_path / FINISHED).touch()
    waiting.join(20)
    assert not waiting.is_alive()
    assert not any(watch.beats)


def test_a_kill_within_an_epoch_costs_minutes_and_no_epoch(made, tmp_path):
    class KilledError(Exception):
        pass

    class Killed(RaySession):
        def wish(self, position):
            now[0] += 400.0
            if position == 5:  # of six steps of the only epoch
                raise KilledError
            return super().wish(position)

    now, plan = [0.0], planned(made, tmp_path)
    killed = session(plan, kind=Killed, watch=Told(), clock=lambda: now[0])
    with pytest.raises(KilledError):
        fit(SHORT, load(*made, SHORT), killed, MemoryRun())
    folders = checkpoint.standing(killed.folder)
    assert [folder.name for folder in folders] == ["step-000000004", "step-000000002"]
    assert not any(map(checkpoint.problem_of, folders))
