"""How much of a batch fits into memory at once, for `train.batch_size: auto`."""

import re
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor

USED = 0.8  # share of the free memory to use; the rest is for data, and for larger batches than the one measured
# Peak memory of a step on a CPU relative to the tensors saved for the backward pass; the rest is gradients of the current
# layer and buffers of convolutions. Measured: 1.2 to 1.6 in bfloat16, 1.9 in float32.
CPU_OVERHEAD = 2.0
# Parts of the messages of failed allocations, which PyTorch passes on in a plain RuntimeError. cuDNN finds no algorithm at all
# for a convolution if the memory left is too small for its buffers.
FAILED_ALLOCATIONS = (
    "out of memory",
    "can't allocate memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "Unable to find a valid cuDNN algorithm",
    "was unable to find an engine to execute this computation",
)
CONTAINER = Path("/sys/fs/cgroup")  # memory limits of a container on Linux


def fewest_steps(
    step: Callable[[int], object], share: int, device: torch.device, processes: int = 1, reserved: int = 0
) -> int | None:
    """Return the fewest accumulation steps with which the share of a batch fits into memory.

    Args:
        step: runs a training step on a number of photos.
        share: photos of the batch in this process.
        device: device of the steps.
        processes: number of processes that share this machine's memory; not relevant for GPUs.
        reserved: bytes that each process will need for other purposes.

    Returns:
        A divisor of `share`; None if not even single photos fit.
    """
    sizes = [share // steps for steps in range(1, share + 1) if share % steps == 0]
    if device.type == "cuda":
        fitting = next((size for size in sizes if _fits_gpu(step, size, device)), None)
    else:
        budget = USED * free_memory() / processes - reserved
        a_photo = CPU_OVERHEAD * (_saved_bytes(step, 4) - _saved_bytes(step, 2)) / 2
        fitting = next((size for size in sizes if size * a_photo <= budget), None)
    return share // fitting if fitting else None


def _fits_gpu(step: Callable[[int], object], size: int, device: torch.device) -> bool:
    """Try a step of that size; return whether it fits into memory."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        step(size)
    except RuntimeError as error:  # OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return torch.cuda.max_memory_reserved(device) <= USED * (free + torch.cuda.memory_reserved(device))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of PyTorch or of a CUDA library means that memory could not be allocated."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in FAILED_ALLOCATIONS)


def _saved_bytes(step: Callable[[int], object], size: int) -> int:
    """Return the bytes that a step of that size saves for its backward pass.

    On a CPU, out of memory kills the process; so this is computed instead of trying.
    """
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        step(size)
    return sum(storages.values())


def free_memory(container: Path = CONTAINER) -> int:
    """Return the free memory, in bytes, of this machine or container."""
    free = psutil.virtual_memory().available
    try:
        limit, used = ((container / name).read_text().strip() for name in ("memory.max", "memory.current"))
        files = re.search(r"^inactive_file (\d+)$", (container / "memory.stat").read_text(), re.MULTILINE)
    except OSError:  # no container, or another system
        return free
    # The page cache of files counts as used, but is reclaimable.
    return min(free, int(limit) - int(used) + int(files[1] if files else 0)) if limit.isdigit() else free
