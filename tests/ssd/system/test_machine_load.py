"""The load of other programs, with processes that keep a core busy."""

import subprocess
import sys
import time
from collections import namedtuple

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
    monkeypatch.setattr(machine, "num_cores", lambda: 4)
    assert OtherLoad().cores() == pytest.approx(1.3)


@pytest.mark.parametrize("cores, words", [(0.1, ""), (1.52, "other programs used 1.5 of ")])
def test_plan_warns_about_load(monkeypatch, cores, words):
    monkeypatch.setattr(OtherLoad, "cores", lambda self: cores)
    assert OtherLoad().warning().startswith(f"warning: {words}" if words else "")
    assert bool(OtherLoad().warning()) == bool(words)


def test_only_usable_cores_count(monkeypatch):
    """Of four cores this process may use the second and the fourth; steps of 10 s, with guests counted in `user`."""
    core = namedtuple("core", "user nice system idle iowait guest guest_nice")
    each = [core(10, 0, 0, 0, 0, 0, 0), core(3, 1, 0, 5, 1, 2, 1), core(10, 0, 0, 0, 0, 0, 0), core(0, 0, 2, 8, 0, 0, 0)]
    monkeypatch.setattr(machine.psutil, "cpu_times", lambda percpu: each)
    monkeypatch.setattr(machine.psutil.Process, "cpu_affinity", lambda self: [1, 3], raising=False)
    assert machine._processor_times()[:2] == (20, 6)


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
    assert busy <= total + 1e-6  # sums of large floats are rounded
    assert own > 0.1
