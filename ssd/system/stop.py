"""Stopping on request: SIGINT, SIGTERM or a time limit end a run after its step, with a checkpoint; a second signal at once."""

import os
import signal
import threading
import time

# A terminal signals the whole process group, and a launcher such as torchrun passes the signal on: one request, twice.
SAME_REQUEST = 1.0  # seconds


TIME_LIMIT = signal.SIGALRM
REQUESTS = (signal.SIGINT, signal.SIGTERM, TIME_LIMIT)


class StopRequest:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self) -> None:
        self.signal = 0

    def listen(self) -> None:
        """Takes signals for requests from now on; once a process, in the main thread.

        A thread of its own hears them. Python's handlers have to wait until the main thread is back from PyTorch, which on a
        CPU can be in a backward pass for many seconds.
        """
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        for number in REQUESTS:
            signal.signal(number, lambda *_: None)  # without a handler the thread would hear nothing
        threading.Thread(target=self._listen, args=(receiver,), name="signals", daemon=True).start()

    def _listen(self, receiver: int) -> None:
        asked = 0.0
        while received := os.read(receiver, 1):
            number = received[0]
            if number not in REQUESTS:
                continue
            if not self.signal:
                self.signal, asked = number, time.monotonic()
            elif time.monotonic() - asked > SAME_REQUEST:
                os._exit(128 + number)

    def __call__(self) -> bool:
        return self.signal != 0

    def after(self, hours: float | None) -> None:
        """Asks by itself after so many hours from now."""
        signal.setitimer(signal.ITIMER_REAL, (hours or 0) * 3600)


class Stopped(Exception):
    """The run stopped on request, its checkpoint safe on disk.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        in_time = number == TIME_LIMIT
        super().__init__("train.max_hours are over" if in_time else f"stopped by {signal.Signals(number).name}")
        self.exit_code = 0 if in_time else 128 + number
