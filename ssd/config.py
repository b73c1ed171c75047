"""The configuration: every entry of a YAML file, declared once with its type, bounds and default.

`load_config` is the only way in. It refuses what is unknown, of a wrong type or impossible with one line for each
fault. No torch here, so that a typo is answered at once.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class ConfigError(ValueError):
    """A configuration that cannot be used; the message has one line for each fault."""


def _as_tuple(value: object) -> object:
    """YAML has lists only; tuples keep the configuration frozen."""
    return tuple(value) if isinstance(value, list) else value


# The paper's, and the one that the learning rates of the recipes are made for.
DEFAULT_BATCH_SIZE = 32

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class SourceConfig(_Section):
    """One folder of photos with their annotations."""

    path: Name
    """the folder, relative to `data.root`, or absolute; a COCO data set's JSON file may be named itself"""
    split: Name = "all"
    """ImageSets/Main/SPLIT.txt, or what COCO and YOLO call so; all: every annotated photo"""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """share that is set aside as split val of a folder without splits; the rest is its split train"""


Sources = Annotated[tuple[SourceConfig, ...], BeforeValidator(_as_tuple), Field(min_length=1)]


class DataConfig(_Section):
    """What to train and to evaluate on."""

    classes: Literal["voc"] | Annotated[tuple[Name, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = "voc"
    """names, without background, which is added by the code; voc: the 20 of VOC"""
    root: str = "datasets"
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
    """loader processes; auto: one on a CPU, this process's share of the cores on a GPU"""
    cache: Literal["none", "ram"] = "none"
    """ram: decoded photos are kept in memory"""

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(classes, tuple):
            for name in classes:
                if classes.count(name) > 1:
                    raise ValueError(f"class {name!r} is listed {classes.count(name)} times")
                if name == "background":
                    raise ValueError("'background' is added by the code; list the objects' classes only")
        return classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return VOC_CLASSES if self.classes == "voc" else tuple(self.classes)


class ModelConfig(_Section):
    """The network, and the weights it starts from."""

    pretrained: Name = "imagenet"
    """imagenet: torchvision's VGG16; none; or the file of a VGG16, torchvision's or a reduced-fc one"""
    init_from: Name | None = None
    """checkpoint to start from, also of other classes or another project: what fits is taken; in place of `pretrained`"""
    dboxes: Literal["voc", "coco"] = "voc"
    """smallest DBoxes: voc: 30 pixels of 300; coco: 21, for small objects"""
    batch_norm: bool = False
    """batch normalisation: the way to train without pretrained weights"""
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    """factor on all numbers of channels"""
    conv4_3_norm: Literal["l2", "batch"] = "l2"
    """how the features of conv4_3 are scaled; batch: only to go on from weights that have it"""

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.pretrained != "none" and self.width != 1.0 and self.init_from is None:
            raise ValueError(f"width {self.width} has no pretrained weights; set pretrained: none, or width: 1.0")
        return self


class LossConfig(_Section):
    """MultiBoxLoss."""

    jaccard_thresh: Annotated[float, Field(gt=0, le=1)] = 0.5
    """least overlap at which a DBox is positive"""
    neg_pos: Annotated[float, Field(ge=0)] = 3
    """mined negatives for each positive"""


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
    """accumulation steps that a batch is spread over, to save memory"""
    iterations: Positive | None = None
    """length of the run; 120,000 where `epochs` is not set either"""
    epochs: Positive | None = None
    """length of the run, in place of `iterations`"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd, as in the paper, or adamw"""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """learning rate of the whole batch, after the warm-up; never rescaled"""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """of SGD; beta1 of AdamW"""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """of weights; biases and norms have none"""
    schedule: Literal["milestones", "cosine"] = "milestones"
    """of the rate: ×0.1 at each milestone, or a cosine to 0"""
    milestones: Annotated[tuple[Positive, ...], BeforeValidator(_as_tuple)] | None = None
    """iterations, rising; null: two thirds and five sixths of the run"""
    warmup: Annotated[int, Field(ge=0)] = 500
    """iterations of linear rise to the full rate"""
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
    """evaluations without a better one, after which training ends; null: it never does"""
    metric: Literal["voc07", "voc10", "coco"] = "voc07"
    """voc07: 11-point; voc10: area under the curve; coco: mean over overlaps 0.5 to 0.95"""
    score_thresh: Fraction = 0.01
    """least score of a detection"""
    nms_thresh: Fraction = 0.45
    """of two boxes of one class that overlap by more, the lower one goes"""
    top_k: Positive = 200
    """most detections a photo"""
    batch_size: Positive = 16
    """photos that go through the network at once, in each process"""


class Config(_Section):
    """A whole run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """of all that is random: weights, order, augmentation, splits"""
    output_dir: Name = "runs/ssd300"
    """folder that the run writes to"""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """auto: the GPU where there is one, otherwise the CPU"""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    log_every: Positive = 10
    """iterations between two train records"""
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that reads `1e-3` as a number (YAML 1.2) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.MarkedYAMLError(problem=f"key {key!r} stands twice, again in line {line}")
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `key=value` overrides by dotted name, and checks the result.

    An override of train.iterations or train.epochs clears the other of the two.

    Raises:
        ConfigError: the file cannot be read, or something in it or in an override cannot be used.
    """
    values = _read_yaml(Path(path))
    for override in overrides:
        _apply(values, override)
    return parse_config(values, str(path))


def parse_config(values: dict[str, Any], origin: str = "config") -> Config:
    """Checks plain values, as they come from YAML or from a checkpoint.

    Raises:
        ConfigError: with one line for each fault, each beginning with `origin`.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults: dict[str, list[Any]] = {}
        for fault in error.errors(include_url=False):
            faults.setdefault(_dotted(fault["loc"]), []).append(fault)
        lines = [f"{origin}: {_describe(name, alternatives)}" for name, alternatives in faults.items()]
        raise ConfigError("\n".join(lines)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not a UTF-8 text file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(values).__name__}")
    return values


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value, such as train.lr=5e-4")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {_one_line(error)}") from None
    *parents, last = key.split(".")
    node: Any = values
    for place, part in enumerate(parents):
        node = _child(node, part, override, create=True)
        if not isinstance(node, dict | list):
            name = ".".join(parents[: place + 1])
            raise ConfigError(f"override {override!r}: {name} is a single value and has no entries below it")
    if isinstance(node, list):
        _child(node, last, override)
        node[int(last)] = value
    else:
        node[last] = value
        if parents == ["train"] and last in ("iterations", "epochs") and value is not None:
            node["epochs" if last == "iterations" else "iterations"] = None


def _child(node: Any, part: str, override: str, create: bool = False) -> Any:
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            raise ConfigError(f"override {override!r}: expected a list position 0 to {len(node) - 1}, got {part!r}")
        return node[int(part)]
    if create and node.get(part) is None:
        node[part] = {}
    return node.get(part)


# Pydantic's words, and those of a person who writes YAML.
_WORDS = (
    ("Value error, ", ""),
    ("Input should be", "expected"),
    ("Value should have", "expected"),
    ("String should match pattern '^(auto|cpu|cuda(:\\d+)?)$'", "expected auto, cpu, cuda or cuda:N"),
    ("String should have", "expected text of"),
    ("a valid ", "a "),
    ("a integer", "an integer"),
    ("a tuple", "a list"),
    ("a dictionary or instance of", "a mapping of keys to values:"),
    ("a boolean", "true or false"),
    (" after validation, not 0", ""),
)


def _describe(name: str, alternatives: list[Any]) -> str:
    """One line for what pydantic found at one place: several faults there are the alternatives of one entry."""
    fault = alternatives[0]
    if fault["type"] == "extra_forbidden":
        return f"{name}: unknown key (value {_shown(fault['input'])}){_nearest(name)}"
    if fault["type"] == "missing":
        return f"{name}: is missing and has no default"
    messages = []
    for alternative in alternatives:
        message = alternative["msg"]
        for pydantic_words, words in _WORDS:
            message = message.replace(pydantic_words, words)
        messages.append(message if not messages else message.removeprefix("expected "))
    whole_section = fault["type"] == "value_error" and isinstance(fault["input"], dict)
    given = "" if whole_section else f", got {_shown(fault['input'])}"
    return f"{name}: {' or '.join(messages)}{given}"


def _shown(value: object) -> str:
    text = repr(value.model_dump() if isinstance(value, BaseModel) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """The dotted names of all entries; those of a list's entries go by the list's name (data.train.path)."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        below = SourceConfig if name in ("train", "val") and section is DataConfig else field.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            keys += known_keys(below, f"{prefix}{name}.")
    return keys


def _dotted(place: tuple[int | str, ...]) -> str:
    """The dotted name of a fault's place, without the alternatives of a union, which pydantic puts in as well."""
    return ".".join(str(part) for part in place if isinstance(part, int) or (part.isidentifier() and part not in _UNIONS))


_UNIONS = ("str", "int", "float", "tuple")


def _nearest(name: str) -> str:
    """`; did you mean ...?` for an unknown key: the nearest one in full, or else by its last part."""
    known = known_keys()
    plain = re.sub(r"\.\d+", "", name)  # entries of a list go by the list's name
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.8)
    if not close:
        by_last = {key.rsplit(".", 1)[-1]: key for key in known}
        close = [by_last[key] for key in difflib.get_close_matches(plain.rsplit(".", 1)[-1], by_last, n=1, cutoff=0.7)]
    return f"; did you mean {close[0]}?" if close else ""
