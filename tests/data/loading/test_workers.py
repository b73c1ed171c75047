"""Loader workers that fail, hang, or run out of memory or file descriptors."""

import errno
import gc
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_sharer
from multiprocessing.connection import Client
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.loading import loader, workers
from data.loading.loader import WatchedLoader, WorkerError
from data.loading.workers import Parcel, worker_options
from ssd.system.stop import Stopped, StopRequest
from tests.helpers.runs import wait_until

pytestmark = pytest.mark.slow

LARGE = 2 * workers.SMALL


class Numbers(Dataset[dict[str, Tensor]]):
    """Batches of four samples: a large and a small tensor, both filled with the first sample's number."""

    def __len__(self) -> int:
        return 40

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        number = indices[0]
        return {"large": torch.full((LARGE,), number, dtype=torch.uint8), "small": torch.tensor([float(number)])}


def watched(dataset: Dataset, num_workers: int = 1, stop: StopRequest | None = None) -> WatchedLoader:
    return WatchedLoader(DataLoader(dataset, batch_size=4, **worker_options(num_workers)), stop)


def arrived(batches: WatchedLoader) -> list[int]:
    numbers = []
    for batch in batches:
        (number,) = batch["large"].unique().tolist()
        assert batch["large"].shape == (LARGE,)
        assert batch["small"].tolist() == [number]
        numbers.append(number)
    return numbers


@contextmanager
def descriptors(spare: int) -> Iterator[None]:
    """Limit this process and its children to this many more open files within the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    while taken[-1] <= highest:  # the limit applies to a new file's number, so no lower number may be free
        taken.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1 + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


class Noted(Numbers):
    """Notes each batch that its workers make in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        with self.path.open("a") as file:
            file.write(f"{indices[0]}\n")
        return super().__getitems__(indices)


def test_the_first_batches_are_prefetched(tmp_path):
    batches_made = watched(Noted(tmp_path / "made"))
    batches = iter(batches_made)
    wait_until(lambda: (tmp_path / "made").exists() and len((tmp_path / "made").read_text().split()) == 4)
    assert [batch["small"].item() for batch in batches] == list(range(0, 40, 4))
    iter(batches_made)  # its workers end with its last reference
    wait_until(lambda: not multiprocessing.active_children())


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_batches_arrive_unchanged(num_workers):
    assert arrived(watched(Numbers(), num_workers)) == list(range(0, 40, 4))


def test_batches_arrive_without_shared_memory(monkeypatch):
    """In a container with a full /dev/shm, the workers, forked from here, cannot create files in it."""

    def full(*_: object) -> None:
        raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    assert arrived(watched(Numbers(), 2)) == list(range(0, 40, 4))


@pytest.mark.parametrize("spare", [28, 34])
def test_few_file_descriptors_are_enough(spare):
    with descriptors(spare):
        assert arrived(watched(Numbers(), 2)) == list(range(0, 40, 4))


@pytest.mark.parametrize("spare", [10, 16, 22])
def test_too_few_file_descriptors_end_in_one_line(spare):
    """The number of batches under way, and so of descriptors, depends on timing."""
    with descriptors(spare):
        outcome: list[int] | str
        try:
            outcome = arrived(watched(Numbers(), 2))
        except WorkerError as error:
            outcome = str(error)
    assert outcome == list(range(0, 40, 4)) or "Too many open files" in outcome or "DataLoader worker" in outcome


def test_batches_use_no_file_if_few_descriptors_are_left():
    """The next photos need some."""
    content = {"large": torch.zeros(LARGE, dtype=torch.uint8)}
    with descriptors(workers.SPARE_FILES - 1):
        parcel = Parcel(content)
    assert len(parcel.packed) > LARGE
    assert torch.equal(pickle.loads(parcel.packed)["large"], content["large"])


def test_the_error_names_too_few_file_descriptors():
    with descriptors(4), pytest.raises(WorkerError, match=r"Too many open files\): raise ulimit -n\. Try fewer data\.workers"):
        arrived(watched(Numbers(), 2))


def test_the_error_names_a_removed_temporary_folder(tmp_path, monkeypatch):
    """Some programs clean up /tmp."""
    folder = tmp_path / "pymp-mine"
    folder.mkdir()
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", str(folder))  # also for the workers
    batches = iter(watched(Numbers()))
    next(batches)
    shutil.rmtree(folder)
    message = r"\(No such file or directory\): the temporary folder of Python's processes .*/pymp-.* was removed .*Set TMPDIR"
    with pytest.raises(WorkerError, match=message) as caught:
        list(batches)
    assert "memory" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "raise ulimit -n"),
        (RuntimeError("received 0 items of ancdata"), "raise ulimit -n"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out of memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "out of memory"),
        (RuntimeError("unable to mmap 16 bytes from file </torch_1>: Cannot allocate memory (12)"), "out of memory"),
    ],
)
def test_the_advice_depends_on_the_transfer_error(error, advice, monkeypatch):
    def fail(*_: object) -> None:
        raise error

    batches = iter(watched(Numbers()))
    next(batches)
    monkeypatch.setattr(ForkingPickler, "loads", fail)
    with pytest.raises(WorkerError, match=f"{advice}.* Try fewer data.workers, or 0"):
        list(batches)


def test_a_failed_transfer_is_reported(monkeypatch, capfd):
    def fail(self: Parcel) -> None:
        raise MemoryError("no room for it")

    monkeypatch.setattr(Parcel, "__reduce__", fail)
    with pytest.raises(WorkerError, match=r"DataLoader worker \(pid \d+\) .*fewer data\.workers, or 0"):
        arrived(watched(Numbers()))
    assert "MemoryError: no room for it" in capfd.readouterr().err


class Stuck(Numbers):
    """Never returns its second batch, like a disk that does not respond."""

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        if indices[0]:
            time.sleep(1000)
        return super().__getitems__(indices)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Iterator[StopRequest]:
    monkeypatch.setattr("ssd.system.stop.SAME_REQUEST", 0)  # or the test would wait for it at the end
    with StopRequest().listening() as stop:
        yield stop


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_signal_ends_a_wait_for_data(num_workers, stop):
    batches = iter(watched(Stuck(), num_workers, stop))
    next(batches)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    start = time.monotonic()
    with pytest.raises(Stopped, match="SIGTERM"):
        next(batches)
    assert time.monotonic() - start < 2
    with pytest.raises(Stopped):  # a later wait raises at once
        next(iter(watched(Stuck(), 0, stop)))


def test_a_signal_before_or_after_the_wait_raises_nothing(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 5
    while not stop() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stop.signal == signal.SIGTERM


def test_a_dead_worker_ends_the_wait_at_once():
    """PyTorch checks for lost workers only every few seconds."""
    previous = signal.getsignal(signal.SIGCHLD)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()

    def wait() -> None:
        with loader._ends_reported([child]):
            child.kill()
            time.sleep(20)

    with pytest.raises(WorkerError, match=rf"\(pid {child.pid}\) is killed by signal: SIGKILL") as caught:
        wait()
    assert caught.value.can_resume
    with pytest.raises(WorkerError, match="is killed by signal: SIGKILL"), loader._ends_reported([child]):
        raise AssertionError("there is nothing to wait for")
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    signal.signal(signal.SIGCHLD, previous)


def test_a_lost_worker_is_reported_only_while_waiting():
    batches = iter(watched(Numbers(), 2))
    next(batches)
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:  # a training step, which must not be interrupted
        time.sleep(0.01)
    with pytest.raises(WorkerError, match=r"DataLoader worker \(pid \d+\) is killed by signal: SIGKILL: out of memory"):
        list(batches)


class Faulty(Numbers):
    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        raise RuntimeError("a fault of the program")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_in_the_data_set_is_passed_on(num_workers):
    with pytest.raises(RuntimeError, match="a fault of the program") as caught:
        arrived(watched(Faulty(), num_workers))
    assert not isinstance(caught.value, WorkerError)


class Frozen(Dataset[dict[str, Tensor]]):
    """Returns the number of the parent's objects that a worker's garbage collector ignores."""

    def __len__(self) -> int:
        return 1

    def __getitems__(self, _: list[int]) -> dict[str, Tensor]:
        return {"frozen": torch.tensor(gc.get_freeze_count())}


def offer_a_file(pipe) -> None:
    """Send a tensor in shared memory as a worker does."""
    workers._init_worker(0)
    pipe.send(resource_sharer.DupFd(0)._id)
    pipe.recv()


def test_an_unfetched_batch_is_no_error(capfd):
    pipe, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=offer_a_file, args=(theirs,))
    worker.start()
    address, _ = pipe.recv()
    # On a request to stop, the main process may exit during the transfer.
    Client(address, authkey=multiprocessing.current_process().authkey).close()
    time.sleep(0.2)
    pipe.send(None)
    worker.join(timeout=20)
    assert worker.exitcode == 0
    assert not capfd.readouterr().err


def test_workers_do_not_collect_the_parents_objects():
    """The collector writes to each object and so copies its page: gigabytes for a large data set."""
    (batch,) = watched(Frozen())
    assert batch["frozen"] > 10_000


def test_the_end_of_abandoned_workers_is_not_reported(monkeypatch):
    """A request to stop may skip the end of a wait, which turns these reports off."""
    monkeypatch.setattr(loader, "_abandoned", [])
    previous = signal.getsignal(signal.SIGCHLD)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    lost: list[int] = []
    signal.signal(signal.SIGCHLD, lambda number, _: lost.append(number))
    try:
        loader._abandon(None, [child])
        child.join()
        assert not lost
    finally:
        signal.signal(signal.SIGCHLD, previous)
