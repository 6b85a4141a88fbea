"""Where the time of training goes."""

import time

import pytest
import torch

from training.timing import STEP, Collectives, Stages


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_shares_are_of_the_whole_time_and_begin_anew():
    clock = Clock()
    stages = Stages(clock)

    def slow():
        for item in "ab":
            clock.now += 1
            yield item
        clock.now += 0.5

    taken = []
    for item in stages.waited(slow()):
        taken.append(item)
        with stages.stage(STEP):
            clock.now += 3
    assert taken == ["a", "b"]
    assert stages.shares(10.0, 2.0) == {
        "time/data_wait_share": 0.25,
        "time/device_share": 0.4,
        "time/collectives_share": 0.2,
    }
    assert set(stages.shares(10.0, 0.0).values()) == {0.0}


class Backend:
    """As DeepSpeed's: one call may be made of another."""

    def all_reduce(self, tensor, op="sum"):
        time.sleep(0.05)
        return f"{tensor} {op}"

    def all_reduce_coalesced(self, tensors):
        return [self.all_reduce(tensor) for tensor in tensors]


def test_calls_among_ranks_are_timed_once_and_give_what_they_gave():
    backend = Backend()
    replaced = Collectives(backend, cuda=False)
    found = Collectives(backend, cuda=False)
    assert backend.all_reduce("x", op="max") == "x max"
    assert backend.all_reduce_coalesced(["a", "b"]) == ["a sum", "b sum"]
    # The machine may be busy, so no upper bound of three sleeps; six would be counted twice.
    assert 0.15 <= found.seconds() < 0.29
    assert (found.seconds(), replaced.seconds()) == (0.0, 0.0)


def test_a_failure_among_ranks_does_not_stop_the_clock():
    class Broken(Backend):
        def all_reduce(self, tensor, op="sum"):
            raise RuntimeError("a rank is gone")

    backend = Broken()
    found = Collectives(backend, cuda=False)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a rank is gone"):
            backend.all_reduce(torch.zeros(1))
    with found.timed():
        time.sleep(0.02)
    assert found.seconds() >= 0.02
