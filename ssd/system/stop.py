"""Stopping on request: SIGINT, SIGTERM or a time limit end a run after its step, with a checkpoint; a second signal at once."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssd.system.distributed import World

# A terminal signals the whole process group, and a launcher such as torchrun passes the signal on: one request, twice.
SAME_REQUEST = 1.0  # seconds

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TIME_LIMIT = 1  # in the place of a signal's number, and below those of SIGNALS: where processes differ, a signal counts


class Stopped(Exception):
    """The run stopped on request, its checkpoint safe on disk.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        in_time = number == TIME_LIMIT
        super().__init__("train.max_hours are over" if in_time else f"stopped by {signal.Signals(number).name}")
        self.exit_code = 0 if in_time else 128 + number


class StopRequest:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self) -> None:
        self.signal = 0
        self.is_waiting = False
        self.timer: threading.Timer | None = None

    def listen(self) -> None:
        """Takes signals for requests from now on. In another thread than the main one, where nobody can, this does nothing.

        A thread of its own hears them. Python's handlers have to wait until the main thread is back from PyTorch, which on a
        CPU can be in a backward pass for many seconds.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        receiver, sender = socket.socketpair()  # not a pipe: Windows can wake up a socket only
        sender.setblocking(False)
        self.sender = sender  # open as long as signals may come
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._interrupt_wait)
        threading.Thread(target=self._listen, args=(receiver,), name="signals", daemon=True).start()

    def _listen(self, receiver: socket.socket) -> None:
        asked = None
        while received := receiver.recv(1):
            number = received[0]
            if number not in SIGNALS:
                continue
            if asked is None:
                asked = time.monotonic()
                self.signal = self.signal or number
            elif time.monotonic() - asked > SAME_REQUEST:
                os._exit(128 + number)

    def _interrupt_wait(self, number: int, _: object) -> None:
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
        self.signal = max(world.gather(self.signal))
        return self()

    def after(self, hours: float | None) -> None:
        """Asks after so many hours from now."""
        if self.timer:
            self.timer.cancel()
        if hours is not None:
            self.timer = threading.Timer(min(hours * 3600, threading.TIMEOUT_MAX), self._time_is_over)
            self.timer.daemon = True
            self.timer.start()

    def _time_is_over(self) -> None:
        self.signal = self.signal or TIME_LIMIT
