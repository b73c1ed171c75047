"""Stopping on request: SIGINT and SIGTERM end a run after its step, with a checkpoint; a second one ends it at once."""

import os
import signal
import threading
import time

# A terminal signals the whole process group, and a launcher such as torchrun passes the signal on: one request, twice.
SAME_REQUEST = 1.0  # seconds


class StopRequest:
    """Whether, and by which signal, the run was asked to stop. Made once, in the main thread.

    A thread of its own hears the signals. Python's handlers have to wait until the main thread is back from PyTorch, which
    on a CPU can be in a backward pass for many seconds.
    """

    def __init__(self) -> None:
        self.signal = 0
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # without a handler the thread would hear nothing
        threading.Thread(target=self._listen, args=(receiver,), name="signals", daemon=True).start()

    def _listen(self, receiver: int) -> None:
        asked = 0.0
        while received := os.read(receiver, 1):
            number = received[0]
            if number not in (signal.SIGINT, signal.SIGTERM):
                continue
            if not self.signal:
                self.signal, asked = number, time.monotonic()
            elif time.monotonic() - asked > SAME_REQUEST:
                os._exit(128 + number)

    def __call__(self) -> bool:
        return self.signal != 0


class Stopped(Exception):
    """The run stopped on request, its checkpoint safe on disk.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number
