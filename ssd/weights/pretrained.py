"""Load initial weights: from torchvision, the supported SSD ports, or a checkpoint of this application."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ssd.backbones.backbone import WeightsError
from ssd.backbones.vgg import VGG16, is_features
from ssd.config.schema import ModelConfig
from ssd.config.yaml import dump_yaml
from ssd.dbox import make_dbox_list, spec_of
from ssd.model import SSD
from ssd.preprocessing import IMAGENET, Preprocessing
from ssd.weights.checkpoint import CheckpointError, TrainState, is_own, read_tensors, shape_of
from ssd.weights.class_names import same_class
from ssd.weights.formats import load_any, project_of, state_of, weights_in
from ssd.weights.sources import weights_file

MOST_NAMED = 6  # names in one message


def build_network(num_classes: int, options: ModelConfig) -> SSD:
    """Return the network of a configuration with random weights; `num_classes` includes background."""
    spec = spec_of(options.dboxes, options.row)
    return SSD(num_classes, options.batch_norm, options.width, spec, options.conv4_3_norm, options.row)


def network_of(state: TrainState) -> SSD:
    """Return the network of a checkpoint with its weights, in evaluation mode.

    Raises:
        CheckpointError: the weights do not fit the configuration.
    """
    try:
        network = build_network(len(state.classes) + 1, ModelConfig.model_validate(shape_of(state.config["model"])))
        network.load_state_dict(state.weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint's weights do not fit its own configuration ({' '.join(str(error).split())})"
        ) from None
    return network.eval()


def load_pretrained(
    model: SSD,
    source: str,
    classes: Sequence[str],
    prune: Callable[[dict[str, Tensor]], Preprocessing] | None = None,
) -> tuple[Preprocessing, list[str]]:
    """Load pretrained weights into a model. `half` and `slim` fit one width with batch normalisation, all others width 1.

    Args:
        model: the network, changed in place. With batch normalisation in a VGG16, the only backbone weights that fit are those
            of torchvision's VGG16 with batch normalisation.
        source: `coco` (torchvision's SSD300 or SSDLite, with the class scores of classes of the same name) or `imagenet`
            (torchvision's VGG16, ResNet-50 or MobileNetV3, backbone only), both downloaded once; `half` or `slim` (narrow
            SSD300s included in the project, used like `coco`); `none`; or a file with any of these, or with the reduced-fc
            VGG16 from which the supported ports start.
        classes: names of the model's classes.
        prune: loads VGG16's convolutions into a model that is narrower or has batch normalisation.

    Returns:
        The preprocessing of the weights, and messages for the user.

    Raises:
        CheckpointError: the weights cannot be downloaded or read, or have another format.
    """
    if source == "none":
        return IMAGENET, []
    path = weights_file(source, model.architecture, model.backbone.has_batch_norm)
    try:
        content = read_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"model.pretrained: {error}") from None
    weights = weights_in(content)
    if is_own(content) or project_of(weights):
        return take_fitting(model, *state_of(content, path), path, classes, f"model.pretrained: {source}")
    if not weights:
        raise CheckpointError(f"model.pretrained: {path}: is not a state dict")
    if prune and _needs_pruning(model) and is_features(weights):
        return prune(weights), []
    preprocessing, new = load_backbone(model, weights, source)
    return preprocessing, [f"model.pretrained: {source}: newly initialised: {', '.join(new)}"] * bool(new)


def _needs_pruning(model: SSD) -> bool:
    """Return whether plain weights of VGG16 have to be pruned or normalised for a network."""
    return isinstance(model.backbone, VGG16) and (model.width != 1 or model.backbone.has_batch_norm)


def load_backbone(model: SSD, state: Mapping[str, Tensor], source: str) -> tuple[Preprocessing, list[str]]:
    """Load weights of another project into the backbone of a model; `source` names them in messages.

    Returns:
        The preprocessing of the weights, and the layers whose weights are not all in the file.

    Raises:
        CheckpointError: the weights have another format.
    """
    try:
        converted, preprocessing = model.backbone.convert(state)
    except WeightsError as error:
        raise CheckpointError(f"model.pretrained: {source}: {error}") from None
    own = model.backbone.state_dict()
    for name, value in converted.items():
        if own[name].shape != value.shape:
            shapes = f"{list(value.shape)}, expected {list(own[name].shape)}"
            raise CheckpointError(f"model.pretrained: {source}: {name} has the shape {shapes}")
    model.backbone.load_state_dict({**own, **converted})
    new = {name.partition(".")[0] for name in own.keys() - converted.keys() if own[name].ndim > 1}
    return preprocessing, [layer for layer in model.backbone.layer_names if layer in new]


def init_from(model: SSD, path: Path, classes: Sequence[str]) -> tuple[Preprocessing, list[str]]:
    """Load the weights that fit from a checkpoint, whose classes and width may differ.

    Args:
        model: the network, changed in place.
        path: a checkpoint of this application, or of one of the projects in `ssd.weights.formats`.
        classes: names of the model's classes.

    Returns:
        The preprocessing of the weights, and messages for the user.

    Raises:
        CheckpointError: the checkpoint cannot be read, or nothing in it fits.
    """
    return take_fitting(model, *load_any(path), path, classes, "model.init_from")


def take_fitting(
    model: SSD, state: TrainState, project: str, path: Path, classes: Sequence[str], entry: str
) -> tuple[Preprocessing, list[str]]:
    """Load the weights of a state that fit. Class scores are matched by name: background and shared classes keep theirs.

    Args:
        model: the network, changed in place.
        state: the state with the weights.
        project: project of the file's format, from `load_any`.
        path: path of the file, for messages.
        classes: names of the model's classes.
        entry: configuration entry, for messages.

    Returns:
        The preprocessing of the weights, and messages for the user.

    Raises:
        CheckpointError: no tensor fits.
    """
    own, taken, left = model.state_dict(), {}, []
    for name, value in state.weights.items():
        has_classes = name in own and name.startswith("conf.") and ".depthwise." not in name
        fitted = _by_class(value, own[name], state.classes, classes) if has_classes else value
        if name in own and fitted is not None and fitted.shape == own[name].shape:
            taken[name] = fitted
        else:
            expected = f"expected {list(own[name].shape)}" if name in own else "not in this model"
            left.append(f"{name} {list(value.shape)} ({expected})")
    if all(value.ndim < 2 for value in taken.values()):  # a few biases fit any model
        raise CheckpointError(f"{entry}: {path}: no tensor fits this model")
    model.load_state_dict({**own, **taken})
    new = [name for name in classes if same_class(name, state.classes) is None]
    origin = "" if project == "here" else f" (format: {project})"
    notes = [f"{entry}: {len(taken)} of {len(own)} tensors loaded from {path}{origin}"]
    options = state.config.get("model", {})
    theirs = options.get("dboxes")
    has_heads = any(name.startswith(("loc.", "conf.")) for name in taken)
    if theirs is not None:
        shape = {name: options[name] for name in ("architecture", "dboxes") if name in options}
        known = ModelConfig.model_validate({"pretrained": "none", **shape})
        if has_heads and known.row != model.architecture:
            notes.append(f"{entry}: the heads were trained for {known.row.title} and adapt to this network in training")
        elif has_heads and not torch.equal(make_dbox_list(spec_of(known.dboxes, known.row)), model.dbox_list.cpu()):
            which = f"the {theirs} DBoxes" if isinstance(theirs, str) else "other DBoxes"
            notes.append(
                f"{entry}: the heads were trained with {which} and adapt to this model's in training; to use them "
                f"unchanged, set model.dboxes: {dump_yaml(theirs, in_line=True)}"
            )
    if (theirs := batch_norm_of(state.weights)) != (ours := batch_norm_of(own)):
        notes.append(
            f"warning: {entry}: the weights were trained with batch_norm: {theirs}, this model has {ours}; set "
            f"model.batch_norm: {theirs} to use them unchanged"
        )
    if has_heads and (theirs := conv4_3_norm_of(state.weights)) != (ours := conv4_3_norm_of(own)):
        notes.append(
            f"warning: {entry}: the heads on conv4_3 were trained with conv4_3_norm: {theirs}, this model has {ours}; set "
            f"model.conv4_3_norm: {theirs} to use them unchanged"
        )
    notes += [f"{entry}: newly initialised classes: {', '.join(new)}"] * bool(new)
    notes += [f"{entry}: not loaded: {shortened(left)}"] * bool(left)
    return Preprocessing.from_plain(state.preprocessing), notes


def shortened(names: Sequence[str]) -> str:
    """Return the first names in words, and how many more there are."""
    more = f", and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def batch_norm_of(weights: Mapping[str, Tensor]) -> str:
    """Infer `model.batch_norm` from the names of weights."""
    normalised = {name.partition(".")[0] for name in weights if name.endswith(".norm.weight")}
    if normalised & {"loc", "conf"}:
        return "all"
    return "backbone" if normalised else "none"


def conv4_3_norm_of(weights: Mapping[str, Tensor]) -> str:
    """Infer `model.conv4_3_norm` from the names of weights."""
    if "conv4_3_norm.running_mean" in weights:
        return "batch"
    return "l2" if "conv4_3_norm.weight" in weights else "none"


def _by_class(theirs: Tensor, ours: Tensor, their_classes: Sequence[str], our_classes: Sequence[str]) -> Tensor | None:
    """Return our tensor of a class head with their channels for the shared classes; None if the DBoxes differ."""
    if not theirs.ndim:  # num_batches_tracked of a norm
        return theirs
    num_theirs, num_ours = len(their_classes) + 1, len(our_classes) + 1
    if len(theirs) // num_theirs != len(ours) // num_ours or theirs.shape[1:] != ours.shape[1:]:
        return None
    theirs = theirs.unflatten(0, (-1, num_theirs))  # [DBoxes per cell, classes, ...]
    fitted = ours.clone().unflatten(0, (-1, num_ours))
    fitted[:, 0] = theirs[:, 0]  # background
    for column, name in enumerate(our_classes, start=1):
        place = same_class(name, their_classes)
        if place is not None:
            fitted[:, column] = theirs[:, place + 1]
    return fitted.flatten(0, 1)
