"""A trial of a network on this machine, before there are weights for it."""

import time
from pathlib import Path

from ssd.autoconfig.timing import Timings, measure
from ssd.config.schema import Config
from ssd.preprocessing import IMAGENET
from ssd.system.device import choose_device, choose_precision, keep_freed_memory
from ssd.system.distributed import World
from ssd.system.stop import StopRequest
from ssd.training.build import build_parts, place
from ssd.training.datasets import Data
from ssd.training.run import Run
from ssd.weights.pretrained import build_network


def try_out(config: Config, freeze: str | None, data: Data, start: float) -> Timings:
    """What the parts of a run would take, with random weights in the place of those that it is going to have.

    Args:
        config: of the run, without pretrained weights.
        freeze: the last layer that keeps its weights.
        data: the photos of the run.
        start: seconds in which the command came to the point of building the network.
    """
    began = time.perf_counter()
    device = choose_device(config.device)
    keep_freed_memory()
    dtype = choose_precision(config.train.precision, device)
    run = Run(config, World(), device, dtype, Path(config.output_dir), StopRequest())
    network = build_network(len(config.data.class_names) + 1, config.model)
    place(run, network, freeze)
    parts = build_parts(run, data, network, IMAGENET)
    return measure(run, parts, start + time.perf_counter() - began)
