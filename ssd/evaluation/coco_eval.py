"""Average precision as COCO defines it, computed by pycocotools: the mean over overlaps from 0.5 to 0.95."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssd.boxes import voc_to_edges
from ssd.evaluation.voc_eval import APResult, Arrays, mean_of_present, voc_eval


def coco_eval(detections: Sequence[Arrays], ground_truth: Sequence[Arrays], num_classes: int) -> APResult:
    """Compute COCO's AP@[.5:.95] of each class and their mean. Counts and curves are VOC's, at overlap 0.5.

    Difficult objects count as crowds: neither missed nor hit. At most 100 detections of each class in a photo count. Arguments
    are those of `voc_eval`.
    """
    images = [{"id": i} for i in range(len(ground_truth))]
    categories = [{"id": label} for label in range(num_classes)]
    objects = []
    for i, entry in enumerate(ground_truth):
        for box, label, difficult in zip(_boxes(entry), entry["labels"], entry["difficult"], strict=True):
            objects.append(
                {
                    "id": len(objects) + 1, "image_id": i, "category_id": int(label), "bbox": box,
                    "area": box[2] * box[3], "iscrowd": int(difficult),
                }
            )  # fmt: skip
    found = [
        [i, *box, float(score), int(label)]
        for i, entry in enumerate(detections)
        for box, score, label in zip(_boxes(entry), entry["scores"], entry["labels"], strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints each step
        truth = COCO()
        truth.dataset = {"images": images, "annotations": objects, "categories": categories}  # pyright: ignore
        truth.createIndex()
        # It needs at least one detection: an empty box with score 0 changes nothing.
        rows = np.array(found or [[0, 0, 0, 0, 0, 0, 0]]).reshape(-1, 7)
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")  # pyright: ignore
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [overlaps, recalls, classes]: all sizes, 100 detections
    precision = np.where(precision < 0, np.nan, precision)
    ap = [float(np.nan if np.isnan(each).all() else np.nanmean(each)) for each in np.moveaxis(precision, 2, 0)]
    return replace(voc_eval(detections, ground_truth, num_classes, use_07_metric=False), ap=ap, mean_ap=mean_of_present(ap))


def _boxes(entry: Arrays) -> list[list[float]]:
    """Convert inclusive pixels counted from 1, as in VOC, to left, top, width and height counted from 0."""
    boxes = voc_to_edges(np.asarray(entry["boxes"], np.float64).reshape(-1, 4))
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
