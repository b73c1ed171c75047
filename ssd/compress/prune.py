"""Prune a network to a smaller width: select channels by their effect on the next layers, refit weights by least squares.

Layer by layer, from the image to the heads:

- Select the output channels to keep by the layers that read them (ThiNet, Luo et al., ICCV 2017): repeatedly remove the
  channel that the remaining ones can best replace in the outputs of the readers.
- Refit the weights, so that the narrow network's outputs approximate those of the wide one (He et al., *Channel Pruning for
  Accelerating Very Deep Neural Networks*, ICCV 2017, section 3.1).
- Calibrate batch normalisation on the same photos.

A layer that keeps all its channels and reads unchanged inputs keeps its weights bit for bit.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssd.backbones.conv_block import ConvBlock
from ssd.backbones.vgg import STAGES
from ssd.model import SSD

PHOTOS = 64  # enough to prune a network
PLACES = 200  # positions sampled per feature map and photo for the least squares
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # ridge parameters to try, relative to the mean variance of an input
CHUNK = 8  # photos per forward pass of a layer
HELD_OUT = 4  # every fourth photo is held out to measure the error; with fewer than 8 photos, every fourth position


class Layer(NamedTuple):
    """A convolution and its input."""

    name: str  # name of the module
    source: str | None  # layer whose output it reads; None: the image
    between: Callable[[SSD, Tensor], Tensor]  # maps that output, before its activation, to the input


class LayerFit(NamedTuple):
    """How well a layer of the narrow network reproduces its outputs in the wide one."""

    name: str
    kept: int  # channels
    of: int  # channels in the wide network
    unexplained: float  # share of the variance of the kept outputs, on held-out photos


class Reader(NamedTuple):
    """Statistics and weights of a layer that reads the channels of another."""

    taps: Tensor  # rows of `gram` and `weight` for each channel [C, k · k]
    gram: Tensor  # Gram matrix of its centred inputs [C · k · k, C · k · k]
    weight: Tensor  # [C · k · k, O]


class Weights(NamedTuple):
    """A convolution with its batch normalisation, if any, folded into it."""

    weight: Tensor  # [O, I, k, k]
    bias: Tensor  # [O]


def layers_of(model: SSD) -> list[Layer]:
    """Return the convolutions of a network in forward order, the heads last."""
    layers = [Layer("backbone.conv1_1", None, lambda _, x: x)]
    for stage, row in enumerate(STAGES):
        for place, layer in enumerate(row):
            if layers[0].name != f"backbone.{layer.name}":
                between = _relu if place else _POOLS[stage - 1]
                layers.append(Layer(f"backbone.{layer.name}", layers[-1].name, between))
    extras = [f"extras.{name}" for name, block in model.extras.named_children() if isinstance(block, ConvBlock)]
    layers += [Layer(name, before, _relu) for name, before in zip(extras, [layers[-1].name, *extras[:-1]], strict=True)]
    by_layer = {layer.name.rpartition(".")[2]: layer.name for layer in layers}
    maps = [by_layer[row.layer] for row in model.architecture.maps]
    for kind in ("loc", "conf"):
        for place, source in enumerate(maps):
            layers.append(Layer(f"{kind}.{place}", source, _normed if place == 0 else _relu))
    return layers


def _relu(_: SSD, x: Tensor) -> Tensor:
    return F.relu(x)


def _normed(model: SSD, x: Tensor) -> Tensor:
    return model.conv4_3_norm(F.relu(x))


def _pooled(name: str) -> Callable[[SSD, Tensor], Tensor]:
    return lambda model, x: model.backbone.get_submodule(name)(F.relu(x))


_POOLS = tuple(_pooled(name) for name in ("pool", "pool", "pool3", "pool", "pool5"))  # after each stage


def folded(model: nn.Module, name: str) -> Weights:
    """Return the weights of a layer with its batch normalisation folded in."""
    conv, norm = parts_of(model, name)
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
    if norm is None:
        return Weights(conv.weight.detach().clone(), bias.clone())
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return Weights(conv.weight.detach() * factor[:, None, None, None], norm.bias.detach() + (bias - norm.running_mean) * factor)


def parts_of(model: nn.Module, name: str) -> tuple[nn.Conv2d, nn.BatchNorm2d | None]:
    """Return the convolution of a layer, and its norm or None."""
    block = model.get_submodule(name)
    if isinstance(block, nn.Conv2d):
        return block, None
    assert isinstance(block, ConvBlock)
    return block.conv, getattr(block, "norm", None)


@torch.no_grad()
def prune(wide: SSD, narrow: SSD, images: Tensor, last: str | None = None) -> Iterator[LayerFit]:
    """Initialise a narrow network from a trained wide one.

    Args:
        wide: network to prune, on the CPU; not changed, but set to evaluation mode.
        narrow: network with the same classes and DBoxes and at most the same width; changed in place.
        images: network input `[N, 3, S, S]`. Needs 0.1 GB of memory per photo.
        last: last layer to initialise, such as `backbone.conv5_3`; by default all layers.

    Yields:
        The fit of each layer.
    """
    layers = layers_of(wide)
    first_map = f"backbone.{wide.architecture.maps[0].layer}"
    if last is not None:
        layers = layers[: [layer.name for layer in layers].index(last) + 1]
    wide.eval()
    narrow.eval()
    readers = {
        source: [layer for layer in layers if layer.source == source] for source in (None, *(each.name for each in layers))
    }
    outputs: dict[str | None, tuple[Tensor, Tensor]] = {None: (images.half(), images.half())}  # wide, narrow; until last read
    kept: dict[str | None, Tensor] = {None: torch.arange(images.shape[1])}  # channels of each layer, ascending
    changed: set[str | None] = set()  # layers whose outputs differ from those in the wide network
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        name, source = layer.name, layer.source
        conv, _ = parts_of(wide, name)
        own, channels = folded(wide, name), kept[source]
        theirs, ours = (_mapped(partial(layer.between, net), x) for net, x in zip((wide, narrow), outputs[source], strict=True))
        whole = _convolved(theirs, own, conv)
        chosen = torch.arange(conv.out_channels)
        if (keep := parts_of(narrow, name)[0].out_channels) < conv.out_channels:
            chosen = most_useful(_reading(wide, readers[name], whole, generator), keep)
        fit, unexplained = Weights(own.weight[chosen][:, channels], own.bias[chosen]), 0.0
        is_input_changed = source in changed or len(channels) < conv.in_channels
        if is_input_changed:
            fit, unexplained = _refitted(ours, whole[:, chosen], fit, conv, generator)
        if is_input_changed or len(chosen) < conv.out_channels:
            changed.add(name)
        result = _convolved(ours, fit, conv)
        if name not in changed and _alike(wide, narrow, name):
            narrow.get_submodule(name).load_state_dict(wide.get_submodule(name).state_dict())
        else:
            _write(narrow, name, fit, result)
        if name == first_map:
            _select_norm(wide.conv4_3_norm, narrow.conv4_3_norm, chosen)
        kept[name], outputs[name] = chosen, (whole, result)
        for each in [*outputs]:
            if not readers[each] or readers[each][-1] is layer:
                del outputs[each]
        yield LayerFit(name, len(chosen), conv.out_channels, unexplained)


def _alike(wide: SSD, narrow: SSD, name: str) -> bool:
    """Return whether a layer has a norm in both networks or in neither."""
    return (parts_of(wide, name)[1] is None) == (parts_of(narrow, name)[1] is None)


def most_useful(readers: Sequence[Reader], keep: int) -> Tensor:
    """Select channels by backward elimination: repeatedly remove the one whose loss costs the readers least.

    The cost is the variance of the readers' outputs that remains unexplained after refitting their weights on the other
    channels: with H the inverse of the Gram matrix and B the weights, channel c costs tr(B_cᵀ H_cc⁻¹ B_c), as in Optimal Brain
    Surgeon (Hassibi and Stork, NIPS 1992). A channel that others can replace is thus removed before a weak but unique one.

    Args:
        readers: layers that read the channels.
        keep: number of channels to keep.

    Returns:
        Indices of the kept channels `[keep]`, ascending.
    """
    states = [_inverted(reader) for reader in readers]

    def cost(channel: int) -> float:
        total = 0.0
        for taps, inverse, weight in states:
            rows = taps[channel]
            own = weight[rows]  # [k · k, O]
            total += float((own * torch.linalg.solve(inverse[rows][:, rows], own)).sum())
        return total

    left = [(cost(channel), channel) for channel in range(len(readers[0].taps))]
    heapq.heapify(left)
    while len(left) > keep:
        # Costs only grow as channels are removed, so an outdated cost is a lower bound.
        _, channel = heapq.heappop(left)
        if left and (now := cost(channel)) > left[0][0]:
            heapq.heappush(left, (now, channel))
            continue
        for taps, inverse, weight in states:
            rows = taps[channel]
            factors = torch.linalg.solve(inverse[rows][:, rows], inverse[rows])  # [k · k, C · k · k]
            weight.addmm_(factors.T, weight[rows], alpha=-1)
            inverse.addmm_(inverse[:, rows], factors, alpha=-1)
    return torch.tensor(sorted(channel for _, channel in left))


def _inverted(reader: Reader) -> Reader:
    """Return a reader with its Gram matrix inverted and its outputs scaled to a total variance of 1."""
    gram, weight = reader.gram, reader.weight
    ridge = RIDGES[0] * gram.diagonal().mean() + 1e-12
    variance = ((gram @ weight) * weight).sum().clamp(min=1e-12)
    return Reader(reader.taps, torch.linalg.inv(gram + ridge * torch.eye(len(gram))), weight / variance.sqrt())


def _reading(wide: SSD, layers: Sequence[Layer], outputs: Tensor, generator: torch.Generator) -> list[Reader]:
    """Return the readers of a layer's outputs `[N, C, H, W]`. Without any, an identity weights all channels equally."""
    if not layers:
        conv = nn.Conv2d(outputs.shape[1], outputs.shape[1], 1)
        conv.weight.copy_(torch.eye(outputs.shape[1])[:, :, None, None])
        readings = [(conv, F.relu(outputs), conv.weight.flatten(1))]
    else:
        readings = [
            (parts_of(wide, layer.name)[0], _mapped(partial(layer.between, wide), outputs), folded(wide, layer.name).weight)
            for layer in layers
        ]
    readers = []
    for conv, inputs, weight in readings:
        patches, _ = _patches(inputs, conv, _places(inputs, conv, generator))
        patches = patches - patches.mean(dim=0)
        taps = torch.arange(patches.shape[1]).view(conv.in_channels, -1)
        readers.append(Reader(taps, patches.T @ patches, weight.flatten(1).T.clone()))
    return readers


def _refitted(
    inputs: Tensor, targets: Tensor, start: Weights, conv: nn.Conv2d, generator: torch.Generator
) -> tuple[Weights, float]:
    """Fit weights to the outputs of the wide network; return them and the unexplained share of the variance.

    Ridge regression towards `start`, the weights of the wide network; the ridge parameter is selected on held-out photos. If
    none improves on `start` there, as with few photos and the smallest maps, the weights stay.
    """
    places = _places(inputs, conv, generator)
    patches, photo = _patches(inputs, conv, places)
    wanted = targets.permute(0, 2, 3, 1)[places[:, 0], places[:, 1], places[:, 2]].double()  # [S, O]
    unit = photo if len(inputs) >= 2 * HELD_OUT else torch.arange(len(photo))
    held_out = unit % HELD_OUT == HELD_OUT - 1
    old = start.weight.flatten(1).T.double()  # [I · k · k, O]
    x, y = patches[~held_out].double(), wanted[~held_out]
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    test_x, test_y = patches[held_out].double() - x_mean, wanted[held_out] - y_mean
    variance = (test_y - test_y.mean(dim=0)).square().sum().clamp(min=1e-12)

    def error_of(weight: Tensor, bias: Tensor | float = 0.0) -> float:
        return float((test_y - test_x @ weight - bias).square().sum() / variance)

    # With fewer positions than HELD_OUT nothing can be compared.
    best = error_of(old, start.bias.double() + x_mean @ old - y_mean) if held_out.any() else torch.inf, start
    for weight in _ridge_weights(x - x_mean, y - y_mean, old):
        if (error := error_of(weight)) < best[0]:
            bias = y_mean - x_mean @ weight
            best = error, Weights(weight.T.reshape(start.weight.shape).float(), bias.float())
    return best[1], best[0]


def _ridge_weights(x: Tensor, y: Tensor, old: Tensor) -> Iterator[Tensor]:
    """Yield the weights `[I, O]` of ridge regression from `x` `[S, I]` to `y` `[S, O]`, towards `old`, for each of RIDGES."""
    gram, moment = x.T @ x, x.T @ (y - x @ old)
    scale = gram.diagonal().mean()
    for ridge in RIDGES:
        matrix = gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype)
        yield old + torch.linalg.solve(matrix, moment)


def _places(inputs: Tensor, conv: nn.Conv2d, generator: torch.Generator) -> Tensor:
    """Sample positions of a convolution's output, equally many per photo: photo, row, column `[S, 3]`."""
    rows, columns = (_output_size(inputs.shape[2 + axis], conv, axis) for axis in (0, 1))
    count = min(PLACES, rows * columns)
    chosen = torch.stack([torch.randperm(rows * columns, generator=generator)[:count] for _ in inputs])  # [N, count]
    photo = torch.arange(len(inputs)).repeat_interleave(count)
    return torch.stack([photo, chosen.flatten() // columns, chosen.flatten() % columns], dim=1)


def _output_size(size: int, conv: nn.Conv2d, axis: int) -> int:
    reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
    return (size + 2 * int(conv.padding[axis]) - reach) // conv.stride[axis] + 1


def _patches(inputs: Tensor, conv: nn.Conv2d, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input patches at positions of a convolution's output `[S, I · k · k]`, and their photos `[S]`."""
    pad_rows, pad_columns = int(conv.padding[0]), int(conv.padding[1])
    padded = F.pad(inputs, (pad_columns, pad_columns, pad_rows, pad_rows)).permute(0, 2, 3, 1)
    photo, row, column = places.T
    taps = [
        padded[photo, row * conv.stride[0] + i * conv.dilation[0], column * conv.stride[1] + j * conv.dilation[1]]
        for i in range(conv.kernel_size[0])
        for j in range(conv.kernel_size[1])
    ]
    return torch.stack(taps, dim=2).flatten(1).float(), photo  # [S, I, k · k] → [S, I · k · k]


def _mapped(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Apply a function to maps `[N, C, H, W]` in chunks; return half precision, to save memory."""
    return torch.cat([function(chunk.float()).half() for chunk in inputs.split(CHUNK)])


def _convolved(inputs: Tensor, weights: Weights, conv: nn.Conv2d) -> Tensor:
    return _mapped(
        lambda x: F.conv2d(x, weights.weight, weights.bias, conv.stride, conv.padding, conv.dilation),  # pyright: ignore
        inputs,
    )


def _moments(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each channel of `[N, C, H, W]`."""
    values = torch.stack([chunk.float().mean(dim=(0, 2, 3)) for chunk in outputs.split(1)])
    squares = torch.stack([chunk.float().square().mean(dim=(0, 2, 3)) for chunk in outputs.split(1)])
    mean = values.mean(dim=0)
    return mean, (squares.mean(dim=0) - mean.square()).clamp(min=0).sqrt()


def _write(model: SSD, name: str, fit: Weights, outputs: Tensor) -> None:
    """Store weights in a layer. A norm, if any, is calibrated to give the same outputs `[N, O, H, W]`."""
    conv, norm = parts_of(model, name)
    if norm is None:
        conv.weight.copy_(fit.weight)
        assert conv.bias is not None
        conv.bias.copy_(fit.bias)
        return
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, std = _moments(outputs)
    std = std.clamp(min=float(std.median()) * 1e-2 + 1e-12)  # for nearly constant channels
    conv.weight.copy_(fit.weight / std[:, None, None, None])
    norm.running_mean.copy_((mean - fit.bias) / std)
    norm.running_var.fill_(1.0)
    norm.weight.copy_(std * (1 + norm.eps) ** 0.5)
    norm.bias.copy_(mean)


def _select_norm(wide: nn.Module, narrow: nn.Module, channels: Tensor) -> None:
    """Copy the kept channels of the first map's norm."""
    state = {name: value[channels] if value.ndim else value for name, value in wide.state_dict().items()}
    narrow.load_state_dict(state)
