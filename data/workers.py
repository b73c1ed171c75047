"""Worker processes, for the loader and for the first look at the data."""

import atexit
import multiprocessing
import signal
from typing import Any

import cv2
import torch


def worker_options(workers: int) -> dict[str, Any]:
    """What PyTorch's DataLoader needs to know about its workers."""
    return {
        "num_workers": workers,
        "worker_init_fn": _init_worker,
        "prefetch_factor": 4 if workers else None,
        # A forked worker shares the arrays and the cache as they lie; where there is no fork it gets a copy.
        "multiprocessing_context": "fork" if workers and "fork" in multiprocessing.get_all_start_methods() else None,
    }


def as_it_is(batch: Any) -> Any:
    """A collate_fn for samples that come as they shall be."""
    return batch


@atexit.register
def _end_workers() -> None:
    """Ends what a failed run leaves behind: its workers ignore SIGTERM, and multiprocessing would wait for them for ever."""
    children = multiprocessing.active_children()
    if children:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would take their end for an accident
    for child in children:
        child.kill()


def _init_worker(_: int) -> None:
    # A terminal or a scheduler signals the whole process group, but the parent alone decides when a run stops, and still
    # wants batches until then. Workers end when it closes the loader, or when they find it gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
