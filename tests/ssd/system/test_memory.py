import psutil
import pytest
import torch

from ssd.system import memory
from ssd.system.memory import fewest_steps, free_memory

CPU = torch.device("cpu")
A_PHOTO = 1000  # bytes per photo that `step` saves for its backward pass


def step(count: int) -> None:
    """Save a table of photos, twice, and a constant of another size."""
    constant = torch.ones(70, requires_grad=True)
    photos = torch.ones(count, A_PHOTO // 4, requires_grad=True)
    ((photos * photos).sum() + (constant**2).sum()).backward()


@pytest.mark.parametrize("photos, expected", [(1000, 1), (32, 1), (31.9, 2), (16, 2), (10, 4), (8, 4), (1, 32), (0.9, None)])
def test_fewest_steps_that_fit_into_memory(monkeypatch, photos, expected):
    budget = photos * A_PHOTO * memory.CPU_OVERHEAD / memory.USED + 1
    monkeypatch.setattr(memory, "free_memory", lambda: budget)
    assert fewest_steps(step, 32, CPU) == expected
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * budget)
    assert fewest_steps(step, 32, CPU, processes=2) == expected


def test_reserved_memory_is_not_free(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 32 * A_PHOTO * memory.CPU_OVERHEAD / memory.USED + 1)
    assert fewest_steps(step, 32, CPU, reserved=int(16 * A_PHOTO * memory.CPU_OVERHEAD)) == 2


def test_steps_divide_the_share(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 7 * A_PHOTO * memory.CPU_OVERHEAD / memory.USED + 1)
    assert fewest_steps(step, 30, CPU) == 5
    assert fewest_steps(step, 7, CPU) == 1
    assert fewest_steps(step, 11, CPU) == 11


def test_container_limit(tmp_path):
    assert free_memory(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.1)
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 250\nactive_file 50\ninactive_file 300\n")
    assert free_memory(tmp_path) == 700  # the page cache is reclaimable
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.1)


def test_saved_bytes_of_a_known_network():
    """The input of a linear layer, and the output of the sigmoid after it."""
    layer = torch.nn.Linear(100, 50)

    def real_step(count: int) -> None:
        torch.sigmoid(layer(torch.ones(count, 100))).sum().backward()

    each = memory._saved_bytes(real_step, 3) - memory._saved_bytes(real_step, 2)
    assert each == 4 * (100 + 50)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1000 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
    ids=str,
)
def test_failed_gpu_allocation_does_not_fit(monkeypatch, error):
    """On a GPU a step is tried; with more than 8 photos it fails like one of the libraries."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    for name in ("empty_cache", "reset_peak_memory_stats", "memory_reserved", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)

    def failing(count: int) -> None:
        if count > 8:
            raise error

    def wrong(count: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert fewest_steps(failing, 32, torch.device("cuda")) == 4
    # A step may use 80 % of the free memory and of what PyTorch has reserved.
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    for taken, expected in ((1200, 1), (1201, None)):
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device, taken=taken: taken)
        assert fewest_steps(lambda count: None, 32, torch.device("cuda")) == expected
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 0)
    assert fewest_steps(lambda count: failing(9), 32, torch.device("cuda")) is None
    with pytest.raises(RuntimeError, match="illegal memory access"):
        fewest_steps(wrong, 32, torch.device("cuda"))


@pytest.mark.parametrize("share, expected", [(32, 4), (8, 1), (1, 1)])
def test_each_size_starts_with_an_empty_gpu(monkeypatch, share, expected):
    """Memory reserved earlier or for a larger size does not count; at the end the GPU cache is empty."""
    own = torch.device("cuda:1")
    held, peak = 900, 2000  # of 1000, 80 % of which hold 8 photos

    def empty() -> None:
        nonlocal held
        held = 0

    def reset(device: torch.device) -> None:
        nonlocal peak
        assert device == own
        peak = held

    def take(count: int) -> None:
        nonlocal held, peak
        held += 100 * count
        peak = max(peak, held)

    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000 - held, 1000) if device == own else (0, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held if device == own else 0)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: peak if device == own else 10_000)
    assert fewest_steps(take, share, own) == expected
    assert held == 0
