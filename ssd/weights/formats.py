"""Load weights of other projects: recognise the format by its keys and convert it to a `TrainState`.

The four projects with SSD300 and SSD512 use RGB input minus the mean of Caffe's VGG16. All have variances 0.1 and 0.2, and the
DBox order of `ssd.dbox`. One difference remains: torchvision clamps only the width and height of DBoxes. So 114 of the 8,732
DBoxes of SSD300, in the last row and column of conv6_2, have a centre 4 of 300 pixels further right or down than here. In
SSDLite all centres lie within the image, and the DBoxes are equal.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torchvision.models.detection import SSD300_VGG16_Weights

from ssd.architecture import ARCHITECTURES, Architecture
from ssd.backbones.mobilenet import SPLIT, MobileNetV3Large
from ssd.backbones.vgg import LAYER_NAMES, REDUCED_POSITIONS
from ssd.config.schema import VOC_CLASSES, ModelConfig
from ssd.model import SSD
from ssd.preprocessing import CAFFE, Preprocessing
from ssd.weights.checkpoint import CheckpointError, TrainState, is_own, read_tensors, state_in

BACKBONE = tuple(f"backbone.{name}.conv" for name in LAYER_NAMES)
BATCH_NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# The image_mean of SSD300_VGG16_Weights, times 255.
TORCHVISION = Preprocessing(mean=(0.48235 * 255, 0.45882 * 255, 0.40784 * 255), scale=(1.0, 1.0, 1.0))
# SSDLite of torchvision: pixels in -1..1.
CENTERED = Preprocessing(mean=(127.5, 127.5, 127.5), scale=(1 / 127.5, 1 / 127.5, 1 / 127.5))


class WeightFormat(NamedTuple):
    """The state dict keys of one project's SSD with VGG16."""

    project: str
    backbone: tuple[str, ...]  # the 13 convolutions, fc6 and fc7
    extra: Callable[[int], str]  # the extra layer with this number, from 0: conv6_1, ...
    l2_norm: str  # scales of conv4_3's L2 norm
    batch_norm: str | None  # the batch normalisation that some weights of the project have instead
    loc: str
    conf: str
    preprocessing: Preprocessing = CAFFE


FORMATS = (
    WeightFormat(
        "amdegroot/ssd.pytorch",
        tuple(f"vgg.{i}" for i in REDUCED_POSITIONS),
        "extras.{}".format,
        "L2Norm.weight",
        None,
        "loc.{}",
        "conf.{}",
    ),
    WeightFormat(
        "lufficc/SSD",
        tuple(f"backbone.vgg.{i}" for i in REDUCED_POSITIONS),
        "backbone.extras.{}".format,
        "backbone.l2_norm.weight",
        None,
        "box_head.predictor.reg_headers.{}",
        "box_head.predictor.cls_headers.{}",
    ),
    WeightFormat(
        "qfgaohao/pytorch-ssd",
        tuple(f"base_net.{i}" for i in REDUCED_POSITIONS),
        lambda i: f"extras.{i // 2}.{2 * (i % 2)}",
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
        lambda i: f"backbone.extra.{1 + i // 2}.{2 * (i % 2)}",
        "backbone.scale_weight",
        None,
        "head.regression_head.module_list.{}",
        "head.classification_head.module_list.{}",
        TORCHVISION,
    ),
)
_PLACES = {name: place for place, name in enumerate(MobileNetV3Large.layer_names)}
FULL_TAIL = 960  # channels of conv16
SSDLITE_MARK = "head.classification_head.module_list.0.1.weight"  # in torchvision's SSDLite alone


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
    project = project_of(state)
    if project is None:
        known = ", ".join(weight_format.project for weight_format in FORMATS)
        raise CheckpointError(
            f"{path}: is not a checkpoint of this application, nor SSD300 or SSD512 with VGG16 of {known}, nor torchvision's "
            "SSDLite"
        )
    try:
        return _convert(state, classes, dboxes), project
    except KeyError as error:
        raise CheckpointError(f"{path}: looks like {project}, but lacks {error}; another network?") from None
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: looks like {project}, but does not fit: {' '.join(str(error).split())}") from None


def project_of(state: Mapping[str, Any]) -> str | None:
    """Return the project of a state dict; None if it is unknown."""
    if SSDLITE_MARK in state:
        return "torchvision"
    weight_format = _format_of(state)
    return weight_format.project if weight_format else None


def _format_of(state: Mapping[str, Any]) -> WeightFormat | None:
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


def _convert(state: Mapping[str, Tensor], classes: Sequence[str] | None, dboxes: str | None) -> TrainState:
    weight_format = _format_of(state)
    if weight_format is None:
        architecture, weights = _from_ssdlite(state)
        norm, preprocessing, head = "none", CENTERED, "conf.0.pointwise.bias"
    else:
        architecture, weights, norm = _from_vgg(state, weight_format)
        preprocessing, head = weight_format.preprocessing, "conf.0.bias"
    row = ARCHITECTURES[architecture]
    num_classes = len(weights[head]) // row.boxes_per_cell[0] - 1
    names = list(classes) if classes is not None else _names(num_classes)
    if len(names) != num_classes:
        raise ValueError(f"{num_classes} classes in the file, {len(names)} names given")
    sizes = dboxes or ("coco" if names in (coco_names(), torchvision_names()) else "voc")
    entries = {"architecture": architecture, "pretrained": "none", "dboxes": sizes, "conv4_3_norm": norm}
    options = ModelConfig.model_validate(entries)
    weights = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    # Raises if a shape or a name does not fit.
    SSD(num_classes + 1, conv4_3_norm=norm, architecture=row).load_state_dict(weights)
    return TrainState(weights, names, preprocessing.to_plain(), {"model": options.model_dump(mode="json")})


def _from_vgg(state: Mapping[str, Tensor], weight_format: WeightFormat) -> tuple[str, dict[str, Tensor], str]:
    """Return the name of the architecture, the weights by their names here, and the norm of conv4_3."""
    num_maps = sum(f"{weight_format.conf.format(i)}.weight" in state for i in range(10))
    by_maps = {len(row.maps): name for name, row in ARCHITECTURES.items() if row.backbone == "vgg16"}
    if num_maps not in by_maps:
        raise ValueError(f"{num_maps} feature maps, expected {' or '.join(map(str, by_maps))}")
    architecture = by_maps[num_maps]
    prefixes = dict(zip(BACKBONE, weight_format.backbone, strict=True))
    extras = ARCHITECTURES[architecture].extras
    prefixes |= {f"extras.{layer.name}.conv": weight_format.extra(i) for i, layer in enumerate(extras)}
    prefixes |= {f"loc.{i}": weight_format.loc.format(i) for i in range(num_maps)}
    prefixes |= {f"conf.{i}": weight_format.conf.format(i) for i in range(num_maps)}
    weights = {
        f"{ours}.{entry}": state[f"{theirs}.{entry}"] for ours, theirs in prefixes.items() for entry in ("weight", "bias")
    }
    norm = "batch" if weight_format.batch_norm and f"{weight_format.batch_norm}.running_mean" in state else "l2"
    if norm == "batch":
        weights |= {f"conv4_3_norm.{entry}": state[f"{weight_format.batch_norm}.{entry}"] for entry in BATCH_NORM_ENTRIES}
    else:
        weights["conv4_3_norm.weight"] = state[weight_format.l2_norm].flatten()
    return architecture, weights, norm


def _from_ssdlite(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Return the name of the architecture and the weights by their names here, for torchvision's SSDLite."""
    has_full_tail = len(state["backbone.features.1.3.0.weight"]) == FULL_TAIL
    architecture = "ssdlite320_mobilenet_v3_full" if has_full_tail else "ssdlite320_mobilenet_v3"
    row = ARCHITECTURES[architecture]
    own = SSD(2, architecture=row).state_dict()
    return architecture, {name: state[ssdlite_name(name, row)] for name in own}


def ssdlite_name(name: str, architecture: Architecture) -> str:
    """Return torchvision's name for a tensor of SSDLite."""
    part, layer, *rest = name.split(".")
    if part == "backbone":
        place = _PLACES[layer]
        if layer == SPLIT:  # torchvision keeps its expansion, `block.0`, in the first part
            return ".".join(
                ["backbone.features.0", str(place), *rest[2:]] if rest[1] == "0" else ["backbone.features.1.0", *rest[1:]]
            )
        split = _PLACES[SPLIT]
        return ".".join([f"backbone.features.{int(place > split)}.{place if place < split else place - split}", *rest])
    if part == "extras":
        number = [each.name for each in architecture.extras].index(layer)
        return f"backbone.extra.{number // 3}.{number % 3}.{('conv', 'norm').index(rest[0])}.{rest[1]}"
    heads = "head.regression_head" if part == "loc" else "head.classification_head"
    if rest[0] == "pointwise":
        return f"{heads}.module_list.{layer}.1.{rest[1]}"
    return f"{heads}.module_list.{layer}.0.{('conv', 'norm').index(rest[1])}.{rest[2]}"


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
