"""How familiar a data set is to the shipped weights before training: it decides how much they have to change."""

import numpy as np
import torch

from data.dataset.annotations import Annotations
from data.loading.dataset import DetectionDataset
from ssd.boxes import iou, to_corners
from ssd.inference.pictures import evenly_spaced
from ssd.preprocessing import Preprocessing, normalize
from ssd.system.device import inference_format
from ssd.weights.formats import load_any
from ssd.weights.pretrained import network_of
from ssd.weights.sources import checkpoint_file

PHOTOS = 60  # from across the data set
CERTAIN = 0.5  # probability of an object of any class


@torch.no_grad()
def share_recognised(photos: Annotations, weights: str) -> float:
    """Return the share of the objects that weights recognise as an object of any class.

    An object counts if the network takes one of its DBoxes, those with IoU ≥ 0.5 and the one with the highest, for an object.
    That says whether its features fit the photos, whatever the classes are called.

    Args:
        photos: with at least one object; up to `PHOTOS` of those with objects are used.
        weights: name of shipped weights.
    """
    state, _ = load_any(checkpoint_file(weights))
    network, preprocessing = network_of(state), Preprocessing.from_plain(state.preprocessing)
    device, corners = network.dbox_list.device, to_corners(network.dbox_list)
    samples = DetectionDataset(photos, network.input_size, preprocessing.fill, keep_difficult=True)
    recognised = num_objects = 0
    with_objects = np.diff(photos.starts).nonzero()[0]
    for place in evenly_spaced(len(with_objects), PHOTOS):
        batch = samples.__getitems__([(0, int(with_objects[place]))])
        boxes = batch.targets.boxes[0]
        _, conf, _ = network(normalize(batch.images, preprocessing, device, inference_format(device)))
        certain = 1 - conf[0].softmax(-1)[:, 0] > CERTAIN  # [P]
        overlap = iou(boxes, corners)  # [N, P]
        own = (overlap >= 0.5) | (overlap == overlap.amax(1, keepdim=True))
        recognised += int((own & certain).any(1).sum())
        num_objects += len(boxes)
    return recognised / num_objects
