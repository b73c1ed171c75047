"""How familiar a data set is to the shipped weights before training; that decides how strongly to fine-tune them."""

import numpy as np
import torch

from data.dataset.annotations import Annotations
from data.dataset.coverage import all_boxes
from data.loading.dataset import DetectionDataset
from ssd.boxes import area, iou, to_corners
from ssd.inference.pictures import evenly_spaced
from ssd.preprocessing import Preprocessing, normalize
from ssd.system.device import inference_format
from ssd.weights.checkpoint import CheckpointError
from ssd.weights.formats import load_any
from ssd.weights.pretrained import network_of
from ssd.weights.sources import checkpoint_file

MAX_PHOTOS = 60  # from across the data set
MIN_OBJECTS = 20  # with fewer, the share says little
MIN_OBJECTNESS = 0.5  # probability of an object of any class


@torch.no_grad()
def share_recognised(photos: Annotations, weights: str) -> float | None:
    """Return the share of the objects that shipped weights recognise as an object of any class: the mean over photos.

    An object is recognised if its best DBox, or one with IoU ≥ 0.5, has a probability of background below one half. This says
    whether the network's features fit the photos, whatever their classes are. Objects smaller than the smallest DBox do not
    count: no network of this size finds them, in whatever photos.

    Args:
        photos: up to `MAX_PHOTOS` of those with objects are used.
        weights: name of the shipped weights.

    Returns:
        The share; None if there are fewer than `MIN_OBJECTS` objects.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    try:
        state, _ = load_any(checkpoint_file(weights))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; restore this file, or use --scratch") from None
    network, preprocessing = network_of(state), Preprocessing.from_plain(state.preprocessing)
    dboxes, boxes = network.dbox_list, torch.from_numpy(all_boxes(photos))
    corners, memory_format = to_corners(dboxes), inference_format(dboxes.device)
    is_large = (area(boxes) >= dboxes[:, 2:].prod(1).amin()).numpy()
    candidates = np.unique(np.repeat(np.arange(len(photos)), np.diff(photos.starts))[is_large])
    samples = DetectionDataset(photos, network.input_size, preprocessing.fill)
    num_objects, shares = 0, []
    for i in candidates[evenly_spaced(len(candidates), MAX_PHOTOS)]:
        own = photos.objects(i)
        objects = boxes[own][is_large[own]]
        _, conf, _ = network(normalize(samples[(0, int(i))].images, preprocessing, dboxes.device, memory_format))
        is_object = 1 - conf[0].softmax(-1)[:, 0] > MIN_OBJECTNESS  # [P]
        overlap = iou(objects, corners)  # [N, P]
        matched = (overlap >= 0.5) | (overlap == overlap.amax(1, keepdim=True))
        shares.append((matched & is_object).any(1).float().mean().item())
        num_objects += len(objects)
    return float(np.mean(shares)) if num_objects >= MIN_OBJECTS else None
