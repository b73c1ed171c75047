"""What `train.compile` relies on: the network, and the loss with its matching and mining, are each one graph."""

import pytest
import torch

from ssd.batch import pad_targets
from ssd.loss import MultiBoxLoss
from ssd.model import SSD300
from tests.helpers.batches import random_targets

pytestmark = pytest.mark.slow


def test_network_and_loss_compile_without_a_graph_break():
    torch.manual_seed(0)
    model, criterion = SSD300(21, width=0.125), MultiBoxLoss()
    # fullgraph raises where the graph would break; this backend traces forward and backward, and runs them as they are.
    network = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled_loss = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    images = torch.randn(2, 3, 300, 300)
    for counts in ([3, 0], [1, 9], [0, 0]):
        targets = pad_targets(random_targets(counts))
        losses = compiled_loss(network(images), targets)
        torch.testing.assert_close(losses, criterion(model(images), targets))
        sum(losses).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
