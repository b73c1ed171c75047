"""Evaluation of a network on a data set: predictions, their loss, the VOC metric, and how all are shown."""

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ssd.batch import Batch
from ssd.boxes import edges_to_voc
from ssd.evaluation.coco_eval import METRIC as COCO_METRIC
from ssd.evaluation.coco_eval import coco_eval
from ssd.evaluation.error_kinds import Errors, error_kinds
from ssd.evaluation.voc_eval import VOCResult, voc_eval
from ssd.inference.merge import Merging, Parts
from ssd.inference.predict import Thresholds, forward, postprocess
from ssd.loss import MultiBoxLoss
from ssd.preprocessing import Preprocessing
from ssd.system.distributed import World
from ssd.system.stop import Stopped, StopRequest


@dataclass(frozen=True)
class Evaluation:
    """An evaluated data set."""

    classes: tuple[str, ...]
    result: VOCResult
    detections: list[dict[str, np.ndarray]]  # an entry a photo, boxes in its pixels as `voc_eval` takes them
    seconds: float
    loss_l: float  # as in training, over the positives of the whole data set; without augmentation
    loss_c: float
    errors: Errors  # at overlap 0.5; under COCO's metric, with the area under the curve

    @property
    def mean_ap(self) -> float:
        return self.result.mean_ap

    @property
    def loss(self) -> float:
        """What training lowers, on this data set."""
        return self.loss_l + self.loss_c

    @property
    def summary(self) -> str:
        """The line that closes every evaluation."""
        return f"{self.metric_name} {self.mean_ap:.4f}"

    @property
    def metric_name(self) -> str:
        """What the mean is called wherever it is shown."""
        return metric_name(self.result)

    def record(self) -> dict[str, object]:
        """The evaluation as `metrics.jsonl` has it; null for the AP of a class without objects, for what errors cost
        where no class has any, and for an infinite loss."""
        ap = {name: _plain(value) for name, value in zip(self.classes, self.result.ap, strict=True)}
        losses = {name: _plain(getattr(self, name)) for name in ("loss", "loss_l", "loss_c")}
        map_impact = {kind: _plain(cost) for kind, cost in self.errors.map_impact.items()}
        return {"metric": self.result.metric, "map": _plain(self.mean_ap), **losses, "ap": ap, "errors": map_impact}

    def score_curves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Score thresholds 0..1, and precision, recall and F1 from each of them on, averaged over the classes with objects."""
        thresholds = np.linspace(0, 1, 101)
        present = np.flatnonzero(self.result.num_objects).tolist()
        if not present:
            nothing = np.zeros_like(thresholds)
            return thresholds, nothing, nothing, nothing
        recall, precision, _ = map(np.array, zip(*(self.result.at(label, thresholds) for label in present), strict=True))
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        return thresholds, precision.mean(0), recall.mean(0), f1.mean(0)

    def best_score(self) -> tuple[float, float]:
        """The score threshold of largest mean F1, and that F1; 0.5 and 0 where nothing is found at any."""
        thresholds, _, _, f1 = self.score_curves()
        best = int(f1.argmax())
        return (float(thresholds[best]), float(f1[best])) if f1[best] else (0.5, 0.0)

    def table(self) -> str:
        """AP, objects and detections of each class, the loss, and the time taken."""
        width = max(len("class"), *map(len, self.classes))
        lines = [f"{'class':{width}}      AP  objects  detections"]
        rows = zip(self.classes, self.result.ap, self.result.num_objects, self.result.num_detections, strict=True)
        for name, ap, num_objects, num_detections in rows:
            shown = "     –" if math.isnan(ap) else f"{ap:6.4f}"
            lines.append(f"{name:{width}}  {shown}  {num_objects:7d}  {num_detections:10d}")
        absent = [name for name, ap in zip(self.classes, self.result.ap, strict=True) if math.isnan(ap)]
        if absent:
            lines.append(f"left out of the mean, having no object to find here: {', '.join(absent)}")
        lines.append(f"validation loss {self.loss:.3f} (l {self.loss_l:.3f}, c {self.loss_c:.3f})")
        rate = len(self.detections) / self.seconds
        lines.append(f"{len(self.detections)} photos in {self.seconds:.1f} s, {rate:.1f} images/s")
        return "\n".join(lines)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    sizes: np.ndarray,
    ground_truth: Sequence[dict[str, np.ndarray]],
    classes: Sequence[str],
    *,
    criterion: MultiBoxLoss,
    preprocessing: Preprocessing,
    device: torch.device,
    dtype: torch.dtype,
    limits: Thresholds,
    metric: str,
    world: World,
    stop: StopRequest | None = None,
    parts: Parts | None = None,
) -> Evaluation:
    """Evaluates a network; under several processes each predicts its share, and all return the same.

    Args:
        model: the network; left in evaluation mode.
        batches: this process's share of the data set, each photo with all its tiles in exactly one process; not augmented.
        sizes: `[n, 2]` width and height of every photo of the data set, pixels.
        ground_truth: an entry a photo, as `voc_eval` takes it.
        classes: names, without background.
        criterion: the loss, which is worked out of the predictions that the detections come from.
        preprocessing: what the weights expect of images.
        device: where the network is.
        dtype: of its activations.
        limits: thresholds of the detections.
        metric: voc07 (11-point AP), voc10 (the area), or coco.
        world: the processes that share the work.
        stop: whether the run is asked to stop, which any of the processes may be.
        parts: what the samples show; None: each photo as a whole.

    Raises:
        Stopped: it is; by all processes alike.
    """
    start = time.perf_counter()
    model.eval()
    parts = parts or Parts.whole(sizes)
    merging = Merging(parts, sizes, limits.nms_thresh, limits.top_k)
    losses: dict[int, np.ndarray] = {}  # each sample's share [3]
    # On CPUs each process has its own statistics of batch normalisation; a checkpoint has the main one's.
    world.broadcast(model.buffers())
    stop = stop or StopRequest()
    with suppress(Stopped):  # while a batch is waited for; the others have to hear of it
        for batch in batches:
            if stop():
                break
            outputs = forward(model, batch.images, preprocessing, device, dtype)
            sums = criterion.sums(outputs, batch.targets).numpy()
            for index, detection, row in zip(batch.indices.tolist(), postprocess(outputs, limits), sums, strict=True):
                losses[index] = row
                merging.add(index, detection)
    if stop.agree(world):
        raise Stopped(stop.signal)
    every = world.all_gather((merging.found, losses))
    in_photos = {photo: found for share, _ in every for photo, found in share.items()}
    in_order = [{**in_photos[i], "boxes": edges_to_voc(in_photos[i]["boxes"])} for i in range(len(sizes))]
    of_samples = {index: row for _, share in every for index, row in share.items()}
    # In the order of the samples, so that the sums do not depend on who had which.
    in_loss = np.flatnonzero(parts.in_loss).tolist()
    loss_l, loss_c, num_positives = np.sum([of_samples[index] for index in in_loss], axis=0).tolist()
    divisor = max(num_positives, 1)
    result = compute_metric(in_order, ground_truth, len(classes), metric)
    errors = error_kinds(in_order, ground_truth, len(classes), use_07_metric=metric == "voc07")
    seconds = time.perf_counter() - start
    return Evaluation(tuple(classes), result, in_order, seconds, loss_l / divisor, loss_c / divisor, errors)


def compute_metric(
    detections: Sequence[dict[str, np.ndarray]], ground_truth: Sequence[dict[str, np.ndarray]], num_classes: int, metric: str
) -> VOCResult:
    """The average precision by a metric that a configuration names: voc07, voc10 or coco; the rest as of `voc_eval`."""
    result = voc_eval(detections, ground_truth, num_classes, use_07_metric=metric == "voc07")
    return coco_eval(detections, ground_truth, result) if metric == "coco" else result


def metric_name(result: VOCResult) -> str:
    """What the mean is called wherever it is shown."""
    return f"mAP@{'0.5:0.95' if result.metric == COCO_METRIC else '0.5'} ({result.metric})"
