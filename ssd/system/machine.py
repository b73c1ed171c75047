"""What the machine has to give, asked so that every system can answer."""

import os

import psutil


def num_cores() -> int:
    """Processor cores that this process may use."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        return len(process.cpu_affinity() or ()) or 1
    return os.cpu_count() or 1


def memory_in_use() -> int:
    """Bytes of memory that this process has taken."""
    return psutil.Process().memory_info().rss
