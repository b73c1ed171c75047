"""Draw the DBoxes that the loss uses: positives and mined negatives."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ssd.batch import Batch
from ssd.boxes import decode, iou, to_corners
from ssd.config import Config
from ssd.config.file import parse_config
from ssd.inference.pictures import class_colour, evenly_spaced
from ssd.loss import hard_negative_mining
from ssd.match import match
from ssd.model import SSD
from ssd.preprocessing import Preprocessing, normalize
from ssd.system.images import printable
from ssd.training.datasets import eval_dataset, load_data, load_part, train_dataset
from ssd.training.run import Run
from ssd.weights.checkpoint import load_checkpoint
from ssd.weights.pretrained import network_of

CELL = 3.4  # inches: side of a panel


class PhotoMatches(NamedTuple):
    """The matching and the mining of one photo."""

    objects: np.ndarray  # [G, 4] corners, relative to the photo
    dboxes: np.ndarray  # [P, 4] corners, relative to the photo
    object_of: np.ndarray  # [P] index of the matched object, -1: background
    best: np.ndarray  # [G] index of each object's best DBox
    negatives: np.ndarray  # [P] bool, mined
    loss: np.ndarray  # [P] classification loss


def matching_picture(checkpoint: Path, augmented: bool, count: int, overrides: Sequence[str] = ()) -> Figure:
    """Draw the matching of `count` photos for evaluation, or training samples if `augmented`, one row each. `overrides` change
    the run's configuration.

    Raises:
        CheckpointError, ConfigError, DataError: the checkpoint, its configuration or its data cannot be used.
    """
    state = load_checkpoint(checkpoint)
    config = parse_config(state.config, str(checkpoint), overrides)
    preprocessing, model = Preprocessing.from_plain(state.preprocessing), network_of(state)
    batch, names = some_samples(config, preprocessing, augmented, count)
    return figure(batch, names, [match_photo(model, preprocessing, config, batch, i) for i in range(len(names))])


def some_samples(config: Config, preprocessing: Preprocessing, augmented: bool, count: int) -> tuple[Batch, list[str]]:
    """Return samples spread evenly over the data set, and the names of their photos."""
    run = Run.alone(config)
    if augmented:
        samples = train_dataset(run, load_data(run).train, preprocessing)
    else:
        samples = eval_dataset(run, load_part(run, "val"), preprocessing)
    indices = evenly_spaced(len(samples), count)
    names = [printable(Path(samples.path(index)).name) for index in indices]
    return samples.__getitems__([(0, index) for index in indices]), names


@torch.no_grad()
def match_photo(model: SSD, preprocessing: Preprocessing, config: Config, batch: Batch, number: int) -> PhotoMatches:
    """Match and mine one photo of a batch with the functions that training uses."""
    labels = batch.targets.labels[number]
    objects, labels = batch.targets.boxes[number][labels >= 0], labels[labels >= 0]
    _, conf, dbox_list = model(normalize(batch.images[number : number + 1], preprocessing))
    loc_t, conf_t = match(objects, labels, dbox_list, config.loss.jaccard_thresh)
    loss = F.cross_entropy(conf[0], conf_t, reduction="none")
    negatives = hard_negative_mining(loss[None], conf_t[None] > 0, config.loss.neg_pos, config.loss.min_neg)[0]
    object_of = torch.full_like(conf_t, -1)
    best = torch.zeros(0, dtype=torch.int64)
    if len(objects):
        positive = conf_t > 0
        # `match` returns no object indices, but decoding a DBox's target gives its object. An object may overlap a DBox of
        # another object more; its own is the best of the DBoxes matched to it.
        object_of[positive] = iou(decode(loc_t[positive], dbox_list[positive]), objects).argmax(dim=1)
        overlap = iou(objects, to_corners(dbox_list))
        best = overlap.where(object_of == torch.arange(len(objects))[:, None], -1.0).argmax(dim=1)
    arrays = (objects, to_corners(dbox_list), object_of, best, negatives, loss)
    return PhotoMatches(*(values.numpy() for values in arrays))


def figure(batch: Batch, names: list[str], matches: list[PhotoMatches]) -> Figure:
    """Draw all photos, one row each."""
    picture = Figure(figsize=(3 * CELL, len(names) * (CELL + 0.25)), layout="constrained")
    for row, (axes, name, each) in enumerate(zip(picture.subplots(len(names), 3, squeeze=False), names, matches, strict=True)):
        for panel in axes:
            panel.imshow(batch.images[row].numpy(), extent=(0, 1, 1, 0))
            panel.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
        positives, negatives = np.flatnonzero(each.object_of >= 0), np.flatnonzero(each.negatives)
        axes[0].set_title(f"{name}: {len(each.objects)} objects, their own DBoxes", fontsize=9, parse_math=False)
        axes[1].set_title(f"{len(positives)} positives", fontsize=9)
        num_others = len(each.dboxes) - len(positives)
        axes[2].set_title(f"the {len(negatives)} hardest of {num_others:,} negatives", fontsize=9)
        for number, (box, best) in enumerate(zip(each.objects, each.best, strict=True)):
            outline(axes[0], box, "white", 2.2)
            outline(axes[0], each.dboxes[best], colour(number), 2.2)
        for place in positives:
            outline(axes[1], each.dboxes[place], colour(int(each.object_of[place])), 0.9)
        hardest = each.loss[negatives].max(initial=1e-6)
        for place in negatives[np.argsort(each.loss[negatives])]:
            outline(axes[2], each.dboxes[place], (0.85, 0.0, 0.1), 0.9, max(0.15, float(each.loss[place] / hardest)))
    return picture


def colour(number: int) -> tuple[float, ...]:
    return tuple(value / 255 for value in class_colour(number))


def outline(axes: Axes, box: np.ndarray, edge: str | tuple[float, ...], width: float, alpha: float = 1.0) -> None:
    """Outline a box, given by its corners relative to the photo."""
    x1, y1, x2, y2 = box.tolist()
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=width, alpha=alpha))
