"""Automatic recipes: how to train from each kind of start, and for how long.

Every number is here, with its reason. A `Setting`'s reason is the comment beside the entry in the written file.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ssd.architecture import ARCHITECTURES
from ssd.autoconfig.timing import Timings
from ssd.config.schema import VOC_CLASSES
from ssd.weights.class_names import same_class


class Setting(NamedTuple):
    """The value of an entry, and the reason for it."""

    value: Any
    reason: str = ""


Settings = dict[str, Setting]  # by dotted name

DEFAULT, LIGHT = "ssd300", "ssdlite320_mobilenet_v3"  # networks that are chosen without --architecture
MINUTES = {"cpu": 30.0, "cuda": 60.0}  # default length of a first run; on a GPU, an hour is at least half of the paper's run
MARGIN = 0.9  # share of the minutes that is planned: the machine may be slower than during the timing
EVALUATIONS = 10  # in a run; fewer if they would take more than EVALUATION_SHARE of the time
MIN_EVALUATIONS = 2
EVALUATION_SHARE = 0.15
FEW_PHOTOS = 60  # below this, batches are smaller and more layers frozen
# Samples that a network must see; with less time a narrower one, several times as fast, replaces it. The scores of new classes
# start at random and need a few hundred updates: 300 of 16 photos.
MIN_SAMPLES = 4800
# Share of the objects that shipped weights must recognise before training; below it, the photos are unlike VOC's. Raccoons have
# 0.93, cats, dogs and cars 0.75, drawn shapes 0.06, blood cells 0.00.
FAMILIAR_SHARE = 0.25
# However few the photos, a run may see this many samples: 750 updates of 8.
ENOUGH_SAMPLES = 6000
PATIENCE = 5  # evaluations: half of a run's
MIN_VAL_PHOTOS = 20  # with fewer, mAP is too noisy for early stopping
WARM_UP_SHARE, MAX_WARM_UP = 0.05, 100  # share of the iterations; iterations
EMA_SHARE = 3  # the average covers a third of the run


class Recipe(NamedTuple):
    """How to train from one kind of start."""

    name: str
    model: Settings
    train: Settings
    max_epochs: int  # more bring nothing
    dboxes: str | None = None  # those that the weights were trained with
    cpu: Mapping[str, Setting] = MappingProxyType({})  # added or replaced on a CPU
    few: Mapping[str, Setting] = MappingProxyType({})  # added or replaced below FEW_PHOTOS
    architecture: str = DEFAULT
    cpu_batch_size: int = 16  # a compromise between the number of updates and the time per photo
    stops_early: bool = True  # when mAP no longer improves

    @property
    def label(self) -> str:
        """The recipe's name for the user; the default network goes without saying."""
        return self.name if self.architecture == DEFAULT else f"{self.architecture}, {self.name}"


SHORT_RUN = {"train.schedule": Setting("cosine", "falls to 0 by the end of a short run")}
SGD = {"train.lr": Setting(1e-3, "SGD, as these weights were trained"), **SHORT_RUN}
ADAMW = {
    "train.optimizer": Setting("adamw", "learns faster than SGD from few photos"),
    "train.weight_decay": Setting(0.05, "AdamW needs more than SGD: its steps do not shrink with the gradient"),
    "train.clip_grad_norm": Setting(10.0, "new heads start with large gradients"),
    **SHORT_RUN,
}
FINE_ADAMW = {**ADAMW, "train.lr": Setting(5e-4, "half the rate from scratch: these weights are pretrained")}
SHIPPED_ADAMW = {**ADAMW, "train.lr": Setting(1e-3, "AdamW's usual rate; new classes need it in a short run")}
# On 59 photos of cats, dogs and cars, all training made half worse: mAP (VOC10 area) 0.63 before, 0.57 with 5e-5, 0.54 with
# 2e-4. From slim (0.53), 1e-3 left 0.37.
KNOWN_LR = Setting(5e-5, "these weights know all the classes; a higher rate would make them forget")
# On 60 photos of blood cells, 9,000 samples gave mAP (VOC10 area) 0.875 with 1e-3, 0.883 with 2e-3 and 0.888 with 4e-3. On
# raccoons, which are familiar, 4e-3 gave 0.81 instead of 0.96.
UNFAMILIAR_LR = Setting(4e-3, "high, because the pretrained features do not fit these photos")
SCRATCH_ADAMW = {**ADAMW, "train.lr": Setting(1e-3, "AdamW's usual rate")}
WITH_NORM = {"model.batch_norm": Setting("backbone", "makes training from scratch work")}


def frozen(layer: str) -> tuple[Settings, Settings]:
    """Return a recipe's entries on a CPU and below FEW_PHOTOS: layers up to `layer` are frozen, for different reasons."""
    return (
        {"model.freeze": Setting(layer, "keeps filters for edges and textures; saves their backward pass")},
        {"model.freeze": Setting(layer, "few photos cannot improve filters for edges and textures")},
    )


TEXTURE_LAYERS = ("conv3_3", "block3", "layer1")  # of VGG16, MobileNetV3 and ResNet: the last ones with a stride of 4

COCO = Recipe("coco", {"model.pretrained": Setting("coco")}, SGD, 100, "coco", *frozen("conv3_3"))
IMAGENET = Recipe("imagenet", {"model.pretrained": Setting("imagenet")}, SGD, 200, None, *frozen("conv3_3"))
# The shipped networks are good after the first evaluation, get worse at the highest rate and better again at the end of the
# cosine: on raccoons, patience ended a run of ten evaluations after six.
HALF, SLIM = (
    Recipe(
        name,
        {
            "model.pretrained": Setting(name),
            "model.batch_norm": Setting("backbone", "required by these weights"),
            "model.width": Setting(width, f"required by these weights; {share} of the full network's arithmetic"),
        },
        SHIPPED_ADAMW,
        150,
        "voc",
        *frozen("conv3_3"),
        cpu_batch_size=8,  # twice the updates: on 60 photos of blood cells 0.875 instead of 0.871, on raccoons 0.958 and 0.954
        stops_early=False,
    )
    for name, width, share in (("half", 0.5, "a quarter"), ("slim", 0.25, "1/16"))
)
SCRATCH = Recipe(
    "scratch",
    {"model.pretrained": Setting("none"), **WITH_NORM},
    SCRATCH_ADAMW,
    300,
    cpu={"model.width": Setting(0.25, "1/16 of the arithmetic: a CPU has no time for more")},
    stops_early=False,
)


class Recipes(NamedTuple):
    """The starts of one architecture."""

    pretrained: tuple[Recipe, ...]  # weights to find or download, the best first
    shipped: tuple[Recipe, ...]  # those that ship with the project, the widest first; they fit VGG16 only
    scratch: Recipe


def recipes_of(name: str) -> Recipes:
    """Return the starts of a row of the table of architectures."""
    row = ARCHITECTURES[name]
    if row.backbone == ARCHITECTURES[DEFAULT].backbone:
        own = COCO, IMAGENET, HALF, SLIM, SCRATCH
        coco, imagenet, half, slim, scratch = own if name == DEFAULT else (each._replace(architecture=name) for each in own)
        return Recipes((coco, imagenet), (half, slim), scratch)
    # Other backbones have batch normalisation in their pretrained weights, so they train with AdamW like the shipped networks.
    layer = next((layer for layer in row.freezable if layer in TEXTURE_LAYERS), row.freezable[0])
    pretrained = tuple(
        Recipe(start, {"model.pretrained": Setting(start)}, FINE_ADAMW, epochs, dboxes, *frozen(layer), name)
        for start, epochs, dboxes in (("coco", 100, "coco"), ("imagenet", 200, None))
        if start == "imagenet" or row.coco
    )
    norm = WITH_NORM if row.batch_norms[0] == "none" else {}
    scratch = Recipe(
        "scratch", {"model.pretrained": Setting("none"), **norm}, SCRATCH_ADAMW, 300, architecture=name, stops_early=False
    )
    return Recipes(pretrained, (), scratch)


def fit_to_photos(shipped: Sequence[Recipe], classes: Iterable[str], share: float | None) -> tuple[list[Recipe], str]:
    """Return the shipped recipes for a data set, and a note for the user; `""` for none.

    Args:
        shipped: the widest first.
        classes: names of the data set's classes.
        share: of the objects that the weights recognise before training, from `share_recognised`.
    """
    if share is not None and share < FAMILIAR_SHARE:
        narrowest = with_lr(shipped[-1], UNFAMILIAR_LR)._replace(cpu={}, few={})
        return [narrowest], (
            f"note: the photos are unlike VOC's: before training, {narrowest.name} recognises {share:.0%} of the objects, "
            f"whatever their classes; all layers are trained, at a learning rate of {UNFAMILIAR_LR.value:g}"
        )
    if all(same_class(name, VOC_CLASSES) is not None for name in classes):
        widest, names = shipped[0].name, " and ".join(recipe.name for recipe in shipped)
        return [with_lr(recipe, KNOWN_LR) for recipe in shipped], (
            f"note: the {names} weights know all these classes: scripts/detect.py {widest} PHOTOS detects them without "
            "training. A few dozen photos can make them worse; compare the detections"
        )
    return [*shipped], ""


def with_lr(recipe: Recipe, lr: Setting) -> Recipe:
    return recipe._replace(train={**recipe.train, "train.lr": lr})


def batch_size(recipe: Recipe, device: str, num_photos: int) -> int:
    """Return the batch size: smaller, for more updates, where photos are few or the device is slow."""
    return 8 if num_photos < FEW_PHOTOS else recipe.cpu_batch_size if device == "cpu" else 32


def model_settings(recipe: Recipe, device: str, num_photos: int) -> Settings:
    """Return the recipe's entries of section `model`."""
    few = recipe.few if num_photos < FEW_PHOTOS else {}
    network = {} if recipe.architecture == DEFAULT else {"model.architecture": Setting(recipe.architecture)}
    return {**network, **recipe.model, **(recipe.cpu if device == "cpu" else {}), **few}


class Length(NamedTuple):
    """The planned length of a run."""

    iterations: int
    epochs: int  # 0: less than one
    evaluations: int
    seconds: float  # of the whole run
    samples: int

    @property
    def every(self) -> int:
        """Iterations between two evaluations."""
        return -(-self.iterations // self.evaluations)


def plan_length(recipe: Recipe, timings: Timings, num_photos: int, size: int, minutes: float) -> Length:
    """Return the longest useful run on `num_photos` training photos, in batches of `size`, that ends within `minutes`."""
    seconds = MARGIN * 60 * minutes - timings.of_run(0, 0, 0)
    evaluation = timings.evaluation + 3 * timings.checkpoint  # last.pt, best.pt and a numbered checkpoint
    evaluations = int(EVALUATION_SHARE * seconds / evaluation) if evaluation else EVALUATIONS
    evaluations = min(max(evaluations, MIN_EVALUATIONS), EVALUATIONS)
    affordable = max(1, int((seconds - evaluations * evaluation) / timings.step))
    epochs = min(affordable * size // num_photos, enough_epochs(recipe, num_photos))
    iterations = -(-epochs * num_photos // size) if epochs else affordable
    evaluations = min(evaluations, iterations)
    return Length(iterations, epochs, evaluations, timings.of_run(iterations, evaluations, evaluations), iterations * size)


def enough_epochs(recipe: Recipe, num_photos: int) -> int:
    """Return the number of epochs beyond which training brings little."""
    return max(recipe.max_epochs, -(-ENOUGH_SAMPLES // num_photos))


def minutes_for(recipe: Recipe, timings: Timings, num_photos: int, size: int, samples: int) -> int:
    """Return the minutes that a run needs to see so many samples."""
    minutes = 1
    while plan_length(recipe, timings, num_photos, size, minutes).samples < samples:
        minutes += max(1, minutes // 20)
    return minutes


def train_settings(recipe: Recipe, planned: Length, device: str, num_photos: int, num_val_photos: int) -> Settings:
    """Return the entries of sections `train`, `checkpoint` and `eval` for a recipe and a length."""
    size = batch_size(recipe, device, num_photos)
    iterations, every = planned.iterations, planned.every
    length = f"{iterations:,} iterations" if planned.epochs else f"less than one epoch of {num_photos:,} photos"
    settings = {
        "train.batch_size": Setting(size, "more updates per epoch than with 32" if size < 32 else "as in the paper"),
        f"train.{'epochs' if planned.epochs else 'iterations'}": Setting(planned.epochs or iterations, length),
        **recipe.train,
        "train.warmup": Setting(min(MAX_WARM_UP, int(WARM_UP_SHARE * iterations)), "iterations"),
    }
    if iterations > 10 * EMA_SHARE:
        share = EMA_SHARE / iterations
        ema = round(1 - share, 1 - math.floor(math.log10(share)))  # two digits of the share
        settings["train.ema"] = Setting(ema, "averages the weights over about a third of the run")
    settings["checkpoint.every"] = Setting(every, "iterations")
    settings["checkpoint.keep"] = Setting(2, "besides last.pt and best.pt")
    settings["eval.every"] = Setting(every, f"iterations; about {planned.evaluations} evaluations")
    if recipe.stops_early and num_val_photos >= MIN_VAL_PHOTOS and planned.evaluations > PATIENCE:
        settings["eval.patience"] = Setting(PATIENCE, "stops after this many evaluations without improvement")
    settings["eval.metric"] = Setting("voc10", "area under the curve: 11 points are too coarse for few objects")
    return settings
