"""Files of pretrained weights: the shipped ones, and those of torchvision, downloaded once."""

from pathlib import Path

import torch
from filelock import FileLock
from torchvision.models import get_weight

from ssd.architecture import SSD300_VGG16, Architecture
from ssd.config.schema import SHIPPED_WIDTHS
from ssd.system.download import Digest, DownloadError, ask, fetch
from ssd.system.files import looked_in
from ssd.weights.checkpoint import CheckpointError

# Shipped weights; written by scripts/export.py --format weights.
SHIPPED = {name: Path(__file__).with_name(f"{name}.pt") for name in SHIPPED_WIDTHS}

SHIPPED_SCORE = 0.2  # minimum score of detections with those that have no thresholds of their own: best F1 (docs/results.md)
DEFAULT = str(SHIPPED["half"])  # for detection without a checkpoint

# Without a network connection, fail within seconds.
ATTEMPTS = 2
STALL = 8.0  # seconds


def checkpoint_file(name: str | Path) -> Path:
    """Return the path of a checkpoint: a file, or shipped weights by their name."""
    return SHIPPED[str(name)] if str(name) in SHIPPED and not Path(name).is_file() else Path(name)


def weights_file(source: str, architecture: Architecture, batch_norm: bool) -> Path:
    """Return the file for `model.pretrained`; download missing weights of torchvision.

    Raises:
        CheckpointError: the download failed, or there is no such file.
    """
    if source in ("coco", "imagenet"):
        return find_or_download(source, torchvision_url(source, architecture, batch_norm))
    if source in SHIPPED:
        path = SHIPPED[source]
        if not path.exists():
            raise CheckpointError(
                f"model.pretrained: {source}: {path} is missing; restore this file, or set model.pretrained: none"
            )
        return path
    path = Path(source)
    if not path.exists():
        raise CheckpointError(
            f"model.pretrained: {path}: no such file{looked_in(path)}; expected coco, imagenet, {', '.join(SHIPPED)}, none or "
            "a file"
        )
    return path


def torchvision_url(source: str, architecture: Architecture = SSD300_VGG16, batch_norm: bool = False) -> str:
    """Return the address of torchvision's weights: `coco` (the network) or `imagenet` (its backbone, with or without batch
    norm)."""
    name = architecture.coco if source == "coco" else architecture.imagenet[batch_norm]
    assert name is not None  # ModelConfig refuses `coco` where there is none
    return get_weight(name).url


def hub_file(url: str) -> Path:
    """Return the path at which torch.hub stores a download."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def find_or_download(source: str, url: str) -> Path:
    """Return the file of torchvision's weights in torch.hub's folder; download it if missing.

    Raises:
        CheckpointError: the download failed.
    """
    try:
        return fetch_to_hub(url)
    except (DownloadError, OSError) as error:
        path = hub_file(url)
        raise CheckpointError(
            f"model.pretrained: {source}: {path.name} cannot be downloaded ({error}); download {url} elsewhere and put it into "
            f"{path.parent}, or name the file in model.pretrained, or set model.pretrained: none"
        ) from None


def check_available(url: str) -> None:
    """Check within seconds whether a file can be downloaded.

    Raises:
        DownloadError: the server does not answer, or does not have the file.
    """
    ask(url, STALL)


def fetch_to_hub(url: str) -> Path:
    """Return a file in torch.hub's folder; download it if missing.

    Processes wait for each other. An existing file is not checked.

    Raises:
        DownloadError: the download failed.
        OSError: the disk is not writable.
    """
    path = hub_file(url)
    digest = Digest("sha256", path.stem.rsplit("-", 1)[-1])  # file names of torchvision end with the first digits of the digest
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        return path if path.exists() else fetch(path, [url], digest, attempts=ATTEMPTS, stall=STALL)
