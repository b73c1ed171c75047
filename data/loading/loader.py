"""The loader of batches: it waits for workers only as long as they live and the run continues."""

import atexit
import errno
import multiprocessing
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Sampler

from data.loading.dataset import DetectionDataset
from data.loading.sampler import SampleKey
from data.loading.workers import worker_options
from ssd.batch import Batch
from ssd.system.distributed import World
from ssd.system.errors import Failure, first_line
from ssd.system.machine import num_cores
from ssd.system.stop import StopRequest

T = TypeVar("T")

NO_MEMORY = "out of memory or of shared memory (/dev/shm)? Try fewer data.workers, or 0"
NO_FILES = "raise ulimit -n. Try fewer data.workers, or 0"

# Keeps the iterators of failed loaders alive. When PyTorch collects one, it ends it in good order, and waits for whatever
# killed its workers.
_abandoned: list[object] = []


class WorkerError(Failure):
    """Workers that failed, usually for lack of memory. The message says what to do.

    Args:
        what: what happened.
        advice: the known or likely reason, and what to do.
    """

    can_resume = True

    def __init__(self, what: str, advice: str = NO_MEMORY) -> None:
        super().__init__(f"{what}: {advice}")


def make_loader(
    dataset: DetectionDataset,
    order: Sampler[list[SampleKey]],
    workers: int,
    device: torch.device,
    stop: StopRequest | None = None,
) -> "WatchedLoader[Batch]":
    """Return a loader of batches, in pinned memory for a GPU.

    Args:
        dataset: makes the samples.
        order: the samples of each batch.
        workers: processes that make batches; 0 for the main process.
        device: where the batches are used.
        stop: ends a wait for a batch; None if several processes must first agree to stop.
    """
    loader = DataLoader(dataset, batch_sampler=order, pin_memory=device.type == "cuda", **worker_options(workers))
    return WatchedLoader(loader, stop)


def choose_workers(workers: int | str, device: torch.device, world: World) -> int:
    """Resolve `auto`: one on a CPU, whose cores the network needs; otherwise this process's share of the cores."""
    if workers != "auto":
        return int(workers)
    if device.type == "cpu":
        return 1
    return max(1, min(16, num_cores() // world.local_size))


class WatchedLoader(Generic[T]):
    """A loader of batches T that waits only as long as its workers live and no stop is requested.

    PyTorch waits forever for a batch that a worker could not hand over. And it reports a lost worker wherever the main process
    happens to be, even in the middle of a weight update. Here both are reported while waiting for a batch.

    Args:
        loader: made with `worker_options`.
        stop: ends a wait; None if several processes must first agree to stop.
    """

    def __init__(self, loader: DataLoader[Any], stop: StopRequest | None = None) -> None:
        self.loader = loader
        self.stop = stop

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[T]:
        """Iterate over the batches. The workers start at once, and prepare the first batches before they are needed.

        Raises:
            WorkerError: the workers cannot be started; or later, while waiting: one is lost, or cannot hand over its batch.
            Stopped: a stop is requested while waiting for a batch.
        """
        others = multiprocessing.active_children()
        try:
            stream = iter(self.loader)
        except OSError as error:
            _abandon(error, _children_except(others))
            what = f"data workers cannot be started ({error.strerror or error})"
            raise WorkerError(what, NO_FILES if _is_out_of_files(error) else NO_MEMORY) from None
        workers = _children_except(others)
        _on_child_exit(signal.SIG_DFL)  # replaces PyTorch's handler
        return self._watched(stream, workers)

    def _watched(self, stream: Iterator[Any], workers: Sequence[BaseProcess]) -> Iterator[T]:
        while True:
            try:
                with self.stop.ends_wait() if self.stop else nullcontext(), _ends_reported(workers):
                    batch = next(stream, None)
            except BaseException as error:
                lost = _lost_worker(workers)
                _abandon(stream, workers)
                if workers and _is_from_transfer(error):
                    raise lost or _transfer_error(error) from None
                raise
            if batch is None:
                return
            yield batch


def _children_except(others: Sequence[BaseProcess]) -> list[BaseProcess]:
    return [child for child in multiprocessing.active_children() if child not in others]


def _abandon(holder: object, workers: Sequence[BaseProcess]) -> None:
    _on_child_exit(signal.SIG_DFL)  # a signal may have interrupted the end of the wait before it did this
    for worker in workers:
        worker.kill()
    _abandoned.append(holder)


def _is_from_transfer(error: BaseException) -> bool:
    """Return whether an error occurred between worker and main process, rather than in the dataset."""
    is_forwarded = str(error).startswith("Caught")  # by PyTorch, from the dataset's code
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError | OSError | EOFError) and not is_forwarded)


def _transfer_error(error: BaseException) -> WorkerError:
    """Return the error for a batch that was lost on its way from a living worker."""
    if isinstance(error, FileNotFoundError):  # file descriptors are fetched through a socket there
        folder = f"{tempfile.gettempdir()}/pymp-..."
        return WorkerError(
            f"a batch cannot be fetched from its data worker ({error.strerror})",
            f"the temporary folder of Python's processes ({folder}) was removed while they ran, for example by a cleanup job. "
            "Set TMPDIR to a folder that is not cleaned, or data.workers to 0",
        )
    return WorkerError(first_line(error), NO_FILES if _is_out_of_files(error) else NO_MEMORY)


def _is_out_of_files(error: BaseException) -> bool:
    """Return whether this process has too many open files. A descriptor sent to it then is lost, reported as `ancdata`."""
    return (isinstance(error, OSError) and error.errno == errno.EMFILE) or "ancdata" in str(error)


@contextmanager
def _ends_reported(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """Raise a WorkerError within the block when a worker ends."""

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
    """Return the error for the first worker that ended early, if any."""
    for worker in workers:
        if worker.exitcode:
            killed = worker.exitcode < 0
            how = f"is killed by signal: {signal.Signals(-worker.exitcode).name}" if killed else "cannot continue"
            return WorkerError(f"DataLoader worker (pid {worker.pid}) {how}")
    return None


def _on_child_exit(handler: Any) -> None:
    """Call a handler when a child process ends, if the system signals it and this is the main thread."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)


@atexit.register
def _end_workers() -> None:
    """Kill the workers of a failed run: they ignore SIGTERM, and multiprocessing would wait for them forever."""
    children = multiprocessing.active_children()
    if children:
        _on_child_exit(signal.SIG_DFL)  # PyTorch would report their end as a failure
    for child in children:
        child.kill()
