"""Stopping on request: SIGINT and SIGTERM end a run after its step, with a checkpoint; a second one ends it at once."""

import os
import signal
from types import FrameType


class StopRequest:
    """Whether, and by which signal, the run was asked to stop. Made once, in the main thread."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number

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
