"""Average precision as COCO counts it, by pycocotools: the mean over overlaps from 0.5 to 0.95."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssd.boxes import voc_to_edges
from ssd.evaluation.voc_eval import Arrays, VOCResult

METRIC = "COCO"


def coco_eval(detections: Sequence[Arrays], ground_truth: Sequence[Arrays], result: VOCResult) -> VOCResult:
    """COCO's AP@[.5:.95] of each class and their mean, in the place of VOC's.

    Difficult objects count as crowds: neither missed nor hit. Of each class at most 100 detections a photo are looked at.

    Args:
        detections: an entry an image, as `voc_eval` takes it.
        ground_truth: likewise.
        result: what `voc_eval` found on the same; its counts and curves, at overlap 0.5, stay as they are.
    """
    num_classes = len(result.ap)
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
    with contextlib.redirect_stdout(io.StringIO()):  # it prints each of its steps
        truth = COCO()
        truth.dataset = {"images": images, "annotations": objects, "categories": categories}  # pyright: ignore
        truth.createIndex()
        # It cannot do without any detection: one of no score, of no size, on no object changes nothing.
        rows = np.array(found or [[0, 0, 0, 0, 0, 0, 0]]).reshape(-1, 7)
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")  # pyright: ignore
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [overlaps, recalls, classes]: all sizes, 100 detections
    precision = np.where(precision < 0, np.nan, precision)
    ap = [float(np.nan if np.isnan(each).all() else np.nanmean(each)) for each in np.moveaxis(precision, 2, 0)]
    present = [value for value in ap if not np.isnan(value)]
    return replace(result, ap=ap, mean_ap=float(np.mean(present)) if present else float("nan"), metric=METRIC)


def _boxes(entry: Arrays) -> list[list[float]]:
    """Inclusive pixels counted from 1, as VOC has them → left, top, width and height counted from 0."""
    boxes = voc_to_edges(np.asarray(entry["boxes"], np.float64).reshape(-1, 4))
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
