"""Resources of this machine, on every operating system: cores, memory, a compiler, and the load of other programs."""

import os
import shlex
import shutil
import sys
from contextlib import suppress

import psutil

from ssd.config import ConfigError

MUCH_LOAD = 0.25  # cores; a smaller load hardly affects timings


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        return len(process.cpu_affinity() or ()) or 1
    return os.cpu_count() or 1


def has_cpp_compiler() -> bool:
    """Return whether torch.compile finds a C++ compiler: the one in CXX, or the default of the system."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    words = shlex.split(os.environ.get("CXX", usual))  # as in CXX="ccache g++"
    return bool(words) and shutil.which(words[0]) is not None


def require_cpp_compiler(asked_by: str) -> None:
    """Raise if there is no C++ compiler.

    Args:
        asked_by: the entry or option that needs it, for the message.

    Raises:
        ConfigError: no compiler was found.
    """
    if not has_cpp_compiler():
        raise ConfigError(f"{asked_by}: needs a C++ compiler; install one, or set CXX")


def memory_in_use() -> int:
    """Return the resident memory of this process in bytes."""
    return psutil.Process().memory_info().rss


class OtherLoad:
    """The load of other programs on the cores that this process may use, since this object was created."""

    def __init__(self) -> None:
        self._begin = _processor_times()

    def cores(self) -> float:
        """Return the average number of cores that other programs kept busy."""
        total, busy, own = (now - then for now, then in zip(_processor_times(), self._begin, strict=True))
        return max(0.0, (busy - own) / total * num_cores()) if total > 0 else 0.0

    def warning(self) -> str:
        """Return a warning about timings taken meanwhile; empty if the machine was idle."""
        cores = self.cores()
        if cores < MUCH_LOAD:
            return ""
        return (
            f"warning: other programs used {cores:.1f} of {num_cores()} cores during the timing; a run without them is "
            "faster; repeat this when they have ended"
        )


def _processor_times() -> tuple[float, float, float]:
    """Return core seconds since the machine started: in total, busy, and used by this process and its children.

    Only cores that this process may use count: a scheduler may have given the others away.
    """
    process = psutil.Process()
    each = psutil.cpu_times(percpu=True)
    usable = process.cpu_affinity() if hasattr(process, "cpu_affinity") else None  # not on macOS
    if usable and max(usable) < len(each):  # the numbers have gaps if cores are switched off
        each = [each[number] for number in usable]
    total = idle = 0.0
    for core in each:
        times = core._asdict()
        total += sum(seconds for name, seconds in times.items() if name not in ("guest", "guest_nice"))  # counted elsewhere
        idle += times["idle"] + times.get("iowait", 0.0)
    own = sum(process.cpu_times()[:4])  # with children that have ended
    for child in process.children(recursive=True):
        with suppress(psutil.Error):  # it may have ended
            own += sum(child.cpu_times()[:4])
    return total, total - idle, own
