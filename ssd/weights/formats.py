"""Load SSD300 weights of other projects: recognise the format by its keys and convert it to a `TrainState`.

All four projects use RGB input minus the mean of Caffe's VGG16, variances 0.1 and 0.2, and the DBox order of `ssd.dbox`. One
difference remains: torchvision clamps only the width and height of DBoxes. So 114 of its 8,732 DBoxes, in the last row and
column of conv6_2, have a centre 4 of 300 pixels further right or down than here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torchvision.models.detection import SSD300_VGG16_Weights

from ssd.architecture import SSD300_VGG16
from ssd.backbones.vgg import LAYER_NAMES
from ssd.config.schema import VOC_CLASSES, ModelConfig
from ssd.dbox import SSD300_VOC
from ssd.model import SSD300
from ssd.preprocessing import CAFFE, Preprocessing
from ssd.weights.checkpoint import CheckpointError, TrainState, is_own, read_tensors, state_in

NUM_MAPS = len(SSD300_VGG16.maps)
EXTRAS = tuple(f"extras.{layer.name}.conv" for layer in SSD300_VGG16.extras)
# Positions of the 13 convolutions, fc6 and fc7 in the layer list of ports of Caffe's reduced-fc VGG16.
REDUCED_POSITIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33)
BACKBONE = tuple(f"backbone.{name}.conv" for name in LAYER_NAMES)
BATCH_NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# The image_mean of SSD300_VGG16_Weights, times 255.
TORCHVISION = Preprocessing(mean=(0.48235 * 255, 0.45882 * 255, 0.40784 * 255), scale=(1.0, 1.0, 1.0))


class WeightFormat(NamedTuple):
    """The state dict keys of one project."""

    project: str
    backbone: tuple[str, ...]  # the 13 convolutions, fc6 and fc7
    extras: tuple[str, ...]  # conv6_1 to conv9_2
    l2_norm: str  # scales of conv4_3's L2 norm
    batch_norm: str | None  # the batch normalisation that some weights of the project have instead
    loc: str
    conf: str
    preprocessing: Preprocessing = CAFFE


FORMATS = (
    WeightFormat(
        "amdegroot/ssd.pytorch",
        tuple(f"vgg.{i}" for i in REDUCED_POSITIONS),
        tuple(f"extras.{i}" for i in range(8)),
        "L2Norm.weight",
        None,
        "loc.{}",
        "conf.{}",
    ),
    WeightFormat(
        "lufficc/SSD",
        tuple(f"backbone.vgg.{i}" for i in REDUCED_POSITIONS),
        tuple(f"backbone.extras.{i}" for i in range(8)),
        "backbone.l2_norm.weight",
        None,
        "box_head.predictor.reg_headers.{}",
        "box_head.predictor.cls_headers.{}",
    ),
    WeightFormat(
        "qfgaohao/pytorch-ssd",
        tuple(f"base_net.{i}" for i in REDUCED_POSITIONS),
        tuple(f"extras.{i}.{j}" for i in range(4) for j in (0, 2)),
        "source_layer_add_ons.0.scale",
        "source_layer_add_ons.0",
        "regression_headers.{}",
        "classification_headers.{}",
    ),
    WeightFormat(
        "torchvision",
        (
            *(f"backbone.features.{i}" for i in REDUCED_POSITIONS[:10]),
            *(f"backbone.extra.0.{i}" for i in (1, 3, 5, "7.1", "7.3")),
        ),
        tuple(f"backbone.extra.{i}.{j}" for i in range(1, 5) for j in (0, 2)),
        "backbone.scale_weight",
        None,
        "head.regression_head.module_list.{}",
        "head.classification_head.module_list.{}",
        TORCHVISION,
    ),
)


def load_any(path: Path, classes: Sequence[str] | None = None, dboxes: str | None = None) -> tuple[TrainState, str]:
    """Load a checkpoint of this application or of a project above; return it and its project (`here` for our own).

    Args:
        path: the file. Nothing in it is executed.
        classes: class names for a file of another project, in its order and without background; by default inferred from
            the number of classes: 20 for VOC, 80 for COCO, 90 for torchvision's COCO.
        dboxes: DBox sizes of another project's file, `voc` or `coco`; by default coco for COCO's classes, else voc.

    Raises:
        CheckpointError: the file cannot be read, or has an unknown format.
    """
    return state_of(read_tensors(path), path, classes, dboxes)


def state_of(
    content: Any, path: Path, classes: Sequence[str] | None = None, dboxes: str | None = None
) -> tuple[TrainState, str]:
    """Like `load_any`, for content that was already read from the file."""
    if is_own(content):
        return state_in(content, path), "here"
    state = weights_in(content)
    weight_format = format_of(state)
    if weight_format is None:
        known = ", ".join(weight_format.project for weight_format in FORMATS)
        raise CheckpointError(f"{path}: is not a checkpoint of this application, nor SSD300 with VGG16 of {known}")
    try:
        return _convert(state, weight_format, classes, dboxes), weight_format.project
    except KeyError as error:
        raise CheckpointError(f"{path}: looks like {weight_format.project}, but lacks {error}; another network?") from None
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: looks like {weight_format.project}, but does not fit: {' '.join(str(error).split())}"
        ) from None


def format_of(state: Mapping[str, Any]) -> WeightFormat | None:
    """Return the format of a state dict; None if it is unknown."""
    return next((each for each in FORMATS if f"{each.conf.format(0)}.weight" in state), None)


def weights_in(content: Any) -> dict[str, Tensor]:
    """Return the state dict in the content of a file, bare or nested, without DataParallel's prefix; empty if there is none."""
    for name in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict):
        return {}
    named = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return {name.removeprefix("module."): value for name, value in named.items()}


def _convert(
    state: Mapping[str, Tensor], weight_format: WeightFormat, classes: Sequence[str] | None, dboxes: str | None
) -> TrainState:
    prefixes = dict(zip((*BACKBONE, *EXTRAS), (*weight_format.backbone, *weight_format.extras), strict=True))
    prefixes |= {f"loc.{i}": weight_format.loc.format(i) for i in range(NUM_MAPS)}
    prefixes |= {f"conf.{i}": weight_format.conf.format(i) for i in range(NUM_MAPS)}
    weights = {
        f"{ours}.{entry}": state[f"{theirs}.{entry}"] for ours, theirs in prefixes.items() for entry in ("weight", "bias")
    }
    norm = "batch" if weight_format.batch_norm and f"{weight_format.batch_norm}.running_mean" in state else "l2"
    if norm == "batch":
        weights |= {f"conv4_3_norm.{entry}": state[f"{weight_format.batch_norm}.{entry}"] for entry in BATCH_NORM_ENTRIES}
    else:
        weights["conv4_3_norm.weight"] = state[weight_format.l2_norm].flatten()
    num_classes = len(weights["conf.0.bias"]) // SSD300_VOC.boxes_per_cell[0] - 1
    names = list(classes) if classes is not None else _names(num_classes)
    if len(names) != num_classes:
        raise ValueError(f"{num_classes} classes in the file, {len(names)} names given")
    sizes = dboxes or ("coco" if names in (coco_names(), torchvision_names()) else "voc")
    options = ModelConfig.model_validate({"pretrained": "none", "dboxes": sizes, "conv4_3_norm": norm})
    weights = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    SSD300(num_classes + 1, conv4_3_norm=norm).load_state_dict(weights)  # raises if a shape or a name does not fit
    return TrainState(weights, names, weight_format.preprocessing.to_plain(), {"model": options.model_dump(mode="json")})


def torchvision_names() -> list[str]:
    """Return the 90 classes of torchvision's COCO weights; unused ones, all named N/A there, get a number."""
    names = SSD300_VGG16_Weights.COCO_V1.meta["categories"][1:]
    return [f"N/A {i}" if name == "N/A" else name for i, name in enumerate(names, start=1)]


def coco_names() -> list[str]:
    """Return the 80 classes of COCO."""
    return [name for name in torchvision_names() if not name.startswith("N/A")]


def _names(num_classes: int) -> list[str]:
    for names in (VOC_CLASSES, coco_names(), torchvision_names()):
        if len(names) == num_classes:
            return [*names]
    return [f"class {i}" for i in range(1, num_classes + 1)]
