"""What a run leaves behind when its loss is not finite: enough to run the faulty step again."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ssd.batch import Batch, Targets
from ssd.preparation import Preparation
from ssd.system.files import write_whole
from ssd.weights.checkpoint import CheckpointError, first_line


class Fault(NamedTuple):
    """A step whose loss or gradient was not finite."""

    iteration: int  # counted from 0
    batch: Batch  # of all processes and accumulation steps
    paths: list[str]  # of its photos
    preparation: Preparation
    weights: dict[str, Tensor]  # before the step, which left them as they were


def save_fault(folder: Path, fault: Fault) -> None:
    """Writes fault/batch.pt (small enough to send around) and fault/weights.pt into a run's folder."""
    (folder / "fault").mkdir(parents=True, exist_ok=True)
    content = {
        "iteration": fault.iteration,
        "images": fault.batch.images,
        "indices": fault.batch.indices,
        "targets": fault.batch.targets._asdict(),
        "paths": fault.paths,
        "preparation": fault.preparation.to_plain(),
    }
    weights = {name: value.cpu() for name, value in fault.weights.items()}
    for name, value in (("batch.pt", content), ("weights.pt", weights)):
        write_whole(folder / "fault" / name, partial(torch.save, value))


def load_fault(folder: Path) -> Fault:
    """Reads what `save_fault` wrote.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    loaded = []
    for name in ("batch.pt", "weights.pt"):
        path = folder / "fault" / name
        try:
            loaded.append(torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file; only a run that met a loss that is not finite leaves one") from None
        except Exception as error:  # whatever a damaged file makes of the reader
            raise CheckpointError(f"{path}: cannot be read ({first_line(error)})") from None
    content, weights = loaded
    batch = Batch(content["images"], Targets(**content["targets"]), content["indices"])
    return Fault(content["iteration"], batch, content["paths"], Preparation(**content["preparation"]), weights)
