"""What a run leaves behind when its loss is not finite: enough to run that step again."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.loading.dataset import DetectionDataset
from data.loading.sampler import TrainSampler
from ssd.batch import Batch, Targets
from ssd.config.schema import Config
from ssd.model import SSD300
from ssd.preprocessing import Preprocessing, normalize
from ssd.system.files import write_whole
from ssd.training.build import build_criterion
from ssd.training.checkpoints import LAST
from ssd.training.run import Run
from ssd.training.trainer import NonFiniteError
from ssd.weights.checkpoint import CheckpointError, read_tensors
from ssd.weights.pretrained import build_network


class NonFiniteStep(NamedTuple):
    """A step whose loss or gradient was not finite."""

    iteration: int  # counted from 0
    batch: Batch  # of all processes and accumulation steps
    paths: list[str]  # of its photos
    preprocessing: Preprocessing
    weights: dict[str, Tensor]  # before the step, which left them as they were


def save_step(folder: Path, step: NonFiniteStep) -> None:
    """Writes non_finite/batch.pt (small enough to send around) and non_finite/weights.pt into a run's folder."""
    (folder / "non_finite").mkdir(parents=True, exist_ok=True)
    content = {
        "iteration": step.iteration,
        "images": step.batch.images,
        "indices": step.batch.indices,
        "targets": step.batch.targets._asdict(),
        "paths": step.paths,
        "preparation": step.preprocessing.to_plain(),
    }
    weights = {name: value.cpu() for name, value in step.weights.items()}
    for name, value in (("batch.pt", content), ("weights.pt", weights)):
        write_whole(folder / "non_finite" / name, partial(torch.save, value))


def load_step(folder: Path) -> NonFiniteStep:
    """Reads what `save_step` wrote.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    loaded = []
    for name in ("batch.pt", "weights.pt"):
        path = folder / "non_finite" / name
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; only a run that met a loss that is not finite leaves one")
        loaded.append(read_tensors(path))
    content, weights = loaded
    try:
        batch = Batch(content["images"], Targets(**content["targets"]), content["indices"])
        preprocessing = Preprocessing(**content["preparation"])
        return NonFiniteStep(content["iteration"], batch, content["paths"], preprocessing, weights)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'non_finite'}: does not hold a step to replay ({error})") from None


def replay(
    step: NonFiniteStep, config: Config, device: torch.device, dtype: torch.dtype
) -> list[tuple[float, float, float, str]]:
    """Both losses, the norm of their gradient, and the photo, for each photo of the batch."""
    model = build_network(len(config.data.class_names) + 1, config.model)
    model.load_state_dict(step.weights)
    if config.model.freeze:
        model.freeze(config.model.freeze)
    model.to(device).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    criterion = build_criterion(config)
    # Batch normalisation needs the whole batch, so all photos go through the network together.
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loc, conf, dbox_list = model(normalize(step.batch.images, step.preprocessing, device))
    rows = []
    for i, path in enumerate(step.paths):
        targets = step.batch.targets
        objects = (targets.labels[i] >= 0).nonzero().flatten()
        own = Targets(targets.boxes[i : i + 1], targets.labels[i : i + 1], objects)
        losses = criterion((loc[i : i + 1], conf[i : i + 1], dbox_list), own)
        gradients = torch.autograd.grad(losses[0] + losses[1], trained, retain_graph=True, allow_unused=True)
        norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        rows.append((losses[0].item(), losses[1].item(), norm.item(), path))
    return rows


@contextmanager
def explain_non_finite(run: Run, samples: DetectionDataset, preprocessing: Preprocessing, model: SSD300) -> Iterator[None]:
    """A NonFiniteError within the block leaves what is needed to run its iteration again, and says what can be done."""
    try:
        yield
    except NonFiniteError as error:
        advice = _keep(run, samples, preprocessing, model, error.iteration)
        raise NonFiniteError(error.iteration, advice) from None


def _keep(run: Run, samples: DetectionDataset, preprocessing: Preprocessing, model: SSD300, iteration: int) -> str:
    """Writes the iteration's batch and the weights; what to tell the user of it."""
    size = run.batch_size
    (keys,) = TrainSampler(len(samples), size, iteration + 1, run.config.seed, first_iteration=iteration)
    paths = [samples.path(index) for _, index in keys]
    last = run.folder / "checkpoints" / LAST
    if run.world.is_main:
        save_step(run.folder, NonFiniteStep(iteration, samples.__getitems__(keys), paths, preprocessing, model.state_dict()))
    return (
        f"the weights were left as before it. Photos of the batch: {', '.join(dict.fromkeys(paths))}. "
        f"Last good checkpoint: {last if last.exists() else 'none yet'}. "
        f"To look into it: python scripts/replay.py {run.folder}. "
        "Try a lower train.lr, a longer train.warmup or train.clip_grad_norm: 10"
    )
