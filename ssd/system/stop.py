"""Stopping on request: a signal or a time limit ends a run after its step, with a checkpoint; a second signal at once."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from ssd.system.distributed import World

# A terminal signals the whole process group, and a launcher such as torchrun passes the signal on: one request, twice.
SAME_REQUEST = 1.0  # seconds
# torchrun kills what has not ended 30 seconds after a signal: that is time for the question, a step and a checkpoint.
ASK_EVERY = 3.0  # seconds

# SIGHUP: the terminal was closed. SIGUSR1: schedulers send it before the time is over. SIGBREAK: both, on Windows.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
TIME_LIMIT = -1  # in the place of a signal's number
END = b"\0"  # likewise, to the thread that listens: no more will come


class Stopped(BaseException):
    """The run stopped on request, its checkpoint safe on disk.

    Like KeyboardInterrupt it is no Exception: it may be raised within any code that a wait runs, such as a decoder's, and who
    handles that code's errors must not take it for one.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        in_time = number == TIME_LIMIT
        super().__init__("train.max_hours are over" if in_time else f"stopped by {signal.Signals(number).name}")
        self.exit_code = 0 if in_time else 128 + number


def strongest(numbers: Iterable[int]) -> int:
    """What several processes were asked by, as one number: a signal rather than the time limit, which is more than nothing."""
    return max(numbers, key=lambda number: (number != 0, number))


class StopRequest:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self) -> None:
        self.signal = 0
        self.asked_at: float | None = None
        self.is_waiting = False
        self.timer: threading.Timer | None = None

    @contextmanager
    def listening(self) -> Iterator[Self]:
        """Takes signals for requests within the block; in another thread than the main one, where nobody can, it does nothing.

        A thread of its own hears them. Python's handlers have to wait until the main thread is back from PyTorch, which on a
        CPU can be in a backward pass for many seconds.
        """
        try:
            with _handled(self._interrupt_wait) as is_handled:
                if not is_handled:
                    yield self
                    return
                receiver, sender = socket.socketpair()  # not a pipe: Windows can wake up a socket only
                sender.setblocking(False)
                before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
                thread = threading.Thread(target=self._listen, args=(receiver,), name="signals", daemon=True)
                thread.start()
                try:
                    yield self
                finally:
                    if self.asked_at is not None:  # the same request may be on its way a second time
                        time.sleep(max(0.0, self.asked_at + SAME_REQUEST - time.monotonic()))
                    signal.set_wakeup_fd(before)
                    sender.send(END)  # not by closing it: forked processes may have it open
                    thread.join()
                    sender.close()
                    receiver.close()
        finally:
            self.after(None)

    def _listen(self, receiver: socket.socket) -> None:
        while (received := receiver.recv(1)) != END:
            number = received[0]
            if number not in SIGNALS:
                continue
            if self.asked_at is None:
                self.asked_at = time.monotonic()
                self.signal = self.signal or number
            elif time.monotonic() - self.asked_at > SAME_REQUEST:
                os._exit(128 + number)

    def _interrupt_wait(self, number: int, _: FrameType | None) -> None:
        """What Python runs in the main thread, as soon as it can, after a signal."""
        self.signal = self.signal or number
        if self.is_waiting:
            self.is_waiting = False  # one exception is enough
            raise Stopped(self.signal)

    @contextmanager
    def ends_wait(self) -> Iterator[None]:
        """A block in the main thread that only waits, and which a request may end at any point.

        Raises:
            Stopped: the run is asked to stop, or was before.
        """
        self.is_waiting = True
        try:
            if self.signal:
                raise Stopped(self.signal)
            yield
        finally:
            self.is_waiting = False

    def __call__(self) -> bool:
        return self.signal != 0

    def agree(self, world: "World") -> bool:
        """Whether any of the processes was asked to stop; all of them call this, and then all are."""
        self.signal = strongest(world.all_gather(self.signal))
        return self()

    def after(self, hours: float | None) -> None:
        """Asks after so many hours from now."""
        if self.timer:
            self.timer.cancel()
            self.timer.join()
            self.timer = None
        if hours is not None:
            self.timer = threading.Timer(min(hours * 3600, threading.TIMEOUT_MAX), self._time_is_over)
            self.timer.daemon = True
            self.timer.start()

    def _time_is_over(self) -> None:
        self.signal = self.signal or TIME_LIMIT


class StopQuestion:
    """Whether any process of a run was asked to stop, which all of them ask in the same step: else one would wait for the
    others' gradients for ever.

    To ask is to wait for the device, so it is done every ASK_EVERY seconds. How many steps these are, all learn alike from the
    slowest of them with each answer.
    """

    def __init__(self, stop: StopRequest, world: "World") -> None:
        self.stop = stop
        self.world = world
        self.steps_apart = self.steps_left = 1
        self.asked_at = time.monotonic()

    def __call__(self) -> bool:
        """To be called once a step."""
        if self.world.size == 1:
            return self.stop()
        self.steps_left -= 1
        if self.steps_left:
            return False
        is_asked = self.stop.agree(self.world)
        now = time.monotonic()
        seconds = max(self.world.all_gather(now - self.asked_at))
        steps = int(self.steps_apart * ASK_EVERY / max(seconds, 1e-6))
        self.steps_apart = self.steps_left = min(max(steps, 1), 2 * self.steps_apart)
        self.asked_at = now
        return is_asked


class Interrupt(KeyboardInterrupt):
    """A signal that ends a command as Ctrl-C does.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """A block that every signal of SIGNALS ends as Ctrl-C does.

    Yields:
        a list that has the number of the first one, once it came: what it interrupts may have its own way to end.
    """
    received: list[int] = []
    last = 0.0

    def interrupt(number: int, _: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if not received or last - before > SAME_REQUEST:
            received.append(number)
            raise Interrupt(number)

    with _handled(interrupt, but=signal.SIGINT):
        yield received


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], but: int | None = None) -> Iterator[bool]:
    """Has Python call a handler at all of SIGNALS but one within the block, if this is the main thread: whether it is.

    What was ignored before (as SIGHUP is under nohup) stays so; SIGINT and SIGTERM, which are sent on purpose, are heard.
    """
    before = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                is_ignored = signal.getsignal(number) is signal.SIG_IGN and number not in (signal.SIGINT, signal.SIGTERM)
                if number != but and not is_ignored:
                    before[number] = signal.signal(number, handler)
        yield bool(before)
    finally:
        for number, former in before.items():
            signal.signal(number, signal.SIG_DFL if former is None else former)  # None: not Python's, and out of its reach
