"""What the machine has to give, asked so that every system can answer."""

import os
import shlex
import shutil
import sys

import psutil

from ssd.config import ConfigError


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
