"""Benchmark of every row of the table of architectures against torchvision's two networks."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from scripts.benchmarks import networks
from scripts.benchmarks.measuring import PEER, Runs, Setting, measure, real_batch
from scripts.benchmarks.networks import Variant, our_network, peer_variants, torchvision_network
from scripts.benchmarks.predict import OPTIONS, torchvision_inference
from scripts.benchmarks.step import our_step, torchvision_step
from ssd.architecture import ARCHITECTURES, SSD300_VGG16, SSDLITE320_MOBILENET_V3, Architecture
from ssd.inference.predictor import Predictor
from ssd.preprocessing import IMAGENET
from ssd.system.device import choose_precision

PEERS = {f"{PEER}, SSD300": SSD300_VGG16, f"{PEER}, SSDLite320": SSDLITE320_MOBILENET_V3}
INFERENCE = (1, 16)  # batch sizes


class Comparison(NamedTuple):
    """One network in one case. Speeds are ratios to torchvision's networks: 2 is twice as fast."""

    case: str
    network: str
    setting: str  # precision, and for torchvision the memory format: the fastest of all
    seconds: float
    rate: float  # images/s
    of_ssd300: float
    of_ssdlite: float


def bench_architectures(setting: Setting, batch_size: int) -> list[Comparison]:
    """Measure the training step with this batch size, and inference with 1 and 16 photos. No case has more than a few rounds,
    because the slowest network takes a hundred times as long as the fastest."""
    few = max(1, setting.rounds // 2)
    found = _compare(setting, f"step, batch {batch_size}", batch_size, few, _our_step, _torchvision_step)
    for size in INFERENCE:
        rounds = few if size > 1 else setting.rounds
        found += _compare(setting, f"predict, batch {size}", size, rounds, _our_inference, _torchvision_inference)
    return found


def _compare(
    setting: Setting,
    case: str,
    batch_size: int,
    rounds: int,
    ours: Callable[[Setting, Architecture, int], tuple[str, Callable[[], object]]],
    theirs: Callable[[Setting, Architecture, int, Variant], Callable[[], object]],
) -> list[Comparison]:
    """Find torchvision's best settings, and let its networks in these and our networks alternate."""
    runs: Runs = {}
    words: dict[str, str] = {}
    for name, row in PEERS.items():
        variants = {variant.name: variant for variant in peer_variants(setting.dtype)}
        tried: Runs = {key: theirs(setting, row, batch_size, variant) for key, variant in variants.items()}
        seconds = measure(tried, setting, 1)
        best = min(seconds, key=seconds.__getitem__)
        runs[name], words[name] = tried[best], best.removeprefix(f"{PEER}, ")
    for name, row in ARCHITECTURES.items():
        words[name], runs[name] = ours(setting, row, batch_size)
    seconds = measure(runs, setting, rounds)
    peers = [seconds[name] for name in PEERS]
    return [
        Comparison(case, name, words[name], took, batch_size / took, *(peer / took for peer in peers))
        for name, took in ((name, seconds[name]) for name in (*ARCHITECTURES, *PEERS))
    ]


def _our_step(setting: Setting, row: Architecture, batch_size: int) -> tuple[str, Callable[[], object]]:
    dtype = choose_precision("auto", setting.device, row.separable)
    batch = real_batch(setting.photos, batch_size, row.input_size)
    return _word(dtype), our_step(setting, batch, our_network(row), dtype)


def _torchvision_step(setting: Setting, row: Architecture, batch_size: int, variant: Variant) -> Callable[[], object]:
    batch = real_batch(setting.photos, batch_size, row.input_size)
    return torchvision_step(setting, batch, torchvision_network(row), variant)


def _our_inference(setting: Setting, row: Architecture, batch_size: int) -> tuple[str, Callable[[], object]]:
    pixels = list(real_batch(setting.photos, batch_size, row.input_size).images.numpy())
    classes = [str(number) for number in range(networks.NUM_CLASSES)]
    predictor = Predictor(our_network(row).eval(), classes, IMAGENET, setting.device, setting.dtype, OPTIONS)
    return _word(setting.dtype), lambda: predictor.detect(pixels, batch_size)


def _torchvision_inference(setting: Setting, row: Architecture, batch_size: int, variant: Variant) -> Callable[[], object]:
    images = real_batch(setting.photos, batch_size, row.input_size).images
    return torchvision_inference(setting, images, torchvision_network(row), variant)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_table(found: list[Comparison]) -> str:
    """Return the measurements as a table in Markdown, a line for each network."""
    cases = list(dict.fromkeys(one.case for one in found))
    lines = [f"| | {' | '.join(cases)} |", f"|{'---|' * (len(cases) + 1)}"]
    for name in dict.fromkeys(one.network for one in found):
        cells = [_cell(one) for one in found if one.network == name]
        lines.append(f"| {name if name in PEERS else f'`{name}`'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(one: Comparison) -> str:
    """Return the time, the speed as ratios to torchvision's SSD300 and SSDLite320, and the setting."""
    time = f"{one.seconds * 1e3:.0f} ms" if one.seconds < 10 else f"{one.seconds:.1f} s"
    return f"{time}; {one.of_ssd300:.2f} ×, {one.of_ssdlite:.2f} × ({one.setting})"
