"""What a first run starts from: the best weights that can be had and that the time is enough for."""

from collections.abc import Callable
from typing import NamedTuple

from ssd.autoconfig.recipes import (
    COCO,
    IMAGENET,
    LEAST_SAMPLES,
    SCRATCH,
    SLIM,
    Length,
    Recipe,
    batch_size,
    enough_epochs,
    length,
    minutes_for,
)
from ssd.autoconfig.timing import Timings
from ssd.system.download import DownloadError
from ssd.system.memory import is_out_of_memory
from ssd.weights import sources

NO_COCO = "COCO weights cannot be had"
MORE_TIME = 4  # times the minutes: what is told of a longer run


class Budget(NamedTuple):
    """What a run may take, and what for."""

    device: str  # cpu or cuda
    minutes: float
    download: bool = True  # weights that are not there
    scratch: bool = False  # no weights


class StartPlan(NamedTuple):
    """What was chosen."""

    recipe: Recipe
    timings: Timings
    length: Length
    why: str
    notes: list[str]  # lines for the user
    whole_from: int | None = None  # minutes from which on the whole network would be taken


class Blocker(NamedTuple):
    """Why the whole network is not taken."""

    reason: str
    whole_from: int | None = None  # minutes that would be enough, if they are too few


Measured = Callable[[Recipe], Timings]  # what the parts of a run take on this machine


def choose_start(wish: Budget, num_photos: int, measured: Measured) -> StartPlan:
    """COCO's weights where they can be had, or those of ImageNet where they are there, both for the whole network; the slim
    network where the time is too short for that; no weights where there are none."""
    notes: list[str] = []
    if wish.scratch:
        return _start(SCRATCH, wish, num_photos, measured(SCRATCH), "as asked for", notes)
    found = _whole_network(wish, num_photos, measured, notes)
    if isinstance(found, StartPlan):
        return found
    why = found.reason
    if sources.SLIM.exists():
        return _start(SLIM, wish, num_photos, measured(SLIM), why, notes)._replace(whole_from=found.whole_from)
    notes.append(
        f"warning: {why}, and {sources.SLIM} is missing: training starts from scratch. {num_photos} photos teach little "
        "then: expect mAP near 0 for the first 20 epochs, and a useful detector only of objects that look alike"
    )
    return _start(SCRATCH, wish, num_photos, measured(SCRATCH), why, notes)


def _whole_network(wish: Budget, num_photos: int, measured: Measured, notes: list[str]) -> StartPlan | Blocker:
    """A start with the whole network, or what stands against it."""
    candidates = [recipe for recipe in (COCO, IMAGENET) if _is_there(recipe)]
    if wish.download and COCO not in candidates:
        reason = _missing(COCO, sources.asked)  # before the whole network is timed, which may take minutes
        if reason is None:
            candidates.insert(0, COCO)
        else:
            notes.append(f"note: {reason}")
    if not candidates:
        folder = sources.hub_file(sources.torchvision_url("coco")).parent
        return Blocker(NO_COCO if wish.download else f"COCO weights are not in {folder}")
    try:
        timings = measured(COCO)  # as long as with any weights
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return Blocker("the whole network does not fit into memory")
    start = _start(COCO, wish, num_photos, timings, "trained on COCO's 80 classes", notes)
    samples = start.length.samples
    if samples < LEAST_SAMPLES and sources.SLIM.exists():
        needed = minutes_for(COCO, timings, num_photos, batch_size(wish.device, num_photos), LEAST_SAMPLES)
        times = LEAST_SAMPLES / samples
        notes.append(
            f"note: the whole network would be taken with --minutes {needed}, or on a machine {times:.1f} times as fast"
        )
        seen = f"{samples:,} photos in {wish.minutes:g} minutes"
        return Blocker(f"the whole network would see {seen} here and needs {LEAST_SAMPLES:,}", needed)
    for recipe in candidates:
        reason = _missing(recipe, sources.fetched)
        if reason is None:
            why = start.why if recipe is COCO else NO_COCO
            return _start(recipe, wish, num_photos, timings, why, notes)
        notes.append(f"note: {reason}")
    return Blocker(NO_COCO)


def _start(recipe: Recipe, wish: Budget, num_photos: int, timings: Timings, why: str, notes: list[str]) -> StartPlan:
    size = batch_size(wish.device, num_photos)
    return StartPlan(recipe, timings, length(recipe, timings, num_photos, size, wish.minutes), why, notes)


def _is_there(recipe: Recipe) -> bool:
    return sources.hub_file(sources.torchvision_url(recipe.name)).exists()


def _missing(recipe: Recipe, get: Callable[[str], object]) -> str | None:
    """Why torchvision's weights cannot be had; None where `get` finds or brings them."""
    url = sources.torchvision_url(recipe.name)
    try:
        get(url)
    except (DownloadError, OSError) as error:
        path = sources.hub_file(url)
        return f"{path.name} cannot be downloaded ({error}); for a better start put it from {url} into {path.parent}"
    return None


def more_time(start: StartPlan, wish: Budget, num_photos: int) -> str:
    """What a longer run would bring, in words."""
    minutes = MORE_TIME * wish.minutes
    if start.whole_from and start.whole_from <= minutes:
        return f"with --minutes {start.whole_from}: the whole network"
    size = batch_size(wish.device, num_photos)
    if start.length.epochs >= enough_epochs(start.recipe, num_photos):
        return f"more than {start.length.epochs} epochs would bring little"
    longer = length(start.recipe, start.timings, num_photos, size, minutes)
    if longer.epochs >= enough_epochs(start.recipe, num_photos):  # which may take less
        minutes = min(minutes, minutes_for(start.recipe, start.timings, num_photos, size, longer.samples))
    return f"with --minutes {minutes:g}: {longer.epochs} epochs" if longer.epochs else f"--minutes {minutes:g} reach no epoch"
