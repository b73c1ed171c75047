"""The device of a run, its precision and memory format, and settings of the host's memory allocator."""

import ctypes
import os
import platform
import re
import sys
from functools import cache, partial

import torch

from ssd.config.schema import DEVICE_PATTERN, DEVICES, ConfigError

APPLE = {"mps"}  # types of Apple's GPUs
WIDE = 0.4  # minimum width of a network for the contiguous format: see `choose_training_format`

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def choose_device(name: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """Return the device with this name. `auto` is the GPU if there is one; under torchrun, each process uses its own GPU.

    For a GPU this turns on cuDNN's benchmark mode, since all inputs have one size.

    Args:
        name: auto, cpu, mps, cuda or cuda:N.
        local_rank: rank of this process on this machine.
        local_size: number of processes on this machine.

    Raises:
        ConfigError: the name is unknown, the device is not available, or several processes would share it.
    """
    if not re.fullmatch(DEVICE_PATTERN, name):
        raise ConfigError(f"device: expected {', '.join(DEVICES[:-1])} or {DEVICES[-1]}, got {name!r}")
    if local_size > 1 and (":" in name or name == "mps"):
        hint = "set device: cuda for one GPU each" if ":" in name else "set device: cpu, or start the run without torchrun"
        raise ConfigError(f"device: {name} would be shared by {local_size} processes; {hint}")
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps and local_size == 1 else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not has_mps:
            raise ConfigError("device: mps: PyTorch finds no Apple GPU; set device: auto")
        return torch.device("mps")
    if not torch.cuda.is_available():
        raise ConfigError(f"device: {name}: PyTorch finds no GPU; set device: cpu or device: auto")
    device = torch.device(name if ":" in name else f"cuda:{local_rank}")
    if device.index >= torch.cuda.device_count():
        raise ConfigError(f"device: {device}: PyTorch finds {torch.cuda.device_count()} GPUs; set device: auto")
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True
    return device


def choose_precision(name: str, device: torch.device, trains_separable: bool = False) -> torch.dtype:
    """Return the precision with this name. `auto` is bfloat16 on devices that multiply it faster than float32, else float32.

    Args:
        name: auto, float32, bfloat16 or float16.
        device: device of the network.
        trains_separable: whether a network with depthwise convolutions is trained, for which `auto` is float32 on a CPU.

    Raises:
        ConfigError: the name is unknown; float16 on a CPU, which has no gradient scaling; or a precision other than float32
            on an Apple GPU, where none was tested.
    """
    if name != "auto" and name not in DTYPES:
        raise ConfigError(f"precision: expected auto, {', '.join(DTYPES)}, got {name!r}")
    if name == "auto":
        # Processor time in bfloat16 ÷ that in float32, one core, channels_last:
        #   SSDLite, AMX: step 1.39 (batch 8); inference 0.98 (batch 1) and 0.63 (batch 8); AVX512-BF16: step 1.35
        #   SSD300 of width 0.25, AMX: step 0.61 (batch 4)
        # Contiguous memory does not help SSDLite: 1.2 to 1.6 times the time of channels_last in float32, in either precision.
        is_slower = trains_separable and device.type == "cpu"
        return torch.bfloat16 if has_fast_bfloat16(device) and not is_slower else torch.float32
    if name == "float16" and device.type == "cpu":
        raise ConfigError("train.precision: float16 needs a GPU; on a CPU set bfloat16, float32 or auto")
    if name != "float32" and device.type == "mps":
        raise ConfigError(f"train.precision: {name} is not supported on mps; set float32 or auto")
    return DTYPES[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16: AMX, AVX512-BF16, or an NVIDIA GPU since Ampere."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return False
    # No public function for these exists in all supported releases of PyTorch.
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def processor_features() -> list[str]:
    """Return the processor features that determine its speed: widest vectors, and instructions for bfloat16 and int8."""
    questions = {
        "AMX": torch.cpu._is_amx_tile_supported,
        "AVX512-BF16": torch.cpu._is_avx512_bf16_supported,
        "VNNI": torch.cpu._is_vnni_supported,
    }
    return [torch.backends.cpu.get_cpu_capability(), *(name for name, is_there in questions.items() if is_there())]


def is_apple(device: torch.device) -> bool:
    """Return whether a device is an Apple GPU, on which float64, fused optimisers and channels_last are avoided."""
    return device.type in APPLE


def inference_format(device: torch.device) -> torch.memory_format:
    """Return the memory format of activations in inference: channels_last, or contiguous on Apple GPUs.

    There, batch normalisation is reported to be wrong with channels_last.
    """
    return torch.contiguous_format if is_apple(device) else torch.channels_last


def choose_training_format(
    device: torch.device, dtype: torch.dtype, width: float, separable: bool = False
) -> torch.memory_format:
    """Return the memory format for training: as in inference, but contiguous for a wide float32 network on an AVX2 processor.

    Args:
        device: device of the network.
        dtype: precision of the activations.
        width: factor on the number of channels.
        separable: whether the network has depthwise convolutions.
    """
    # Time in contiguous memory ÷ time in channels_last, two cores, forward and backward of the network:
    #   width 1, float32, AVX2: 0.76 (batch 4); inference 1.16 (batch 1), also if only the input is channels_last
    #   width 0.25, float32, AVX2: 1.11 (batch 8); inference 1.41 (batch 1) and 1.51 (batch 16)
    #   width 0.25, float32, AVX512: 1.27; inference 1.34 and 1.42
    #   width 0.25, bfloat16: 1.33; inference 1.67 and 1.80
    # On one core, float32, AVX2, batch 8: 0.88 at width 0.5, 1.05 at width 0.35; the same at about 0.4.
    # SSDLite, one core, batch 8: float32, AVX2: 1.27, AVX512: 1.28; bfloat16: 1.07; inference (batch 1) 1.12, 1.19 and 1.61
    is_avx2 = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    is_dense = width >= WIDE and not separable
    return torch.contiguous_format if is_avx2 and dtype == torch.float32 and is_dense else inference_format(device)


def device_name(device: torch.device) -> str:
    """Return a readable name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)


@cache
def compute_in_forks() -> None:
    """Let processes forked from this one compute, with one thread each: for gunicorn's preload or a multiprocessing.Pool.

    The threads of PyTorch do not survive a fork; a child would wait for them forever.
    """
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def keep_freed_memory(keep: bool = True) -> None:
    """Make glibc reuse freed memory instead of returning it to the system. Without glibc this does nothing.

    By default, each tensor above 32 MiB is mapped anew and the kernel clears its pages, which costs about a quarter of a
    training step on a CPU. All threads share one arena; with several, each thread that reads photos would keep large buffers.

    Args:
        keep: False restores the defaults of glibc.
    """
    if keep:
        _set_malloc(map_from=2**30, trim_from=2**31 - 1, arenas=1)
    else:
        _set_malloc(map_from=2**25, trim_from=2**26, arenas=0)


def give_back_freed_memory() -> None:
    """Make glibc map buffers from 1 MiB separately and return them to the system. Without glibc this does nothing.

    For loader processes: small objects between such buffers would fragment the heap, which would grow by some hundred MB.
    """
    _set_malloc(map_from=2**20, trim_from=2**21)


def _set_malloc(map_from: int, trim_from: int, arenas: int | None = None) -> None:
    """Set glibc's thresholds for mapping and trimming, in bytes, and the maximum number of arenas (0: the default)."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, map_from)
        libc.mallopt(_M_TRIM_THRESHOLD, trim_from)
        if arenas is not None:
            libc.mallopt(_M_ARENA_MAX, arenas)
