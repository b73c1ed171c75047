"""Where the weights to start from lie: the file that comes with the project, and torchvision's, downloaded once."""

from pathlib import Path

import torch
from filelock import FileLock
from torchvision.models import VGG16_BN_Weights, VGG16_Weights
from torchvision.models.detection import SSD300_VGG16_Weights

from ssd.system.download import Digest, DownloadError, ask, fetch
from ssd.system.files import looked_in
from ssd.weights.checkpoint import CheckpointError

SLIM = Path(__file__).with_name("slim.pt")  # a network of width 0.25, as scripts/export.py --format weights writes it

# A network that is not there costs seconds, not minutes.
ATTEMPTS = 2
STALL = 8.0  # seconds


def weights_file(source: str, batch_norm: bool) -> Path:
    """The file of `model.pretrained`; downloaded, if it is torchvision's and not there.

    Raises:
        CheckpointError: it cannot be downloaded, or does not exist.
    """
    if source in ("coco", "imagenet"):
        return downloaded(source, torchvision_url(source, batch_norm))
    if source == "slim":
        if not SLIM.exists():
            raise CheckpointError(
                f"model.pretrained: slim: {SLIM} is missing, which comes with the project; fetch it from there, or set "
                "model.pretrained: none"
            )
        return SLIM
    path = Path(source)
    if not path.exists():
        raise CheckpointError(
            f"model.pretrained: {path}: no such file{looked_in(path)} (coco, imagenet, slim, none, or a file is expected)"
        )
    return path


def torchvision_url(source: str, batch_norm: bool = False) -> str:
    """The address of torchvision's weights: `coco` (SSD300), or `imagenet` (VGG16, with or without batch normalisation)."""
    if source == "coco":
        return SSD300_VGG16_Weights.COCO_V1.url
    return (VGG16_BN_Weights.IMAGENET1K_V1 if batch_norm else VGG16_Weights.IMAGENET1K_V1).url


def hub_file(url: str) -> Path:
    """Where torch.hub keeps what it downloads from an address."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def downloaded(source: str, url: str) -> Path:
    """The file of torchvision's weights in torch.hub's folder, downloaded if it is not there.

    Raises:
        CheckpointError: it cannot be downloaded.
    """
    try:
        return fetched(url)
    except (DownloadError, OSError) as error:
        path = hub_file(url)
        raise CheckpointError(
            f"model.pretrained: {source}: {path.name} cannot be downloaded ({error}); download {url} elsewhere and put it into "
            f"{path.parent}, or name the file in model.pretrained, or set model.pretrained: none"
        ) from None


def asked(url: str) -> None:
    """Finds out in seconds whether a file could be downloaded.

    Raises:
        DownloadError: its server does not answer, or does not have it.
    """
    ask(url, STALL)


def fetched(url: str) -> Path:
    """A file in torch.hub's folder, downloaded if it is not there.

    Several processes wait for each other. A file that is there is taken as it is.

    Raises:
        DownloadError: it cannot be downloaded.
        OSError: the disk cannot be written.
    """
    path = hub_file(url)
    digest = Digest("sha256", path.stem.rsplit("-", 1)[-1])  # the names of torchvision's files end in its beginning
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        return path if path.exists() else fetch(path, [url], digest, attempts=ATTEMPTS, stall=STALL)
