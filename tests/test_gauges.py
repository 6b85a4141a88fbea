"""How busy a node is, told of by the minute and at the end."""

import time

import pytest

from pipelines.gauges import Gauges, look
from tracking.mlflow_store import StoreError
from tracking.run import MemoryRun


def test_a_node_tells_cpu_and_memory():
    look()
    time.sleep(0.1)
    found = look()
    assert 0 <= found["cpu_percent"] <= 100
    assert found["memory_gb"] > 0.05


class Counting:
    def __init__(self):
        self.looks = 0

    def __call__(self):
        self.looks += 1
        return {"cpu_percent": float(self.looks)}


def test_means_are_logged_by_node_now_and_then_and_at_the_end():
    run, counting, clock = MemoryRun(), Counting(), [100.0]

    def now_s():
        clock[0] += 1.0
        return clock[0]

    gauges = Gauges(run, now_s, look=counting, node="n1", look_s=0.01, log_s=5.0)
    until = time.monotonic() + 10
    while not run.metrics and time.monotonic() < until:
        time.sleep(0.01)
    gauges.end()
    assert len(run.metrics) >= 2
    step, means = run.metrics[0]
    assert (step > 100, means.keys()) == (True, {"system/n1/cpu_percent"})
    # The first look only sets the meter; means follow of those after it.
    assert means["system/n1/cpu_percent"] == pytest.approx(sum(range(2, 7)) / 5, abs=2)
    assert [step for step, _ in run.metrics] == sorted(step for step, _ in run.metrics)


def test_a_busy_node_is_busy_in_a_short_run_too():
    run = MemoryRun()
    gauges = Gauges(run, lambda: 3.0, node="n1", look_s=0.2)
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        sum(range(1000))
    gauges.end()
    assert run.metrics[0][1]["system/n1/cpu_percent"] > 1


def test_a_short_run_has_one_point_and_a_refusal_does_not_end_it():
    class Refuses(MemoryRun):
        def log_metrics(self, metrics, step, at_ms=None):
            super().log_metrics(metrics, step)
            raise StoreError("no such run")

    run = Refuses()
    Gauges(run, lambda: 3.0, look=Counting(), node="n1").end()
    assert run.metrics == [(3, {"system/n1/cpu_percent": 2.0})]
