"""The configuration's schema: every entry of a YAML file, declared once with its type, bounds, default and explanation.

`ssd.config.file` reads a file by it, and tells what is wrong in a person's words; docs/configuration.md is made from it.
"""

import os
import re
import unicodedata
from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class ConfigError(ValueError):
    """A configuration that cannot be used; the message has one line for each fault."""


def _as_tuple(value: object) -> object:
    """YAML has lists only; tuples keep the configuration frozen."""
    return tuple(value) if isinstance(value, list) else value


def _expanded(path: str) -> str:
    """A path whose `~`, `$NAME` and `${NAME}` mean what they mean in a shell."""
    for name in re.findall(r"\$([A-Za-z_]\w*|\{[^}]*\})", path):
        if name.strip("{}") not in os.environ:
            raise ValueError(f"${name} in {path!r} is not set in the environment; set it, or write what it stands for")
    at_home = os.path.expanduser(path)
    if at_home.startswith("~"):
        raise ValueError(f"{path!r} names the home folder of an unknown user; write ./{path} where the folder is called so")
    return os.path.expandvars(at_home)


# The paper's, and the one that the learning rates of the recipes are made for.
DEFAULT_BATCH_SIZE = 32

LEAST_TILE = 32  # pixels of a photo: a ninth of what the network sees of any
MOST_OVERLAP = 0.8  # of tiles: beyond it they are too many for any memory

DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")  # by example
DEVICE_PATTERN = r"^(auto|cpu|mps|cuda(:\d+)?)$"

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]
Path = Annotated[Name, Field(json_schema_extra={"format": "path"}), AfterValidator(_expanded)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class SourceConfig(_Section):
    """One folder of photos with their annotations."""

    path: Path
    """the folder, relative to `data.root`, or absolute; a COCO data set's JSON file may be named itself"""
    split: Name = "all"
    """ImageSets/Main/SPLIT.txt, or what COCO and YOLO call so; all: every annotated photo"""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """share that is set aside as split val of a folder without splits; the rest is its split train"""


def _as_word(value: object) -> object:
    """What `model.batch_norm` was in files and checkpoints of before it had words; each is what it meant."""
    return ("backbone" if value else "none") if isinstance(value, bool) else value


class TilesConfig(_Section):
    """Tiles that photos are cut into where a side is longer than one, beside the whole photo: small objects become larger for
    the network. Detections of all tiles and of the whole photo are merged; mAP is of whole photos."""

    size: Annotated[int, Field(ge=LEAST_TILE, le=65_536)] = 600
    """pixels of the photo a side; half of it shows objects twice as large to the network"""
    overlap: Annotated[float, Field(ge=0, le=MOST_OVERLAP)] = 0.2
    """least share of their side that neighbours have in common; what is larger may be seen in parts alone"""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """least share of an object's area that lies in a tile for the object to be trained on there, clipped to the tile; the
    pixels of one with less are background"""
    background: Fraction = 0.1
    """share of the tiles without objects that is trained on, the same ones each time"""


Sources = Annotated[tuple[SourceConfig, ...], Field(min_length=1), BeforeValidator(_as_tuple)]


class DataConfig(_Section):
    """What to train and to evaluate on."""

    classes: Literal["voc"] | Annotated[tuple[Name, ...], Field(min_length=1), BeforeValidator(_as_tuple)] = "voc"
    """names, without background, which is added by the code; voc: the 20 of VOC"""
    root: Path = "datasets"
    """where the folders below are looked for"""
    format: Literal["voc", "coco", "yolo"] | None = None
    """layout of the folders; null: found out, for each"""
    train: Sources
    """folders to train on, concatenated"""
    val: Sources
    """folders to evaluate on, concatenated"""
    other_classes: Literal["refuse", "ignore"] = "refuse"
    """objects of a class that is not listed"""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """share of the training photos that is used, the same ones each time"""
    keep_difficult: bool = True
    """train on objects marked difficult; evaluation always ignores them"""
    workers: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """loader processes; auto: one on a CPU, this process's share of the cores on a GPU. A number is also the most that look at
    all photos before the first step"""
    cache: Literal["none", "ram"] = "none"
    """ram: decoded training photos and tiles stay in memory if they fit; smaller where the shorter side has 2830 pixels"""
    damaged: Literal["refuse", "skip"] = "refuse"
    """photos that cannot be decoded, and annotation files that cannot be read; skip: left out of training and evaluation"""
    tiles: TilesConfig | None = None
    """cut large photos into tiles, in training, evaluation and use; null: none"""

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(classes, tuple):
            classes = tuple(unicodedata.normalize("NFC", name) for name in classes)  # as those of the data are
            for name, count in Counter(classes).items():
                if count > 1:
                    raise ValueError(f"class {name!r} is listed {count} times")
                if name == "background":
                    raise ValueError("'background' is added by the code; list the objects' classes only")
        return classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return VOC_CLASSES if self.classes == "voc" else tuple(self.classes)


Size = Annotated[float, Field(ge=1, le=600)]
Ratio = Annotated[float, Field(gt=1, le=20)]
Ratios = Annotated[tuple[Ratio, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
RATIOS = (1, 2, 2, 2, 1, 1)  # of each feature map: what the heads have outputs for


class DBoxesConfig(_Section):
    """DBoxes of one's own, as many as SSD300 has; `scripts/fit_dboxes.py` finds those that fit a data set."""

    sizes: Annotated[tuple[Size, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
    """seven, rising: the smallest of each feature map and the largest of the last, pixels of 300"""
    ratios: Annotated[tuple[Ratios, ...], Field(min_length=1), BeforeValidator(_as_tuple)]
    """aspect ratios of each feature map, six lists: one, two, two, two, one and one; each is for wide and for tall boxes"""

    @model_validator(mode="after")
    def _of_ssd300(self) -> Self:
        if len(self.sizes) != len(RATIOS) + 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"expected {len(RATIOS) + 1} sizes, each larger than the one before, got {list(self.sizes)}")
        counts = tuple(len(row) for row in self.ratios)
        if counts != RATIOS:
            expected, given = (", ".join(map(str, numbers)) for numbers in (RATIOS, counts))
            raise ValueError(f"expected {len(RATIOS)} lists of {expected} ratios, got lists of {given}")
        return self


DBoxNames = Literal["voc", "coco"]


class ModelConfig(_Section):
    """The network, and the weights it starts from."""

    pretrained: Path = "imagenet"
    """coco: torchvision's SSD300, trained on COCO; imagenet: torchvision's VGG16; slim: a slim SSD300 that comes with the
    project; none; or the file of one of these, or of a reduced-fc VGG16"""
    init_from: Path | None = None
    """checkpoint to start from, also of other classes or another project: what fits is taken; in place of `pretrained`"""
    freeze: Literal["conv2_2", "conv3_3", "conv4_3", "fc7"] | None = None
    """last layer of the backbone that keeps its weights, like all before it: faster, safer on few photos; null: none"""
    dboxes: DBoxNames | DBoxesConfig = "voc"
    """smallest DBoxes: voc: 30 pixels of 300; coco: 21, for small objects; or sizes and ratios, see below"""
    batch_norm: Annotated[Literal["none", "backbone", "all"], BeforeValidator(_as_word)] = "none"
    """batch normalisation, the way to train without pretrained weights: backbone: of VGG16 and extra layers; all: of the heads
    too; true and false are read as backbone and none"""
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    """factor on all numbers of channels"""
    conv4_3_norm: Literal["l2", "batch", "none"] = "l2"
    """how the features of conv4_3 are scaled; batch: only for weights that were trained with it; none: not at all, from scratch
    with batch normalisation"""

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.init_from is not None:
            return self
        if self.pretrained == "slim":
            if (self.width, self.batch_norm, self.conv4_3_norm) != (0.25, "backbone", "l2"):
                raise ValueError(
                    "pretrained: slim is a network of its own; set width: 0.25, batch_norm: backbone and conv4_3_norm: l2"
                )
            return self
        if self.pretrained in ("coco", "imagenet") and self.width != 1.0:
            raise ValueError(
                f"pretrained: {self.pretrained} has no weights of width {self.width}; set width: 1.0, or pretrained: none"
            )
        if self.pretrained == "coco" and self.batch_norm != "none":
            raise ValueError("pretrained: coco has no batch normalisation; set batch_norm: none, or pretrained: imagenet")
        if self.pretrained == "coco" and self.conv4_3_norm != "l2":
            raise ValueError("pretrained: coco has learned with conv4_3_norm: l2; set that, or pretrained: imagenet")
        if self.freeze is not None and self.pretrained == "none":
            raise ValueError(f"freeze: {self.freeze} would keep random weights; name weights in pretrained or init_from")
        return self


class LossConfig(_Section):
    """MultiBoxLoss."""

    jaccard_thresh: Annotated[float, Field(gt=0, le=1)] = 0.5
    """least overlap at which a DBox is positive"""
    neg_pos: Annotated[float, Field(ge=0)] = 3
    """mined negatives for each positive"""
    min_neg: Annotated[int, Field(ge=0)] = 0
    """least negatives mined in a photo, also in one without objects; the paper has 0"""


class AugmentConfig(_Section):
    """Random changes to training photos."""

    photometric: bool = True
    """brightness, contrast, saturation and hue"""
    expand: bool = True
    """a canvas up to 4 times as wide and high around the photo: makes objects small"""
    crop: bool = True
    """a patch that overlaps some object enough: makes objects large"""
    mirror: bool = True
    """left for right"""


class TrainConfig(_Section):
    """How to train."""

    batch_size: Literal["auto"] | Positive = DEFAULT_BATCH_SIZE
    """photos a step, over all processes and accumulation steps; auto: 32, in as few accumulation steps as memory allows"""
    accumulate: Positive = 1
    """accumulation steps that a batch is spread over, to save memory; batch normalisation takes its statistics from each"""
    iterations: Positive | None = None
    """length of the run; 120,000 where `epochs` is not set either"""
    epochs: Positive | None = None
    """length of the run, in place of `iterations`"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd, as in the paper, or adamw"""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """learning rate of the whole batch, after the warm-up; never rescaled"""
    backbone_lr: Annotated[float, Field(gt=0, le=1)] = 1.0
    """factor on the learning rate of the backbone, whose pretrained weights need smaller steps than new heads"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """of SGD; beta1 of AdamW"""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """of weights; biases and norms have none"""
    schedule: Literal["milestones", "cosine"] = "milestones"
    """of the learning rate: ×0.1 at each milestone, or a cosine to 0"""
    milestones: Annotated[tuple[Positive, ...], BeforeValidator(_as_tuple)] | None = None
    """iterations, rising; null: two thirds and five sixths of the run"""
    warmup: Annotated[int, Field(ge=0)] = 500
    """iterations in which the learning rate rises linearly to `lr`"""
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """largest norm of the gradient; null: no limit"""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """decay of a moving average of the weights, which is then evaluated and used; null: none"""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """of activations; auto: bfloat16 where the device is fast at it, otherwise float32"""
    compile: bool = False
    """torch.compile of network and loss"""
    max_hours: Annotated[float, Field(gt=0)] | None = None
    """of one start, after which it saves and ends with exit code 0; null: no limit"""

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
                raise ValueError(f"batch_size auto chooses accumulate as well; leave it out, or 1 (it is {self.accumulate})")
        elif self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if self.milestones is not None and list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {list(self.milestones)} must rise")
        return self


class CheckpointConfig(_Section):
    """Numbered checkpoints, beside last.pt and best.pt."""

    every: Positive = 1000
    """iterations between two of them"""
    keep: Annotated[int, Field(ge=0)] = 3
    """how many of the newest are kept"""


class EvalConfig(_Section):
    """Evaluation, during training and at its end."""

    every: Positive = 10_000
    """iterations between two of them; the last iteration is always followed by one"""
    patience: Positive | None = None
    """evaluations without a better one, after the first that finds something, until training ends; null: it never does"""
    metric: Literal["voc07", "voc10", "coco"] = "voc07"
    """voc07: 11-point; voc10: area under the curve; coco: mean over overlaps 0.5 to 0.95"""
    score_thresh: Fraction = 0.01
    """least score of a detection"""
    nms_thresh: Fraction = 0.45
    """of two boxes of one class that overlap by more, the lower one goes"""
    top_k: Positive = 200
    """most detections a photo"""
    batch_size: Positive = 16
    """photos and tiles that go through the network at once, in each process"""


class Config(_Section):
    """A whole run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """of all that is random: weights, order, augmentation, splits"""
    output_dir: Path = "runs/ssd300"
    """folder that the run writes to"""
    device: Annotated[str, Field(pattern=DEVICE_PATTERN, examples=list(DEVICES))] = "auto"
    """auto: the GPU where there is one, otherwise the CPU; mps: Apple's GPU"""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    log_every: Positive = 10
    """iterations between two train records"""
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
