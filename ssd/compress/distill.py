"""Distillation: a trained network teaches a smaller one through its predictions (Hinton et al., 2015; for detectors, Chen et
al., NeurIPS 2017)."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd.config.schema import ModelConfig
from ssd.config.yaml import dump_yaml
from ssd.dbox import make_dbox_list, spec_of
from ssd.model import SSD
from ssd.preprocessing import Preprocessing, normalize
from ssd.system.device import inference_format
from ssd.weights.checkpoint import CheckpointError
from ssd.weights.class_names import same_class
from ssd.weights.formats import load_any
from ssd.weights.pretrained import network_of, shortened
from ssd.weights.sources import checkpoint_file

# Beside the losses of the ground truth. With 1, a short training of the slim network was 0.01 of mAP behind (docs/results.md).
FACTOR = 2.0
MIN_WEIGHT = 0.01  # DBoxes on which both networks see background with more than 99 % are left out


class Teacher:
    """A trained network whose predictions are targets.

    Args:
        network: in evaluation mode, on its device.
        preprocessing: of its input.
        columns: the column of its class scores for each column of the student's `[C]`.
        dtype: precision of the activations.
    """

    def __init__(self, network: SSD, preprocessing: Preprocessing, columns: Tensor, dtype: torch.dtype) -> None:
        self.device = columns.device
        self.dtype = dtype
        self.memory_format = inference_format(self.device)
        self.network = network.requires_grad_(False).to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]
        self.preprocessing = preprocessing
        self.columns = columns

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return loc `[B, P, 4]` and conf `[B, P, C]` in the student's columns for a batch of the loader `[B, H, W, 3]`."""
        pixels = normalize(images, self.preprocessing, self.device, self.memory_format)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loc, conf, _ = self.network(pixels)
        return loc, conf[..., self.columns]


def load_teacher(
    source: str | Path, student: ModelConfig, classes: Sequence[str], device: torch.device, dtype: torch.dtype
) -> Teacher:
    """Load the teacher of a network.

    Args:
        source: a checkpoint, or shipped weights by their name.
        student: configuration of the network that is trained.
        classes: names of its classes.
        device: of the teacher.
        dtype: precision of the teacher's activations.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has other classes, another input size or other DBoxes.
    """
    path = checkpoint_file(source)
    try:
        state, _ = load_any(path)
    except CheckpointError as error:
        raise CheckpointError(f"train.teacher: {error}") from None
    entry = f"train.teacher: {path}"
    try:
        network = network_of(state).to(device)
    except CheckpointError as error:
        raise CheckpointError(f"{entry}: {error}") from None
    places = [same_class(name, state.classes) for name in classes]
    if len(classes) != len(state.classes) or set(places) != set(range(len(classes))):
        raise CheckpointError(
            f"{entry}: has the classes {shortened(state.classes)}, data.classes has {shortened(classes)}; name a checkpoint "
            "of the same classes, or set train.teacher: null"
        )
    if network.input_size != student.row.input_size:
        raise CheckpointError(
            f"{entry}: the input of {network.architecture.title} has {network.input_size} pixels, not "
            f"{student.row.input_size}; name a checkpoint of the same architecture, or set train.teacher: null"
        )
    if not torch.equal(network.dbox_list.cpu(), make_dbox_list(spec_of(student.dboxes, student.row))):
        theirs = dump_yaml(state.config["model"].get("dboxes", "voc"), in_line=True)
        raise CheckpointError(f"{entry}: has other DBoxes; set model.dboxes: {theirs}")
    if broken := [name for name, value in network.state_dict().items() if not value.float().isfinite().all()]:
        raise CheckpointError(f"{entry}: has values that are not finite in {broken[0]}; name another checkpoint")
    columns = torch.tensor([0, *(place + 1 for place in places if place is not None)], device=device)
    return Teacher(network, Preprocessing.from_plain(state.preprocessing), columns, dtype)


def distillation_loss(loc: Tensor, conf: Tensor, teacher_loc: Tensor, teacher_conf: Tensor, num_positives: Tensor) -> Tensor:
    """Return the distance of predictions from a teacher's, a float32 scalar.

    It is the Kullback–Leibler divergence of the class scores and smooth L1 of the offsets, summed over the DBoxes, times
    `FACTOR`, divided by `num_positives` (at least 1). The divergence is weighted by the probability of an object: the
    teacher's or the student's, whichever is larger, so that background on which both agree, nearly all DBoxes, does not
    count. The offsets are weighted by the teacher's.

    Args:
        loc: offsets `[B, P, 4]`.
        conf: logits `[B, P, C]`, column 0 = background.
        teacher_loc: offsets `[B, P, 4]`.
        teacher_conf: logits `[B, P, C]`.
        num_positives: positives of the whole batch `[]`, by which the other losses are divided too.
    """
    with torch.no_grad():
        known, seen = (1 - scores.float().softmax(-1)[..., 0] for scores in (teacher_conf, conf))  # [B, P]
        weight = torch.maximum(known, seen)
        weight = torch.where(weight <= MIN_WEIGHT, 0, weight)  # NaN stays, and ends the run
    if conf.device.type == "cpu" and not torch.compiler.is_compiling():
        # As in MultiBoxLoss: the few DBoxes that count are selected; on a GPU, the host would wait for their number.
        counted = weight.nonzero(as_tuple=True)
        loc, conf, teacher_loc, teacher_conf = (values[counted] for values in (loc, conf, teacher_loc, teacher_conf))
        known, weight = known[counted], weight[counted]
    known = torch.where(weight == 0, 0, known)
    targets = teacher_conf.float().log_softmax(-1)
    divergence = F.kl_div(conf.float().log_softmax(-1), targets, reduction="none", log_target=True).sum(-1)
    distance = F.smooth_l1_loss(loc.float(), teacher_loc.float(), reduction="none").sum(-1)
    return FACTOR * (divergence * weight + distance * known).sum() / num_positives.clamp(min=1)
