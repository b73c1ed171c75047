"""The number of PyTorch's threads, with a fake load of other programs, and once with programs that keep all cores busy."""

import subprocess
import sys
import time

import pytest
import torch

from ssd.system import threads as module
from ssd.system.machine import num_cores
from ssd.system.threads import PERIOD, Threads


@pytest.fixture
def machine(monkeypatch):
    """A machine of 4 cores with as many threads. Return a function that makes time pass with a load of other programs."""
    now = [1000.0]
    before = torch.get_num_threads()
    torch.set_num_threads(4)

    class Load:
        def cores(self) -> float:
            return load[0]

    load = [0.0]
    monkeypatch.setattr(module, "OtherLoad", Load)
    monkeypatch.setattr(module, "num_cores", lambda: 4)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def passes(cores: float, seconds: float = PERIOD) -> None:
        load[0] = cores
        now[0] += seconds

    yield passes
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "load, number", [(0.0, 4), (0.3, 4), (0.5, 3), (1.0, 3), (1.3, 3), (1.5, 2), (2.9, 1), (3.9, 1), (4.0, 1)]
)
def test_as_many_threads_as_cores_are_free(machine, load, number):
    with Threads("free") as threads:
        machine(load)
        threads.follow()
        assert torch.get_num_threads() == number
    assert torch.get_num_threads() == 4


def test_threads_return_when_the_other_program_ends(machine):
    numbers = []
    with Threads("free") as threads:
        for load in (3.0, 1.0, 0.0):
            machine(load)
            threads.follow()
            numbers.append(torch.get_num_threads())
    assert numbers == [1, 3, 4]


def test_between_measurements_nothing_changes(machine):
    with Threads("free") as threads:
        machine(3.0, seconds=PERIOD / 2)
        threads.follow()
        assert torch.get_num_threads() == 4
        machine(3.0, seconds=PERIOD / 2)
        threads.follow()
        assert torch.get_num_threads() == 1


def test_never_more_threads_than_the_user_set(machine):
    """OMP_NUM_THREADS=2, of which PyTorch makes two threads."""
    torch.set_num_threads(2)
    numbers = []
    with Threads("free") as threads:
        for load in (0.0, 1.0, 3.0, 0.0):
            machine(load)
            threads.follow()
            numbers.append(torch.get_num_threads())
    assert numbers == [2, 2, 1, 2]


@pytest.mark.parametrize("setting, measures, number", [("all", True, 4), ("free", False, 4), (3, True, 3), (3, False, 3)])
def test_a_fixed_number(machine, setting, measures, number):
    with Threads(setting, measures) as threads:
        for _ in range(3):
            machine(3.0)
            threads.follow()
            assert torch.get_num_threads() == number
    assert torch.get_num_threads() == 4


def test_each_item_finds_the_right_number(machine):
    numbers = []
    with Threads("free") as threads:
        machine(0.0)
        for load in threads.following([0.0, 2.0, 3.0]):
            numbers.append(torch.get_num_threads())
            machine(load + 1)
    assert numbers == [4, 3, 1]


def test_a_lasting_load_is_reported_once(machine):
    shown = []
    with Threads("all") as threads:
        for load in (2.0, 0.1, 2.0, 1.7, 2.0, 2.0, 2.0):
            machine(load)
            threads.follow()  # does not take the warning away
            shown.append(threads.warning())
    assert [index for index, warning in enumerate(shown) if warning] == [3]
    assert shown[3].startswith("warning: other programs use 1.7 of 4 cores")
    assert "train.threads=free" in shown[3]


@pytest.mark.parametrize("setting, measures, number", [("free", True, 4), (2, True, 4), ("all", False, 4), ("all", True, 1)])
def test_no_warning_where_fewer_threads_would_not_help(machine, setting, measures, number):
    torch.set_num_threads(number)
    with Threads(setting, measures) as threads:
        for _ in range(3):
            machine(3.0)
            assert threads.warning() == ""


def test_programs_that_keep_all_cores_busy():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(num_cores())]
    try:
        with Threads("free") as threads:
            end = time.monotonic() + 60
            while torch.get_num_threads() > 1 and time.monotonic() < end:
                threads.settle()
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        for each in busy:
            each.kill()
            each.wait()
        torch.set_num_threads(before)
