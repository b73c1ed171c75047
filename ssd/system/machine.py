"""What the machine has to give, asked so that every system can answer."""

import os
import shlex
import shutil
import sys
from contextlib import suppress

import psutil

from ssd.config.schema import ConfigError

MUCH_LOAD = 0.25  # cores: less than that hardly changes a time


def num_cores() -> int:
    """Processor cores that this process may use."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        return len(process.cpu_affinity() or ()) or 1
    return os.cpu_count() or 1


def has_cpp_compiler() -> bool:
    """Whether there is the C++ compiler that torch.compile uses for a processor: what CXX names, or the system's usual one."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    words = shlex.split(os.environ.get("CXX", usual))  # as in CXX="ccache g++"
    return bool(words) and shutil.which(words[0]) is not None


def require_cpp_compiler(asked_by: str) -> None:
    """Looks for that compiler.

    Args:
        asked_by: the entry or the option that takes it, for the message.

    Raises:
        ConfigError: there is none.
    """
    if not has_cpp_compiler():
        raise ConfigError(f"{asked_by}: needs a C++ compiler; install one, or name it in CXX")


def memory_in_use() -> int:
    """Bytes of memory that this process has taken."""
    return psutil.Process().memory_info().rss


class OtherLoad:
    """How much of the processor other programs use, counted from here on."""

    def __init__(self) -> None:
        self._begin = _processor_times()

    def cores(self) -> float:
        """Cores that other programs kept busy, on average."""
        total, busy, own = (now - then for now, then in zip(_processor_times(), self._begin, strict=True))
        return max(0.0, (busy - own) / total * (os.cpu_count() or 1)) if total > 0 else 0.0

    def warning(self) -> str:
        """A line for who plans by a time that was taken meanwhile; empty where the machine was free."""
        cores = self.cores()
        if cores < MUCH_LOAD:
            return ""
        return (
            f"warning: other programs used {cores:.1f} of {os.cpu_count()} cores while the machine was timed: without them a "
            "run is faster; repeat this when they have ended"
        )


def _processor_times() -> tuple[float, float, float]:
    """Seconds of all cores: since the start of the machine, those that were not idle, and those of this process and its
    children."""
    times = psutil.cpu_times()._asdict()
    for counted_elsewhere in ("guest", "guest_nice"):
        times.pop(counted_elsewhere, None)
    total = sum(times.values())
    idle = times["idle"] + times.get("iowait", 0.0)
    process = psutil.Process()
    own = sum(process.cpu_times()[:4])  # with children that have ended
    for child in process.children(recursive=True):
        with suppress(psutil.Error):  # it may end meanwhile
            own += sum(child.cpu_times()[:4])
    return total, total - idle, own
