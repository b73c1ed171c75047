"""Stop on request: a signal or a time limit ends a run after the current step; a second signal ends it at once."""

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

# One request may arrive twice: a terminal signals the whole process group, and torchrun forwards the signal.
SAME_REQUEST = 1.0  # seconds
# torchrun kills processes 30 seconds after a signal: enough for the agreement, a step and a checkpoint.
AGREE_EVERY = 3.0  # seconds

# SIGHUP: the terminal was closed. SIGUSR1: sent by schedulers before the time limit of a job. SIGBREAK: both, on Windows.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGBREAK")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
TIME_LIMIT = -1  # instead of a signal number
END = b"\0"  # instead of a signal number, ends the listening thread


class Stopped(BaseException):
    """The run was stopped on request, and its checkpoint is on disk.

    Like KeyboardInterrupt it is not an Exception: it may be raised inside any waiting code, such as a decoder, whose error
    handling must not catch it. `number` is the signal's, or TIME_LIMIT.
    """

    def __init__(self, number: int) -> None:
        in_time = number == TIME_LIMIT
        super().__init__("train.max_hours reached" if in_time else f"stopped by {signal.Signals(number).name}")
        self.exit_code = 0 if in_time else 128 + number


def strongest(numbers: Iterable[int]) -> int:
    """Combine the requests of several processes: a signal comes before the time limit, and that before 0, no request."""
    return max(numbers, key=lambda number: (number != 0, number))


class StopRequest:
    """A request to stop the run, by a signal or the time limit."""

    def __init__(self) -> None:
        self.signal = 0
        self.asked_at: float | None = None
        self.is_waiting = False
        self.timer: threading.Timer | None = None

    @contextmanager
    def listening(self) -> Iterator[Self]:
        """Treat signals as requests within the block. Outside the main thread this does nothing, as handlers need that thread.

        A separate thread receives the signals: Python's handlers run only when PyTorch returns to the main thread, and a
        backward pass on a CPU can take many seconds.
        """
        try:
            with _handled(self._interrupt_wait) as is_handled:
                if not is_handled:
                    yield self
                    return
                receiver, sender = socket.socketpair()  # not a pipe: on Windows a wakeup fd must be a socket
                sender.setblocking(False)
                before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
                thread = threading.Thread(target=self._listen, args=(receiver,), name="signals", daemon=True)
                thread.start()
                try:
                    yield self
                finally:
                    if self.asked_at is not None:  # the same request may arrive a second time
                        time.sleep(max(0.0, self.asked_at + SAME_REQUEST - time.monotonic()))
                    signal.set_wakeup_fd(before)
                    sender.send(END)  # instead of closing it, since forked processes may have it open
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
        """Record a signal; Python runs this in the main thread as soon as possible."""
        self.signal = self.signal or number
        if self.is_waiting:
            self.is_waiting = False  # one exception is enough
            raise Stopped(self.signal)

    @contextmanager
    def ends_wait(self) -> Iterator[None]:
        """Let a request interrupt the block at any point. For waits in the main thread.

        Raises:
            Stopped: a stop was requested, before or within the block.
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
        """Return whether any process was asked to stop. All processes must call this; a request then counts for all."""
        self.signal = strongest(world.all_gather(self.signal))
        return self()

    def after(self, hours: float | None) -> None:
        """Request a stop in so many hours; None: cancel that."""
        if self.timer:
            self.timer.cancel()
            self.timer.join()
            self.timer = None
        if hours is not None:
            self.timer = threading.Timer(min(hours * 3600, threading.TIMEOUT_MAX), self._reach_time_limit)
            self.timer.daemon = True
            self.timer.start()

    def _reach_time_limit(self) -> None:
        self.signal = self.signal or TIME_LIMIT


class StopQuestion:
    """Agreement of all processes on whether to stop, in the same step: otherwise one would wait for gradients forever.

    Agreeing waits for the device, so it is done about every AGREE_EVERY seconds. The number of steps between is computed from
    the time of the slowest process.
    """

    def __init__(self, stop: StopRequest, world: "World") -> None:
        self.stop = stop
        self.world = world
        self.steps_apart = self.steps_left = 1
        self.asked_at = time.monotonic()

    def __call__(self) -> bool:
        """Return whether to stop; call this once per step."""
        if self.world.size == 1:
            return self.stop()
        self.steps_left -= 1
        if self.steps_left:
            return False
        is_asked = self.stop.agree(self.world)
        now = time.monotonic()
        seconds = max(self.world.all_gather(now - self.asked_at))
        steps = int(self.steps_apart * AGREE_EVERY / max(seconds, 1e-6))
        self.steps_apart = self.steps_left = min(max(steps, 1), 2 * self.steps_apart)
        self.asked_at = now
        return is_asked


class Interrupt(KeyboardInterrupt):
    """A signal that ends a command, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Within the block, raise Interrupt at any of SIGNALS.

    Yields:
        A list to which the number of a signal is added, in case interrupted code catches the exception.
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
    """Install a handler for all of SIGNALS except `but` within the block. Yield whether this is possible: in the main thread.

    Ignored signals, such as SIGHUP under nohup, stay ignored, except SIGINT and SIGTERM, which are sent on purpose.
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
            signal.signal(number, signal.SIG_DFL if former is None else former)  # None: not set by Python
