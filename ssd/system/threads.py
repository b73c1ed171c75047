"""The number of PyTorch's threads on a CPU, which can follow the load of other programs."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import Literal, Self, TypeVar

import torch

from ssd.system.machine import OtherLoad, num_cores

T = TypeVar("T")
ThreadSetting = Literal["all", "free"] | int

PERIOD = 2.0  # seconds between measurements, which take 2 to 4 ms each
# Cores. Two threads nearly stop while another program has one of two cores, and one thread has 0.6 of their free speed, so at
# this load both are as fast.
HARMLESS_LOAD = 0.4


class Threads:
    """The threads that PyTorch computes with, within a `with` block.

    The threads of an operation wait for each other, in oneDNN's weight gradient without giving up their cores. If another
    program takes one of the cores, all wait until that thread gets its turn, and two threads are many times slower than one.
    The number of threads changes results in their last bits.

    Args:
        setting: all: PyTorch's own number, one for each core or OMP_NUM_THREADS; free: at most that many, and no more than
            other programs leave cores free; or the number.
        measures: whether the load matters: this process alone computes, on a CPU, and nothing is compiled for one number.
    """

    def __init__(self, setting: ThreadSetting, measures: bool = True) -> None:
        self._most = torch.get_num_threads()
        self.setting = setting
        self.measures = measures and not isinstance(setting, int) and self._most > 1
        self._times_too_many = 0
        if self.measures:
            self._begin_measurement()

    def __enter__(self) -> Self:
        if isinstance(self.setting, int):
            torch.set_num_threads(self.setting)
        return self

    def __exit__(self, *_: object) -> None:
        if self.setting != "all":
            torch.set_num_threads(self._most)

    def _begin_measurement(self) -> None:
        self._load, self._since = OtherLoad(), time.monotonic()

    def _measure(self) -> tuple[float, int] | None:
        """Return the load since the last measurement, and the number of threads for it; None if it is too early for one."""
        if not self.measures or time.monotonic() - self._since < PERIOD:
            return None
        load = self._load.cores()
        self._begin_measurement()
        return load, min(self._most, max(1, num_cores() - math.ceil(load - HARMLESS_LOAD)))

    def follow(self) -> None:
        """Set the number of threads for what this thread of Python computes next, if the setting is free."""
        if self.setting == "free" and (measured := self._measure()):
            torch.set_num_threads(measured[1])

    def following(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and call `follow` before each."""
        for item in items:
            self.follow()
            yield item

    def settle(self) -> None:
        """Wait for the first measurement, and follow it."""
        if self.measures and self.setting == "free":
            time.sleep(max(0.0, self._since + PERIOD - time.monotonic()))
            self.follow()

    def warning(self) -> str:
        """Return a warning, once, if the setting is all and fewer threads have been faster for a while."""
        if self.setting != "all" or not (measured := self._measure()):
            return ""
        load, number = measured
        self._times_too_many = self._times_too_many + 1 if number < self._most else 0
        if self._times_too_many < 2:
            return ""
        advice, self.measures = self.advice, False
        return f"warning: other programs use {load:.1f} of {num_cores()} cores, and PyTorch's threads wait for them; {advice}"

    @property
    def advice(self) -> str:
        """What to do about the load of other programs; empty if nothing would help."""
        return "train.threads=free is faster while they run" if self.measures and self.setting == "all" else ""
