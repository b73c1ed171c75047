"""A narrower network out of a wider one: channels chosen by what they give the next layers, weights refitted by least squares.

Layer by layer, from the image to the heads:

- Which output channels a layer keeps is decided by the layers that read it (ThiNet, Luo et al., ICCV 2017): channels go one by
  one, each time the one that the others can replace best in the readers' outputs.
- The layer's weights are then refitted, so that its outputs from the inputs of the narrow network come as close as possible
  to those of the wide one (He et al., *Channel Pruning for Accelerating Very Deep Neural Networks*, ICCV 2017, section 3.1).
- Batch normalisation is calibrated on the same photos.

A layer that keeps all its channels and reads unchanged inputs keeps its weights bit for bit.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssd.backbones.vgg import STAGES, ConvBlock
from ssd.model import SSD300

PHOTOS = 64  # that a network is pruned by, where the caller has more
PLACES = 200  # of a feature map, in each photo, that the least squares see
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean variance of an input
CHUNK = 8  # photos that go through a layer at once
HELD_OUT = 4  # every fourth photo measures the error and is not fitted; of fewer than 8 photos, every fourth place


class Layer(NamedTuple):
    """A convolution and what it reads."""

    name: str  # in the network
    source: str | None  # the layer whose output it reads; None: the image
    between: Callable[[SSD300, Tensor], Tensor]  # from that layer's output, without its activation, to this one's input


class LayerFit(NamedTuple):
    """How well a layer of the narrow network does what it did in the wide one."""

    name: str
    kept: int  # channels
    of: int
    unexplained: float  # share of the variance of the kept outputs, on photos that were not fitted


class Reader(NamedTuple):
    """How a layer reads the channels of another one."""

    taps: Tensor  # the rows of the others that belong to each channel [C, k · k]
    gram: Tensor  # inner products of its centred inputs [C · k · k, C · k · k]
    weight: Tensor  # [C · k · k, O]


class Weights(NamedTuple):
    """A convolution with its batch normalisation, if any, folded into it."""

    weight: Tensor  # [O, I, k, k]
    bias: Tensor  # [O]


def layers_of(model: SSD300) -> list[Layer]:
    """The convolutions of a network in the order of its arithmetic, the heads last."""
    layers = [Layer("backbone.conv1_1", None, lambda _, x: x)]
    for stage, row in enumerate(STAGES):
        for place, layer in enumerate(row):
            if layers[0].name != f"backbone.{layer.name}":
                between = _relu if place else _POOLS[stage - 1]
                layers.append(Layer(f"backbone.{layer.name}", layers[-1].name, between))
    extras = [f"extras.{name}" for name, block in model.extras.named_children() if isinstance(block, ConvBlock)]
    layers += [Layer(name, before, _relu) for name, before in zip(extras, ["backbone.fc7", *extras[:-1]], strict=True)]
    maps = ["backbone.conv4_3", "backbone.fc7", *extras[1::2]]
    for kind in ("loc", "conf"):
        for place, source in enumerate(maps):
            layers.append(Layer(f"{kind}.{place}", source, _normed if place == 0 else _relu))
    return layers


def _relu(_: SSD300, x: Tensor) -> Tensor:
    return F.relu(x)


def _normed(model: SSD300, x: Tensor) -> Tensor:
    return model.conv4_3_norm(F.relu(x))


def _pooled(name: str) -> Callable[[SSD300, Tensor], Tensor]:
    return lambda model, x: model.backbone.get_submodule(name)(F.relu(x))


_POOLS = tuple(_pooled(name) for name in ("pool", "pool", "pool3", "pool", "pool5"))  # behind each stage


def folded(model: nn.Module, name: str) -> Weights:
    """A layer's weights, with the batch normalisation behind it."""
    conv, norm = parts_of(model, name)
    bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
    if norm is None:
        return Weights(conv.weight.detach().clone(), bias.clone())
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return Weights(conv.weight.detach() * factor[:, None, None, None], norm.bias.detach() + (bias - norm.running_mean) * factor)


def parts_of(model: nn.Module, name: str) -> tuple[nn.Conv2d, nn.BatchNorm2d | None]:
    """The convolution of a layer, and its norm if it has one."""
    block = model.get_submodule(name)
    if isinstance(block, nn.Conv2d):
        return block, None
    assert isinstance(block, ConvBlock)
    return block.conv, getattr(block, "norm", None)


@torch.no_grad()
def prune(wide: SSD300, narrow: SSD300, images: Tensor, last: str | None = None) -> Iterator[LayerFit]:
    """Fills a narrow network with what a wide one knows.

    Args:
        wide: the network to prune, on the CPU; not changed.
        narrow: of the same classes and DBoxes and of any smaller width, with or without batch normalisation; changed in place.
        images: network input `[N, 3, 300, 300]`. The maps of all of them are in memory at once, 0.1 GB a photo.
        last: the last layer that is filled, `backbone.conv5_3` say; by default all.

    Yields:
        How well each layer could be refitted.
    """
    layers = layers_of(wide)
    if last is not None:
        layers = layers[: [layer.name for layer in layers].index(last) + 1]
    readers = {layer.name: [reader for reader in layers if reader.source == layer.name] for layer in layers}
    wide.eval()
    narrow.eval()
    outputs: dict[str, tuple[Tensor, Tensor]] = {}  # of layers with readers to come: of the wide and the narrow network
    kept: dict[str, Tensor] = {}  # channels of each layer, rising
    changed: set[str] = set()  # layers that do not give the narrow network exactly what they gave the wide one
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        conv, _ = parts_of(wide, layer.name)
        own = folded(wide, layer.name)
        if layer.source is None:
            theirs = ours = images.half()
            channels = torch.arange(images.shape[1])
        else:
            theirs, ours = (
                _mapped(partial(layer.between, net), x) for net, x in zip((wide, narrow), outputs[layer.source], strict=True)
            )
            channels = kept[layer.source]
        whole = _convolved(theirs, own, conv)
        keep = parts_of(narrow, layer.name)[0].out_channels
        if keep < conv.out_channels:
            chosen = most_useful(_reading(wide, readers[layer.name], whole, generator), keep)
        else:
            chosen = torch.arange(conv.out_channels)
        start = Weights(own.weight[chosen][:, channels], own.bias[chosen])
        if layer.source not in changed and len(channels) == conv.in_channels:
            fit, unexplained = start, 0.0
        else:
            changed.add(layer.name)
            fit, unexplained = _refitted(ours, whole[:, chosen], start, conv, generator)
        if len(chosen) < conv.out_channels:
            changed.add(layer.name)
        result = _convolved(ours, fit, conv)
        if layer.name not in changed and _alike(wide, narrow, layer.name):
            narrow.get_submodule(layer.name).load_state_dict(wide.get_submodule(layer.name).state_dict())
        else:
            _write(narrow, layer.name, fit, result)
        kept[layer.name] = chosen
        if layer.name == "backbone.conv4_3":
            _select_norm(wide.conv4_3_norm, narrow.conv4_3_norm, chosen)
        if readers[layer.name]:
            outputs[layer.name] = whole, result
        for name in [*outputs]:
            if readers[name] and readers[name][-1] is layer:
                del outputs[name]
        yield LayerFit(layer.name, len(chosen), conv.out_channels, unexplained)


def _alike(wide: SSD300, narrow: SSD300, name: str) -> bool:
    """Whether a layer has a norm in both networks or in neither."""
    return (parts_of(wide, name)[1] is None) == (parts_of(narrow, name)[1] is None)


def most_useful(readers: Sequence[Reader], keep: int) -> Tensor:
    """The channels that are left when the others go one by one, each time the one that the readers miss least.

    What they miss is what is left of their outputs' variance once their weights on the other channels are refitted: with H
    the inverse of the Gram matrix and B the weights, channel c costs tr(B_cᵀ H_cc⁻¹ B_c), as in Optimal Brain Surgeon (Hassibi
    and Stork, NIPS 1992). A channel that others can replace therefore goes before one that is weak and on its own.

    Args:
        readers: the layers that read the channels.
        keep: how many are left.

    Returns:
        Their numbers `[keep]`, rising.
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
        # The costs of the others only grow as channels go: one that was not asked again since cannot have become the least.
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
    """A reader with the inverse of its Gram matrix in that one's place, its outputs scaled to a total variance of 1."""
    gram, weight = reader.gram, reader.weight
    ridge = RIDGES[0] * gram.diagonal().mean() + 1e-12
    variance = ((gram @ weight) * weight).sum().clamp(min=1e-12)
    return Reader(reader.taps, torch.linalg.inv(gram + ridge * torch.eye(len(gram))), weight / variance.sqrt())


def _reading(wide: SSD300, layers: Sequence[Layer], outputs: Tensor, generator: torch.Generator) -> list[Reader]:
    """How the layers read a layer's outputs `[N, C, H, W]`; where none does, all of its channels count alike."""
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
    """The weights whose outputs are nearest to those of the wide network, and the share of variance that they leave.

    The ridge pulls towards the wide network's own weights; its strength is what serves the photos best that are not fitted.
    """
    places = _places(inputs, conv, generator)
    patches, photo = _patches(inputs, conv, places)
    wanted = targets.permute(0, 2, 3, 1)[places[:, 0], places[:, 1], places[:, 2]].double()  # [S, O]
    unit = photo if len(inputs) >= 2 * HELD_OUT else torch.arange(len(photo))
    held_out = unit % HELD_OUT == HELD_OUT - 1
    old = start.weight.flatten(1).T.double()  # [I · k · k, O]
    x, y = patches[~held_out].double(), wanted[~held_out]
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    x = x - x_mean
    gram, moment = x.T @ x, x.T @ (y - y_mean - x @ old)
    scale = gram.diagonal().mean()
    test_x, test_y = patches[held_out].double() - x_mean, wanted[held_out] - y_mean
    variance = (test_y - test_y.mean(dim=0)).square().sum().clamp(min=1e-12)
    best: tuple[float, Tensor] = (torch.inf, old)
    for ridge in RIDGES:
        matrix = gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype)
        weight = old + torch.linalg.solve(matrix, moment)
        error = float((test_y - test_x @ weight).square().sum() / variance)
        best = min(best, (error, weight), key=lambda pair: pair[0])
    error, weight = best
    bias = y_mean - x_mean @ weight
    return Weights(weight.T.reshape(start.weight.shape).float(), bias.float()), error


def _places(inputs: Tensor, conv: nn.Conv2d, generator: torch.Generator) -> Tensor:
    """Random places of a convolution's output, the same number in each photo: photo, row, column `[S, 3]`."""
    rows, columns = (_output_size(inputs.shape[2 + axis], conv, axis) for axis in (0, 1))
    count = min(PLACES, rows * columns)
    chosen = torch.stack([torch.randperm(rows * columns, generator=generator)[:count] for _ in inputs])  # [N, count]
    photo = torch.arange(len(inputs)).repeat_interleave(count)
    return torch.stack([photo, chosen.flatten() // columns, chosen.flatten() % columns], dim=1)


def _output_size(size: int, conv: nn.Conv2d, axis: int) -> int:
    reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
    return (size + 2 * int(conv.padding[axis]) - reach) // conv.stride[axis] + 1


def _patches(inputs: Tensor, conv: nn.Conv2d, places: Tensor) -> tuple[Tensor, Tensor]:
    """What a convolution sees at places of its output `[S, I · k · k]`, and the photo of each `[S]`."""
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
    """A function of maps `[N, C, H, W]`, some at a time; kept in half precision, since those of many photos are large."""
    return torch.cat([function(chunk.float()).half() for chunk in inputs.split(CHUNK)])


def _convolved(inputs: Tensor, weights: Weights, conv: nn.Conv2d) -> Tensor:
    return _mapped(
        lambda x: F.conv2d(x, weights.weight, weights.bias, conv.stride, conv.padding, conv.dilation),  # pyright: ignore
        inputs,
    )


def _moments(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of `[N, C, H, W]`."""
    values = torch.stack([chunk.float().mean(dim=(0, 2, 3)) for chunk in outputs.split(1)])
    squares = torch.stack([chunk.float().square().mean(dim=(0, 2, 3)) for chunk in outputs.split(1)])
    mean = values.mean(dim=0)
    return mean, (squares.mean(dim=0) - mean.square()).clamp(min=0).sqrt()


def _write(model: SSD300, name: str, fit: Weights, outputs: Tensor) -> None:
    """Puts weights into a layer; where a norm follows, it is calibrated to give the same outputs `[N, O, H, W]`."""
    conv, norm = parts_of(model, name)
    if norm is None:
        conv.weight.copy_(fit.weight)
        assert conv.bias is not None
        conv.bias.copy_(fit.bias)
        return
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, evenly_spaced = _moments(outputs)
    evenly_spaced = evenly_spaced.clamp(min=float(evenly_spaced.median()) * 1e-2 + 1e-12)  # a channel that hardly moves
    conv.weight.copy_(fit.weight / evenly_spaced[:, None, None, None])
    norm.running_mean.copy_((mean - fit.bias) / evenly_spaced)
    norm.running_var.fill_(1.0)
    norm.weight.copy_(evenly_spaced * (1 + norm.eps) ** 0.5)
    norm.bias.copy_(mean)


def _select_norm(wide: nn.Module, narrow: nn.Module, channels: Tensor) -> None:
    """Takes the channels of conv4_3's norm that are kept."""
    state = {name: value[channels] if value.ndim else value for name, value in wide.state_dict().items()}
    narrow.load_state_dict(state)
