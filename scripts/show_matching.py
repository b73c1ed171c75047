"""Draws what the loss sees of photos: matched DBoxes and mined negatives: python scripts/show_matching.py CHECKPOINT

    python scripts/show_matching.py runs/mine/checkpoints/best.pt
    python scripts/show_matching.py runs/mine/checkpoints/best.pt --augmented --photos 8 --output matching.png

A row a photo, of those that the checkpoint's run was evaluated on or, with --augmented, of its training samples. From the left:
the objects, each with the DBox that it takes for itself; all positives, in the colour of their object; the negatives that the
network, with the checkpoint's weights, takes for objects most surely, the harder the darker. These and the positives are all
that the classification loss counts.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from data.annotation import DataError
from ssd.batch import Batch
from ssd.boxes import decode, iou, to_corners
from ssd.config import Config, ConfigError
from ssd.config_file import parse_config
from ssd.evaluation.pictures import class_colour
from ssd.loss import hard_negative_mining
from ssd.match import match
from ssd.model import SSD300
from ssd.preparation import Preparation, prepare
from ssd.system.errors import UsageError
from ssd.training.datasets import load_photos, load_val_photos, plain_samples, spread, train_samples
from ssd.training.run import Run
from ssd.weights.checkpoint import CheckpointError, load_checkpoint
from ssd.weights.pretrained import network_of

CELL = 3.4  # inches a side of a panel


class Seen(NamedTuple):
    """What the loss sees of one photo."""

    objects: np.ndarray  # [G, 4] corners, relative to the photo
    dboxes: np.ndarray  # [P, 4] likewise
    object_of: np.ndarray  # [P] the object that a DBox is matched to, -1: background
    own: np.ndarray  # [G] the DBox that each object takes for itself
    negatives: np.ndarray  # [P] bool, mined
    loss: np.ndarray  # [P] classification loss


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoints/best.pt of a run")
    parser.add_argument("--augmented", action="store_true", help="training samples as the network gets them")
    parser.add_argument("--photos", type=int, default=3, metavar="N", help="how many (3)")
    parser.add_argument(
        "--output", type=Path, default=Path("matching.png"), metavar="FILE", help="picture to write (matching.png)"
    )
    options = parser.parse_args(arguments)
    try:
        if options.photos < 1:
            raise UsageError(f"--photos {options.photos}: expected at least 1")
        state = load_checkpoint(options.checkpoint)
        config = parse_config(state.config, str(options.checkpoint))
        preparation, model = Preparation(**state.preparation), network_of(state)
        batch, names = some_samples(config, preparation, options.augmented, options.photos)
        seen = [look(model, preparation, config, batch, i) for i in range(len(names))]
        figure(batch, names, seen).savefig(options.output, dpi=110)
    except (CheckpointError, ConfigError, DataError, UsageError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:  # a folder that is missing, or a suffix that is no picture's
        print(f"error: {options.output}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    print(f"written: {options.output}")
    return 0


def some_samples(config: Config, preparation: Preparation, augmented: bool, count: int) -> tuple[Batch, list[str]]:
    """Samples spread over the data set, and the names of their photos."""
    run = Run.alone(config)
    if augmented:
        samples = train_samples(run, load_photos(run)[0], preparation)
    else:
        samples = plain_samples(load_val_photos(run), preparation)
    indices = spread(len(samples), count)
    names = [Path(samples.photos.path(index)).name for index in indices]
    return samples.__getitems__([(0, index) for index in indices]), names


@torch.no_grad()
def look(model: SSD300, preparation: Preparation, config: Config, batch: Batch, number: int) -> Seen:
    """Matching and mining of one photo of a batch, by the functions that training uses."""
    labels = batch.targets.labels[number]
    objects, labels = batch.targets.boxes[number][labels >= 0], labels[labels >= 0]
    _, conf, dbox_list = model(prepare(batch.images[number : number + 1], preparation))
    loc_t, conf_t = match(objects, labels, dbox_list, config.loss.jaccard_thresh)
    loss = F.cross_entropy(conf[0], conf_t, reduction="none")
    negatives = hard_negative_mining(loss[None], conf_t[None] > 0, config.loss.neg_pos)[0]
    object_of = torch.full_like(conf_t, -1)
    own = torch.zeros(0, dtype=torch.int64)
    if len(objects):
        positive = conf_t > 0
        # What a DBox is to predict says which object it is matched to; a DBox that is better for an object than the one it
        # owns belongs to another, so of its own it has the best.
        object_of[positive] = iou(decode(loc_t[positive], dbox_list[positive]), objects).argmax(dim=1)
        overlap = iou(objects, to_corners(dbox_list))
        own = overlap.where(object_of == torch.arange(len(objects))[:, None], -1.0).argmax(dim=1)
    arrays = (objects, to_corners(dbox_list), object_of, own, negatives, loss)
    return Seen(*(values.numpy() for values in arrays))


def figure(batch: Batch, names: list[str], seen: list[Seen]) -> Figure:
    """All photos, a row each."""
    picture = Figure(figsize=(3 * CELL, len(names) * (CELL + 0.25)), layout="constrained")
    for row, (axes, name, each) in enumerate(zip(picture.subplots(len(names), 3, squeeze=False), names, seen, strict=True)):
        for panel in axes:
            panel.imshow(batch.images[row].numpy(), extent=(0, 1, 1, 0))
            panel.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
        positives, negatives = np.flatnonzero(each.object_of >= 0), np.flatnonzero(each.negatives)
        axes[0].set_title(f"{name}: {len(each.objects)} objects, their own DBoxes", fontsize=9)
        axes[1].set_title(f"{len(positives)} positives", fontsize=9)
        num_others = len(each.dboxes) - len(positives)
        axes[2].set_title(f"the {len(negatives)} hardest of {num_others:,} negatives", fontsize=9)
        for number, (box, own) in enumerate(zip(each.objects, each.own, strict=True)):
            outline(axes[0], box, "white", 2.2)
            outline(axes[0], each.dboxes[own], colour(number), 2.2)
        for place in positives:
            outline(axes[1], each.dboxes[place], colour(int(each.object_of[place])), 0.9)
        hardest = each.loss[negatives].max(initial=1e-6)
        for place in negatives[np.argsort(each.loss[negatives])]:
            outline(axes[2], each.dboxes[place], (0.85, 0.0, 0.1), 0.9, max(0.15, float(each.loss[place] / hardest)))
    return picture


def colour(number: int) -> tuple[float, ...]:
    return tuple(value / 255 for value in class_colour(number))


def outline(axes: Axes, box: np.ndarray, edge: str | tuple[float, ...], width: float, alpha: float = 1.0) -> None:
    """A box given by corners relative to the photo."""
    x1, y1, x2, y2 = box.tolist()
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=width, alpha=alpha))


if __name__ == "__main__":
    sys.exit(main())
