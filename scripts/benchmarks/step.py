"""Benchmark of a whole training step."""

from collections.abc import Callable

import torch
from torchvision.models.detection import ssd as torchvision_ssd

from scripts.benchmarks.measuring import OURS, Row, Runs, Setting, measure, real_batch, rows
from scripts.benchmarks.networks import (
    Variant,
    conv_inputs,
    our_network,
    peer_variants,
    torchvision_network,
    torchvision_targets,
)
from ssd.batch import Batch
from ssd.loss import MultiBoxLoss
from ssd.model import SSD
from ssd.preprocessing import IMAGENET, normalize
from ssd.system.device import choose_training_format
from ssd.training.optimizer import make_optimizer


def bench_step(setting: Setting, batch_size: int) -> list[Row]:
    """Measure forward, loss, backward and optimiser against torchvision's step in each precision and memory format. Floor: the
    convolutions alone, forward and backward, in our memory format."""
    device, dtype = setting.device, setting.dtype
    memory_format = choose_training_format(device, dtype, our_network().width)
    batch = real_batch(setting.photos, batch_size)
    runs: Runs = {"floor: convolutions alone": convolutions(device, dtype, batch_size, memory_format)}
    runs[OURS] = our_step(setting, batch, our_network(), dtype)
    if setting.compiled:
        runs["ours, compiled"] = our_step(setting, batch, our_network(), dtype, "default")
        if device.type == "cuda":
            runs["ours, compiled, CUDA graph"] = our_step(setting, batch, our_network(), dtype, "reduce-overhead")
    for variant in peer_variants(dtype):
        runs[variant.name] = torchvision_step(setting, batch, torchvision_network(), variant)
    if setting.profiled:
        profile(runs[OURS], device)
    seconds = measure(runs, setting)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        runs[OURS]()
        print(f"step, batch {batch_size}: peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")
    return rows(f"step, batch {batch_size}", batch_size, "images/s", seconds)


def our_step(
    setting: Setting, batch: Batch, model: SSD, dtype: torch.dtype, compile_mode: str | None = None
) -> Callable[[], None]:
    memory_format = choose_training_format(setting.device, dtype, model.width, model.architecture.separable)
    model.to(setting.device).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    criterion = MultiBoxLoss()
    optimizer = make_optimizer(model, "sgd", 1e-3, 0.9, 5e-4)
    network = torch.compile(model, mode=compile_mode) if compile_mode else model
    loss = torch.compile(criterion.loss, mode=compile_mode) if compile_mode else criterion.loss
    pinned = batch.images.pin_memory() if setting.device.type == "cuda" else batch.images

    def step() -> None:
        images = normalize(pinned, IMAGENET, setting.device, memory_format)
        with torch.autocast(setting.device.type, dtype, enabled=dtype != torch.float32):
            loc, conf, dbox_list = network(images)
        matched = criterion.match(batch.targets.to(setting.device), dbox_list)
        loss_l, loss_c = loss(loc, conf, matched, criterion.num_positives(matched))
        (loss_l + loss_c).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def torchvision_step(setting: Setting, batch: Batch, model: torchvision_ssd.SSD, variant: Variant) -> Callable[[], None]:
    model.to(setting.device).train()
    model.to(memory_format=variant.memory_format)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    images = list(batch.images.permute(0, 3, 1, 2).float().div(255).to(setting.device))
    targets = torchvision_targets(batch, setting.device)

    def step() -> None:
        with variant.autocast(setting.device):
            losses = model(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def convolutions(
    device: torch.device, dtype: torch.dtype, batch_size: int, memory_format: torch.memory_format
) -> Callable[[], None]:
    """Run every convolution of SSD300 on an input of its shape, forward and backward, with nothing in between."""
    layers = []
    for place, (conv, shape) in enumerate(conv_inputs(our_network())):
        conv = conv.to(device, dtype).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
        x = torch.randn(batch_size, *shape, device=device, dtype=dtype)
        # The first layer's input is the photo, which needs no gradient.
        layers.append((conv, x.to(memory_format=memory_format).requires_grad_(place > 0)))
    gradients = [torch.randn_like(conv(x)) for conv, x in layers]

    def run() -> None:
        for (conv, x), gradient in zip(layers, gradients, strict=True):
            conv(x).backward(gradient)
            x.grad = conv.weight.grad = None

    return run


def profile(run: Callable[[], object], device: torch.device) -> None:
    """Print where one run spends its time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    run()
    with torch.profiler.profile(activities=activities) as profiler:
        run()
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=20))
