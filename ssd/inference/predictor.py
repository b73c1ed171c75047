"""Using a trained network: photos in, detections out."""

import copy
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Literal, NamedTuple, Self

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ssd.backbones.vgg import ConvBlock
from ssd.config.schema import LEAST_TILE, MOST_OVERLAP, TilesConfig
from ssd.inference.compiled import Compiled
from ssd.inference.merge import merge
from ssd.inference.predict import Thresholds, predict
from ssd.inference.tiles import Tiles, tile_windows
from ssd.model import SSD300
from ssd.preprocessing import Preprocessing, inference_format, resize
from ssd.system.device import choose_device, choose_precision, compute_in_forks
from ssd.system.errors import first_line
from ssd.system.images import MAX_PIXELS, ImageError, read_photo, require_decodable, to_rgb
from ssd.weights.checkpoint import TrainState, load_checkpoint
from ssd.weights.pretrained import network_of

Photo = str | Path | np.ndarray | Image.Image | Tensor


class Detections(NamedTuple):
    """What was found in one photo, by falling score."""

    boxes: np.ndarray  # [n, 4] float32: edges (x1, y1, x2, y2) in the photo's pixels, counted from 0
    labels: np.ndarray  # [n] int64, from 0 over the class names
    scores: np.ndarray  # [n] float32, 0..1
    names: list[str]  # n names of classes


class Predictor:
    """A network with all that it expects of its images.

    On a CPU the network takes a quarter less time for a batch of 16 after `ssd.system.device.keep_freed_memory()`, which
    `scripts/detect.py` calls. That is left to the caller, since it holds for the whole process.

    After a fork (gunicorn's preload, multiprocessing.Pool) a predictor on a CPU goes on in the child, with one thread of
    PyTorch; to set more there would hang it. One on a GPU has to be made in the child, by CUDA's rules.

    Args:
        model: the network; a copy of it is used.
        classes: names, without background.
        preprocessing: what the weights expect of images.
        device: where it runs.
        dtype: of its activations.
        limits: thresholds of the detections.
        tiles: that photos are cut into where a side is longer than one; None: they are seen as a whole alone.
        compile: run the network through torch.compile: a little faster after ten to twenty seconds at the first batch, and
            again for each new size of batch.

    Raises:
        ConfigError: `compile` on a processor without a C++ compiler.
    """

    def __init__(
        self,
        model: SSD300,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        device: torch.device,
        dtype: torch.dtype,
        limits: Thresholds,
        tiles: Tiles | None = None,
        compile: bool = False,
    ) -> None:
        compute_in_forks()
        self.model = for_inference(model, dtype).to(device)
        self.network = Compiled(self.model, device) if compile else self.model
        self.classes = tuple(classes)
        self.preprocessing = preprocessing
        self.device = device
        self.dtype = dtype
        self.limits = limits
        self.tiles = tiles

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path | TrainState,
        device: str | int | torch.device = "auto",
        precision: str = "auto",
        score_thresh: float = 0.5,
        nms_thresh: float = 0.45,
        top_k: int = 200,
        tiles: Literal["trained", "none"] | int | Tiles = "trained",
        compile: bool = False,
    ) -> Self:
        """A predictor with the weights, classes and image preprocessing of a checkpoint.

        Args:
            checkpoint: checkpoints/best.pt of a run, what scripts/convert_weights.py wrote, or one that is read already.
            device: auto | cpu | mps | cuda | cuda:N, or N alone.
            precision: auto | float32 | bfloat16 | float16.
            score_thresh: least score of a detection.
            nms_thresh: of two boxes of one class that overlap by more, the lower one goes.
            top_k: most detections in a photo.
            tiles: that photos are cut into where a side is longer than one: those of training, none, or their size in pixels.
            compile: run the network through torch.compile, as above.

        Raises:
            CheckpointError: the file is missing, damaged, or no checkpoint of this application.
            ConfigError: this machine does not have the device, the precision, or a compiler.
            ValueError: a threshold, `top_k` or `tiles` is out of range.
        """
        state = checkpoint if isinstance(checkpoint, TrainState) else load_checkpoint(Path(checkpoint))
        where = choose_device(f"cuda:{device}" if isinstance(device, Integral) else str(device))
        dtype = choose_precision(precision, where)
        limits = Thresholds(score_thresh, nms_thresh, top_k)
        chosen = choose_tiles(tiles, state)
        return cls(
            network_of(state), state.classes, Preprocessing(**state.preprocessing), where, dtype, limits, chosen, compile
        )

    def __call__(self, images: Photo | Iterable[Photo], bgr: bool = False, batch_size: int = 16) -> list[Detections]:
        """Detections in photos of any sizes.

        Args:
            images: one photo or several, each one of: the path of a file; an array uint8 `[H, W, 3]`, `[H, W, 4]` with
                alpha, which is dropped, or grey `[H, W]` or `[H, W, 1]`; a PIL image; a tensor `[3, H, W]`, uint8 or floats
                in 0..1, RGB. Files and PIL images are turned upright as their EXIF says, and boxes are those of the upright
                photo.
            bgr: arrays have their channels in OpenCV's order; otherwise RGB.
            batch_size: photos and tiles that go through the network at once.

        Returns:
            An entry a photo, in their order; also for a single photo.

        Raises:
            ImageError: one of them is no photo.
            ValueError: the batch size is no whole number from 1 on.
        """
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise ValueError(f"batch_size: expected a whole number from 1 on, got {batch_size!r}")
        is_array = isinstance(images, np.ndarray | Tensor)
        alone = (
            images.ndim < 4 if is_array else isinstance(images, str | Path | Image.Image) or not isinstance(images, Iterable)
        )
        photos: Iterable[Photo] = [images] if alone else images  # pyright: ignore[reportAssignmentType]
        found: list[Detections] = []
        batch: list[np.ndarray] = []
        for number, photo in enumerate(photos):
            batch.append(to_pixels(photo, number, bgr))
            if self.fills(batch, batch_size):
                found += self.detect(batch, batch_size)
                batch = []
        return found + self.detect(batch, batch_size)

    def fills(self, pixels: Sequence[np.ndarray], batch_size: int) -> bool:
        """Whether photos, with their tiles, are as many as go through the network at once, or as large as a photo may be."""
        is_large = sum(image.shape[0] * image.shape[1] for image in pixels) >= MAX_PIXELS
        return is_large or sum(len(self._windows(image)) for image in pixels) >= batch_size

    def detect(self, pixels: Sequence[np.ndarray], batch_size: int = 16) -> list[Detections]:
        """Detections in photos, `[H, W, 3]` uint8 RGB each, `batch_size` of them or of their tiles at a time."""
        windows = [self._windows(image) for image in pixels]
        parts = [(image, window) for image, own in zip(pixels, windows, strict=True) for window in own.tolist()]
        found: list[dict[str, Tensor]] = []
        for start in range(0, len(parts), batch_size):
            batch = parts[start : start + batch_size]
            images = np.stack([resize(image[y1:y2, x1:x2], self.preprocessing.size) for image, (x1, y1, x2, y2) in batch])
            found += predict(self.network, torch.from_numpy(images), self.preprocessing, self.device, self.dtype, self.limits)
        ends = np.cumsum([len(own) for own in windows])
        return [self._merged(found[end - len(own) : end], own) for own, end in zip(windows, ends.tolist(), strict=True)]

    def _windows(self, image: np.ndarray) -> np.ndarray:
        """What the network is shown of a photo: the whole, and tiles, `[m, 4]` edges in its pixels."""
        size = np.array([[image.shape[1], image.shape[0]]])
        whole = np.concatenate([np.zeros_like(size), size], axis=1)
        return np.concatenate([whole, tile_windows(size, self.tiles)[1]]) if self.tiles else whole

    def _merged(self, found: Sequence[dict[str, Tensor]], windows: np.ndarray) -> Detections:
        merged = merge(found, windows, windows[0, 2:], self.limits.nms_thresh, self.limits.top_k)
        return Detections(**merged, names=[self.classes[label] for label in merged["labels"]])


def choose_tiles(tiles: Literal["trained", "none"] | int | Tiles, state: TrainState) -> Tiles | None:
    """The tiles that a word or a size means for a checkpoint, as of `Predictor.from_checkpoint`.

    Raises:
        ValueError: it means none.
    """
    if isinstance(tiles, Tiles):
        if not (tiles.size >= LEAST_TILE and 0 <= tiles.overlap <= MOST_OVERLAP):
            raise ValueError(f"tiles: expected {LEAST_TILE} pixels or more, and an overlap of 0 to {MOST_OVERLAP}, got {tiles}")
        return tiles
    if tiles == "none":
        return None
    theirs = state.config.get("data", {}).get("tiles")  # older checkpoints, and converted weights, have no such entry
    trained = Tiles(theirs["size"], theirs["overlap"]) if theirs else None
    if tiles == "trained":
        return trained
    if not isinstance(tiles, Integral) or tiles < LEAST_TILE:
        raise ValueError(f"tiles: expected 'trained', 'none', a number of pixels or Tiles, got {tiles!r}; least: {LEAST_TILE}")
    return Tiles(int(tiles), trained.overlap if trained else TilesConfig().overlap)


def for_inference(model: SSD300, dtype: torch.dtype) -> SSD300:
    """A copy of a network in evaluation mode with less to do, and the same outputs to rounding.

    Batch normalisation is folded into the weights of its convolution; convolutions have their weights in the precision of the
    activations, which autocast would convert anew for every batch.

    Args:
        model: left as it is.
        dtype: of the activations.
    """
    network = copy.deepcopy(model).eval()
    for block in list(network.modules()):
        if isinstance(block, ConvBlock) and hasattr(block, "norm"):
            block.conv = fuse_conv_bn_eval(block.conv, block.norm)
            del block.norm
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d):
            conv.to(dtype)
    return network.to(memory_format=inference_format(network.dbox_list.device))  # pyright: ignore[reportCallIssue]


def to_pixels(photo: Photo, number: int = 0, bgr: bool = False) -> np.ndarray:
    """A photo of any kind that `Predictor` takes as `[H, W, 3]` uint8 RGB.

    Raises:
        ImageError: it is no photo; `number` names what has no path.
    """
    if isinstance(photo, str | Path):
        return read_photo(photo)
    if isinstance(photo, Image.Image):
        return _pillow_to_pixels(photo, number)
    where = f"image {number}"
    if isinstance(photo, Tensor):
        if photo.ndim != 3 or photo.shape[0] != 3:
            raise ImageError(f"{where}: expected a tensor [3, H, W], got {list(photo.shape)}")
        if photo.is_floating_point():
            if photo.numel() and not (photo.min() >= 0 and photo.max() <= 1):
                raise ImageError(f"{where}: expected floats in 0..1, got {photo.min():g} to {photo.max():g}")
            photo = (photo.float() * 255).round().to(torch.uint8)
        photo, bgr = photo.permute(1, 2, 0).cpu().numpy(), False
    if not isinstance(photo, np.ndarray):
        raise ImageError(f"{where}: expected a path, an array, a PIL image or a tensor, got {type(photo).__name__}")
    if photo.dtype != np.uint8 or photo.ndim not in (2, 3) or photo.shape[2:] not in ((), (1,), (3,), (4,)) or not photo.size:
        raise ImageError(f"{where}: expected an array [H, W, 3] or [H, W] of uint8, got {list(photo.shape)} of {photo.dtype}")
    if photo.ndim == 2 or photo.shape[2] == 1:
        return np.repeat(photo.reshape(*photo.shape[:2], 1), 3, axis=2)
    photo = np.ascontiguousarray(photo[..., :3])
    return cv2.cvtColor(photo, cv2.COLOR_BGR2RGB) if bgr else photo


def _pillow_to_pixels(photo: Image.Image, number: int) -> np.ndarray:
    """A PIL image, turned upright as its EXIF says, as `[H, W, 3]` uint8 RGB."""
    require_decodable(photo, f"image {number}")
    if 0 in photo.size:
        raise ImageError(f"image {number}: has no pixels")
    try:
        return to_rgb(ImageOps.exif_transpose(photo))
    except (OSError, SyntaxError) as error:  # its file is read only now
        raise ImageError(f"image {number}: cannot be decoded ({first_line(error)})") from None
