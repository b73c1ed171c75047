"""The configuration schema: every entry of a YAML file, with its type, bounds, default and description.

`ssd.config.file` checks files against it; scripts/config_reference.py generates docs/configuration.md from it.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ssd.architecture import ARCHITECTURES, Architecture

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class ConfigError(ValueError):
    """The configuration cannot be used; the message has one line for each fault."""


def _as_tuple(value: object) -> object:
    """Convert a YAML list to a tuple, which keeps the configuration frozen."""
    return tuple(value) if isinstance(value, list) else value


def _expanded(path: str) -> str:
    """Expand `~`, `$NAME` and `${NAME}` in a path, as a shell does."""
    for name in re.findall(r"\$([A-Za-z_]\w*|\{[^}]*\})", path):
        if name.strip("{}") not in os.environ:
            raise ValueError(f"${name} in {path!r} is not set; set this environment variable, or write its value")
    at_home = os.path.expanduser(path)
    if at_home.startswith("~"):
        raise ValueError(f"{path!r} names the home folder of an unknown user; write ./{path} for a folder of that name")
    return os.path.expandvars(at_home)


DEFAULT_BATCH_SIZE = 32  # as in the paper; the learning rates of the recipes are tuned for it

LEAST_TILE, MOST_TILE = 32, 65_536  # pixels of a photo
MOST_OVERLAP = 0.8  # of tiles; more would give too many tiles for any memory

DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")  # examples
DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:\d+)?)$"

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]
Path = Annotated[Name, Field(json_schema_extra={"format": "path"}), AfterValidator(_expanded)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def _one_of(names: Collection[str]) -> Any:
    """Restrict text to names from the table of architectures, as a Literal of them would."""
    return Field(pattern=f"^({'|'.join(map(re.escape, names))})$", json_schema_extra={"enum": [*names]})


def _documented(names: Iterable[str]) -> Any:
    """List values in the documentation; which of them the chosen architecture has is checked later."""
    return Field(json_schema_extra={"enum": [*dict.fromkeys(names)]})


class SourceConfig(_Section):
    """One folder of photos with annotations."""

    path: Path
    """folder, absolute or relative to `data.root`; for COCO, the JSON file may be named instead"""
    split: Name = "all"
    """name of ImageSets/Main/SPLIT.txt, or of the split in COCO and YOLO folders; all: every annotated photo"""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """for a folder without splits: the share of photos in its split val; the others are its split train"""


def _as_word(value: object) -> object:
    """Convert the true or false that `model.batch_norm` has in old files and checkpoints to the equivalent word."""
    return ("backbone" if value else "none") if isinstance(value, bool) else value


class TilesConfig(_Section):
    """Photos with a side longer than one tile are cut into tiles, in addition to the whole photo, so that small objects appear
    larger to the network. Detections on all tiles and the whole photo are merged; mAP is computed on whole photos."""

    size: Annotated[int, Field(ge=LEAST_TILE, le=MOST_TILE)] = 600
    """side of a tile in pixels of the photo; halving it doubles object size in the network input"""
    overlap: Annotated[float, Field(ge=0, le=MOST_OVERLAP)] = 0.2
    """minimum overlap of neighbouring tiles as a share of their side; an object larger than the overlap may be cut in every
    tile"""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """minimum share of an object's area inside a tile for training on it there, clipped to the tile; below that, its pixels are
    background"""
    background: Fraction = 0.1
    """share of the tiles without objects to train on, the same ones each time"""


Sources = Annotated[tuple[SourceConfig, ...], Field(min_length=1), BeforeValidator(_as_tuple)]


class DataConfig(_Section):
    """Folders to train and evaluate on."""

    classes: Literal["voc"] | Annotated[tuple[Name, ...], Field(min_length=1), BeforeValidator(_as_tuple)] = "voc"
    """names without background, which is added automatically; voc: the 20 VOC classes"""
    root: Path = "datasets"
    """parent folder of the folders below"""
    format: Literal["voc", "coco", "yolo"] | None = None
    """format of the folders; null: detect it for each folder"""
    train: Sources
    """folders to train on, concatenated"""
    val: Sources
    """folders to evaluate on, concatenated"""
    other_classes: Literal["refuse", "ignore"] = "refuse"
    """how to treat objects whose class is not listed"""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """share of the training photos to use, the same ones each time"""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """balanced: photos with rare classes appear more often in training, by the square root of how rare they are"""
    group_by: str = "auto"
    """photos that val_fraction and folds keep together. auto: copies, photos that look alike, bursts, frames of a film,
    and folders; folder: those of one folder; none: each photo by itself; or a regular expression, whose first group is equal in
    the paths of such photos"""
    fold: str | None = None
    """N/K, such as 2/5: divide the photos of data.train into K parts, train on all but the Nth and evaluate on that one instead
    of on data.val; a folder with val_fraction is used whole. `--folds K` runs all K. null: no folds"""
    keep_difficult: bool = True
    """train on objects marked difficult; evaluation always ignores them"""
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """loader processes; auto: one on a CPU, this process's share of the cores on a GPU. A number also limits the processes that
    check all photos before the first step"""
    cache: Literal["none", "ram"] = "none"
    """ram: keep decoded training photos and tiles in memory if they fit; photos whose shorter side is 2830 pixels or more are
    stored at reduced size"""
    damaged: Literal["refuse", "skip"] = "refuse"
    """how to treat photos that cannot be decoded and annotation files that cannot be read; skip: exclude them from training and
    evaluation"""
    tiles: TilesConfig | None = None
    """cut large photos into tiles in training, evaluation and use; null: no tiles"""

    @field_validator("group_by")
    @classmethod
    def _expression(cls, rule: str) -> str:
        try:
            re.compile(rule)
        except re.error as error:
            raise ValueError(f"expected auto, none, folder or a regular expression, got {rule!r} ({error})") from None
        return rule

    @field_validator("fold")
    @classmethod
    def _one_of_several(cls, fold: str | None) -> str | None:
        if fold is not None:
            numbers = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", fold)
            if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]) or int(numbers[2]) < 2:
                raise ValueError(f"expected N/K with N from 1 to K and K at least 2, such as 2/5, or null, got {fold!r}")
        return fold

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(classes, tuple):
            classes = tuple(unicodedata.normalize("NFC", name) for name in classes)  # like the names in annotations
            for name, count in Counter(classes).items():
                if count > 1:
                    raise ValueError(f"class {name!r} is listed {count} times")
                if name == "background":
                    raise ValueError("'background' is added automatically; list object classes only")
        return classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return VOC_CLASSES if self.classes == "voc" else tuple(self.classes)


Size = Annotated[float, Field(ge=1, le=2 * max(row.input_size for row in ARCHITECTURES.values()))]
Ratio = Annotated[float, Field(gt=1, le=20)]
Ratios = Annotated[tuple[Ratio, ...], Field(min_length=1), BeforeValidator(_as_tuple)]


class DBoxesConfig(_Section):
    """Custom DBoxes, as many as the architecture has; `scripts/fit_dboxes.py` fits them to the training photos."""

    sizes: Annotated[tuple[Size, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
    """rising: the smallest of each feature map and the largest of the last, in pixels of the network input; seven for ssd300"""
    ratios: Annotated[tuple[Ratios, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
    """aspect ratios of each feature map; for ssd300 six lists of one, two, two, two, one and one; each adds a wide and a tall
    box"""

    def check(self, architecture: Architecture) -> None:
        """
        Raises:
            ValueError: the sizes do not rise or are too large, or the heads of the architecture have outputs for other counts.
        """
        num_ratios = architecture.num_ratios
        if max(self.sizes) > 2 * architecture.input_size:
            raise ValueError(f"expected sizes up to {2 * architecture.input_size}, got {list(self.sizes)}")
        if len(self.sizes) != len(num_ratios) + 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"expected {len(num_ratios) + 1} sizes, each larger than the one before, got {list(self.sizes)}")
        counts = tuple(len(row) for row in self.ratios)
        if counts != num_ratios:
            expected, given = (", ".join(map(str, numbers)) for numbers in (num_ratios, counts))
            raise ValueError(f"expected {len(num_ratios)} lists of {expected} ratios, got lists of {given}")


# Widths of the shipped networks, `ssd/weights/NAME.pt`.
SHIPPED_WIDTHS = {"half": 0.5, "slim": 0.25}
SHIPPED_ARCHITECTURE = ARCHITECTURES["ssd300"]


DBOX_NAMES = tuple(dict.fromkeys(name for row in ARCHITECTURES.values() for name in row.dbox_sizes))


class ModelConfig(_Section):
    """The network and its initial weights."""

    architecture: Annotated[str, _one_of(ARCHITECTURES)] = "ssd300"
    """ssd300 and ssd512: SSD with VGG16 and an input of 300 or 512 pixels a side; ssd300_resnet50: SSD300
    with ResNet-50 up to conv4_x, as in NVIDIA's implementation; ssdlite320_mobilenet_v3: SSDLite with MobileNetV3-Large, a
    sixtieth of the arithmetic; ssdlite320_mobilenet_v3_full: with all channels in the last layers, which weights from ImageNet
    have"""
    pretrained: Path = "imagenet"
    """coco: torchvision's SSD300 or SSDLite, trained on COCO; imagenet: torchvision's VGG16, ResNet-50 or MobileNetV3;
    half, slim: the shipped SSD300 of width 0.5 or 0.25; none; or a file with such weights or with a reduced-fc VGG16"""
    init_from: Path | None = None
    """checkpoint to start from instead of `pretrained`: also of other classes or another project; loads the weights that fit"""
    freeze: Annotated[str, _documented(name for row in ARCHITECTURES.values() for name in row.freezable)] | None = None
    """last frozen layer of the backbone, with all layers before it: faster, and safer with few photos; null: none"""
    dboxes: Annotated[str, _one_of(DBOX_NAMES)] | DBoxesConfig = "voc"
    """smallest DBoxes: voc: 30 of 300 pixels, 36 of 512, 64 of 320; coco: 21, 20 or 64, for small objects; or custom, see
    below"""
    batch_norm: Annotated[Literal["none", "backbone", "all"], BeforeValidator(_as_word)] = "none"
    """batch normalisation, needed for training from scratch; backbone: in backbone and extra layers; all: in the heads too, as
    SSDLite always has it; true and false mean backbone and none"""
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    """factor on the number of channels of every layer"""
    conv4_3_norm: Literal["l2", "batch", "none"] = "l2"
    """scaling of the first feature map, VGG16's conv4_3; batch: only for weights trained with it; none: no scaling, for
    training from scratch with batch normalisation, and in SSDLite"""

    @property
    def row(self) -> Architecture:
        """The architecture's row in the table."""
        return ARCHITECTURES[self.architecture]

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_row(cls, values: object) -> object:
        if isinstance(values, dict) and (row := ARCHITECTURES.get(str(values.get("architecture")))):
            return {"batch_norm": row.batch_norms[0], "conv4_3_norm": row.first_map_norm, **values}
        return values

    @field_validator("freeze", "dboxes", "batch_norm")
    @classmethod
    def _of_the_row(cls, value: str | DBoxesConfig | None, info: ValidationInfo) -> str | DBoxesConfig | None:
        if (row := ARCHITECTURES.get(info.data.get("architecture", ""))) is None:  # reported already
            return value
        if isinstance(value, DBoxesConfig):
            value.check(row)
            return value
        possible = {"freeze": (*row.freezable, None), "dboxes": row.dbox_sizes, "batch_norm": row.batch_norms}
        names = possible[info.field_name or ""]
        if value not in names:
            *first, last = ["null" if name is None else f"'{name}'" for name in names]
            words = f"{', '.join(first)} or {last}" if first else last
            raise ValueError(f"expected {words} for {info.data['architecture']}, got {value!r}")
        return value

    @field_validator("width")
    @classmethod
    def _scales(cls, value: float, info: ValidationInfo) -> float:
        row = ARCHITECTURES.get(info.data.get("architecture", ""))
        if value != 1 and row is not None and not row.scalable:
            raise ValueError(f"expected 1.0 for {info.data['architecture']}, got {value}")
        return value

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.init_from is not None:
            return self
        row = self.row
        if self.pretrained in SHIPPED_WIDTHS:
            width = SHIPPED_WIDTHS[self.pretrained]
            if row.backbone != SHIPPED_ARCHITECTURE.backbone:
                raise ValueError(f"pretrained: {self.pretrained} is an SSD300; set architecture: ssd300, or other weights")
            if (self.width, self.batch_norm, self.conv4_3_norm) != (width, "backbone", "l2"):
                raise ValueError(
                    f"pretrained: {self.pretrained} needs width: {width}, batch_norm: backbone and conv4_3_norm: l2; set these"
                )
            return self
        if self.pretrained == "coco" and row.coco is None:
            raise ValueError(f"pretrained: there are no coco weights of {self.architecture}; set pretrained: imagenet or none")
        if self.pretrained in ("coco", "imagenet") and self.width != 1.0:
            raise ValueError(
                f"pretrained: {self.pretrained} has no weights of width {self.width}; set width: 1.0, or pretrained: none"
            )
        if self.pretrained == "coco" and self.batch_norm != row.batch_norms[0]:
            raise ValueError("pretrained: coco has no batch normalisation; set batch_norm: none, or pretrained: imagenet")
        if self.pretrained == "coco" and self.conv4_3_norm != row.first_map_norm:
            raise ValueError(
                f"pretrained: coco was trained with conv4_3_norm: {row.first_map_norm}; set that, or pretrained: imagenet"
            )
        if self.freeze is not None and self.pretrained == "none":
            raise ValueError(f"freeze: {self.freeze} would freeze random weights; set pretrained or init_from")
        return self


class LossConfig(_Section):
    """Matching and hard negative mining of MultiBoxLoss."""

    jaccard_thresh: Annotated[float, Field(gt=0, le=1)] = 0.5
    """minimum overlap with an object that makes a DBox positive"""
    neg_pos: Annotated[float, Field(ge=0)] = 3
    """mined negatives per positive"""
    min_neg: Annotated[int, Field(ge=0)] = 0
    """minimum number of mined negatives per photo, also without objects; 0 in the paper"""
    class_weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    """factors on the classification loss of positives by class name; 1 for all others, as in the paper"""


class AugmentConfig(_Section):
    """Random changes to training photos."""

    photometric: bool = True
    """change brightness, contrast, saturation and hue"""
    expand: bool = True
    """place the photo on a canvas up to 4 times as wide and high: makes objects smaller"""
    crop: bool = True
    """cut out a patch that overlaps some object enough: makes objects larger"""
    mirror: bool = True
    """flip left and right"""
    flip: bool = False
    """flip upside down: for photos in which no side is up, such as aerial and microscope photos"""


class TrainConfig(_Section):
    """Optimisation, and the length of a run."""

    batch_size: Literal["auto"] | Positive = DEFAULT_BATCH_SIZE
    """photos per step, over all processes and accumulation steps; auto: 32, with as few accumulation steps as memory allows"""
    accumulate: Positive = 1
    """accumulation steps per batch, to save memory; batch normalisation uses the statistics of each step"""
    iterations: Positive | None = None
    """length of the run; 120,000 if `epochs` is not set either"""
    epochs: Positive | None = None
    """length of the run, instead of `iterations`"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd, as in the paper, or adamw"""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """learning rate for the whole batch, after warm-up; never rescaled"""
    backbone_lr: Annotated[float, Field(gt=0, le=1)] = 1.0
    """factor on the learning rate of the backbone, whose pretrained weights need smaller steps than new heads"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """momentum of SGD; beta1 of AdamW"""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """weight decay; not applied to biases and norms"""
    schedule: Literal["milestones", "cosine"] = "milestones"
    """learning rate schedule: ×0.1 at each milestone, or cosine to 0"""
    milestones: Annotated[tuple[Positive, ...], BeforeValidator(_as_tuple)] | None = None
    """iterations, rising; null: two thirds and five sixths of the run"""
    warmup: Annotated[int, Field(ge=0)] = 500
    """iterations of linear warm-up to `lr`"""
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """maximum gradient norm; null: no limit"""
    teacher: Path | None = None
    """checkpoint of a better network with the same classes and DBoxes, or half or slim: its predictions are targets too
    (distillation); null: no teacher"""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """decay of an exponential moving average of the weights, which evaluation and detection then use; null: none"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """precision of activations; auto: bfloat16 on devices where it is fast, otherwise float32; SSDLite on a CPU: always
    float32"""
    compile: bool = False
    """compile network and loss with torch.compile"""
    threads: Literal["all", "free"] | Positive = "all"
    """threads on a CPU: a number; all: one for each core, or OMP_NUM_THREADS; free: as many as other programs leave cores free,
    measured every 2 seconds. That is many times as fast beside them, but the weights' last bits then differ between runs"""
    max_hours: Annotated[float, Field(gt=0)] | None = None
    """time limit of one start, after which the run saves a checkpoint and exits with code 0; null: no limit"""

    @model_validator(mode="before")
    @classmethod
    def _default_length(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("iterations") is None and values.get("epochs") is None:
            return {**values, "iterations": 120_000}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.iterations is not None and self.epochs is not None:
            raise ValueError(f"iterations ({self.iterations}) and epochs ({self.epochs}) are both set; one must be null")
        if self.batch_size == "auto":
            if self.accumulate != 1:
                raise ValueError(f"batch_size: auto chooses accumulate too; remove accumulate: {self.accumulate}")
        elif self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if self.milestones is not None and list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {list(self.milestones)} must be ascending")
        return self


class CheckpointConfig(_Section):
    """Numbered checkpoints, in addition to last.pt and best.pt."""

    every: Positive = 1000
    """iterations between checkpoints"""
    keep: Annotated[int, Field(ge=0)] = 3
    """number of checkpoints to keep, the newest"""


class PostprocessConfig(_Section):
    """Thresholds of the detections."""

    score_thresh: Fraction = 0.01
    """minimum score of a detection"""
    nms_thresh: Fraction = 0.45
    """if two boxes of one class overlap by more, the one with the lower score is removed"""
    top_k: Positive = 200
    """maximum number of detections per photo"""


class EvalConfig(PostprocessConfig):
    """Evaluation, during training and at its end."""

    every: Positive = 10_000
    """iterations between evaluations; one always follows the last iteration"""
    patience: Positive | None = None
    """stop after this many evaluations without improvement, counted from the first mAP above 0; null: never"""
    metric: Literal["voc07", "voc10", "coco"] = "voc07"
    """voc07: 11-point AP; voc10: area under the curve; coco: mean over overlaps from 0.5 to 0.95"""
    batch_size: Positive = 16
    """photos and tiles per forward pass, in each process"""


class Config(_Section):
    """A whole run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """seed of all random choices: weights, order, augmentation, splits"""
    output_dir: Path = "runs/ssd300"
    """folder for everything that the run writes"""
    device: Annotated[str, Field(pattern=DEVICE_PATTERN, examples=list(DEVICES))] = "auto"
    """auto: the GPU if there is one, otherwise the CPU; mps: an Apple GPU"""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    log_every: Positive = 10
    """iterations between train records"""
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _known_classes(self) -> Self:
        unknown = [name for name in self.loss.class_weights if name not in self.data.class_names]
        if unknown:
            known = ", ".join(self.data.class_names)
            raise ValueError(f"loss.class_weights: expected names of data.classes ({known}), got {unknown[0]!r}")
        return self
