"""Choose the DBoxes by how many of the training photos' objects they cover."""

import numpy as np

from data.dataset.annotations import Annotations
from data.dataset.coverage import all_boxes, best_overlaps
from ssd.architecture import SSD300_VGG16, Architecture
from ssd.autoconfig.dbox_fit import COVERED, Sizes, fit, objects_of
from ssd.autoconfig.recipes import Setting
from ssd.config.schema import TilesConfig
from ssd.dbox import DBoxSpec, make_dbox_list, named_specs

FITTED = "fitted"  # name of DBoxes that are made for the objects
MIN_GAIN = 0.05  # coverage that other DBoxes must gain over those of the weights, whose heads are trained for their own
MANY_SMALL = 0.25  # share of the objects that makes tiles worth a note


def dbox_coverages(photos: Annotations, architecture: Architecture = SSD300_VGG16) -> dict[str, float]:
    """Return the share of objects that each named kind of DBoxes covers: the mean over the classes, as in mAP."""
    counts = np.bincount(photos.labels)
    present = counts > 0

    def coverage(spec: DBoxSpec) -> float:
        covered = best_overlaps(photos, make_dbox_list(spec)) >= COVERED
        return float((np.bincount(photos.labels, covered)[present] / counts[present]).mean())

    return {name: coverage(spec) for name, spec in named_specs(architecture).items()}


def fitted_dboxes(photos: Annotations, coverages: dict[str, float], architecture: Architecture = SSD300_VGG16) -> Sizes | None:
    """Return DBoxes made for the objects, or None where the named ones leave too little to gain."""
    if max(coverages.values()) + MIN_GAIN >= 1:
        return None
    return fit(objects_of(all_boxes(photos), photos.labels, architecture=architecture))


def choose_dboxes(coverages: dict[str, float], of_weights: str | None) -> Setting:
    """Return the name of the DBoxes that cover most objects; near a tie, those of the weights, or else the paper's.

    Args:
        coverages: share of objects covered, by name. `fitted` must beat all others by MIN_GAIN.
        of_weights: the DBoxes that the weights were trained with, if any.
    """
    named = [name for name in coverages if name != FITTED]
    best = max(named, key=lambda name: (round(coverages[name], 2), name == "voc"))
    if of_weights and coverages[best] < coverages[of_weights] + MIN_GAIN:
        best = of_weights
    if coverages.get(FITTED, 0) > max(coverages[name] for name in named) + MIN_GAIN:
        best = FITTED
    covered = ", ".join(f"{name} {share:.1%}" for name, share in coverages.items())
    return Setting(best, f"objects covered at IoU 0.5: {covered}{'; these weights use ' + best if best == of_weights else ''}")


def tiles_note(photos: Annotations, spec: DBoxSpec) -> list[str]:
    """Return a note if many objects of large photos are smaller than every DBox."""
    smallest, size = spec.maps[0].min_size, TilesConfig().size
    boxes = all_boxes(photos) * spec.input_size
    is_small = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) < smallest**2
    is_large = np.repeat((photos.sizes > size).any(axis=1), np.diff(photos.starts))
    share = float((is_small & is_large).mean())
    if share < MANY_SMALL:
        return []
    return [
        f"{share:.0%} of the objects are smaller than the smallest DBox ({smallest:g} of {spec.input_size} pixels), in photos "
        f"larger than {size}; data.tiles enlarges them, see docs/small_objects.md"
    ]
