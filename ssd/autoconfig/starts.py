"""Choose the network and the weights that a first run starts from: the best ones that leave enough time to train."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from ssd.architecture import ARCHITECTURES
from ssd.autoconfig.recipes import (
    DEFAULT,
    LIGHT,
    MIN_SAMPLES,
    Length,
    Recipe,
    Recipes,
    batch_size,
    enough_epochs,
    fit_to_photos,
    minutes_for,
    plan_length,
    recipes_of,
)
from ssd.autoconfig.timing import Timings
from ssd.system.download import DownloadError
from ssd.system.memory import is_out_of_memory
from ssd.weights import sources

AUTO = "auto"  # the architecture is chosen here
NO_COCO = "COCO weights are not available"
WHY = {"coco": "trained on COCO's 80 classes", "imagenet": "the backbone is trained on ImageNet"}
LONGER = 4  # a longer run is described for up to this many times the minutes


class Budget(NamedTuple):
    """What a run may use."""

    device: str  # cpu or cuda
    minutes: float
    download: bool = True  # missing weights
    scratch: bool = False  # no weights
    architecture: str = AUTO  # or a name in the table of architectures


class StartPlan(NamedTuple):
    """The chosen start, and the run that it allows."""

    recipe: Recipe
    timings: Timings
    length: Length
    why: str
    notes: list[str]  # lines for the user
    full_from: int | None = None  # minutes that would be enough for the full network
    why_network: str = "requested by --architecture"  # of another architecture than the default


class Blocker(NamedTuple):
    """The reason against the full network."""

    reason: str
    full_from: int | None = None  # minutes that would be enough, if time is the reason


Measure = Callable[[Recipe], Timings]  # times the parts of a run on this machine
Recognise = Callable[[str], float | None]  # share of the objects that shipped weights recognise before training


def choose_start(
    budget: Budget, num_photos: int, classes: Collection[str], measure: Measure, recognise: Recognise
) -> StartPlan:
    """Choose among the full network from COCO or ImageNet weights, the light one, the shipped ones, and training from scratch.

    The full network needs weights and enough time. Otherwise the light network is taken if its COCO weights are available, or
    one of those that ship with the project: `half` if there is enough time for it, else `slim`, and always `slim` for photos
    unlike VOC's. Only without any weights does training start from scratch. An architecture that the user names is kept: then
    only its own starts are compared.
    """
    notes: list[str] = []
    recipes = recipes_of(DEFAULT if budget.architecture == AUTO else budget.architecture)
    scratch = recipes.scratch
    if budget.scratch:
        return _plan(scratch, budget, num_photos, measure(scratch), "requested by --scratch", notes)
    found = _full_network(recipes, budget, num_photos, measure, notes)
    if isinstance(found, StartPlan):
        return found
    if budget.architecture == AUTO and (light := _light_network(found, budget, num_photos, measure, notes)):
        return light
    shipped = _available(recipes)
    if shipped:
        shipped, note = fit_to_photos(shipped, classes, recognise(shipped[-1].name))
        if note:
            notes.append(note)
    for recipe in shipped:
        plan = _plan(recipe, budget, num_photos, measure(recipe), found.reason, notes)
        samples = plan.length.samples
        if samples >= MIN_SAMPLES or recipe is shipped[-1]:
            return plan._replace(full_from=found.full_from)
        seen = f"{samples:,} photos in {budget.minutes:g} minutes here"
        notes.append(f"note: {recipe.label}, a wider network, would see {seen} and needs {MIN_SAMPLES:,}")
    folder = sources.SHIPPED["slim"].parent
    missing = f"no weights are in {folder}" if recipes.shipped else f"the shipped weights do not fit {scratch.architecture}"
    notes.append(
        f"warning: {found.reason}, and {missing}: training starts from scratch. "
        f"With {num_photos} photos, expect mAP near 0 for the first 20 epochs, and a useful detector only for objects that "
        "look alike"
    )
    return _plan(scratch, budget, num_photos, measure(scratch), found.reason, notes)


def _full_network(recipes: Recipes, budget: Budget, num_photos: int, measure: Measure, notes: list[str]) -> StartPlan | Blocker:
    """Return a start with the full network, or the reason against it."""
    best = recipes.pretrained[0]
    missing = NO_COCO if best.name == "coco" else "ImageNet weights are not available"
    candidates = [recipe for recipe in recipes.pretrained if sources.hub_file(_url(recipe)).exists()]
    if budget.download and best not in candidates:
        reason = _why_missing(best, sources.check_available)  # first: timing the full network may take minutes
        if reason is None:
            candidates.insert(0, best)
        else:
            notes.append(f"note: {reason}")
    if not candidates:
        folder = sources.hub_file(_url(best)).parent
        return Blocker(missing if budget.download else missing.replace("available", f"in {folder}"))
    try:
        timings = measure(best)  # the time is the same with any weights
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return Blocker("the full network does not fit into memory")
    plan = _plan(best, budget, num_photos, timings, WHY[best.name], notes)
    samples = plan.length.samples
    if samples < MIN_SAMPLES and _available(recipes):
        needed = minutes_for(best, timings, num_photos, batch_size(best, budget.device, num_photos), MIN_SAMPLES)
        speedup = MIN_SAMPLES / samples
        notes.append(f"note: the full network needs --minutes {needed}, or a machine {speedup:.1f} times as fast")
        reason = f"the full network would see {samples:,} photos in {budget.minutes:g} minutes here and needs {MIN_SAMPLES:,}"
        return Blocker(reason, needed)
    for recipe in candidates:
        reason = _why_missing(recipe, sources.fetch_to_hub)
        if reason is None:
            return plan if recipe is best else _plan(recipe, budget, num_photos, timings, missing, notes)
        notes.append(f"note: {reason}")
    return Blocker(missing)


def _light_network(found: Blocker, budget: Budget, num_photos: int, measure: Measure, notes: list[str]) -> StartPlan | None:
    """Return a start with the light network in place of the full one, or None without its COCO weights."""
    # Only with these weights. From scratch it is behind the slim network in the same time: on 158 photos of raccoons, half a
    # minute of one core gave slim an mAP (VOC10 area) of 0.63 and the light one 0.39. With its COCO weights it was not
    # measured; they are those of a detector of 80 classes (torchvision: mAP (COCO) 0.213), and slim has seen few photos.
    coco = recipes_of(LIGHT).pretrained[0]
    can_download = budget.download and found.reason != NO_COCO  # the full network's weights come from the same server
    if not can_download and not sources.hub_file(_url(coco)).exists():
        return None
    if reason := _why_missing(coco, sources.fetch_to_hub):
        notes.append(f"note: {reason}")
        return None
    plan = _plan(coco, budget, num_photos, measure(coco), WHY["coco"], notes)
    why = f"the full network's {found.reason}" if found.reason.startswith("COCO weights") else found.reason
    return plan._replace(full_from=found.full_from, why_network=why)


def _available(recipes: Recipes) -> list[Recipe]:
    """Return the shipped networks whose weights are there, the widest first."""
    return [recipe for recipe in recipes.shipped if sources.SHIPPED[recipe.name].exists()]


def _url(recipe: Recipe) -> str:
    return sources.torchvision_url(recipe.name, ARCHITECTURES[recipe.architecture])


def _plan(recipe: Recipe, budget: Budget, num_photos: int, timings: Timings, why: str, notes: list[str]) -> StartPlan:
    size = batch_size(recipe, budget.device, num_photos)
    return StartPlan(recipe, timings, plan_length(recipe, timings, num_photos, size, budget.minutes), why, notes)


def _why_missing(recipe: Recipe, get: Callable[[str], object]) -> str | None:
    """Return why torchvision's weights are not available, or None if `get` finds or downloads them."""
    url = _url(recipe)
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
    size, enough = batch_size(plan.recipe, budget.device, num_photos), enough_epochs(plan.recipe, num_photos)
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
