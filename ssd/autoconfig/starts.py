"""Choose the weights that a first run starts from: the best ones that are available and leave enough time to train."""

from collections.abc import Callable
from typing import NamedTuple

from ssd.autoconfig.recipes import (
    COCO,
    IMAGENET,
    MIN_SAMPLES,
    SCRATCH,
    SLIM,
    Length,
    Recipe,
    batch_size,
    enough_epochs,
    minutes_for,
    plan_length,
)
from ssd.autoconfig.timing import Timings
from ssd.system.download import DownloadError
from ssd.system.memory import is_out_of_memory
from ssd.weights import sources

NO_COCO = "COCO weights are not available"
LONGER = 4  # a longer run is described for up to this many times the minutes


class Budget(NamedTuple):
    """What a run may use."""

    device: str  # cpu or cuda
    minutes: float
    download: bool = True  # missing weights
    scratch: bool = False  # no weights


class StartPlan(NamedTuple):
    """The chosen start, and the run that it allows."""

    recipe: Recipe
    timings: Timings
    length: Length
    why: str
    notes: list[str]  # lines for the user
    full_from: int | None = None  # minutes that would be enough for the full network


class Blocker(NamedTuple):
    """The reason against the full network."""

    reason: str
    full_from: int | None = None  # minutes that would be enough, if time is the reason


Measure = Callable[[Recipe], Timings]  # times the parts of a run on this machine


def choose_start(budget: Budget, num_photos: int, measure: Measure) -> StartPlan:
    """Choose among the full network from COCO or ImageNet weights, the slim network, and training from scratch.

    The full network needs weights and enough time. Otherwise the slim network is taken, which ships with the project. Only
    without any weights does training start from scratch.
    """
    notes: list[str] = []
    if budget.scratch:
        return _plan(SCRATCH, budget, num_photos, measure(SCRATCH), "requested by --scratch", notes)
    found = _full_network(budget, num_photos, measure, notes)
    if isinstance(found, StartPlan):
        return found
    if sources.SHIPPED["slim"].exists():
        plan = _plan(SLIM, budget, num_photos, measure(SLIM), found.reason, notes)
        return plan._replace(full_from=found.full_from)
    notes.append(
        f"warning: {found.reason}, and {sources.SHIPPED['slim']} is missing: training starts from scratch. "
        f"With {num_photos} photos, expect mAP near 0 for the first 20 epochs, and a useful detector only for objects that "
        "look alike"
    )
    return _plan(SCRATCH, budget, num_photos, measure(SCRATCH), found.reason, notes)


def _full_network(budget: Budget, num_photos: int, measure: Measure, notes: list[str]) -> StartPlan | Blocker:
    """Return a start with the full network, or the reason against it."""
    candidates = [recipe for recipe in (COCO, IMAGENET) if sources.hub_file(sources.torchvision_url(recipe.name)).exists()]
    if budget.download and COCO not in candidates:
        reason = _why_missing(COCO, sources.check_available)  # first: timing the full network may take minutes
        if reason is None:
            candidates.insert(0, COCO)
        else:
            notes.append(f"note: {reason}")
    if not candidates:
        folder = sources.hub_file(sources.torchvision_url("coco")).parent
        return Blocker(NO_COCO if budget.download else f"COCO weights are not in {folder}")
    try:
        timings = measure(COCO)  # the time is the same with any weights
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return Blocker("the full network does not fit into memory")
    plan = _plan(COCO, budget, num_photos, timings, "trained on COCO's 80 classes", notes)
    samples = plan.length.samples
    if samples < MIN_SAMPLES and sources.SHIPPED["slim"].exists():
        needed = minutes_for(COCO, timings, num_photos, batch_size(budget.device, num_photos), MIN_SAMPLES)
        speedup = MIN_SAMPLES / samples
        notes.append(f"note: the full network needs --minutes {needed}, or a machine {speedup:.1f} times as fast")
        reason = f"the full network would see {samples:,} photos in {budget.minutes:g} minutes here and needs {MIN_SAMPLES:,}"
        return Blocker(reason, needed)
    for recipe in candidates:
        reason = _why_missing(recipe, sources.fetch_to_hub)
        if reason is None:
            return plan if recipe is COCO else _plan(recipe, budget, num_photos, timings, NO_COCO, notes)
        notes.append(f"note: {reason}")
    return Blocker(NO_COCO)


def _plan(recipe: Recipe, budget: Budget, num_photos: int, timings: Timings, why: str, notes: list[str]) -> StartPlan:
    size = batch_size(budget.device, num_photos)
    return StartPlan(recipe, timings, plan_length(recipe, timings, num_photos, size, budget.minutes), why, notes)


def _why_missing(recipe: Recipe, get: Callable[[str], object]) -> str | None:
    """Return why torchvision's weights are not available, or None if `get` finds or downloads them."""
    url = sources.torchvision_url(recipe.name)
    try:
        get(url)
    except (DownloadError, OSError) as error:
        path = sources.hub_file(url)
        return f"{path.name} cannot be downloaded ({error}); for a better start, download {url} into {path.parent}"
    return None


def describe_longer_run(plan: StartPlan, budget: Budget, num_photos: int) -> str:
    """Return a phrase that says what more time would bring."""
    minutes = LONGER * budget.minutes
    if plan.full_from and plan.full_from <= minutes:
        return f"with --minutes {plan.full_from}: the full network"
    size, enough = batch_size(budget.device, num_photos), enough_epochs(plan.recipe, num_photos)
    if plan.length.epochs >= enough:
        return f"more than {plan.length.epochs} epochs would bring little"
    longer = plan_length(plan.recipe, plan.timings, num_photos, size, minutes)
    if longer.epochs >= enough:  # fewer minutes may be enough
        minutes = min(minutes, minutes_for(plan.recipe, plan.timings, num_photos, size, longer.samples))
    return (
        f"with --minutes {minutes:g}: {longer.epochs} epochs"
        if longer.epochs
        else f"--minutes {minutes:g} is too short for one epoch"
    )
