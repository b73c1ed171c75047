"""Load initial weights: from torchvision, the supported SSD ports, or a checkpoint of this application."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ssd.backbones.vgg import CONV_NAMES, LAYER_NAMES
from ssd.config.schema import ModelConfig
from ssd.config.yaml import dump_yaml
from ssd.dbox import make_dbox_list, spec_of
from ssd.model import SSD300
from ssd.preprocessing import CAFFE, IMAGENET, OXFORD, Preprocessing
from ssd.weights.checkpoint import CheckpointError, TrainState, is_own, read_tensors, shape_of
from ssd.weights.class_names import same_class
from ssd.weights.formats import REDUCED_POSITIONS, format_of, load_any, state_of, weights_in
from ssd.weights.sources import weights_file

# Positions of the 13 convolutions in torchvision's `features`.
CONV_POSITIONS = REDUCED_POSITIONS[:13]
BN_CONV_POSITIONS = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
TORCHVISION_BIASES = (0.4034, 0.3778, 0.4644)  # first biases of VGG16_Weights.IMAGENET1K_V1
MOST_NAMED = 6  # tensors named in one message


def build_network(num_classes: int, options: ModelConfig) -> SSD300:
    """Return the network of a configuration with random weights; `num_classes` includes background."""
    spec = spec_of(options.dboxes)
    return SSD300(num_classes, options.batch_norm, options.width, spec, options.conv4_3_norm)


def network_of(state: TrainState) -> SSD300:
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
    model: SSD300,
    source: str,
    classes: Sequence[str],
    prune: Callable[[dict[str, Tensor]], Preprocessing] | None = None,
) -> tuple[Preprocessing, list[str]]:
    """Load pretrained weights into a model. `half` and `slim` fit one width with batch normalisation, all others width 1.

    Args:
        model: the network, changed in place. With batch normalisation in its backbone, the only backbone weights that fit
            are those of torchvision's VGG16 with batch normalisation.
        source: `coco` (torchvision's SSD300, with the class scores of classes of the same name) or `imagenet` (torchvision's
            VGG16, backbone only), both downloaded once; `half` or `slim` (narrow SSD300s included in the project, used like
            `coco`); `none`; or a file with any of these, or with the reduced-fc VGG16 from which the supported ports start.
        classes: names of the model's classes.
        prune: loads VGG16's convolutions into a model that is narrower or has batch normalisation.

    Returns:
        The preprocessing of the weights, and messages for the user.

    Raises:
        CheckpointError: the weights cannot be downloaded or read, or have another format.
    """
    if source == "none":
        return IMAGENET, []
    path = weights_file(source, model.backbone.has_batch_norm)
    try:
        content = read_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"model.pretrained: {error}") from None
    weights = weights_in(content)
    if is_own(content) or format_of(weights):
        return take_fitting(model, *state_of(content, path), path, classes, f"model.pretrained: {source}")
    if not weights:
        raise CheckpointError(f"model.pretrained: {path}: is not a state dict")
    if prune and is_features(weights) and (model.width != 1 or model.backbone.has_batch_norm):
        return prune(weights), []
    return load_backbone(model, weights, source), []


def load_backbone(model: SSD300, state: Mapping[str, Tensor], source: str) -> Preprocessing:
    """Load weights of VGG16 into the backbone of a model; `source` names them in messages.

    Raises:
        CheckpointError: the weights have another format.
    """
    batch_norm = model.backbone.has_batch_norm
    if is_features(state):
        converted, preprocessing = from_features(state, source), preprocessing_of_features(state)
    elif "features.0.weight" in state:
        converted, preprocessing = from_torchvision(state, batch_norm, source), IMAGENET
    elif "0.weight" in state and not batch_norm:
        converted, preprocessing = from_reduced_fc(state, source), CAFFE
    else:
        expected = "torchvision's VGG16 with batch normalisation" if batch_norm else "torchvision's or a reduced-fc VGG16"
        raise CheckpointError(f"model.pretrained: {source}: is not {expected} (its first entry: {next(iter(state), None)})")
    own = model.backbone.state_dict()
    for name, value in converted.items():
        if own[name].shape != value.shape:
            shapes = f"{list(value.shape)}, expected {list(own[name].shape)}"
            raise CheckpointError(f"model.pretrained: {source}: {name} has the shape {shapes}")
    model.backbone.load_state_dict({**own, **converted})
    return preprocessing


def init_from(model: SSD300, path: Path, classes: Sequence[str]) -> tuple[Preprocessing, list[str]]:
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
    model: SSD300, state: TrainState, project: str, path: Path, classes: Sequence[str], entry: str
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
        fitted = _by_class(value, own[name], state.classes, classes) if name.startswith("conf.") and name in own else value
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
    theirs = state.config.get("model", {}).get("dboxes")
    has_heads = any(name.startswith(("loc.", "conf.")) for name in taken)
    if theirs is not None:
        known = ModelConfig.model_validate({"dboxes": theirs}).dboxes
        if has_heads and not torch.equal(make_dbox_list(spec_of(known)), model.dbox_list.cpu()):
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
    more = f", and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
    notes += [f"{entry}: not loaded: {', '.join(left[:MOST_NAMED])}{more}"] * bool(left)
    return Preprocessing(**state.preprocessing), notes


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


def is_features(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has VGG16's 13 convolutions in torchvision's layout, and no classifier or one of NaN, like
    `VGG16_Weights.IMAGENET1K_FEATURES`."""
    if f"features.{CONV_POSITIONS[-1]}.weight" not in state:
        return False
    classifier = [value for name, value in state.items() if name.startswith("classifier.")]
    return not classifier or any(bool(value.isnan().any()) for value in classifier)


def preprocessing_of_features(state: Mapping[str, Tensor]) -> Preprocessing:
    """Return the preprocessing for VGG16's convolutions: torchvision's if the first biases are those of its own training,
    else Oxford's, without a scale."""
    first = state["features.0.bias"][:3].float()
    is_torchvision = torch.allclose(first, torch.tensor(TORCHVISION_BIASES), atol=1e-3)
    return IMAGENET if is_torchvision else OXFORD


def from_features(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Convert the 13 convolutions from torchvision's layout to weights of the backbone, in float32."""
    converted = {}
    for name, position in zip(CONV_NAMES, CONV_POSITIONS, strict=True):
        for entry in ("weight", "bias"):
            if (value := state.get(f"features.{position}.{entry}")) is None:
                raise CheckpointError(f"model.pretrained: {source}: features.{position}.{entry} ({name}) is missing")
            converted[f"{name}.conv.{entry}"] = value.float()
    return converted


def from_torchvision(state: Mapping[str, Tensor], batch_norm: bool, source: str) -> dict[str, Tensor]:
    """Convert torchvision's VGG16 to weights of the backbone; decimate its classifier to fc6 and fc7 (DeepLab, ParseNet).

    fc6 keeps every fourth output and every third row and column of its 7 × 7 window, fc7 every fourth input and output.
    """
    positions = BN_CONV_POSITIONS if batch_norm else CONV_POSITIONS
    converted = {}
    try:
        for name, position in zip(CONV_NAMES, positions, strict=True):
            bias = state[f"features.{position}.bias"]
            converted[f"{name}.conv.weight"] = state[f"features.{position}.weight"]
            if batch_norm:
                norm = f"features.{position + 1}"
                for entry in ("weight", "bias", "running_var"):
                    converted[f"{name}.norm.{entry}"] = state[f"{norm}.{entry}"]
                # Our convolutions have no bias before a norm; subtract it from the running mean instead.
                converted[f"{name}.norm.running_mean"] = state[f"{norm}.running_mean"] - bias
            else:
                converted[f"{name}.conv.bias"] = bias
        fc6 = state["classifier.0.weight"].view(4096, 512, 7, 7)
        fc7 = state["classifier.3.weight"].view(4096, 4096, 1, 1)
        converted["fc6.conv.weight"] = fc6[::4, :, ::3, ::3]
        converted["fc7.conv.weight"] = fc7[::4, ::4]
        if not batch_norm:
            converted["fc6.conv.bias"] = state["classifier.0.bias"][::4]
            converted["fc7.conv.bias"] = state["classifier.3.bias"][::4]
    except (KeyError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"model.pretrained: {source}: is not a complete VGG16 of torchvision ({error})") from None
    return converted


def from_reduced_fc(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Convert a reduced-fc VGG16 (`0.weight`, ...), as used by amdegroot, lufficc and qfgaohao, to weights of the backbone."""
    converted = {}
    for name, position in zip(LAYER_NAMES, REDUCED_POSITIONS, strict=True):
        for entry in ("weight", "bias"):
            if f"{position}.{entry}" not in state:
                raise CheckpointError(f"model.pretrained: {source}: {position}.{entry} ({name}) is missing")
            converted[f"{name}.conv.{entry}"] = state[f"{position}.{entry}"]
    return converted
