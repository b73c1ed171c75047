"""Worker processes of a loader: how they start, hand over batches, and end."""

import gc
import io
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any, TypeVar

import cv2
import torch
from torch import Tensor

from ssd.system.device import give_back_freed_memory
from ssd.system.errors import first_line
from ssd.system.stop import SIGNALS

T = TypeVar("T")

SMALL = 2**16  # bytes; a pipe holds this much at once, so smaller tensors need no shared memory
STDERR = 2  # file descriptor
SPARE_FILES = 8  # descriptors that a worker keeps free for reading photos, and for tensors already shared


def worker_options(workers: int) -> dict[str, Any]:
    """Return the arguments of PyTorch's DataLoader about its workers. The dataset returns whole batches (`collate`)."""
    return {
        "num_workers": workers,
        "worker_init_fn": _init_worker,
        "prefetch_factor": 4 if workers else None,
        "multiprocessing_context": start_method() if workers else None,
        "collate_fn": Parcel if workers else _identity,
    }


def start_method() -> str:
    """Return how workers start. A forked one shares the parent's arrays and cache; a spawned one gets a copy."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


def num_caches(workers: int) -> int:
    """Return how many image caches a process and its workers fill: one that all share, or one per spawned worker."""
    return max(workers, 1) if start_method() == "spawn" else 1


class Parcel:
    """A batch on its way from a worker: large tensors in shared memory, or, if that is full, everything in the pipe.

    It is packed here rather than by the queue's own thread, whose errors nobody sees. The other end of the queue unpacks it.
    """

    def __init__(self, content: Any) -> None:
        try:
            _require_spare_files()
            self.packed = _pack(content, shared=True)
        except (RuntimeError, OSError):
            self.packed = _pack(content, shared=False)

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return pickle.loads, (self.packed,)


class _Pickler(ForkingPickler):
    """PyTorch's pickler, but small tensors are copied, and all of them if nothing may be shared."""

    def __init__(self, file: io.BytesIO, shared: bool) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.shared = shared

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not (self.shared and value.nbytes > SMALL):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _pack(content: Any, shared: bool) -> bytes:
    file = io.BytesIO()
    _Pickler(file, shared).dump(content)
    return file.getvalue()


def _require_spare_files() -> None:
    """Raise OSError if this process is about to run out of file descriptors."""
    opened: list[int] = []
    try:
        for _ in range(SPARE_FILES):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _identity(batch: T) -> T:
    return batch


def _init_worker(_: int) -> None:
    # A terminal or a scheduler signals the whole process group. But only the parent decides when a run stops, and it needs
    # batches until then. Workers end when it closes the loader, or when it is gone.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    Finalize(None, _exit_if_orphaned, exitpriority=100)  # before the queue's own finalizer, which waits
    gc.freeze()  # a collection writes to the parent's objects, and would so copy all of them into this process
    sys.excepthook = _report
    Queue._on_queue_feeder_error = staticmethod(_exit_on_error)  # pyright: ignore[reportAttributeAccessIssue]
    give_back_freed_memory()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _exit_if_orphaned() -> None:
    """End a worker whose parent is gone. It would wait forever for someone to fetch its last batches."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print the error that ended a worker's thread, unless the main process just stopped fetching batches."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def _exit_on_error(error: Exception, _: object) -> None:
    """End a worker that cannot hand over a batch. The main process notices only that a worker ended."""
    with suppress(OSError):
        line = f"data worker {os.getpid()}: {type(error).__name__}: {first_line(error)}\n"
        os.write(STDERR, line.encode(errors="backslashreplace"))  # directly: os._exit flushes nothing
    os._exit(1)
