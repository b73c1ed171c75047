"""Optimiser, learning-rate schedule, and the running average of the weights."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ssd.boxes import is_apple
from ssd.model import L2Norm


def param_groups(model: nn.Module, weight_decay: float, bias_lr_factor: float, backbone_lr: float = 1.0) -> list[dict]:
    """Weights with decay; biases with `bias_lr_factor` times the learning rate and none; norms with none.

    The bias rule is that of ssd_pascal.py (`lr_mult: 2, decay_mult: 0`). Scales of normalisation layers are not decayed
    either: pulling them to 0 does not regularise. Those of the backbone have `backbone_lr` times the learning rate; frozen
    parameters are in no group.
    """
    # Weight decay and learning-rate factor of weights, biases and norms.
    rules = ((weight_decay, 1.0), (0.0, bias_lr_factor), (0.0, 1.0))
    groups: dict[tuple[int, float], list[nn.Parameter]] = {}
    for path, module in model.named_modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm | L2Norm)
        factor = backbone_lr if path.startswith("backbone.") else 1.0
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                rule = 2 if is_norm else 1 if name == "bias" else 0
                groups.setdefault((rule, factor), []).append(parameter)
    return [
        {"params": groups[rule, factor], "weight_decay": rules[rule][0], "lr_factor": rules[rule][1] * factor}
        for rule, factor in sorted(groups)
    ]


def make_optimizer(
    model: nn.Module, kind: str, lr: float, momentum: float, weight_decay: float, backbone_lr: float = 1.0
) -> torch.optim.Optimizer:
    """SGD as in the paper, or AdamW; both in their fused form, but on Apple's GPUs, where that does not know `found_inf`.

    Args:
        model: the network.
        kind: `sgd` or `adamw`.
        lr: base learning rate, for the whole batch.
        momentum: SGD's momentum, or AdamW's beta1.
        weight_decay: of weights only.
        backbone_lr: factor on the backbone's learning rate.
    """
    fused = not is_apple(next(model.parameters()).device)
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        groups = param_groups(model, weight_decay, 2.0, backbone_lr)
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=fused)
    else:
        groups = param_groups(model, weight_decay, 1.0, backbone_lr)
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), fused=fused)
    begin_state(optimizer)
    return optimizer


def begin_state(optimizer: torch.optim.Optimizer) -> None:
    """Gives each parameter the state of an optimiser at its start, all zeros, where it has none.

    PyTorch makes the state at the first step, and fused SGD makes its momentum of memory as it is: a first step that is left
    out for an infinite gradient would keep what happened to lie there. From zeros the first good step is the same.
    """
    for group in optimizer.param_groups:
        names = ("exp_avg", "exp_avg_sq") if "betas" in group else ("momentum_buffer",) if group["momentum"] else ()
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if "betas" in group:
                # The host counts where it looks at the number.
                state.setdefault("step", torch.zeros((), device=parameter.device if group["fused"] else "cpu"))
            for name in names:
                state.setdefault(name, torch.zeros_like(parameter))


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Gives an optimiser's state the memory format of its parameters: a checkpoint may be of a processor with another one.

    The fused optimisers on a CPU go through both in the order of memory, and would take one weight's momentum for another's.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state[parameter].items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    optimizer.state[parameter][name] = torch.empty_like(parameter).copy_(value)


def lr_factor(iteration: int, iterations: int, warmup: int, schedule: str, milestones: Sequence[int]) -> float:
    """The factor on the base learning rate in one iteration, a function of its number alone, so that a resume cannot lose it.

    Args:
        iteration: counted from 0.
        iterations: length of the run.
        warmup: iterations in which it rises linearly to 1.
        schedule: `milestones` (×0.1 at each) or `cosine` (to 0 at the end).
        milestones: iterations, rising.
    """
    rise = min(1.0, (iteration + 1) / (warmup + 1))
    if schedule == "cosine":
        progress = max(0, iteration - warmup) / max(1, iterations - warmup)
        return rise * 0.5 * (1 + math.cos(math.pi * progress))
    return rise * 0.1 ** sum(iteration >= milestone for milestone in milestones)


def default_milestones(iterations: int) -> tuple[int, int]:
    """Two thirds and five sixths of the run: 80,000 and 100,000 of the paper's 120,000."""
    return iterations * 2 // 3, iterations * 5 // 6


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the base learning rate; each parameter group keeps its own factor on it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


class ModelEMA:
    """An exponential moving average of a model's weights and statistics, for evaluation.

    The decay rises from 0 to its full value over the first iterations, (1 + i) / (10 + i), so that the start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        """Moves the average towards the model after iteration number `iteration`, counted from 0."""
        weight = 1 - min(self.decay, (1 + iteration) / (10 + iteration))
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averages.append(self.state[name])
                values.append(value)
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(averages, values, weight)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the average's weights."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(own)
