"""Save a step whose loss is not finite, and replay it."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data.loading.dataset import DetectionDataset
from data.loading.sampler import TrainSampler
from ssd.batch import Batch, Targets
from ssd.compress.distill import distillation_loss, load_teacher
from ssd.config import Config
from ssd.model import SSD
from ssd.preprocessing import Preprocessing, normalize
from ssd.system.device import inference_format
from ssd.system.files import write_whole
from ssd.training.build import build_criterion
from ssd.training.checkpoints import LAST
from ssd.training.run import Run
from ssd.training.trainer import NonFiniteError
from ssd.weights.checkpoint import CheckpointError, read_tensors
from ssd.weights.pretrained import build_network


class NonFiniteStep(NamedTuple):
    """A step whose loss or gradient is not finite."""

    iteration: int  # counted from 0
    batch: Batch  # of all processes and accumulation steps
    paths: list[str]  # of the photos
    preprocessing: Preprocessing
    weights: dict[str, Tensor]  # before the step, which did not change them


def save_step(folder: Path, step: NonFiniteStep) -> None:
    """Write non_finite/batch.pt (small enough to send by mail) and non_finite/weights.pt into a run's folder."""
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
    """Load the step that `save_step` wrote.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    loaded = []
    for name in ("batch.pt", "weights.pt"):
        path = folder / "non_finite" / name
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; a run writes it only if its loss is not finite")
        loaded.append(read_tensors(path))
    content, weights = loaded
    try:
        batch = Batch(content["images"], Targets(**content["targets"]), content["indices"])
        preprocessing = Preprocessing.from_plain(content["preparation"])
        return NonFiniteStep(content["iteration"], batch, content["paths"], preprocessing, weights)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'non_finite'}: does not hold a step to replay ({error})") from None


def replay(
    step: NonFiniteStep, config: Config, device: torch.device, dtype: torch.dtype
) -> list[tuple[list[float], float, str]]:
    """Return the losses, the norm of their gradient, and the path of each photo of the batch.

    The losses are loss_l, loss_c and, with a teacher, loss_d.
    """
    model = build_network(len(config.data.class_names) + 1, config.model)
    model.load_state_dict(step.weights)
    if config.model.freeze:
        model.freeze(config.model.freeze)
    model.to(device).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    criterion = build_criterion(config, device)
    teacher = None
    if config.train.teacher:
        teacher = load_teacher(config.train.teacher, config.model, config.data.class_names, device, dtype)
    taught = teacher(step.batch.images) if teacher else None
    # Batch normalisation needs the whole batch, so there is one forward pass for all photos.
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loc, conf, dbox_list = model(normalize(step.batch.images, step.preprocessing, device, inference_format(device)))
    rows = []
    for i, path in enumerate(step.paths):
        targets = step.batch.targets
        objects = (targets.labels[i] >= 0).nonzero().flatten()
        own = Targets(targets.boxes[i : i + 1], targets.labels[i : i + 1], objects)
        predicted = loc[i : i + 1], conf[i : i + 1]
        matched = criterion.match(own.to(device), dbox_list)
        num_positives = criterion.num_positives(matched)
        losses = [*criterion.loss(*predicted, matched, num_positives)]
        if taught:
            teacher_loc, teacher_conf = taught
            losses.append(distillation_loss(*predicted, teacher_loc[i : i + 1], teacher_conf[i : i + 1], num_positives))
        gradients = torch.autograd.grad(torch.stack(losses).sum(), trained, retain_graph=True, allow_unused=True)
        norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        rows.append(([loss.item() for loss in losses], norm.item(), path))
    return rows


def explain_non_finite(
    run: Run, samples: DetectionDataset, preprocessing: Preprocessing, model: SSD, iteration: int
) -> NonFiniteError:
    """Save the batch and the weights of a step that was not finite, and return the error with advice for the user."""
    size = run.batch_size
    (keys,) = TrainSampler(len(samples), size, iteration + 1, run.config.seed, first_iteration=iteration)
    paths = [samples.path(index) for _, index in keys]
    last = run.folder / "checkpoints" / LAST
    if run.world.is_main:
        save_step(run.folder, NonFiniteStep(iteration, samples.__getitems__(keys), paths, preprocessing, model.state_dict()))
    return NonFiniteError(
        iteration,
        f"the step did not change the weights. Photos of the batch: {', '.join(dict.fromkeys(paths))}. "
        f"Last good checkpoint: {last if last.exists() else 'none yet'}. "
        f"To investigate: python scripts/replay.py {run.folder}. "
        "Try a lower train.lr, a longer train.warmup or train.clip_grad_norm: 10",
    )
