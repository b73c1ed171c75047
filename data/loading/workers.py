"""Worker processes, for the loader and for the first look at the data: how they start, hand over, fail and end."""

import atexit
import errno
import gc
import io
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from types import TracebackType
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ssd.system.device import give_back_freed_memory
from ssd.system.errors import Failure, first_line
from ssd.system.stop import SIGNALS, StopRequest

T = TypeVar("T")

SMALL = 2**16  # bytes: what fits into a pipe at once is not worth a file of shared memory
STDERR = 2  # the file descriptor
SPARE_FILES = 8  # that a worker keeps for reading a photo, and for handing over what it shared

# What holds the iterators of loaders that failed. Where one is collected, PyTorch ends it in good order, and waits for what
# its workers died with.
_abandoned: list[object] = []


NO_MEMORY = "out of memory or of shared memory (/dev/shm)? Try fewer data.workers, or 0"
NO_FILES = "raise ulimit -n. Try fewer data.workers, or 0"


class WorkerError(Failure):
    """Workers that cannot do their work, for want of memory as a rule; the message says what to do.

    Args:
        what: happened.
        advice: the reason, known or supposed, and what to do.
    """

    can_resume = True

    def __init__(self, what: str, advice: str = NO_MEMORY) -> None:
        super().__init__(f"{what}: {advice}")


def worker_options(workers: int) -> dict[str, Any]:
    """What PyTorch's DataLoader needs to know about its workers."""
    return {
        "num_workers": workers,
        "worker_init_fn": _init_worker,
        "prefetch_factor": 4 if workers else None,
        "multiprocessing_context": start_method() if workers else None,
        "collate_fn": Parcel if workers else _as_it_is,  # samples come as they shall be
    }


def start_method() -> str:
    """How workers start. A forked one shares the arrays and the cache as they lie; where there is no fork it gets a copy."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


def num_caches(workers: int) -> int:
    """How many caches of photos a process and its workers fill: one that all share, or one for each that is not forked."""
    return max(workers, 1) if start_method() == "spawn" else 1


class WatchedLoader(Generic[T]):
    """A loader of batches T, waited for as long as its workers live and the run is not asked to stop, and no longer.

    PyTorch alone waits for ever for a batch that a worker could not hand over, and reports a lost worker wherever the main
    process is just then, in the middle of an update of the weights as well. Here both come up in the wait for a batch.

    Args:
        loader: made with `worker_options`.
        stop: what ends a wait; None where several processes first have to agree.
    """

    def __init__(self, loader: DataLoader[Any], stop: StopRequest | None = None) -> None:
        self.loader = loader
        self.stop = stop

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[T]:
        """The batches. The workers start at once, and make the first ones before anybody waits for them.

        Raises:
            WorkerError: the workers cannot be started; or later, in a wait: one is lost, or cannot hand over its batch.
            Stopped: the run is asked to stop; raised while a batch is waited for.
        """
        others = multiprocessing.active_children()
        try:
            stream = iter(self.loader)
        except OSError as error:
            _abandon(error, _children_beside(others))
            what = f"data workers cannot be started ({error.strerror or error})"
            raise WorkerError(what, NO_FILES if _is_short_of_files(error) else NO_MEMORY) from None
        workers = _children_beside(others)
        _on_child_exit(signal.SIG_DFL)  # in place of PyTorch's handler
        return self._watched(stream, workers)

    def _watched(self, stream: Iterator[Any], workers: Sequence[BaseProcess]) -> Iterator[T]:
        while True:
            try:
                with self.stop.ends_wait() if self.stop else nullcontext(), _ends_reported(workers):
                    batch = next(stream, None)
            except BaseException as error:
                lost = _lost_worker(workers)
                _abandon(stream, workers)
                if workers and _is_from_handing_over(error):
                    raise lost or _not_handed_over(error) from None
                raise
            if batch is None:
                return
            yield batch


def _children_beside(others: Sequence[BaseProcess]) -> list[BaseProcess]:
    return [child for child in multiprocessing.active_children() if child not in others]


def _abandon(holder: object, workers: Sequence[BaseProcess]) -> None:
    _on_child_exit(signal.SIG_DFL)  # a signal may have come just before that was done where the wait ends
    for worker in workers:
        worker.kill()
    _abandoned.append(holder)


def _is_from_handing_over(error: BaseException) -> bool:
    """Whether an error came up between worker and main process, and not in the data set."""
    passed_on = str(error).startswith("Caught")  # by PyTorch, from the data set's code
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError | OSError | EOFError) and not passed_on)


def _not_handed_over(error: BaseException) -> WorkerError:
    """What to say of an error that came up on a batch's way from its worker, which lives."""
    if isinstance(error, FileNotFoundError):  # file descriptors are fetched at a socket there
        place = f"{tempfile.gettempdir()}/pymp-..."
        return WorkerError(
            f"a batch cannot be fetched from its data worker ({error.strerror})",
            f"the temporary folder of Python's processes ({place}) was removed while they ran, as programs that clean up do. "
            "Set TMPDIR to a folder that none of them empties, or data.workers to 0",
        )
    return WorkerError(first_line(error), NO_FILES if _is_short_of_files(error) else NO_MEMORY)


def _is_short_of_files(error: BaseException) -> bool:
    """Whether this process has too many files open. One that is sent to it is lost without a word then, and missed as
    `ancdata`."""
    return (isinstance(error, OSError) and error.errno == errno.EMFILE) or "ancdata" in str(error)


@contextmanager
def _ends_reported(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """A block that ends when a worker does."""

    def check(*_: object) -> None:
        if lost := _lost_worker(workers):
            raise lost

    _on_child_exit(check)
    try:
        check()
        yield
    finally:
        _on_child_exit(signal.SIG_DFL)


def _lost_worker(workers: Sequence[BaseProcess]) -> WorkerError | None:
    """What to say of the first worker that ended before its time, if one did."""
    for worker in workers:
        if worker.exitcode:
            killed = worker.exitcode < 0
            how = f"is killed by signal: {signal.Signals(-worker.exitcode).name}" if killed else "cannot continue"
            return WorkerError(f"DataLoader worker (pid {worker.pid}) {how}")
    return None


def _on_child_exit(handler: Any) -> None:
    """Has Python call a handler when a child ends, where the system tells and this thread can hear it."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)


class Parcel:
    """What a worker hands over: its tensors in shared memory, or, where that has no room, with all the rest in the pipe.

    It is packed here, and not by the queue's own thread, whose errors nobody hears of. The other end of the queue unpacks it.
    """

    def __init__(self, content: Any) -> None:
        try:
            _keep_files_spare()
            self.packed = _pack(content, shared=True)
        except (RuntimeError, OSError):
            self.packed = _pack(content, shared=False)

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return pickle.loads, (self.packed,)


class _Pickler(ForkingPickler):
    """PyTorch's, but small tensors go as they are; and so do all of them, unless they shall be shared."""

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


def _keep_files_spare() -> None:
    """Raises OSError where this process is about to run out of file descriptors."""
    taken: list[int] = []
    try:
        for _ in range(SPARE_FILES):
            taken.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in taken:
            os.close(descriptor)


def _as_it_is(batch: T) -> T:
    return batch


@atexit.register
def _end_workers() -> None:
    """Ends what a failed run leaves behind: its workers ignore SIGTERM, and multiprocessing would wait for them for ever."""
    children = multiprocessing.active_children()
    if children:
        _on_child_exit(signal.SIG_DFL)  # PyTorch would take their end for an accident
    for child in children:
        child.kill()


def _leave_if_orphaned() -> None:
    """Ends a worker whose parent is gone. It would wait for ever for somebody to take what it still has to hand over."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)


def _init_worker(_: int) -> None:
    # A terminal or a scheduler signals the whole process group, but the parent alone decides when a run stops, and still
    # wants batches until then. Workers end when it closes the loader, or when they find it gone.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    Finalize(None, _leave_if_orphaned, exitpriority=100)  # before the queue's own, which waits
    gc.freeze()  # what the parent made: a search for garbage in it would write to it, and so copy all of it into this process
    sys.excepthook = _report
    Queue._on_queue_feeder_error = staticmethod(_give_up)  # pyright: ignore[reportAttributeAccessIssue]
    give_back_freed_memory()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """What a thread of a worker dies of, unless it is that the main process, asked to stop, fetches nothing any more."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def _give_up(error: Exception, _: object) -> None:
    """Ends a worker that cannot hand over what it made: the main process hears of a worker's end, and of nothing less."""
    with suppress(OSError):
        line = f"data worker {os.getpid()}: {type(error).__name__}: {first_line(error)}\n"
        os.write(STDERR, line.encode(errors="backslashreplace"))  # at once: nothing is flushed at such an end
    os._exit(1)
