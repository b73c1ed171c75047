"""How to train on the photos that there are in the time that there is: a recipe for each start, a length for each speed.

The numbers are here and nowhere else; each with its reason, which is written into the file beside it where a user sees it.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ssd.autoconfig.timing import Timings


class Setting(NamedTuple):
    """The value of one entry, and why."""

    value: Any
    reason: str = ""


Choices = dict[str, Setting]

MINUTES = {"cpu": 30.0, "cuda": 60.0}  # of the first run: on a GPU an hour is half of the paper's run or more
MARGIN = 0.9  # of these minutes that are planned: a machine is not always as fast as when it was asked
EVALUATIONS = 10  # in a run, where they take no more than EVALUATION_SHARE of its time, and else fewer
FEWEST_EVALUATIONS = 2
EVALUATION_SHARE = 0.15
FEW_PHOTOS = 60  # below: smaller batches, more layers frozen
# What the whole network has to see at least, or the slim one, several times as fast, takes its place: the scores of new classes
# begin at random and take a few hundred updates. 300 of 16 photos.
LEAST_SAMPLES = 4800
# A run on few photos is not ended before it has seen so many samples, however many epochs that are: 750 updates of 8.
ENOUGH_SAMPLES = 6000
PATIENCE = 5  # evaluations: half of a run's
JUDGES = 20  # validation photos: with fewer, mAP moves too much to end a run by it
WARM_UP_SHARE, MOST_WARM_UP = 0.05, 100  # of the iterations; at most, iterations
EMA_SHARE = 3  # the average of the weights reaches back a third of the run
FITTED = "fitted"  # the name of DBoxes whose sizes and ratios are made for the data
OWN_DBOXES = 0.05  # share of objects that other DBoxes must cover beyond the weights' own: the heads know their own


class Recipe(NamedTuple):
    """How to train from one kind of start."""

    name: str
    network: Choices
    train: Choices
    epochs: int  # more of them bring nothing
    dboxes: str | None = None  # that the weights have learned
    cpu: Mapping[str, Setting] = MappingProxyType({})  # what a CPU has beside or in place of these
    few: Mapping[str, Setting] = MappingProxyType({})  # what fewer than FEW_PHOTOS have


SHORT_RUN = {"train.schedule": Setting("cosine", "a short run ends at a learning rate of 0")}
SGD = {
    "train.lr": Setting(1e-3, "SGD, as the weights were trained"),
    **SHORT_RUN,
}
ADAMW = {
    "train.optimizer": Setting("adamw", "on few photos it learns faster than SGD"),
    "train.weight_decay": Setting(0.05, "AdamW's steps do not shrink with the gradient: its decay is larger than SGD's"),
    "train.clip_grad_norm": Setting(10.0, "the first gradients of new heads are large"),
    **SHORT_RUN,
}
FROZEN = Setting("conv3_3", "edges and textures stay as they are, which saves their backward pass")
FROZEN_FEW = Setting("conv3_3", "few photos cannot teach edges and textures better than many did")

CPU_FROZEN, FEW_FROZEN = {"model.freeze": FROZEN}, {"model.freeze": FROZEN_FEW}

COCO = Recipe("coco", {"model.pretrained": Setting("coco")}, SGD, 100, "coco", CPU_FROZEN, FEW_FROZEN)
IMAGENET = Recipe("imagenet", {"model.pretrained": Setting("imagenet")}, SGD, 200, None, CPU_FROZEN, FEW_FROZEN)
SLIM = Recipe(
    "slim",
    {
        "model.pretrained": Setting("slim"),
        "model.batch_norm": Setting("backbone", "as these weights have it"),
        "model.width": Setting(0.25, "as these weights have it: a sixteenth of the whole network's arithmetic"),
    },
    {**ADAMW, "train.lr": Setting(5e-4, "half of that from scratch: the weights know something already")},
    150,
    "voc",
    few=FEW_FROZEN,
)
SCRATCH = Recipe(
    "scratch",
    {"model.pretrained": Setting("none"), "model.batch_norm": Setting("backbone", "what makes training from scratch work")},
    {**ADAMW, "train.lr": Setting(1e-3, "AdamW's usual one")},
    300,
    cpu={"model.width": Setting(0.25, "a sixteenth of the arithmetic: a CPU has no time for more")},
)


def batch_size(device: str, num_photos: int) -> int:
    """More updates from the same photos where these are few, or where the time is."""
    return 8 if num_photos < FEW_PHOTOS else 16 if device == "cpu" else 32


def network(recipe: Recipe, device: str, num_photos: int) -> Choices:
    """The entries of section `model` that are the recipe's."""
    few = recipe.few if num_photos < FEW_PHOTOS else {}
    return {**recipe.network, **(recipe.cpu if device == "cpu" else {}), **few}


class Length(NamedTuple):
    """How long a run is."""

    iterations: int
    epochs: int  # 0: not even one
    evaluations: int
    seconds: float  # that it is going to take
    samples: int  # that it sees

    @property
    def every(self) -> int:
        """Iterations between two evaluations."""
        return -(-self.iterations // self.evaluations)


def length(recipe: Recipe, timings: Timings, num_photos: int, size: int, minutes: float) -> Length:
    """The longest useful run that ends in time.

    Args:
        recipe: what is trained.
        costs: of its parts on this machine.
        num_photos: to train on.
        size: photos in a batch.
        minutes: that it may take.
    """
    budget = MARGIN * 60 * minutes - timings.of_run(0, 0, 0)
    evaluation = timings.evaluation + 3 * timings.checkpoint  # a numbered one among them
    evaluations = int(EVALUATION_SHARE * budget / evaluation) if evaluation else EVALUATIONS
    evaluations = min(max(evaluations, FEWEST_EVALUATIONS), EVALUATIONS)
    affordable = max(1, int((budget - evaluations * evaluation) / timings.step))
    epochs = min(affordable * size // num_photos, enough_epochs(recipe, num_photos))
    iterations = -(-epochs * num_photos // size) if epochs else affordable
    evaluations = min(evaluations, iterations)
    return Length(iterations, epochs, evaluations, timings.of_run(iterations, evaluations, evaluations), iterations * size)


def enough_epochs(recipe: Recipe, num_photos: int) -> int:
    """The epochs beyond which more bring little."""
    return max(recipe.epochs, -(-ENOUGH_SAMPLES // num_photos))


def minutes_for(recipe: Recipe, timings: Timings, num_photos: int, size: int, samples: int) -> int:
    """The minutes after which a run has seen so many samples."""
    minutes = 1
    while length(recipe, timings, num_photos, size, minutes).samples < samples:
        minutes += max(1, minutes // 20)
    return minutes


def training(recipe: Recipe, planned: Length, device: str, num_photos: int, num_val_photos: int) -> Choices:
    """The entries of the sections `train`, `checkpoint` and `eval` that go by the recipe and the length."""
    size = batch_size(device, num_photos)
    iterations, every = planned.iterations, planned.every
    taken = f"{iterations:,} iterations" if planned.epochs else f"less than an epoch of {num_photos:,} photos"
    choices = {
        "train.batch_size": Setting(size, "more updates from the same photos than with 32" if size < 32 else "the paper's"),
        f"train.{'epochs' if planned.epochs else 'iterations'}": Setting(planned.epochs or iterations, taken),
        **recipe.train,
        "train.warmup": Setting(min(MOST_WARM_UP, int(WARM_UP_SHARE * iterations)), "iterations"),
    }
    if iterations > 10 * EMA_SHARE:
        share = EMA_SHARE / iterations
        ema = round(1 - share, 1 - math.floor(math.log10(share)))  # two digits of the share
        choices["train.ema"] = Setting(ema, "averages the weights of about a third of the run")
    choices["checkpoint.every"] = Setting(every, "iterations")
    choices["checkpoint.keep"] = Setting(2, "last.pt and best.pt come on top")
    choices["eval.every"] = Setting(every, f"iterations: about {planned.evaluations} evaluations")
    if recipe.name != SCRATCH.name and num_val_photos >= JUDGES and planned.evaluations > PATIENCE:
        choices["eval.patience"] = Setting(PATIENCE, "evaluations without a better one, after which the run ends")
    choices["eval.metric"] = Setting("voc10", "the area; 11 points are coarse where objects are few")
    return choices


def choose_dboxes(shares: dict[str, float], own: str | None) -> Setting:
    """The name of the DBoxes that cover the objects best; where it matters little, those that the weights have learned, or the
    paper's.

    Args:
        shares: of the objects, that each kind of DBoxes covers at overlap 0.5; the mean over the classes. Those that are
            `fitted` to the objects have to cover as many more as others than the weights' own.
        own: the kind that the weights have learned, if any.
    """
    named = [name for name in shares if name != FITTED]
    best = max(named, key=lambda name: (round(shares[name], 2), name == "voc"))
    if own and shares[best] < shares[own] + OWN_DBOXES:
        best = own
    if shares.get(FITTED, 0) > max(shares[name] for name in named) + OWN_DBOXES:
        best = FITTED
    covered = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return Setting(
        best, f"objects covered at overlap 0.5: {covered}{'; the weights have learned these' if best == own else ''}"
    )
