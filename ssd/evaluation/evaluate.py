"""Evaluation of a network on photos: detections, loss, metric and kinds of errors."""

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ssd.batch import Batch, Crops
from ssd.config.schema import EvalConfig
from ssd.evaluation.error_kinds import Errors, error_kinds
from ssd.evaluation.metrics import METRICS, Metric, voc_entries
from ssd.evaluation.voc_eval import APResult
from ssd.inference.merge import Merger
from ssd.inference.predict import Detections, PixelModel, postprocess
from ssd.loss import MultiBoxLoss
from ssd.system.distributed import World
from ssd.system.stop import Stopped, StopRequest

THRESHOLDS = np.linspace(0, 1, 101)  # scores at which precision, recall and F1 are computed


class EvaluationData(NamedTuple):
    """The photos to evaluate on."""

    batches: Iterable[Batch]  # this process's share, not augmented; all crops of a photo are in the same process
    crops: Crops  # of all photos
    sizes: np.ndarray  # [n, 2] width and height of every photo, pixels
    ground_truth: Sequence[dict[str, np.ndarray]]  # one entry for each photo, as in `voc_eval`
    classes: Sequence[str]  # names, without background


@dataclass(frozen=True)
class Evaluation:
    """The results on all photos."""

    classes: tuple[str, ...]
    metric: Metric
    result: APResult
    detections: list[Detections]  # one entry for each photo
    seconds: float
    loss_l: float  # as in training, over the positives of all photos; without augmentation
    loss_c: float
    errors: Errors  # at overlap 0.5

    @property
    def mean_ap(self) -> float:
        return self.result.mean_ap

    @property
    def loss(self) -> float:
        """The loss that training minimises, on these photos."""
        return self.loss_l + self.loss_c

    @property
    def summary(self) -> str:
        """The last line of every evaluation."""
        return f"{self.metric.title} {self.mean_ap:.4f}"

    def record(self) -> dict[str, object]:
        """Return the record for `metrics.jsonl`; null for the AP of a class without objects, for the impact of errors if no
        class has objects, and for an infinite loss."""
        ap = {name: _plain(value) for name, value in zip(self.classes, self.result.ap, strict=True)}
        losses = {name: _plain(getattr(self, name)) for name in ("loss", "loss_l", "loss_c")}
        map_impact = {kind: _plain(impact) for kind, impact in self.errors.map_impact.items()}
        return {"metric": self.metric.name, "map": _plain(self.mean_ap), **losses, "ap": ap, "errors": map_impact}

    def score_curves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return score thresholds 0..1, and precision, recall and F1 at each, averaged over the classes with objects."""
        present = np.flatnonzero(self.result.num_objects).tolist()
        if not present:
            nothing = np.zeros_like(THRESHOLDS)
            return THRESHOLDS, nothing, nothing, nothing
        precision, recall, f1 = np.mean([self._curves_of(label) for label in present], axis=0)
        return THRESHOLDS, precision, recall, f1

    def _curves_of(self, label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return precision, recall and F1 of a class at each of `THRESHOLDS`."""
        recall, precision, _ = self.result.at(label, THRESHOLDS)
        return precision, recall, 2 * precision * recall / np.maximum(precision + recall, 1e-9)

    def best_score(self) -> tuple[float, float]:
        """Return the score threshold with the best mean F1, and that F1; 0.5 and 0 if there is no true positive."""
        thresholds, _, _, f1 = self.score_curves()
        best = int(f1.argmax())
        return (float(thresholds[best]), float(f1[best])) if f1[best] else (0.5, 0.0)

    def class_scores(self) -> dict[str, float]:
        """Return the score threshold with the best F1 of each class, the middle of several.

        A class whose best F1 is less than half of that of all classes gets their threshold: the network hardly knows it, and
        its own threshold would let many false detections through.
        """
        best, mean = self.best_score()
        scores = {}
        for label, name in enumerate(self.classes):
            f1 = self._curves_of(label)[2] if self.result.num_objects[label] else np.zeros(1)
            is_known = f1.max() > mean / 2
            scores[name] = round(float(np.median(THRESHOLDS[f1 == f1.max()])), 3) if is_known else best
        return scores

    def table(self) -> str:
        """Return a table of AP, objects and detections by class, followed by the loss and the time taken."""
        width = max(len("class"), *map(len, self.classes))
        lines = [f"{'class':{width}}      AP  objects  detections"]
        rows = zip(self.classes, self.result.ap, self.result.num_objects, self.result.num_detections, strict=True)
        for name, ap, num_objects, num_detections in rows:
            shown = "     –" if math.isnan(ap) else f"{ap:6.4f}"
            lines.append(f"{name:{width}}  {shown}  {num_objects:7d}  {num_detections:10d}")
        absent = [name for name, ap in zip(self.classes, self.result.ap, strict=True) if math.isnan(ap)]
        if absent:
            lines.append(f"not in the mean, since they have no objects here: {', '.join(absent)}")
        lines.append(f"validation loss {self.loss:.3f} (l {self.loss_l:.3f}, c {self.loss_c:.3f})")
        rate = len(self.detections) / self.seconds
        lines.append(f"{len(self.detections)} photos in {self.seconds:.1f} s, {rate:.1f} images/s")
        return "\n".join(lines)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def evaluate(
    model: PixelModel,
    data: EvaluationData,
    criterion: MultiBoxLoss,
    options: EvalConfig,
    world: World,
    stop: StopRequest | None = None,
) -> Evaluation:
    """Evaluate a network; with several processes, each predicts its share, and all return the same.

    Args:
        model: the network.
        data: the photos.
        criterion: the loss, computed from the same predictions as the detections.
        options: thresholds of the detections, and the metric.
        world: the processes that share the work.
        stop: request to stop; any of the processes may have received it.

    Raises:
        Stopped: on request; in all processes alike.
    """
    start = time.perf_counter()
    merger = Merger(data.crops, data.sizes, options.nms_thresh, options.top_k)
    losses: dict[int, np.ndarray] = {}  # each crop's share [3]
    stop = stop or StopRequest()
    with suppress(Stopped):  # raised while waiting for a batch; the other processes have to learn of it below
        for batch in data.batches:
            if stop():
                break
            outputs = model(batch.images)
            sums = criterion.sums(outputs, batch.targets).numpy()
            for index, detections, row in zip(batch.indices.tolist(), postprocess(outputs, options), sums, strict=True):
                losses[index] = row
                merger.add(index, detections)
    if stop.agree(world):
        raise Stopped(stop.signal)
    shares = world.all_gather((merger.merged, losses))
    by_photo = {photo: merged for share, _ in shares for photo, merged in share.items()}
    detections = [by_photo[photo] for photo in range(len(data.sizes))]
    by_crop = {index: row for _, share in shares for index, row in share.items()}
    # In the order of the crops, so that the sums do not depend on the division among processes.
    trained = np.flatnonzero(data.crops.trained).tolist()
    loss_l, loss_c, num_positives = np.sum([by_crop[index] for index in trained], axis=0).tolist()
    divisor = max(num_positives, 1)
    metric, entries, num_classes = METRICS[options.metric], voc_entries(detections), len(data.classes)
    result = metric.compute(entries, data.ground_truth, num_classes)
    errors = error_kinds(entries, data.ground_truth, num_classes, metric.average_precision)
    seconds = time.perf_counter() - start
    return Evaluation(tuple(data.classes), metric, result, detections, seconds, loss_l / divisor, loss_c / divisor, errors)
