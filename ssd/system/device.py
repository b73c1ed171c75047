"""The device a run uses, the precision and memory format that suit it, and what makes the host's memory fast."""

import ctypes
import os
import platform
import re
import sys
from functools import cache, partial

import torch

from ssd.config.schema import DEVICE_PATTERN, DEVICES, ConfigError
from ssd.preprocessing import inference_format

WIDE = 0.4  # least width of a network that counts as wide

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def choose_device(name: str, local_rank: int = 0, local_size: int = 1) -> torch.device:
    """`auto` is the GPU where there is one; under torchrun each process takes the GPU of its local rank.

    On a GPU cuDNN is told to try its algorithms for each shape of input once: all photos are 300 × 300.

    Args:
        name: auto, cpu, mps, cuda or cuda:N.
        local_rank: number of this process among those on this machine.
        local_size: how many those are.

    Raises:
        ConfigError: there is no such device, it is not there, or all processes would share it.
    """
    if not re.fullmatch(DEVICE_PATTERN, name):
        raise ConfigError(f"device: expected {', '.join(DEVICES[:-1])} or {DEVICES[-1]}, got {name!r}")
    if local_size > 1 and (":" in name or name == "mps"):
        hint = "set device: cuda, one GPU for each" if ":" in name else "set device: cpu, or start the run without torchrun"
        raise ConfigError(f"device: {name} would be shared by the {local_size} processes on this machine; {hint}")
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps and local_size == 1 else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not has_mps:
            raise ConfigError("device: mps is asked for, but this PyTorch sees no GPU of Apple's; set device: auto")
        return torch.device("mps")
    if not torch.cuda.is_available():
        raise ConfigError(f"device: {name} is asked for, but this PyTorch sees no GPU; set device: cpu or device: auto")
    device = torch.device(name if ":" in name else f"cuda:{local_rank}")
    if device.index >= torch.cuda.device_count():
        raise ConfigError(f"device: {device} is asked for, but there are {torch.cuda.device_count()} GPUs")
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it faster than float32, and float32 elsewhere.

    Raises:
        ConfigError: there is no such precision; float16 on a CPU, whose gradients it cannot hold and where nothing scales
            them; or anything but float32 on Apple's GPUs, where no other was tried.
    """
    if name != "auto" and name not in DTYPES:
        raise ConfigError(f"precision: expected auto, {', '.join(DTYPES)}, got {name!r}")
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    if name == "float16" and device.type == "cpu":
        raise ConfigError("train.precision: float16 needs a GPU; on a CPU set bfloat16, float32 or auto")
    if name != "float32" and device.type == "mps":
        raise ConfigError(f"train.precision: {name} is not supported on mps; set float32 or auto")
    return DTYPES[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products: AMX or AVX512-BF16, or a GPU from Ampere on."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return False
    # PyTorch offers no public question for these two that exists in every release from 2.11 on.
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def processor_features() -> list[str]:
    """What decides how fast this machine's processor multiplies: its widest vectors, and instructions for products of bfloat16
    and of 8 bits."""
    questions = {
        "AMX": torch.cpu._is_amx_tile_supported,
        "AVX512-BF16": torch.cpu._is_avx512_bf16_supported,
        "VNNI": torch.cpu._is_vnni_supported,
    }
    return [torch.backends.cpu.get_cpu_capability(), *(name for name, is_there in questions.items() if is_there())]


def choose_training_format(device: torch.device, dtype: torch.dtype, width: float) -> torch.memory_format:
    """The memory format of weights and activations in training: that of inference, but contiguous for a wide network in float32
    on a processor whose vectors end at AVX2.

    Args:
        device: where the network is trained.
        dtype: of the activations.
        width: factor on the network's numbers of channels.
    """
    # Time in contiguous memory ÷ time in channels_last, two cores, forward and backward of the network:
    #   width 1, float32, AVX2: 0.76 (batch 4); inference 1.16 (batch 1), also where only the input is in channels_last
    #   width 0.25, float32, AVX2: 1.11 (batch 8); inference 1.41 (batch 1) and 1.51 (batch 16)
    #   width 0.25, float32, AVX512: 1.27; inference 1.34 and 1.42
    #   width 0.25, bfloat16: 1.33; inference 1.67 and 1.80
    # On one core, float32, AVX2, batch 8: 0.88 at width 0.5, 1.05 at width 0.35; the same at about 0.4.
    is_avx2 = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.contiguous_format if is_avx2 and dtype == torch.float32 and width >= WIDE else inference_format(device)


def device_name(device: torch.device) -> str:
    """A device for people to read."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)


@cache
def compute_in_forks() -> None:
    """Lets processes that are forked from this one compute, such as those of gunicorn's preload or of a multiprocessing.Pool:
    with one thread each. The threads of PyTorch stay behind in the parent, and a child would wait for them for ever.
    """
    if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def keep_freed_memory(keep: bool = True) -> None:
    """Makes glibc reuse freed memory instead of handing it back to the system after each step.

    By default every tensor above 32 MiB is mapped again each time, and the kernel clears each page of it at its first
    touch, which costs a training step on a CPU about a quarter of its time. All threads share what is kept: with arenas of
    their own, those that read photos would each keep the largest ones. Elsewhere than on glibc this does nothing.

    Args:
        keep: False puts back glibc's own choice.
    """
    if keep:
        _set_malloc(map_from=2**30, trim_from=2**31 - 1, arenas=1)
    else:
        _set_malloc(map_from=2**25, trim_from=2**26, arenas=0)


def give_back_freed_memory() -> None:
    """Makes glibc map buffers of a MiB and more by themselves, and hand them back to the system when they are freed.

    For processes that make batches: small things that live on among such buffers would leave holes, and the heap would grow by
    some hundred MB until it finds room in them. Elsewhere than on glibc this does nothing.
    """
    _set_malloc(map_from=2**20, trim_from=2**21)


def _set_malloc(map_from: int, trim_from: int, arenas: int | None = None) -> None:
    """Sets glibc's thresholds in bytes, of buffers that are mapped alone and of free memory that is handed back, and the number
    of arenas where one is given; 0: glibc's own choice."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, map_from)
        libc.mallopt(_M_TRIM_THRESHOLD, trim_from)
        if arenas is not None:
            libc.mallopt(_M_ARENA_MAX, arenas)
