"""Benchmark of VOC AP."""

import numpy as np

from scripts.benchmarks.measuring import OURS, Row, Runs, Setting, measure, rows
from scripts.benchmarks.networks import NUM_CLASSES
from ssd.evaluation.voc_eval import voc_eval

EVAL_IMAGES, EVAL_DETECTIONS = 4952, 500_000


def bench_eval(setting: Setting, batch_size: int) -> list[Row]:
    """Measure VOC AP on as many photos as VOC2007 test has. Peer: the devkit's loop over classes and detections."""
    rng = np.random.default_rng(0)

    def boxes(number: int) -> np.ndarray:
        corner = rng.uniform(1, 300, (number, 2))
        return np.concatenate([corner, corner + rng.uniform(10, 200, (number, 2))], axis=1)

    truths, detections = [], []
    for count in np.bincount(rng.integers(EVAL_IMAGES, size=EVAL_DETECTIONS), minlength=EVAL_IMAGES):
        true, labels = boxes(3), rng.integers(NUM_CLASSES, size=3)
        truths.append({"boxes": true, "labels": labels, "difficult": rng.random(3) < 0.1})
        from_truth = rng.integers(3, size=count)
        near = true[from_truth] + rng.normal(0, 15, (count, 4))
        scores = rng.random(count).astype(np.float32)
        detections.append({"boxes": near, "labels": labels[from_truth], "scores": scores})
    runs: Runs = {
        OURS: lambda: voc_eval(detections, truths, NUM_CLASSES),
        "loop over classes and detections": lambda: loop_eval(detections, truths, NUM_CLASSES),
    }
    return rows("eval", EVAL_IMAGES, "images/s", measure(runs, setting, max(1, setting.rounds // 4)))


def loop_eval(detections: list[dict[str, np.ndarray]], truths: list[dict[str, np.ndarray]], num_classes: int) -> float:
    """Return the mean AP (11-point), computed as in the devkit and in most of its ports."""
    aps = []
    for label in range(num_classes):
        objects = {}
        for i, truth in enumerate(truths):
            mine = truth["labels"] == label
            objects[i] = (truth["boxes"][mine], truth["difficult"][mine], [False] * int(mine.sum()))
        total = sum(int((~difficult).sum()) for _, difficult, _ in objects.values())
        found = []
        for i, detection in enumerate(detections):
            mine = detection["labels"] == label
            found += [(score, i, box) for score, box in zip(detection["scores"][mine], detection["boxes"][mine], strict=True)]
        found.sort(key=lambda entry: -entry[0])
        true, false = np.zeros(len(found)), np.zeros(len(found))
        for k, (_, i, box) in enumerate(found):
            boxes, difficult, claimed = objects[i]
            size = np.maximum(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]) + 1, 0)
            common = size[:, 0] * size[:, 1]
            areas = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1) + np.prod(box[2:] - box[:2] + 1)
            overlap = common / (areas - common)
            best = int(overlap.argmax()) if len(overlap) else -1
            if best >= 0 and overlap[best] >= 0.5:
                if not difficult[best]:
                    (false if claimed[best] else true)[k] = 1
                    claimed[best] = True
            else:
                false[k] = 1
        true, false = true.cumsum(), false.cumsum()
        recall, precision = true / max(total, 1), true / np.maximum(true + false, 1e-9)
        aps.append(np.mean([precision[recall >= t / 10].max(initial=0) for t in range(11)]))
    return float(np.mean(aps))
