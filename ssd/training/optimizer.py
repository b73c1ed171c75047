"""The optimiser, and the moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ssd.model import L2Norm
from ssd.system.device import is_apple


def param_groups(model: nn.Module, weight_decay: float, bias_lr_factor: float, backbone_lr: float = 1.0) -> list[dict]:
    """Group a network's parameters: weights are decayed; biases are not, and take `bias_lr_factor` times the learning rate;
    norms are not decayed.

    The bias rule is that of ssd_pascal.py (`lr_mult: 2, decay_mult: 0`). Scales of normalisation layers are not decayed
    either, because pulling them to 0 does not regularise. The backbone takes `backbone_lr` times the learning rate. Frozen
    parameters are in no group.
    """
    # Weight decay and learning-rate factor: weights, biases, norms.
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
    """Return SGD as in the paper, or AdamW. Both are fused, except on Apple's GPUs, where fused optimisers ignore `found_inf`.

    Args:
        model: the network.
        kind: `sgd` or `adamw`.
        lr: base learning rate, for the whole batch.
        momentum: SGD's momentum, or AdamW's beta1.
        weight_decay: for weights only.
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
    """Fill in the optimiser's state with zeros where a parameter has none.

    PyTorch creates the state in the first step, and fused SGD leaves its momentum uninitialised there. If an infinite gradient
    skips that step, the garbage would stay. Starting from zeros gives the same first step.
    """
    for group in optimizer.param_groups:
        names = ("exp_avg", "exp_avg_sq") if "betas" in group else ("momentum_buffer",) if group["momentum"] else ()
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if "betas" in group:
                # Only the fused optimiser keeps its step count on the device.
                state.setdefault("step", torch.zeros((), device=parameter.device if group["fused"] else "cpu"))
            for name in names:
                state.setdefault(name, torch.zeros_like(parameter))


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Convert the optimiser's state to the memory format of its parameters; a checkpoint from another processor may differ.

    The fused CPU optimisers walk both in memory order, and would pair weights with the wrong momentum.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state[parameter].items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    optimizer.state[parameter][name] = torch.empty_like(parameter).copy_(value)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the base learning rate; each parameter group keeps its own factor on it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


class ModelEMA:
    """An exponential moving average of a model's weights and statistics, for evaluation.

    The decay warms up as (1 + i) / (10 + i), so that the initial weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, iteration: int) -> None:
        """Move the average towards the model after an iteration, counted from 0."""
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
        """Give the model the averaged weights within the block."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.state)
        try:
            yield
        finally:
            model.load_state_dict(own)
