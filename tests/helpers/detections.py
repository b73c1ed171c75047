"""Made-up detections and ground truth."""

import numpy as np

from ssd.inference.predict import Detections

BOX, NEAR, HALF, FAR = (11, 11, 50, 50), (13, 11, 52, 50), (27, 11, 66, 50), (101, 101, 140, 140)


def truth(*rows: tuple[float, float, float, float, int, bool]) -> dict:
    """Return a photo's objects, given rows of box, label and difficult."""
    table = np.array(rows, float).reshape(-1, 6)
    return {"boxes": table[:, :4], "labels": table[:, 4].astype(int), "difficult": table[:, 5].astype(bool)}


def found(*rows: tuple[float, float, float, float, int, float]) -> dict:
    """Return a photo's detections, given rows of box, label and score."""
    table = np.array(rows, float).reshape(-1, 6)
    return {"boxes": table[:, :4], "labels": table[:, 4].astype(int), "scores": table[:, 5]}


def random_set(seed: int, images: int = 40, classes: int = 4) -> tuple[list[dict], list[dict]]:
    """Return detections and ground truth: moved boxes, some with wrong labels."""
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for _ in range(images):
        num = rng.integers(0, 6)
        corner = rng.uniform(1, 200, (num, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 120, (num, 2))], axis=1)
        labels = rng.integers(0, classes, num)
        truths.append({"boxes": boxes, "labels": labels, "difficult": rng.random(num) < 0.2})
        again = rng.integers(0, num, 12) if num else np.zeros(0, int)
        moved = boxes[again] + rng.normal(0, 8, (len(again), 4))
        wrong = rng.random(len(again)) < 0.2
        found_labels = np.where(wrong, rng.integers(0, classes, len(again)), labels[again])
        detections.append({"boxes": moved, "labels": found_labels, "scores": rng.random(len(again))})
    return detections, truths


def with_faults(num_good: int = 60) -> tuple[list[dict], list[dict]]:
    """Return photos with two found objects, one with a lower score, followed by one photo for each fault."""
    detections = [found((*BOX, 0, 0.96), (*NEAR, 0, 0.5), (*FAR, 1, 0.6 + 0.3 * i / num_good)) for i in range(num_good)]
    truths = [truth((*BOX, 0, False), (*FAR, 1, False)) for _ in range(num_good)]
    detections += [found((*BOX, 0, 0.96)), found((*NEAR, 0, 0.96)), found((*HALF, 0, 0.96)), found()]
    truths += [truth(), truth((*BOX, 1, False)), truth((*BOX, 0, False)), truth((*BOX, 0, False))]
    return detections, truths


def assert_alike(detections: list[Detections], expected: list[Detections]) -> None:
    for entry, wanted in zip(detections, expected, strict=True):
        np.testing.assert_allclose(entry.boxes, wanted.boxes, atol=0.01)
        np.testing.assert_allclose(entry.scores, wanted.scores, atol=1e-5)
        assert entry.names == wanted.names
