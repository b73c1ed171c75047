"""Pictures of a run's samples and of what it detects."""

import numpy as np

from data.loader import Samples
from ssd.boxes import voc_to_edges
from ssd.evaluation.evaluate import Evaluation
from ssd.evaluation.pictures import TRUTH, contact_sheet, draw_boxes, spread

PICTURED = 8  # photos of one picture


def samples_picture(samples: Samples) -> np.ndarray:
    """Training samples, spread over photos and tiles, as the network gets them, with their boxes."""
    batch = samples.__getitems__([(0, index) for index in spread(len(samples), PICTURED)])
    cells = []
    for image, boxes, labels in zip(batch.images.numpy(), *(part.numpy() for part in batch.targets[:2]), strict=True):
        real = labels >= 0
        cells.append(draw_boxes(image, boxes[real] * samples.size, labels[real], samples.photos.classes))
    return contact_sheet(cells)


def detections_picture(samples: Samples, evaluation: Evaluation) -> np.ndarray:
    """Photos spread over the validation set, in pairs: ground truth in white, detections in colour."""
    photos = samples.photos
    cells = []
    best, _ = evaluation.best_score()
    for index in spread(len(photos), PICTURED):
        image, truth, found = samples.image(index), photos.ground_truth(index), evaluation.detections[index]
        sure = found["scores"] >= best
        boxes, labels, scores = found["boxes"][sure], found["labels"][sure], found["scores"][sure]
        cells.append(draw_boxes(image, voc_to_edges(truth["boxes"]), truth["labels"], photos.classes, colour=TRUTH))
        cells.append(draw_boxes(image, voc_to_edges(boxes), labels, photos.classes, scores))
    return contact_sheet(cells)
