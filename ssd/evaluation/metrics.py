"""The metrics that `eval.metric` names.

To add a metric, write a function with the arguments and result of `voc_eval`, add an entry to METRICS, and allow its name in
`ssd.config.schema.EvalConfig.metric`.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from ssd.boxes import edges_to_voc
from ssd.evaluation.coco_eval import coco_eval
from ssd.evaluation.voc_eval import APResult, Arrays, AveragePrecision, area_ap, eleven_point_ap, voc_eval
from ssd.inference.predict import Detections


class Metric(NamedTuple):
    """A definition of mean average precision."""

    name: str  # in metrics.jsonl
    overlaps: str  # of detection and object from which a detection is a true positive
    compute: Callable[[Sequence[Arrays], Sequence[Arrays], int], APResult]  # as `voc_eval`
    average_precision: AveragePrecision  # AP of one curve at overlap 0.5, for kinds of errors and groups of objects

    @property
    def title(self) -> str:
        """How the mean is printed."""
        return f"mAP@{self.overlaps} ({self.name})"


METRICS = {
    "voc07": Metric("VOC07 11-point", "0.5", partial(voc_eval, use_07_metric=True), eleven_point_ap),
    "voc10": Metric("VOC10 area", "0.5", partial(voc_eval, use_07_metric=False), area_ap),
    "coco": Metric("COCO", "0.5:0.95", coco_eval, area_ap),
}


def voc_entries(detections: Iterable[Detections]) -> list[dict[str, np.ndarray]]:
    """Convert detections to the dicts that metrics take, with boxes in VOC's inclusive pixels."""
    return [{"boxes": edges_to_voc(each.boxes), "labels": each.labels, "scores": each.scores} for each in detections]
