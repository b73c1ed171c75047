"""Requests to stop: handled signals, restored handlers, and the agreement of several processes."""

import os
import signal
import threading
import time
from itertools import pairwise

import pytest

from ssd.system import stop
from ssd.system.command import command
from ssd.system.distributed import World
from ssd.system.stop import SIGNALS, TIME_LIMIT, StopQuestion, StopRequest, strongest


@pytest.fixture(autouse=True)
def _no_nohup():
    """The suite may itself run under nohup, which ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def state_of_signals() -> tuple[object, ...]:
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return *(signal.getsignal(number) for number in SIGNALS), wakeup, sorted(thread.name for thread in threading.enumerate())


def wait_for(request: StopRequest) -> None:
    end = time.monotonic() + 5
    while request.asked_at is None and time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_request_then_handlers_are_restored(monkeypatch, number):
    monkeypatch.setattr(stop, "SAME_REQUEST", 0.2)
    before = state_of_signals()
    with StopRequest().listening() as request:
        request.after(1.0)
        os.kill(os.getpid(), number)
        wait_for(request)
        assert request.signal == number
    assert state_of_signals() == before
    assert time.monotonic() - request.asked_at >= 0.2  # long enough for a duplicate of the request


def test_nohup_ignores_sighup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().listening() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert not request()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("goes_on", [False, True])
def test_exit_code_of_each_signal(capsys, number, goes_on):
    @command()
    def main() -> int:
        try:
            os.kill(os.getpid(), number)  # twice, as from a terminal: to the job and to its group
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt:
            if not goes_on:
                raise
        return 0

    before = state_of_signals()
    assert main() == 128 + number
    assert state_of_signals() == before
    assert capsys.readouterr().err == ("" if goes_on else f"stopped by {signal.Signals(number).name}\n")


def test_signal_takes_precedence_over_the_time_limit():
    assert strongest([0, 0]) == 0
    assert strongest([0, TIME_LIMIT, 0]) == TIME_LIMIT
    assert all(strongest([TIME_LIMIT, number, 0]) == number for number in SIGNALS)


class Peers(World):
    """Two processes; the other takes twice as long, and is asked to stop at some point."""

    asked_from = 1e9

    def all_gather(self, value, patient=False):
        theirs = 2 * value if isinstance(value, float) else (signal.SIGTERM if time.monotonic() >= self.asked_from else 0)
        return [value, theirs]


def test_processes_agree_by_time_not_every_step(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    world, asked_at = Peers(size=2), []
    question = StopQuestion(StopRequest(), world)
    monkeypatch.setattr(Peers, "asked_from", 100.0)
    for step in range(10_000):
        now += 0.01 if now < 50 else 0.5
        left = question.steps_left
        if question():
            break
        if left == 1:
            asked_at.append((step, now))
    gaps = [later - earlier for (_, earlier), (_, later) in pairwise(asked_at)]
    assert len(asked_at) < 60
    assert max(gaps[:20]) == pytest.approx(stop.AGREE_EVERY / 2, rel=0.1)  # the slower process counts
    assert now - 100 < 30  # torchrun's limit, although the steps are now 50 times slower
    assert question.stop.signal == signal.SIGTERM
