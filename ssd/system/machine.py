"""What the machine has to give, asked so that every system can answer."""

import os
import shlex
import shutil
import sys

import psutil


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


def memory_in_use() -> int:
    """Bytes of memory that this process has taken."""
    return psutil.Process().memory_info().rss
