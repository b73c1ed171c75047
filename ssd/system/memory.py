"""How much of a batch the memory holds at once: what `train.batch_size: auto` comes down to."""

import re
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor

USED = 0.8  # of the memory that is free; the rest is for the data, and for what batches differ by
# Memory that a step on a CPU takes, against what it saves for the backward pass alone: the gradients of the current layer
# and the convolutions' own buffers come on top. Measured: 1.2 to 1.6 in bfloat16, 1.9 in float32.
CPU_OVERHEAD = 2.0
# Parts of what a CPU, CUDA and its libraries say when they cannot allocate, which PyTorch passes on in a plain RuntimeError.
# cuDNN also finds no algorithm at all for a convolution where too little is left for its buffers.
FAILED_ALLOCATIONS = (
    "out of memory",
    "can't allocate memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "Unable to find a valid cuDNN algorithm",
    "was unable to find an engine to execute this computation",
)
CONTAINER = Path("/sys/fs/cgroup")  # where Linux tells a container its limits


def fewest_steps(
    step: Callable[[int], object], share: int, device: torch.device, processes: int = 1, reserved: int = 0
) -> int | None:
    """The fewest accumulation steps in which one process's share of a batch fits into memory.

    Args:
        step: does a training step on so many photos.
        share: photos of the whole batch that fall to the process.
        device: where it does them.
        processes: of the run, that share the memory of this machine; GPUs have their own.
        reserved: bytes that each process is still going to take for something else.

    Returns:
        A divisor of `share`; None where not even single photos fit.
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
    """Whether a step of that size does not run out of memory; it is tried."""
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
    """Whether an error says that memory could not be allocated: PyTorch's own, or one that CUDA's libraries report."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in FAILED_ALLOCATIONS)


def _saved_bytes(step: Callable[[int], object], size: int) -> int:
    """Memory of all that a step of that size saves for its backward pass.

    A CPU that runs out of memory has the process killed, so there it is counted, not tried.
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
    """Bytes that this machine, or the container in it, has to give."""
    free = psutil.virtual_memory().available
    try:
        limit, used = ((container / name).read_text().strip() for name in ("memory.max", "memory.current"))
        files = re.search(r"^inactive_file (\d+)$", (container / "memory.stat").read_text(), re.MULTILINE)
    except OSError:  # no container, or another system
        return free
    # Files that were read count as used, but give way.
    return min(free, int(limit) - int(used) + int(files[1] if files else 0)) if limit.isdigit() else free
