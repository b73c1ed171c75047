"""Networks for tests: narrow ones, and batch norms with statistics as after training."""

from torch import nn

from ssd.architecture import Architecture


def narrow(row: Architecture, width: float = 0.05) -> float:
    """Return a width that makes a network cheap, if its channels can be scaled."""
    return width if row.scalable else 1.0


def with_statistics(model: nn.Module) -> nn.Module:
    """Give a network's norms random statistics."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.3)
    return model.eval()
