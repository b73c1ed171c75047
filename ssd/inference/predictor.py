"""Detection of objects in photos with a trained network."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, Self

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ssd.config.schema import LEAST_TILE, MOST_TILE, PostprocessConfig, TilesConfig
from ssd.inference.compiled import Compiled
from ssd.inference.merge import merge
from ssd.inference.predict import Detections, PixelModel, predict
from ssd.inference.tiles import tile_edges
from ssd.model import SSD
from ssd.preprocessing import Preprocessing, reduction, to_input_size
from ssd.system.device import choose_device, choose_precision, compute_in_forks, inference_format
from ssd.system.errors import first_line
from ssd.system.images import MAX_PIXELS, DecodedPhoto, ImageError, read_photo, read_reduced, require_decodable, to_rgb
from ssd.weights.checkpoint import CheckpointError, TrainState, load_checkpoint
from ssd.weights.pretrained import network_of
from ssd.weights.sources import SHIPPED, SHIPPED_SCORE, checkpoint_file

Photo = str | Path | np.ndarray | Image.Image | Tensor


class Predictor:
    """A network with its preprocessing, thresholds, tiles and class names.

    On a CPU a batch of 16 takes a quarter less time after `ssd.system.device.keep_freed_memory()`, which `scripts/detect.py`
    calls. The predictor does not call it, since it affects the whole process.

    A predictor on a CPU still works after a fork (gunicorn's preload, multiprocessing.Pool), with one thread of PyTorch;
    setting more threads there would hang. CUDA requires a predictor on a GPU to be created in the child process.

    Args:
        model: the network; the predictor uses a copy.
        classes: names, without background.
        preprocessing: of the network's input.
        device: to run on.
        dtype: of the activations.
        options: thresholds of the detections.
        tiles: size and overlap of the tiles; photos with a longer side are cut into tiles. None: no tiles.
        class_scores: minimum score of the detections of each class, beside that in `options`.
        compile: run the network through torch.compile: a little faster after ten to twenty seconds for the first batch, and for
            each new batch size.

    Raises:
        ConfigError: `compile` on a CPU without a C++ compiler.
    """

    def __init__(
        self,
        model: SSD,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        device: torch.device,
        dtype: torch.dtype,
        options: PostprocessConfig,
        tiles: TilesConfig | None = None,
        compile: bool = False,
        class_scores: Mapping[str, float] | None = None,
    ) -> None:
        compute_in_forks()
        self.model = for_inference(model, dtype).to(device)
        self.pixel_model = PixelModel(Compiled(self.model, device) if compile else self.model, preprocessing, device, dtype)
        self.classes = tuple(classes)
        self.preprocessing = preprocessing
        self.device = device
        self.dtype = dtype
        self.options = options
        self.tiles = tiles
        self.class_scores = np.array([(class_scores or {}).get(name, 0.0) for name in classes])

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path | TrainState,
        device: str | int | torch.device = "auto",
        precision: str = "auto",
        score_thresh: float | Literal["auto"] | None = None,
        nms_thresh: float = 0.45,
        top_k: int = 200,
        tiles: Literal["trained", "none"] | int | TilesConfig = "trained",
        compile: bool = False,
    ) -> Self:
        """Create a predictor with the weights, classes and preprocessing of a checkpoint.

        Args:
            checkpoint: a run's checkpoints/best.pt, a file from scripts/convert_weights.py, the name of shipped weights (half,
                slim), or a loaded checkpoint.
            device: auto | cpu | mps | cuda | cuda:N, or N alone.
            precision: auto | float32 | bfloat16 | float16.
            score_thresh: minimum score of a detection; `auto`: for each class the one with the best F1 on the validation
                photos; None: `auto` for shipped weights that have it (0.2 for others), 0.5 for a checkpoint.
            nms_thresh: of two boxes of a class with a larger overlap, the lower-scoring one is dropped.
            top_k: maximum number of detections in a photo.
            tiles: those of training, none, or their side in pixels.
            compile: run the network through torch.compile, as above.

        Raises:
            CheckpointError: the file is missing, damaged, or not a checkpoint of this application, or has no thresholds for
                `auto`.
            ConfigError: this machine lacks the device, the precision, or a compiler.
            ValueError: a threshold, `top_k` or `tiles` is out of range.
        """
        state = checkpoint if isinstance(checkpoint, TrainState) else load_checkpoint(checkpoint_file(checkpoint))
        where = choose_device(f"cuda:{device}" if isinstance(device, Integral) else str(device))
        dtype = choose_precision(precision, where)
        class_scores = {}
        if score_thresh is None:
            is_shipped = not isinstance(checkpoint, TrainState) and checkpoint_file(checkpoint) in SHIPPED.values()
            score_thresh = ("auto" if state.class_scores else SHIPPED_SCORE) if is_shipped else 0.5
        if score_thresh == "auto":
            class_scores = state.class_scores
            if not class_scores:
                name = "the checkpoint" if isinstance(checkpoint, TrainState) else f"{checkpoint}:"
                raise CheckpointError(f"{name} has no thresholds for --score auto; give a number, such as 0.5")
            score_thresh = min(class_scores.values())
        options = check_thresholds(score_thresh, nms_thresh, top_k)
        preprocessing, chosen = Preprocessing.from_plain(state.preprocessing), choose_tiles(tiles, state)
        return cls(network_of(state), state.classes, preprocessing, where, dtype, options, chosen, compile, class_scores)

    def __call__(self, images: Photo | Iterable[Photo], bgr: bool = False, batch_size: int = 16) -> list[Detections]:
        """Return the detections in photos of any sizes.

        Args:
            images: one photo or several. A photo is the path of a file; a uint8 array `[H, W, 3]`, `[H, W, 4]` (alpha is
                ignored), or grey `[H, W]` or `[H, W, 1]`; a PIL image; or an RGB tensor `[3, H, W]`, uint8 or floats in 0..1.
                Files and PIL images are rotated upright by their EXIF data, and boxes refer to the upright photo.
            bgr: whether the channels of arrays are in OpenCV's order; otherwise RGB.
            batch_size: photos and tiles in one batch of the network.

        Returns:
            One entry for each photo, in their order; a list for a single photo too.

        Raises:
            ImageError: one of them is not a photo.
            ValueError: the batch size is not an integer ≥ 1.
        """
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise ValueError(f"batch_size: expected an integer ≥ 1, got {batch_size!r}")
        is_array = isinstance(images, np.ndarray | Tensor)
        is_single = (
            images.ndim < 4 if is_array else isinstance(images, str | Path | Image.Image) or not isinstance(images, Iterable)
        )
        photos: Iterable[Photo] = [images] if is_single else images  # pyright: ignore[reportAssignmentType]
        found: list[Detections] = []
        batch: list[DecodedPhoto | np.ndarray] = []
        for number, photo in enumerate(photos):
            is_file = isinstance(photo, str | Path)
            batch.append(read_reduced(photo, self.reduction) if is_file else to_pixels(photo, number, bgr))
            if self.fills(batch, batch_size):
                found += self.detect(batch, batch_size)
                batch = []
        return found + self.detect(batch, batch_size)

    def fills(self, photos: Sequence[DecodedPhoto | np.ndarray], batch_size: int) -> bool:
        """Return whether photos with their tiles fill a batch, or have as many pixels as the largest photo allowed."""
        decoded = as_decoded(photos)
        is_large = sum(photo.pixels.shape[0] * photo.pixels.shape[1] for photo in decoded) >= MAX_PIXELS
        return is_large or sum(len(self.crops(photo.width, photo.height)) for photo in decoded) >= batch_size

    def reduction(self, width: int, height: int) -> int:
        """Return by how much a photo may be reduced while it is decoded, for its smallest crop to keep the pixels it needs."""
        edges = self.crops(width, height)
        return reduction(int((edges[:, 2:] - edges[:, :2]).min()), self.model.input_size)

    def detect(self, photos: Sequence[DecodedPhoto | np.ndarray], batch_size: int = 16) -> list[Detections]:
        """Return the detections in photos, with `batch_size` photos or tiles in a batch.

        Args:
            photos: whole ones `[H, W, 3]` uint8 RGB, or decoded at the scale of `reduction`; boxes refer to the whole photos.
            batch_size: photos and tiles in one batch of the network.
        """
        decoded = as_decoded(photos)
        crops = [self.crops(photo.width, photo.height) for photo in decoded]
        inputs = [(photo, crop) for photo, edges in zip(decoded, crops, strict=True) for crop in edges.tolist()]
        found: list[dict[str, Tensor]] = []
        for start in range(0, len(inputs), batch_size):
            batch = inputs[start : start + batch_size]
            size = self.model.input_size
            images = np.stack([to_input_size(photo.part(*crop), size) for photo, crop in batch])
            found += predict(self.pixel_model, torch.from_numpy(images), self.options)
        ends = np.cumsum([len(edges) for edges in crops]).tolist()
        return [self._merged(found[end - len(edges) : end], edges) for edges, end in zip(crops, ends, strict=True)]

    def crops(self, width: int, height: int) -> np.ndarray:
        """Return the crops of a photo that the network sees, the whole one first: `[m, 4]` edges in its pixels."""
        whole = np.array([[0, 0, width, height]])
        if not self.tiles:
            return whole
        return np.concatenate([whole, tile_edges(whole[:, 2:], self.tiles.size, self.tiles.overlap)[1]])

    def _merged(self, found: Sequence[dict[str, Tensor]], crops: np.ndarray) -> Detections:
        merged = merge(found, crops, crops[0, 2:], self.options.nms_thresh, self.options.top_k)
        kept = merged.scores >= self.class_scores[merged.labels]
        labels = merged.labels[kept]
        return Detections(merged.boxes[kept], labels, merged.scores[kept], [self.classes[label] for label in labels])


def check_thresholds(score_thresh: float, nms_thresh: float, top_k: int) -> PostprocessConfig:
    """Return the thresholds as a section of the configuration.

    Raises:
        ValueError: one of them is out of range.
    """
    for name, value in (("score_thresh", score_thresh), ("nms_thresh", nms_thresh)):
        if not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {value!r}")
    if not isinstance(top_k, Integral) or top_k < 1:
        raise ValueError(f"top_k: expected an integer ≥ 1, got {top_k!r}")
    return PostprocessConfig(score_thresh=float(score_thresh), nms_thresh=float(nms_thresh), top_k=int(top_k))


def choose_tiles(tiles: Literal["trained", "none"] | int | TilesConfig, state: TrainState) -> TilesConfig | None:
    """Return the tiles for a checkpoint that the argument of `Predictor.from_checkpoint` asks for.

    Raises:
        ValueError: the argument is none of the documented values.
    """
    if isinstance(tiles, TilesConfig):
        return tiles
    if tiles == "none":
        return None
    entry = state.config.get("data", {}).get("tiles")  # older checkpoints and converted weights lack it
    trained = TilesConfig(size=entry["size"], overlap=entry["overlap"]) if entry else None
    if tiles == "trained":
        return trained
    if not isinstance(tiles, Integral) or not LEAST_TILE <= tiles <= MOST_TILE:
        raise ValueError(
            f"tiles: expected 'trained', 'none', {LEAST_TILE} to {MOST_TILE} pixels or a TilesConfig, got {tiles!r}"
        )
    return TilesConfig(size=int(tiles), overlap=(trained or TilesConfig()).overlap)


def for_inference(model: SSD, dtype: torch.dtype) -> SSD:
    """Return a faster copy of a network in evaluation mode, with the same outputs up to rounding.

    Batch normalisation is folded into the convolutions. Their weights are stored in the precision of the activations, `dtype`;
    autocast would otherwise convert them for every batch.
    """
    network = copy.deepcopy(model).eval()
    for block in list(network.modules()):
        # In every backbone a norm follows its convolution in the list of their parent's layers.
        for (name, conv), (norm_name, norm) in pairwise([*block.named_children()]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(block, name, fuse_conv_bn_eval(conv, norm))
                setattr(block, norm_name, nn.Identity())
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d):
            conv.to(dtype)
    return network.to(memory_format=inference_format(network.dbox_list.device))  # pyright: ignore[reportCallIssue]


def as_decoded(photos: Sequence[DecodedPhoto | np.ndarray]) -> list[DecodedPhoto]:
    return [photo if isinstance(photo, DecodedPhoto) else DecodedPhoto.whole(photo) for photo in photos]


def to_pixels(photo: Photo, number: int = 0, bgr: bool = False) -> np.ndarray:
    """Convert any photo that `Predictor` accepts to `[H, W, 3]` uint8 RGB.

    Raises:
        ImageError: it is not a photo; the message calls photos without a path by their `number`.
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
    """Convert a PIL image to `[H, W, 3]` uint8 RGB, rotated upright by its EXIF data."""
    require_decodable(photo, f"image {number}")
    if 0 in photo.size:
        raise ImageError(f"image {number}: has no pixels")
    try:
        return to_rgb(ImageOps.exif_transpose(photo))
    except (OSError, SyntaxError) as error:  # PIL reads the file only now
        raise ImageError(f"image {number}: cannot be decoded ({first_line(error)})") from None
