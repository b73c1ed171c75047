"""The load of other programs, with processes that keep a core busy."""

import subprocess
import sys
import time

import pytest

from ssd.system import machine
from ssd.system.machine import OtherLoad


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_only_other_programs_count(monkeypatch):
    """With fake times of 4 cores: 10 s pass, the cores are busy for 25 s, 12 s of them for this process."""
    times = iter([(1000.0, 100.0, 7.0), (1040.0, 125.0, 19.0)])
    monkeypatch.setattr(machine, "_processor_times", lambda: next(times))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert OtherLoad().cores() == pytest.approx(1.3)


@pytest.mark.parametrize("cores, words", [(0.1, ""), (1.52, "other programs used 1.5 of ")])
def test_plan_warns_about_load(monkeypatch, cores, words):
    monkeypatch.setattr(OtherLoad, "cores", lambda self: cores)
    assert OtherLoad().warning().startswith(f"warning: {words}" if words else "")
    assert bool(OtherLoad().warning()) == bool(words)


def test_own_and_child_processes_are_not_load():
    """The machine may be busy; the time of this process and its child is subtracted."""
    before = machine._processor_times()
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        spin(0.4)
        after = machine._processor_times()
    finally:
        child.kill()
        child.wait()
    total, busy, own = (now - then for now, then in zip(after, before, strict=True))
    assert total > 0
    assert busy <= total
    assert own > 0.1
